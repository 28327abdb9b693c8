"""The path against the models' own modules: transformers' decoder layers, small and with random weights.

A decoder layer runs as it is, but for its attention, which gives a random output, and its experts, which only note
what they are given. The router runs in float32 on the normed row as it was written in bfloat16: that is what this
package calls logits_from "rounded" and float32 logits.
"""

import functools
import importlib
import os
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import normgate
import pytest
import torch
from normgate import NormGateLinear, Routing, reference
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed; it comes with the extra `test`")

HIDDEN, EXPERTS, EPS = 64, 32, 1e-5
BATCH, LENGTH, VOCABULARY = 2, 20, 50

SMALL = dict(
    hidden_size=HIDDEN,
    intermediate_size=32,
    moe_intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=EPS,
    vocab_size=VOCABULARY,
)
EPSILON = dict(renormalize=True, renormalize_epsilon=1e-20)


@dataclass(frozen=True)
class Family:
    """A model's classes in transformers, and what its path is called here."""

    module: str
    prefix: str  # of the names of its classes
    config: dict[str, Any]
    routing: Routing
    norm_order: str = "A"
    moe: str = "mlp"
    router: str = "gate"
    correction_bias: str | None = None  # where the MoE block has it
    residual_multiplier: float = 1.0
    stream_multiplier: float = 1.0
    sorts: bool = True  # whether the model's own top-k is in descending order

    def made(self, suffix: str) -> Any:
        modeling = importlib.import_module(f"transformers.models.{self.module}.modeling_{self.module}")
        return getattr(modeling, f"{self.prefix}{suffix}")

    def make_config(self) -> Any:
        configuration = importlib.import_module(f"transformers.models.{self.module}.configuration_{self.module}")
        return getattr(configuration, f"{self.prefix}Config")(**{**SMALL, **self.config})


MLA = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
GROUPED = dict(n_routed_experts=EXPERTS, num_experts_per_tok=6, n_shared_experts=1, first_k_dense_replace=0)

FAMILIES = {
    "DeepSeek-V2 greedy": Family(
        "deepseek_v2",
        "DeepseekV2",
        dict(**MLA, **GROUPED, topk_method="greedy", routed_scaling_factor=1.0, n_group=1, topk_group=1),
        Routing(6, "softmax"),
        sorts=False,
    ),
    "DeepSeek-V2 groups": Family(
        "deepseek_v2",
        "DeepseekV2",
        dict(**MLA, **GROUPED, topk_method="group_limited_greedy", routed_scaling_factor=16.0, n_group=8, topk_group=3),
        Routing(6, "softmax", n_group=8, topk_group=3, group_score="max", routed_scaling_factor=16.0),
        sorts=False,
    ),
    "DeepSeek-V3": Family(
        "deepseek_v3",
        "DeepseekV3",
        dict(**MLA, **GROUPED, routed_scaling_factor=2.5, n_group=8, topk_group=4, norm_topk_prob=True),
        Routing(6, "sigmoid", n_group=8, topk_group=4, routed_scaling_factor=2.5, **EPSILON),
        correction_bias="gate.e_score_correction_bias",
        sorts=False,
    ),
    "GLM-4.5": Family(
        "glm4_moe",
        "Glm4Moe",
        dict(**GROUPED, routed_scaling_factor=2.5, n_group=1, topk_group=1, norm_topk_prob=True),
        Routing(6, "sigmoid", routed_scaling_factor=2.5, **EPSILON),
        correction_bias="gate.e_score_correction_bias",
        sorts=False,
    ),
    "MiniMax-M2": Family(
        "minimax_m2",
        "MiniMaxM2",
        dict(num_local_experts=EXPERTS, num_experts_per_tok=4),
        Routing(4, "sigmoid", renormalize=True),
        correction_bias="e_score_correction_bias",
        sorts=False,
    ),
    "Qwen3-MoE": Family(
        "qwen3_moe",
        "Qwen3Moe",
        dict(num_experts=EXPERTS, num_experts_per_tok=8, norm_topk_prob=True),
        Routing(8, "softmax", renormalize=True),
    ),
    "Qwen3-Next": Family(
        "qwen3_next",
        "Qwen3Next",
        dict(
            num_experts=EXPERTS,
            num_experts_per_tok=8,
            norm_topk_prob=True,
            shared_expert_intermediate_size=32,
            layer_types=["full_attention", "full_attention"],
        ),
        Routing(8, "softmax", renormalize=True),
        norm_order="G",
    ),
    "gpt-oss": Family(
        "gpt_oss",
        "GptOss",
        dict(num_local_experts=EXPERTS, num_experts_per_tok=4),
        Routing(4, "softmax_of_chosen"),
        norm_order="B",
        router="router",
    ),
    "Mixtral": Family(
        "mixtral",
        "Mixtral",
        dict(num_local_experts=EXPERTS, num_experts_per_tok=2),
        Routing(2, "softmax", renormalize=True),
    ),
    "Granite-MoE": Family(
        "granitemoe",
        "GraniteMoe",
        dict(num_local_experts=EXPERTS, num_experts_per_tok=8, residual_multiplier=0.22),
        Routing(8, "softmax_of_chosen"),
        moe="block_sparse_moe",
        router="router",
        residual_multiplier=0.22,
    ),
    "MiniMax-Text-01": Family(
        "minimax",
        "MiniMax",
        dict(
            num_local_experts=EXPERTS,
            num_experts_per_tok=2,
            full_attn_alpha_factor=3.5565588200778455,
            full_attn_beta_factor=0.7,
            layer_types=["full_attention", "full_attention"],
        ),
        Routing(2, "softmax", renormalize=True),
        residual_multiplier=0.7,
        stream_multiplier=3.5565588200778455,
    ),
    "Llama-4": Family(
        "llama4",
        "Llama4Text",
        dict(num_local_experts=EXPERTS, num_experts_per_tok=1, moe_layers=[0, 1], intermediate_size_mlp=32),
        Routing(1, "sigmoid"),
        moe="feed_forward",
        router="router",
    ),
    "ERNIE-4.5": Family(
        "ernie4_5_moe",
        "Ernie4_5_Moe",
        dict(
            moe_num_experts=EXPERTS,
            moe_k=6,
            moe_num_shared_experts=1,
            moe_layer_start_index=0,
            moe_layer_end_index=1,
            moe_norm_min=1e-12,
        ),
        Routing(6, "softmax", renormalize=True, renormalize_floor=1e-12),
        correction_bias="gate.moe_statics.e_score_correction_bias",
    ),
}


