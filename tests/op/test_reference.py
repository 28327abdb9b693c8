"""The reference against an fp64 computation that shares no code with it."""

import math

import pytest
import torch
from normgate import Routing, reference
from torch._subclasses.fake_tensor import FakeTensorMode

EPS = 1e-6
K, N = 256, 24


def random_inputs(dtype=torch.bfloat16, gate_dtype=torch.bfloat16, tokens=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.randn(tokens, K, generator=generator)).to(dtype)
    norm_weight = (1 + 0.2 * torch.randn(K, generator=generator)).to(dtype)
    gate_weight = (0.1 * torch.randn(N, K, generator=generator)).to(gate_dtype)
    gate_bias = torch.randn(N, generator=generator).to(gate_dtype)
    return x, norm_weight, gate_weight, gate_bias


def round_to(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()


def by_definition(x, norm_weight, gate_weight, gate_bias, order, logits_from):
    """Row by row in Python floats, which are fp64; also gives the norm before it was rounded."""
    normed, logits = [], []
    for row in x.tolist():
        scale = 1 / math.sqrt(math.fsum(value * value for value in row) / len(row) + EPS)
        weights = [1 + w if order == "G" else w for w in norm_weight.tolist()]
        exact = [w * (value * scale) for w, value in zip(weights, row, strict=True)]
        if order == "A":
            xhat = [round_to(value * scale, x.dtype) for value in row]
            rounded = [round_to(w * value, x.dtype) for w, value in zip(weights, xhat, strict=True)]
        else:
            rounded = [round_to(value, x.dtype) for value in exact]
        read = exact if logits_from == "unrounded" else rounded
        bias = [0.0] * len(gate_weight) if gate_bias is None else gate_bias.tolist()
        logits.append(
            [
                math.fsum(g * value for g, value in zip(expert, read, strict=True)) + b
                for expert, b in zip(gate_weight.tolist(), bias, strict=True)
            ]
        )
        normed.append(rounded)
    return torch.tensor(normed, dtype=torch.float64), torch.tensor(logits, dtype=torch.float64)


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("logits_from", reference.LOGITS_FROM)
@pytest.mark.parametrize("order", reference.NORM_ORDERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp64_oracle_is_the_definition(dtype, order, logits_from, bias):
    x, norm_weight, gate_weight, gate_bias = random_inputs(dtype)
    gate_bias = gate_bias if bias else None
    normed_x, logits = reference.norm_gate(
        x, norm_weight, gate_weight, gate_bias, EPS, order, logits_from, torch.float64, torch.float64
    )
    wanted_normed, wanted = by_definition(x, norm_weight, gate_weight, gate_bias, order, logits_from)
    assert normed_x.dtype == dtype
    assert torch.equal(normed_x.double(), wanted_normed)
    assert logits.dtype == torch.float64
    assert relative_error(logits, wanted) < 1e-14


@pytest.mark.parametrize("gate_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("order", reference.NORM_ORDERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp32_stays_within_the_contract(dtype, order, gate_dtype):
    inputs = random_inputs(dtype, gate_dtype)
    normed_x, logits = reference.norm_gate(*inputs, EPS, order, "unrounded")
    oracle_normed, oracle = reference.norm_gate(*inputs, EPS, order, "unrounded", torch.float64, torch.float64)
    assert logits.dtype == torch.float32
    assert relative_error(logits, oracle) < 2e-6
    steps = normed_x.view(torch.int16).int() - oracle_normed.view(torch.int16).int()
    assert steps.abs().max() <= 1


def test_rounded_logits_are_those_of_the_row_as_written():
    x, norm_weight, gate_weight, gate_bias = random_inputs()
    normed_x, logits = reference.norm_gate(x, norm_weight, gate_weight, gate_bias, EPS, "B", "rounded")
    assert torch.equal(logits, reference.gate(normed_x, gate_weight, gate_bias))
    _, unrounded = reference.norm_gate(x, norm_weight, gate_weight, gate_bias, EPS, "B", "unrounded")
    assert not torch.equal(logits, unrounded)


def test_orders_differ_where_they_must():
    x, norm_weight, gate_weight, _ = random_inputs(tokens=32)
    a, logits_a = reference.norm_gate(x, norm_weight, gate_weight, None, EPS, "A")
    b, logits_b = reference.norm_gate(x, norm_weight, gate_weight, None, EPS, "B")
    g, _ = reference.norm_gate(x, norm_weight - 1, gate_weight, None, EPS, "G")
    assert not torch.equal(a, b)
    assert torch.equal(logits_a, logits_b), "unrounded logits do not depend on where the norm rounds"
    assert torch.equal(b, g), "norm_weight - 1 is exact in bf16 near 1, so G computes what B does"


def test_order_a_rounds_twice_and_b_once():
    # Chosen so that rounding xhat before the weight is applied lands on another bf16 number.
    x = torch.tensor([[1.0, 1.0, 1.0, 0.9765625]], dtype=torch.bfloat16)
    weight = torch.full((4,), 1.4140625, dtype=torch.bfloat16)
    xhat = x.double() / (x.double().square().mean(-1, keepdim=True) + EPS).sqrt()
    a = (xhat.to(torch.bfloat16).double() * weight.double()).to(torch.bfloat16)
    b = (xhat * weight.double()).to(torch.bfloat16)
    assert not torch.equal(a, b)
    assert torch.equal(reference.rms_norm(x, weight, EPS, "A")[1], a)
    assert torch.equal(reference.rms_norm(x, weight, EPS, "B")[1], b)


def test_bias_is_added_before_the_logits_are_rounded():
    # Rounded first, 1 + 2**-9 would lose what the bias needs to reach the next bf16 number.
    x = torch.tensor([[1.0, 2.0**-9]], dtype=torch.bfloat16)
    gate_weight = torch.ones(1, 2, dtype=torch.bfloat16)
    gate_bias = torch.tensor([2.0**-8], dtype=torch.bfloat16)
    logits = reference.gate(x, gate_weight, gate_bias, torch.bfloat16)
    assert logits.item() == 1 + 2.0**-7


@pytest.mark.parametrize("multiplier", [1.0, 0.22, -3.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_residual_add_is_that_of_a_decoder_layer(dtype, multiplier):
    generator = torch.Generator().manual_seed(0)
    x, residual = (4 * torch.randn(2, 50, K, generator=generator)).to(dtype)
    found = reference.add_residual(x, residual, multiplier)
    layer = residual + (x if multiplier == 1.0 else x * multiplier)
    assert found.dtype == dtype and torch.equal(found, layer)
    exact = residual.double() + x.double() * multiplier
    assert torch.equal(found, exact.to(dtype)) == (multiplier == 1.0), "else the product is rounded too"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sum_of_two_products_is_that_of_minimax(dtype):
    generator = torch.Generator().manual_seed(0)
    x, residual = (4 * torch.randn(2, 50, K, generator=generator)).to(dtype)
    alpha, beta = 3.5565588200778455, 0.7
    assert torch.equal(reference.add_residual(x, residual, beta, alpha), residual * alpha + x * beta)
    assert torch.equal(reference.add_residual(x, residual, 1.0, alpha), residual * alpha + x)
    exact = residual.double() * alpha + x.double()
    assert not torch.equal(reference.add_residual(x, residual, 1.0, alpha), exact.to(dtype)), "the product is rounded"


@pytest.mark.parametrize("hashes", [False, True])
def test_images_are_chosen_for_by_a_bias_of_their_own(hashes):
    """Each row is as in a call for its kind alone; weights never have the bias in them."""
    torch.manual_seed(0)
    routing, logits, mask = Routing(4, "sqrtsoftplus", renormalize=True), torch.randn(20, N), torch.arange(20) % 3 == 0
    of_text, of_images = torch.randn(N), torch.randn(N)
    table = (torch.stack([torch.randperm(N)[:4] for _ in range(9)]), torch.randint(0, 9, (20,))) if hashes else ()
    text = reference.choose_experts(logits, routing, None if hashes else of_text, *table)
    images = reference.choose_experts(logits, routing, of_images)
    found = reference.choose_experts(
        logits, routing, None if hashes else of_text, *table, e_score_correction_bias_vl=of_images, image_mask=mask
    )
    for got, for_text, for_images in zip(found, text, images, strict=True):
        assert torch.equal(got, torch.where(mask[:, None], for_images, for_text))
    assert not torch.equal(text[1], images[1])


def test_a_scale_per_expert_multiplies_the_renormalized_weights():
    routing, logits, scale = Routing(3, "softmax", renormalize=True), torch.randn(20, N), torch.randn(N)
    weights, ids = reference.choose_experts(logits, routing)
    scaled, same_ids = reference.choose_experts(logits, routing, per_expert_scale=scale)
    assert torch.equal(ids, same_ids) and torch.equal(scaled, weights * scale[ids.long()])


def test_residual_add_drops_strides_and_leaves_its_arguments_alone():
    wide = torch.randn(5, 3 * K).bfloat16()
    x, residual = wide[:, :K], wide[:, K : 2 * K]
    before = wide.clone()
    found = reference.add_residual(x, residual)
    assert found.is_contiguous() and torch.equal(found, x.clone() + residual.clone())
    assert torch.equal(wide, before)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("multiplier", [None, 1.0, 0.22])
@pytest.mark.parametrize("routing", [None, Routing(3, "sigmoid", renormalize=True)], ids=["logits", "routing"])
def test_route_is_its_stages(routing, multiplier, norm):
    x, norm_weight, gate_weight, gate_bias = random_inputs()
    residual = None if multiplier is None else random_inputs(seed=1)[0]
    correction_bias = None if routing is None else torch.randn(N) / 4
    found = reference.route(
        x,
        gate_weight,
        gate_bias,
        norm_weight=norm_weight if norm else None,
        eps=EPS,
        norm_order="A" if norm else "",
        residual=residual,
        residual_multiplier=1.0 if multiplier is None else multiplier,
        e_score_correction_bias=correction_bias,
        routing=routing,
        logits_from="rounded",
        logits_dtype=torch.bfloat16,
    )
    h = x if residual is None else reference.add_residual(x, residual, multiplier)
    assert torch.equal(found.residual_out, h) if residual is not None else found.residual_out is None
    row = h
    if norm:
        row = reference.rms_norm(h, norm_weight, EPS, "A")[1]
        assert torch.equal(found.normed_x, row)
    else:
        assert found.normed_x is None
    logits = reference.gate(row, gate_weight, gate_bias, torch.bfloat16)
    assert torch.equal(found.router_logits, logits)
    if routing is None:
        assert found.topk_weights is None and found.topk_ids is None
        return
    weights, ids = reference.choose_experts(logits, routing, correction_bias)
    assert torch.equal(found.topk_weights, weights) and torch.equal(found.topk_ids, ids)


@pytest.mark.parametrize("scoring", ["softmax", "softmax_of_chosen", "sigmoid", "sqrtsoftplus"])
def test_weights_stay_within_the_logits_error(scoring):
    x, norm_weight, gate_weight, gate_bias = random_inputs(tokens=64)
    arguments = dict(norm_weight=norm_weight, eps=EPS, norm_order="B", residual=random_inputs(tokens=64, seed=1)[0])
    arguments |= dict(routing=Routing(4, scoring, routed_scaling_factor=2.5))
    found = reference.route(x, gate_weight, gate_bias, **arguments)
    wide = dict(logits_dtype=torch.float64, compute_dtype=torch.float64)
    oracle = reference.route(x, gate_weight, gate_bias, **arguments, **wide)
    assert torch.equal(found.residual_out, oracle.residual_out)
    assert torch.equal(found.topk_ids, oracle.topk_ids)
    torch.testing.assert_close(found.topk_weights, oracle.topk_weights, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("hashes", [False, True])
def test_no_stage_branches_on_values(hashes):
    """A CUDA graph can hold it: nothing is read back from the device. Fake tensors have no values to read."""
    with FakeTensorMode():
        x, residual = torch.empty(2, 7, K, dtype=torch.bfloat16)
        table = dict(tid2eid=torch.empty(50, 4, dtype=torch.int64), input_ids=torch.empty(7, dtype=torch.int64))
        routed = reference.route(
            x,
            torch.empty(N, K),
            norm_weight=torch.empty(K, dtype=torch.bfloat16),
            norm_order="B",
            residual=residual,
            residual_multiplier=0.5,
            e_score_correction_bias=None if hashes else torch.empty(N),
            routing=Routing(4, "sqrtsoftplus", n_group=4, topk_group=2, renormalize=True, softcap=30.0),
            **table if hashes else {},
        )
    assert [tuple(t.shape) for t in routed] == [(7, K), (7, K), (7, 4), (7, 4), (7, N)]


def test_a_nan_row_routes_apart_from_the_others():
    x, norm_weight, gate_weight, _ = random_inputs()
    routing = Routing(6, "sigmoid", n_group=4, topk_group=2, renormalize=True)
    arguments = dict(norm_weight=norm_weight, eps=EPS, norm_order="B", routing=routing)
    clean = reference.route(x, gate_weight, **arguments)
    x[3, 5] = math.nan
    found = reference.route(x, gate_weight, **arguments)
    assert found.topk_ids[3].tolist() == [0, 1, 2, 3, 4, 5] and not found.topk_weights[3].any()
    others = torch.arange(len(x)) != 3
    assert all(torch.equal(a[others], b[others]) for a, b in zip(found, clean, strict=True) if a is not None)


def test_nan_stays_in_its_row():
    x, norm_weight, gate_weight, _ = random_inputs()
    clean_normed, clean = reference.norm_gate(x, norm_weight, gate_weight, None, EPS, "B")
    x[3, 5] = math.nan
    normed_x, logits = reference.norm_gate(x, norm_weight, gate_weight, None, EPS, "B")
    assert normed_x[3].isnan().all() and logits[3].isnan().all()
    others = torch.arange(len(x)) != 3
    assert torch.equal(normed_x[others], clean_normed[others])
    assert torch.equal(logits[others], clean[others])


@pytest.fixture
def precision():
    """The process's matmul settings, put back afterwards."""
    settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    torch.set_float32_matmul_precision("highest")
    yield settings
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"
    for setting in settings:
        setting.fp32_precision = "none"


@pytest.mark.parametrize("device, index", [("cuda", 0), ("cpu", 1)])
def test_matmul_precision_is_taken_and_given_back(precision, device, index):
    setting = precision[index]
    for value in ("tf32", "ieee", "none"):
        setting.fp32_precision = value
        with reference._full_precision(device):
            assert setting.fp32_precision in ("ieee", "none")
        assert setting.fp32_precision == value


def test_matmul_precision_is_given_back_after_an_error(precision):
    setting = precision[1]
    setting.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        reference.gate(torch.ones(2, 8), torch.ones(3, 9), None)
    assert setting.fp32_precision == "tf32"


def test_older_matmul_switches_survive(precision):
    torch.set_float32_matmul_precision("high")
    x, norm_weight, gate_weight, gate_bias = random_inputs()
    reference.norm_gate(x, norm_weight, gate_weight, gate_bias, EPS, "B")
    with reference._full_precision("cuda"):
        pass
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cuda.matmul.allow_tf32 is True


def test_inherited_matmul_precision_stays_inherited(precision):
    for setting in precision:
        setting.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    with reference._full_precision("cuda"):
        assert precision[0].fp32_precision == "ieee"
    assert precision[0].fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert precision[0].fp32_precision == "ieee"


def test_autocast_does_not_shorten_the_gate():
    inputs = random_inputs()
    plain = reference.norm_gate(*inputs, EPS, "B")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = reference.norm_gate(*inputs, EPS, "B")
    assert torch.equal(plain[1], under_autocast[1])
