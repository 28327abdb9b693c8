"""The operators on a GPU: what the dispatch takes, the fallback, strides, graphs, compile, export, devices left alone."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import normgate
import normgate.doctor
import pytest
import torch
from oracle import DTYPES, EPS, Inputs, logits, make_inputs, outside_ties, relative_error
from packages import OTHERS, packages
from test_numerics import LIMIT, run, thresholds

_seeds = itertools.count(1000)
MODELS = normgate.models()
pytestmark = pytest.mark.skipif(bool(OTHERS), reason="operators are tested with the shipped package")


@pytest.fixture(autouse=True)
def _library_loaded() -> None:
    assert normgate.ops.LIBRARY is not None, "the package under test has no library: python build.py"


def call(kernel: Any, inputs: Inputs) -> tuple[torch.Tensor | None, torch.Tensor]:
    dtype = DTYPES[kernel.logits_dtype]
    if kernel.norm_order is None:
        return None, normgate.gate(inputs.x, inputs.gate_weight, inputs.gate_bias, logits_dtype=dtype)
    return normgate.norm_gate(
        inputs.x,
        inputs.norm_weight,
        inputs.gate_weight,
        inputs.gate_bias,
        eps=EPS,
        norm_order=kernel.norm_order,
        logits_from=kernel.logits_from,
        logits_dtype=dtype,
    )


def kernel_of(model: str) -> Any:
    return normgate.dispatch.kernel_table(normgate.dispatch.model_table(model).kernel)


@pytest.mark.parametrize("model", MODELS)
def test_op_is_right_and_takes_what_explain_says(model: str, sm: int, record: dict[str, Any]) -> None:
    kernel = kernel_of(model)
    shipped = next(p for p in packages() if model in p.models)
    worst = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no fallback
        for count in sorted({*range(1, 18), 1023, 4096, 8192} | thresholds(kernel)):
            inputs = make_inputs(kernel, count, next(_seeds))
            normed_x, got = call(kernel, inputs)
            worst = max(worst, error := relative_error(got, logits(kernel, inputs, normed_x)))
            assert error < LIMIT[kernel.logits_dtype], count
            assert normed_x is None or outside_ties(kernel, inputs, normed_x)[0] == 0, count
            told = normgate.explain(model, count, sm)
            forced_normed, forced = run(shipped, kernel, told.function, inputs)
            assert torch.equal(got, forced), (count, told.variant)
            assert normed_x is None or torch.equal(normed_x, forced_normed), (count, told.variant)
    record["logits_error"] = worst


def test_same_gate_other_norm_order() -> None:
    """Kimi-K2 and DeepSeek-V4-Pro: equal sizes and logits, each its own order of normed_x, bit for bit."""
    kimi, deepseek = kernel_of("kimi-k2"), kernel_of("deepseek-v4-pro")
    for count in (1, 2, 4, 8, 16, 17, 64, 300):
        inputs = make_inputs(kimi, count, next(_seeds))
        normed_a, logits_a = call(kimi, inputs)
        normed_b, logits_b = call(deepseek, inputs)
        assert relative_error(logits_a, logits_b.double()) < 2e-6, count
        assert outside_ties(kimi, inputs, normed_a)[0] == 0 and outside_ties(deepseek, inputs, normed_b)[0] == 0
        assert outside_ties(deepseek, inputs, normed_a)[0] > 0 and outside_ties(kimi, inputs, normed_b)[0] > 0


@pytest.mark.parametrize("model", MODELS)
def test_no_jump_at_17_tokens(model: str, record: dict[str, Any]) -> None:
    """The seed kernel's logits lost 13 bits from 16 to 17 tokens; ours are as close to float64 on both sides."""
    kernel = kernel_of(model)
    errors = {}
    for count in (16, 17):
        inputs = make_inputs(kernel, count, next(_seeds))
        normed_x, got = call(kernel, inputs)
        errors[count] = relative_error(got, logits(kernel, inputs, normed_x))
    record.update({str(count): error for count, error in errors.items()})
    assert max(errors.values()) < 2e-6


def test_shape_nobody_generated_falls_back_once_and_is_right() -> None:
    kernel = kernel_of("kimi-k2")._replace(hidden_size=1528, num_experts=9)
    inputs = make_inputs(kernel, 5, next(_seeds))
    with pytest.warns(RuntimeWarning, match="build.py"):
        normed_x, got = call(kernel, inputs)
    assert relative_error(got, logits(kernel, inputs, normed_x)) < 2e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(kernel, inputs)


