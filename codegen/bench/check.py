"""What a record should not show: a peer that is faster than normgate, or more tokens that cost less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..errors import CheckFailed
from . import tables
from .record import Measurement, ModelRecord, Record


@dataclass(frozen=True)
class Finding:
    """normgate at one point, and what took less time there by more than the spreads of both; microseconds.

    faster: a peer as tables call it, or normgate itself at the next token count.
    """

    model: str
    num_tokens: int
    ours_us: float
    faster: str
    faster_us: float

    def __str__(self) -> str:
        point = f"{self.model}, {self.num_tokens} tokens"
        return f"{point}: {self.ours_us:.2f} us, {self.faster} {self.faster_us:.2f} us"


def faster_peers(record: Record) -> list[Finding]:
    """Every peer that beats normgate, at each point."""
    return [
        Finding(name, tokens, ours.median_us, tables.label(peer), point.candidates[peer].median_us)
        for name, model in record.models.items()
        for tokens, point in model.points.items()
        if (ours := point.candidates.get("ours"))
        for peer in tables.peers(model, tokens)
        if _less(point.candidates[peer], ours)
    ]


def cheaper_counts(record: Record) -> list[Finding]:
    """Every token count that costs more than the next larger one that was measured."""
    return [
        Finding(name, tokens, ours.median_us, f"{more} tokens", next_one.median_us)
        for name, model in record.models.items()
        for (tokens, ours), (more, next_one) in pairwise(_ours(model))
        if _less(next_one, ours)
    ]


def require_fastest(record: Record) -> None:
    """CheckFailed that lists all of both, a line each."""
    if found := [*faster_peers(record), *cheaper_counts(record)]:
        raise CheckFailed("\n".join(map(str, found)))


def _less(one: Measurement, other: Measurement) -> bool:
    return one.median_us + one.spread_us < other.median_us - other.spread_us


def _ours(model: ModelRecord) -> Iterator[tuple[int, Measurement]]:
    for tokens, point in sorted(model.points.items()):
        if "ours" in point.candidates:
            yield tokens, point.candidates["ours"]
