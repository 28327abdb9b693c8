"""What is timed of a whole path: our op, the same stages in launches one after the other, and torch's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..spec import RouterSpec
from . import path_inputs, peers
from .chain import Candidate, Outputs, Weights
from .inputs import dtype
from .native import BenchLibrary, Library, PathArgs
from .path_agreement import ROUNDED_TIE, UNROUNDED_TIE
from .peers import BenchFunctions


def own(
    names: Sequence[str],
    spec: RouterSpec,
    package: ModuleType,
    library: Library,
    bench: BenchLibrary,
    functions: BenchFunctions,
    kernels: tuple[str, str],
    sm: int,
    path: PathArgs,
    num_tokens: int,
) -> Iterator[Candidate]:
    """Those of `names` that are built from this repository and exist at this token count.

    kernels: the names of the gate's kernel and of the path's.
    """
    gate, whole = kernels
    served_by = library.select(whole, sm, num_tokens) or "reference"
    if "ours" in names:
        yield ours(spec, package, served_by, path)
    if "norm_gate" in names:
        yield dataclasses.replace(peers.ours(spec, library, gate, sm, num_tokens), name="norm_gate")
    apart = functions.apart.get(num_tokens)
    if "apart" in names and apart and _variant(apart) != _variant(served_by):
        yield forced(spec, bench, apart, num_tokens, name="apart", path=path)
    if "one_by_one" in names and functions.row_norm:
        for function in functions.after_norm.get(num_tokens, ()):
            yield one_by_one(spec, bench, function, path, num_tokens)


def _variant(function: str) -> str:
    """A function's name without its target."""
    return function.rpartition("_sm")[0]


def forced(
    spec: RouterSpec, library: Library, function: str, num_tokens: int, *, name: str, path: PathArgs
) -> Candidate:
    """A whole path's function by its name, through the C interface."""
    by_name = peers.forced(spec, library, function, num_tokens, name=name, path=path)
    return dataclasses.replace(by_name, checks="path", tolerance=_tie(spec))


def _tie(spec: RouterSpec) -> float:
    """What counts as a tie for what keeps the spec's contract to the end."""
    return UNROUNDED_TIE if spec.logits_dtype == "float32" and spec.logits_from == "unrounded" else ROUNDED_TIE


def ours(spec: RouterSpec, package: ModuleType, served_by: str, path: PathArgs) -> Candidate:
    """`torch.ops.normgate.route`, dispatching by itself."""
    routing, norm = path_inputs.routing_for(spec, package), spec.norm

    def launch(weights: Weights, x: Tensor, outputs: Outputs, stream: int) -> Outputs:
        routed = package.route(
            x,
            weights.gate_weight,
            routing=routing,
            norm_weight=weights.norm_weight,
            eps=norm.eps if norm else None,
            norm_order=norm.order if norm else None,
            residual=path.residual,
            residual_multiplier=path.residual_multiplier,
            stream_multiplier=path.stream_multiplier,
            gate_bias=weights.gate_bias,
            e_score_correction_bias=path.e_score_correction_bias,
            e_score_correction_bias_vl=path.e_score_correction_bias_vl,
            image_mask=path.image_mask,
            per_expert_scale=path.per_expert_scale,
            logits_from=spec.logits_from,
            logits_dtype=dtype(spec.logits_dtype),
            returns_logits=spec.routing.router_logits,
        )
        return Outputs(routed.normed_x, routed.router_logits, routed.residual_out, routed.topk_weights, routed.topk_ids)

    return Candidate("ours", launch, served_by, checks="path", tolerance=_tie(spec))


def one_by_one(spec: RouterSpec, bench: BenchLibrary, function: str, path: PathArgs, num_tokens: int) -> Candidate:
    """Our kernels one after the other: norm, with the residual add, then `function`: gate and selection."""
    norm = "row_norm" if path.residual is None else "add_row_norm"
    return Candidate(
        f"one_by_one_{function}",
        peers.norm_then(spec, bench, function, num_tokens, path),
        f"{norm} + {function}",
        checks="path",
        tolerance=ROUNDED_TIE,  # the gate reads normed_x as it is written
        best_of="one_by_one",
    )


Selected = tuple[Tensor, Tensor]
PathFunction = Callable[
    [Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None],
    tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
]
"""x, residual, norm weight, gate weight, gate bias, correction bias and scale per expert into what Outputs has."""


