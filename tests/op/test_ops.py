"""The operators on the CPU: opcheck, fakes, results, refusals. What CUDA adds is tested on a GPU."""

import dataclasses
import inspect
import math
import warnings

import normgate
import pytest
import torch
from normgate import Routing, ops, reference
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


@pytest.mark.parametrize("gate_dtype", GATES)
@pytest.mark.parametrize("dtype", ACTIVATIONS)
@pytest.mark.parametrize("order", reference.NORM_ORDERS)
def test_the_operators_of_one_order(order, dtype, gate_dtype):
    x, norm_weight, gate_weight, _ = tensors(dtype, gate_dtype)
    op = getattr(torch.ops.normgate, f"norm_gate_{order.lower()}").default
    torch.library.opcheck(op, (row_strided(x), norm_weight, gate_weight, EPS))
    right = torch.ops.normgate.norm_gate.default(x, norm_weight, gate_weight, None, EPS, order)
    for got in (
        op(x, norm_weight, gate_weight, EPS),
        normgate.norm_gate(x, norm_weight, gate_weight, eps=EPS, norm_order=order),
    ):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, right, strict=True))


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


ROUTING = Routing(
    4,
    "sigmoid",
    n_group=4,
    topk_group=2,
    renormalize=True,
    renormalize_epsilon=1e-20,
    routed_scaling_factor=2.5,
)
HASHED = Routing(4, "sqrtsoftplus", renormalize=True, ids_dtype=torch.int64)

# What each path has beside x and the gate's weight.
PATHS = {
    "everything": dict(residual=True, norm=True, bias=True, corrected=True, routing=ROUTING, returns_logits=True),
    "scaled residual": dict(residual=True, norm=True, residual_multiplier=0.22, routing=Routing(3, "softmax")),
    "no residual": dict(norm=True, corrected=True, routing=ROUTING),
    "no norm": dict(residual=True, bias=True, routing=Routing(4, "softmax_of_chosen")),
    "no selection": dict(residual=True, norm=True, routing=None, returns_logits=True),
    "gate and selection": dict(routing=dataclasses.replace(ROUTING, weights_dtype=torch.bfloat16, softcap=30.0)),
    "hash layer": dict(norm=True, hashed=True, routing=HASHED),
    "gate": dict(routing=None, returns_logits=True),
    "images": dict(norm=True, corrected=True, images=True, routing=ROUTING),
    "images in a hash layer": dict(norm=True, hashed=True, images=True, routing=HASHED),
    "no images": dict(norm=True, corrected=True, images=True, image_mask=None, routing=ROUTING),
    "scaled sum": dict(residual=True, norm=True, residual_multiplier=-0.4, stream_multiplier=3.6, routing=ROUTING),
    "scaled experts": dict(norm=True, scaled=True, routing=Routing(3, "softmax", renormalize=True)),
}


def path(name, dtype=torch.bfloat16, gate_dtype=torch.bfloat16, tokens=5, strided=False):
    """Arguments of ``normgate.route`` by name."""
    asked = dict(PATHS[name])
    x, norm_weight, gate_weight, gate_bias = tensors(dtype, gate_dtype, tokens, bias=asked.pop("bias", False))
    arguments = dict(x=x, gate_weight=gate_weight, gate_bias=gate_bias)
    if asked.pop("norm", False):
        arguments |= dict(norm_weight=norm_weight, eps=EPS, norm_order="A")
    if asked.pop("residual", False):
        arguments["residual"] = torch.randn(tokens, K).to(dtype)
    if asked.pop("corrected", False):
        arguments["e_score_correction_bias"] = torch.randn(N) / 4
    if asked.pop("hashed", False):
        table = torch.stack([torch.randperm(N)[:4] for _ in range(20)])
        arguments |= dict(tid2eid=table, input_ids=torch.randint(0, 20, (tokens,)))
    if asked.pop("images", False):
        arguments |= dict(e_score_correction_bias_vl=torch.randn(N) / 4, image_mask=torch.arange(tokens) % 2 == 1)
    if asked.pop("scaled", False):
        arguments["per_expert_scale"] = torch.rand(N) + 0.5
    if strided:
        arguments |= {name: row_strided(arguments[name]) for name in ("x", "residual") if name in arguments}
    return {**arguments, **asked}


