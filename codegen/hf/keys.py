"""The names that config.json files use for what a spec says, by meaning."""

from __future__ import annotations

import re

TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Keys under which configs of several modalities describe the text model, from the outside in."""

EXPERT_PARTS = ("ffn_config", "moe_config", "moe")
"""Keys under which a text model's experts are described: DBRX, Mistral's params.json."""

KEYS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "d_model", "n_embd", "dim"),
    "num_experts": (
        "n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "num_routed_experts", "n_experts",
    ),
    "routing.top_k": (
        "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "num_selected_experts", "moe_topk",
        "moe_top_k", "moe_k", "top_k_experts", "num_activated_experts",
    ),
    "norm.eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps"),
    "gate_bias": ("router_bias",),
    "routing.e_score_correction_bias": (
        "use_routing_bias", "use_expert_bias", "moe_router_enable_expert_bias", "use_moe_router_bias",
    ),
    "residual.multiplier": (
        "residual_multiplier", "full_attn_beta_factor", "linear_attn_beta_factor", "layernorm_full_attention_beta",
        "layernorm_linear_attention_beta",
    ),
    "residual.stream_multiplier": (
        "full_attn_alpha_factor", "linear_attn_alpha_factor", "layernorm_full_attention_alpha",
        "layernorm_linear_attention_alpha",
    ),
    "routing.scoring": (
        "scoring_func", "score_function", "score_func", "moe_router_activation", "moe_router_activation_func",
        "expert_selection_fn",
    ),
    "routing.groups.n_group": ("n_group", "num_expert_group", "num_expert_groups"),
    "routing.groups.topk_group": ("topk_group", "num_expert_groups_per_tok"),
    "routing.renormalize": ("norm_topk_prob", "moe_renormalize", "norm_expert_weight", "route_norm"),
    "routing.renormalize.floor": ("moe_norm_min",),
    "routing.routed_scaling_factor": (
        "routed_scaling_factor", "route_scale", "router_scaling_factor", "moe_router_scaling_factor",
        "moe_routed_scaling_factor", "routed_scale",
    ),
    "routing.softcap": ("router_logit_softcapping", "moe_router_logit_softcapping"),
}  # fmt: skip
"""For each key of the spec that they give the value of."""

GEMMA_NORM = ("use_gemma_norm", "zero_centered")
"""Whether the norm's weight is added to 1."""
HASH_LAYERS, VOCAB_SIZE = "num_hash_layers", "vocab_size"
VISION_LAYERS = "vision_n_layers"
TOPK_METHOD = "topk_method"
ZERO_EXPERTS, SHARED_SINK, SHARED_EXPERTS = "zero_expert_num", "shared_expert_sink", "n_shared_experts"
"""Experts without weights, and whether shared experts are weighed by the router too: rows of the gate."""
HAS_EXPERTS = "enable_moe_block"
"""False: the model is dense (Gemma 4)."""
_OTHERS = (
    *GEMMA_NORM, HASH_LAYERS, VOCAB_SIZE, VISION_LAYERS, TOPK_METHOD, ZERO_EXPERTS, SHARED_SINK, SHARED_EXPERTS,
    HAS_EXPERTS,
)  # fmt: skip

READ = frozenset(name for names in KEYS.values() for name in names) | frozenset(_OTHERS)
"""All that is read, beside dtypes, quantization and what chooses between a family's routers."""

_OF_THE_ROUTER = re.compile(r"expert|moe|router|gate(?!d)|gating|topk|top_k|scale|residual")
_OF_OTHERS = re.compile(
    r"shared?_expert|num_shared|_size$|_dim$"  # shared experts, and how large experts are
    r"|layer|_freq$|_period$|_offset$|interval|_step$"  # which layers have experts
    r"|loss|jitter|dropout|capacity|rescale|aux_free"  # training
    r"|attn|attention|index|mla|output_gate|rope|_emb$|_fp32$"  # attention, embeddings, how the stream is kept
    r"|_dtype$|overlap|allgather|^(use_)?moe$"  # how an engine computes it
    r"|^top_k$|^use_grouped_topk$|^zero_expert_type$|^latent_moe_use_norm$"  # top_k: of sampling; the others: no news
)


def may_concern_router(name: str) -> bool:
    """Whether a key that is not read sounds as if it said something of the router."""
    return name not in READ and bool(_OF_THE_ROUTER.search(name)) and not _OF_OTHERS.search(name)


SCORING_WORDS: dict[str, dict[str, str]] = {
    "expert_selection_fn": {"softmax": "softmax_of_chosen", "sigmoid": "sigmoid"},
}
"""What the words of a key for the scoring mean, where it is not what they say: Command-A+ chooses by logit first."""

TOPK_METHODS: dict[str, str | None] = {"noaux_tc": "top2_sum", "group_limited_greedy": "max", "greedy": None}
"""A group's score by the words of topk_method; greedy has no groups. noaux_tc alone has a correction bias: vLLM and
SGLang make that bias nowhere else (vllm/model_executor/models/deepseek_v2.py)."""
