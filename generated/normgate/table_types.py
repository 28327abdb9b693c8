"""The types of the generated tables: which variant of which kernel serves which token counts on which SMs."""

from typing import NamedTuple

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """As tables have dtypes: ``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


class VariantRange(NamedTuple):
    """One kernel variant and the token counts it serves, both ends included; ``None`` is no upper end."""

    name: str
    function: str
    first_token: int
    last_token: int | None
    why: str
    rejected: tuple[tuple[str, str], ...]


class GroupTable(NamedTuple):
    """SM targets (90 is sm_90) and their variants, whose ranges are ordered, gap-free and end open.

    ``portable_variants`` serve later chips, which run PTX of the newest target, where ``variants`` holds what only
    the targets themselves can run; else it is empty.
    """

    sm_targets: tuple[int, ...]
    variants: tuple[VariantRange, ...]
    portable_variants: tuple[VariantRange, ...] = ()

    def variants_on(self, sm: int) -> tuple[VariantRange, ...]:
        """What serves a device of ``sm``."""
        return self.variants if sm in self.sm_targets else self.portable_variants or self.variants


class SelectionTable(NamedTuple):
    """How a kernel chooses experts; ``renormalize`` is "", "sum", or "bounded" by an epsilon or a floor.

    Without groups ``n_group`` is 1 and ``group_score`` "". ``hashes``: layers may take their experts from tid2eid.
    ``image_bias``: tokens of images have a correction bias of their own. ``scales_experts``: weights are multiplied by
    their expert's factor.
    """

    scoring: str
    top_k: int
    correction_bias: bool
    n_group: int
    topk_group: int
    group_score: str
    renormalize: str
    softcaps: bool
    hashes: bool
    returns_logits: bool
    ids_dtype: str
    weights_dtype: str
    image_bias: bool = False
    scales_experts: bool = False


class KernelTable(NamedTuple):
    """What one kernel computes, and its groups. ``norm_order`` is ``None`` for the gate alone.

    ``residual`` is "", "add", "scaled_add" where x is multiplied before it is added to the residual stream, or
    "scaled_sum" where that is multiplied too.
    """

    kernel: str
    hidden_size: int
    num_experts: int
    activation_dtype: str
    gate_weight_dtype: str
    logits_dtype: str
    norm_order: str | None
    gate_bias: bool
    logits_from: str
    groups: tuple[GroupTable, ...]
    batch_invariant: bool = False  # a row's bits do not depend on the other rows of a call
    residual: str = ""
    selection: SelectionTable | None = None


class RoutingTable(NamedTuple):
    """A model's :class:`Routing`, dtypes by name, and whether the logits are returned too."""

    top_k: int
    scoring: str
    n_group: int
    topk_group: int
    group_score: str
    renormalize: bool
    renormalize_epsilon: float
    renormalize_floor: float
    routed_scaling_factor: float
    softcap: float
    ids_dtype: str
    weights_dtype: str
    returns_logits: bool


class ModelTable(NamedTuple):
    """A model: the kernel of its norm and gate, what :class:`NormGateLinear` owns beside it, and the kernel of the
    whole path where that has a residual add or a selection too.
    """

    model: str
    kernel: str
    eps: float | None
    top_k: int
    e_score_correction_bias: bool
    tid2eid_vocab_size: int | None
    path_kernel: str | None = None
    residual_multiplier: float | None = None  # None: the path has no residual add
    routing: RoutingTable | None = None
    stream_multiplier: float = 1.0
    e_score_correction_bias_vl: bool = False
    per_expert_scale: bool = False
