"""Whole paths: what their plans promise, and what of them is rendered."""

import re
from dataclasses import replace
from functools import cache

import pytest

from codegen import naming, package, places, tuned
from codegen.arch import ARCHS
from codegen.families import FUSING, MOST_TOKENS_FUSED, Apart, Gemv, order_of_sums, parse, parse_served
from codegen.plan import Plan, make_plan
from codegen.problem import Problem
from codegen.spec import load_spec, load_specs
from codegen.variants import candidates, objections

SPECS = load_specs(places.all_specs())
OTHERS = load_specs(sorted((places.home() / "tests" / "specs").glob("*.yaml")))
TABLES = tuned.load(SPECS, places.home() / "specs" / "tuned")


@cache
def planned(measured: bool) -> Plan:
    return make_plan(SPECS, TABLES if measured else {})


@cache
def files() -> dict[str, str]:
    return {path: str(text) for path, text in package.files_of(places.all_specs()).items()}


@pytest.mark.parametrize("measured", [False, True], ids=["estimated", "measured"])
def test_every_count_is_served_and_apart_only_around_the_gates_own(measured):
    plan = planned(measured)
    assert len(plan.paths) == len(SPECS)
    for path in plan.paths:
        gate = plan.gate_of(path)
        for group in path.groups:
            own = next(each for each in gate.groups if group.sm in each.sm_targets)
            assert set(group.sm_targets) <= set(own.sm_targets)
            for ranges in filter(None, (group.ranges, group.portable_ranges)):
                assert ranges[0].first_token == 1 and ranges[-1].last_token is None
                assert all(a.last_token + 1 == b.first_token for a, b in zip(ranges, ranges[1:], strict=False))
                for served in ranges:
                    if isinstance(served.variant, Apart):
                        assert served.variant.inner in own.variants
                    else:
                        assert served.last_token and served.last_token <= MOST_TOKENS_FUSED
                        assert not objections(path.problem, group.arch, served.variant)


def test_later_chips_get_paths_that_they_can_run():
    for path in planned(measured=True).paths:
        group = path.group_of(90)
        assert group.portable_ranges and not any(served.variant.accelerated for served in group.portable_ranges)


def test_each_model_finds_its_path_and_its_gate():
    plan = planned(measured=True)
    for spec in SPECS:
        path = plan.path_of(spec.name)
        assert path.problem == Problem.of(spec) and plan.kernel_of(spec.name) == plan.gate_of(path)
    alone = load_spec(places.home() / "tests" / "specs" / "gate-bias.yaml")
    assert make_plan([alone]).path_of(alone.name) is None


def test_few_tokens_are_one_launch():
    """What the path is for: at 1 to 16 tokens every shipped model's takes one."""
    for path in planned(measured=True).paths:
        for count in (1, 2, 4, 8, 16):
            assert not isinstance(path.group_of(90).range_of(count).variant, Apart), (path.name, count)


def test_only_families_that_can_are_fused():
    for spec in (*SPECS, *OTHERS):
        problem = Problem.of(spec)
        if problem == problem.gate_part:
            continue
        found = {variant.family for count in (1, 16, 64) for variant in candidates(problem, ARCHS[90], count)}
        assert found <= set(FUSING)
    problem = Problem.of(SPECS[0])
    assert any(
        "launches of their own" in said for said in objections(problem, ARCHS[90], parse("resident_t64_e64_s16"))
    )


def test_what_differs_has_another_name():
    problem = Problem.of(next(spec for spec in SPECS if spec.name == "deepseek-v3"))
    chosen = problem.selection
    others = [
        problem,
        problem.gate_part,
        replace(problem, residual=""),
        replace(problem, residual="scaled_add"),
        replace(problem, residual="scaled_sum"),
        replace(problem, selection=None),
        *(
            replace(problem, selection=replace(chosen, **change))
            for change in (
                {"scoring": "softmax"},
                {"top_k": 4},
                {"correction_bias": False},
                {"n_group": 4},
                {"topk_group": 2},
                {"group_score": "max"},
                {"renormalize": "sum"},
                {"renormalize": ""},
                {"softcaps": True},
                {"hashes": True},
                {"returns_logits": True},
                {"ids_dtype": "int64"},
                {"weights_dtype": "bfloat16"},
                {"image_bias": True},
                {"scales_experts": True},
            )
        ),
    ]
    names = [naming.kernel_name(one) for one in others]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)


