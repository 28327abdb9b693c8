"""Spec x SM into a frozen Plan: which variant serves which token range. Pure; everything decided is decided here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from . import naming, tuned
from .arch import ARCHS, Arch
from .errors import BadInput
from .errors import Problem as InputProblem
from .families import Apart, Variant
from .path_ranges import path_ranges
from .problem import Problem
from .ranges import Limits, Range, portable_ranges, ranges_of
from .spec import RouterSpec
from .spills import Spills
from .tuned import Tuned


@dataclass(frozen=True)
class Group:
    """The SM targets that share one source file, and its ranges: ordered, without gaps, the last one open."""

    sm_targets: tuple[int, ...]
    ranges: tuple[Range, ...]
    extra_variants: tuple[Variant | Apart, ...] = ()  # compiled beside those that serve, for tuners and benchmarks
    # The same without what only these very targets can run, for chips to come, which run PTX; empty where that is all.
    portable_ranges: tuple[Range, ...] = ()

    @property
    def sm(self) -> int:
        """The target that names the group: all its features are those of the oldest chip in it."""
        return self.sm_targets[0]

    @property
    def arch(self) -> Arch:
        return ARCHS[self.sm]

    @property
    def served_by(self) -> tuple[Variant | Apart, ...]:
        """What can be launched by name, each once, in order of use."""
        serving = [r.variant for r in (*self.ranges, *self.portable_ranges) if r.variant]
        return tuple(dict.fromkeys([*serving, *self.extra_variants]))

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Each compiled variant once, in order of use."""
        return tuple(variant for variant in self.served_by if not isinstance(variant, Apart))

    @property
    def apart(self) -> tuple[Apart, ...]:
        """Those of a path that launch its stages one by one."""
        return tuple(variant for variant in self.served_by if isinstance(variant, Apart))

    @property
    def accelerated(self) -> bool:
        """Whether a compiled variant needs instructions that no later chip has."""
        return any(variant.accelerated for variant in self.variants)

    def range_of(self, num_tokens: int) -> Range:
        return next(r for r in self.ranges if num_tokens in r)


