"""The regression guard: a run held against a recorded one of the same chip.

Slower is what is slower both in microseconds and as a ratio to the probe of its run, a whole path to norm and gate: a
chip with lower clocks slows both by the same factor, and a probe that was lucky raises only the ratio.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.table import Table

from .. import terminal
from ..errors import CheckFailed
from .record import Measurement, Point, Record

# Two runs of one state of the code differ by more than the rounds of either: normgate's time by 4.3 % at most over 109
# points, the probe's by more (the two records in docs/measured at commit 6009211).
BETWEEN_RUNS = 0.05

_BASES = {"probe": "the probe", "norm_gate": "norm + gate"}


@dataclass(frozen=True)
class Change:
    """normgate at one point, before and now: microseconds, and the ratio to the base; spread: what counts as no
    change, as a share.

    base: of norm and gate the probe, of a whole path norm and gate alone, which the other points are about.
    """

    model: str
    num_tokens: int
    base: str
    before_us: float
    now_us: float
    before_ratio: float
    now_ratio: float
    spread: float

    @property
    def regressed(self) -> bool:
        most = 1 + self.spread
        return self.now_us > self.before_us * most and self.now_ratio > self.before_ratio * most


def compare(now: Record, before: Record) -> list[Change]:
    """Every point that both have. CheckFailed where they are of different chips or protocols, or share no point."""
    if now.machine.chip != before.machine.chip:
        raise CheckFailed(f"measured on {now.machine.chip}, recorded on {before.machine.chip}: no ratio compares chips")
    if now.protocol != before.protocol:
        raise CheckFailed("the record was measured by another protocol; record it anew: python build.py bench")
    changes = list(_changes(now, before))
    if not changes:
        raise CheckFailed("the record shares no point with this run: no model and token count with normgate and probe")
    return changes


def require_no_regression(changes: list[Change]) -> None:
    """CheckFailed that names each point that became slower than the spread explains."""
    slower = [
        f"{c.model}, {c.num_tokens} tokens: {c.now_us:.2f} us, {c.now_ratio:.2f} times {_BASES[c.base]}; before "
        f"{c.before_us:.2f} us, {c.before_ratio:.2f} times (up to {100 * c.spread:.0f} % more is spread)"
        for c in changes
        if c.regressed
    ]
    if slower:
        raise CheckFailed("\n".join(slower))


def table(changes: list[Change]) -> Table:
    """The points, for people."""
    figures = ("tokens", "us before", "now", "times before", "now", "spread")
    shown = terminal.table(terminal.words("model"), *figures)
    for c in changes:
        cells = [f"{value:.2f}" for value in (c.before_us, c.now_us, c.before_ratio, c.now_ratio)]
        cells.append(f"{100 * c.spread:.0f} %")
        shown.add_row(c.model, str(c.num_tokens), *cells, style="bold red" if c.regressed else "")
    return shown


def _changes(now: Record, before: Record) -> Iterator[Change]:
    for model, measured in now.models.items():
        if recorded := before.models.get(model):
            yield from _changes_of(model, "probe", measured.points, recorded.points)
            if measured.path and recorded.path:
                yield from _changes_of(f"{model}, whole path", "norm_gate", measured.path.points, recorded.path.points)


def _changes_of(model: str, base: str, now: Mapping[int, Point], before: Mapping[int, Point]) -> Iterator[Change]:
    for num_tokens, point in now.items():
        old, new = _pair(before.get(num_tokens), base), _pair(point, base)
        if old and new:
            times = (old[0].median_us, new[0].median_us)
            ratios = (old[0].median_us / old[1].median_us, new[0].median_us / new[1].median_us)
            spread = sum(one.spread_us / one.median_us for one in (*old, *new))
            yield Change(model, num_tokens, base, *times, *ratios, max(BETWEEN_RUNS, spread))


def _pair(point: Point | None, base: str) -> tuple[Measurement, Measurement] | None:
    """normgate and the base, where both cost something that can be told from nothing."""
    found = [point.candidates.get(name) for name in ("ours", base)] if point else []
    ours, other = found or (None, None)
    return (ours, other) if ours and other and ours.median_us > 0 and other.median_us > 0 else None
