"""A model's router path as its author declares it: one strict YAML file into one frozen `RouterSpec`.

The YAML uses these keys (see `RIGHT` for what each may be); those with a default may be left out:

    name, sources, not_covered, hidden_size, num_experts, gate_bias, early_weight_loads, batch_invariant, allow_spills,
    sm_targets, logits_from, dtypes: {activation, gate_weight, logits}, residual: {multiplier, stream_multiplier} or
    none, norm: {order, eps} or none, routing: {top_k, e_score_correction_bias, tid2eid: {vocab_size}, scoring or none,
    groups: {n_group, topk_group, score}, renormalize: {epsilon, floor}, routed_scaling_factor, softcap,
    e_score_correction_bias_vl, per_expert_scale, router_logits, ids_dtype, weights_dtype},
    token_thresholds: {gemv, split_k} or auto

The path is [residual add] -> [norm] -> gate -> [scoring and top k]; `residual`, `norm` and `routing.scoring` switch
its stages on and off.
"""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from .arch import SM_TARGETS
from .errors import BadInput, Problem
from .strict_yaml import Document, Where, plain_value, read_yaml, shown, shown_key

NAME_PATTERN = r"^[a-z][a-z0-9]*([-_.][a-z0-9]+)*$"

RIGHT: dict[str, str] = {
    "name": "a plain name such as deepseek-v4-pro (a lower case letter first, then lower case letters and "
    "digits, single - _ . between them, at most 64 characters)",
    "sources": "a list of at least one line of text that says where the facts come from",
    "not_covered": "a list of at least one line of text, what of the model's router path this spec does not say",
    "hidden_size": "a multiple of 8 from 8 to 65536",
    "num_experts": "a whole number from 1 to 1024",
    "dtypes": "a mapping with activation and gate_weight",
    "dtypes.activation": "bfloat16 or float16",
    "dtypes.gate_weight": "bfloat16, float16 or float32",
    "dtypes.logits": "float32 or bfloat16",
    "residual": "none, or a mapping with multiplier",
    "residual.multiplier": "a number from 1e-6 to 1e6, or from -1e6 to -1e-6",
    "residual.stream_multiplier": "a number from 1e-6 to 1e6, or from -1e6 to -1e-6",
    "norm": "none, or a mapping with order and eps",
    "norm.order": "A, B or G",
    "norm.eps": "a number from 1e-30 to 0.1, such as 1e-6",
    "gate_bias": "true or false",
    "logits_from": "unrounded or rounded",
    "routing": "a mapping with top_k and e_score_correction_bias",
    "routing.top_k": "a whole number from 1 to num_experts",
    "routing.e_score_correction_bias": "true or false",
    "routing.tid2eid": "none, or a mapping with vocab_size",
    "routing.tid2eid.vocab_size": "a whole number from 1 to 2147483647",
    "routing.scoring": "none, softmax, softmax_of_chosen, sigmoid or sqrtsoftplus",
    "routing.groups": "none, or a mapping with n_group, topk_group and score",
    "routing.groups.n_group": "a whole number from 2 to 32",
    "routing.groups.topk_group": "a whole number from 1 to n_group",
    "routing.groups.score": "top2_sum or max",
    "routing.renormalize": "none, or a mapping with epsilon or floor",
    "routing.renormalize.epsilon": "a number from 0 to 1, such as 1e-20",
    "routing.renormalize.floor": "a number from 0 to 1, such as 1e-12",
    "routing.routed_scaling_factor": "a number from 1e-6 to 1e6",
    "routing.softcap": "none, or a number from 1e-6 to 1e6",
    "routing.e_score_correction_bias_vl": "true or false",
    "routing.per_expert_scale": "true or false",
    "routing.router_logits": "true or false",
    "routing.ids_dtype": "int32 or int64",
    "routing.weights_dtype": "float32 or bfloat16",
    "token_thresholds": "auto, or a mapping with gemv and split_k",
    "token_thresholds.gemv": "the last token count it serves, a whole number from 0 (never) to 1048576",
    "token_thresholds.split_k": "the last token count it serves, a whole number from 0 (never) to 1048576",
    "sm_targets": "all, or an ascending list of SM numbers out of " + ", ".join(map(str, SM_TARGETS)),
    "early_weight_loads": "true or false",
    "batch_invariant": "true or false",
    "allow_spills": "true or false",
}
"""What would be right for each key, by its dotted path: the error messages and the list of known keys."""

