"""Tuned tables: what a chip measured of a kernel's variants, and which of them serves which token counts.

`python build.py tune` writes specs/tuned/<kernel>.sm<NN>.json; the plan takes the ranges of its SM target from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import naming
from .arch import ARCHS, SM_TARGETS
from .errors import BadInput
from .errors import Problem as InputProblem
from .families import Apart, Variant, parse_served
from .problem import Problem
from .protocol import ProtocolRecord
from .spec import RouterSpec
from .variants import objections

LAST_ANCHOR = 8192
"""The count that an open range is chosen for; a table that ends before it leaves larger counts to the cost model."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True)


class Measurement(_Frozen):
    """Microseconds in the chain: the median of the rounds, and their interquartile range."""

    median_us: float = Field(ge=0)
    spread_us: float = Field(ge=0)


class TunedRange(_Frozen):
    """From the end of the range before, or 1, to last_token (None: no end)."""

    last_token: int | None = Field(ge=1)
    variant: str


class TunedTable(_Frozen):
    """One kernel on one chip. measured: every candidate by token count; ranges end where none was measured yet."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kernel: str
    sm: int
    chip: str
    driver: str
    torch: str
    cuda: str
    commit: str
    protocol: ProtocolRecord
    measured: dict[int, dict[str, Measurement]] = {}
    ranges: tuple[TunedRange, ...] = ()

    @property
    def file_name(self) -> str:
        return file_name(self.kernel, self.sm)

    def with_measured(self, num_tokens: int, found: Mapping[str, Measurement]) -> TunedTable:
        """This table, one more token count in it and the ranges that follow."""
        measured = dict(sorted({**self.measured, num_tokens: dict(found)}.items()))
        return self.model_copy(update={"measured": measured, "ranges": ranges_of(measured)})

    def continues(self, other: TunedTable) -> bool:
        """Whether both are of one kernel, chip, software and protocol: their measurements can share a file."""
        return self.model_copy(update={"measured": other.measured, "ranges": other.ranges}) == other

    def range_of(self, num_tokens: int) -> TunedRange | None:
        """The range that holds a token count; None beyond what was measured."""
        return next((r for r in self.ranges if r.last_token is None or num_tokens <= r.last_token), None)

    def text(self) -> str:
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


Tuned = Mapping[tuple[str, int], TunedTable]
"""Tuned tables by kernel name and SM target."""


def file_name(kernel: str, sm: int) -> str:
    return f"{kernel}.sm{sm}.json"


HANDOVER_MARGIN = 0.03
"""Of a variant's time: what two runs of the same kernels differ by (docs/notes/kernels.md)."""


def ranges_of(measured: Mapping[int, Mapping[str, Measurement]]) -> tuple[TunedRange, ...]:
    """Each count's winner serves down to the count before, and takes over only where that pays beyond what rounds and
    runs differ by.
    """
    ranges: list[TunedRange] = []
    largest = max(measured, default=0)
    for count in sorted(measured):
        at = measured[count]
        best = min(at, key=lambda name: (at[name].median_us, name))
        last = None if count == largest and count >= LAST_ANCHOR else count
        before = ranges[-1].variant if ranges else best
        if before in at:
            spread = max(at[before].spread_us, at[best].spread_us)
            if at[before].median_us - at[best].median_us <= max(spread, HANDOVER_MARGIN * at[before].median_us):
                best = before
        if ranges and ranges[-1].variant == best:
            ranges.pop()
        ranges.append(TunedRange(last_token=last, variant=best))
    return tuple(ranges)


def load(specs: Iterable[RouterSpec], folder: Path) -> dict[tuple[str, int], TunedTable]:
    """The tables in `folder` of the kernels of `specs`. BadInput with all that is wrong in them."""
    found: dict[tuple[str, int], TunedTable] = {}
    problems: list[InputProblem] = []
    for path in paths(specs, folder):
        try:
            table = read(path)
            found[table.kernel, table.sm] = table
        except BadInput as error:
            problems += error.problems
    if problems:
        raise BadInput(problems)
    return found


def kernel_names(specs: Iterable[RouterSpec]) -> list[str]:
    """Those of the gates and of the whole paths of `specs`."""
    problems = {problem for spec in specs for problem in (Problem.of(spec), Problem.of(spec).gate_part)}
    return sorted(map(naming.kernel_name, problems))


def paths(specs: Iterable[RouterSpec], folder: Path) -> tuple[Path, ...]:
    """The files of `folder` that tune a kernel of `specs`."""
    named = (folder / file_name(kernel, sm) for kernel in kernel_names(specs) for sm in SM_TARGETS)
    return tuple(path for path in named if path.is_file())


def read(path: Path) -> TunedTable:
    """Read one table. BadInput names what does not fit."""
    try:
        table = TunedTable.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput([InputProblem(str(path), None, f"cannot be read: {error.strerror}")]) from error
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        messages = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found]
        mend = "tune anew: python build.py tune, or delete the file"
        raise BadInput([InputProblem(str(path), None, f"{message}; {mend}") for message in messages]) from None
    wrong = []
    if table.file_name != path.name:
        wrong.append(f"is of {table.kernel} on sm_{table.sm}; its name would be {table.file_name}")
    for name in dict.fromkeys([*(r.variant for r in table.ranges), *(n for at in table.measured.values() for n in at)]):
        try:
            parse_served(name)
        except ValueError as error:
            wrong.append(f"{error}; tune anew: python build.py tune")
    ends = [r.last_token for r in table.ranges]
    if None in ends[:-1] or (known := [end for end in ends if end is not None]) != sorted(set(known)):
        wrong.append("ranges: last_token must ascend, and null can only be the last")
    if wrong:
        raise BadInput([InputProblem(str(path), None, message) for message in wrong])
    return table


def illegal(table: TunedTable, problem: Problem) -> list[InputProblem]:
    """What in the ranges of a table cannot serve its kernel, by the one statement of what is legal."""
    file = f"specs/tuned/{table.file_name}"
    wrong = []
    for served in table.ranges:
        for objection in _objections(problem, table.sm, parse_served(served.variant), served.last_token):
            wrong.append(InputProblem(file, None, f"{served.variant}: {objection}; tune anew: python build.py tune"))
    return wrong


def legal_measured(table: TunedTable, problem: Problem, num_tokens: int) -> list[tuple[float, Variant]]:
    """The variants measured at a token count that can serve it in one launch, fastest first."""
    return [
        (us, variant)
        for us, variant in measured(table, num_tokens)
        if not isinstance(variant, Apart) and not _objections(problem, table.sm, variant, num_tokens)
    ]


def measured(table: TunedTable, num_tokens: int) -> list[tuple[float, Variant | Apart]]:
    """All that was measured at a token count, fastest first."""
    timed = [(one.median_us, parse_served(name)) for name, one in table.measured.get(num_tokens, {}).items()]
    return sorted(timed, key=lambda one: (one[0], one[1].name))


def _objections(problem: Problem, sm: int, variant: Variant | Apart, last_token: int | None) -> list[str]:
    if isinstance(variant, Apart):  # that of the gate's kernel, whose own table says what serves
        return [] if problem != problem.gate_part else ["a gate alone has no stages to launch apart"]
    out = objections(problem, ARCHS[sm], variant)
    if variant.max_tokens is not None and (last_token is None or last_token > variant.max_tokens):
        out.append(f"serves {variant.max_tokens} tokens at most")
    if variant.early_weights != problem.early_weight_loads:
        out.append(f"early_weight_loads is {str(problem.early_weight_loads).lower()}")
    return out