def test_rows_that_16_byte_loads_cannot_read() -> None:
    kernel = kernel_of("qwen3-235b-a22b")
    for shift, stride in ((1, 4097), (8, 4100), (3, 4104)):
        inputs = make_inputs(kernel, 6, next(_seeds))
        wide = torch.zeros(6, stride + 8, device="cuda", dtype=inputs.x.dtype)[:, shift : shift + 4096]
        wide.copy_(inputs.x)
        odd = Inputs(wide, inputs.norm_weight, inputs.gate_weight, inputs.gate_bias)
        for one, other in zip(call(kernel, odd), call(kernel, inputs), strict=True):
            assert torch.equal(one, other), (shift, stride)


def test_no_tokens() -> None:
    kernel = kernel_of("deepseek-v3")
    normed_x, got = call(kernel, make_inputs(kernel, 0, next(_seeds)))
    assert normed_x.shape == (0, 7168) and got.shape == (0, 256) and got.dtype == torch.float32


@pytest.mark.parametrize("model", ["deepseek-v4-pro", "gpt-oss-120b", "minimax-m2"])
def test_cuda_graph_replays_follow_changed_inputs(model: str) -> None:
    kernel = kernel_of(model)
    for count in (1, 16, 40, 300):
        inputs = make_inputs(kernel, count, next(_seeds))
        call(kernel, inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            normed_x, got = call(kernel, inputs)
        for _ in range(3):
            inputs.x.copy_(make_inputs(kernel, count, next(_seeds)).x)
            got.fill_(float("nan"))
            normed_x.fill_(float("nan"))
            graph.replay()
            assert relative_error(got, logits(kernel, inputs, normed_x)) < 2e-6
            assert outside_ties(kernel, inputs, normed_x)[0] == 0


def test_back_to_back_calls_wait_for_each_other() -> None:
    """Overlapping launches: each call reads what the call before wrote."""
    kernel = kernel_of("qwen3-235b-a22b")
    inputs = make_inputs(kernel, 16, next(_seeds))
    step = Inputs(inputs.x, inputs.norm_weight, inputs.gate_weight, None)
    expected, rows = [], inputs.x
    for _ in range(50):  # one at a time
        rows, got = call(kernel, Inputs(rows, inputs.norm_weight, inputs.gate_weight, None))
        torch.cuda.synchronize()
        expected.append(got)
    rows = step.x
    results = []
    for _ in range(50):  # queued at once
        rows, got = call(kernel, Inputs(rows, inputs.norm_weight, inputs.gate_weight, None))
        results.append(got)
    for i, (one, other) in enumerate(zip(expected, results, strict=True)):
        assert torch.equal(one, other), i


def test_torch_compile_makes_one_op_of_it() -> None:
    kernel = kernel_of("kimi-k2")
    inputs = make_inputs(kernel, 24, next(_seeds))

    def step(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normed_x, got = call(kernel, Inputs(x * 2, inputs.norm_weight, inputs.gate_weight, None))
        return normed_x, got + 1

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for count in (24, 3, 17):
        for one, other in zip(compiled(inputs.x[:count]), step(inputs.x[:count]), strict=True):
            assert torch.equal(one, other), count


def test_layer_exports() -> None:
    layer = normgate.NormGateLinear.from_model("gpt-oss-120b", device="cuda")
    for parameter in layer.parameters():
        parameter.data.normal_()
    x = torch.randn(6, 2880, device="cuda", dtype=torch.bfloat16)
    tokens = torch.export.Dim("tokens", min=2, max=8192)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: tokens},)).module()
    for count in (6, 2, 33):
        x = torch.randn(count, 2880, device="cuda", dtype=torch.bfloat16)
        for one, other in zip(exported(x), layer(x), strict=True):
            assert torch.equal(one, other), count


def test_wrong_calls_say_what_is_wrong_and_leave_the_process_well() -> None:
    kernel = kernel_of("deepseek-v3")
    inputs = make_inputs(kernel, 4, next(_seeds))
    x, norm, gate = inputs.x, inputs.norm_weight, inputs.gate_weight
    for bad, match in (
        ((x.float(), norm, gate), "x is float32"),
        ((x, norm.float(), gate), "norm_weight is float32"),
        ((x, norm[:-8], gate), "norm_weight"),
        ((x, norm, gate[:, :-8]), "gate_weight"),
        ((x, norm, gate.T.contiguous().T), "gate_weight"),
        ((x, norm.cpu(), gate), "norm_weight"),
        ((x.T, norm, gate), "x"),
    ):
        with pytest.raises(RuntimeError, match=match):
            normgate.norm_gate(*bad, eps=EPS, norm_order="A")
    with pytest.raises(RuntimeError, match="norm_order"):
        normgate.norm_gate(x, norm, gate, eps=EPS, norm_order="Z")
    normed_x, got = call(kernel, inputs)
    assert relative_error(got, logits(kernel, inputs, normed_x)) < 2e-6


