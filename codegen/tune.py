"""The `tune` verb: compile what the cost model thinks well of, check it, time it, write it to specs/tuned/.

As in the benchmark, the device with the chip may have no compilers: building and running are two steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from . import cost, naming, output, places, terminal, tuned, variants
from .arch import ARCHS, Arch
from .bench import agreement, path_agreement, path_inputs, paths, peers, record, run, verb
from .bench.agreement import Agreement
from .bench.build import launched_by_name, package_files
from .bench.chain import Candidate, Chain, Timing
from .bench.inputs import random_chain
from .bench.native import BenchLibrary, Library, PathArgs
from .compile import LIBRARY, compile_package
from .errors import BadInput, CheckFailed, ToolError
from .families import FAMILIES, MOST_TOKENS_FUSED, Apart, Variant, ceil_div, parse_served
from .plan import Kernel, Plan, make_plan
from .protocol import Protocol, ProtocolRecord
from .ranges import BOUNDARIES
from .spec import RouterSpec
from .tuned import LAST_ANCHOR, Measurement, Tuned, TunedTable

ANCHORS = (*BOUNDARIES, LAST_ANCHOR)
INDEX = "tune.json"
_OF_EACH_FAMILY = 4  # candidates at least, where so many are legal: the model may be wrong about a family
_OF_ONE_WAVE = 6  # candidates whose CTAs an SM has one of each, for paths that select
_OF_BEFORE = 3  # candidates that a table of before found fastest
_PART = 70  # variants that share a library: more would leave processors idle, each costs a megabyte of CUDA run time


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Built(_Frozen):
    """One kernel: the functions of each of its packages, and the candidates of each token count, by variant name.

    What spills registers is in neither.
    """

    parts: dict[str, dict[str, str]]
    candidates: dict[int, list[str]]


class Index(_Frozen):
    """What `build` left: the SM target, and the kernels by name."""

    sm: int
    kernels: dict[str, Built]


def candidates_at(
    kernel: Kernel, arch: Arch, num_tokens: int, number: int, before: TunedTable | None = None
) -> list[Variant]:
    """The `number` variants that the cost model ranks best, the best of each family, what the plan has now, and what
    a table of before found fastest at this count or the next that it has.
    """
    problem = kernel.problem
    legal = list(variants.candidates(problem, arch, num_tokens))
    ranked = sorted(legal, key=lambda variant: cost.microseconds(problem, arch, variant, num_tokens))
    chosen = ranked[:number]
    for family in FAMILIES:
        chosen += [variant for variant in ranked if variant.family == family][:_OF_EACH_FAMILY]
    if problem.selection:
        # What selects needs more registers than the cost model thinks, so that often one CTA fills an SM.
        one_wave = [v for v in ranked if v.ctas(problem, num_tokens) <= arch.multiprocessors]
        chosen += one_wave[:_OF_ONE_WAVE]
    group = kernel.group_of(arch.sm)
    served_by = group.range_of(num_tokens).variant if group is not None else None
    if served_by is not None and not isinstance(served_by, Apart):
        chosen.append(served_by)
    if before is not None:
        anchor = min((count for count in before.measured if count >= num_tokens), default=num_tokens)
        chosen += [v for _, v in tuned.legal_measured(before, problem, anchor)][:_OF_BEFORE]
    return list(dict.fromkeys(chosen))


def build(
    plan: Plan,
    tokens: Sequence[int],
    sm: int,
    folder: Path,
    *,
    number: int,
    before: Tuned = {},  # noqa: B006  nothing writes to it
    jobs: int | None = None,
    console: Console,
) -> Index:
    """Generate and compile the candidates of each kernel of `plan` under `folder`; objects go beside it.

    before: tables whose fastest variants are candidates again.
    """
    arch = ARCHS[sm]
    wanted: dict[str, dict[int, list[Variant | Apart]]] = {}
    todo: list[tuple[str, str, Plan, RouterSpec]] = []
    for kernel in plan.all_kernels:
        table = before.get((kernel.name, sm))
        counts = counts_of(kernel, tokens)
        at = {count: candidates_at(kernel, arch, count, number, table) for count in counts}
        if kernel in plan.paths and (gates := before.get((naming.kernel_name(kernel.problem.gate_part), sm))):
            for count, ranked in at.items():
                ranked += [variant for variant in _fusing(kernel, gates, count) if variant not in ranked]
        union = sorted({variant for found in at.values() for variant in found}, key=lambda variant: variant.name)
        parts = ceil_div(len(union), _PART)
        apart = {count: _apart(kernel, before, sm, count) for count in counts} if kernel in plan.paths else {}
        wanted[kernel.name] = {count: [*found, *apart.get(count, ())] for count, found in at.items()}
        for index in range(parts):
            own = launched_by_name(kernel.problem, kernel.specs[0], union[index::parts], arch)
            alone = Plan((own,)) if not apart else Plan((), (own,))
            todo.append((kernel.name, f"{kernel.name}.{index}", alone, kernel.specs[0]))
        if apart:
            aparts = list(dict.fromkeys(variant for found in apart.values() for variant in found))
            inner = launched_by_name(kernel.problem.gate_part, kernel.specs[0], [v.inner for v in aparts], arch)
            own = launched_by_name(kernel.problem, kernel.specs[0], aparts, arch)
            todo.append((kernel.name, f"{kernel.name}.{parts}", Plan((inner,), (own,)), kernel.specs[0]))
    functions: dict[str, dict[str, dict[str, str]]] = {name: {} for name in wanted}
    with output.os_errors(folder):
        (folder / INDEX).unlink(missing_ok=True)  # until the last part is there, nothing whole is

    def compile_part(name: str, part: str, of: Plan, spec: RouterSpec) -> dict[str, str]:
        output.write(package_files(spec, of, arch, marks=part.endswith(".0")), folder / part)
        objects = folder.with_name(f"{folder.name}-objects") / part
        report = compile_package(folder / part, sms=(sm,), build_dir=objects, jobs=1)
        spilling = {row.usage.function for row in report.rows if row.usage.spill or row.usage.stack}
        kernel = next(each for each in of.all_kernels if each.name == name)
        names = {v.name: naming.function_name(name, v.name, sm) for v in kernel.groups[0].served_by}
        return {variant: function for variant, function in names.items() if function not in spilling}

    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool, run.progress(console, "building", len(todo)) as step:
        futures = {pool.submit(compile_part, *part): part for part in todo}
        step("")
        for future in as_completed(futures):
            name, part, *_ = futures[future]
            functions[name][part] = future.result()
            step(part)
    found = {}
    for name, parts_of in functions.items():
        compiled = {variant for part in parts_of.values() for variant in part}
        at_count = {count: [v.name for v in ranked if v.name in compiled] for count, ranked in wanted[name].items()}
        found[name] = Built(parts=dict(sorted(parts_of.items())), candidates=at_count)
    built = Index(sm=sm, kernels=found)
    output.replace_whole(folder / INDEX, (built.model_dump_json(indent=1) + "\n").encode())
    return built


def counts_of(kernel: Kernel, tokens: Sequence[int]) -> list[int]:
    """The counts at which there is something to choose: beyond some, a path's stages are always apart."""
    is_path = kernel.problem != kernel.problem.gate_part
    return [count for count in tokens if not is_path or count <= MOST_TOKENS_FUSED]


