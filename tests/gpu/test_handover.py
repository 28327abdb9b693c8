"""Memory in which the CTAs of a launch hand logits to the one that chooses experts: who may use it at the same time.

Every launch is compared, in its own stream, with what the same function gave when it ran by itself. NORMGATE_SOAK=1
does the same for minutes: 10^5 replays of each graph, and each pair of streams for a minute by the clock;
NORMGATE_SOAK_SECONDS is another time for these, with NORMGATE_SOAK or without.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from packages import Package, paths
from path_calls import NO_EXPERT, Call, forms_of, fused_functions_of, make_outputs, numbers_of
from path_oracle import Outputs, make_path_inputs

SOAK = os.environ.get("NORMGATE_SOAK") == "1"
SELECTING = [(package, kernel) for package, kernel in paths() if kernel.selection]
CALLS = 48  # of a round
VERSIONS = 3  # of the inputs
ROUNDS_AT_ONCE = 8  # what a stream's queue has room for
HOLD_CYCLES = 20_000_000  # about 10 ms, in which so many rounds are queued
BATCHES_AT_ONCE = 10  # of so many rounds, at least
BATCHES_BESIDE = 500 if SOAK else 2
SECONDS_AT_ONCE = float(os.environ.get("NORMGATE_SOAK_SECONDS", 60 if SOAK else 0))  # of two streams, at least
REPLAYS_AT_ONCE = 100
REPLAYS = 100_000 if SOAK else 2000
CAPTURES = 30 if SOAK else 3
_seeds = itertools.count(3000)
pytestmark = pytest.mark.parametrize(
    ("package", "kernel"), SELECTING, ids=[f"{package.name}-{kernel.kernel}" for package, kernel in SELECTING]
)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Integers, so that a NaN equals itself."""
    return (
        tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()]) if tensor.is_floating_point() else tensor
    )


