"""What a run compares with beside its peers: roofline, chip, host; and torch.compile ahead of it."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import normgate
import pytest
import torch
from bench_records import RATES, a_spec
from torch.utils._python_dispatch import TorchDispatchMode

from codegen.bench import ahead, chip, host, record
from codegen.bench.inputs import random_rows, random_weights
from codegen.bench.record import ChipRates, ModelRecord
from codegen.bench.roofline import roofline_us
from codegen.spec import Norm

ROOT = Path(__file__).parents[2]

# The roofline, at 4 TB/s and 800 TFLOP/s.

WEIGHTS = 2 * 7168 * 384 + 2 * 7168  # bytes: gate and norm
A_ROW = 2 * 2 * 7168 + 4 * 384  # bytes: x, normed_x, logits


@pytest.mark.parametrize(
    ("tokens", "changes", "microseconds"),
    [
        (1, {}, (WEIGHTS + A_ROW) / 4e6),
        (64, {}, (WEIGHTS + 64 * A_ROW) / 4e6),
        (8192, {}, 2 * 2 * 8192 * 7168 * 384 / 8e8),  # two bf16 terms hold the product of two weights
        (8192, {"logits_from": "rounded"}, (WEIGHTS + 8192 * A_ROW) / 4e6),
        (8192, {"gate_weight_dtype": "float32"}, 3 * 2 * 8192 * 7168 * 384 / 8e8),
        (1, {"gate_bias": True, "logits_dtype": "bfloat16"}, (WEIGHTS + 2 * 384 + A_ROW - 2 * 384) / 4e6),
        (1, {"norm": None}, (WEIGHTS - 2 * 7168 + A_ROW - 2 * 7168) / 4e6),
    ],
)
def test_roofline(tokens: int, changes: dict[str, object], microseconds: float) -> None:
    model = ModelRecord.of(a_spec(hidden_size=7168, num_experts=384, **changes))
    assert roofline_us(model, tokens, RATES) == pytest.approx(microseconds, rel=1e-9)


def test_nothing_recorded_was_faster_than_the_chip() -> None:
    """The recorded run of an H200, at rates that no H200 falls below."""
    floor = ChipRates(copy_bytes_per_s=3.5e12, gemm_flops_per_s=6e14)
    for model in record.read(ROOT / "docs/measured/h200-bench.json").models.values():
        for tokens, point in model.points.items():
            # Beyond 128 tokens x, which has just been written, comes out of the L2 cache for a large part.
            if tokens <= 128:
                assert point.candidates["ours"].median_us > 0.9 * roofline_us(model, tokens, floor)


def test_chip_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(action: Callable[[], object]) -> float:
        action()
        return 0.5

    monkeypatch.setattr(chip, "_seconds", seconds)
    monkeypatch.setattr(chip, "_GEMM_SIZE", 32)
    assert chip.measure(1000, device="cpu") == ChipRates(
        copy_bytes_per_s=2 * 20 * 1000 / 0.5, gemm_flops_per_s=2 * 32**3 / 0.5
    )


@pytest.mark.parametrize("order", ["A", "B", "G"])
@pytest.mark.parametrize("changes", [{}, {"gate_bias": True}, {"logits_from": "rounded"}])
def test_the_operator_that_the_package_calls_is_timed(order: str, changes: dict[str, Any]) -> None:
    spec = a_spec(norm=Norm.model_validate({"order": order, "eps": 1e-6}), gate_weight_dtype="float32", **changes)
    assert spec.norm is not None
    weights, x, called = random_weights(spec, "cpu"), random_rows(spec, 2, "cpu"), []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            called.append(func)
            return func(*args, **(kwargs or {}))

    tensors = x, weights.norm_weight, weights.gate_weight
    with Watched():
        right = normgate.norm_gate(
            *tensors, weights.gate_bias, eps=spec.norm.eps, norm_order=order, logits_from=spec.logits_from
        )
    operator, rest = host._operator(spec, spec.norm, weights.gate_bias)
    assert called[0] is operator
    assert all(torch.equal(a, b) for a, b in zip(operator(*tensors, *rest), right, strict=True))


def test_host_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    device = SimpleNamespace(_sleep=lambda cycles: waits.append("pause"), synchronize=lambda: waits.append("wait"))
    monkeypatch.setattr(host, "_cuda", device)
    monkeypatch.setattr(host, "_CALLS", 2)
    # An fp32 gate: the product of two-byte rows into fp32 logits exists on CUDA only.
    spec = a_spec(gate_weight_dtype="float32")
    found = host.measure(spec, random_weights(spec, "cpu"), device="cpu")
    assert list(found) == [1, 16]
    assert all(cost.norm_gate_us > 0 and cost.rms_norm_us > 0 for cost in found.values())
    assert waits == ["pause", "wait"] * (2 * 2 * (host._WARMUPS + host._BATCHES))
    gate_alone = a_spec(norm=None)
    assert host.measure(gate_alone, random_weights(gate_alone, "cpu"), device="cpu") == {}


@pytest.mark.parametrize("norm", [None, Norm(order="A", eps=1e-6), Norm(order="G", eps=1e-6)])
def test_random_weights_fit_the_spec(norm: Norm | None) -> None:
    spec = a_spec(norm=norm, gate_bias=True, gate_weight_dtype="float32")
    weights = random_weights(spec, "cpu")
    assert (weights.gate_weight.shape, weights.gate_weight.dtype) == ((16, 64), torch.float32)
    assert weights.gate_bias is not None and weights.gate_bias.shape == (16,)
    if norm is None:
        assert weights.norm_weight is None
    else:
        assert weights.norm_weight is not None and weights.norm_weight.dtype == torch.bfloat16
        middle = 0.0 if norm.order == "G" else 1.0
        assert float(weights.norm_weight.float().mean()) == pytest.approx(middle, abs=0.2)


# torch.compile ahead.


def test_what_a_process_compiles_the_run_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    ahead.share_cache(tmp_path / "inductor")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    job = ahead.Job(a_spec(gate_weight_dtype="float32"), "torch_compiled", 3)
    # No peer of that name: what fails in a process is left to the run.
    bad = ahead.Job(job.spec, "no such peer", 3)
    assert set(ahead.compiled([bad, job], processes=1, device="cpu")) == {bad, job}
    hits, graphs = ahead.from_cache()
    ahead.compile_one(job, "cpu")
    assert ahead.from_cache() == (hits + 1, graphs + 1)
    ahead.compile_one(ahead.Job(job.spec, "torch_compiled", 5), "cpu")
    assert ahead.from_cache() == (hits + 1, graphs + 2)


def test_a_cache_that_the_environment_names_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    ahead.share_cache(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere"


@pytest.mark.parametrize(
    ("free", "jobs", "count"), [(141 << 30, 200, 16), (20 << 30, 200, 5), (1 << 30, 200, 1), (141 << 30, 3, 3)]
)
def test_processes_fit_processors_and_memory(free: int, jobs: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 141 << 30))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert ahead.processes(jobs) == count
