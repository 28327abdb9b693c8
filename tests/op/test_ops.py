"""The operators on the CPU: opcheck, fakes, results, refusals. What CUDA adds is tested on a GPU."""

import normgate
import pytest
import torch
from normgate import ops, reference
from torch._subclasses.fake_tensor import FakeTensorMode

EPS = 1e-6
K, N = 64, 12
ACTIVATIONS = [torch.bfloat16, torch.float16]
GATES = [torch.bfloat16, torch.float16, torch.float32]
LOGITS = [torch.float32, torch.bfloat16]


def tensors(dtype=torch.bfloat16, gate_dtype=torch.bfloat16, tokens=5, bias=False, device="cpu"):
    torch.manual_seed(0)
    x = torch.randn(tokens, K, device=device).to(dtype)
    norm_weight = torch.randn(K, device=device).to(dtype)
    gate_weight = torch.randn(N, K, device=device).to(gate_dtype)
    return x, norm_weight, gate_weight, torch.randn(N, device=device).to(gate_dtype) if bias else None


def row_strided(x):
    """The same rows with a stride, as in a slice of a fused output."""
    wide = torch.zeros(x.shape[0], 2 * x.shape[1], dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("logits_from", reference.LOGITS_FROM)
@pytest.mark.parametrize("order", reference.NORM_ORDERS)
@pytest.mark.parametrize("suffix", ["", "_reference"])
def test_opcheck_norm_gate(suffix, order, logits_from, bias):
    x, *weights = tensors(bias=bias)
    op = getattr(torch.ops.normgate, f"norm_gate{suffix}").default
    torch.library.opcheck(op, (row_strided(x), *weights, EPS, order, logits_from, torch.float32))


@pytest.mark.parametrize("logits_dtype", LOGITS)
@pytest.mark.parametrize("gate_dtype", GATES)
@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_opcheck_dtypes(dtype, gate_dtype, logits_dtype):
    x, norm_weight, gate_weight, bias = tensors(dtype, gate_dtype, bias=True)
    torch.library.opcheck(
        torch.ops.normgate.norm_gate.default,
        (x, norm_weight, gate_weight, bias, EPS, "B", "unrounded", logits_dtype),
    )
    torch.library.opcheck(torch.ops.normgate.gate.default, (x, gate_weight, bias, logits_dtype))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("suffix", ["", "_reference"])
def test_opcheck_gate(suffix, bias):
    x, _, gate_weight, gate_bias = tensors(bias=bias)
    op = getattr(torch.ops.normgate, f"gate{suffix}").default
    torch.library.opcheck(op, (row_strided(x), gate_weight, gate_bias, torch.float32))


def layout(tensor):
    return tensor.shape, tensor.dtype, tensor.stride(), tensor.device


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("logits_dtype", LOGITS)
@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_fakes_have_the_layout_of_the_real_outputs(dtype, logits_dtype, tokens, strided):
    x, *weights = tensors(dtype, tokens=tokens)
    if strided:
        x = row_strided(x)
    gate_weight = weights[1]
    arguments = dict(eps=EPS, norm_order="A", logits_dtype=logits_dtype)
    real = (
        *normgate.norm_gate(x, *weights, **arguments),
        normgate.gate(x, gate_weight, logits_dtype=logits_dtype),
    )
    mode = FakeTensorMode()
    x, *weights = (None if t is None else mode.from_tensor(t) for t in (x, *weights))
    gate_weight = weights[1]
    fake = (
        *normgate.norm_gate(x, *weights, **arguments),
        normgate.gate(x, gate_weight, logits_dtype=logits_dtype),
    )
    assert [layout(tensor) for tensor in fake] == [layout(tensor) for tensor in real]
    assert all(tensor.is_contiguous() for tensor in real)


@pytest.mark.parametrize("shape", [(K,), (7, K), (2, 3, K), (0, K), (2, 0, K)])
def test_leading_dimensions(shape):
    _, norm_weight, gate_weight, bias = tensors(bias=True)
    x = torch.randn(shape).to(torch.bfloat16)
    normed_x, logits = normgate.norm_gate(x, norm_weight, gate_weight, bias, eps=EPS, norm_order="B")
    assert normed_x.shape == x.shape
    assert logits.shape == (*shape[:-1], N)
    assert normgate.gate(x, gate_weight, bias).shape == logits.shape
    rows = reference.norm_gate(x.reshape(-1, K), norm_weight, gate_weight, bias, EPS, "B")
    assert torch.equal(normed_x.reshape(-1, K), rows[0])
    assert torch.equal(logits.reshape(-1, N), rows[1])


def test_row_stride_changes_nothing():
    x, *weights = tensors()
    dense = normgate.norm_gate(x, *weights, eps=EPS, norm_order="B")
    strided = normgate.norm_gate(row_strided(x), *weights, eps=EPS, norm_order="B")
    assert all(torch.equal(a, b) for a, b in zip(dense, strided, strict=True))
    same_row = x[:1].expand(4, K)
    repeated = normgate.norm_gate(same_row, *weights, eps=EPS, norm_order="B")
    assert torch.equal(repeated[0], dense[0][:1].expand(4, K))


def test_inputs_are_left_alone():
    arguments = tensors(bias=True)
    before = [tensor.clone() for tensor in arguments]
    normgate.norm_gate(*arguments, eps=EPS, norm_order="G", logits_from="rounded")
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


def bad_call(message, **changes):
    return pytest.param(changes, message, id=next(iter(changes)) + "-" + message.split(",")[0][-24:])


BAD_CALLS = [
    bad_call("x has dtype torch.float32, expected torch.bfloat16 or torch.float16", x=torch.ones(5, K)),
    bad_call(
        "x has strides (1, 5), expected 1 in the last dimension",
        x=torch.ones(K, 5, dtype=torch.bfloat16).t(),
    ),
    bad_call(
        "gate_weight has shape (12, 64), expected [num_experts, 56]",
        x=torch.ones(5, 56, dtype=torch.bfloat16),
    ),
    bad_call("norm_weight has shape (63,), expected [64]", norm_weight=torch.ones(K - 1, dtype=torch.bfloat16)),
    bad_call("norm_weight has dtype torch.float32, expected torch.bfloat16", norm_weight=torch.ones(K)),
    bad_call(
        "norm_weight has strides (2,), expected a contiguous tensor",
        norm_weight=torch.ones(2 * K, dtype=torch.bfloat16)[::2],
    ),
    bad_call("gate_weight has shape (64,), expected [num_experts, 64]", gate_weight=torch.ones(K)),
    bad_call(
        "gate_weight has dtype torch.float64, expected torch.bfloat16 or torch.float16 or torch.float32",
        gate_weight=torch.ones(N, K, dtype=torch.float64),
    ),
    bad_call(
        "gate_weight has strides (1, 12), expected a contiguous tensor",
        gate_weight=torch.ones(K, N, dtype=torch.bfloat16).t(),
    ),
    bad_call("gate_weight is on meta, expected cpu, where x is", gate_weight=torch.ones(N, K, device="meta")),
    bad_call("gate_bias has shape (13,), expected [12]", gate_bias=torch.ones(N + 1)),
    bad_call("gate_bias has dtype torch.float32, expected torch.bfloat16", gate_bias=torch.ones(N)),
    bad_call("eps is -1.0, expected 0 or more", eps=-1.0),
    bad_call("norm_order is 'C', expected 'A', 'B' or 'G'", norm_order="C"),
    bad_call("logits_from is 'x', expected 'unrounded' or 'rounded'", logits_from="x"),
    bad_call("logits_dtype is torch.float16, expected torch.float32 or torch.bfloat16", logits_dtype=torch.float16),
]


@pytest.mark.parametrize("run", [ops._norm_gate_composition, ops._norm_gate_fake], ids=["real", "fake"])
@pytest.mark.parametrize("changes, message", BAD_CALLS)
def test_bad_calls_are_refused_by_name(changes, message, run):
    x, norm_weight, gate_weight, gate_bias = tensors()
    arguments = dict(
        x=x,
        norm_weight=norm_weight,
        gate_weight=gate_weight,
        gate_bias=gate_bias,
        eps=EPS,
        norm_order="B",
        logits_from="unrounded",
        logits_dtype=torch.float32,
    )
    with pytest.raises(RuntimeError) as refused:
        run(**{**arguments, **changes})
    assert str(refused.value) == f"normgate::norm_gate: {message}"


def test_bad_call_through_the_dispatcher():
    x, *weights = tensors()
    with pytest.raises(RuntimeError, match="normgate::norm_gate: norm_order is 'b', expected 'A', 'B' or 'G'"):
        normgate.norm_gate(x, *weights, eps=EPS, norm_order="b")
    with pytest.raises(RuntimeError, match=r"normgate::gate: x has shape \(1, 5, 64\), expected \[num_tokens"):
        torch.ops.normgate.gate(x[None], weights[1], None, torch.float32)
    with pytest.raises(RuntimeError, match="normgate::gate: gate_weight is on meta, expected cpu"):
        torch.ops.normgate.gate(x, weights[1].to("meta"), None, torch.float32)


def test_named_library_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv("NORMGATE_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(ImportError, match="NORMGATE_LIBRARY is .*none.so, expected .*python build.py"):
        ops._load_library()


def test_library_that_does_not_load(monkeypatch, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    monkeypatch.setenv("NORMGATE_LIBRARY", str(broken))
    with pytest.raises(ImportError, match="broken.so does not load under torch .*python build.py"):
        ops._load_library()
