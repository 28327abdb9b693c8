"""Plugin for SGLang, entry point group ``sglang.srt.plugins``: MoE layers' residual add, norm and gate in one launch.

SGLang calls :func:`register` in each of its processes and applies the hook that it registers. When a model's weights
are loaded, its known decoder layers are fused where the package has a kernel for them; :func:`report` says which.
``NORMGATE_DISABLE=1`` turns it off. It was held against SGLang's source and never served live.
"""

import importlib
import logging
from typing import Any

import torch

from . import decoder_layers
from .decoder_layers import Contract, Family, Layer, LeftAlone
from .versions import acts

FIRST_VERSION, LAST_VERSION = (0, 5, 23), (0, 5, 23)
"""SGLang's versions whose source ``python -m tests.integrations.contract`` held this against, last included."""

LOAD_MODEL = "sglang.srt.model_executor.model_runner.ModelRunner.load_model"

_POST_ATTENTION = ("post_attention_layernorm", "mlp", "gate")

FAMILIES = (
    # DeepSeek-V2, V3 and V3.2, Kimi-K2, GLM-5: their models are subclasses that share the layer.
    Family("DeepseekV2DecoderLayer", "DeepseekV2MoE", *_POST_ATTENTION, "srt/models/deepseek_v2.py"),
    Family("Glm4MoeDecoderLayer", "Glm4MoeSparseMoeBlock", *_POST_ATTENTION, "srt/models/glm4_moe.py"),
    Family("Qwen3MoeDecoderLayer", "Qwen3MoeSparseMoeBlock", *_POST_ATTENTION, "srt/models/qwen3_moe.py"),
    Family(
        "GptOssDecoderLayer",
        "GptOssSparseMoeBlock",
        "post_attention_layernorm",
        "mlp",
        "router",
        "srt/models/gpt_oss.py",
    ),
)

_GATES_OF_A_WEIGHT = ("MoEGate", "Glm4MoeGate")  # they return float32 logits, and no bias

_logger = logging.getLogger("sglang.normgate")
_reports: list[tuple[Layer, ...]] = []
_registered = False


def register() -> None:
    """Have models fused when they are loaded; a second call, another version of SGLang or NORMGATE_DISABLE: nothing."""
    global _registered
    if _registered or not acts("sglang", FIRST_VERSION, LAST_VERSION):
        return
    hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
    hooks.HookRegistry.register(LOAD_MODEL, _after_load_model, hooks.HookType.AFTER)
    _registered = True


def _after_load_model(_result: object, runner: Any, *_args: Any, **_kwargs: Any) -> None:
    apply(runner.model)


def apply(model: torch.nn.Module) -> tuple[Layer, ...]:
    """Fuse the layers of a loaded model; what became of its MoE layers is logged and kept for :func:`report`."""
    try:
        _check_engine()
        layers = decoder_layers.fuse(model, FAMILIES, Contract(_norm_order, _gate_output))
    except LeftAlone as reason:
        layers = (Layer(type(model).__name__, False, str(reason)),)
    decoder_layers.say(layers, _logger)
    _reports.append(layers)
    return layers


def report() -> tuple[tuple[Layer, ...], ...]:
    """For each model that this process loaded, what became of its MoE layers."""
    return tuple(_reports)


def _check_engine() -> None:
    context = importlib.import_module("sglang.srt.runtime_context")  # the arguments as SGLang resolved them
    if context.get_exec().deterministic.enable_deterministic_inference:
        raise LeftAlone("enable_deterministic_inference is set")
    if context.get_lora().enable_lora:
        raise LeftAlone("LoRA adapters are enabled, which may change the gate")
    if context.get_parallel().attn_dp_size > 1:
        raise LeftAlone("tokens are gathered between the norm and the gate (data-parallel attention)")


def _norm_order(norm: Any) -> str:
    """SGLang's RMSNorm rounds once, after its weight multiplies, unless it casts before that."""
    kind = type(norm).__name__
    if kind != "RMSNorm":
        raise LeftAlone(f"its norm is a {kind}, expected RMSNorm")
    for name in (
        "variance_size_override",
        "fp32_residual",
        "override_orig_dtype",
        "x_pad_to_multiple",
        "_quant_linear",
    ):
        if getattr(norm, name, None):
            raise LeftAlone(f"its norm has {name} set")
    if not norm.has_weight:
        raise LeftAlone("its norm has no weight")
    return "A" if norm.cast_x_before_out_mul else "B"


def _gate_output(gate: Any, activation: torch.dtype) -> tuple[torch.dtype, bool]:
    if type(gate).__name__ in _GATES_OF_A_WEIGHT:
        return torch.float32, False
    return activation, True