def test_numbers_of_a_model_make_no_other_kernel():
    """Scale, epsilon and softcap are arguments, so two models that differ in them share machine code."""
    spec = next(spec for spec in SPECS if spec.name == "deepseek-v3")
    scaled = spec.routing.model_copy(update={"routed_scaling_factor": 1.0})
    assert Problem.of(spec.model_copy(update={"routing": scaled})) == Problem.of(spec)


def test_one_order_of_sums_holds_for_the_path_too():
    specs = [spec.model_copy(update={"batch_invariant": True}) for spec in SPECS]
    for path in make_plan(specs, {key: table for key, table in TABLES.items()}).paths:
        for group in path.groups:
            variants = [r.variant for r in group.ranges]
            inner = [v.inner if isinstance(v, Apart) else v for v in variants]
            assert len({order_of_sums(path.problem, variant) for variant in inner}) == 1


def test_what_serves_is_named_and_read_back():
    for path in planned(measured=True).paths:
        for group in path.groups:
            for variant in group.served_by:
                assert parse_served(variant.name) == variant
    with pytest.raises(ValueError):
        parse_served("apart_apart_gemv_t1_e1_w4_c2")
    assert parse_served("apart_gemv_t1_e1_w4_c2") == Apart(Gemv(1, 1, 4, 2))


def test_a_stage_that_nobody_asks_for_is_not_rendered():
    rendered = files()
    for path in planned(measured=True).paths:
        gate = planned(measured=True).gate_of(path)
        for group in gate.groups:
            text = rendered[str(naming.source_path(gate.name, group.sm))]
            assert "select" not in text and "residual" not in text
            assert ("prepare_handover(" in text) == any(v.family == "wgmma" for v in group.variants)
        for group in path.groups:
            text = rendered[str(naming.source_path(path.name, group.sm))]
            assert ("residual_out" in text) == bool(path.problem.residual)
            assert ("tid2eid" in text) == path.problem.selection.hashes
            assert ("kNumGroups" in text) == (path.problem.selection.n_group > 1)
            if group.arch.has_cluster and not path.problem.returns_logits:
                # Logits go from CTA to CTA, and to memory only between launches.
                assert "store_logits" not in text


def test_fused_launches_pass_logits_where_a_launch_apart_writes_them():
    rendered = files()
    for path in planned(measured=True).paths:
        for group in path.groups:
            text = rendered[str(naming.source_path(path.name, group.sm))]
            fused = [v for v in group.variants if group.arch.has_cluster or isinstance(v, Gemv)]
            assert text.count("prepare_handover(") == len(fused)
            assert ("select_rows" in text) == bool(group.apart)


def test_what_is_passed_is_what_is_taken():
    """Four logits at a time where there are four: what nobody takes would be there for the next launch to find."""
    tests_specs = places.home() / "tests" / "specs"
    odd = [tests_specs / f"{name}.yaml" for name in ("routed-7", "routed-258")]
    rendered = {**files(), **{path: str(text) for path, text in package.files_of(odd).items()}}
    experts_of = {}
    for path, text in rendered.items():
        if path.endswith(".cu") and "pass4(" in text:
            (experts,) = re.findall(r"constexpr int kNumExperts = (\d+);", text)
            experts_of[path] = int(experts)
            whole = "if (expert < kNumExperts) pass4(" in text
            parts = "if (expert + 3 < kNumExperts) {\n      pass4(" in text
            assert (whole, parts) == (int(experts) % 4 == 0, int(experts) % 4 != 0), path
    assert {7, 258, 384} <= set(experts_of.values())
