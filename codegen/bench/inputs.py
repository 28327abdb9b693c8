"""Random weights and rows of a spec, for what is timed, compiled or counted on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spec import RouterSpec
from .chain import Chain, Outputs, Weights
from .native import BenchLibrary, PathArgs


def dtype(name: str) -> torch.dtype:
    """torch.bfloat16 for "bfloat16"."""
    found: torch.dtype = getattr(torch, name)
    return found


def random_weights(spec: RouterSpec, device: str = "cuda") -> Weights:
    """One weight set: norm weights about what their order multiplies by, gate weights that keep logits near 1."""
    norm_weight: Tensor | None = None
    if spec.norm is not None:
        middle = 0.0 if spec.norm.order == "G" else 1.0
        norm_weight = (_random(spec.hidden_size, device=device) * 0.2 + middle).to(dtype(spec.activation_dtype))
    gate_dtype = dtype(spec.gate_weight_dtype)
    gate_weight = _random(spec.num_experts, spec.hidden_size, device=device) * spec.hidden_size**-0.5
    gate_bias = _random(spec.num_experts, device=device).to(gate_dtype) if spec.gate_bias else None
    return Weights(norm_weight, gate_weight.to(gate_dtype), gate_bias)


def random_rows(spec: RouterSpec, num_tokens: int, device: str = "cuda") -> Tensor:
    """An x: [num_tokens, hidden_size] of the activation dtype."""
    return _random(num_tokens, spec.hidden_size, device=device).to(dtype(spec.activation_dtype))


def random_chain(
    bench: BenchLibrary, spec: RouterSpec, weights: Sequence[Weights], num_tokens: int, path: PathArgs | None = None
) -> Chain:
    """A chain of random rows. Its outputs are those of a gate, and of `path` where that is given."""
    sources = [random_rows(spec, num_tokens) for _ in range(2)]
    normed_x = torch.empty_like(sources[0]) if spec.norm else None
    logits: Tensor | None = None
    if path is None or spec.routing.router_logits or spec.routing.scoring is None:
        logits = torch.empty((num_tokens, spec.num_experts), dtype=dtype(spec.logits_dtype), device="cuda")
    path = path or PathArgs()
    return Chain(
        bench, weights, sources, Outputs(normed_x, logits, path.residual_out, path.topk_weights, path.topk_ids)
    )


def _random(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, device=device)
