"""What is timed: our op, our functions by name, the marks, and the ways people go without us."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ToolError
from ..spec import RouterSpec
from . import tables
from .agreement import tolerance
from .chain import Candidate, Launch, Outputs, Weights
from .inputs import dtype
from .native import BenchLibrary, Library, PathArgs, launch_args
from .probe import geometries

# torch leaves what this file calls of it without annotations.
_torch: Any = torch

SEED_TOKENS = 16
SEED_THREADS = 128
"""The seed's design: one expert a CTA of 128 threads that load 8 elements each time, at most 16 tokens."""


@dataclass(frozen=True)
class BenchFunctions:
    """What a benchmark package holds: names of functions by token count.

    seed: the seed's design; row_norm: whether it can norm rows alone, which needs a spec with a norm;
    gate_gemv: gate alone, reading normed_x as written.
    apart: the whole path with its other stages in launches around the gate's; after_norm: what follows a norm kernel in
    launches of its own, gate and selection, several ways.
    """

    seed: Mapping[int, str] = field(default_factory=dict)
    row_norm: bool = False
    gate_gemv: Mapping[int, str] = field(default_factory=dict)
    apart: Mapping[int, str] = field(default_factory=dict)
    after_norm: Mapping[int, Sequence[str]] = field(default_factory=dict)


def seed_allows(spec: RouterSpec) -> bool:
    """Whether the seed's design has a kernel for the shape and dtypes of `spec`."""
    whole = spec.hidden_size % (8 * SEED_THREADS) == 0
    return whole and spec.norm is not None and spec.gate_weight_dtype == spec.activation_dtype


def ours(spec: RouterSpec, library: Library, kernel: str, sm: int, num_tokens: int) -> Candidate:
    """`torch.ops.normgate`, dispatching by itself; the package must have been imported."""
    ops = torch.ops.normgate
    logits = dtype(spec.logits_dtype)

    def launch(weights: Weights, x: Tensor, outputs: Outputs, stream: int) -> Outputs:
        if spec.norm is None:
            return Outputs(None, ops.gate(x, weights.gate_weight, weights.gate_bias, logits))
        normed = (spec.norm.eps, spec.norm.order, spec.logits_from)
        return Outputs(*ops.norm_gate(x, weights.norm_weight, weights.gate_weight, weights.gate_bias, *normed, logits))

    served_by = library.select(kernel, sm, num_tokens) or "reference"
    return Candidate("ours", launch, served_by, tolerance=tolerance(spec, spec.logits_from))


def forced(
    spec: RouterSpec,
    library: Library,
    function: str,
    num_tokens: int,
    *,
    name: str = "",
    logits_from: str = "",
    path: PathArgs | None = None,
) -> Candidate:
    """A function of `library` by its name, through the C interface; `name` is by default the function's.

    path: of a whole path's function, what it takes and gives beside the gate's.
    """
    workspace = library.workspace(function, num_tokens)
    eps = spec.norm.eps if spec.norm else 0.0

    def launch(weights: Weights, x: Tensor, outputs: Outputs, stream: int) -> Outputs:
        args = launch_args(
            router_logits=outputs.router_logits,
            normed_x=outputs.normed_x,
            x=x,
            norm_weight=weights.norm_weight,
            gate_weight=weights.gate_weight,
            gate_bias=weights.gate_bias,
            workspace=workspace,
            eps=eps,
            stream=stream,
            path=path,
        )
        library.launch(function, args)
        return outputs

    allowed = tolerance(spec, logits_from or spec.logits_from)
    return Candidate(name or function, launch, function, tolerance=allowed)


def seed(spec: RouterSpec, library: Library, functions: BenchFunctions, num_tokens: int) -> Candidate | None:
    """The seed's design; None where its shape rules or its token counts leave it out."""
    function = functions.seed.get(num_tokens)
    if function is None or not seed_allows(spec):
        return None
    return forced(spec, library, function, num_tokens, name="seed", logits_from="unrounded")


