"""How a row's experts are chosen from its logits: ``Routing``, and ``Routed``, what the router path gives."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .table_types import SelectionTable, dtype_name

SCORINGS = ("softmax", "softmax_of_chosen", "sigmoid", "sqrtsoftplus")
GROUP_SCORES = ("top2_sum", "max")
IDS_DTYPES = (torch.int32, torch.int64)
WEIGHTS_DTYPES = (torch.float32, torch.bfloat16)
MOST_CHOSEN = 32  # one for each lane of the warp that chooses a row's experts


@dataclass(frozen=True)
class Routing:
    """How a row's experts are chosen and weighted; ValueError for values that do not fit together.

    top_k                 how many are chosen, 1 to 32
    scoring               a logit's score: "softmax" over all experts, "softmax_of_chosen" (chosen by logit,
                          softmax over the chosen ones), "sigmoid", "sqrtsoftplus": sqrt(log(1 + exp(logit)))
    n_group, topk_group   experts stand in ``n_group`` equal groups, in their order, and only those of the
                          ``topk_group`` best are chosen from; 1 and 1 are no groups
    group_score           a group's score: "top2_sum" of its two largest choices, or its largest, "max"
    renormalize           weights are divided by max(sum + ``renormalize_epsilon``, ``renormalize_floor``)
    routed_scaling_factor multiplies the weights after that
    softcap               logits become softcap * tanh(logits / softcap) before all else; 0 leaves them
    ids_dtype             int32 or int64
    weights_dtype         float32 or bfloat16
    """

    top_k: int
    scoring: str
    n_group: int = 1
    topk_group: int = 1
    group_score: str = "top2_sum"
    renormalize: bool = False
    renormalize_epsilon: float = 0.0
    renormalize_floor: float = 0.0
    routed_scaling_factor: float = 1.0
    softcap: float = 0.0
    ids_dtype: torch.dtype = torch.int32
    weights_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        _require(1 <= self.top_k <= MOST_CHOSEN, f"top_k is {self.top_k}", f"1 to {MOST_CHOSEN}")
        _require_one_of("scoring", self.scoring, SCORINGS)
        _require(self.n_group >= 1, f"n_group is {self.n_group}", "1 or more")
        kept = f"topk_group is {self.topk_group}"
        _require(1 <= self.topk_group <= self.n_group, kept, f"1 to n_group, {self.n_group}")
        if self.n_group > 1:
            _require_one_of("group_score", self.group_score, GROUP_SCORES)
        for name in ("renormalize_epsilon", "renormalize_floor", "softcap"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} is {value}", "0 or more")
        scale = self.routed_scaling_factor
        _require(scale > 0, f"routed_scaling_factor is {scale}", "more than 0")
        _require_dtype("ids_dtype", self.ids_dtype, IDS_DTYPES)
        _require_dtype("weights_dtype", self.weights_dtype, WEIGHTS_DTYPES)

    def check_num_experts(self, num_experts: int) -> None:
        """ValueError where this cannot choose among ``num_experts`` experts."""
        _require(num_experts % self.n_group == 0, f"n_group is {self.n_group}", f"a divisor of {num_experts} experts")
        group_size = num_experts // self.n_group
        if self.n_group > 1 and self.group_score == "top2_sum":
            fits = group_size >= 2
            _require(fits, f"n_group is {self.n_group}", f"groups of 2 of the {num_experts} experts or more")
        kept = self.topk_group * group_size
        _require(self.top_k <= kept, f"top_k is {self.top_k}", f"no more than the {kept} experts that it chooses from")


class Routed(NamedTuple):
    """What the router path gives; ``None`` for what was not asked for.

    normed_x       shape and dtype of x; with a norm
    residual_out   shape and dtype of x: the residual stream with x in it; with a residual
    topk_weights   [..., top_k] weights_dtype; with a :class:`Routing`
    topk_ids       [..., top_k] ids_dtype, in descending order of what they were chosen by; likewise
    router_logits  [..., num_experts] logits_dtype; where asked for, and without a :class:`Routing`
    """

    normed_x: Tensor | None
    residual_out: Tensor | None
    topk_weights: Tensor | None
    topk_ids: Tensor | None
    router_logits: Tensor | None


# torch.export.save asks for this where a program gives a named tuple.
_pytree: Any = torch.utils._pytree
_pytree._register_namedtuple(Routed, serialized_type_name=f"{__package__}.Routed")


def selection_key(
    routing: Routing,
    correction_bias: bool,
    hashes: bool,
    returns_logits: bool,
    image_bias: bool = False,
    scales_experts: bool = False,
) -> SelectionTable:
    """What of a call's selection decides which kernel serves it: a kernel takes the scale, the epsilon, the floor
    and the softcap as arguments. ``hashes`` is whether experts come from tid2eid.
    """
    renormalize = ""
    if routing.renormalize:
        bounded = routing.renormalize_epsilon > 0 or routing.renormalize_floor > 0
        renormalize = "bounded" if bounded else "sum"
    return SelectionTable(
        scoring=routing.scoring,
        top_k=routing.top_k,
        correction_bias=correction_bias,
        n_group=routing.n_group,
        topk_group=routing.topk_group,
        group_score=routing.group_score if routing.n_group > 1 else "",
        renormalize=renormalize,
        softcaps=routing.softcap > 0,
        hashes=hashes,
        returns_logits=returns_logits,
        ids_dtype=dtype_name(routing.ids_dtype),
        weights_dtype=dtype_name(routing.weights_dtype),
        image_bias=image_bias,
        scales_experts=scales_experts,
    )


def residual_key(multiplier: float, stream_multiplier: float) -> str:
    """Which residual add a call has, as in :class:`KernelTable`."""
    if stream_multiplier != 1.0:
        return "scaled_sum"
    return "add" if multiplier == 1.0 else "scaled_add"


def _require(holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{found}, expected {expected}")


def _require_one_of(name: str, found: str, expected: tuple[str, ...]) -> None:
    _require(found in expected, f"{name} is {found!r}", " or ".join(map(repr, expected)))


def _require_dtype(name: str, found: torch.dtype, expected: tuple[torch.dtype, ...]) -> None:
    _require(found in expected, f"{name} is {found}", " or ".join(map(str, expected)))
