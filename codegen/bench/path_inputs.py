"""What a whole path reads and writes beside its gate, of random numbers, and whether what it wrote is right."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..render import routing_of
from ..spec import RouterSpec
from .chain import Weights
from .inputs import dtype, random_rows
from .native import PathArgs

WEIGHTS_TOLERANCE = 1e-5  # of topk_weights, absolute; what rounding to bf16 leaves comes on top
_BF16_TOLERANCE = 2e-2


def path_args(spec: RouterSpec, num_tokens: int, device: str = "cuda") -> PathArgs:
    """Random inputs and empty outputs for `spec`; experts are chosen by score, not from tid2eid."""
    routing = spec.routing
    args = PathArgs()
    if spec.residual:
        residual = random_rows(spec, num_tokens, device)
        args = dataclasses.replace(
            args,
            residual=residual,
            residual_out=torch.empty_like(residual),
            residual_multiplier=spec.residual.multiplier,
        )
    if routing.scoring is None:
        return args
    correction = torch.randn(spec.num_experts, device=device) * 0.1 if routing.e_score_correction_bias else None
    renormalize = routing.renormalize
    return dataclasses.replace(
        args,
        topk_weights=torch.empty(num_tokens, routing.top_k, dtype=dtype(routing.weights_dtype), device=device),
        topk_ids=torch.empty(num_tokens, routing.top_k, dtype=dtype(routing.ids_dtype), device=device),
        e_score_correction_bias=correction,
        softcap=routing.softcap or 0.0,
        renormalize_epsilon=renormalize.epsilon if renormalize else 0.0,
        renormalize_floor=renormalize.floor if renormalize else 0.0,
        routed_scaling_factor=routing.routed_scaling_factor,
    )


def routing_for(spec: RouterSpec, package: ModuleType) -> Any:
    """The package's Routing of `spec`; None where the engine chooses the experts."""
    if (fields := routing_of(spec)) is None:
        return None
    del fields["returns_logits"]
    dtypes = {name: dtype(fields[name]) for name in ("ids_dtype", "weights_dtype")}
    return package.Routing(**{**fields, **dtypes})


def poison(args: PathArgs) -> None:
    """Fill the outputs with what no kernel writes."""
    for tensor in (args.residual_out, args.topk_weights):
        if tensor is not None:
            tensor.fill_(float("nan"))
    if args.topk_ids is not None:
        args.topk_ids.fill_(-1)


def expected(spec: RouterSpec, package: ModuleType, weights: Weights, x: Tensor, args: PathArgs) -> Any:
    """The package's own reference in float64: normed_x, residual_out, topk_weights, topk_ids and router_logits."""
    routing = routing_for(spec, package)
    if routing is not None:
        routing = dataclasses.replace(routing, weights_dtype=torch.float32)
    return package.reference.route(
        x,
        weights.gate_weight,
        weights.gate_bias,
        residual=args.residual,
        residual_multiplier=args.residual_multiplier,
        norm_weight=weights.norm_weight,
        eps=spec.norm.eps if spec.norm else 0.0,
        norm_order=spec.norm.order if spec.norm else "",
        logits_from=spec.logits_from,
        routing=routing,
        e_score_correction_bias=args.e_score_correction_bias,
        logits_dtype=torch.float64,
        compute_dtype=torch.float64,
    )


def problem_of(args: PathArgs, right: Any) -> str:
    """What is wrong with the outputs in `args`, "" for nothing: one row in a hundred may have a tie's other expert."""
    if args.residual_out is not None and not torch.equal(args.residual_out, right.residual_out):
        return "residual_out is not the rounded sum"
    if args.topk_ids is None or args.topk_weights is None:
        return ""
    rows = (args.topk_ids == right.topk_ids).all(dim=1)
    if int((~rows).sum()) > max(1, rows.numel() // 100):
        return f"{int((~rows).sum())} of {rows.numel()} rows have other experts"
    limit = WEIGHTS_TOLERANCE if args.topk_weights.dtype == torch.float32 else _BF16_TOLERANCE
    off = (
        float((args.topk_weights[rows].double() - right.topk_weights[rows].double()).abs().max()) if rows.any() else 0.0
    )
    return "" if off <= limit else f"topk_weights are off by {off:.1e}, allowed {limit:.0e}"
