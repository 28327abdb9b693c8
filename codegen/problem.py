"""What a kernel computes, and nothing about how: the part of a spec that two models can share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .spec import RouterSpec

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4, "int64": 8}
ACTIVATION_BYTES = 2  # of either dtype that activations may have


@dataclass(frozen=True)
class Selection:
    """How experts are chosen from logits. What is a number of the model's (scale, epsilon, softcap) is an argument of
    the call.

    scoring: softmax, softmax_of_chosen, sigmoid or sqrtsoftplus; n_group: 1 without groups, and then group_score is "";
    renormalize: "", "sum" (weights over their sum) or "bounded" (an epsilon or a floor in it); hashes: layers may take
    their experts from tid2eid; returns_logits: router_logits are an output too; image_bias: tokens of images have a
    correction bias of their own; scales_experts: weights are multiplied by their expert's factor.
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

    @classmethod
    def of(cls, spec: RouterSpec) -> Selection | None:
        """None where the engine chooses the experts itself."""
        routing = spec.routing
        if routing.scoring is None:
            return None
        groups, renormalize = routing.groups, ""
        if routing.renormalize:
            renormalize = "bounded" if routing.renormalize.epsilon or routing.renormalize.floor else "sum"
        return cls(
            scoring=routing.scoring,
            top_k=routing.top_k,
            correction_bias=routing.e_score_correction_bias,
            n_group=groups.n_group if groups else 1,
            topk_group=groups.topk_group if groups else 1,
            group_score=groups.score if groups else "",
            renormalize=renormalize,
            softcaps=routing.softcap is not None,
            hashes=routing.tid2eid is not None,
            returns_logits=routing.router_logits,
            ids_dtype=routing.ids_dtype,
            weights_dtype=routing.weights_dtype,
            image_bias=routing.e_score_correction_bias_vl,
            scales_experts=routing.per_expert_scale,
        )

    @property
    def candidates(self) -> int:
        """Experts that a warp ranks at once, 0: none, it looks for one after the other.

        As many as are no smaller than the top_k-th largest of the largest of 32 lanes: -32 ln(1 - top_k / 32) on
        average, whatever the number of experts, 15 for 12 and 44 for 24.
        """
        return 32 if self.top_k <= 12 else 64 if self.top_k <= 24 else 0

    @property
    def scratch_bytes(self) -> int:
        """Shared memory of a warp that selects, as Select::Scratch of templates/kernels/select.cu.j2 lays it out."""
        return 8 * self.candidates + 128 if self.candidates else 1


@dataclass(frozen=True)
class Problem:
    """Key of a kernel. eps is left out: it is an argument of the call.

    norm_order is "A", "B", "G", or "" for a gate whose producer has normed its rows. residual is "" where x is what the
    norm reads, "add" where x is added to the residual stream first, "scaled_add" where it is multiplied before that,
    "scaled_sum" where both are.
    """

    hidden_size: int
    num_experts: int
    activation_dtype: str
    gate_weight_dtype: str
    logits_dtype: str
    norm_order: str
    gate_bias: bool
    logits_from: str
    early_weight_loads: bool
    residual: str = ""
    selection: Selection | None = None

    @classmethod
    def of(cls, spec: RouterSpec) -> Problem:
        """The whole path of a model; `gate_part` is that of its gate, with the norm if it has one."""
        residual = ""
        if spec.residual:
            residual = "add" if spec.residual.multiplier == 1.0 else "scaled_add"
            residual = residual if spec.residual.stream_multiplier == 1.0 else "scaled_sum"
        return cls(
            hidden_size=spec.hidden_size,
            num_experts=spec.num_experts,
            activation_dtype=spec.activation_dtype,
            gate_weight_dtype=spec.gate_weight_dtype,
            logits_dtype=spec.logits_dtype,
            norm_order=spec.norm.order if spec.norm else "",
            gate_bias=spec.gate_bias,
            logits_from=spec.logits_from if spec.norm else "unrounded",
            early_weight_loads=spec.early_weight_loads,
            residual=residual,
            selection=Selection.of(spec),
        )

    @property
    def gate_part(self) -> Problem:
        """The same without what comes before the norm and after the gate."""
        return replace(self, residual="", selection=None)

    @property
    def returns_logits(self) -> bool:
        """Whether the logits are an output: without a selection they always are."""
        return self.selection is None or self.selection.returns_logits

    @property
    def has_norm(self) -> bool:
        return bool(self.norm_order)

    @property
    def folds_norm(self) -> bool:
        """The norm weight multiplies the gate weight, and rows enter the gate as they are."""
        return self.has_norm and self.logits_from == "unrounded"

    @property
    def rounds_rows(self) -> bool:
        """The gate reads the normed row as it is written."""
        return self.has_norm and self.logits_from == "rounded"

    @property
    def gate_weight_bytes(self) -> int:
        """Bytes of one element of the gate weight."""
        return ELEMENT_BYTES[self.gate_weight_dtype]

    @property
    def logit_bytes(self) -> int:
        """Bytes of one logit."""
        return ELEMENT_BYTES[self.logits_dtype]

    @property
    def gate_terms(self) -> int:
        """bf16 terms that hold what multiplies a row's element: 8 significant bits each.

        A bf16 weight is one; its product with a bf16 norm weight has 16 bits, so two hold it exactly. fp16 has 11
        bits, fp32 24, and (1 + w) * g is rounded to fp32 first.
        """
        if self.folds_norm:
            exact = self.norm_order != "G" and self.gate_weight_dtype == self.activation_dtype == "bfloat16"
            return 2 if exact else 3
        return {"bfloat16": 1, "float16": 2, "float32": 3}[self.gate_weight_dtype]

    @property
    def row_terms(self) -> int:
        """bf16 terms that hold an activation exactly."""
        return 1 if self.activation_dtype == "bfloat16" else 2