_SELECTION = (
    "groups",
    "renormalize",
    "routed_scaling_factor",
    "softcap",
    "e_score_correction_bias_vl",
    "per_expert_scale",
    "router_logits",
    "ids_dtype",
    "weights_dtype",
)
"""Keys of routing that say how the selection goes, and so nothing where there is none."""

_FLAT = {"activation": "activation_dtype", "gate_weight": "gate_weight_dtype", "logits": "logits_dtype"}
"""`dtypes` of the YAML is flat in `RouterSpec`."""

ORDERS = {
    "A": "weight * round(xhat)",
    "B": "round(weight * xhat), xhat in fp32",
    "G": "round((1 + weight) * xhat), xhat in fp32",
}
"""The norm orders, for readers of a spec; xhat = x * rsqrt(mean(x^2) + eps)."""

SCORINGS = {
    "softmax": "over all experts, then top k",
    "softmax_of_chosen": "top k of the logits, then softmax over these",
    "sigmoid": "1 / (1 + exp(-logit))",
    "sqrtsoftplus": "sqrt(log(1 + exp(logit)))",
}
"""The scoring functions, for readers of a spec."""

MOST_CHOSEN = 32
"""Experts that a selection may choose for a token: a lane of a warp holds each."""


def _source(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("not one line of text")
    return text


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def _not_nearly_zero(value: float) -> float:
    if abs(value) < 1e-6:
        raise ValueError("too near to zero")
    return value


_Factor = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
_SignedFactor = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False), AfterValidator(_not_nearly_zero)]
_Bound = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Residual(_Frozen):
    """The add before the norm: h = round(round(stream_multiplier * residual) + round(multiplier * x)), each rounding to
    the activation dtype.

    h is an output, and what the norm reads.
    """

    multiplier: _SignedFactor = 1.0
    stream_multiplier: _SignedFactor = 1.0


class Norm(_Frozen):
    """RMSNorm before the gate. order: A, B or G as in `ORDERS`; eps: added to the mean square."""

    order: Literal["A", "B", "G"]
    eps: float = Field(ge=1e-30, le=0.1, allow_inf_nan=False)


class Tid2Eid(_Frozen):
    """Hash layers take their expert ids from a table `tid2eid[vocab_size, top_k]` of tokens (DeepSeek-V4)."""

    vocab_size: int = Field(ge=1, le=2**31 - 1)


class Groups(_Frozen):
    """Experts are chosen out of the best topk_group of n_group equal groups only.

    score: a group's own score, the sum of its two best experts' or the best one's, correction bias included.
    """

    n_group: int = Field(ge=2, le=32)
    topk_group: int = Field(ge=1, le=32)
    score: Literal["top2_sum", "max"]


class Renormalize(_Frozen):
    """The chosen experts' weights are divided by max(their sum + epsilon, floor)."""

    epsilon: _Bound = 0.0
    floor: _Bound = 0.0


