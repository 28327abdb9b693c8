"""The choice of experts as kernels have it, run lane by lane on the CPU (warp.h) against float64.

What is compiled is the text of rendered kernels, and of selection.cuh and handover.cuh with their PTX in C++. Machines
without a GPU so test the stage that differs most between models. How fast approximations of the chip are near enough,
and that CTAs meet, only a GPU tells: tests/gpu.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from codegen import places
from codegen.bench.native import LaunchArgs, PathArgs, launch_args
from codegen.plan import make_plan
from codegen.problem import Problem
from codegen.render import environment
from codegen.render.kernel import group_context, kernel_context
from codegen.spec import RouterSpec, load_specs
from codegen.toolkit import host_compiler

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "gpu"))
from path_oracle import (  # noqa: E402
    VOCABULARY,
    Numbers,
    Outputs,
    PathInputs,
    check_safe,
    check_selection,
    select,
    unlike_models,
)
from random_specs import random_spec  # noqa: E402

INCLUDE = places.templates_folder() / "include"
ROWS = 40
RANDOM_SPECS = 8
NO_EXPERT = -7
# An instruction's first words -> what it does, in C++ of the names that stand beside it.
PTX = {
    "prefetch.global.L2": "",
    "ld.global.f32": "v = *address;",
    "ld.global.u16": "bits = address->bits;",
    "ld.relaxed.gpu.global.f32": "v = *place;",
    "st.relaxed.gpu.global.f32": "*place = v;",
    "st.relaxed.gpu.global.v4.f32": "for (int i = 0; i < 4; ++i) place[i] = finite_or_least((&v.x)[i]);",
    "st.relaxed.gpu.global.u32": "*static_cast<uint32_t*>(const_cast<void*>(place)) = kEmpty;",
    "atom.relaxed.gpu.global.add.u32": "abort();",  # between CTAs
    "sqrt.approx.f32": "root = std::sqrt({value});",
}
PROGRAM = """\
#include <normgate.h>
#include "warp.h"

{headers}
namespace normgate {{
namespace {{

{constants}
{select}

struct Row {{
  const normgate_args* args;
  int64_t token;
  bool passed;
  Select::Scratch* scratch;
}};

void select_row(const void* given) {{
  const Row& row = *static_cast<const Row*>(given);
  (row.passed ? select_passed : select_written)(*row.args, row.token, *row.scratch);
}}

}}  // namespace
}}  // namespace normgate

extern "C" void select_all(const normgate_args* args, int passed) {{
  static normgate::Select::Scratch scratch;
  for (int64_t token = 0; token < args->num_tokens; ++token) {{
    const normgate::Row row = {{args, token, passed != 0, &scratch}};
    warp::run(normgate::select_row, &row);
  }}
}}

extern "C" int pass_all(const normgate_args* args, const float* logits) {{
  using namespace normgate;
  for (int64_t i = 0; i < args->num_tokens * kPlaces; ++i) empty(args->places + i);
  for (int64_t token = 0; token < args->num_tokens; ++token) {{
    for (int expert = 0; expert < kNumExperts; ++expert) {{
      pass(args->places + token * kPlaces + expert, finite_or_least(logits[token * kNumExperts + expert]));
    }}
  }}
  return kPlaces;
}}
"""


# Of a path whose stages are always launches of their own.
NOTHING_PASSED = """
constexpr int kPlaces = kNumExperts;
void select_passed(const normgate_args&, int64_t, Select::Scratch&) { abort(); }
"""


def specs() -> Iterator[RouterSpec]:
    """Shipped ones, those of other models and stages, and some that nobody has; each selection once."""
    found = load_specs([*places.all_specs(), *sorted((places.home() / "tests" / "specs").glob("*.yaml"))])
    # A score without a bound that nothing renormalizes.
    unbounded = next(spec for spec in found if spec.name == "deepseek-v4-flash")
    routing = unbounded.routing.model_copy(update={"renormalize": None})
    found.append(unbounded.model_copy(update={"name": "unbounded", "routing": routing}))
    random = Random(11)
    found += [random_spec(random, f"random-{number}") for number in range(RANDOM_SPECS)]
    known = set()
    for spec in found:
        problem = Problem.of(spec)
        own = (problem.num_experts, problem.logits_dtype, problem.selection)
        if problem.selection and own not in known:
            known.add(own)
            yield spec


def in_cpp(text: str) -> str:
    """A header's text with its PTX in C++."""

    def instead(found: re.Match[str]) -> str:
        value = re.search(r':\s*"f"\((.*)\)\)?;$', found[0], re.DOTALL)
        return PTX[found["name"]].replace("{value}", value[1].removesuffix(")") if value else "")

    text = re.sub(r'asm(?: volatile)?\(\s*"(?P<name>[a-z0-9.A-Z]+) .*?\);', instead, text, flags=re.DOTALL)
    return re.sub(r"^#(pragma once|include .*)$", "", text, flags=re.MULTILINE)


