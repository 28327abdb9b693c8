"""The least time that an op can take: what it has to move and to multiply, at the rates that the chip reaches."""

from __future__ import annotations

from ..families import mma_terms
from .record import ChipRates, ModelRecord

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def roofline_us(model: ModelRecord, num_tokens: int, rates: ChipRates) -> float:
    """Microseconds: its bytes at the speed of a copy, or its FLOP at the rate of a bf16 GEMM, the longer of both.

    Each tensor is moved once. A product counts once for each pair of bf16 terms that the contract needs.
    """
    problem, rows = model.problem, num_tokens
    activation, gate = _BYTES[model.activation_dtype], _BYTES[model.gate_weight_dtype]
    moved = gate * model.num_experts * (model.hidden_size + model.gate_bias)
    moved += rows * (activation * model.hidden_size + _BYTES[model.logits_dtype] * model.num_experts)
    if problem.has_norm:
        moved += activation * model.hidden_size * (1 + rows)  # the norm weights, and normed_x
    flops = 2 * rows * model.hidden_size * model.num_experts * mma_terms(problem)
    return 1e6 * max(moved / rates.copy_bytes_per_s, flops / rates.gemm_flops_per_s)
