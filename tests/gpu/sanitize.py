"""compute-sanitizer over every function of the compiled packages, a few launches each.

    python tests/gpu/sanitize.py [--paths] [--record FILE] [--tools memcheck,racecheck] [--seconds N] [WORD ...]
    python tests/gpu/sanitize.py --tools memcheck,synccheck,initcheck --operators
    python tests/gpu/sanitize.py --tools racecheck --twins build/twins

Each tool runs this file again, under itself, with --inside, once for each share of the functions, all at the same time,
on all the GPUs that there are.
Exit code 1 where one of them finds something, or where functions are left when the seconds are over. --paths leaves the
gates alone; words choose functions that have one of them in their names. Tensors are allocated one by one, so that an
access beyond one of them is not within the next.

--operators calls each model's layer besides, at 0 and 1 tokens, on both sides of each threshold, and at 65,537 where
shapes are small. --twins launches what tests/gpu/twins.py has made, in place of the functions that they cover.
NORMGATE_TEST_PACKAGES names other packages than the shipped one.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # before torch is asked for the first tensor
ROOT = Path(__file__).resolve().parents[2]
if "--twins" in sys.argv:  # before the packages under test are looked up
    os.environ["NORMGATE_TEST_PACKAGES"] = os.path.abspath(sys.argv[sys.argv.index("--twins") + 1]) + "/normgate"
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from conftest import software  # noqa: E402
from oracle import make_inputs  # noqa: E402
from packages import Package, kernels, packages, paths  # noqa: E402
from path_calls import Call, forms_of, functions_of, make_outputs, numbers_of  # noqa: E402
from path_oracle import make_path_inputs  # noqa: E402
from test_numerics import run, thresholds, variants_of  # noqa: E402

from codegen.families import CLUSTERS_AT_ONCE, Apart, Gemv, Resident, parse_served  # noqa: E402
from codegen.render import SELECT_WARPS  # noqa: E402

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
MOST_TOKENS = 66  # of a launch: more are the same blocks again
RACECHECK_TOKENS = 17  # it takes a second or more for each launch, the others a fraction
MOST_TOKENS_OF_ALL, SMALL = 65_537, 2880 * 128  # so many tokens are for shapes of no more weights
_FOUND = 9
# Of each thing found, the function: racecheck says it in its first line, the others in their second.
_WHERE = r"^=+ +(?:Error: Race reported between \w+ access )?at (\w+)\+0x"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inside", type=int, help="launch this share of the functions")
    parser.add_argument("--shares", type=int, default=4, help="of the functions, each with a process of its own")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no more launches begin")
    parser.add_argument("--most-tokens", type=int, default=MOST_TOKENS)
    parser.add_argument("--paths", action="store_true")
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--twins", type=Path, metavar="DIR")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("words", nargs="*")
    asked = parser.parse_args()
    if asked.inside is not None:
        return _inside(asked, time.monotonic() + asked.seconds)
    assert packages(), "no compiled package: python build.py, or python tests/gpu/twins.py for --twins"
    arguments = ["--paths"] * asked.paths + ["--operators"] * asked.operators
    arguments += ["--twins", str(asked.twins)] * bool(asked.twins) + asked.words
    limits = ["--shares", str(asked.shares), "--seconds", str(asked.seconds)]
    tools = asked.tools.split(",")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = itertools.cycle(visible.split(",") if visible else map(str, range(torch.cuda.device_count())))
    with ThreadPoolExecutor(len(tools) * asked.shares) as pool:
        runs = {
            tool: [
                pool.submit(_under, tool, next(gpus), ["--inside", str(n), *limits, *arguments])
                for n in range(asked.shares)
            ]
            for tool in tools
        }
        shares = {tool: [run.result() for run in runs] for tool, runs in runs.items()}
    found = {tool: _whole(of_tool) for tool, of_tool in shares.items()}
    what = " ".join(["compute-sanitizer, python tests/gpu/sanitize.py", *arguments])
    names = [place(package.folder) for package in packages()]
    record = {"what": what, **software(), "packages": names, "tools": found}
    if asked.twins:
        launched = [{name for share in of_tool for name in share["names"]} for of_tool in shares.values()]
        index = json.loads((asked.twins / "twins.json").read_text())
        record["twins"] = _covered(index, set.intersection(*launched))
    print(json.dumps({key: value for key, value in record.items() if key != "twins"}, indent=1))
    if asked.record:
        asked.record.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(not _is_clean(tool) for tool in found.values()))


def _is_clean(tool: dict[str, Any]) -> bool:
    """It has found nothing and left nothing out."""
    return all(tool.get(key, 0) == 0 for key in ("exit_code", "errors", "left", "models_left"))


def place(folder: Path) -> str:
    return folder.relative_to(ROOT).as_posix() if folder.is_relative_to(ROOT) else folder.name


def _covered(index: dict[str, Any], launched: set[str]) -> dict[str, Any]:
    """Of the shipped functions: how many have all their twins launched, and which twins those are."""
    covered_by = index["covered_by"]
    covered = sum(launched.issuperset(twins) for twins in covered_by.values())
    return {"functions": len(covered_by), "covered": covered, "ways": index["ways"], "covered_by": covered_by}


def _inside(asked: argparse.Namespace, until: float) -> int:
    """A share of the launches, and of the models."""
    wanted = None
    if asked.twins:
        index = json.loads((asked.twins / "twins.json").read_text())
        wanted = {name for twins in index["covered_by"].values() for name in twins}
    functions = [one for one in _functions(asked.words, asked.paths) if wanted is None or one[2] in wanted]
    functions.sort(key=lambda function: _weights(function[1]))  # what is left at the end is of the largest
    _launch(functions[asked.inside :: asked.shares], asked.most_tokens, until, of_twins=wanted is not None)
    if asked.operators:
        _call_operators(packages()[0], asked.inside, asked.shares, until)
    return 0


def _under(tool: str, gpu: str, arguments: list[str]) -> dict[str, Any]:
    most = RACECHECK_TOKENS if tool == "racecheck" else MOST_TOKENS
    # What is not printed is not counted either, by racecheck.
    command = ["compute-sanitizer", "--error-exitcode", str(_FOUND), "--print-limit", "10000", "--tool", tool]
    command += [sys.executable, __file__, "--most-tokens", str(most), *arguments]
    begin = time.monotonic()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    said = done.stdout + done.stderr
    errors = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", said)
    launches = re.search(r"^(\d+) launches of (\d+) functions, (\d+) left", said, re.MULTILINE)
    calls = re.search(r"^(\d+) calls of operators, (\d+) models left", said, re.MULTILINE)
    if done.returncode or errors is None or launches is None:
        print(said[-6000:], file=sys.stderr)
    return {
        "exit_code": done.returncode,
        "errors": int(errors[1]) if errors else None,
        "launches": int(launches[1]) if launches else None,
        "functions": int(launches[2]) if launches else None,
        "left": int(launches[3]) if launches else None,
        **({"calls": int(calls[1]), "models_left": int(calls[2])} if calls else {}),
        "names": re.findall(r"^launched (\w+) in ", said, re.MULTILINE),
        "errors_of": dict(Counter(re.findall(_WHERE, said, re.MULTILINE))),
        "most_tokens": most,
        "seconds": round(time.monotonic() - begin, 1),
    }


def _whole(shares: list[dict[str, Any]]) -> dict[str, Any]:
    """The shares of one tool together: the worst exit code and sums, None where one share gave no number."""
    whole: dict[str, Any] = {"exit_code": max(share["exit_code"] for share in shares)}
    for key in ("errors", "launches", "functions", "left", "calls", "models_left"):
        numbers = [share[key] for share in shares if key in share]
        if not numbers:
            continue
        whole[key] = None if None in numbers else sum(numbers)
    where: Counter[str] = sum((Counter(share["errors_of"]) for share in shares), Counter())
    whole["errors_of"] = dict(sorted(where.items()))
    return {**whole, "most_tokens": shares[0]["most_tokens"], "seconds": max(share["seconds"] for share in shares)}


_Function = tuple[Package, Any, str, int | None, bool]
"""Its package, its kernel, its name, the most tokens it takes, and whether it is a whole path's."""


