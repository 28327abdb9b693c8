"""Everything that the report is made from, read once into frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import coverage, manifest, naming, places
from ..bench import decode_record, record, tables
from ..bench.decode_record import DecodeRecord
from ..bench.record import Record
from ..compile import reported
from ..coverage import Covered
from ..errors import BadInput
from ..errors import Problem as Wrong
from ..manifest import Manifest
from ..problem import Problem
from ..resources import Usage
from ..spec import RouterSpec, load_specs
from . import drawing
from .proofs import SanitizerRun, TestRun, sanitizer_runs, test_runs

DEFAULT_SM = 90


@dataclass(frozen=True)
class Missing:
    """What the report would show, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Chip:
    """The records of one chip; slug: as their names begin. At least one of the two is there."""

    slug: str
    gates: Record | None
    paths: Record | None

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(one for one in (self.gates, self.paths) if one)

    @property
    def name(self) -> str:
        return self.records[0].machine.chip

    @property
    def sm(self) -> int:
        return self.records[0].machine.sm


@dataclass(frozen=True)
class Kernel:
    """A kernel of the manifest: what it computes, and the group of SM targets that serves the report's chip, if any."""

    name: str
    problem: Problem
    models: tuple[str, ...]
    group: manifest.Group | None


@dataclass(frozen=True)
class Model:
    """A shipped model. yaml: its spec's text; gate: the kernel of norm and gate; path: of the whole path, or the same;
    source: the path in the package and the text of that kernel's CUDA for the report's chip, if it is generated.
    """

    spec: RouterSpec
    yaml: str
    gate: Kernel | None
    path: Kernel | None
    source: tuple[str, str] | None


@dataclass(frozen=True)
class Facts:
    """All of it. sm: of the chip that the report is about; usages: by function and SM, empty where nothing is compiled;
    tests, sanitizers: by file name.
    """

    sm: int
    chips: tuple[Chip, ...]
    decodes: tuple[DecodeRecord, ...]
    tests: Mapping[str, TestRun]
    sanitizers: Mapping[str, SanitizerRun]
    models: tuple[Model, ...]
    kernels: tuple[Kernel, ...]
    usages: Mapping[tuple[str, int], Usage]
    coverage: tuple[Covered, ...]
    specs: Mapping[str, RouterSpec]
    missing: tuple[Missing, ...]


def collect(measured: Path, out: Path) -> Facts:
    """measured: the folder of records; out: that of the generated package. BadInput for a record of bad content."""
    missing: list[Missing] = []
    chips, tests, sanitizers = _chips(measured), test_runs(measured), sanitizer_runs(measured)
    if not any(chip.gates for chip in chips):
        missing.append(
            Missing("latency of norm and gate: no record *-bench.json", "python build.py bench --only gates")
        )
    if not any(chip.paths for chip in chips):
        only = "python build.py bench --only paths --record docs/measured/CHIP-paths.json"
        missing.append(Missing("latency of whole paths: no record *-paths.json", only))
    if not tests:
        command = "NORMGATE_RECORD=docs/measured/CHIP-tests.json python -m pytest tests/gpu"
        missing.append(Missing("numerics: no record *-tests.json", command))
    if not sanitizers:
        missing.append(Missing("compute-sanitizer: no record *-sanitize.json", "python tests/gpu/sanitize.py"))

    if not drawing.can_draw():
        missing.append(Missing("charts, whose tables are open instead: no vl-convert-python", drawing.INSTALL))
    sm = chips[0].sm if chips else DEFAULT_SM
    shipped, every = load_specs(places.all_specs()), load_specs(places.every_spec())
    package = out / places.PACKAGE
    kernels: dict[str, Kernel] = {}
    usages: dict[tuple[str, int], Usage] = {}
    if (package / manifest.NAME).is_file():
        kernels = _kernels(manifest.load_manifest(package), shipped, sm)
        usages = {(row.usage.function, row.usage.sm): row.usage for row in reported(package, places.build_folder(out))}
        if not usages:
            missing.append(Missing("registers, shared memory and spills: not compiled here", "python build.py"))
    else:
        missing.append(Missing("kernels and token ranges: nothing is generated", manifest.GENERATE))
    texts = {
        spec.name: path.read_text(encoding="utf-8") for spec, path in zip(shipped, places.all_specs(), strict=True)
    }
    names = frozenset(spec.name for spec in shipped)
    covered = coverage.covered(every, names, coverage.ran(measured), coverage.compiled(measured))
    return Facts(
        sm=sm,
        chips=chips,
        decodes=tuple(decode_record.read(path) for path in sorted(measured.glob("*-decode.json"))),
        tests=tests,
        sanitizers=sanitizers,
        models=tuple(
            _model(spec, texts[spec.name], kernels, package) for spec in sorted(shipped, key=lambda s: s.name)
        ),
        kernels=tuple(kernels.values()),
        usages=usages,
        coverage=tuple(covered),
        specs={spec.name: spec for spec in every},
        missing=tuple(missing),
    )