class Routing(_Frozen):
    """How experts are chosen, and what the layer owns for it beside the gate: the correction bias, the hash table.

    scoring None means that the engine chooses them itself, from the logits; all keys below scoring then have no
    meaning. Else the path is: logits, softcapped (softcap * tanh(logit / softcap)) where softcap is given; scores as in
    `SCORINGS`; the top k of score + correction bias, within `groups`, or tid2eid's ids; weights from the scores without
    the bias, renormalized, times routed_scaling_factor, and, with per_expert_scale, times the expert's own factor. With
    e_score_correction_bias_vl tokens of images are chosen for by a correction bias of their own, in hash layers too.
    The outputs are ids of ids_dtype and weights of weights_dtype, [num_tokens, top_k], and the logits if router_logits
    says so.
    """

    top_k: int = Field(ge=1, le=1024)
    e_score_correction_bias: bool
    tid2eid: Tid2Eid | None = None
    scoring: Literal["softmax", "softmax_of_chosen", "sigmoid", "sqrtsoftplus"] | None = None
    groups: Groups | None = None
    renormalize: Renormalize | None = None
    routed_scaling_factor: _Factor = 1.0
    softcap: _Factor | None = None
    e_score_correction_bias_vl: bool = False
    per_expert_scale: bool = False
    router_logits: bool = False
    ids_dtype: Literal["int32", "int64"] = "int32"
    weights_dtype: Literal["float32", "bfloat16"] = "float32"


class TokenThresholds(_Frozen):
    """The last token count each family serves; 0: never, None: decided by the plan."""

    gemv: int | None = Field(default=None, ge=0, le=1 << 20)
    split_k: int | None = Field(default=None, ge=0, le=1 << 20)


_Thresholds = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[TokenThresholds, Tag("explicit")],
    Discriminator(lambda value: "explicit" if isinstance(value, (dict, TokenThresholds)) else "auto"),
]


class RouterSpec(_Frozen):
    """One model's router path, checked. `load_spec` makes one from YAML, `dump_spec` writes it back.

    x and normed_x are [num_tokens, hidden_size] of activation_dtype, the gate weight is
    [num_experts, hidden_size] of gate_weight_dtype (as is the gate bias, [num_experts]), router_logits are
    [num_tokens, num_experts] of logits_dtype. norm None means the gate alone: x is normed already; residual None that
    x holds the sum already.
    not_covered: what of the model's router path the engine has to do beside it, a line each.
    batch_invariant: whether a row's bits must not depend on the other rows of a call.
    logits_from: whether the gate reads the norm as kept in fp32 (unrounded) or as written in activation_dtype
    (rounded). Building one by hand from impossible values raises pydantic's ValidationError.
    """

    name: str = Field(pattern=NAME_PATTERN, max_length=64)
    sources: tuple[Annotated[str, Field(max_length=1000), AfterValidator(_source)], ...] = Field(
        min_length=1, max_length=32
    )
    not_covered: tuple[Annotated[str, Field(max_length=1000), AfterValidator(_source)], ...] = Field(
        default=(), max_length=32
    )
    hidden_size: int = Field(ge=8, le=65536, multiple_of=8)
    num_experts: int = Field(ge=1, le=1024)
    activation_dtype: Literal["bfloat16", "float16"]
    gate_weight_dtype: Literal["bfloat16", "float16", "float32"]
    logits_dtype: Literal["float32", "bfloat16"] = "float32"
    residual: Residual | None = None
    norm: Norm | None
    gate_bias: bool
    logits_from: Literal["unrounded", "rounded"] = "unrounded"
    routing: Routing
    token_thresholds: _Thresholds = "auto"
    sm_targets: tuple[int, ...] = Field(default=SM_TARGETS, min_length=1, max_length=len(SM_TARGETS))
    early_weight_loads: bool = True
    batch_invariant: bool = False
    allow_spills: bool = False

    @property
    def stages(self) -> str:
        """The path in words, as in "add, RMSNorm, gate, sigmoid, top 8 of the best 4 of 8 groups"."""
        routing = self.routing
        words = ["add"] * bool(self.residual) + ["RMSNorm"] * bool(self.norm) + ["gate"]
        if routing.scoring is None:
            return ", ".join(words)
        chosen = f"top {routing.top_k}"
        if routing.groups:
            chosen += f" of the best {routing.groups.topk_group} of {routing.groups.n_group} groups"
        first, second = (chosen, "softmax") if routing.scoring == "softmax_of_chosen" else (routing.scoring, chosen)
        return ", ".join([*words, first, second])

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> RouterSpec:
        data = self.model_dump()
        for part, of in ((data, self), (data["routing"], self.routing)):  # a default counts as not given
            for key, field in type(of).model_fields.items():
                if not field.is_required() and getattr(of, key) == field.default:
                    del part[key]
        for key, message in _disagreements(data):
            raise ValueError(f"{key}: {message}")
        return self