def _fusing(path: Kernel, gates: TunedTable, num_tokens: int) -> list[Variant]:
    """What a gate's table found fastest of those that can take the path's other stages into their launch."""
    at = min((count for count in gates.measured if count >= num_tokens), default=num_tokens)
    return [variant for _, variant in tuned.legal_measured(gates, path.problem, at)][:_OF_BEFORE]


def _chosen(plan: Plan, what: str) -> Plan:
    """The kernels to tune: all, only the gates, or only the whole paths."""
    return plan if what == "all" else Plan(plan.kernels) if what == "gates" else Plan((), plan.paths)


def _apart(path: Kernel, gates: Tuned, sm: int, num_tokens: int) -> list[Apart]:
    """A path's stages apart, around what serves its gate by the gate's own table."""
    gate = make_plan(path.specs[:1], gates).kernels[0]
    group = gate.group_of(sm)
    inner = group.range_of(num_tokens).variant if group is not None else None
    return [] if inner is None or isinstance(inner, Apart) else [Apart(inner)]


def built_before(folder: Path) -> Index:
    """What an earlier `build` left in `folder`. ToolError when there is nothing whole."""
    mend = "build it where compilers are: python build.py tune --build-only --sm N"
    try:
        index = Index.model_validate_json((folder / INDEX).read_bytes())
    except (OSError, ValidationError):
        raise ToolError(f"{folder / INDEX}: no candidates were built there; {mend}") from None
    for part in (part for built in index.kernels.values() for part in built.parts):
        if not (folder / part / LIBRARY).is_file():
            raise ToolError(f"{folder / part / LIBRARY}: missing; {mend}")
    return index