def flat(**arguments):
    """Arguments of the operator by name, from those of ``normgate.route``."""
    defaults = dict(
        residual=None,
        norm_weight=None,
        gate_bias=None,
        e_score_correction_bias=None,
        tid2eid=None,
        input_ids=None,
        eps=0.0,
        norm_order="",
        logits_from="unrounded",
        logits_dtype=torch.float32,
        returns_logits=False,
        residual_multiplier=1.0,
    )
    routing = arguments.pop("routing")
    first = ops._RouteCall._fields.index("scoring")
    chooses = dict(
        zip(ops._RouteCall._fields[first : first + 12], ops._NO_SELECTION + ops._LAST_BY_DEFAULT, strict=True)
    )
    if routing is not None:
        chooses = {field.name: getattr(routing, field.name) for field in dataclasses.fields(routing)}
    return {**defaults, **arguments, **chooses}


@pytest.mark.parametrize("suffix", ["", "_reference"])
@pytest.mark.parametrize("name", PATHS)
def test_opcheck_route(name, suffix):
    call = ops._RouteCall(**flat(**path(name, strided=True)))
    torch.library.opcheck(getattr(torch.ops.normgate, f"route{suffix}").default, tuple(call))


@pytest.mark.parametrize("logits_dtype", LOGITS)
@pytest.mark.parametrize("gate_dtype", GATES)
@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_opcheck_route_dtypes(dtype, gate_dtype, logits_dtype):
    call = ops._RouteCall(**flat(**path("everything", dtype, gate_dtype), logits_dtype=logits_dtype))
    torch.library.opcheck(torch.ops.normgate.route.default, tuple(call))


def test_the_schema_has_the_arguments_of_the_call():
    for op in (torch.ops.normgate.route, torch.ops.normgate.route_reference):
        schema = op.default._schema
        assert tuple(argument.name for argument in schema.arguments) == ops._RouteCall._fields
        assert tuple(output.name for output in schema.returns) == normgate.Routed._fields
        assert not schema.is_mutable


@pytest.mark.parametrize("suffix", ["", "_reference"])
@pytest.mark.parametrize(
    ("op", "functions"),
    [
        ("norm_gate", (ops._norm_gate_composition, ops._norm_gate_fake)),
        ("gate", (ops._gate_composition, ops._gate_fake)),
        ("route", (ops._RouteCall,)),
    ],
)
def test_python_functions_have_the_defaults_of_the_schema(op, functions, suffix):
    """torch leaves out arguments that are as the schema's defaults say when it calls them."""
    arguments = getattr(torch.ops.normgate, f"{op}{suffix}").default._schema.arguments
    # A schema names a dtype by its number.
    numbers = {torch.int32: 3, torch.float32: 6}
    for function in functions:
        given = {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not parameter.empty
        }
        assert given
        wanted = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
        assert {name: numbers.get(value, value) for name, value in given.items()} == wanted


@pytest.mark.parametrize("logits_dtype", LOGITS)
@pytest.mark.parametrize("logits_from", ["unrounded", "rounded"])
@pytest.mark.parametrize("shape", [(5, K), (5, 1, K), (K,)])
def test_what_is_left_out_by_default_is_what_was_asked_for(shape, logits_from, logits_dtype):
    x, norm_weight, gate_weight, bias = tensors(bias=True)
    x = x.reshape(-1)[: math.prod(shape)].reshape(shape)
    contract = dict(eps=EPS, norm_order="B", logits_from=logits_from)
    normed_x, router_logits = normgate.norm_gate(
        x, norm_weight, gate_weight, bias, **contract, logits_dtype=logits_dtype
    )
    rows = x.reshape(-1, K)
    right = normgate.reference.norm_gate(rows, norm_weight, gate_weight, bias, **contract, logits_dtype=logits_dtype)
    assert torch.equal(normed_x, right[0].view(shape)) and normed_x.shape == x.shape
    assert torch.equal(router_logits, right[1].view(*shape[:-1], N)) and router_logits.dtype == logits_dtype
    alone = normgate.gate(x, gate_weight, bias, logits_dtype=logits_dtype)
    assert torch.equal(alone, normgate.reference.gate(rows, gate_weight, bias, logits_dtype).view(*shape[:-1], N))


