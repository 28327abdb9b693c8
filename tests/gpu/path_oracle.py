"""What is right for a whole path, in float64 and written from the definitions; shares no code with what is tested."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from oracle import EPS, Inputs, logits, make_inputs, outside_ties, relative_error
from test_numerics import LIMIT, SIGNIFICANDS, TIES
from torch import Tensor

# By logits_dtype: where logits are rounded to bfloat16 before the choice, that moves choices and weights so much.
TIE = {"float32": 1e-6, "bfloat16": 2**-5}  # relative to a row's largest choice where that is above 1
WEIGHT_LIMIT = {"float32": 1e-5, "bfloat16": 2**-5}  # relative to a row's largest weight
VOCABULARY = 1000


@dataclass(frozen=True)
class Numbers:
    """What a path's kernel takes as numbers of the call."""

    eps: float = EPS
    residual_multiplier: float = 1.0
    stream_multiplier: float = 1.0
    softcap: float = 0.0
    renormalize_epsilon: float = 0.0
    renormalize_floor: float = 0.0
    routed_scaling_factor: float = 1.0

    @classmethod
    def of(cls, model: Any) -> Numbers:
        """Those of a ModelTable, but for eps."""
        routing = model.routing._asdict() if model.routing else {}
        own = {field.name: routing[field.name] for field in fields(cls) if field.name in routing}
        multiplier = 1.0 if model.residual_multiplier is None else model.residual_multiplier
        return cls(residual_multiplier=multiplier, stream_multiplier=model.stream_multiplier, **own)


def unlike_models(kernel: Any, floor: bool) -> Numbers:
    """Numbers that no model has, as far as the kernel takes them; with a floor, it decides."""
    numbers = Numbers(routed_scaling_factor=1.7)
    if kernel.residual in ("scaled_add", "scaled_sum"):
        numbers = replace(numbers, residual_multiplier=-0.37)
    if kernel.residual == "scaled_sum":
        numbers = replace(numbers, stream_multiplier=2.3)
    if kernel.selection and kernel.selection.softcaps:
        numbers = replace(numbers, softcap=3.0)
    if kernel.selection and kernel.selection.renormalize == "bounded":
        bounds = {"renormalize_floor": 40.0} if floor else {"renormalize_epsilon": 0.125}
        numbers = replace(numbers, **bounds)
    return numbers


@dataclass(frozen=True)
class PathInputs:
    """What goes into a path; None for what it has no stage for."""

    x: Tensor
    residual: Tensor | None
    norm_weight: Tensor | None
    gate_weight: Tensor
    gate_bias: Tensor | None
    correction_bias: Tensor | None = None
    tid2eid: Tensor | None = None
    input_ids: Tensor | None = None
    correction_bias_vl: Tensor | None = None
    image_mask: Tensor | None = None
    per_expert_scale: Tensor | None = None

    def rows(self, part: slice) -> PathInputs:
        """Some of the rows, with the same weights."""
        own = ("x", "residual", "input_ids", "image_mask")
        return replace(self, **{name: rows[part] for name in own if (rows := getattr(self, name)) is not None})


def make_path_inputs(kernel: Any, num_tokens: int, seed: int, hashes: bool = False) -> PathInputs:
    """Fresh random inputs; `hashes` gives those of a hash layer, which has no correction bias."""
    gate = make_inputs(kernel, num_tokens, seed)
    generator = torch.Generator(gate.x.device).manual_seed(seed + (1 << 32))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=gate.x.device)

    # No norm brings the rows to one scale: large logits would all have a sigmoid of 1.
    smaller = 1.0 if kernel.norm_order else 0.125
    residual = None
    if kernel.residual:
        exponents = torch.randint(-3, 4, (num_tokens, 1), generator=generator, device=gate.x.device)
        rows = normal(num_tokens, kernel.hidden_size) * torch.exp2(exponents.float())
        residual = (rows * smaller).to(gate.x.dtype)
    selection = kernel.selection
    bias = tid2eid = input_ids = None
    if hashes:
        order = torch.rand(VOCABULARY, kernel.num_experts, generator=generator, device=gate.x.device).argsort(1)
        tid2eid = order[:, : selection.top_k].contiguous()
        input_ids = torch.randint(0, VOCABULARY, (num_tokens,), generator=generator, device=gate.x.device)
    elif selection and selection.correction_bias:
        bias = normal(kernel.num_experts) * 0.25
    rare: dict[str, Tensor] = {}
    if selection and selection.image_bias:
        is_image = torch.rand(num_tokens, generator=generator, device=gate.x.device) < 0.5
        rare |= {"correction_bias_vl": normal(kernel.num_experts) * 0.25, "image_mask": is_image}
    if selection and selection.scales_experts:
        rare["per_expert_scale"] = 0.5 + torch.rand(kernel.num_experts, generator=generator, device=gate.x.device)
    x = gate.x * smaller
    return PathInputs(x, residual, gate.norm_weight, gate.gate_weight, gate.gate_bias, bias, tid2eid, input_ids, **rare)


