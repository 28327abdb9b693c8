"""The `bench` verb: build what is timed, time it, write the record and its picture."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType

import torch
from rich.console import Console

from .. import naming, places, terminal
from ..arch import SM_TARGETS
from ..compile import LIBRARY
from ..errors import BadInput, Problem, ToolError
from ..problem import Problem as RouterPath
from ..spec import RouterSpec
from ..toolkit import serving
from . import against, ahead, peers, record, run, shown
from .build import Built, Index, build, built_before, folder_of
from .native import BenchLibrary, Library


def bench(
    specs: Sequence[RouterSpec],
    tokens: Sequence[int],
    *,
    out: Path,
    path_tokens: Sequence[int],
    unrounded_tokens: Collection[int],
    candidates: tuple[str, ...] | None,
    record_file: Path | None,
    budget_s: float,
    resume: bool,
    against_file: Path | None,
    sm: int | None,
    build_only: bool,
    no_build: bool,
    jobs: int | None,
    every: bool,
    as_json: bool,
    console: Console,
) -> None:
    """See the verb's --help. Raises ToolError without a GPU (unless build_only) or without a compiled package,
    CheckFailed for what became slower than in `against_file`.
    """
    before = None if against_file is None else record.read(against_file)  # a bad file is said before hours of measuring
    asked = (*peers.NAMES, *peers.PATH_NAMES) if candidates is None else candidates
    names, path_names = peers.chosen(asked), peers.chosen(asked, peers.PATH_NAMES)
    # Nothing is timed where nothing that was asked for exists.
    tokens, path_tokens = tokens if names else (), path_tokens if path_names else ()
    if not build_only:
        _require_gpu_and_library(out)
    folder = folder_of(out)
    if no_build:
        index = built_before(folder)
    else:
        index = build(specs, tokens, path_tokens, target(sm), folder, jobs=jobs, console=console)
    if build_only:
        console.print(f"{len(specs)} benchmarks are built for sm_{index.sm}; on the GPU: bench --no-build")
        return
    ahead.share_cache(folder / "inductor")
    models = _models(specs, index, folder)
    package = package_of(out)
    file = record_file or places.home() / "docs" / "measured" / record.file_name(torch.cuda.get_device_name(), "bench")
    written = run.run(
        models,
        tokens,
        package=package,
        library=Library(out / places.PACKAGE / LIBRARY),
        out=file,
        repository=places.home(),
        budget_s=budget_s,
        candidates=names,
        path_tokens=path_tokens,
        path_candidates=path_names,
        unrounded_tokens=unrounded_tokens,
        resume=resume,
        console=console,
    )
    if as_json:
        print(record.text(written), end="")
    else:
        shown.show(written, console, every=every)
        console.print(f"as a page with a picture: python build.py draw {places.shown(file)}", soft_wrap=True)
    if before is not None:
        changes = against.compare(written, before)
        terminal.title(console, "normgate, before and now: microseconds, and times what they are held against")
        terminal.show(console, against.table(changes))
        against.require_no_regression(changes)


def _require_gpu_and_library(out: Path) -> None:
    if not torch.cuda.is_available():
        raise ToolError(
            "the benchmark needs a GPU and a CUDA build of torch; to build it here: bench --build-only --sm N"
        )
    if not (out / places.PACKAGE / LIBRARY).is_file():
        raise ToolError(f"{out / places.PACKAGE / LIBRARY}: missing; compile it: python build.py")


def target(sm: int | None) -> int:
    """The target whose code the GPU here runs best, or the one named. ToolError where none runs, BadInput for a name
    of none.
    """
    if sm is None:
        major, minor = torch.cuda.get_device_capability()
        device = 10 * major + minor
        return serving(device, SM_TARGETS)
    if sm not in SM_TARGETS:
        raise BadInput([Problem(None, None, f"--sm {sm}: one of {', '.join(map(str, SM_TARGETS))} would be right")])
    return sm


def _models(specs: Sequence[RouterSpec], index: Index, folder: Path) -> list[run.Model]:
    lacking = [spec.name for spec in specs if spec.name not in index.models]
    if lacking:
        raise ToolError(f"{folder}: built without {', '.join(lacking)}; build it anew, or name others with --spec")
    return [_model(spec, index.models[spec.name], folder) for spec in specs]


def _model(spec: RouterSpec, built: Built, folder: Path) -> run.Model:
    path = RouterPath.of(spec)
    return run.Model(
        spec,
        naming.kernel_name(path.gate_part),
        BenchLibrary(folder / built.folder / LIBRARY),
        built.functions,
        naming.kernel_name(path) if path != path.gate_part else "",
    )


def package_of(out: Path) -> ModuleType:
    """The package in `out`, imported from there unless it is there that it was imported from already."""
    sys.path.insert(0, str(out.absolute()))
    package = importlib.import_module(places.PACKAGE)
    if Path(str(package.__file__)).resolve().parent != (out / places.PACKAGE).resolve():
        raise ToolError(f"another normgate is imported already, from {package.__file__}; use python build.py bench")
    return package
