"""resident: warpgroups on sm_90a's tensor cores, whose weights stay in registers while tiles of tokens go by."""

from __future__ import annotations

from dataclasses import dataclass

from ..problem import Problem
from .limits import CLUSTERS_AT_ONCE, REGISTERS_PER_SM, ceil_div, mma_terms
from .tile import TensorCoreTile


@dataclass(frozen=True, order=True)
class Resident(TensorCoreTile):
    """Warpgroup tensor cores with the weights of `experts` experts folded into registers once, for tiles of `tokens`.

    Two warpgroups multiply, half a slice each; one norms rows; one copies.
    """

    tokens: int
    split: int
    early_weights: bool = True

    family = "resident"
    accelerated = True
    experts = 64
    step = 64
    threads = 512
    warps = 16
    copy_registers = 40  # of a thread that copies

    @property
    def name(self) -> str:
        name = f"resident_t{self.tokens}_s{self.split}"
        return name if self.early_weights else name + "_late"

    def threads_for(self, problem: Problem) -> int:
        """Without a norm to write there is no warpgroup for it."""
        return self.threads if problem.folds_norm else self.threads - 128

    def steps(self, problem: Problem) -> int:
        """Steps of a CTA."""
        return ceil_div(ceil_div(problem.hidden_size, self.step), self.split)

    def chain(self, problem: Problem) -> int:
        """mma that add to one accumulator."""
        return self.steps(problem) * 2 * mma_terms(problem)

    def token_groups(self, problem: Problem) -> int:
        """Token tiles side by side: as many as have their clusters run at once; each goes on to further ones."""
        return max(1, CLUSTERS_AT_ONCE[self.split] // self.tiles(problem))

    def ctas(self, problem: Problem, num_tokens: int) -> int:
        groups = min(ceil_div(num_tokens, self.tokens), self.token_groups(problem))
        return groups * self.tiles(problem) * self.split

    def dynamic_smem(self, problem: Problem, cluster: bool) -> int:
        """As Resident of templates/kernels/resident.cu.j2 lays it out, which asserts that both agree."""
        steps = self.steps(problem)
        rows = steps * self.tokens * 128
        own = ceil_div(self.tokens * self.experts // 4, self.split)
        # Two parts of the weights' rows, each row a chunk longer for the banks' sake.
        weights = 2 * self.experts * ((ceil_div(steps, 2) * self.step + 8) * problem.gate_weight_bytes)
        total = max(ceil_div(weights, 1024) * 1024, rows) + rows
        total += 2 * self.tokens * (self.experts + 4) * 4 + 2 * self.split * own * 16
        if problem.folds_norm:
            total += steps * 128 + (2 * self.split + 2) * self.tokens * 4
        return total + problem.gate_bias * self.experts * 4 + (2 * steps + 8) * 8

    def sum_registers(self, problem: Problem) -> int:
        """Of a thread that multiplies: terms of its weights, sums, addresses."""
        whole = self.split * self.steps(problem) * self.step == problem.hidden_size
        spare = 36 if whole else 48  # beyond a row's end there are tests for each of its parts
        needed = ceil_div(self.steps(problem) * 2 * 4 * problem.gate_terms + self.tokens // 2 + spare, 8) * 8
        return max(needed, self.start_registers(problem))

    def norm_registers(self, problem: Problem) -> int:
        """Of a thread that norms rows: what the others leave."""
        warpgroups = self.threads_for(problem) // 128
        left = warpgroups * self.start_registers(problem) - 2 * self.sum_registers(problem) - self.copy_registers
        return min(left, self.start_registers(problem))

    def start_registers(self, problem: Problem) -> int:
        """Registers of a thread as the CTA begins."""
        return REGISTERS_PER_SM // self.threads_for(problem) // 8 * 8

    def registers(self, problem: Problem) -> int:
        """Of a thread that multiplies."""
        return self.sum_registers(problem)
