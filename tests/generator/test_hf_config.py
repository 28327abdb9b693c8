"""config.json files into specs: the eight shipped models, nested configs, and what is asked for or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codegen.errors import BadInput
from codegen.hf import ANSWERS, comment_for, load_config, spec_from_config, unread_keys
from codegen.hf.config import Config
from codegen.hf.families import FAMILIES
from codegen.spec import RIGHT, Groups, Norm, Renormalize, Residual, RouterSpec, Routing, Tid2Eid, dump_spec

ROOT = Path(__file__).parents[2]
MODELS = [
    "deepseek-v3",
    "deepseek-v4-flash",
    "deepseek-v4-pro",
    "glm-5",
    "gpt-oss-120b",
    "kimi-k2",
    "minimax-m2",
    "qwen3-235b-a22b",
]

UNKNOWN: dict[str, Any] = {
    "model_type": "new_moe",
    "hidden_size": 1024,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float16",
}
ALL_ANSWERS = {
    "norm-order": "A",
    "gate-weight-dtype": "float16",
    "gate-bias": "no",
    "e-score-correction-bias": "yes",
    "residual": "no",
    "scoring": "none",
}
SELECTION_ANSWERS = {
    "scoring": "sigmoid",
    "n-group": "1",
    "renormalize": "yes",
    "routed-scaling-factor": "1",
}


def config_of(model: str) -> dict[str, Any]:
    return load_config(ROOT / "tests" / "data" / "configs" / f"{model}.json")


def spec_of(config: dict[str, Any], **answers: str) -> RouterSpec:
    return spec_from_config(config, name="m", answers={flag.replace("_", "-"): word for flag, word in answers.items()})


def problems_of(config: dict[str, Any], name: str | None = "m", **answers: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        spec_from_config(config, name=name, answers={flag.replace("_", "-"): word for flag, word in answers.items()})
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("model", MODELS)
def test_the_shipped_specs_are_what_add_writes(model: str) -> None:
    config = config_of(model)
    spec = spec_from_config(config, name=model, answers={})
    assert dump_spec(spec, comment_for(config, spec)) == (ROOT / "specs" / f"{model}.yaml").read_text()


def test_the_shipped_specs_are_these_eight() -> None:
    assert sorted(path.stem for path in (ROOT / "specs").glob("*.yaml")) == MODELS


def test_facts_that_no_key_says() -> None:
    specs = {model: spec_of(config_of(model)) for model in MODELS}
    assert {model for model, spec in specs.items() if spec.norm and spec.norm.order == "B"} == {
        "deepseek-v4-flash",
        "deepseek-v4-pro",
        "gpt-oss-120b",
    }
    assert {model for model, spec in specs.items() if spec.gate_bias} == {"gpt-oss-120b"}
    assert {model for model, spec in specs.items() if spec.gate_weight_dtype != "bfloat16"} == {"minimax-m2"}
    assert specs["deepseek-v4-pro"].routing.tid2eid == Tid2Eid(vocab_size=129280)
    assert specs["deepseek-v3"].routing.tid2eid is None
    assert {model for model, spec in specs.items() if spec.residual is None} == {"deepseek-v4-flash", "deepseek-v4-pro"}
    assert {spec.residual for spec in specs.values()} == {None, Residual(multiplier=1.0)}
    assert {model for model, spec in specs.items() if spec.routing.groups} == {"deepseek-v3"}
    assert specs["deepseek-v3"].routing.groups == Groups(n_group=8, topk_group=4, score="top2_sum")
    assert {model: spec.routing.scoring for model, spec in specs.items() if spec.routing.scoring != "sigmoid"} == {
        "deepseek-v4-flash": "sqrtsoftplus",
        "deepseek-v4-pro": "sqrtsoftplus",
        "gpt-oss-120b": "softmax_of_chosen",
        "qwen3-235b-a22b": "softmax",
    }
    assert {model: spec.routing.renormalize for model, spec in specs.items()} == {
        **dict.fromkeys(MODELS, Renormalize(epsilon=1e-20)),
        **dict.fromkeys(("minimax-m2", "qwen3-235b-a22b"), Renormalize()),
        "gpt-oss-120b": None,
    }
    assert {model: spec.routing.routed_scaling_factor for model, spec in specs.items()} == {
        **dict.fromkeys(("deepseek-v3", "deepseek-v4-pro", "glm-5"), 2.5),
        **dict.fromkeys(("gpt-oss-120b", "minimax-m2", "qwen3-235b-a22b"), 1.0),
        "deepseek-v4-flash": 1.5,
        "kimi-k2": 2.827,
    }


SIZES: dict[str, Any] = {"hidden_size": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("config", "residual", "routing"),
    [
        (
            {"model_type": "llama4_text", "num_local_experts": 128, "num_experts_per_tok": 1},
            Residual(),
            Routing(top_k=1, e_score_correction_bias=False, scoring="sigmoid"),
        ),
        (
            {"model_type": "grok-1", "num_experts": 8, "num_experts_per_tok": 2},
            Residual(),
            Routing(
                top_k=2, e_score_correction_bias=False, scoring="softmax", softcap=30.0, renormalize=Renormalize()
            ),
        ),
        (
            {
                "model_type": "deepseek_v2", "n_routed_experts": 160, "num_experts_per_tok": 6, "scoring_func": "softmax",
                "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "norm_topk_prob": False,
                "routed_scaling_factor": 16,
            },
            Residual(),
            Routing(
                top_k=6, e_score_correction_bias=False, scoring="softmax",
                groups=Groups(n_group=8, topk_group=3, score="max"), routed_scaling_factor=16.0,
            ),
        ),
        (
            {
                "model_type": "deepseek_v2", "n_routed_experts": 64, "num_experts_per_tok": 6, "topk_method": "greedy",
                "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0,
            },
            Residual(),
            Routing(top_k=6, e_score_correction_bias=False, scoring="softmax"),
        ),
        (
            {"model_type": "ernie4_5_moe", "moe_num_experts": 64, "moe_k": 6, "moe_norm_min": 1e-12},
            Residual(),
            Routing(
                top_k=6, e_score_correction_bias=True, scoring="softmax", renormalize=Renormalize(floor=1e-12)
            ),
        ),
        (
            {
                "model_type": "granitemoehybrid", "num_local_experts": 72, "num_experts_per_tok": 10,
                "residual_multiplier": 0.22,
            },
            Residual(multiplier=0.22),
            Routing(top_k=10, e_score_correction_bias=False, scoring="softmax_of_chosen"),
        ),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)  # fmt: skip
def test_families_beyond_the_shipped(config: dict[str, Any], residual: Residual, routing: Routing) -> None:
    asked = problems_of({**SIZES, **config})
    assert len(asked) == 1  # what only the checkpoint says
    assert asked[0].endswith("answer with --gate-weight-dtype bfloat16|float16|float32")
    spec = spec_of({**SIZES, **config}, gate_weight_dtype="bfloat16")
    assert (spec.residual, spec.routing, spec.norm) == (residual, routing, Norm(order="A", eps=1e-5))


def test_nested_text_config() -> None:
    inner = config_of("kimi-k2") | {"rms_norm_eps": 1e-5}
    outer = {"model_type": "kimi_k25", "text_config": inner, "vision_config": {"hidden_size": 1152}}
    spec = spec_of(outer)
    assert (spec.hidden_size, spec.num_experts, spec.norm) == (7168, 384, Norm(order="A", eps=1e-5))
    assert spec.sources[0].endswith("(model_type kimi_k2)")
    assert comment_for(outer, spec) == FAMILIES["kimi_k2"].note

    vision = config_of("qwen3-235b-a22b") | {"model_type": "qwen3_vl_moe_text"}
    del vision["torch_dtype"]
    stored = {"gate_weight_dtype": "bfloat16"}
    assert spec_of({"text_config": vision, "torch_dtype": "bfloat16"}, **stored).activation_dtype == "bfloat16"
    assert problems_of({"text_config": vision}, **stored) == [
        "config.json: dtypes.activation: the config does not say; answer with --activation-dtype bfloat16|float16"
    ]


def test_experts_in_ffn_config_and_other_names() -> None:
    config = {
        "d_model": 6144,
        "ffn_config": {"moe_num_experts": 16, "moe_top_k": 4},
        "norm_eps": 1,
        "torch_dtype": "torch.bfloat16",
    }
    spec = spec_of({**config, "norm_eps": 1e-5}, **{k.replace("-", "_"): v for k, v in ALL_ANSWERS.items()})
    assert (spec.hidden_size, spec.num_experts, spec.routing.top_k) == (6144, 16, 4)
    assert problems_of(config, **{k.replace("-", "_"): v for k, v in ALL_ANSWERS.items()}) == [
        "config.json: norm.eps: 1 given, a number from 1e-30 to 0.1, such as 1e-6 would be right (given by norm_eps)"
    ]


def test_an_unknown_model_type_asks_for_everything_not_said() -> None:
    assert problems_of(UNKNOWN, name=None) == [
        "config.json: norm.order: the config does not say; answer with --norm-order A|B|G|none",
        "config.json: residual: the config does not say; answer with --residual yes|no, unless norm.order is none",
        (
            "config.json: dtypes.gate_weight: the config does not say (torch_dtype is float16); "
            "answer with --gate-weight-dtype bfloat16|float16|float32"
        ),
        "config.json: gate_bias: the config does not say; answer with --gate-bias yes|no",
        (
            "config.json: routing.e_score_correction_bias: the config does not say; "
            "answer with --e-score-correction-bias yes|no"
        ),
        (
            "config.json: routing.scoring: the config does not say; "
            "answer with --scoring none|softmax|softmax_of_chosen|sigmoid|sqrtsoftplus"
        ),
        (
            "config.json: routing.groups.n_group: the config does not say; answer with --n-group N, unless scoring is "
            "none or softmax_of_chosen"
        ),
        (
            "config.json: routing.renormalize: the config does not say; answer with --renormalize yes|no, unless "
            "scoring is none or softmax_of_chosen"
        ),
        (
            "config.json: routing.routed_scaling_factor: the config does not say; answer with "
            "--routed-scaling-factor N, unless scoring is none"
        ),
        "config.json: name: the config does not say (no _name_or_path); answer with --name NAME",
        (
            "config.json: model_type: 'new_moe' given, of which nothing is known beyond its keys "
            "(known ones near it: exaone_moe, qwen3_moe, qwen2_moe)"
        ),
    ]


def test_answers_fill_in_and_are_named_as_the_source() -> None:
    spec = spec_from_config(UNKNOWN, name="m", answers=ALL_ANSWERS)
    assert (spec.activation_dtype, spec.gate_weight_dtype, spec.gate_bias) == ("float16", "float16", False)
    assert spec.sources == (
        (
            "hidden_size, num_experts, routing.top_k, norm.eps, dtypes.activation: the model's config.json "
            "(model_type new_moe)"
        ),
        (
            "norm.order A, residual false, dtypes.gate_weight float16, gate_bias false, "
            "routing.e_score_correction_bias true, routing.scoring none: said by a flag of add"
        ),
    )


def test_answers_for_every_stage() -> None:
    answers = {
        **ALL_ANSWERS,
        "residual": "yes",
        "residual-multiplier": "0.5",
        "scoring": "sigmoid",
        "n-group": "4",
        "topk-group": "2",
        "group-score": "max",
        "renormalize": "yes",
        "renormalize-epsilon": "1e-20",
        "renormalize-floor": "1e-12",
        "routed-scaling-factor": "2",
        "softcap": "30",
        "router-logits": "yes",
        "logits-dtype": "bfloat16",
        "ids-dtype": "int64",
        "weights-dtype": "bfloat16",
        "residual-stream-multiplier": "3",
        "e-score-correction-bias-vl": "yes",
        "per-expert-scale": "yes",
    }
    spec = spec_from_config(UNKNOWN, name="m", answers=answers)
    assert (spec.residual, spec.logits_dtype) == (Residual(multiplier=0.5, stream_multiplier=3.0), "bfloat16")
    assert spec.routing == Routing(
        top_k=2,
        e_score_correction_bias=True,
        scoring="sigmoid",
        groups=Groups(n_group=4, topk_group=2, score="max"),
        renormalize=Renormalize(epsilon=1e-20, floor=1e-12),
        routed_scaling_factor=2.0,
        softcap=30.0,
        e_score_correction_bias_vl=True,
        per_expert_scale=True,
        router_logits=True,
        ids_dtype="int64",
        weights_dtype="bfloat16",
    )
    chosen = spec_from_config(UNKNOWN, name="m", answers={**ALL_ANSWERS, **SELECTION_ANSWERS, "softcap": "0"})
    assert chosen.routing == Routing(
        top_k=2, e_score_correction_bias=True, scoring="sigmoid", renormalize=Renormalize()
    )
    groups = {**SELECTION_ANSWERS, "n-group": "4"}
    with pytest.raises(BadInput) as caught:
        spec_from_config(UNKNOWN, name="m", answers={**ALL_ANSWERS, **groups})
    assert [str(problem) for problem in caught.value.problems][:2] == [
        "config.json: routing.groups.topk_group: the config does not say; answer with --topk-group N",
        "config.json: routing.groups.score: the config does not say; answer with --group-score top2_sum|max",
    ]


def test_keys_say_what_families_do_elsewhere() -> None:
    says = {
        "use_gemma_norm": True,
        "router_bias": False,
        "topk_method": "noaux_tc",
        "residual_multiplier": 0.5,
        "moe_router_activation_func": "sigmoid",
        "num_expert_group": 4,
        "topk_group": 2,
        "moe_renormalize": True,
        "route_scale": 3,
        "moe_router_logit_softcapping": 5.0,
    }
    spec = spec_of({**UNKNOWN, **says}, gate_weight_dtype="float32")
    assert (spec.norm, spec.residual) == (Norm(order="G", eps=1e-5), Residual(multiplier=0.5))
    assert spec.gate_bias is False
    assert spec.routing == Routing(
        top_k=2,
        e_score_correction_bias=True,
        scoring="sigmoid",
        groups=Groups(n_group=4, topk_group=2, score="top2_sum"),
        renormalize=Renormalize(),
        routed_scaling_factor=3.0,
        softcap=5.0,
    )
    assert spec_of(config_of("minimax-m2") | {"use_routing_bias": False}).routing.e_score_correction_bias is False


def test_the_gate_alone_contradicts_no_model() -> None:
    spec = spec_of(config_of("kimi-k2"), norm_order="none")
    assert spec.norm is None
    assert spec.residual is None
    assert not any("norm.eps" in source or "residual" in source for source in spec.sources)


def test_a_stage_that_another_kernel_does_contradicts_no_model() -> None:
    whole = spec_of(config_of("deepseek-v3"))
    spec = spec_of(config_of("deepseek-v3"), residual="no", scoring="none")
    routing = Routing(top_k=8, e_score_correction_bias=True)
    assert (spec.norm, spec.residual, spec.routing) == (whole.norm, None, routing)
    assert "residual false, routing.scoring none: said by a flag of add" in spec.sources
    assert not any("routed_scaling_factor" in source for source in spec.sources)


def test_the_scoring_of_command_a_is_named_by_what_it_does() -> None:
    config = {**UNKNOWN, "expert_selection_fn": "softmax", "norm_topk_prob": True, "routed_scaling_factor": 1}
    answers = {flag.replace("-", "_"): word for flag, word in ALL_ANSWERS.items() if flag != "scoring"}
    answers["e_score_correction_bias"] = "no"
    routing = Routing(top_k=2, e_score_correction_bias=False, scoring="softmax_of_chosen")
    assert spec_of(config, **answers).routing == routing
    assert problems_of({**config, "expert_selection_fn": "tanh", "n_group": 1}, **answers)[0] == (
        "config.json: expert_selection_fn: 'tanh' given, softmax, sigmoid would be right; "
        "answer with --scoring none|softmax|softmax_of_chosen|sigmoid|sqrtsoftplus"
    )


EDIT = "leave the flag out, or edit the spec once it is written"


@pytest.mark.parametrize(
    ("model", "flag", "word", "message"),
    [
        ("kimi-k2", "hidden_size", "4096", "4096 given, but the config says hidden_size 7168"),
        ("kimi-k2", "activation_dtype", "float16", "float16 given, but the config says torch_dtype bfloat16"),
        (
            "kimi-k2",
            "norm_order",
            "B",
            (
                "B given, but the config says model_type kimi_k2, which means A "
                "(read in transformers 5.24.0 models/deepseek_v3/modeling_deepseek_v3.py, which it shares)"
            ),
        ),
        (
            "minimax-m2",
            "gate_weight_dtype",
            "bfloat16",
            (
                "bfloat16 given, but the config says model_type minimax_m2, which means float32 "
                "(read in the safetensors header of MiniMax-M2.7; M2 and M2.5 remembered, unverified)"
            ),
        ),
        ("deepseek-v4-pro", "tid2eid_vocab_size", "0", "none given, but the config says vocab_size 129280"),
        ("kimi-k2", "scoring", "softmax", "softmax given, but the config says scoring_func sigmoid"),
        ("kimi-k2", "routed_scaling_factor", "1", "1.0 given, but the config says routed_scaling_factor 2.827"),
        ("kimi-k2", "renormalize", "no", "false given, but the config says norm_topk_prob true"),
        ("deepseek-v3", "n_group", "1", "1 given, but the config says n_group 8"),
        (
            "deepseek-v3",
            "group_score",
            "max",
            "max given, but the config says topk_method noaux_tc, which means top2_sum",
        ),
        (
            "deepseek-v4-pro",
            "residual",
            "yes",
            (
                "true given, but the config says model_type deepseek_v4, which means false "
                "(read in transformers 5.24.0 models/deepseek_v4/modeling_deepseek_v4.py)"
            ),
        ),
    ],
)
def test_an_answer_against_the_config_is_refused(model: str, flag: str, word: str, message: str) -> None:
    expected = f"--{flag.replace('_', '-')}: {message}; {EDIT}"
    assert problems_of(config_of(model), **{flag: word}) == [expected]


def test_an_answer_that_agrees_changes_nothing() -> None:
    config = config_of("kimi-k2")
    assert spec_of(config, norm_order="A", hidden_size="7168", norm_eps="1e-6") == spec_of(config)


@pytest.mark.parametrize(
    ("flag", "word", "message"),
    [
        ("norm_order", "C", "--norm-order: 'C' given, A, B, G, none would be right"),
        ("top_k", "two", "--top-k: 'two' given, a whole number from 1 to num_experts would be right"),
        (
            "norm_eps",
            "nil",
            "--norm-eps: 'nil' given, a number from 1e-30 to 0.1, such as 1e-6 would be right",
        ),
        ("gate_bias", "true", "--gate-bias: 'true' given, yes, no would be right"),
        (
            "scoring",
            "tanh",
            "--scoring: 'tanh' given, none, softmax, softmax_of_chosen, sigmoid, sqrtsoftplus would be right",
        ),
        (
            "softcap",
            "low",
            "--softcap: 'low' given, none, or a number from 1e-6 to 1e6 would be right",
        ),
        (
            "softcap",
            "-1",
            "config.json: routing.softcap: -1.0 given, none, or a number from 1e-6 to 1e6 would be right (given by --softcap)",
        ),
        ("topk_group", "1", "--topk-group: 1 given, leaving it out would be right where there is one group"),
    ],
)
def test_an_answer_that_is_none(flag: str, word: str, message: str) -> None:
    assert problems_of(config_of("kimi-k2"), **{flag: word}) == [message]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"norm_order": "none", "norm_eps": "1e-6"}, "--norm-eps: 1e-06 given, leaving it out would be right where there is no norm"),
        ({"norm_order": "none", "residual": "yes"}, "--residual: true given, leaving it out would be right where there is no norm"),
        (
            {"residual": "no", "residual_multiplier": "2.0"},
            "--residual-multiplier: 2.0 given, leaving it out would be right where there is no residual",
        ),
        ({"scoring": "none", "softcap": "30"}, "--softcap: 30.0 given, leaving it out would be right where scoring is none"),
        (
            {"scoring": "none", "ids_dtype": "int64"},
            "--ids-dtype: int64 given, leaving it out would be right where scoring is none",
        ),
        (
            {"logits_dtype": "bfloat16"},
            "config.json: dtypes.logits: 'bfloat16' given, leaving it out would be right where routing.router_logits "
            "is false (given by --logits-dtype)",
        ),
    ],
)  # fmt: skip
def test_answers_that_do_not_go_together(answers: dict[str, str], message: str) -> None:
    assert problems_of(config_of("kimi-k2"), **answers) == [message]


def test_answers_about_chosen_logits() -> None:
    config = config_of("gpt-oss-120b")
    where = "leaving it out would be right where scoring is softmax_of_chosen"
    assert problems_of(config, n_group="4", renormalize="yes") == [
        f"--n-group: 4 given, {where}",
        f"--renormalize: true given, {where}",
    ]
    assert spec_of(config, renormalize="no") == spec_of(config)


def test_an_unknown_flag() -> None:
    assert problems_of(config_of("kimi-k2"), foo="1")[0].startswith(
        "--foo: unknown, one of --hidden-size, --num-experts"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_experts": 128},
            ("num_experts: the config disagrees with itself, n_routed_experts 384 and num_experts 128; "
            "answer with --num-experts N"),
        ),
        ({"hidden_size": "7168"}, "hidden_size: '7168' given, a whole number would be right; answer with --hidden-size N"),
        ({"hidden_size": 7168.0}, "hidden_size: 7168.0 given, a whole number would be right; answer with --hidden-size N"),
        ({"hidden_size": None}, "hidden_size: the config does not say (hidden_size is null); answer with --hidden-size N"),
        ({"hidden_size": 7169}, "hidden_size: 7169 given, a multiple of 8 from 8 to 65536 would be right (given by hidden_size)"),
        ({"num_experts_per_tok": True}, "num_experts_per_tok: true given, a whole number would be right; answer with --top-k N"),
        (
            {"num_experts_per_tok": [8, 4]},
            ("num_experts_per_tok: [8, 4] given, a whole number, the same for every layer (else each needs a spec of "
            "its own) would be right; answer with --top-k N"),
        ),
        ({"num_experts_per_tok": 400}, "routing.top_k: 400 given, at most num_experts (384) would be right (given by num_experts_per_tok)"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: 'small' given, a number would be right; answer with --norm-eps N"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps: inf given, a number would be right; answer with --norm-eps N"),
        ({"num_hash_layers": 3, "vocab_size": None}, "routing.tid2eid.vocab_size: the config does not say; answer with --tid2eid-vocab-size N"),
        ({"text_config": 5}, "text_config: 5 given, an object would be right"),
        (
            {"scoring_func": "softmax", "score_func": "sigmoid"},
            ("routing.scoring: scoring_func softmax given, against model_type kimi_k2, which means sigmoid (read in "
            "transformers 5.24.0 models/deepseek_v3/modeling_deepseek_v3.py, which it shares); answer with --scoring none|softmax|softmax_of_chosen|sigmoid|sqrtsoftplus"),
        ),
        ({"n_group": None}, "routing.groups.n_group: the config does not say (n_group is null); answer with --n-group N"),
        ({"n_group": 7, "topk_group": 1}, "routing.groups.n_group: 7 given, a divisor of num_experts (384) would be right (given by n_group)"),
        (
            {"n_group": 8, "topk_group": None},
            "routing.groups.topk_group: the config does not say (topk_group is null); answer with --topk-group N",
        ),
        (
            {"n_group": 8, "topk_method": "greedy"},
            ("routing.groups.n_group: the config disagrees with itself, n_group 8 and topk_method greedy, which means 1; "
            "answer with --n-group N"),
        ),
        ({"norm_topk_prob": None}, "routing.renormalize: the config does not say (norm_topk_prob is null); answer with --renormalize yes|no"),
        ({"norm_topk_prob": 1}, "norm_topk_prob: 1 given, true or false would be right; answer with --renormalize yes|no"),
        (
            {"routed_scaling_factor": None},
            ("routing.routed_scaling_factor: the config does not say (routed_scaling_factor is null); "
            "answer with --routed-scaling-factor N"),
        ),
        (
            {"routed_scaling_factor": 0.0},
            "routing.routed_scaling_factor: 0.0 given, a number from 1e-6 to 1e6 would be right (given by routed_scaling_factor)",
        ),
        ({"num_experts_per_tok": 33}, "routing.top_k: 33 given, at most 32 would be right where scoring is sigmoid (given by num_experts_per_tok)"),
    ],
)  # fmt: skip
def test_one_mistake_in_the_config(change: dict[str, Any], message: str) -> None:
    assert problems_of({**config_of("kimi-k2"), **change}) == [f"config.json: {message}"]


def test_an_answer_settles_what_the_config_leaves_open() -> None:
    both = {**config_of("kimi-k2"), "num_experts": 128}
    assert spec_of(both, num_experts="128").num_experts == 128
    assert problems_of(both, num_experts="64")[0].startswith("--num-experts: 64 given, but the config says n_routed_")


def test_two_keys_that_agree_nulls_and_lists() -> None:
    change = {
        "num_experts": 384,
        "num_local_experts": None,
        "num_experts_per_tok": [8, 8],
        "zero_expert_num": 256,
    }
    spec = spec_of({**config_of("kimi-k2"), **change})
    assert (spec.num_experts, spec.routing.top_k) == (640, 8)


def test_another_dtype_than_the_family_was_read_in() -> None:
    config = {**config_of("gpt-oss-120b"), "torch_dtype": "float32"}
    assert problems_of(config) == [
        (
            "config.json: dtypes.activation: the config does not say (torch_dtype is float32); "
            "answer with --activation-dtype bfloat16|float16"
        ),
        (
            "config.json: dtypes.gate_weight: the config does not say (torch_dtype is float32); "
            "answer with --gate-weight-dtype bfloat16|float16|float32"
        ),
    ]
    spec = spec_of(config, activation_dtype="float16", gate_weight_dtype="float32")
    assert (spec.activation_dtype, spec.gate_weight_dtype) == ("float16", "float32")


def test_hash_layers_of_deepseek_v4_are_never_assumed() -> None:
    config = config_of("deepseek-v4-pro")
    del config["num_hash_layers"]
    assert len(problems_of(config)) == 1
    assert spec_of(config, tid2eid_vocab_size="0").routing.tid2eid is None
    assert spec_of(config, tid2eid_vocab_size="1000").routing.tid2eid == Tid2Eid(vocab_size=1000)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("moonshotai/Kimi-K2-Instruct", "kimi-k2-instruct"),
        ("C:\\models\\My Model (v2)\\", "my-model-v2"),
        ("org/Qwen3.5__x--y", "qwen3.5_x-y"),
    ],
)
def test_default_name(path: str, name: str) -> None:
    assert spec_from_config({**config_of("kimi-k2"), "_name_or_path": path}, name=None, answers={}).name == name


@pytest.mark.parametrize("path", ["", "/", "123", 5, None])
def test_a_name_is_asked_for(path: object) -> None:
    asked = "config.json: name: the config does not say (no _name_or_path); answer with --name NAME"
    assert problems_of({**config_of("kimi-k2"), "_name_or_path": path}, name=None) == [asked]


def test_a_name_that_is_none() -> None:
    assert problems_of(config_of("kimi-k2"), name="../x")[0].startswith("config.json: name: '../x' given, a plain name")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', ":2: not valid JSON: Expecting ':' delimiter"),
        (b" \n", ": is empty, an object of keys and values would be right"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            ": is a git-lfs pointer, the file itself would be right; git lfs pull fetches it",
        ),
        (b"{'a': 1}", ":1: not valid JSON: Expecting property name enclosed in double quotes"),
        (b"[1]", ":1: an object of keys and values would be right"),
        (b'{"a": 1, "a": 2}', ": a: given twice in one object, once would be right"),
        (
            b'{"a": ' + b"9" * 5000 + b"}",
            ": a whole number of thousands of digits given, one that means something would be right",
        ),
        (b"[" * 100_000, ": nested too deeply for a config.json"),
        (b'{"a": "\xff"}', ":1: byte 0xff is not UTF-8 text"),
        (b" " * ((16 << 20) + 1), ": is larger than 16777216 bytes, far more than such a file needs"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}{message}"


def test_every_answer_is_a_key_of_the_spec() -> None:
    assert {answer.key for answer in ANSWERS.values()} <= set(RIGHT)
    assert ANSWERS["norm-order"].metavar == "A|B|G|none"


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"llm_config": {"model_type": "mixtral"}}, "llm_config."),
        ({"thinker_config": {"text_config": {"model_type": "qwen3_omni_moe_text"}}}, "thinker_config.text_config."),
    ],
)
def test_text_models_by_other_names_and_deeper(config: dict[str, Any], part: str) -> None:
    here = config
    for key in part.rstrip(".").split("."):
        here = here[key]
    here.update({**SIZES, "num_local_experts": 8, "num_experts_per_tok": 2})
    spec = spec_of(config, gate_weight_dtype="bfloat16")
    assert (spec.num_experts, spec.routing.scoring, spec.routing.renormalize) == (8, "softmax", Renormalize())
    here["num_experts_per_tok"] = "two"
    assert problems_of(config, gate_weight_dtype="bfloat16")[0].startswith(
        f"config.json: {part}num_experts_per_tok: 'two' given, a whole number"
    )


def test_mistrals_own_params_json() -> None:
    moe = {"num_experts": 128, "num_experts_per_tok": 4, "num_expert_groups": 1, "num_expert_groups_per_tok": 1}
    config = {"dim": 7168, "norm_eps": 1e-6, "moe": {**moe, "routed_scale": 2.0}}
    spec = spec_of(config, activation_dtype="bfloat16", gate_weight_dtype="bfloat16")
    assert (spec.hidden_size, spec.routing.routed_scaling_factor, spec.norm) == (7168, 2.0, Norm(order="A", eps=1e-6))


def test_what_no_spec_can_say_is_named_and_kept() -> None:
    config = {**SIZES, "model_type": "phimoe", "num_local_experts": 16, "num_experts_per_tok": 2}
    spec = spec_of(config, gate_weight_dtype="bfloat16")
    assert (spec.norm, spec.routing.scoring) == (None, None)
    assert "LayerNorm" in spec.not_covered[0] and "sparsemixer" in spec.not_covered[1]


def test_tokens_of_images_have_a_correction_bias_where_there_are_layers_for_images() -> None:
    text = config_of("deepseek-v4-flash")
    for layers, has_bias in ((None, False), (0, False), (24, True)):
        spec = spec_of({**text, "vision_n_layers": layers})
        assert spec.routing.e_score_correction_bias_vl is has_bias and spec.not_covered == ()


@pytest.mark.parametrize("names", ["full_attn_{}_factor linear_attn_{}_factor", "layernorm_full_attention_{}"])
def test_both_factors_of_minimax_residual_add(names: str) -> None:
    factors = {name.format(word): by for name in names.split() for word, by in (("alpha", 3.5), ("beta", 0.5))}
    config = {**SIZES, "model_type": "minimax_text_01", "num_local_experts": 8, "num_experts_per_tok": 2, **factors}
    spec = spec_of(config, gate_weight_dtype="bfloat16")
    assert spec.residual == Residual(multiplier=0.5, stream_multiplier=3.5)
    if len(factors) > 2:
        disagree = problems_of({**config, "linear_attn_alpha_factor": 1}, gate_weight_dtype="bfloat16")
        assert disagree == [
            "config.json: residual.stream_multiplier: the config disagrees with itself, full_attn_alpha_factor 3.5 and "
            "linear_attn_alpha_factor 1; answer with --residual-stream-multiplier N"
        ]


def test_grok_2_is_known_by_its_architecture() -> None:
    config = {
        **SIZES, "model_type": "git", "architectures": ["Grok1ForCausalLM"], "num_local_experts": 8,
        "num_experts_per_tok": 2, "router_logit_softcapping": 20.0,
    }  # fmt: skip
    assert spec_of(config, gate_weight_dtype="bfloat16").routing.softcap == 20.0


def test_the_dtype_may_stand_on_any_level_around_the_text_model() -> None:
    text = {
        **SIZES,
        "model_type": "qwen3_omni_moe_text",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    }
    del text["torch_dtype"]
    thinker = {"model_type": "qwen3_omni_moe_thinker", "text_config": text}
    whole = {"model_type": "qwen3_omni_moe", "thinker_config": {**thinker, "dtype": "float16"}}
    assert spec_of(whole, gate_weight_dtype="float16").activation_dtype == "float16"
    text["dtype"] = "bfloat16"  # the nearest counts
    assert spec_of({**whole, "dtype": "float32"}, gate_weight_dtype="bfloat16").activation_dtype == "bfloat16"


@pytest.mark.parametrize("model_type", ["zaya", "doge"])
def test_a_router_without_a_gate_is_refused_by_name(model_type: str) -> None:
    (problem,) = problems_of({**SIZES, "model_type": model_type, "num_experts": 16, "num_experts_per_tok": 1})
    assert problem.startswith(f"config.json: model_type: {model_type} given, which no spec can say: ")


STORED = {"gate_weight_dtype": "bfloat16"}
QWEN3: dict[str, Any] = {
    **SIZES, "model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
}  # fmt: skip
DEEPSEEK: dict[str, Any] = {
    **SIZES, "n_routed_experts": 64, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}  # fmt: skip
GROUPED: dict[str, Any] = {
    **SIZES, "num_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}  # fmt: skip
SIGMOID_IN_GROUPS = Routing(
    top_k=8, e_score_correction_bias=True, scoring="sigmoid",
    groups=Groups(n_group=8, topk_group=4, score="top2_sum"), renormalize=Renormalize(epsilon=1e-20),
    routed_scaling_factor=2.5,
)  # fmt: skip


def test_sarvam_as_transformers_saves_it() -> None:
    """Its config class has no score_function, and its model is GLM 4's."""
    config = {**GROUPED, "model_type": "sarvam_moe"}
    assert spec_of(config, **STORED).routing == SIGMOID_IN_GROUPS
    softmax = spec_of({**config, "score_function": "softmax"}, **STORED).routing
    assert (softmax.scoring, softmax.e_score_correction_bias) == ("softmax", False)


