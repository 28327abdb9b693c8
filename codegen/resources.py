"""What ptxas says a kernel needs, read from its `-v` report, and the table of a whole build, in short and in full."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

from . import terminal

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for 'sm_(\d+)\w?'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SMEM = re.compile(r"(\d+) bytes smem")
_REPORT_LINE = re.compile(r"^ptxas info\s*:|^\s+\d+ bytes stack frame")


@dataclass(frozen=True)
class Usage:
    """What one function needs on one SM. registers: a thread's, None for a device function that is called,
    not inlined; smem: static shared memory; spill: stores and loads together; stack: frame. All but registers
    in bytes."""

    function: str
    sm: int
    registers: int | None = None
    smem: int = 0
    spill: int = 0
    stack: int = 0


@dataclass(frozen=True)
class Row:
    """One function on one SM, with its source: path in the package, bytes of its object file, seconds to
    compile it.
    """

    usage: Usage
    source: str
    object_bytes: int
    seconds: float

    @property
    def kernel(self) -> str:
        """The kernel that the source is of: its name before the SM's."""
        return PurePosixPath(self.source).name.split(".")[0]


def parse(text: str) -> tuple[list[Usage], list[str]]:
    """Read a compiler's output with ptxas' -v report: what each function needs, and the lines that are no
    report.

    The other lines are the compiler's warnings. ptxas reports on the SMs one after another, each entry
    function with its frame and then its registers; device functions that it did not inline have a frame only.
    """
    found: dict[tuple[str, int], Usage] = {}
    others = []
    entry: tuple[str, int] | None = None
    current: tuple[str, int] | None = None
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry = current = (match.group(1), int(match.group(2)))
            found[entry] = Usage(*entry)
        elif (match := _PROPERTIES.search(line)) and entry:
            current = (match.group(1), entry[1])
            found.setdefault(current, Usage(*current))
        elif (match := _STACK.search(line)) and current:
            stack, stores, loads = map(int, match.groups())
            found[current] = dataclasses.replace(found[current], stack=stack, spill=stores + loads)
        elif (match := _USED.search(line)) and entry:
            smem = _SMEM.search(line)
            found[entry] = dataclasses.replace(
                found[entry], registers=int(match.group(1)), smem=int(smem.group(1)) if smem else 0
            )
        elif line.strip() and not _REPORT_LINE.match(line):
            others.append(line)
    return list(found.values()), others


@dataclass(frozen=True)
class BuildReport:
    """What a build gave: `library`, the SMs it holds machine code for and those, each the newest of some
    kernel, it holds PTX for; a row for each (function, SM).

    compiled: how many of the steps had to be run; warnings: what the compilers said; seconds: of the whole
    build.
    """

    library: Path
    sms: tuple[int, ...]
    ptx_sms: tuple[int, ...]
    rows: tuple[Row, ...]
    compiled: int
    warnings: tuple[str, ...]
    seconds: float

    def data(self) -> dict[str, object]:
        """For JSON: the rows, an object each; no absolute paths."""
        rows = [
            {
                **dataclasses.asdict(row.usage),
                "source": row.source,
                "object_bytes": row.object_bytes,
                "seconds": row.seconds,
            }
            for row in self.rows
        ]
        return {
            "sms": self.sms,
            "ptx_sms": self.ptx_sms,
            "compiled": self.compiled,
            "seconds": round(self.seconds, 2),
            "rows": rows,
        }

    def summary(self) -> str:
        """A line for each kernel: of its functions on all SMs the most registers of a thread, static shared memory,
        spills and stack frame, bytes; and the size of its objects and the seconds of their compilers, together.
        """
        lines = [_in_short(name, list(rows)) for name, rows in groupby(self.rows, key=lambda row: row.kernel)]
        if lines[1:]:
            lines.append(_in_short("all of them", self.rows))
        return terminal.names_last(("functions", "regs", "smem", "spill", "stack", "KiB", "sec", "kernel"), lines)

    def table(self) -> str:
        """A line for each function; SMs on which it needs the same share one, of several the first line names it."""
        lines = []
        for usage, sms in collapse(row.usage for row in self.rows):
            registers = "-" if usage.registers is None else str(usage.registers)
            figures = map(str, (usage.smem, usage.spill, usage.stack))
            lines.append((registers, *figures, ",".join(map(str, sms)), usage.function))
        return terminal.names_last(("regs", "smem", "spill", "stack", "SM", "function"), lines)


def _in_short(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    usages = [row.usage for row in rows]
    objects = {row.source: row for row in rows}.values()
    most = (
        max(usage.registers or 0 for usage in usages),
        *(max(getattr(usage, what) for usage in usages) for what in ("smem", "spill", "stack")),
    )
    size, seconds = sum(row.object_bytes for row in objects), sum(row.seconds for row in objects)
    functions = len({usage.function for usage in usages})
    return str(functions), *map(str, most), f"{size / 1024:.0f}", f"{seconds:.1f}", name


def collapse(usages: Iterable[Usage]) -> list[tuple[Usage, list[int]]]:
    """Group by function, in order of appearance; within one, runs of SMs with the same figures become one
    entry.
    """
    by_function: dict[str, list[Usage]] = {}
    for usage in usages:
        by_function.setdefault(usage.function, []).append(usage)
    result: list[tuple[Usage, list[int]]] = []
    for members in by_function.values():
        members = sorted(members, key=lambda usage: usage.sm)
        for _, run in groupby(members, key=lambda usage: dataclasses.replace(usage, sm=0)):
            same = list(run)
            result.append((same[0], [usage.sm for usage in same]))
    return result


def spilling(rows: Sequence[Row]) -> list[str]:
    """A line for each function and SM that spills registers or keeps a stack frame."""
    return [
        f"{row.source}: {row.usage.function} on sm_{row.usage.sm}: {row.usage.spill} bytes of spills, "
        f"{row.usage.stack} bytes of stack frame"
        for row in rows
        if row.usage.spill or row.usage.stack
    ]
