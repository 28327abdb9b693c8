"""The operators, ``torch.ops.normgate.*`` or as OPS says: schemas, fakes, CPU implementations; loads the CUDA ones.

The schemas stand here, so that they exist with and without the compiled library. ``libnormgate.so`` beside
this file (or the file that the environment variable NORMGATE_LIBRARY names) registers the CUDA
implementations; where it is missing, CUDA calls run the reference composition and warn, once, with the
command that compiles it.

The library calls ``norm_gate_reference``, ``gate_reference`` and ``route_reference`` where no generated kernel
serves a shape or SM. ``norm_gate_a``, ``norm_gate_b`` and ``norm_gate_g`` are ``norm_gate`` of one order, without a
bias, unrounded, with float32 logits, for calls that cost the host less.
"""

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checking, fallback, reference
from ._tables import OPS
from .routing import Routed, Routing, selection_key

ACTIVATION_DTYPES = (torch.bfloat16, torch.float16)
GATE_WEIGHT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LOGITS_DTYPES = (torch.float32, torch.bfloat16)

# torch leaves what this file calls of it without annotations.
_torch: Any = torch
_ops: Any = getattr(torch.ops, OPS)


def norm_gate(
    x: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None = None,
    *,
    eps: float,
    norm_order: str,
    logits_from: str = "unrounded",
    logits_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """RMSNorm and router gate in one launch: ``(normed_x, router_logits)``.

    x            [..., hidden_size] bfloat16 or float16; rows may have a stride, a row's elements may not
    norm_weight  [hidden_size] dtype of x
    gate_weight  [num_experts, hidden_size] bfloat16, float16 or float32
    gate_bias    [num_experts] dtype of gate_weight, or None
    norm_order   where the norm rounds: "A" weight * round(xhat), "B" round(weight * xhat),
                 "G" round((1 + weight) * xhat)
    logits_from  what the gate reads: "unrounded" the norm in float32, "rounded" normed_x as it is written
    logits_dtype float32 or bfloat16

    ``normed_x`` has shape and dtype of x, ``router_logits`` is [..., num_experts]; both are contiguous.
    Arithmetic is in float32. There is no backward: where autograd would record the call it is refused.
    RuntimeError names the argument that does not fit.
    """
    if torch.is_grad_enabled():
        _refuse_gradients("norm_gate", x=x, norm_weight=norm_weight, gate_weight=gate_weight, gate_bias=gate_bias)
    rows = _rows(x)
    # Each argument costs an eager call up to half a microsecond, a dtype more: what is as usual is left out. `.default`
    # where an operator is called, for the choice of an overload costs microseconds.
    usual = logits_from == "unrounded" and logits_dtype is torch.float32
    if usual and gate_bias is None and norm_order in reference.NORM_ORDERS:
        normed_x, router_logits = _IN_ORDER[norm_order](rows, norm_weight, gate_weight, eps)
    else:
        contract = (eps, norm_order) if usual else (eps, norm_order, logits_from, logits_dtype)
        normed_x, router_logits = _ops.norm_gate.default(rows, norm_weight, gate_weight, gate_bias, *contract)
    if checking.wanted():
        got = Routed(normed_x, None, None, None, router_logits)
        checking.check(
            "norm_gate",
            got,
            rows,
            gate_weight,
            gate_bias,
            norm_weight=norm_weight,
            eps=eps,
            norm_order=norm_order,
            logits_from=logits_from,
        )
    if rows is x:
        return normed_x, router_logits
    return normed_x.view(x.shape), router_logits.view(*x.shape[:-1], gate_weight.shape[0])


def gate(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None = None,
    *,
    logits_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Router gate alone, for an ``x`` that its producer normed already: router_logits [..., num_experts].

    Arguments and errors as for :func:`norm_gate`.
    """
    if torch.is_grad_enabled():
        _refuse_gradients("gate", x=x, gate_weight=gate_weight, gate_bias=gate_bias)
    named = (gate_bias,) if logits_dtype is torch.float32 else (gate_bias, logits_dtype)
    rows = _rows(x)
    router_logits: Tensor = _ops.gate.default(rows, gate_weight, *named)
    if checking.wanted():
        checking.check("gate", Routed(None, None, None, None, router_logits), rows, gate_weight, gate_bias)
    return router_logits if rows is x else router_logits.view(*x.shape[:-1], gate_weight.shape[0])


def route(
    x: Tensor,
    gate_weight: Tensor,
    *,
    routing: Routing | None,
    norm_weight: Tensor | None = None,
    eps: float | None = None,
    norm_order: str | None = None,
    residual: Tensor | None = None,
    residual_multiplier: float = 1.0,
    gate_bias: Tensor | None = None,
    e_score_correction_bias: Tensor | None = None,
    tid2eid: Tensor | None = None,
    input_ids: Tensor | None = None,
    logits_from: str = "unrounded",
    logits_dtype: torch.dtype = torch.float32,
    returns_logits: bool = False,
    stream_multiplier: float = 1.0,
    e_score_correction_bias_vl: Tensor | None = None,
    image_mask: Tensor | None = None,
    per_expert_scale: Tensor | None = None,
) -> Routed:
    """The router path: residual add, RMSNorm, gate, scoring and top-k, in one launch where a kernel has them all.

    Each stage is there when its arguments are: ``residual``; ``norm_weight``, ``eps`` and ``norm_order``;
    ``routing``. Arguments beside those of :func:`norm_gate`:

    residual                 like x: what x is added to, ``stream_multiplier * residual + residual_multiplier * x``,
                             rounded as decoder layers round it. It is left as it is: the sum is
                             ``residual_out``, and what the norm (or the gate) reads
    routing                  how experts are chosen from the logits; None: they are not
    e_score_correction_bias  [num_experts] float32, added to the scores for the choice, not in the weights
    tid2eid, input_ids       [vocab_size, top_k] and [...], int64: a hash layer's experts come from the table,
                             by token, and the logits give only their weights. There is no correction bias.
                             An id out of range reads row 0 of the table
    e_score_correction_bias_vl, image_mask
                             [num_experts] float32 and [...] bool: the correction bias of the tokens that the mask
                             marks, in hash layers too; without a mask there are none
    per_expert_scale         [num_experts] float32, multiplies the weights of each expert at the end
    returns_logits           whether logits are wanted besides; without a ``routing`` they always are

    Of equal choices the lower expert id comes first. A choice that is NaN comes last and weighs 0, as one of
    infinite weight does: ids are distinct and in range and weights finite, whatever x holds. Outputs are
    contiguous; see :class:`Routed`. There is no backward, as in :func:`norm_gate`. RuntimeError names the
    argument that does not fit.
    """
    if not (norm_weight is None) == (eps is None) == (norm_order is None):
        weight = None if norm_weight is None else "a tensor"
        found = f"norm_weight is {weight}, eps {eps} and norm_order {norm_order!r}"
        raise RuntimeError(f"{OPS}::route: {found}, expected all or none")
    if torch.is_grad_enabled():
        _refuse_gradients(
            "route",
            x=x,
            residual=residual,
            norm_weight=norm_weight,
            gate_weight=gate_weight,
            gate_bias=gate_bias,
            e_score_correction_bias=e_score_correction_bias,
            e_score_correction_bias_vl=e_score_correction_bias_vl,
            per_expert_scale=per_expert_scale,
        )
    # What few models have comes last in the schema, with defaults: to leave it out saves the others' calls time.
    rare: tuple[float | Tensor | None, ...] = ()
    has_rare_weights = e_score_correction_bias_vl is not None or per_expert_scale is not None
    if has_rare_weights or image_mask is not None or stream_multiplier != 1.0:
        mask = None if image_mask is None else image_mask.reshape(-1)
        rare = (stream_multiplier, e_score_correction_bias_vl, mask, per_expert_scale)
    chooses = _NO_SELECTION if routing is None else _selection(routing)
    if rare and len(chooses) == len(_NO_SELECTION):  # arguments behind these follow
        chooses += _LAST_BY_DEFAULT
    normed_x, residual_out, topk_weights, topk_ids, router_logits = _ops.route.default(
        _rows(x),
        None if residual is None else _rows(residual),
        norm_weight,
        gate_weight,
        gate_bias,
        e_score_correction_bias,
        tid2eid,
        None if input_ids is None else input_ids.reshape(-1),
        0.0 if eps is None else eps,
        "" if norm_order is None else norm_order,
        logits_from,
        logits_dtype,
        returns_logits or routing is None,
        residual_multiplier,
        *chooses,
        *rare,
    )
    if checking.wanted():
        checking.check(
            "route",
            Routed(
                None if norm_weight is None else normed_x,
                None if residual is None else residual_out,
                None if routing is None else topk_weights,
                None if routing is None else topk_ids,
                router_logits if returns_logits or routing is None else None,
            ),
            _rows(x),
            gate_weight,
            gate_bias,
            norm_weight=norm_weight,
            eps=eps,
            norm_order=norm_order,
            residual=None if residual is None else _rows(residual),
            residual_multiplier=residual_multiplier,
            e_score_correction_bias=e_score_correction_bias,
            tid2eid=tid2eid,
            input_ids=None if input_ids is None else input_ids.reshape(-1),
            routing=routing,
            logits_from=logits_from,
            stream_multiplier=stream_multiplier,
            e_score_correction_bias_vl=e_score_correction_bias_vl,
            image_mask=None if image_mask is None else image_mask.reshape(-1),
            per_expert_scale=per_expert_scale,
        )
    rows = x.shape[:-1]
    return Routed(
        None if norm_weight is None else normed_x.view(x.shape),
        None if residual is None else residual_out.view(x.shape),
        None if routing is None else topk_weights.view(*rows, routing.top_k),
        None if routing is None else topk_ids.view(*rows, routing.top_k),
        router_logits.view(*rows, gate_weight.shape[0]) if returns_logits or routing is None else None,
    )


def _refuse_gradients(op: str, **tensors: Tensor | None) -> None:
    """There is no backward; a call that autograd would record is refused, on every device, before it runs.

    Here and not in the operators: an autograd kernel of theirs would cost each call more than the rest of it. Asked
    only where gradients are recorded at all, which saves the others the time.
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise RuntimeError(
                f"{OPS}::{op}: {name} requires grad, expected a tensor that does not: there is no backward; "
                "call it under torch.no_grad(), or detach what you pass"
            )


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


# The arguments of `route` that say how experts are chosen, in the order of its schema, without the last three where
# they are what it has by default; its scoring is "" where experts are not chosen.
_NO_SELECTION: tuple[Any, ...] = ("", 0, 1, 1, "", False, 0.0, 0.0, 1.0)
_LAST_BY_DEFAULT = (0.0, torch.int32, torch.float32)


def _selection(routing: Routing) -> tuple[Any, ...]:
    last = (routing.softcap, routing.ids_dtype, routing.weights_dtype)
    first = (
        routing.scoring,
        routing.top_k,
        routing.n_group,
        routing.topk_group,
        routing.group_score,
        routing.renormalize,
        routing.renormalize_epsilon,
        routing.renormalize_floor,
        routing.routed_scaling_factor,
    )
    return first if last == _LAST_BY_DEFAULT else first + last


class _RouteCall(NamedTuple):
    """The arguments of the operator ``route``, in the order of its schema. What is not asked for has shape [0]."""

    x: Tensor
    residual: Tensor | None
    norm_weight: Tensor | None
    gate_weight: Tensor
    gate_bias: Tensor | None
    e_score_correction_bias: Tensor | None
    tid2eid: Tensor | None
    input_ids: Tensor | None
    eps: float
    norm_order: str
    logits_from: str
    logits_dtype: torch.dtype
    returns_logits: bool
    residual_multiplier: float
    scoring: str
    top_k: int
    n_group: int
    topk_group: int
    group_score: str
    renormalize: bool
    renormalize_epsilon: float
    renormalize_floor: float
    routed_scaling_factor: float
    softcap: float = 0.0
    ids_dtype: torch.dtype = torch.int32
    weights_dtype: torch.dtype = torch.float32
    stream_multiplier: float = 1.0
    e_score_correction_bias_vl: Tensor | None = None
    image_mask: Tensor | None = None
    per_expert_scale: Tensor | None = None

    @property
    def routing(self) -> Routing | None:
        """RuntimeError where it does not fit the experts."""
        if not self.scoring:
            return None
        try:
            routing = Routing(**{field.name: getattr(self, field.name) for field in fields(Routing)})
            routing.check_num_experts(self.gate_weight.shape[0])
        except ValueError as error:
            raise RuntimeError(f"{OPS}::route: {error}") from error
        return routing


def _norm_gate_composition(
    x: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    eps: float,
    norm_order: str,
    logits_from: str = "unrounded",
    logits_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    _check_gate("norm_gate", x, gate_weight, gate_bias, logits_dtype)
    _check_norm("norm_gate", x, norm_weight, eps, norm_order, logits_from)
    if x.is_cuda:
        weights = (norm_weight, gate_weight, gate_bias)
        fallback.warn(LIBRARY is not None, x, *weights, norm_order, logits_from, logits_dtype)
    return reference.norm_gate(x, norm_weight, gate_weight, gate_bias, eps, norm_order, logits_from, logits_dtype)


def _gate_composition(
    x: Tensor, gate_weight: Tensor, gate_bias: Tensor | None = None, logits_dtype: torch.dtype = torch.float32
) -> Tensor:
    _check_gate("gate", x, gate_weight, gate_bias, logits_dtype)
    if x.is_cuda:
        weights = (None, gate_weight, gate_bias)
        fallback.warn(LIBRARY is not None, x, *weights, None, "unrounded", logits_dtype)
    return reference.gate(x, gate_weight, gate_bias, logits_dtype)


def _route_composition(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = _RouteCall(*arguments, **named)
    routing = _check_route(call)
    if call.x.is_cuda:
        selection = None
        if routing is not None:
            biased, hashes = call.e_score_correction_bias is not None, call.tid2eid is not None
            of_images, scales = call.e_score_correction_bias_vl is not None, call.per_expert_scale is not None
            selection = selection_key(routing, biased, hashes, call.returns_logits, of_images, scales)
        fallback.warn(
            LIBRARY is not None,
            call.x,
            call.norm_weight,
            call.gate_weight,
            call.gate_bias,
            call.norm_order or None,
            call.logits_from,
            call.logits_dtype,
            residual=call.residual,
            residual_multiplier=call.residual_multiplier,
            stream_multiplier=call.stream_multiplier,
            selection=selection,
        )
    routed = reference.route(
        call.x,
        call.gate_weight,
        call.gate_bias,
        norm_weight=call.norm_weight,
        eps=call.eps,
        norm_order=call.norm_order,
        residual=call.residual,
        residual_multiplier=call.residual_multiplier,
        e_score_correction_bias=call.e_score_correction_bias,
        tid2eid=call.tid2eid,
        input_ids=call.input_ids,
        routing=routing,
        logits_from=call.logits_from,
        logits_dtype=call.logits_dtype,
        stream_multiplier=call.stream_multiplier,
        e_score_correction_bias_vl=call.e_score_correction_bias_vl,
        image_mask=call.image_mask,
        per_expert_scale=call.per_expert_scale,
    )
    return _route_outputs(call, routed)


def _route_outputs(call: _RouteCall, routed: Routed) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the operator gives: an operator has no optional outputs, so what is not asked for is empty."""
    logits = routed.router_logits if call.returns_logits else None
    activation = call.x.dtype

    def given(tensor: Tensor | None, dtype: torch.dtype) -> Tensor:
        return call.x.new_empty(0, dtype=dtype) if tensor is None else tensor

    return (
        given(routed.normed_x, activation),
        given(routed.residual_out, activation),
        given(routed.topk_weights, call.weights_dtype),
        given(routed.topk_ids, call.ids_dtype),
        given(logits, call.logits_dtype),
    )


def _norm_gate_fake(
    x: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    eps: float,
    norm_order: str,
    logits_from: str = "unrounded",
    logits_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    _check_gate("norm_gate", x, gate_weight, gate_bias, logits_dtype)
    _check_norm("norm_gate", x, norm_weight, eps, norm_order, logits_from)
    return x.new_empty(x.shape), x.new_empty(x.shape[0], gate_weight.shape[0], dtype=logits_dtype)


def _in_order(
    function: Callable[..., tuple[Tensor, Tensor]], norm_order: str
) -> Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """A norm_gate_* operator's function, of norm_gate's."""

    def of_four(x: Tensor, norm_weight: Tensor, gate_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return function(x, norm_weight, gate_weight, None, eps, norm_order)

    return of_four


def _gate_fake(
    x: Tensor, gate_weight: Tensor, gate_bias: Tensor | None = None, logits_dtype: torch.dtype = torch.float32
) -> Tensor:
    _check_gate("gate", x, gate_weight, gate_bias, logits_dtype)
    return x.new_empty(x.shape[0], gate_weight.shape[0], dtype=logits_dtype)


def _route_fake(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = _RouteCall(*arguments, **named)
    routing = _check_route(call)
    num_tokens, num_experts = call.x.shape[0], call.gate_weight.shape[0]

    def rows(width: int, dtype: torch.dtype) -> Tensor:
        return call.x.new_empty(num_tokens, width, dtype=dtype)

    routed = Routed(
        normed_x=None if call.norm_weight is None else call.x.new_empty(call.x.shape),
        residual_out=None if call.residual is None else call.x.new_empty(call.x.shape),
        topk_weights=None if routing is None else rows(routing.top_k, routing.weights_dtype),
        topk_ids=None if routing is None else rows(routing.top_k, routing.ids_dtype),
        router_logits=rows(num_experts, call.logits_dtype),
    )
    return _route_outputs(call, routed)


# The checks never look at the number of tokens or the stride of rows, but for whether two are the same:
# torch.compile keeps those symbolic.


def _check_gate(op: str, x: Tensor, gate_weight: Tensor, gate_bias: Tensor | None, logits_dtype: torch.dtype) -> None:
    _require(op, x.dim() == 2, f"x has shape {tuple(x.shape)}", "[num_tokens, hidden_size]")
    _require_dtype(op, "x", x.dtype, ACTIVATION_DTYPES)
    _require(op, x.stride(1) == 1, f"x has strides {x.stride()}", "1 in the last dimension")
    _require_weight(op, "gate_weight", gate_weight, ("num_experts", x.shape[1]), GATE_WEIGHT_DTYPES, x)
    if gate_bias is not None:
        _require_weight(op, "gate_bias", gate_bias, (gate_weight.shape[0],), (gate_weight.dtype,), x)
    _require_dtype(op, "logits_dtype", logits_dtype, LOGITS_DTYPES)


def _check_norm(op: str, x: Tensor, norm_weight: Tensor, eps: float, norm_order: str, logits_from: str) -> None:
    _require_weight(op, "norm_weight", norm_weight, (x.shape[1],), (x.dtype,), x)
    _require(op, eps >= 0, f"eps is {eps}", "0 or more")
    _require(op, norm_order in reference.NORM_ORDERS, f"norm_order is {norm_order!r}", "'A', 'B' or 'G'")
    _check_logits_from(op, logits_from)


def _check_logits_from(op: str, logits_from: str) -> None:
    _require(
        op,
        logits_from in reference.LOGITS_FROM,
        f"logits_from is {logits_from!r}",
        "'unrounded' or 'rounded'",
    )


def _check_route(call: _RouteCall) -> Routing | None:
    """How experts are chosen, as far as they are."""
    _check_gate("route", call.x, call.gate_weight, call.gate_bias, call.logits_dtype)
    if call.norm_weight is None:
        _require("route", call.norm_order == "", f"norm_order is {call.norm_order!r}", "'' without a norm_weight")
        _check_logits_from("route", call.logits_from)
    else:
        _check_norm("route", call.x, call.norm_weight, call.eps, call.norm_order, call.logits_from)
    if call.residual is None:
        for name in ("residual_multiplier", "stream_multiplier"):
            by = getattr(call, name)
            _require("route", by == 1.0, f"{name} is {by}", "1.0 without a residual")
    else:
        _check_rows_like_x("route", "residual", call.residual, call.x)
    routing = call.routing
    _check_selection(call)
    return routing


def _check_rows_like_x(op: str, name: str, rows: Tensor, x: Tensor) -> None:
    found = f"{name} has shape {tuple(rows.shape)}"
    fits = rows.dim() == 2 and rows.shape[1] == x.shape[1]
    _require(op, fits, found, f"{tuple(x.shape)}, that of x")
    _require(op, rows.shape[0] == x.shape[0], found, f"{tuple(x.shape)}, that of x")
    _require_dtype(op, name, rows.dtype, (x.dtype,))
    _require_device(op, name, rows, x)
    _require(op, rows.stride(1) == 1, f"{name} has strides {rows.stride()}", "1 in the last dimension")


def _check_selection(call: _RouteCall) -> None:
    bias, tid2eid, input_ids = call.e_score_correction_bias, call.tid2eid, call.input_ids
    if not call.scoring:
        _require("route", call.top_k == 0, f"top_k is {call.top_k}", "0 without a scoring")
        _require("route", call.returns_logits, "returns_logits is False", "True without a scoring")
        _require_absent("route", "e_score_correction_bias", bias, "without a scoring")
        _require_absent("route", "tid2eid", tid2eid, "without a scoring")
        _require_absent("route", "per_expert_scale", call.per_expert_scale, "without a scoring")
    if bias is None and tid2eid is None:
        absent = "without e_score_correction_bias or tid2eid"
        _require_absent("route", "e_score_correction_bias_vl", call.e_score_correction_bias_vl, absent)
    if call.e_score_correction_bias_vl is None:
        _require_absent("route", "image_mask", call.image_mask, "without e_score_correction_bias_vl")
    for name in ("e_score_correction_bias", "e_score_correction_bias_vl", "per_expert_scale"):
        if (weight := getattr(call, name)) is not None:
            _require_weight("route", name, weight, (call.gate_weight.shape[0],), (torch.float32,), call.x)
    if call.image_mask is not None:
        _require_of_rows("image_mask", call.image_mask, torch.bool, call.x)
    if bias is not None:
        _require_absent("route", "tid2eid", tid2eid, "beside e_score_correction_bias")
    if tid2eid is None:
        _require_absent("route", "input_ids", input_ids, "without tid2eid")
        return
    _require("route", input_ids is not None, "input_ids is None", "a tensor beside tid2eid")
    assert input_ids is not None
    _require_weight("route", "tid2eid", tid2eid, ("vocab_size", call.top_k), (torch.int64,), call.x)
    _require("route", tid2eid.shape[0] > 0, f"tid2eid has shape {tuple(tid2eid.shape)}", "one row or more")
    _require_of_rows("input_ids", input_ids, torch.int64, call.x)


def _require_of_rows(name: str, tensor: Tensor, dtype: torch.dtype, x: Tensor) -> None:
    _require_weight("route", name, tensor, ("num_tokens",), (dtype,), x)
    found = f"{name} has shape {tuple(tensor.shape)}"
    _require("route", tensor.shape[0] == x.shape[0], found, f"[{x.shape[0]}], the rows of x")


def _require(op: str, holds: bool, found: str, expected: str) -> None:
    _torch._check(holds, lambda: f"{OPS}::{op}: {found}, expected {expected}")


def _require_dtype(op: str, name: str, dtype: torch.dtype, expected: tuple[torch.dtype, ...]) -> None:
    found = f"{name} is {dtype}" if name == "logits_dtype" else f"{name} has dtype {dtype}"
    _require(op, dtype in expected, found, " or ".join(map(str, expected)))


def _require_weight(
    op: str,
    name: str,
    weight: Tensor,
    shape: tuple[int | str, ...],
    dtypes: tuple[torch.dtype, ...],
    x: Tensor,
) -> None:
    """``shape`` holds a name where any size will do."""
    same = (isinstance(wanted, str) or size == wanted for size, wanted in zip(weight.shape, shape, strict=False))
    fits = weight.dim() == len(shape) and all(same)
    _require(op, fits, f"{name} has shape {tuple(weight.shape)}", f"[{', '.join(map(str, shape))}]")
    _require_dtype(op, name, weight.dtype, dtypes)
    _require_device(op, name, weight, x)
    _require(op, weight.is_contiguous(), f"{name} has strides {weight.stride()}", "a contiguous tensor")


def _require_device(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    _require(op, tensor.device == x.device, f"{name} is on {tensor.device}", f"{x.device}, where x is")


def _require_absent(op: str, name: str, tensor: Tensor | None, where: str) -> None:
    _require(op, tensor is None, f"{name} is a tensor", f"None {where}")


def _load_library() -> Path | None:
    """Load the compiled library; its file, or ``None`` where there is none beside the package."""
    named = os.environ.get("NORMGATE_LIBRARY")
    path = Path(named) if named else Path(__file__).with_name("libnormgate.so")
    if not path.is_file():
        if named:
            raise ImportError(f"NORMGATE_LIBRARY is {named}, expected a file that `python build.py` compiled")
        return None
    try:
        _torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path} does not load under torch {torch.__version__}: {error}; `python build.py` compiles it"
        ) from error
    return path


def _own_namespace() -> Any:
    try:
        return _torch.library.Library(OPS, "DEF")
    except RuntimeError as error:
        raise ImportError(
            f"torch.ops.{OPS} belongs to another package that is loaded, so {__package__} cannot be loaded beside it; "
            "generate one of them with a namespace of its own: `python build.py --ops NAME`"
        ) from error


def _define(library: Any) -> None:
    # Arguments that are as their defaults say do not reach Python functions, so those have the same defaults.
    # The tag keeps compilers from handing over an x with other strides than the program's.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    for suffix in ("", "_reference"):
        library.define(
            f"norm_gate{suffix}(Tensor x, Tensor norm_weight, Tensor gate_weight, Tensor? gate_bias, "
            "float eps, str norm_order, str logits_from='unrounded', ScalarType logits_dtype=float) "
            "-> (Tensor normed_x, Tensor router_logits)",
            tags=tags,
        )
        library.define(
            f"gate{suffix}(Tensor x, Tensor gate_weight, Tensor? gate_bias=None, ScalarType logits_dtype=float) "
            "-> Tensor router_logits",
            tags=tags,
        )
        library.define(
            f"route{suffix}(Tensor x, Tensor? residual, Tensor? norm_weight, Tensor gate_weight, "
            "Tensor? gate_bias, Tensor? e_score_correction_bias, Tensor? tid2eid, Tensor? input_ids, float eps, "
            "str norm_order, str logits_from, ScalarType logits_dtype, bool returns_logits, "
            "float residual_multiplier, str scoring, int top_k, int n_group, int topk_group, str group_score, "
            "bool renormalize, float renormalize_epsilon, float renormalize_floor, float routed_scaling_factor, "
            "float softcap=0.0, ScalarType ids_dtype=int, ScalarType weights_dtype=float, float stream_multiplier=1.0, "
            "Tensor? e_score_correction_bias_vl=None, Tensor? image_mask=None, Tensor? per_expert_scale=None) "
            "-> (Tensor normed_x, Tensor residual_out, Tensor topk_weights, Tensor topk_ids, Tensor router_logits)",
            tags=tags,
        )
        torch.library.register_fake(f"{OPS}::norm_gate{suffix}", _norm_gate_fake, lib=library)
        torch.library.register_fake(f"{OPS}::gate{suffix}", _gate_fake, lib=library)
        torch.library.register_fake(f"{OPS}::route{suffix}", _route_fake, lib=library)
    for order, op in _NAMES_IN_ORDER.items():
        library.define(
            f"{op}(Tensor x, Tensor norm_weight, Tensor gate_weight, float eps) "
            "-> (Tensor normed_x, Tensor router_logits)",
            tags=tags,
        )
        torch.library.register_fake(f"{OPS}::{op}", _in_order(_norm_gate_fake, order), lib=library)
    for op, composition in (*_COMPOSITIONS, *_COMPOSITIONS_IN_ORDER):
        library.impl(op, composition, "CPU")
    for op, composition in _COMPOSITIONS:
        library.impl(f"{op}_reference", composition, "CompositeExplicitAutograd")


_NAMES_IN_ORDER = {order: f"norm_gate_{order.lower()}" for order in reference.NORM_ORDERS}
_COMPOSITIONS = (("norm_gate", _norm_gate_composition), ("gate", _gate_composition), ("route", _route_composition))
_COMPOSITIONS_IN_ORDER = tuple((op, _in_order(_norm_gate_composition, order)) for order, op in _NAMES_IN_ORDER.items())
_definitions = _own_namespace()
_define(_definitions)
_IN_ORDER = {order: getattr(_ops, op).default for order, op in _NAMES_IN_ORDER.items()}

LIBRARY = _load_library()
"""The file with the CUDA implementations; ``None`` where there is none and the reference serves CUDA."""

if LIBRARY is None:
    for _op, _composition in (*_COMPOSITIONS, *_COMPOSITIONS_IN_ORDER):
        _definitions.impl(_op, _composition, "CUDA")