class Attention(nn.Module):
    """In place of a layer's attention: gives what it was made with."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return self.output, None


class Experts(nn.Module):
    """In place of a block's experts: notes what they are given, and gives nothing."""

    given: tuple[Tensor, ...] = ()

    def forward(self, hidden_states: Tensor, *given: Tensor) -> Tensor:
        self.given = given
        return torch.zeros_like(hidden_states)

    def chosen(self) -> tuple[Tensor, Tensor]:
        """Weights and ids, in whichever order they came."""
        ids = next(tensor for tensor in self.given if not tensor.is_floating_point())
        return next(tensor for tensor in self.given if tensor.is_floating_point() and tensor.shape == ids.shape), ids


@dataclass
class Run:
    """A decoder layer, what went in and what came out on the way."""

    layer: nn.Module
    attention: Tensor
    residual: Tensor
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def topk(self) -> tuple[Tensor, Tensor]:
        return self.seen["topk"]


def randomize(module: nn.Module, correction_bias: str | None = None) -> None:
    """Random weights; router logits spread by about 1, and the correction bias changes the choice."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.dim() == 1 and "norm" in name
        parameter.data = (1 + values / 4 if is_norm else values / 8).to(parameter.dtype)
    if correction_bias is not None:
        bias = dict([*module.named_parameters(), *module.named_buffers()])[correction_bias]
        bias.data = torch.randn(bias.shape, generator=generator) / 4


@functools.cache
def run(name: str) -> Run:
    """Run the family's decoder layer in bfloat16, its MoE block in float32."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    layer = family.made("DecoderLayer")(family.make_config(), 1).eval()
    moe = getattr(layer, family.moe)
    moe.experts = Experts()
    layer.to(torch.bfloat16)
    bias = family.correction_bias and f"{family.moe}.{family.correction_bias}"
    randomize(layer, bias)
    moe.float()
    generator = torch.Generator().manual_seed(1)
    attention, residual = torch.randn(2, BATCH, LENGTH, HIDDEN, generator=generator).bfloat16()
    layer.self_attn = Attention(attention)
    layer.input_layernorm = nn.Identity()  # MiniMax takes the residual from behind it
    result = Run(layer, attention, residual)

    def note_norm(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        result.seen["residual_out"], result.seen["normed_x"] = inputs[0], output

    def note_router(_module: nn.Module, _inputs: Any, outputs: tuple[Tensor, ...]) -> None:
        result.seen["router"] = outputs

    layer.post_attention_layernorm.register_forward_hook(note_norm)
    getattr(moe, family.router).register_forward_hook(note_router)
    moe.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(), *inputs[1:]))
    with torch.no_grad():
        layer(residual, position_embeddings=None, attention_mask=None)
    if name == "Llama-4":
        # Its experts read rows that are weighted already; the scores of those not chosen are 0.
        scores, logits = result.seen["router"]
        ids = scores.nonzero()[:, 1:]
        result.seen |= dict(topk=(scores.gather(1, ids), ids), logits=logits)
    else:
        result.seen |= dict(topk=moe.experts.chosen(), logits=result.seen["router"][0])
    return result


