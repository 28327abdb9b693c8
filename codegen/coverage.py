"""Which models' router paths the kernels cover, on which chips, and what is missing: for people, JSON and the docs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Column, Table

from . import naming, terminal, variants
from .arch import ARCHS, SM_TARGETS
from .problem import Problem
from .spec import RouterSpec

RUN, BUILT, COMPILED, PLANNED, NONE = "run", "built", "compiled", "planned", "none"
_LETTERS = {RUN: "R", BUILT: "B", COMPILED: "c", PLANNED: "p", NONE: "-"}
_MEANING = {
    RUN: "a kernel of the path passed tests/gpu there (docs/measured)",
    BUILT: "in generated/, which CI compiles",
    COMPILED: "python -m tests.models compiled it, and tried its op on the CPU (docs/measured/models.json)",
    PLANNED: "build.py plans and compiles it on demand",
    NONE: "no kernel: the reference serves",
}
_COMMAND = "python build.py coverage --write"


@dataclass(frozen=True)
class Covered:
    """A model.

    path: its stages in words; kernel: the name of the kernel of the whole path; missing: what of the model's router
    path the engine has to do beside it; sms: by SM target, one of the statuses above.
    """

    model: str
    path: str
    kernel: str
    missing: tuple[str, ...]
    sms: Mapping[int, str]


def covered(
    specs: Sequence[RouterSpec],
    generated: frozenset[str],
    run: Mapping[str, frozenset[int]],
    built: Mapping[str, frozenset[int]] = {},  # noqa: B006  nothing writes to it
) -> list[Covered]:
    """One for each spec, by name. generated: names of models in generated/; run: kernels and the SMs they ran on;
    built: kernels and the SMs they were compiled for.
    """
    found = []
    for spec in sorted(specs, key=lambda one: one.name):
        problem = Problem.of(spec)
        kernel = naming.kernel_name(problem)
        on = run.get(kernel, frozenset()), built.get(kernel, frozenset())
        sms = {sm: _status(spec, problem, sm, generated, *on) for sm in SM_TARGETS}
        found.append(Covered(spec.name, spec.stages, kernel, spec.not_covered, sms))
    return found


def _status(
    spec: RouterSpec,
    problem: Problem,
    sm: int,
    generated: frozenset[str],
    ran_on: frozenset[int],
    compiled_for: frozenset[int],
) -> str:
    if sm in ran_on:
        return RUN
    if sm not in spec.sm_targets or next(iter(variants.candidates(problem.gate_part, ARCHS[sm], 1)), None) is None:
        return NONE
    if spec.name in generated:
        return BUILT
    return COMPILED if sm in compiled_for else PLANNED


def ran(folder: Path) -> dict[str, frozenset[int]]:
    """Kernels by name and the SMs whose machine code ran, by the records of tests/gpu on an H200 in `folder`."""
    found: set[str] = set()
    for path in sorted(folder.glob("h200-tests*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["outcomes"]["failed"] or record["outcomes"]["error"]:
            continue
        for package, held in zip(record["packages"], record["code"], strict=True):
            if "sm_90" in held.split(", "):
                tested = f"[{Path(package).parent.name}-"
                found |= {name.rstrip("]").partition(tested)[2] for name in record["measured"] if tested in name}
    return dict.fromkeys(found, frozenset({90}))


def compiled(folder: Path) -> dict[str, frozenset[int]]:
    """Kernels by name and the SMs they were compiled for, by the record of `python -m tests.models` in `folder`."""
    path = folder / "models.json"
    if not path.is_file():
        return {}
    found: dict[str, frozenset[int]] = {}
    for outcome in json.loads(path.read_text(encoding="utf-8"))["models"].values():
        if "wrong" not in outcome and outcome.get("spills") == 0:
            sms = frozenset(int(sm) for sm, functions in outcome["functions"].items() if functions)
            found |= dict.fromkeys(outcome["kernels"], sms)
    return found


def table(models: Sequence[Covered]) -> Iterator[Table | str]:
    """The matrix in 80 columns, its key, and what is missing."""
    sms = [Column(str(sm), justify="center") for sm in SM_TARGETS]
    matrix = terminal.table(terminal.words("model"), terminal.words("served"), *sms)
    for one in models:
        matrix.add_row(one.model, _served(one), *(_LETTERS[one.sms[sm]] for sm in SM_TARGETS))
    yield matrix
    yield "\n".join(f"{letter}  {_MEANING[status]}" for status, letter in _LETTERS.items())
    for one in models:
        yield from (f"{one.model}: {reason}" for reason in one.missing)
    yield summary(models)


def summary(models: Sequence[Covered]) -> str:
    """How many are served entirely, and by how many kernels."""
    whole = sum(not one.missing for one in models)
    kernels = len({one.kernel for one in models})
    return f"{whole} of {len(models)} models are served entirely, by {kernels} kernels with those served in part."


def data(models: Sequence[Covered]) -> list[dict[str, object]]:
    """The same for JSON."""
    return [
        {
            "model": one.model,
            "path": one.path,
            "kernel": one.kernel,
            "missing": list(one.missing),
            "sms": {str(sm): status for sm, status in one.sms.items()},
        }
        for one in models
    ]


def page(models: Sequence[Covered]) -> str:
    """docs/coverage.md."""
    lines = ["# Which models are covered", "", f"Written by `{_COMMAND}`. {summary(models)}", ""]
    lines += [f"- **{_LETTERS[status]}**: {meaning}" for status, meaning in _MEANING.items()]
    lines += ["", f"| model | path | served | {' | '.join(f'sm_{sm}' for sm in SM_TARGETS)} |"]
    lines.append(f"|---|---|---|{':-:|' * len(SM_TARGETS)}")
    for one in models:
        marks = " | ".join(_LETTERS[one.sms[sm]] for sm in SM_TARGETS)
        lines.append(f"| {one.model} | {one.path} | {_served(one)} | {marks} |")
    lines += ["", "## What the engine does beside the kernel", ""]
    lines += [f"- {one.model}: {reason}" for one in models for reason in one.missing]
    return "\n".join(lines) + "\n"


def _served(one: Covered) -> str:
    return "in part" if one.missing else "entirely"
