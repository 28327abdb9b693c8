"""Spec x SM into a frozen Plan: which variant serves which token range. Pure; everything decided is decided here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from . import cost, naming, tuned
from .arch import ARCHS, Arch
from .errors import BadInput
from .errors import Problem as InputProblem
from .families import FAMILIES, FUSING, MOST_TOKENS_FUSED, Apart, Order, Variant, order_of_sums, parse, parse_served
from .problem import Problem
from .spec import RouterSpec
from .spills import Spills
from .tuned import LAST_ANCHOR, Tuned, TunedTable
from .variants import candidates, objections

# Where one range may end and the next begin. Close together where a token more shows in the time, and every tensor-core
# tile's full counts; the variant of an interval is chosen for its last count, of the open one for tuned.LAST_ANCHOR.
BOUNDARIES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048)
# Every gemv CTA reads all of x, so beyond 4 tokens the tensor cores win whatever the shape (docs/notes/kernels.md).
AUTO_GEMV_LIMIT = 4

# Where nothing was measured, a path is one launch up to here: where it was, the largest shapes are served faster apart
# from 24 tokens on (docs/notes/path.md).
AUTO_FUSED_LIMIT = 16

# Up to here batch invariance is to cost little: what an engine decodes at once. Beyond, prefills follow.
_DECODE_TOKENS = 64

REFERENCE = "reference"


@dataclass(frozen=True)
class Range:
    """first_token..last_token (None: no end) are served by a variant (None: by the reference composition).

    Apart is for kernels of a whole path.
    """

    first_token: int
    last_token: int | None
    variant: Variant | Apart | None
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
    limits = _Limits(gemv, split_k, specs[0].batch_invariant, spilled)
    targets = sorted({sm for spec in specs for sm in spec.sm_targets})
    # Targets whose ranges come out equal share a source file. Where no tuned table speaks for a target, one reference
    # chip stands for the multiprocessors of its generation.
    groups: dict[tuple[bool, tuple[Range, ...]], list[int]] = {}
    known: dict[tuple[bool, bool, int, int], tuple[Range, ...]] = {}
    for sm in targets:
        if table := tables.get((naming.kernel_name(problem), sm)):
            groups.setdefault((ARCHS[sm].has_cluster, _ranges(problem, ARCHS[sm], limits, table)), []).append(sm)
            continue
        reference = ARCHS[90 if ARCHS[sm].has_cluster else 80]
        arch = replace(ARCHS[sm], multiprocessors=reference.multiprocessors)
        alike = (arch.has_cluster, arch.has_wgmma, arch.max_smem_per_block, arch.max_smem_per_sm)
        if alike not in known:
            known[alike] = _ranges(problem, arch, limits, None)
        groups.setdefault((arch.has_cluster, known[alike]), []).append(sm)
    return Kernel(
        problem,
        tuple(specs),
        tuple(
            Group(tuple(sms), ranges, portable_ranges=_portable(problem, ARCHS[sms[0]], limits, tables, ranges))
            for (_, ranges), sms in groups.items()
        ),
    )


def _path(
    problem: Problem, specs: Sequence[RouterSpec], gate: Kernel, tables: Tuned, spilled: frozenset[str]
) -> Kernel:
    """The kernel of a whole path. The gate's kernel does what is apart, so each group lies within one of that's."""
    groups = []
    for gate_group in gate.groups:
        by_ranges: dict[tuple[Range, ...], list[int]] = {}
        for sm in gate_group.sm_targets:
            table = tables.get((naming.kernel_name(problem), sm))
            ranges = _path_ranges(problem, gate_group.arch, gate, gate_group.ranges, table, spilled)
            by_ranges.setdefault(ranges, []).append(sm)
        for ranges, sms in by_ranges.items():
            portable: tuple[Range, ...] = ()
            if gate_group.portable_ranges:
                table = tables.get((naming.kernel_name(problem), sms[0]))
                portable = _path_ranges(problem, gate_group.arch, gate, gate_group.portable_ranges, table, spilled)
            groups.append(Group(tuple(sms), ranges, portable_ranges=portable))
    return Kernel(problem, tuple(specs), tuple(groups))


def _path_ranges(
    problem: Problem,
    arch: Arch,
    gate: Kernel,
    gate_ranges: Sequence[Range],
    table: TunedTable | None,
    spilled: frozenset[str],
) -> tuple[Range, ...]:
    """One launch or several for each of the gate's ranges, and for what a table tells apart within them."""
    ends = {served.last_token for served in gate_ranges if served.last_token} | {AUTO_FUSED_LIMIT, MOST_TOKENS_FUSED}
    if table:
        ends |= {served.last_token for served in table.ranges if served.last_token}
    ranges: list[Range] = []
    for last in (*sorted(ends), None):
        first = ranges[-1].last_token + 1 if ranges and ranges[-1].last_token else 1
        inner = next(served for served in gate_ranges if first in served)
        chosen = _path_range(problem, arch, gate, inner, table, spilled, first, last)
        if ranges and ranges[-1].variant == chosen.variant:
            ranges[-1] = replace(ranges[-1], last_token=last)
        else:
            ranges.append(chosen)
    return tuple(ranges)


