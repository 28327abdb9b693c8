"""What every stage computes, in plain PyTorch: the right answer on any device, and the oracle of the tests.

The functions are written from the definitions. ``compute_dtype`` is the precision of all arithmetic:
float32 is what the generated kernels promise, float64 gives the oracle they are measured against. Values
are rounded to the dtype of ``x`` only where the model's norm order rounds, and to ``logits_dtype`` once, at
the very end.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NORM_ORDERS = ("A", "B", "G")
LOGITS_FROM = ("unrounded", "rounded")

_precision_lock = threading.Lock()


def rms_norm(
    x: Tensor, norm_weight: Tensor, eps: float, norm_order: str, compute_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """RMSNorm of each row of ``x`` [num_tokens, hidden_size]: ``(unrounded, normed_x)``.

    ``unrounded`` is weight * xhat in ``compute_dtype``; ``normed_x`` has the dtype of ``x`` and is rounded
    where the model rounds. With xhat = x * rsqrt(mean(x^2) + eps):

    - order A: ``weight * round(xhat)``, rounded again (Llama lineage)
    - order B: ``round(weight * xhat)`` (DeepSeek-V4, gpt-oss)
    - order G: ``round((1 + weight) * xhat)`` (Gemma lineage)
    """
    # The memory format drops the row stride of x, so that results are contiguous whatever x was.
    wide = x.to(compute_dtype, memory_format=torch.contiguous_format)
    weight = norm_weight.to(compute_dtype)
    if norm_order == "G":
        weight = 1.0 + weight
    xhat = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    unrounded = weight * xhat
    if norm_order == "A":
        # The product of two values of x's dtype is exact here, so this rounds once, as that dtype would.
        return unrounded, (weight * xhat.to(x.dtype).to(compute_dtype)).to(x.dtype)
    return unrounded, unrounded.to(x.dtype)


def gate(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    logits_dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Router logits [num_tokens, num_experts]: ``x @ gate_weight.T + gate_bias``, rounded at the end."""
    wide = x.to(compute_dtype, memory_format=torch.contiguous_format)
    with _full_precision(x.device.type):
        logits = wide @ gate_weight.to(compute_dtype).t()
    if gate_bias is not None:
        logits = logits + gate_bias.to(compute_dtype)
    return logits.to(logits_dtype)


def norm_gate(
    x: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    eps: float,
    norm_order: str,
    logits_from: str = "unrounded",
    logits_dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """RMSNorm and gate of ``x`` [num_tokens, hidden_size]: ``(normed_x, router_logits)``.

    ``logits_from`` says what the gate reads: "unrounded" the norm as it stands in ``compute_dtype``,
    "rounded" the row of ``normed_x`` as it was written.
    """
    unrounded, normed_x = rms_norm(x, norm_weight, eps, norm_order, compute_dtype)
    row = normed_x if logits_from == "rounded" else unrounded
    return normed_x, gate(row, gate_weight, gate_bias, logits_dtype, compute_dtype)


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Inside, a float32 matmul is one, whatever the user's autocast, TF32 and bf16 settings say."""
    backends: Any = torch.backends
    backend = {"cuda": backends.cuda.matmul, "cpu": backends.mkldnn.matmul}.get(device_type)
    with torch.autocast(device_type, enabled=False):
        if backend is None or backend.fp32_precision in ("none", "ieee"):
            yield
            return
        # The setting is the process's: without the lock, two threads could restore each other's "ieee".
        with _precision_lock:
            before = backend.fp32_precision
            backend.fp32_precision = "ieee"
            try:
                yield
            finally:
                # "none" inherits from torch.backends.fp32_precision, and reads as what it inherits.
                backend.fp32_precision = "none"
                if backend.fp32_precision != before:
                    backend.fp32_precision = before
