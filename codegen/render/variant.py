"""What the template of a kernel is told of one variant: its constants, which token counts it serves, its launches."""

from __future__ import annotations

from typing import Any

from .. import naming
from ..families import Apart, Gemv, Resident, Tiled, Variant, Wgmma
from ..plan import Group, Kernel, Plan
from .launches import ROW_NORM_THREADS, SELECT_WARPS, preparation, steps_of


def variant_context(kernel: Kernel, group: Group, variant: Variant) -> dict[str, Any]:
    constants = [
        ("kTokens", variant.tokens, "tokens that a CTA serves"),
        ("kExperts", variant.experts, "experts that a CTA computes"),
    ]
    if isinstance(variant, Gemv):
        constants += [
            ("kThreads", variant.threads, "threads of a CTA"),
            ("kChunks", variant.chunks, "16-byte chunks of a row that a thread holds"),
            ("kGroup", variant.group, "rows that a thread has on their way at once"),
        ]
    elif isinstance(variant, Tiled):
        constants += [
            ("kSplit", variant.split, "CTAs that share hidden_size"),
            ("kTokenWarps", variant.token_warps, "warps side by side over the tokens"),
            ("kExpertWarps", variant.expert_warps, "warps side by side over the experts"),
            ("kSliceWarps", variant.slice_warps, "warps that share a step"),
            ("kStep", variant.step, "elements of hidden_size in a step"),
            ("kStages", variant.stages, "steps in shared memory at a time"),
            ("kSmemBytes", variant.dynamic_smem(kernel.problem, group.arch.has_cluster), "dynamic shared memory"),
        ]
    elif isinstance(variant, Wgmma):
        constants += [
            ("kSplit", variant.split, "CTAs that share hidden_size"),
            ("kStages", variant.stages, "steps in shared memory at a time"),
            ("kChainSteps", variant.chain_steps(kernel.problem), "steps whose products add to one accumulator"),
            *[("kRowPlaces", variant.row_places(kernel.problem), "rows on their way to be normed")]
            * kernel.problem.folds_norm,
            ("kCopyRegisters", variant.copy_registers, "registers of a thread that copies"),
            *[("kNormRegisters", variant.norm_registers(kernel.problem), "of one that norms rows")]
            * kernel.problem.folds_norm,
            ("kSumRegisters", variant.sum_registers(kernel.problem), "of one that multiplies"),
            *[("kStartRegisters", variant.start_registers(kernel.problem), "that each begins with")]
            * kernel.problem.folds_norm,
            ("kSmemBytes", variant.dynamic_smem(kernel.problem, True), "dynamic shared memory"),
        ]
    elif isinstance(variant, Resident):
        constants += [
            ("kSplit", variant.split, "CTAs that share hidden_size"),
            ("kPlaces", variant.places(kernel.problem), "tiles of rows in shared memory at a time"),
            ("kSumRegisters", variant.sum_registers(kernel.problem), "registers of a thread that multiplies"),
            *[("kNormRegisters", variant.norm_registers(kernel.problem), "of one that norms rows")]
            * kernel.problem.folds_norm,
            ("kCopyRegisters", variant.copy_registers, "of one that copies"),
            ("kSmemBytes", variant.dynamic_smem(kernel.problem, True), "dynamic shared memory"),
        ]
    else:
        constants += [
            ("kSplit", variant.split, "CTAs that share hidden_size"),
            ("kWarps", variant.warps, "warps of a CTA; they share the CTA's slice"),
            ("kRounds", variant.rounds, "rounds in which a warp goes through its part"),
            ("kBlocks", variant.blocks, "32-wide blocks of hidden_size that a warp takes in a round"),
            ("kChains", variant.chains, "accumulators that share a sum, so that one mma does not wait for the other"),
        ]
    typed: list[tuple[str, str, int | str, str]] = [("int", *constant) for constant in constants]
    if group.arch.has_pdl:
        early = "read weights before waiting for the kernel before"
        typed.append(("bool", "kEarlyWeights", str(variant.early_weights).lower(), early))
    if isinstance(variant, Tiled):
        adds = "sums step by step: the tensor cores cut off what fp32 would round, with each mma into one sum"
        typed.append(("bool", "kAddsSteps", str(variant.adds_steps(kernel.problem)).lower(), adds))
    if not isinstance(variant, Gemv) and not group.arch.has_cluster:
        row = variant.workspace_row(kernel.problem)
        typed.append(("int64_t", "kWorkspaceRow", row, "sums of one token in the workspace"))
    serves = [r for r in (*group.ranges, *group.portable_ranges) if r.variant == variant]
    spans = dict.fromkeys(f"{_span(r.first_token, r.last_token)}: {r.why}" for r in serves)
    what = "; ".join(spans) or "not dispatched to"
    return {
        "comment": f"{variant.name}, {what}.",
        "struct": naming.struct_name(variant.name),
        "function": naming.function_name(kernel.name, variant.name, group.sm),
        "constants": [dict(zip(("type", "name", "value", "comment"), c, strict=True)) for c in typed],
        "steps": steps_of(kernel, group, variant),
        **preparation(kernel, group, variant),
        "apart": False,
    }


def apart_context(plan: Plan, kernel: Kernel, group: Group, variant: Apart) -> dict[str, Any]:
    """A launcher that leaves the gate to the gate's own kernel."""
    serves = [r for r in (*group.ranges, *group.portable_ranges) if r.variant == variant]
    spans = dict.fromkeys(f"{_span(r.first_token, r.last_token)}: {r.why}" for r in serves)
    gate = plan.gate_of(kernel)
    gate_group = next(g for g in gate.groups if group.sm in g.sm_targets)
    problem = kernel.problem
    launch = {"smem": 0, "cluster": 1, "overlap": str(group.arch.has_pdl).lower(), "args": "args", "maps": []}
    gate_step = {"calls": naming.function_name(gate.name, variant.inner.name, gate_group.sm), "args": "args"}
    steps: list[dict[str, Any]] = [gate_step]
    if problem.residual:
        symbol = naming.function_name(kernel.name, "add", group.sm)
        add = {"calls": "", "symbol": symbol, "ctas": "args.num_tokens", "threads": ROW_NORM_THREADS}
        gate_step["args"] = f"from_residual_out(args, {problem.hidden_size})"
        steps.insert(0, {**launch, **add})
    if problem.selection:
        symbol, ctas = (
            naming.function_name(kernel.name, "select", group.sm),
            f"ceil_div(args.num_tokens, {SELECT_WARPS})",
        )
        steps.append({**launch, "calls": "", "symbol": symbol, "ctas": ctas, "threads": SELECT_WARPS * 32})
    return {
        "comment": f"{variant.name}, {'; '.join(spans)}.",
        "function": naming.function_name(kernel.name, variant.name, group.sm),
        "steps": steps,
        **preparation(kernel, group, variant),
        "apart": True,
    }


def _span(first: int, last: int | None) -> str:
    if last is None:
        return f"{first} tokens and more"
    return f"{first} token{'s' * (first > 1)}" if first == last else f"{first} to {last} tokens"
