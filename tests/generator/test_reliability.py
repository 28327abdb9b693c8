"""docs/reliability.md says what the records say, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from tests import reliability

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
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert rows[0].endswith(
        "`python -m tests.fuzz specs --cases 5` | CPU | 5 cases: 1 accepted, 2 refused | 2 | `0123456` |"
    )
    assert (
        "memcheck: 1,234 launches of 7 functions; racecheck: 10 launches of 7 functions, 90 functions left" in rows[1]
    )
    assert rows[1].endswith("| 4 | `fedcba9` |") and "`python tests/gpu/sanitize.py` | a chip" in rows[1]
    assert rows[2].endswith("| 6 tests passed, 2 skipped; 1,500 cases; 7 launches | 2 | `aaaaaaa` |")


def test_nothing_is_said_of_what_no_record_says() -> None:
    page = reliability.text({"fuzz-specs.json": CASES})
    assert "compute-sanitizer" not in page and "Kills" not in page and page.count("| [") == 1


def test_a_record_of_no_known_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"x-tests.json: a record of no kind that reliability.md knows"):
        reliability.text({"x-tests.json": {"what": "?", "commit": "0"}})


def test_no_recorded_run_failed() -> None:
    found = reliability.records()
    assert {"fuzz-configs.json", "fuzz-kills.json"} <= found.keys()
    assert {name: reliability.figures(name, record)[1] for name, record in found.items()} == dict.fromkeys(found, 0)
