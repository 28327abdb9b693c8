"""Twins: for each way through the kernels' code one function of the same constants over the smallest sizes that take it.

    python tests/gpu/twins.py [--out DIR] [--sm 90] [--spec FILE ...] [--paths] [--one-of-a-family]
                              [--plan-only]

racecheck takes seconds for one launch at 7168 x 384, and in most of it CTAs repeat what others did. What makes code
differ is a function's problem (stages, dtypes, norm, selection), its variant with all constants, and what sizes decide:
whether rows and experts end within a tile, whether there is more than one tile, whether a ring wraps around twice.
`ways` says this for a function; functions with the same way share a twin, which has the very constants and the very way,
and fewer experts and a shorter row. DIR/normgate is the package of the twins, DIR/twins.json says which function of the
shipped package is covered by which twins: `python tests/gpu/sanitize.py --twins DIR` launches them.

--one-of-a-family takes functions whose ways differ in nothing but their variant's constants for one way: for stages and
shapes that nothing shipped has, where the constants are those of functions with twins of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from made import ROOT, make, plan_of_specs

from codegen import naming, output
from codegen.arch import ARCHS, Arch
from codegen.families import Apart, Gemv, Resident, SplitK, Tiled, Variant, Wgmma, ceil_div
from codegen.plan import Group, Kernel, Plan
from codegen.problem import Problem
from codegen.ranges import Range
from codegen.render import ROW_NORM_THREADS
from codegen.spec import RouterSpec
from codegen.variants import candidates, objections

INDEX = "twins.json"
MOST_WASTE = 2  # times the weights that a twin would need, if so it shares a kernel's sizes: fewer kernels to compile
Way = tuple[object, ...]
"""What decides which code a launch runs; equal ones run the same."""
WaysOf = Callable[[Problem, Variant | Apart], tuple[Way, ...]]


def ways(problem: Problem, served: Variant | Apart) -> tuple[Way, ...]:
    """Those of a function: one, or, where stages are apart, that of the stages and that of the gate's kernel."""
    if isinstance(served, Apart):
        return _stages_way(problem), *ways(problem.gate_part, served.inner)
    return (_kernel_way(problem, served),)


