"""compute-sanitizer over every function of the compiled packages, a few launches each.

    python tests/gpu/sanitize.py [--paths] [--record FILE] [--tools memcheck,racecheck] [--shares N] [WORD ...]

Each tool runs this file again, under itself, with --inside, once for each share of the functions, all at the same time.
Exit code 1 where one of them finds something. --paths leaves the gates alone; words choose functions that have one of
them in their names. Tensors are allocated one by one, so that an access beyond one of them is not within the next.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # before torch is asked for the first tensor
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from conftest import software  # noqa: E402
from oracle import make_inputs  # noqa: E402
from packages import Package, kernels, packages, paths  # noqa: E402
from path_calls import Call, forms_of, functions_of, make_outputs, numbers_of  # noqa: E402
from path_oracle import make_path_inputs  # noqa: E402
from test_numerics import run, variants_of  # noqa: E402

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
MOST_TOKENS = 66  # of a launch: more are the same blocks again, and each runs many times slower than it does
_FOUND = 9


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inside", type=int, help="launch this share of the functions")
    parser.add_argument("--shares", type=int, default=4)
    parser.add_argument("--paths", action="store_true")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("words", nargs="*")
    asked = parser.parse_args()
    if asked.inside is not None:
        _launch(list(_functions(asked.words, asked.paths))[asked.inside :: asked.shares])
        return 0
    assert packages(), "no compiled package: python build.py"
    arguments = [*["--paths"] * asked.paths, *asked.words]
    tools = asked.tools.split(",")
    with ThreadPoolExecutor(len(tools) * asked.shares) as pool:
        runs = {
            tool: [
                pool.submit(_under, tool, ["--inside", str(share), "--shares", str(asked.shares), *arguments])
                for share in range(asked.shares)
            ]
            for tool in tools
        }
        found = {tool: _whole([run.result() for run in shares]) for tool, shares in runs.items()}
    what = " ".join(["compute-sanitizer, python tests/gpu/sanitize.py", *arguments])
    record = {"what": what, **software(), "tools": found}
    print(json.dumps(record, indent=1))
    if asked.record:
        asked.record.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(tool["exit_code"] or tool["errors"] != 0 for tool in found.values()))


def _under(tool: str, arguments: list[str]) -> dict[str, Any]:
    command = ["compute-sanitizer", "--error-exitcode", str(_FOUND), "--print-limit", "5", "--tool", tool]
    done = subprocess.run([*command, sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    errors = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", said)
    launches = re.search(r"^(\d+) launches of (\d+) functions", said, re.MULTILINE)
    if done.returncode or errors is None or launches is None:
        print(said[-6000:], file=sys.stderr)
    return {
        "exit_code": done.returncode,
        "errors": int(errors[1]) if errors else None,
        "launches": int(launches[1]) if launches else None,
        "functions": int(launches[2]) if launches else None,
    }


def _whole(shares: list[dict[str, Any]]) -> dict[str, Any]:
    """The shares of one tool together: the worst exit code and sums, None where one share gave no number."""
    whole: dict[str, Any] = {"exit_code": max(share["exit_code"] for share in shares)}
    for key in ("errors", "launches", "functions"):
        numbers = [share[key] for share in shares]
        whole[key] = None if None in numbers else sum(numbers)
    return whole


_Function = tuple[Package, Any, str, int | None, bool]
"""Its package, its kernel, its name, the most tokens it takes, and whether it is a whole path's."""


def _functions(words: list[str], only_paths: bool) -> Iterator[_Function]:
    major, minor = torch.cuda.get_device_capability()
    sm = 10 * major + minor
    found = [] if only_paths else [(*of, *each, False) for of in kernels() for each in variants_of(*of, sm)]
    found += [(*of, *each, True) for of in paths() for each in functions_of(*of, sm)]
    yield from (one for one in found if not words or any(word in one[2] for word in words))


def _launch(functions: list[_Function]) -> None:
    launches = [(_path if whole else _gate)(*function) for *function, whole in functions]
    print(f"{sum(launches)} launches of {len(launches)} functions")


def _counts(most: int | None) -> list[int]:
    """One token, a partly filled tile, the most."""
    last = min(most or MOST_TOKENS, MOST_TOKENS)
    return sorted({1, min(3, last), last})


def _gate(package: Package, kernel: Any, function: str, most: int | None) -> int:
    for count in _counts(most):
        run(package, kernel, function, make_inputs(kernel, count, count))
    return len(_counts(most))


def _path(package: Package, kernel: Any, function: str, most: int | None) -> int:
    for count in _counts(most):
        for hashes in forms_of(kernel):
            inputs = make_path_inputs(kernel, count, count, hashes)
            call = Call(package, function, inputs, numbers_of(package, kernel), make_outputs(kernel, count))
            for _ in range(2):  # the second finds the hand-over's memory as the first has left it
                call.queue()
            torch.cuda.synchronize()
    return 2 * len(_counts(most)) * len(forms_of(kernel))


if __name__ == "__main__":
    sys.exit(main())