def _path_range(
    problem: Problem,
    arch: Arch,
    gate: Kernel,
    inner: Range,
    table: TunedTable | None,
    spilled: frozenset[str],
    first: int,
    last: int | None,
) -> Range:
    """What serves an interval within one of the gate's ranges."""
    if inner.variant is None or isinstance(inner.variant, Apart):
        return Range(first, last, None, inner.why, ())
    apart = Range(
        first, last, Apart(inner.variant), f"between launches of the other stages, the gate's: {inner.why}", ()
    )
    if last is None or last > MOST_TOKENS_FUSED:
        return apart
    if gate.specs[0].batch_invariant or any(spec.token_thresholds != "auto" for spec in gate.specs):
        # The gate's own variant is what the spec asks for: its order of sums, or its family.
        if inner.variant.family in FUSING and not objections(problem, arch, inner.variant):
            return Range(
                first, last, inner.variant, f"the gate's, with the other stages in its launch: {inner.why}", ()
            )
        return apart
    if table and (served := table.range_of(last)):
        counts = [count for count in table.measured if first <= count <= last]
        at = max(counts, default=last)
        # Apart, it is the gate's table that says which of its variants serves.
        variant = parse_served(served.variant)
        chosen = apart.variant if isinstance(variant, Apart) else variant
        return _measured(first, last, chosen, table, at, tuned.measured(table, at))
    source = "no tuned table for this SM (python build.py tune); cost model"
    if last > AUTO_FUSED_LIMIT:
        return apart
    own = inner.variant.family in FUSING and not objections(problem, arch, inner.variant)
    own = own and inner.variant.name not in spilled
    ranked = _ranked(problem, arch, last, _fusing(last), spilled)
    if own:
        fused, why = inner.variant, f"the gate's, with the other stages in its launch ({source}); {inner.why}"
    elif ranked:
        fused, why = ranked[0][1], f"cheapest of {len(ranked)} legal variants in one launch at {last} tokens ({source})"
    else:
        return apart
    fused_us = cost.microseconds(problem, arch, fused, last) + cost.fused_microseconds(problem)
    apart_us = cost.microseconds(gate.problem, arch, inner.variant, last) + cost.apart_microseconds(problem)
    if fused_us > apart_us and not own:
        why = f"in launches of their own the stages cost less than in one, at {last} tokens ({source})"
        return replace(apart, why=why, rejected=((fused.name, f"{fused_us / apart_us:.2f} times the estimate"),))
    return Range(first, last, fused, why, ((apart.name, f"{apart_us / fused_us:.2f} times the estimate"),))


def _fusing(num_tokens: int) -> tuple[str, ...]:
    return tuple(family for family in _families(num_tokens, None, None) if family in FUSING)


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


def _portable(
    problem: Problem, arch: Arch, limits: _Limits, tables: Tuned, ranges: tuple[Range, ...]
) -> tuple[Range, ...]:
    """What serves instead where the chip is none of the targets; empty where `ranges` can."""
    if not any(r.variant and r.variant.accelerated for r in ranges):
        return ()
    plain = replace(arch, has_wgmma=False)
    if limits.batch_invariant:
        return _ranges(problem, plain, limits, tables.get((naming.kernel_name(problem), arch.sm)))
    portable: list[Range] = []
    for served in ranges:
        if served.variant and served.variant.accelerated:
            served = _instead(problem, plain, limits, tables.get((naming.kernel_name(problem), arch.sm)), served)
        if portable and portable[-1].variant == served.variant:
            portable[-1] = replace(portable[-1], last_token=served.last_token)
        else:
            portable.append(served)
    return tuple(portable)


