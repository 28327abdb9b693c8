"""``normgate.integrations.transformers`` on transformers' own models, small, with random weights, on the CPU."""

import copy
import dataclasses
import os
import re
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from normgate import dispatch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed; it comes with the extra `test`")

import transformers
from normgate.integrations import transformers as integration
from test_transformers import EXPERTS, FAMILIES, GROUPED, LENGTH, SMALL, VOCABULARY, Family

from codegen import package

BFLOAT16_ULP = 2**-8  # relative, of a float of 8 significant bits


def family(module: str, prefix: str, **config: Any) -> Family:
    return Family(module, prefix, config, FAMILIES["Qwen3-MoE"].routing)


MINIMAX = FAMILIES["MiniMax-Text-01"]
KNOWN = {name: known for name, known in FAMILIES.items() if known is not MINIMAX} | {
    "OLMoE": family("olmoe", "Olmoe", num_experts=EXPERTS, num_experts_per_tok=4, norm_topk_prob=False),
    "Qwen2-MoE": family(
        "qwen2_moe",
        "Qwen2Moe",
        num_experts=EXPERTS,
        num_experts_per_tok=4,
        norm_topk_prob=False,
        shared_expert_intermediate_size=32,
    ),
    "dots.llm1": family("dots1", "Dots1", **GROUPED, n_group=1, topk_group=1, routed_scaling_factor=2.5),
    "Hunyuan": family("hunyuan_v1_moe", "HunYuanMoEV1", num_experts=EXPERTS, moe_topk=4),
}
LEFT = {
    "FlexOlmo": (
        family("flex_olmo", "FlexOlmo", num_experts=EXPERTS, num_experts_per_tok=4, pad_token_id=0, eos_token_id=0),
        "FlexOlmoDecoderLayer does not run add, norm and mlp one after the other",
    ),
    "DeepSeek-V4": (
        family("deepseek_v4", "DeepseekV4", num_local_experts=EXPERTS, num_experts_per_tok=6, q_lora_rank=16),
        "DeepseekV4DecoderLayer does not run add, norm and mlp one after the other",
    ),
    "MiniMax-Text-01": (
        MINIMAX,
        "MiniMaxDecoderLayer does not run add, norm and mlp one after the other",
    ),
    "Phi-3.5-MoE": (
        family("phimoe", "Phimoe", num_local_experts=EXPERTS, num_experts_per_tok=2),
        "LayerNorm, its norm, is not known",
    ),
}


def make(family: Family, dtype: torch.dtype = torch.bfloat16, **config: Any) -> Any:
    """The causal model, weights random: logits are spread, norms near 1, correction biases change the choice."""
    config = {**family.config, **config}
    if "kv_lora_rank" in config:
        config |= dict(head_dim=config["qk_rope_head_dim"], num_key_value_heads=SMALL["num_attention_heads"])
    made = dataclasses.replace(family, config=config).make_config()
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=dtype).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                tensor.data = torch.randn(tensor.shape) / 4  # float32, as checkpoints have it
            elif isinstance(tensor, nn.Parameter):
                values = torch.randn(tensor.shape)
                tensor.copy_(1 + values / 4 if tensor.dim() == 1 and "norm" in name else values / 8)
    return model


def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, LENGTH))


def forward(model: Any, input_ids: Tensor, **named: Any) -> Any:
    with torch.no_grad():
        return model(input_ids, **named)


def moe_of(model: Any, name: str) -> tuple[nn.Module, nn.Module]:
    """Decoder layer of this name, and its router."""
    layer = model.get_submodule(name)
    block = getattr(layer, vars(layer)[integration.STEP].code.moe)
    return layer, getattr(block, vars(layer)[integration.STEP].router_name)


@pytest.mark.parametrize("name", KNOWN)
def test_layers_of_a_known_family_give_what_they_gave(name, recwarn):
    """On the same input: the stream after the layer, and what its router gives. Where a row's experts differ, they
    have to be as good as equal in the model's own logits.
    """
    model = make(KNOWN[name])
    report = integration.apply(model)
    assert len(report.fused) == 2 and not report.left, report
    assert not [warning for warning in recwarn if "normgate" in str(warning.message)]
    calls, routed = {}, {}
    hooks = []
    for layer_name in report.fused:
        layer, router = moe_of(model, layer_name)
        note = lambda layer, args, named, output: calls.__setitem__(layer, (args, named, output))  # noqa: E731
        hooks.append(layer.register_forward_hook(note, with_kwargs=True))
        hooks.append(router.register_forward_hook(lambda router, _, output: routed.__setitem__(router, output)))
    forward(model, tokens(), use_cache=False)
    fused_calls, fused_routed = dict(calls), dict(routed)
    routers = [moe_of(model, layer_name) for layer_name in report.fused]
    integration.undo(model)
    for layer, router in routers:
        args, named, output = fused_calls[layer]
        with torch.no_grad():
            expected = layer(*args, **named)
        same = same_experts(fused_routed[router], routed[router])
        assert same.float().mean() >= 0.9
        rows = [tensor.reshape(-1, tensor.shape[-1])[same].float() for tensor in (output, expected)]
        torch.testing.assert_close(*rows, rtol=4 * BFLOAT16_ULP, atol=4 * BFLOAT16_ULP * float(rows[1].abs().max()))


