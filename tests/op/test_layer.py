"""NormGateLinear: which weights it owns, how checkpoints reach them, what it computes."""

import pytest
import torch
from normgate import NormGateLinear, reference

K, N = 64, 12

pytestmark = pytest.mark.usefixtures("example_tables")


def shapes(layer):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in layer.state_dict().items()}


def checkpoint(**tensors):
    """A checkpoint of layer 3, with a neighbour's tensors in it."""
    found = {f"model.layers.3.{name}": tensor for name, tensor in tensors.items()}
    return {**found, "model.layers.4.mlp.gate.weight": torch.zeros(1)}


def test_state_dict_of_scored_and_hash_layers():
    shared = {"norm.weight": ((K,), torch.bfloat16), "gate.weight": ((N, K), torch.bfloat16)}
    scored = {**shared, "gate.e_score_correction_bias": ((N,), torch.float32)}
    assert shapes(NormGateLinear.from_model("hashed")) == scored
    hashed = {**shared, "gate.tid2eid": ((100, 6), torch.int64)}
    assert shapes(NormGateLinear.from_model("hashed", hash_layer=True)) == hashed


def test_state_dict_with_gate_bias_and_fp32_gate():
    assert shapes(NormGateLinear.from_model("biased")) == {
        "norm.weight": ((K,), torch.bfloat16),
        "gate.weight": ((N, K), torch.float32),
        "gate.bias": ((N,), torch.float32),
    }


def test_parameters_want_no_gradient():
    assert not any(p.requires_grad for p in NormGateLinear.from_model("hashed", hash_layer=True).parameters())


def test_dtype_and_device():
    layer = NormGateLinear.from_model("hashed", dtype=torch.float16, device="meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert layer.norm.weight.dtype == layer.gate.weight.dtype == torch.float16
    assert layer.gate.e_score_correction_bias.dtype == torch.float32
    assert NormGateLinear.from_model("biased", dtype=torch.float16).gate.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(norm_order="C", eps=1e-6), "norm_order is 'C', expected 'A', 'B', 'G' or None"),
        (dict(norm_order="A"), "eps is None and norm_order 'A', expected both or neither"),
        (dict(norm_order=None, eps=1e-6), "eps is 1e-06 and norm_order None, expected both or neither"),
        (dict(norm_order=None, tid2eid_vocab_size=9), "top_k is None, expected the width of tid2eid"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError) as refused:
        NormGateLinear(K, N, **arguments)
    assert str(refused.value) == message


def test_unknown_model_and_no_hash_layers():
    with pytest.raises(ValueError, match="unknown model 'hash', expected one of: hashed; .*build.py add"):
        NormGateLinear.from_model("hash")
    with pytest.raises(ValueError, match="hash_layer is True, expected False: biased has no hash layers"):
        NormGateLinear.from_model("biased", hash_layer=True)


def test_forward_is_the_reference():
    layer = NormGateLinear.from_model("biased")
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    x = torch.randn(2, 3, K).bfloat16()
    normed_x, logits = layer(x)
    weights = (layer.norm.weight, layer.gate.weight, layer.gate.bias)
    wanted = reference.norm_gate(x.view(-1, K), *weights, 1e-5, "A")
    assert torch.equal(normed_x, wanted[0].view(2, 3, K))
    assert torch.equal(logits, wanted[1].view(2, 3, N))


def test_gate_alone_gives_logits_alone():
    layer = NormGateLinear.from_model("normed-before")
    layer.gate.weight.copy_(torch.randn(N, K))
    x = torch.randn(3, K).bfloat16()
    assert torch.equal(layer(x), reference.gate(x, layer.gate.weight, None))


