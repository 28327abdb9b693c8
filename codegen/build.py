"""A package from specs to its compiled library: what `python build.py` does, and a project's own build."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from . import compile, naming, package, places, spills
from .errors import Spilled
from .manifest import load_manifest
from .resources import BuildReport
from .toolkit import select_sms

_MOST_PLANS = 8  # of a build whose compiler spills what was planned


def build_package(
    specs: Sequence[Path],
    out: Path,
    *,
    ops: str = naming.OPS,
    sm: str = "all",
    jobs: int | None = None,
    machine_code: bool = True,
    console: Console | None = None,
) -> BuildReport:
    """Generate `out`/normgate from these spec files and compile it. Objects are kept in `out`/build.

    ops: the namespace of its operators, torch.ops.<ops>; a package that is vendored needs one of its own.
    sm: what to compile for, `all`, `native`, or a list as `90,100`. jobs: compilers at a time, by default ninja's
    choice. machine_code: False for PTX alone, which chips later than `sm` compile for themselves when they load it.
    console: where progress is shown, None for silence.

    What the compiler spills is planned anew without, and remembered beside the specs. Raises BadInput for what is
    wrong with the specs or `ops`, before anything is written; ToolError where a tool is missing or fails,
    CheckFailed where what was compiled is refused: a library that was there stays as it was.
    """
    select_sms(sm)  # what no package could have is said before anything is written
    folder = out / places.PACKAGE
    for plans_left in reversed(range(_MOST_PLANS)):
        known = spills.read(places.tuned_folder())
        generate(specs, out, ops, console)
        manifest = load_manifest(folder)
        targets = {target for source in manifest.sources for target in source.sm_targets}
        try:
            return compile.compile_package(
                folder,
                sms=select_sms(sm, targets),
                build_dir=places.build_folder(out),
                jobs=jobs,
                machine_code=machine_code,
                console=console,
            )
        except Spilled as spilled:
            if not plans_left:
                raise
            plan_without(spilled, spills.named(spilled.functions, manifest.kernels), known)
    raise AssertionError("the last plan is returned or raised")


def generate(specs: Sequence[Path], out: Path, ops: str, console: Console | None) -> None:
    """Write `out`/normgate and say how much of it was."""
    written = package.generate(specs, out, ops)
    if console is None:
        return
    said = "up to date"
    if written is not None and (written.written or written.removed):
        wrote, removed = len(written.written), len(written.removed)
        said = f"{wrote} files written, {removed} removed, {written.unchanged} unchanged"
    console.print(f"{places.shown(out / places.PACKAGE)}: {said}", markup=False, soft_wrap=True)


def plan_without(spilled: Spilled, found: spills.Spills, known: spills.Spills) -> None:
    """Have plans leave out what spilled from now on. `spilled` again where the plan, made from `known`, could not."""
    folder = places.tuned_folder()
    if not any(names - known.get(kernel, frozenset()) for kernel, names in found.items()):
        raise spilled
    spills.add(folder, found)
    names = ", ".join(sorted({name for each in found.values() for name in each}))
    print(f"{names}: spilled; planned anew without ({places.shown(folder / spills.FILE)})", file=sys.stderr)