def load_spec(path: str | Path) -> RouterSpec:
    """Read one spec. Raises BadInput with everything that is wrong in the file."""
    return load_specs([path])[0]


def load_specs(paths: Iterable[str | Path]) -> list[RouterSpec]:
    """Read specs in the order of `paths`. Raises BadInput with the problems of all files together."""
    problems: list[Problem] = []
    specs: list[RouterSpec] = []
    first: dict[str, Path] = {}
    for path in map(Path, paths):
        document, found = read_yaml(path)
        if document is not None:
            found += _check(document, path, specs)
            name = document.data.get("name")
            if path.name == f"{name}.yaml" and first.setdefault(str(name), path) is not path:
                line, other = document.line(("name",)), first[str(name)]
                found.append(
                    Problem(str(path), line, f"name: {shown(name)} given, which is the name of {other} already")
                )
        problems += sorted(found, key=lambda problem: problem.line or 0)
    if problems:
        raise BadInput(problems)
    return specs


def _check(document: Document, path: Path, specs: list[RouterSpec]) -> list[Problem]:
    """All problems of one document; its spec is appended to `specs` when it can be made."""
    spec, found = spec_from_data(document.data)
    if spec is not None:
        specs.append(spec)
    name = document.data.get("name")
    if isinstance(name, str) and path.name != f"{name}.yaml":
        right = f"{path.stem} (or the file named {name[:64]}.yaml)" if path.suffix == ".yaml" else f"{name[:64]}.yaml"
        what = f"name: {shown(name)}" if path.suffix == ".yaml" else f"file name {path.name}"
        found.setdefault(("name",), f"{what} given, {right} would be right")
    return [Problem(str(path), document.line(where), text) for where, text in found.items()]


def spec_from_data(data: dict[str, Any]) -> tuple[RouterSpec | None, dict[Where, str]]:
    """The spec that `data`, shaped as the YAML is, declares, and every problem with it by where it stands.

    `data` loses its unknown keys. A spec may be there beside problems: it is good only without.
    """
    found: dict[Where, str] = dict(_unknown_keys(data, ()))
    flat, said = _flattened(data)
    found |= said
    spec = None
    try:
        spec = RouterSpec.model_validate(flat)
    except ValidationError as error:
        for entry in error.errors(include_url=False, include_context=False):
            if not entry["loc"]:  # _agrees_with_itself: what it asks is asked below, of data that fails here too
                continue
            where, text = _in_plain_words(entry["type"], entry["loc"], entry["input"])
            if where[:1] not in said:
                found.setdefault(where, text)
    for key, text in _disagreements(flat):
        found.setdefault(tuple(key.split(".")), f"{key}: {text}")
    return spec, found


def _unknown_keys(data: dict[str, Any], where: tuple[str, ...]) -> Iterator[tuple[Where, str]]:
    """Say what is unknown in `data`, and drop it, so that validation speaks only of what is known."""
    prefix = "".join(part + "." for part in where)
    known = [key for key in RIGHT if key.startswith(prefix) and "." not in key[len(prefix) :]]
    for key in list(data):
        at = (*where, key)
        if prefix + key in known:
            if isinstance(data[key], dict) and any(right.startswith(f"{prefix}{key}.") for right in RIGHT):
                yield from _unknown_keys(data[key], at)
            continue
        del data[key]
        yield at, f"{prefix}{shown_key(key)}: unknown key, {_meant(key[:80], where, known)} would be right"


