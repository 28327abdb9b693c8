"""Every compiled variant of every kernel against float64: fresh random inputs, outputs poisoned, every element checked."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch
from oracle import DTYPES, EPS, Inputs, logits, make_inputs, outside_ties, relative_error
from packages import Package, kernels

from codegen.bench.native import Library, launch_args

GUARD_ROWS = 8  # before and after an output's own: so many, that these begin at a multiple of 16 bytes
GUARD_BYTES = 256
NO_BYTE = 0xFF
KERNELS = list(kernels())
LIMIT = {"float32": 2e-6, "bfloat16": 3e-3}  # of the logits' relative error; bf16 logits are rounded to 8 bits
# Of the share of normed_x that may fall to the other side of a tie: fp16 has 8 times as many of them as bf16.
TIES = {"bfloat16": 1e-3, "float16": 8e-3}
# A row's elements with equal significands meet a tie together: 1 in 128 of a bf16 row, 1 in 1024 of an fp16 row, and up to
# 1.5 times that, for small significands are the commoner ones. Among few rows, two such groups may do so.
SIGNIFICANDS = {"bfloat16": 128, "float16": 1024}
_seeds = itertools.count(1)


@cache
def library(package: Package) -> Library:
    return Library(package.library)


def group_of(package: Package, kernel: Any, sm: int) -> Any | None:
    """The GroupTable of the targets whose code a chip runs, of those that the library holds."""
    built = {int(target) for target in library(package).built_sms().split("+")[0].split(",")}
    targets = [t for g in kernel.groups for t in g.sm_targets if t in built]
    runs = [t for t in targets if t <= sm and (t // 10 == sm // 10 or t == max(targets))]
    return next((g for g in kernel.groups if runs and max(runs) in g.sm_targets), None)


def variants_of(package: Package, kernel: Any, sm: int) -> list[tuple[str, int | None]]:
    """Functions that the library has for this chip, those for other chips' sake too, each with the most tokens it serves."""
    group = group_of(package, kernel, sm)
    variants = [*group.variants, *group.portable_variants] if group else []
    functions = {v.function: v.name for v in variants if v.function}
    return [(f, int(n.split("_")[1][1:]) if n.startswith("gemv") else None) for f, n in functions.items()]


def thresholds(kernel: Any) -> set[int]:
    ends = {v.last_token for g in kernel.groups for v in g.variants if v.last_token}
    return {count for end in ends for count in (end - 1, end, end + 1) if count > 0}


