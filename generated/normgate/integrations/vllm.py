"""Plugin for vLLM, entry point group ``vllm.general_plugins``: MoE layers' residual add, norm and gate in one launch.

vLLM calls :func:`register` in each of its processes. When a model's weights are loaded, its known decoder layers are
fused where the package has a kernel for them; :func:`report` says which. ``NORMGATE_DISABLE=1`` turns it off. It was
held against vLLM's source and never served live.
"""

import functools
import importlib
import logging
from typing import Any

import torch

from . import decoder_layers
from .decoder_layers import Contract, Family, Layer, LeftAlone
from .versions import acts

FIRST_VERSION, LAST_VERSION = (0, 33), (0, 33)
"""vLLM's versions whose source ``python -m tests.integrations.contract`` held this against, last included."""

_POST_ATTENTION = ("post_attention_layernorm", "mlp", "gate")

FAMILIES = (
    # DeepSeek-V2, V3 and V3.2, Kimi-K2, GLM-5: their models are subclasses that share the layer.
    Family("DeepseekV2DecoderLayer", "DeepseekV2MoE", *_POST_ATTENTION, "model_executor/models/deepseek_v2.py"),
    Family("Glm4MoeDecoderLayer", "Glm4MoE", *_POST_ATTENTION, "model_executor/models/glm4_moe.py"),
    Family("Qwen3MoeDecoderLayer", "Qwen3MoeSparseMoeBlock", *_POST_ATTENTION, "model_executor/models/qwen3_moe.py"),
    Family("Qwen3NextDecoderLayer", "Qwen3NextSparseMoeBlock", *_POST_ATTENTION, "model_executor/models/qwen3_next.py"),
    Family(
        "TransformerBlock",
        "MLPBlock",
        "post_attention_layernorm",
        "mlp",
        "router",
        "model_executor/models/gpt_oss.py",
    ),
    Family(
        "MiniMaxM2DecoderLayer",
        "MiniMaxM2MoE",
        "post_attention_layernorm",
        "block_sparse_moe",
        "gate",
        "model_executor/models/minimax_m2.py",
    ),
)

_logger = logging.getLogger("vllm.normgate")  # below vLLM's own, so that its handlers show it
_reports: list[tuple[Layer, ...]] = []


def register() -> None:
    """Have models fused when they are loaded; a second call, another version of vLLM or NORMGATE_DISABLE: nothing."""
    if not acts("vllm", FIRST_VERSION, LAST_VERSION):
        return
    loader = importlib.import_module("vllm.model_executor.model_loader.base_loader").BaseModelLoader
    own = loader.load_model
    if hasattr(own, "_normgate"):
        return

    @functools.wraps(own)
    def load_model(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        model = own(self, vllm_config, *args, **kwargs)
        apply(model, vllm_config)
        return model

    load_model._normgate = True  # type: ignore[attr-defined]
    loader.load_model = load_model


def apply(model: torch.nn.Module, vllm_config: Any) -> tuple[Layer, ...]:
    """Fuse the layers of a loaded model; what became of its MoE layers is logged and kept for :func:`report`."""
    try:
        _check_engine(vllm_config)
        layers = decoder_layers.fuse(model, FAMILIES, Contract(_norm_order, _gate_output))
    except LeftAlone as reason:
        layers = (Layer(type(model).__name__, False, str(reason)),)
    if any(layer.fused for layer in layers) and isinstance(vllm_config.additional_config, dict):
        # Part of the key of vLLM's compile cache: a graph traced with fused layers is not one without.
        kernels = sorted({layer.why for layer in layers if layer.fused})
        vllm_config.additional_config.setdefault("normgate", kernels)
    decoder_layers.say(layers, _logger)
    _reports.append(layers)
    return layers


def report() -> tuple[tuple[Layer, ...], ...]:
    """For each model that this process loaded, what became of its MoE layers."""
    return tuple(_reports)


def _check_engine(vllm_config: Any) -> None:
    if vllm_config.lora_config is not None:
        raise LeftAlone("LoRA adapters are enabled, which may change the gate")
    fuses_all_reduce = vllm_config.compilation_config.pass_config.fuse_allreduce_rms
    if fuses_all_reduce and vllm_config.parallel_config.tensor_parallel_size > 1:
        raise LeftAlone("vLLM fuses the norm with the all-reduce before it (pass_config.fuse_allreduce_rms)")
    if importlib.import_module("vllm.envs").VLLM_BATCH_INVARIANT:
        raise LeftAlone("VLLM_BATCH_INVARIANT is set")


def _norm_order(norm: Any) -> str:
    """vLLM's RMSNorm rounds before its weight multiplies, as its own ``ir.ops.fused_add_rms_norm`` does."""
    kind = type(norm).__name__
    if kind not in ("RMSNorm", "GemmaRMSNorm"):
        raise LeftAlone(f"its norm is a {kind}, expected RMSNorm or GemmaRMSNorm")
    if not getattr(norm, "has_weight", True) or getattr(norm, "variance_size_override", None) is not None:
        raise LeftAlone("its norm has no weight, or a variance of fewer elements")
    return "G" if kind == "GemmaRMSNorm" else "A"


def _gate_output(gate: Any, activation: torch.dtype) -> tuple[torch.dtype, bool]:
    dtype = getattr(gate, "out_dtype", None)
    return dtype or activation, getattr(gate, "return_bias", True)
