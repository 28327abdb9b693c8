"""Decode loops of whole models in transformers, before and after the router path was fused."""

from __future__ import annotations

from ..bench.decode_record import DecodeRecord, Timing
from .parts import Table

_MEANINGS = {
    "before, us": "median of the rounds and, in brackets, their interquartile range",
    "after, us": "median of the rounds and, in brackets, their interquartile range",
    "after / before": "median of the rounds' ratios and, in brackets, their interquartile range",
    "same tokens": "the share of equal choices, both having read the same tokens",
}


def table(record: DecodeRecord) -> Table:
    """Time per output token by model and number of sequences."""
    rows = [
        (
            name,
            f"{sequences}",
            _shown(point.before),
            _shown(point.after),
            f"{point.after_over_before:.3f} ({point.after_over_before_spread:.3f})",
            f"{point.same_tokens:.3f}",
        )
        for name, model in record.models.items()
        for sequences, point in model.points.items()
    ]
    headings = ("model", "sequences", "before, us", "after, us", "after / before", "same tokens")
    return Table(headings, tuple(rows), meanings=_MEANINGS)


def _shown(timing: Timing) -> str:
    return f"{timing.median_us:,.1f} ({timing.spread_us:.1f})"
