"""The names that config.json files use for what a spec says, by meaning."""

from __future__ import annotations

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
"""For each key of the spec."""

SCORING_WORDS: dict[str, dict[str, str]] = {
    "expert_selection_fn": {"softmax": "softmax_of_chosen", "sigmoid": "sigmoid"},
}
"""What the words of a key for the scoring mean, where it is not what they say: Command-A+ chooses by logit first."""
