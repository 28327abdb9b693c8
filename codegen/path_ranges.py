"""Which launches serve a whole path's token counts on a chip: one of its own, or the gate's between those of its other
stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import cost, tuned
from .arch import Arch
from .families import FUSING, MOST_TOKENS_FUSED, Apart, parse_served
from .problem import Problem
from .ranges import Range, families_for, in_tokens, measured, ranked
from .tuned import TunedTable
from .variants import objections

# Where nothing was measured, a path is one launch up to here: where it was, the largest shapes are served faster apart
# from 24 tokens on (docs/notes/path.md).
AUTO_FUSED_LIMIT = 16
# Variants in one launch that the compiler spilled, after which no more are tried: it is the selection itself that has
# too few registers, as with 1009 experts, so the stages are launches of their own.
MOST_SPILLED = 8


def path_ranges(
    problem: Problem,
    arch: Arch,
    gate_ranges: Sequence[Range],
    table: TunedTable | None,
    spilled: frozenset[str],
    *,
    as_the_gate: bool,
) -> tuple[Range, ...]:
    """One launch or several for each of the gate's ranges, and for what a table tells apart within them.

    as_the_gate: the gate's own variant is what the spec asks for, its order of sums or its family.
    """
    ends = {served.last_token for served in gate_ranges if served.last_token} | {AUTO_FUSED_LIMIT, MOST_TOKENS_FUSED}
    if table:
        ends |= {served.last_token for served in table.ranges if served.last_token}
    ranges: list[Range] = []
    for last in (*sorted(ends), None):
        first = ranges[-1].last_token + 1 if ranges and ranges[-1].last_token else 1
        inner = next(served for served in gate_ranges if first in served)
        chosen = _path_range(problem, arch, inner, table, spilled, as_the_gate, first, last)
        if ranges and ranges[-1].variant == chosen.variant:
            ranges[-1] = replace(ranges[-1], last_token=last)
        else:
            ranges.append(chosen)
    return tuple(ranges)


def _path_range(
    problem: Problem,
    arch: Arch,
    inner: Range,
    table: TunedTable | None,
    spilled: frozenset[str],
    as_the_gate: bool,
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
    in_one = len(spilled) < MOST_SPILLED
    own = in_one and inner.variant.family in FUSING and inner.variant.name not in spilled
    own = own and not objections(problem, arch, inner.variant)
    if as_the_gate:
        why = f"the gate's, with the other stages in its launch: {inner.why}"
        return Range(first, last, inner.variant, why, ()) if own else apart
    if table and (served := table.range_of(last)):
        counts = [count for count in table.measured if first <= count <= last]
        at = max(counts, default=last)
        # Apart, it is the gate's table that says which of its variants serves.
        variant = parse_served(served.variant)
        chosen = apart.variant if isinstance(variant, Apart) else variant
        timed = tuned.measured(table, at)
        if isinstance(chosen, Apart) and all(chosen != other for _, other in timed):
            why = f"in launches of their own, as measured on {table.chip}, the gate's: {inner.why}"
            return Range(first, last, chosen, why, ())
        return measured(first, last, chosen, table, at, timed)
    if last > AUTO_FUSED_LIMIT or not in_one:
        return apart
    source = "no tuned table for this SM (python build.py tune); cost model"
    estimated = ranked(problem, arch, last, _fusing(last), spilled)
    if own:
        unless_said = "" if source in inner.why else f" ({source})"
        fused, why = inner.variant, f"the gate's, with the other stages in its launch{unless_said}: {inner.why}"
    elif estimated:
        fused = estimated[0][1]
        why = f"cheapest of {len(estimated)} legal variants in one launch at {in_tokens(last)} ({source})"
    else:
        return apart
    fused_us = cost.microseconds(problem, arch, fused, last) + cost.fused_microseconds(problem)
    apart_us = cost.microseconds(problem.gate_part, arch, inner.variant, last) + cost.apart_microseconds(problem)
    if fused_us > apart_us and not own:
        why = f"in launches of their own the stages cost less than in one, at {in_tokens(last)} ({source})"
        return replace(apart, why=why, rejected=((fused.name, f"{fused_us / apart_us:.2f} times the estimate"),))
    return Range(first, last, fused, why, ((apart.name, f"{apart_us / fused_us:.2f} times the estimate"),))


def _fusing(num_tokens: int) -> tuple[str, ...]:
    return tuple(family for family in families_for(num_tokens, None, None) if family in FUSING)