def _functions(words: list[str], only_paths: bool) -> Iterator[_Function]:
    major, minor = torch.cuda.get_device_capability()
    sm = 10 * major + minor
    found = [] if only_paths else [(*of, *each, False) for of in kernels() for each in variants_of(*of, sm)]
    found += [(*of, *each, True) for of in paths() for each in functions_of(*of, sm)]
    yield from (one for one in found if not words or any(word in one[2] for word in words))


def _weights(kernel: Any) -> int:
    return int(kernel.hidden_size) * int(kernel.num_experts)


def _launch(functions: list[_Function], most_tokens: int, until: float, *, of_twins: bool) -> None:
    launches, left = [], len(functions)
    for package, kernel, function, most, whole in functions:
        if time.monotonic() > until:
            break
        last = min(most or most_tokens, most_tokens)
        # One token, a partly filled tile, the most.
        counts = sorted({1, min(3, last), last})
        if of_twins:
            counts = [min(count, most or count) for count in _counts_of_twin(kernel, function)]
        # A path's second launch finds the hand-over's memory as the first has left it; a twin's are of what CTAs share.
        repeats = 2 if whole and not of_twins else 1
        begin = time.monotonic()
        launches.append((_path if whole else _gate)(package, kernel, function, counts, repeats))
        left -= 1
        print(f"launched {function} in {time.monotonic() - begin:.2f} s", flush=True)
    print(f"{sum(launches)} launches of {len(launches)} functions, {left} left")


