"""Every function of every whole path against float64, and what holds whatever its inputs are.

A path is x and residual to normed_x, residual_out, the experts' ids and their weights. Ids are to be the oracle's but
for experts, or groups of them, whose choices differ by less than 1e-6; weights within 1e-5 of a row's largest.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from packages import Package, paths
from path_calls import (
    Call,
    forms_of,
    functions_of,
    is_apart,
    make_outputs,
    numbers_of,
    run,
    same,
    strided_inputs,
)
from path_oracle import (
    VOCABULARY,
    Found,
    Oracle,
    PathInputs,
    check_safe,
    check_selection,
    make_path_inputs,
    select,
    unlike_models,
)
from test_numerics import group_of, library

PATHS = list(paths())
SELECTING = [(package, kernel) for package, kernel in PATHS if kernel.selection]
HASHING = [(package, kernel) for package, kernel in SELECTING if kernel.selection.hashes]
ROWS, ROWS_OF_FUSED, ROWS_AT_ONCE = 100_000, 2048, 4096
_seeds = itertools.count(2000)


def each(kernels: list[tuple[Package, Any]]) -> pytest.MarkDecorator:
    names = [f"{package.name}-{kernel.kernel}" for package, kernel in kernels]
    return pytest.mark.parametrize(("package", "kernel"), kernels, ids=names)


@each(PATHS)
def test_functions(package: Package, kernel: Any, sm: int, record: dict[str, Any]) -> None:
    """Each at 1..17 tokens and some more, whatever its own range, with a model's numbers and with others."""
    functions = functions_of(package, kernel, sm)
    assert functions, f"{package.folder} holds nothing that runs on sm_{sm}"
    found, cases = Found(), 0
    numbers = [numbers_of(package, kernel), unlike_models(kernel, floor=False), unlike_models(kernel, floor=True)]
    for count in (*range(1, 18), 33, 64, 100, 1000):
        for hashes in forms_of(kernel):
            oracle = Oracle(kernel, make_path_inputs(kernel, count, next(_seeds), hashes), numbers[count % 3])
            for function, most in functions:
                if most is not None and count > most:
                    continue
                got = run(package, kernel, function, oracle.inputs, oracle.numbers)
                found.include(oracle.check(got, f"{function} at {count} tokens{', hashed' * hashes}"))
                cases += 1
    record.update(cases=cases, **found.record())