@pytest.mark.parametrize("model_type", ["bailing_moe_v2", "bailing_moe_linear"])
@pytest.mark.parametrize("said", [{}, {"score_function": "sigmoid"}, {"moe_router_enable_expert_bias": True}])
def test_ling_2_is_sigmoid_in_groups_whatever_its_keys_leave_out(model_type: str, said: dict[str, Any]) -> None:
    config = {**GROUPED, **said, "model_type": model_type}
    del config["norm_topk_prob"]  # its gate divides always
    assert spec_of(config, **STORED).routing == SIGMOID_IN_GROUPS


def test_ling_1_is_softmax_where_its_keys_do_not_say_otherwise() -> None:
    config = {**GROUPED, "model_type": "bailing_moe"}
    assert spec_of(config, **STORED).routing.scoring == "softmax"
    spec = spec_of({**config, "score_function": "sigmoid"}, **STORED)
    assert spec.routing.scoring == "sigmoid" and comment_for(config, spec) == FAMILIES["bailing_moe"].note


def test_a_router_for_each_kind_of_token_is_named() -> None:
    text = {**GROUPED, "model_type": "bailing_moe_v2"}
    assert spec_of({"llm_config": {**text, "router_type": "topN"}}, **STORED).not_covered == ()
    (line,) = spec_of({"llm_config": {**text, "router_type": "MultiRouter"}}, **STORED).not_covered
    assert line.startswith("tokens of images and of sound go through gates of their own")