@cache
def headers() -> str:
    return "\n".join(in_cpp((INCLUDE / name).read_text()) for name in ("handover.cuh", "selection.cuh"))


class Selecting:
    """A spec's selection, compiled for this CPU."""

    def __init__(self, spec: RouterSpec, folder: Path) -> None:
        # On sm_90 few tokens are mostly one launch, which has both forms: of logits written before, and of those passed.
        plan = make_plan([spec.model_copy(update={"sm_targets": (90,)})], {}, {})
        (path,) = plan.paths
        self.problem = path.problem
        kernel, group = kernel_context(path), group_context(plan, path, path.groups[0])
        text = environment().get_template("kernel.cu.j2").render(kernel=kernel, group=group)
        section = re.search(r"^// select: .*?(?=^// -{50,}$)", text, re.DOTALL | re.MULTILINE)
        assert section
        self.passes = "select_passed" in section[0]
        named = r"^(?:constexpr int k\w+|using (?:Logit|Topk\w+)) = [^;]*;"
        constants = re.findall(named, text[: section.start()], re.MULTILINE)
        source, library = folder / "select.cpp", folder / "select.so"
        source.write_text(
            PROGRAM.format(
                headers=headers(),
                constants="\n".join(constants),
                select=section[0] + NOTHING_PASSED * (not self.passes),
            )
        )
        command = [*host_compiler(), "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{HERE}", f"-I{INCLUDE}"]
        done = subprocess.run([*command, source, "-o", library], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self._c = ctypes.CDLL(str(library))

    def __call__(self, logits: Tensor, inputs: PathInputs, numbers: Numbers, passed: bool) -> Outputs:
        """Of float32 logits, [rows, num_experts]; outputs were poisoned before. passed: through places of a launch."""
        selection, rows = self.problem.selection, len(logits)
        assert selection is not None
        topk = (rows, selection.top_k)
        weights = torch.full(topk, float("nan"), dtype=getattr(torch, selection.weights_dtype))
        ids = torch.full(topk, NO_EXPERT, dtype=getattr(torch, selection.ids_dtype))
        written = logits.to(getattr(torch, self.problem.logits_dtype))
        own = PathArgs(
            topk_weights=weights,
            topk_ids=ids,
            e_score_correction_bias=inputs.correction_bias,
            e_score_correction_bias_vl=inputs.correction_bias_vl,
            image_mask=inputs.image_mask,
            per_expert_scale=inputs.per_expert_scale,
            tid2eid=inputs.tid2eid,
            input_ids=inputs.input_ids,
            softcap=numbers.softcap,
            renormalize_epsilon=numbers.renormalize_epsilon,
            renormalize_floor=numbers.renormalize_floor,
            routed_scaling_factor=numbers.routed_scaling_factor,
        )
        nothing = dict.fromkeys(("normed_x", "norm_weight", "gate_weight", "gate_bias"))
        args: LaunchArgs = launch_args(
            router_logits=None if passed else written, x=inputs.x, eps=0.0, stream=0, path=own, **nothing
        )
        if passed:
            places_of_all = torch.empty(rows * (self.problem.num_experts + 3))
            args.places = places_of_all.data_ptr()
            used = rows * self._c.pass_all(ctypes.byref(args), ctypes.c_void_p(written.float().data_ptr()))
        self._c.select_all(ctypes.byref(args), int(passed))
        if passed:
            left = places_of_all[:used].view(torch.int32)
            assert (left == -1).all(), "a place was not emptied"
        return Outputs(None, None, weights, ids, None)


@pytest.fixture(scope="module", params=list(specs()), ids=lambda spec: spec.name)
def selecting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Selecting:
    return Selecting(request.param, tmp_path_factory.mktemp(request.param.name))


def inputs_of(problem: Problem, rows: int, generator: torch.Generator, hashes: bool) -> PathInputs:
    """What a selection reads beside the logits."""
    selection, experts = problem.selection, problem.num_experts
    assert selection is not None

    def normal() -> Tensor:
        return torch.randn(experts, generator=generator) * 0.25

    tid2eid = ids = None
    if hashes:
        order = torch.rand(VOCABULARY, experts, generator=generator).argsort(1)
        tid2eid = order[:, : selection.top_k].contiguous()
        ids = torch.randint(-3, VOCABULARY + 3, (rows,), generator=generator)
    return PathInputs(
        x=torch.empty(rows, 1),
        residual=None,
        norm_weight=None,
        gate_weight=torch.empty(0),
        gate_bias=None,
        correction_bias=normal() if selection.correction_bias and not hashes else None,
        tid2eid=tid2eid,
        input_ids=ids,
        correction_bias_vl=normal() if selection.image_bias else None,
        image_mask=torch.rand(rows, generator=generator) < 0.5 if selection.image_bias else None,
        per_expert_scale=0.5 + torch.rand(experts, generator=generator) if selection.scales_experts else None,
    )


def forms(selecting: Selecting) -> tuple[bool, ...]:
    assert selecting.problem.selection is not None
    return (False, True) if selecting.problem.selection.hashes else (False,)


@pytest.mark.parametrize("passed", [False, True], ids=["written", "passed"])
def test_experts_and_weights(selecting: Selecting, passed: bool) -> None:
    if passed and not selecting.passes:
        pytest.skip("its stages are always launches of their own")
    problem = selecting.problem
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    for hashes in forms(selecting):
        inputs = inputs_of(problem, ROWS, generator, hashes)
        logits = torch.randn(ROWS, problem.num_experts, generator=generator) * 1.5
        logits = logits.to(getattr(torch, problem.logits_dtype)).float()
        for floor in (False, True):
            # A low cap: what it makes of -inf is near what it makes of logits.
            numbers = replace(unlike_models(problem, floor), softcap=2.0)
            right = select(problem.selection, logits.double(), inputs, numbers)
            check_selection(problem, right, inputs, numbers, selecting(logits, inputs, numbers, passed), "CPU")


def test_equals_and_what_is_no_number(selecting: Selecting) -> None:
    """The lower of equals; a NaN is as -inf; and whatever a row is, ids are distinct experts and weights finite."""
    problem, selection = selecting.problem, selecting.problem.selection
    assert selection is not None
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    shape, inf, nan = (ROWS, problem.num_experts), float("inf"), float("nan")
    few = (3 * torch.rand(shape, generator=generator) ** 8).floor()  # of three values, the large ones rare
    some_nan = torch.where(torch.rand(shape, generator=generator) < 0.3, nan, few)
    strange = torch.tensor([nan, -inf, 0.0, 3e38, -3e38, inf])
    drawn = strange[torch.randint(0, len(strange), shape, generator=generator)]
    for hashes in forms(selecting):
        inputs = inputs_of(problem, ROWS, generator, hashes)
        numbers = replace(unlike_models(problem, False), softcap=2.0)
        for rows in (few, some_nan, drawn, torch.full(shape, nan), torch.full(shape, -inf), torch.zeros(shape)):
            got = selecting(rows, inputs, numbers, selecting.passes)
            check_safe(problem, got, "CPU")
            as_least = torch.where(rows.isnan(), -inf, rows)
            same = selecting(as_least, inputs, numbers, False)
            assert got.topk_ids is not None and same.topk_ids is not None and (got.topk_ids == same.topk_ids).all()
            assert got.topk_weights is not None and same.topk_weights is not None
            assert torch.equal(got.topk_weights, same.topk_weights)
        biases = {"correction_bias": inputs.correction_bias, "correction_bias_vl": inputs.correction_bias_vl}
        even = replace(
            inputs, **{name: None if bias is None else torch.zeros_like(bias) for name, bias in biases.items()}
        )
        right, got = select(selection, few.double(), even, numbers), selecting(few, even, numbers, selecting.passes)
        assert got.topk_ids is not None and (got.topk_ids.long() == right.ids).all()
