"""What families of models imply and no key of their config.json says, by model_type, and where it was read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """What a model_type implies.

    note: what is special, for the spec's top; facts: key -> (value, source), which hold where no key of the config says
    otherwise; not_covered: what of the router path no spec can say yet, a line each; defaults: the facts that the
    model's code takes where a key of the config is missing, so that the key contradicts nothing.
    """

    note: str
    facts: Mapping[str, tuple[object, str]]
    not_covered: tuple[str, ...] = ()
    defaults: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Variant:
    """Another router of the same model_type: `family`, where `holds` of the config's `key` (None: not given)."""

    key: str
    holds: Callable[[object], bool]
    family: Family


_Facts = Mapping[str, object]

_BF16 = "bfloat16"
_CORRECTED = "routing.e_score_correction_bias"
_SCORING = "routing.scoring"
_GROUPS = "routing.groups.n_group"
_GROUP_SCORE = "routing.groups.score"
_RENORMALIZE = "routing.renormalize"
_EPSILON = "routing.renormalize.epsilon"
_SCALE = "routing.routed_scaling_factor"

# Routers, as many families have them. Scores are of all experts unless it says "of chosen".
_SIGMOID_IN_GROUPS: _Facts = {
    _CORRECTED: True, _SCORING: "sigmoid", _GROUP_SCORE: "top2_sum", _EPSILON: 1e-20,
}  # fmt: skip
"""As DeepSeek-V3 has it; the config says how many groups, whether to renormalize, and the scale."""
_SIGMOID: _Facts = {
    _CORRECTED: True, _SCORING: "sigmoid", _GROUPS: 1, _RENORMALIZE: True, _EPSILON: 0.0, _SCALE: 1.0,
}  # fmt: skip
_SOFTMAX: _Facts = {_CORRECTED: False, _SCORING: "softmax", _GROUPS: 1, _EPSILON: 0.0, _SCALE: 1.0}
"""The config says whether to renormalize."""
_SOFTMAX_RENORMALIZED: _Facts = {**_SOFTMAX, _RENORMALIZE: True}
_SOFTMAX_IN_GROUPS: _Facts = {
    _CORRECTED: False, _SCORING: "softmax", _GROUP_SCORE: "top2_sum", _RENORMALIZE: True, _EPSILON: 1e-20,
}  # fmt: skip
_SOFTMAX_OF_CHOSEN: _Facts = {_CORRECTED: False, _SCORING: "softmax_of_chosen", _SCALE: 1.0}
_ENGINE_CHOOSES: _Facts = {_CORRECTED: False, _SCORING: None}
"""What a spec has no words for: the kernel gives logits."""

TRANSFORMERS = "5.24.0"
"""The version that was read."""


def _read(
    name: str,
    router: _Facts,
    order: str | None = "A",
    note: str = "",
    *,
    residual: bool = True,
    bias: bool = False,
    gate: tuple[str, str] | None = None,
    activation: str = "",
    at: str = "",
    lacks: tuple[str, ...] = (),
    **more: object,
) -> Family:
    """A family whose code was read: in transformers' models/<name>, or `at`.

    order: of the norm, None where the kernel before does it; residual, bias: whether there is an add before the norm,
    a bias on the gate; gate: the gate weight's dtype and its source; activation: the source of bfloat16 activations,
    for families whose configs name no dtype; more: keys of the spec, dots as two underscores.
    """
    source = f"read in {at or f'transformers {TRANSFORMERS} models/{name}/modeling_{name}.py'}"
    own = {key.replace("__", "."): value for key, value in more.items()}
    read = {"norm.order": order, "residual": residual, "gate_bias": bias, **router, **own}
    facts: dict[str, tuple[object, str]] = {key: (value, source) for key, value in read.items()}
    if gate:
        facts["dtypes.gate_weight"] = gate
    if activation:
        facts["dtypes.activation"] = (_BF16, activation)
    return Family(note, facts, lacks)


