"""The operators ``torch.ops.normgate.*``: schemas, fakes, CPU implementations; loads the CUDA ones.

The schemas stand here, so that they exist with and without the compiled library. ``libnormgate.so`` beside
this file (or the file that the environment variable NORMGATE_LIBRARY names) registers the CUDA
implementations; where it is missing, CUDA calls run the reference composition and warn, once, with the
command that compiles it.

The library calls ``norm_gate_reference`` and ``gate_reference`` where no generated kernel serves a shape or
SM.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import fallback, reference

ACTIVATION_DTYPES = (torch.bfloat16, torch.float16)
GATE_WEIGHT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LOGITS_DTYPES = (torch.float32, torch.bfloat16)

# torch leaves what this file calls of it without annotations.
_torch: Any = torch


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
    Arithmetic is in float32. There is no backward. RuntimeError names the argument that does not fit.
    """
    # `.default`, for the choice of an overload costs a call microseconds.
    normed_x, router_logits = torch.ops.normgate.norm_gate.default(
        _rows(x), norm_weight, gate_weight, gate_bias, eps, norm_order, logits_from, logits_dtype
    )
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
    router_logits: Tensor = torch.ops.normgate.gate.default(_rows(x), gate_weight, gate_bias, logits_dtype)
    return router_logits.view(*x.shape[:-1], gate_weight.shape[0])


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _norm_gate_composition(
    x: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    eps: float,
    norm_order: str,
    logits_from: str,
    logits_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    _check_gate("norm_gate", x, gate_weight, gate_bias, logits_dtype)
    _check_norm("norm_gate", x, norm_weight, eps, norm_order, logits_from)
    if x.is_cuda:
        weights = (norm_weight, gate_weight, gate_bias)
        fallback.warn(LIBRARY is not None, x, *weights, norm_order, logits_from, logits_dtype)
    return reference.norm_gate(x, norm_weight, gate_weight, gate_bias, eps, norm_order, logits_from, logits_dtype)


def _gate_composition(x: Tensor, gate_weight: Tensor, gate_bias: Tensor | None, logits_dtype: torch.dtype) -> Tensor:
    _check_gate("gate", x, gate_weight, gate_bias, logits_dtype)
    if x.is_cuda:
        weights = (None, gate_weight, gate_bias)
        fallback.warn(LIBRARY is not None, x, *weights, None, "unrounded", logits_dtype)
    return reference.gate(x, gate_weight, gate_bias, logits_dtype)


def _norm_gate_fake(
    x: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    eps: float,
    norm_order: str,
    logits_from: str,
    logits_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    _check_gate("norm_gate", x, gate_weight, gate_bias, logits_dtype)
    _check_norm("norm_gate", x, norm_weight, eps, norm_order, logits_from)
    return x.new_empty(x.shape), x.new_empty(x.shape[0], gate_weight.shape[0], dtype=logits_dtype)


def _gate_fake(x: Tensor, gate_weight: Tensor, gate_bias: Tensor | None, logits_dtype: torch.dtype) -> Tensor:
    _check_gate("gate", x, gate_weight, gate_bias, logits_dtype)
    return x.new_empty(x.shape[0], gate_weight.shape[0], dtype=logits_dtype)


# The checks never look at the number of tokens or the stride of rows: torch.compile keeps those symbolic.


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
    _require(
        op,
        logits_from in reference.LOGITS_FROM,
        f"logits_from is {logits_from!r}",
        "'unrounded' or 'rounded'",
    )


def _require(op: str, holds: bool, found: str, expected: str) -> None:
    _torch._check(holds, lambda: f"normgate::{op}: {found}, expected {expected}")


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
    _require(op, weight.device == x.device, f"{name} is on {weight.device}", f"{x.device}, where x is")
    _require(op, weight.is_contiguous(), f"{name} has strides {weight.stride()}", "a contiguous tensor")


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


def _define(library: Any) -> None:
    # The tag keeps compilers from handing over an x with other strides than the program's.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    for suffix in ("", "_reference"):
        library.define(
            f"norm_gate{suffix}(Tensor x, Tensor norm_weight, Tensor gate_weight, Tensor? gate_bias, "
            "float eps, str norm_order, str logits_from, ScalarType logits_dtype) "
            "-> (Tensor normed_x, Tensor router_logits)",
            tags=tags,
        )
        library.define(
            f"gate{suffix}(Tensor x, Tensor gate_weight, Tensor? gate_bias, ScalarType logits_dtype) "
            "-> Tensor router_logits",
            tags=tags,
        )
        torch.library.register_fake(f"normgate::norm_gate{suffix}", _norm_gate_fake, lib=library)
        torch.library.register_fake(f"normgate::gate{suffix}", _gate_fake, lib=library)
    for op, composition in _COMPOSITIONS:
        library.impl(op, composition, "CPU")
        library.impl(f"{op}_reference", composition, "CompositeExplicitAutograd")


_COMPOSITIONS = (("norm_gate", _norm_gate_composition), ("gate", _gate_composition))
_definitions = _torch.library.Library("normgate", "DEF")
_define(_definitions)

LIBRARY = _load_library()
"""The file with the CUDA implementations; ``None`` where there is none and the reference serves CUDA."""

if LIBRARY is None:
    for _op, _composition in _COMPOSITIONS:
        _definitions.impl(_op, _composition, "CUDA")