@pytest.mark.parametrize("word", ["relu", "Sigmoid", 3, ["sigmoid"]])
def test_a_scoring_that_is_none_is_never_dropped(word: object) -> None:
    config = {**QWEN3, "scoring_func": word}
    (problem,) = problems_of(config)
    assert problem.startswith("config.json: scoring_func: ")
    assert problem.endswith(
        " given, softmax, softmax_of_chosen, sigmoid, sqrtsoftplus would be right; "
        "answer with --scoring none|softmax|softmax_of_chosen|sigmoid|sqrtsoftplus"
    )
    spec = spec_of(config, scoring="sigmoid")
    assert spec.routing.scoring == "sigmoid"
    assert comment_for(config, spec) == ""  # the family's says softmax


def test_a_topk_method_that_is_none_is_never_dropped() -> None:
    config = {**DEEPSEEK, "model_type": "deepseek_v3", "n_group": 8, "topk_group": 4, "topk_method": "aux_free_v2"}
    method = "config.json: topk_method: 'aux_free_v2' given, noaux_tc, group_limited_greedy, greedy would be right; "
    assert problems_of(config) == [
        f"{method}answer with --e-score-correction-bias yes|no",
        f"{method}answer with --group-score top2_sum|max",
    ]
    routing = spec_of(config, e_score_correction_bias="no", group_score="max").routing
    assert routing.groups and (routing.groups.score, routing.e_score_correction_bias) == ("max", False)


