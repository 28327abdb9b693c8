"""Plan into text. Templates decide nothing: what they ask for is worked out here from the plan."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import jinja2

from . import naming
from .errors import ToolError
from .families import FAMILIES, Apart, Gemv, Resident, SplitK, Tiled, Variant, Wgmma, ceil_div
from .plan import Group, Kernel, Plan
from .problem import Problem, Selection
from .spec import RouterSpec

ROOT = Path(__file__).resolve().parent
_NORM_COMMENTS = {
    "A": "weight * round(xhat), rounded",
    "B": "weight * xhat, rounded once",
    "G": "(1 + weight) * xhat, rounded once",
}
_NORM_FORMULAS = {
    "A": "round(norm_weight[k] * round(x[m, k] * rstd[m]))",
    "B": "round(norm_weight[k] * x[m, k] * rstd[m])",
    "G": "round((1 + norm_weight[k]) * x[m, k] * rstd[m])",
}
ROW_NORM_THREADS = 256
HANDOVER = "csrc/handover.cu"
SELECT_WARPS = 4  # of a CTA of the selection alone, a row each


def templates_folder() -> Path:
    """Beside the generator in a checkout, inside it when installed."""
    installed = ROOT / "templates"
    return installed if installed.is_dir() else ROOT.parent / "templates"


def environment() -> jinja2.Environment:
    templates = templates_folder()
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates / "kernels", templates / "package", templates]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(plan: Plan, ops: str = naming.OPS) -> dict[str, str]:
    """The whole package but its manifest: posix path in the package -> text, formatted.

    ops: the namespace of its operators, torch.ops.<ops>; BadInput where it cannot be one.
    """
    naming.check_ops(ops)
    env = environment()
    files: dict[str, str] = {}
    for kernel in plan.all_kernels:
        for group in kernel.groups:
            path = str(naming.source_path(kernel.name, group.sm))
            files[path] = env.get_template("kernel.cu.j2").render(
                kernel=_kernel_context(kernel), group=_group_context(plan, kernel, group)
            )
    files["csrc/dispatch_table.cpp"] = env.get_template("csrc/dispatch_table.cpp.j2").render(_table_context(plan))
    files["_tables.py"] = env.get_template("_tables.py.j2").render(_table_context(plan), ops=ops)
    files["csrc/include/ops.h"] = env.get_template("csrc/ops.h.j2").render(ops=ops)
    templates = templates_folder()
    for source in sorted((templates / "csrc").glob("*.cpp")):
        files[f"csrc/{source.name}"] = source.read_text()
    if any(path.problem.selection for path in plan.paths):
        files[HANDOVER] = (templates / HANDOVER).read_text()
    for source in sorted((templates / "include").iterdir()):
        files[f"csrc/include/{source.name}"] = source.read_text()
    for source in sorted((templates / "package").rglob("*.py")):
        files[source.relative_to(templates / "package").as_posix()] = source.read_text()
    return _formatted(files)


def functions(kernel: Kernel, group: Group) -> tuple[str, ...]:
    """The `__global__` functions of a group's source file."""
    return tuple(entry["symbol"] for entry in _entry_points(kernel, group))


