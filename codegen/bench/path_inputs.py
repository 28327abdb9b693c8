"""What a whole path reads and writes beside its gate, of random numbers, and what is right for it."""

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
            stream_multiplier=spec.residual.stream_multiplier,
        )
    if routing.scoring is None:
        return args

    def bias(owns: bool) -> Tensor | None:
        return torch.randn(spec.num_experts, device=device) * 0.1 if owns else None

    scale = torch.rand(spec.num_experts, device=device) + 0.5 if routing.per_expert_scale else None
    renormalize = routing.renormalize
    return dataclasses.replace(
        args,
        topk_weights=torch.empty(num_tokens, routing.top_k, dtype=dtype(routing.weights_dtype), device=device),
        topk_ids=torch.empty(num_tokens, routing.top_k, dtype=dtype(routing.ids_dtype), device=device),
        e_score_correction_bias=bias(routing.e_score_correction_bias),
        e_score_correction_bias_vl=bias(routing.e_score_correction_bias_vl),  # and no mask: tokens are of text
        per_expert_scale=scale,
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
        stream_multiplier=args.stream_multiplier,
        norm_weight=weights.norm_weight,
        eps=spec.norm.eps if spec.norm else 0.0,
        norm_order=spec.norm.order if spec.norm else "",
        logits_from=spec.logits_from,
        routing=routing,
        e_score_correction_bias=args.e_score_correction_bias,
        per_expert_scale=args.per_expert_scale,
        logits_dtype=torch.float64,
        compute_dtype=torch.float64,
    )
