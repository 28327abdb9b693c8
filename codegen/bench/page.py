"""docs/performance.md out of a record: what was measured on what, ratios to peers and marks, a table a model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import ToolError
from ..output import replace_whole
from . import check, record, tables
from .record import ModelRecord, Record

FEW_TOKENS = 64
"""Up to so many, a decoding batch, and above, a prefilling one, are averaged apart."""

_PATH_PEERS = ("one_by_one", "torch_eager", "torch_compiled")
_PEERS = ("seed", "flashinfer", "torch_compiled", "torch_compiled_unrounded")
_PICTURE = Path("measured", "latency.png")


def write(record_file: Path, page: Path, paths_file: Path | None = None) -> None:
    """Write the page of a record, and its picture under measured/ beside it. ToolError without matplotlib.

    paths_file: the record that whole paths are taken from, if it is another.
    """
    try:
        from .plot import save
    except ImportError:
        raise ToolError('the picture needs matplotlib: pip install -e ".[bench]"') from None
    found = record.read(record_file)
    save(found, page.parent / _PICTURE)
    paths = None if paths_file is None else (record.read(paths_file), _beside(paths_file, page))
    replace_whole(page, text(found, _beside(record_file, page), paths).encode())


def _beside(record_file: Path, page: Path) -> str:
    return Path(os.path.relpath(record_file, page.parent)).as_posix()


def text(found: Record, record_file: str, paths: tuple[Record, str] | None = None) -> str:
    """The page as Markdown; record_file: the record's path, relative to the page; paths: the record of whole paths and
    its path, if it is another.
    """
    parts = [
        "# Performance",
        f"Generated from [{Path(record_file).name}]({record_file}) by `python build.py draw`; not for editing.",
        _setting(found),
        f"![Latency against token count]({_PICTURE.as_posix()})",
        "## Ratios",
        _RATIOS,
        f"Up to {FEW_TOKENS} tokens:",
        _ratios(found, lambda tokens: tokens <= FEW_TOKENS),
        f"Above {FEW_TOKENS} tokens:",
        _ratios(found, lambda tokens: tokens > FEW_TOKENS),
        *_findings(found),
        *_host(found),
        "## Microseconds",
        "In bold the fastest of what does the work.",
        *(part for name, model in found.models.items() if model.points for part in _model(name, model, found)),
        *_paths(*(paths or (found, ""))),
        *_left_out(found),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _setting(found: Record) -> str:
    """What was measured on what, and how."""
    machine, source, protocol = found.machine, found.source, found.protocol
    changed = ", with changes on top" if source.dirty else ""
    lines = [
        f"Measured on {machine.chip} (sm_{machine.sm}, {machine.multiprocessors} multiprocessors, "
        f"{machine.l2_bytes / 2**20:.0f} MiB of L2 cache), driver {machine.driver}, torch {machine.torch}, "
        f"CUDA {machine.cuda_runtime}; commit {source.commit}{changed}.",
        "",
        f"A CUDA graph holds at least {protocol.pairs} pairs of a small kernel that writes x and the op, launched with "
        "programmatic stream serialization, and weight sets take turns, so that the op's weights come from memory. Its "
        "time, less that of the small kernels alone, divided by the pairs, is the op's: the median of "
        f"{protocol.repeats} rounds in which everything compared takes turns.",
    ]
    if rates := found.rates:
        lines += [
            "",
            f"In the same run a copy within the GPU's memory moved {rates.copy_bytes_per_s / 1e12:.2f} TB/s, bytes "
            f"read and written, and a bf16 GEMM of 8192 x 8192 x 8192 ran at {rates.gemm_flops_per_s / 1e12:.0f} "
            "TFLOP/s. The roofline is the longer of two times: all bytes at the one rate, or all FLOP that the "
            "contract needs at the other. It is no hard limit: x has just been written, and may lie in the cache.",
        ]
    return "\n".join(lines)


_RATIOS = """\
Geometric means over token counts; in brackets the smallest and the largest. Of peers, how many times normgate's time
they take: above 1.00 normgate is faster. The best peer is the fastest at each count, whatever its contract: all but the
seed's design and the unrounded torch.compile round the normed row before the gate, which is less work for the tensor
cores. Of marks, how many times their time normgate takes. The streaming probe reads and writes what the op must, and
computes nothing."""


def _ratios(found: Record, counts: Callable[[int], bool]) -> str:
    """A table of ratios at the token counts that `counts` holds for: a row a model, then all of them together."""
    everything: dict[str, list[float]] = {}
    rows = []
    for name, model in found.models.items():
        row = [name, _shape(model)]
        for heading, ratios in _columns(model, found).items():
            values = [ratio for tokens, ratio in ratios.items() if counts(tokens)]
            everything.setdefault(heading, []).extend(values)
            row.append(_mean(values))
        rows.append(row)
    rows.append(["all", "", *map(_mean, everything.values())])
    return tables.markdown(["model", "shape", *everything], rows, left=2)


def _columns(model: ModelRecord, found: Record) -> dict[str, dict[int, float]]:
    """The ratios of a model, by heading and token count."""
    measured = {name for each in found.models.values() for name in tables.candidates(each)}
    ours = tables.medians(model, "ours")
    columns = {"best peer": tables.quotients(tables.best_peers(model), ours)}
    for peer in _PEERS:
        if peer in measured:
            columns[tables.label(peer)] = tables.ratios(model, peer, "ours")
    columns["normgate / probe"] = tables.ratios(model, "ours", "probe")
    if found.rates:
        columns["normgate / roofline"] = tables.quotients(ours, tables.rooflines(model, found.rates))
    return columns


def _mean(values: list[float]) -> str:
    mean = tables.geometric_mean(values)
    return "-" if mean is None else f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"


def _findings(found: Record) -> Iterator[str]:
    yield "## Where normgate is not the fastest"
    peers, counts = check.faster_peers(found), check.cheaper_counts(found)
    if not peers and not counts:
        yield "Nowhere: no peer takes less time, and no count costs more than the next one, by more than both spreads."
    for what, findings in (
        ("Peers that take less time, by more than the spreads of both:", peers),
        ("Token counts that cost more than the next one measured:", counts),
    ):
        if findings:
            yield what
            rows = []
            for one in findings:
                times = (one.ours_us, one.faster_us, one.ours_us / one.faster_us)
                rows.append([one.model, one.faster, str(one.num_tokens), *map(tables.number, times)])
            yield tables.markdown(["model", "faster", "tokens", "normgate, us", "it, us", "ratio"], rows, left=2)


def _host(found: Record) -> Iterator[str]:
    rows = [
        [name, str(tokens), tables.number(cost.norm_gate_us), tables.number(cost.rms_norm_us)]
        for name, model in found.models.items()
        for tokens, cost in model.host.items()
    ]
    if rows:
        yield "## What a call costs the host"
        yield "Microseconds of an eager call, queued behind a busy GPU, in inference mode."
        headings = ["model", "tokens", "normgate.norm_gate's operator", "torch.nn.functional.rms_norm"]
        yield tables.markdown(headings, rows, left=1)


def _model(name: str, model: ModelRecord, found: Record) -> Iterator[str]:
    yield f"### {name}"
    norm = f"norm order {model.norm_order}" if model.norm_order else "no norm"
    dtypes = f"{model.activation_dtype}, gate weight {model.gate_weight_dtype}, logits {model.logits_dtype}"
    yield f"{_shape(model)}, {dtypes}, {norm}, logits from the {model.logits_from} norm"
    headings, rows = tables.rows(model, found.rates)
    for row, tokens in zip(rows, model.points, strict=True):
        working = {name: model.points[tokens].candidates[name].median_us for name in tables.peers(model, tokens)}
        if "ours" in model.points[tokens].candidates:
            working["ours"] = model.points[tokens].candidates["ours"].median_us
        if working:
            column = headings.index(tables.label(min(working, key=lambda name: working[name])))
            row[column] = f"**{row[column]}**"
    yield tables.markdown(headings, rows)


_PATHS = f"""\
Residual add where the model has one, RMSNorm, gate, scoring and choice of experts, as `torch.ops.normgate.route`
dispatches them. "Over norm + gate" is what that takes more than `norm_gate` on x alone, in microseconds, measured in
the same rounds. One by one: our own kernels for add and norm, gate, and selection, the faster of two gates up to
{FEW_TOKENS} tokens, chained by programmatic dependent launch. Apart: the same with norm and gate in one kernel, where
that is not what is dispatched. The gate of one by one and of torch reads the rounded row. The last column is the
fastest of these others over normgate."""


def _paths(found: Record, record_file: str) -> Iterator[str]:
    """The section of whole paths; record_file: where they were recorded, if apart from the rest."""
    measured = {name: model.path for name, model in found.models.items() if model.path}
    if not measured:
        return
    yield "## The whole path"
    if record_file:
        changed = ", with changes on top" if found.source.dirty else ""
        source = f"[{Path(record_file).name}]({record_file}), commit {found.source.commit}{changed}"
        yield f"From {source}, on {found.machine.chip}, by the same protocol."
    yield _PATHS
    yield f"Up to {FEW_TOKENS} tokens, geometric means; in brackets the smallest and the largest:"
    rows = []
    for name, path in measured.items():
        ours = {tokens: us for tokens, us in tables.medians(path, "ours").items() if tokens <= FEW_TOKENS}
        over = [us for tokens, us in tables.over_norm_gate(path).items() if tokens in ours]
        ratios = [tables.quotients(tables.medians(path, peer), ours) for peer in _PATH_PEERS]
        most = f"{min(over):.2f} to {max(over):.2f}" if over else "-"
        rows.append([name, path.stages, most, *(_mean(list(of_peer.values())) for of_peer in ratios)])
    peers = [f"{tables.path_label(peer)} / normgate" for peer in _PATH_PEERS]
    yield tables.markdown(["model", "path", "over norm + gate, us", *peers], rows, left=2)
    for name, path in measured.items():
        yield f"### {name}, the whole path"
        yield f"{_shape(found.models[name])}: {path.stages}"
        headings, cells = tables.path_rows(path)
        for row, tokens in zip(cells, path.points, strict=True):
            point = path.points[tokens].candidates
            ways = [way for way in ("ours", *tables.path_peers(path, tokens)) if way in point]
            if ways:
                fastest = min(ways, key=lambda way: point[way].median_us)
                column = headings.index(tables.path_label(fastest))
                row[column] = f"**{row[column]}**"
        yield tables.markdown(headings, cells)


def _left_out(found: Record) -> Iterator[str]:
    reasons = Counter(
        (tables.label(name), reason)
        for model in found.models.values()
        for point in model.points.values()
        for name, reason in point.left_out.items()
    )
    reasons.update(
        (f"{tables.path_label(name)} (whole path)", reason)
        for model in found.models.values()
        if model.path
        for point in model.path.points.values()
        for name, reason in point.left_out.items()
    )
    if reasons:
        yield "## What was left out"
        yield "\n".join(f"- {name}, at {points} points: {reason}" for (name, reason), points in reasons.items())


def _shape(model: ModelRecord) -> str:
    return f"{model.hidden_size} x {model.num_experts}"
