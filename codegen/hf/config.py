"""A config.json, and the parts of it that describe the text model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, Problem
from ..strict_yaml import read_text, shown, shown_key
from .families import ARCHITECTURES, FAMILIES, PARAMS_JSON, Family, family_of
from .keys import EXPERT_PARTS, TEXT_PARTS

MAX_CONFIG_BYTES = 16 << 20


def load_config(path: str | Path) -> dict[str, Any]:
    """Read a config.json. Raises BadInput if it is no JSON object, repeats a key or holds NaN or infinity."""
    path = Path(path)
    text, problems = read_text(path, MAX_CONFIG_BYTES)
    if problems:
        raise BadInput(problems)

    def problem(line: int | None, message: str) -> None:
        problems.append(Problem(str(path), line, message))

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for key, value in items:
            if key in known:
                problem(None, f"{shown_key(key)}: given twice in one object, once would be right")
            known[key] = value
        return known

    def constant(word: str) -> None:
        problem(None, f"{word} given, a number that JSON knows would be right")

    config = None
    try:
        config = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
        if not isinstance(config, dict):
            problem(1, "an object of keys and values would be right")
    except json.JSONDecodeError as error:
        problem(error.lineno, f"not valid JSON: {error.msg}")
    except RecursionError:
        problem(None, "nested too deeply for a config.json")
    except ValueError as error:  # an integer of thousands of digits
        problem(None, f"not valid JSON: {error}")
    if problems:
        raise BadInput(problems)
    assert isinstance(config, dict)
    return config


@dataclass(frozen=True)
class Config:
    """The parts of a config that are read.

    places: (prefix of the keys, mapping), the one that describes the text model first; around: what the text model lies
    in, from the inside out, and last the whole.
    """

    places: tuple[tuple[str, dict[str, Any]], ...]
    around: tuple[dict[str, Any], ...]
    problems: tuple[str, ...]

    @property
    def outer(self) -> dict[str, Any]:
        return self.around[-1]

    @classmethod
    def of(cls, config: dict[str, Any]) -> Config:
        """Descend to where the text model is described, and beside it its experts."""
        problems: list[str] = []

        def part(prefix: str, here: dict[str, Any], keys: tuple[str, ...]) -> tuple[str, dict[str, Any]] | None:
            for key in keys:
                inner = here.get(key)
                if isinstance(inner, dict):
                    return f"{prefix}{key}.", inner
                if inner is not None:
                    problems.append(f"{prefix}{key}: {shown(inner)} given, an object would be right")
            return None

        prefix, here, around = "", config, [config]
        while inner := part(prefix, here, TEXT_PARTS):
            prefix, here = inner
            around.insert(0, here)
        experts = part(prefix, here, EXPERT_PARTS)
        places = [(prefix, here), *([experts] if experts else [])]
        read = cls(tuple(places), tuple(around), ())
        if read.model_type is None and any(c.get("model_type") is not None for c in (here, config)):
            problems.append("model_type: no text given, a name such as deepseek_v3 would be right")
        return cls(tuple(places), tuple(around), tuple(problems))

    @property
    def model_type(self) -> str | None:
        """The text model's own model_type, or else that of the whole."""
        for place in (self.places[0][1], self.outer):
            said = place.get("model_type")
            if said is not None:
                return said if isinstance(said, str) else None
        return None

    @property
    def family(self) -> Family | None:
        """What the whole is, where that says more than its text model does."""
        whole, architectures = self.outer.get("model_type"), self.outer.get("architectures")
        if isinstance(whole, str) and whole in FAMILIES:
            return FAMILIES[whole]
        if isinstance(architectures, list):
            for name in architectures:
                if isinstance(name, str) and name in ARCHITECTURES:
                    return FAMILIES[ARCHITECTURES[name]]
        if self.model_type is None and "dim" in self.outer and isinstance(self.outer.get("moe"), dict):
            return PARAMS_JSON
        return family_of(self.model_type) if self.model_type is not None else None

    def given(self, *keys: str) -> Iterator[tuple[str, Any]]:
        """(key with its prefix, value) of each of `keys` that is there and not null."""
        for prefix, place in self.places:
            yield from ((prefix + key, place[key]) for key in keys if place.get(key) is not None)

    def claim(self, at: str, value: object) -> str:
        """That the key `at` says `value`, for a message: with the key's own word where that is another."""
        for prefix, place in self.places:
            word = place.get(at.removeprefix(prefix))
            if isinstance(word, str) and word != value:
                return f"{at} {shown_key(word)}, which means {in_words(value)}"
        return f"{at} {in_words(value)}"

    def nulls(self, *keys: str) -> list[str]:
        return [prefix + key for prefix, place in self.places for key in keys if key in place and place[key] is None]

    def dtypes(self) -> dict[str, str]:
        """The checkpoint's dtype as the text model's keys say it, or else those of what is next around it."""
        keys = ("torch_dtype", "dtype")
        found = dict(self.given(*keys))
        for place in self.around:
            found = found or {key: place[key] for key in keys if place.get(key) is not None}
        return {key: shown_key(str(value)).removeprefix("torch.") for key, value in found.items()}


def in_words(value: object) -> str:
    """`value` within a sentence: words without quotes, None as none."""
    return "none" if value is None else value if isinstance(value, str) else shown(value)