_GROUPED_NOTE = "Sigmoid scores, top k within the best groups where there are several, chosen with a correction bias."
_SOFTMAX_NOTE = (
    "Softmax over all experts, no correction bias. The model's own code rounds logits to bf16, here they stay fp32."
)
_STREAMS_NOTE = "Several residual streams are collapsed into x before this norm, so there is no add."
_FP32_GATE = "float32"

_DEEPSEEK_V3 = _read(
    "deepseek_v3", _SIGMOID_IN_GROUPS,
    note="Sigmoid scores, top k within the best groups, chosen with a correction bias. The norm rounds before "
    "its weight multiplies.",
    gate=(_BF16, "read in the safetensors header of DeepSeek-V3"),
)  # fmt: skip
_GLM4 = _read("glm4_moe", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE)
_KIMI_LINEAR = _read("kimi_linear", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE)
_QWEN3 = _read(
    "qwen3_moe", _SOFTMAX, note=_SOFTMAX_NOTE,
    gate=(_BF16, "read in the safetensors header of Qwen3-30B-A3B; other sizes remembered, unverified"),
)  # fmt: skip
_QWEN3_VL = _read("qwen3_vl_moe", _SOFTMAX_RENORMALIZED, note=_SOFTMAX_NOTE)
_QWEN3_OMNI = _read("qwen3_omni_moe", _SOFTMAX_RENORMALIZED, note=_SOFTMAX_NOTE)
_QWEN3_5 = _read("qwen3_5_moe", _SOFTMAX_RENORMALIZED, "G", _SOFTMAX_NOTE)
_QWEN4 = _read(
    "qwen4_exp", _SOFTMAX, None,
    "The streams are normed before they are mixed into what the router reads, so there is no norm here.",
    residual=False,
)  # fmt: skip
_LLAMA4 = _read(
    "llama4", {_CORRECTED: False, _SCORING: "sigmoid", _GROUPS: 1, _RENORMALIZE: False, _SCALE: 1.0},
    note="One expert a token, whose weight, the sigmoid of its logit, multiplies what the expert reads.",
)  # fmt: skip
_GLM5_NEXT = _read("glm5_next", _SIGMOID_IN_GROUPS, note=f"{_STREAMS_NOTE} {_GROUPED_NOTE}", residual=False)
_DOTS3 = _read("dots3_note", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE)
_ERNIE = _read(
    "ernie4_5_moe", {**_SIGMOID, _SCORING: "softmax"},
    note="Softmax over all experts, chosen with a correction bias on the probabilities.",
)  # fmt: skip
_ERNIE_VL = _read(
    "ernie4_5_vl_moe", {**_SIGMOID, _SCORING: "softmax"},
    note="Softmax over all experts, chosen with a correction bias on the probabilities.",
    lacks=("tokens of images go to experts, and through a gate, of their own: call each kind's layer with its rows",),
)  # fmt: skip
_MINIMAX_M3 = _read(
    "minimax_m3_vl", _SIGMOID, "G", "The scale, which the model applies to the experts' sum, is in the weights here."
)
_MISTRAL_LARGE4 = _read(
    "mistral_large4", _SOFTMAX_IN_GROUPS,
    gate=(_FP32_GATE, f"kept in float32, read in transformers {TRANSFORMERS} modeling_mistral_large4.py"),
)  # fmt: skip
_MUSE = _read(
    "muse_spark", {**_SIGMOID, _EPSILON: 1e-15}, "B",
    "Give the norm weight as 1 + weight, which the model rounds before it multiplies, and the gate weight times "
    "output_multiplier, which the model multiplies logits by. A residual gate before the norm makes x.",
    residual=False,
)  # fmt: skip
_GEMMA4 = _read(
    "gemma4", _SOFTMAX_RENORMALIZED, "A",
    "The router's own norm: its weight is router.scale * hidden_size^-0.5. Experts read another norm of residual_out.",
    routing__per_expert_scale=True,
)  # fmt: skip
_STEP3P5 = _read(
    "step3p7", _SIGMOID, "G", "The scale, which the model applies to the experts' sum, is in the weights here."
)
_INKLING = _read(
    "inkling", _ENGINE_CHOOSES, note="The gate has rows for the shared experts behind those of the routed ones.",
    lacks=("weights are shared out among the chosen and the shared experts together: choose from the logits",),
)  # fmt: skip
_INKLING2_NOTE = "Blocks' sums are mixed into x, in fp32, before this norm. The model keeps its gate weight in fp32."
_INKLING2 = _read(
    "inkling2", {**_SIGMOID, _EPSILON: 1e-20}, "B", _INKLING2_NOTE, residual=False,
    gate=(_FP32_GATE, f"declared in float32, read in transformers {TRANSFORMERS} modeling_inkling2.py"),
)  # fmt: skip
_INKLING2_LOOP = _read(
    "inkling2_loop", {**_SIGMOID, _EPSILON: 1e-20}, "B", _INKLING2_NOTE, residual=False,
    gate=(_FP32_GATE, f"declared in float32, read in transformers {TRANSFORMERS} modeling_inkling2_loop.py"),
)  # fmt: skip
_HY4_VL = _read("hy_v4_vl", _SIGMOID_IN_GROUPS, note=f"{_STREAMS_NOTE} {_GROUPED_NOTE}", residual=False)
_GRANITE_NOTE = (
    "What attention gives is multiplied before it is added to the residual. Softmax over the chosen logits only."
)
_LAYER_NORM = "the norm is a LayerNorm, which subtracts the mean: the kernel before does it"
_BAILING_ROUTER: _Facts = {  # of Ling 1; later configs say otherwise
    **_SIGMOID_IN_GROUPS, _CORRECTED: False, _SCORING: "softmax", _GROUPS: 1, _SCALE: 1.0,
}  # fmt: skip
_BAILING_NOTE = "The scale, which engines apply to the experts' sum, is in the weights here."
_BAILING = replace(
    _read("bailing_moe", _BAILING_ROUTER, note=_BAILING_NOTE, at="vllm/model_executor/models/bailing_moe.py"),
    defaults=frozenset(_BAILING_ROUTER),
)
_BAILING_V2 = _read(
    "bailing_moe_v2", {**_SIGMOID_IN_GROUPS, _RENORMALIZE: True}, note=_GROUPED_NOTE,
    at="BailingMoeV2Gate of the modeling_bailing_moe_v2.py beside Ling's checkpoints",
)  # fmt: skip
_COHERE2: _Facts = {_CORRECTED: False, _GROUPS: 1, _EPSILON: 0.0, _SCALE: 1.0}
_COHERE2_NOTE = "Attention and experts read the same norm."