def tune(
    specs: Sequence[RouterSpec],
    tokens: Sequence[int],
    *,
    out: Path,
    tuned_dir: Path,
    number: int,
    budget_s: float,
    sm: int | None,
    what: str = "all",
    build_only: bool,
    no_build: bool,
    jobs: int | None,
    console: Console,
) -> None:
    """See the verb's --help. Raises ToolError without a GPU (unless build_only), CheckFailed for a wrong result."""
    if not build_only and not torch.cuda.is_available():
        raise ToolError("tuning needs a GPU and a CUDA build of torch; to build for it here: tune --build-only --sm N")
    plan = _chosen(make_plan(specs), what)
    folder = places.build_folder(out) / "tune"
    if no_build:
        index = built_before(folder)
    else:
        before = _tables_of_before(specs, tuned_dir)
        index = build(plan, tokens, verb.target(sm), folder, number=number, before=before, jobs=jobs, console=console)
    if build_only:
        total = sum(len(part) for built in index.kernels.values() for part in built.parts.values())
        console.print(f"{total} candidates are built for sm_{index.sm} in {folder}; on the GPU: tune --no-build")
        return
    if lacking := [kernel.name for kernel in plan.all_kernels if kernel.name not in index.kernels]:
        raise ToolError(f"{folder}: built without {', '.join(lacking)}; build it anew, or name others with --spec")
    package = verb.package_of(out)
    run_all(plan, index, folder, tokens, package=package, tuned_dir=tuned_dir, budget_s=budget_s, console=console)


def _tables_of_before(specs: Sequence[RouterSpec], tuned_dir: Path) -> Tuned:
    try:
        return tuned.load(specs, tuned_dir)
    except BadInput:  # tables of another version are measured anew, from what the cost model says
        return {}


@dataclass(frozen=True)
class _Work:
    """A kernel to tune: the library with the producer; by variant its library and function."""

    kernel: Kernel
    marks: BenchLibrary
    functions: Mapping[str, tuple[Library, str]]

    @property
    def spec(self) -> RouterSpec:
        return self.kernel.specs[0]


def run_all(
    plan: Plan,
    index: Index,
    folder: Path,
    tokens: Sequence[int],
    *,
    package: ModuleType,
    tuned_dir: Path,
    budget_s: float,
    protocol: Protocol | None = None,
    console: Console,
) -> None:
    """Measure each kernel at each count and write its table after each; counts that a table has are kept.

    package: the imported normgate package, for its reference. Where a candidate is wrong, nothing is timed at that
    count, and CheckFailed is raised when the others are done.
    """
    wrong: list[str] = []
    begin, protocol, machine = time.monotonic(), protocol or Protocol(), record.machine()
    tuned_dir.mkdir(parents=True, exist_ok=True)
    left = 0
    total = sum(len(counts_of(kernel, tokens)) for kernel in plan.all_kernels)
    with run.progress(console, "tuning", total) as step:
        for kernel in plan.all_kernels:
            file = tuned_dir / tuned.file_name(kernel.name, index.sm)
            table = _begin(file, kernel.name, index.sm, machine, protocol)
            work = _open(kernel, index.kernels[kernel.name], folder)
            weights = run.weight_sets(work.spec, machine.l2_bytes, protocol)
            for count in counts_of(kernel, tokens):
                step(f"{kernel.name}, {count} tokens")
                if count in table.measured:
                    continue
                if time.monotonic() - begin > budget_s:
                    left += 1
                    continue
                path = path_inputs.path_args(work.spec, count) if kernel in plan.paths else None
                chain = random_chain(work.marks, work.spec, weights, count, path)
                candidates = list(_candidates(work, index, table, count, path))
                if not candidates:
                    continue  # nothing is legal there: the reference serves
                agree = _agreement(chain, work.spec, package, path)
                if problems := _disagreements(candidates, agree):
                    wrong += [f"{work.spec.name}, {count} tokens, {problem}" for problem in problems]
                    continue
                timings = chain.measure(candidates, protocol).timings
                table = table.with_measured(count, {name: _rounded(one) for name, one in timings.items()})
                output.replace_whole(file, table.text().encode())
    for kernel in plan.all_kernels:
        file = tuned_dir / tuned.file_name(kernel.name, index.sm)
        if file.is_file():
            _show(tuned.read(file), console)
    if left:
        console.print(f"{left} counts were not begun within {budget_s:g} s: run again for them")
    if wrong:
        raise CheckFailed("\n".join(wrong))


