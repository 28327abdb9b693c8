"""What the compiler gave each function: registers, shared memory, spills."""

from __future__ import annotations

from ..arch import MAX_REGISTERS
from ..families import FAMILIES
from ..resources import Usage
from .charts import Dot, dots
from .facts import Facts, Kernel
from .kernels import by_kind, family_legend, short
from .parts import Figure, Key, Table

_HELPER = "helper"


def legend() -> list[Key]:
    """The families, and the functions around them."""
    return [*family_legend(), Key(_HELPER, "stages in a launch of their own, and what adds up", "block")]


def figures(facts: Facts) -> list[Figure]:
    """Registers of each function on the report's chip; a row a kernel, named by its models."""
    found = []
    for title, kernels in by_kind(facts):
        rows = {kernel.name: ", ".join(kernel.models) for kernel in kernels}
        used = [(kernel, usage) for kernel in kernels for usage in _usages(facts, kernel)]
        if not used:
            continue
        drawn = [
            Dot(
                rows[kernel.name],
                usage.registers or 0,
                _family(kernel, usage.function),
                f"{short(kernel, usage.function)} of {rows[kernel.name]}: {usage.registers} registers, "
                f"{usage.smem:,} bytes of static shared memory, {usage.spill} bytes of spills",
            )
            for kernel, usage in used
        ]
        table = Table(
            ("models", "function", "registers", "static shared memory", "spills", "stack"),
            tuple(
                (rows[k.name], short(k, u.function), f"{u.registers}", f"{u.smem:,}", f"{u.spill:,}", f"{u.stack:,}")
                for k, u in used
            ),
            left=2,
        )
        words = f"{title}: registers of a thread on sm_{facts.sm}, by the compiler's report"
        chart = dots(list(rows.values()), drawn, words, "registers of a thread", (0, MAX_REGISTERS + 5))
        found.append(Figure(f"registers-{title.split()[0].lower()}", title, f"sm_{facts.sm}", chart, table, "marks"))
    return found


def summary(facts: Facts) -> Table | None:
    """A row for each SM that was compiled for."""
    by_sm: dict[int, list[Usage]] = {}
    for (_, sm), usage in sorted(facts.usages.items(), key=lambda item: item[0][1]):
        if usage.registers is not None:
            by_sm.setdefault(sm, []).append(usage)
    if not by_sm:
        return None
    rows = [
        (
            f"sm_{sm}",
            f"{len(usages):,}",
            str(max(usage.registers or 0 for usage in usages)),
            f"{max(usage.smem for usage in usages):,}",
            f"{sum(usage.spill for usage in usages):,}",
            f"{sum(usage.stack for usage in usages):,}",
        )
        for sm, usages in by_sm.items()
    ]
    headings = ("chip", "functions", "most registers", "most static shared memory", "bytes of spills", "bytes of stack")
    return Table(headings, tuple(rows))


def _usages(facts: Facts, kernel: Kernel) -> list[Usage]:
    """Those of the kernel's functions on the report's chip. A function's name starts with its kernel's, and so do those
    of kernels with a longer name.
    """
    longer = [other.name for other in facts.kernels if other.name.startswith(f"{kernel.name}_")]
    return [
        usage
        for (function, sm), usage in facts.usages.items()
        if sm == facts.sm
        and usage.registers is not None
        and function.startswith(f"{kernel.name}_")
        and not any(function.startswith(f"{name}_") for name in longer)
    ]


def _family(kernel: Kernel, function: str) -> str:
    name = short(kernel, function)
    return next((family for family in FAMILIES if name.startswith(f"{family}_")), _HELPER)
