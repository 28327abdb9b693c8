"""Each key of the spec with its value and who said it: the config, the headers beside it, its family, an answer."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..spec import NAME_PATTERN, SCORINGS
from ..strict_yaml import shown, shown_key
from .answers import (
    ANSWERS,
    CORRECTION,
    DTYPES,
    FLAGS,
    GROUP_SCORE,
    IMAGE_BIAS,
    N_GROUP,
    OF_SELECTION,
    RENORMALIZE,
    SCALES,
    SOFTCAP,
    TID2EID,
    TOPK_GROUP,
)
from .checkpoint import claims_of
from .config import Config, in_words
from .families import ALIASES, FAMILIES
from .keys import (
    GEMMA_NORM,
    HASH_LAYERS,
    KEYS,
    SCORING_WORDS,
    SHARED_EXPERTS,
    SHARED_SINK,
    TOPK_METHOD,
    TOPK_METHODS,
    VISION_LAYERS,
    VOCAB_SIZE,
    ZERO_EXPERTS,
)
from .quantization import quantizes_gate

FAMILY = "family"


class Facts:
    """Each key of the spec with its value and who said it (a config key, a --flag, or FAMILY)."""

    def __init__(self, config: Config, source: str, checkpoint: Path | None) -> None:
        self.config = config
        self.source = source
        self.checkpoint = checkpoint
        self.stored: dict[str, dict[str, object]] = {}  # what its headers say, by the spec's keys
        self.quantized = quantizes_gate(config)
        self.problems = list(config.problems)
        self.values: dict[str, object] = {}
        self.said_by: dict[str, str] = {}

    def settle_all(self, answered: Mapping[str, object], name: str | None) -> None:
        """Settle every key and the name. With a problem among them, say too when the family is not known."""
        if self._names_no_experts(answered):
            ask = "where it has one, answer with --num-experts N and --top-k N"
            self.problems.append(f"num_experts: no key names experts, so this model has no router; {ask}")
            return
        for key, flag in FLAGS.items():
            if key == "routing.top_k" and self.checkpoint is not None:  # the sizes are settled
                sizes = self.values.get("hidden_size"), self.values.get("num_experts")
                self.stored = claims_of(self.checkpoint, *sizes, self.quantized)
            if answered.get(key) is ...:
                continue
            if moot := self._moot(key):
                if answered.get(key, False) is not False:
                    given = f"--{flag}: {in_words(answered[key])} given"
                    self.problems.append(f"{given}, leaving it out would be right where {moot}")
                continue
            self._settle(key, answered)
        self.name = name if name is not None else _default_name(self.config)
        if self.name is None:
            self.problems.append("name: the config does not say (no _name_or_path); answer with --name NAME")
        if self.problems and self.config.family is None:
            model_type = self.config.model_type
            near = difflib.get_close_matches(model_type or "", [*FAMILIES, *ALIASES], n=3)
            known = f" (known ones near it: {', '.join(near)})" if near else ""
            self.problems.append(
                f"model_type: {shown(model_type)} given, of which nothing is known beyond its keys{known}"
            )

    def _names_no_experts(self, answered: Mapping[str, object]) -> bool:
        keys = ("num_experts", "routing.top_k")
        named = any(key in answered or any(self.config.given(*KEYS[key])) for key in keys)
        return not named and not self.config.unread()

    def _settle(self, key: str, answered: Mapping[str, object]) -> None:
        flag = f"--{FLAGS[key]}"
        ask = f"answer with {flag} {ANSWERS[FLAGS[key]].metavar}"
        implied, said = self._implied(key), {}
        try:
            said = self._said(key)
            self._hold_against(key, said, implied)
        except _NoAnswer as error:
            if key not in answered:
                self.problems.append(f"{error}; {ask}")
                return
            said, implied = error.layers, None
        claims = [self.config.claim(at, value) for at, value in said.items()]
        values = list(said.values())
        if implied is not None and not said:
            claims = [self._family_says(implied)]
            values = [implied[0]]
        if key in answered:
            value = answered[key]
            # that another kernel does it says nothing about the model, so it contradicts nothing
            elsewhere = value is None and key != TID2EID or value is False and key == "residual"
            if values and value not in values and not elsewhere:
                edit = "leave the flag out, or edit the spec once it is written"
                self.problems.append(
                    f"{flag}: {in_words(value)} given, but the config says {' and '.join(claims)}; {edit}"
                )
                return
            by = flag
        elif any(value != values[0] for value in values):
            self.problems.append(f"{key}: the config disagrees with itself, {' and '.join(claims)}; {ask}")
            return
        elif values:
            value, by = values[0], next(iter(said), FAMILY)
        else:
            if self._is_needed(key):
                unless = self._unless(key)
                self.problems.append(f"{key}: the config does not say{self._why(key)}; {ask}{unless}")
            return
        self.values[key] = value
        agreed = [at for at, one in said.items() if one == value]
        self.said_by[key] = FAMILY if implied is not None and implied[0] == value else agreed[0] if agreed else by

    def _said(self, key: str) -> dict[str, object]:
        """What the config's keys and the headers say of the spec's `key`: {config key: value}. Raises _NoAnswer."""
        config = self.config
        stored = self.stored.get(key, {})
        if key == "dtypes.activation":
            named: dict[str, object] = {at: dtype for at, dtype in config.dtypes().items() if dtype in DTYPES}
            return named | stored
        if key in ("dtypes.gate_weight", SCALES):
            return stored
        if key == "norm.order":
            return {at: "G" for at, on in config.given(*GEMMA_NORM) if on is True}
        if key == "norm.eps":  # an RMSNorm's own; a LayerNorm's beside it is of another norm
            own, *others = KEYS[key]
            return {at: _typed(at, value, float) for at, value in [*config.given(own)] or config.given(*others)}
        if key == TID2EID:
            layers = [(at, _typed(at, count, int)) for at, count in config.given(HASH_LAYERS)]
            if all(count == 0 for _, count in layers):
                return {at: None for at, _ in layers}
            return {at: _typed(at, size, int) for at, size in config.given(VOCAB_SIZE)}
        if key == "residual":
            return {at: True for at, _ in config.given(*KEYS["residual.multiplier"])}
        if key == IMAGE_BIAS:
            sees: dict[str, object] = {at: _typed(at, n, int) > 0 for at, n in config.given(VISION_LAYERS)}
            return sees | stored
        if key == "routing.scoring":
            return {at: _scoring(at, word) for at, word in config.given(*KEYS[key])}
        if key == GROUP_SCORE:
            scores = {at: TOPK_METHODS[_method(at, word)] for at, word in config.given(TOPK_METHOD)}
            return {at: score for at, score in scores.items() if score is not None}
        kind = ANSWERS[FLAGS[key]].kind
        said = {at: _typed(at, value, kind) for at, value in config.given(*KEYS.get(key, ()))}
        if key == N_GROUP:
            return said | {at: 1 for at, method in config.given(TOPK_METHOD) if method == "greedy"}
        if key == "num_experts":
            # Experts without weights, and shared ones that tokens are weighed against, have rows in the gate too.
            shared = any(value is True for _, value in config.given(SHARED_SINK))
            for at, more in config.given(ZERO_EXPERTS, *[SHARED_EXPERTS] * shared):
                said = {f"{one} + {at}": count + _typed(at, more, int) for one, count in said.items()}
        if key == "gate_bias":  # in DeepSeek's own files, gate.bias is the correction bias
            corrected = self._implied(CORRECTION)
            return said | stored if corrected and corrected[0] is False else said
        if key == CORRECTION:
            if not said:
                said = {at: _method(at, word) == "noaux_tc" for at, word in config.given(TOPK_METHOD)}
                said |= dict.fromkeys(config.nulls(TOPK_METHOD), False)
            return said | stored
        return said

    def _hold_against(self, key: str, said: Mapping[str, object], implied: tuple[object, str] | None) -> None:
        """Raises _NoAnswer where a key says otherwise than the code of the family, which does not read it."""
        if implied is None or self.config.family is None or key in self.config.family.defaults:
            return
        against = {at: value for at, value in said.items() if key == "routing.scoring" and value != implied[0]}
        if key == "norm.order" and implied[0] == "G":
            against = {at: on for at, on in self.config.given(*GEMMA_NORM) if on is False}
        if against:
            claims = " and ".join(self.config.claim(at, value) for at, value in against.items())
            raise _NoAnswer(f"{key}: {claims} given, against {self._family_says(implied)}")

    def _family_says(self, implied: tuple[object, str]) -> str:
        known = self.config.known[0] if self.config.known else "a params.json of Mistral's"
        return f"{known}, which means {in_words(implied[0])} ({implied[1]})"

    def _implied(self, key: str) -> tuple[object, str] | None:
        """The family's word for `key`. Dtypes were read in bfloat16 checkpoints and hold for those only."""
        if key.startswith("dtypes.") and set(self.config.dtypes().values()) - {"bfloat16"}:
            return None
        if key == "dtypes.gate_weight" and self.quantized:
            return None
        return self.config.family.facts.get(key) if self.config.family else None

    def _is_needed(self, key: str) -> bool:
        if key == TID2EID:
            return any(self.config.given(HASH_LAYERS)) or self.config.family is FAMILIES["deepseek_v4"]
        if key in (TOPK_GROUP, GROUP_SCORE):
            return N_GROUP in self.values  # else that is asked for, and may well be answered with 1
        return ANSWERS[FLAGS[key]].needed

    def _moot(self, key: str) -> str:
        """Why `key` says nothing, by what is settled already; "" where it does say something."""
        settled = self.values.get
        if key.startswith(("norm.eps", "residual")) and settled("norm.order", ...) is None:
            return "there is no norm"
        if key.startswith("residual.") and settled("residual") is False:
            return "there is no residual"
        if key in OF_SELECTION and settled("routing.scoring", ...) is None:
            return "scoring is none"
        if key.startswith(("routing.groups", RENORMALIZE)) and settled("routing.scoring") == "softmax_of_chosen":
            return "scoring is softmax_of_chosen"
        if key in (TOPK_GROUP, GROUP_SCORE) and settled(N_GROUP) == 1:
            return "there is one group"
        if key.startswith(f"{RENORMALIZE}.") and settled(RENORMALIZE) is False:
            return "weights are not renormalized"
        return ""

    def _unless(self, key: str) -> str:
        """When an open question needs no answer, by those that are open before it."""
        if "norm.order" not in self.values and key in ("norm.eps", "residual"):
            return ", unless norm.order is none"
        if "routing.scoring" not in self.values and key in OF_SELECTION:
            chosen = " or softmax_of_chosen" * key.startswith(("routing.groups", RENORMALIZE))
            return f", unless scoring is none{chosen}"
        return ""

    def _why(self, key: str) -> str:
        nulls = self.config.nulls(*KEYS.get(key, ()))
        dtypes = [f"{at} is {dtype}" for at, dtype in self.config.dtypes().items()] if key.startswith("dtypes") else []
        why = [f"{at} is null" for at in nulls] + dtypes
        if key == "dtypes.gate_weight" and self.quantized:
            why = [f"{self.quantized} quantizes the gate too"]
        return f" ({', '.join(why)})" if why else ""

    def data(self) -> dict[str, Any]:
        """The spec in the shape of its YAML."""
        values = {**self.values, "name": self.name, "sources": self._sources()}
        not_covered = list(self.config.family.not_covered) if self.config.family else []
        if not_covered:
            values["not_covered"] = not_covered
        residual, renormalize = values.pop("residual", False), values.pop(RENORMALIZE, False)
        data: dict[str, Any] = {}
        for key, value in values.items():
            *path, last = key.split(".")
            place = data
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value
        if data["norm"]["order"] is None:
            data["norm"] = "none"
        if self.values.get(TID2EID) is None:
            data["routing"].pop("tid2eid", None)
        if residual:  # its mapping may be all defaults, as that of renormalize
            data.setdefault("residual", {})
        if renormalize:
            data["routing"].setdefault("renormalize", {})
        if self.values.get(N_GROUP) == 1:
            del data["routing"]["groups"]
        if self.values.get(SOFTCAP) == 0:
            del data["routing"]["softcap"]
        return data

    def _model_type(self) -> str:
        model_type = self.config.model_type
        return f" (model_type {shown_key(model_type)})" if model_type is not None else ""

    def _sources(self) -> list[str]:
        """One line for the config's keys, one for each source of the family's facts, one for the answers."""
        facts = {key: f"{key} {in_words(value)}" for key, value in self.values.items()}
        from_config: list[str] = []
        lines: dict[str, list[str]] = {f"the model's config.json{self._model_type()}": from_config}
        stored = {at: f"read in {at}" for said in self.stored.values() for at in said}
        for key, by in self.said_by.items():
            if by == FAMILY and (implied := self._implied(key)):
                lines.setdefault(implied[1], []).append(facts[key])
            elif by in stored:
                lines.setdefault(stored[by], []).append(facts[key])
            elif not by.startswith("--"):
                from_config.append(key)
        lines[self.source] = [facts[key] for key, by in self.said_by.items() if by.startswith("--")]
        return [f"{', '.join(said)}: {source}" for source, said in lines.items() if said]


