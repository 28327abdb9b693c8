"""What an eager call costs the host: our op beside the norm that models call today."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import Norm, RouterSpec
from .chain import CLOCK_HZ, Weights
from .inputs import dtype, random_rows
from .record import HostCost

# torch leaves what this file calls of it without annotations.
_cuda: Any = torch.cuda

_TOKENS = (1, 16)
_CALLS = 200  # of a batch: fewer than the launch queue holds, so that no call waits for a place in it
_BATCHES = 15
_WARMUPS = 2
_PAUSE_S = 0.005  # the GPU pauses until a batch is queued, and takes nothing of the host meanwhile


def measure(spec: RouterSpec, weights: Weights, device: str = "cuda") -> dict[int, HostCost]:
    """By token count, in inference mode, as engines call; the package must have been imported. Empty without a norm."""
    norm = spec.norm
    if norm is None or weights.norm_weight is None:
        return {}
    norm_weight = weights.norm_weight
    operator, rest = _operator(spec, norm, weights.gate_bias)
    found = {}
    for num_tokens in _TOKENS:
        x = random_rows(spec, num_tokens, device)
        ours, theirs = _interleaved_us(
            partial(operator, x, norm_weight, weights.gate_weight, *rest),
            partial(F.rms_norm, x, (spec.hidden_size,), norm_weight, norm.eps),
        )
        found[num_tokens] = HostCost(norm_gate_us=round(ours, 2), rms_norm_us=round(theirs, 2))
    return found


def _operator(spec: RouterSpec, norm: Norm, gate_bias: Tensor | None) -> tuple[Callable[..., object], tuple[Any, ...]]:
    """The operator that the package's `norm_gate` calls, and its arguments after the tensors that each takes."""
    ops, logits = torch.ops.normgate, dtype(spec.logits_dtype)
    usual = (spec.logits_from, logits) == ("unrounded", torch.float32)
    if usual and gate_bias is None:
        return getattr(ops, f"norm_gate_{norm.order.lower()}").default, (norm.eps,)
    contract = () if usual else (spec.logits_from, logits)
    return ops.norm_gate.default, (gate_bias, norm.eps, norm.order, *contract)


@torch.inference_mode()
def _interleaved_us(*calls: Callable[[], object]) -> list[float]:
    """Microseconds that each call takes of the host: medians of batches, which take turns."""
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(_WARMUPS + _BATCHES):
        for call, taken in zip(calls, samples, strict=True):
            _cuda._sleep(int(_PAUSE_S * CLOCK_HZ))
            begin = time.perf_counter()
            for _ in range(_CALLS):
                call()
            taken.append((time.perf_counter() - begin) / _CALLS * 1e6)
            _cuda.synchronize()
    return [statistics.median(taken[_WARMUPS:]) for taken in samples]