def _counts_of_twin(kernel: Any, function: str) -> list[int]:
    """One launch with a full tile and one of a single token, for what its CTAs share; of tiles in turn, three in a CTA."""
    variant = parse_served(re.sub(r"_sm\d+$", "", function.removeprefix(f"{kernel.kernel}_")))
    if isinstance(variant, Apart):
        return [SELECT_WARPS + 1]  # its gate's kernel has a twin of its own
    if isinstance(variant, Gemv):
        return [max(1, variant.tokens - 1)]
    if isinstance(variant, Resident):
        tiles = -(-kernel.num_experts // variant.experts)
        return [2 * max(1, CLUSTERS_AT_ONCE[variant.split] // tiles) * variant.tokens + 1]
    return [variant.tokens + 1]


def _gate(package: Package, kernel: Any, function: str, counts: list[int], repeats: int) -> int:
    for count in counts * repeats:
        run(package, kernel, function, make_inputs(kernel, count, count))
    return len(counts) * repeats


def _path(package: Package, kernel: Any, function: str, counts: list[int], repeats: int) -> int:
    for count in counts:
        for hashes in forms_of(kernel):
            inputs = make_path_inputs(kernel, count, count, hashes)
            if count > 1:
                inputs.x[0] = float("nan")  # a row of equal choices, more of them than are ranked at once
            call = Call(package, function, inputs, numbers_of(package, kernel), make_outputs(kernel, count))
            for _ in range(repeats):
                call.queue()
            torch.cuda.synchronize()
    return repeats * len(counts) * len(forms_of(kernel))


def _call_operators(package: Package, share: int, shares: int, until: float) -> None:
    """As users do: what is dispatched at each count, through each model's layer."""
    sys.path.insert(0, str(package.folder.parent))
    normgate = importlib.import_module("normgate")
    assert Path(normgate.ops.LIBRARY) == package.library, f"{normgate.ops.LIBRARY} is not {package.library}"
    models = sorted(package.models.items())[share::shares]
    calls, left = 0, len(models)
    for name, model in models:
        if time.monotonic() > until:
            break
        routes = model.path_kernel is not None
        kernel = package.kernels[model.path_kernel if routes else model.kernel]
        layer = normgate.NormGateLinear.from_model(name, routes=routes, device="cuda")
        for parameter in layer.parameters():
            if parameter.is_floating_point():
                parameter.data.normal_(std=layer.hidden_size**-0.5)
        counts = {0, 1, *thresholds(kernel)} | ({MOST_TOKENS_OF_ALL} if _weights(kernel) <= SMALL else set())
        for count in sorted(counts):
            x = torch.randn(count, layer.hidden_size, device="cuda", dtype=getattr(torch, kernel.activation_dtype))
            torch.cuda.synchronize()  # weights may be read early
            with torch.no_grad():
                layer(x, x.clone() if kernel.residual else None)
            torch.cuda.synchronize()
            calls += 1
        left -= 1
    print(f"{calls} calls of operators, {left} models left")


if __name__ == "__main__":
    sys.exit(main())
