"""Bad YAML and the exact words about it; good YAML and the spec it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from codegen.arch import SM_TARGETS
from codegen.errors import BadInput, Problem
from codegen.spec import (
    Groups,
    Norm,
    Renormalize,
    Residual,
    RouterSpec,
    Routing,
    Tid2Eid,
    TokenThresholds,
    dump_spec,
    load_spec,
    load_specs,
)

SPECS = Path(__file__).parents[2] / "specs"
OTHER_SPECS = Path(__file__).parents[1] / "specs"

GOOD = """\
name: tiny
sources: [a test]
hidden_size: 64
num_experts: 8
dtypes:
  activation: bfloat16
  gate_weight: float32
norm:
  order: A
  eps: 1e-6
gate_bias: false
routing:
  top_k: 2
  e_score_correction_bias: true
"""

NAME = (
    "a plain name such as deepseek-v4-pro (a lower case letter first, then lower case letters and digits, "
    "single - _ . between them, at most 64 characters)"
)
TARGETS = "all, or an ascending list of SM numbers out of 80, 86, 89, 90, 100, 103, 110, 120, 121"
EPS = "a number from 1e-30 to 0.1, such as 1e-6"
FACTOR = "a number from 1e-6 to 1e6"
SCORING = "none, softmax, softmax_of_chosen, sigmoid or sqrtsoftplus"
SERVES = "the last token count it serves, a whole number from 0 (never) to 1048576"


def write(folder: Path, text: str | bytes, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(path: Path) -> list[str]:
    with pytest.raises(BadInput) as caught:
        load_spec(path)
    assert caught.value.exit_code == 2
    return [str(problem).removeprefix(str(path.parent) + "/") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: tiny", "name: Tiny", f"1: name: 'Tiny' given, {NAME} would be right"),
        ("name: tiny", "name: a--b", f"1: name: 'a--b' given, {NAME} would be right"),
        ("name: tiny", 'name: "a\\";int x;"', f"1: name: 'a\";int x;' given, {NAME} would be right"),
        ("name: tiny", "name: 7", f"1: name: 7 given, {NAME} would be right"),
        ("name: tiny", "name: small", "1: name: 'small' given, tiny (or the file named small.yaml) would be right"),
        (
            "sources: [a test]",
            "sources: a test",
            ("2: sources: 'a test' given, a list of at least one line of text that says where the facts come from "
            "would be right"),
        ),
        (
            "[a test]",
            "\n  - a\n  - ' '",
            ("4: sources: ' ' given, a list of at least one line of text that says where the facts come from "
            "would be right"),
        ),
        ("hidden_size: 64", "hidden_size: 63", "3: hidden_size: 63 given, a multiple of 8 from 8 to 65536 would be right"),
        ("hidden_size: 64", "hidden_size: 64.0", "3: hidden_size: 64.0 given, a multiple of 8 from 8 to 65536 would be right"),
        ("hidden_size: 64", "hidden_size: true", "3: hidden_size: true given, a multiple of 8 from 8 to 65536 would be right"),
        ("hidden_size: 64", "hidden_size: 0x40", "3: hidden_size: '0x40' given, a multiple of 8 from 8 to 65536 would be right"),
        ("hidden_size: 64", "hidden_size:", "3: hidden_size: nothing given, a multiple of 8 from 8 to 65536 would be right"),
        ("hidden_size: 64", "hidden_size: {a: 8}", "3: hidden_size: a mapping given, a multiple of 8 from 8 to 65536 would be right"),
        (
            "hidden_size: 64",
            "hidden_size: '64'",
            "3: hidden_size: '64' given, a multiple of 8 from 8 to 65536 (without quotes) would be right",
        ),
        ("hidden_size: 64\n", "", "1: hidden_size: missing, a multiple of 8 from 8 to 65536 would be right"),
        ("hidden_size: 64", "hiden_size: 64\nhidden_size: 64", "3: hiden_size: unknown key, hidden_size would be right"),
        ("hidden_size: 64", "hidden_size: 64\nhidden_size: 72", "4: hidden_size: given again, the first is on line 3"),
        ("  order: A", "  order: A\n  order: A", "10: norm.order: given again, the first is on line 9"),
        ("num_experts: 8", "num_experts: 1025", "4: num_experts: 1025 given, a whole number from 1 to 1024 would be right"),
        ("num_experts: 8", "num_experts: 1", "13: routing.top_k: 2 given, at most num_experts (1) would be right"),
        ("gate_weight: float32", "gate_weight: fp32", "7: dtypes.gate_weight: 'fp32' given, bfloat16, float16 or float32 would be right"),
        ("  gate_weight: float32\n", "", "5: dtypes.gate_weight: missing, bfloat16, float16 or float32 would be right"),
        ("  gate_weight: float32", "  gate_weight: float32\n  logit: bfloat16", "8: dtypes.logit: unknown key, logits would be right"),
        ("order: A", "order: C", "9: norm.order: 'C' given, A, B or G would be right"),
        ("eps: 1e-6", "eps: .nan", f"10: norm.eps: nan given, {EPS} would be right"),
        ("eps: 1e-6", "eps: .inf", f"10: norm.eps: inf given, {EPS} would be right"),
        ("eps: 1e-6", "eps: 1e999", f"10: norm.eps: inf given, {EPS} would be right"),
        ("eps: 1e-6", "eps: 0", f"10: norm.eps: 0 given, {EPS} would be right"),
        ("eps: 1e-6", "eps: '1e-6'", f"10: norm.eps: '1e-6' given, {EPS} (without quotes) would be right"),
        ("eps: 1e-6", "eps: 1e", f"10: norm.eps: '1e' given, {EPS} would be right"),
        ("gate_bias: false", "gate_bias: no", "11: gate_bias: 'no' given, true or false would be right"),
        ("gate_bias: false", "gate_bias: 0", "11: gate_bias: 0 given, true or false would be right"),
        ("top_k: 2", "top_k: 9", "13: routing.top_k: 9 given, at most num_experts (8) would be right"),
        ("top_k: 2", "top_k: 2\n  tid2eid: 5", "14: routing.tid2eid: 5 given, none, or a mapping with vocab_size would be right"),
        ("gate_bias", "top_k: 2\ngate_bias", "11: top_k: unknown key, top_k under routing would be right"),
        ("gate_bias", "logits_from: fp32\ngate_bias", "11: logits_from: 'fp32' given, unrounded or rounded would be right"),
        ("gate_bias", "sm_targets: [90, 87]\ngate_bias", f"11: sm_targets: [90, 87] given, {TARGETS} would be right"),
        ("gate_bias", "sm_targets: [90, 80]\ngate_bias", f"11: sm_targets: [90, 80] given, {TARGETS} would be right"),
        ("gate_bias", "sm_targets: [90, 90]\ngate_bias", f"11: sm_targets: [90, 90] given, {TARGETS} would be right"),
        ("gate_bias", "sm_targets: []\ngate_bias", f"11: sm_targets: [] given, {TARGETS} would be right"),
        ("gate_bias", "sm_targets:\n  - 90\n  - 9.0\ngate_bias", f"13: sm_targets: 9.0 given, {TARGETS} would be right"),
        ("gate_bias", "token_thresholds: never\ngate_bias", "11: token_thresholds: 'never' given, auto, or a mapping with gemv and split_k would be right"),
        ("gate_bias", "token_thresholds: {gemv: -1}\ngate_bias", f"11: token_thresholds.gemv: -1 given, {SERVES} would be right"),
        ("gate_bias", "token_thresholds: {}\ngate_bias", "11: token_thresholds: neither threshold given, auto, or a mapping with gemv and split_k would be right"),
        ("gate_bias", "token_thresholds: {gemv: 9, split_k: 8}\ngate_bias", "11: token_thresholds.gemv: 9 given, at most split_k (8) would be right"),
        ("gate_bias", "? [1, 2]\n: 3\ngate_bias", "11: a list or mapping used as a key, a plain name would be right"),
        ("order: A", "order: &x A", "9: anchor &x given, none would be right"),
        ("order: A", "order: !!str A", "9: tag 'tag:yaml.org,2002:str' given, none would be right"),
        ("gate_bias: false", "gate_bias: false\n--- {}", "12: a second document starts here, one a file would be right"),
        ("gate_bias: false", "gate_bias: " + "[" * 5000, "11: nested deeper than 8 levels"),
        ("gate_bias: false", "gate_bias: [" + "1, " * 2000 + "]", "11: more than 1000 values, far more than a file needs"),
        ("gate_bias: false", "gate_bias: a: b", "11: not valid YAML: mapping values are not allowed here"),
        ("gate_bias: false", "gate_bias: \0", "11: character U+0000 is not allowed in YAML"),
    ],
)  # fmt: skip
def test_one_mistake(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    assert problems_of(write(tmp_path, GOOD.replace(old, new))) == [f"tiny.yaml:{message}"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("scoring: sigmod", f"routing.scoring: 'sigmod' given, {SCORING} would be right"),
        ("scoring: true", f"routing.scoring: true given, {SCORING} would be right"),
        ("scoring:", f"routing.scoring: nothing given, {SCORING} would be right"),
        ("scoring_func: sigmoid", "routing.scoring_func: unknown key, scoring would be right"),
        ("n_group: 4", "routing.n_group: unknown key, n_group under routing.groups would be right"),
        ("epsilon: 0", "routing.epsilon: unknown key, epsilon under routing.renormalize would be right"),
        (
            "scoring: sigmoid, groups: {n_group: 1, topk_group: 1, score: max}",
            "routing.groups.n_group: 1 given, a whole number from 2 to 32 would be right",
        ),
        (
            "scoring: sigmoid, groups: {n_group: 3, topk_group: 1, score: max}",
            "routing.groups.n_group: 3 given, a divisor of num_experts (8) would be right",
        ),
        (
            "scoring: sigmoid, groups: {n_group: 16, topk_group: 16, score: max}",
            "routing.groups.n_group: 16 given, a divisor of num_experts (8) would be right",
        ),
        (
            "scoring: sigmoid, groups: {n_group: 4, topk_group: 5, score: max}",
            "routing.groups.topk_group: 5 given, at most n_group (4) would be right",
        ),
        (
            "scoring: sigmoid, groups: {n_group: 4, topk_group: 0, score: max}",
            "routing.groups.topk_group: 0 given, a whole number from 1 to n_group would be right",
        ),
        (
            "scoring: sigmoid, groups: {n_group: 8, topk_group: 1, score: max}",
            "routing.top_k: 2 given, at most topk_group * num_experts / n_group (1) would be right",
        ),
        (
            "scoring: sigmoid, groups: {n_group: 8, topk_group: 2, score: top2_sum}",
            "routing.groups.score: 'top2_sum' given, max would be right where a group is one expert",
        ),
        (
            "scoring: sigmoid, groups: {n_group: 4, topk_group: 1, score: sum}",
            "routing.groups.score: 'sum' given, top2_sum or max would be right",
        ),
        (
            "scoring: sigmoid, groups: {n_group: 4, score: max}",
            "routing.groups.topk_group: missing, a whole number from 1 to n_group would be right",
        ),
        (
            "scoring: sigmoid, groups: 4",
            "routing.groups: 4 given, none, or a mapping with n_group, topk_group and score would be right",
        ),
        (
            "scoring: sigmoid, tid2eid: {vocab_size: 9}, groups: {n_group: 4, topk_group: 2, score: max}",
            "routing.groups: a mapping given, leaving it out would be right where tid2eid is given",
        ),
        (
            "scoring: sigmoid, renormalize: true",
            "routing.renormalize: true given, none, or a mapping with epsilon or floor would be right",
        ),
        (
            "scoring: sigmoid, renormalize: {eps: 1e-20}",
            "routing.renormalize.eps: unknown key, epsilon would be right",
        ),
        (
            "scoring: sigmoid, renormalize: {epsilon: -1}",
            "routing.renormalize.epsilon: -1 given, a number from 0 to 1, such as 1e-20 would be right",
        ),
        (
            "scoring: sigmoid, renormalize: {floor: .nan}",
            "routing.renormalize.floor: nan given, a number from 0 to 1, such as 1e-12 would be right",
        ),
        ("scoring: sigmoid, routed_scaling_factor: 0", f"routing.routed_scaling_factor: 0 given, {FACTOR} would be right"),
        ("scoring: sigmoid, routed_scaling_factor: .inf", f"routing.routed_scaling_factor: inf given, {FACTOR} would be right"),
        ("scoring: sigmoid, softcap: -30", f"routing.softcap: -30 given, none, or {FACTOR} would be right"),
        ("scoring: sigmoid, per_expert_scale: 1", "routing.per_expert_scale: 1 given, true or false would be right"),
        (
            "per_expert_scale: true",
            "routing.per_expert_scale: true given, leaving it out would be right where scoring is none",
        ),
        ("scoring: sigmoid, router_logits: 1", "routing.router_logits: 1 given, true or false would be right"),
        ("scoring: sigmoid, ids_dtype: int16", "routing.ids_dtype: 'int16' given, int32 or int64 would be right"),
        (
            "scoring: sigmoid, weights_dtype: float16",
            "routing.weights_dtype: 'float16' given, float32 or bfloat16 would be right",
        ),
        (
            "scoring: softmax_of_chosen",
            "routing.e_score_correction_bias: true given, false would be right where scoring is softmax_of_chosen",
        ),
        ("groups: none", "routing.groups: 'none' given, leaving it out would be right where scoring is none"),
        (
            "renormalize: {epsilon: 0.0}",
            "routing.renormalize: a mapping given, leaving it out would be right where scoring is none",
        ),
        (
            "scoring: none, routed_scaling_factor: 1.0",
            "routing.routed_scaling_factor: 1.0 given, leaving it out would be right where scoring is none",
        ),
        ("softcap: 30.0", "routing.softcap: 30.0 given, leaving it out would be right where scoring is none"),
        ("router_logits: true", "routing.router_logits: true given, leaving it out would be right where scoring is none"),
        ("ids_dtype: int32", "routing.ids_dtype: 'int32' given, leaving it out would be right where scoring is none"),
        (
            "weights_dtype: float32",
            "routing.weights_dtype: 'float32' given, leaving it out would be right where scoring is none",
        ),
    ],
)  # fmt: skip
def test_one_mistake_in_the_selection(tmp_path: Path, keys: str, message: str) -> None:
    routing = f"routing: {{top_k: 2, e_score_correction_bias: true, {keys}}}"
    text = GOOD[: GOOD.index("routing:")] + routing
    assert problems_of(write(tmp_path, text)) == [f"tiny.yaml:12: {message}"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "top_k: 2, scoring: softmax, e_score_correction_bias_vl: true",
            "routing.e_score_correction_bias_vl: true given, leaving it out would be right where e_score_correction_bias "
            "is false",
        ),
        (
            "top_k: 33, scoring: softmax",
            "routing.top_k: 33 given, at most 32 would be right where scoring is softmax",
        ),
        (
            "top_k: 2, scoring: softmax_of_chosen, groups: {n_group: 8, topk_group: 2, score: max}",
            "routing.groups: a mapping given, leaving it out would be right where scoring is softmax_of_chosen",
        ),
        (
            "top_k: 2, scoring: softmax_of_chosen, renormalize: {}",
            "routing.renormalize: a mapping given, leaving it out would be right where scoring is softmax_of_chosen",
        ),
    ],
)
def test_selections_that_do_not_go_together(tmp_path: Path, keys: str, message: str) -> None:
    routing = f"routing: {{e_score_correction_bias: false, {keys}}}"
    text = GOOD[: GOOD.index("routing:")].replace("num_experts: 8", "num_experts: 64") + routing
    assert problems_of(write(tmp_path, text)) == [f"tiny.yaml:12: {message}"]


def test_logits_that_are_no_output_have_no_dtype(tmp_path: Path) -> None:
    text = GOOD.replace("  gate_weight: float32", "  gate_weight: float32\n  logits: float32")
    message = "tiny.yaml:8: dtypes.logits: 'float32' given, leaving it out would be right where routing.router_logits is false"
    assert problems_of(write(tmp_path, text + "  scoring: sigmoid\n")) == [message]
    assert load_spec(write(tmp_path, text + "  scoring: sigmoid\n  router_logits: true\n")).routing.router_logits
    assert load_spec(write(tmp_path, text)).routing.scoring is None


@pytest.mark.parametrize(
    ("residual", "message"),
    [
        ("true", "residual: true given, none, or a mapping with multiplier would be right"),
        ("{factor: 2}", "residual.factor: unknown key, one of multiplier, stream_multiplier would be right"),
        ("{multiplier: 0}", f"residual.multiplier: 0 given, {FACTOR}, or from -1e6 to -1e-6 would be right"),
        ("{multiplier: -1e-9}", f"residual.multiplier: -1e-09 given, {FACTOR}, or from -1e6 to -1e-6 would be right"),
        ("{multiplier: 2e6}", f"residual.multiplier: 2000000.0 given, {FACTOR}, or from -1e6 to -1e-6 would be right"),
        (
            "{stream_multiplier: 0}",
            f"residual.stream_multiplier: 0 given, {FACTOR}, or from -1e6 to -1e-6 would be right",
        ),
        ("{multiplier: .nan}", f"residual.multiplier: nan given, {FACTOR}, or from -1e6 to -1e-6 would be right"),
    ],
)
def test_one_mistake_in_the_residual(tmp_path: Path, residual: str, message: str) -> None:
    assert problems_of(write(tmp_path, GOOD + f"residual: {residual}\n")) == [f"tiny.yaml:15: {message}"]


def test_norm_none_rules_out_a_residual(tmp_path: Path) -> None:
    text = GOOD.replace("norm:\n  order: A\n  eps: 1e-6", "norm: none\nresidual: {}")
    message = "tiny.yaml:9: residual: a mapping given, none would be right where norm is none"
    assert problems_of(write(tmp_path, text)) == [message]
    assert load_spec(write(tmp_path, text.replace("{}", "none"))).residual is None


def test_an_unknown_key_is_looked_for_nearby_first(tmp_path: Path) -> None:
    text = GOOD.replace("  eps: 1e-6", "  eps: 1e-6\n  epsilon: 1e-6")
    assert problems_of(write(tmp_path, text)) == ["tiny.yaml:11: norm.epsilon: unknown key, eps would be right"]


def test_norm_none_rules_out_logits_from(tmp_path: Path) -> None:
    text = GOOD.replace("norm:\n  order: A\n  eps: 1e-6", "norm: none\nlogits_from: unrounded")
    message = "tiny.yaml:9: logits_from: 'unrounded' given, leaving it out would be right where norm is none"
    assert problems_of(write(tmp_path, text)) == [message]


def test_dtypes_that_is_no_mapping(tmp_path: Path) -> None:
    text = GOOD.replace("dtypes:\n  activation: bfloat16\n  gate_weight: float32", "dtypes: bfloat16")
    message = "tiny.yaml:5: dtypes: 'bfloat16' given, a mapping with activation and gate_weight would be right"
    assert problems_of(write(tmp_path, text)) == [message]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1: an empty file given, a mapping of keys to values would be right"),
        (b"# nothing\n", ":1: an empty file given, a mapping of keys to values would be right"),
        (b"- 1\n", ":1: a list given, a mapping of keys to values would be right"),
        (b"text\n", ":1: a value given, a mapping of keys to values would be right"),
        (b"name: \xff\n", ":1: byte 0xff is not UTF-8 text"),
        (b"\x7fELF\x02\x01\x01\x00", ":1: character U+007F is not allowed in YAML"),
        (b"#" * (1 << 20) + b"#", ": is larger than 1048576 bytes, far more than such a file needs"),
        (b"name: *a\n", ":1: alias *a given, the value written out would be right"),
    ],
)
def test_a_file_that_is_no_spec(tmp_path: Path, content: bytes, message: str) -> None:
    assert problems_of(write(tmp_path, content)) == [f"tiny.yaml{message}"]


def test_a_character_that_does_not_exist(tmp_path: Path) -> None:
    assert problems_of(write(tmp_path, r'name: "\U00110000"'))[0].startswith("tiny.yaml: not valid YAML")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "absent.yaml") == ["absent.yaml: cannot be read: No such file or directory"]
    (tmp_path / "folder.yaml").mkdir()
    assert problems_of(tmp_path / "folder.yaml") == ["folder.yaml: is no regular file"]


def test_problems_are_reported_together_in_the_order_of_lines(tmp_path: Path) -> None:
    text = (
        GOOD.replace("64", "63")
        .replace("gate_bias: false", "colour: red")
        .replace("1e-6", "1")
        .replace("top_k: 2", "top_k: 9")
    )
    known = (
        "name, sources, not_covered, hidden_size, num_experts, dtypes, residual, norm, gate_bias, logits_from, routing, "
        "token_thresholds, sm_targets, early_weight_loads, batch_invariant, allow_spills"
    )
    assert problems_of(write(tmp_path, text)) == [
        "tiny.yaml:1: gate_bias: missing, true or false would be right",
        "tiny.yaml:3: hidden_size: 63 given, a multiple of 8 from 8 to 65536 would be right",
        f"tiny.yaml:10: norm.eps: 1 given, {EPS} would be right",
        f"tiny.yaml:11: colour: unknown key, one of {known} would be right",
        "tiny.yaml:13: routing.top_k: 9 given, at most num_experts (8) would be right",
    ]


def test_all_files_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    paths = [
        write(tmp_path, GOOD),
        write(tmp_path / "more", GOOD),
        write(tmp_path, GOOD.replace("64", "7"), "other.yaml"),
        write(tmp_path, GOOD, "tiny.yml"),
    ]
    with pytest.raises(BadInput) as caught:
        load_specs(paths)
    lines = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    assert lines == [
        "more/tiny.yaml:1: name: 'tiny' given, which is the name of tiny.yaml already",
        "other.yaml:1: name: 'tiny' given, other (or the file named tiny.yaml) would be right",
        "other.yaml:3: hidden_size: 7 given, a multiple of 8 from 8 to 65536 would be right",
        "tiny.yml:1: file name tiny.yml given, tiny.yaml would be right",
    ]


def test_defaults(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD))
    assert (spec.logits_dtype, spec.logits_from, spec.token_thresholds) == ("float32", "unrounded", "auto")
    assert (spec.sm_targets, spec.early_weight_loads, spec.allow_spills) == (SM_TARGETS, True, False)
    assert not spec.batch_invariant
    assert spec.residual is None
    assert spec.routing == Routing(top_k=2, e_score_correction_bias=True)
    assert (spec.routing.tid2eid, spec.routing.scoring) == (None, None)


def test_defaults_of_the_stages(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD + "  scoring: sigmoid\n  renormalize: {}\nresidual: {}\n"))
    assert (spec.residual, spec.routing.renormalize) == (Residual(multiplier=1.0), Renormalize(epsilon=0.0, floor=0.0))
    routing = spec.routing
    assert (routing.groups, routing.routed_scaling_factor, routing.softcap) == (None, 1.0, None)
    assert (routing.router_logits, routing.ids_dtype, routing.weights_dtype) == (False, "int32", "float32")


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    keys = "  scoring: sigmoid\n  renormalize: {epsilon: 0}\n  routed_scaling_factor: 2\n  softcap: 30\n"
    spec = load_spec(write(tmp_path, GOOD + keys + "residual: {multiplier: -1}\n"))
    routing = spec.routing
    assert (spec.residual, routing.renormalize) == (Residual(multiplier=-1.0), Renormalize())
    assert (routing.routed_scaling_factor, routing.softcap) == (2.0, 30.0)


@pytest.mark.parametrize("eps", ["1e-6", "1.0e-06", "0.000001", "1.E-6", "10e-7"])
def test_eps_is_read_as_a_number(tmp_path: Path, eps: str) -> None:
    spec = load_spec(write(tmp_path, GOOD.replace("1e-6", eps)))
    assert spec.norm == Norm(order="A", eps=1e-6)


def test_words_for_none_and_all(tmp_path: Path) -> None:
    text = GOOD.replace("norm:\n  order: A\n  eps: 1e-6", "norm: none\nresidual: none\nsm_targets: all").replace(
        "top_k: 2", "top_k: 2\n  tid2eid: none\n  scoring: none"
    )
    spec = load_spec(write(tmp_path, "\ufeff" + text.replace("\n", "\r\n")))
    assert (spec.norm, spec.residual, spec.sm_targets) == (None, None, SM_TARGETS)
    assert (spec.routing.tid2eid, spec.routing.scoring) == (None, None)
    chosen = GOOD + "  scoring: softmax\n  groups: none\n  renormalize: none\n  softcap: none\n"
    routing = load_spec(write(tmp_path, chosen)).routing
    assert (routing.groups, routing.renormalize, routing.softcap) == (None, None, None)


def everything(spec: RouterSpec) -> RouterSpec:
    """`spec` with no key left at its default, but for groups, which tid2eid rules out."""
    routing = Routing(
        top_k=2,
        e_score_correction_bias=True,
        tid2eid=Tid2Eid(vocab_size=1000),
        scoring="sqrtsoftplus",
        renormalize=Renormalize(epsilon=1e-20, floor=1e-12),
        routed_scaling_factor=2.5,
        softcap=30.0,
        e_score_correction_bias_vl=True,
        per_expert_scale=True,
        router_logits=True,
        ids_dtype="int64",
        weights_dtype="bfloat16",
    )
    update = {
        "sources": ('quotes " and \\ and: # é', "two"),
        "logits_dtype": "bfloat16",
        "residual": Residual(multiplier=0.22, stream_multiplier=-3.5),
        "logits_from": "rounded",
        "routing": routing,
        "token_thresholds": TokenThresholds(gemv=0, split_k=64),
        "sm_targets": (90, 121),
        "early_weight_loads": False,
        "allow_spills": True,
    }
    return spec.model_copy(update=update)


@pytest.mark.parametrize("name", ["tiny", "true", "no", "null", "e1"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    plain = load_spec(write(tmp_path, GOOD)).model_copy(update={"name": name})
    gate_alone = plain.model_copy(update={"norm": None})
    never = plain.model_copy(update={"token_thresholds": TokenThresholds(gemv=8, split_k=0)})
    chosen = plain.model_copy(
        update={
            "residual": Residual(),
            "routing": Routing(
                top_k=2,
                e_score_correction_bias=True,
                scoring="sigmoid",
                groups=Groups(n_group=4, topk_group=2, score="top2_sum"),
                renormalize=Renormalize(),
            ),
        }
    )
    floored = chosen.routing.model_copy(update={"renormalize": Renormalize(floor=1e-12), "groups": None})
    floored = chosen.model_copy(update={"routing": floored})
    for spec in (plain, everything(plain), gate_alone, never, chosen, floored):
        path = write(tmp_path, dump_spec(spec, "A comment\nthat is long: " + "x " * 100), f"{name}.yaml")
        assert load_spec(path) == spec


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1.5e-7, 1e-20, 0.1, 0.0001, 1e-30])
def test_eps_survives_the_round_trip(tmp_path: Path, eps: float) -> None:
    spec = load_spec(write(tmp_path, GOOD)).model_copy(update={"norm": Norm(order="G", eps=eps)})
    assert load_spec(write(tmp_path, dump_spec(spec))) == spec


def test_a_spec_is_frozen_and_checked_when_built_by_hand(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD))
    with pytest.raises(ValidationError):
        spec.hidden_size = 8  # type: ignore[misc]
    with pytest.raises(ValidationError, match="at most num_experts"):
        RouterSpec(**{**dict(spec), "num_experts": 1})
    assert RouterSpec(**{**dict(spec), "norm": None}).norm is None
    with pytest.raises(ValidationError, match=r"routing.softcap: 30.0 given, leaving it out would be right"):
        RouterSpec(**{**dict(spec), "routing": spec.routing.model_copy(update={"softcap": 30.0})})
    with pytest.raises(ValidationError, match="none would be right where norm is none"):
        RouterSpec(**{**dict(spec), "norm": None, "residual": Residual()})


@pytest.mark.parametrize("folder", [SPECS, OTHER_SPECS], ids=["shipped", "other shapes"])
def test_specs_load_and_leave_defaults_out(folder: Path) -> None:
    paths = sorted(folder.glob("*.yaml"))
    for spec, path in zip(load_specs(paths), paths, strict=True):
        comment = " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))
        assert dump_spec(spec, comment) == path.read_text()


def test_how_a_problem_reads() -> None:
    assert str(Problem("a.yaml", 3, "wrong")) == "a.yaml:3: wrong"
    assert str(Problem("a.yaml", None, "wrong")) == "a.yaml: wrong"
    assert str(Problem(None, None, "--flag: wrong")) == "--flag: wrong"