def guarded_workspace(size: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """So many bytes that are no numbers, and what follows them; None for none."""
    whole = torch.full((size + GUARD_BYTES,), NO_BYTE, dtype=torch.uint8, device="cuda") if size else None
    return (None, None) if whole is None else (whole[:size], whole[size:])


def run(package: Package, kernel: Any, function: str, inputs: Inputs) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Outputs of one launch, poisoned before, their guard rows checked."""
    tokens = inputs.x.shape[0]
    own = slice(GUARD_ROWS, GUARD_ROWS + tokens)

    def fenced(width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((tokens + 2 * GUARD_ROWS, width), float("nan"), device="cuda", dtype=dtype)

    outputs = {"logits": fenced(kernel.num_experts, DTYPES[kernel.logits_dtype])}
    if inputs.norm_weight is not None:
        outputs["normed_x"] = fenced(kernel.hidden_size, inputs.x.dtype)
    out_logits, out_normed = outputs["logits"][own], outputs["normed_x"][own] if "normed_x" in outputs else None
    lib = library(package)
    workspace, guard = guarded_workspace(lib.workspace_bytes(function, tokens))
    lib.launch(
        function,
        launch_args(
            router_logits=out_logits,
            normed_x=out_normed,
            x=inputs.x,
            norm_weight=inputs.norm_weight,
            gate_weight=inputs.gate_weight,
            gate_bias=inputs.gate_bias,
            eps=EPS,
            stream=torch.cuda.current_stream().cuda_stream,
            workspace=workspace,
        ),
    )
    torch.cuda.synchronize()
    for name, whole in outputs.items():
        outside = torch.cat([whole[: own.start], whole[own.stop :]])
        assert outside.isnan().all(), f"{function} wrote {name} outside of {tokens} tokens"
    assert guard is None or (guard == NO_BYTE).all(), f"{function} wrote beyond its workspace"
    return out_normed, out_logits


@pytest.mark.parametrize(("package", "kernel"), KERNELS, ids=[f"{p.name}-{k.kernel}" for p, k in KERNELS])
def test_variants(package: Package, kernel: Any, sm: int, record: dict[str, Any]) -> None:
    """Each variant at 1..17 tokens, around each threshold and up to 4096, whatever its own range."""
    variants = variants_of(package, kernel, sm)
    assert variants, f"{package.folder} holds nothing that runs on sm_{sm}"
    counts = sorted({*range(1, 18), 33, 100, 2048, 4096} | thresholds(kernel))
    worst = {"cases": 0, "logits_error": 0.0, "normed_x_differs": 0.0}
    for count in counts:
        inputs = make_inputs(kernel, count, next(_seeds))
        for function, most in variants:
            if most is not None and count > most:
                continue
            normed_x, got = run(package, kernel, function, inputs)
            error = relative_error(got, logits(kernel, inputs, normed_x))
            assert error < LIMIT[kernel.logits_dtype], f"{function} at {count} tokens: logits off by {error:.1e}"
            if normed_x is not None:
                unexplained, differs = outside_ties(kernel, inputs, normed_x)
                assert unexplained == 0, f"{function} at {count} tokens: {unexplained} elements of normed_x"
                dtype = kernel.activation_dtype
                assert differs < max(TIES[dtype], 3 / SIGNIFICANDS[dtype] / count), (
                    f"{function} at {count} tokens: {differs:.1e} of normed_x differ"
                )
                worst["normed_x_differs"] = max(worst["normed_x_differs"], differs)
            worst["cases"] += 1
            worst["logits_error"] = max(worst["logits_error"], error)
    record.update(worst)


INVARIANT = [(package, kernel) for package, kernel in KERNELS if kernel.batch_invariant]


@pytest.mark.parametrize(("package", "kernel"), INVARIANT, ids=[f"{p.name}-{k.kernel}" for p, k in INVARIANT])
def test_rows_do_not_depend_on_their_neighbours(package: Package, kernel: Any, sm: int) -> None:
    """With batch_invariant, a row has the same bits in a call of any count, at any place in it."""
    lib = library(package)
    total = 700
    inputs = make_inputs(kernel, total, next(_seeds))
    all_normed_x, all_logits = run(package, kernel, lib.select(kernel.kernel, sm, total), inputs)
    for count in sorted({*range(1, 34), 47, 48, 63, 64, 65, 96, 97, 128, 192, 257, 513} | thresholds(kernel)):
        if count > total:
            continue
        for first in {0, (total - count) // 2, total - count}:
            part = slice(first, first + count)
            some = Inputs(inputs.x[part], inputs.norm_weight, inputs.gate_weight, inputs.gate_bias)
            normed_x, got = run(package, kernel, lib.select(kernel.kernel, sm, count), some)
            assert torch.equal(got, all_logits[part]), f"logits of {count} rows from row {first}"
            assert normed_x is None or torch.equal(normed_x, all_normed_x[part]), (
                f"normed_x of {count} rows from {first}"
            )


@pytest.mark.parametrize(("package", "kernel"), KERNELS, ids=[f"{p.name}-{k.kernel}" for p, k in KERNELS])
def test_same_bits_each_run_and_strided_rows(package: Package, kernel: Any, sm: int) -> None:
    """Reductions have a fixed order, and a row's place in a wider tensor changes nothing."""
    for function, most in variants_of(package, kernel, sm):
        inputs = make_inputs(kernel, most or 37, next(_seeds))
        wide = torch.full(
            (inputs.x.shape[0], kernel.hidden_size + 24), float("nan"), device="cuda", dtype=inputs.x.dtype
        )
        wide[:, 8 : 8 + kernel.hidden_size] = inputs.x
        strided = Inputs(wide[:, 8 : 8 + kernel.hidden_size], inputs.norm_weight, inputs.gate_weight, inputs.gate_bias)
        normed_x, first = run(package, kernel, function, inputs)
        for again in (inputs, inputs, strided):
            normed_again, second = run(package, kernel, function, again)
            assert torch.equal(first, second), function
            assert normed_x is None or (normed_again is not None and torch.equal(normed_x, normed_again)), function
