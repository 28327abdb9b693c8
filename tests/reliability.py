"""`python -m tests.reliability`: docs/reliability.md out of the records in docs/measured; `--check` writes nothing.

A record is listed when its file is there; what no record says the page does not say.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reliability.md"
MEASURED = ROOT / "docs/measured"
PATTERNS = ("fuzz-*.json", "*-sanitize.json", "*-racecheck.json", "*-soak.json", "*-tests*.json")
"""The records of what was tried, in the page's order; others in the folder are of what was measured."""

Record = Mapping[str, Any]


def records(folder: Path = MEASURED) -> dict[str, Record]:
    """Name of the file -> what it holds."""
    paths = [path for pattern in PATTERNS for path in sorted(folder.glob(pattern))]
    return {path.name: json.loads(path.read_text()) for path in paths}


def text(found: Mapping[str, Record]) -> str:
    """The page as Markdown. ValueError for a record of no known kind."""
    lines = [
        "# Reliability",
        "",
        "Generated from the records in `docs/measured` by `python -m tests.reliability`; not for editing. Each row is a",
        "run: what was tried, how often, how often it failed, and on what. The suite repeats a share of each on every run of CI.",
        "",
        "| record | command | on | tried | failures | commit |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in found.items():
        tried, failures = figures(name, record)
        command = record.get("command") or record["what"].partition(", ")[2] or record["what"]
        on = record.get("chip", "CPU")
        lines.append(
            f"| [{name}](measured/{name}) | `{command}` | {on} | {tried} | {failures} | `{record['commit'][:7]}` |"
        )
    lines += ["", *_what_it_means(found)]
    return "\n".join(lines) + "\n"


def figures(name: str, record: Record) -> tuple[str, int]:
    """What was tried, in words, and how often it failed."""
    if "cases" in record:
        outcomes = ", ".join(f"{number:,} {outcome}" for outcome, number in record["outcomes"].items())
        return f"{record['cases']:,} cases: {outcomes}", len(record["failures"])
    if "tools" in record:
        parts = []
        for tool, run in record["tools"].items():
            left = f", {run['left']:,} functions left for want of time" if run["left"] else ""
            parts.append(f"{tool}: {run['launches']:,} launches of {run['functions']} functions{left}")
        return "; ".join(parts), sum(run["errors"] + bool(run["exit_code"]) for run in record["tools"].values())
    if "packages" in record:
        outcomes = record["outcomes"]
        parts = [f"{outcomes['passed']:,} tests passed, {outcomes['skipped']:,} skipped"]
        for what in ("cases", "launches"):
            if number := sum(int(measured.get(what, 0)) for measured in record["measured"].values()):
                parts.append(f"{number:,} {what}")
        return "; ".join(parts), outcomes["failed"] + outcomes["error"]
    raise ValueError(f"{name}: a record of no kind that {PAGE.name} knows; add it to figures() of tests/reliability.py")


def _what_it_means(found: Mapping[str, Record]) -> list[str]:
    meanings: list[tuple[Callable[[str], bool], str]] = [
        (
            lambda name: name == "fuzz-specs.json",
            "- **Hostile YAML files** are shipped specs broken in several ways at once, texts that would break out of a string, a "
            "comment, a path or a command, and whole files made to hang a reader. *Refused*: exit code 2, a message, no file "
            "written. *Accepted*: the spec written is the spec read. *Rendered*: a package was written besides, and what it "
            "differs in from that of a plain name is in comments and string literals alone. A failure is anything else: a "
            "traceback, 20 s, a part of an output.",
        ),
        (
            lambda name: name == "fuzz-configs.json",
            "- **Hostile config.json files** likewise, through `build.py add`, with hostile names too.",
        ),
        (
            lambda name: name == "fuzz-kills.json",
            "- **Kills**: `build.py generate` over another package, killed at a random moment, every other time while the new folder "
            "is made. The folder is the *old* package or the *new* one, every file of it, or the run had *finished*.",
        ),
        (
            lambda name: "sanitize" in name or "racecheck" in name,
            "- **compute-sanitizer** over functions of the shipped library, smallest shapes first; what a tool had no time for is "
            "counted as left out.",
        ),
        (
            lambda name: "soak" in name,
            "- **The soak** replays graphs whose inputs change, and runs two streams at once.",
        ),
        (
            lambda name: "-tests" in name,
            "- **GPU tests**: every variant against float64, and whole paths' ids and weights of random rows.",
        ),
    ]
    return [sentence for applies, sentence in meanings if any(map(applies, found))]


def main(arguments: list[str]) -> int:
    """Write the page; with --check, 1 if it is not what the records give."""
    page = text(records())
    if arguments == ["--check"]:
        fresh = PAGE.is_file() and PAGE.read_text() == page
        print(f"{PAGE.name} is fresh" if fresh else f"{PAGE.name} is stale: python -m tests.reliability")
        return 0 if fresh else 1
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
