"""Latency: a figure for each model, of norm and gate and of whole paths, and how many times a peer takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..bench import check, tables
from ..bench.page import FEW_TOKENS
from ..bench.record import Measurement, ModelRecord, PathRecord, Point, Record
from .charts import Series, in_tokens, lines
from .facts import Chip
from .parts import Cell, Figure, Highlight, Key, Table

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


@dataclass(frozen=True)
class Behind:
    """Where normgate is not the fastest. points: at how many; faster: what is; by: how much longer normgate takes;
    starts: the first counts, each with its models.
    """

    kind: str
    points: int
    faster: str
    by: str
    starts: tuple[tuple[str, str], ...]
    table: Table


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
    for name, path in _paths(record):
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
    found = {key for _, path in _paths(chip.paths) for point in path.points.values() for key in point.candidates}
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
    measured = dict(_paths(chip.paths))
    if not measured:
        return None

    def best(path: PathRecord) -> dict[int, str]:
        found = {}
        for tokens, point in path.points.items():
            if others := tables.path_peers(path, tokens):
                found[tokens] = min(others, key=lambda other: point.candidates[other].median_us)
        return found

    return _ratios({name: (path.points, best(path)) for name, path in measured.items()}, tables.path_label)


def highlights(chip: Chip) -> Iterator[Highlight]:
    """What the records say first."""
    few = f"up to {FEW_TOKENS} tokens"
    if chip.gates:
        models = [model for model in chip.gates.models.values() if model.points]
        ratios = [
            ratio
            for model in models
            for tokens, ratio in tables.quotients(tables.best_peers(model), tables.medians(model, "ours")).items()
            if tokens <= FEW_TOKENS
        ]
        if mean := tables.geometric_mean(ratios):
            detail = f"geometric mean over {len(models)} models, {min(ratios):.1f} to {max(ratios):.1f}"
            yield Highlight(f"{mean:.1f}×", f"as fast as the best peer, norm and gate {few}", detail, "latency")
    paths = [path for _, path in _paths(chip.paths)]
    for peer, says in (
        ("torch_compiled", "as fast as compiled torch"),
        ("one_by_one", "as fast as a launch for each stage"),
    ):
        ratios = [
            ratio
            for path in paths
            for tokens, ratio in tables.ratios(path, peer, "ours").items()
            if tokens <= FEW_TOKENS
        ]
        if mean := tables.geometric_mean(ratios):
            detail = f"geometric mean over {len(paths)} models, {min(ratios):.1f} to {max(ratios):.1f}"
            if peer == "one_by_one":
                detail = f"of our own kernels, {min(ratios):.1f} to {max(ratios):.1f}"
            yield Highlight(f"{mean:.1f}×", f"{says}, whole path {few}", detail, "paths")
    if points := measured_points(chip):
        detail = f"{points - slower_points(chip)} of {points} points, to {_most_tokens(chip):,} tokens"
        share = 1 - slower_points(chip) / points
        yield Highlight(f"{share:.0%}", "of what was measured: nothing else is faster", detail, f"behind-{chip.slug}")


def behind(chip: Chip) -> list[Behind]:
    """Where a peer takes less time, by more than the spreads of both: one for each record that has models."""
    found = []
    for kind, record in (("Norm and gate", chip.gates), ("The whole path", chip.paths)):
        if record is None or not record.models:
            continue
        findings = check.faster_peers(record)
        of_model = {
            name: [one for one in findings if one.model in (name, f"{name}, whole path")] for name in record.models
        }
        first = {name: min(one.num_tokens for one in ones) for name, ones in of_model.items() if ones}
        starts = [
            (f"first at {in_tokens(count)}", ", ".join(name for name in first if first[name] == count))
            for count in sorted(set(first.values()))
        ]
        never = ", ".join(name for name, ones in of_model.items() if not ones)
        longer = [one.ours_us / one.faster_us - 1 for one in findings]
        by = f"{min(longer):.0%} to {max(longer):.0%}" if longer else ""
        faster = " and ".join(dict.fromkeys(one.faster for one in findings))
        points = len({(one.model, one.num_tokens) for one in findings})
        found.append(
            Behind(kind, points, faster, by, (*starts, *([("never", never)] if never else [])), _behind_table(findings))
        )
    return found


def _behind_table(findings: Sequence[check.Finding]) -> Table:
    rows = tuple(
        (
            one.model.removesuffix(", whole path"),
            one.faster,
            f"{one.num_tokens:,}",
            f"{one.ours_us:.2f}",
            f"{one.faster_us:.2f}",
            f"{one.ours_us / one.faster_us - 1:.0%}",
        )
        for one in findings
    )
    return Table(("model", "faster there", "tokens", "normgate, µs", "it, µs", "longer by"), rows, left=2)


def measured_points(chip: Chip) -> int:
    """How many points were measured at which something could have been faster."""
    gates = chip.gates.models.values() if chip.gates else ()
    counts = sum(bool(tables.peers(model, tokens)) for model in gates for tokens in model.points)
    return counts + sum(
        bool(tables.path_peers(path, tokens)) for _, path in _paths(chip.paths) for tokens in path.points
    )


def _most_tokens(chip: Chip) -> int:
    gates = [count for model in (chip.gates.models.values() if chip.gates else ()) for count in model.points]
    return max([*gates, *(count for _, path in _paths(chip.paths) for count in path.points)])


def slower_points(chip: Chip) -> int:
    """At how many of them something was."""
    return len({(one.model, one.num_tokens) for record in chip.records for one in check.faster_peers(record)})


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


def _paths(record: Record | None) -> Iterator[tuple[str, PathRecord]]:
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
