"""What all families but gemv are: a tile of logits on the tensor cores, hidden_size split over CTAs."""

from __future__ import annotations

from ..problem import Problem
from .limits import ceil_div


class TensorCoreTile:
    """What the families share that compute tiles of `experts` x `tokens`, hidden_size split over `split` CTAs."""

    tokens: int
    experts: int
    split: int

    accelerated = False  # needs instructions that only sm_90a has

    @property
    def threads(self) -> int:
        raise NotImplementedError

    def static_smem(self, problem: Problem, cluster: bool) -> int:
        return 0

    def dynamic_smem(self, problem: Problem, cluster: bool) -> int:
        return 0

    def threads_for(self, problem: Problem) -> int:
        """Threads of a CTA."""
        return self.threads

    @property
    def max_tokens(self) -> int | None:
        """No limit: further tokens are further CTAs."""
        return None

    def tiles(self, problem: Problem) -> int:
        return ceil_div(problem.num_experts, self.experts)

    def ctas(self, problem: Problem, num_tokens: int) -> int:
        return ceil_div(num_tokens, self.tokens) * self.tiles(problem) * self.split

    def workspace_row(self, problem: Problem) -> int:
        """fp32 sums of a token in the workspace of chips without clusters."""
        return self.tiles(problem) * self.experts
