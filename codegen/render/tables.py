"""What the templates of the dispatch tables are told, in C++ and in Python: kernels, token ranges, models."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import naming
from ..families import most_tokens
from ..plan import Plan
from ..problem import Problem
from ..spec import RouterSpec
from .launches import workspace_bytes_per_token


def table_context(plan: Plan) -> dict[str, Any]:
    kernels = []
    for kernel in plan.all_kernels:
        problem = kernel.problem
        groups = []
        for group in kernel.groups:
            index = {variant: i for i, variant in enumerate(group.served_by)}
            group_id = naming.group_name(kernel.name, group.sm)
            variants = [
                {
                    "function": naming.function_name(kernel.name, v.name, group.sm),
                    "workspace_bytes_per_token": workspace_bytes_per_token(kernel, group, v),
                    "max_tokens": most_tokens(problem, v) or "kNoEnd",
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


def _dtype_constant(dtype: str) -> str:
    return {
        "bfloat16": "kBFloat16",
        "float16": "kFloat16",
        "float32": "kFloat32",
        "int32": "kInt32",
        "int64": "kInt64",
    }[dtype]


def _word(value: bool) -> str:
    return "true" if value else "false"
