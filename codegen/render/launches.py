"""What a variant launches: the functions of a source file, their launches in order, and the memory between those."""

from __future__ import annotations

from typing import Any

from .. import naming
from ..families import Apart, Gemv, Resident, SplitK, Variant, Wgmma
from ..plan import Group, Kernel

ROW_NORM_THREADS = 256
SELECT_WARPS = 4  # of a CTA of the selection alone, a row each


def functions(kernel: Kernel, group: Group) -> tuple[str, ...]:
    """The `__global__` functions of a group's source file."""
    return tuple(entry["symbol"] for entry in entry_points(kernel, group))


def entry_points(kernel: Kernel, group: Group) -> list[dict[str, Any]]:
    """Those functions, each with its threads and what its body calls."""
    entries: list[dict[str, Any]] = []
    for variant in group.variants:
        symbol = naming.function_name(kernel.name, variant.name, group.sm)
        struct = naming.struct_name(variant.name)
        entry = {
            "symbol": symbol,
            "threads": variant.threads_for(kernel.problem),
            "body": f"{variant.family}<{struct}>",
        }
        # A CTA that is alone on its multiprocessor can have all registers, but begins sooner with fewer.
        registers = variant.start_registers(kernel.problem) if isinstance(variant, Wgmma) else 0
        entries.append({**entry, "accelerated": variant.accelerated, "maps": _maps(variant), "registers": registers})
        if _finishes_apart(group, variant):
            finish = {
                "symbol": naming.finish_name(symbol),
                "threads": ROW_NORM_THREADS,
                "body": f"finish<{struct}>",
                "accelerated": False,
                "maps": [],
                "registers": 0,
            }
            entries.append(finish)
    if any(_norms_apart(kernel, group, variant) for variant in group.variants):
        symbol = naming.function_name(kernel.name, "row_norm", group.sm)
        entry = {"symbol": symbol, "threads": ROW_NORM_THREADS, "body": "row_norm"}
        entries.append({**entry, "accelerated": False, "maps": [], "registers": 0})
    stages = [("add", "add_residual", ROW_NORM_THREADS)] * bool(kernel.problem.residual)
    stages += [("select", "select_rows", SELECT_WARPS * 32)] * bool(kernel.problem.selection)
    for name, body, threads in stages if group.apart else ():
        symbol = naming.function_name(kernel.name, name, group.sm)
        entries.append(
            {"symbol": symbol, "threads": threads, "body": body, "accelerated": False, "maps": [], "registers": 0}
        )
    return entries


def steps_of(kernel: Kernel, group: Group, variant: Variant) -> list[dict[str, Any]]:
    """The launches of a variant, in order."""
    problem = kernel.problem
    symbol = naming.function_name(kernel.name, variant.name, group.sm)
    overlap = str(group.arch.has_pdl).lower()
    uses_smem = variant.dynamic_smem(problem, group.arch.has_cluster) > 0
    smem = f"{naming.struct_name(variant.name)}::kSmemBytes" if uses_smem else 0
    step = {
        "symbol": symbol,
        "threads": variant.threads_for(kernel.problem),
        "smem": smem,
        "cluster": 1,
        "overlap": overlap,
    }
    step |= {"args": "args", "maps": _maps(variant), "calls": ""}
    if isinstance(variant, Gemv):
        return [{**step, "ctas": variant.ctas(problem, variant.tokens)}]
    step["ctas"] = f"ceil_div(args.num_tokens, {variant.tokens}) * {variant.tiles(problem) * variant.split}"
    if isinstance(variant, Resident):
        token_tiles = f"std::min<int64_t>(ceil_div(args.num_tokens, {variant.tokens}), {variant.token_groups(problem)})"
        step["ctas"] = f"{token_tiles} * {variant.tiles(problem) * variant.split}"
    if group.arch.has_cluster:
        step["cluster"] = variant.split
    steps = [step]
    per_row = {**step, "ctas": "args.num_tokens", "threads": ROW_NORM_THREADS, "smem": 0, "cluster": 1, "maps": []}
    if _norms_apart(kernel, group, variant):
        step["args"] = f"from_normed_x(args, {problem.hidden_size})"
        steps.insert(0, {**per_row, "symbol": naming.function_name(kernel.name, "row_norm", group.sm)})
    if _finishes_apart(group, variant):
        steps.append({**per_row, "symbol": naming.finish_name(symbol)})
    return steps


def _maps(variant: Variant) -> list[str]:
    """The matrices that a kernel copies in boxes, which need a map each."""
    return ["x_map"] * isinstance(variant, Resident | Wgmma) + ["gate_map"] * isinstance(variant, Wgmma)


def _finishes_apart(group: Group, variant: Variant | Apart) -> bool:
    """Chips without clusters add the sums of a split in a launch of their own."""
    return not isinstance(variant, Gemv | Apart) and not group.arch.has_cluster


def _norms_apart(kernel: Kernel, group: Group, variant: Variant) -> bool:
    """The gate reads rows as they are written, and no CTA of the variant sees one whole: the norm is its own launch."""
    fused = isinstance(variant, Gemv) or (isinstance(variant, SplitK) and group.arch.has_cluster)
    return kernel.problem.rounds_rows and not fused


def hands_over(kernel: Kernel, group: Group, variant: Variant | Apart) -> str:
    """Places in memory in which a launch's CTAs tell each other numbers, for the launcher to work out; "" for none: of
    logits for the one that chooses experts, of wgmma's rows what their logits are to be multiplied by.
    """
    if isinstance(variant, Apart):
        return ""
    if kernel.problem.selection is not None and not _finishes_apart(group, variant):
        return "args.num_tokens * kPlaces"
    if isinstance(variant, Wgmma) and kernel.problem.folds_norm:
        return f"args.num_tokens * {variant.tiles(kernel.problem)} + ceil_div(args.num_tokens, {variant.tokens})"
    return ""


def uses_handover(kernel: Kernel, group: Group) -> bool:
    """Whether any launch of the group's file has such places: the file then needs csrc/handover.cu beside it."""
    return any(hands_over(kernel, group, variant) for variant in group.variants)


def preparation(kernel: Kernel, group: Group, variant: Variant | Apart) -> dict[str, Any]:
    """What a launcher makes up beside what it is given: places to hand numbers over in, and a place in the workspace,
    in bytes a token, for logits that nobody asked for.
    """
    places = hands_over(kernel, group, variant)
    keeps_logits = isinstance(variant, Apart) and not kernel.problem.returns_logits
    logits_at = _sums_bytes_per_token(kernel, group, variant) if keeps_logits else None
    return {"hands_over": places, "logits_at": logits_at, "prepares": bool(places) or keeps_logits}


def workspace_bytes_per_token(kernel: Kernel, group: Group, variant: Variant | Apart) -> int:
    """Of the sums that a launch hands to the next, and of logits that are no output."""
    logits = kernel.problem.num_experts * kernel.problem.logit_bytes
    passes_logits = preparation(kernel, group, variant)["logits_at"] is not None
    return _sums_bytes_per_token(kernel, group, variant) + logits * passes_logits


def _sums_bytes_per_token(kernel: Kernel, group: Group, variant: Variant | Apart) -> int:
    inner = variant.inner if isinstance(variant, Apart) else variant
    if isinstance(inner, Gemv) or group.arch.has_cluster:
        return 0
    return inner.split * inner.workspace_row(kernel.problem) * 4