@cache
def _kernel_way(problem: Problem, variant: Variant) -> Way:
    hidden, experts = problem.hidden_size, problem.num_experts
    sizes: tuple[object, ...] = (experts % variant.experts == 0,)
    if isinstance(variant, Gemv):
        ctas = variant.ctas(problem, variant.tokens)
        width = variant.threads * 8
        sizes += (width * variant.chunks == hidden, ceil_div(hidden, width), min(ctas, variant.tokens + 1))
    else:
        sizes += (min(variant.tiles(problem), 2),)
    if isinstance(variant, SplitK):
        sizes += (variant.split * variant.slice == hidden, ceil_div(hidden, variant.slice))
    if isinstance(variant, Tiled | Wgmma | Resident):
        sizes += (variant.split * variant.steps(problem) * variant.step == hidden, hidden % variant.step)
    if isinstance(variant, Tiled):
        sizes += (_ring(variant.steps(problem), variant.stages), variant.adds_steps(problem))
    if isinstance(variant, Wgmma):
        steps, chain = variant.steps(problem), variant.chain_steps(problem)
        sizes += (_ring(steps, variant.stages), min(steps // chain, 2), steps % chain == 0)
        sizes += (variant.row_places(problem), min(ceil_div(hidden, 1024), 2))
    if isinstance(variant, Resident):
        steps = variant.steps(problem)
        sizes += (min(steps, 2), steps % 2, variant.places(problem))  # halves of a slice: one step, even, odd
    if problem.rounds_rows:
        sizes += _row_sizes(problem)
    return ("kernel", _without_sizes(problem), variant.name, *sizes, *_selection_sizes(problem))


def _stages_way(problem: Problem) -> Way:
    """The residual add and the selection in launches of their own."""
    return ("stages", _without_sizes(problem), *_row_sizes(problem), *_selection_sizes(problem))


def _row_sizes(problem: Problem) -> Way:
    """Of the chunks in which a CTA goes through a whole row, in the launches before a gate's."""
    chunk = ROW_NORM_THREADS * 8
    return min(ceil_div(problem.hidden_size, chunk), 2), problem.hidden_size % chunk == 0


def _without_sizes(problem: Problem) -> Problem:
    return replace(problem, hidden_size=0, num_experts=0)


def _ring(steps: int, stages: int) -> int:
    """Steps of a pipeline, up to those in which each stage is used for the third time."""
    return min(steps, 2 * stages + 1)


def _selection_sizes(problem: Problem) -> Way:
    """Of the experts that a lane has: one, more, and whether each lane has as many."""
    if not (chosen := problem.selection):
        return ()
    lanes = 32 // (1 << (chosen.n_group - 1).bit_length()) if chosen.n_group > 1 else 32
    of_group = problem.num_experts // chosen.n_group
    return min(ceil_div(of_group, lanes), 2), of_group % lanes == 0, problem.num_experts % 4 == 0


def ways_of_families(problem: Problem, served: Variant | Apart) -> tuple[Way, ...]:
    """As `ways`, with a variant's family in place of all its constants."""
    inner = served.inner if isinstance(served, Apart) else served
    return tuple((*way[:2], inner.family, *way[3:]) if way[0] == "kernel" else way for way in ways(problem, served))


@dataclass(frozen=True)
class Function:
    """One that a package has for a target: a gate's, or a whole path's, as `problem` says, of the spec's model."""

    name: str
    spec: RouterSpec
    problem: Problem
    served: Variant | Apart


def functions_of(plan: Plan, sm: int) -> Iterator[Function]:
    """Every function that the plan's package has for a target, those for chips that run its PTX too."""
    for kernel in plan.all_kernels:
        for group in (each for each in kernel.groups if sm in each.sm_targets):
            for served in group.served_by:
                name = naming.function_name(kernel.name, served.name, group.sm)
                yield Function(name, kernel.specs[0], kernel.problem, served)


@dataclass(frozen=True)
class Twin:
    """A model's function at sizes of the twin's own."""

    spec: RouterSpec  # of the model
    problem: Problem
    served: Variant | Apart

    @property
    def cost(self) -> tuple[int, str]:
        """Weights that it reads; the name has equal ones in a fixed order."""
        return self.problem.hidden_size * self.problem.num_experts, self.spec.name

    def function(self, sm: int) -> str:
        return naming.function_name(naming.kernel_name(self.problem), self.served.name, sm)


def twins_of(functions: Iterable[Function], arch: Arch) -> dict[Way, Twin]:
    """One for each way: of the fewest weights, or at sizes that another way's has, where a kernel is there already."""
    smallest: dict[Way, Twin] = {}
    for function in functions:
        for way in ways(function.problem, function.served):
            if way not in smallest:
                smallest[way] = _smallest(way, function, arch)
    found: dict[Way, Twin] = {}
    for way, twin in sorted(smallest.items(), key=lambda item: item[1].cost, reverse=True):
        others = [replace(twin, spec=each.spec, problem=each.problem) for each in found.values()]
        fitting = [each for each in others if _goes(way, each, arch) and each.cost[0] <= MOST_WASTE * twin.cost[0]]
        found[way] = min(fitting, key=lambda each: each.cost, default=twin)
    return found


def _smallest(way: Way, function: Function, arch: Arch) -> Twin:
    """The function's own sizes are such sizes too."""
    problem, served = function.problem, function.served
    if isinstance(served, Apart) and way[0] == "kernel":
        problem, served = problem.gate_part, served.inner
    for hidden, experts in _sizes(function.spec):
        twin = Twin(function.spec, replace(problem, hidden_size=hidden, num_experts=experts), served)
        if _goes(way, twin, arch):
            return twin
    raise AssertionError(f"{function.name} is no twin of itself")


def _sizes(spec: RouterSpec) -> list[tuple[int, int]]:
    """Those up to the spec's own that a spec may have, fewest weights first."""
    hidden = [*range(64, spec.hidden_size, 64), spec.hidden_size]
    experts = [n for n in (*range(8, spec.num_experts, 8), spec.num_experts) if _can_choose(spec, n)]
    return sorted(((k, n) for k in hidden for n in experts), key=lambda size: (size[0] * size[1], size))


def _can_choose(spec: RouterSpec, num_experts: int) -> bool:
    groups, top_k = spec.routing.groups, spec.routing.top_k
    if groups is None:
        return num_experts >= top_k
    of_group, left = divmod(num_experts, groups.n_group)
    return left == 0 and of_group >= 2 and of_group * groups.topk_group >= top_k


def _goes(way: Way, twin: Twin, arch: Arch) -> bool:
    """Whether the twin goes that way, and is legal."""
    if way not in ways(twin.problem, twin.served):
        return False
    if isinstance(twin.served, Apart):
        return not objections(twin.problem.gate_part, arch, twin.served.inner)
    return not objections(twin.problem, arch, twin.served)


def plan_of(twins: Iterable[Twin], arch: Arch) -> Plan:
    """A kernel for each problem. Its functions are launched by name; each has a token count, for the table's sake."""
    served: dict[Problem, dict[Variant | Apart, None]] = {}
    specs: dict[Problem, dict[str, RouterSpec]] = {}
    for twin in twins:
        gate = twin.problem.gate_part
        served.setdefault(twin.problem, {})[twin.served] = None
        if isinstance(twin.served, Apart):
            served.setdefault(gate, {})[twin.served.inner] = None
        hidden, experts = twin.problem.hidden_size, twin.problem.num_experts
        sizes = {"name": f"{twin.spec.name}-{hidden}x{experts}", "hidden_size": hidden, "num_experts": experts}
        spec = RouterSpec.model_validate(
            dict(twin.spec.model_copy(update={**sizes, "sm_targets": (arch.sm,), "allow_spills": True}))
        )
        for problem in {twin.problem, gate}:
            specs.setdefault(problem, {})[spec.name] = spec
            served.setdefault(problem, {})
    kernels = []
    for problem, by_name in specs.items():
        if not served[problem]:  # the gate of a path with a twin: a package has no kernel without functions
            served[problem][next(candidates(problem, arch, 1))] = None
        ranges = tuple(
            Range(count, count, each, "a twin is launched by name", ())
            for count, each in enumerate(served[problem], start=1)
        )
        kernels.append(Kernel(problem, tuple(by_name.values()), (Group((arch.sm,), ranges),)))
    kernels.sort(key=lambda kernel: kernel.name)
    gates = tuple(kernel for kernel in kernels if kernel.problem == kernel.problem.gate_part)
    return Plan(gates, tuple(kernel for kernel in kernels if kernel not in gates))


def index_of(
    functions: Sequence[Function], twins: dict[Way, Twin], sm: int, ways_of: WaysOf = ways
) -> dict[str, list[str]]:
    """By function of the package: the twins that cover it."""
    of_way = {alike: twins[way] for function in functions for way, alike in _alike(function, ways_of) if way in twins}
    return {
        each.name: [of_way[alike].function(sm) for _, alike in _alike(each, ways_of)]
        for each in sorted(functions, key=lambda function: function.name)
    }


def one_of_a_family(functions: Iterable[Function]) -> list[Function]:
    """Those whose `ways_of_families` hold one that no function before them has."""
    known: set[Way] = set()
    found = []
    for function in functions:
        if not known.issuperset(its := ways_of_families(function.problem, function.served)):
            known.update(its)
            found.append(function)
    return found


def _alike(function: Function, ways_of: WaysOf) -> Iterator[tuple[Way, Way]]:
    """Each way of a function, and what stands for it."""
    problem, served = function.problem, function.served
    return zip(ways(problem, served), ways_of(problem, served), strict=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "twins")
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument(
        "--spec", type=Path, nargs="+", default=(), help="whose functions get twins; by default those of specs/"
    )
    parser.add_argument("--paths", action="store_true", help="of whole paths alone")
    parser.add_argument("--one-of-a-family", action="store_true")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--plan-only", action="store_true", help="print sizes and compile nothing")
    asked = parser.parse_args()
    functions = list(functions_of(plan_of_specs(asked.spec), asked.sm))
    if asked.paths:
        functions = [each for each in functions if each.problem != each.problem.gate_part]
    ways_of = ways_of_families if asked.one_of_a_family else ways
    twins = twins_of(one_of_a_family(functions) if asked.one_of_a_family else functions, ARCHS[asked.sm])
    own = plan_of(twins.values(), ARCHS[asked.sm])
    print(f"{len(functions)} functions, {len(twins)} ways, {len(own.all_kernels)} kernels of twins")
    if asked.plan_only:
        for twin in sorted(twins.values(), key=lambda twin: twin.cost):
            print(twin.cost[0], twin.function(asked.sm))
        return 0
    make(own, asked.out, asked.sm, jobs=asked.jobs)
    covered = index_of(functions, twins, asked.sm, ways_of)
    output.replace_whole(
        asked.out / INDEX, (json.dumps({"ways": len(twins), "covered_by": covered}, indent=1) + "\n").encode()
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