class _NoAnswer(Exception):
    """What the config gives for a key settles nothing, and a flag may; layers: its values, where each layer has one."""

    def __init__(self, message: str, layers: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.layers = dict(layers or {})


def _is(value: object, kind: type) -> bool:
    """Whether `value` is of `kind`: whole numbers are numbers, NaN and infinity are none."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return type(value) is kind or (kind is float and type(value) is int)


def _typed(at: str, value: Any, kind: type) -> Any:
    """`value` when it is of `kind`, or the one value that a list gives layer by layer, the same each time."""
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    if _is(value, kind):
        return value
    right = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
    several = value if isinstance(value, list) else []
    layers = {f"{at}[{i}]": item for i, item in enumerate(several) if _is(item, kind) and item not in several[:i]}
    same = ", the same for every layer (else each needs a spec of its own)" if isinstance(value, list) else ""
    raise _NoAnswer(f"{at}: {shown(value)} given, {right}{same} would be right", layers)


def _scoring(at: str, word: object) -> str:
    """The scoring that a config's key means by `word`."""
    words = SCORING_WORDS.get(at.split(".")[-1]) or {scoring: scoring for scoring in SCORINGS}
    if isinstance(word, str) and word in words:
        return words[word]
    raise _NoAnswer(f"{at}: {shown(word)} given, {', '.join(words)} would be right")


def _method(at: str, word: object) -> str:
    """The topk_method `word`, one that is known."""
    if isinstance(word, str) and word in TOPK_METHODS:
        return word
    raise _NoAnswer(f"{at}: {shown(word)} given, {', '.join(TOPK_METHODS)} would be right")


def _default_name(config: Config) -> str | None:
    """A spec's name out of the last part of `_name_or_path`."""
    for place in (config.outer, config.places[0][1]):
        path = place.get("_name_or_path")
        if isinstance(path, str):
            last = re.split(r"[/\\]", path.rstrip("/\\"))[-1].lower()
            name = re.sub(r"([-_.])[-_.]+", r"\1", re.sub(r"[^a-z0-9._-]+", "-", last)).strip("-_.")
            if re.match(NAME_PATTERN, name) and len(name) <= 64:
                return name
    return None