def residual_sum(inputs: PathInputs, numbers: Numbers) -> Tensor:
    """round(round(stream_multiplier * residual) + round(multiplier * x)): torch's own arithmetic in the dtype, as the
    models' code has it.
    """
    if inputs.residual is None:
        return inputs.x
    scaled = inputs.x if numbers.residual_multiplier == 1.0 else numbers.residual_multiplier * inputs.x
    stream = inputs.residual if numbers.stream_multiplier == 1.0 else numbers.stream_multiplier * inputs.residual
    return stream + scaled


class Selected(NamedTuple):
    """A right selection: what weights are made of and experts chosen by, both [rows, experts], and the ids."""

    scores: Tensor
    choices: Tensor
    ids: Tensor


def select(selection: Any, logits: Tensor, inputs: PathInputs, numbers: Numbers) -> Selected:
    """The experts of logits in float64; of equals the lower."""
    if selection.softcaps:
        logits = numbers.softcap * torch.tanh(logits / numbers.softcap)
    if selection.scoring == "sigmoid":
        scores = torch.sigmoid(logits)
    elif selection.scoring == "sqrtsoftplus":
        scores = torch.logaddexp(logits, torch.zeros_like(logits)).sqrt()
    elif selection.scoring == "softmax":
        scores = torch.softmax(logits, 1)
    else:
        assert selection.scoring == "softmax_of_chosen"
        scores = logits
    choices = scores
    if inputs.correction_bias is not None:
        choices = scores + inputs.correction_bias.double()
    elif selection.scoring == "softmax" and selection.group_score != "top2_sum":
        choices = logits  # in the same order, and a tie is a tie whatever the other logits are
    if inputs.image_mask is not None:
        choices = torch.where(inputs.image_mask[:, None], scores + inputs.correction_bias_vl.double(), choices)
    ids = _largest(selection, choices)
    if inputs.tid2eid is not None:
        known = (inputs.input_ids >= 0) & (inputs.input_ids < len(inputs.tid2eid))
        of_table = inputs.tid2eid[torch.where(known, inputs.input_ids, 0)].clamp(0, logits.shape[1] - 1)
        ids = of_table if inputs.image_mask is None else torch.where(inputs.image_mask[:, None], ids, of_table)
    return Selected(scores, choices, ids)


def _largest(selection: Any, choices: Tensor) -> Tensor:
    """The experts with the largest choices, within the best groups."""
    allowed = choices
    if selection.n_group > 1:
        by_group = choices.unflatten(1, (selection.n_group, -1))
        best = by_group.topk(1 if selection.group_score == "max" else 2, dim=2).values.sum(2)
        kept = best.sort(dim=1, descending=True, stable=True).indices[:, : selection.topk_group]
        is_kept = torch.zeros_like(best, dtype=torch.bool).scatter(1, kept, True)
        allowed = torch.where(is_kept[:, :, None], by_group, -math.inf).flatten(1)
    return allowed.sort(dim=1, descending=True, stable=True).indices[:, : selection.top_k]


