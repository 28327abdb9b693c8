"""The benchmark's own kernels, a package a model: the marks, the seed's design, a path's stages apart.

The device with the chip may have no compilers, so building and running are two steps: an index beside the
packages says what was built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from .. import __version__, cost, manifest, naming, output, places, render, tuned
from ..arch import ARCHS, Arch
from ..compile import LIBRARY, compile_package
from ..errors import ToolError
from ..families import Apart, Gemv, Variant, ceil_div
from ..plan import Group, Kernel, Plan, make_plan
from ..problem import Problem
from ..ranges import Range
from ..spec import RouterSpec
from ..variants import candidates
from .peers import SEED_THREADS, SEED_TOKENS, BenchFunctions, seed_allows
from .probe import kernel_names, template_values

INDEX = "bench.json"
_FEW_TOKENS = 64
_WAYS_OF_FEW = 2  # in which a gate alone is tried up to there; beyond, families are far apart


class Built(BaseModel):
    """One model's benchmark package: its folder's name, and the functions in it by token count."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    folder: str
    seed: dict[int, str]
    row_norm: bool
    gate_gemv: dict[int, str]
    apart: dict[int, str] = {}
    after_norm: dict[int, list[str]] = {}

    @property
    def functions(self) -> BenchFunctions:
        return BenchFunctions(self.seed, self.row_norm, self.gate_gemv, self.apart, self.after_norm)


class Index(BaseModel):
    """What `build` left: the SM target, and the packages by model."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    sm: int
    models: dict[str, Built]


def build(
    specs: Sequence[RouterSpec],
    tokens: Sequence[int],
    path_tokens: Sequence[int],
    sm: int,
    folder: Path,
    *,
    jobs: int | None = None,
    console: Console | None = None,
) -> Index:
    """Generate and compile a package for each spec under `folder`, for the target `sm` and these token counts.

    path_tokens: where whole paths are timed.
    """
    arch, found = ARCHS[sm], {}
    with output.os_errors(folder):
        (folder / INDEX).unlink(missing_ok=True)  # until the last package is there, nothing whole is
    for spec in specs:
        plan, built = _plan(spec, tokens, path_tokens, arch)
        output.write(package_files(spec, plan, arch), folder / spec.name)
        compile_package(
            folder / spec.name, sms=(sm,), build_dir=folder / f"{spec.name}.build", jobs=jobs, console=console
        )
        found[spec.name] = built
    index = Index(sm=sm, models=found)
    output.replace_whole(folder / INDEX, (index.model_dump_json(indent=1) + "\n").encode())
    return index


def built_before(folder: Path) -> Index:
    """What an earlier `build` left in `folder`. ToolError when there is nothing whole."""
    mend = "build it where compilers are: python build.py bench --build-only --sm N"
    try:
        index = Index.model_validate_json((folder / INDEX).read_bytes())
    except (OSError, ValidationError):
        raise ToolError(f"{folder / INDEX}: no benchmark was built there; {mend}") from None
    for built in index.models.values():
        if not (folder / built.folder / LIBRARY).is_file():
            raise ToolError(f"{folder / built.folder / LIBRARY}: missing; {mend}")
    return index


def _plan(spec: RouterSpec, tokens: Sequence[int], path_tokens: Sequence[int], arch: Arch) -> tuple[Plan, Built]:
    problem = Problem.of(spec).gate_part
    gate_alone = dataclasses.replace(problem, norm_order="", logits_from="unrounded")
    wanted: dict[Problem, list[Variant | Apart]] = {}

    def function(of: Problem, variant: Variant | Apart) -> str:
        wanted.setdefault(of, []).append(variant)
        return naming.function_name(naming.kernel_name(of), variant.name, arch.sm)

    seeds: dict[int, Variant] = {}
    gemvs: dict[int, Variant] = {}
    for count in sorted(set(tokens)):
        if count <= SEED_TOKENS and seed_allows(spec):
            chunks = ceil_div(spec.hidden_size, 8 * SEED_THREADS)
            seeds[count] = Gemv(count, 1, SEED_THREADS // 32, chunks, early_weights=False)
        legal = [variant for variant in candidates(gate_alone, arch, count) if isinstance(variant, Gemv)]
        if legal and problem.has_norm:
            gemvs[count] = min(legal, key=lambda variant, n=count: cost.microseconds(gate_alone, arch, variant, n))  # type: ignore[misc]
    seed_problem = dataclasses.replace(problem, logits_from="unrounded")
    built = Built(
        folder=spec.name,
        seed={count: function(seed_problem, variant) for count, variant in seeds.items()},
        row_norm=problem.has_norm,
        gate_gemv={count: function(gate_alone, variant) for count, variant in gemvs.items()},
        apart=_apart(spec, path_tokens, arch, function),
        after_norm=_after_norm(spec, path_tokens, arch, function),
    )
    kernels = [launched_by_name(of, spec, variants, arch) for of, variants in wanted.items()]
    gates = tuple(kernel for kernel in kernels if kernel.problem == kernel.problem.gate_part)
    return Plan(gates, tuple(kernel for kernel in kernels if kernel not in gates)), built


_Function = Callable[[Problem, Variant | Apart], str]
"""Has a variant built; its name."""


def _apart(spec: RouterSpec, tokens: Sequence[int], arch: Arch, function: _Function) -> dict[int, str]:
    """The whole path by token count, its other stages in launches around the gate's kernel as it is dispatched."""
    path = Problem.of(spec)
    if path == path.gate_part or not tokens:
        return {}
    group = make_plan([spec], tuned.load([spec], places.tuned_folder())).kernel_of(spec.name).group_of(arch.sm)
    found: dict[int, str] = {}
    if group is None:
        return found
    for count in sorted(set(tokens)):
        inner = group.range_of(count).variant
        if inner is not None and not isinstance(inner, Apart):
            function(path.gate_part, inner)
            found[count] = function(path, Apart(inner))
    return found


