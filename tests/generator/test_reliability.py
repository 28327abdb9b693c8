"""docs/reliability.md says what the records say, and no more."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests import reliability
from tests.reliability_points import POINTS

CASES: dict[str, Any] = {
    "what": "hostile things",
    "command": "python -m tests.fuzz specs --cases 5",
    "commit": "0123456789abcdef",
    "cases": 5,
    "outcomes": {"accepted": 1, "refused": 2},
    "failures": ["case 1: x", "case 4: y"],
}
TOOLS: dict[str, Any] = {
    "what": "compute-sanitizer, python tests/gpu/sanitize.py",
    "chip": "a chip",
    "commit": "fedcba9876543210",
    "tools": {
        "memcheck": {"exit_code": 0, "errors": 0, "launches": 1234, "functions": 7, "left": 0},
        "racecheck": {"exit_code": 1, "errors": 3, "launches": 10, "functions": 7, "left": 90},
    },
}
TESTS: dict[str, Any] = {
    "what": "pytest tests/gpu",
    "chip": "a chip",
    "commit": "aaaaaaaaaaaaaaaa",
    "packages": ["generated/normgate"],
    "outcomes": {"passed": 6, "failed": 1, "error": 1, "skipped": 2},
    "measured": {"test_a": {"cases": 1000}, "test_b": {"cases": 500, "launches": 7}},
}


def test_the_page_is_fresh() -> None:
    assert reliability.main(["--check"]) == 0, "python -m tests.reliability"


def test_every_figure_comes_from_its_record() -> None:
    page = reliability.text({"fuzz-specs.json": CASES, "x-sanitize.json": TOOLS, "x-tests.json": TESTS})
    points, _, table = page.partition("## Records")
    rows = [line for line in table.splitlines() if line.startswith("| [")]
    assert rows[0].endswith(
        "`python -m tests.fuzz specs --cases 5` | CPU | 5 cases: 1 accepted, 2 refused | 2 | `0123456` |"
    )
    assert (
        "memcheck: 1,234 launches of 7 functions; racecheck: 10 launches of 7 functions, 90 functions left" in rows[1]
    )
    assert rows[1].endswith("| 4 | `fedcba9` |") and "`python tests/gpu/sanitize.py` | a chip" in rows[1]
    assert rows[2].endswith("| 6 tests passed, 2 skipped; 1,500 cases; 7 launches | 2 | `aaaaaaa` |")
    assert "[fuzz-specs.json](measured/fuzz-specs.json): 5 cases: 1 accepted, 2 refused; failures: 2 |" in points


def test_nothing_is_said_of_what_no_record_says() -> None:
    page = reliability.text({"fuzz-specs.json": CASES})
    points, _, table = page.partition("## Records")
    assert "compute-sanitizer" not in table and "Kills" not in table and table.count("| [") == 1
    assert "no record yet: `python -m tests.fuzz kills --cases 200" in points


def test_coverage_by_twins_is_said() -> None:
    racecheck = {"exit_code": 0, "errors": 0, "launches": 20, "functions": 8, "left": 1}
    twins = {"functions": 30, "covered": 28, "ways": 9, "covered_by": {}}
    record = {**TOOLS, "tools": {"racecheck": racecheck}, "twins": twins}
    tried, failures = reliability.figures("x-racecheck.json", record)
    assert tried.endswith("8 functions, 1 functions left for want of time; twins cover 28 of 30 functions, 9 ways")
    assert failures == 0


def test_what_wants_a_gpu_is_shown_by_a_record_that_has_it() -> None:
    test = "tests/gpu/test_hard_use.py::test_a_thousand_runs_give_the_same_bits"
    page = reliability.text({"x-tests.json": {**TESTS, "passed": {test: 9}}})
    assert "| test_a_thousand_runs_give_the_same_bits: passed 9 in x-tests.json |" in page
    assert "| no record yet of test_eight_streams_of_four_threads |" in page


def test_every_test_that_the_page_names_is_there() -> None:
    for shown in (shown for _, claims in POINTS for shown in claims):
        assert shown.tests or shown.measured, shown.what
        assert not shown.measured or shown.command, f"{shown.what}: nothing makes its records"
        for test in shown.tests:
            file, _, name = test.partition("::")
            text = (reliability.ROOT / file).read_text()
            assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE), test


def test_a_record_of_no_known_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"x-tests.json: a record of no kind that reliability.md knows"):
        reliability.text({"x-tests.json": {"what": "?", "commit": "0"}})


def test_no_recorded_run_failed() -> None:
    found = reliability.records()
    assert {"fuzz-configs.json", "fuzz-kills.json"} <= found.keys()
    assert {name: reliability.figures(name, record)[1] for name, record in found.items()} == dict.fromkeys(found, 0)