def _kernel_context(kernel: Kernel) -> dict[str, Any]:
    problem = kernel.problem
    row = "residual_out" if problem.residual else "x"  # what the norm reads
    scale = "x[m, k]"
    if problem.has_norm:
        weight = "(1 + norm_weight[k])" if problem.norm_order == "G" else "norm_weight[k]"
        scale = "normed_x[m, k]" if problem.rounds_rows else f"{row}[m, k] * {weight}"
    formula = f"sum_k({scale} * gate_weight[n, k])"
    if problem.folds_norm:
        formula = f"rstd[m] * {formula}"
    if problem.gate_bias:
        formula += " + gate_bias[n]"
    models = ", ".join(spec.name for spec in kernel.specs)
    stages = ["residual add"] * bool(problem.residual) + ["RMSNorm"] * problem.has_norm + ["router gate"]
    stages += ["choice of experts"] * bool(problem.selection)
    path = " and ".join([", ".join(stages[:-1]), stages[-1]] if stages[1:] else stages)
    product = "x[m, k]" if problem.residual == "add" else "round(residual_multiplier * x[m, k])"
    stream = "round(stream_multiplier * residual[m, k])" if problem.residual == "scaled_sum" else "residual[m, k]"
    return {
        "title": f"{path[0].upper()}{path[1:]} of {models}.",
        "specs": [f"specs/{spec.name}.yaml" for spec in kernel.specs],
        "formula": formula,
        "norm_formula": (_NORM_FORMULAS.get(problem.norm_order) or "").replace("x[m, k] * r", f"{row}[m, k] * r"),
        "row": row,
        "residual": problem.residual,
        "residual_formula": f"round({stream} + {product})",
        "selection": _selection_context(problem.selection) if problem.selection else None,
        "returns_logits": problem.returns_logits,
        "rounds_logits": problem.logits_dtype != "float32",
        "has_norm": problem.has_norm,
        "rounded": problem.rounds_rows,
        "hidden_size": problem.hidden_size,
        "num_experts": problem.num_experts,
        "activation_type": naming.cuda_type(problem.activation_dtype),
        "gate_weight_type": naming.cuda_type(problem.gate_weight_dtype),
        "logits_type": naming.cuda_type(problem.logits_dtype),
        "norm_type": f"Norm{problem.norm_order}",
        "norm_comment": _NORM_COMMENTS.get(problem.norm_order),
        "gate_bias": problem.gate_bias,
        "gate_terms": problem.gate_terms,
        "gate_terms_comment": ("a gate weight times a norm weight" if problem.folds_norm else "a gate weight exactly"),
        "row_terms": problem.row_terms,
    }


_SCORES = {
    "softmax": "softmax(router_logits[m, :])[n]",
    "softmax_of_chosen": "router_logits[m, n]",
    "sigmoid": "sigmoid(router_logits[m, n])",
    "sqrtsoftplus": "sqrt(log(1 + exp(router_logits[m, n])))",
}


def _selection_context(chosen: Selection) -> dict[str, Any]:
    logits = "softcap * tanh(router_logits / softcap)" if chosen.softcaps else "router_logits"
    formulas = [f"score[m, n]         = {_SCORES[chosen.scoring].replace('router_logits', logits)}"]
    choice = "score[m, n] + e_score_correction_bias[n]" if chosen.correction_bias else "score[m, n]"
    among = "experts"
    if chosen.n_group > 1:
        best = "largest" if chosen.group_score == "max" else "sum of the two largest"
        among = f"experts of the {chosen.topk_group} of {chosen.n_group} groups whose {best} is largest"
    formulas.append(f"topk_ids[m, :]      = the {chosen.top_k} {among} with the largest {choice}, the lower of equals")
    if chosen.hashes:
        formulas.append("or, in hash layers, tid2eid[input_ids[m], :]")
    if chosen.image_bias:
        formulas.append("or, where image_mask[m], those with the largest score[m, n] + e_score_correction_bias_vl[n]")
    weight = "score[m, i]"
    if chosen.scoring == "softmax_of_chosen":
        weight = "softmax(score[m, topk_ids[m, :]])[i]"
    elif chosen.renormalize:
        total = "sum_j(score[m, j])"
        bounded = f"max({total} + epsilon, floor)"
        weight += f" / {bounded if chosen.renormalize == 'bounded' else total}"
    weight += " * per_expert_scale[i]" * chosen.scales_experts
    formulas.append(f"topk_weights[m, i]  = routed_scaling_factor * {weight}; i and j among the chosen")
    # Softmax keeps the order of the logits, which then need no scores, unless something is added to those.
    softmax = chosen.scoring in ("softmax", "softmax_of_chosen")
    by_logits = softmax and not chosen.correction_bias and chosen.group_score != "top2_sum"
    return {
        "formulas": formulas,
        "top_k": chosen.top_k,
        "grouped": chosen.n_group > 1,
        "n_group": chosen.n_group,
        "topk_group": chosen.topk_group,
        "group_lanes": 32 // (1 << (chosen.n_group - 1).bit_length()),
        "group_score": chosen.group_score,
        "candidates": chosen.candidates,
        "by_logits": by_logits,
        "needs_total": chosen.scoring == "softmax" and not (by_logits and chosen.renormalize == "sum"),
        "score_function": "" if softmax else chosen.scoring,
        "softcaps": chosen.softcaps,
        "hashes": chosen.hashes,
        "correction_bias": chosen.correction_bias,
        "image_bias": chosen.image_bias,
        "scales_experts": chosen.scales_experts,
        # What is read at the end, and whether there are calls without it. Images are rare: their bias is not among it.
        "late_weights": [("e_score_correction_bias", chosen.hashes)] * chosen.correction_bias
        + [("per_expert_scale", False)] * chosen.scales_experts,
        "renormalize": chosen.renormalize,
        "weight_type": naming.cuda_type(chosen.weights_dtype),
        "id_type": naming.cuda_type(chosen.ids_dtype),
    }