def one_further(tensor: torch.Tensor) -> torch.Tensor:
    """The same an element after a multiple of 16 bytes."""
    room = torch.empty(tensor.numel() + 8, device=tensor.device, dtype=tensor.dtype)
    return room[1 : 1 + tensor.numel()].view(tensor.shape).copy_(tensor)


def test_wrong_calls_name_argument_value_and_expectation() -> None:
    """Each wrong in one way; after each the next right call gives the same bits."""
    kernel = kernel_of("deepseek-v3")
    inputs = make_inputs(kernel, 4, next(_seeds))
    x, norm, gate = inputs.x, inputs.norm_weight, inputs.gate_weight
    experts, hidden = gate.shape
    right = call(kernel, inputs)
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({"x": x.cpu()}, "x is on no CUDA device; expected one, as other arguments are"),
        ({"x": x.cpu(), "gate_weight": gate.cpu()}, "x is on no CUDA device; expected one"),
        ({"norm_weight": norm.cpu()}, "norm_weight is on no CUDA device; expected cuda:0, where x is"),
        ({"gate_weight": gate.cpu()}, "gate_weight is on no CUDA device; expected cuda:0, where x is"),
        ({"x": x.double()}, "x is float64; expected bfloat16 or float16"),
        ({"x": x.T.contiguous().T}, "x has stride 4 in its last dimension; expected 1"),
        ({"norm_weight": norm[:-8]}, rf"norm_weight has shape \[{hidden - 8}\]; expected \[{hidden}\]"),
        (
            {"gate_weight": gate[:, :-8]},
            rf"gate_weight has shape \[{experts}, {hidden - 8}\]; expected \[num_experts, {hidden}\]",
        ),
        (
            {"gate_weight": gate.T.contiguous().T},
            rf"gate_weight has strides \[1, {experts}\]; expected a contiguous tensor",
        ),
        ({"gate_weight": gate.to(torch.int64)}, "gate_weight is int64; expected bfloat16, float16 or float32"),
        ({"gate_weight": one_further(gate)}, "gate_weight starts at an address that is no multiple of 16 bytes"),
        ({"x": x.to_sparse()}, "SparseCUDA"),  # torch's own words
    ]
    for changes, match in cases:
        arguments = {"x": x, "norm_weight": norm, "gate_weight": gate} | changes
        with pytest.raises(RuntimeError, match=match):
            normgate.norm_gate(**arguments, eps=EPS, norm_order="A")
        assert all(torch.equal(a, b) for a, b in zip(call(kernel, inputs), right, strict=True)), match


def test_what_autograd_would_record_is_refused() -> None:
    kernel = kernel_of("deepseek-v3")
    inputs = make_inputs(kernel, 4, next(_seeds))
    right = call(kernel, inputs)
    inputs.x.requires_grad_()
    with pytest.raises(RuntimeError, match="x requires grad, expected a tensor that does not"):
        call(kernel, inputs)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(call(kernel, inputs), right, strict=True))


@pytest.mark.parametrize("tokens", [1, 17, 300])
@pytest.mark.parametrize("model", normgate.models())
def test_checked_calls_pass(model: str, tokens: int) -> None:
    layer = normgate.NormGateLinear.from_model(model, routes=True, device="cuda")
    normgate.doctor._fill(layer)
    with normgate.checked():
        normgate.doctor._call(layer, tokens, "cuda")


def test_a_capture_is_not_checked_and_stays_whole() -> None:
    kernel = kernel_of("deepseek-v3")
    inputs = make_inputs(kernel, 4, next(_seeds))
    right = call(kernel, inputs)
    normgate.checking._warn_of_capture.cache_clear()
    graph = torch.cuda.CUDAGraph()
    with normgate.checked(), pytest.warns(RuntimeWarning, match="captured into a CUDA graph are not checked"):
        with torch.cuda.graph(graph):
            captured = call(kernel, inputs)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, right, strict=True))


def test_doctor_finds_nothing_wrong() -> None:
    found = normgate.doctor.examine()
    assert found["problems"] == []
    assert found["library"]["stream_symbol"] and found["self_test"]["device"] == "cuda"
    assert set(found["variants"]) == set(normgate.models())


def test_library_finds_torchs_stream() -> None:
    """On a stream of the caller's, not on the default one."""
    from codegen.bench.native import Library

    assert Library(normgate.ops.LIBRARY).has_stream_symbol()
    kernel = kernel_of("kimi-k2")
    inputs = make_inputs(kernel, 8, next(_seeds))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # long enough that a launch on another stream would be seen to run first
        event = torch.cuda.Event()
        normed_x, got = call(kernel, inputs)
        event.record()
    assert not event.query(), "the call did not queue behind its own stream's work"
    torch.cuda.synchronize()
    assert relative_error(got, logits(kernel, inputs, normed_x)) < 2e-6