def _begin(path: Path, kernel: str, sm: int, machine: record.Machine, protocol: Protocol) -> TunedTable:
    """The table in `path` where it can be gone on with, else an empty one."""
    source = record.source(places.home())
    fresh = TunedTable(
        kernel=kernel,
        sm=sm,
        chip=machine.chip,
        driver=machine.driver,
        torch=machine.torch,
        cuda=machine.cuda_runtime,
        commit=source.commit + "-dirty" * source.dirty,
        protocol=ProtocolRecord.of(protocol),
    )
    try:
        before = tuned.read(path) if path.is_file() else fresh
    except BadInput:  # a table of another version is measured anew
        return fresh
    return before if fresh.continues(before) else fresh


def _open(kernel: Kernel, built: Built, folder: Path) -> _Work:
    first, *_ = built.parts
    functions: dict[str, tuple[Library, str]] = {}
    for part, names in built.parts.items():
        library = Library(folder / part / LIBRARY) if part != first else BenchLibrary(folder / part / LIBRARY)
        functions.update({variant: (library, function) for variant, function in names.items()})
    return _Work(kernel, BenchLibrary(folder / first / LIBRARY), functions)


def _candidates(
    work: _Work, index: Index, table: TunedTable, num_tokens: int, path: PathArgs | None
) -> Iterator[Candidate]:
    """What was built for this count (or the nearest), and what won the count before, so that it may go on. path: what a
    whole path takes and gives beside the gate's.
    """
    built = index.kernels[work.kernel.name]
    anchor = min((count for count in built.candidates if count >= num_tokens), default=max(built.candidates))
    names = list(built.candidates[anchor])
    before = {count: at for count, at in table.measured.items() if count < num_tokens}
    if before:
        names.append(tuned.ranges_of(before)[-1].variant)
    for name in dict.fromkeys(names):
        variant = parse_served(name)
        most = variant.max_tokens
        if name in work.functions and (most is None or num_tokens <= most):
            library, function = work.functions[name]
            if path is None:
                yield peers.forced(work.spec, library, function, num_tokens, name=name)
            else:
                yield paths.forced(work.spec, library, function, num_tokens, name=name, path=path)


def _agreement(
    chain: Chain, spec: RouterSpec, package: ModuleType, path: PathArgs | None
) -> Callable[[Candidate], Agreement]:
    """What holds a candidate's result against float64."""
    if path is not None:
        right_path = path_agreement.Right(spec, package, chain, path)
        return lambda candidate: path_agreement.agree(candidate, chain, right_path)
    right = agreement.expected(spec, package.reference, *agreement.last_inputs(chain))
    return lambda candidate: agreement.agree(candidate, chain, spec, right)


def _disagreements(candidates: Sequence[Candidate], agree: Callable[[Candidate], Agreement]) -> list[str]:
    """What is wrong with a candidate's result, a line each."""

    def problem_of(candidate: Candidate) -> str:
        try:
            return agree(candidate).problem
        except RuntimeError as error:  # it could not be launched
            return str(error)

    found = [(candidate.variant, problem_of(candidate)) for candidate in candidates]
    return [f"{variant}: {problem}" for variant, problem in found if problem]


def _rounded(timing: Timing) -> Measurement:
    # Never below 0: behind a producer, an op may cost nothing that can be told from noise.
    return Measurement(median_us=max(0.0, round(timing.median_us, 4)), spread_us=round(timing.spread_us, 4))


def _show(table: TunedTable, console: Console) -> None:
    shown = terminal.table("tokens", "us", "spread", "candidates", terminal.words("serves"))
    for count, at in table.measured.items():
        served = table.range_of(count)
        assert served is not None
        one = at[served.variant]
        shown.add_row(str(count), f"{one.median_us:.2f}", f"{one.spread_us:.2f}", str(len(at)), served.variant)
    terminal.title(console, f"{table.kernel} on {table.chip}, sm_{table.sm}")
    terminal.show(console, shown, "")
