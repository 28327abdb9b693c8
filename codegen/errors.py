"""The errors a user can meet. The command line prints `str(error)`, exits with `exit_code`: no traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: what was given and what would be right, and where it stands.

    `file` is None for what came from the command line; `line` counts from 1, and is None where no line is to
    blame.
    """

    file: str | None
    line: int | None
    message: str

    def __str__(self) -> str:
        where = [part for part in (self.file, self.line) if part is not None]
        return ": ".join([":".join(map(str, where)), self.message] if where else [self.message])


class NormgateError(Exception):
    """Base of every error that normgate raises on purpose."""

    exit_code = 2


class BadInput(NormgateError):
    """An input (a spec, a config.json, a flag) is wrong; all that is, one `file:line: message` a line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class CheckFailed(NormgateError):
    """Everything ran, and what was checked does not hold (stale output, a spill, a wrong result)."""

    exit_code = 1


class Spilled(CheckFailed):
    """Kernels spill registers or keep a stack frame; `functions` names them."""

    def __init__(self, message: str, functions: Sequence[str]) -> None:
        self.functions = tuple(functions)
        super().__init__(message)


class ToolError(NormgateError):
    """Something normgate needs is missing or failed; the message ends with the command that mends it."""
