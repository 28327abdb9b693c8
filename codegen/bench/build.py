"""The benchmark's own kernels, a package a model: the marks, the seed's design, a norm and a gate apart.

The device with the chip may have no compilers, so building and running are two steps: an index beside the
packages says what was built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from .. import __version__, cost, manifest, naming, output, places, render
from ..arch import ARCHS, Arch
from ..compile import LIBRARY, compile_package
from ..errors import ToolError
from ..families import Gemv, Variant, ceil_div
from ..plan import Group, Kernel, Plan, Range
from ..problem import Problem
from ..spec import RouterSpec
from ..variants import candidates
from .peers import SEED_THREADS, SEED_TOKENS, BenchFunctions, seed_allows
from .probe import kernel_names, template_values

INDEX = "bench.json"
_LOGIT_BYTES = {"float32": 4, "bfloat16": 2}
_ROW_NORM = "normgate_bench_row_norm"


class Built(BaseModel):
    """One model's benchmark package: its folder's name, and the functions in it by token count."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    folder: str
    seed: dict[int, str]
    row_norm: bool
    gate_gemv: dict[int, str]

    @property
    def functions(self) -> BenchFunctions:
        return BenchFunctions(self.seed, self.row_norm, self.gate_gemv)


class Index(BaseModel):
    """What `build` left: the SM target, and the packages by model."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    sm: int
    models: dict[str, Built]


def build(
    specs: Sequence[RouterSpec],
    tokens: Sequence[int],
    sm: int,
    folder: Path,
    *,
    jobs: int | None = None,
    console: Console | None = None,
) -> Index:
    """Generate and compile a package for each spec under `folder`, for the target `sm` and these token counts."""
    arch, found = ARCHS[sm], {}
    for spec in specs:
        plan, built = _plan(spec, tokens, arch)
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


def _plan(spec: RouterSpec, tokens: Sequence[int], arch: Arch) -> tuple[Plan, Built]:
    problem = Problem.of(spec)
    gate_alone = dataclasses.replace(problem, norm_order="", logits_from="unrounded")
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
    kernels = [
        launched_by_name(of, spec, variants.values(), arch)
        for of, variants in ((seed_problem, seeds), (gate_alone, gemvs))
        if variants
    ]

    def names(of: Problem, variants: dict[int, Variant]) -> dict[int, str]:
        kernel = naming.kernel_name(of)
        return {count: naming.function_name(kernel, variant.name, arch.sm) for count, variant in variants.items()}

    return Plan(tuple(kernels)), Built(
        folder=spec.name,
        seed=names(seed_problem, seeds),
        row_norm=problem.has_norm,
        gate_gemv=names(gate_alone, gemvs),
    )


def launched_by_name(problem: Problem, spec: RouterSpec, variants: Iterable[Variant], arch: Arch) -> Kernel:
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
    for kernel in plan.kernels:
        for group in kernel.groups:
            path = str(naming.source_path(kernel.name, group.sm))
            functions = render.functions(kernel, group)
            sources.append(manifest.Source(path, group.sm_targets, True, functions, group.accelerated))
    sources += [manifest.Source(path) for path in sorted(files) if path.endswith(".cpp")]
    said = manifest.Manifest(__version__, {}, manifest.hashes(files), tuple(sources), {}, {})
    return output.collect([*files.items(), (manifest.NAME, said.text())])


def _marks(spec: RouterSpec, arch: Arch, files: dict[str, output.Content]) -> list[manifest.Source]:
    """Adds to `files` the producer, the probe, and a norm alone; their sources."""
    problem = Problem.of(spec)
    environment = render.environment()
    shape = (spec.hidden_size, spec.num_experts, problem.gate_weight_bytes)
    values = template_values(*shape, _LOGIT_BYTES[spec.logits_dtype], pdl=arch.has_pdl)
    files["csrc/kernels/probe.cu"] = environment.get_template("bench/probe.cu.j2").render(values)
    sources = [manifest.Source("csrc/kernels/probe.cu", (arch.sm,), False, tuple(kernel_names(*shape)))]
    if problem.has_norm:
        kernel = {
            "hidden_size": spec.hidden_size,
            "activation_type": naming.cuda_type(spec.activation_dtype),
            "norm_type": f"Norm{problem.norm_order}",
            "rounded": True,
        }
        threads = render.ROW_NORM_THREADS
        row_norm = {"threads": threads, "chunks": ceil_div(spec.hidden_size, threads * 8)}
        files["csrc/kernels/row_norm.cu"] = environment.get_template("bench/row_norm.cu.j2").render(
            kernel=kernel, group={"pdl": arch.has_pdl, "row_norm": row_norm}
        )
        sources.append(manifest.Source("csrc/kernels/row_norm.cu", (arch.sm,), True, (_ROW_NORM,)))
    return sources


def folder_of(out: Path) -> Path:
    """Where the benchmark of the package in `out` is built."""
    return places.build_folder(out) / "bench"