def _instead(problem: Problem, arch: Arch, limits: _Limits, table: TunedTable | None, served: Range) -> Range:
    """A range for another chip: what was measured next best, else what the cost model ranks best."""
    anchor = served.last_token or LAST_ANCHOR
    families = _families(anchor, limits.gemv, limits.split_k)
    timed = tuned.legal_measured(table, problem, anchor) if table else []
    plain = [v for _, v in timed if v.family in families and not objections(problem, arch, v)]
    plain = plain or [variant for _, variant in _ranked(problem, arch, anchor, families, limits.spilled)]
    if not plain:
        return replace(served, variant=None, why="no variant is legal for this shape", rejected=())
    why = f"{served.name} needs sm_{arch.sm}a; this is the best that later chips can run"
    return replace(served, variant=plain[0], why=why, rejected=())


@dataclass(frozen=True)
class _Limits:
    """A spec's thresholds: the last token count of each family, None where it leaves that open; whether one order of
    sums is to serve all counts; and what a compiler spilled.
    """

    gemv: int | None
    split_k: int | None
    batch_invariant: bool
    spilled: frozenset[str]

    @property
    def explicit(self) -> bool:
        return self.gemv is not None or self.split_k is not None


def _ranges(problem: Problem, arch: Arch, limits: _Limits, table: TunedTable | None) -> tuple[Range, ...]:
    if limits.batch_invariant:
        return _invariant_ranges(problem, arch, limits, table)
    ends = {*BOUNDARIES, *(limit for limit in (limits.gemv, limits.split_k) if limit)}
    if table and not limits.explicit:
        # Beyond what was measured the cost model decides, at its own boundaries.
        measured = {served.last_token for served in table.ranges if served.last_token is not None}
        unmeasured = {end for end in ends if table.range_of(end) is None}
        ends = measured | unmeasured
    ranges: list[Range] = []
    for last in (*sorted(ends), None):
        first = ranges[-1].last_token + 1 if ranges and ranges[-1].last_token else 1
        chosen = _chosen(problem, arch, limits, table, first, last)
        if ranges and chosen.variant is not None and ranges[-1].variant == chosen.variant:
            ranges[-1] = replace(ranges[-1], last_token=last)
        else:
            ranges.append(chosen)
    return tuple(ranges)


def _invariant_ranges(problem: Problem, arch: Arch, limits: _Limits, table: TunedTable | None) -> tuple[Range, ...]:
    """One order of sums for all counts: of those that lose least against the fastest of any order, the one that loses
    least where it loses most. Counts to _DECODE_TOKENS decide; counts beyond follow.
    """
    anchors = (*BOUNDARIES, LAST_ANCHOR)
    timed = {anchor: _timed(problem, arch, limits, table, anchor) for anchor in anchors}
    by_order: dict[Order, dict[int, tuple[float, Variant]]] = {}
    for anchor, found in timed.items():
        for us, variant in found:
            if variant.max_tokens is None and not objections(problem, arch, variant):
                by_order.setdefault(order_of_sums(problem, variant), {}).setdefault(anchor, (us, variant))
    # What was timed at no count from 64 on would be judged by a guess where it matters.
    known = {order: own for order, own in by_order.items() if max(own) >= _DECODE_TOKENS}
    by_order = known or by_order
    if not by_order:
        return (Range(1, None, None, "no variant that serves every count is legal for this shape", ()),)

    def at(order: Order, anchor: int) -> tuple[float, Variant]:
        """The order's fastest at a count, or at the next it was timed at: a larger tile serves fewer tokens too. Beyond
        the last count that it was timed at, the time grows as the cost model says.
        """
        own = by_order[order]
        if (timed_at := min((a for a in own if a >= anchor), default=None)) is not None:
            return own[timed_at]
        us, variant = own[max(own)]
        grown, there = (cost.microseconds(problem, arch, variant, count) for count in (anchor, max(own)))
        return us * grown / there, variant

    def loss(order: Order) -> tuple[float, float]:
        ratios = {a: at(order, a)[0] / timed[a][0][0] for a in anchors if timed[a]}
        return max(ratio for a, ratio in ratios.items() if a <= _DECODE_TOKENS), sum(ratios.values())

    best = min(by_order, key=loss)
    source = f"measured on {table.chip}" if table else "no tuned table for this SM (python build.py tune); cost model"
    ranges: list[Range] = []
    for last, anchor in zip((*BOUNDARIES, None), anchors, strict=True):
        us, variant = at(best, anchor)
        if ranges and ranges[-1].variant == variant:
            ranges[-1] = replace(ranges[-1], last_token=last)
            continue
        first = ranges[-1].last_token + 1 if ranges and ranges[-1].last_token else 1
        why = f"batch_invariant: the order of sums that loses least to {_DECODE_TOKENS} tokens ({source})"
        faster = [(other, their_us) for their_us, other in timed[anchor][:3] if their_us < us]
        rejected = tuple((v.name, f"another order; {their_us / us:.2f} times the time") for v, their_us in faster)
        ranges.append(Range(first, last, variant, why, rejected))
    return tuple(ranges)


