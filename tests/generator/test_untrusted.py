"""Specs and configs are untrusted input: refused with a message or right, never code. `python -m tests.fuzz` tries more."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.arch import SM_TARGETS
from codegen.cli import main
from codegen.errors import BadInput
from codegen.hf import load_config
from codegen.spec import RouterSpec, load_spec
from tests.fuzz import inputs, tries
from tests.fuzz.kills import Kills

SEED = int(os.environ.get("NORMGATE_FUZZ_SEED", "1"))

# A name in its grammar, its parts and what joins them.
_part = st.text("abcxyz0189", min_size=1, max_size=5)
names = st.builds(
    lambda first, rest: "m" + first + "".join(join + part for join, part in rest),
    _part,
    st.lists(st.tuples(st.sampled_from("-_."), _part), max_size=4),
).filter(lambda name: name != tries.PLAIN)
sources = st.lists(
    st.text(min_size=1, max_size=60).filter(lambda text: text.isprintable() and text.strip() != "")
    | st.sampled_from([word for word in inputs.BREAKING_OUT if word.isprintable() and word.strip()]).map(
        lambda w: w[:900]
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def specs(draw: st.DrawFn) -> RouterSpec:
    """A valid spec out of most of what may be said."""
    num_experts = draw(st.integers(1, 1024))
    scoring = draw(st.sampled_from([None, "softmax", "softmax_of_chosen", "sigmoid", "sqrtsoftplus"]))
    with_norm = draw(st.booleans())
    routing: dict[str, Any] = {"top_k": draw(st.integers(1, min(num_experts, 32))), "e_score_correction_bias": False}
    if scoring is not None:
        routing |= {"scoring": scoring, "router_logits": draw(st.booleans())}
        routing["routed_scaling_factor"] = draw(st.floats(1e-6, 1e6))
    if scoring in ("softmax", "sigmoid", "sqrtsoftplus"):
        routing["e_score_correction_bias"] = draw(st.booleans())
    data: dict[str, Any] = {
        "name": draw(names),
        "sources": tuple(draw(sources)),
        "hidden_size": 8 * draw(st.integers(1, 8192)),
        "num_experts": num_experts,
        "activation_dtype": draw(st.sampled_from(["bfloat16", "float16"])),
        "gate_weight_dtype": draw(st.sampled_from(["bfloat16", "float16", "float32"])),
        "norm": None,
        "gate_bias": draw(st.booleans()),
        "routing": routing,
        "sm_targets": tuple(sm for sm in SM_TARGETS if draw(st.booleans())) or (90,),
    }
    if with_norm:
        data["norm"] = {"order": draw(st.sampled_from("ABG")), "eps": draw(st.floats(1e-30, 0.1))}
        data["logits_from"] = draw(st.sampled_from(["unrounded", "rounded"]))
        if draw(st.booleans()):
            data["residual"] = {"multiplier": draw(st.floats(1e-6, 1e6))}
    return RouterSpec.model_validate(data)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(spec=specs())
def test_a_valid_spec_survives_the_round_trip(spec: RouterSpec, tmp_path_factory: pytest.TempPathFactory) -> None:
    tries.require_round_trip(spec, tmp_path_factory.mktemp("spec"))


@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(spec=specs())
def test_a_spec_is_text_in_what_is_generated(spec: RouterSpec) -> None:
    tries.require_only_text(spec)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_whatever_the_bytes_the_answer_is_a_message(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="x.yaml"):
        load_spec(path)
    try:
        assert isinstance(load_config(path), dict)
    except BadInput as error:
        assert "x.yaml" in str(error)


def test_the_watch_sees_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, a hang, a spec's text in the code, brackets that do not match."""

    def broken(*_: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr(tries, "load_spec", broken)
    with pytest.raises(tries.Failure, match="KeyError"):
        tries.try_spec(Random(1))

    def endless(*_: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(tries, "LIMIT_S", 0.1)
    monkeypatch.setattr(tries, "load_spec", endless)
    with pytest.raises(tries.Failure, match="took more than 0.1 s"):
        tries.try_spec(Random(1))
    for text in ("f(", "f(]", '"\n"', "a $ b"):
        with pytest.raises(tries.Failure):
            tries.code_of(text)
    assert tries.code_of('f("a\\"b", \'x\'); // {\n/* ( */') == ["f", "(", '""', ",", "'x'", ")", ";"]
    real = tries.render
    monkeypatch.setattr(tries, "render", lambda plan: {**real(plan), "a.cu": f"int {plan.kernels[0].specs[0].name};"})
    spec = RouterSpec.model_validate(json.loads(json.dumps(SMALL)), strict=False)
    with pytest.raises(tries.Failure, match="a.cu: the name or the sources show in the code"):
        tries.require_only_text(spec)


SMALL = {
    "name": "small",
    "sources": ["a test"],
    "hidden_size": 64,
    "num_experts": 16,
    "activation_dtype": "bfloat16",
    "gate_weight_dtype": "bfloat16",
    "norm": {"order": "B", "eps": 1e-6},
    "gate_bias": False,
    "routing": {"top_k": 2, "e_score_correction_bias": False},
    "sm_targets": [90],
}


@pytest.mark.parametrize("word", [*inputs.BREAKING_OUT, "abc\n", "Abc", "a--b", "-a", "a-"])
def test_names_that_would_break_out(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a string, a comment, a literal, a path: in a spec, as --name, and in a config."""
    spec = tmp_path / "spec.yaml"
    text = inputs.SPECS[0].replace("name: deepseek-v3", f"name: {json.dumps(word)}")
    assert "name: deepseek-v3" not in text
    spec.write_text(text)
    with pytest.raises(BadInput, match="name|U\\+D800|not valid YAML"):
        load_spec(spec)
    config = inputs.ROOT / "tests/data/configs/deepseek-v3.json"
    out = tmp_path / "out"
    arguments = ["add", str(config), "--out", str(out), "--name"]
    if word and not json.dumps(word).strip('"').isalnum():  # nan, null, true and 1e5 are names like others
        assert main([*arguments, word], "build.py") == 2
        assert "name" in capsys.readouterr().err
        assert not out.exists()
    (tmp_path / "config.json").write_text(json.dumps({**inputs.CONFIGS[0], "_name_or_path": f"org/{word}"}))
    main(["add", str(tmp_path / "config.json"), "--out", str(out)], "build.py")
    assert {path.parent for path in tmp_path.rglob("*.yaml")} <= {tmp_path, out}, "a path was left"


def test_a_hundred_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with path.open("wb") as stream:
        stream.truncate(100 << 20)
    with pytest.raises(BadInput, match="larger than 1048576 bytes"):
        load_spec(path)
    with pytest.raises(BadInput, match="larger than 16777216 bytes"):
        load_config(path)


def test_a_share_of_the_fuzzed_specs() -> None:
    done = {tries.try_spec(Random(f"{SEED} specs {number}"), render_one_in=40) for number in range(120)}
    assert done >= {"refused", "accepted"}


def test_a_share_of_the_fuzzed_configs() -> None:
    done = {tries.try_config(Random(f"{SEED} configs {number}")) for number in range(200)}
    assert done == {"refused", "accepted"}


def test_killed_at_a_random_moment(tmp_path: Path) -> None:
    kills = Kills(tmp_path)
    random = Random(SEED)
    done = [kills.kill_one(random) for _ in range(3)]
    assert set(done) <= {"old", "new", "finished"}
    kills.mend()
