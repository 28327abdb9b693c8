"""What every stage computes, in plain PyTorch: the right answer on any device, and the oracle of the tests.

The functions are written from the definitions. ``compute_dtype`` is the precision of all arithmetic:
float32 is what the generated kernels promise, float64 gives the oracle they are measured against. Values
are rounded to the dtype of ``x`` only where the model's norm order rounds, and to ``logits_dtype`` once, at
the very end.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .routing import Routed, Routing

NORM_ORDERS = ("A", "B", "G")
LOGITS_FROM = ("unrounded", "rounded")

_precision_lock = threading.Lock()


def rms_norm(
    x: Tensor, norm_weight: Tensor, eps: float, norm_order: str, compute_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """RMSNorm of each row of ``x`` [num_tokens, hidden_size]: ``(unrounded, normed_x)``.

    ``unrounded`` is weight * xhat in ``compute_dtype``; ``normed_x`` has the dtype of ``x`` and is rounded
    where the model rounds. With xhat = x * rsqrt(mean(x^2) + eps):

    - order A: ``weight * round(xhat)``, rounded again (Llama lineage)
    - order B: ``round(weight * xhat)`` (DeepSeek-V4, gpt-oss)
    - order G: ``round((1 + weight) * xhat)`` (Gemma lineage)
    """
    # The memory format drops the row stride of x, so that results are contiguous whatever x was.
    wide = x.to(compute_dtype, memory_format=torch.contiguous_format)
    weight = norm_weight.to(compute_dtype)
    if norm_order == "G":
        weight = 1.0 + weight
    xhat = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    unrounded = weight * xhat
    if norm_order == "A":
        # The product of two values of x's dtype is exact here, so this rounds once, as that dtype would.
        return unrounded, (weight * xhat.to(x.dtype).to(compute_dtype)).to(x.dtype)
    return unrounded, unrounded.to(x.dtype)


def gate(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    logits_dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Router logits [num_tokens, num_experts]: ``x @ gate_weight.T + gate_bias``, rounded at the end."""
    wide = x.to(compute_dtype, memory_format=torch.contiguous_format)
    with _full_precision(x.device.type):
        logits = wide @ gate_weight.to(compute_dtype).t()
    if gate_bias is not None:
        logits = logits + gate_bias.to(compute_dtype)
    return logits.to(logits_dtype)


