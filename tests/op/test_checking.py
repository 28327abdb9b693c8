"""The debug switch: right calls pass, a sabotaged operator is named with the first value that is wrong."""

import subprocess
import sys
import warnings
from pathlib import Path

import normgate
import pytest
import torch
from normgate import Routing, WrongResult, checking, ops

K, N, TOKENS = 128, 24, 9
SCORINGS = ["softmax", "softmax_of_chosen", "sigmoid", "sqrtsoftplus"]


def arguments(gate_dtype=torch.bfloat16):
    return dict(
        x=torch.randn(TOKENS, K).bfloat16(),
        gate_weight=(torch.randn(N, K) / K**0.5).to(gate_dtype),
        norm_weight=torch.randn(K).bfloat16(),
        eps=1e-6,
        norm_order="B",
    )


def routed(scoring, **changes):
    groups = {} if scoring == "softmax_of_chosen" else dict(n_group=4, topk_group=2, renormalize=True)
    biased = {} if scoring == "softmax_of_chosen" else dict(e_score_correction_bias=torch.randn(N) / 4)
    routing = Routing(5, scoring, routed_scaling_factor=2.5, **groups)
    return {**arguments(), "residual": torch.randn(TOKENS, K).bfloat16(), "routing": routing, **biased, **changes}


@pytest.fixture
def sabotaged(monkeypatch):
    """Changes one element of one output of an operator."""

    def sabotage(op, output, index, value):
        class Sabotaged:
            def __getattr__(self, name):
                real = getattr(torch.ops.normgate, name)
                if name != op:
                    return real
                return type("Op", (), {"default": staticmethod(lambda *given: spoil(real.default(*given)))})

        def spoil(results):
            spoiled = results if isinstance(results, torch.Tensor) else results[output]
            spoiled[index] = value
            return results

        monkeypatch.setattr(ops, "_ops", Sabotaged())
        if op == "norm_gate":  # the operators that it calls for the usual contract
            spoiling = {order: lambda *given, real=real: spoil(real(*given)) for order, real in ops._IN_ORDER.items()}
            monkeypatch.setattr(ops, "_IN_ORDER", spoiling)

    return sabotage


@pytest.mark.parametrize("logits_from", ["unrounded", "rounded"])
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", "ABG")
def test_right_calls_pass(order, logits_dtype, logits_from):
    called = {**arguments(), "norm_order": order, "logits_dtype": logits_dtype}
    bias = torch.randn(N).bfloat16()
    with normgate.checked():
        normgate.norm_gate(**called, gate_bias=bias, logits_from=logits_from)
        normgate.gate(called["x"], called["gate_weight"], bias, logits_dtype=logits_dtype)
        normgate.gate(called["x"].reshape(3, 3, K), called["gate_weight"])


@pytest.mark.parametrize("returns_logits", [False, True])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_right_routes_pass(scoring, returns_logits):
    with normgate.checked():
        for _ in range(5):
            normgate.route(**routed(scoring), returns_logits=returns_logits)
            normgate.route(**routed(scoring, residual=None))


def test_ties_and_padding_pass():
    """Where experts are equals either may come first, and of rows that are not numbers nothing is asked."""
    called = routed("sigmoid")
    called["gate_weight"][1::2] = called["gate_weight"][::2]
    called["x"][2] = torch.nan
    called["x"][3] = 0
    called["residual"][3] = 0
    with normgate.checked():
        normgate.route(**called)


def test_a_hash_layer_passes():
    table, tokens = torch.stack([torch.randperm(N)[:5] for _ in range(20)]), torch.randint(0, 20, (TOKENS,))
    with normgate.checked():
        normgate.route(
            **routed("sigmoid", routing=Routing(5, "sigmoid"), e_score_correction_bias=None),
            tid2eid=table,
            input_ids=tokens,
        )