def torch_functions(spec: RouterSpec, names: Sequence[str]) -> dict[str, PathFunction]:
    """Those of `names` that need nothing but torch: the path as models are written, eager and under torch.compile."""
    found: dict[str, PathFunction] = {}
    if "torch_eager" in names:
        found["torch_eager"] = composition(spec)
    if "torch_compiled" in names:
        found["torch_compiled"] = peers.compiled(composition(spec))
    return found


def torch_candidate(name: str, function: PathFunction, path: PathArgs) -> Candidate:
    """One of `torch_functions`."""

    def launch(weights: Weights, x: Tensor, outputs: Outputs, stream: int) -> Outputs:
        with torch.no_grad():
            return Outputs(
                *function(
                    x,
                    path.residual,
                    weights.norm_weight,
                    weights.gate_weight,
                    weights.gate_bias,
                    path.e_score_correction_bias,
                    path.per_expert_scale,
                )
            )

    return Candidate(name, launch, checks="path", tolerance=ROUNDED_TIE, ours=False)


def composition(spec: RouterSpec) -> PathFunction:
    """The whole path in torch, as decoder layers and routers of these models are written."""
    gate, routing = peers.composition(spec), spec.routing
    returns_logits = routing.router_logits or routing.scoring is None
    multiplier = spec.residual.multiplier if spec.residual else 1.0
    stream_multiplier = spec.residual.stream_multiplier if spec.residual else 1.0

    def run(
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor | None,
        gate_weight: Tensor,
        gate_bias: Tensor | None,
        correction_bias: Tensor | None,
        per_expert_scale: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        summed: Tensor | None = None
        if residual is not None:
            stream = residual if stream_multiplier == 1.0 else residual * stream_multiplier
            summed = stream + (x if multiplier == 1.0 else x * multiplier)
        normed, logits = gate(x if summed is None else summed, norm_weight, gate_weight, gate_bias)
        given = logits if returns_logits else None
        if routing.scoring is None:
            return normed, given, summed, None, None
        return normed, given, summed, *_select(spec, logits.float(), correction_bias, per_expert_scale)

    return run


def _select(
    spec: RouterSpec, logits: Tensor, correction_bias: Tensor | None, per_expert_scale: Tensor | None
) -> Selected:
    """Weights and ids of the chosen experts; like models, without an order among them."""
    routing = spec.routing
    if routing.softcap is not None:
        logits = routing.softcap * torch.tanh(logits / routing.softcap)
    scores = _scores(routing.scoring or "", logits)
    choice = scores if correction_bias is None else scores + correction_bias
    if routing.groups is not None:
        choice = _within_groups(choice, routing.groups.n_group, routing.groups.topk_group, routing.groups.score)
    largest, ids = torch.topk(choice, routing.top_k, dim=-1, sorted=False)
    weights = largest if correction_bias is None else scores.gather(1, ids)
    if routing.scoring == "softmax_of_chosen":
        weights = torch.softmax(weights, dim=-1)
    elif routing.renormalize is not None:
        total = weights.sum(dim=-1, keepdim=True)
        if routing.renormalize.epsilon:
            total = total + routing.renormalize.epsilon
        if routing.renormalize.floor:
            total = total.clamp(min=routing.renormalize.floor)
        weights = weights / total
    if routing.routed_scaling_factor != 1.0:
        weights = weights * routing.routed_scaling_factor
    if per_expert_scale is not None:
        weights = weights * per_expert_scale[ids]
    return weights.to(dtype(routing.weights_dtype)), ids.to(dtype(routing.ids_dtype))


def _scores(scoring: str, logits: Tensor) -> Tensor:
    if scoring == "softmax":
        return torch.softmax(logits, dim=-1)
    if scoring == "sigmoid":
        return torch.sigmoid(logits)
    if scoring == "sqrtsoftplus":
        return torch.nn.functional.softplus(logits).sqrt()
    return logits


def _within_groups(choice: Tensor, n_group: int, topk_group: int, score: str) -> Tensor:
    """`choice` with -inf where a group is not among the best."""
    rows, num_experts = choice.shape
    by_group = choice.view(rows, n_group, num_experts // n_group)
    if score == "max":
        group_scores = by_group.amax(dim=-1)
    else:
        group_scores = by_group.topk(2, dim=-1, sorted=False).values.sum(dim=-1)
    kept = torch.topk(group_scores, topk_group, dim=-1, sorted=False).indices
    is_kept = torch.zeros_like(group_scores).scatter_(1, kept, 1.0)
    mask = is_kept.unsqueeze(-1).expand_as(by_group).reshape(rows, num_experts)
    return choice.masked_fill(mask == 0, float("-inf"))