FAMILIES: dict[str, Family] = {
    "deepseek_v4": _read(
        "deepseek_v4",
        {_CORRECTED: True, _SCORING: "sqrtsoftplus", _GROUPS: 1, _RENORMALIZE: True, _EPSILON: 1e-20}, "B",
        "Four residual streams are collapsed into x before this norm, whose weight multiplies in fp32, with "
        "one rounding. Hash layers take expert ids from tid2eid; the gate still supplies their weights.",
        residual=False,
        gate=(_BF16, "read in the safetensors headers of DeepSeek-V4-Pro and DeepSeek-V4-Flash"),
    ),
    "deepseek_v41_text": _read(
        "deepseek_v41", {_CORRECTED: True, _SCORING: "sqrtsoftplus", _GROUPS: 1, _RENORMALIZE: True, _EPSILON: 1e-20},
        "B", _STREAMS_NOTE, residual=False, at="vllm/models/deepseek_v41/nvidia/model.py",
        routing__e_score_correction_bias_vl=True,
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek": Family(_SOFTMAX_NOTE, {
        key: (value, "remembered, unverified: modeling_deepseek.py beside the checkpoint of deepseek-moe-16b")
        for key, value in {
            "norm.order": "A", "residual": True, "gate_bias": False, **_SOFTMAX, _EPSILON: 1e-20
        }.items()
    }),
    "deepseek_v32": _read("deepseek_v32", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE),
    "kimi_k2": _read(
        "deepseek_v3", _SIGMOID_IN_GROUPS,
        note="The sizes of DeepSeek-V4-Pro's router with another norm order: the same gate, a norm of its own.",
        gate=(_BF16, "read in the safetensors header of Kimi-K2-Instruct"),
        at=f"transformers {TRANSFORMERS} models/deepseek_v3/modeling_deepseek_v3.py, which it shares",
    ),
    "kimi_linear": _KIMI_LINEAR,
    "kimi_k3": _read(
        "kimi_k3", _SIGMOID_IN_GROUPS, note="Earlier blocks' outputs are mixed into x before this norm.",
        residual=False, at="tokenspeed/runtime/models/kimi_k3.py",
    ),
    "glm4_moe": _GLM4,
    "glm4v_moe_text": _read("glm4v_moe", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE),
    "glm4_moe_lite": _read("glm4_moe_lite", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE),
    "glm_moe_dsa": _read(
        "glm_moe_dsa", _SIGMOID_IN_GROUPS, note="Sigmoid scores in one group, chosen with a correction bias.",
        gate=(_BF16, "read in the safetensors header of GLM-5.1; GLM-5 remembered, unverified"),
    ),
    "glm5_next_text": _GLM5_NEXT,
    "qwen2_moe": _read("qwen2_moe", _SOFTMAX, note=_SOFTMAX_NOTE),
    "qwen3_moe": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3_VL,
    "qwen3_omni_moe_text": _QWEN3_OMNI,
    "qwen3_omni_moe_talker_text": _read("qwen3_omni_moe", _SOFTMAX, note=_SOFTMAX_NOTE),
    "qwen3_next": _read("qwen3_next", _SOFTMAX, "G", _SOFTMAX_NOTE),
    "qwen3_5_moe_text": _QWEN3_5,
    "qwen4_exp_text": _QWEN4,
    "gpt_oss": _read(
        "gpt_oss", _SOFTMAX_OF_CHOSEN, "B",
        "The router is a Linear with a bias, softmax over the chosen logits only. 2880 is no multiple of 128.",
        bias=True,
        gate=(_BF16, "read in the safetensors header of gpt-oss-20b; gpt-oss-120b remembered, unverified"),
        activation="dtype of the norm weights, read in the safetensors header of gpt-oss-20b; gpt-oss-120b "
        "remembered, unverified",
    ),
    "openai_privacy_filter": _read(
        "openai_privacy_filter", _SOFTMAX_OF_CHOSEN, "B", bias=True,
        note="Softmax over the chosen logits only. The model divides weights by top_k and multiplies the experts' sum "
        "by it: here they do neither.",
    ),
    "minimax": _read(
        "minimax", _SOFTMAX_RENORMALIZED,
        note="The residual and attention's output are each multiplied by a factor before the add. The residual stream "
        "goes on from normed_x.",
    ),
    "minimax_m2": _read(
        "minimax_m2", _SIGMOID, note="The gate weight is stored in fp32.",
        gate=(_FP32_GATE, "read in the safetensors header of MiniMax-M2.7; M2 and M2.5 remembered, unverified"),
        activation="dtype of the norm weights, read in the safetensors header of MiniMax-M2.7; M2 and M2.5 "
        "remembered, unverified",
    ),
    "minimax_m3_vl_text": _MINIMAX_M3,
    "deepseek_v2": _read(
        "deepseek_v2",
        {_CORRECTED: False, _SCORING: "softmax", _GROUP_SCORE: "max", _RENORMALIZE: False},
        note="Softmax over all experts, top k within the groups of the best experts; the weights are not renormalized.",
    ),
    "mixtral": _read("mixtral", _SOFTMAX_RENORMALIZED, note=_SOFTMAX_NOTE),
    "mistral4": _read("mistral4", _SOFTMAX_IN_GROUPS, note="Softmax over all experts, no correction bias."),
    "mistral_large4_text": _MISTRAL_LARGE4,
    "olmoe": _read("olmoe", _SOFTMAX, note=_SOFTMAX_NOTE),
    "flex_olmo": _read(
        "flex_olmo", _SOFTMAX, None, "Norms come behind attention and experts: the router reads the residual stream.",
        residual=False,
    ),
    "mellum": _read("mellum", _SOFTMAX, note=_SOFTMAX_NOTE),
    "lara_mini": _read("lara_mini", _SOFTMAX, "B", note=_SOFTMAX_NOTE),
    "jamba": _read("jamba", {**_SOFTMAX, _RENORMALIZE: False}, note=_SOFTMAX_NOTE),
    "hunyuan_v1_moe": _read(
        "hunyuan_v1_moe", _SOFTMAX_RENORMALIZED, note=_SOFTMAX_NOTE,
        gate=(_FP32_GATE, f"declared in float32, read in transformers {TRANSFORMERS} modeling_hunyuan_v1_moe.py"),
    ),
    "hy_v3": _read("hy_v3", {**_SIGMOID, _EPSILON: 1e-20}),
    "hy_v4": _read("hy_v4", _SIGMOID_IN_GROUPS, note=f"{_STREAMS_NOTE} {_GROUPED_NOTE}", residual=False),
    "hy_v4_vl_text": _HY4_VL,
    "ernie4_5_moe": _ERNIE,
    "ernie4_5_vl_moe_text": _ERNIE_VL,
    "granitemoe": _read("granitemoe", _SOFTMAX_OF_CHOSEN, note=_GRANITE_NOTE),
    "granitemoeshared": _read("granitemoeshared", _SOFTMAX_OF_CHOSEN, note=_GRANITE_NOTE),
    "granitemoe_swa": _read("granitemoe_swa", _SOFTMAX_OF_CHOSEN, note=_GRANITE_NOTE),
    "granitemoehybrid": _read("granitemoehybrid", _SOFTMAX_OF_CHOSEN, note=_GRANITE_NOTE),
    "aria_text": _read("aria", _SOFTMAX_OF_CHOSEN),
    "jetmoe": _read("jetmoe", _SOFTMAX_OF_CHOSEN),
    "dots1": _read("dots1", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE),
    "dots3_note_text": _DOTS3,
    "solar_open": _read("solar_open", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE),
    "exaone_moe": _read("exaone_moe", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE),
    "axk1": _read("axk1", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE),
    "axk2": _read(
        "axk2", {**_SIGMOID_IN_GROUPS, _GROUPS: 1}, None, _GROUPED_NOTE, residual=False,
        lacks=("the norm is multiplied by a low-rank gate of itself: the kernel before does it",),
    ),
    "bailing_moe": _BAILING,
    "bailing_moe_v2": _BAILING_V2,
    "bailing_hybrid": _read("bailing_hybrid", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE),
    "mimo_v2_flash": _read("mimo_v2_flash", {**_SIGMOID_IN_GROUPS, _SCALE: 1.0}, note=_GROUPED_NOTE),
    "mimo_v2": _read(
        "mimo_v2", {**_SIGMOID_IN_GROUPS, _SCALE: 1.0}, note=_GROUPED_NOTE,
        at="vllm/model_executor/models/mimo_v2_flash.py, which it shares",
    ),
    "nemotron_h": _read("nemotron_h", _SIGMOID_IN_GROUPS, "B", _GROUPED_NOTE),
    "afmoe": _read(
        "afmoe", {**_SIGMOID, _EPSILON: 1e-20}, "B", "x is attention's output as its own norm gives it."
    ),
    "lfm2_moe": _read(
        "lfm2_moe", {_SCORING: "sigmoid", _GROUPS: 1, _EPSILON: 1e-6},
        note="Sigmoid scores, of all experts in one group.",
    ),
    "laguna": _read(
        "laguna", _SIGMOID, note="The scale, which the model applies to the experts' sum, is in the weights here."
    ),
    "flint": _read(
        "flint", {**_SIGMOID, _CORRECTED: False}, "B",
        gate=(_FP32_GATE, f"kept in float32, read in transformers {TRANSFORMERS} modeling_flint.py"),
    ),
    "beam": _read(
        "beam", _SIGMOID_IN_GROUPS, "B", residual=False,
        note="The kernel before makes x, an add scaled by depth. The scale, which the model applies to the experts' "
        "sum, is in the weights here.",
    ),
    "longcat_flash": _read(
        "longcat_flash", {_CORRECTED: True, _SCORING: "softmax", _GROUPS: 1, _RENORMALIZE: False},
        note="Rows of the gate for experts without weights come behind the others.",
    ),
    "llama4_text": _LLAMA4,
    "muse_spark_text": _MUSE,
    "step3p5": _STEP3P5,
    "step3_text": _read(
        "step3_text", _SOFTMAX, note=_SOFTMAX_NOTE, at="vllm/model_executor/models/step3_text.py"
    ),
    "arctic": _read(
        "arctic", _SOFTMAX_RENORMALIZED, residual=False, at="vllm/model_executor/models/arctic.py",
        note="The experts' norm reads the layer's input, beside the sum that attention and the dense half make.",
    ),
    "grok-1": _read(
        "grok1", _SOFTMAX_RENORMALIZED, at="vllm/model_executor/models/grok1.py", routing__softcap=30.0,
        note="x is attention's output as its own norm gives it. Logits are capped before the softmax.",
    ),
    "sarvam_moe": replace(
        _read(
            "sarvam_moe", _BAILING_ROUTER, note=_BAILING_NOTE,
            at="vllm/model_executor/models/sarvam.py: its layers are those of bailing_moe.py",
        ),
        defaults=frozenset(_BAILING_ROUTER),
    ),
    "sarvam_mla": Family(_DEEPSEEK_V3.note, {
        key: (value, "remembered, unverified: the config's class is that of DeepSeek-V3")
        for key, (value, _) in _DEEPSEEK_V3.facts.items() if key != "dtypes.gate_weight"
    }),
    "gemma4_text": _GEMMA4,
    "phimoe": _read(
        "phimoe", _ENGINE_CHOOSES, None, residual=False,
        lacks=(_LAYER_NORM, "experts are chosen one after the other (sparsemixer): choose from the logits"),
    ),
    "dbrx": _read("dbrx", _SOFTMAX_RENORMALIZED, None, _SOFTMAX_NOTE, residual=False, lacks=(_LAYER_NORM,)),
    "cohere2_moe": _read("cohere2_moe", _COHERE2, None, _COHERE2_NOTE, residual=False, lacks=(_LAYER_NORM,)),
    "inkling_text": _INKLING,
    "inkling2_text": _INKLING2,
    "inkling2_loop_text": _INKLING2_LOOP,
    "kolibri1": _read(
        "kolibri1", _ENGINE_CHOOSES, note="x is attention's output as its own norm gives it.",
        lacks=("experts are chosen by logit + correction bias, not by score: choose from the logits",),
    ),
}  # fmt: skip
"""Facts by the text model's model_type that no key of these configs says. Only what was read, or is said to be
remembered."""

