"""A model's Hugging Face config.json into a `RouterSpec`.

Four things may say a fact, and the spec's `sources` tell which did: a key of the config, the headers of the
checkpoint beside it, the model's family (what its `model_type` implies and no key says), and the person who runs
`add`, by a flag. A fact that nobody says is asked for by the flag that answers it, and so is one that two of them
disagree on. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInput, Problem
from ..spec import RouterSpec, spec_from_data
from .answers import ANSWERS, CORRECTION, RENORMALIZE, answered
from .config import Config, load_config
from .facts import FAMILY, Facts
from .families import NO_GATE

__all__ = ["ANSWERS", "comment_for", "load_config", "spec_from_config", "unread_keys"]


def spec_from_config(
    config: dict[str, Any],
    *,
    name: str | None,
    answers: Mapping[str, str],
    file: str = "config.json",
    source: str = "said by a flag of add",
    checkpoint: Path | None = None,
) -> RouterSpec:
    """The spec of the model that `config` describes.

    name: the spec's name, else made from `_name_or_path`; answers: flags (keys of ANSWERS) to the words given
    for them; file: what messages call the config; source: where the answers come from; checkpoint: the folder with
    the model's safetensors. Raises BadInput listing all at once: what the config does not say and the flag that
    answers it, keys that disagree, wrong types, and answers against the config.
    """
    read = Config.of(config)
    if reason := NO_GATE.get(read.model_type or ""):
        raise BadInput([Problem(file, None, f"model_type: {read.model_type} given, which no spec can say: {reason}")])
    if dense := read.no_router:
        raise BadInput(
            [Problem(file, None, f"{dense} given, so this model has no router, and there is nothing to add")]
        )
    facts = Facts(read, source, checkpoint)
    facts.settle_all(answered(answers, facts.problems), name)
    if facts.problems:
        raise BadInput([Problem(None if text.startswith("--") else file, None, text) for text in facts.problems])
    spec, found = spec_from_data(facts.data())
    if found or spec is None:
        by = {key: f" (given by {by})" for key, by in facts.said_by.items() if by != FAMILY}
        raise BadInput([Problem(file, None, text + by.get(".".join(map(str, at)), "")) for at, text in found.items()])
    return spec


def comment_for(config: dict[str, Any], spec: RouterSpec) -> str:
    """What is special about the config's family, for the top of its spec; "" when the family is not known, or when
    `spec` chooses experts otherwise.
    """
    family = Config.of(config).family
    if family is None:
        return ""
    if spec.routing.scoring is not None:
        chosen = {
            "routing.scoring": spec.routing.scoring,
            CORRECTION: spec.routing.e_score_correction_bias,
            RENORMALIZE: spec.routing.renormalize is not None,
        }
        if any(family.facts[key][0] != chosen[key] for key in chosen if key in family.facts.keys() - family.defaults):
            return ""
    return family.note


def unread_keys(config: dict[str, Any]) -> list[str]:
    """Keys of the config that may say something of the router, and that nothing here reads."""
    return Config.of(config).unread()
