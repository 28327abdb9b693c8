"""Greedy decoding with models of transformers of a few layers, each of full size; a step is a CUDA graph."""

from __future__ import annotations

import copy
import importlib
import os
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ToolError

# torch leaves what this file calls of it without annotations, and transformers is not always there.
_torch: Any = torch
_cuda: Any = torch.cuda

WINDOW = 128
"""Positions of the static cache. Attention reads all of them at each step and masks those ahead, as transformers does
with a static cache: what a step takes does not depend on its position."""

_WARMUPS = 3  # steps before a graph is captured: libraries set themselves up, the cache allocates its tensors


@dataclass(frozen=True)
class Shape:
    """A model: its configuration in transformers, and what of it differs from the defaults there."""

    config_class: str
    sizes: dict[str, Any]

    def config(self, **others: Any) -> Any:
        return getattr(transformers(), self.config_class)(**{**self.sizes, **others})

    def router_alone(self) -> Any:
        """The configuration with one MoE layer, whose router path is the model's and all else as small as can be."""
        small = dict.fromkeys(("vocab_size", "intermediate_size", "moe_intermediate_size"), 8)
        heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 1)
        return self.config(num_hidden_layers=1 + self.sizes.get("first_k_dense_replace", 0), **small, **heads)


# Few layers; each as large as in the model. The defaults of DeepseekV3Config are those of DeepSeek-V3.
SHAPES = {
    "deepseek-v3": Shape("DeepseekV3Config", dict(num_hidden_layers=4, first_k_dense_replace=1)),
    "qwen3-235b-a22b": Shape(
        "Qwen3MoeConfig",
        dict(
            num_hidden_layers=4,
            hidden_size=4096,
            intermediate_size=12288,
            moe_intermediate_size=1536,
            num_attention_heads=64,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            norm_topk_prob=True,
        ),
    ),
}


def transformers() -> Any:
    """The module. ToolError where it is not installed, or too old."""
    mend = "install it: pip install 'transformers>=5.24'"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        found: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ToolError(f"transformers: {error}; {mend}") from None
    if tuple(map(int, found.__version__.split(".")[:2])) < (5, 24):  # models took their cache by another name
        raise ToolError(f"transformers {found.__version__} is installed, 5.24 or newer is needed; {mend}")
    return found


def make(config: Any, device: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The model, its weights random, made on `device`."""
    _torch.manual_seed(0)
    with torch.device(device):
        return transformers().AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def twin(model: Any) -> Any:
    """Another model of the same weights, so that what is done to its modules leaves this one alone."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


class Loop:
    """Decoding of `sequences` at once, with a cache of its own.

    A step reads the tokens at its position from `reads`, and writes those that it chose to `writes`, a position on:
    where both are one tensor, it reads what it chose the step before. On a GPU a step is a CUDA graph, captured here,
    of the forward as the model has it now; all that changes from step to step is in tensors that the graph updates.
    """

    def __init__(self, model: Any, reads: torch.Tensor, writes: torch.Tensor) -> None:
        self.model, self.reads, self.writes = model, reads, writes
        self.cache = transformers().StaticCache(config=model.config, max_cache_len=WINDOW)
        self._slots = torch.arange(WINDOW, device=reads.device)
        self._position = torch.zeros(1, dtype=torch.int64, device=reads.device)
        self.logits = torch.empty(len(reads), model.config.vocab_size, dtype=model.dtype, device=reads.device)
        self._graph = self._captured() if reads.is_cuda else None

    def restart(self) -> None:
        """Back to the first position."""
        self.cache.reset()
        self._position.zero_()

    def step(self) -> None:
        """One token for each sequence."""
        if self._graph is None:
            self._forward()
        else:
            self._graph.replay()

    @torch.no_grad()
    def _forward(self) -> None:
        seen = (self._slots <= self._position).view(1, 1, 1, -1).expand(len(self.reads), -1, -1, -1)
        outputs = self.model(
            input_ids=self.reads.index_select(1, self._position),
            position_ids=self._position.view(1, 1),
            attention_mask=seen,
            cache=self.cache,
            use_cache=True,
        )
        self.logits.copy_(outputs.logits[:, -1])
        self._position.add_(1)
        self.writes.index_copy_(1, self._position, self.logits.argmax(-1, keepdim=True))

    def _captured(self) -> Any:
        beside = _cuda.Stream()
        beside.wait_stream(_cuda.current_stream())
        with _cuda.stream(beside):
            for _ in range(_WARMUPS):
                self._forward()
        _cuda.current_stream().wait_stream(beside)
        graph = _cuda.CUDAGraph()
        with _cuda.graph(graph):
            self._forward()
        self.restart()
        return graph
