"""The router path in models of Hugging Face transformers.

from normgate.integrations import transformers as normgate_transformers

report = normgate_transformers.apply(model)  # a loaded model, on its device
print(report)                                # which layers run fused, which were left as they are and why
normgate_transformers.undo(model)            # as it was

In each decoder layer that it knows, the add of the attention's output to the residual stream, the norm before the MoE
block, and the block's router become one call of :func:`normgate.route`. Modules, parameters and the names in the
state dict stay what they are: only the forward of the layer and of its router are set, on the instance.

What is known is known by its code, never by a name: the layer's forward has to run these stages one after the other,
the block has to give its router the normed rows as they are, and norm and router have to have a text that was read
(`_routers.py`). The rest is left alone. The numbers are the model's own: the gate reads the normed row as it is written
(`logits_from` "rounded"), logits and weights are rounded to the dtypes that the model's router rounds them to. Sums of
floats run in another order, so logits differ by an ulp of their dtype and ids where experts tie within that.

With gradients enabled, in training mode and under autocast, a layer runs its own code. Tested with transformers 5.24.
"""

import types
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import dispatch, fallback, ops
from ..routing import Routed, residual_key, selection_key
from ..table_types import dtype_name
from ._routers import Router, Unserved, find_router, norm_of, read_router, tensor_at
from ._source import STEP, LayerCode, calls_on_rows, layer_code
from ._spec import spec_text


@dataclass(frozen=True)
class Report:
    """What :func:`apply` found, by the names of the model's modules.

    fused  the decoder layers that run fused, whether by this call or by one before
    left   the layers with a MoE block that run as they are, and why
    specs  file name -> the spec of a path that the tables have no kernel for: with it in a file,
           `python build.py --spec FILE` generates and compiles that kernel
    """

    fused: tuple[str, ...]
    left: dict[str, str]
    specs: dict[str, str]

    def __str__(self) -> str:
        lines = [f"normgate runs the router path of {len(self.fused)} of {len(self.fused) + len(self.left)} MoE layers"]
        for reason, count in Counter(self.left.values()).items():
            first = next(name for name, why in self.left.items() if why == reason)
            lines.append(f"  left {first}{f' and {count - 1} more' if count > 1 else ''}: {reason}")
        if self.specs:
            names = ", ".join(self.specs)
            lines.append(f"  no kernel yet for {names}: write Report.specs to files, `python build.py --spec FILE`")
        return "\n".join(lines)


def apply(model: nn.Module) -> Report:
    """Fuse the router path of each decoder layer that is known; layers that are fused already stay so.

    Call it when the model is loaded and on its device: a CUDA layer that no kernel serves is left as it is. On the CPU
    the composition in PyTorch runs. RuntimeWarning where a MoE layer is left, or there is none.
    """
    fused: list[str] = []
    left: dict[str, str] = {}
    specs: dict[str, str] = {}
    for name, layer, attribute in _moe_layers(model):
        try:
            if STEP not in vars(layer):
                step = _step(layer, attribute)
                if step.kernel is None:
                    specs |= _spec(model, step)
                step.require_kernel()
                _install(layer, step)
            fused.append(name)
        except (Unserved, ValueError) as error:
            left[name] = str(error)
    report = Report(tuple(fused), left, specs)
    if left or not fused:
        warnings.warn(str(report), RuntimeWarning, stacklevel=2)
    return report


def undo(model: nn.Module) -> None:
    """Let each layer run as it did before :func:`apply`."""
    for module in model.modules():
        if STEP in vars(module):
            del module.forward, vars(module)[STEP]


