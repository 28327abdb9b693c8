"""Variants that the compiler could not keep in registers. Their needs are estimated before; the compiler decides.

`python build.py` adds to specs/tuned/spills.json what spills of the variants that the cost model chose, and plans anew
without them. The file is an input like the tuned tables, to be committed with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import BadInput, Problem
from .families import parse
from .output import locked, replace_whole

FILE = "spills.json"

Spills = Mapping[str, frozenset[str]]
"""Names of variants by kernel."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    kernels: dict[str, list[str]]


def read(folder: Path) -> dict[str, frozenset[str]]:
    """What the file in `folder` says; nothing where there is none. BadInput for what is no such file."""
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        found = _File.model_validate_json(path.read_bytes())
        for names in found.kernels.values():
            list(map(parse, names))
    except (ValidationError, ValueError) as error:
        said = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BadInput([Problem(str(path), None, f"{said}; delete the file, a build writes it anew")]) from None
    return {kernel: frozenset(names) for kernel, names in found.kernels.items()}


def add(folder: Path, more: Spills) -> None:
    """Write what the file has and `more`; builds of other packages at the same time add theirs. ToolError where it
    cannot be written.
    """
    with locked(folder / FILE):
        known = read(folder)
        for kernel, names in more.items():
            known[kernel] = known.get(kernel, frozenset()) | names
        text = json.dumps({"kernels": {kernel: sorted(known[kernel]) for kernel in sorted(known)}}, indent=1)
        replace_whole(folder / FILE, f"{text}\n".encode())


def named(functions: Iterable[str], kernels: Iterable[str]) -> dict[str, frozenset[str]]:
    """The variants that functions of these kernels are of; what is no variant's is left out."""
    found: dict[str, frozenset[str]] = {}
    by_length = sorted(kernels, key=len, reverse=True)  # a kernel's name may begin another's
    for function in functions:
        kernel = next((name for name in by_length if function.startswith(f"{name}_")), None)
        variant = function[len(kernel) + 1 :].rpartition("_sm")[0] if kernel else ""
        try:
            parse(variant)
        except ValueError:
            continue
        assert kernel is not None
        found[kernel] = found.get(kernel, frozenset()) | {variant}
    return found