def _fold(problem: Problem) -> str:
    """How gate weights become bf16 terms."""
    if problem.folds_norm:
        return "exact_product" if problem.gate_terms == 2 else "split_product"
    return "as_stored" if problem.gate_terms == 1 else "split"


def _group_context(plan: Plan, kernel: Kernel, group: Group) -> dict[str, Any]:
    problem, cluster = kernel.problem, group.arch.has_cluster
    used = {v.family for v in group.variants}
    uses_tensor_cores = bool(used - {"gemv"})
    finishes = uses_tensor_cores and not cluster
    row_norm = finishes and problem.has_norm or bool(used & {"tiled", "wgmma", "resident"}) and problem.rounds_rows
    headers = ["launch.cuh", "normgate.h", "numbers.cuh"]
    headers += ["mma.cuh"] * uses_tensor_cores
    headers += ["norm.cuh"] * problem.has_norm
    headers += ["selection.cuh"] * bool(problem.selection)
    hands_over = any(_hands_over(kernel, group, v) for v in group.variants)
    headers += ["handover.h"] * hands_over
    headers += ["pdl.cuh"] * group.arch.has_pdl
    headers += ["cluster.cuh"] * (uses_tensor_cores and cluster)
    headers += ["async_copy.cuh"] * bool(used & {"tiled", "resident"})
    headers += ["mbarrier.cuh"] * (uses_tensor_cores and cluster)
    headers += ["tensor_map.cuh", "wgmma.cuh"] * group.accelerated
    families: list[str] = [family for family in FAMILIES if family in used]
    families += ["row_norm"] * row_norm
    families += ["finish"] * finishes
    families += ["stages"] * bool(group.apart)
    launched = [_variant_context(kernel, group, v) for v in group.variants]
    launched += [_apart_context(plan, kernel, group, v) for v in group.apart]
    chunks = ceil_div(problem.hidden_size, ROW_NORM_THREADS * 8)
    return {
        "chips": ", ".join(f"sm_{sm}" for sm in group.sm_targets),
        "headers": sorted(headers),
        "families": families,
        "uses_tensor_cores": uses_tensor_cores,
        "cluster": cluster,
        "pdl": group.arch.has_pdl,
        "fold": _fold(problem),
        "folds_norm": problem.folds_norm,
        "reads_norm_weight": problem.folds_norm or (problem.rounds_rows and cluster),
        "sums_squares": problem.folds_norm and cluster,
        "norms_rows": problem.rounds_rows and cluster,
        "finish_norms": problem.folds_norm,
        "row_norm": {"threads": ROW_NORM_THREADS, "chunks": chunks},
        # A kernel that reads rows as an earlier launch has normed them does not add to them again.
        "tile_residual": "" if problem.rounds_rows and not cluster else problem.residual,
        "select": {"warps": SELECT_WARPS},
        "hands_over": hands_over,
        "variants": launched[: len(group.variants)],
        "launched": launched,
        "inner_functions": [step["calls"] for each in launched for step in each["steps"] if step["calls"]],
        "wgmma_shapes": sorted(_wgmma_shapes(problem, group)),
        "entry_points": _entry_points(kernel, group),
    }