@each(PATHS)
def test_random_rows_through_the_dispatch(package: Package, kernel: Any, sm: int, record: dict[str, Any]) -> None:
    """100,000 rows in calls of many sizes, through what the dispatch takes for each."""
    lib = library(package)
    group = group_of(package, kernel, sm)
    assert group is not None, f"{package.folder} holds nothing that runs on sm_{sm}"
    ends = {variant.last_token for variant in group.variants_on(sm) if variant.last_token}
    function_of = {size: lib.select(kernel.kernel, sm, size) for size in ({1, 3, 8, 16, 64, 1000, ROWS_AT_ONCE} | ends)}
    assert None not in function_of.values(), (
        f"no function for {[s for s, f in function_of.items() if f is None]} tokens"
    )
    blocks = []  # of calls of a size, their rows checked at once
    for size, function in sorted(function_of.items()):
        rows = size if is_apart(kernel, function) else ROWS_OF_FUSED
        blocks.append((size, -(-rows // size) * size))
    left = ROWS - sum(rows for _, rows in blocks)
    blocks += [(ROWS_AT_ONCE, min(ROWS_AT_ONCE, left - first)) for first in range(0, left, ROWS_AT_ONCE)]
    for hashes in forms_of(kernel):
        found = Found()
        rows_of: dict[str, int] = {}
        for size, rows in blocks:
            inputs = make_path_inputs(kernel, rows, next(_seeds), hashes)
            oracle = Oracle(kernel, inputs, numbers_of(package, kernel))
            outputs = make_outputs(kernel, rows)
            for first in range(0, rows, size):
                part = slice(first, min(first + size, rows))
                function = lib.select(kernel.kernel, sm, part.stop - first)
                Call(package, function, inputs.rows(part), oracle.numbers, outputs.rows(part)).queue()
                name = function.removeprefix(f"{kernel.kernel}_")
                rows_of[name] = rows_of.get(name, 0) + part.stop - first
            torch.cuda.synchronize()
            found.include(oracle.check(outputs, f"{kernel.kernel}, {rows} rows, {size} a call{', hashed' * hashes}"))
        assert found.rows >= ROWS
        models = [model.model for model in package.models.values() if model.path_kernel == kernel.kernel]
        record["hashed" if hashes else "scored"] = {"models": models, **found.record(), "rows_of": rows_of}


@each(PATHS)
def test_same_bits_each_run_and_strided_rows(package: Package, kernel: Any, sm: int) -> None:
    numbers = numbers_of(package, kernel)
    for (function, most), hashes in itertools.product(functions_of(package, kernel, sm), forms_of(kernel)):
        count = most or 37
        inputs = make_path_inputs(kernel, count, next(_seeds), hashes)
        first = run(package, kernel, function, inputs, numbers)
        for time in range(1, 10):
            differ = same(first, run(package, kernel, function, inputs, numbers))
            assert not differ, f"{function} at {count} tokens, run {time}: other {differ}"
        differ = same(first, run(package, kernel, function, strided_inputs(inputs), numbers))
        assert not differ, f"{function} at {count} tokens, rows with strides: other {differ}"


def spoilt(inputs: PathInputs, rows: torch.Tensor, value: float) -> PathInputs:
    """Of these rows the first, fourth, ... are all `value` in x, the next ones at one place, the next in residual."""
    x = inputs.x.clone()
    x[rows[0::3]] = value
    x[rows[1::3], 5] = value
    if inputs.residual is None:
        x[rows[2::3], ::2] = value
        return replace(inputs, x=x)
    residual = inputs.residual.clone()
    residual[rows[2::3]] = value
    return replace(inputs, x=x, residual=residual)


@each(PATHS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "largest"])
def test_rows_of_padding_leave_the_others_alone(package: Package, kernel: Any, value: str, sm: int) -> None:
    numbers = numbers_of(package, kernel)
    for (function, most), hashes in itertools.product(functions_of(package, kernel, sm), forms_of(kernel)):
        count = most or 37
        inputs = make_path_inputs(kernel, count, next(_seeds), hashes)
        number = torch.finfo(inputs.x.dtype).max if value == "largest" else float(value)
        rows = torch.arange(count, device="cuda")
        is_bad = rows % 2 == 1
        good = run(package, kernel, function, inputs, numbers)
        mixed = run(package, kernel, function, spoilt(inputs, rows[is_bad], number), numbers)
        what = f"{function} at {count} tokens, {value}{', hashed' * hashes}"
        check_safe(kernel, mixed, what)
        for name, tensor in good.given.items():
            assert torch.equal(getattr(mixed, name)[~is_bad], tensor[~is_bad]), f"{what}: {name} of good rows"
        if hashes:
            of_table = slice(None) if inputs.image_mask is None else ~inputs.image_mask
            assert torch.equal(mixed.topk_ids[of_table], good.topk_ids[of_table]), f"{what}: ids are the table's"
        check_safe(kernel, run(package, kernel, function, spoilt(inputs, rows, number), numbers), f"{what}, all rows")


@each(SELECTING)
def test_logits_without_end(package: Package, kernel: Any, sm: int) -> None:
    """Gate weights so large that the sums of two experts are infinite, or no number where a product had two parts."""
    numbers = numbers_of(package, kernel)
    for (function, most), hashes in itertools.product(functions_of(package, kernel, sm), forms_of(kernel)):
        count = most or 37
        inputs = make_path_inputs(kernel, count, next(_seeds), hashes)
        gate_weight = inputs.gate_weight.clone()
        gate_weight[kernel.num_experts // 2] = torch.finfo(gate_weight.dtype).max
        gate_weight[kernel.num_experts // 3] = -torch.finfo(gate_weight.dtype).max
        positive = replace(
            inputs,
            x=inputs.x.abs(),
            residual=None if inputs.residual is None else inputs.residual.abs(),
            norm_weight=None if inputs.norm_weight is None else inputs.norm_weight.abs(),
            gate_weight=gate_weight,
        )
        got = run(package, kernel, function, positive, numbers)
        check_safe(kernel, got, f"{function} at {count} tokens{', hashed' * hashes}")


@each(HASHING)
def test_tokens_and_experts_that_are_none(package: Package, kernel: Any, sm: int) -> None:
    """An id outside the vocabulary reads row 0, an expert that is none is the nearest: nothing beyond is read."""
    numbers = numbers_of(package, kernel)
    unknown = torch.tensor([-1, VOCABULARY, 1 << 40, -(1 << 40), 7, VOCABULARY - 1], device="cuda")
    for function, most in functions_of(package, kernel, sm):
        count = most or 37
        inputs = make_path_inputs(kernel, count, next(_seeds), hashes=True)
        tokens = unknown.repeat(count)[:count]
        oracle = Oracle(kernel, replace(inputs, input_ids=tokens), numbers)
        oracle.check(run(package, kernel, function, oracle.inputs, numbers), f"{function} at {count} tokens")
        table = inputs.tid2eid.clone()
        table[7, 0], table[7, 1] = kernel.num_experts, -1
        table[7, 2:] = torch.arange(1, kernel.selection.top_k - 1, device="cuda")
        oracle = Oracle(kernel, replace(inputs, tid2eid=table, input_ids=torch.full_like(tokens, 7)), numbers)
        got = run(package, kernel, function, oracle.inputs, numbers)
        oracle.check(got, f"{function} at {count} tokens, experts out of range")


@each(SELECTING)
def test_of_equal_experts_the_lowest_are_chosen(package: Package, kernel: Any, sm: int) -> None:
    """Experts of three kinds, alike within a kind, so that a third of them tie: more than are ranked at once."""
    numbers = numbers_of(package, kernel)
    kind = torch.arange(kernel.num_experts, device="cuda") % 3
    for function, most in functions_of(package, kernel, sm):
        count = most or 37
        drawn = make_path_inputs(kernel, count, next(_seeds))
        of_experts = ("gate_weight", "gate_bias", "correction_bias", "correction_bias_vl", "per_expert_scale")
        given = {name: tensor for name in of_experts if (tensor := getattr(drawn, name)) is not None}
        inputs = replace(drawn, **{name: tensor[kind].contiguous() for name, tensor in given.items()})
        got = run(package, kernel, function, inputs, numbers)
        # One logit a kind: who knows in which order a matrix product sums its columns.
        rows = Oracle(kernel, inputs, numbers).logits(got.normed_x)[:, :3]
        apart = (rows.sort(1).values.diff(dim=1) > 1e-3).all(1)
        right = select(kernel.selection, rows[:, kind], inputs, numbers)
        what = f"{function} at {count} tokens"
        if kernel.selection.correction_bias:
            choices = right.choices[:, :3].sort(1).values
            apart &= (choices.diff(dim=1) > 1e-3).all(1)
        differ = (got.topk_ids.long() != right.ids).any(1) & apart
        assert not differ.any(), (
            f"{what}: {int(differ.sum())} rows, such as {got.topk_ids[differ][0].tolist()} "
            f"for {right.ids[differ][0].tolist()}"
        )
        alike = (kind[got.topk_ids.long()] == kind[got.topk_ids[:, :1].long()]) & apart[:, None]
        first = got.topk_weights[:, :1].expand_as(got.topk_weights)
        assert torch.equal(got.topk_weights[alike], first[alike]), f"{what}: weights of equal experts differ"


@each(SELECTING)
def test_where_all_experts_are_equal_the_first_are_chosen(package: Package, kernel: Any, sm: int) -> None:
    numbers = numbers_of(package, kernel)
    top_k = kernel.selection.top_k
    for function, most in functions_of(package, kernel, sm):
        count = most or 37
        inputs = make_path_inputs(kernel, count, next(_seeds))
        inputs = replace(
            inputs,
            gate_weight=torch.zeros_like(inputs.gate_weight),
            gate_bias=None if inputs.gate_bias is None else torch.full_like(inputs.gate_bias, 0.5),
            correction_bias=None if inputs.correction_bias is None else torch.full_like(inputs.correction_bias, -0.25),
            image_mask=None,
        )
        got = run(package, kernel, function, inputs, numbers)
        what = f"{function} at {count} tokens"
        assert (got.topk_ids == torch.arange(top_k, device="cuda")).all(), f"{what}: {got.topk_ids[0].tolist()}"
        right = select(kernel.selection, Oracle(kernel, inputs, numbers).logits(got.normed_x), inputs, numbers)
        check_selection(kernel, right, inputs, numbers, got, what)
