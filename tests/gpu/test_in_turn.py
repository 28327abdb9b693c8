"""Kernels of all models in turn, in one stream: they hand over in the same memory, each with a layout of its own.

What one left there, another would find. Every result is compared, bit for bit, with the same call's before; other tests
hold those against float64.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from oracle import make_inputs
from packages import Package, kernels, packages, paths
from path_calls import functions_of, numbers_of
from path_calls import run as run_path
from path_oracle import make_path_inputs
from test_numerics import run, variants_of

ROUNDS = 3
MOST_TOKENS = 130  # of a call: more than a tile has
_seeds = itertools.count(8000)

_Outputs = dict[str, torch.Tensor]


@pytest.mark.parametrize("package", packages(), ids=[package.name for package in packages()])
def test_each_leaves_the_memory_as_it_was(package: Package, sm: int, record: dict[str, Any]) -> None:
    calls = [*_of_gates(package, sm), *_of_paths(package, sm)]
    if not calls:
        pytest.skip("no function of this package hands over")
    first = [call() for _, call in calls]
    order = random.Random(0)
    for turn in range(ROUNDS):
        for place in order.sample(range(len(calls)), len(calls)):
            what, call = calls[place]
            wrong = [name for name, got in call().items() if not torch.equal(got, first[place][name])]
            assert not wrong, f"{what}, turn {turn}: {wrong} came out other than before"
    record.update(cases=len(calls), launches=len(calls) * (1 + ROUNDS))


def _of_gates(package: Package, sm: int) -> Iterator[tuple[str, Callable[[], _Outputs]]]:
    """Those whose CTAs tell each other the rows' rstds."""
    for kernel in (kernel for owner, kernel in kernels() if owner is package and kernel.norm_order):
        functions = [function for function, _ in variants_of(package, kernel, sm) if "_wgmma_" in function]
        inputs = make_inputs(kernel, MOST_TOKENS, next(_seeds)) if functions else None
        for function in functions:
            yield function, partial(_gate, package, kernel, function, inputs)


def _gate(*call: Any) -> _Outputs:
    normed_x, router_logits = run(*call)
    return {"normed_x": normed_x, "router_logits": router_logits}


def _of_paths(package: Package, sm: int) -> Iterator[tuple[str, Callable[[], _Outputs]]]:
    for kernel in (kernel for owner, kernel in paths() if owner is package):
        whole = make_path_inputs(kernel, MOST_TOKENS, next(_seeds))
        for function, most in functions_of(package, kernel, sm):
            inputs = whole.rows(slice(0, min(most or MOST_TOKENS, MOST_TOKENS)))
            yield function, partial(_path, package, kernel, function, inputs, numbers_of(package, kernel))


def _path(*call: Any) -> _Outputs:
    return run_path(*call).given
