"""What changed against an earlier record or report."""

from __future__ import annotations

from collections.abc import Sequence

from ..bench.against import Change
from .charts import Dot, dots
from .parts import Cell, Figure, Table

_BOTTOM, _TOP = 0.5, 2.0


def figure(changes: Sequence[Change]) -> Figure:
    """normgate's time now over its time before, a row a model."""
    rows = list(dict.fromkeys(change.model for change in changes))
    drawn = [
        Dot(
            change.model,
            min(max(_ratio(change), _BOTTOM), _TOP),
            "behind" if change.regressed else "ours",
            f"{change.model}, {change.num_tokens} tokens: {change.now_us:.2f} µs, before {change.before_us:.2f} µs",
        )
        for change in changes
    ]
    lowest = min(0.9, *(one.value for one in drawn)) - 0.02
    highest = max(1.1, *(one.value for one in drawn)) + 0.02
    title = "normgate's time now over its time before"
    chart = dots(rows, drawn, title, "now / before", (lowest, highest), (1.0, "no change"))
    return Figure("changes-chart", "now / before", summary(changes), chart, table(changes), "marks")


def table(changes: Sequence[Change]) -> Table:
    rows = tuple(
        (
            change.model,
            f"{change.num_tokens:,}",
            f"{change.before_us:.2f}",
            f"{change.now_us:.2f}",
            Cell(f"{_ratio(change):.2f}", "heat-behind" if change.regressed else ""),
            f"{change.spread:.0%}",
        )
        for change in changes
    )
    return Table(("model", "tokens", "µs before", "µs now", "now / before", "spread"), rows)


def summary(changes: Sequence[Change]) -> str:
    slower = sum(change.regressed for change in changes)
    faster = sum(_ratio(change) < 1 - change.spread for change in changes)
    return f"{len(changes)} points: {faster} faster, {slower} slower by more than spread explains"


def _ratio(change: Change) -> float:
    return change.now_us / change.before_us