def wanted_of(arguments):
    """The reference, its rows in the shape of x."""
    asked = dict(arguments)
    returns_logits = asked.pop("returns_logits", False)
    x, gate_weight, gate_bias = (asked.pop(name) for name in ("x", "gate_weight", "gate_bias"))
    if "residual" in asked:
        asked["residual"] = asked["residual"].reshape(-1, K)
    if "input_ids" in asked:
        asked["input_ids"] = asked["input_ids"].reshape(-1)
    routed = reference.route(x.reshape(-1, K), gate_weight, gate_bias, **asked)
    if not returns_logits:
        routed = routed._replace(router_logits=None)
    return normgate.Routed(*(None if t is None else t.view(*x.shape[:-1], t.shape[1]) for t in routed))


def same(found, wanted):
    """Equal bit by bit in each field, ``None`` where the other is."""
    pairs = list(zip(found, wanted, strict=True))
    return all(a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", PATHS)
def test_route_gives_what_was_asked_for(name, strided):
    arguments = path(name, strided=strided)
    before = {key: value.clone() for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    routed = normgate.route(**arguments)
    assert type(routed) is normgate.Routed
    assert same(routed, wanted_of(arguments))
    asked = PATHS[name]
    routes = asked["routing"] is not None
    given = [asked.get("norm"), asked.get("residual"), routes, routes, asked.get("returns_logits")]
    assert [field is not None for field in routed] == [bool(field) for field in given]
    assert all(field.is_contiguous() for field in routed if field is not None)
    assert all(torch.equal(arguments[key], value) for key, value in before.items()), "inputs are left alone"


@pytest.mark.parametrize("name", PATHS)
def test_the_operator_gives_nothing_for_what_was_not_asked_for(name):
    arguments = path(name)
    routed = normgate.route(**arguments)
    outputs = torch.ops.normgate.route(**flat(**arguments))
    dtypes = (torch.bfloat16, torch.bfloat16, torch.float32, torch.int32, torch.float32)
    if arguments["routing"] is not None:
        routing = arguments["routing"]
        dtypes = (torch.bfloat16, torch.bfloat16, routing.weights_dtype, routing.ids_dtype, torch.float32)
    for output, wanted, dtype in zip(outputs, routed, dtypes, strict=True):
        assert output.dtype == dtype
        assert output.shape == (0,) if wanted is None else torch.equal(output, wanted)


def test_logits_are_always_given_without_a_routing():
    arguments = {**path("gate"), "returns_logits": False}
    assert torch.equal(
        normgate.route(**arguments).router_logits, normgate.gate(arguments["x"], arguments["gate_weight"])
    )


def test_route_without_residual_and_selection_is_norm_gate():
    x, *weights = tensors(bias=True)
    normed_x, logits = normgate.norm_gate(x, *weights, eps=EPS, norm_order="G", logits_from="rounded")
    named = dict(norm_weight=weights[0], eps=EPS, norm_order="G", gate_bias=weights[2], logits_from="rounded")
    routed = normgate.route(x, weights[1], routing=None, **named)
    assert same(routed, (normed_x, None, None, None, logits))


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("logits_dtype", LOGITS)
@pytest.mark.parametrize("dtype", ACTIVATIONS)
@pytest.mark.parametrize("name", PATHS)
def test_fakes_of_route_have_the_layout_of_the_real_outputs(name, dtype, logits_dtype, tokens):
    arguments = flat(**path(name, dtype, tokens=tokens, strided=True), logits_dtype=logits_dtype)
    real = torch.ops.normgate.route(**arguments)
    mode = FakeTensorMode()
    faked = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    fake = torch.ops.normgate.route(**faked)
    assert [layout(tensor) for tensor in fake] == [layout(tensor) for tensor in real]
    assert all(tensor.is_contiguous() for tensor in real)


@pytest.mark.parametrize("shape", [(K,), (7, K), (2, 3, K), (0, K), (2, 0, K)])
@pytest.mark.parametrize("name", ["everything", "hash layer"])
def test_leading_dimensions_of_route(name, shape):
    arguments = path(name)
    arguments["x"] = torch.randn(shape).bfloat16()
    if "residual" in arguments:
        arguments["residual"] = torch.randn(shape).bfloat16()
    if "input_ids" in arguments:
        arguments["input_ids"] = torch.randint(0, 20, shape[:-1])
    routed = normgate.route(**arguments)
    assert routed.normed_x.shape == shape
    assert routed.topk_ids.shape == routed.topk_weights.shape == (*shape[:-1], 4)
    assert same(routed, wanted_of(arguments))


def test_residual_rows_may_repeat_and_may_be_x():
    arguments = path("everything")
    x = arguments["x"]
    doubled = normgate.route(**{**arguments, "residual": x})
    assert torch.equal(doubled.residual_out, 2 * x)
    repeated = normgate.route(**{**arguments, "residual": x[:1].expand(5, K)})
    assert same(repeated, normgate.route(**{**arguments, "residual": x[:1].expand(5, K).contiguous()}))


def test_padding_rows_change_no_other_row():
    arguments = path("everything", tokens=8)
    rows = {name: arguments[name][:5] for name in ("x", "residual")}
    for name in rows:
        arguments[name][5:] = float("nan")
    padded, alone = normgate.route(**arguments), normgate.route(**{**arguments, **rows})
    assert torch.equal(padded.topk_ids[:5], alone.topk_ids)
    assert torch.equal(padded.residual_out[:5], alone.residual_out)
    torch.testing.assert_close(padded.topk_weights[:5], alone.topk_weights, rtol=1e-5, atol=0)
    # Chosen by the correction bias alone, for all logits are the least.
    assert all(
        len(set(row)) == 4 and set(row) <= set(range(arguments["gate_weight"].shape[0]))
        for row in padded.topk_ids[5:].tolist()
    )
    assert not padded.topk_weights[5:].any()
    assert not padded.topk_weights[5:].any()


def test_the_cpu_routes_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normgate.route(**path("everything"))
        torch.ops.normgate.route_reference(**flat(**path("everything")))


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


def meta(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype, device="meta")


BF16_X = torch.ones(5, K).bfloat16()
TABLE, TOKENS = torch.zeros(20, 4, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)

BAD_ROUTES = [
    ("everything", dict(x=torch.ones(5, K)), "x has dtype torch.float32, expected torch.bfloat16 or torch.float16"),
    ("everything", dict(gate_bias=torch.ones(N)), "gate_bias has dtype torch.float32, expected torch.bfloat16"),
    ("everything", dict(residual=BF16_X[:, 1:]), "residual has shape (5, 63), expected (5, 64), that of x"),
    ("everything", dict(residual=BF16_X[:3]), "residual has shape (3, 64), expected (5, 64), that of x"),
    ("everything", dict(residual=BF16_X[0]), "residual has shape (64,), expected (5, 64), that of x"),
    ("everything", dict(residual=torch.ones(5, K)), "residual has dtype torch.float32, expected torch.bfloat16"),
    (
        "everything",
        dict(residual=torch.ones(K, 5).bfloat16().t()),
        "residual has strides (1, 5), expected 1 in the last dimension",
    ),
    ("everything", dict(residual=BF16_X.to("meta")), "residual is on meta, expected cpu, where x is"),
    ("no residual", dict(residual_multiplier=0.5), "residual_multiplier is 0.5, expected 1.0 without a residual"),
    ("everything", dict(norm_order=""), "norm_order is '', expected 'A', 'B' or 'G'"),
    ("no norm", dict(norm_order="A"), "norm_order is 'A', expected '' without a norm_weight"),
    ("no norm", dict(logits_from="x"), "logits_from is 'x', expected 'unrounded' or 'rounded'"),
    ("everything", dict(eps=-1.0), "eps is -1.0, expected 0 or more"),
    (
        "everything",
        dict(e_score_correction_bias=torch.ones(N).bfloat16()),
        "e_score_correction_bias has dtype torch.bfloat16, expected torch.float32",
    ),
    (
        "everything",
        dict(e_score_correction_bias=torch.ones(1, N)),
        "e_score_correction_bias has shape (1, 12), expected [12]",
    ),
    (
        "everything",
        dict(e_score_correction_bias=meta(N)),
        "e_score_correction_bias is on meta, expected cpu, where x is",
    ),
    (
        "everything",
        dict(tid2eid=TABLE, input_ids=TOKENS),
        "tid2eid is a tensor, expected None beside e_score_correction_bias",
    ),
    ("hash layer", dict(tid2eid=None), "input_ids is a tensor, expected None without tid2eid"),
    ("hash layer", dict(input_ids=None), "input_ids is None, expected a tensor beside tid2eid"),
    ("hash layer", dict(tid2eid=TABLE.int()), "tid2eid has dtype torch.int32, expected torch.int64"),
    ("hash layer", dict(tid2eid=TABLE[:, 1:]), "tid2eid has shape (20, 3), expected [vocab_size, 4]"),
    (
        "hash layer",
        dict(tid2eid=TABLE.t().contiguous().t()),
        "tid2eid has strides (1, 20), expected a contiguous tensor",
    ),
    ("hash layer", dict(tid2eid=TABLE[:0]), "tid2eid has shape (0, 4), expected one row or more"),
    ("hash layer", dict(input_ids=TOKENS.int()), "input_ids has dtype torch.int32, expected torch.int64"),
    ("hash layer", dict(input_ids=TOKENS[:4]), "input_ids has shape (4,), expected [5], the rows of x"),
    ("hash layer", dict(input_ids=TOKENS[None]), "input_ids has shape (1, 5), expected [num_tokens]"),
    ("hash layer", dict(input_ids=TOKENS.to("meta")), "input_ids is on meta, expected cpu, where x is"),
    ("no selection", dict(top_k=4), "top_k is 4, expected 0 without a scoring"),
    ("no selection", dict(returns_logits=False), "returns_logits is False, expected True without a scoring"),
    (
        "no selection",
        dict(e_score_correction_bias=torch.ones(N)),
        "e_score_correction_bias is a tensor, expected None without a scoring",
    ),
    ("no selection", dict(tid2eid=TABLE), "tid2eid is a tensor, expected None without a scoring"),
    ("no residual", dict(stream_multiplier=0.5), "stream_multiplier is 0.5, expected 1.0 without a residual"),
    (
        "images",
        dict(e_score_correction_bias_vl=torch.ones(N).bfloat16()),
        "e_score_correction_bias_vl has dtype torch.bfloat16, expected torch.float32",
    ),
    (
        "images",
        dict(e_score_correction_bias=None),
        "e_score_correction_bias_vl is a tensor, expected None without e_score_correction_bias or tid2eid",
    ),
    (
        "images",
        dict(e_score_correction_bias_vl=None),
        "image_mask is a tensor, expected None without e_score_correction_bias_vl",
    ),
    ("images", dict(image_mask=TOKENS), "image_mask has dtype torch.int64, expected torch.bool"),
    ("images", dict(image_mask=TOKENS[:4] > 0), "image_mask has shape (4,), expected [5], the rows of x"),
    ("scaled experts", dict(per_expert_scale=torch.ones(3)), "per_expert_scale has shape (3,), expected [12]"),
    (
        "no selection",
        dict(per_expert_scale=torch.ones(N)),
        "per_expert_scale is a tensor, expected None without a scoring",
    ),
    ("everything", dict(top_k=33), "top_k is 33, expected 1 to 32"),
    ("everything", dict(top_k=7), "top_k is 7, expected no more than the 6 experts that it chooses from"),
    ("everything", dict(n_group=5), "n_group is 5, expected a divisor of 12 experts"),
    (
        "everything",
        dict(scoring="relu"),
        "scoring is 'relu', expected 'softmax' or 'softmax_of_chosen' or 'sigmoid' or 'sqrtsoftplus'",
    ),
    ("everything", dict(ids_dtype=torch.int8), "ids_dtype is torch.int8, expected torch.int32 or torch.int64"),
]


@pytest.mark.parametrize("run", [ops._route_composition, ops._route_fake], ids=["real", "fake"])
@pytest.mark.parametrize("name, changes, message", BAD_ROUTES)
def test_bad_routes_are_refused_by_name(name, changes, message, run):
    arguments = flat(**path(name))
    run(**arguments)
    with pytest.raises(RuntimeError) as refused:
        run(**{**arguments, **changes})
    assert str(refused.value) == f"normgate::route: {message}"


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(eps=None), "norm_weight is a tensor, eps None and norm_order 'A', expected all or none"),
        (dict(norm_weight=None), "norm_weight is None, eps 1e-06 and norm_order 'A', expected all or none"),
        (dict(norm_order=None), "norm_weight is a tensor, eps 1e-06 and norm_order None, expected all or none"),
    ],
)
def test_half_a_norm_is_none(changes, message):
    with pytest.raises(RuntimeError) as refused:
        normgate.route(**{**path("everything"), **changes})
    assert str(refused.value) == f"normgate::route: {message}"


