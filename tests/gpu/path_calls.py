"""Launches of whole paths by name, through the C interface."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from packages import Package
from path_oracle import Numbers, Outputs, PathInputs
from test_numerics import GUARD_ROWS, NO_BYTE, group_of, guarded_workspace, library

from codegen.bench.native import PathArgs, launch_args
from codegen.families import MOST_TOKENS_FUSED, Apart, parse_served

NO_EXPERT = -1


def functions_of(package: Package, kernel: Any, sm: int) -> list[tuple[str, int | None]]:
    """Functions that the library has for this chip, those for other chips' sake too, with the most tokens of each."""
    group = group_of(package, kernel, sm)
    if group is None:
        return []
    variants = [*group.variants_on(sm), *group.portable_variants]
    functions = {variant.function: variant.name for variant in variants if variant.function}
    return [(function, _most_tokens(name)) for function, name in functions.items()]


def fused_functions_of(package: Package, kernel: Any, sm: int) -> list[tuple[str, int]]:
    """Those that do the whole path in their own launch."""
    return [(f, most) for f, most in functions_of(package, kernel, sm) if most is not None and not is_apart(kernel, f)]


def is_apart(kernel: Any, function: str) -> bool:
    return function.startswith(f"{kernel.kernel}_{Apart.family}_")


def _most_tokens(name: str) -> int | None:
    variant = parse_served(name)
    if isinstance(variant, Apart):
        return variant.max_tokens
    return min(variant.max_tokens or MOST_TOKENS_FUSED, MOST_TOKENS_FUSED)


def forms_of(kernel: Any) -> tuple[bool, ...]:
    """Whether experts come from the table, as hash layers have them: a kernel may serve both."""
    return (False, True) if kernel.selection and kernel.selection.hashes else (False,)


def numbers_of(package: Package, kernel: Any) -> Numbers:
    """Those of a model that has the path."""
    return Numbers.of(next(model for model in package.models.values() if model.path_kernel == kernel.kernel))


def make_outputs(kernel: Any, *rows: int) -> Outputs:
    """Poisoned, with the rows in front of each shape."""

    def full(width: int, dtype: str, value: float) -> torch.Tensor:
        return torch.full((*rows, width), value, dtype=getattr(torch, dtype), device="cuda")

    nan, selection = float("nan"), kernel.selection
    activations = (kernel.hidden_size, kernel.activation_dtype, nan)
    returns_logits = selection is None or selection.returns_logits
    return Outputs(
        normed_x=full(*activations) if kernel.norm_order else None,
        residual_out=full(*activations) if kernel.residual else None,
        topk_weights=full(selection.top_k, selection.weights_dtype, nan) if selection else None,
        topk_ids=full(selection.top_k, selection.ids_dtype, NO_EXPERT) if selection else None,
        router_logits=full(kernel.num_experts, kernel.logits_dtype, nan) if returns_logits else None,
    )


def is_poison(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.isnan() if tensor.is_floating_point() else tensor == NO_EXPERT


class Call:
    """A launch that can be queued any number of times. It keeps what the launch reads and writes."""

    def __init__(self, package: Package, function: str, inputs: PathInputs, numbers: Numbers, outputs: Outputs) -> None:
        self.function, self.inputs, self.outputs = function, inputs, outputs
        self._library = library(package)
        size = self._library.workspace_bytes(function, len(inputs.x))
        self._workspace, self._workspace_guard = guarded_workspace(size)
        self._args = launch_args(
            router_logits=outputs.router_logits,
            normed_x=outputs.normed_x,
            x=inputs.x,
            norm_weight=inputs.norm_weight,
            gate_weight=inputs.gate_weight,
            gate_bias=inputs.gate_bias,
            eps=numbers.eps,
            stream=0,
            workspace=self._workspace,
            path=PathArgs(
                residual=inputs.residual,
                residual_out=outputs.residual_out,
                residual_multiplier=numbers.residual_multiplier,
                stream_multiplier=numbers.stream_multiplier,
                topk_weights=outputs.topk_weights,
                topk_ids=outputs.topk_ids,
                e_score_correction_bias=inputs.correction_bias,
                e_score_correction_bias_vl=inputs.correction_bias_vl,
                image_mask=inputs.image_mask,
                per_expert_scale=inputs.per_expert_scale,
                tid2eid=inputs.tid2eid,
                input_ids=inputs.input_ids,
                softcap=numbers.softcap,
                renormalize_epsilon=numbers.renormalize_epsilon,
                renormalize_floor=numbers.renormalize_floor,
                routed_scaling_factor=numbers.routed_scaling_factor,
            ),
        )

    def queue(self, stream: torch.cuda.Stream | None = None) -> None:
        """On a stream, by default the current one."""
        self._args.stream = (stream or torch.cuda.current_stream()).cuda_stream
        self._library.launch(self.function, self._args)

    def check_workspace(self) -> None:
        if self._workspace_guard is not None:
            assert (self._workspace_guard == NO_BYTE).all(), f"{self.function} wrote beyond its workspace"


def run(package: Package, kernel: Any, function: str, inputs: PathInputs, numbers: Numbers) -> Outputs:
    """Outputs of one launch, poisoned before, their guard rows checked."""
    tokens = len(inputs.x)
    own = slice(GUARD_ROWS, GUARD_ROWS + tokens)
    fenced = make_outputs(kernel, tokens + 2 * GUARD_ROWS)
    call = Call(package, function, inputs, numbers, fenced.rows(own))
    call.queue()
    torch.cuda.synchronize()
    call.check_workspace()
    for name, tensor in fenced.given.items():
        outside = torch.cat([tensor[: own.start], tensor[own.stop :]])
        assert is_poison(outside).all(), f"{function} wrote {name} outside of {tokens} tokens"
    return fenced.rows(own)


def strided(rows: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """The same rows within wider ones."""
    width = rows.shape[1]
    wide = torch.full((len(rows), before + width + after), float("nan"), device=rows.device, dtype=rows.dtype)
    wide[:, before : before + width] = rows
    return wide[:, before : before + width]


def strided_inputs(inputs: PathInputs) -> PathInputs:
    """x and residual, each with a row stride of its own."""
    residual = inputs.residual if inputs.residual is None else strided(inputs.residual, 16, 40)
    return replace(inputs, x=strided(inputs.x, 8, 16), residual=residual)


def same(one: Outputs, other: Outputs) -> list[str]:
    """Names of outputs that differ."""
    return [name for name, tensor in one.given.items() if not torch.equal(tensor, getattr(other, name))]
