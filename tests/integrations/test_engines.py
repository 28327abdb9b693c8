"""The plugins of vLLM and SGLang, on stand-ins that follow their contract; test_contract.py holds the engines to it."""

import copy
import importlib.metadata
import json
import subprocess
import sys
import types
import warnings
from pathlib import Path

import engine_models as models
import pytest
import torch
from normgate import dispatch, ops
from normgate.integrations import decoder_layers, sglang, versions, vllm
from torch._dynamo.backends.common import aot_autograd

from codegen import package

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = {"vllm": "0.33.0", "sglang": "0.5.23"}


@pytest.fixture(autouse=True)
def any_kernel(monkeypatch):
    """A kernel for every layer, on the CPU, where the operator runs the composition."""
    torch.seed()
    torch._dynamo.reset()
    monkeypatch.setattr(decoder_layers, "_serving", lambda path, device: ("a-kernel", "unrounded"))
    for module in (vllm, sglang):
        monkeypatch.setattr(module, "_reports", [])
    monkeypatch.setattr(sglang, "_registered", False)
    monkeypatch.delenv(versions.DISABLE, raising=False)


def fuse(model, engine=vllm):
    contract = decoder_layers.Contract(engine._norm_order, engine._gate_output)
    return decoder_layers.fuse(model, engine.FAMILIES, contract)


def rows(num_tokens):
    return torch.randn(num_tokens, models.HIDDEN_SIZE).bfloat16(), torch.randn(
        num_tokens, models.HIDDEN_SIZE
    ).bfloat16()


def exact_logits(layer, x, residual):
    """In float64, from the norm as it is before it is rounded."""
    total = (x.float() + residual.float()).bfloat16().double()
    normed = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + models.EPS)
    weight = layer.post_attention_layernorm.weight.double()
    gate = layer.mlp.router if hasattr(layer.mlp, "router") else layer.mlp.gate
    normed = normed * (1 + weight if isinstance(layer.post_attention_layernorm, models.GemmaRMSNorm) else weight)
    return normed @ gate.weight.double().T + (0 if gate.bias is None else gate.bias.double())


def float32_gate():
    return models.GateLinear(out_dtype=torch.float32)


