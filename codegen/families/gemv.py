"""gemv: fp32 multiply-adds without tensor cores, for the fewest tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..problem import Problem
from .limits import SPARE_REGISTERS, ceil_div


@dataclass(frozen=True, order=True)
class Gemv:
    """A CTA computes `experts` experts for up to `tokens` tokens, hidden_size spread over its threads."""

    tokens: int
    experts: int
    warps: int
    chunks: int  # 16-byte chunks of a row that a thread takes
    early_weights: bool = True

    family = "gemv"
    accelerated = False

    @property
    def name(self) -> str:
        name = f"gemv_t{self.tokens}_e{self.experts}_w{self.warps}_c{self.chunks}"
        return name if self.early_weights else name + "_late"

    @property
    def threads(self) -> int:
        return self.warps * 32

    def threads_for(self, problem: Problem) -> int:
        """Threads of a CTA."""
        return self.threads

    @property
    def max_tokens(self) -> int | None:
        """The most tokens a launch serves."""
        return self.tokens

    @property
    def group(self) -> int:
        """Rows that a thread has on their way at once: all if their chunks fit 64 registers, else what fits 32."""
        if self.tokens * self.chunks <= 16:
            return self.tokens
        fits = max(1, 8 // self.chunks)
        return max(rows for rows in range(1, self.tokens + 1) if rows <= fits and self.tokens % rows == 0)

    def ctas(self, problem: Problem, num_tokens: int) -> int:
        return ceil_div(problem.num_experts, self.experts)

    def static_smem(self, problem: Problem, cluster: bool) -> int:
        selecting = min(self.tokens, self.warps) * problem.selection.scratch_bytes if problem.selection else 0
        return self.warps * self.tokens * (self.experts + 1) * 4 + selecting

    def dynamic_smem(self, problem: Problem, cluster: bool) -> int:
        return 0

    def registers(self, problem: Problem) -> int:
        """An estimate of what a thread needs, for pruning; the compiler's report decides."""
        rows = self.group * self.chunks * 4 + 4 * bool(problem.residual)
        element_bytes, norm_bytes = problem.gate_weight_bytes, 2
        if problem.folds_norm:
            element_bytes = 4  # folded into fp32
        elif problem.rounds_rows or self.group < self.tokens:
            element_bytes = norm_bytes = 4  # weights that every row meets anew: the compiler keeps them widened
        weights = self.chunks * 2 * (self.experts * element_bytes + norm_bytes)
        return weights + rows + self.experts + SPARE_REGISTERS - 16
