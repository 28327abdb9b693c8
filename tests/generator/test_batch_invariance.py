"""One order of sums for all token counts: what the plan promises where a spec asks for it."""

from functools import cache
from pathlib import Path

import pytest

from codegen import places, tuned
from codegen.errors import BadInput
from codegen.families import order_of_sums, parse
from codegen.plan import Plan, make_plan
from codegen.problem import Problem
from codegen.spec import load_spec, load_specs

SPECS = [spec.model_copy(update={"batch_invariant": True}) for spec in load_specs(places.all_specs())]
TABLES = tuned.load(SPECS, places.home() / "specs" / "tuned")


@cache
def planned(measured: bool) -> Plan:
    return make_plan(SPECS, TABLES if measured else {})


@pytest.mark.parametrize("measured", [False, True], ids=["estimated", "measured"])
def test_all_counts_share_one_order(measured):
    for kernel in planned(measured).kernels:
        for group in kernel.groups:
            for ranges in filter(None, (group.ranges, group.portable_ranges)):
                assert len({order_of_sums(kernel.problem, r.variant) for r in ranges}) == 1
                assert ranges[0].first_token == 1 and ranges[-1].last_token is None
                assert all(a.last_token + 1 == b.first_token for a, b in zip(ranges, ranges[1:], strict=False))
                assert all(r.variant.max_tokens is None for r in ranges)


def test_later_chips_get_an_order_that_they_can_run():
    for kernel in planned(measured=True).kernels:
        group = kernel.group_of(90)
        if any(r.variant.accelerated for r in group.ranges):
            assert group.portable_ranges and not any(r.variant.accelerated for r in group.portable_ranges)


def test_without_it_orders_change_with_the_count():
    specs = [spec.model_copy(update={"batch_invariant": False}) for spec in SPECS]
    kernel = make_plan(specs, TABLES).kernel_of("deepseek-v4-pro")
    assert len({order_of_sums(kernel.problem, r.variant) for r in kernel.group_of(90).ranges}) > 1


def test_it_says_why_and_what_was_faster():
    ranges = planned(measured=True).kernel_of("deepseek-v4-pro").group_of(90).ranges
    assert "batch_invariant" in ranges[0].why and "measured on" in ranges[0].why
    assert ranges[0].rejected and all("another order" in reason for _, reason in ranges[0].rejected)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("resident_t8_e64_s16", "resident_t64_e64_s16", True),
        ("resident_t64_e64_s16", "resident_t64_e64_s14", False),
        ("resident_t64_e64_s8", "resident_t64_e32_s8", False),  # terms among the products, or added after them
        ("split_k_t8_e32_s8_w7_b4", "split_k_t16_e16_s8_w7_b4", True),
        ("split_k_t8_e32_s8_w7_b4", "split_k_t16_e32_s8_w7_b4", False),  # another number of accumulators a sum
        ("split_k_t16_e32_s8_w7_b4", "split_k_t32_e32_s8_w7_b2_r2", False),
        ("wgmma_t64_e64_s8_d8", "wgmma_t32_e128_s8_d4", True),
        ("wgmma_t64_e64_s8_d8", "resident_t64_e64_s8", False),
        ("gemv_t1_e2_w14_c2", "gemv_t4_e3_w14_c2", True),
    ],
)
def test_what_an_order_is(one, other, same):
    problem = Problem.of(next(spec for spec in SPECS if spec.name == "deepseek-v4-pro")).gate_part
    assert (order_of_sums(problem, parse(one)) == order_of_sums(problem, parse(other))) is same


def test_models_that_share_a_kernel_must_agree(tmp_path: Path):
    text = places.all_specs()[0].read_text()
    for name, more in (("one", "batch_invariant: true\n"), ("two", "")):
        own = text.replace(load_spec(places.all_specs()[0]).name, name, 1)
        (tmp_path / f"{name}.yaml").write_text(own + more)
    with pytest.raises(BadInput) as error:
        make_plan(load_specs(sorted(tmp_path.glob("*.yaml"))))
    assert [problem.message for problem in error.value.problems] == [
        f"batch_invariant: differs from that of {other}, which has the same path and so shares its kernel; give them the same"
        for other in ("two", "one")
    ]


def test_thresholds_and_one_order_exclude_each_other(tmp_path: Path):
    path = tmp_path / "both.yaml"
    name = load_spec(places.all_specs()[0]).name
    text = places.all_specs()[0].read_text().replace(name, "both", 1)
    path.write_text(text + "batch_invariant: true\ntoken_thresholds:\n  gemv: 4\n")
    with pytest.raises(BadInput) as error:
        load_spec(path)
    assert "leaving them out would be right where batch_invariant is true" in str(error.value)
