"""NormGateLinear: which weights it owns, how checkpoints reach them, what it computes."""

import normgate
import pytest
import torch
from normgate import NormGateLinear, Routing, reference

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
        (dict(norm_order=None, routing=Routing(2, "sigmoid"), top_k=3), "top_k is 3, expected that of routing, 2"),
        (
            dict(norm_order=None, routing=Routing(13, "sigmoid")),
            "top_k is 13, expected no more than the 12 experts that it chooses from",
        ),
        (
            dict(norm_order=None, routing=Routing(2, "sigmoid"), tid2eid_vocab_size=9, e_score_correction_bias=True),
            "e_score_correction_bias is True, expected False in a hash layer that routes",
        ),
        (
            dict(norm_order=None, stream_multiplier=2.0),
            "stream_multiplier is 2.0, expected 1.0 without a residual_multiplier",
        ),
        (
            dict(norm_order=None, e_score_correction_bias_vl=True),
            "e_score_correction_bias_vl is True, expected False without e_score_correction_bias or tid2eid",
        ),
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
    with pytest.raises(ValueError) as refused:
        NormGateLinear.from_model("biased", routes=True)
    wanted = "routes is True, expected False: the spec of biased has no residual and no routing.scoring"
    assert str(refused.value) == wanted


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


def filled(layer):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in layer.named_parameters():
        if name == "gate.tid2eid":
            table = [torch.randperm(N, generator=generator)[: layer.top_k] for _ in range(len(parameter))]
            parameter.copy_(torch.stack(table))
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def equal(found, wanted):
    """Field by field, ``None`` where ``None`` is wanted."""
    assert type(found) is normgate.Routed
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_routes_is_the_whole_path():
    layer = filled(NormGateLinear.from_model("routed", routes=True))
    assert layer.routing == Routing(
        4,
        "sigmoid",
        n_group=4,
        topk_group=2,
        renormalize=True,
        renormalize_epsilon=1e-20,
        routed_scaling_factor=2.5,
    )
    assert (layer.residual_multiplier, layer.returns_logits, layer.top_k) == (1.0, False, 4)
    x, residual = torch.randn(2, 2, 3, K).bfloat16()
    found = layer(x, residual)
    rows = reference.route(
        x.view(-1, K),
        layer.gate.weight,
        norm_weight=layer.norm.weight,
        eps=1e-6,
        norm_order="B",
        residual=residual.view(-1, K),
        e_score_correction_bias=layer.gate.e_score_correction_bias,
        routing=layer.routing,
    )
    wanted = [None if t is None else t.view(2, 3, -1) for t in rows._replace(router_logits=None)]
    assert equal(found, wanted)
    assert torch.equal(found.residual_out, x + residual)


def test_hash_layers_route_by_token():
    layer = filled(NormGateLinear.from_model("hashed", hash_layer=True, routes=True))
    assert layer.gate.e_score_correction_bias is None
    x, input_ids = torch.randn(5, K).bfloat16(), torch.randint(0, 100, (5,))
    routed = layer(x, input_ids=input_ids)
    assert torch.equal(routed.topk_ids, layer.gate.tid2eid[input_ids])
    assert routed.topk_ids.dtype == torch.int64 and routed.router_logits is not None
    assert torch.allclose(routed.topk_weights.sum(-1), torch.full((5,), 1.5))
    with pytest.raises(ValueError) as refused:
        layer(x)
    assert str(refused.value) == "input_ids is None, expected the tokens of x: a hash layer takes experts by token"


