"""What chips after a target run of a library that was built for it: its PTX, without what only the target itself has.

    python tests/gpu/portable.py [--out build/ptx90] [--sm 90] [--spec FILE ...]

makes a package of PTX alone. Its ranges are those that the plan has for later chips, so that on the target itself, too,
no function is asked for that the PTX lacks: NORMGATE_TEST_PACKAGES=build/ptx90/normgate python -m pytest tests/gpu
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from made import ROOT, make, plan_of_specs

from codegen.plan import Kernel, Plan


def portable(plan: Plan, sm: int) -> Plan:
    """The groups of one target, with the ranges of the chips after it."""

    def kernels(all_kernels: Iterable[Kernel]) -> tuple[Kernel, ...]:
        found = []
        for kernel in all_kernels:
            groups = [group for group in kernel.groups if sm in group.sm_targets]
            own = [
                replace(g, sm_targets=(sm,), ranges=g.portable_ranges or g.ranges, portable_ranges=()) for g in groups
            ]
            found += [replace(kernel, groups=tuple(own))] * bool(own)
        return tuple(found)

    return Plan(kernels(plan.kernels), kernels(plan.paths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "ptx90")
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument("--spec", type=Path, nargs="+", default=())
    parser.add_argument("--jobs", type=int)
    asked = parser.parse_args()
    own = portable(plan_of_specs(asked.spec), asked.sm)
    # Operators of its own, lest it take over those of another package in the process.
    make(own, asked.out, asked.sm, ops=f"normgate_ptx{asked.sm}", machine_code=False, jobs=asked.jobs)


if __name__ == "__main__":
    main()
