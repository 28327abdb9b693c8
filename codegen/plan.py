"""Spec x SM into a frozen Plan: which variant serves which token range. Pure; everything decided is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from . import cost, naming
from .arch import ARCHS, Arch
from .errors import BadInput, Problem as InputProblem
from .problem import Problem
from .spec import RouterSpec
from .variants import Variant, candidates

# Where one range may end and the next begin. Close together where a token more shows in the time, and every tensor-core
# tile's full counts; the variant of an interval is chosen for its last count, of the open one for LAST_ANCHOR.
BOUNDARIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LAST_ANCHOR = 4096
# Every gemv CTA reads all of x, so beyond 4 tokens the tensor cores win whatever the shape (docs/notes/kernels.md).
AUTO_GEMV_LIMIT = 4

REFERENCE = "reference"


@dataclass(frozen=True)
class Range:
    """first_token..last_token (None: no end) are served by a variant (None: by the reference composition)."""

    first_token: int
    last_token: int | None
    variant: Variant | None
    why: str
    rejected: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return self.variant.name if self.variant else REFERENCE

    def __contains__(self, num_tokens: int) -> bool:
        return self.first_token <= num_tokens and (self.last_token is None or num_tokens <= self.last_token)


@dataclass(frozen=True)
class Group:
    """The SM targets that share one source file, and its ranges: ordered, without gaps, the last one open."""

    sm_targets: tuple[int, ...]
    ranges: tuple[Range, ...]
    extra_variants: tuple[Variant, ...] = ()  # compiled beside those that serve, for tuners and benchmarks

    @property
    def sm(self) -> int:
        """The target that names the group: all its features are those of the oldest chip in it."""
        return self.sm_targets[0]

    @property
    def arch(self) -> Arch:
        return ARCHS[self.sm]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Each compiled variant once, in order of use."""
        return tuple(dict.fromkeys([r.variant for r in self.ranges if r.variant] + list(self.extra_variants)))

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
    kernels: tuple[Kernel, ...]

    def kernel_of(self, model: str) -> Kernel:
        """KeyError for a model that no spec names."""
        for kernel in self.kernels:
            if any(spec.name == model for spec in kernel.specs):
                return kernel
        raise KeyError(model)


def make_plan(specs: Iterable[RouterSpec]) -> Plan:
    """Groups specs by what they compute and decides each kernel. BadInput when sharing specs want different thresholds."""
    by_problem: dict[Problem, list[RouterSpec]] = {}
    for spec in sorted(specs, key=lambda s: s.name):
        by_problem.setdefault(Problem.of(spec), []).append(spec)
    return Plan(tuple(_kernel(problem, sharing) for problem, sharing in sorted(by_problem.items())))


def _kernel(problem: Problem, specs: Sequence[RouterSpec]) -> Kernel:
    explicit = {spec.name: spec.token_thresholds for spec in specs if spec.token_thresholds != "auto"}
    if len(set(explicit.values())) > 1:
        raise BadInput(
            [
                InputProblem(
                    f"{name}.yaml",
                    None,
                    f"token_thresholds: differ from those of {', '.join(sorted(set(explicit) - {name}))}, which has the same "
                    "path and so shares its kernel; give them the same thresholds",
                )
                for name in sorted(explicit)
            ]
        )
    thresholds = next(iter(explicit.values()), None)
    gemv_limit = thresholds.gemv if thresholds else None
    split_k_limit = thresholds.split_k if thresholds else None
    source = "the spec says so" if explicit else "no tuned table: cost model"
    targets = sorted({sm for spec in specs for sm in spec.sm_targets})
    # Targets whose ranges come out equal share a source file. Until a tuned table speaks for a single target, one
    # reference chip stands for the multiprocessors of each generation.
    groups: dict[tuple[bool, tuple[Range, ...]], list[int]] = {}
    known: dict[tuple[bool, int, int], tuple[Range, ...]] = {}
    for sm in targets:
        reference = ARCHS[90 if ARCHS[sm].has_cluster else 80]
        arch = replace(ARCHS[sm], multiprocessors=reference.multiprocessors)
        alike = (arch.has_cluster, arch.max_smem_per_block, arch.max_smem_per_sm)
        if alike not in known:
            known[alike] = _ranges(problem, arch, gemv_limit, split_k_limit, source)
        groups.setdefault((arch.has_cluster, known[alike]), []).append(sm)
    return Kernel(problem, tuple(specs), tuple(Group(tuple(sms), ranges) for (_, ranges), sms in groups.items()))


def _ranges(
    problem: Problem, arch: Arch, gemv_limit: int | None, split_k_limit: int | None, source: str
) -> tuple[Range, ...]:
    limits = {limit for limit in (gemv_limit, split_k_limit) if limit}
    ends: list[int | None] = [*sorted(limits | set(BOUNDARIES)), None]
    ranges: list[Range] = []
    for last in ends:
        first = ranges[-1].last_token + 1 if ranges and ranges[-1].last_token else 1
        anchor = LAST_ANCHOR if last is None else last
        families = _families(anchor, gemv_limit, split_k_limit)
        ranked = _ranked(problem, arch, anchor, families)
        if not ranked:
            ranges.append(Range(first, last, None, "no variant is legal for this shape", ()))
        elif ranges and ranges[-1].variant == ranked[0][1]:
            ranges[-1] = replace(ranges[-1], last_token=last)
        else:
            why = f"cheapest of {len(ranked)} legal variants of {' and '.join(families)} at {anchor} tokens ({source})"
            rejected = tuple((v.name, f"{us / ranked[0][0]:.2f} times the estimate") for us, v in ranked[1:4])
            ranges.append(Range(first, last, ranked[0][1], why, rejected))
    return tuple(ranges)


def _families(num_tokens: int, gemv_limit: int | None, split_k_limit: int | None) -> tuple[str, ...]:
    """Which families may serve a token count: a spec's thresholds are each family's last."""
    if gemv_limit is not None and num_tokens <= gemv_limit:
        return ("gemv",)
    if split_k_limit is not None:
        return ("split_k",) if num_tokens <= split_k_limit else ("tiled",)
    if gemv_limit is None and num_tokens <= AUTO_GEMV_LIMIT:
        return ("gemv", "split_k")
    return ("split_k", "tiled")


def _ranked(
    problem: Problem, arch: Arch, num_tokens: int, families: tuple[str, ...]
) -> list[tuple[float, Variant]]:
    """Legal variants by estimated cost; ties go to the first in the order of variants.py."""
    legal = [v for v in candidates(problem, arch, num_tokens) if v.family in families]
    costs = [cost.microseconds(problem, arch, v, num_tokens) for v in legal]
    order = sorted(range(len(legal)), key=lambda i: (costs[i], i))
    return [(costs[i], legal[i]) for i in order]
