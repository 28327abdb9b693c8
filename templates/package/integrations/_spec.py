"""The spec of a path that a model runs, for the generator."""

from ..fallback import RouterPath
from ..routing import Routing


def spec_text(name: str, path: RouterPath, routing: Routing, eps: float, residual_multiplier: float) -> str:
    """YAML that `python build.py --spec` takes."""
    selection = path.selection
    assert selection is not None
    lines = [
        "# What normgate.integrations.transformers needs to run this model's router path.",
        f"name: {name}",
        "sources:",
        '  - "read from the loaded model by normgate.integrations.transformers"',
        f"hidden_size: {path.hidden_size}",
        f"num_experts: {path.num_experts}",
        "dtypes:",
        f"  activation: {path.activation_dtype}",
        f"  gate_weight: {path.gate_weight_dtype}",
        *([f"  logits: {path.logits_dtype}"] if path.logits_dtype != "float32" else []),
        "residual:",
        f"  multiplier: {_number(residual_multiplier)}",
        "norm:",
        f"  order: {path.norm_order}",
        f"  eps: {_number(eps)}",
        f"gate_bias: {_boolean(path.gate_bias)}",
        f"logits_from: {path.logits_from}",
        "routing:",
        f"  top_k: {routing.top_k}",
        f"  e_score_correction_bias: {_boolean(selection.correction_bias)}",
        f"  scoring: {routing.scoring}",
    ]
    if routing.n_group > 1:
        lines += ["  groups:", f"    n_group: {routing.n_group}", f"    topk_group: {routing.topk_group}"]
        lines += [f"    score: {routing.group_score}"]
    if routing.renormalize:
        lines += ["  renormalize:", f"    epsilon: {_number(routing.renormalize_epsilon)}"]
        lines += [f"    floor: {_number(routing.renormalize_floor)}"] if routing.renormalize_floor else []
    if routing.routed_scaling_factor != 1.0:
        lines.append(f"  routed_scaling_factor: {_number(routing.routed_scaling_factor)}")
    lines += [
        "  router_logits: true",
        f"  ids_dtype: {selection.ids_dtype}",
        *([f"  weights_dtype: {selection.weights_dtype}"] if selection.weights_dtype != "float32" else []),
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """With a point, without which YAML takes 1e-06 for a string."""
    mantissa, e, exponent = repr(float(value)).partition("e")
    return f"{mantissa if '.' in mantissa else f'{mantissa}.0'}{e}{exponent}"


def _boolean(value: bool) -> str:
    return str(value).lower()