def _timed(
    problem: Problem, arch: Arch, limits: _Limits, table: TunedTable | None, num_tokens: int
) -> list[tuple[float, Variant]]:
    """Variants that can serve a count, fastest first: as measured, else as estimated."""
    measured = tuned.legal_measured(table, problem, num_tokens) if table else []
    return measured or _ranked(problem, arch, num_tokens, FAMILIES, limits.spilled)


def _chosen(
    problem: Problem, arch: Arch, limits: _Limits, table: TunedTable | None, first: int, last: int | None
) -> Range:
    """What serves an interval: the tuned range there is, else the fastest measured or estimated of allowed families."""
    anchor = LAST_ANCHOR if last is None else last
    if table and not limits.explicit and (served := table.range_of(anchor)):
        variant = parse(served.variant)
        counts = [count for count in table.measured if first <= count and (last is None or count <= last)]
        timings = {count: tuned.legal_measured(table, problem, count) for count in counts}
        # A range goes on where another is faster by less than the spread; a count that it won speaks for it.
        won = [count for count, timed in timings.items() if timed and timed[0][1] == variant]
        at = max(won, default=max(counts, default=anchor))
        return _measured(first, last, variant, table, at, timings.get(at, []))
    families = _families(anchor, limits.gemv, limits.split_k)
    if table and limits.explicit:
        timed = [one for one in tuned.legal_measured(table, problem, anchor) if one[1].family in families]
        if timed:
            return _measured(first, last, timed[0][1], table, anchor, timed)
    ranked = _ranked(problem, arch, anchor, families, limits.spilled)
    if not ranked:
        return Range(first, last, None, "no variant is legal for this shape", ())
    source = "the spec says so" if limits.explicit else "no tuned table for this SM (python build.py tune); cost model"
    if table and not limits.explicit:
        source = "not measured on this SM yet (python build.py tune); cost model"
    why = f"cheapest of {len(ranked)} legal variants of {' and '.join(families)} at {anchor} tokens ({source})"
    rejected = tuple((v.name, f"{us / ranked[0][0]:.2f} times the estimate") for us, v in ranked[1:4])
    return Range(first, last, ranked[0][1], why, rejected)


def _measured(
    first: int,
    last: int | None,
    variant: Variant | Apart | None,
    table: TunedTable,
    num_tokens: int,
    timed: Sequence[tuple[float, Variant | Apart]],
) -> Range:
    """A range that a measurement decided; `timed` are the variants measured at that count, fastest first."""
    own = next((us for us, other in timed if other == variant), None)
    others = [(us, other) for us, other in timed if other != variant][:3]
    if not own:
        return Range(first, last, variant, f"measured on {table.chip}", ())
    why = f"measured on {table.chip}: {own:.2f} us at {num_tokens} tokens"
    if others:
        why += f", next best {others[0][1].name} {others[0][0]:.2f}"
    return Range(first, last, variant, why, tuple((v.name, f"{us / own:.2f} times the time") for us, v in others))


def _families(num_tokens: int, gemv_limit: int | None, split_k_limit: int | None) -> tuple[str, ...]:
    """Which families may serve a token count: a spec's thresholds are each family's last."""
    if gemv_limit is not None and num_tokens <= gemv_limit:
        return ("gemv",)
    if split_k_limit is not None:
        return ("split_k",) if num_tokens <= split_k_limit else ("tiled", "resident", "wgmma")
    if gemv_limit is None and num_tokens <= AUTO_GEMV_LIMIT:
        return ("gemv", "split_k")
    return ("split_k", "tiled", "resident", "wgmma")


def _ranked(
    problem: Problem, arch: Arch, num_tokens: int, families: tuple[str, ...], spilled: frozenset[str]
) -> list[tuple[float, Variant]]:
    """Legal variants by estimated cost, but for what a compiler spilled; ties go to the first in the order of
    variants.py.
    """
    legal = [v for v in candidates(problem, arch, num_tokens) if v.family in families and v.name not in spilled]
    costs = [cost.microseconds(problem, arch, v, num_tokens) for v in legal]
    order = sorted(range(len(legal)), key=lambda i: (costs[i], i))
    return [(costs[i], legal[i]) for i in order]
