"""A record as numbers and text: medians, ratios to a mark, geometric means, Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from .record import ChipRates, ModelRecord, PathRecord
from .roofline import roofline_us

LABELS = {
    "ours": "normgate",
    "probe": "streaming probe",
    "empty": "empty kernel",
    "seed": "the seed's design",
    "norm_then_gemv": "norm kernel + GEMV",
    "flashinfer": "FlashInfer",
    "torch_eager": "torch eager",
    "torch_compiled": "torch.compile",
    "torch_compiled_unrounded": "torch.compile, unrounded",
}
"""What tables and plots call the candidates, in their order."""

PATH_LABELS = {
    "ours": "normgate route",
    "norm_gate": "norm + gate",
    "one_by_one": "one by one",
    "apart": "apart",
    "torch_eager": "torch eager",
    "torch_compiled": "torch.compile",
}
"""The same for whole paths."""

MARKS = ("probe", "empty")
"""Candidates that do not do the work, so that no ratio says whether ours is the faster way."""

ROOFLINE = "roofline"
"""What tables and plots call the roofline: no candidate, but drawn and listed beside them."""


def label(candidate: str) -> str:
    """The candidate's name for readers."""
    return LABELS.get(candidate, candidate)


def path_label(candidate: str) -> str:
    """The name of a whole path's candidate for readers."""
    return PATH_LABELS.get(candidate, candidate)


def candidates(model: ModelRecord) -> list[str]:
    """Every candidate that a model has been measured with, in the order of LABELS, others after them."""
    found = {name for point in model.points.values() for name in point.candidates}
    return [name for name in LABELS if name in found] + sorted(found - LABELS.keys())


def medians(model: ModelRecord | PathRecord, candidate: str) -> dict[int, float]:
    """A candidate's medians by token count, ascending; counts where it was not measured are left out."""
    return {
        tokens: point.candidates[candidate].median_us
        for tokens, point in sorted(model.points.items())
        if candidate in point.candidates
    }


def ratios(model: ModelRecord | PathRecord, candidate: str, base: str) -> dict[int, float]:
    """`candidate`'s median over `base`'s at each token count that has both; above 1 the base is faster."""
    return quotients(medians(model, candidate), medians(model, base))


def quotients(times: dict[int, float], base: dict[int, float]) -> dict[int, float]:
    """One over the other at each token count that has both, and where the base costs something."""
    return {tokens: time / base[tokens] for tokens, time in times.items() if base.get(tokens, 0.0) > 0}


def rooflines(model: ModelRecord, rates: ChipRates | None) -> dict[int, float]:
    """The roofline by token count, microseconds; empty where the chip's rates were not measured."""
    return {} if rates is None else {tokens: roofline_us(model, tokens, rates) for tokens in sorted(model.points)}


def peers(model: ModelRecord, num_tokens: int) -> list[str]:
    """The candidates at a token count that do the work and are not ours."""
    measured = model.points[num_tokens].candidates
    return [name for name in measured if name in LABELS and name not in ("ours", *MARKS)]


def best_peer(model: ModelRecord, num_tokens: int) -> str | None:
    """The fastest of `peers`; None where there is none."""
    measured = model.points[num_tokens].candidates
    return min(peers(model, num_tokens), key=lambda name: measured[name].median_us, default=None)


def best_peers(model: ModelRecord) -> dict[int, float]:
    """The median of the fastest peer by token count, microseconds."""
    return {
        tokens: point.candidates[peer].median_us
        for tokens, point in sorted(model.points.items())
        if (peer := best_peer(model, tokens))
    }


def path_peers(path: PathRecord, num_tokens: int) -> list[str]:
    """The other ways to the same at a token count: our own kernels launched one after the other, and torch."""
    return [name for name in path.points[num_tokens].candidates if name not in ("ours", "norm_gate")]


def best_path_peers(path: PathRecord) -> dict[int, float]:
    """The median of the fastest of `path_peers` by token count, microseconds."""
    found = {}
    for tokens, point in sorted(path.points.items()):
        if names := path_peers(path, tokens):
            found[tokens] = min(point.candidates[name].median_us for name in names)
    return found


def over_norm_gate(path: PathRecord) -> dict[int, float]:
    """What the whole path takes more than norm and gate alone, by token count, microseconds."""
    alone = medians(path, "norm_gate")
    return {tokens: us - alone[tokens] for tokens, us in medians(path, "ours").items() if tokens in alone}


def geometric_mean(values: Iterable[float]) -> float | None:
    """None for no values; each must be above 0."""
    found = list(values)
    return statistics.geometric_mean(found) if found else None


def rows(model: ModelRecord, rates: ChipRates | None) -> tuple[list[str], list[list[str]]]:
    """A model as a table: headings, and a row for each token count, "-" where nothing was measured.

    Microseconds of each candidate and the roofline; then normgate over probe and roofline, and best peer over normgate.
    """
    ours, roofline = medians(model, "ours"), rooflines(model, rates)
    columns = {label(name): medians(model, name) for name in candidates(model)}
    if roofline:
        columns[ROOFLINE] = roofline
    columns["normgate / probe"] = ratios(model, "ours", "probe")
    if roofline:
        columns["normgate / roofline"] = quotients(ours, roofline)
    columns["best peer / normgate"] = quotients(best_peers(model), ours)
    cells = [[str(tokens), *(number(column.get(tokens)) for column in columns.values())] for tokens in model.points]
    return ["tokens", *columns], cells


def path_rows(path: PathRecord) -> tuple[list[str], list[list[str]]]:
    """A whole path as a table, as `rows`: microseconds of each way there, and what ours takes over norm and gate."""
    ours = medians(path, "ours")
    columns = {PATH_LABELS["ours"]: ours, "over norm + gate": over_norm_gate(path)}
    columns |= {name: medians(path, key) for key, name in PATH_LABELS.items() if key not in ("ours", "norm_gate")}
    columns["best other / normgate"] = quotients(best_path_peers(path), ours)
    cells = [[str(tokens), *(number(column.get(tokens)) for column in columns.values())] for tokens in path.points]
    return ["tokens", *columns], cells


def number(value: float | None) -> str:
    """Two digits behind the point, "-" for none."""
    return "-" if value is None else f"{value:.2f}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 0) -> str:
    """A Markdown table; the first `left` columns are text, the others numbers."""
    align = ["---" if column < left else "---:" for column in range(len(headings))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, align, *rows))
