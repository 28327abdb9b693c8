"""Packages that GPU tests want and no spec gives: made from a plan of one's own, for one target."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from codegen import naming, output, package, places, spills, tuned  # noqa: E402
from codegen.compile import compile_package  # noqa: E402
from codegen.manifest import NAME  # noqa: E402
from codegen.plan import Plan, make_plan  # noqa: E402
from codegen.render import render  # noqa: E402
from codegen.spec import load_specs  # noqa: E402


def plan_of_specs(specs: Sequence[Path] = ()) -> Plan:
    """As `build.py` plans them; by default those of specs/."""
    loaded = load_specs(specs or places.all_specs())
    return make_plan(loaded, tuned.load(loaded, places.tuned_folder()), spills.read(places.tuned_folder()))


def make(plan: Plan, out: Path, sm: int, *, ops: str = naming.OPS, machine_code: bool = True, jobs: int | None) -> None:
    """Writes `out`/normgate and compiles it; objects are kept in `out`/build."""
    folder = out / places.PACKAGE
    files: dict[str, output.Content] = dict(render(plan, ops))
    files[NAME] = package.manifest_of(plan, files, {}).text()
    output.write(output.collect(files.items()), folder)
    objects = places.build_folder(out)
    report = compile_package(
        folder, sms=(sm,), build_dir=objects, jobs=jobs, machine_code=machine_code, console=Console()
    )
    print(f"{places.shown(report.library)}: {report.seconds:.0f} s")
