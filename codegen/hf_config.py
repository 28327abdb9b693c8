"""A model's Hugging Face config.json into a `RouterSpec`.

Four things may say a fact, and the spec's `sources` tell which did: a key of the config, the headers of the
checkpoint beside it, the model's family (what its `model_type` implies and no key says), and the person who runs
`add`, by a flag. A fact that nobody says is asked for by the flag that answers it; two that disagree are an error.
Nothing is guessed.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import hf_checkpoint
from .errors import BadInput, Problem
from .hf_families import ALIASES, ARCHITECTURES, FAMILIES, NO_GATE, PARAMS_JSON, Family, family_of
from .hf_keys import EXPERT_PARTS, KEYS, SCORING_WORDS, TEXT_PARTS
from .spec import NAME_PATTERN, RIGHT, SCORINGS, RouterSpec, spec_from_data
from .strict_yaml import plain_value, read_text, shown, shown_key

MAX_CONFIG_BYTES = 16 << 20

_TID2EID = "routing.tid2eid.vocab_size"
_CORRECTION = "routing.e_score_correction_bias"
_IMAGE_BIAS = "routing.e_score_correction_bias_vl"
_SCALES = "routing.per_expert_scale"
_RENORMALIZE = "routing.renormalize"
_N_GROUP = "routing.groups.n_group"
_TOPK_GROUP = "routing.groups.topk_group"
_GROUP_SCORE = "routing.groups.score"
_SOFTCAP = "routing.softcap"
_FAMILY = "family"


@dataclass(frozen=True)
class Answer:
    """A flag of `add`.

    key: the spec's key it answers; help: for the command line; choices: the words it takes and their meaning,
    or None where it takes a number of type `number`; needed: whether it is asked for where nothing says it.
    """

    key: str
    help: str
    choices: Mapping[str, object] | None = None
    number: type[int | float] = int
    needed: bool = True

    @property
    def kind(self) -> type:
        """Type of the values that a config's keys give for it, other than words."""
        return bool if self.choices else self.number

    @property
    def metavar(self) -> str:
        """What follows the flag: the choices, or N."""
        return "|".join(self.choices) if self.choices else "N"


_DTYPES = {"bfloat16": "bfloat16", "float16": "float16"}
_YES_NO = {"yes": True, "no": False}

