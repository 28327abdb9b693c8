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
    *,
    math: str,
    order: str,
    bias: bool = False,
    correction: bool = False,
    gate: tuple[str, str] | None = None,
    activation: str = "",
    stages: str,
    path: Mapping[str, object],
) -> Family:
    """math: where norm order and biases were read; gate: the gate weight's dtype and its source; activation:
    the source of bfloat16 activations, for families whose configs do not name a dtype; stages: where `path`,
    the add before the norm and the choice of experts, was read."""
    facts: dict[str, tuple[object, str]] = {
        "norm.order": (order, f"read in {math}"),
        "gate_bias": (bias, f"read in {math}"),
        "routing.e_score_correction_bias": (correction, f"read in {math}"),
    }
    if gate:
        facts["dtypes.gate_weight"] = gate
    if activation:
        facts["dtypes.activation"] = ("bfloat16", activation)
    facts.update({key: (value, f"read in {stages}") for key, value in path.items()})
    return Family(note, facts)


def _modeling(name: str, version: str) -> str:
    return f"transformers {version} models/{name}/modeling_{name}.py"


_OLD, _NEW = "5.23.0", "5.24.0"
"""The versions of transformers that were read: the one for norms and biases, the other for the stages around."""

_BF16 = "bfloat16"
_GROUPS = "routing.groups.n_group"
_GROUP_SCORE = "routing.groups.score"
_EPSILON = "routing.renormalize.epsilon"
_SCALE = "routing.routed_scaling_factor"

_SIGMOID_IN_GROUPS = {"residual": True, "routing.scoring": "sigmoid", _GROUP_SCORE: "top2_sum", _EPSILON: 1e-20}
"""As DeepSeek-V3 has it; the config says how many groups, whether to renormalize, and the scale."""

_QWEN3_MOE = _family(
    "Softmax over all experts, no correction bias. The model's own code rounds logits to bf16, here they "
    "stay fp32.",
    math=_modeling("qwen3_moe", _OLD), order="A",
    gate=(_BF16, "read in the safetensors header of Qwen3-30B-A3B; other sizes remembered, unverified"),
    stages=_modeling("qwen3_moe", _NEW),
    path={"residual": True, "routing.scoring": "softmax", _GROUPS: 1, _EPSILON: 0.0, _SCALE: 1.0},
)  # fmt: skip

_LLAMA4 = _family(
    "One expert a token, whose weight, the sigmoid of its logit, multiplies what the expert reads.",
    math=_modeling("llama4", _NEW), order="A", stages=_modeling("llama4", _NEW),
    path={
        "residual": True, "routing.scoring": "sigmoid", _GROUPS: 1, "routing.renormalize": False, _SCALE: 1.0,
    },
)  # fmt: skip


def _granite(name: str) -> Family:
    return _family(
        "What attention gives is multiplied before it is added to the residual. Softmax over the chosen logits only.",
        math=_modeling(name, _NEW), order="A", stages=_modeling(name, _NEW),
        path={"residual": True, "routing.scoring": "softmax_of_chosen", _SCALE: 1.0},
    )  # fmt: skip


