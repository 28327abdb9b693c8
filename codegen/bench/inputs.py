"""Random weights and rows of a spec, for what is timed, compiled or counted on them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import RouterSpec
from .chain import Weights


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


def _random(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, device=device)
