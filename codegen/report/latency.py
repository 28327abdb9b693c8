"""Latency: a figure for each model, of norm and gate and of whole paths, and how many times a peer takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ..bench import tables
from ..bench.record import Measurement, ModelRecord, PathRecord, Point, Record
from .charts import Series, in_tokens, lines
from .facts import Chip
from .parts import Cell, Figure, Key, Table

# Dashes say once more what colours say.
_DASHES: dict[str, tuple[int, ...]] = {
    "probe": (5, 3),
    tables.ROOFLINE: (1, 3),
    "torch_compiled_unrounded": (8, 3, 2, 3),
    "torch_eager": (3, 3),
    "norm_gate": (5, 3),
}
_UNMARKED = ("probe", "norm_gate", tables.ROOFLINE)
_UNDRAWN = ("empty",)  # where the chip is busy its time is noise around nothing

EVEN = 0.02
"""Ratios closer to 1 than this are coloured as even."""


def gate_figures(chip: Chip) -> list[Figure]:
    """Norm and gate of each model against peers, probe and roofline."""
    record = chip.gates
    if record is None:
        return []
    found = []
    for name, model in record.models.items():
        if model.points:
            series = [_series(key, tables.label(key), tables.medians(model, key)) for key in _drawn(model)]
            if not any(one.points for one in series):
                continue
            if roofline := tables.rooflines(model, record.rates):
                series.append(_series(tables.ROOFLINE, tables.ROOFLINE, roofline))
            headings, rows = tables.rows(model, record.rates)
            title = f"{name}: norm and gate, microseconds against tokens on {chip.name}"
            table = Table(tuple(headings), tuple(map(tuple, rows)))
            shape = f"{model.hidden_size:,} × {model.num_experts}"
            found.append(Figure(f"{chip.slug}-gate-{name}", name, shape, lines(series, title), table))
    return found


def path_figures(chip: Chip) -> list[Figure]:
    """Whole paths, against the same stages one by one and torch; norm and gate alone beside them."""
    record = chip.paths
    found = []
    for name, path in paths(record):
        keys = [key for key in tables.PATH_LABELS if any(key in point.candidates for point in path.points.values())]
        series = [_series(key, tables.path_label(key), tables.medians(path, key)) for key in keys]
        if not any(one.points for one in series):
            continue
        headings, rows = tables.path_rows(path)
        title = f"{name}: the whole path, microseconds against tokens on {chip.name}"
        table = Table(tuple(headings), tuple(map(tuple, rows)))
        found.append(Figure(f"{chip.slug}-path-{name}", name, path.stages, lines(series, title), table))
    return found


def gate_legend(chip: Chip) -> list[Key]:
    found = {key for model in (chip.gates.models if chip.gates else {}).values() for key in _drawn(model)}
    if chip.gates and chip.gates.rates:
        found.add(tables.ROOFLINE)
    return [_key(key, tables.label(key)) for key in (*tables.LABELS, tables.ROOFLINE) if key in found]


def path_legend(chip: Chip) -> list[Key]:
    found = {key for _, path in paths(chip.paths) for point in path.points.values() for key in point.candidates}
    return [_key(key, label) for key, label in tables.PATH_LABELS.items() if key in found]


def gate_ratios(chip: Chip) -> Table | None:
    """The best peer's time over normgate's, models down, tokens across."""
    record = chip.gates
    if record is None:
        return None
    return _ratios(
        {
            name: (model.points, {tokens: peer for tokens in model.points if (peer := tables.best_peer(model, tokens))})
            for name, model in record.models.items()
            if model.points
        },
        tables.label,
    )


def path_ratios(chip: Chip) -> Table | None:
    """The same of whole paths: over the fastest other way."""
    measured = dict(paths(chip.paths))
    if not measured:
        return None

    def best(path: PathRecord) -> dict[int, str]:
        found = {}
        for tokens, point in path.points.items():
            if others := tables.path_peers(path, tokens):
                found[tokens] = min(others, key=lambda other: point.candidates[other].median_us)
        return found

    return _ratios({name: (path.points, best(path)) for name, path in measured.items()}, tables.path_label)


def left_out(chip: Chip) -> list[str]:
    """What was not timed, and why."""
    counts: dict[tuple[str, str], int] = {}

    def add(points: Sequence[Point], label: str) -> None:
        for point in points:
            for name, reason in point.left_out.items():
                key = (f"{tables.label(name)}{label}", reason)
                counts[key] = counts.get(key, 0) + 1

    for record in chip.records:
        for model in record.models.values():
            add(list(model.points.values()), "")
            add(list(model.path.points.values()) if model.path else [], " (whole path)")
    return [f"{name}, at {points} points: {reason}" for (name, reason), points in counts.items()]


def worst_errors(chip: Chip) -> dict[str, float]:
    """By function: the largest error that a benchmark found before it timed."""
    found: dict[str, float] = {}

    def add(measured: Measurement | None) -> None:
        if measured and measured.variant and measured.error is not None:
            found[measured.variant] = max(found.get(measured.variant, 0.0), measured.error)

    for record in chip.records:
        for model in record.models.values():
            for point in (*model.points.values(), *(model.path.points.values() if model.path else ())):
                add(point.candidates.get("ours"))
    return found


def paths(record: Record | None) -> Iterator[tuple[str, PathRecord]]:
    """The whole paths that were measured, by model."""
    for name, model in (record.models if record else {}).items():
        if model.path and model.path.points:
            yield name, model.path


def _drawn(model: ModelRecord) -> list[str]:
    return [key for key in tables.candidates(model) if key not in _UNDRAWN]


def _series(key: str, label: str, points: dict[int, float]) -> Series:
    return Series(key, label, points, _DASHES.get(key, ()), marked=key not in _UNMARKED, wide=key == "ours")


def _key(key: str, label: str) -> Key:
    return Key(key, label, dash=" ".join(map(str, _DASHES.get(key, ()))))


def _ratios(
    measured: Mapping[str, tuple[Mapping[int, Point], Mapping[int, str]]], label: Callable[[str], str]
) -> Table:
    """By model: its points, and the fastest peer at each token count."""
    counts = sorted({tokens for points, _ in measured.values() for tokens in points})
    rows = []
    for name, (points, best) in measured.items():
        cells: list[str | Cell] = [name]
        for tokens in counts:
            found = points[tokens].candidates if tokens in points else {}
            ours, peer = found.get("ours"), found.get(best.get(tokens, ""))
            if ours is None or peer is None or ours.median_us <= 0:
                cells.append(Cell("", "none", "not measured"))
                continue
            ratio = peer.median_us / ours.median_us
            said = f"{name}, {in_tokens(tokens)}: {label(best[tokens])} takes {ratio:.2f} times as long"
            cells.append(Cell(f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}", _heat(ratio), said))
        rows.append(tuple(cells))
    return Table(("model", *(f"{tokens:,}" for tokens in counts)), tuple(rows))


def _heat(ratio: float) -> str:
    """The class of a cell: behind, even, or how far ahead."""
    if ratio < 1 - EVEN:
        return "heat-behind"
    if ratio < 1 + EVEN:
        return "heat-even"
    return "heat-1" if ratio < 1.5 else "heat-2" if ratio < 2.5 else "heat-3"
