"""What the template of a kernel is told: of the path that it computes, and of the chips that share a source file."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from .. import naming
from ..families import FAMILIES, Resident, Wgmma, ceil_div
from ..plan import Group, Kernel, Plan
from ..problem import Problem, Selection
from .launches import ROW_NORM_THREADS, SELECT_WARPS, entry_points, uses_handover
from .variant import apart_context, variant_context

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
_SCORES = {  # of a logit, and of a row of them
    "softmax": "softmax({row})[n]",
    "softmax_of_chosen": "{one}",
    "sigmoid": "sigmoid({one})",
    "sqrtsoftplus": "sqrt(log(1 + exp({one})))",
}
_FORMULA_WIDTH = 115  # of a line of 120, behind the comment's mark


def kernel_context(kernel: Kernel) -> dict[str, Any]:
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
    formulas = {"router_logits[m, n]": formula}
    if problem.has_norm:
        norm = _NORM_FORMULAS[problem.norm_order].replace("x[m, k] * r", f"{row}[m, k] * r")
        formulas |= {"normed_x[m, k]": norm, "rstd[m]": f"1 / sqrt(mean({row}[m, :]^2) + eps)"}
    if problem.residual:
        formulas["residual_out[m, k]"] = f"round({stream} + {product})"
    if problem.selection:
        formulas |= _selection_formulas(problem.selection)
    return {
        "title": f"{path[0].upper()}{path[1:]} of {models}.",
        "specs": [f"specs/{spec.name}.yaml" for spec in kernel.specs],
        "formulas": [line for name, right in formulas.items() for line in _formula(name, right)],
        "residual": problem.residual,
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
        "early_weights": problem.early_weight_loads,
        "gate_terms": problem.gate_terms,
        "gate_terms_comment": ("a gate weight times a norm weight" if problem.folds_norm else "a gate weight exactly"),
        "row_terms": problem.row_terms,
    }


def _formula(name: str, right: str) -> list[str]:
    """A formula in lines that fit a comment of the source, which its formatter would else run into the next one."""
    begin, joined = f"{name:19} = ", "\xa0"
    indexed = re.sub(r"\[[^]]*\]", lambda index: index[0].replace(" ", joined), right)  # no line ends in an index
    lines = textwrap.wrap(begin + indexed, _FORMULA_WIDTH, subsequent_indent=" " * len(begin), break_on_hyphens=False)
    return [line.replace(joined, " ") for line in lines]


def _selection_formulas(chosen: Selection) -> dict[str, str]:
    one, row = (
        f"softcap * tanh({logits} / softcap)" if chosen.softcaps else logits
        for logits in ("router_logits[m, n]", "router_logits[m, :]")
    )
    choice = "score[m, n] + e_score_correction_bias[n]" if chosen.correction_bias else "score[m, n]"
    among = "experts"
    if chosen.n_group > 1:
        best = "largest" if chosen.group_score == "max" else "sum of the two largest"
        among = f"experts of the {chosen.topk_group} of {chosen.n_group} groups whose {best} is largest"
    ids = f"the {chosen.top_k} {among} with the largest {choice}, the lower of equals"
    ids += "; in hash layers tid2eid[input_ids[m], :]" * chosen.hashes
    if chosen.image_bias:
        ids += "; where image_mask[m] those with the largest score[m, n] + e_score_correction_bias_vl[n]"
    weight = "score[m, topk_ids[m, i]]"
    if chosen.scoring == "softmax_of_chosen":
        weight = "softmax(score[m, topk_ids[m, :]])[i]"
    elif chosen.renormalize:
        total = "sum_j(score[m, topk_ids[m, j]])"
        bounded = f"max({total} + epsilon, floor)"
        weight += f" / {bounded if chosen.renormalize == 'bounded' else total}"
    weight += " * per_expert_scale[topk_ids[m, i]]" * chosen.scales_experts
    return {
        "score[m, n]": _SCORES[chosen.scoring].format(one=one, row=row),
        "topk_ids[m, :]": ids,
        "topk_weights[m, i]": f"routed_scaling_factor * {weight}",
    }


def _selection_context(chosen: Selection) -> dict[str, Any]:
    # Softmax keeps the order of the logits, which then need no scores, unless something is added to those.
    softmax = chosen.scoring in ("softmax", "softmax_of_chosen")
    by_logits = softmax and not chosen.correction_bias and chosen.group_score != "top2_sum"
    return {
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
        "unbounded": chosen.scoring == "sqrtsoftplus" and not chosen.renormalize,  # weights, of logits without end
        "weight_type": naming.cuda_type(chosen.weights_dtype),
        "id_type": naming.cuda_type(chosen.ids_dtype),
    }


def group_context(plan: Plan, kernel: Kernel, group: Group) -> dict[str, Any]:
    problem, cluster = kernel.problem, group.arch.has_cluster
    used = {v.family for v in group.variants}
    uses_tensor_cores = bool(used - {"gemv"})
    finishes = uses_tensor_cores and not cluster
    row_norm = finishes and problem.has_norm or bool(used & {"tiled", "wgmma", "resident"}) and problem.rounds_rows
    headers = ["launch.cuh", "normgate.h", "numbers.cuh"]
    headers += ["mma.cuh"] * uses_tensor_cores
    headers += ["norm.cuh"] * problem.has_norm
    headers += ["selection.cuh"] * bool(problem.selection)
    places = uses_handover(kernel, group)
    headers += ["handover.cuh", "handover.h"] * places
    headers += ["pdl.cuh"] * group.arch.has_pdl
    headers += ["cluster.cuh"] * (uses_tensor_cores and cluster)
    headers += ["async_copy.cuh"] * bool(used & {"tiled", "resident"})
    headers += ["mbarrier.cuh"] * (uses_tensor_cores and cluster)
    headers += ["tensor_map.cuh", "wgmma.cuh"] * group.accelerated
    families: list[str] = [family for family in FAMILIES if family in used]
    families += ["row_norm"] * row_norm
    families += ["finish"] * finishes
    families += ["stages"] * bool(group.apart)
    launched = [variant_context(kernel, group, v) for v in group.variants]
    launched += [apart_context(plan, kernel, group, v) for v in group.apart]
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
        "hands_over": places and problem.selection is not None,
        "variants": launched[: len(group.variants)],
        "launched": launched,
        "inner_functions": [step["calls"] for each in launched for step in each["steps"] if step["calls"]],
        "wgmma_shapes": sorted(_wgmma_shapes(problem, group)),
        "entry_points": entry_points(kernel, group),
    }


def _fold(problem: Problem) -> str:
    """How gate weights become bf16 terms."""
    if problem.folds_norm:
        return "exact_product" if problem.gate_terms == 2 else "split_product"
    return "as_stored" if problem.gate_terms == 1 else "split"


def _wgmma_shapes(problem: Problem, group: Group) -> set[tuple[int, bool]]:
    """Columns of each warpgroup instruction, and whether it takes the weights from shared memory."""
    shapes = {(v.tokens, _fold(problem) == "as_stored") for v in group.variants if isinstance(v, Wgmma)}
    return shapes | {(v.tokens, False) for v in group.variants if isinstance(v, Resident)}
