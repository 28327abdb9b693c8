"""split_k: tensor cores whose operands go from global memory to registers."""

from __future__ import annotations

from dataclasses import dataclass

from ..problem import Problem
from .limits import PUSH_BARRIERS, SPARE_REGISTERS, ceil_div, mma_terms
from .tile import TensorCoreTile


@dataclass(frozen=True, order=True)
class SplitK(TensorCoreTile):
    """A tensor-core tile of `experts` x `tokens`, hidden_size split over CTAs, warps, rounds and 32-wide blocks."""

    tokens: int
    experts: int
    split: int
    warps: int
    blocks: int
    rounds: int = 1
    early_weights: bool = True

    family = "split_k"

    @property
    def name(self) -> str:
        name = f"split_k_t{self.tokens}_e{self.experts}_s{self.split}_w{self.warps}_b{self.blocks}"
        if self.rounds > 1:
            name += f"_r{self.rounds}"
        return name if self.early_weights else name + "_late"

    @property
    def threads(self) -> int:
        return self.warps * 32

    @property
    def slice(self) -> int:
        """Elements of hidden_size that a CTA takes."""
        return self.warps * self.rounds * self.blocks * 32

    def own_quads(self, problem: Problem) -> int:
        """Quads of a tile's logits that a CTA of a cluster finishes: whole tokens where it then chooses experts."""
        if problem.selection:
            return ceil_div(self.tokens, self.split) * self.experts // 4
        return ceil_div(self.tokens * self.experts // 4, self.split)

    @property
    def chains(self) -> int:
        """Accumulators that share a sum: with few tiles, one mma would wait for the other."""
        return 2 if self.tokens * self.experts <= 2 * 8 * 16 else 1

    def chain(self, problem: Problem) -> int:
        """mma that add to one accumulator."""
        return self.rounds * self.blocks * 2 * mma_terms(problem) // self.chains

    def static_smem(self, problem: Problem, cluster: bool) -> int:
        total = self.warps * self.tokens * (self.experts + 4) * 4
        if cluster:
            total += self.split * self.own_quads(problem) * 16 + problem.gate_bias * self.experts * 4 + PUSH_BARRIERS
            if problem.selection:
                total += min(ceil_div(self.tokens, self.split), self.warps) * problem.selection.scratch_bytes
            if problem.has_norm:
                total += (self.warps + self.split) * self.tokens * 4
        return total

    def registers(self, problem: Problem) -> int:
        """An estimate of what a thread needs, for pruning; the compiler's report decides."""
        expert_tiles, token_tiles = self.experts // 16, self.tokens // 8
        raw = self.blocks * expert_tiles * 2 * 2 * problem.gate_weight_bytes
        terms = self.blocks * expert_tiles * 2 * 4 * problem.gate_terms
        rows = token_tiles * self.blocks * 4 + 4 * bool(problem.residual)
        sums = self.chains * token_tiles * expert_tiles * 4
        norm = self.blocks * 4 if problem.has_norm else 0
        normed = rows // 2 if problem.rounds_rows else 0  # rows on their way from raw to normed
        wide = rows // 4 if problem.gate_weight_bytes == 4 else 0  # the compiler keeps more of what it has widened
        return max(raw + norm, terms + rows + sums + norm + normed + wide) + SPARE_REGISTERS
