"""Every function of the compiled packages, a few launches each: for compute-sanitizer, whose exit code says what it found.

    compute-sanitizer --error-exitcode 9 --tool memcheck python tests/gpu/sanitize.py

Tools: memcheck, racecheck, synccheck, initcheck. Words on the command line choose functions that have one of them in
their names. Tensors are allocated one by one, so that an access beyond one of them is not within torch's next.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # before torch is asked for the first tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from oracle import make_inputs
from packages import Package, kernels, packages, paths
from path_calls import Call, forms_of, functions_of, make_outputs, numbers_of
from path_oracle import make_path_inputs
from test_numerics import run, variants_of

MOST_TOKENS = 66  # of a launch: more are the same blocks again, and each is run many times slower than it is


def main(words: list[str]) -> int:
    major, minor = torch.cuda.get_device_capability()
    sm, launches = 10 * major + minor, 0
    assert packages(), "no compiled package: python build.py"
    for package, kernel in kernels():
        for function, most in variants_of(package, kernel, sm):
            if not words or any(word in function for word in words):
                launches += _gate(package, kernel, function, most)
    for package, kernel in paths():
        for function, most in functions_of(package, kernel, sm):
            if not words or any(word in function for word in words):
                launches += _path(package, kernel, function, most)
    print(f"{launches} launches")
    return 0


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
    sys.exit(main(sys.argv[1:]))