@dataclass
class _Step:
    """What a decoder layer runs in place of add, norm and router; `routed` is on its way from one to the other."""

    code: LayerCode
    router_name: str
    router: Router
    norm_order: str
    eps: float
    residual_multiplier: float
    device: torch.device
    path: fallback.RouterPath
    routed: Routed | None = field(default=None, repr=False)

    @property
    def kernel(self) -> str | None:
        table = dispatch.find_kernel(*self.path)
        return None if table is None else table.kernel

    def require_kernel(self) -> None:
        """Unserved where CUDA calls would run the composition, slower than what they are to replace."""
        if self.device.type != "cuda":
            return
        if self.kernel is None:
            raise Unserved("no kernel was generated for its path; Report.specs has the spec for it")
        sm = dispatch.current_sm(self.device)
        served = dispatch.select_target(dispatch.kernel_table(self.kernel), sm)
        if served is None or ops.LIBRARY is None:
            raise Unserved(fallback.message(self.path, sm, ops.LIBRARY is not None, aligned=True))

    def serves(self, layer: nn.Module, x: Tensor) -> bool:
        """Whether this call is one for the fused path."""
        is_inference = not (torch.is_grad_enabled() or layer.training or torch.is_autocast_enabled(x.device.type))
        return is_inference and x.dtype == getattr(layer, self.code.norm).weight.dtype

    def add_norm_route(self, layer: nn.Module, residual: Tensor, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The residual stream with x in it, and its normed rows; the router takes the rest."""
        block, router = getattr(layer, self.code.moe), self.router
        bias = router.correction_bias
        self.routed = ops.route(
            x,
            tensor_at(block, router.weight),
            norm_weight=getattr(layer, self.code.norm).weight,
            eps=self.eps,
            norm_order=self.norm_order,
            residual=residual,
            residual_multiplier=self.residual_multiplier,
            gate_bias=None if router.bias is None else tensor_at(block, router.bias),
            e_score_correction_bias=None if bias is None else tensor_at(block, bias).view(-1),
            routing=router.routing,
            logits_from="rounded",
            logits_dtype=router.logits_dtype,
            returns_logits=True,
        )
        return self.routed.residual_out, self.routed.normed_x

    def take(self, rows: Tensor) -> tuple[Any, ...] | None:
        """What the router returns for these rows, once; None where the last call of the layer was for others."""
        routed, self.routed = self.routed, None
        if routed is None or routed.normed_x is None:
            return None
        # Addresses are not known while a graph is made, where the layer's own code has handed the rows over.
        if not torch.compiler.is_compiling() and rows.data_ptr() != routed.normed_x.data_ptr():
            return None
        flat = Routed(*(None if tensor is None else tensor.reshape(-1, tensor.shape[-1]) for tensor in routed))
        return self.router.outputs(flat)


def _moe_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name and module of each layer with a MoE block, a module that has `experts`, and the block's attribute in it."""
    for name, module in list(model.named_modules()):
        parent, _, attribute = name.rpartition(".")
        if isinstance(getattr(module, "experts", None), nn.Module) and attribute:
            yield parent, model.get_submodule(parent), attribute


def _step(layer: nn.Module, moe: str) -> _Step:
    """Unserved or ValueError where the layer is not one that is known."""
    code = layer_code(type(layer).forward)
    if code is None or code.moe != moe:
        raise Unserved(f"the forward of {type(layer).__name__} does not run add, norm and {moe} one after the other")
    norm, block = getattr(layer, code.norm), getattr(layer, code.moe)
    order_and_eps, router_name = norm_of(norm), find_router(block)
    if order_and_eps is None:
        raise Unserved(f"{type(norm).__name__}, its norm, is not known")
    if router_name is None:
        children = ", ".join(sorted({type(child).__name__ for child in block.children()}))
        raise Unserved(f"none of the modules in {type(block).__name__} ({children}) is a router that is known")
    if router_name not in calls_on_rows(type(block).forward):
        raise Unserved(f"{type(block).__name__} does not give its rows to {router_name} as they are")
    for module in (layer, norm, getattr(block, router_name)):
        if "forward" in vars(module):
            raise Unserved(f"the forward of {type(module).__name__} was replaced on the instance already")
    if norm._forward_hooks or norm._forward_pre_hooks:
        raise Unserved(f"{type(norm).__name__}, its norm, has hooks, which the fused path would not call")
    dtype: torch.dtype = norm.weight.dtype
    if dtype not in ops.ACTIVATION_DTYPES:
        raise Unserved(f"its norm is {dtype}, expected {' or '.join(map(str, ops.ACTIVATION_DTYPES))}")
    router = read_router(block, router_name, dtype)
    weight = _checked_weight(norm, block, router)
    multiplier = 1.0 if code.multiplier is None else float(getattr(layer, code.multiplier))
    router.routing.check_num_experts(weight.shape[0])
    selection = selection_key(router.routing, router.correction_bias is not None, False, True)
    path = fallback.RouterPath(
        hidden_size=weight.shape[1],
        num_experts=weight.shape[0],
        activation_dtype=dtype_name(dtype),
        gate_weight_dtype=dtype_name(weight.dtype),
        logits_dtype=dtype_name(router.logits_dtype),
        norm_order=order_and_eps[0],
        gate_bias=router.bias is not None,
        logits_from="rounded",
        residual=residual_key(multiplier, 1.0),
        selection=selection,
    )
    return _Step(code, router_name, router, *order_and_eps, multiplier, weight.device, path)


def _checked_weight(norm: Any, block: nn.Module, router: Router) -> Tensor:
    """The gate's weight; Unserved where a tensor is none that the operator takes."""
    weight = tensor_at(block, router.weight)
    tensors = {"norm.weight": norm.weight, router.weight: weight}
    for path in (router.bias, router.correction_bias):
        if path is not None:
            tensors[path] = tensor_at(block, path)
    for path, tensor in tensors.items():
        if type(tensor.data) is not Tensor or tensor.is_meta or tensor.device != weight.device:
            kind = f"a {type(tensor.data).__name__} on {tensor.device}"
            raise Unserved(f"{path} is {kind}, expected a plain tensor on {weight.device} as its gate")
    if weight.dtype not in ops.GATE_WEIGHT_DTYPES or not weight.is_contiguous():
        raise Unserved(f"{router.weight} is {weight.dtype} with strides {weight.stride()}, expected contiguous floats")
    if router.bias is not None and tensors[router.bias].dtype != weight.dtype:
        raise Unserved(f"{router.bias} is {tensors[router.bias].dtype}, expected {weight.dtype}, as its weight")
    if router.correction_bias is not None and tensors[router.correction_bias].dtype != torch.float32:
        raise Unserved(f"{router.correction_bias} is {tensors[router.correction_bias].dtype}, expected torch.float32")
    return weight


def _install(layer: Any, step: _Step) -> None:
    router = getattr(getattr(layer, step.code.moe), step.router_name)
    for module, forward in ((layer, _layer_forward), (router, _router_forward)):
        vars(module)[STEP] = step
        module.forward = types.MethodType(forward, module)


def _layer_forward(layer: Any, hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
    step: _Step = getattr(layer, STEP)
    forward = step.code.forward if step.serves(layer, hidden_states) else type(layer).forward
    return forward(layer, hidden_states, *arguments, **named)


def _router_forward(router: Any, hidden_states: Tensor, *arguments: Any) -> Any:
    outputs = getattr(router, STEP).take(hidden_states)
    return type(router).forward(router, hidden_states, *arguments) if outputs is None else outputs


def _spec(model: nn.Module, step: _Step) -> dict[str, str]:
    model_type = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__.lower()
    name = f"{model_type.replace('_', '-')}-{step.path.hidden_size}x{step.path.num_experts}-transformers"
    return {f"{name}.yaml": spec_text(name, step.path, step.router.routing, step.eps, step.residual_multiplier)}
