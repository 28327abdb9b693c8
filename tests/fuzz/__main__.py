"""`python -m tests.fuzz specs|configs|kills --cases N`: try hostile inputs, or kills, and record what came of it.

A case is made from the seed and its number alone: `--first N --cases 1` runs case N again. Exit code 1 for a failure.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from .inputs import ROOT
from .kills import Kills
from .tries import Failure, try_config, try_spec

_WHAT = {
    "specs": "hostile YAML files through generate",
    "configs": "hostile config.json files through add",
    "kills": "generate killed at a random moment: the package is the old one or the new one, whole",
}


@contextmanager
def _case(what: str) -> Iterator[Callable[[Random], str]]:
    if what != "kills":
        yield try_spec if what == "specs" else try_config
        return
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills(Path(folder))
        yield kills.kill_one
        kills.mend()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", choices=_WHAT)
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="a JSON file")
    given = parser.parse_args()
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    started = time.monotonic()
    with _case(given.what) as case:
        for number in range(given.first, given.first + given.cases):
            try:
                outcomes[case(Random(f"{given.seed} {given.what} {number}"))] += 1
            except Failure as failure:
                failures.append(f"case {number}: {failure}")
                print(failures[-1], file=sys.stderr)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = f"python -m tests.fuzz {given.what} --cases {given.cases} --seed {given.seed}"
    record = {
        "what": _WHAT[given.what],
        "command": command + (f" --record {shlex.quote(str(given.record))}" if given.record else ""),
        "commit": commit.strip(),
        "cases": given.cases,
        "outcomes": dict(sorted(outcomes.items())),
        "failures": failures,
        "seconds": round(time.monotonic() - started, 1),
    }
    text = json.dumps(record, indent=1) + "\n"
    print(text, end="")
    if given.record:
        given.record.write_text(text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