LAYERS = {
    "the block calls the gate": lambda: models.Glm4MoeDecoderLayer(models.Glm4MoE(float32_gate())),
    "the experts call the gate": lambda: models.DeepseekV2DecoderLayer(models.DeepseekV2MoE(float32_gate())),
    "with bias, no pair": lambda: models.TransformerBlock(
        models.MLPBlock(models.GateLinear(bias=True, out_dtype=torch.float32, return_bias=False))
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_experts_get_the_logits_of_the_fused_launch(kind):
    layer = LAYERS[kind]()
    model = models.Model(layer)
    x, residual = rows(5)
    own = copy.deepcopy(layer.post_attention_layernorm)
    before, names = x.clone(), list(model.state_dict())
    assert [row.fused for row in fuse(model)] == [True]
    _, residual_out = model(x, residual)
    (logits,) = layer.mlp.experts.seen
    torch.testing.assert_close(logits.double(), exact_logits(layer, x, residual), rtol=2e-6, atol=2e-5)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(residual_out, own(x, residual)[1], rtol=0, atol=0)
    gate = getattr(layer.mlp, "router", None) or layer.mlp.gate
    assert gate.calls == 0
    assert torch.equal(x, before) and list(model.state_dict()) == names


@pytest.mark.parametrize("kind", LAYERS)
def test_compiles_whole_into_one_launch_a_layer_for_any_number_of_tokens(kind):
    model = models.Model(LAYERS[kind](), LAYERS[kind]())
    assert all(row.fused for row in fuse(model))
    graphs = []

    def keep(module, _inputs):
        graphs.append(module.graph)
        return module.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=aot_autograd(fw_compiler=keep))
    with torch.no_grad():
        for num_tokens in (3, 7):
            x, residual = rows(num_tokens)
            expected = model(x.clone(), residual.clone())
            for found, wanted in zip(compiled(x, residual), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1.6e-2, atol=1e-2)
    assert len(graphs) == 1
    called = [str(node.target) for node in graphs[0].nodes]
    assert sum("normgate.route" in name for name in called) == 2
    assert not any("mm" in name or "linear" in name for name in called)
    gates = [getattr(layer.mlp, "router", None) or layer.mlp.gate for layer in model.layers]
    assert [gate.calls for gate in gates] == [0, 0]


@pytest.mark.parametrize("kind", LAYERS)
def test_tokens_that_moved_between_norm_and_gate_go_through_the_gate(kind):
    layer = LAYERS[kind]()
    x, residual = rows(6)
    assert fuse(models.Model(layer))[0].fused
    layer.between = lambda hidden_states: hidden_states.flip(0)
    output, _ = layer(x, residual)
    (logits,) = layer.mlp.experts.seen
    gate = getattr(layer.mlp, "router", None) or layer.mlp.gate
    assert gate.calls == 1
    # The gate reads the rounded norm, so its logits are within the rounding of 64 elements of each row.
    wanted = exact_logits(layer, x, residual).flip(0)
    torch.testing.assert_close(logits.double(), wanted, rtol=2e-2, atol=0.2)
    assert not torch.equal(logits, logits.flip(0))


def test_a_gate_that_is_called_out_of_turn_computes_itself():
    first, second = LAYERS["the block calls the gate"](), LAYERS["the block calls the gate"]()
    fuse(models.Model(first, second))
    x, residual = rows(4)
    normed, _ = first.post_attention_layernorm(x, residual)
    logits, _ = first.mlp.gate(normed)  # not within its block
    assert first.mlp.gate.calls == 1
    torch.testing.assert_close(logits, normed.float() @ first.mlp.gate.weight.float().T)
    second.post_attention_layernorm(x, residual)  # another batch comes between
    first.mlp(normed)
    assert first.mlp.gate.calls == 2


def test_nothing_is_held_after_a_block():
    layer = LAYERS["the block calls the gate"]()
    fuse(models.Model(layer))
    layer(*rows(4))
    handover = layer.mlp.forward.__self__.handover
    assert handover.normed_x is None and handover.router_logits is None and handover.layer is None


def test_a_graph_that_was_traced_without_the_plugin_still_runs_the_gate():
    layer = LAYERS["the experts call the gate"]()
    fuse(models.Model(layer))
    hidden_states = rows(4)[0]
    torch.ops.normgate_test.moe_forward(hidden_states, hidden_states, layer.mlp.experts.name)
    assert layer.mlp.gate.calls == 1 and layer.mlp.experts.seen[0].shape == (4, models.NUM_EXPERTS)


def test_a_norm_without_residual_or_with_more_to_add_is_the_engines_own():
    layer = LAYERS["the block calls the gate"]()
    norm, own = layer.post_attention_layernorm, copy.deepcopy(layer.post_attention_layernorm)
    fuse(models.Model(layer))
    x, residual = rows(4)
    assert torch.equal(norm(x), own(x))
    for found, wanted in zip(norm(x, residual, residual), own(x, residual, residual), strict=True):
        assert torch.equal(found, wanted)


def test_sglangs_gate_gives_float32_logits_alone_and_takes_its_other_arguments():
    class Block(models.Glm4MoE):
        def forward(self, hidden_states):
            return self.experts(hidden_states, self.gate(hidden_states, None, forward_batch=None))

    Block.__name__ = "DeepseekV2MoE"
    layer = models.DeepseekV2DecoderLayer(Block(models.MoEGate()))
    assert fuse(models.Model(layer), sglang)[0].fused
    x, residual = rows(4)
    layer(x, residual)
    torch.testing.assert_close(
        layer.mlp.experts.seen[0].double(), exact_logits(layer, x, residual), rtol=2e-6, atol=2e-5
    )


def test_norm_orders_are_the_engines_own():
    norm = models.RMSNorm()
    assert vllm._norm_order(norm) == "A" and vllm._norm_order(models.GemmaRMSNorm()) == "G"
    assert sglang._norm_order(norm) == "A"
    norm.cast_x_before_out_mul = False
    assert sglang._norm_order(norm) == "B"


def test_a_gemma_norm_multiplies_by_one_more_than_its_weight():
    layer = LAYERS["the block calls the gate"]()
    layer.post_attention_layernorm = models.GemmaRMSNorm()
    assert fuse(models.Model(layer))[0].fused
    x, residual = rows(4)
    layer(x, residual)
    torch.testing.assert_close(
        layer.mlp.experts.seen[0].double(), exact_logits(layer, x, residual), rtol=2e-6, atol=2e-5
    )


def quantized(layer):
    layer.mlp.gate.quant_method = types.new_class("Fp8LinearMethod")()


def odd_norm(layer):
    layer.post_attention_layernorm = torch.nn.LayerNorm(models.HIDDEN_SIZE)


def small_variance(layer):
    layer.post_attention_layernorm.variance_size_override = 32


def sequence_parallel(layer):
    layer.mlp.is_sequence_parallel = True


def one_gemm(layer):
    layer.mlp.experts._fse_fuse_gate = True


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (quantized, "its gate is quantized (Fp8LinearMethod)"),
        (odd_norm, "its norm is a LayerNorm, expected RMSNorm or GemmaRMSNorm"),
        (small_variance, "its norm has no weight, or a variance of fewer elements"),
        (sequence_parallel, "its tokens are split among ranks between the norm and the gate (sequence parallel)"),
        (one_gemm, "its gate is one GEMM with the shared expert's"),
    ],
)
def test_what_does_not_fit_is_left_alone_with_the_reason(spoil, why):
    layer = LAYERS["the experts call the gate"]()
    spoil(layer)
    assert fuse(models.Model(layer)) == (("layers.0", False, why),)
    assert "forward" not in vars(layer.mlp) and "forward" not in vars(layer.mlp.experts)


