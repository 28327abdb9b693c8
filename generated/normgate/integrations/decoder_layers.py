"""Decoder layers of an engine's model, their norm, gate and residual add made one launch: what the plugins share.

A layer calls ``norm(x, residual)``, then its MoE block, which calls its gate. Fused, the norm's call computes the
router logits too and hands them over; the gate's call, where what reaches it is what the norm gave, returns them.
Where it is not (tokens gathered, split among ranks, or interleaved with another batch), the gate computes as ever.

Only methods of the layer's own modules are replaced: weights, their names and their loading stay as they are.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import dispatch, ops
from ..fallback import RouterPath
from ..table_types import dtype_name


class Family(NamedTuple):
    """Decoder layers of a class and, by attribute, their modules: ``layer.norm``, ``layer.block``, ``block.gate``.

    ``source`` is the engine's file that says so, ``block_class`` the class of blocks that are MoE's.
    """

    layer_class: str
    block_class: str
    norm: str
    block: str
    gate: str
    source: str


class Contract(NamedTuple):
    """What an engine's modules compute.

    norm_order     of a norm; LeftAlone for a norm that is not to be fused
    gate_output    of a gate and the dtype of what it reads: the dtype of its logits, and whether it returns them in
                   a pair with a bias
    """

    norm_order: Callable[[Any], str]
    gate_output: Callable[[Any, torch.dtype], tuple[torch.dtype, bool]]


class Layer(NamedTuple):
    """What became of a decoder layer; ``why`` is the kernel that serves it, or the reason that it was left alone."""

    name: str
    fused: bool
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {'fused' if self.fused else 'left alone'}, {self.why}"


class LeftAlone(Exception):
    """Why a layer is not fused."""


def fuse(model: torch.nn.Module, families: Iterable[Family], contract: Contract) -> tuple[Layer, ...]:
    """Fuse the layers of ``model`` that are known and have a kernel; its MoE layers, and what became of each.

    Call it when weights are loaded and before anything is traced or captured. Layers that are fused stay so.
    """
    known = {family.layer_class: family for family in families}
    handover = _Handover()
    layers = []
    for name, module in model.named_modules():
        family = known.get(type(module).__name__)
        if family is None:
            if any(hasattr(child, "experts") for child in module.children()) and not hasattr(module, "experts"):
                layers.append(Layer(name, False, f"{type(module).__name__} is not among the known decoder layers"))
            continue
        block = getattr(module, family.block, None)
        if type(block).__name__ != family.block_class:
            continue  # a dense layer
        try:
            kernel = _fuse_layer(getattr(module, family.norm), block, getattr(block, family.gate), handover, contract)
        except LeftAlone as reason:
            layers.append(Layer(name, False, str(reason)))
        else:
            layers.append(Layer(name, True, kernel))
    return tuple(layers)


def say(layers: Iterable[Layer], logger: logging.Logger) -> None:
    """One line for all layers that were fused, and one for each reason that others were not."""
    said: dict[tuple[bool, str], list[str]] = {}
    for layer in layers:
        said.setdefault((layer.fused, layer.why), []).append(layer.name)
    for (fused, why), names in said.items():
        which = names[0] if len(names) == 1 else f"{len(names)} layers, {names[0]} to {names[-1]}"
        logger.info("normgate: %s %s: %s", "fused" if fused else "left alone", which, why)


def _fuse_layer(norm: Any, block: Any, gate: Any, handover: "_Handover", contract: Contract) -> str:
    if isinstance(getattr(norm.forward, "__self__", None), _FusedLayer):
        return str(norm.forward.__self__.kernel)
    norm_order = contract.norm_order(norm)
    weight = _plain_weight(gate)
    activation = norm.weight.dtype
    logits_dtype, in_pair = contract.gate_output(gate, activation)
    bias = getattr(gate, "bias", None)
    if bias is not None and (bias.dtype != weight.dtype or getattr(gate, "skip_bias_add", False)):
        raise LeftAlone("its gate's bias is of another dtype than the weight, or is left to the caller to add")
    if getattr(block, "is_sequence_parallel", False):
        raise LeftAlone("its tokens are split among ranks between the norm and the gate (sequence parallel)")
    num_experts, hidden_size = weight.shape
    dtypes = (dtype_name(activation), dtype_name(weight.dtype), dtype_name(logits_dtype))
    path = RouterPath(hidden_size, num_experts, *dtypes, norm_order, bias is not None, "unrounded", "add")
    kernel, logits_from = _serving(path, weight.device)
    fused = _FusedLayer(norm, block, gate, handover, kernel, norm_order, logits_from, logits_dtype, in_pair)
    experts = getattr(block, "experts", None)
    if getattr(experts, "gate", None) is gate:
        if getattr(experts, "_fse_fuse_gate", False):
            raise LeftAlone("its gate is one GEMM with the shared expert's")
        if not hasattr(experts, "_forward_impl") or num_experts == hidden_size:
            raise LeftAlone("its experts call the gate in a way that is not known")
        fused.replace_experts(experts)
    fused.replace()
    return kernel


def _plain_weight(gate: Any) -> Tensor:
    method = type(getattr(gate, "quant_method", None)).__name__
    weight = getattr(gate, "weight", None)
    if method not in ("NoneType", "UnquantizedLinearMethod", "_GateLinearMethod") or not isinstance(weight, Tensor):
        raise LeftAlone(f"its gate is quantized ({method})")
    if weight.dtype not in ops.GATE_WEIGHT_DTYPES or weight.dim() != 2 or not weight.is_contiguous():
        raise LeftAlone(f"its gate's weight is {weight.dtype} {tuple(weight.shape)}, strides {weight.stride()}")
    return weight


def _serving(path: RouterPath, device: torch.device) -> tuple[str, str]:
    """The kernel for it on the device, and what its logits come from: the unrounded norm, or else the rounded."""
    if device.type != "cuda" or torch.version.hip:
        raise LeftAlone("its weights are not on a CUDA device")
    if ops.LIBRARY is None:
        raise LeftAlone("libnormgate.so is not beside the package; `python build.py` compiles it")
    for logits_from in ("unrounded", "rounded"):
        table = dispatch.find_kernel(*path._replace(logits_from=logits_from))
        if table is not None:
            sm = dispatch.current_sm(device)
            if dispatch.select_target(table, sm) is None:
                raise LeftAlone(dispatch.why_unserved(table, sm))
            return table.kernel, logits_from
    raise LeftAlone(
        f"no kernel was generated for residual add, norm order {path.norm_order} and gate of hidden_size "
        f"{path.hidden_size}, num_experts {path.num_experts}, activation {path.activation_dtype}, gate_weight "
        f"{path.gate_weight_dtype}, logits {path.logits_dtype}, gate_bias {str(path.gate_bias).lower()}; write a spec "
        "with these, `residual: {multiplier: 1.0}` and no routing.scoring, and run `python build.py`"
    )


class _Handover:
    """The last fused norm's outputs: one place for all layers, so that no more than one layer's are held."""

    def __init__(self) -> None:
        self.layer: _FusedLayer | None = None
        self.normed_x: Tensor | None = None
        self.router_logits: Tensor | None = None
        self.block_runs = False

    def put(self, layer: "_FusedLayer", normed_x: Tensor | None, router_logits: Tensor | None) -> None:
        self.layer, self.normed_x, self.router_logits, self.block_runs = layer, normed_x, router_logits, False

    def clear(self) -> None:
        self.layer = self.normed_x = self.router_logits = None
        self.block_runs = False

    def enter(self, layer: "_FusedLayer", x: object) -> None:
        """The block is called: the logits hold in it if what it got is what the norm gave, the tensor itself."""
        if self.layer is layer and x is self.normed_x:
            self.block_runs = True
        else:
            self.clear()

    def logits(self, layer: "_FusedLayer", x: Tensor) -> Tensor | None:
        """Of the tokens of ``x``, which is what the block got, or a view of it."""
        if self.block_runs and self.layer is layer and self.normed_x is not None and x.shape == self.normed_x.shape:
            return self.router_logits
        return None


class _FusedLayer:
    """The calls that replace those of a layer's modules, and the calls that they replace."""

    def __init__(
        self,
        norm: Any,
        block: Any,
        gate: Any,
        handover: _Handover,
        kernel: str,
        norm_order: str,
        logits_from: str,
        logits_dtype: torch.dtype,
        in_pair: bool,
    ) -> None:
        self.norm, self.block, self.gate, self.handover = norm, block, gate, handover
        self.kernel, self.norm_order, self.logits_from = kernel, norm_order, logits_from
        self.logits_dtype, self.in_pair = logits_dtype, in_pair
        self.num_experts = gate.weight.shape[0]
        self.own_norm, self.own_block, self.own_gate = norm.forward, block.forward, gate.forward
        self.given: Tensor | None = None

    def replace(self) -> None:
        self.norm.forward = self.norm_forward
        self.block.forward = self.block_forward
        self.gate.forward = self.gate_forward

    def replace_experts(self, experts: Any) -> None:
        """Where the experts call the gate themselves, inside an operator that is opaque to torch.compile: the logits
        go in as its argument ``router_logits``, which is the hidden states where there are none.
        """
        self.own_experts, self.own_experts_impl = experts.forward, experts._forward_impl
        experts.forward = self.experts_forward
        experts._forward_impl = self.experts_impl

    def norm_forward(self, x: Tensor, residual: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        more = [value for value in (*args, *kwargs.values()) if value is not None]
        if residual is None or more or x.dim() != 2 or x.dtype != self.norm.weight.dtype or x.dtype != residual.dtype:
            self.handover.clear()
            return self.own_norm(x, residual, *args, **kwargs)
        routed = ops.route(
            x,
            self.gate.weight,
            routing=None,
            norm_weight=self.norm.weight,
            eps=self.norm.variance_epsilon,
            norm_order=self.norm_order,
            residual=residual,
            gate_bias=getattr(self.gate, "bias", None),
            logits_from=self.logits_from,
            logits_dtype=self.logits_dtype,
        )
        self.handover.put(self, routed.normed_x, routed.router_logits)
        return routed.normed_x, routed.residual_out

    def block_forward(self, *args: Any, **kwargs: Any) -> Any:
        self.handover.enter(self, args[0] if args else None)
        output = self.own_block(*args, **kwargs)
        self.handover.clear()
        return output

    def gate_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        logits = self.handover.logits(self, x) if self.given is None else self.given
        if logits is None:
            return self.own_gate(x, *args, **kwargs)
        return (logits, None) if self.in_pair else logits

    def experts_forward(self, hidden_states: Tensor, router_logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        logits = self.handover.logits(self, hidden_states)
        return self.own_experts(hidden_states, router_logits if logits is None else logits, *args, **kwargs)

    def experts_impl(self, hidden_states: Tensor, router_logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        if router_logits.shape[-1] == self.num_experts:
            self.given = router_logits
        try:
            return self.own_experts_impl(hidden_states, router_logits, *args, **kwargs)
        finally:
            self.given = None