@pytest.mark.parametrize("hash_layer", [False, True])
def test_images_scales_and_a_scaled_residual(hash_layer):
    weights = dict(tid2eid_vocab_size=50) if hash_layer else dict(e_score_correction_bias=True)
    layer = NormGateLinear(
        K, N, norm_order="A", eps=1e-6, routing=Routing(3, "sigmoid"), residual_multiplier=1.0, stream_multiplier=3.5,
        e_score_correction_bias_vl=True, per_expert_scale=True, **weights,
    )  # fmt: skip
    bias = {"gate.bias_vl": torch.randn(N), "per_expert_scale": torch.rand(N)}
    text = {"gate.tid2eid": torch.randint(0, N, (50, 3))} if hash_layer else {"gate.bias": SCORES}
    layer.load_from_checkpoint(
        {"norm.weight": NORM, "gate.weight": GATE, **bias, **text}, norm_prefix="norm", gate_prefix="gate"
    )
    assert torch.equal(layer.gate.e_score_correction_bias_vl, bias["gate.bias_vl"])
    x, residual = torch.randn(2, 4, K).bfloat16()
    mask, tokens = torch.tensor([True, False, True, False]), torch.arange(4)
    routed, of_text = layer(x, residual, tokens, mask), layer(x, residual, tokens)
    assert torch.equal(routed.residual_out, residual * 3.5 + x)
    assert torch.equal(routed.topk_ids[~mask], of_text.topk_ids[~mask])
    assert not torch.equal(routed.topk_ids[mask], of_text.topk_ids[mask])
    scores = reference.gate(layer(x, residual, tokens).normed_x, GATE, None)  # rounded here, unrounded there
    wanted = scores.sigmoid().gather(1, routed.topk_ids.long()) * layer.gate.per_expert_scale[routed.topk_ids.long()]
    torch.testing.assert_close(routed.topk_weights, wanted, rtol=2e-2, atol=2e-2)
    assert "residual_multiplier=1.0, stream_multiplier=3.5" in repr(layer)


def test_scored_layers_may_be_given_tokens_too():
    layer = filled(NormGateLinear.from_model("hashed", routes=True))
    x = torch.randn(5, K).bfloat16()
    assert equal(layer(x, input_ids=torch.arange(5)), layer(x))


def test_without_routes_a_layer_stays_norm_and_gate():
    for model in normgate.models():
        layer = filled(NormGateLinear.from_model(model))
        assert layer.routing is None and layer.residual_multiplier is None
        outputs = layer(torch.randn(3, K).bfloat16())
        assert type(outputs) is (torch.Tensor if layer.norm is None else tuple)


def test_a_residual_alone():
    layer = filled(NormGateLinear(K, N, norm_order="A", eps=1e-6, residual_multiplier=0.5))
    x, residual = torch.randn(2, 3, K).bfloat16()
    normed_x, residual_out, weights, ids, logits = layer(x, residual)
    assert torch.equal(residual_out, residual + 0.5 * x)
    assert weights is None and ids is None
    wanted = reference.norm_gate(residual_out, layer.norm.weight, layer.gate.weight, None, 1e-6, "A")
    assert torch.equal(normed_x, wanted[0]) and torch.equal(logits, wanted[1])


def test_a_gate_that_routes_has_no_normed_x():
    layer = filled(NormGateLinear(K, N, norm_order=None, routing=Routing(3, "softmax")))
    x = torch.randn(3, K).bfloat16()
    routed = layer(x)
    assert [field is None for field in routed] == [True, True, False, False, True]
    probabilities = reference.gate(x, layer.gate.weight, None).softmax(-1)
    assert torch.equal(routed.topk_weights, probabilities.topk(3).values)


@pytest.mark.parametrize(
    "multiplier, given, message",
    [
        (None, True, "residual is a tensor, expected None: residual_multiplier is None"),
        (0.5, False, "residual is None, expected a tensor: residual_multiplier is 0.5"),
    ],
)
def test_residual_too_many_or_too_few(multiplier, given, message):
    layer = NormGateLinear(K, N, norm_order=None, residual_multiplier=multiplier)
    x = torch.ones(2, K).bfloat16()
    with pytest.raises(ValueError) as refused:
        layer(x, x if given else None)
    assert str(refused.value) == message


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
    routed = repr(NormGateLinear.from_model("routed", routes=True))
    assert "logits_from=unrounded, residual_multiplier=1.0, Routing(top_k=4, scoring='sigmoid', n_group=4" in routed
