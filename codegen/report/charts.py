"""The charts of the report as Vega-Lite. Each mark says in words what it stands for: readers of the page hear it, its
script shows it, and the tests hold it against the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .drawing import Chart

WIDTH, HEIGHT = 380, 250
_ROW = 30
_ROW_LABEL = 125
_TOKEN_TICKS = [1, 4, 16, 64, 256, 1024, 4096]
_LATENCY_TICKS = [step * 10**power for power in range(-1, 4) for step in (1, 2, 5)]
_COUNTS = {"type": "log", "base": 2, "nice": False}


@dataclass(frozen=True)
class Series:
    """A line: key names its colour, label its words; marked: its points are drawn; dash as in SVG."""

    key: str
    label: str
    points: Mapping[int, float]
    dash: tuple[int, ...] = ()
    marked: bool = True
    wide: bool = False


@dataclass(frozen=True)
class Band:
    """A range of tokens in a row: last None: no end. apart: several launches."""

    row: str
    first: int
    last: int | None
    key: str
    label: str
    apart: bool = False


@dataclass(frozen=True)
class Dot:
    """A value in a row; key names its colour."""

    row: str
    value: float
    key: str
    label: str


def colour(key: str) -> str:
    """The CSS variable of a series or family."""
    return f"var(--{key.replace('_', '-')})"


def lines(series: Sequence[Series], title: str) -> Chart:
    """Microseconds against tokens, both logarithmic; the first of `series` is drawn last, on top."""
    drawn = [one for one in series if any(us > 0 for us in one.points.values())]
    x = {"field": "t", "type": "quantitative", "title": "tokens", "scale": _COUNTS, "axis": _tokens_axis()}
    # The lowest and the highest value have their place, and a little room.
    values = [us for one in drawn for us in one.points.values() if us > 0]
    domain = [min(values) * 0.85, max(values) * 1.2]
    y = {
        "field": "us",
        "type": "quantitative",
        "title": "microseconds",
        "scale": {"type": "log", "domain": domain, "nice": False},
        "axis": {"values": [t for t in _LATENCY_TICKS if domain[0] <= t <= domain[1]], "format": "~g"},
    }
    layers = []
    for one in reversed(drawn):
        rows = [
            {"t": tokens, "us": us, "said": f"{one.label}, {in_tokens(tokens)}: {us:.2f} µs"}
            for tokens, us in one.points.items()
            if us > 0
        ]
        line = {"type": "line", "stroke": colour(one.key), "strokeWidth": 2.6 if one.wide else 1.5, "aria": False}
        dashed = {"strokeDash": list(one.dash)} if one.dash else {}
        size = (34 if one.wide else 18) if one.marked else 12
        dot = {"type": "circle", "fill": colour(one.key), "size": size, "opacity": 1 if one.marked else 0}
        data = {"values": rows}
        layers += [
            {"data": data, "mark": {**line, **dashed}, "encoding": {"x": x, "y": y}},
            {"data": data, "mark": dot, "encoding": {"x": x, "y": y, "description": {"field": "said"}}},
        ]
    return {"width": WIDTH, "height": HEIGHT, "description": title, "layer": layers}


def bands(rows: Sequence[str], found: Iterable[Band], title: str, end: int = 8192) -> Chart:
    """Ranges of tokens, a row a model; an open one is drawn to `end`."""
    values = [
        {
            "row": one.row,
            "from": one.first,
            "to": end if one.last is None else one.last + 1,
            "fill": colour(one.key),
            "opacity": 0.45 if one.apart else 1,
            "said": one.label,
        }
        for one in found
    ]
    return {
        "width": WIDTH - 90,
        "height": {"step": _ROW},
        "description": title,
        "data": {"values": values},
        "mark": {"type": "bar", "height": 18, "stroke": "var(--paper)", "strokeWidth": 1},
        "encoding": {
            "x": {
                "field": "from",
                "type": "quantitative",
                "title": "tokens",
                "scale": {**_COUNTS, "domain": [1, end]},
                "axis": _tokens_axis(),
            },
            "x2": {"field": "to"},
            "y": _rows_axis(rows),
            "color": {"field": "fill", "type": "nominal", "scale": None},
            "opacity": {"field": "opacity", "type": "quantitative", "scale": None},
            "description": {"field": "said"},
        },
    }


def dots(
    rows: Sequence[str],
    found: Iterable[Dot],
    title: str,
    unit: str,
    domain: tuple[float, float],
    limit: tuple[float, str] | None = None,
) -> Chart:
    """Values in rows; limit: a line at a value, with the words that say what it is."""
    values = [{"row": one.row, "value": one.value, "fill": colour(one.key), "said": one.label} for one in found]
    x = {
        "field": "value",
        "type": "quantitative",
        "title": unit,
        "scale": {"domain": list(domain), "nice": False},
        "axis": {"tickCount": 6, "format": "~r"},
    }
    layers: list[Chart] = [
        {
            "data": {"values": values},
            "mark": {"type": "circle", "size": 70, "opacity": 0.75, "stroke": "var(--paper)", "strokeWidth": 0.5},
            "encoding": {
                "x": x,
                "y": _rows_axis(rows),
                "fill": {"field": "fill", "type": "nominal", "scale": None},
                "description": {"field": "said"},
            },
        }
    ]
    if limit:
        at, words = limit
        layers.insert(
            0,
            {
                "data": {"values": [{"value": at, "said": words}]},
                "mark": {"type": "rule", "stroke": "var(--limit)", "strokeDash": [5, 4], "strokeWidth": 1.5},
                "encoding": {"x": x, "description": {"field": "said"}},
            },
        )
    return {"width": WIDTH - 90, "height": {"step": _ROW}, "description": title, "layer": layers}


def in_tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"


def _tokens_axis() -> Chart:
    return {"values": _TOKEN_TICKS, "format": ",d"}


def _rows_axis(rows: Sequence[str]) -> Chart:
    axis = {"grid": False, "minExtent": _ROW_LABEL, "labelLimit": _ROW_LABEL + 10, "labelColor": "var(--ink)"}
    return {
        "field": "row",
        "type": "nominal",
        "title": None,
        "sort": list(rows),
        "scale": {"domain": list(rows)},
        "axis": axis,
    }