def bias_of(name: str) -> Tensor | None:
    family = FAMILIES[name]
    moe = getattr(run(name).layer, family.moe)
    tensors = dict([*moe.named_parameters(), *moe.named_buffers()])
    return None if family.correction_bias is None else tensors[family.correction_bias].reshape(-1)


def agrees(routed: normgate.Routed, ran: Run, sorts: bool) -> None:
    rows = normgate.Routed(*(None if t is None else t.reshape(-1, t.shape[-1]) for t in routed))
    if routed.residual_out is not None:
        assert torch.equal(routed.residual_out, ran.seen["residual_out"])
    assert torch.equal(routed.normed_x, ran.seen["normed_x"])
    torch.testing.assert_close(rows.router_logits, ran.seen["logits"], rtol=1e-5, atol=1e-5)
    same_choice(rows.topk_weights, rows.topk_ids, *ran.topk, sorts)


def same_choice(weights: Tensor, ids: Tensor, their_weights: Tensor, their_ids: Tensor, sorts: bool) -> None:
    if sorts:
        assert ids.tolist() == their_ids.tolist()
    assert ids.sort(-1).values.tolist() == their_ids.sort(-1).values.tolist()

    def dense(weights: Tensor, ids: Tensor) -> Tensor:
        return torch.zeros(len(ids), EXPERTS).scatter(1, ids.long(), weights.float())

    torch.testing.assert_close(dense(weights, ids), dense(their_weights, their_ids), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_route_gives_the_experts_what_the_model_does(name):
    family, ran = FAMILIES[name], run(name)
    router = getattr(getattr(ran.layer, family.moe), family.router)
    gate_bias = getattr(router, "bias", None)
    routed = normgate.route(
        ran.attention,
        router.weight.detach().bfloat16(),
        norm_weight=ran.layer.post_attention_layernorm.weight.detach(),
        eps=EPS,
        norm_order=family.norm_order,
        residual=ran.residual,
        residual_multiplier=family.residual_multiplier,
        stream_multiplier=family.stream_multiplier,
        gate_bias=None if gate_bias is None else gate_bias.detach().bfloat16(),
        e_score_correction_bias=bias_of(name),
        routing=family.routing,
        logits_from="rounded",
        returns_logits=True,
    )
    agrees(routed, ran, family.sorts)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layer_takes_the_models_weights_and_its_place(name):
    family, ran = FAMILIES[name], run(name)
    state = dict(ran.layer.state_dict())
    prefix = f"{family.moe}.{family.router}"
    if family.correction_bias and "moe_statics" in family.correction_bias:
        state[f"{prefix}.e_score_correction_bias"] = bias_of(name)
    layer = NormGateLinear(
        HIDDEN,
        EXPERTS,
        norm_order=family.norm_order,
        eps=EPS,
        gate_bias=f"{prefix}.bias" in state,
        logits_from="rounded",
        e_score_correction_bias=family.correction_bias is not None,
        residual_multiplier=family.residual_multiplier,
        stream_multiplier=family.stream_multiplier,
        routing=family.routing,
        returns_logits=True,
        gate_weight_dtype=torch.float32,
    )
    layer.load_from_checkpoint(state, norm_prefix="post_attention_layernorm", gate_prefix=prefix)
    agrees(layer(ran.attention, ran.residual), ran, family.sorts)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.correction_bias])
