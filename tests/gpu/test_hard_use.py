"""Whole paths where things break: very many rows, a thousand runs, streams and threads at once, the device left alone.

The streams and threads of these tests go through the operator; tests/gpu/test_handover.py does the same call by call.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from normgate import Routed, route
from packages import OTHERS
from test_route import LAYERS, arguments_of, check, each, equal, make_layer, make_rows, numbers_of, path_of

RUNS = 1000
STREAMS_OF_A_THREAD = 2
THREADS = 4
BEYOND_INT32 = 2**31
pytestmark = pytest.mark.skipif(bool(OTHERS), reason="operators are tested with the shipped package")


def part_of(rows: dict[str, torch.Tensor], part: slice) -> dict[str, torch.Tensor]:
    return {name: tensor[part] for name, tensor in rows.items()}


def check_parts(model: str, layer: Any, rows: dict[str, torch.Tensor], got: Routed, parts: list[slice]) -> None:
    """These rows of one call against float64."""
    for part in parts:
        own = Routed(*(None if field is None else field[part] for field in got))
        check(path_of(model), arguments_of(layer, part_of(rows, part)), numbers_of(model), own, f"{model} {part}")


@each
def test_every_row_of_65537(model: str, hash_layer: bool) -> None:
    layer = make_layer(model, hash_layer)
    rows = make_rows(layer, 65_537)
    check_parts(model, layer, rows, layer(**rows), [slice(first, first + 4096) for first in range(0, 65_537, 4096)])


@pytest.mark.parametrize("model", ["deepseek-v3", "gpt-oss-120b"])
def test_more_elements_than_an_int32_counts(model: str) -> None:
    """Rows beyond element 2^31 of x, residual, normed_x and residual_out are read and written where they are."""
    layer = make_layer(model)
    count = BEYOND_INT32 // layer.hidden_size + 300
    needed = 5 * count * layer.hidden_size * 2
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of the GPU's memory")
    x, residual = (torch.randn(count, layer.hidden_size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rows = {"x": x, "residual": residual}
    edge = BEYOND_INT32 // layer.hidden_size
    got = layer(**rows)
    check_parts(model, layer, rows, got, [slice(0, 64), slice(edge - 64, edge + 64), slice(count - 64, count)])


@each
def test_a_thousand_runs_give_the_same_bits(model: str, hash_layer: bool) -> None:
    layer = make_layer(model, hash_layer)
    for count in (1, 16, 64, 300):
        arguments = arguments_of(layer, make_rows(layer, count))
        first, differ = route(**arguments), torch.zeros((), dtype=torch.int64, device="cuda")
        for _ in range(RUNS):
            for one, again in zip(first, route(**arguments), strict=True):
                if one is not None:
                    differ += (one != again).sum()
        assert int(differ) == 0, f"{model}: {int(differ)} elements of {RUNS} runs at {count} tokens"


def test_eight_streams_of_four_threads(record: dict[str, Any]) -> None:
    """Each thread runs every model's path in streams of its own, at counts of its own; all results are compared."""
    layers = [(make_layer(model, hash_layer), f"{model}{' hashed' * hash_layer}") for model, hash_layer in LAYERS]
    errors: list[str] = []
    begin = threading.Barrier(THREADS)

    def run(thread: int) -> None:
        try:
            streams = [torch.cuda.Stream() for _ in range(STREAMS_OF_A_THREAD)]
            calls = []
            for layer, name in layers:
                for count in (1 + thread, 16, 23 * (thread + 1)):
                    arguments = arguments_of(layer, make_rows(layer, count))
                    calls.append((arguments, route(**arguments), f"{name} at {count} tokens"))
            differ = torch.zeros(len(streams), len(calls), dtype=torch.int64, device="cuda")
            torch.cuda.synchronize()
            begin.wait()
            for _ in range(30):
                for at, (arguments, right, _name) in enumerate(calls):
                    for own, stream in enumerate(streams):
                        with torch.cuda.stream(stream):
                            again = route(**arguments)
                            for one, other in zip(right, again, strict=True):
                                if one is not None:
                                    differ[own, at] += (one != other).sum()
            torch.cuda.synchronize()
            errors.extend(calls[at][2] for _, at in differ.nonzero().tolist())
        except Exception as error:
            begin.abort()
            errors.append(repr(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    record.update(launches=THREADS * STREAMS_OF_A_THREAD * 30 * 3 * len(layers))


@pytest.mark.parametrize("model", ["deepseek-v3", "deepseek-v4-flash"])
def test_graphs_of_inputs_that_moved(model: str) -> None:
    """A second graph, captured when the inputs lie elsewhere, and the first one, in turn, each on its own inputs."""
    layer = make_layer(model)
    graphs = []
    for _ in range(2):
        rows = make_rows(layer, 16)
        right = layer(**rows)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = layer(**rows)
        graphs.append((graph, rows, right, got))
    for graph, _rows, right, got in graphs * 3:
        for field in got:
            if field is not None:
                field.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert equal(got, right)


@each
def test_the_device_and_the_stream_stay_what_they_were(model: str, hash_layer: bool) -> None:
    layer = make_layer(model, hash_layer)
    rows = make_rows(layer, 9)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = layer(**rows)
        assert torch.cuda.current_stream() == side
    side.synchronize()
    assert torch.cuda.current_device() == rows["x"].device.index
    check_parts(model, layer, rows, got, [slice(0, 9)])
