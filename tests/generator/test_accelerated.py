"""The families that only sm_90a runs: where they may serve, and what serves instead where they cannot."""

import pytest

from codegen import package, places
from codegen.arch import ARCHS
from codegen.families import parse
from codegen.plan import make_plan
from codegen.problem import Problem
from codegen.spec import load_specs
from codegen.variants import candidates, objections

SPECS = load_specs(places.all_specs())


@pytest.mark.parametrize("sm", [sm for sm in ARCHS if sm != 90])
def test_no_other_chip_is_offered_them(sm):
    problem = Problem.of(SPECS[0]).gate_part
    assert not [v for count in (64, 1024) for v in candidates(problem, ARCHS[sm], count) if v.accelerated]
    for name in ("wgmma_t64_e64_s8_d8", "resident_t64_e64_s16"):
        assert f"sm_{sm} has no wgmma" in objections(problem, ARCHS[sm], parse(name))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wgmma_t12_e64_s1_d4", "multiple of 8 tokens"),
        ("wgmma_t136_e64_s1_d4", "up to 128"),
        ("wgmma_t64_e192_s1_d4", "64 or 128 experts"),
        ("wgmma_t64_e64_s8_d1", "two stages"),
        ("wgmma_t64_e64_s9_d4", "at most 8 are portable"),
        ("wgmma_t128_e128_s1_d7", "bytes of shared memory"),
        ("wgmma_t64_e64_s7_d4", "finish as many tokens each"),
        ("resident_t12_e64_s16", "multiple of 8 tokens"),
        ("resident_t72_e64_s16", "up to 64"),
        ("resident_t64_e16_s16", "32 or 64 experts"),
        ("resident_t64_e64_s17", "takes 2 to 16"),
        ("resident_t64_e64_s1", "takes 2 to 16"),
        ("resident_t64_e64_s8", "56 mma add to one accumulator"),
    ],
)
def test_what_they_cannot_do_is_said(name, reason):
    problem = Problem.of(next(spec for spec in SPECS if spec.name == "deepseek-v4-pro")).gate_part
    assert any(reason in objection for objection in objections(problem, ARCHS[90], parse(name)))


def test_terms_side_by_side_are_two():
    """32 experts fill the tensor cores' 64 rows with two terms each; fp32 weights times norm weights have three."""
    problem = Problem.of(next(spec for spec in SPECS if spec.gate_weight_dtype == "float32")).gate_part
    said = objections(problem, ARCHS[90], parse("resident_t64_e32_s8"))
    assert any("weights have 3 here" in objection for objection in said)


def test_float16_rows_go_elsewhere():
    problem = Problem.of(
        SPECS[0].model_copy(update={"activation_dtype": "float16", "gate_weight_dtype": "float16"})
    ).gate_part
    assert not [v for count in (64, 1024) for v in candidates(problem, ARCHS[90], count) if v.accelerated]


def test_later_chips_get_ranges_without_them():
    plan = make_plan(SPECS)  # by the cost model, which prefers it for many tokens
    for kernel in plan.kernels:
        group = kernel.group_of(90)
        assert group.accelerated and any(r.variant.accelerated for r in group.ranges)
        portable = group.portable_ranges
        assert portable[0].first_token == 1 and portable[-1].last_token is None
        assert all(a.last_token + 1 == b.first_token for a, b in zip(portable, portable[1:], strict=False))
        assert not any(r.variant.accelerated for r in portable)
        assert not kernel.group_of(100).accelerated and not kernel.group_of(100).portable_ranges


def test_plain_ptx_leaves_them_out():
    """Each entry point that needs sm_90a is empty for other targets, and is launched with its maps."""
    for path, text in package.files_of(places.all_specs()).items():
        if not path.endswith(".cu"):
            continue
        entries = text.split('extern "C" __global__')[1:]
        for entry in entries:
            body = entry.split("\n}\n")[0]
            accelerated = "wgmma<" in body or "resident<" in body
            assert ("__CUDA_ARCH_FEAT_SM90_ALL" in body) == accelerated == ("CUtensorMap" in body)
