"""The warning of CUDA calls that the reference composition serves."""

import warnings

import pytest
import torch
from normgate import fallback, ops

SERVED = (64, 12, "bfloat16", "bfloat16", "float32", "B", False, "unrounded")
UNKNOWN = (5000, 100, "bfloat16", "bfloat16", "float32", "A", True, "rounded")

pytestmark = pytest.mark.usefixtures("example_tables")


@pytest.mark.parametrize(
    "path, sm, loaded, aligned, reason",
    [
        (UNKNOWN, 90, True, True, "no kernel was generated for it; `python build.py add CONFIG.json && py"),
        (SERVED, 75, True, True, "no SM target of norm_b_gate_64x12_bf16_bf16_fp32 (80, 86, 90, 100, 120)"),
        (SERVED, 90, False, True, "libnormgate.so is not beside the package; `python build.py` compiles it"),
        (SERVED, 90, True, False, "the weights and each row of x must start at a multiple of 16 bytes"),
        (SERVED, 90, True, True, "the loaded library holds no code for this SM; `python build.py --sm 90`"),
    ],
)  # fmt: skip
def test_each_reason_names_its_cure(path, sm, loaded, aligned, reason):
    message = fallback.message(path, sm, loaded, aligned)
    assert message.startswith("normgate runs the PyTorch reference composition, right but slower, for ")
    assert f": {reason}" in message


def test_the_call_is_described():
    assert (
        "norm order A + gate, logits from rounded with bias, hidden_size 5000, num_experts 100, x bfloat16, "
        "gate weight bfloat16, logits float32, sm_90:"
    ) in fallback.message(UNKNOWN, 90, True, True)


@pytest.fixture
def h200(monkeypatch):
    """Tensors of the CPU, taken for tensors of an H200."""
    fallback._warn_once.cache_clear()
    monkeypatch.setattr(fallback.torch.cuda, "get_device_capability", lambda device: (9, 0))
    yield
    fallback._warn_once.cache_clear()


def warned(x, order="B"):
    weights = (torch.ones(64).bfloat16(), torch.ones(12, 64).bfloat16(), None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fallback.warn(True, x, *weights, order, "unrounded", torch.float32)
    return [str(warning.message) for warning in caught]


def test_once_for_each_shape_and_reason(h200):
    x = torch.ones(8, 64).bfloat16()
    assert len(warned(x)) == 1
    assert warned(x) == warned(x[:3]) == [], "another number of tokens is no other shape"
    assert "no kernel was generated" in warned(x, "G")[0]
    assert warned(x, "G") == []


def test_alignment_is_seen(h200):
    wide = torch.ones(8, 72).bfloat16()
    assert "holds no code" in warned(wide[:, :64])[0]
    assert "multiple of 16 bytes" in warned(wide[:, 1:65])[0]
    fallback._warn_once.cache_clear()
    odd = torch.ones(8, 65).bfloat16()[:, :64]
    assert "multiple of 16 bytes" in warned(odd)[0]
    assert "holds no code" in warned(odd[:1])[0], "the stride of one row does not matter"


def test_the_cpu_is_served_without_a_warning():
    x = torch.ones(2, 40).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.gate(x, torch.ones(3, 40).bfloat16())
        torch.ops.normgate.gate_reference(x, torch.ones(3, 40).bfloat16(), None, torch.float32)