@pytest.mark.parametrize("hashes", [False, True])
def test_images_and_scaled_experts_pass_and_wrong_ones_do_not(hashes, sabotaged):
    table = dict(tid2eid=torch.stack([torch.randperm(N)[:5] for _ in range(20)]), input_ids=torch.arange(TOKENS))
    changes = dict(routing=Routing(5, "sigmoid"), e_score_correction_bias=None, **table) if hashes else {}
    called = routed("sigmoid", stream_multiplier=-1.5, per_expert_scale=torch.rand(N), **changes)
    called |= dict(e_score_correction_bias_vl=torch.randn(N), image_mask=torch.arange(TOKENS) % 2 == 0)
    with normgate.checked():
        got = normgate.route(**called)
    called["x"] = called["x"].clone()
    for output, index in ((2, (4, 1)), (3, (4, 1)), (3, (5, 1)), (1, (0, 0))):  # rows 4 and 5: an image and text
        sabotaged("route", output, index, got[{1: 1, 2: 2, 3: 3}[output]][index] + 1)
        with normgate.checked(), pytest.raises(WrongResult):
            normgate.route(**called)


def test_a_wrong_logit_is_named(sabotaged):
    called = arguments()
    right = normgate.norm_gate(**called)[1]
    sabotaged("norm_gate", 1, (3, 17), right[3, 17] + 0.01)
    normgate.norm_gate(**called)
    with normgate.checked(), pytest.raises(WrongResult) as wrong:
        normgate.norm_gate(**called)
    said = str(wrong.value)
    assert said.startswith("normgate::norm_gate: router_logits[3, 17] is ")
    assert f"1 of {TOKENS * N} values differ; router_logits [{TOKENS}, {N}] float32 on cpu" in said
    assert f"x [{TOKENS}, {K}] bfloat16 on cpu" in said
    normgate.norm_gate(**called)


@pytest.mark.parametrize(
    "output, name, change",
    [
        (0, "normed_x", lambda right: right[4, 2] * 1.05 + 0.1),
        (1, "residual_out", lambda right: right[4, 2] + 0.1),
        (2, "topk_weights", lambda right: right[4, 2] * 1.01),
        (3, "topk_ids", lambda right: (right[4, 2] + 1) % N),
        (4, "router_logits", lambda right: right[4, 2] + 0.01),
        (4, "router_logits", lambda right: torch.nan),
    ],
)
def test_any_wrong_output_is_named(sabotaged, output, name, change):
    called = {**routed("sigmoid"), "returns_logits": True}
    right = normgate.route(**called)
    sabotaged("route", output, (4, 2), change(right[output]))
    with normgate.checked(), pytest.raises(WrongResult, match=rf"normgate::route: {name}\[4, 2\] is .* expected .*"):
        normgate.route(**called)


def test_a_choice_in_the_wrong_order_is_named(sabotaged):
    """Without logits to look at, too."""
    called = routed("sqrtsoftplus")
    ids = normgate.route(**called).topk_ids
    sabotaged("route", 3, (0,), ids[0].flip(0))
    with normgate.checked(), pytest.raises(WrongResult, match=r"topk_ids\[0, 0\] is"):
        normgate.route(**called)


def test_the_environment_turns_it_on():
    script = "import normgate; print(normgate.checking.wanted())"
    root = Path(normgate.__file__).parents[1]
    for value, wanted in (("1", "True"), ("0", "False"), ("", "False")):
        done = subprocess.run(
            [sys.executable, "-c", script], env={"NORMGATE_CHECK": value, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True
        )  # fmt: skip
        assert done.stdout.strip() == wanted


def test_captures_are_skipped_with_one_warning(monkeypatch, sabotaged):
    """The capture is played: CUDA graphs need a device."""
    called = arguments()
    sabotaged("norm_gate", 1, (0, 0), 100.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    checking._warn_of_capture.cache_clear()
    with normgate.checked():
        with pytest.warns(RuntimeWarning, match="captured into a CUDA graph are not checked"):
            normgate.norm_gate(**called)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            normgate.norm_gate(**called)


def test_compiled_programs_are_not_checked_and_stay_whole():
    called = arguments()
    right = normgate.norm_gate(**called)
    with normgate.checked():
        got = torch.compile(normgate.norm_gate, fullgraph=True, backend="eager")(**called)
    assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))


@pytest.mark.parametrize("order", ["A", "B", "G"])
def test_ties_of_the_roundings_of_many_rows_pass(order):
    x, weight = torch.randn(2000, 4096).bfloat16(), (torch.randn(4096) * 0.3 + 1).bfloat16()
    gate = (torch.randn(8, 4096) / 64).bfloat16()
    with torch.no_grad(), normgate.checked():
        normgate.norm_gate(x, weight, gate, eps=1e-6, norm_order=order)
