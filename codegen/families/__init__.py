"""The kernel families: what a variant's constants are called, and what follows from them for a problem.

A variant is a family with its constants. It knows nothing of token ranges, which are the plan's, nor whether it is
legal, which variants.py says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..problem import Problem
from .gemv import Gemv
from .limits import CLUSTERS_AT_ONCE, MAX_CHAIN, MAX_TAKEN_REGISTERS, ceil_div, mma_terms
from .resident import Resident
from .split_k import SplitK
from .tiled import Tiled
from .wgmma import Wgmma

__all__ = [
    "CLUSTERS_AT_ONCE",
    "FAMILIES",
    "FUSING",
    "MAX_CHAIN",
    "MOST_TOKENS_FUSED",
    "MAX_TAKEN_REGISTERS",
    "Apart",
    "Gemv",
    "Order",
    "Resident",
    "SplitK",
    "Tiled",
    "Variant",
    "Wgmma",
    "ceil_div",
    "mma_terms",
    "most_tokens",
    "order_of_sums",
    "parse",
    "parse_served",
]

Variant = Gemv | SplitK | Tiled | Wgmma | Resident


@dataclass(frozen=True, order=True)
class Apart:
    """A path whose residual add and selection are launches of their own, around a variant of its gate's kernel."""

    inner: Variant

    family = "apart"

    @property
    def name(self) -> str:
        return f"apart_{self.inner.name}"

    @property
    def accelerated(self) -> bool:
        return self.inner.accelerated

    @property
    def max_tokens(self) -> int | None:
        """The most a launch serves; None: any number."""
        return self.inner.max_tokens


_NAMES: dict[Callable[..., Variant], re.Pattern[str]] = {
    Gemv: re.compile(r"gemv_t(\d+)_e(\d+)_w(\d+)_c(\d+)(_late)?"),
    SplitK: re.compile(r"split_k_t(\d+)_e(\d+)_s(\d+)_w(\d+)_b(\d+)(?:_r(\d+))?(_late)?"),
    Tiled: re.compile(r"tiled_t(\d+)_e(\d+)_s(\d+)_w(\d)(\d)(\d)_k(\d+)_d(\d+)(_late)?"),
    Wgmma: re.compile(r"wgmma_t(\d+)_e(\d+)_s(\d+)_d(\d+)(_late)?"),
    Resident: re.compile(r"resident_t(\d+)_e(\d+)_s(\d+)(_late)?"),
}

FAMILIES = tuple(family.family for family in (Gemv, SplitK, Tiled, Resident, Wgmma))
"""Names of the families, from the fewest tokens to the most."""

FUSING = ("gemv", "split_k")
"""Families that can take the residual add and the selection into their own launch."""

MOST_TOKENS_FUSED = 64
"""Tokens of a launch that chooses experts itself. In tiles of 8 tokens, each with a ticket counter for each of up to 8
CTAs of a cluster, they need half of the counters that templates/include/handover.h has.
"""


def most_tokens(problem: Problem, served: Variant | Apart) -> int | None:
    """The most that a launch serves; None: any number."""
    fused = problem.selection is not None and not isinstance(served, Apart)
    return served.max_tokens or (MOST_TOKENS_FUSED if fused else None)


def parse(name: str) -> Variant:
    """The variant of that name, legal or not. ValueError for a name that no variant has."""
    for family, pattern in _NAMES.items():
        if match := pattern.fullmatch(name):
            *constants, late = match.groups()
            variant = family(*(int(digits or 1) for digits in constants), late is None)
            if variant.name == name:  # 01 is no way to write 1
                return variant
    raise ValueError(f"no variant has the name {name!r}")


def parse_served(name: str) -> Variant | Apart:
    """What serves a range by that name, a variant or one with the other stages apart. ValueError as `parse`."""
    inner = name.removeprefix(f"{Apart.family}_")
    return parse(name) if inner == name else Apart(parse(inner))


Order = tuple[int | str | bool, ...]
"""What `order_of_sums` gives; equal ones are the same order."""


def order_of_sums(problem: Problem, variant: Variant) -> Order:
    """What decides the order in which a row's products and squares are added: variants that share it give a row the
    same bits, whatever tile it lies in.
    """
    if isinstance(variant, Gemv):
        return variant.family, variant.warps, variant.chunks
    if isinstance(variant, SplitK):
        return variant.family, variant.split, variant.warps, variant.blocks, variant.rounds, variant.chains
    if isinstance(variant, Tiled):
        adds_steps = variant.adds_steps(problem)
        return variant.family, variant.split, variant.slice_warps, variant.step, adds_steps
    if isinstance(variant, Resident):  # terms of 32 experts are added up after the products, of 64 among them
        return variant.family, variant.experts, variant.split
    return variant.family, variant.split