def _chips(measured: Path) -> tuple[Chip, ...]:
    """One for each chip with records. Whole paths are in a record of their own, or in that of the gates."""
    bench, apart = _records(measured, "bench"), _records(measured, "paths")
    gates = {slug: part for slug, found in bench.items() if (part := _part(found, paths=False))}
    paths = {slug: part for slug, found in {**bench, **apart}.items() if (part := _part(found, paths=True))}
    return tuple(Chip(slug, gates.get(slug), paths.get(slug)) for slug in sorted({*gates, *paths}))


def _part(found: Record, *, paths: bool) -> Record | None:
    """The whole paths of a record, or its gates, and nothing else; None where it has none."""
    models = {
        name: model.model_copy(update={"points": {}} if paths else {"path": None})
        for name, model in found.models.items()
        if (model.path if paths else model.points)
    }
    return found.model_copy(update={"models": models}) if models else None


def _records(measured: Path, kind: str) -> dict[str, Record]:
    suffix = f"-{kind}.json"
    return {path.name.removesuffix(suffix): _sound(path) for path in sorted(measured.glob(f"*{suffix}"))}


def _sound(path: Path) -> Record:
    """The record. BadInput also for numbers that no axis has a place for."""
    found = record.read(path)
    wrong = [
        f"{name}: {tokens} tokens, {candidate}: {measured.median_us} us is no time"
        for name, model in found.models.items()
        for points in (model.points, model.path.points if model.path else {})
        for tokens, point in points.items()
        for candidate, measured in point.candidates.items()
        if not math.isfinite(measured.median_us) or (measured.median_us <= 0 and candidate not in tables.MARKS)
    ]
    if found.rates and not 0 < min(found.rates.copy_bytes_per_s, found.rates.gemm_flops_per_s):
        wrong.append("rates: above 0 would be right")
    if wrong:
        raise BadInput([Wrong(str(path), None, reason) for reason in wrong])
    return found


def _kernels(made: Manifest, specs: Sequence[RouterSpec], sm: int) -> dict[str, Kernel]:
    """Those of the specs that were generated, by name."""
    found = {}
    for problem in dict.fromkeys(each for spec in specs for each in (Problem.of(spec).gate_part, Problem.of(spec))):
        name = naming.kernel_name(problem)
        if kernel := made.kernels.get(name):
            group = next((group for group in kernel.groups if sm in group.sm_targets), None)
            found[name] = Kernel(name, problem, kernel.models, group)
    return dict(sorted(found.items()))


def _model(spec: RouterSpec, yaml: str, kernels: Mapping[str, Kernel], package: Path) -> Model:
    problem = Problem.of(spec)
    gate, path = (kernels.get(naming.kernel_name(each)) for each in (problem.gate_part, problem))
    source = None
    if path and path.group:
        name = naming.source_path(path.name, path.group.sm_targets[0])
        if (package / name).is_file():
            source = str(name), (package / name).read_text(encoding="utf-8")
    return Model(spec, yaml, gate, path, source)
