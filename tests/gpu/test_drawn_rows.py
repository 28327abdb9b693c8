"""wgmma's CTAs draw the rows that they norm, and tell each other through memory what a row's logits are multiplied by.

So a launch must find that memory as the one before has left it, whoever drew what, launches of two streams must not
meet in it, and a launch must end however few of its CTAs run at once. Every result is compared, bit for bit, with what
the same function gave when it ran by itself; tests/gpu/test_numerics.py holds those against float64.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from oracle import DTYPES, EPS, Inputs, make_inputs
from packages import Package, kernels
from test_numerics import library, variants_of

from codegen.bench.native import launch_args

COUNTS = (1, 130, 517)  # less than a tile of tokens, and several of them, the last not full
VERSIONS = 3  # of x
REPLAYS = 200
FEW = 16  # multiprocessors, two clusters of the largest that wgmma has
DRAWING = [(p, k) for p, k in kernels() if k.norm_order and k.logits_from == "unrounded"]
_seeds = itertools.count(7000)
pytestmark = pytest.mark.parametrize(
    ("package", "kernel"), DRAWING, ids=[f"{package.name}-{kernel.kernel}" for package, kernel in DRAWING]
)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Integers, so that a NaN equals itself."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@dataclass
class Call:
    """One launch on some of the rows, and what it writes."""

    function: str
    inputs: Inputs
    logits: torch.Tensor
    normed_x: torch.Tensor

    def queue(self, package: Package) -> None:
        """In the current stream."""
        library(package).launch(
            self.function,
            launch_args(
                router_logits=self.logits,
                normed_x=self.normed_x,
                x=self.inputs.x,
                norm_weight=self.inputs.norm_weight,
                gate_weight=self.inputs.gate_weight,
                gate_bias=self.inputs.gate_bias,
                eps=EPS,
                stream=torch.cuda.current_stream().cuda_stream,
            ),
        )


class Round:
    """A launch of each function that draws rows, at each count; x has versions, one with rows of NaN, as padding is."""

    def __init__(self, package: Package, kernel: Any, sm: int) -> None:
        functions = [function for function, _ in variants_of(package, kernel, sm) if "_wgmma_" in function]
        if not functions:
            pytest.skip("no function of this kernel draws rows")
        self.package = package
        inputs = make_inputs(kernel, max(COUNTS), next(_seeds))
        self._versions = [make_inputs(kernel, max(COUNTS), next(_seeds)).x for _ in range(VERSIONS)]
        self._versions[-1][3::50] = float("nan")
        self._x = inputs.x
        logits = torch.empty(max(COUNTS), kernel.num_experts, device="cuda", dtype=DTYPES[kernel.logits_dtype])
        self.calls = [
            Call(
                function,
                replace(inputs, x=inputs.x[:count]),
                torch.empty_like(logits[:count]),
                torch.empty_like(inputs.x[:count]),
            )
            for function in functions
            for count in COUNTS
        ]
        self._right = [self._one_by_one(version) for version in range(VERSIONS)]

    def use(self, version: int) -> None:
        """Has calls read other rows, and what they have written forgotten."""
        self._x.copy_(self._versions[version])
        for call in self.calls:
            call.logits.fill_(float("inf"))
            call.normed_x.fill_(float("inf"))

    def queue(self) -> None:
        for call in self.calls:
            call.queue(self.package)

    def check(self, version: int, what: str) -> None:
        torch.cuda.synchronize()
        for call, (logits, normed_x) in zip(self.calls, self._right[version], strict=True):
            where = f"{what}: {call.function} at {len(call.normed_x)} tokens"
            assert torch.equal(bits(call.logits), bits(logits)), where
            assert torch.equal(bits(call.normed_x), bits(normed_x)), where

    def _one_by_one(self, version: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        self.use(version)
        for call in self.calls:
            torch.cuda.synchronize()
            call.queue(self.package)
        torch.cuda.synchronize()
        return [(call.logits.clone(), call.normed_x.clone()) for call in self.calls]


def test_graph_replays_follow_changing_rows(package: Package, kernel: Any, sm: int, record: dict[str, Any]) -> None:
    rows = Round(package, kernel, sm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows.queue()
    for version in (*range(VERSIONS), 0):
        rows.use(version)
        for _ in range(REPLAYS):
            graph.replay()
        rows.check(version, f"replays of version {version}")
    record.update(launches=(VERSIONS + 1) * REPLAYS * len(rows.calls))


def test_two_streams_and_a_graph_at_once(package: Package, kernel: Any, sm: int) -> None:
    rounds = [Round(package, kernel, sm) for _ in range(3)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rounds[2].queue()
    streams = [torch.cuda.Stream() for _ in rounds]
    for version in range(VERSIONS):
        for rows in rounds:
            rows.use(version)
        torch.cuda.synchronize()
        for _ in range(20):
            for rows, stream in zip(rounds[:2], streams, strict=False):
                with torch.cuda.stream(stream):
                    rows.queue()
            with torch.cuda.stream(streams[2]):
                graph.replay()
        for rows in rounds:
            rows.check(version, f"at once, version {version}")


def test_few_multiprocessors(package: Package, kernel: Any, sm: int) -> None:
    """Nobody waits for a CTA that has not begun: a launch of many more CTAs than can run at once ends, and is right."""
    green_contexts = pytest.importorskip("torch.cuda.green_contexts", reason="this torch has no green contexts")
    rows = Round(package, kernel, sm)
    try:
        few = green_contexts.GreenContext.create(num_sms=FEW, device_id=torch.cuda.current_device())
    except RuntimeError as error:
        pytest.skip(f"no green context: {error}")
    rows.use(0)
    torch.cuda.synchronize()
    few.set_context()
    try:
        rows.queue()
        torch.cuda.synchronize()
    finally:
        few.pop_context()
    rows.check(0, f"on {FEW} multiprocessors")
