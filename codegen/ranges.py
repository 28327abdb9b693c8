"""Which variants serve a kernel's token counts on a chip: as measured, as a spec's thresholds say, or as estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import cost, naming, tuned
from .arch import Arch
from .families import FAMILIES, Apart, Order, Variant, order_of_sums, parse
from .problem import Problem
from .tuned import LAST_ANCHOR, Tuned, TunedTable
from .variants import candidates, objections

# Where one range may end and the next begin. Close together where a token more shows in the time, and every tensor-core
# tile's full counts; the variant of an interval is chosen for its last count, of the open one for tuned.LAST_ANCHOR.
BOUNDARIES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
# Every gemv CTA reads all of x, so beyond 4 tokens the tensor cores win whatever the shape (docs/notes/kernels.md).
AUTO_GEMV_LIMIT = 4

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


def portable_ranges(
    problem: Problem, arch: Arch, limits: Limits, tables: Tuned, ranges: tuple[Range, ...]
) -> tuple[Range, ...]:
    """What serves instead where the chip is none of the targets; empty where `ranges` can."""
    if not any(r.variant and r.variant.accelerated for r in ranges):
        return ()
    plain = replace(arch, has_wgmma=False)
    if limits.batch_invariant:
        return ranges_of(problem, plain, limits, tables.get((naming.kernel_name(problem), arch.sm)))
    portable: list[Range] = []
    for served in ranges:
        if served.variant and served.variant.accelerated:
            served = _instead(problem, plain, limits, tables.get((naming.kernel_name(problem), arch.sm)), served)
        if portable and portable[-1].variant == served.variant:
            portable[-1] = replace(portable[-1], last_token=served.last_token)
        else:
            portable.append(served)
    return tuple(portable)


def _instead(problem: Problem, arch: Arch, limits: Limits, table: TunedTable | None, served: Range) -> Range:
    """A range for another chip: what was measured next best, else what the cost model ranks best."""
    anchor = served.last_token or LAST_ANCHOR
    families = families_for(anchor, limits.gemv, limits.split_k)
    timed = tuned.legal_measured(table, problem, anchor) if table else []
    plain = [v for _, v in timed if v.family in families and not objections(problem, arch, v)]
    plain = plain or [variant for _, variant in ranked(problem, arch, anchor, families, limits.spilled)]
    if not plain:
        return replace(served, variant=None, why="no variant is legal for this shape", rejected=())
    why = f"{served.name} needs sm_{arch.sm}a; this is the best that later chips can run"
    return replace(served, variant=plain[0], why=why, rejected=())


@dataclass(frozen=True)
class Limits:
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


def ranges_of(problem: Problem, arch: Arch, limits: Limits, table: TunedTable | None) -> tuple[Range, ...]:
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


def _invariant_ranges(problem: Problem, arch: Arch, limits: Limits, table: TunedTable | None) -> tuple[Range, ...]:
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
        why = f"batch_invariant: the order of sums that loses least to {in_tokens(_DECODE_TOKENS)} ({source})"
        faster = [(other, their_us) for their_us, other in timed[anchor][:3] if their_us < us]
        rejected = tuple((v.name, f"another order; {their_us / us:.2f} times the time") for v, their_us in faster)
        ranges.append(Range(first, last, variant, why, rejected))
    return tuple(ranges)


def _timed(
    problem: Problem, arch: Arch, limits: Limits, table: TunedTable | None, num_tokens: int
) -> list[tuple[float, Variant]]:
    """Variants that can serve a count, fastest first: as measured, else as estimated."""
    measured = tuned.legal_measured(table, problem, num_tokens) if table else []
    return measured or ranked(problem, arch, num_tokens, FAMILIES, limits.spilled)


def _chosen(
    problem: Problem, arch: Arch, limits: Limits, table: TunedTable | None, first: int, last: int | None
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
        return measured(first, last, variant, table, at, timings.get(at, []))
    families = families_for(anchor, limits.gemv, limits.split_k)
    if table and limits.explicit:
        timed = [one for one in tuned.legal_measured(table, problem, anchor) if one[1].family in families]
        if timed:
            return measured(first, last, timed[0][1], table, anchor, timed)
    estimated = ranked(problem, arch, anchor, families, limits.spilled)
    if not estimated:
        return Range(first, last, None, "no variant is legal for this shape", ())
    source = "the spec says so" if limits.explicit else "no tuned table for this SM (python build.py tune); cost model"
    if table and not limits.explicit:
        source = "not measured on this SM yet (python build.py tune); cost model"
    legal = " and ".join(family for family in families if any(v.family == family for _, v in estimated))
    why = f"cheapest of {len(estimated)} legal variants of {legal} at {in_tokens(anchor)} ({source})"
    rejected = tuple((v.name, f"{us / estimated[0][0]:.2f} times the estimate") for us, v in estimated[1:4])
    return Range(first, last, estimated[0][1], why, rejected)


def in_tokens(count: int) -> str:
    """A count in words, as in "1 token"."""
    return f"{count} token{'s' * (count != 1)}"


def measured(
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
    why = f"measured on {table.chip}: {own:.2f} us at {in_tokens(num_tokens)}"
    if others:
        us, other = others[0]
        why += f", next best {other.name} {us:.2f}" if us >= own else f"; {other.name}, {us:.2f}, saves too little"
    return Range(first, last, variant, why, tuple((v.name, f"{us / own:.2f} times the time") for us, v in others))


def families_for(num_tokens: int, gemv_limit: int | None, split_k_limit: int | None) -> tuple[str, ...]:
    """Which families may serve a token count: a spec's thresholds are each family's last."""
    if gemv_limit is not None and num_tokens <= gemv_limit:
        return ("gemv",)
    if split_k_limit is not None:
        return ("split_k",) if num_tokens <= split_k_limit else ("tiled", "resident", "wgmma")
    if gemv_limit is None and num_tokens <= AUTO_GEMV_LIMIT:
        return ("gemv", "split_k")
    return ("split_k", "tiled", "resident", "wgmma")


def ranked(
    problem: Problem, arch: Arch, num_tokens: int, families: tuple[str, ...], spilled: frozenset[str]
) -> list[tuple[float, Variant]]:
    """Legal variants by estimated cost, but for what a compiler spilled; ties go to the first in the order of
    variants.py.
    """
    legal = [v for v in candidates(problem, arch, num_tokens) if v.family in families and v.name not in spilled]
    costs = [cost.microseconds(problem, arch, v, num_tokens) for v in legal]
    order = sorted(range(len(legal)), key=lambda i: (costs[i], i))
    return [(costs[i], legal[i]) for i in order]
