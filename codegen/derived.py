"""The quantities that follow from a plan, for people and for programs: name, formula, value, meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.table import Table

from . import terminal
from .arch import ARCHS, Arch
from .families import Apart, Gemv, SplitK, Variant, ceil_div, mma_terms
from .plan import Group, Kernel
from .problem import ACTIVATION_BYTES, Problem
from .ranges import Range, in_tokens
from .tuned import LAST_ANCHOR


class Quantity(NamedTuple):
    """What follows from a plan; the value in words where there is no figure."""

    name: str
    formula: str
    value: int | float | str
    meaning: str

    @property
    def shown(self) -> str:
        """The value for people."""
        return {int: "{:,}", float: "{:.2f}"}.get(type(self.value), "{}").format(self.value)

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The cells of a table for people."""
        return self.name, self.formula, self.shown, self.meaning


_MMA = 16 * 8 * 16  # multiply-adds of one tensor-core instruction: experts x tokens x elements of hidden_size


def tables(kernel: Kernel, groups: Sequence[Group], sm: int | None = None) -> Iterator[tuple[str, Table]]:
    """What is printed, a table and its title at a time: the problem, which variants serve it on each of `groups`, and
    for the chip of `sm`, if one is given, what each makes of it.
    """
    models = ", ".join(spec.name for spec in kernel.specs)
    yield f"{kernel.name} ({models})", _table(of_problem(kernel.problem))
    for group in groups:
        targets = ", ".join(f"sm_{target}" for target in group.sm_targets)
        arch = _arch(group, sm)
        yield f"Variants on {targets}{_about_apart(kernel.problem, group)}", _overview(kernel.problem, arch, group)
        for served in group.ranges if sm is not None else ():
            if isinstance(served.variant, Apart):
                continue
            tokens = "1 token" if served.last_token == 1 else f"{_range(served)} tokens"
            yield f"{tokens}: {served.name} on {targets}", _table(of_range(kernel.problem, arch, served))


def data(kernel: Kernel, groups: Sequence[Group], sm: int | None = None) -> dict[str, object]:
    """The same for JSON, and the quantities of every range."""
    return {
        "name": kernel.name,
        "models": [spec.name for spec in kernel.specs],
        "quantities": [quantity._asdict() for quantity in of_problem(kernel.problem)],
        "groups": [
            {
                "sm_targets": list(group.sm_targets),
                "ranges": [
                    {
                        "first_token": served.first_token,
                        "last_token": served.last_token,
                        "variant": served.name,
                        "why": served.why,
                        "quantities": [
                            quantity._asdict() for quantity in of_range(kernel.problem, _arch(group, sm), served)
                        ],
                    }
                    for served in group.ranges
                ],
            }
            for group in groups
        ],
    }


def _arch(group: Group, sm: int | None) -> Arch:
    """The chip asked for, or the group's first."""
    return group.arch if sm is None else ARCHS.get(sm, group.arch)


def _about_apart(problem: Problem, group: Group) -> str:
    """What a variant that does stages apart is, for the title of a table that has one."""
    found = next((served.variant for served in group.ranges if isinstance(served.variant, Apart)), None)
    return f"; {found.name} is {_stages(problem, found)}, launched one by one" if found else ""


def _overview(problem: Problem, arch: Arch, group: Group) -> Table:
    """The variants of a group and what a launch of each takes."""
    shown = terminal.table(terminal.words("tokens"), terminal.words("variant"), "ctas", "threads", "regs", "smem")
    for served in group.ranges:
        found = {quantity.name: quantity for quantity in of_range(problem, arch, served)}
        cells = [found[name].shown if name in found else "" for name in ("ctas_last", "threads", "registers")]
        smem = [found[name].value for name in ("static_smem", "dynamic_smem") if name in found]
        total = f"{sum(value for value in smem if isinstance(value, int)):,}" if smem else ""
        shown.add_row(_range(served), served.name, *cells, total)
    return shown


def of_problem(problem: Problem) -> list[Quantity]:
    """What a call moves and computes, whatever serves it."""
    hidden, experts, size = problem.hidden_size, problem.num_experts, problem.gate_weight_bytes
    weight, row = hidden * experts * size, hidden * ACTIVATION_BYTES
    out = experts * problem.logit_bytes + row * problem.has_norm
    flops = 2 * experts * hidden
    out_formula, out_meaning = "num_experts * size of a logit", "router_logits"
    if problem.has_norm:
        out_formula, out_meaning = f"{out_formula} + hidden_size * 2", "router_logits and normed_x"
    return [
        Quantity(
            "gate_weight_bytes", "num_experts * hidden_size * size of an element", weight, "read once a call at least"
        ),
        Quantity("bytes_in_per_token", "hidden_size * 2", row, "a row of x"),
        Quantity("bytes_out_per_token", out_formula, out, out_meaning),
        Quantity("flops_per_token", "2 * num_experts * hidden_size", flops, "of the gate as the model has it"),
        Quantity(
            "gate_terms",
            "from dtypes and norm order",
            problem.gate_terms,
            "bf16 terms that stand for what multiplies an element of x",
        ),
        Quantity(
            "row_terms", "from the activation dtype", problem.row_terms, "bf16 terms that stand for an element of x"
        ),
        Quantity(
            "mma_flops_per_token",
            "flops_per_token * pairs of gate_terms and row_terms above fp32's last bit",
            flops * mma_terms(problem),
            "what the tensor cores compute instead",
        ),
        Quantity(
            "balance_tokens",
            "gate_weight_bytes / (bytes in + out per token)",
            round(weight / (row + out), 2),
            "beyond it, tokens are more traffic than weights",
        ),
    ]