def norm_then_gemv(
    spec: RouterSpec, library: BenchLibrary, functions: BenchFunctions, num_tokens: int
) -> Candidate | None:
    """A norm kernel and a gate GEMV, two launches; None where there is no norm or no such GEMV."""
    gemv = functions.gate_gemv.get(num_tokens)
    if gemv is None or not functions.row_norm:
        return None
    launch = norm_then(spec, library, gemv, num_tokens)
    return Candidate("norm_then_gemv", launch, f"row_norm + {gemv}", tolerance=tolerance(spec, "rounded"))


def norm_then(
    spec: RouterSpec, library: BenchLibrary, function: str, num_tokens: int, path: PathArgs | None = None
) -> Launch:
    """Two launches: a norm, with the residual add that `path` may have, and `function` over normed_x as written."""
    norm, path = spec.norm, path or PathArgs()
    assert norm is not None
    workspace = library.workspace(function, num_tokens)
    normed = library.row_norm if path.residual is None else library.add_row_norm
    after = replace(path, residual=None, residual_out=None, residual_multiplier=1.0, stream_multiplier=1.0)

    def launch(weights: Weights, x: Tensor, outputs: Outputs, stream: int) -> Outputs:
        first = launch_args(
            router_logits=None,
            normed_x=outputs.normed_x,
            x=x,
            norm_weight=weights.norm_weight,
            gate_weight=None,
            gate_bias=None,
            eps=norm.eps,
            stream=stream,
            path=path,
        )
        normed(first)
        assert outputs.normed_x is not None
        second = launch_args(
            router_logits=outputs.router_logits,
            normed_x=None,
            x=outputs.normed_x,
            norm_weight=None,
            gate_weight=weights.gate_weight,
            gate_bias=weights.gate_bias,
            workspace=workspace,
            eps=0.0,
            stream=stream,
            path=after,
        )
        library.launch(function, second)
        return outputs

    return launch


def probes(spec: RouterSpec, library: BenchLibrary) -> list[Candidate]:
    """The streaming probe, one candidate a geometry; `fastest` makes them one."""

    def at(index: int) -> Launch:
        def launch(weights: Weights, x: Tensor, outputs: Outputs, stream: int) -> Outputs:
            args = launch_args(
                router_logits=outputs.router_logits,
                normed_x=outputs.normed_x,
                x=x,
                norm_weight=None,
                gate_weight=weights.gate_weight,
                gate_bias=None,
                eps=0.0,
                stream=stream,
            )
            library.probe(index, args)
            return outputs

        return launch

    weight_bytes = dtype(spec.gate_weight_dtype).itemsize
    shapes = geometries(spec.hidden_size, spec.num_experts, weight_bytes)
    return [
        Candidate(f"probe_{shape.name}", at(index), shape.name, checks="copy", best_of="probe")
        for index, shape in enumerate(shapes)
    ]


def empty(library: BenchLibrary) -> Candidate:
    """A kernel that does nothing: what one more launch costs in the chain."""

    def launch(weights: Weights, x: Tensor, outputs: Outputs, stream: int) -> Outputs:
        library.empty(stream)
        return outputs

    return Candidate("empty", launch, checks="nothing")


def torch_eager(spec: RouterSpec) -> Candidate:
    """F.rms_norm and a matrix product, as models are written."""
    return _torch_candidate("torch_eager", spec, composition(spec), "rounded")


def torch_compiled(spec: RouterSpec) -> Candidate:
    """The same under torch.compile."""
    return _torch_candidate("torch_compiled", spec, compiled(composition(spec)), "rounded")


def torch_compiled_unrounded(spec: RouterSpec) -> Candidate:
    """Our contract under torch.compile: the norm stays in fp32 into an fp32 matrix product."""
    return _torch_candidate("torch_compiled_unrounded", spec, compiled(_unrounded(spec)), "unrounded")


_F = TypeVar("_F", bound=Callable[..., Any])
_Function = Callable[[Tensor, Tensor | None, Tensor, Tensor | None], tuple[Tensor | None, Tensor]]