@dataclass(frozen=True)
class Kernel:
    """One problem, the models that have it, and how each group of targets serves it."""

    problem: Problem
    specs: tuple[RouterSpec, ...]
    groups: tuple[Group, ...]

    @property
    def name(self) -> str:
        return naming.kernel_name(self.problem)

    @property
    def allow_spills(self) -> bool:
        return all(spec.allow_spills for spec in self.specs)

    def group_of(self, sm: int) -> Group | None:
        """The group whose machine code a chip runs: a minimum, never a maximum. None when it is older than all.

        Machine code runs on later chips of its major version; PTX, which only the newest target carries, on all later.
        """
        targets = sorted(t for group in self.groups for t in group.sm_targets)
        runnable = [t for t in targets if t <= sm and (t // 10 == sm // 10 or t == targets[-1])]
        return next((g for g in self.groups if runnable and runnable[-1] in g.sm_targets), None)


@dataclass(frozen=True)
class Plan:
    """Kernels of the gates, with their norms, and of the whole paths that have a residual add or a selection besides:
    each model has one of the first, and where its path goes on one of the second.
    """

    kernels: tuple[Kernel, ...]
    paths: tuple[Kernel, ...] = ()

    @property
    def all_kernels(self) -> tuple[Kernel, ...]:
        return (*self.kernels, *self.paths)

    def kernel_of(self, model: str) -> Kernel:
        """The kernel of a model's gate. KeyError for a model that no spec names."""
        for kernel in self.kernels:
            if any(spec.name == model for spec in kernel.specs):
                return kernel
        raise KeyError(model)

    def path_of(self, model: str) -> Kernel | None:
        """The kernel of a model's whole path; None where that is no more than the gate with its norm."""
        return next((path for path in self.paths if any(spec.name == model for spec in path.specs)), None)

    def gate_of(self, path: Kernel) -> Kernel:
        """The kernel of the gate in a path."""
        return next(kernel for kernel in self.kernels if kernel.problem == path.problem.gate_part)


def make_plan(
    specs: Iterable[RouterSpec],
    tables: Tuned = {},  # noqa: B006  nothing writes to it
    spills: Spills = {},  # noqa: B006
) -> Plan:
    """Groups specs by what they compute and decides each kernel, by its tuned tables where `tables` has them, and
    without what `spills` says of it.

    BadInput when sharing specs want different thresholds or batch invariance, or a tuned range cannot serve its kernel.
    """
    specs = sorted(specs, key=lambda s: s.name)
    gates = _by_problem(specs, lambda spec: Problem.of(spec).gate_part)
    paths = {path: sharing for path, sharing in _by_problem(specs, Problem.of).items() if path not in gates}
    wrong = [
        problem
        for path in (*gates, *paths)
        for (kernel, _), table in sorted(tables.items())
        if kernel == naming.kernel_name(path)
        for problem in tuned.illegal(table, path)
    ]
    if wrong:
        raise BadInput(wrong)

    def spilled(problem: Problem) -> frozenset[str]:
        return spills.get(naming.kernel_name(problem), frozenset())

    kernels = {problem: _kernel(problem, sharing, tables, spilled(problem)) for problem, sharing in gates.items()}
    return Plan(
        tuple(kernels.values()),
        tuple(
            _path(problem, sharing, kernels[problem.gate_part], tables, spilled(problem))
            for problem, sharing in paths.items()
        ),
    )


def _by_problem(specs: Iterable[RouterSpec], of: Callable[[RouterSpec], Problem]) -> dict[Problem, list[RouterSpec]]:
    """Specs that share a problem, in the order of the kernels' names."""
    found: dict[Problem, list[RouterSpec]] = {}
    for spec in specs:
        found.setdefault(of(spec), []).append(spec)
    return dict(sorted(found.items(), key=lambda item: naming.kernel_name(item[0])))


def _kernel(problem: Problem, specs: Sequence[RouterSpec], tables: Tuned, spilled: frozenset[str]) -> Kernel:
    explicit = {spec.name: spec.token_thresholds for spec in specs if spec.token_thresholds != "auto"}
    _require_same("token_thresholds", explicit)
    _require_same("batch_invariant", {spec.name: spec.batch_invariant for spec in specs})
    thresholds = next(iter(explicit.values()), None)
    gemv, split_k = (thresholds.gemv, thresholds.split_k) if thresholds else (None, None)
    limits = Limits(gemv, split_k, specs[0].batch_invariant, spilled)
    targets = sorted({sm for spec in specs for sm in spec.sm_targets})
    # Targets whose ranges come out equal share a source file. Where no tuned table speaks for a target, one reference
    # chip stands for the multiprocessors of its generation.
    groups: dict[tuple[bool, tuple[Range, ...]], list[int]] = {}
    known: dict[tuple[bool, bool, int, int], tuple[Range, ...]] = {}
    for sm in targets:
        if table := tables.get((naming.kernel_name(problem), sm)):
            groups.setdefault((ARCHS[sm].has_cluster, ranges_of(problem, ARCHS[sm], limits, table)), []).append(sm)
            continue
        reference = ARCHS[90 if ARCHS[sm].has_cluster else 80]
        arch = replace(ARCHS[sm], multiprocessors=reference.multiprocessors)
        alike = (arch.has_cluster, arch.has_wgmma, arch.max_smem_per_block, arch.max_smem_per_sm)
        if alike not in known:
            known[alike] = ranges_of(problem, arch, limits, None)
        groups.setdefault((arch.has_cluster, known[alike]), []).append(sm)
    return Kernel(
        problem,
        tuple(specs),
        tuple(
            Group(tuple(sms), ranges, portable_ranges=portable_ranges(problem, ARCHS[sms[0]], limits, tables, ranges))
            for (_, ranges), sms in groups.items()
        ),
    )


def _path(
    problem: Problem, specs: Sequence[RouterSpec], gate: Kernel, tables: Tuned, spilled: frozenset[str]
) -> Kernel:
    """The kernel of a whole path. The gate's kernel does what is apart, so each group lies within one of that's."""
    as_the_gate = gate.specs[0].batch_invariant or any(spec.token_thresholds != "auto" for spec in gate.specs)
    groups = []
    for gate_group in gate.groups:
        by_ranges: dict[tuple[Range, ...], list[int]] = {}
        for sm in gate_group.sm_targets:
            table = tables.get((naming.kernel_name(problem), sm))
            ranges = path_ranges(problem, gate_group.arch, gate_group.ranges, table, spilled, as_the_gate=as_the_gate)
            by_ranges.setdefault(ranges, []).append(sm)
        for ranges, sms in by_ranges.items():
            portable: tuple[Range, ...] = ()
            if gate_group.portable_ranges:
                table = tables.get((naming.kernel_name(problem), sms[0]))
                portable = path_ranges(
                    problem, gate_group.arch, gate_group.portable_ranges, table, spilled, as_the_gate=as_the_gate
                )
            groups.append(Group(tuple(sms), ranges, portable_ranges=portable))
    return Kernel(problem, tuple(specs), tuple(groups))


def _require_same(key: str, values: Mapping[str, object]) -> None:
    """BadInput where specs that share a kernel, by name, say different things."""
    if len(set(values.values())) > 1:
        raise BadInput(
            [
                InputProblem(
                    f"{name}.yaml",
                    None,
                    f"{key}: differs from that of {', '.join(sorted(set(values) - {name}))}, which has the same path "
                    "and so shares its kernel; give them the same",
                )
                for name in sorted(values)
            ]
        )
