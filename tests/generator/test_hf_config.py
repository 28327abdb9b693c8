"""config.json files into specs: the eight shipped models, nested configs, and what is asked for or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codegen.errors import BadInput
from codegen.hf_config import ANSWERS, comment_for, load_config, spec_from_config
from codegen.hf_families import FAMILIES
from codegen.spec import RIGHT, Norm, RouterSpec, Tid2Eid, dump_spec

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
    text = dump_spec(spec_from_config(config, name=model, answers={}), comment_for(config))
    assert text == (ROOT / "specs" / f"{model}.yaml").read_text()


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


def test_nested_text_config() -> None:
    inner = config_of("kimi-k2") | {"rms_norm_eps": 1e-5}
    outer = {"model_type": "kimi_k25", "text_config": inner, "vision_config": {"hidden_size": 1152}}
    spec = spec_of(outer)
    assert (spec.hidden_size, spec.num_experts, spec.norm) == (7168, 384, Norm(order="A", eps=1e-5))
    assert spec.sources[0].endswith("(model_type kimi_k2)")
    assert comment_for(outer) == FAMILIES["kimi_k2"].note

    vision = config_of("qwen3-235b-a22b") | {"model_type": "qwen3_vl_moe_text"}
    del vision["torch_dtype"]
    assert spec_of({"text_config": vision, "torch_dtype": "bfloat16"}).activation_dtype == "bfloat16"
    assert problems_of({"text_config": vision}) == [
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
    known = ", ".join(FAMILIES)
    assert problems_of(UNKNOWN, name=None) == [
        "config.json: norm.order: the config does not say; answer with --norm-order A|B|G|none",
        (
            "config.json: dtypes.gate_weight: the config does not say (torch_dtype is float16); "
            "answer with --gate-weight-dtype bfloat16|float16|float32"
        ),
        "config.json: gate_bias: the config does not say; answer with --gate-bias yes|no",
        (
            "config.json: routing.e_score_correction_bias: the config does not say; "
            "answer with --e-score-correction-bias yes|no"
        ),
        "config.json: name: the config does not say (no _name_or_path); answer with --name NAME",
        f"config.json: model_type: 'new_moe' given, of which nothing is known beyond its keys ({known} are)",
    ]
    assert len(problems_of({}, name=None)) == 11


def test_answers_fill_in_and_are_named_as_the_source() -> None:
    spec = spec_from_config(UNKNOWN, name="m", answers=ALL_ANSWERS)
    assert (spec.activation_dtype, spec.gate_weight_dtype, spec.gate_bias) == ("float16", "float16", False)
    assert spec.sources == (
        (
            "hidden_size, num_experts, routing.top_k, norm.eps, dtypes.activation: the model's config.json "
            "(model_type new_moe)"
        ),
        (
            "norm.order A, dtypes.gate_weight float16, gate_bias false, routing.e_score_correction_bias true: "
            "said by a flag of add"
        ),
    )


def test_keys_say_what_families_do_elsewhere() -> None:
    says = {"use_gemma_norm": True, "router_bias": False, "topk_method": "noaux_tc"}
    spec = spec_of({**UNKNOWN, **says}, gate_weight_dtype="float32")
    assert spec.norm == Norm(order="G", eps=1e-5)
    assert (spec.gate_bias, spec.routing.e_score_correction_bias) == (False, True)
    assert spec_of(config_of("minimax-m2") | {"use_routing_bias": False}).routing.e_score_correction_bias is False


def test_the_gate_alone_contradicts_no_model() -> None:
    spec = spec_of(config_of("kimi-k2"), norm_order="none")
    assert spec.norm is None
    assert not any("norm.eps" in source for source in spec.sources)


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
                "(read in transformers 5.23.0 models/deepseek_v3/modeling_deepseek_v3.py, which it shares)"
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
    ],
)
def test_an_answer_that_is_none(flag: str, word: str, message: str) -> None:
    assert problems_of(config_of("kimi-k2"), **{flag: word}) == [message]


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
        ({"hidden_size": "7168"}, "hidden_size: '7168' given, a whole number would be right"),
        ({"hidden_size": 7168.0}, "hidden_size: 7168.0 given, a whole number would be right"),
        ({"hidden_size": None}, "hidden_size: the config does not say (hidden_size is null); answer with --hidden-size N"),
        ({"hidden_size": 7169}, "hidden_size: 7169 given, a multiple of 8 from 8 to 65536 would be right (given by hidden_size)"),
        ({"num_experts_per_tok": True}, "num_experts_per_tok: true given, a whole number would be right"),
        (
            {"num_experts_per_tok": [8, 4]},
            ("num_experts_per_tok: [8, 4] given, a whole number, the same for every layer (else each needs a spec of "
            "its own) would be right"),
        ),
        ({"num_experts_per_tok": 400}, "routing.top_k: 400 given, at most num_experts (384) would be right (given by num_experts_per_tok)"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: 'small' given, a number would be right"),
        ({"num_hash_layers": 3, "vocab_size": None}, "routing.tid2eid.vocab_size: the config does not say; answer with --tid2eid-vocab-size N"),
        ({"text_config": 5}, "text_config: 5 given, an object would be right"),
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
        (b"", ":1: not valid JSON: Expecting value"),
        (b"[1]", ":1: an object of keys and values would be right"),
        (b'{"a": 1, "a": 2}', ": a: given twice in one object, once would be right"),
        (b'{"a": NaN}', ": NaN given, a number that JSON knows would be right"),
        (b'{"a": -Infinity}', ": -Infinity given, a number that JSON knows would be right"),
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
