"""What families of models imply and no key of their config.json says, and the names configs use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What a model_type implies. note: what is special, for the spec's top; facts: key -> (value, source)."""

    note: str
    facts: Mapping[str, tuple[object, str]]


def _family(
    note: str,
    math: str,
    order: str,
    bias: bool,
    correction: bool,
    gate: tuple[str, str],
    activation: str = "",
) -> Family:
    """math: where norm order and biases were read; gate: the gate weight's dtype and its source; activation:
    the source of bfloat16 activations, for families whose configs do not name a dtype."""
    facts: dict[str, tuple[object, str]] = {
        "norm.order": (order, f"read in {math}"),
        "gate_bias": (bias, f"read in {math}"),
        "routing.e_score_correction_bias": (correction, f"read in {math}"),
        "dtypes.gate_weight": gate,
    }
    if activation:
        facts["dtypes.activation"] = ("bfloat16", activation)
    return Family(note, facts)


def _modeling(name: str) -> str:
    return f"transformers 5.23.0 models/{name}/modeling_{name}.py"


_BF16 = "bfloat16"

_QWEN3_MOE = _family(
    "Softmax over all experts, no correction bias. The model's own code rounds logits to bf16, here they "
    "stay fp32.",
    _modeling("qwen3_moe"), "A", False, False,
    (_BF16, "read in the safetensors header of Qwen3-30B-A3B; other sizes remembered, unverified"),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "deepseek_v4": _family(
        "Four residual streams are collapsed into x before this norm, whose weight multiplies in fp32, with "
        "one rounding. Hash layers take expert ids from tid2eid; the gate still supplies their weights.",
        f"{_modeling('deepseek_v4')} and vllm/models/deepseek_v4/nvidia/model.py", "B", False, True,
        (_BF16, "read in the safetensors headers of DeepSeek-V4-Pro and DeepSeek-V4-Flash"),
    ),
    "deepseek_v3": _family(
        "Sigmoid scores, top k within the best groups, chosen with a correction bias. The norm rounds before "
        "its weight multiplies.",
        _modeling("deepseek_v3"), "A", False, True, (_BF16, "read in the safetensors header of DeepSeek-V3"),
    ),
    "kimi_k2": _family(
        "The sizes of DeepSeek-V4-Pro's router with another norm order: the same gate, a norm of its own.",
        f"{_modeling('deepseek_v3')}, which it shares", "A", False, True,
        (_BF16, "read in the safetensors header of Kimi-K2-Instruct"),
    ),
    "glm_moe_dsa": _family(
        "Sigmoid scores in one group, chosen with a correction bias.",
        _modeling("glm_moe_dsa"), "A", False, True,
        (_BF16, "read in the safetensors header of GLM-5.1; GLM-5 remembered, unverified"),
    ),
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "gpt_oss": _family(
        "The router is a Linear with a bias, softmax over the chosen logits only. 2880 is no multiple "
        "of 128.",
        _modeling("gpt_oss"), "B", True, False,
        (_BF16, "read in the safetensors header of gpt-oss-20b; gpt-oss-120b remembered, unverified"),
        "dtype of the norm weights, read in the safetensors header of gpt-oss-20b; gpt-oss-120b remembered, "
        "unverified",
    ),
    "minimax_m2": _family(
        "The gate weight is stored in fp32.",
        _modeling("minimax_m2"), "A", False, True,
        ("float32", "read in the safetensors header of MiniMax-M2.7; M2 and M2.5 remembered, unverified"),
        "dtype of the norm weights, read in the safetensors header of MiniMax-M2.7; M2 and M2.5 remembered, "
        "unverified",
    ),
}  # fmt: skip
"""Facts by model_type that no key of these configs says. Only what was read, or is said to be remembered."""

KEYS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "d_model", "n_embd"),
    "num_experts": ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"),
    "routing.top_k": (
        "num_experts_per_tok", "num_experts_per_token", "experts_per_token",
        "moe_topk", "moe_top_k", "moe_k", "top_k_experts",
    ),
    "norm.eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps"),
    "gate_bias": ("router_bias",),
    "routing.e_score_correction_bias": (
        "use_routing_bias", "use_expert_bias", "moe_router_enable_expert_bias", "use_moe_router_bias",
    ),
}  # fmt: skip
"""The names that configs use for each key of the spec."""
