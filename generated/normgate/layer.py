"""``NormGateLinear``: one layer's router path, with its weights under the names that checkpoints use."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from . import dispatch, ops, reference
from .routing import Routed, Routing
from .table_types import RoutingTable


class NormGateLinear(nn.Module):
    """RMSNorm and router gate of one MoE layer, for inference.

    Owns, as parameters without gradient:

    norm.weight                   [hidden_size]               dtype; absent where ``norm_order`` is None
    gate.weight                   [num_experts, hidden_size]  gate_weight_dtype
    gate.bias                     [num_experts]               gate_weight_dtype; with ``gate_bias``
    gate.e_score_correction_bias  [num_experts]               float32; with ``e_score_correction_bias``
    gate.tid2eid                  [vocab_size, top_k]         int64; with ``tid2eid_vocab_size`` (hash layers)
    gate.e_score_correction_bias_vl, gate.per_expert_scale: [num_experts] float32, with the arguments of their names

    With a ``routing`` it chooses the experts too, with a ``residual_multiplier`` it adds x to the residual
    stream first, and then :meth:`forward` gives a :class:`Routed`. Without a ``routing`` the last two weights
    belong to the scoring that follows; the layer then only keeps them. Weights are not initialized: load them
    with ``load_state_dict`` or :meth:`load_from_checkpoint`.

    The kernels may read weights before the previous kernel of the stream has finished. After writing
    weights on the device (loading, an update, a swap), synchronize the whole device before the next
    forward: ``torch.cuda.synchronize()``.

    Build it with its dtypes rather than casting it with ``.to(dtype)``, which casts every floating weight
    alike, the correction bias too, which has to be float32.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        norm_order: str | None,
        eps: float | None = None,
        gate_bias: bool = False,
        logits_from: str = "unrounded",
        logits_dtype: torch.dtype = torch.float32,
        e_score_correction_bias: bool = False,
        tid2eid_vocab_size: int | None = None,
        top_k: int | None = None,
        residual_multiplier: float | None = None,
        routing: Routing | None = None,
        returns_logits: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        gate_weight_dtype: torch.dtype | None = None,
        stream_multiplier: float = 1.0,
        e_score_correction_bias_vl: bool = False,
        per_expert_scale: bool = False,
    ) -> None:
        """Weights are not initialized; ValueError for arguments that do not fit together.

        ``norm_order`` None is the gate alone, else ``eps`` is needed. ``tid2eid_vocab_size`` makes it a hash
        layer and needs ``top_k``, or a ``routing`` that has it. ``residual_multiplier`` is what x is multiplied
        by on its way into the residual stream, 1.0 for a plain add; None: there is no residual.
        ``stream_multiplier`` is what the residual stream is multiplied by there.
        ``returns_logits`` is whether :meth:`forward` gives logits beside what ``routing`` makes of them.
        ``gate_weight_dtype`` is ``dtype`` where it is not given.
        """
        super().__init__()
        if norm_order not in (None, *reference.NORM_ORDERS):
            raise ValueError(f"norm_order is {norm_order!r}, expected 'A', 'B', 'G' or None")
        if (norm_order is None) != (eps is None):
            raise ValueError(f"eps is {eps} and norm_order {norm_order!r}, expected both or neither")
        if routing is not None:
            routing.check_num_experts(num_experts)
            if top_k not in (None, routing.top_k):
                raise ValueError(f"top_k is {top_k}, expected that of routing, {routing.top_k}")
            top_k = routing.top_k
            if e_score_correction_bias and tid2eid_vocab_size is not None:
                raise ValueError("e_score_correction_bias is True, expected False in a hash layer that routes")
        if tid2eid_vocab_size is not None and top_k is None:
            raise ValueError("top_k is None, expected the width of tid2eid")
        if stream_multiplier != 1.0 and residual_multiplier is None:
            raise ValueError(f"stream_multiplier is {stream_multiplier}, expected 1.0 without a residual_multiplier")
        if e_score_correction_bias_vl and not e_score_correction_bias and tid2eid_vocab_size is None:
            raise ValueError(
                "e_score_correction_bias_vl is True, expected False without e_score_correction_bias or tid2eid"
            )
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.norm_order = norm_order
        self.eps = eps
        self.logits_from = logits_from
        self.logits_dtype = logits_dtype
        self.top_k = top_k
        self.residual_multiplier = residual_multiplier
        self.stream_multiplier = stream_multiplier
        self.routing = routing
        self.returns_logits = returns_logits

        def weight(*shape: int, dtype: torch.dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype), requires_grad=False)

        gate_dtype = gate_weight_dtype or dtype
        self.norm = None if norm_order is None else _Weights(weight=weight(hidden_size, dtype=dtype))
        self.gate = _Weights(
            weight=weight(num_experts, hidden_size, dtype=gate_dtype),
            bias=weight(num_experts, dtype=gate_dtype) if gate_bias else None,
        )
        if e_score_correction_bias:
            self.gate.e_score_correction_bias = weight(num_experts, dtype=torch.float32)
        if e_score_correction_bias_vl:
            self.gate.e_score_correction_bias_vl = weight(num_experts, dtype=torch.float32)
        if per_expert_scale:
            self.gate.per_expert_scale = weight(num_experts, dtype=torch.float32)
        if tid2eid_vocab_size is not None and top_k is not None:
            self.gate.tid2eid = weight(tid2eid_vocab_size, top_k, dtype=torch.int64)

    @classmethod
    def from_model(
        cls,
        model: str,
        *,
        hash_layer: bool = False,
        routes: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "NormGateLinear":
        """The layer of a model in the tables, which :func:`normgate.models` lists.

        By default the layer is the norm and the gate, for an engine that adds the residual and chooses the
        experts itself; ``routes`` gives the model's whole path, with its residual add and its choice of
        experts. ``hash_layer`` gives a layer that owns ``tid2eid`` instead of ``e_score_correction_bias``.
        ``dtype`` replaces the model's activation dtype, and the gate's where that is the same. ValueError for
        an unknown model, for a hash layer of a model that has none, and for ``routes`` of a model whose spec
        says neither what is added nor how experts are chosen.
        """
        table = dispatch.model_table(model)
        kernel = dispatch.kernel_table(table.kernel)
        if hash_layer and table.tid2eid_vocab_size is None:
            raise ValueError(f"hash_layer is True, expected False: {model} has no hash layers")
        if routes and table.path_kernel is None:
            raise ValueError(
                f"routes is True, expected False: the spec of {model} has no residual and no routing.scoring"
            )
        routing = table.routing if routes else None
        same = kernel.gate_weight_dtype == kernel.activation_dtype
        activation = dtype or _dtype(kernel.activation_dtype)
        return cls(
            kernel.hidden_size,
            kernel.num_experts,
            norm_order=kernel.norm_order,
            eps=table.eps,
            gate_bias=kernel.gate_bias,
            logits_from=kernel.logits_from,
            logits_dtype=_dtype(kernel.logits_dtype),
            e_score_correction_bias=table.e_score_correction_bias and not hash_layer,
            tid2eid_vocab_size=table.tid2eid_vocab_size if hash_layer else None,
            top_k=table.top_k,
            residual_multiplier=table.residual_multiplier if routes else None,
            stream_multiplier=table.stream_multiplier if routes else 1.0,
            e_score_correction_bias_vl=table.e_score_correction_bias_vl,
            per_expert_scale=table.per_expert_scale,
            routing=None if routing is None else _routing(routing),
            returns_logits=routing is not None and routing.returns_logits,
            device=device,
            dtype=activation,
            gate_weight_dtype=activation if same else _dtype(kernel.gate_weight_dtype),
        )

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        input_ids: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | Tensor | Routed:
        """``x`` [..., hidden_size] to ``(normed_x, router_logits)``; without a norm the logits alone.

        A layer with ``routing`` or ``residual_multiplier`` gives a :class:`Routed` instead. ``residual``, like
        x, is for layers with a ``residual_multiplier``, which need it. ``input_ids`` [...] int64 are read by
        hash layers with ``routing``, which need them; other layers may be given them too. ``image_mask`` [...]
        bool is read by layers with ``e_score_correction_bias_vl``: without it no token is an image's. ValueError
        for a residual too many or too few, and for missing input_ids.
        """
        if (residual is None) != (self.residual_multiplier is None):
            given = "a tensor, expected None" if self.residual_multiplier is None else "None, expected a tensor"
            raise ValueError(f"residual is {given}: residual_multiplier is {self.residual_multiplier}")
        if self.residual_multiplier is not None or self.routing is not None:
            return self._route(x, residual, input_ids, image_mask)
        if self.norm is None or self.norm_order is None or self.eps is None:
            return ops.gate(x, self.gate.weight, self.gate.bias, logits_dtype=self.logits_dtype)
        return ops.norm_gate(
            x,
            self.norm.weight,
            self.gate.weight,
            self.gate.bias,
            eps=self.eps,
            norm_order=self.norm_order,
            logits_from=self.logits_from,
            logits_dtype=self.logits_dtype,
        )

    def _route(self, x: Tensor, residual: Tensor | None, input_ids: Tensor | None, image_mask: Tensor | None) -> Routed:
        routes = self.routing is not None
        bias_vl = self.gate.e_score_correction_bias_vl if routes else None
        tid2eid = self.gate.tid2eid if routes else None
        if tid2eid is not None and input_ids is None:
            raise ValueError("input_ids is None, expected the tokens of x: a hash layer takes experts by token")
        return ops.route(
            x,
            self.gate.weight,
            norm_weight=None if self.norm is None else self.norm.weight,
            eps=self.eps,
            norm_order=self.norm_order,
            residual=residual,
            residual_multiplier=1.0 if self.residual_multiplier is None else self.residual_multiplier,
            gate_bias=self.gate.bias,
            e_score_correction_bias=self.gate.e_score_correction_bias if routes else None,
            tid2eid=tid2eid,
            input_ids=None if tid2eid is None else input_ids,
            routing=self.routing,
            logits_from=self.logits_from,
            logits_dtype=self.logits_dtype,
            returns_logits=self.returns_logits,
            stream_multiplier=self.stream_multiplier,
            e_score_correction_bias_vl=bias_vl,
            image_mask=None if bias_vl is None else image_mask,
            per_expert_scale=self.gate.per_expert_scale if routes else None,
        )

    def load_from_checkpoint(
        self, state_dict: Mapping[str, Tensor], *, gate_prefix: str, norm_prefix: str | None = None
    ) -> None:
        """Copy this layer's weights out of a checkpoint, whatever else that holds.

        ``layer.load_from_checkpoint(sd, norm_prefix="model.layers.3.post_attention_layernorm",
        gate_prefix="model.layers.3.mlp.gate")``; likewise "layers.3.ffn_norm" and "layers.3.ffn.gate"
        (DeepSeek-V4), "...mlp.router" (gpt-oss), "...block_sparse_moe.gate" (MiniMax). The correction bias
        is found as PREFIX.e_score_correction_bias, beside the prefix's last part (MiniMax), or, where the
        gate has no bias of its own, as PREFIX.bias (DeepSeek-V4), that of images likewise or as PREFIX.bias_vl;
        per_expert_scale beside the prefix's last part (Gemma 4: "...router.proj").

        Values are converted only where that loses nothing (bfloat16 to float32). ValueError names every
        missing, mis-shaped or lossy tensor, and then nothing was copied. Synchronize the device afterwards,
        see the class.
        """
        found: list[tuple[nn.Parameter, Tensor]] = []
        problems = []
        for name, parameter in self.named_parameters():
            keys = self._checkpoint_keys(name, norm_prefix, gate_prefix)
            key = next((key for key in keys if key in state_dict), None)
            if key is None:
                missing = f"not in the checkpoint as {' or '.join(keys)}"
                problems.append(f"{name}: {missing if keys else 'norm_prefix is not given'}")
                continue
            problem = _misfit(state_dict[key], parameter)
            if problem:
                problems.append(f"{name}: {key} {problem}")
            found.append((parameter, state_dict[key]))
        if problems:
            raise ValueError("\n".join(["the checkpoint does not fit NormGateLinear:", *problems]))
        with torch.no_grad():
            for parameter, tensor in found:
                parameter.copy_(tensor)

    def _checkpoint_keys(self, name: str, norm_prefix: str | None, gate_prefix: str) -> list[str]:
        """The keys that may hold parameter ``name``, the likeliest first."""
        owner, _, leaf = name.partition(".")
        if owner == "norm":
            return [] if norm_prefix is None else [f"{norm_prefix}.{leaf}"]
        keys = [f"{gate_prefix}.{leaf}"]
        if leaf in ("e_score_correction_bias", "e_score_correction_bias_vl", "per_expert_scale"):
            keys.append(f"{gate_prefix.rpartition('.')[0]}.{leaf}".removeprefix("."))
        if leaf == "e_score_correction_bias" and self.gate.bias is None:
            keys.append(f"{gate_prefix}.bias")
        if leaf == "e_score_correction_bias_vl":
            keys.append(f"{gate_prefix}.bias_vl")
        return keys

    def extra_repr(self) -> str:
        norm = "no norm" if self.norm_order is None else f"norm_order={self.norm_order}, eps={self.eps}"
        path = f"{self.hidden_size} -> {self.num_experts}, {norm}, logits_from={self.logits_from}"
        if self.residual_multiplier is not None:
            path += f", residual_multiplier={self.residual_multiplier}"
        if self.stream_multiplier != 1.0:
            path += f", stream_multiplier={self.stream_multiplier}"
        return path if self.routing is None else f"{path}, {self.routing}"


class _Weights(nn.Module):
    """One level of the state_dict; ``None`` for what the layer lacks."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.e_score_correction_bias: nn.Parameter | None = None
        self.e_score_correction_bias_vl: nn.Parameter | None = None
        self.per_expert_scale: nn.Parameter | None = None
        self.tid2eid: nn.Parameter | None = None


def _routing(table: RoutingTable) -> Routing:
    fields = table._asdict()
    del fields["returns_logits"]
    fields |= {name: _dtype(fields[name]) for name in ("ids_dtype", "weights_dtype")}
    return Routing(**fields)


def _misfit(tensor: Tensor, parameter: nn.Parameter) -> str | None:
    if tensor.shape != parameter.shape:
        return f"has shape {list(tensor.shape)}, expected {list(parameter.shape)}"
    if torch.promote_types(tensor.dtype, parameter.dtype) != parameter.dtype:
        return f"has dtype {tensor.dtype}, expected {parameter.dtype} or one that converts to it without loss"
    if parameter.is_meta:
        return "has nowhere to go: the layer is on the meta device, call to_empty(device=...) first"
    return None


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
