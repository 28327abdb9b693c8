"""The quantities that follow from a plan, as tables for people: name, formula, value, meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from .arch import ARCHS, Arch
from .families import Apart, Gemv, SplitK, Variant, ceil_div
from .plan import Group, Kernel
from .problem import Problem
from .ranges import Range, in_tokens
from .tuned import LAST_ANCHOR

Row = tuple[str, str, str, str]
"""Name, formula, value, meaning."""

_ACTIVATION_BYTES = 2
_LOGIT_BYTES = {"float32": 4, "bfloat16": 2}
_MMA = 16 * 8 * 16  # multiply-adds of one tensor-core instruction: experts x tokens x elements of hidden_size


def tables(kernel: Kernel, groups: Sequence[Group], sm: int | None = None) -> Iterator[Table]:
    """A table of the problem, and one for each range of `groups`, on the chip of `sm` or each group's first."""
    models = ", ".join(spec.name for spec in kernel.specs)
    yield _table(f"{kernel.name} ({models})", of_problem(kernel.problem))
    for group in groups:
        arch = ARCHS.get(sm, group.arch) if sm is not None else group.arch
        for served in group.ranges:
            targets = ", ".join(f"sm_{target}" for target in group.sm_targets)
            yield _table(f"{_tokens(served)}: {served.name} on {targets}", of_range(kernel.problem, arch, served))


def of_problem(problem: Problem) -> list[Row]:
    """What a call moves and computes, whatever serves it."""
    hidden, experts, size = problem.hidden_size, problem.num_experts, problem.gate_weight_bytes
    weight, row = hidden * experts * size, hidden * _ACTIVATION_BYTES
    out = experts * _LOGIT_BYTES[problem.logits_dtype] + row * problem.has_norm
    rows = [
        (
            "gate_weight_bytes",
            "num_experts * hidden_size * size of an element",
            f"{weight:,}",
            "read once by every call at least",
        ),
        ("bytes_in_per_token", "hidden_size * 2", f"{row:,}", "a row of x"),
        (
            "bytes_out_per_token",
            "num_experts * size of a logit + hidden_size * 2" if problem.has_norm else "num_experts * size of a logit",
            f"{out:,}",
            "router_logits and normed_x" if problem.has_norm else "router_logits",
        ),
        (
            "flops_per_token",
            "2 * num_experts * hidden_size",
            f"{2 * experts * hidden:,}",
            "of the gate as the model has it",
        ),
        (
            "gate_terms",
            "from dtypes and norm order",
            str(problem.gate_terms),
            "bf16 terms that stand for what multiplies an element of x",
        ),
        ("row_terms", "from the activation dtype", str(problem.row_terms), "bf16 terms that stand for an element of x"),
        (
            "mma_flops_per_token",
            "flops_per_token * gate_terms * row_terms",
            f"{2 * experts * hidden * problem.gate_terms * problem.row_terms:,}",
            "what the tensor cores compute instead",
        ),
        (
            "balance_tokens",
            "gate_weight_bytes / (bytes in + out per token)",
            f"{weight / (row + out):.1f}",
            "beyond it, tokens are more traffic than weights",
        ),
    ]
    return rows


def _apart_rows(problem: Problem, variant: Apart) -> list[Row]:
    """What a path does apart has no tile of its own."""
    stages = ["add"] * bool(problem.residual) + [variant.inner.name] + ["select"] * bool(problem.selection)
    return [("launches", "stages that are apart", str(len(stages)), " -> ".join(stages))]


