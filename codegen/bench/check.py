"""What a record should not show: a peer that is faster than normgate, or more tokens that cost less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from ..errors import CheckFailed
from . import tables
from .record import Measurement, Point, Record


@dataclass(frozen=True)
class Finding:
    """normgate at one point, and what took less time there by more than the spreads of both; microseconds.

    model: its norm and gate, unless it says that it is the whole path; faster: a peer as tables call it, or normgate
    itself at the next token count.
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
    """Every peer that beats normgate, at each point; for whole paths also our own kernels launched one by one."""
    return [
        Finding(name, tokens, ours.median_us, label(peer), point.candidates[peer].median_us)
        for name, points, peers, label in _measured(record)
        for tokens, point in points.items()
        if (ours := point.candidates.get("ours"))
        for peer in peers(tokens)
        if _less(point.candidates[peer], ours)
    ]


def cheaper_counts(record: Record) -> list[Finding]:
    """Every token count that costs more than the next larger one that was measured."""
    return [
        Finding(name, tokens, ours.median_us, f"{more} tokens", next_one.median_us)
        for name, points, *_ in _measured(record)
        for (tokens, ours), (more, next_one) in pairwise(_ours(points))
        if _less(next_one, ours)
    ]


def require_fastest(*records: Record) -> None:
    """CheckFailed that lists all of both in the records, a line each."""
    if found := [one for record in records for one in (*faster_peers(record), *cheaper_counts(record))]:
        raise CheckFailed("\n".join(map(str, found)))


def _less(one: Measurement, other: Measurement) -> bool:
    return one.median_us + one.spread_us < other.median_us - other.spread_us


def _ours(points: Mapping[int, Point]) -> Iterator[tuple[int, Measurement]]:
    for tokens, point in sorted(points.items()):
        if "ours" in point.candidates:
            yield tokens, point.candidates["ours"]


_Names = Callable[[int], list[str]]
_Label = Callable[[str], str]


def _measured(record: Record) -> Iterator[tuple[str, Mapping[int, Point], _Names, _Label]]:
    """What was measured of each model, of norm and gate, then of whole paths: the peers at a count, their names."""
    for name, model in record.models.items():
        yield name, model.points, partial(tables.peers, model), tables.label
    for name, model in record.models.items():
        if model.path:
            yield f"{name}, whole path", model.path.points, partial(tables.path_peers, model.path), tables.path_label