def _meant(key: str, where: tuple[str, ...], known: list[str]) -> str:
    """The known key that an unknown one was meant to be, here or elsewhere; else all that are known here."""
    here = {right.split(".")[-1]: right.split(".")[-1] for right in known}
    elsewhere = {}
    for right in RIGHT:
        parent, _, last = right.rpartition(".")
        if parent != ".".join(where):
            elsewhere[last] = f"{last} under {parent}" if parent else f"{last} at the top level"
    last = key.split(".")[-1]
    shorter = [name for name in here if where and (name.startswith(last) or last.startswith(name))]  # eps, epsilon
    if last in elsewhere and not shorter:
        return elsewhere[last]
    for names, cutoff in ((here, 0.5), (elsewhere, 0.6)):
        if near := difflib.get_close_matches(key, names, n=1, cutoff=cutoff):
            return names[near[0]]
    return f"one of {', '.join(here)}"


def _flattened(data: dict[str, Any]) -> tuple[dict[str, Any], dict[Where, str]]:
    """The YAML's data in the form of RouterSpec's fields, and problems with `dtypes`, which has no field."""
    flat: dict[str, Any] = {key: value for key, value in data.items() if key != "dtypes"}
    said: dict[Where, str] = {}
    dtypes = data.get("dtypes")
    if isinstance(dtypes, dict):
        flat.update({_FLAT[key]: value for key, value in dtypes.items()})
    else:
        given = f"{shown(dtypes)} given" if "dtypes" in data else "missing"
        said["dtypes",] = f"dtypes: {given}, {RIGHT['dtypes']} would be right"
    for key in ("residual", "norm"):
        if flat.get(key) == "none":
            flat[key] = None
    if flat.get("sm_targets") == "all":
        flat["sm_targets"] = SM_TARGETS
    routing = flat.get("routing")
    if isinstance(routing, dict):
        flat["routing"] = {
            key: None if value == "none" and RIGHT[f"routing.{key}"].startswith("none") else value
            for key, value in routing.items()
        }
    for key in ("sources", "not_covered", "sm_targets"):
        if isinstance(flat.get(key), list):
            flat[key] = tuple(flat[key])
    return flat, said


def _in_plain_words(kind: str, loc: Where, given: object) -> tuple[Where, str]:
    """Where one of pydantic's errors stands in the YAML, and what it says there."""
    where: Where = tuple(part for part in loc if part not in ("auto", "explicit"))
    for short, field in _FLAT.items():
        if where == (field,):
            where = ("dtypes", short)
    key = ".".join(part for part in where if isinstance(part, str))
    if kind == "missing":
        return where, f"{key}: missing, {RIGHT[key]} would be right"
    quoted = isinstance(given, str) and type(plain_value(given)) in (int, float, bool) and key != "name"
    return (
        where,
        f"{key}: {shown(given)} given, {RIGHT[key]}{' (without quotes)' if quoted else ''} would be right",
    )


