"""A record in the terminal, in 80 columns: the times of normgate, of the best other way, and of what bounds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from .. import terminal
from . import tables
from .record import ModelRecord, PathRecord, Point, Record

_PEER = "best peer"


def show(found: Record, console: Console, *, every: bool = False) -> None:
    """Print the tables of all models; every: of all candidates too."""
    for title, table in _parts(found, every):
        terminal.title(console, title)
        terminal.show(console, table, "")
    terminal.show(console, f"{_PEER}: the fastest of the others; times: how many times normgate's time it takes.")


def _parts(found: Record, every: bool) -> Iterator[tuple[str, Table]]:
    for name, model in found.models.items():
        shape = f"{name}, {model.hidden_size} x {model.num_experts}"
        if model.points:
            yield f"{shape}, microseconds on {found.machine.chip}", _gate(model, found)
            if every:
                yield f"{shape}, every candidate", _candidates(model)
        if path := model.path:
            title = f"{shape}, the whole path: {path.stages}; microseconds on {found.machine.chip}"
            yield title, _path(path, every)


def _gate(model: ModelRecord, found: Record) -> Table:
    ours = tables.medians(model, "ours")
    columns = {
        "normgate": ours,
        _PEER: tables.best_peers(model),
        "times": tables.quotients(tables.best_peers(model), ours),
        "probe": tables.medians(model, "probe"),
        tables.ROOFLINE: tables.rooflines(model, found.rates),
    }
    return _table(columns, model.points, lambda tokens: tables.label(tables.best_peer(model, tokens) or "-"))


def _candidates(model: ModelRecord) -> Table:
    names = [name for name in tables.candidates(model) if name not in tables.MARKS]
    columns = {tables.label(name).replace(".", " "): tables.medians(model, name) for name in names}  # to be wrapped
    return _table(columns, model.points)


def _path(path: PathRecord, every: bool) -> Table:
    ours = tables.medians(path, "ours")
    columns = {"normgate": ours, "over norm + gate": tables.over_norm_gate(path)}
    best = tables.best_path_peers(path)
    if every:
        others = [name for name in tables.PATH_LABELS if name not in ("ours", "norm_gate")]
        columns |= {tables.path_label(name): tables.medians(path, name) for name in others}
        return _table(columns, path.points)
    columns |= {_PEER: best, "times": tables.quotients(best, ours)}

    def named(tokens: int) -> str:
        at = path.points[tokens].candidates
        peers = tables.path_peers(path, tokens)
        return tables.path_label(min(peers, key=lambda name: at[name].median_us)) if peers else "-"

    return _table(columns, path.points, named)


def _table(
    columns: Mapping[str, Mapping[int, float]],
    points: Mapping[int, Point],
    named: Callable[[int], str] | None = None,
) -> Table:
    """Token counts and columns of figures; `named` says which the best peer is, at the end of a line."""
    headings: Sequence[str] = ["tokens", *columns]
    table = terminal.table(*headings, *([terminal.words("which")] if named else []))
    for tokens in points:
        cells = [str(tokens), *(tables.number(column.get(tokens)) for column in columns.values())]
        table.add_row(*cells, *([named(tokens)] if named else []))
    return table
