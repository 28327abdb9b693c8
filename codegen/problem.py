"""What a kernel computes, and nothing about how: the part of a spec that two models can share."""

from __future__ import annotations

from dataclasses import dataclass

from .spec import RouterSpec


@dataclass(frozen=True, order=True)
class Problem:
    """Key of a kernel. eps is left out: it is an argument of the call.

    norm_order is "A", "B", "G", or "" for a gate whose producer has normed its rows.
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

    @classmethod
    def of(cls, spec: RouterSpec) -> Problem:
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
        )

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
        return 4 if self.gate_weight_dtype == "float32" else 2

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
