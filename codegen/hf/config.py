"""A config.json, and the parts of it that describe the text model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import BadInput, Problem
from ..strict_yaml import read_text, shown, shown_key
from .families import FAMILIES, PARAMS_JSON, VARIANTS, Family, family_name, family_of_class
from .keys import EXPERT_PARTS, HAS_EXPERTS, KEYS, TEXT_PARTS, may_concern_router

MAX_CONFIG_BYTES = 16 << 20
LFS_POINTER = "version https://git-lfs.github.com/spec/"
"""How the file begins that git leaves in the place of a large one (https://git-lfs.com, its specification)."""
IS_LFS_POINTER = "is a git-lfs pointer, the file itself would be right; git lfs pull fetches it"


def load_config(path: str | Path) -> dict[str, Any]:
    """Read a config.json. Raises BadInput if it is no JSON object or repeats a key.

    NaN and Infinity, which Python writes and JSON does not know, are read: NVIDIA's Nemotron 3 has them in a key that
    says nothing of the router.
    """
    path = Path(path)
    text, problems = read_text(path, MAX_CONFIG_BYTES)
    if not problems and not text.strip():
        problems.append(Problem(str(path), None, "is empty, an object of keys and values would be right"))
    if text.startswith(LFS_POINTER):
        problems.append(Problem(str(path), None, IS_LFS_POINTER))
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

    config = None
    try:
        config = json.loads(text, object_pairs_hook=pairs)
        if not isinstance(config, dict):
            problem(1, "an object of keys and values would be right")
    except json.JSONDecodeError as error:
        problem(error.lineno, f"not valid JSON: {error.msg}")
    except RecursionError:
        problem(None, "nested too deeply for a config.json")
    except ValueError:  # what Python turns into no integer
        problem(None, "a whole number of thousands of digits given, one that means something would be right")
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
                if inner is not None and keys is TEXT_PARTS:  # `moe` is also a plain yes or no
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

    @cached_property
    def known(self) -> tuple[str, str] | None:
        """What in the config names the family, and its name in FAMILIES.

        That is the whole's model_type, where it says more than the text model's, else the text model's, the whole's
        other name, or a class of `architectures`.
        """
        whole, inner = self.outer.get("model_type"), self.model_type
        named = [("model_type", said, family_name(said)) for said in (inner, whole) if isinstance(said, str)]
        if isinstance(whole, str) and whole in FAMILIES:
            named.reverse()
        for place in (self.places[0][1], self.outer):
            classes = place.get("architectures")
            for said in classes if isinstance(classes, list) else []:
                if isinstance(said, str):
                    named.append(("architecture", said, family_of_class(said)))
        return next(((f"{what} {shown_key(said)}", name) for what, said, name in named if name is not None), None)

    @property
    def family(self) -> Family | None:
        """The family, or its other router, where a key says so."""
        if self.known is None:
            is_params_json = self.model_type is None and "dim" in self.outer and isinstance(self.outer.get("moe"), dict)
            return PARAMS_JSON if is_params_json else None
        variant = VARIANTS.get(self.known[1])
        if variant and variant.holds(self.places[0][1].get(variant.key)):
            return variant.family
        return FAMILIES[self.known[1]]

    @property
    def no_router(self) -> str:
        """What says that the model is dense, as some of families with experts are; "" where it has experts."""
        dense = {at: on for at, on in self.given(HAS_EXPERTS) if on is False}
        counts = dict(self.given(*KEYS["num_experts"]))
        if counts and all(type(count) is int and 0 <= count <= 1 for count in counts.values()):
            dense |= counts
        return " and ".join(f"{at} {in_words(value)}" for at, value in dense.items())

    def unread(self) -> list[str]:
        """Keys that sound as if they said something of the router, are not off, and are not read."""
        variant = VARIANTS.get(self.known[1]) if self.known else None
        return [
            prefix + key
            for prefix, place in self.places
            for key, value in place.items()
            if not (value is None or value is False or isinstance(value, dict))
            if may_concern_router(key) and not (variant and key == variant.key)
        ]

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