@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy", None])
def test_only_noaux_tc_has_a_correction_bias(method: str | None) -> None:
    config = {**DEEPSEEK, "model_type": "deepseek_v3", "scoring_func": "sigmoid"}
    assert spec_of(config).routing.e_score_correction_bias is True
    assert spec_of({**config, "topk_method": method}).routing.e_score_correction_bias is False


def test_a_key_against_code_that_does_not_read_it_is_asked_about() -> None:
    """vLLM takes scoring_func, transformers' DeepSeek-V3 does not."""
    config = {**DEEPSEEK, "model_type": "deepseek_v3", "scoring_func": "softmax", "topk_method": "greedy"}
    (problem,) = problems_of(config)
    assert problem.startswith(
        "config.json: routing.scoring: scoring_func softmax given, against model_type deepseek_v3, which means sigmoid "
        "(read in transformers"
    )
    for word in ("softmax", "sigmoid"):
        assert spec_of(config, scoring=word).routing.scoring == word


def test_deepseek_vl2_has_the_router_of_deepseek_v3() -> None:
    text = {**DEEPSEEK, "model_type": "deepseek_v2", "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    config = {"model_type": "deepseek_vl_v2", "language_config": text}
    spec = spec_of(config, **STORED)
    assert spec.routing == Routing(
        top_k=6, e_score_correction_bias=True, scoring="sigmoid", renormalize=Renormalize(epsilon=1e-20)
    )
    assert comment_for(config, spec).startswith("Sigmoid scores")


def test_a_note_holds_for_the_spec_below_it() -> None:
    config = {**DEEPSEEK, "model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": "greedy"}
    assert comment_for(config, spec_of(config, **STORED)) == ""  # renormalized, which the note denies
    config["norm_topk_prob"] = False
    assert comment_for(config, spec_of(config, **STORED)) == FAMILIES["deepseek_v2"].note


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "jamba", "num_experts": 1, "num_experts_per_tok": 1}, "num_experts 1"),
        ({"model_type": "granitemoehybrid", "num_local_experts": 0, "num_experts_per_tok": 0}, "num_local_experts 0"),
        (
            {"model_type": "gemma4_text", "enable_moe_block": False, "num_experts": 128, "top_k_experts": 8},
            "enable_moe_block false",
        ),
    ],
)
def test_a_dense_model_of_a_family_with_experts(config: dict[str, Any], says: str) -> None:
    assert problems_of({**SIZES, **config}, **STORED) == [
        f"config.json: {says} given, so this model has no router, and there is nothing to add"
    ]


