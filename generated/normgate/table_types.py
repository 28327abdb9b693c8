"""The types of the generated tables: which variant of which kernel serves which token counts on which SMs."""

from typing import NamedTuple


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


class KernelTable(NamedTuple):
    """What one kernel computes, and its groups. ``norm_order`` is ``None`` for the gate alone."""

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


class ModelTable(NamedTuple):
    """A model: the kernel of its router path, and what :class:`NormGateLinear` owns beside it."""

    model: str
    kernel: str
    eps: float | None
    top_k: int
    e_score_correction_bias: bool
    tid2eid_vocab_size: int | None