def weights_of(selection: Any, scores: Tensor, ids: Tensor, numbers: Numbers, scale: Tensor | None) -> Tensor:
    """The weights that chosen experts have; scale: of each expert."""
    weights = scores.gather(1, ids)
    if selection.scoring == "softmax_of_chosen":
        weights = torch.softmax(weights, 1)
    if selection.renormalize:
        total = weights.sum(1, keepdim=True)
        if selection.renormalize == "bounded":
            total = (total + numbers.renormalize_epsilon).clamp(min=numbers.renormalize_floor)
        weights = weights / total
    weights = weights * numbers.routed_scaling_factor
    return weights if scale is None else weights * scale.double()[ids]


def gap(selection: Any, choices: list[float], ids: list[int]) -> float:
    """By how much a row's choices miss making these ids right, be it in the order, at the last or between groups."""
    size = len(choices) // selection.n_group
    groups = [choices[first : first + size] for first in range(0, len(choices), size)]
    counted = 2 if selection.group_score == "top2_sum" else 1
    scores = [sum(sorted(group, reverse=True)[:counted]) for group in groups]
    chosen = [choices[expert] for expert in ids]
    out_of_order = max([later - earlier for earlier, later in itertools.combinations(chosen, 2)], default=0.0)
    used = {expert // size for expert in ids}
    if len(used) > selection.topk_group:
        return math.inf
    least = math.inf
    # What the ids do not tell: which groups without a chosen expert were kept.
    for more in itertools.combinations(set(range(selection.n_group)) - used, selection.topk_group - len(used)):
        kept = used.union(more)
        others = [i for group in kept for i in range(group * size, (group + 1) * size) if i not in ids]
        passed_over = max([choices[i] for i in others], default=-math.inf) - min(chosen)
        left_out = max([scores[group] for group in set(range(selection.n_group)) - kept], default=-math.inf)
        least = min(least, max(out_of_order, passed_over, left_out - min(scores[group] for group in kept), 0.0))
    return least


@dataclass
class Found:
    """What a check measured; checks add up."""

    rows: int = 0
    ties: int = 0  # rows whose ids are not the oracle's, each explained by a tie
    widest_tie: float = 0.0  # by which such a row's choices differed
    weight_error: float = 0.0
    logits_error: float = 0.0
    normed_x_differs: float = 0.0

    def include(self, other: Found) -> None:
        self.rows += other.rows
        self.ties += other.ties
        for name in ("widest_tie", "weight_error", "logits_error", "normed_x_differs"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outputs:
    """What a path gives; None for what it has no stage for."""

    normed_x: Tensor | None
    residual_out: Tensor | None
    topk_weights: Tensor | None
    topk_ids: Tensor | None
    router_logits: Tensor | None

    @property
    def given(self) -> dict[str, Tensor]:
        return {f.name: tensor for f in fields(self) if (tensor := getattr(self, f.name)) is not None}

    def rows(self, part: slice) -> Outputs:
        return replace(self, **{name: tensor[part] for name, tensor in self.given.items()})


def check_safe(kernel: Any, outputs: Outputs, what: str) -> None:
    """What holds whatever the inputs are: ids are distinct experts, weights are finite."""
    if outputs.topk_ids is None or outputs.topk_weights is None:
        return
    ids = outputs.topk_ids.sort(1).values
    outside = ids[((ids < 0) | (ids >= kernel.num_experts)).any(1)]
    assert len(outside) == 0, f"{what}: {len(outside)} rows have ids that are no experts, such as {outside[0].tolist()}"
    twice = ids[(ids[:, 1:] == ids[:, :-1]).any(1)]
    assert len(twice) == 0, f"{what}: {len(twice)} rows have an expert twice, such as {twice[0].tolist()}"
    endless = int((~outputs.topk_weights.isfinite()).sum())
    assert endless == 0, f"{what}: {endless} weights are not finite"


class Oracle:
    """What is right for some inputs of a kernel."""

    def __init__(self, kernel: Any, inputs: PathInputs, numbers: Numbers) -> None:
        self.kernel, self.inputs, self.numbers = kernel, inputs, numbers
        rows = residual_sum(inputs, numbers)
        self.gate_inputs = Inputs(rows, inputs.norm_weight, inputs.gate_weight, inputs.gate_bias, numbers.eps)
        self._unrounded: tuple[Tensor, Selected | None] | None = None

    def logits(self, normed_x: Tensor | None) -> Tensor:
        """In float64; where the gate reads normed_x, as the kernel wrote it."""
        return logits(self.kernel, self.gate_inputs, normed_x)

    def check(self, got: Outputs, what: str) -> Found:
        """AssertionError, which begins with `what`, where outputs are not right."""
        kernel = self.kernel
        found = Found(rows=len(self.inputs.x))
        if got.residual_out is not None:
            one, other = got.residual_out.view(torch.int16), self.gate_inputs.x.view(torch.int16)
            wrong = int((one != other).sum())
            assert wrong == 0, f"{what}: {wrong} elements of residual_out"
        if got.normed_x is not None:
            unexplained, differs = outside_ties(kernel, self.gate_inputs, got.normed_x)
            assert unexplained == 0, f"{what}: {unexplained} elements of normed_x"
            dtype = kernel.activation_dtype
            most = max(TIES[dtype], 3 / SIGNIFICANDS[dtype] / found.rows)
            assert differs < most, f"{what}: {differs:.1e} of normed_x differ"
            found.normed_x_differs = differs
        right, selected = self._right(got.normed_x)
        if got.router_logits is not None:
            found.logits_error = relative_error(got.router_logits, right)
            limit = LIMIT[kernel.logits_dtype]
            assert found.logits_error < limit, f"{what}: logits off by {found.logits_error:.1e}"
        if selected is not None:
            found.include(check_selection(kernel, selected, self.inputs, self.numbers, got, what))
        return found

    def _right(self, normed_x: Tensor | None) -> tuple[Tensor, Selected | None]:
        """Logits and selection; where both follow from the inputs alone they are made once."""
        if self._unrounded is not None:
            return self._unrounded
        right = self.logits(normed_x)
        read = right.bfloat16().double() if self.kernel.logits_dtype == "bfloat16" else right
        selection = self.kernel.selection
        both = (right, select(selection, read, self.inputs, self.numbers) if selection else None)
        if self.kernel.logits_from == "unrounded":
            self._unrounded = both
        return both


def check_selection(
    kernel: Any, right: Selected, inputs: PathInputs, numbers: Numbers, got: Outputs, what: str
) -> Found:
    """Ids and weights against a right selection."""
    assert got.topk_ids is not None and got.topk_weights is not None
    check_safe(kernel, got, what)
    ids = got.topk_ids.long()
    found = Found()
    rows = (ids != right.ids).any(1).nonzero().flatten().tolist()
    if inputs.tid2eid is not None:
        of_text = rows if inputs.image_mask is None else [row for row in rows if not inputs.image_mask[row]]
        assert not of_text, f"{what}: {len(of_text)} rows have not the table's ids, such as {ids[of_text[0]].tolist()}"
    # Bugs differ in more rows than ties do, and a row at a time in Python takes a while.
    assert len(rows) <= max(4, len(ids) // 100), (
        f"{what}: {len(rows)} of {len(ids)} rows have other ids, such as {ids[rows[0]].tolist()} "
        f"for {right.ids[rows[0]].tolist()}"
    )
    for row in rows:
        choices = right.choices[row].tolist()
        missed = gap(kernel.selection, choices, ids[row].tolist())
        limit = TIE[kernel.logits_dtype] * max(1.0, *map(abs, choices))
        assert missed <= limit, (
            f"{what}: row {row} has ids {ids[row].tolist()} for {right.ids[row].tolist()}, "
            f"which choices miss by {missed:.1e}"
        )
        found.ties += 1
        found.widest_tie = max(found.widest_tie, missed)
    if len(ids) == 0:
        return found
    wanted = weights_of(kernel.selection, right.scores, ids, numbers, inputs.per_expert_scale)
    error = (got.topk_weights.double() - wanted).abs()
    if got.topk_weights.dtype == torch.bfloat16:
        error = (error - wanted.abs() * 2**-8).clamp(min=0)  # the rounding
    found.weight_error = (error / wanted.amax(1, keepdim=True)).max().item()
    limit = WEIGHT_LIMIT[kernel.logits_dtype]
    assert found.weight_error <= limit, f"{what}: weights off by {found.weight_error:.1e} of a row's largest"
    return found