@pytest.mark.parametrize("model_type", ["llama", "nemotron_h", None])
def test_a_model_without_experts_is_told_so_first(model_type: str | None) -> None:
    assert problems_of({**SIZES, "model_type": model_type}, name=None) == [
        "config.json: num_experts: no key names experts, so this model has no router; where it has one, answer with "
        "--num-experts N and --top-k N"
    ]
    assert len(problems_of({**SIZES, "model_type": model_type}, num_experts="8")) > 1
    named = {**SIZES, "model_type": "smallthinker", "moe_num_primary_experts": 32}
    assert problems_of(named)[0] == "config.json: num_experts: the config does not say; answer with --num-experts N"


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "llm_int8_skip_modules": None}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["lm_head"]}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["mlp.gate"]}}, ""),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
        ({"quantization": {"group_size": 64, "bits": 4, "model.layers.0.mlp.gate": False}}, ""),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, ""),
        ({"quantization_config": {"quant_method": "fp8"}}, ""),
    ],
)  # fmt: skip
def test_a_gate_that_is_quantized_is_not_of_the_familys_dtype(quantization: dict[str, Any], method: str) -> None:
    config = {**QWEN3, **quantization}
    if not method:
        assert spec_of(config).gate_weight_dtype == "bfloat16"
        return
    assert problems_of(config) == [
        f"config.json: dtypes.gate_weight: the config does not say ({method} quantizes the gate too); "
        "answer with --gate-weight-dtype bfloat16|float16|float32"
    ]
    assert spec_of(config, gate_weight_dtype="float16").gate_weight_dtype == "float16"