def test_the_correction_bias_changes_the_choice(name):
    """Else the agreement above says nothing of it."""
    family, ran = FAMILIES[name], run(name)
    _, ids = reference.choose_experts(ran.seen["logits"], family.routing)
    assert ids.sort(-1).values.tolist() != ran.topk[1].sort(-1).values.tolist()


@pytest.mark.parametrize("name", ["DeepSeek-V2 groups", "DeepSeek-V3"])
def test_the_groups_change_the_choice(name):
    family, ran = FAMILIES[name], run(name)
    ungrouped = Routing(family.routing.top_k, family.routing.scoring)
    _, ids = reference.choose_experts(ran.seen["logits"], ungrouped, bias_of(name))
    assert ids.sort(-1).values.tolist() != ran.topk[1].sort(-1).values.tolist()


@pytest.mark.parametrize("is_hash", [False, True], ids=["top-k", "hash"])
def test_deepseek_v4(is_hash):
    """Its residual is four streams, so that there is no add: norm and MoE block on a collapsed row."""
    kinds = ["hash_moe" if is_hash else "moe"]
    config = dict(
        num_hidden_layers=1, num_local_experts=EXPERTS, num_experts_per_tok=6, mlp_layer_types=kinds, q_lora_rank=16
    )
    family = Family(
        "deepseek_v4", "DeepseekV4", config, Routing(6, "sqrtsoftplus", routed_scaling_factor=1.5, **EPSILON)
    )
    made = family.make_config()
    made.routed_scaling_factor = 1.5
    norm = family.made("RMSNorm")(HIDDEN, eps=EPS)
    block = family.made("SparseMoeBlock")(made, 0).eval()
    block.experts = Experts()
    randomize(norm)
    randomize(block, None if is_hash else "gate.e_score_correction_bias")
    norm.weight.data = norm.weight.data.bfloat16().float()  # kept in float32, stored in bfloat16
    block.gate.weight.data = block.gate.weight.data.bfloat16().float()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, LENGTH, HIDDEN, generator=generator).bfloat16()
    input_ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=generator)
    if is_hash:
        table = [torch.randperm(EXPERTS, generator=generator)[:6] for _ in range(VOCABULARY)]
        block.gate.tid2eid.copy_(torch.stack(table))
    ran = Run(block, x, x)
    block.gate.register_forward_hook(lambda _module, _inputs, outputs: ran.seen.update(logits=outputs[0]))
    with torch.no_grad():
        ran.seen["normed_x"] = norm(x)
        block(norm(x).float(), input_ids)
    ran.seen["topk"] = block.experts.chosen()

    layer = NormGateLinear(
        HIDDEN,
        EXPERTS,
        norm_order="B",
        eps=EPS,
        logits_from="rounded",
        e_score_correction_bias=not is_hash,
        tid2eid_vocab_size=VOCABULARY if is_hash else None,
        routing=family.routing,
        returns_logits=True,
    )
    state = {name: t.bfloat16() if name == "gate.weight" else t for name, t in block.state_dict().items()}
    state["ffn_norm.weight"] = norm.weight.bfloat16()
    layer.load_from_checkpoint(state, norm_prefix="ffn_norm", gate_prefix="gate")
    agrees(layer(x, input_ids=input_ids), ran, sorts=is_hash)


# What rounds router logits to bfloat16, as these models do unless they are told otherwise, makes ties of them.
@pytest.mark.parametrize("name", ["Qwen3-MoE", "Mixtral", "gpt-oss", "Granite-MoE"])
def test_selection_from_bf16_logits(name):
    family, ran = FAMILIES[name], run(name)
    router = family.made("TopKRouter")(family.make_config())
    randomize(router)
    router.bfloat16()
    rows = ran.seen["normed_x"].reshape(-1, HIDDEN)
    with torch.no_grad():
        logits, their_weights, their_ids = router(rows)
    weights, ids = reference.choose_experts(logits, family.routing)
    assert torch.equal(logits.gather(1, ids.long()), logits.gather(1, their_ids)), "of ties, either may be chosen"
    torch.testing.assert_close(weights.to(their_weights.dtype), their_weights, rtol=2**-7, atol=0)
