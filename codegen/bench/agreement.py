"""Is a candidate right? Asked in the chain, before anything is timed, of every element."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..spec import RouterSpec
from .chain import Candidate, Chain, Outputs, Weights

_PAIRS = 4  # both sources and, with it, a stale x would be noticed
_NO_ID = -1

UNROUNDED_TOLERANCE = 2e-6
ROUNDED_TOLERANCE = 5e-3
"""Relative Frobenius error of logits, at most: with the norm kept in fp32, and with it rounded on the way."""


@dataclass(frozen=True)
class Agreement:
    """How far a result is from the right one; problem says what does not hold, "" when all does.

    error: ||logits - ref|| / ||ref||, None where nothing is to be compared; normed_ulps: the largest distance
    of an element of normed_x, in units of its last place.
    """

    error: float | None = None
    normed_ulps: int | None = None
    problem: str = ""


def tolerance(spec: RouterSpec, logits_from: str) -> float:
    """Of logits computed from the `unrounded` or `rounded` norm, in the logits dtype of `spec`."""
    exact = logits_from == "unrounded" and spec.logits_dtype == "float32"
    return UNROUNDED_TOLERANCE if exact else ROUNDED_TOLERANCE


def ulp_limit(spec: RouterSpec) -> int:
    """How far an element of normed_x may be: a tie of the reduction order moves a rounding by one unit.

    Order A multiplies the rounded row by the weight and rounds again, and one unit there can be two units
    here.
    """
    return 2 if spec.norm is not None and spec.norm.order == "A" else 1


def expected(spec: RouterSpec, reference: ModuleType, weights: Weights, x: Tensor) -> Outputs:
    """The right answer in float64, logits from the unrounded norm; `reference` is the package's module."""
    exact = {"logits_dtype": torch.float64, "compute_dtype": torch.float64}
    if spec.norm is None:
        return Outputs(None, reference.gate(x, weights.gate_weight, weights.gate_bias, **exact))
    return Outputs(
        *reference.norm_gate(
            x,
            weights.norm_weight,
            weights.gate_weight,
            weights.gate_bias,
            spec.norm.eps,
            spec.norm.order,
            **exact,
        )
    )


def last_inputs(chain: Chain) -> tuple[Weights, Tensor]:
    """The inputs that `agree` compares the result of."""
    return chain.inputs_of_last(_PAIRS, len(chain.weights))


def replayed(candidate: Candidate, chain: Chain) -> tuple[Outputs, str]:
    """The last result of a short chain, and what is wrong with its form.

    x and the result are poisoned first: an element that is not written, or an x read too early, shows as NaN.
    """
    captured = chain.capture(candidate, _PAIRS, len(chain.weights))
    got = captured.last
    assert got is not None
    for tensor, like in zip(got.all, chain.outputs.all, strict=True):
        if tensor is None or like is None:
            continue
        dtype = candidate.logits_dtype if like is chain.outputs.router_logits else None
        found, wanted = (tensor.dtype, tuple(tensor.shape)), (dtype or like.dtype, tuple(like.shape))
        if found != wanted:
            return got, f"the result is {found[0]} {found[1]}, not {wanted[0]} {wanted[1]}"
    written = [tensor for tensor in (*got.all, chain.x) if tensor is not None]
    for tensor in written:
        tensor.fill_(float("nan") if tensor.is_floating_point() else _NO_ID)
    _synchronize()
    captured.graph.replay()
    _synchronize()
    if not all(bool(tensor.isfinite().all()) for tensor in written):
        return got, "not every element of the result is written and finite"
    return got, ""


def agree(candidate: Candidate, chain: Chain, spec: RouterSpec, right: Outputs) -> Agreement:
    """Run a short chain and hold its last result against `right`, which is `expected` of `last_inputs`."""
    if candidate.checks == "nothing":
        return Agreement()
    got, problem = replayed(candidate, chain)
    if problem:
        return Agreement(problem=problem)
    if candidate.checks == "copy":
        same = got.normed_x is None or torch.equal(got.normed_x, chain.x)
        return Agreement(problem="" if same else "normed_x is not the x that was read")
    return _compare(candidate, spec, got, right)


def _compare(candidate: Candidate, spec: RouterSpec, got: Outputs, right: Outputs) -> Agreement:
    assert got.router_logits is not None and right.router_logits is not None
    error = relative_error(got.router_logits, right.router_logits)
    problem = (
        "" if error <= candidate.tolerance else f"logits are off by {error:.1e}, allowed {candidate.tolerance:.1e}"
    )
    ulps: int | None = None
    if right.normed_x is not None:
        assert got.normed_x is not None
        ulps = ulps_between(got.normed_x, right.normed_x)
        if ulps > ulp_limit(spec):
            problem = problem or f"normed_x is off by {ulps} units in the last place, allowed {ulp_limit(spec)}"
    return Agreement(error, ulps, problem)


def relative_error(found: Tensor, right: Tensor) -> float:
    """||found - right|| / ||right||."""
    return float((found.double() - right.double()).norm() / right.double().norm())


def ulps_between(found: Tensor, right: Tensor) -> int:
    """The largest distance of two elements, in units of the last place of their two-byte dtype."""
    return int((_ordered(found) - _ordered(right)).abs().max())


def _ordered(values: Tensor) -> Tensor:
    """Two-byte floats as integers in the same order, neighbours one apart, both zeros 0."""
    bits = values.view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def _synchronize() -> None:
    cuda: Any = torch.cuda
    cuda.synchronize()