def _disagreements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, message) for values fine alone but not together. Skips what is missing or of a wrong type."""

    def number(*path: str) -> int | None:
        value: Any = data
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value if type(value) is int else None

    top_k, num_experts = number("routing", "top_k"), number("num_experts")
    if top_k is not None and num_experts is not None and 1 <= num_experts < top_k:
        yield "routing.top_k", f"{top_k} given, at most num_experts ({num_experts}) would be right"
    if data.get("norm", ...) is None and "logits_from" in data:
        yield (
            "logits_from",
            f"{shown(data['logits_from'])} given, leaving it out would be right where norm is none",
        )
    if data.get("norm", ...) is None and isinstance(data.get("residual"), Mapping):
        yield "residual", "a mapping given, none would be right where norm is none"
    routing = data.get("routing")
    if isinstance(routing, Mapping):
        yield from _routing_disagreements(routing, num_experts)
        selects = isinstance(routing.get("scoring"), str)
        if selects and routing.get("router_logits") is not True and "logits_dtype" in data:
            yield (
                "dtypes.logits",
                f"{shown(data['logits_dtype'])} given, leaving it out would be right where routing.router_logits is "
                "false",
            )
    gemv, split_k = number("token_thresholds", "gemv"), number("token_thresholds", "split_k")
    if gemv is not None and split_k is not None and gemv > split_k > 0:
        yield "token_thresholds.gemv", f"{gemv} given, at most split_k ({split_k}) would be right"
    thresholds = data.get("token_thresholds")
    if isinstance(thresholds, Mapping) and all(value is None for value in thresholds.values()):
        yield "token_thresholds", f"neither threshold given, {RIGHT['token_thresholds']} would be right"
    if isinstance(thresholds, Mapping) and data.get("batch_invariant") is True:
        yield (
            "token_thresholds",
            "given, leaving them out would be right where batch_invariant is true: thresholds pass from one order of "
            "sums to another",
        )
    targets = data.get("sm_targets", ())
    numbers = isinstance(targets, tuple) and all(type(sm) is int for sm in targets)
    if numbers and tuple(targets) != tuple(sm for sm in SM_TARGETS if sm in targets):
        yield "sm_targets", f"{shown(targets)} given, {RIGHT['sm_targets']} would be right"


def _routing_disagreements(routing: Mapping[str, Any], num_experts: int | None) -> Iterator[tuple[str, str]]:
    """Those within `routing`, as `_disagreements` gives them."""

    def leave_out(key: str, where: str) -> tuple[str, str]:
        value = shown("none" if routing[key] is None else routing[key])
        return f"routing.{key}", f"{value} given, leaving it out would be right where {where}"

    scoring = routing.get("scoring")
    if scoring is None:
        for key in routing:
            if key in _SELECTION:
                yield leave_out(key, "scoring is none")
        return
    top_k = routing.get("top_k")
    if type(top_k) is int and top_k > MOST_CHOSEN and isinstance(scoring, str):
        yield "routing.top_k", f"{top_k} given, at most {MOST_CHOSEN} would be right where scoring is {scoring}"
    if scoring == "softmax_of_chosen":
        for key in ("groups", "renormalize"):
            if routing.get(key) is not None:
                yield leave_out(key, f"scoring is {scoring}")
        if routing.get("e_score_correction_bias") is True:
            yield "routing.e_score_correction_bias", f"true given, false would be right where scoring is {scoring}"
    if routing.get("e_score_correction_bias_vl") is True and routing.get("e_score_correction_bias") is False:
        yield leave_out("e_score_correction_bias_vl", "e_score_correction_bias is false")
    groups = routing.get("groups")
    if isinstance(groups, Mapping):
        if routing.get("tid2eid") is not None:
            yield leave_out("groups", "tid2eid is given")
        yield from _group_disagreements(groups, top_k, num_experts)


def _group_disagreements(groups: Mapping[str, Any], top_k: Any, num_experts: int | None) -> Iterator[tuple[str, str]]:
    """Those of the experts' groups with the experts there are and the number to choose."""
    n_group, topk_group = groups.get("n_group"), groups.get("topk_group")
    if type(n_group) is not int or n_group < 2:
        return
    if type(topk_group) is int and topk_group > n_group:
        yield "routing.groups.topk_group", f"{topk_group} given, at most n_group ({n_group}) would be right"
    if num_experts is None:
        return
    if num_experts % n_group:
        yield "routing.groups.n_group", f"{n_group} given, a divisor of num_experts ({num_experts}) would be right"
        return
    size = num_experts // n_group
    if size == 1 and groups.get("score") == "top2_sum":
        yield "routing.groups.score", "'top2_sum' given, max would be right where a group is one expert"
    if type(topk_group) is int and type(top_k) is int and 0 < topk_group * size < top_k <= num_experts:
        most = f"topk_group * num_experts / n_group ({topk_group * size})"
        yield "routing.top_k", f"{top_k} given, at most {most} would be right"


