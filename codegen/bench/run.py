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

from .. import terminal
from ..errors import CheckFailed, ToolError
from ..protocol import Protocol, ProtocolRecord
from ..spec import RouterSpec
from . import agreement, ahead, chip, flashinfer, host, path_agreement, path_inputs, paths, peers, record
from .agreement import Agreement
from .chain import Candidate, Chain, Measured, Outputs, Weights
from .inputs import random_chain, random_weights
from .native import BenchLibrary, Library, PathArgs
from .peers import BenchFunctions
from .record import Measurement, PathRecord, Point, Record
from .rotation import rotation

# torch leaves what this file calls of it without annotations.
_cuda: Any = torch.cuda

_AHEAD_SHARE = 0.3  # of the time budget; what is not compiled ahead by then is compiled where it is asked for
_AGREEMENT_SHARE = 0.6  # of the time budget; points not agreed upon by then are not timed
_CHOOSING_REPEATS = 7  # rounds that choose the fastest of several ways


@dataclass(frozen=True)
class Model:
    """A model to benchmark: its spec, the name of its kernel, its benchmark package, and the name of the kernel of its
    whole path, "" where that is no more than norm and gate.
    """

    spec: RouterSpec
    kernel: str
    bench: BenchLibrary
    functions: BenchFunctions = field(default_factory=BenchFunctions)
    path_kernel: str = ""


@dataclass
class _Work:
    """One point on its way: candidates that agree, how well, and who was left out and why.

    path: of a whole path, what it takes and gives beside the gate's.
    """

    model: Model
    num_tokens: int
    whole: bool = False
    path: PathArgs | None = None
    candidates: list[Candidate] = field(default_factory=list)
    agreements: dict[str, Agreement] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.model.spec.name}{', whole path' * self.whole}, {self.num_tokens} tokens"


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
    path_tokens: Sequence[int] = (),
    path_candidates: tuple[str, ...] = peers.PATH_NAMES,
    protocol: Protocol | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Record:
    """Benchmark `models` at each of `tokens`, whole paths at each of `path_tokens`, and write the record to `out`.

    package: the imported normgate package, library: its libnormgate.so; candidates: names out of `peers.NAMES`, of
    which `peers.UNROUNDED`, the slowest, is asked for at unrounded_tokens only; path_candidates: names out of
    `peers.PATH_NAMES`; budget_s: no point is begun after that many seconds; resume: keep the points that `out` has.

    Raises CheckFailed when something of ours gives a wrong result, before anything is timed; a peer that
    cannot run or does not agree is left out with the reason. ToolError: no GPU, or `out` cannot be resumed.
    """
    if not torch.cuda.is_available():
        raise ToolError("the benchmark needs a GPU and a CUDA build of torch; with both: python build.py bench")
    begin = time.monotonic()
    names, path_names = peers.chosen(candidates), peers.chosen(path_candidates, peers.PATH_NAMES)
    console = console or Console()
    protocol = protocol or Protocol()
    written = _begin(out, repository, protocol, resume)
    done = {(name, count) for name, model in written.models.items() for count in model.points}
    todo = [_Work(model, count) for model in models for count in tokens if (model.spec.name, count) not in done]
    for work in todo:
        if peers.UNROUNDED in names and work.num_tokens not in unrounded_tokens:
            work.left_out[peers.UNROUNDED] = "not asked for at this count"
    done_paths = {(name, count) for name, model in written.models.items() if model.path for count in model.path.points}
    todo += [
        _Work(model, count, whole=True)
        for model in models
        for count in path_tokens
        if model.path_kernel and (model.spec.name, count) not in done_paths
    ]
    _compile_ahead(todo, names, path_names, begin + _AHEAD_SHARE * budget_s, console)
    weights = {model.spec.name: weight_sets(model.spec, written.machine.l2_bytes, protocol) for model in models}

    wrong: list[str] = []
    agreed: list[_Work] = []
    torch_peers = {model.spec.name: _torch_peers(model.spec, names) for model in models}
    torch_paths = {model.spec.name: paths.torch_functions(model.spec, path_names) for model in models}
    with progress(console, "agreement", len(todo)) as step:
        for work in todo:
            if time.monotonic() - begin > _AGREEMENT_SHARE * budget_s:
                break
            spec, sm = work.model.spec, written.machine.sm
            step(work.title)
            if work.whole:
                work.path = path_inputs.path_args(spec, work.num_tokens)
                asked = [*_own_of_path(work, library, package, path_names, sm, work.path)]
                functions = torch_paths[spec.name]
                asked += [paths.torch_candidate(name, functions[name], work.path) for name in functions]
            else:
                asked = [*_own(work.model, library, names, work.num_tokens, sm)]
                asked += [peer for peer in torch_peers[spec.name] if peer.name not in work.left_out]
                if "flashinfer" in names:
                    asked += flashinfer.candidates(spec, work.num_tokens, sm)
            wrong += _agree(work, asked, chain_of(work, weights[spec.name]), package)
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
            step(work.title)
            point = _point(work, _measure(work, chain_of(work, weights[spec.name]), protocol))
            if work.whole:
                path = PathRecord(kernel=work.model.path_kernel, stages=spec.stages)
                written = written.with_path_point(spec, path, work.num_tokens, point)
            else:
                written = written.with_point(spec, work.num_tokens, point)
            if not written.models[spec.name].host:
                written = written.with_host(spec.name, host.measure(spec, weights[spec.name][0]))
            record.write(written, out)
            timed += 1
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


