"""The benchmark as one call: agreement for everything, then timing, the record written point by point."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..errors import CheckFailed, ToolError
from ..spec import RouterSpec
from . import agreement, ahead, chip, flashinfer, host, peers, record, tables
from .agreement import Agreement
from .chain import Candidate, Chain, Measured, Outputs, Weights
from .inputs import dtype, random_rows, random_weights
from .native import BenchLibrary, Library
from .peers import BenchFunctions
from .record import Measurement, Point, ProtocolRecord, Record
from .rotation import Protocol, rotation

# torch leaves what this file calls of it without annotations.
_cuda: Any = torch.cuda

_AHEAD_SHARE = 0.3  # of the time budget; what is not compiled ahead by then is compiled where it is asked for
_AGREEMENT_SHARE = 0.6  # of the time budget; points not agreed upon by then are not timed
_PROBE_REPEATS = 7  # rounds that choose the probe's geometry


@dataclass(frozen=True)
class Model:
    """A model to benchmark: its spec, the name of its kernel, and its benchmark package."""

    spec: RouterSpec
    kernel: str
    bench: BenchLibrary
    functions: BenchFunctions = field(default_factory=BenchFunctions)


@dataclass
class _Work:
    """One point on its way: candidates that agree, how well, and who was left out and why."""

    model: Model
    num_tokens: int
    candidates: list[Candidate] = field(default_factory=list)
    agreements: dict[str, Agreement] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def run(
    models: Sequence[Model],
    tokens: Sequence[int],
    *,
    package: ModuleType,
    library: Library,
    out: Path,
    repository: Path,
    budget_s: float,
    unrounded_tokens: Collection[int],
    candidates: tuple[str, ...] = peers.NAMES,
    protocol: Protocol | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Record:
    """Benchmark `models` at each of `tokens` and write the record to `out`.

    package: the imported normgate package, library: its libnormgate.so; candidates: names out of
    `peers.NAMES`, of which `peers.UNROUNDED`, the slowest, is asked for at unrounded_tokens only;
    budget_s: no point is begun after that many seconds; resume: keep the points that `out` already has.

    Raises CheckFailed when something of ours gives a wrong result, before anything is timed; a peer that
    cannot run or does not agree is left out with the reason. ToolError: no GPU, or `out` cannot be resumed.
    """
    if not torch.cuda.is_available():
        raise ToolError("the benchmark needs a GPU and a CUDA build of torch; with both: python build.py bench")
    begin = time.monotonic()
    names = peers.chosen(candidates)
    console = console or Console()
    protocol = protocol or Protocol()
    written = _begin(out, repository, protocol, resume)
    done = {(name, count) for name, model in written.models.items() for count in model.points}
    todo = [_Work(model, count) for model in models for count in tokens if (model.spec.name, count) not in done]
    for work in todo:
        if peers.UNROUNDED in names and work.num_tokens not in unrounded_tokens:
            work.left_out[peers.UNROUNDED] = "not asked for at this count"
    _compile_ahead(todo, names, begin + _AHEAD_SHARE * budget_s, console)
    weights = {model.spec.name: weight_sets(model.spec, written.machine.l2_bytes, protocol) for model in models}

    wrong: list[str] = []
    agreed: list[_Work] = []
    torch_peers = {model.spec.name: _torch_peers(model.spec, names) for model in models}
    with progress(console, "agreement", len(todo)) as step:
        for work in todo:
            if time.monotonic() - begin > _AGREEMENT_SHARE * budget_s:
                break
            spec = work.model.spec
            step(f"{spec.name}, {work.num_tokens} tokens")
            asked = [*_own(work.model, library, names, work.num_tokens, written.machine.sm)]
            asked += [peer for peer in torch_peers[spec.name] if peer.name not in work.left_out]
            if "flashinfer" in names:
                asked.append(flashinfer.candidate(spec, work.num_tokens, written.machine.sm))
            wrong += _agree(work, asked, chain_of(work.model.bench, spec, work.num_tokens, weights[spec.name]), package)
            agreed.append(work)
    if wrong:
        raise CheckFailed("\n".join(wrong))
    loaded, graphs = ahead.from_cache()
    if graphs:
        console.print(f"torch.compile: {loaded} of {graphs} graphs were compiled ahead")

    if written.rates is None:
        written = written.model_copy(update={"rates": chip.measure(written.machine.l2_bytes)})
    timed = 0
    with progress(console, "timing", len(agreed)) as step:
        for work in agreed:
            if time.monotonic() - begin > budget_s:
                break
            spec = work.model.spec
            step(f"{spec.name}, {work.num_tokens} tokens")
            measured = _measure(work, chain_of(work.model.bench, spec, work.num_tokens, weights[spec.name]), protocol)
            written = written.with_point(spec, work.num_tokens, _point(work, measured))
            if not written.models[spec.name].host:
                written = written.with_host(spec.name, host.measure(spec, weights[spec.name][0]))
            record.write(written, out)
            timed += 1
    for model in models:
        if model.spec.name in written.models:
            console.print(_table(written, model.spec.name))
    if timed < len(todo):
        console.print(
            f"{len(todo) - timed} of {len(todo)} points were not begun within {budget_s:g} s: resume for them"
        )
    return written


def _begin(out: Path, repository: Path, protocol: Protocol, resume: bool) -> Record:
    """An empty record of this machine and commit, or the one to go on with."""
    fresh = Record(
        verb="bench",
        machine=record.machine(),
        source=record.source(repository),
        protocol=ProtocolRecord.of(protocol),
    )
    if not resume or not out.exists():
        return fresh
    before = record.read(out)
    if not fresh.continues(before):
        raise ToolError(f"{out} is of another machine, commit or protocol; name another file: --record FILE")
    return before


def _compile_ahead(todo: Sequence[_Work], names: tuple[str, ...], until: float, console: Console) -> None:
    """Have what torch.compile is asked for compiled by processes of its own, until time.monotonic() is `until`."""
    jobs = [
        ahead.Job(work.model.spec, peer, work.num_tokens)
        for work in todo
        for peer in peers.COMPILED
        if peer in names and peer not in work.left_out
    ]
    if not jobs:
        return
    processes = ahead.processes(len(jobs))
    with progress(console, "torch.compile", len(jobs)) as step:
        step(f"{processes} processes")
        for job in ahead.compiled(jobs, processes):
            step(f"{job.spec.name}, {job.num_tokens} tokens")
            if time.monotonic() > until:
                break


def weight_sets(spec: RouterSpec, l2_bytes: int, protocol: Protocol) -> list[Weights]:
    """As many weight sets as one token needs to find them cold: more tokens need fewer."""
    first = random_weights(spec)
    count = rotation(first.bytes, 0, l2_bytes, protocol).weight_sets
    return [first, *(random_weights(spec) for _ in range(count - 1))]


def chain_of(bench: BenchLibrary, spec: RouterSpec, num_tokens: int, weights: Sequence[Weights]) -> Chain:
    """A chain of random rows, for one spec and token count."""
    sources = [random_rows(spec, num_tokens) for _ in range(2)]
    normed_x = torch.empty_like(sources[0]) if spec.norm else None
    logits = torch.empty((num_tokens, spec.num_experts), dtype=dtype(spec.logits_dtype), device="cuda")
    return Chain(bench, weights, sources, Outputs(normed_x, logits))


def _torch_peers(spec: RouterSpec, names: tuple[str, ...]) -> list[Candidate]:
    return [make(spec) for name, make in peers.TORCH.items() if name in names]


def _own(model: Model, library: Library, names: tuple[str, ...], num_tokens: int, sm: int) -> Iterator[Candidate]:
    """The candidates built from this repository that exist at this token count; all of the probe's."""
    spec, bench, functions = model.spec, model.bench, model.functions
    if "ours" in names:
        yield peers.ours(spec, library, model.kernel, sm, num_tokens)
    if "probe" in names:
        yield from peers.probes(spec, bench)
    if "empty" in names:
        yield peers.empty(bench)
    for name, make in (("seed", peers.seed), ("norm_then_gemv", peers.norm_then_gemv)):
        if name in names and (found := make(spec, bench, functions, num_tokens)):
            yield found


