"""The report as one HTML file: everything in it, nothing fetched."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from ..bench.against import Change
from ..output import replace_whole
from ..places import templates_folder
from . import changes as change_parts
from . import compiled, decode, drawing, facts, kernels, latency, matrix, model, numerics, older, verdict
from .facts import Facts
from .parts import Figure


def write(page: Path, measured: Path, out: Path, against: Path | None = None) -> Facts:
    """Write the report of the records in `measured` and the package in `out`; what it was made from.

    against: an older record or report. BadInput and CheckFailed before anything is written; ToolError where it
    cannot be.
    """
    found = facts.collect(measured, out)
    changed = None
    if against is not None:
        now = [record for chip in found.chips for record in chip.records]
        changed = older.compare(now, older.read(against))
    text = html(found, changed)
    replace_whole(page, text.encode())
    return found


def html(found: Facts, changed: list[Change] | None = None) -> str:
    """The page; changed: against the older record that was asked for."""
    errors = {function: error for chip in found.chips for function, error in latency.worst_errors(chip).items()}
    records = [record for chip in found.chips for record in chip.records]
    return _environment().get_template("page.html.j2").render(
        chips=found.chips,
        facts=found,
        missing=found.missing,
        latency=latency,
        decode=decode,
        verdict=verdict,
        matrix=matrix,
        family_legend=kernels.family_legend(),
        ranges=kernels.range_figures(found),
        compiled_legend=compiled.legend(),
        registers=compiled.figures(found),
        resources=compiled.summary(found),
        numerics=numerics.figures(found),
        runs=numerics.runs(found),
        changes=change_parts.figure(changed) if changed else None,
        cards=[model.card(found, one, errors) for one in found.models],
        carried=older.CARRIED,
        records=older.carried(records),
    )  # fmt: skip


def _drawn(figure: Figure) -> Markup | None:
    """The figure's SVG; None where nothing can draw it."""
    return drawing.svg(figure.chart) if drawing.can_draw() else None


def _environment() -> jinja2.Environment:
    # Everything is escaped but Markup, which listing and drawing make.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_folder() / "report"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["drawn"] = _drawn
    environment.filters["bytes"] = _bytes
    environment.filters["count"] = _count
    return environment


def _bytes(number: int) -> str:
    """As in 3.7 MB."""
    return _scaled(number, "B")


def _count(number: int) -> str:
    """As in 3.7 M."""
    return _scaled(number, "").rstrip()


def _scaled(number: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G"):
        if number < 1000 or prefix == "G":
            return f"{number:.0f} {unit}" if not prefix else f"{number:.3g} {prefix}{unit}"
        number /= 1000
    raise AssertionError("G ends it")
