"""wgmma: a pipeline of warpgroups on sm_90a's tensor cores, for many tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..arch import REGISTERS_PER_SM
from ..problem import Problem
from .limits import MAX_CHAIN, MAX_TAKEN_REGISTERS, PUSH_BARRIERS, ceil_div, mma_terms
from .tile import TensorCoreTile


@dataclass(frozen=True, order=True)
class Wgmma(TensorCoreTile):
    """A warpgroup tensor-core tile of `experts` x `tokens`, 64 elements of hidden_size a step, pipelined."""

    tokens: int
    experts: int
    split: int
    stages: int
    early_weights: bool = True

    family = "wgmma"
    accelerated = True
    step = 64
    copy_registers = 40  # of a thread that copies
    fewest_norm_registers = 64  # of one that norms rows

    @property
    def name(self) -> str:
        name = f"wgmma_t{self.tokens}_e{self.experts}_s{self.split}_d{self.stages}"
        return name if self.early_weights else name + "_late"

    @property
    def groups(self) -> int:
        """Warpgroups that multiply, 64 experts each; one that copies and one that norms rows come on top."""
        return self.experts // 64

    @property
    def warps(self) -> int:
        return (self.groups + 2) * 4

    @property
    def threads(self) -> int:
        return self.warps * 32

    def threads_for(self, problem: Problem) -> int:
        """Without a norm to write there is no warpgroup for it."""
        return self.threads if problem.folds_norm else self.threads - 128

    def start_registers(self, problem: Problem) -> int:
        """Registers of a thread as the CTA begins; warpgroups then give some to those that multiply.

        No more than they need in all: a CTA begins where the kernel before has left so many, beside its CTAs.
        """
        most = REGISTERS_PER_SM // self.threads_for(problem) // 8 * 8
        if not problem.folds_norm:
            return most
        needed = self.groups * self.sum_registers(problem) + self.copy_registers + self.fewest_norm_registers
        return min(most, max(88, ceil_div(needed, 8 * (self.groups + 2)) * 8))

    def sum_registers(self, problem: Problem) -> int:
        """Of a thread that multiplies: two sets of sums, two batches of terms, one of weights, and addresses."""
        if not problem.folds_norm:  # the one that copies is alone beside them and needs few
            return min(MAX_TAKEN_REGISTERS, (self._all_registers(problem) - 56) // self.groups // 8 * 8)
        loaded = 8 * problem.gate_weight_bytes // 2 + 4
        return ceil_div(self.tokens + 2 * 2 * 4 * problem.gate_terms + loaded + 28, 8) * 8

    def norm_registers(self, problem: Problem) -> int:
        """Of a thread that norms rows: what the others leave."""
        others = self.groups * self.sum_registers(problem) + self.copy_registers
        return min(MAX_TAKEN_REGISTERS, self._all_registers(problem) - others)

    def _all_registers(self, problem: Problem) -> int:
        """Registers that the warpgroups share, a thread of each."""
        return self.threads_for(problem) // 128 * self.start_registers(problem)

    def chain_steps(self, problem: Problem) -> int:
        """Steps whose mma add to one accumulator."""
        return MAX_CHAIN // (self.step // 16 * mma_terms(problem))

    def steps(self, problem: Problem) -> int:
        """Steps of a CTA."""
        return ceil_div(ceil_div(problem.hidden_size, self.step), self.split)

    def row_places(self, problem: Problem) -> int:
        """Rows on their way to be normed: no more than a CTA has to norm on average."""
        return min(3, ceil_div(self.tokens, self.tiles(problem) * self.split))

    def dynamic_smem(self, problem: Problem, cluster: bool) -> int:
        """As Wgmma of templates/kernels/wgmma.cu.j2 lays it out, which asserts that both agree."""
        stage = self.step * (self.tokens * 2 + self.experts * problem.gate_weight_bytes)
        own = ceil_div(self.tokens * self.experts // 4, self.split)
        incoming = self.split * own * 16 if self.split > 1 else 0
        total = max(self.stages * stage, self.tokens * (self.experts + 4) * 4 + incoming)
        if problem.folds_norm:  # norm weights, rows and what each place has, two barriers, sums of squares, rstds
            total += self.split * self.steps(problem) * self.step * 2
            total += self.row_places(problem) * (problem.hidden_size * 2 + 2 * 8 + 4)
            total += 2 * 8 + 2 * 4 * 4 + self.tokens // self.split * 4
        return total + problem.gate_bias * self.experts * 4 + self.stages * 16 + 8

    def static_smem(self, problem: Problem, cluster: bool) -> int:
        return ceil_div(PUSH_BARRIERS, 1024) * 1024  # dynamic shared memory begins 1024-byte aligned

    def registers(self, problem: Problem) -> int:
        """Of a thread that multiplies."""
        return self.sum_registers(problem)