def _compile_ahead(
    todo: Sequence[_Work], names: tuple[str, ...], path_names: tuple[str, ...], until: float, console: Console
) -> None:
    """Have what torch.compile is asked for compiled by processes of its own, until time.monotonic() is `until`."""
    jobs = [
        ahead.Job(work.model.spec, peer, work.num_tokens, work.whole)
        for work in todo
        for peer in (peers.PATH_COMPILED if work.whole else peers.COMPILED)
        if peer in (path_names if work.whole else names) and peer not in work.left_out
    ]
    if not jobs:
        return
    processes = ahead.processes(len(jobs))
    with progress(console, "torch.compile", len(jobs)) as step:
        step(f"{processes} processes")
        for job in ahead.compiled(jobs, processes):
            step(f"{job.spec.name}{', whole path' * job.whole}, {job.num_tokens} tokens")
            if time.monotonic() > until:
                break


def weight_sets(spec: RouterSpec, l2_bytes: int, protocol: Protocol) -> list[Weights]:
    """As many weight sets as one token needs to find them cold: more tokens need fewer."""
    first = random_weights(spec)
    count = rotation(first.bytes, 0, l2_bytes, protocol).weight_sets
    return [first, *(random_weights(spec) for _ in range(count - 1))]


def chain_of(work: _Work, weights: Sequence[Weights]) -> Chain:
    """A chain of random rows for what is to be timed."""
    return random_chain(work.model.bench, work.model.spec, weights, work.num_tokens, work.path)


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


def _own_of_path(
    work: _Work, library: Library, package: ModuleType, names: tuple[str, ...], sm: int, path: PathArgs
) -> Iterator[Candidate]:
    """The same of a whole path; of our own kernels launched one by one all ways."""
    model, num_tokens = work.model, work.num_tokens
    kernels = (model.kernel, model.path_kernel)
    return paths.own(names, model.spec, package, library, model.bench, model.functions, kernels, sm, path, num_tokens)


def _agree(work: _Work, asked: Sequence[Candidate], chain: Chain, package: ModuleType) -> list[str]:
    """Sort the candidates into `work`; what is wrong with ours, a line each."""
    spec = work.model.spec
    right: Outputs | None = None
    right_path: path_agreement.Right | None = None
    wrong = []
    for candidate in asked:
        try:
            if candidate.checks == "path" and work.path is not None:
                right_path = right_path or path_agreement.Right(spec, package, chain, work.path)
                found = path_agreement.agree(candidate, chain, right_path)
            else:
                right = right or agreement.expected(spec, package.reference, *agreement.last_inputs(chain))
                found = agreement.agree(candidate, chain, spec, right)
        except Exception as error:
            if candidate.ours and not candidate.best_of:
                raise
            found = Agreement(problem=_in_short(error))
            if candidate.ours:  # one way of several: a chip may have no place for its clusters
                work.left_out[candidate.name] = found.problem
                continue
        if not found.problem:
            work.candidates.append(candidate)
            work.agreements[candidate.name] = found
        elif candidate.ours:
            wrong.append(f"{work.title}, {candidate.name} ({candidate.variant}): {found.problem}")
        else:
            work.left_out[candidate.best_of or candidate.name] = found.problem
    for served in {candidate.best_of for candidate in work.candidates}:  # by another of its ways
        work.left_out.pop(served, None)
    return wrong


def _measure(work: _Work, chain: Chain, protocol: Protocol) -> Measured:
    """Time the candidates of `work`; of what can be done in several ways, the fastest way only."""
    for name in dict.fromkeys(candidate.best_of for candidate in work.candidates if candidate.best_of):
        ways = [candidate for candidate in work.candidates if candidate.best_of == name]
        tried = chain.measure(ways, replace(protocol, repeats=_CHOOSING_REPEATS)).timings if ways[1:] else {}
        fastest = min(ways, key=lambda way: tried[way.name].median_us if tried else 0.0)
        others = [candidate for candidate in work.candidates if candidate.best_of != name]
        work.candidates = [*others, replace(fastest, name=name, best_of="")]
        work.agreements[name] = work.agreements[fastest.name]
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
    with terminal.bar(console) as progress:
        task = progress.add_task(what, total=total)
        begun = -1

        def step(text: str) -> None:
            nonlocal begun
            begun += 1
            progress.update(task, completed=begun, description=f"{what}: {text}")

        yield step
