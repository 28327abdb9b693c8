"""The router path of MoE models, RMSNorm and gate in one CUDA launch.

import torch, normgate

layer = normgate.NormGateLinear.from_model("deepseek-v4-pro", device="cuda")
layer.load_from_checkpoint(state_dict, norm_prefix="layers.3.ffn_norm", gate_prefix="layers.3.ffn.gate")
torch.cuda.synchronize()  # kernels may read weights early: see NormGateLinear
normed_x, router_logits = layer(x)  # x: [num_tokens, hidden_size]

# or the functions, on tensors of your own
normed_x, router_logits = normgate.norm_gate(x, norm_weight, gate_weight, eps=1e-6, norm_order="B")
routing = normgate.Routing(top_k=6, scoring="sqrtsoftplus", renormalize=True, routed_scaling_factor=2.5)
routed = normgate.route(x, gate_weight, norm_weight=norm_weight, eps=1e-6, norm_order="B", routing=routing)
print(normgate.explain("deepseek-v4-pro", num_tokens=17))  # which variant runs, and why
"""

from .checking import WrongResult, checked
from .dispatch import Explanation, explain, kernels, models, variants
from .layer import NormGateLinear
from .ops import gate, norm_gate, route
from .routing import Routed, Routing

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "NormGateLinear",
    "Routed",
    "Routing",
    "WrongResult",
    "checked",
    "explain",
    "gate",
    "kernels",
    "models",
    "norm_gate",
    "route",
    "variants",
]
