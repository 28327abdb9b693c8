"""Stand-ins for decoder layers of the engines, no more of them than the plugins meet.

``contract.py`` holds the engines' own source to the same: how a layer calls its norm and its block, a block its gate
or experts, and what each returns.
"""

import torch
from torch import nn
from torch.nn import functional

HIDDEN_SIZE, NUM_EXPERTS, EPS = 64, 12, 1e-5


class UnquantizedLinearMethod:
    pass


class RMSNorm(nn.Module):
    """Adds in place, as the engines' kernels do."""

    has_weight = True
    variance_size_override = None
    cast_x_before_out_mul = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(HIDDEN_SIZE).bfloat16(), requires_grad=False)
        self.variance_epsilon = EPS

    def forward(self, x, residual=None, post_residual_addition=None):
        total = x.float() if residual is None else x.float() + residual.float()
        rounded = total.to(x.dtype)
        if residual is not None and post_residual_addition is not None:
            rounded = rounded + post_residual_addition
        normed = rounded.float() * torch.rsqrt(rounded.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        normed = self.scale(normed, x.dtype)
        return normed if residual is None else (normed, rounded)

    def scale(self, normed, dtype):
        return normed.to(dtype) * self.weight


class GemmaRMSNorm(RMSNorm):
    def scale(self, normed, dtype):
        return (normed * (1 + self.weight.float())).to(dtype)


class GateLinear(nn.Module):
    """vLLM's: logits in a pair with the bias that is left to add, or alone."""

    def __init__(self, bias=False, out_dtype=None, return_bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(NUM_EXPERTS, HIDDEN_SIZE).bfloat16(), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(NUM_EXPERTS).bfloat16(), requires_grad=False) if bias else None
        self.out_dtype, self.return_bias = out_dtype, return_bias
        self.quant_method = UnquantizedLinearMethod()
        self.calls = 0

    def forward(self, x):
        if not torch.compiler.is_compiling():
            self.calls += 1
        bias = None if self.bias is None else self.bias.float()
        logits = functional.linear(x.float(), self.weight.float(), bias).to(self.out_dtype or x.dtype)
        return (logits, None) if self.return_bias else logits


class MoEGate(GateLinear):
    """SGLang's: float32 logits and no pair; it takes more than the hidden states."""

    def __init__(self):
        super().__init__(out_dtype=torch.float32, return_bias=False)

    def forward(self, hidden_states, gemm_output_zero_allocator=None, forward_batch=None):
        return super().forward(hidden_states)


def run_experts(hidden_states, router_logits):
    """Something of all logits that is no less exact than they are, a row for each token."""
    return hidden_states * (1 + router_logits.float().tanh().mean(-1, keepdim=True)).to(hidden_states.dtype)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, hidden_states, router_logits):
        if not torch.compiler.is_compiling():
            self.seen.append(router_logits)
        return run_experts(hidden_states, router_logits)


RUNNERS = {}


@torch.library.custom_op("normgate_test::moe_forward", mutates_args=())
def moe_forward(hidden_states: torch.Tensor, router_logits: torch.Tensor, layer: str) -> torch.Tensor:
    return RUNNERS[layer]._forward_impl(hidden_states, router_logits, None).clone()


@moe_forward.register_fake
def _(hidden_states, router_logits, layer):
    return torch.empty_like(hidden_states)


class MoERunner(nn.Module):
    """vLLM's experts that call the gate themselves, inside an operator which torch.compile does not look into."""

    _fse_fuse_gate = False

    def __init__(self, gate):
        super().__init__()
        self.gate = gate
        self.name = f"layer-{len(RUNNERS)}"
        self.seen = []
        RUNNERS[self.name] = self

    def forward(self, hidden_states, router_logits, input_ids=None):
        return torch.ops.normgate_test.moe_forward(hidden_states, router_logits, self.name)

    def _forward_impl(self, hidden_states, router_logits, shared_experts_input, input_ids=None):
        if self.gate is not None:
            router_logits, _ = self.gate(hidden_states)
        self.seen.append(router_logits)
        return run_experts(hidden_states, router_logits)


class Glm4MoE(nn.Module):
    """The block calls the gate."""

    def __init__(self, gate):
        super().__init__()
        self.gate = gate
        self.experts = Experts()

    def forward(self, hidden_states):
        hidden_states = hidden_states.view(-1, HIDDEN_SIZE)
        router_logits, _ = self.gate(hidden_states)
        return self.experts(hidden_states=hidden_states, router_logits=router_logits)


class DeepseekV2MoE(nn.Module):
    """The experts call the gate, and get the hidden states for logits."""

    is_sequence_parallel = False

    def __init__(self, gate):
        super().__init__()
        self.gate = gate
        self.experts = MoERunner(gate)

    def forward(self, hidden_states):
        hidden_states = hidden_states.view(-1, HIDDEN_SIZE)
        return self.experts(hidden_states=hidden_states, router_logits=hidden_states)


class MLPBlock(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.router = gate
        self.experts = Experts()

    def forward(self, x):
        return self.experts(hidden_states=x, router_logits=self.router(x))


class DenseMLP(nn.Module):
    def forward(self, hidden_states):
        return hidden_states * 2


class Layer(nn.Module):
    norm_class = RMSNorm

    def __init__(self, block):
        super().__init__()
        self.post_attention_layernorm = self.norm_class()
        self.mlp = block

    def forward(self, hidden_states, residual):
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(self.between(hidden_states)), residual

    def between(self, hidden_states):
        return hidden_states


class Glm4MoeDecoderLayer(Layer):
    pass


class DeepseekV2DecoderLayer(Layer):
    pass


class TransformerBlock(Layer):
    pass


class NewDecoderLayer(Layer):
    pass


class Model(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states, residual):
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual)
        return hidden_states, residual