VARIANTS: dict[str, Variant] = {
    "deepseek_v2": Variant(
        "topk_method",
        lambda method: method == "noaux_tc",
        _read(
            "deepseek_v3", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE,
            at=f"transformers {TRANSFORMERS} models/deepseek_v3/modeling_deepseek_v3.py: "
            "vllm/model_executor/models/deepseek_vl2.py takes DeepseekV3ForCausalLM where topk_method is noaux_tc",
        ),
    ),
    "bailing_moe_v2": Variant(
        "router_type",
        lambda router: router not in (None, "topN"),
        replace(
            _BAILING_V2,  # BailingMoeV2SparseMoeBlock of Ming-flash-omni's modeling_bailing_moe_v2.py
            not_covered=(
                "tokens of images and of sound go through gates of their own: call each kind's layer with its rows",
            ),
        ),
    ),
    "sarvam_moe": Variant(
        "score_function",
        lambda function: function is None,
        _read(
            "glm4_moe", _SIGMOID_IN_GROUPS, note=_GROUPED_NOTE,
            at=f"transformers {TRANSFORMERS} models/glm4_moe/modeling_glm4_moe.py, which "
            "models/auto/modeling_auto.py takes for sarvam_moe; its config class has no score_function",
        ),
    ),
    "cohere2_moe": Variant(
        "rms_norm_eps",
        lambda epsilon: epsilon is not None,
        _read("cohere2_moe", _COHERE2, "A", _COHERE2_NOTE, residual=False),
    ),
}  # fmt: skip
"""Of the families in which a key of the config chooses between two routers: the one that is not in FAMILIES."""

