"""What the chip reaches, measured in the run that compares with it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from .record import ChipRates

# torch leaves what this file calls of it without annotations.
_cuda: Any = torch.cuda

_L2_FACTOR = 20  # the copy's buffer against the L2 cache, so that hardly any of it is found there
_GEMM_SIZE = 8192
_REPEATS = 20
_WARMUPS = 5


def measure(l2_bytes: int, device: str = "cuda") -> ChipRates:
    """The speed of a copy and the rate of a bf16 GEMM; random data, since a GEMM of zeros draws less power."""
    source = torch.randint(256, (_L2_FACTOR * l2_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _seconds(lambda: target.copy_(source))
    left, right = (torch.randn(_GEMM_SIZE, _GEMM_SIZE, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    gemm_s = _seconds(lambda: torch.mm(left, right, out=product))
    return ChipRates(copy_bytes_per_s=2 * source.numel() / copy_s, gemm_flops_per_s=2 * _GEMM_SIZE**3 / gemm_s)


def _seconds(action: Callable[[], object]) -> float:
    """What `action` takes on the GPU: the median of many, after some that warm it up."""
    for _ in range(_WARMUPS):
        action()
    events = [[_cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_REPEATS)]
    for start, end in events:
        start.record()
        action()
        end.record()
    _cuda.synchronize()
    milliseconds: list[float] = [start.elapsed_time(end) for start, end in events]
    return statistics.median(milliseconds) / 1000
