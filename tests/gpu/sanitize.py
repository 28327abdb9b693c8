"""compute-sanitizer over every function of the compiled packages, a few launches each.

    python tests/gpu/sanitize.py [--paths] [--record FILE] [--tools memcheck,racecheck] [--seconds N] [WORD ...]

Each tool runs this file again, under itself, with --inside, once for each share of the functions, all at the same time.
Exit code 1 where one of them finds something, or where functions are left when the seconds are over. --paths leaves the
gates alone; words choose functions that have one of them in their names. Tensors are allocated one by one, so that an
access beyond one of them is not within the next.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
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
MOST_TOKENS = 66  # of a launch: more are the same blocks again
RACECHECK_TOKENS = 17  # it takes a second or more for each launch, the others a fraction
_FOUND = 9


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inside", type=int, help="launch this share of the functions")
    parser.add_argument("--shares", type=int, default=4, help="of the functions, each with a process of its own")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no more launches begin")
    parser.add_argument("--most-tokens", type=int, default=MOST_TOKENS)
    parser.add_argument("--paths", action="store_true")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("words", nargs="*")
    asked = parser.parse_args()
    if asked.inside is not None:
        functions = sorted(_functions(asked.words, asked.paths), key=_size)  # what is left at the end is of the largest
        _launch(functions[asked.inside :: asked.shares], asked.most_tokens, time.monotonic() + asked.seconds)
        return 0
    assert packages(), "no compiled package: python build.py"
    arguments = [*["--paths"] * asked.paths, *asked.words]
    limits = ["--shares", str(asked.shares), "--seconds", str(asked.seconds)]
    tools = asked.tools.split(",")
    with ThreadPoolExecutor(len(tools) * asked.shares) as pool:
        runs = {
            tool: [pool.submit(_under, tool, ["--inside", str(n), *limits, *arguments]) for n in range(asked.shares)]
            for tool in tools
        }
        found = {tool: _whole([run.result() for run in shares]) for tool, shares in runs.items()}
    what = " ".join(["compute-sanitizer, python tests/gpu/sanitize.py", *arguments])
    record = {"what": what, **software(), "tools": found}
    print(json.dumps(record, indent=1))
    if asked.record:
        asked.record.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(tool["exit_code"] or tool["errors"] != 0 or tool["left"] != 0 for tool in found.values()))


def _under(tool: str, arguments: list[str]) -> dict[str, Any]:
    most = RACECHECK_TOKENS if tool == "racecheck" else MOST_TOKENS
    command = ["compute-sanitizer", "--error-exitcode", str(_FOUND), "--print-limit", "5", "--tool", tool]
    command += [sys.executable, __file__, "--most-tokens", str(most), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    errors = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", said)
    launches = re.search(r"^(\d+) launches of (\d+) functions, (\d+) left", said, re.MULTILINE)
    if done.returncode or errors is None or launches is None:
        print(said[-6000:], file=sys.stderr)
    return {
        "exit_code": done.returncode,
        "errors": int(errors[1]) if errors else None,
        "launches": int(launches[1]) if launches else None,
        "functions": int(launches[2]) if launches else None,
        "left": int(launches[3]) if launches else None,
        "most_tokens": most,
    }


def _whole(shares: list[dict[str, Any]]) -> dict[str, Any]:
    """The shares of one tool together: the worst exit code and sums, None where one share gave no number."""
    whole: dict[str, Any] = {"exit_code": max(share["exit_code"] for share in shares)}
    for key in ("errors", "launches", "functions", "left"):
        numbers = [share[key] for share in shares]
        whole[key] = None if None in numbers else sum(numbers)
    return {**whole, "most_tokens": shares[0]["most_tokens"]}


_Function = tuple[Package, Any, str, int | None, bool]
"""Its package, its kernel, its name, the most tokens it takes, and whether it is a whole path's."""


def _functions(words: list[str], only_paths: bool) -> Iterator[_Function]:
    major, minor = torch.cuda.get_device_capability()
    sm = 10 * major + minor
    found = [] if only_paths else [(*of, *each, False) for of in kernels() for each in variants_of(*of, sm)]
    found += [(*of, *each, True) for of in paths() for each in functions_of(*of, sm)]
    yield from (one for one in found if not words or any(word in one[2] for word in words))


def _size(function: _Function) -> int:
    kernel = function[1]
    return int(kernel.hidden_size) * int(kernel.num_experts)


def _launch(functions: list[_Function], most_tokens: int, until: float) -> None:
    launches, left = [], len(functions)
    for package, kernel, function, most, whole in functions:
        if time.monotonic() > until:
            break
        last = min(most or most_tokens, most_tokens)
        counts = sorted({1, min(3, last), last})  # one token, a partly filled tile, the most
        launches.append((_path if whole else _gate)(package, kernel, function, counts))
        left -= 1
    print(f"{sum(launches)} launches of {len(launches)} functions, {left} left")


def _gate(package: Package, kernel: Any, function: str, counts: list[int]) -> int:
    for count in counts:
        run(package, kernel, function, make_inputs(kernel, count, count))
    return len(counts)


def _path(package: Package, kernel: Any, function: str, counts: list[int]) -> int:
    for count in counts:
        for hashes in forms_of(kernel):
            inputs = make_path_inputs(kernel, count, count, hashes)
            call = Call(package, function, inputs, numbers_of(package, kernel), make_outputs(kernel, count))
            for _ in range(2):  # the second finds the hand-over's memory as the first has left it
                call.queue()
            torch.cuda.synchronize()
    return 2 * len(counts) * len(forms_of(kernel))


if __name__ == "__main__":
    sys.exit(main())