def _wgmma_shapes(problem: Problem, group: Group) -> set[tuple[int, bool]]:
    """Columns of each warpgroup instruction, and whether it takes the weights from shared memory."""
    shapes = {(v.tokens, _fold(problem) == "as_stored") for v in group.variants if isinstance(v, Wgmma)}
    return shapes | {(v.tokens, False) for v in group.variants if isinstance(v, Resident)}


def _variant_context(kernel: Kernel, group: Group, variant: Variant) -> dict[str, Any]:
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
            ("kCopyRegisters", variant.copy_registers(kernel.problem), "registers of a thread that copies"),
            *[("kNormRegisters", variant.norm_registers(kernel.problem), "of one that norms rows")]
            * kernel.problem.folds_norm,
            ("kSumRegisters", variant.sum_registers(kernel.problem), "of one that multiplies"),
            ("kSmemBytes", variant.dynamic_smem(kernel.problem, True), "dynamic shared memory"),
        ]
    elif isinstance(variant, Resident):
        constants += [
            ("kSplit", variant.split, "CTAs that share hidden_size"),
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
        "name": variant.name,
        "comment": f"{variant.name}, {what}.",
        "struct": naming.struct_name(variant.name),
        "function": naming.function_name(kernel.name, variant.name, group.sm),
        "constants": [dict(zip(("type", "name", "value", "comment"), c, strict=True)) for c in typed],
        "steps": _steps(kernel, group, variant),
        **_preparation(kernel, group, variant),
        "apart": False,
    }


def _apart_context(plan: Plan, kernel: Kernel, group: Group, variant: Apart) -> dict[str, Any]:
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
        **_preparation(kernel, group, variant),
        "apart": True,
    }


def _hands_over(kernel: Kernel, group: Group, variant: Variant | Apart) -> bool:
    """Whether a launch's CTAs hand their logits to one of them, which chooses experts."""
    fused = kernel.problem.selection is not None and not isinstance(variant, Apart)
    return fused and not _finishes_apart(group, variant)


def _preparation(kernel: Kernel, group: Group, variant: Variant | Apart) -> dict[str, Any]:
    """What a launcher makes up beside what it is given: memory to hand logits over in, and a place in the workspace, in
    bytes a token, for logits that nobody asked for.
    """
    hands_over = _hands_over(kernel, group, variant)
    keeps_logits = isinstance(variant, Apart) and not kernel.problem.returns_logits
    logits_at = _sums_bytes_per_token(kernel, group, variant) if keeps_logits else None
    return {"hands_over": hands_over, "logits_at": logits_at, "prepares": hands_over or keeps_logits}


def _span(first: int, last: int | None) -> str:
    if last is None:
        return f"{first} tokens and more"
    return f"{first} token{'s' * (first > 1)}" if first == last else f"{first} to {last} tokens"


def _entry_points(kernel: Kernel, group: Group) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for variant in group.variants:
        symbol = naming.function_name(kernel.name, variant.name, group.sm)
        struct = naming.struct_name(variant.name)
        entry = {
            "symbol": symbol,
            "threads": variant.threads_for(kernel.problem),
            "body": f"{variant.family}<{struct}>",
        }
        entries.append({**entry, "accelerated": variant.accelerated, "maps": _maps(variant)})
        if _finishes_apart(group, variant):
            finish = {
                "symbol": symbol + "_finish",
                "threads": ROW_NORM_THREADS,
                "body": f"finish<{struct}>",
                "accelerated": False,
                "maps": [],
            }
            entries.append(finish)
    if any(_norms_apart(kernel, group, variant) for variant in group.variants):
        symbol = naming.function_name(kernel.name, "row_norm", group.sm)
        entry = {"symbol": symbol, "threads": ROW_NORM_THREADS, "body": "row_norm<RowNorm>"}
        entries.append({**entry, "accelerated": False, "maps": []})
    stages = [("add", "add_residual", ROW_NORM_THREADS)] * bool(kernel.problem.residual)
    stages += [("select", "select_rows", SELECT_WARPS * 32)] * bool(kernel.problem.selection)
    for name, body, threads in stages if group.apart else ():
        symbol = naming.function_name(kernel.name, name, group.sm)
        entries.append({"symbol": symbol, "threads": threads, "body": body, "accelerated": False, "maps": []})
    return entries