def test_bad_route_through_the_dispatcher():
    with pytest.raises(RuntimeError, match=r"normgate::route: residual has shape \(3, 64\), expected \(5, 64\), that"):
        normgate.route(**{**path("everything"), "residual": BF16_X[:3]})
    with pytest.raises(RuntimeError, match="normgate::route: n_group is 4, expected a divisor of 11 experts"):
        torch.ops.normgate.route_reference(
            **{**flat(**path("no residual")), "gate_weight": torch.ones(11, K).bfloat16()}
        )


def test_bad_call_through_the_dispatcher():
    x, *weights = tensors()
    with pytest.raises(RuntimeError, match="normgate::norm_gate: norm_order is 'b', expected 'A', 'B' or 'G'"):
        normgate.norm_gate(x, *weights, eps=EPS, norm_order="b")
    with pytest.raises(RuntimeError, match=r"normgate::gate: x has shape \(1, 5, 64\), expected \[num_tokens"):
        torch.ops.normgate.gate(x[None], weights[1], None, torch.float32)
    with pytest.raises(RuntimeError, match="normgate::gate: gate_weight is on meta, expected cpu"):
        torch.ops.normgate.gate(x, weights[1].to("meta"), None, torch.float32)


@pytest.mark.skipif(ops.LIBRARY is None, reason="libnormgate.so is not built: python build.py")
def test_the_library_refuses_rows_that_are_on_the_cpu():
    """As when some weight is on a CUDA device; the dispatcher is told so here, for there may be no device."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    x, norm_weight, gate_weight, _ = tensors()
    with pytest.raises(RuntimeError, match="normgate: x is on no CUDA device; expected one, as other arguments are"):
        torch.ops.normgate.norm_gate.default.redispatch(
            cuda, x, norm_weight, gate_weight, None, EPS, "B", "unrounded", torch.float32
        )
    normgate.norm_gate(x, norm_weight, gate_weight, eps=EPS, norm_order="B")


CALLS = {
    "norm_gate": lambda given: normgate.norm_gate(
        *(given[name] for name in ("x", "norm_weight", "gate_weight", "gate_bias")), eps=EPS, norm_order="A"
    ),
    "gate": lambda given: normgate.gate(given["x"], given["gate_weight"], given["gate_bias"]),
    "route": lambda given: normgate.route(**given),
}


@pytest.mark.parametrize(
    "name", ["x", "residual", "norm_weight", "gate_weight", "gate_bias", "e_score_correction_bias"]
)
@pytest.mark.parametrize("op", CALLS)
def test_what_autograd_would_record_is_refused(op, name):
    """Under no_grad, and in inference mode, the same call runs; so does the next one."""
    given = path("everything")
    right = CALLS[op](given)
    given[name] = given[name].clone().requires_grad_()
    takes = name in {"norm_gate": "x norm_weight gate_weight gate_bias", "gate": "x gate_weight gate_bias"}.get(
        op, name
    )
    if takes:
        said = f"normgate::{op}: {name} requires grad, expected a tensor that does not: .* torch.no_grad"
        with pytest.raises(RuntimeError, match=said):
            CALLS[op](given)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            got = CALLS[op](given)
        assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))
        assert not any(tensor.requires_grad for tensor in got)


def test_a_layer_that_is_trained_is_refused():
    layer = normgate.NormGateLinear(K, N, norm_order="A", eps=EPS)
    x = tensors()[0]
    layer(x)
    layer.gate.weight.requires_grad_()
    with pytest.raises(RuntimeError, match="gate_weight requires grad"):
        layer(x)


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