FAMILIES: dict[str, Family] = {
    "deepseek_v4": _family(
        "Four residual streams are collapsed into x before this norm, whose weight multiplies in fp32, with "
        "one rounding. Hash layers take expert ids from tid2eid; the gate still supplies their weights.",
        math=f"{_modeling('deepseek_v4', _OLD)} and vllm/models/deepseek_v4/nvidia/model.py",
        order="B", correction=True,
        gate=(_BF16, "read in the safetensors headers of DeepSeek-V4-Pro and DeepSeek-V4-Flash"),
        stages=_modeling("deepseek_v4", _NEW),
        path={
            "residual": False, "routing.scoring": "sqrtsoftplus", _GROUPS: 1, "routing.renormalize": True,
            _EPSILON: 1e-20,
        },
    ),
    "deepseek_v3": _family(
        "Sigmoid scores, top k within the best groups, chosen with a correction bias. The norm rounds before "
        "its weight multiplies.",
        math=_modeling("deepseek_v3", _OLD), order="A", correction=True,
        gate=(_BF16, "read in the safetensors header of DeepSeek-V3"),
        stages=_modeling("deepseek_v3", _NEW), path=_SIGMOID_IN_GROUPS,
    ),
    "kimi_k2": _family(
        "The sizes of DeepSeek-V4-Pro's router with another norm order: the same gate, a norm of its own.",
        math=f"{_modeling('deepseek_v3', _OLD)}, which it shares", order="A", correction=True,
        gate=(_BF16, "read in the safetensors header of Kimi-K2-Instruct"),
        stages=f"{_modeling('deepseek_v3', _NEW)}, which it shares", path=_SIGMOID_IN_GROUPS,
    ),
    "glm_moe_dsa": _family(
        "Sigmoid scores in one group, chosen with a correction bias.",
        math=_modeling("glm_moe_dsa", _OLD), order="A", correction=True,
        gate=(_BF16, "read in the safetensors header of GLM-5.1; GLM-5 remembered, unverified"),
        stages=_modeling("glm_moe_dsa", _NEW), path=_SIGMOID_IN_GROUPS,
    ),
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "gpt_oss": _family(
        "The router is a Linear with a bias, softmax over the chosen logits only. 2880 is no multiple "
        "of 128.",
        math=_modeling("gpt_oss", _OLD), order="B", bias=True,
        gate=(_BF16, "read in the safetensors header of gpt-oss-20b; gpt-oss-120b remembered, unverified"),
        activation="dtype of the norm weights, read in the safetensors header of gpt-oss-20b; gpt-oss-120b "
        "remembered, unverified",
        stages=_modeling("gpt_oss", _NEW),
        path={"residual": True, "routing.scoring": "softmax_of_chosen", _SCALE: 1.0},
    ),
    "minimax_m2": _family(
        "The gate weight is stored in fp32.",
        math=_modeling("minimax_m2", _OLD), order="A", correction=True,
        gate=("float32", "read in the safetensors header of MiniMax-M2.7; M2 and M2.5 remembered, unverified"),
        activation="dtype of the norm weights, read in the safetensors header of MiniMax-M2.7; M2 and M2.5 "
        "remembered, unverified",
        stages=_modeling("minimax_m2", _NEW),
        path={
            "residual": True, "routing.scoring": "sigmoid", _GROUPS: 1, "routing.renormalize": True, _EPSILON: 0.0,
            _SCALE: 1.0,
        },
    ),
    "deepseek_v2": _family(
        "Softmax over all experts, top k within the groups of the best experts; the weights are not renormalized.",
        math=_modeling("deepseek_v2", _NEW), order="A", stages=_modeling("deepseek_v2", _NEW),
        path={"residual": True, "routing.scoring": "softmax", "routing.renormalize": False},
    ),
    "ernie4_5_moe": _family(
        "Softmax over all experts, chosen with a correction bias on the probabilities.",
        math=_modeling("ernie4_5_moe", _NEW), order="A", correction=True, stages=_modeling("ernie4_5_moe", _NEW),
        path={
            "residual": True, "routing.scoring": "softmax", _GROUPS: 1, "routing.renormalize": True, _EPSILON: 0.0,
            _SCALE: 1.0,
        },
    ),
    "granitemoe": _granite("granitemoe"),
    "granitemoehybrid": _granite("granitemoehybrid"),
    "grok-1": _family(
        "x is attention's output as its own norm gives it. Logits are capped before the softmax.",
        math="vllm/model_executor/models/grok1.py", order="A", stages="vllm/model_executor/models/grok1.py",
        path={
            "residual": True, "routing.scoring": "softmax", _GROUPS: 1, "routing.renormalize": True, _EPSILON: 0.0,
            _SCALE: 1.0, "routing.softcap": 30.0,
        },
    ),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
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
    "residual.multiplier": ("residual_multiplier",),
    "routing.scoring": (
        "scoring_func", "score_function", "score_func", "moe_router_activation", "moe_router_activation_func",
        "expert_selection_fn",
    ),
    _GROUPS: ("n_group", "num_expert_group"),
    "routing.groups.topk_group": ("topk_group",),
    "routing.renormalize": ("norm_topk_prob", "moe_renormalize", "norm_expert_weight", "route_norm"),
    "routing.renormalize.floor": ("moe_norm_min",),
    _SCALE: (
        "routed_scaling_factor", "route_scale", "router_scaling_factor", "moe_router_scaling_factor",
        "moe_routed_scaling_factor",
    ),
    "routing.softcap": ("router_logit_softcapping", "moe_router_logit_softcapping"),
}  # fmt: skip
"""The names that configs use for each key of the spec."""

SCORING_WORDS: dict[str, dict[str, str]] = {
    "expert_selection_fn": {"softmax": "softmax_of_chosen", "sigmoid": "sigmoid"},
}
"""What the words of a key for the scoring mean, where it is not what they say: Command-A+ chooses by logit first."""
