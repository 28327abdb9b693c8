"""What racecheck is run on: twins of the shipped functions, of the same code and smaller (tests/gpu/twins.py)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/gpu"))

import twins  # noqa: E402
from made import plan_of_specs  # noqa: E402

from codegen.arch import ARCHS  # noqa: E402
from codegen.families import Apart, Gemv, Wgmma  # noqa: E402
from codegen.problem import Problem  # noqa: E402
from codegen.render import functions as rendered_functions  # noqa: E402
from codegen.render import render  # noqa: E402
from codegen.spec import load_spec  # noqa: E402

SM = 90
GPT_OSS, DEEPSEEK = ROOT / "specs/gpt-oss-120b.yaml", ROOT / "specs/deepseek-v3.yaml"


@pytest.fixture(scope="module")
def functions() -> list[twins.Function]:
    return list(twins.functions_of(plan_of_specs([GPT_OSS]), SM))


@pytest.fixture(scope="module")
def found(functions: list[twins.Function]) -> dict[twins.Way, twins.Twin]:
    return twins.twins_of(functions, ARCHS[SM])


def test_each_function_has_twins_that_go_its_ways(
    functions: list[twins.Function], found: dict[twins.Way, twins.Twin]
) -> None:
    covered = twins.index_of(functions, found, SM)
    assert covered.keys() == {function.name for function in functions} and len(functions) > 30
    for function in functions:
        stages = [twins.ways(function.problem, function.served)[0]] if isinstance(function.served, Apart) else []
        assert len(covered[function.name]) == 1 + len(stages)
        own = [found[way] for way in twins.ways(function.problem, function.served)]
        inner = function.served.inner if isinstance(function.served, Apart) else function.served
        assert own[-1].served == inner, "the very constants"
        for way, twin in zip(twins.ways(function.problem, function.served), own, strict=True):
            assert way in twins.ways(twin.problem, twin.served)
            assert replace(twin.problem, hidden_size=0, num_experts=0) == way[1]
            assert twin.cost[0] <= function.problem.hidden_size * function.problem.num_experts


def test_one_of_a_family_stands_for_all_that_differ_in_constants_alone(functions: list[twins.Function]) -> None:
    fewer = twins.one_of_a_family(functions)
    found = twins.twins_of(fewer, ARCHS[SM])
    covered = twins.index_of(functions, found, SM, twins.ways_of_families)
    assert covered.keys() == {function.name for function in functions} and len(fewer) < len(functions) / 1.5
    launched = {twin.function(SM): twin for twin in found.values()}
    for function in functions:
        inner = function.served.inner if isinstance(function.served, Apart) else function.served
        *stages, kernel = (launched[name] for name in covered[function.name])
        assert kernel.served.family == inner.family
        assert all(isinstance(twin.served, Apart) for twin in stages) and len(stages) == isinstance(
            function.served, Apart
        )
        for twin, way in zip((*stages, kernel), twins.ways(function.problem, function.served), strict=True):
            assert replace(twin.problem, hidden_size=0, num_experts=0) == way[1], "the same stages"


def test_twins_of_a_large_model_read_less_than_a_third_of_its_weights() -> None:
    """What makes racecheck affordable. Of a small one, a ring has to be as long to wrap around."""
    functions = list(twins.functions_of(plan_of_specs([DEEPSEEK]), SM))
    weights = sum(function.problem.hidden_size * function.problem.num_experts for function in functions)
    assert sum(twin.cost[0] for twin in twins.twins_of(functions, ARCHS[SM]).values()) < weights / 3


def test_sizes_that_make_other_code_are_another_way() -> None:
    problem = Problem.of(load_spec(DEEPSEEK)).gate_part
    gemv, wgmma = Gemv(1, 2, 14, 2), Wgmma(64, 64, 2, 12)

    def same(variant: Gemv | Wgmma, hidden: int, experts: int) -> bool:
        return twins.ways(replace(problem, hidden_size=hidden, num_experts=experts), variant) == twins.ways(
            problem, variant
        )

    assert same(gemv, 7168, 8) and same(wgmma, 4096, 128)
    assert not same(gemv, 7168, 9), "the last CTA has fewer experts"
    assert not same(gemv, 7160, 8), "the last thread has no elements"
    assert not same(gemv, 7168, 2), "one CTA"
    assert not same(wgmma, 1024, 128), "the ring does not wrap around"
    assert not same(wgmma, 7168, 64), "one tile"


def test_the_package_of_the_twins_holds_them(found: dict[twins.Way, twins.Twin]) -> None:
    plan = twins.plan_of(found.values(), ARCHS[SM])
    entries = {name for kernel in plan.all_kernels for name in rendered_functions(kernel, kernel.groups[0])}
    launched = {twin.function(SM) for twin in found.values() if not isinstance(twin.served, Apart)}
    assert launched <= entries
    tables = render(plan)["_tables.py"]
    assert all(f'"{twin.function(SM)}"' in tables for twin in found.values())