def _after_norm(spec: RouterSpec, tokens: Sequence[int], arch: Arch, function: _Function) -> dict[int, list[str]]:
    """Gate and selection in launches of their own, for rows that a norm kernel has written, by token count: with the
    gate's best variants, by the cost model, of the best families.
    """
    path = Problem.of(spec)
    if path == path.gate_part or not path.has_norm:
        return {}
    after = dataclasses.replace(path, residual="", norm_order="", logits_from="unrounded")
    found = {}
    for count in sorted(set(tokens)):
        best: dict[str, tuple[float, Variant]] = {}
        for variant in candidates(after.gate_part, arch, count):
            us = cost.microseconds(after.gate_part, arch, variant, count)
            if variant.family not in best or us < best[variant.family][0]:
                best[variant.family] = (us, variant)
        ranked = sorted(best.values(), key=lambda timed: timed[0])
        ways = _WAYS_OF_FEW if count <= _FEW_TOKENS else 1
        found[count] = [_with_selection(after, variant, function) for _, variant in ranked[:ways]]
    return found


def _with_selection(problem: Problem, variant: Variant, function: _Function) -> str:
    gate = function(problem.gate_part, variant)
    return function(problem, Apart(variant)) if problem.selection else gate


def launched_by_name(problem: Problem, spec: RouterSpec, variants: Iterable[Variant | Apart], arch: Arch) -> Kernel:
    """A kernel that dispatches nothing: its functions are launched by name."""
    nothing = Range(1, None, None, "a benchmark launches its functions by name", ())
    # What is launched by name is timed as it is, even where it spills.
    allowing = spec.model_copy(update={"allow_spills": True})
    return Kernel(problem, (allowing,), (Group((arch.sm,), (nothing,), tuple(dict.fromkeys(variants))),))


def package_files(spec: RouterSpec, plan: Plan, arch: Arch, *, marks: bool = True) -> dict[str, output.Content]:
    """The files of a package that is not for torch: the kernels of `plan` and, with `marks`, producer and probe."""
    rendered = render.render(plan)
    files: dict[str, output.Content] = {
        path: text for path, text in rendered.items() if path.startswith("csrc/") and path != "csrc/binding.cpp"
    }
    sources = _marks(spec, arch, files) if marks else []
    if render.HANDOVER in files:
        sources.append(manifest.Source(render.HANDOVER, (arch.sm,)))
    for kernel in plan.all_kernels:
        for group in kernel.groups:
            path = str(naming.source_path(kernel.name, group.sm))
            functions = render.functions(kernel, group)
            sources.append(manifest.Source(path, group.sm_targets, True, functions, group.accelerated))
    sources += [manifest.Source(path) for path in sorted(files) if path.endswith(".cpp")]
    said = manifest.Manifest(__version__, {}, manifest.hashes(files), tuple(sources), {}, {})
    return output.collect([*files.items(), (manifest.NAME, said.text())])


def _marks(spec: RouterSpec, arch: Arch, files: dict[str, output.Content]) -> list[manifest.Source]:
    """Adds to `files` the producer, the probe, and the norm alone, with and without the residual add; their sources."""
    problem = Problem.of(spec).gate_part
    environment = render.environment()
    shape = (spec.hidden_size, spec.num_experts, problem.gate_weight_bytes)
    values = template_values(*shape, problem.logit_bytes, pdl=arch.has_pdl)
    files["csrc/kernels/probe.cu"] = environment.get_template("bench/probe.cu.j2").render(values)
    sources = [manifest.Source("csrc/kernels/probe.cu", (arch.sm,), False, tuple(kernel_names(*shape)))]
    for residual in dict.fromkeys(("", Problem.of(spec).residual)) if problem.has_norm else ():
        kernel = {
            "hidden_size": spec.hidden_size,
            "activation_type": naming.cuda_type(spec.activation_dtype),
            "norm_type": f"Norm{problem.norm_order}",
            "rounded": True,
            "residual": residual,
        }
        threads = render.ROW_NORM_THREADS
        row_norm = {"threads": threads, "chunks": ceil_div(spec.hidden_size, threads * 8)}
        name = "add_row_norm" if residual else "row_norm"
        files[f"csrc/kernels/{name}.cu"] = environment.get_template("bench/row_norm.cu.j2").render(
            name=name, kernel=kernel, group={"pdl": arch.has_pdl, "row_norm": row_norm}
        )
        sources.append(manifest.Source(f"csrc/kernels/{name}.cu", (arch.sm,), True, (f"normgate_bench_{name}",)))
    return sources


def folder_of(out: Path) -> Path:
    """Where the benchmark of the package in `out` is built."""
    return places.build_folder(out) / "bench"