def same_experts(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> Tensor:
    """[num_tokens], whether the rows have the same experts; weights of those are compared."""
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in expected]
    if not any(t.dtype == torch.int64 for t in got):  # Llama-4: scores of all experts, and logits
        same = ((got[0] > 0) == (expected[0] > 0)).all(-1)
        torch.testing.assert_close(got[0][same], expected[0][same], rtol=4 * BFLOAT16_ULP, atol=0)
        return same
    logits, weights, ids = expected
    spread = logits.float().abs().max()
    torch.testing.assert_close(got[0].float(), logits.float(), rtol=2 * BFLOAT16_ULP, atol=float(spread) * 2**-8)
    dense = [torch.zeros(logits.shape).scatter_(1, i, w.float()) for w, i in ((got[1], got[2]), (weights, ids))]
    same = ((dense[0] > 0) == (dense[1] > 0)).all(-1)
    torch.testing.assert_close(dense[0][same], dense[1][same], rtol=4 * BFLOAT16_ULP, atol=1e-6)
    return same


@pytest.mark.parametrize("name", ["DeepSeek-V3", "DeepSeek-V2 groups", "GLM-4.5", "ERNIE-4.5"])
def test_models_with_float32_logits_give_the_same(name):
    """Rounding cannot make ties of their logits: the whole model's output, and what it generates."""
    model, input_ids = make(KNOWN[name]), tokens()
    expected = forward(model, input_ids, output_router_logits=True)
    generated = model.generate(input_ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    integration.apply(model)
    got = forward(model, input_ids, output_router_logits=True)
    scale = float(expected.logits.abs().max())
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=8 * BFLOAT16_ULP * scale)
    assert len(got.router_logits) == len(expected.router_logits) == 2
    again = model.generate(input_ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert again.tolist() == generated.tolist()


def test_weights_and_their_names_stay_and_undo_gives_back_the_bits():
    model, input_ids = make(KNOWN["Qwen3-MoE"]), tokens()
    classes = [type(module) for module in model.modules()]
    parameters = dict(model.named_parameters())
    before, attributes = forward(model, input_ids).logits, [set(vars(module)) for module in model.modules()]
    integration.apply(model)
    assert [type(module) for module in model.modules()] == classes
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys() and all(after[name] is parameters[name] for name in after)
    assert list(model.state_dict()) == list(parameters)
    integration.undo(model)
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(forward(model, input_ids).logits, before)
    integration.undo(model)  # nothing is left to undo


def test_apply_again_changes_nothing():
    model = make(KNOWN["DeepSeek-V3"])
    first = integration.apply(model)
    steps = [vars(module).get(integration.STEP) for module in model.modules()]
    assert integration.apply(model).fused == first.fused
    assert all(a is b for a, b in zip(steps, (vars(m).get(integration.STEP) for m in model.modules()), strict=True))


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_known_is_left_alone_and_named(name):
    family, reason = LEFT[name]
    model, input_ids = make(family), tokens()
    before = forward(model, input_ids).logits
    with pytest.warns(RuntimeWarning, match=re.escape(reason)):
        report = integration.apply(model)
    assert not report.fused and len(report.left) == 2
    assert not any(integration.STEP in vars(module) for module in model.modules())
    assert torch.equal(forward(model, input_ids).logits, before)


def test_a_model_known_in_part():
    """Dense layers are none of ours; a router of another class is left, and the others run fused."""
    model, input_ids = make(KNOWN["DeepSeek-V3"], num_hidden_layers=4, first_k_dense_replace=1), tokens()
    layers = model.model.layers

    class Router(type(layers[2].mlp.gate)):
        def forward(self, hidden_states):
            logits, weights, ids = super().forward(hidden_states)
            return logits, weights / 2, ids

    layers[2].mlp.gate.__class__ = Router
    layers[3].post_attention_layernorm.register_forward_hook(lambda *_: None)
    expected = forward(model, input_ids).logits
    with pytest.warns(RuntimeWarning, match="1 of 3 MoE layers"):
        report = integration.apply(model)
    assert report.fused == ("model.layers.1",)
    assert "is a router that is known" in report.left["model.layers.2"]
    assert "DeepseekV3RMSNorm, its norm, has hooks" in report.left["model.layers.3"]
    scale = float(expected.abs().max())
    got = forward(model, input_ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=8 * BFLOAT16_ULP * scale)


def test_a_model_without_moe_layers_is_named():
    with pytest.warns(RuntimeWarning, match="0 of 0 MoE layers"):
        integration.apply(nn.Sequential(nn.Linear(8, 8)))


@pytest.mark.parametrize(
    ("name", "dtype", "reason"),
    [
        ("DeepSeek-V3", torch.float32, "its norm is torch.float32, expected torch.bfloat16 or torch.float16"),
        ("Qwen3-MoE", torch.float16, "rounds logits or weights to torch.float16"),
    ],
)
def test_dtypes_that_the_operator_has_not(name, dtype, reason):
    with pytest.warns(RuntimeWarning, match=reason):
        report = integration.apply(make(KNOWN[name], dtype))
    assert not report.fused


def test_a_correction_bias_that_was_cast_is_left():
    model = make(KNOWN["MiniMax-M2"]).bfloat16()
    with pytest.warns(RuntimeWarning, match="e_score_correction_bias is torch.bfloat16, expected torch.float32"):
        assert not integration.apply(model).fused


def counted(monkeypatch) -> list[int]:
    """How many rows each call of `route` had."""
    calls: list[int] = []
    route = integration.ops.route
    monkeypatch.setattr(
        integration.ops, "route", lambda x, *a, **b: calls.append(x.numel() // x.shape[-1]) or route(x, *a, **b)
    )
    return calls


def test_training_autocast_and_gradients_run_the_models_own_code(monkeypatch):
    model, input_ids, calls = make(KNOWN["Qwen3-MoE"]), tokens(), counted(monkeypatch)
    integration.apply(model)
    model(input_ids).logits.float().square().mean().backward()
    assert model.model.layers[0].mlp.gate.weight.grad.abs().max() > 0 and not calls
    with torch.autocast("cpu", torch.bfloat16):
        forward(model, input_ids)
    forward(model.train(), input_ids)
    assert not calls
    forward(model.eval(), input_ids)
    assert calls == [input_ids.numel()] * 2


def test_weights_are_read_as_they_are_when_it_runs():
    """Loaded after apply, in place or in place of the parameters."""
    model, other, input_ids = make(KNOWN["DeepSeek-V3"]), make(KNOWN["DeepSeek-V3"]), tokens()
    expected = forward(other, input_ids).logits
    integration.apply(model)
    model.load_state_dict(other.state_dict(), assign=True)
    scale = float(expected.abs().max())
    torch.testing.assert_close(forward(model, input_ids).logits, expected, rtol=0, atol=8 * BFLOAT16_ULP * scale)


def test_a_copy_runs_on_its_own_weights(monkeypatch):
    model, input_ids, calls = make(KNOWN["DeepSeek-V3"]), tokens(), counted(monkeypatch)
    integration.apply(model)
    before = forward(model, input_ids).logits
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(forward(other, input_ids).logits, before)
    integration.undo(other)
    calls.clear()
    forward(other, input_ids)
    assert not calls


def test_a_router_called_with_other_rows_computes_them_itself():
    """A hook gives it others than the layer's norm made."""
    model, input_ids = make(KNOWN["DeepSeek-V3"]), tokens()
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_pre_hook(lambda _, args: (args[0].roll(1, 0),))
    expected = forward(model, input_ids).logits
    integration.apply(model)
    got = forward(model, input_ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=8 * BFLOAT16_ULP * float(expected.abs().max()))
    assert all(vars(layer)[integration.STEP].routed is None for layer in model.model.layers)


@pytest.mark.parametrize("name", ["DeepSeek-V3", "Qwen3-MoE", "gpt-oss"])
def test_it_compiles_as_one_graph(name):
    model, input_ids = make(KNOWN[name], num_hidden_layers=1), tokens()
    integration.apply(model)
    expected = forward(model, input_ids, use_cache=False).logits
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    got = forward(torch.compile(model, fullgraph=True, backend=backend), input_ids, use_cache=False).logits
    assert torch.equal(got, expected)
    calls = [node.target for graph in graphs for node in graph.graph.nodes if "normgate" in str(node.target)]
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["DeepSeek-V3", "Granite-MoE", "ERNIE-4.5", "Qwen3-Next", "gpt-oss"])
def test_the_spec_it_gives_is_that_of_the_kernel_it_needs(name, tmp_path: Path, monkeypatch):
    model = make(KNOWN[name])
    report = integration.apply(model)
    ((file, text),) = report.specs.items()
    (tmp_path / file).write_text(text)
    files = package.files_of([tmp_path / file])
    tables = {}
    source = str(files["_tables.py"]).replace("from .table_types", "from normgate.table_types")
    exec(source, tables)
    monkeypatch.setattr(dispatch, "KERNELS", tables["KERNELS"])
    step = vars(model.get_submodule(report.fused[0]))[integration.STEP]
    assert step.kernel is not None
    integration.undo(model)
    assert not integration.apply(model).specs


def test_on_a_gpu_a_layer_without_a_kernel_is_left(monkeypatch):
    model = make(KNOWN["DeepSeek-V3"])
    (name, *_) = integration.apply(model).fused
    step = vars(model.get_submodule(name))[integration.STEP]
    on_gpu = dataclasses.replace(step, device=torch.device("cuda"))
    with pytest.raises(integration.Unserved, match="no kernel was generated for its path; Report.specs has the spec"):
        on_gpu.require_kernel()