def _steps(kernel: Kernel, group: Group, variant: Variant) -> list[dict[str, Any]]:
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
        steps.append({**per_row, "symbol": symbol + "_finish"})
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


def _table_context(plan: Plan) -> dict[str, Any]:
    kernels = []
    for kernel in plan.all_kernels:
        problem = kernel.problem
        groups = []
        for group in kernel.groups:
            index = {variant: i for i, variant in enumerate(group.served_by)}
            group_id = f"{kernel.name}_sm{group.sm}"
            variants = [
                {
                    "name": v.name,
                    "function": naming.function_name(kernel.name, v.name, group.sm),
                    "workspace_bytes_per_token": _workspace_bytes_per_token(kernel, group, v),
                }
                for v in group.served_by
            ]
            ranges, portable = (
                [
                    {
                        "name": r.name,
                        "function": variants[index[r.variant]]["function"] if r.variant else "",
                        "first": r.first_token,
                        "last_token": r.last_token,
                        "last": "kNoEnd" if r.last_token is None else r.last_token,
                        "variant": f"&{group_id}_variants[{index[r.variant]}]" if r.variant else "nullptr",
                        "comment": f"from {r.first_token}: {r.name}",
                        "why": r.why,
                        "rejected": r.rejected,
                    }
                    for r in served
                ]
                for served in (group.ranges, group.portable_ranges)
            )
            condition = " || ".join(f"defined(NORMGATE_SM_{sm})" for sm in group.sm_targets)
            common = {"id": group_id, "sm_targets": group.sm_targets, "condition": condition}
            groups.append({**common, "variants": variants, "ranges": ranges, "portable_ranges": portable})
        kernels.append(
            {
                "name": kernel.name,
                "models": [spec.name for spec in kernel.specs],
                "hidden_size": problem.hidden_size,
                "num_experts": problem.num_experts,
                "activation_dtype": problem.activation_dtype,
                "gate_weight_dtype": problem.gate_weight_dtype,
                "logits_dtype": problem.logits_dtype,
                "activation": _dtype_constant(problem.activation_dtype),
                "gate_weight": _dtype_constant(problem.gate_weight_dtype),
                "logits": _dtype_constant(problem.logits_dtype),
                "norm_order": problem.norm_order or "-",
                "logits_from": problem.logits_from,
                "rounded": str(problem.rounds_rows).lower(),
                "gate_bias": str(problem.gate_bias).lower(),
                "stages": _stages_constant(problem),
                "residual": problem.residual,
                "selection": dataclasses.asdict(problem.selection) if problem.selection else None,
                "batch_invariant": kernel.specs[0].batch_invariant,
                "groups": groups,
            }
        )
    models = [
        {
            "spec": spec,
            "kernel": kernel.name,
            "path": path.name if (path := plan.path_of(spec.name)) else None,
            "routing": routing_of(spec),
        }
        for kernel in plan.kernels
        for spec in kernel.specs
    ]
    models.sort(key=_model_name)
    targets = sorted({sm for kernel in plan.all_kernels for group in kernel.groups for sm in group.sm_targets})
    return {"kernels": kernels, "models": models, "sm_targets": targets}


def routing_of(spec: RouterSpec) -> dict[str, Any] | None:
    """A model's Routing, as the package's class has its fields; None where the engine chooses the experts."""
    routing = spec.routing
    if routing.scoring is None:
        return None
    groups, renormalize = routing.groups, routing.renormalize
    return {
        "top_k": routing.top_k,
        "scoring": routing.scoring,
        "n_group": groups.n_group if groups else 1,
        "topk_group": groups.topk_group if groups else 1,
        "group_score": groups.score if groups else "top2_sum",
        "renormalize": renormalize is not None,
        "renormalize_epsilon": renormalize.epsilon if renormalize else 0.0,
        "renormalize_floor": renormalize.floor if renormalize else 0.0,
        "routed_scaling_factor": routing.routed_scaling_factor,
        "softcap": routing.softcap or 0.0,
        "ids_dtype": routing.ids_dtype,
        "weights_dtype": routing.weights_dtype,
        "returns_logits": routing.router_logits,
    }