ANSWERS: dict[str, Answer] = {
    "hidden-size": Answer("hidden_size", "the router's input width"),
    "num-experts": Answer("num_experts", "rows of the gate weight"),
    "top-k": Answer("routing.top_k", "experts chosen for a token"),
    "norm-order": Answer(
        "norm.order",
        "A: weight * round(xhat), as Llama; B: round(weight * xhat); G: round((1 + weight) * xhat), as "
        "Gemma; none: the kernel before has normed x already",
        {"A": "A", "B": "B", "G": "G", "none": None},
    ),
    "norm-eps": Answer("norm.eps", "added to the mean square, such as 1e-6", number=float),
    "residual": Answer("residual", "whether x is to be added to a residual before the norm", _YES_NO),
    "residual-multiplier": Answer(
        "residual.multiplier", "multiplies x before that add (1 when left out)", number=float, needed=False
    ),
    "residual-stream-multiplier": Answer(
        "residual.stream_multiplier", "multiplies the residual before it (1 when left out)", number=float, needed=False
    ),
    "activation-dtype": Answer("dtypes.activation", "dtype of x and normed_x", _DTYPES),
    "gate-weight-dtype": Answer(
        "dtypes.gate_weight",
        "dtype of the gate weight as stored: the safetensors header tells",
        {**_DTYPES, "float32": "float32"},
    ),
    "logits-dtype": Answer(
        "dtypes.logits",
        "dtype of router_logits (float32 when left out)",
        {"float32": "float32", "bfloat16": "bfloat16"},
        needed=False,
    ),
    "gate-bias": Answer("gate_bias", "whether the gate is a Linear with a bias", _YES_NO),
    "e-score-correction-bias": Answer(_CORRECTION, "whether a bias per expert takes part in choosing", _YES_NO),
    "tid2eid-vocab-size": Answer(_TID2EID, "rows of the hash layers' tid2eid table; 0, or left out: no hash layers"),
    "scoring": Answer(
        "routing.scoring",
        "an expert's score: softmax over all, then top k; softmax_of_chosen: top k of the logits, then softmax over "
        "these; none: the engine chooses experts itself, from the logits",
        {"none": None} | {scoring: scoring for scoring in SCORINGS},
    ),
    "n-group": Answer(_N_GROUP, "groups of experts, of which only the best are chosen from; 1: no groups"),
    "topk-group": Answer(_TOPK_GROUP, "groups chosen from"),
    "group-score": Answer(
        _GROUP_SCORE,
        "a group's own score: the sum of its two best experts' or the best one's",
        {"top2_sum": "top2_sum", "max": "max"},
    ),
    "renormalize": Answer(_RENORMALIZE, "whether the chosen experts' weights are divided by their sum", _YES_NO),
    "renormalize-epsilon": Answer(
        f"{_RENORMALIZE}.epsilon", "added to that sum, such as 1e-20 (0 when left out)", number=float, needed=False
    ),
    "renormalize-floor": Answer(
        f"{_RENORMALIZE}.floor",
        "that sum is at least this, such as 1e-12 (0 when left out)",
        number=float,
        needed=False,
    ),
    "routed-scaling-factor": Answer("routing.routed_scaling_factor", "multiplies the weights, such as 1", number=float),
    "softcap": Answer(
        _SOFTCAP,
        "logits become N * tanh(logits / N) before the scoring; 0, or left out: they do not",
        number=float,
        needed=False,
    ),
    "e-score-correction-bias-vl": Answer(
        _IMAGE_BIAS,
        "whether tokens of images are chosen for by a correction bias of their own (no when left out)",
        _YES_NO,
        needed=False,
    ),
    "per-expert-scale": Answer(
        _SCALES,
        "whether weights are multiplied by a factor of their expert's at the end (no when left out)",
        _YES_NO,
        needed=False,
    ),
    "router-logits": Answer(
        "routing.router_logits",
        "whether logits are an output beside the chosen (no when left out)",
        _YES_NO,
        needed=False,
    ),
    "ids-dtype": Answer(
        "routing.ids_dtype",
        "dtype of the chosen ids (int32 when left out)",
        {"int32": "int32", "int64": "int64"},
        needed=False,
    ),
    "weights-dtype": Answer(
        "routing.weights_dtype",
        "dtype of the chosen weights (float32 when left out)",
        {"float32": "float32", "bfloat16": "bfloat16"},
        needed=False,
    ),
}
"""The flags of `add` by name, without dashes in front: the answers to what a config does not say."""

_FLAGS = {answer.key: flag for flag, answer in ANSWERS.items()}

_OF_SELECTION = frozenset(
    key
    for key in _FLAGS
    if key.startswith("routing.") and key not in ("routing.top_k", _CORRECTION, _TID2EID, "routing.scoring")
)
"""Keys that say how experts are chosen, and so nothing where the engine does it itself."""


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
    read = _Config.of(config)
    if reason := NO_GATE.get(read.model_type or ""):
        raise BadInput([Problem(file, None, f"model_type: {read.model_type} given, which no spec can say: {reason}")])
    facts = _Facts(read, source, checkpoint)
    facts.settle_all(_answered(answers, facts.problems), name)
    if facts.problems:
        raise BadInput([Problem(None if text.startswith("--") else file, None, text) for text in facts.problems])
    spec, found = spec_from_data(facts.data())
    if found or spec is None:
        by = {key: f" (given by {by})" for key, by in facts.said_by.items() if by != _FAMILY}
        raise BadInput([Problem(file, None, text + by.get(".".join(map(str, at)), "")) for at, text in found.items()])
    return spec


def comment_for(config: dict[str, Any]) -> str:
    """What is special about the config's family, for the top of its spec; "" when the family is not known."""
    family = _Config.of(config).family
    return family.note if family else ""


