"""resident: warpgroups on sm_90a's tensor cores, whose weights stay in registers while tiles of tokens go by."""

from __future__ import annotations

from dataclasses import dataclass

from ..arch import REGISTERS_PER_SM
from ..problem import Problem
from .limits import CLUSTERS_AT_ONCE, RESIDENT_SMEM, ceil_div
from .tile import TensorCoreTile


@dataclass(frozen=True, order=True)
class Resident(TensorCoreTile):
    """Warpgroup tensor cores with the weights of `experts` experts folded into registers once, for tiles of `tokens`.

    Two warpgroups multiply, half a slice each; one norms rows; one copies. The tensor cores' 64 rows are 64 experts, or
    the two terms of 32.
    """

    tokens: int
    experts: int
    split: int
    early_weights: bool = True

    family = "resident"
    accelerated = True
    step = 64
    threads = 512
    warps = 16
    copy_registers = 40  # of a thread that copies
    fewest_norm_registers = 56  # of one that norms rows

    @property
    def name(self) -> str:
        name = f"resident_t{self.tokens}_e{self.experts}_s{self.split}"
        return name if self.early_weights else name + "_late"

    def threads_for(self, problem: Problem) -> int:
        """Without a norm to write there is no warpgroup for it."""
        return self.threads if problem.folds_norm else self.threads - 128

    def steps(self, problem: Problem) -> int:
        """Steps of a CTA."""
        return ceil_div(ceil_div(problem.hidden_size, self.step), self.split)

    def chain(self, problem: Problem) -> int:
        """mma that add to one accumulator."""
        return self.steps(problem) * 2 * self.term_turns(problem)

    def term_turns(self, problem: Problem) -> int:
        """Terms of a weight that one thread multiplies."""
        return problem.gate_terms * self.experts // 64

    def places(self, problem: Problem) -> int:
        """Tiles of rows in shared memory: two where they fit, the next one's copies then run beside the products."""
        return 2 if self._smem(problem, 2) <= RESIDENT_SMEM else 1

    def token_groups(self, problem: Problem) -> int:
        """Token tiles side by side: as many as have their clusters run at once; each goes on to further ones."""
        return max(1, CLUSTERS_AT_ONCE[self.split] // self.tiles(problem))

    def ctas(self, problem: Problem, num_tokens: int) -> int:
        groups = min(ceil_div(num_tokens, self.tokens), self.token_groups(problem))
        return groups * self.tiles(problem) * self.split

    def dynamic_smem(self, problem: Problem, cluster: bool) -> int:
        return self._smem(problem, self.places(problem))

    def _smem(self, problem: Problem, places: int) -> int:
        """As Resident of templates/kernels/resident.cu.j2 lays it out, which asserts that both agree."""
        steps = self.steps(problem)
        rows = steps * self.tokens * 128
        own = ceil_div(self.tokens * self.experts // 4, self.split)
        partial = ceil_div(2 * (64 // self.experts) * self.tokens * (self.experts + 4) * 4, 1024) * 1024
        # Two parts of the weights' rows, each row a chunk longer for the banks' sake.
        weights = 2 * self.experts * ((ceil_div(steps, 2) * self.step + 8) * problem.gate_weight_bytes)
        weights = ceil_div(weights, 1024) * 1024
        total = max(weights, rows) + rows + partial if places == 2 else max(weights, partial) + rows
        total += 2 * self.split * own * 16
        if problem.folds_norm:
            total += steps * 128 + (2 * self.split + 2) * self.tokens * 4
        return total + problem.gate_bias * self.experts * 4 + (places * steps + 9) * 8

    def sum_registers(self, problem: Problem) -> int:
        """Of a thread that multiplies: terms of its weights, sums, addresses."""
        whole = self.split * self.steps(problem) * self.step == problem.hidden_size
        spare = 36 if whole else 48  # beyond a row's end there are tests for each of its parts
        spare += 8 * (self.experts < 64)  # which term it is that a warp has
        needed = ceil_div(self.steps(problem) * 2 * 4 * self.term_turns(problem) + self.tokens // 2 + spare, 8) * 8
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