def of_range(problem: Problem, arch: Arch, served: Range) -> list[Quantity]:
    """What one range's variant makes of the problem on a chip."""
    variant = served.variant
    if variant is None:
        return [Quantity("variant", "", "none", served.why)]
    if isinstance(variant, Apart):
        # It has no tile of its own.
        stages = _stages(problem, variant)
        return [Quantity("launches", "stages that are apart", stages.count("->") + 1, stages)]
    first = served.first_token
    last = LAST_ANCHOR if served.last_token is None else served.last_token
    ctas = variant.ctas(problem, last)
    tiles = 1 if isinstance(variant, Gemv) else ceil_div(last, variant.tokens)
    weight = problem.hidden_size * problem.num_experts * problem.gate_weight_bytes
    static = variant.static_smem(problem, arch.has_cluster)
    dynamic = variant.dynamic_smem(problem, arch.has_cluster)
    at_last = "at the last count" if served.last_token else "at a large count: the range has no end"
    return [
        Quantity(
            "ctas_first", f"ctas at {in_tokens(first)}", variant.ctas(problem, first), "blocks at the first count"
        ),
        Quantity("ctas_last", f"ctas at {in_tokens(last)}", ctas, at_last),
        Quantity(
            "waves",
            f"ctas_last / {arch.multiprocessors}",
            round(ctas / arch.multiprocessors, 2),
            f"blocks for each multiprocessor of the {arch.chip}",
        ),
        Quantity("threads", f"{variant.warps} warps * 32", variant.threads, "of a block"),
        *_family_rows(problem, variant),
        *_mma_rows(problem, variant, last),
        Quantity(
            "weight_bytes_read",
            "gate_weight_bytes * token_tiles",
            weight * tiles,
            "by all blocks; what is read again comes from L2",
        ),
        Quantity("static_smem", "from the tile", static, "bytes a block declares"),
        Quantity(
            "dynamic_smem",
            "from the tile and its stages",
            dynamic,
            f"bytes more, of {arch.max_smem_per_block:,} a block can have",
        ),
        Quantity("registers", "estimate", variant.registers(problem), "of a thread; the compiler's report decides"),
    ]


def _stages(problem: Problem, variant: Apart) -> str:
    stages = ["add"] * bool(problem.residual) + [variant.inner.name] + ["select"] * bool(problem.selection)
    return " -> ".join(stages)


def _family_rows(problem: Problem, variant: Variant) -> Iterator[Quantity]:
    hidden, experts = problem.hidden_size, problem.num_experts
    tiles = f"ceil({experts} / {variant.experts})"
    if isinstance(variant, Gemv):
        yield Quantity("expert_tiles", tiles, ceil_div(experts, variant.experts), "blocks, each with its own experts")
        yield Quantity("row_chunks", f"{hidden} / 8", hidden // 8, "16-byte chunks of a row")
        covered = variant.threads * variant.chunks
        formula = f"{variant.threads} threads * {variant.chunks}"
        yield Quantity("chunks_covered", formula, covered, "chunks that a block's threads hold at once")
        return
    yield Quantity("expert_tiles", tiles, variant.tiles(problem), f"tiles of {variant.experts} experts")
    yield Quantity("split", "", variant.split, "blocks that share hidden_size")
    of_a_block = "elements of hidden_size that a block takes"
    if isinstance(variant, SplitK):
        formula = f"{variant.warps} warps * {variant.rounds} rounds * {variant.blocks} blocks * 32"
        yield Quantity("slice", formula, variant.slice, of_a_block)
        idle = 1 - hidden / (variant.split * variant.slice)
        beyond = "share of the slices beyond the row's end"
        yield Quantity("idle", "1 - hidden_size / (split * slice)", round(idle, 3), beyond)
    else:
        steps = variant.steps(problem)
        formula = f"ceil(ceil({hidden} / {variant.step}) / {variant.split})"
        yield Quantity("steps", formula, steps, f"of {variant.step} elements that a block goes through")
        yield Quantity("slice", f"steps * {variant.step}", steps * variant.step, of_a_block)


def _mma_rows(problem: Problem, variant: Variant, last: int) -> Iterator[Quantity]:
    if isinstance(variant, Gemv):
        return
    tiles = f"tiles of {in_tokens(variant.tokens)} at the last count"
    yield Quantity("token_tiles", f"ceil({last} / {variant.tokens})", ceil_div(last, variant.tokens), tiles)
    taken = variant.slice if isinstance(variant, SplitK) else variant.steps(problem) * variant.step
    terms = mma_terms(problem)
    mmas = variant.experts * variant.tokens * taken * terms // _MMA
    formula = f"{variant.experts} * {variant.tokens} * slice * {terms} terms / {_MMA}"
    yield Quantity("mma_per_block", formula, mmas, "m16n8k16 instructions")


def _range(served: Range) -> str:
    first, last = served.first_token, served.last_token
    return f"{first} and more" if last is None else str(first) if first == last else f"{first} to {last}"


def _table(quantities: Sequence[Quantity]) -> Table:
    table = terminal.table(
        terminal.words("name"), terminal.words("formula", whole=False), "value", terminal.words("meaning", whole=False)
    )
    for quantity in quantities:
        table.add_row(*quantity.row)
    return table