def norm_gate(
    x: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    eps: float,
    norm_order: str,
    logits_from: str = "unrounded",
    logits_dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """RMSNorm and gate of ``x`` [num_tokens, hidden_size]: ``(normed_x, router_logits)``.

    ``logits_from`` says what the gate reads: "unrounded" the norm as it stands in ``compute_dtype``,
    "rounded" the row of ``normed_x`` as it was written.
    """
    unrounded, normed_x = rms_norm(x, norm_weight, eps, norm_order, compute_dtype)
    row = normed_x if logits_from == "rounded" else unrounded
    return normed_x, gate(row, gate_weight, gate_bias, logits_dtype, compute_dtype)


def add_residual(x: Tensor, residual: Tensor, multiplier: float = 1.0, stream_multiplier: float = 1.0) -> Tensor:
    """The residual stream with ``x`` [num_tokens, hidden_size] in it, in the dtype of ``x``.

    ``round(round(stream_multiplier * residual) + round(multiplier * x))``, as decoder layers write it; a multiplier
    of 1 rounds nothing. The arithmetic is float32 always: this gives bits, not an approximation of them.
    """

    def scaled(rows: Tensor, by: float) -> Tensor:
        wide = rows.to(torch.float32, memory_format=torch.contiguous_format)
        return wide if by == 1.0 else (by * wide).to(rows.dtype).to(torch.float32)

    return (scaled(residual, stream_multiplier) + scaled(x, multiplier)).to(x.dtype)


def score(logits: Tensor, scoring: str) -> Tensor:
    """Each expert's score, of logits [num_tokens, num_experts] in the dtype they have.

    "softmax_of_chosen" has none before experts are chosen: those are its logits.
    """
    if scoring == "softmax":
        return logits.softmax(-1)
    if scoring == "sigmoid":
        return logits.sigmoid()
    if scoring == "sqrtsoftplus":
        # log(1 + exp(logit)), without overflow for large logits or loss of bits for small.
        return (logits.clamp(min=0) + logits.abs().neg().exp().log1p()).sqrt()
    return logits


def choose_experts(
    logits: Tensor,
    routing: Routing,
    e_score_correction_bias: Tensor | None = None,
    tid2eid: Tensor | None = None,
    input_ids: Tensor | None = None,
    compute_dtype: torch.dtype = torch.float32,
    *,
    e_score_correction_bias_vl: Tensor | None = None,
    image_mask: Tensor | None = None,
    per_expert_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scoring and top-k of logits [num_tokens, num_experts]: ``(topk_weights, topk_ids)``, [num_tokens, top_k].

    Experts are chosen by score plus ``e_score_correction_bias`` [num_experts], or come from the table
    ``tid2eid`` [vocab_size, top_k] by ``input_ids`` [num_tokens]; those of the tokens in ``image_mask``
    [num_tokens] are chosen by score plus ``e_score_correction_bias_vl`` in either case. Weights are made of the
    scores alone, and times ``per_expert_scale`` [num_experts] of their experts.

    Of equal choices the lower expert id comes first, of equal groups the lower. A logit that is NaN, as in
    padding, counts as -inf, and a weight that comes out as NaN or infinite as 0: ids are distinct and weights
    finite whatever the logits. An input id that ``tid2eid`` has no row for reads row 0; an expert id in it that is
    none is the nearest that is one.
    """
    logits = logits.to(compute_dtype)
    logits = torch.where(logits.isnan(), -torch.inf, logits)
    if routing.softcap > 0:
        logits = routing.softcap * (logits / routing.softcap).tanh()
    scores = score(logits, routing.scoring)
    if tid2eid is None or input_ids is None:
        topk_ids = _chosen(logits, scores, routing, e_score_correction_bias)
    else:
        row = torch.where((input_ids >= 0) & (input_ids < tid2eid.shape[0]), input_ids, 0)
        topk_ids = tid2eid[row].clamp(0, logits.shape[1] - 1)
    if e_score_correction_bias_vl is not None and image_mask is not None:
        of_images = _chosen(logits, scores, routing, e_score_correction_bias_vl)
        topk_ids = torch.where(image_mask[:, None], of_images, topk_ids)
    weights = scores.gather(1, topk_ids)
    if routing.scoring == "softmax_of_chosen":
        weights = weights.softmax(-1)
    weights = torch.where(weights.isnan(), 0, weights)
    if routing.renormalize:
        total = weights.sum(-1, keepdim=True) + routing.renormalize_epsilon
        weights = weights / total.clamp(min=routing.renormalize_floor)
    weights = weights * routing.routed_scaling_factor
    if per_expert_scale is not None:
        weights = weights * per_expert_scale.to(compute_dtype)[topk_ids]
    weights = torch.where(weights.isfinite(), weights, 0)  # 0 / 0, inf / inf, or a score of inf
    topk_ids = topk_ids.to(routing.ids_dtype).clone(memory_format=torch.contiguous_format)
    return weights.to(routing.weights_dtype), topk_ids


def route(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    norm_order: str = "",
    residual: Tensor | None = None,
    residual_multiplier: float = 1.0,
    e_score_correction_bias: Tensor | None = None,
    tid2eid: Tensor | None = None,
    input_ids: Tensor | None = None,
    routing: Routing | None = None,
    logits_from: str = "unrounded",
    logits_dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype = torch.float32,
    stream_multiplier: float = 1.0,
    e_score_correction_bias_vl: Tensor | None = None,
    image_mask: Tensor | None = None,
    per_expert_scale: Tensor | None = None,
) -> Routed:
    """The whole path of ``x`` [num_tokens, hidden_size]: residual add, norm, gate, scoring and top-k.

    Stages whose arguments are not given are left out, and their fields are ``None``. Logits are always
    given: they are what the experts were chosen by, in ``logits_dtype``.
    """
    residual_out = None if residual is None else add_residual(x, residual, residual_multiplier, stream_multiplier)
    h = x if residual_out is None else residual_out
    normed_x, topk_weights, topk_ids = None, None, None
    if norm_weight is None:
        logits = gate(h, gate_weight, gate_bias, logits_dtype, compute_dtype)
    else:
        arguments = (eps, norm_order, logits_from, logits_dtype, compute_dtype)
        normed_x, logits = norm_gate(h, norm_weight, gate_weight, gate_bias, *arguments)
    if routing is not None:
        experts = (e_score_correction_bias, tid2eid, input_ids)
        topk_weights, topk_ids = choose_experts(
            logits,
            routing,
            *experts,
            compute_dtype,
            e_score_correction_bias_vl=e_score_correction_bias_vl,
            image_mask=image_mask,
            per_expert_scale=per_expert_scale,
        )
    return Routed(normed_x, residual_out, topk_weights, topk_ids, logits)


def _chosen(logits: Tensor, scores: Tensor, routing: Routing, correction_bias: Tensor | None) -> Tensor:
    """Ids of the experts with the largest choices, within the best groups."""
    choices = scores
    if correction_bias is not None:
        choices = scores + correction_bias.to(scores.dtype)
    elif routing.scoring == "softmax" and (routing.n_group == 1 or routing.group_score == "max"):
        # Softmax keeps the order of the logits, but where it rounds or underflows it makes equals of them.
        choices = logits
    keys = _ordered(choices)
    if routing.n_group > 1:
        group_size = choices.shape[1] // routing.n_group
        by_group = (choices.shape[0], routing.n_group, group_size)
        best = _largest(keys.reshape(by_group), 1 if routing.group_score == "max" else 2)
        group_scores = choices.reshape(by_group).gather(2, best).sum(-1)
        groups = _largest(_ordered(group_scores), routing.topk_group)
        is_out = torch.ones_like(group_scores, dtype=torch.bool).scatter(1, groups, False)
        keys = keys.masked_fill(is_out.repeat_interleave(group_size, 1), torch.iinfo(keys.dtype).min)
    return _largest(keys, routing.top_k)


def _largest(keys: Tensor, count: int) -> Tensor:
    """Where the largest are in the last dimension, in descending order, of equals the first; topk promises no order."""
    return keys.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _ordered(values: Tensor) -> Tensor:
    """Integers in the order of floats, equal for equals (0 and -0 too); NaN is below -inf, the least left free."""
    as_integer = {torch.float32: torch.int32, torch.float64: torch.int64}[values.dtype]
    bits = (values + 0.0).view(as_integer)
    limits = torch.iinfo(as_integer)
    keys = torch.where(bits < 0, bits ^ limits.max, bits)
    return torch.where(values.isnan(), limits.min + 1, keys)


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Inside, a float32 matmul is one, whatever the user's autocast, TF32 and bf16 settings say."""
    backends: Any = torch.backends
    backend = {"cuda": backends.cuda.matmul, "cpu": backends.mkldnn.matmul}.get(device_type)
    with torch.autocast(device_type, enabled=False):
        if backend is None or backend.fp32_precision in ("none", "ieee"):
            yield
            return
        # The setting is the process's: without the lock, two threads could restore each other's "ieee".
        with _precision_lock:
            before = backend.fp32_precision
            backend.fp32_precision = "ieee"
            try:
                yield
            finally:
                # "none" inherits from torch.backends.fp32_precision, and reads as what it inherits.
                backend.fp32_precision = "none"
                if backend.fp32_precision != before:
                    backend.fp32_precision = before