ALIASES: dict[str, str] = {
    "deepseek_ocr2": "deepseek_v2",
    "deepseek_ocr2_text": "deepseek_v2",
    "unlimited_ocr": "deepseek_v2",
    "unlimited_ocr_text": "deepseek_v2",
    "diffusion_gemma": "gemma4_text",
    "diffusion_gemma_text": "gemma4_text",
    "deepseek_v41": "deepseek_v41_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_omni_moe": "qwen3_omni_moe_text",
    "qwen3_omni_moe_thinker": "qwen3_omni_moe_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
    "glm4v_moe": "glm4v_moe_text",
    "glm5_next": "glm5_next_text",
    "minimax_m3": "minimax_m3_vl_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "llama4": "llama4_text",
    "mistral_large4": "mistral_large4_text",
    "muse_spark": "muse_spark_text",
    "gemma4": "gemma4_text",
    "ernie4_5_vl_moe": "ernie4_5_vl_moe_text",
    "ernie4_5_moe_vl": "ernie4_5_vl_moe_text",
    "dots3_note": "dots3_note_text",
    "step3": "step3_text",
    "step3_vl": "step3_text",
    "step3p7": "step3p5",
    "step3p7_text": "step3p5",
    "step3p5_text": "step3p5",
    "aria": "aria_text",
    "aria_moe_lm": "aria_text",
    "inkling": "inkling_text",
    "inkling2": "inkling2_text",
    "inkling2_loop": "inkling2_loop_text",
    "hy_v4_vl": "hy_v4_vl_text",
    "inkling_mm_model": "inkling_text",
    "kimi_k25": "kimi_k2",
    "bailing_moe_linear": "bailing_moe_v2",
    "minimax_text_01": "minimax",
    "minimax_m1": "minimax",
}
"""Other model_types of the same text models, and of routers that are the same in transformers, word for word: those of
the whole, where it has several modalities."""