@dataclass(frozen=True)
class _Config:
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
    def of(cls, config: dict[str, Any]) -> _Config:
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
                return f"{at} {shown_key(word)}, which means {_word(value)}"
        return f"{at} {_word(value)}"

    def nulls(self, *keys: str) -> list[str]:
        return [prefix + key for prefix, place in self.places for key in keys if key in place and place[key] is None]

    def dtypes(self) -> dict[str, str]:
        """The checkpoint's dtype as the text model's keys say it, or else those of what is next around it."""
        keys = ("torch_dtype", "dtype")
        found = dict(self.given(*keys))
        for place in self.around:
            found = found or {key: place[key] for key in keys if place.get(key) is not None}
        return {key: shown_key(str(value)).removeprefix("torch.") for key, value in found.items()}


def _answered(answers: Mapping[str, str], problems: list[str]) -> dict[str, object]:
    """The answers by the spec's keys, their words turned into values; `...` for a word that is no answer."""
    values: dict[str, object] = {}
    for flag, word in answers.items():
        answer = ANSWERS.get(flag)
        if answer is None:
            problems.append(f"--{flag}: unknown, one of --{', --'.join(ANSWERS)} would be right")
            continue
        value = answer.choices.get(word, ...) if answer.choices else plain_value(word)
        if answer.number is float and type(value) is int:
            value = float(value)
        if answer.choices is None and type(value) is not answer.number:
            value = ...
        if value is ...:
            right = ", ".join(answer.choices) if answer.choices else RIGHT[answer.key]
            problems.append(f"--{flag}: {shown(word)} given, {right} would be right")
        values[answer.key] = None if answer.key == _TID2EID and value == 0 else value
    return values