def dump_spec(spec: RouterSpec, comment: str = "") -> str:
    """The YAML of `spec`, defaults left out, `comment` on top; `load_spec` reads back an equal spec."""
    lines = [f"# {line}" for line in textwrap.wrap(comment, 108)]
    name = spec.name if yaml.safe_load(spec.name) == spec.name else json.dumps(spec.name)
    lines += [f"name: {name}", "sources:"]
    lines += [f"  - {json.dumps(source, ensure_ascii=False)}" for source in spec.sources]
    lines += ["not_covered:"] * bool(spec.not_covered)
    lines += [f"  - {json.dumps(reason, ensure_ascii=False)}" for reason in spec.not_covered]
    lines += [f"hidden_size: {spec.hidden_size}", f"num_experts: {spec.num_experts}"]
    lines += ["dtypes:", f"  activation: {spec.activation_dtype}", f"  gate_weight: {spec.gate_weight_dtype}"]
    if spec.logits_dtype != "float32":
        lines.append(f"  logits: {spec.logits_dtype}")
    if spec.residual is not None:
        lines += ["residual:", f"  multiplier: {_number(spec.residual.multiplier)}"]
        if spec.residual.stream_multiplier != 1:
            lines.append(f"  stream_multiplier: {_number(spec.residual.stream_multiplier)}")
    if spec.norm is None:
        lines.append("norm: none")
    else:
        order = spec.norm.order
        lines += ["norm:", f"  order: {order}  # {ORDERS[order]}", f"  eps: {_number(spec.norm.eps)}"]
    lines.append(f"gate_bias: {shown(spec.gate_bias)}")
    if spec.logits_from != "unrounded":
        lines.append(f"logits_from: {spec.logits_from}")
    routing = spec.routing
    lines += ["routing:", f"  top_k: {routing.top_k}"]
    lines.append(f"  e_score_correction_bias: {shown(routing.e_score_correction_bias)}")
    if routing.tid2eid is not None:
        lines += ["  tid2eid:", f"    vocab_size: {routing.tid2eid.vocab_size}"]
    lines += [f"  {line}" for line in _selection(routing)]
    if isinstance(spec.token_thresholds, TokenThresholds):
        lines.append("token_thresholds:")
        given = spec.token_thresholds.model_dump(exclude_none=True)
        lines += [f"  {key}: {value}" for key, value in given.items()]
    if spec.sm_targets != SM_TARGETS:
        lines.append(f"sm_targets: {shown(spec.sm_targets)}")
    if not spec.early_weight_loads:
        lines.append("early_weight_loads: false")
    if spec.batch_invariant:
        lines.append("batch_invariant: true")
    if spec.allow_spills:
        lines.append("allow_spills: true")
    return "\n".join(lines) + "\n"


def _selection(routing: Routing) -> Iterator[str]:
    """The lines of the stage that chooses experts, defaults left out."""
    if routing.scoring is None:
        return
    yield f"scoring: {routing.scoring}  # {SCORINGS[routing.scoring]}"
    groups, renormalize = routing.groups, routing.renormalize
    if groups is not None:
        yield from ("groups:", f"  n_group: {groups.n_group}", f"  topk_group: {groups.topk_group}")
        yield f"  score: {groups.score}"
    if renormalize is not None:
        yield "renormalize:"
        if renormalize.epsilon or not renormalize.floor:  # a mapping of nothing would be hard to read
            yield f"  epsilon: {_number(renormalize.epsilon)}"
        if renormalize.floor:
            yield f"  floor: {_number(renormalize.floor)}"
    if routing.routed_scaling_factor != 1:
        yield f"routed_scaling_factor: {_number(routing.routed_scaling_factor)}"
    if routing.softcap is not None:
        yield f"softcap: {_number(routing.softcap)}"
    for key in ("e_score_correction_bias_vl", "per_expert_scale", "router_logits"):
        if getattr(routing, key):
            yield f"{key}: true"
    if routing.ids_dtype != "int32":
        yield f"ids_dtype: {routing.ids_dtype}"
    if routing.weights_dtype != "float32":
        yield f"weights_dtype: {routing.weights_dtype}"


def _number(value: float) -> str:
    """`value` with a point and no padded exponent, so that any YAML reader takes it for a number: 1.0e-6."""
    mantissa, _, exponent = repr(value).partition("e")
    if not exponent:
        return mantissa
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{re.sub('(?<=[-+])0+', '', exponent)}"