def _torch_candidate(name: str, spec: RouterSpec, function: _Function, logits_from: str) -> Candidate:
    def launch(weights: Weights, x: Tensor, outputs: Outputs, stream: int) -> Outputs:
        with torch.no_grad():
            return Outputs(*function(x, weights.norm_weight, weights.gate_weight, weights.gate_bias))

    # A gate alone reads x as it is: nothing is rounded on the way, but the product may be a bf16 one.
    return Candidate(name, launch, tolerance=tolerance(spec, logits_from), ours=False)


def compiled(function: _F) -> _F:
    """Under torch.compile, once for each shape."""
    # One code object serves all models and token counts: by default dynamo gives up after a few.
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(_torch._dynamo.config, limit, 4096)
    return cast(_F, torch.compile(function, fullgraph=True, dynamic=False))


def composition(spec: RouterSpec) -> _Function:
    """Norm and gate of x, norm weight, gate weight and bias, as models are written: normed_x and logits."""
    gate_dtype, logits_dtype = dtype(spec.gate_weight_dtype), dtype(spec.logits_dtype)
    norm = spec.norm

    def run(
        x: Tensor, norm_weight: Tensor | None, gate_weight: Tensor, gate_bias: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        normed = None if norm is None else _rms_norm(x, norm_weight, norm.order, norm.eps)
        row = x if normed is None else normed
        if row.dtype != gate_dtype:  # an fp32 gate, as models that keep one run it
            logits = F.linear(row.float(), gate_weight.float(), None if gate_bias is None else gate_bias.float())
        elif logits_dtype == gate_dtype:
            logits = F.linear(row, gate_weight, gate_bias)
        else:
            logits = _torch.mm(row, gate_weight.t(), out_dtype=torch.float32)
            if gate_bias is not None:
                logits = logits + gate_bias
        return normed, logits.to(logits_dtype)

    return run


def _rms_norm(x: Tensor, weight: Tensor | None, order: str, eps: float) -> Tensor:
    assert weight is not None
    width = (x.shape[-1],)
    if order == "A":
        return F.rms_norm(x, width, None, eps) * weight
    if order == "B":
        return F.rms_norm(x, width, weight, eps)
    return (F.rms_norm(x.float(), width, None, eps) * (1.0 + weight.float())).to(x.dtype)


def _unrounded(spec: RouterSpec) -> _Function:
    logits_dtype = dtype(spec.logits_dtype)
    norm = spec.norm

    def run(
        x: Tensor, norm_weight: Tensor | None, gate_weight: Tensor, gate_bias: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        row, normed = x.float(), None
        if norm is not None:
            assert norm_weight is not None
            weight = norm_weight.float() + (1.0 if norm.order == "G" else 0.0)
            xhat = row * torch.rsqrt(row.square().mean(-1, keepdim=True) + norm.eps)
            row = weight * xhat
            normed = xhat.to(x.dtype) * norm_weight if norm.order == "A" else row.to(x.dtype)
        logits = F.linear(row, gate_weight.float(), None if gate_bias is None else gate_bias.float())
        return normed, logits.to(logits_dtype)

    return run


TORCH = {
    "torch_eager": torch_eager,
    "torch_compiled": torch_compiled,
    "torch_compiled_unrounded": torch_compiled_unrounded,
}
"""The peers that need nothing but torch, by name."""

UNROUNDED = "torch_compiled_unrounded"
COMPILED = ("torch_compiled", UNROUNDED)
"""Those of them that compile for seconds at each shape and token count."""

NAMES = tuple(tables.LABELS)
"""Every candidate that can be asked for, in the order of tables and plots."""

PATH_NAMES = tuple(tables.PATH_LABELS)
"""The same for whole paths; their makers are in paths.py."""

PATH_COMPILED = ("torch_compiled",)


def chosen(names: tuple[str, ...], among: tuple[str, ...] = NAMES) -> tuple[str, ...]:
    """Those of `names` that are `among`, in its order; ToolError for one that does not exist at all."""
    known = tuple(dict.fromkeys((*NAMES, *PATH_NAMES)))
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ToolError(f"no such candidate: {', '.join(unknown)}; there are {', '.join(known)}: --candidates NAME,...")
    return tuple(name for name in among if name in names)
