"""`python -m normgate doctor`: what it says, and that it sees what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import normgate
import pytest
import torch
from normgate import __main__ as command
from normgate import dispatch, doctor, ops, reference


@pytest.fixture(autouse=True)
def few_models(example_tables, monkeypatch):
    """Two, for time."""
    monkeypatch.setattr(doctor, "_TESTED_TOKENS", (1, 3))


def test_as_users_run_it(tmp_path):
    root = Path(normgate.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "normgate", "doctor", "--json"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == 0, found["problems"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["normgate"] == normgate.__version__
    assert set(found["self_test"]["models"].values()) == {"right"}


def test_text_for_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for expected in ("no CUDA device", torch.__version__, "self-test against float64 on cpu", "no problem found"):
        assert expected in said
    for model in dispatch.models():
        assert model in said


def test_a_wrong_operator_is_a_problem(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    real = reference.gate
    # The reference in float32 is what the CPU's operator runs; in float64 it is what it is held against.
    wrong = lambda *given: real(*given) + (0 if given[-1] is torch.float64 else 0.1)  # noqa: E731
    monkeypatch.setattr(reference, "gate", wrong)
    assert command.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert f"PROBLEM: self-test of {dispatch.models()[0]}: normgate::" in said
    assert "is " in said and "no problem found" not in said


CHIP = {"name": "a chip", "sm": 90, "driver": "13.0"}
LIBRARY = {"file": "libnormgate.so", "sms": [80, 90], "ptx_sms": [90], "stream_symbol": True}


@pytest.mark.parametrize(
    "chip, library, problem",
    [
        ({}, {}, None),
        ({"sm": 86}, {}, None),
        ({"sm": 120}, {}, None),
        ({}, {"sms": [], "ptx_sms": []}, None),
        ({"sm": 120}, {"sms": []}, None),
        ({"sm": 86}, {"sms": []}, "the library holds no code for sm_86"),
        ({"sm": 75}, {}, r"the library holds no code for sm_75; `python build.py --sm 75` compiles it"),
        ({"sm": 90}, {"sms": [120], "ptx_sms": [120]}, "the library holds no code for sm_90"),
        ({}, {"file": None}, "there is a CUDA device and no libnormgate.so; `python build.py --sm native`"),
        ({}, {"stream_symbol": False}, "does not find the current stream of torch"),
    ],
)
def test_what_keeps_kernels_from_running(chip, library, problem):
    found = doctor._misfits({**CHIP, **chip}, {**LIBRARY, **library})
    assert found == [] if problem is None else problem in found[0]


@pytest.mark.parametrize(
    "library, said",
    [
        ({}, "  sm_80, sm_90, PTX of sm_90"),
        ({"sms": []}, "  PTX of sm_90"),
        ({"sms": [], "ptx_sms": []}, "  SMs unknown"),
    ],
)
def test_what_a_library_holds_is_said(library, said):
    found = {"versions": {}, "chip": None, "library": {**LIBRARY, **library}, "variants": {}, "problems": []}
    lines = doctor.text({**found, "self_test": {"device": "cpu", "models": {}}}).splitlines()
    assert any(line.startswith(said) for line in lines)


def test_variants_of_a_chip(monkeypatch):
    model = dispatch.models()[0]
    kernels = doctor._variants(model, 90)
    assert list(kernels)[0] == dispatch.model_table(model).kernel
    for kernel, served in kernels.items():
        assert served == {tokens: dispatch.explain(kernel, tokens, 90).variant for tokens in doctor.TOKENS}


def test_an_unknown_verb(capsys):
    assert command.main(["docter"]) == 2
    assert "usage: python -m normgate VERB" in capsys.readouterr().err


def test_the_library_is_found_by_its_stamp(monkeypatch, tmp_path):
    monkeypatch.setattr(ops, "LIBRARY", None)
    assert doctor._library() == {"file": None, "sms": [], "ptx_sms": [], "stream_symbol": False}