NO_GATE: dict[str, str] = {
    "zaya": "its router is a network of several layers with a state that goes on from layer to layer",
    "doge": "experts are found by the products of two sets of keys, not by a logit each",
}
"""Model types whose routers hold no gate that a spec could describe, and what they have instead."""

PARAMS_JSON = _read(
    "mistral_large_3", {**_SOFTMAX_RENORMALIZED, _GROUP_SCORE: "top2_sum"},
    at="vllm/transformers_utils/configs/mistral.py and vllm/model_executor/models/mistral_large_3.py",
)  # fmt: skip
"""Mistral's own params.json, which has no model_type."""


def family_name(model_type: str) -> str | None:
    """The name in FAMILIES of a model_type, which may be another name of it."""
    name = ALIASES.get(model_type, model_type)
    return name if name in FAMILIES else None


def family_of_class(architecture: str) -> str | None:
    """The name in FAMILIES of one of `architectures`: of DeepseekV4ForCausalLM it is deepseek_v4.

    Some configs carry a model_type that says nothing: Grok-2's is git.
    """
    plain = re.sub(r"For(CausalLM|ConditionalGeneration)$", "", architecture).lower()
    return next((family_name(name) for name in (*FAMILIES, *ALIASES) if re.sub("[-_]", "", name) == plain), None)
