"""What is right, in float64 and written from the definitions; shares no code with what is tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
EPS = 1e-5
# Summing a row in another order moves its rstd by a few units of fp32's last place; this is 2^-21.
RSTD_SLACK = 4.8e-7


@dataclass(frozen=True)
class Inputs:
    x: Tensor
    norm_weight: Tensor | None
    gate_weight: Tensor
    gate_bias: Tensor | None
    eps: float = EPS


def make_inputs(kernel: Any, num_tokens: int, seed: int) -> Inputs:
    """Fresh random inputs; rows of very different scale, so that a wrong rstd or a mixed-up row shows."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    hidden_size, num_experts = kernel.hidden_size, kernel.num_experts
    activation, gate = DTYPES[kernel.activation_dtype], DTYPES[kernel.gate_weight_dtype]
    scales = torch.exp2(torch.randint(-3, 4, (num_tokens, 1), generator=generator, device="cuda").float())
    weight = normal(hidden_size) * 0.3 + (0.0 if kernel.norm_order == "G" else 1.0)
    return Inputs(
        x=(normal(num_tokens, hidden_size) * scales).to(activation),
        norm_weight=weight.to(activation) if kernel.norm_order else None,
        gate_weight=(normal(num_experts, hidden_size) * hidden_size**-0.5).to(gate),
        gate_bias=normal(num_experts).to(gate) if kernel.gate_bias else None,
    )


def rstd_of(inputs: Inputs) -> Tensor:
    x = inputs.x.double()
    return torch.rsqrt(x.square().mean(dim=1, keepdim=True) + inputs.eps)


def normed(kernel: Any, inputs: Inputs, rstd: Tensor) -> Tensor:
    """normed_x as the model's order rounds it, rstd [num_tokens, 1] given."""
    assert inputs.norm_weight is not None
    dtype, weight = inputs.x.dtype, inputs.norm_weight.double()
    xhat = inputs.x.double() * rstd
    if kernel.norm_order == "A":
        return (weight * xhat.to(dtype).double()).to(dtype)
    return ((1 + weight if kernel.norm_order == "G" else weight) * xhat).to(dtype)


def outside_ties(kernel: Any, inputs: Inputs, got: Tensor) -> tuple[int, float]:
    """How many elements of normed_x no rstd within the slack explains, and the share that differs from the oracle's."""
    rstd = rstd_of(inputs)
    one, other = (normed(kernel, inputs, rstd * (1 + slack)).double() for slack in (-RSTD_SLACK, RSTD_SLACK))
    value = got.double()
    explained = (value >= torch.minimum(one, other)) & (value <= torch.maximum(one, other))
    differs = (value != normed(kernel, inputs, rstd).double()).double().mean().item()
    return int((~explained).sum().item()), differs


def logits(kernel: Any, inputs: Inputs, normed_x: Tensor | None) -> Tensor:
    """In float64. `rounded` reads normed_x as the kernel wrote it; `unrounded` never rounds."""
    if normed_x is None:
        rows = inputs.x.double()
    elif kernel.logits_from == "rounded":
        rows = normed_x.double()
    else:
        assert inputs.norm_weight is not None
        weight = inputs.norm_weight.double() + (1 if kernel.norm_order == "G" else 0)
        rows = inputs.x.double() * rstd_of(inputs) * weight
    out = rows @ inputs.gate_weight.double().T
    return out if inputs.gate_bias is None else out + inputs.gate_bias.double()


def relative_error(got: Tensor, right: Tensor) -> float:
    """|got - right| / |right|; NaN, which passes no limit, where an element is not finite."""
    return ((got.double() - right).norm() / right.norm()).item()
