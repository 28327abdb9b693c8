"""A record as text: medians, and ratios to a mark."""

from __future__ import annotations

from .record import ModelRecord, Record

LABELS = {
    "ours": "normgate",
    "probe": "streaming probe",
    "empty": "empty kernel",
    "seed": "the seed's design",
    "norm_then_gemv": "norm kernel + GEMV",
    "torch_eager": "torch eager",
    "torch_compiled": "torch.compile",
    "torch_compiled_unrounded": "torch.compile, unrounded",
}
"""What tables and plots call the candidates, in their order."""

MARKS = ("probe", "empty")
"""Candidates that do not do the work, so that no ratio says whether ours is the faster way."""


def label(candidate: str) -> str:
    """The candidate's name for readers."""
    return LABELS.get(candidate, candidate)


def candidates(model: ModelRecord) -> list[str]:
    """Every candidate that a model has been measured with, in the order of LABELS, others after them."""
    found = {name for point in model.points.values() for name in point.candidates}
    return [name for name in LABELS if name in found] + sorted(found - LABELS.keys())


def medians(model: ModelRecord, candidate: str) -> dict[int, float]:
    """A candidate's medians by token count, ascending; counts where it was not measured are left out."""
    return {
        tokens: point.candidates[candidate].median_us
        for tokens, point in sorted(model.points.items())
        if candidate in point.candidates
    }


def ratios(model: ModelRecord, candidate: str, base: str) -> dict[int, float]:
    """`candidate`'s median over `base`'s at each token count that has both; above 1 the base is faster."""
    mark = medians(model, base)
    return {
        tokens: time / mark[tokens] for tokens, time in medians(model, candidate).items() if mark.get(tokens, 0.0) > 0
    }


def best_peer(model: ModelRecord, num_tokens: int) -> str | None:
    """The fastest candidate at a token count that does the work and is not ours; None where there is none."""
    measured = model.points[num_tokens].candidates
    peers = [name for name in measured if name in LABELS and name not in ("ours", *MARKS)]
    return min(peers, key=lambda name: measured[name].median_us, default=None)


def rows(model: ModelRecord) -> list[tuple[int, list[str]]]:
    """By tokens: medians of `candidates(model)` in microseconds, then ours over the probe, "-" for none."""
    to_probe = ratios(model, "ours", "probe")
    found = []
    for tokens, point in sorted(model.points.items()):
        times = [point.candidates[name].median_us if name in point.candidates else None for name in candidates(model)]
        found.append((tokens, ["-" if value is None else f"{value:.2f}" for value in (*times, to_probe.get(tokens))]))
    return found


def markdown(model: ModelRecord) -> str:
    """`rows` as a Markdown table."""
    head = ["tokens", *map(label, candidates(model)), "normgate / probe"]
    lines = [_row(head), _row(["---:"] * len(head))]
    lines += [_row([str(tokens), *cells]) for tokens, cells in rows(model)]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(record: Record) -> str:
    """A whole record as a Markdown page: what ran where, then a table a model, microseconds an op."""
    machine, source = record.machine, record.source
    dirty = ", with changes on top" if source.dirty else ""
    lines = [
        f"# `{record.verb}` on {machine.chip}",
        "",
        "Medians, microseconds an op in the chain protocol: behind a producer, cold weights, in a CUDA graph, less the",
        "producers alone. Written by `python build.py draw`; not for editing.",
        "",
        f"Driver {machine.driver}, torch {machine.torch}, CUDA {machine.cuda_runtime}, commit {source.commit}{dirty}.",
        "",
    ]
    for name, model in record.models.items():
        dtypes = f"{model.activation_dtype}, gate weight {model.gate_weight_dtype}, {model.logits_from}"
        lines += [f"## {name}", "", f"{model.hidden_size} x {model.num_experts}, {dtypes}", "", markdown(model)]
    return "\n".join(lines)