def test_unknown_layers_are_named_and_dense_ones_are_not():
    model = models.Model(
        models.NewDecoderLayer(models.Glm4MoE(float32_gate())), models.Glm4MoeDecoderLayer(models.DenseMLP())
    )
    (row,) = fuse(model)
    assert str(row) == "layers.0: left alone, NewDecoderLayer is not among the known decoder layers"


def test_fusing_twice_is_fusing_once():
    layer = LAYERS["the experts call the gate"]()
    first = fuse(models.Model(layer))
    norm = layer.post_attention_layernorm.forward.__self__
    assert fuse(models.Model(layer)) == first and layer.post_attention_layernorm.forward.__self__ is norm


def test_a_layer_without_a_kernel_says_what_to_generate(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(ops, "LIBRARY", "libnormgate.so")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    path = decoder_layers.RouterPath(63, 12, "bfloat16", "bfloat16", "float32", "A", False, "unrounded", "add")
    with pytest.raises(
        decoder_layers.LeftAlone, match="hidden_size 63, num_experts 12.*logits float32, gate_bias false"
    ):
        decoder_layers._serving(path, torch.device("cuda"))
    with pytest.raises(decoder_layers.LeftAlone, match="not on a CUDA device"):
        decoder_layers._serving(path, torch.device("cpu"))


def test_a_spec_with_a_residual_and_no_scoring_gives_the_kernel_that_a_layer_needs(monkeypatch):
    monkeypatch.undo()
    text = package.files_of([ROOT / "tests" / "specs" / "add-norm-gate.yaml"])["_tables.py"]
    tables = {}
    exec(text.replace("from .table_types", "from normgate.table_types"), tables)
    monkeypatch.setattr(dispatch, "KERNELS", tables["KERNELS"])
    monkeypatch.setattr(ops, "LIBRARY", "libnormgate.so")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    path = decoder_layers.RouterPath(4096, 128, "bfloat16", "bfloat16", "float32", "A", False, "unrounded", "add")
    kernel, logits_from = decoder_layers._serving(path, torch.device("cuda"))
    assert tables["KERNELS"][kernel].residual == "add" and logits_from == "unrounded"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(decoder_layers.LeftAlone, match="no SM target of"):
        decoder_layers._serving(path, torch.device("cuda"))


def test_importing_the_plugins_imports_no_engine():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'generated')!r}); sys.modules['vllm'] = sys.modules['sglang'] = None; "
        "from normgate.integrations import sglang, vllm"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_entry_points_name_the_plugins():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points == {
        "vllm.general_plugins": {"normgate": "normgate.integrations.vllm:register"},
        "sglang.srt.plugins": {"normgate": "normgate.integrations.sglang:register"},
    }


class Loader:
    """In place of vLLM's BaseModelLoader."""

    def load_model(self, vllm_config, model_config, prefix=""):
        return self.model


def vllm_config(**changes):
    config = types.SimpleNamespace(
        lora_config=None,
        additional_config={},
        compilation_config=types.SimpleNamespace(pass_config=types.SimpleNamespace(fuse_allreduce_rms=False)),
        parallel_config=types.SimpleNamespace(tensor_parallel_size=2),
    )
    vars(config).update(changes)
    return config


