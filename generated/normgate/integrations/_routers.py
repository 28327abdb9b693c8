"""How the routers and norms of transformers' models compute, by what the code of their forward says.

A digest stands for one text (see `_source.digest`): a class with that text computes this, whatever model it is in, and
a class whose text changed with a release of transformers is not known until it is read again. Read in 5.24.0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..routing import Routed, Routing
from ._source import digest


class Unserved(Exception):
    """Says why a layer is left as it is."""


def _logits_weights_ids(routed: Routed) -> tuple[Any, ...]:
    return routed.router_logits, routed.topk_weights, routed.topk_ids


def _wide_logits_weights_ids(routed: Routed) -> tuple[Any, ...]:
    assert routed.router_logits is not None
    return routed.router_logits.float(), routed.topk_weights, routed.topk_ids


def _scores_and_logits(routed: Routed) -> tuple[Any, ...]:
    """Llama-4: a score for each expert, 0 for those that were not chosen."""
    logits, ids, weights = routed.router_logits, routed.topk_ids, routed.topk_weights
    assert logits is not None and ids is not None and weights is not None
    return torch.zeros_like(logits).scatter_(1, ids, weights), logits


@dataclass(frozen=True)
class Router:
    """What a router computes, and where its tensors are: attributes of the MoE block, with dots.

    logits_dtype is what the logits are rounded to before experts are chosen; outputs makes what the router's forward
    returns of two-dimensional tensors.
    """

    routing: Routing
    logits_dtype: torch.dtype
    weight: str
    bias: str | None = None
    correction_bias: str | None = None
    outputs: Callable[[Routed], tuple[Any, ...]] = _logits_weights_ids


_IDS = torch.int64  # what torch.topk gives, and the experts' one_hot needs


def _grouped_sigmoid(router: Any, name: str, _dtype: torch.dtype) -> Router:
    routing = Routing(
        router.top_k,
        "sigmoid",
        n_group=router.num_group,
        topk_group=router.topk_group,
        renormalize=router.norm_topk_prob,
        renormalize_epsilon=1e-20 if router.norm_topk_prob else 0.0,
        routed_scaling_factor=router.routed_scaling_factor,
        ids_dtype=_IDS,
    )
    return Router(routing, torch.float32, f"{name}.weight", correction_bias=f"{name}.e_score_correction_bias")


def _deepseek_v2(router: Any, name: str, _dtype: torch.dtype) -> Router:
    if router.topk_method not in ("greedy", "group_limited_greedy"):
        raise Unserved(f"topk_method is {router.topk_method!r}, expected 'greedy' or 'group_limited_greedy'")
    grouped = router.topk_method == "group_limited_greedy"
    routing = Routing(
        router.top_k,
        "softmax",
        n_group=router.num_group if grouped else 1,
        topk_group=router.topk_group if grouped else 1,
        group_score="max",
        routed_scaling_factor=router.routed_scaling_factor,
        ids_dtype=_IDS,
    )
    return Router(routing, torch.float32, f"{name}.weight")


def _softmax(router: Any, name: str, dtype: torch.dtype) -> Router:
    dtype = _narrow(dtype)
    renormalize = getattr(router, "norm_topk_prob", True)
    routing = Routing(router.top_k, "softmax", renormalize=renormalize, ids_dtype=_IDS, weights_dtype=dtype)
    return Router(routing, dtype, f"{name}.weight")


def _mixtral(router: Any, name: str, dtype: torch.dtype) -> Router:
    routing = Routing(router.top_k, "softmax", renormalize=True, ids_dtype=_IDS)
    return Router(routing, _narrow(dtype), f"{name}.weight")


def _gpt_oss(router: Any, name: str, dtype: torch.dtype) -> Router:
    dtype = _narrow(dtype)
    routing = Routing(router.top_k, "softmax_of_chosen", ids_dtype=_IDS, weights_dtype=dtype)
    return Router(routing, dtype, f"{name}.weight", bias=f"{name}.bias")


def _granite(router: Any, name: str, dtype: torch.dtype) -> Router:
    dtype = _narrow(dtype)
    routing = Routing(router.top_k, "softmax_of_chosen", ids_dtype=_IDS, weights_dtype=dtype)
    return Router(routing, dtype, f"{name}.weight", outputs=_wide_logits_weights_ids)


def _ernie(router: Any, name: str, dtype: torch.dtype) -> Router:
    routing = Routing(
        router.top_k,
        "softmax",
        renormalize=True,
        renormalize_floor=router.norm_min,
        ids_dtype=_IDS,
        weights_dtype=_narrow(dtype),
    )
    bias = f"{name}.moe_statics.e_score_correction_bias"
    return Router(routing, torch.float32, f"{name}.weight", correction_bias=bias)


def _minimax_m2(router: Any, name: str, _dtype: torch.dtype) -> Router:
    routing = Routing(router.top_k, "sigmoid", renormalize=True, ids_dtype=_IDS)
    logits_dtype = _narrow(router.weight.dtype)
    return Router(routing, logits_dtype, f"{name}.weight", correction_bias="e_score_correction_bias")


def _hunyuan(router: Any, name: str, _dtype: torch.dtype) -> Router:
    dtype = _narrow(router.wg.weight.dtype)
    routing = Routing(router.top_k, "softmax", renormalize=True, ids_dtype=_IDS, weights_dtype=dtype)
    return Router(routing, dtype, f"{name}.wg.weight")


def _llama4(router: Any, name: str, dtype: torch.dtype) -> Router:
    dtype = _narrow(dtype)
    routing = Routing(router.top_k, "sigmoid", ids_dtype=_IDS, weights_dtype=dtype)
    return Router(routing, dtype, f"{name}.weight", outputs=_scores_and_logits)


def _narrow(dtype: torch.dtype) -> torch.dtype:
    """What logits and weights may be rounded to."""
    if dtype not in (torch.float32, torch.bfloat16):
        raise Unserved(f"its router rounds logits or weights to {dtype}, expected torch.bfloat16 or torch.float32")
    return dtype


_ROUTERS: dict[str, Callable[[Any, str, torch.dtype], Router]] = {
    "ef5948a5bba5515a": _grouped_sigmoid,  # deepseek_v3, glm4_moe, dots1, exaone_moe, mimo_v2_flash, solar_open
    "a4b9d370f7d2d383": _softmax,  # qwen3_moe, qwen2_moe, qwen3_next, olmoe
    "4ab65445b6788bfb": _softmax,  # qwen3_5_moe, qwen3_vl_moe
    "9389dc7f9f3d4b1b": _deepseek_v2,
    "581ed0fdabe786da": _mixtral,
    "7fd764116cd8e367": _gpt_oss,
    "949d5932c40f5e58": _granite,  # granitemoe, granitemoeshared
    "7e31f620a7507035": _ernie,
    "a95f4fde4daf0b90": _minimax_m2,
    "fa3eb8ff341efc5b": _hunyuan,
    "21deb72036d3a93d": _llama4,
}

_NORM_ORDERS = {
    "02929a6552374ab7": "A",  # deepseek_v3, qwen3_moe and most others
    "084a505e78008f98": "A",  # llama4
    "85ec84eed162a8c8": "B",  # gpt_oss
    "5ffa086bf33e6b1e": "G",  # qwen3_next, qwen3_5_moe
}


def find_router(block: nn.Module) -> str | None:
    """The name of the block's router, if it has one that is known."""
    return next((name for name, child in block.named_children() if digest(type(child).forward) in _ROUTERS), None)


def read_router(block: nn.Module, name: str, dtype: torch.dtype) -> Router:
    """What the block's router of this name computes where activations are of `dtype`; Unserved, ValueError."""
    router = block.get_submodule(name)
    key = digest(type(router).forward)
    assert key is not None  # find_router found it
    return _ROUTERS[key](router, name, dtype)


def norm_of(module: nn.Module) -> tuple[str, float] | None:
    """Norm order and eps of an RMSNorm that is known."""
    cls: Any = type(module)
    functions = [cls.forward, *([cls._norm] if hasattr(cls, "_norm") else [])]
    order = _NORM_ORDERS.get(digest(*functions) or "")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return None if order is None or eps is None else (order, float(eps))


def tensor_at(block: nn.Module, path: str) -> Tensor:
    """The block's tensor with this name, as it is now."""
    found: Any = block
    for name in path.split("."):
        found = getattr(found, name)
    tensor: Tensor = found
    return tensor
