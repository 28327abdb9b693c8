"""explain() and the table behind it: every boundary and its neighbours, SM selection, what it prints."""

import normgate
import pytest
from normgate import dispatch

KERNEL = "norm_b_gate_64x12_bf16_bf16_fp32"

pytestmark = pytest.mark.usefixtures("example_tables")


@pytest.mark.parametrize(
    "tokens, variant, first, last",
    [
        (1, "gemv_t1", 1, 1),
        (2, "gemv_t4", 2, 4),
        (4, "gemv_t4", 2, 4),
        (5, "split_k_t16", 5, None),
        (6, "split_k_t16", 5, None),
        (1 << 40, "split_k_t16", 5, None),
    ],
)
def test_boundaries(tokens, variant, first, last):
    answer = normgate.explain("hashed", tokens, sm=90)
    assert (answer.variant, answer.first_token, answer.last_token) == (variant, first, last)
    assert answer.function == f"{KERNEL}_{variant}_sm90"
    assert (answer.model, answer.kernel, answer.sm_group) == ("hashed", KERNEL, (90, 100, 120))


@pytest.mark.parametrize(
    "sm, target",
    [
        (75, None),  # older than every target
        (80, 80),
        (86, 86),
        (89, 86),  # runs an older target of its major version
        (90, 90),
        (100, 100),
        (103, 100),
        (110, None),  # no target of its major version, and the PTX is of a newer one
        (120, 120),
        (121, 120),
        (130, 120),  # a chip that does not exist yet takes the newest target's PTX
    ],
)
def test_sm_selection_is_a_minimum(sm, target):
    answer = normgate.explain("hashed", 1, sm=sm)
    assert answer.sm_target == target
    assert (answer.function is None) == (target is None)
    assert bool(dispatch.variants(KERNEL, sm)) == (target is not None)


def test_ptx_is_of_the_kernels_own_newest_target():
    assert normgate.explain("biased", 1, sm=90).sm_target == 90
    assert normgate.explain("biased", 1, sm=130).sm_target == 90
    assert normgate.explain("biased", 1, sm=89).sm_target is None


def test_unserved_sm_says_what_runs_and_what_to_do():
    answer = normgate.explain("biased", 3, sm=80)
    assert (answer.variant, answer.function, answer.first_token) == ("reference", None, None)
    assert answer.why.startswith("no SM target of norm_a_gate_64x12_bf16_fp32_fp32_bias (90) runs on sm_80;")
    assert "add it to sm_targets in the spec and run `python build.py`" in answer.why


def test_no_tokens():
    assert normgate.explain("hashed", 0, sm=90).variant == "none"


def test_a_gap_is_served_by_the_reference(monkeypatch):
    table = dispatch.KERNELS[KERNEL]
    groups = tuple(group._replace(variants=group.variants[1:]) for group in table.groups)
    monkeypatch.setitem(dispatch.KERNELS, KERNEL, table._replace(groups=groups))
    answer = normgate.explain("hashed", 1, sm=90)
    assert (answer.variant, answer.why) == ("reference", "no variant serves 1 tokens; the reference runs")


def test_kernel_by_name_and_listings():
    answer = normgate.explain(KERNEL, 4, sm=90)
    assert (answer.model, answer.variant) == (None, "gemv_t4")
    assert normgate.models() == ("hashed", "routed", "biased", "normed-before")
    assert KERNEL in normgate.kernels()
    assert [variant.name for variant in normgate.variants(KERNEL, 90)] == [
        "gemv_t1",
        "gemv_t4",
        "split_k_t16",
    ]


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="unknown model or kernel 'hashd', expected one of: hashed; a new"):
        normgate.explain("hashd", 1, sm=90)
    with pytest.raises(ValueError, match="unknown kernel 'zz', expected one of: norm_b_gate"):
        normgate.variants("zz", 90)
    with pytest.raises(ValueError, match="num_tokens is -1, expected 0 or more"):
        normgate.explain("hashed", -1, sm=90)
    monkeypatch.setattr(dispatch.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sm is not given and there is no CUDA device to ask"):
        normgate.explain("hashed", 1)


def test_sm_of_the_current_device(monkeypatch):
    monkeypatch.setattr(dispatch.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dispatch.torch.cuda, "get_device_capability", lambda device: (10, 3))
    assert normgate.explain("hashed", 1).sm == 103


def test_printed():
    assert str(normgate.explain("hashed", 4, sm=103)).splitlines() == [
        "hashed, 4 tokens, sm_103",
        "  kernel    norm_b_gate_64x12_bf16_bf16_fp32",
        "  variant   gemv_t4, 2 to 4 tokens",
        "  function  norm_b_gate_64x12_bf16_bf16_fp32_gemv_t4_sm90",
        "  code      sm_100 (one table for sm_90, sm_100, sm_120)",
        "  why       x fits in registers",
        "  rejected  gemv_t1: it reads the gate weight again for every token, 4 times at",
        "            4 tokens",
        "  rejected  split_k_t16: the cluster reduce costs more than it saves below 5",
        "            tokens",
    ]


@pytest.mark.parametrize("sm", [75, 80, 90, 130])
@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 4096])
@pytest.mark.parametrize("name", ["hashed", "biased", "normed-before", KERNEL])
def test_printed_in_80_columns(name, tokens, sm):
    assert max(map(len, str(normgate.explain(name, tokens, sm)).splitlines())) <= 80
