"""The warning of CUDA calls that the reference composition serves."""

import warnings

import normgate
import pytest
import torch
from normgate import dispatch, fallback, ops
from normgate.fallback import RouterPath
from normgate.routing import selection_key

SERVED = RouterPath(64, 12, "bfloat16", "bfloat16", "float32", "B", False, "unrounded")
UNKNOWN = RouterPath(5000, 100, "bfloat16", "bfloat16", "float32", "A", True, "rounded")
GROUPED = normgate.Routing(
    4,
    "sigmoid",
    n_group=4,
    topk_group=2,
    renormalize=True,
    renormalize_epsilon=1e-20,
    routed_scaling_factor=2.5,
)
ROUTED = SERVED._replace(residual="add", selection=selection_key(GROUPED, True, False, False))

pytestmark = pytest.mark.usefixtures("example_tables")


@pytest.mark.parametrize(
    "path, sm, loaded, aligned, reason",
    [
        (UNKNOWN, 90, True, True, "no kernel was generated for it; `python build.py add CONFIG.json && py"),
        (SERVED, 75, True, True, "no SM target of norm_b_gate_64x12_bf16_bf16_fp32 (80, 86, 90, 100, 120)"),
        (SERVED, 90, False, True, "libnormgate.so is not beside the package; `python build.py` compiles it"),
        (SERVED, 90, True, False, "the weights and each row of x must start at a multiple of 16 bytes"),
        (SERVED, 90, True, True, "the loaded library holds no code for this SM; `python build.py --sm 90`"),
        (ROUTED, 75, True, True, "no SM target of add_norm_b_gate_sigmoid_top4_64x12_bf16_bf16_fp32_corr"),
        (ROUTED, 90, True, False, "the weights and each row of x and residual must start at a multiple of"),
        (ROUTED, 90, True, True, "the loaded library holds no code for this SM; `python build.py --sm 90`"),
        (ROUTED._replace(residual="scaled_add"), 90, True, True, "no kernel was generated for it; `python build"),
        (ROUTED._replace(selection=None), 90, True, True, "no kernel was generated for it; `python build.py a"),
    ],
)  # fmt: skip
def test_each_reason_names_its_cure(path, sm, loaded, aligned, reason):
    message = fallback.message(path, sm, loaded, aligned)
    assert message.startswith("normgate runs the PyTorch reference composition, right but slower, for ")
    assert f": {reason}" in message


def test_the_call_is_described():
    assert (
        "norm order A + gate, logits from rounded with bias, hidden_size 5000, num_experts 100, x bfloat16, "
        "gate weight bfloat16, logits float32, sm_90:"
    ) in fallback.message(UNKNOWN, 90, True, True)
    assert (
        " for residual add + norm order B + gate, logits from unrounded + sigmoid top-4, with correction bias, from "
        "2 of 4 groups by top2_sum, renormalized within bounds, ids int32, weights float32, hidden_size 64, "
    ) in fallback.message(ROUTED, 90, True, True)
    capped = normgate.Routing(6, "softmax", renormalize=True, softcap=30.0, weights_dtype=torch.bfloat16)
    gate = UNKNOWN._replace(norm_order=None, residual="scaled_add", selection=selection_key(capped, False, True, True))
    assert (
        " for scaled residual add + gate with bias + softmax top-6, experts from tid2eid, renormalized, softcap, "
        "logits returned, ids int32, weights bfloat16, hidden_size 5000, "
    ) in fallback.message(gate, 90, True, True)


def test_a_kernel_serves_the_selection_that_it_was_made_for():
    assert dispatch.find_kernel(*ROUTED) is dispatch.kernel_table(dispatch.model_table("routed").path_kernel)
    others = [
        selection_key(GROUPED, False, False, False),
        selection_key(GROUPED, True, False, True),
        selection_key(normgate.Routing(4, "sigmoid", n_group=4, topk_group=2, renormalize=True), True, False, False),
    ]
    assert all(dispatch.find_kernel(*ROUTED._replace(selection=other)) is None for other in others)
    # One kernel has the hash layers of a model, which have no correction bias, and the others.
    routing = normgate.Routing(6, "sqrtsoftplus", renormalize=True, routed_scaling_factor=9.0, ids_dtype=torch.int64)
    for bias, hashes in ((True, False), (False, True)):
        path = SERVED._replace(selection=selection_key(routing, bias, hashes, True))
        assert dispatch.find_kernel(*path).kernel == dispatch.model_table("hashed").path_kernel
    assert dispatch.find_kernel(*SERVED._replace(selection=selection_key(routing, False, False, True))) is None