class Registry:
    """In place of SGLang's HookRegistry."""

    hooks = []

    @classmethod
    def register(cls, target, hook, hook_type):
        cls.hooks.append((target, hook, hook_type))


@pytest.fixture
def engines(monkeypatch):
    """Both engines installed, as far as the plugins import them."""
    monkeypatch.setattr(importlib.metadata, "version", VERSIONS.__getitem__)
    monkeypatch.setattr(Registry, "hooks", [])
    loader = type("BaseModelLoader", (Loader,), {"load_model": Loader.load_model})
    settings = {"enable_deterministic_inference": False, "enable_lora": False, "attn_dp_size": 1}

    def bag():
        return types.SimpleNamespace(**settings, deterministic=types.SimpleNamespace(**settings))

    parts = {
        "sglang.srt.runtime_context": {"get_exec": bag, "get_lora": bag, "get_parallel": bag},
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False},
        "vllm.model_executor.model_loader.base_loader": {"BaseModelLoader": loader},
        "sglang.srt.plugins.hook_registry": {
            "HookRegistry": Registry,
            "HookType": types.SimpleNamespace(AFTER="after"),
        },
    }
    for name, values in parts.items():
        for parent in [name.rsplit(".", count)[0] for count in range(name.count(".") + 1)]:
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return types.SimpleNamespace(loader=loader, hooks=Registry.hooks, settings=settings)


def test_vllm_models_are_fused_when_they_are_loaded_and_reported(engines):
    vllm.register()
    once = engines.loader.load_model
    vllm.register()
    assert engines.loader.load_model is once
    loader, config = engines.loader(), vllm_config()
    loader.model = models.Model(LAYERS["the experts call the gate"]())
    assert loader.load_model(vllm_config=config, model_config=None) is loader.model
    assert vllm.report() == ((("layers.0", True, "a-kernel"),),)
    assert config.additional_config == {"normgate": ["a-kernel"]}  # part of the key of vLLM's compile cache
    json.dumps(config.additional_config)


def test_sglang_models_are_fused_when_they_are_loaded_and_reported(engines):
    sglang.register()
    sglang.register()
    ((target, hook, kind),) = engines.hooks
    assert (target, kind) == (sglang.LOAD_MODEL, "after")
    model = models.Model(
        models.Glm4MoeDecoderLayer(models.DenseMLP()), models.NewDecoderLayer(models.Glm4MoE(float32_gate()))
    )
    assert hook(None, types.SimpleNamespace(model=model)) is None  # the method's result stays
    ((row,),) = sglang.report()
    assert not row.fused and row.name == "layers.1"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"lora_config": object()}, "LoRA"),
        (
            {"compilation_config": types.SimpleNamespace(pass_config=types.SimpleNamespace(fuse_allreduce_rms=True))},
            "all-reduce",
        ),
    ],
)
def test_vllm_settings_that_do_not_go_together_leave_the_model_alone(engines, changes, why):
    config = vllm_config(**changes)
    ((name, fused, said),) = vllm.apply(models.Model(LAYERS["the block calls the gate"]()), config)
    assert not fused and why in said and config.additional_config == {}


@pytest.mark.parametrize("setting", ["enable_deterministic_inference", "enable_lora", "attn_dp_size"])
def test_sglang_settings_that_do_not_go_together_leave_the_model_alone(engines, setting):
    engines.settings[setting] = 2
    layer = LAYERS["the block calls the gate"]()
    (row,) = sglang.apply(models.Model(layer))
    assert not row.fused and "forward" not in vars(layer.mlp)


@pytest.mark.parametrize("engine", [vllm, sglang])
@pytest.mark.parametrize("version", ["0.5.22", "0.32.0", "0.34.0", "1.0", "dev"])
def test_another_version_is_left_alone_with_one_warning(engines, monkeypatch, engine, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    before = engines.loader.load_model
    with pytest.warns(RuntimeWarning, match=f"its version is {version}, the plugin knows") as caught:
        engine.register()
    assert len(caught) == 1 and engines.loader.load_model is before and engines.hooks == []


@pytest.mark.parametrize("engine", [vllm, sglang])
def test_normgate_disable_turns_a_plugin_off_without_a_word(engines, monkeypatch, engine):
    monkeypatch.setenv(versions.DISABLE, "1")
    before = engines.loader.load_model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.register()
    assert engines.loader.load_model is before and engines.hooks == []
