"""tiled: tensor cores whose operands pass through shared memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..problem import Problem
from .limits import MAX_CHAIN, PUSH_BARRIERS, SPARE_REGISTERS, ceil_div, mma_terms
from .tile import TensorCoreTile


@dataclass(frozen=True, order=True)
class Tiled(TensorCoreTile):
    """A tensor-core tile of `experts` x `tokens`; operands pass through shared memory in steps of `step` elements."""

    tokens: int
    experts: int
    split: int
    token_warps: int
    expert_warps: int
    slice_warps: int
    step: int
    stages: int
    early_weights: bool = True

    family = "tiled"

    @property
    def name(self) -> str:
        warps = f"{self.token_warps}{self.expert_warps}{self.slice_warps}"
        name = f"tiled_t{self.tokens}_e{self.experts}_s{self.split}_w{warps}_k{self.step}_d{self.stages}"
        return name if self.early_weights else name + "_late"

    @property
    def warps(self) -> int:
        return self.token_warps * self.expert_warps * self.slice_warps

    @property
    def threads(self) -> int:
        return self.warps * 32

    def steps(self, problem: Problem) -> int:
        """Steps of a CTA."""
        return ceil_div(ceil_div(problem.hidden_size, self.step), self.split)

    def dynamic_smem(self, problem: Problem, cluster: bool) -> int:
        """As Tiled of templates/kernels/tiled.cu.j2 lays it out, which asserts that both agree."""
        stage = self.step * (self.tokens * 2 + self.experts * problem.gate_weight_bytes)
        partial = self.slice_warps * self.tokens * (self.experts + 4) * 4
        norm = self.steps(problem) * self.step * 2 if problem.folds_norm else 0
        own = ceil_div(self.tokens * self.experts // 4, self.split)
        incoming = self.split * own * 16 if cluster and self.split > 1 else 0
        return max(self.stages * stage, partial) + norm + incoming

    def static_smem(self, problem: Problem, cluster: bool) -> int:
        if not cluster:
            return 0
        squares = (self.slice_warps + self.split) * self.tokens * 4 if problem.folds_norm else 0
        declared = squares + problem.gate_bias * self.experts * 4 + PUSH_BARRIERS
        return ceil_div(declared, 128) * 128  # dynamic shared memory begins 128-byte aligned

    def registers(self, problem: Problem) -> int:
        """An estimate of what a thread needs, for pruning; the compiler's report decides."""
        token_tiles, expert_tiles = self.tokens // self.token_warps // 8, self.experts // self.expert_warps // 16
        sums = token_tiles * expert_tiles * 4
        if self.adds_steps(problem):
            sums *= 2  # a step's own sums, beside the slice's
        rows = token_tiles * 4 * problem.row_terms
        squares = token_tiles * 4 if problem.folds_norm else 0
        return sums + rows + squares + 8 * problem.gate_terms + SPARE_REGISTERS

    def adds_steps(self, problem: Problem) -> bool:
        """Each step has its own sums, for more mma would add to one accumulator than may."""
        mma = self.steps(problem) * (self.step // 32 // self.slice_warps) * 2 * mma_terms(problem)
        return mma > MAX_CHAIN