def _model_name(model: dict[str, Any]) -> str:
    return str(model["spec"].name)


def _dtype_constant(dtype: str) -> str:
    return {
        "bfloat16": "kBFloat16",
        "float16": "kFloat16",
        "float32": "kFloat32",
        "int32": "kInt32",
        "int64": "kInt64",
    }[dtype]


# Enumerators of dispatch.h.
_RESIDUAL = {"": "kNone", "add": "kAdd", "scaled_add": "kScaledAdd", "scaled_sum": "kScaledSum"}
_SCORING = {
    "softmax": "kSoftmax",
    "softmax_of_chosen": "kSoftmaxOfChosen",
    "sigmoid": "kSigmoid",
    "sqrtsoftplus": "kSqrtSoftplus",
}
_GROUP_SCORES = {"": "kNone", "top2_sum": "kTop2Sum", "max": "kMax"}
_RENORMALIZE = {"": "kNone", "sum": "kSum", "bounded": "kBounded"}


def _stages_constant(problem: Problem) -> str:
    """The last members of dispatch.h's Problem, where they are not the defaults."""
    if problem == problem.gate_part:
        return ""
    residual = _RESIDUAL[problem.residual]
    if (chosen := problem.selection) is None:
        return f", Residual::{residual}"
    members = (
        f"Scoring::{_SCORING[chosen.scoring]}",
        chosen.top_k,
        _word(chosen.correction_bias),
        chosen.n_group,
        chosen.topk_group,
        f"GroupScore::{_GROUP_SCORES[chosen.group_score]}",
        f"Renormalize::{_RENORMALIZE[chosen.renormalize]}",
        _word(chosen.softcaps),
        _word(chosen.hashes),
        _word(chosen.returns_logits),
        f"Dtype::{_dtype_constant(chosen.ids_dtype)}",
        f"Dtype::{_dtype_constant(chosen.weights_dtype)}",
        *([_word(chosen.image_bias), _word(chosen.scales_experts)] * (chosen.image_bias or chosen.scales_experts)),
    )
    return f", Residual::{residual}, {{ {', '.join(map(str, members))} }}"


def _word(value: bool) -> str:
    return "true" if value else "false"


def _workspace_bytes_per_token(kernel: Kernel, group: Group, variant: Variant | Apart) -> int:
    """Of the sums that a launch hands to the next, and of logits that are no output."""
    logits = kernel.problem.num_experts * (4 if kernel.problem.logits_dtype == "float32" else 2)
    passes_logits = _preparation(kernel, group, variant)["logits_at"] is not None
    return _sums_bytes_per_token(kernel, group, variant) + logits * passes_logits


def _sums_bytes_per_token(kernel: Kernel, group: Group, variant: Variant | Apart) -> int:
    inner = variant.inner if isinstance(variant, Apart) else variant
    if isinstance(inner, Gemv) or group.arch.has_cluster:
        return 0
    return inner.split * inner.workspace_row(kernel.problem) * 4


def _clang_format() -> str:
    """The binary inside the clang-format package: its console script would start a Python for each file."""
    spec = importlib.util.find_spec("clang_format")
    if spec is None or spec.origin is None:
        raise ToolError("clang-format is not installed; generated code is formatted with it: pip install clang-format")
    return str(Path(spec.origin).parent / "data" / "bin" / "clang-format")


def _formatted(files: dict[str, str]) -> dict[str, str]:
    """C++ and CUDA through clang-format, whose style is `.clang-format` of the templates folder."""
    style = f"--style=file:{templates_folder() / '.clang-format'}"
    out = dict(files)
    for path, text in files.items():
        if Path(path).suffix in {".cu", ".cuh", ".cpp", ".h"}:
            command = [_clang_format(), style, f"--assume-filename={Path(path).with_suffix('.cpp').name}"]
            out[path] = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return out