class Rounds:
    """Calls of all of a kernel's functions that choose experts in their own launch, of various token counts, in turn.

    A round poisons ids and weights, queues the calls and counts what is wrong, all in one stream. The inputs have
    versions; what is right for each was found call by call. Rows between those of two calls stay poisoned.
    """

    def __init__(self, package: Package, kernel: Any, sm: int) -> None:
        functions = fused_functions_of(package, kernel, sm)
        if not functions:
            pytest.skip("no function of this kernel chooses experts in its own launch")
        most_of_all = max(most for _, most in functions)
        hashes = forms_of(kernel)[-1]
        seeds = [next(_seeds) for _ in range(VERSIONS)]
        self._versions = [make_path_inputs(kernel, CALLS * most_of_all, seed, hashes) for seed in seeds]
        own = {name: getattr(self._versions[0], name) for name in ("x", "residual", "input_ids", "image_mask")}
        self._own = {name: rows.clone() for name, rows in own.items() if rows is not None}
        self._inputs = replace(self._versions[0], **self._own)
        self._outputs = make_outputs(kernel, CALLS * most_of_all)
        scored = {"tid2eid": None, "input_ids": None, "correction_bias": None}
        if hashes:
            scored["correction_bias"] = make_path_inputs(kernel, 1, seeds[0]).correction_bias
        draw = random.Random(seeds[0])
        self._first_rows = range(0, CALLS * most_of_all, most_of_all)
        self.calls = []
        for place, first in enumerate(self._first_rows):
            function, most = functions[place % len(functions)]
            count = most if place < len(functions) else draw.randint(1, most)
            part = slice(first, first + count)
            inputs = self._inputs.rows(part)
            if hashes and place % 2:  # the kernel serves both kinds of layers
                inputs = replace(inputs, **scored)
            self.calls.append(Call(package, function, inputs, numbers_of(package, kernel), self._outputs.rows(part)))
        self._wrong = torch.zeros((), dtype=torch.int64, device="cuda")
        self._right = [self._one_by_one(version) for version in range(VERSIONS)]
        self._expected = make_outputs(kernel, CALLS * most_of_all)
        self.use(0)

    def use(self, version: int) -> None:
        """Has calls read other inputs; queued in the current stream."""
        for name, rows in self._own.items():
            rows.copy_(getattr(self._versions[version], name))
        for name, right in self._right[version].given.items():
            self._expected.given[name].copy_(right)
        self._poison(self._outputs.given)

    def begin(self) -> None:
        """Poisons what `end` looks at."""
        self._poison(self._chosen(self._outputs))

    def end(self) -> None:
        """Counts what is wrong."""
        for name, got in self._chosen(self._outputs).items():
            self._wrong += (bits(got) != bits(self._expected.given[name])).sum()

    def queue(self) -> None:
        """A round in the current stream."""
        self.begin()
        for call in self.calls:
            call.queue()
        self.end()

    def check(self, what: str) -> None:
        """Waits for all rounds; AssertionError where a choice of any came out other, or another output of the last."""
        torch.cuda.synchronize()
        wrong = [name for name, got in self._outputs.given.items() if not self._is_right(name, got)]
        where = [self._calls_with(name) for name in wrong]
        assert not wrong, f"{what}: at the end {dict(zip(wrong, where, strict=True))} came out other"
        counted = int(self._wrong)
        assert counted == 0, f"{what}: {counted} ids and weights came out other on the way"

    def _is_right(self, name: str, got: torch.Tensor) -> bool:
        return torch.equal(bits(got), bits(self._expected.given[name]))

    def _calls_with(self, name: str) -> list[str]:
        """The calls whose rows of an output are wrong."""
        wrong = (bits(self._outputs.given[name]) != bits(self._expected.given[name])).any(1).nonzero().flatten()
        places = sorted({row // self._first_rows.step for row in wrong.tolist()})
        return [f"{self.calls[place].function} at {len(self.calls[place].inputs.x)} tokens" for place in places]

    def _one_by_one(self, version: int) -> Outputs:
        """What the calls give when each runs by itself."""
        for name, rows in self._own.items():
            rows.copy_(getattr(self._versions[version], name))
        self._poison(self._outputs.given)
        for call in self.calls:
            torch.cuda.synchronize()
            call.queue()
        torch.cuda.synchronize()
        return replace(self._outputs, **{name: got.clone() for name, got in self._outputs.given.items()})

    @staticmethod
    def _chosen(outputs: Outputs) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in outputs.given.items() if name.startswith("topk")}

    @staticmethod
    def _poison(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else NO_EXPERT)


def captured(rounds: Rounds, stream: torch.cuda.Stream | None = None) -> torch.cuda.CUDAGraph:
    """A round as a graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        rounds.queue()
    return graph


def two_streams() -> list[torch.cuda.Stream]:
    """They follow what is queued now."""
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    return streams


def hold(*streams: torch.cuda.Stream) -> None:
    """Has streams wait while more is queued: calls come slower than they run, and so would hardly meet."""
    torch.cuda._sleep(HOLD_CYCLES)
    held = torch.cuda.Event()
    held.record()
    for stream in streams:
        stream.wait_event(held)


def test_graph_replays_follow_changing_inputs(package: Package, kernel: Any, sm: int, record: dict[str, Any]) -> None:
    rounds = Rounds(package, kernel, sm)
    graph = captured(rounds)
    start = time.perf_counter()
    for first in range(0, REPLAYS, REPLAYS_AT_ONCE):
        rounds.use(first // REPLAYS_AT_ONCE % VERSIONS)
        for _ in range(REPLAYS_AT_ONCE):
            graph.replay()
        rounds.check(f"{kernel.kernel}, replays from {first}")
    record.update(replays=REPLAYS, launches=REPLAYS * CALLS, seconds=round(time.perf_counter() - start, 1))


def test_two_streams_at_once(package: Package, kernel: Any, sm: int, record: dict[str, Any]) -> None:
    """New streams, whose memory grows while calls with less of it are under way."""
    pair = [Rounds(package, kernel, sm), Rounds(package, kernel, sm)]
    streams = two_streams()
    start, batch = time.perf_counter(), 0
    while batch < BATCHES_AT_ONCE or time.perf_counter() - start < SECONDS_AT_ONCE:
        for rounds in pair:
            rounds.use(batch % VERSIONS)
        hold(*streams)
        for _ in range(ROUNDS_AT_ONCE):
            for rounds, stream in zip(pair, streams, strict=True):
                with torch.cuda.stream(stream):
                    rounds.begin()
            for calls in zip(*(rounds.calls for rounds in pair), strict=True):
                for call, stream in zip(calls, streams, strict=True):
                    call.queue(stream)
            for rounds, stream in zip(pair, streams, strict=True):
                with torch.cuda.stream(stream):
                    rounds.end()
        for rounds in pair:
            rounds.check(f"{kernel.kernel}, batch {batch}")
        batch += 1
    launches = batch * ROUNDS_AT_ONCE * CALLS * 2
    record.update(launches=launches, seconds=round(time.perf_counter() - start, 1))


def test_two_graphs_at_once_one_captured_anew(package: Package, kernel: Any, sm: int) -> None:
    """A new graph takes the memory of one that is gone, and not that of the one that stays."""
    staying, passing = Rounds(package, kernel, sm), Rounds(package, kernel, sm)
    first = captured(staying)
    for capture in range(CAPTURES):
        staying.use(capture % VERSIONS)
        passing.use((capture + 1) % VERSIONS)
        second = captured(passing)
        streams = two_streams()
        for _ in range(REPLAYS_AT_ONCE):
            for graph, stream in zip((first, second), streams, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()
        for rounds in (staying, passing):
            rounds.check(f"{kernel.kernel}, capture {capture}")
        del second, graph


def test_graph_beside_calls_in_the_stream_of_its_capture(package: Package, kernel: Any, sm: int) -> None:
    replayed, called = Rounds(package, kernel, sm), Rounds(package, kernel, sm)
    stream, other = two_streams()
    graph = captured(replayed, stream)
    for batch in range(BATCHES_BESIDE):
        replayed.use(batch % VERSIONS)
        called.use(batch % VERSIONS)
        hold(stream, other)
        for _ in range(ROUNDS_AT_ONCE):
            with torch.cuda.stream(other):
                graph.replay()
            with torch.cuda.stream(stream):
                called.queue()
        for rounds in (replayed, called):
            rounds.check(f"{kernel.kernel}, batch {batch}")


def test_two_branches_of_a_graph(package: Package, kernel: Any, sm: int) -> None:
    pair = [Rounds(package, kernel, sm), Rounds(package, kernel, sm)]
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            pair[0].queue()
        pair[1].queue()
        torch.cuda.current_stream().wait_stream(side)
    for version in range(VERSIONS):
        for rounds in pair:
            rounds.use(version)
        for _ in range(REPLAYS_AT_ONCE):
            graph.replay()
        for rounds in pair:
            rounds.check(f"{kernel.kernel}, version {version}")
