"""A switch for debugging: every call is checked against the reference in float64, and the first difference is raised.

``NORMGATE_CHECK=1`` in the environment turns it on for a process, :func:`checked` for a part of one. It computes all
again, slowly, and waits for the device: it is no way to serve. What is captured into a CUDA graph is not checked, which
a warning says once, nor what torch.compile and torch.export trace.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from ._tables import OPS
from .routing import Routed, Routing

LOGITS_ERROR = 2e-5
"""Of a logit, relative to the root of the sum of its squared terms: ten times what the operators promise on average."""
_SCORE_ERROR = 3e-6  # relative, likewise: ten times that of scores

_requests = int(os.environ.get("NORMGATE_CHECK", "0") not in ("", "0"))


class WrongResult(RuntimeError):
    """A call's result is not the reference's."""


@contextmanager
def checked() -> Iterator[None]:
    """Inside, every call of the process is checked: :class:`WrongResult` names the first value that differs."""
    global _requests
    _requests += 1
    try:
        yield
    finally:
        _requests -= 1


def wanted() -> bool:
    """Whether this call is to be checked."""
    if not _requests or torch.compiler.is_compiling():
        return False
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        _warn_of_capture()
        return False
    return True


@functools.cache
def _warn_of_capture() -> None:
    warnings.warn("normgate: calls captured into a CUDA graph are not checked", RuntimeWarning, stacklevel=3)


def check(
    op: str,
    got: Routed,
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    *,
    norm_weight: Tensor | None = None,
    eps: float | None = None,
    norm_order: str | None = None,
    residual: Tensor | None = None,
    residual_multiplier: float = 1.0,
    e_score_correction_bias: Tensor | None = None,
    tid2eid: Tensor | None = None,
    input_ids: Tensor | None = None,
    routing: Routing | None = None,
    logits_from: str = "unrounded",
    stream_multiplier: float = 1.0,
    e_score_correction_bias_vl: Tensor | None = None,
    image_mask: Tensor | None = None,
    per_expert_scale: Tensor | None = None,
) -> None:
    """:class:`WrongResult` where ``got`` is not what ``op`` should give for the rest, as in :func:`reference.route`.

    Rows of which the reference makes no finite numbers are not compared.
    """
    says = _Says(op, dict(x=x, residual=residual, norm_weight=norm_weight, gate_weight=gate_weight))
    h = x
    if residual is not None and got.residual_out is not None:
        h = reference.add_residual(x, residual, residual_multiplier, stream_multiplier)
        says.near("residual_out", got.residual_out, h, torch.zeros_like(h))
    row = h.double()
    if norm_weight is not None and got.normed_x is not None and eps is not None and norm_order is not None:
        row, normed_x = reference.rms_norm(h, norm_weight, eps, norm_order, torch.float64)
        # A tie of the first of order A's two roundings may go either way, and then the second rounds another number.
        roundings = 2 if norm_order == "A" else 1
        says.near("normed_x", got.normed_x, normed_x, roundings * torch.finfo(x.dtype).eps * normed_x.double().abs())
        row = got.normed_x.double() if logits_from == "rounded" else row
    logits = reference.gate(row, gate_weight, gate_bias, torch.float64, torch.float64)
    off = LOGITS_ERROR * (row.square() @ gate_weight.double().square().t()).sqrt()
    if gate_bias is not None:
        off += LOGITS_ERROR * gate_bias.double().abs()
    if got.router_logits is not None:
        rounding = torch.finfo(got.router_logits.dtype).eps / 2 * logits.abs()
        says.near("router_logits", got.router_logits, logits, off + rounding)
        # Experts are chosen by the logits as they are returned.
        logits, off = got.router_logits.double(), torch.zeros_like(off)
    if routing is not None and got.topk_ids is not None and got.topk_weights is not None:
        experts = _Experts(
            e_score_correction_bias, tid2eid, input_ids, e_score_correction_bias_vl, image_mask, per_expert_scale
        )
        _check_choice(says, got.topk_weights, got.topk_ids, logits, off.amax(-1, keepdim=True), routing, experts)


class _Experts(NamedTuple):
    """What they are chosen by beside the logits, and weighed by, as in :func:`reference.choose_experts`."""

    correction_bias: Tensor | None
    tid2eid: Tensor | None
    input_ids: Tensor | None
    correction_bias_vl: Tensor | None
    image_mask: Tensor | None
    per_expert_scale: Tensor | None


def _check_choice(
    says: "_Says",
    topk_weights: Tensor,
    topk_ids: Tensor,
    logits: Tensor,
    off: Tensor,
    routing: Routing,
    experts: _Experts,
) -> None:
    """``off`` [num_tokens, 1]: what each logit may be off."""
    correction_bias, tid2eid, input_ids, correction_bias_vl, image_mask, per_expert_scale = experts
    weights, ids = reference.choose_experts(
        logits,
        routing,
        correction_bias,
        tid2eid,
        input_ids,
        torch.float64,
        e_score_correction_bias_vl=correction_bias_vl,
        image_mask=image_mask,
        per_expert_scale=per_expert_scale,
    )
    relative = _SCORE_ERROR + 4 * off + torch.finfo(topk_weights.dtype).eps
    finite = logits.isfinite().all(-1, keepdim=True)
    is_image = None if correction_bias_vl is None or image_mask is None else image_mask[:, None]
    clear = finite
    if tid2eid is None or is_image is not None:
        choices = routing.softcap * (logits / routing.softcap).tanh() if routing.softcap > 0 else logits
        by_score = (
            correction_bias is not None or is_image is not None or routing.scoring != "softmax" or routing.n_group > 1
        )
        choices = reference.score(choices, routing.scoring) if by_score else choices
        added = torch.zeros_like(choices) if correction_bias is None else correction_bias.double().expand_as(choices)
        if is_image is not None and correction_bias_vl is not None:
            added = torch.where(is_image, correction_bias_vl.double(), added)
        choices = choices + added
        doubt = 4 * off + 2 * _SCORE_ERROR * (1 + choices.abs().amax(-1, keepdim=True))
        clear = finite & (_margin(choices, routing) > doubt)
        if tid2eid is not None and is_image is not None:
            clear = torch.where(is_image, clear, finite)  # the others' experts come from the table
    same = torch.zeros_like(weights)
    says.near("topk_ids", topk_ids, torch.where(clear, ids, topk_ids), same)
    # Where two experts are as good as equal, either may come first, and weights belong to other experts.
    says.near(
        "topk_weights", topk_weights, torch.where(clear, weights.double(), torch.nan), relative * weights.double().abs()
    )


def _margin(choices: Tensor, routing: Routing) -> Tensor:
    """[num_tokens, 1]: how far apart the choices are that decide which experts come, and in which order."""
    margin = torch.full_like(choices[:, :1], torch.inf)
    if routing.n_group > 1:
        by_group = choices.reshape(choices.shape[0], routing.n_group, -1)
        scores = by_group.topk(1 if routing.group_score == "max" else 2).values.sum(-1)
        scores, order = scores.sort(descending=True)
        if routing.topk_group < routing.n_group:
            margin = (scores[:, routing.topk_group - 1] - scores[:, routing.topk_group])[:, None]
        out = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order[:, routing.topk_group :], True)
        choices = by_group.masked_fill(out[..., None], -torch.inf).flatten(1)
    best = choices.topk(min(routing.top_k + 1, choices.shape[1])).values
    gaps = best[:, :-1] - best[:, 1:]
    return torch.cat([margin, gaps], 1).amin(-1, keepdim=True)


class _Says:
    """Compares outputs of one call, whose inputs a message describes."""

    def __init__(self, op: str, inputs: dict[str, Tensor | None]) -> None:
        self.op = op
        self.inputs = inputs

    def near(self, name: str, got: Tensor, right: Tensor, tolerance: Tensor) -> None:
        """:class:`WrongResult` at the first element further from ``right`` than ``tolerance``; NaN is not compared."""
        right = right.double()
        wrong = ~((got.double() - right).abs() <= tolerance) & right.isfinite()
        if not wrong.any():
            return
        count, index = int(wrong.sum()), tuple(wrong.nonzero()[0].tolist())
        inputs = (f"{key} {_described(tensor)}" for key, tensor in self.inputs.items() if tensor is not None)
        raise WrongResult(
            f"{OPS}::{self.op}: {name}{list(index)} is {got[index].item()}, expected {right[index].item()} as in "
            f"the reference in float64, {float(tolerance[index])} off at most; {count} of {wrong.numel()} values "
            f"differ; {name} {_described(got)}, {', '.join(inputs)}"
        )


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
