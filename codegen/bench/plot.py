"""A record as a picture: latency against token count, one panel a model."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..output import replace_whole
from . import tables
from .record import ChipRates, ModelRecord, Record

# Okabe and Ito's colours and one of Tol's, told apart by the colour-blind too; marker and dash say the same once more.
_STYLES: dict[str, tuple[str, str, str]] = {
    "ours": ("#0072B2", "o", "-"),
    "probe": ("#000000", "", "--"),
    "seed": ("#E69F00", "s", "-"),
    "norm_then_gemv": ("#009E73", "^", "-"),
    "flashinfer": ("#882255", "P", "-"),
    "torch_eager": ("#CC79A7", "D", "-"),
    "torch_compiled": ("#D55E00", "v", "-"),
    "torch_compiled_unrounded": ("#56B4E9", "x", "-."),
    tables.ROOFLINE: ("#777777", "", ":"),
}
"""Colour, marker and dash. The empty kernel is not drawn: where the chip is busy its time is noise around nothing."""
_COLUMNS = 2
_PANEL_INCHES = (4.6, 3.0)
_DPI = 150


def figure(record: Record) -> Figure:
    """A panel a model, a line for each of _STYLES that was measured; both axes logarithmic."""
    names = tuple(record.models)
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    width, height = _PANEL_INCHES
    drawn = Figure(figsize=(columns * width, rows * height + 0.9), layout="constrained")
    panels = list(drawn.subplots(rows, columns, squeeze=False).flat)
    legend: dict[str, Artist] = {}
    for name, axes in zip(names, panels, strict=False):
        _panel(axes, name, record.models[name], record.rates)
        legend |= {str(line.get_label()): line for line in axes.get_lines()}
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    labels = sorted(legend, key=[tables.label(name) for name in _STYLES].index)
    drawn.legend(
        [legend[text] for text in labels],
        labels,
        loc="outside upper center",
        ncols=5,
        frameon=False,
        fontsize=9,
    )
    drawn.supylabel("microseconds, cold weights, behind a producer", fontsize=10)
    drawn.supxlabel(f"tokens  ({record.machine.chip})", fontsize=10)
    return drawn


def save(record: Record, path: Path) -> None:
    """Write the figure as PNG. ToolError where it cannot be written."""
    picture = io.BytesIO()
    figure(record).savefig(picture, dpi=_DPI, metadata={"Software": None})  # the same record gives the same file
    replace_whole(path, picture.getvalue())


def _panel(axes: Axes, name: str, model: ModelRecord, rates: ChipRates | None) -> None:
    for candidate, (colour, marker, dash) in _STYLES.items():
        is_roofline = candidate == tables.ROOFLINE
        points = tables.rooflines(model, rates) if is_roofline else tables.medians(model, candidate)
        if not points:
            continue
        front = 3 if candidate == "ours" else 2
        axes.plot(
            list(points),
            list(points.values()),
            color=colour,
            marker=marker,
            linestyle=dash,
            linewidth=2.2 if candidate == "ours" else 1.4,
            markersize=4,
            zorder=front,
            label=tables.label(candidate),
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in _TICKS if low <= tick <= high])
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_title(f"{name}  {model.hidden_size} x {model.num_experts}", fontsize=10)
    axes.tick_params(labelsize=8)


_TICKS = tuple(step * 10.0**power for power in range(-1, 6) for step in (1, 2, 5))
