"""What `add` makes of a config against the model's own router in transformers: real sizes, random weights."""

import importlib
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import normgate
import pytest
import torch

from codegen.bench.path_inputs import routing_for
from codegen.errors import BadInput
from codegen.hf import spec_from_config
from codegen.spec import RouterSpec, load_spec

pytest.importorskip("transformers", reason="transformers is not installed; it comes with the extra `test`")
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ROOT = Path(__file__).parents[2]
CONFIGS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "tests/data/models").glob("*.json"))}
CONFIGS.pop("sources")
TOKENS = 16


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config", config)


def router_class(modeling: Any, model_type: str) -> Any:
    """The text model's router of a modeling file."""
    talks = "talker" in model_type
    named = [
        name for name in vars(modeling) if not re.search("Vision|Audio|Hash", name) and talks == ("Talker" in name)
    ]
    routers = [name for name in named if re.search("(TopKRouter|TopkRouter|TokenChoiceRouter|TextRouter)$", name)]
    routers += [name for name in named if re.search("MoE.*Gate$", name)]
    return getattr(modeling, routers[0])


# Model types that no model of tests/data has, with what their class in transformers has for its sizes.
OTHERS = (
    "beam", "glm4v_moe_text", "hy_v4_vl_text", "inkling2_loop_text", "inkling2_text", "lara_mini", "lfm2_moe", "mellum",
    "openai_privacy_filter", "qwen3_omni_moe_talker_text", "qwen3_omni_moe_text", "qwen3_vl_moe_text",
)  # fmt: skip
CONFIGS |= {f"{other} by default": {**CONFIG_MAPPING[other]().to_dict(), "dtype": "bfloat16"} for other in OTHERS}


def spec_of(name: str) -> RouterSpec:
    """The committed spec, or what `add` makes of a config that has none."""
    path = ROOT / "specs/on_demand" / f"{name}.yaml"
    if path.is_file():
        return load_spec(path)
    try:
        return spec_from_config(CONFIGS[name], name="m", answers={})
    except BadInput:  # most families leave the gate's dtype open
        return spec_from_config(CONFIGS[name], name="m", answers={"gate-weight-dtype": "bfloat16"})


MODELS = [
    name
    for name, config in CONFIGS.items()
    if text_of(config).get("model_type") in CONFIG_MAPPING
    and spec_of(name).routing.scoring is not None
    # The first two have routers of another form (test_transformers.py), the others have none here.
    and text_of(config)["model_type"] not in ("llama4_text", "dbrx", "git", "sarvam_moe")
]


@pytest.mark.parametrize("name", MODELS)
def test_the_spec_routes_as_the_models_own_router(name: str) -> None:
    config = text_of(CONFIGS[name])
    own = CONFIG_MAPPING[config["model_type"]](**{key: value for key, value in config.items() if value is not None})
    modeling = importlib.import_module(type(own).__module__.replace("configuration_", "modeling_"))
    made = router_class(modeling, config["model_type"])
    layer = (own, 0) if "layer_idx" in inspect.signature(made.__init__).parameters else (own,)
    router = made(*layer).float()
    spec = spec_of(name)
    bias = torch.zeros(spec.num_experts)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(std=spec.hidden_size**-0.5 if parameter.dim() == 2 else 1.0)
        if spec.routing.e_score_correction_bias:
            bias.normal_(std=0.1)
            buffer = getattr(router, "e_score_correction_bias", None)
            if buffer is None and hasattr(router, "moe_statics"):
                buffer = router.moe_statics.e_score_correction_bias
            if buffer is not None:
                buffer.copy_(bias)
        parameters = inspect.signature(made.forward).parameters
        given = [bias] if {"e_score_correction_bias", "expert_bias"} & set(parameters) else []
        x = torch.randn(1, TOKENS, spec.hidden_size)
        x = x if "Afmoe" in made.__name__ else x[0]
        logits, weights, ids = router(x, *given)[:3]
    if "Gemma" in made.__name__:  # gives probabilities
        logits = logits.log()
    if "PrivacyFilter" in made.__name__:  # divides by what the model multiplies the experts' sum by
        weights = weights * spec.routing.top_k
    scale = _scale_on_the_sum(modeling, own)
    routing = routing_for(spec, normgate)
    assert scale in (1.0, routing.routed_scaling_factor), "the scale of the experts' sum is in the weights"
    correction = bias if spec.routing.e_score_correction_bias else None
    own_scale = router.per_expert_scale if spec.routing.per_expert_scale else None
    right, chosen = normgate.reference.choose_experts(
        logits.double(), routing, correction, compute_dtype=torch.float64, per_expert_scale=own_scale
    )
    order, expected = ids.sort(dim=-1), chosen.long().sort(dim=-1)
    assert torch.equal(order.values, expected.values)
    assert torch.allclose(
        weights.double().gather(1, order.indices) * scale,
        right.double().gather(1, expected.indices),
        rtol=2e-5,
        atol=1e-7,
    )


def _scale_on_the_sum(modeling: Any, config: Any) -> float:
    """What the model multiplies the experts' sum by, behind a router that leaves it out."""
    source = inspect.getsource(modeling)
    if not re.search(r"hidden_states = (final_)?hidden_states \* self\.routed_scaling_factor", source):
        return 1.0
    keys = ("moe_routed_scaling_factor", "moe_router_scaling_factor", "routed_scaling_factor")
    return next(float(getattr(config, key)) for key in keys if hasattr(config, key))