def of_range(problem: Problem, arch: Arch, served: Range) -> list[Row]:
    """What one range's variant makes of the problem on a chip."""
    variant = served.variant
    if variant is None:
        return [("variant", "", "none", served.why)]
    if isinstance(variant, Apart):
        return _apart_rows(problem, variant)
    first = served.first_token
    last = LAST_ANCHOR if served.last_token is None else served.last_token
    ctas = variant.ctas(problem, last)
    rows: list[Row] = [
        (
            "ctas_first",
            f"ctas at {in_tokens(first)}",
            f"{variant.ctas(problem, first):,}",
            "blocks of the launch at the first count",
        ),
        (
            "ctas_last",
            f"ctas at {in_tokens(last)}",
            f"{ctas:,}",
            "at the last count" if served.last_token else "at a large count: the range has no end",
        ),
        (
            "waves",
            f"ctas_last / {arch.multiprocessors}",
            f"{ctas / arch.multiprocessors:.2f}",
            f"blocks for each multiprocessor of the {arch.chip}",
        ),
        ("threads", f"{variant.warps} warps * 32", str(variant.threads), "of a block"),
        *_family_rows(problem, variant),
        *_mma_rows(problem, variant, last),
    ]
    tiles = 1 if isinstance(variant, Gemv) else ceil_div(last, variant.tokens)
    weight = problem.hidden_size * problem.num_experts * problem.gate_weight_bytes
    static = variant.static_smem(problem, arch.has_cluster)
    dynamic = variant.dynamic_smem(problem, arch.has_cluster)
    rows += [
        (
            "weight_bytes_read",
            "gate_weight_bytes * token_tiles",
            f"{weight * tiles:,}",
            "by all blocks; what is read again comes from L2",
        ),
        ("static_smem", "from the tile", f"{static:,}", "bytes a block declares"),
        (
            "dynamic_smem",
            "from the tile and its stages",
            f"{dynamic:,}",
            f"bytes more, of {arch.max_smem_per_block:,} a block can have",
        ),
        ("registers", "estimate", str(variant.registers(problem)), "of a thread; the compiler's report decides"),
    ]
    return rows


def _family_rows(problem: Problem, variant: Variant) -> Iterator[Row]:
    hidden, experts = problem.hidden_size, problem.num_experts
    if isinstance(variant, Gemv):
        yield (
            "expert_tiles",
            f"ceil({experts} / {variant.experts})",
            str(ceil_div(experts, variant.experts)),
            "blocks, each with its own experts",
        )
        yield "row_chunks", f"{hidden} / 8", str(hidden // 8), "16-byte chunks of a row"
        covered = variant.threads * variant.chunks
        yield (
            "chunks_covered",
            f"{variant.threads} threads * {variant.chunks}",
            str(covered),
            "chunks that a block's threads hold at once",
        )
        return
    yield (
        "expert_tiles",
        f"ceil({experts} / {variant.experts})",
        str(variant.tiles(problem)),
        f"tiles of {variant.experts} experts",
    )
    yield "split", "", str(variant.split), "blocks that share hidden_size"
    if isinstance(variant, SplitK):
        formula = f"{variant.warps} warps * {variant.rounds} rounds * {variant.blocks} blocks * 32"
        yield "slice", formula, str(variant.slice), "elements of hidden_size that a block takes"
        covered = variant.split * variant.slice
        yield (
            "idle",
            "1 - hidden_size / (split * slice)",
            f"{1 - hidden / covered:.1%}",
            "of the slices lies beyond the row's end",
        )
    else:
        formula = f"ceil(ceil({hidden} / {variant.step}) / {variant.split})"
        yield "steps", formula, str(variant.steps(problem)), f"of {variant.step} elements that a block goes through"
        yield (
            "slice",
            f"steps * {variant.step}",
            str(variant.steps(problem) * variant.step),
            "elements of hidden_size that a block takes",
        )


def _mma_rows(problem: Problem, variant: Variant, last: int) -> Iterator[Row]:
    if isinstance(variant, Gemv):
        return
    tiles = ceil_div(last, variant.tokens)
    yield (
        "token_tiles",
        f"ceil({last} / {variant.tokens})",
        f"{tiles:,}",
        f"tiles of {in_tokens(variant.tokens)} at the last count",
    )
    taken = variant.slice if isinstance(variant, SplitK) else variant.steps(problem) * variant.step
    terms = problem.gate_terms * problem.row_terms
    mmas = variant.experts * variant.tokens * taken * terms // _MMA
    formula = f"{variant.experts} * {variant.tokens} * slice * {terms} terms / {_MMA}"
    yield "mma_per_block", formula, f"{mmas:,}", "m16n8k16 instructions"


def _tokens(served: Range) -> str:
    if served.last_token is None:
        return f"{served.first_token} tokens and more"
    if served.first_token == served.last_token:
        return in_tokens(served.first_token)
    return f"{served.first_token} to {served.last_token} tokens"


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        expand=False,
    )
    for name, justify in (("name", "left"), ("formula", "left"), ("value", "right"), ("meaning", "left")):
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
