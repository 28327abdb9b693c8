"""The chain protocol: what an op costs behind a producer, with cold weights, in a CUDA graph.

A graph holds pairs of a small producer kernel, which writes x, and the op under test, each launched with
programmatic stream serialization, weights in rotation. Its time less that of the same graph of producers
alone, divided by the pairs, is the op's cost where it is used. Alone and warm, kernels look different and
thresholds come out wrong.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..protocol import Protocol
from .native import BenchLibrary
from .rotation import Rotation, rotation

# torch leaves what this file calls of it without annotations.
_cuda: Any = torch.cuda

CLOCK_HZ = 2e9  # about what the multiprocessors run at, for a pause of known length
_PRODUCERS = "producers"


@dataclass(frozen=True)
class Weights:
    """norm_weight [hidden_size], gate_weight [num_experts, hidden_size], gate_bias [num_experts]."""

    norm_weight: Tensor | None
    gate_weight: Tensor
    gate_bias: Tensor | None

    @property
    def bytes(self) -> int:
        return sum(_bytes(tensor) for tensor in (self.norm_weight, self.gate_weight, self.gate_bias))


@dataclass(frozen=True)
class Outputs:
    """normed_x [num_tokens, hidden_size], None for a gate alone; router_logits [num_tokens, num_experts], None for a
    whole path that keeps them to itself.

    Of whole paths besides, where they have them: residual_out [num_tokens, hidden_size], topk_weights and topk_ids
    [num_tokens, top_k].
    """

    normed_x: Tensor | None
    router_logits: Tensor | None
    residual_out: Tensor | None = None
    topk_weights: Tensor | None = None
    topk_ids: Tensor | None = None

    @property
    def all(self) -> tuple[Tensor | None, ...]:
        return (self.normed_x, self.router_logits, self.residual_out, self.topk_weights, self.topk_ids)

    @property
    def bytes(self) -> int:
        return sum(map(_bytes, self.all))


Launch = Callable[[Weights, Tensor, Outputs, int], Outputs]


@dataclass(frozen=True)
class Candidate:
    """Something to time.

    launch(weights, x, outputs, stream) puts the op on the current stream, whose cudaStream_t is `stream`, and
    returns the tensors that hold the result: `outputs`, or tensors of its own.
    variant: which kernel it runs, for the record.
    checks: what must hold before it is timed: the norm and gate, the whole path, a copy of x (the probe), or nothing.
    tolerance: of the logits, ||out - ref|| / ||ref|| against float64, or of a whole path's choice of experts;
    logits_dtype: what it writes logits in, None for the dtype that the outputs have.
    best_of: the name that the fastest of several is timed by; "" for what is timed anyway.
    ours: built from this repository, so that a wrong result is an error and not a peer to leave out.
    """

    name: str
    launch: Launch
    variant: str = ""
    checks: Literal["router", "path", "copy", "nothing"] = "router"
    tolerance: float = 0.0
    logits_dtype: torch.dtype | None = None
    best_of: str = ""
    ours: bool = True


@dataclass(frozen=True)
class Timing:
    """Microseconds an op: the median of the rounds, and their interquartile range."""

    median_us: float
    spread_us: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(middle, high - low)


@dataclass(frozen=True)
class Measured:
    """The timings of one point, by candidate, and the rotation they were taken with."""

    rotation: Rotation
    timings: Mapping[str, Timing]


@dataclass(frozen=True)
class Graph:
    """A captured chain; `last` are the tensors that its last op writes."""

    graph: Any
    last: Outputs | None


class Chain:
    """The chain for one shape and token count.

    weights: all weight sets there are; sources: what the producer copies to x, each [num_tokens, hidden_size]
    and contiguous, in turn, so that an op that reads x before the producer has written it gives a wrong
    result.
    """

    def __init__(self, library: BenchLibrary, weights: Sequence[Weights], sources: Sequence[Tensor], outputs: Outputs):
        self.library = library
        self.weights = weights
        self.sources = sources
        self.outputs = outputs
        self.x = torch.empty_like(sources[0])
        self._stream = _cuda.Stream()

    def inputs_of_last(self, pairs: int, weight_sets: int) -> tuple[Weights, Tensor]:
        """What the last of `pairs` ops reads: its weights and its x."""
        return self.weights[(pairs - 1) % weight_sets], self.sources[(pairs - 1) % len(self.sources)]

    def capture(self, candidate: Candidate | None, pairs: int, weight_sets: int) -> Graph:
        """Capture `pairs` of producer and candidate, or producers alone for None; raises what it raises."""
        # First calls load modules, compile, and make handles: none of that may happen inside a capture.
        self._stream.wait_stream(_cuda.current_stream())
        with _cuda.stream(self._stream):
            for pair in range(2):
                self._launch(candidate, pair, weight_sets)
        _cuda.synchronize()
        graph = _cuda.CUDAGraph()
        last: Outputs | None = None
        with _cuda.graph(graph, stream=self._stream):
            for pair in range(pairs):
                # Dropped before the next pair, so that an op that allocates takes the same memory again.
                last = None
                last = self._launch(candidate, pair, weight_sets)
        return Graph(graph, last)

    def measure(self, candidates: Sequence[Candidate], protocol: Protocol) -> Measured:
        """Time the candidates against each other, round robin. Names must be unique."""
        l2_bytes = _cuda.get_device_properties(self.x.device).L2_cache_size
        sizes = (self.weights[0].bytes, 2 * _bytes(self.x) + self.outputs.bytes, l2_bytes)
        turn = rotation(*sizes, protocol)
        graphs = self._capture_all(candidates, turn)
        slowest_us = max(statistics.median(samples) for samples in self._rounds(graphs, 3).values())
        if slowest_us > protocol.graph_ms * 1000:
            graphs.clear()
            turn = rotation(*sizes, protocol, pair_us=slowest_us / turn.pairs)
            graphs = self._capture_all(candidates, turn)
        self._rounds(graphs, protocol.warmups)
        samples = self._rounds(graphs, protocol.repeats)
        producers = samples.pop(_PRODUCERS)
        # Round by round: what slows the chip for a while slows both.
        timings = {
            name: Timing.of([(op - alone) / turn.pairs for op, alone in zip(taken, producers, strict=True)])
            for name, taken in samples.items()
        }
        return Measured(turn, timings)

    def _capture_all(self, candidates: Sequence[Candidate], turn: Rotation) -> dict[str, Graph]:
        if turn.weight_sets > len(self.weights):
            raise ValueError(f"the rotation takes {turn.weight_sets} weight sets, there are {len(self.weights)}")
        graphs = {_PRODUCERS: self.capture(None, turn.pairs, turn.weight_sets)}
        for candidate in candidates:
            graphs[candidate.name] = self.capture(candidate, turn.pairs, turn.weight_sets)
        return graphs

    def _rounds(self, graphs: Mapping[str, Graph], count: int) -> dict[str, list[float]]:
        """Microseconds of each graph in each round, the order shifting from round to round."""
        names = list(graphs)
        samples: dict[str, list[float]] = {name: [] for name in names}
        pause_s = 0.01
        for turn in range(count):
            shift = turn % len(names)
            order = names[shift:] + names[:shift]
            events = {name: [_cuda.Event(enable_timing=True) for _ in range(2)] for name in order}
            with _cuda.stream(self._stream):
                # The chip pauses until the host has queued the whole round, so that no launch is waited for.
                _cuda._sleep(int(pause_s * CLOCK_HZ))
                begin = time.perf_counter()
                for name in order:
                    start, end = events[name]
                    start.record()
                    graphs[name].graph.replay()
                    end.record()
                pause_s = min(0.1, 2 * (time.perf_counter() - begin) + 1e-4)
            _cuda.synchronize()
            for name, (start, end) in events.items():
                samples[name].append(start.elapsed_time(end) * 1000)
        return samples

    def _launch(self, candidate: Candidate | None, pair: int, weight_sets: int) -> Outputs | None:
        stream = _cuda.current_stream().cuda_stream
        self.library.producer(self.x, self.sources[pair % len(self.sources)], stream)
        if candidate is None:
            return None
        return candidate.launch(self.weights[pair % weight_sets], self.x, self.outputs, stream)


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