def test_a_norm_that_is_not_gemmas_in_a_family_that_has_it() -> None:
    config = {**SIZES, "model_type": "minimax_m3_vl", "num_local_experts": 8, "num_experts_per_tok": 2}
    assert spec_of({**config, "use_gemma_norm": True}, **STORED).norm == Norm(order="G", eps=1e-5)
    (problem,) = problems_of({**config, "use_gemma_norm": False}, **STORED)
    assert problem.startswith(
        "config.json: norm.order: use_gemma_norm false given, against model_type minimax_m3_vl, which means G (read in "
    )
    plain = spec_of({**config, "use_gemma_norm": False}, **STORED, norm_order="A")
    assert plain.norm == Norm(order="A", eps=1e-5)


def test_command_a_has_an_rms_norm_where_its_epsilon_is_given() -> None:
    config = {
        "model_type": "cohere2_moe", "hidden_size": 4096, "num_experts": 64, "num_experts_per_tok": 4,
        "expert_selection_fn": "sigmoid", "norm_topk_prob": True, "layer_norm_eps": 1e-5, "dtype": "bfloat16",
    }  # fmt: skip
    spec = spec_of(config, **STORED)
    assert spec.norm is None and "LayerNorm" in spec.not_covered[0]
    spec = spec_of({**config, "rms_norm_eps": 1e-6}, **STORED)
    assert (spec.norm, spec.residual, spec.not_covered) == (Norm(order="A", eps=1e-6), None, ())


