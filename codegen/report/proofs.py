"""What runs of tests/gpu and of compute-sanitizer left in docs/measured, checked where the report relies on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..errors import BadInput, Problem

_Read = TypeVar("_Read")

_NUMERIC_TESTS = ("test_functions", "test_variants")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Outcomes(_Frozen):
    passed: int
    failed: int
    error: int
    skipped: int


class Numerics(_Frozen):
    """The worst of all variants of a kernel over its cases. logits_error, weight_error: relative to float64, None where
    the kernel has no such output; normed_x_differs: the share of elements that a tie of the reduction moved.
    """

    cases: int
    normed_x_differs: float | None = None
    logits_error: float | None = None
    weight_error: float | None = None
    ties: int = 0


class _Software(_Frozen):
    chip: str
    commit: str
    torch: str


class TestRun(_Software):
    """A run of tests/gpu; packages: the folders that were tested; measured: by the test's name, what it recorded."""

    __test__ = False  # pytest takes it for a test by its name
    packages: tuple[str, ...]
    outcomes: Outcomes
    measured: dict[str, dict[str, object]]

    @property
    def of_shipped(self) -> bool:
        """Whether it is of generated/, and so of the kernels that this report lists."""
        return self.packages == ("generated/normgate",)

    def numerics(self) -> dict[str, Numerics]:
        """By kernel. ValidationError for a measurement that is none."""
        return dict(self._numerics())

    def _numerics(self) -> Iterator[tuple[str, Numerics]]:
        prefixes = [f"{PurePosixPath(package).parent.name}-" for package in self.packages]
        for test, measured in self.measured.items():
            if not measured:  # the run ended within it
                continue
            name, _, inside = test.rstrip("]").partition("[")
            for prefix in prefixes:
                if name in _NUMERIC_TESTS and inside.startswith(prefix):
                    yield inside.removeprefix(prefix), Numerics.model_validate(measured)


class Tool(_Frozen):
    errors: int
    launches: int
    functions: int
    left: int


class SanitizerRun(_Software):
    tools: dict[str, Tool]


def test_runs(folder: Path) -> dict[str, TestRun]:
    """By file name; of the test suite on a GPU, and of its soak. BadInput names what does not fit."""
    reader = TypeAdapter(TestRun)
    found = {**_read(folder, "*-tests*.json", reader), **_read(folder, "*-soak*.json", reader)}
    for name, run in found.items():
        try:
            run.numerics()
        except ValidationError as error:
            raise _bad(folder / name, error) from error
    return found


def sanitizer_runs(folder: Path) -> dict[str, SanitizerRun]:
    """By file name; memcheck and its like, and racecheck, which have a record each."""
    reader = TypeAdapter(SanitizerRun)
    return {**_read(folder, "*-sanitize*.json", reader), **_read(folder, "*-racecheck*.json", reader)}


def _read(folder: Path, pattern: str, reader: TypeAdapter[_Read]) -> dict[str, _Read]:
    found = {}
    for path in sorted(folder.glob(pattern)):
        try:
            found[path.name] = reader.validate_json(path.read_bytes())
        except OSError as error:
            raise BadInput([Problem(str(path), None, f"cannot be read: {error.strerror}")]) from error
        except ValidationError as error:
            raise _bad(path, error) from error
    return found


def _bad(path: Path, error: ValidationError) -> BadInput:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return BadInput([Problem(str(path), None, ": ".join([*_where(one["loc"]), one["msg"]])) for one in found])


def _where(place: tuple[int | str, ...]) -> list[str]:
    return [".".join(map(str, place))] if place else []
