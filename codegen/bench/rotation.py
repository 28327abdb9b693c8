"""How many pairs a chain has and how many weight sets it rotates: arithmetic alone."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from ..protocol import Protocol


@dataclass(frozen=True)
class Rotation:
    """A graph of `pairs`, pair i with weight set i % `weight_sets`; `pairs` is a multiple of `weight_sets`.

    cold: whether the weights have left the L2 cache when their turn comes again.
    """

    pairs: int
    weight_sets: int
    cold: bool


def rotation(
    weight_bytes: int, activation_bytes: int, l2_bytes: int, protocol: Protocol, pair_us: float = 0.0
) -> Rotation:
    """The rotation for one shape and token count.

    weight_bytes: one weight set; activation_bytes: what a pair touches beside it (x, its source, the
    outputs), which drives weights out of the cache as well; pair_us: what a pair of the slowest candidate
    takes, 0 while unknown.
    """
    cold_bytes = protocol.cold_factor * l2_bytes
    wanted = max(2, math.ceil((cold_bytes - activation_bytes) / weight_bytes))
    fitting = max(2, int(protocol.graph_ms * 1000 / pair_us)) if pair_us > 0 else sys.maxsize
    sets = min(wanted, fitting, max(2, protocol.max_weight_bytes // weight_bytes))
    # The next replay begins with set 0, so a graph goes round whole times: 40 pairs of 33 sets would meet 7
    # of them warm.
    rounds = min(math.ceil(protocol.pairs / sets), fitting // sets)
    return Rotation(sets * rounds, sets, sets * weight_bytes + activation_bytes >= cold_bytes)