def test_load_state_dict_round_trip():
    layer, other = NormGateLinear.from_model("hashed"), NormGateLinear.from_model("hashed")
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    other.load_state_dict(layer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


NORM = torch.randn(K).bfloat16()
GATE = torch.randn(N, K).bfloat16()
SCORES = torch.randn(N)


@pytest.mark.parametrize(
    "norm, gate, bias",
    [
        (
            "post_attention_layernorm",
            "mlp.gate",
            "mlp.gate.e_score_correction_bias",
        ),  # DeepSeek-V3, Kimi, GLM
        ("ffn_norm", "ffn.gate", "ffn.gate.bias"),  # DeepSeek-V4
        ("post_attention_layernorm", "block_sparse_moe.gate", "block_sparse_moe.e_score_correction_bias"),
    ],
)
def test_checkpoint_spellings_of_the_correction_bias(norm, gate, bias):
    layer = NormGateLinear.from_model("hashed")
    state = checkpoint(**{f"{norm}.weight": NORM, f"{gate}.weight": GATE, bias: SCORES})
    layer.load_from_checkpoint(state, norm_prefix=f"model.layers.3.{norm}", gate_prefix=f"model.layers.3.{gate}")
    assert torch.equal(layer.norm.weight, NORM)
    assert torch.equal(layer.gate.weight, GATE)
    assert torch.equal(layer.gate.e_score_correction_bias, SCORES)


def test_checkpoint_of_a_hash_layer():
    layer = NormGateLinear.from_model("hashed", hash_layer=True)
    ids = torch.randint(0, N, (100, 6), dtype=torch.int32)
    state = checkpoint(**{"ffn_norm.weight": NORM, "ffn.gate.weight": GATE, "ffn.gate.tid2eid": ids})
    layer.load_from_checkpoint(state, norm_prefix="model.layers.3.ffn_norm", gate_prefix="model.layers.3.ffn.gate")
    assert torch.equal(layer.gate.tid2eid, ids.long())


def test_checkpoint_with_a_gate_bias():
    # gpt-oss: here the bias is the gate's; bf16 values fit an fp32 parameter without loss.
    layer = NormGateLinear.from_model("biased")
    bias = torch.randn(N).bfloat16()
    norm = "post_attention_layernorm"
    state = checkpoint(**{f"{norm}.weight": NORM, "mlp.router.weight": GATE, "mlp.router.bias": bias})
    layer.load_from_checkpoint(state, norm_prefix=f"model.layers.3.{norm}", gate_prefix="model.layers.3.mlp.router")
    assert torch.equal(layer.gate.weight, GATE.float())
    assert torch.equal(layer.gate.bias, bias.float())


def test_checkpoint_of_a_gate_alone_needs_no_norm_prefix():
    layer = NormGateLinear.from_model("normed-before")
    layer.load_from_checkpoint({"gate.weight": GATE}, gate_prefix="gate")
    assert torch.equal(layer.gate.weight, GATE)


def test_checkpoint_problems_are_told_together_and_nothing_is_copied():
    layer = NormGateLinear.from_model("hashed")
    for parameter in layer.parameters():
        parameter.zero_()
    state = {"norm.weight": NORM, "mlp.gate.weight": GATE[:, :-1], "mlp.gate.other": SCORES}
    with pytest.raises(ValueError) as refused:
        layer.load_from_checkpoint(state, norm_prefix="norm", gate_prefix="mlp.gate")
    assert str(refused.value).splitlines() == [
        "the checkpoint does not fit NormGateLinear:",
        "gate.weight: mlp.gate.weight has shape [12, 63], expected [12, 64]",
        "gate.e_score_correction_bias: not in the checkpoint as mlp.gate.e_score_correction_bias "
        "or mlp.e_score_correction_bias or mlp.gate.bias",
    ]
    assert not any(parameter.any() for parameter in layer.parameters())


@pytest.mark.parametrize(
    "device, changes, message",
    [
        ("cpu", {"gate.weight": GATE.float()}, "gate.weight: gate.weight has dtype torch.float32, expected"),
        ("cpu", {"norm.weight": NORM.half()}, "norm.weight: norm.weight has dtype torch.float16, expected"),
        ("meta", {}, "norm.weight: norm.weight has nowhere to go: the layer is on the meta device"),
    ],
)  # fmt: skip
def test_checkpoint_that_would_be_lost(device, changes, message):
    layer = NormGateLinear.from_model("hashed", device=device)
    state = {"norm.weight": NORM, "gate.weight": GATE, "e_score_correction_bias": SCORES, **changes}
    with pytest.raises(ValueError) as refused:
        layer.load_from_checkpoint(state, norm_prefix="norm", gate_prefix="gate")
    assert str(refused.value).splitlines()[1].startswith(message)


def test_missing_norm_prefix():
    with pytest.raises(ValueError, match="norm.weight: norm_prefix is not given"):
        NormGateLinear.from_model("hashed").load_from_checkpoint({}, gate_prefix="gate")


def test_repr_says_what_it_computes():
    assert "64 -> 12, norm_order=B, eps=1e-06, logits_from=unrounded" in repr(NormGateLinear.from_model("hashed"))