def test_keys_that_may_concern_the_router_and_are_not_read() -> None:
    config = {
        **QWEN3, "scale_depth": 1.4, "router_type": "attn_router", "moe_use_logits_norm": True,
        "moe_intermediate_size": 768, "router_aux_loss_coef": 0.001, "n_shared_experts": 1, "top_k": 50,
        "rope_scaling": {"factor": 2}, "attn_output_gate": True, "moe": True, "multi_gate": False, "moe_layer_freq": 1,
    }  # fmt: skip
    assert unread_keys(config) == ["scale_depth", "router_type", "moe_use_logits_norm"]
    ming = {**GROUPED, "model_type": "bailing_moe_v2", "router_type": "topN"}
    assert unread_keys({"llm_config": ming}) == unread_keys({**ming, "router_type": "MultiRouter"}) == []
    assert unread_keys({"llm_config": {**ming, "multi_gate": True}}) == ["llm_config.multi_gate"]
    assert not any(unread_keys(config_of(model)) for model in MODELS)


def test_infinity_in_a_key_that_nothing_reads(tmp_path: Path) -> None:
    """NVIDIA's Nemotron 3 has it in time_step_limit."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**QWEN3, "time_step_limit": [0.0, float("inf")]}))
    assert "Infinity" in path.read_text()
    assert spec_of(load_config(path)) == spec_of(QWEN3)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "aria", "text_config": {"model_type": "aria_2024"}}, "aria_text"),
        ({"model_type": "ernie4_5_moe_vl"}, "ernie4_5_vl_moe_text"),
        ({"model_type": "minimax_m3"}, "minimax_m3_vl_text"),
        ({"model_type": "deepseek_ref", "architectures": ["DeepseekV4ForCausalLM"]}, "deepseek_v4"),
        ({"architectures": [None, "Qwen3VLMoeForConditionalGeneration"]}, "qwen3_vl_moe_text"),
        ({"model_type": "x", "text_config": {"architectures": ["MiniMaxM2ForCausalLM"]}}, "minimax_m2"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, None),
    ],
)  # fmt: skip
def test_a_family_is_known_by_any_of_its_names(config: dict[str, Any], family: str | None) -> None:
    assert Config.of(config).family is (FAMILIES[family] if family else None)


def test_an_architecture_is_what_a_message_names() -> None:
    config = {**QWEN3, "model_type": "other", "architectures": ["Qwen3MoeForCausalLM"]}
    (problem,) = problems_of(config, norm_order="B")
    assert "the config says architecture Qwen3MoeForCausalLM, which means A" in problem


def test_a_flag_answers_a_key_of_a_wrong_type() -> None:
    assert spec_of({**QWEN3, "hidden_size": "2048"}, hidden_size="2048").hidden_size == 2048
    layers = {**QWEN3, "num_experts": [1, 64, 64], "num_experts_per_tok": [1, 8, 8]}
    spec = spec_of(layers, num_experts="64", top_k="8")
    assert (spec.num_experts, spec.routing.top_k) == (64, 8)
    assert problems_of(layers, num_experts="32", top_k="8") == [
        f"--num-experts: 32 given, but the config says num_experts[0] 1 and num_experts[1] 64; {EDIT}"
    ]


def test_moe_may_be_a_plain_yes() -> None:
    assert spec_of({**QWEN3, "moe": True}) == spec_of(QWEN3)


def test_all_that_is_asked_may_be_answered() -> None:
    """Answers to what is asked, but for those whose condition says to leave them out."""
    config = {**UNKNOWN, "torch_dtype": "bfloat16"}
    answers = {**ALL_ANSWERS, "scoring": "softmax_of_chosen", "e-score-correction-bias": "no"}
    given = {flag.replace("-", "_"): word for flag, word in answers.items()} | {"routed_scaling_factor": "1"}
    asked = [problem for problem in problems_of(config) if "unless scoring is none or softmax_of_chosen" not in problem]
    flags = {problem.split("answer with --")[1].split()[0] for problem in asked if "answer with" in problem}
    assert flags <= {flag.replace("_", "-") for flag in given}
    assert spec_of(config, **given).routing.scoring == "softmax_of_chosen"