class _Facts:
    """Each key of the spec with its value and who said it (a config key, a --flag, or _FAMILY)."""

    def __init__(self, config: _Config, source: str, checkpoint: Path | None) -> None:
        self.config = config
        self.source = source
        self.checkpoint = checkpoint
        self.stored: dict[str, dict[str, object]] = {}  # what its headers say, by the spec's keys
        self.problems = list(config.problems)
        self.values: dict[str, object] = {}
        self.said_by: dict[str, str] = {}

    def settle_all(self, answered: Mapping[str, object], name: str | None) -> None:
        """Settle every key and the name. With a problem among them, say too when the family is not known."""
        for key, flag in _FLAGS.items():
            if key == "routing.top_k" and self.checkpoint is not None:  # the sizes are settled
                sizes = self.values.get("hidden_size"), self.values.get("num_experts")
                self.stored = hf_checkpoint.claims_of(self.checkpoint, *sizes)
            if answered.get(key) is ...:
                continue
            if moot := self._moot(key):
                if answered.get(key, False) is not False:
                    given = f"--{flag}: {_word(answered[key])} given"
                    self.problems.append(f"{given}, leaving it out would be right where {moot}")
                continue
            try:
                self._settle(key, answered)
            except _WrongType as error:
                self.problems.append(str(error))
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

    def _settle(self, key: str, answered: Mapping[str, object]) -> None:
        flag = f"--{_FLAGS[key]}"
        ask = f"answer with {flag} {ANSWERS[_FLAGS[key]].metavar}"
        said = self._said(key)
        implied = self._implied(key)
        claims = [self.config.claim(at, value) for at, value in said.items()]
        values = list(said.values())
        if implied is not None and not said:
            claims = [f"model_type {self.config.model_type}, which means {_word(implied[0])} ({implied[1]})"]
            values = [implied[0]]
        if key in answered:
            value = answered[key]
            # that another kernel does it says nothing about the model, so it contradicts nothing
            elsewhere = value is None and key != _TID2EID or value is False and key == "residual"
            if values and value not in values and not elsewhere:
                edit = "leave the flag out, or edit the spec once it is written"
                self.problems.append(
                    f"{flag}: {_word(value)} given, but the config says {' and '.join(claims)}; {edit}"
                )
                return
            by = flag
        elif any(value != values[0] for value in values):
            self.problems.append(f"{key}: the config disagrees with itself, {' and '.join(claims)}; {ask}")
            return
        elif values:
            value, by = values[0], next(iter(said), _FAMILY)
        else:
            if self._is_needed(key):
                self.problems.append(f"{key}: the config does not say{self._why(key)}; {ask}")
            return
        self.values[key] = value
        agreed = [at for at, one in said.items() if one == value]
        self.said_by[key] = _FAMILY if implied is not None and implied[0] == value else agreed[0] if agreed else by

    def _said(self, key: str) -> dict[str, object]:
        """What the config's keys say of the spec's `key`: {config key: value}. Raises _WrongType."""
        config = self.config
        if key == "dtypes.activation":
            named: dict[str, object] = {at: dtype for at, dtype in config.dtypes().items() if dtype in _DTYPES}
            return named or self.stored.get(key, {})
        if key == "dtypes.gate_weight":
            return self.stored.get(key, {})
        if key == "norm.order":
            return {at: "G" for at, on in config.given("use_gemma_norm", "zero_centered") if on is True}
        if key == _TID2EID:
            layers = [(at, _typed(at, count, int)) for at, count in config.given("num_hash_layers")]
            if all(count == 0 for _, count in layers):
                return {at: None for at, _ in layers}
            return {at: _typed(at, size, int) for at, size in config.given("vocab_size")}
        if key == "residual":
            return {at: True for at, _ in config.given(*KEYS["residual.multiplier"])}
        if key == _IMAGE_BIAS:
            layers = {at: _typed(at, count, int) > 0 for at, count in config.given("vision_n_layers")}
            return layers or self.stored.get(key, {})
        if key == _SCALES:
            return self.stored.get(key, {})
        if key == "routing.scoring":
            return {at: scoring for at, scoring in self._scorings().items() if scoring in SCORINGS}
        if key == _GROUP_SCORE:
            scores = {"noaux_tc": "top2_sum", "group_limited_greedy": "max"}
            return {at: scores[str(method)] for at, method in config.given("topk_method") if str(method) in scores}
        kind = ANSWERS[_FLAGS[key]].kind
        said = {at: _typed(at, value, kind) for at, value in config.given(*KEYS.get(key, ()))}
        if key == _N_GROUP:
            return said | {at: 1 for at, method in config.given("topk_method") if method == "greedy"}
        if key == "num_experts":
            # Experts without weights, and shared ones that tokens are weighed against, have rows in the gate too.
            shared = any(value is True for _, value in config.given("shared_expert_sink"))
            for at, more in config.given("zero_expert_num", *["n_shared_experts"] * shared):
                said = {f"{one} + {at}": count + _typed(at, more, int) for one, count in said.items()}
        if key == _CORRECTION and not said:
            said = {at: True for at, method in config.given("topk_method") if method == "noaux_tc"}
            return said or self.stored.get(key, {})
        return said

    def _implied(self, key: str) -> tuple[object, str] | None:
        """The family's word for `key`. Dtypes were read in bfloat16 checkpoints and hold for those only."""
        if key.startswith("dtypes.") and set(self.config.dtypes().values()) - {"bfloat16"}:
            return None
        return self.config.family.facts.get(key) if self.config.family else None

    def _is_needed(self, key: str) -> bool:
        if key == _TID2EID:
            return any(self.config.given("num_hash_layers")) or self.config.model_type == "deepseek_v4"
        if key in (_TOPK_GROUP, _GROUP_SCORE):
            return _N_GROUP in self.values  # else that is asked for, and may well be answered with 1
        return ANSWERS[_FLAGS[key]].needed

    def _moot(self, key: str) -> str:
        """Why `key` says nothing, by what is settled already; "" where it does say something."""
        settled = self.values.get
        if key.startswith(("norm.eps", "residual")) and settled("norm.order", ...) is None:
            return "there is no norm"
        if key.startswith("residual.") and settled("residual") is False:
            return "there is no residual"
        if key in _OF_SELECTION and settled("routing.scoring", ...) is None:
            return "scoring is none"
        if key.startswith(("routing.groups", _RENORMALIZE)) and settled("routing.scoring") == "softmax_of_chosen":
            return "scoring is softmax_of_chosen"
        if key in (_TOPK_GROUP, _GROUP_SCORE) and settled(_N_GROUP) == 1:
            return "there is one group"
        if key.startswith(f"{_RENORMALIZE}.") and settled(_RENORMALIZE) is False:
            return "weights are not renormalized"
        return ""

    def _scorings(self) -> dict[str, str]:
        """What the config's keys for the scoring say: in the spec's words where they are known."""
        said = {at: str(word) for at, word in self.config.given(*KEYS["routing.scoring"])}
        return {at: SCORING_WORDS.get(at.split(".")[-1], {}).get(word, word) for at, word in said.items()}

    def _why(self, key: str) -> str:
        nulls = self.config.nulls(*KEYS.get(key, ()))
        dtypes = [f"{at} is {dtype}" for at, dtype in self.config.dtypes().items()] if key.startswith("dtypes") else []
        why = [f"{at} is null" for at in nulls] + dtypes
        if key == "routing.scoring":
            why += [f"{at} is {shown_key(word)}" for at, word in self._scorings().items()]
        return f" ({', '.join(why)})" if why else ""

    def data(self) -> dict[str, Any]:
        """The spec in the shape of its YAML."""
        values = {**self.values, "name": self.name, "sources": self._sources()}
        not_covered = list(self.config.family.not_covered) if self.config.family else []
        if not_covered:
            values["not_covered"] = not_covered
        residual, renormalize = values.pop("residual", False), values.pop(_RENORMALIZE, False)
        data: dict[str, Any] = {}
        for key, value in values.items():
            *path, last = key.split(".")
            place = data
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value
        if data["norm"]["order"] is None:
            data["norm"] = "none"
        if self.values.get(_TID2EID) is None:
            data["routing"].pop("tid2eid", None)
        if residual:  # its mapping may be all defaults, as that of renormalize
            data.setdefault("residual", {})
        if renormalize:
            data["routing"].setdefault("renormalize", {})
        if self.values.get(_N_GROUP) == 1:
            del data["routing"]["groups"]
        if self.values.get(_SOFTCAP) == 0:
            del data["routing"]["softcap"]
        return data

    def _model_type(self) -> str:
        model_type = self.config.model_type
        return f" (model_type {shown_key(model_type)})" if model_type is not None else ""

    def _sources(self) -> list[str]:
        """One line for the config's keys, one for each source of the family's facts, one for the answers."""
        facts = {key: f"{key} {_word(value)}" for key, value in self.values.items()}
        from_config: list[str] = []
        lines: dict[str, list[str]] = {f"the model's config.json{self._model_type()}": from_config}
        stored = {at: f"read in {at}" for said in self.stored.values() for at in said}
        for key, by in self.said_by.items():
            if by == _FAMILY and (implied := self._implied(key)):
                lines.setdefault(implied[1], []).append(facts[key])
            elif by in stored:
                lines.setdefault(stored[by], []).append(facts[key])
            elif not by.startswith("--"):
                from_config.append(key)
        lines[self.source] = [facts[key] for key, by in self.said_by.items() if by.startswith("--")]
        return [f"{', '.join(said)}: {source}" for source, said in lines.items() if said]


class _WrongType(Exception):
    """A key of the config holds something of another type than its meaning needs."""


def _typed(at: str, value: Any, kind: type) -> Any:
    """`value` when it is of `kind`, or the one value that a list gives layer by layer, the same each time."""
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    right = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
    layers = ", the same for every layer (else each needs a spec of its own)" if isinstance(value, list) else ""
    raise _WrongType(f"{at}: {shown(value)} given, {right}{layers} would be right")


def _default_name(config: _Config) -> str | None:
    """A spec's name out of the last part of `_name_or_path`."""
    for place in (config.outer, config.places[0][1]):
        path = place.get("_name_or_path")
        if isinstance(path, str):
            last = re.split(r"[/\\]", path.rstrip("/\\"))[-1].lower()
            name = re.sub(r"([-_.])[-_.]+", r"\1", re.sub(r"[^a-z0-9._-]+", "-", last)).strip("-_.")
            if re.match(NAME_PATTERN, name) and len(name) <= 64:
                return name
    return None


def _word(value: object) -> str:
    """`value` within a sentence: words without quotes, None as none."""
    return "none" if value is None else value if isinstance(value, str) else shown(value)