def _agree(work: _Work, asked: Sequence[Candidate], chain: Chain, package: ModuleType) -> list[str]:
    """Sort the candidates into `work`; what is wrong with ours, a line each."""
    spec = work.model.spec
    right = agreement.expected(spec, package.reference, *agreement.last_inputs(chain))
    wrong = []
    for candidate in asked:
        try:
            found = agreement.agree(candidate, chain, spec, right)
        except Exception as error:
            if candidate.ours:
                raise
            found = Agreement(problem=_in_short(error))
        if not found.problem:
            work.candidates.append(candidate)
            work.agreements[candidate.name] = found
        elif candidate.ours:
            what = f"{candidate.name} ({candidate.variant})"
            wrong.append(f"{spec.name}, {work.num_tokens} tokens, {what}: {found.problem}")
        else:
            work.left_out[candidate.name] = found.problem
    return wrong


def _measure(work: _Work, chain: Chain, protocol: Protocol) -> Measured:
    """Time the candidates of `work`, the probe in its fastest geometry only."""
    probes = [candidate for candidate in work.candidates if candidate.checks == "copy"]
    if probes:
        tried = chain.measure(probes, replace(protocol, repeats=_PROBE_REPEATS)).timings
        fastest = min(probes, key=lambda probe: tried[probe.name].median_us)
        others = [candidate for candidate in work.candidates if candidate.checks != "copy"]
        work.candidates = [*others, replace(fastest, name="probe")]
    return chain.measure(work.candidates, protocol)


def _point(work: _Work, measured: Measured) -> Point:
    measurements = {}
    for candidate in work.candidates:
        timing = measured.timings[candidate.name]
        found = work.agreements.get(candidate.name, Agreement())
        measurements[candidate.name] = Measurement(
            median_us=round(timing.median_us, 4),
            spread_us=round(timing.spread_us, 4),
            error=found.error,
            normed_ulps=found.normed_ulps,
            variant=candidate.variant,
        )
    turn = measured.rotation
    return Point(
        pairs=turn.pairs,
        weight_sets=turn.weight_sets,
        cold=turn.cold,
        candidates=measurements,
        left_out=work.left_out,
    )


def _in_short(error: Exception) -> str:
    """Type and first line of an error, without paths: it goes into the record."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {re.sub(r'/[^ :,]+/', '', first)[:160]}"


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Any]:
    """A bar, and the function that names the next of `total` steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        begun = -1

        def step(text: str) -> None:
            nonlocal begun
            begun += 1
            progress.update(task, completed=begun, description=f"{what}: {text}")

        yield step


def _table(written: Record, name: str) -> Table:
    model = written.models[name]
    table = Table(title=f"{name}, {model.hidden_size} x {model.num_experts}, microseconds on {written.machine.chip}")
    headings, rows = tables.rows(model, written.rates)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