@pytest.fixture
def h200(monkeypatch):
    """Tensors of the CPU, taken for tensors of an H200."""
    fallback._warn_once.cache_clear()
    monkeypatch.setattr(fallback.torch.cuda, "get_device_capability", lambda device: (9, 0))
    yield
    fallback._warn_once.cache_clear()


def warned(x, order="B", **stages):
    weights = (torch.ones(64).bfloat16(), torch.ones(12, 64).bfloat16(), None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fallback.warn(True, x, *weights, order, "unrounded", torch.float32, **stages)
    return [str(warning.message) for warning in caught]


def test_once_for_each_shape_and_reason(h200):
    x = torch.ones(8, 64).bfloat16()
    assert len(warned(x)) == 1
    assert warned(x) == warned(x[:3]) == [], "another number of tokens is no other shape"
    assert "no kernel was generated" in warned(x, "G")[0]
    assert warned(x, "G") == []


def test_alignment_is_seen(h200):
    wide = torch.ones(8, 72).bfloat16()
    assert "holds no code" in warned(wide[:, :64])[0]
    assert "multiple of 16 bytes" in warned(wide[:, 1:65])[0]
    fallback._warn_once.cache_clear()
    odd = torch.ones(8, 65).bfloat16()[:, :64]
    assert "multiple of 16 bytes" in warned(odd)[0]
    assert "holds no code" in warned(odd[:1])[0], "the stride of one row does not matter"


def test_stages_are_told_apart_and_the_residual_is_read_too(h200):
    x = torch.ones(8, 64).bfloat16()
    assert "for norm order B + gate, " in warned(x)[0]
    assert "for residual add + norm order B" in warned(x, residual=x)[0]
    assert "for scaled residual add + norm order B" in warned(x, residual=x, residual_multiplier=0.5)[0]
    stages = dict(residual=x, selection=ROUTED.selection)
    assert "holds no code" in warned(x, **stages)[0]
    assert warned(x, **stages) == []
    shifted = torch.ones(8, 72).bfloat16()[:, 1:65]
    assert "each row of x and residual must start" in warned(x, **{**stages, "residual": shifted})[0]
    fallback._warn_once.cache_clear()
    odd = torch.ones(8, 65).bfloat16()[:, :64]
    assert "each row of x and residual must start" in warned(x, **{**stages, "residual": odd})[0]


def test_the_operator_says_what_it_was_asked_for(monkeypatch):
    told = []
    monkeypatch.setattr(fallback, "warn", lambda *arguments, **stages: told.append((arguments, stages)))

    class OnCuda(torch.Tensor):
        is_cuda = True

    x = torch.ones(2, 64).bfloat16()
    weights = (None, torch.ones(12, 64).bfloat16(), None)
    call = dict(zip(ops._RouteCall._fields, (x.as_subclass(OnCuda), x, *weights, torch.ones(12)), strict=False))
    call |= dict(tid2eid=None, input_ids=None, eps=0.0, norm_order="", logits_from="unrounded")
    call |= dict(logits_dtype=torch.float32, returns_logits=False, residual_multiplier=0.5)
    call |= {name: getattr(GROUPED, name) for name in ops._RouteCall._fields if hasattr(GROUPED, name)}
    ops._route_composition(**call)
    ((arguments, stages),) = told
    assert arguments[5:] == (None, "unrounded", torch.float32)
    assert stages["residual"] is x and stages["residual_multiplier"] == 0.5
    assert stages["selection"] == ROUTED.selection


def test_the_cpu_is_served_without_a_warning():
    x = torch.ones(2, 40).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.gate(x, torch.ones(3, 40).bfloat16())
        torch.ops.normgate.gate_reference(x, torch.ones(3, 40).bfloat16(), None, torch.float32)
