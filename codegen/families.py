"""The kernel families: what a variant's constants are called, and what follows from them for a problem.

A variant is a family with its constants. It knows nothing of token ranges, which are the plan's, nor whether it is
legal, which variants.py says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .problem import Problem

REGISTERS_PER_SM = 65536  # 32-bit registers (CUDA programming guide, every target of arch.py)
# mma that may add to one accumulator: the tensor cores cut off what fp32 would round, about 3e-8 of the sum each time
# (measured on an H200, docs/notes/kernels.md), and logits are to stay within 2e-6.
MAX_CHAIN = 32
# Clusters of each size that an H200 runs side by side, one CTA an SM; a cluster's CTAs sit in one GPC, and GPCs differ
# (cudaOccupancyMaxActiveClusters, about 200 KiB of shared memory a CTA; up to 8 on an H200, from 10 on an H100, whose
# die is the same). Of 9 to 16, the sizes that are listed are those worth trying.
CLUSTERS_AT_ONCE = {1: 132, 2: 66, 3: 39, 4: 30, 5: 22, 6: 17, 7: 15, 8: 15, 10: 7, 12: 7, 14: 7, 16: 7}
_PUSH_BARRIERS = 16  # bytes of the barriers that count what a cluster's CTAs push to each other
_SPARE_REGISTERS = 56  # addresses, indices and temporaries, from the compiler's reports


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def mma_terms(problem: Problem) -> int:
    """mma for each 16-wide step of a tile: pairs of terms whose product is above fp32's last bit."""
    return sum(g + r <= 2 for g in range(problem.gate_terms) for r in range(problem.row_terms))


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
        return weights + rows + self.experts + _SPARE_REGISTERS - 16


class _TensorCoreTile:
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


@dataclass(frozen=True, order=True)
class SplitK(_TensorCoreTile):
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
            total += self.split * self.own_quads(problem) * 16 + problem.gate_bias * self.experts * 4 + _PUSH_BARRIERS
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
        return max(raw + norm, terms + rows + sums + norm + normed + wide) + _SPARE_REGISTERS


@dataclass(frozen=True, order=True)
class Tiled(_TensorCoreTile):
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
        declared = squares + problem.gate_bias * self.experts * 4 + _PUSH_BARRIERS
        return ceil_div(declared, 128) * 128  # dynamic shared memory begins 128-byte aligned

    def registers(self, problem: Problem) -> int:
        """An estimate of what a thread needs, for pruning; the compiler's report decides."""
        token_tiles, expert_tiles = self.tokens // self.token_warps // 8, self.experts // self.expert_warps // 16
        sums = token_tiles * expert_tiles * 4
        if self.adds_steps(problem):
            sums *= 2  # a step's own sums, beside the slice's
        rows = token_tiles * 4 * problem.row_terms
        squares = token_tiles * 4 if problem.folds_norm else 0
        return sums + rows + squares + 8 * problem.gate_terms + _SPARE_REGISTERS

    def adds_steps(self, problem: Problem) -> bool:
        """Each step has its own sums, for more mma would add to one accumulator than may."""
        mma = self.steps(problem) * (self.step // 32 // self.slice_warps) * 2 * mma_terms(problem)
        return mma > MAX_CHAIN


@dataclass(frozen=True, order=True)
class Wgmma(_TensorCoreTile):
    """A warpgroup tensor-core tile of `experts` x `tokens`, 64 elements of hidden_size a step, pipelined."""

    tokens: int
    experts: int
    split: int
    stages: int
    early_weights: bool = True

    family = "wgmma"
    accelerated = True
    step = 64

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
        """Registers of a thread as the CTA begins; warpgroups then give some to those that multiply."""
        return REGISTERS_PER_SM // self.threads_for(problem) // 8 * 8

    def sum_registers(self, problem: Problem) -> int:
        """Of a thread that multiplies: two sets of sums, two batches of terms, one of weights, and addresses."""
        if not problem.folds_norm:  # the one that copies is alone beside them and needs few
            return min(240, (self._all_registers(problem) - 56) // self.groups // 8 * 8)
        loaded = 8 * problem.gate_weight_bytes // 2 + 4
        needed = ceil_div(self.tokens + 2 * 2 * 4 * problem.gate_terms + loaded + 28, 8) * 8
        return max(needed, self.start_registers(problem))

    def norm_registers(self, problem: Problem) -> int:
        """Of a thread that norms rows."""
        return 64

    def copy_registers(self, problem: Problem) -> int:
        """Of a thread that copies and sums squares."""
        others = self.groups * self.sum_registers(problem) + problem.folds_norm * self.norm_registers(problem)
        return min(96, self._all_registers(problem) - others)

    def _all_registers(self, problem: Problem) -> int:
        """Registers that the warpgroups share, a thread of each."""
        return self.threads_for(problem) // 128 * self.start_registers(problem)

    def steps(self, problem: Problem) -> int:
        """Steps of a CTA."""
        return ceil_div(ceil_div(problem.hidden_size, self.step), self.split)

    def row_places(self, problem: Problem) -> int:
        """Rows on their way to be normed: no more than a CTA has to norm."""
        return min(3, ceil_div(self.tokens, self.tiles(problem) * self.split))

    def chain_steps(self, problem: Problem) -> int:
        """Steps whose mma add to one accumulator."""
        return MAX_CHAIN // (self.step // 16 * mma_terms(problem))

    def dynamic_smem(self, problem: Problem, cluster: bool) -> int:
        """As Wgmma of templates/kernels/wgmma.cu.j2 lays it out, which asserts that both agree."""
        stage = self.step * (self.tokens * 2 + self.experts * problem.gate_weight_bytes)
        own = ceil_div(self.tokens * self.experts // 4, self.split)
        incoming = self.split * own * 16 if self.split > 1 else 0
        total = max(self.stages * stage, self.tokens * (self.experts + 4) * 4 + incoming)
        if problem.folds_norm:
            total += self.split * self.steps(problem) * self.step * 2 + (1 + self.split) * self.tokens * 4 + 24
            total += self.row_places(problem) * (problem.hidden_size * 2 + 8)
        return total + problem.gate_bias * self.experts * 4 + self.stages * 16

    def static_smem(self, problem: Problem, cluster: bool) -> int:
        return ceil_div(_PUSH_BARRIERS, 1024) * 1024  # dynamic shared memory begins 1024-byte aligned

    def registers(self, problem: Problem) -> int:
        """Of a thread that multiplies."""
        return self.sum_registers(problem)


@dataclass(frozen=True, order=True)
class Resident(_TensorCoreTile):
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


Variant = Gemv | SplitK | Tiled | Wgmma | Resident


@dataclass(frozen=True, order=True)
class Apart:
    """A path whose residual add and selection are launches of their own, around a variant of its gate's kernel."""

    inner: Variant

    family = "apart"

    @property
    def name(self) -> str:
        return f"apart_{self.inner.name}"

    @property
    def accelerated(self) -> bool:
        return self.inner.accelerated


_NAMES: dict[Callable[..., Variant], re.Pattern[str]] = {
    Gemv: re.compile(r"gemv_t(\d+)_e(\d+)_w(\d+)_c(\d+)(_late)?"),
    SplitK: re.compile(r"split_k_t(\d+)_e(\d+)_s(\d+)_w(\d+)_b(\d+)(?:_r(\d+))?(_late)?"),
    Tiled: re.compile(r"tiled_t(\d+)_e(\d+)_s(\d+)_w(\d)(\d)(\d)_k(\d+)_d(\d+)(_late)?"),
    Wgmma: re.compile(r"wgmma_t(\d+)_e(\d+)_s(\d+)_d(\d+)(_late)?"),
    Resident: re.compile(r"resident_t(\d+)_s(\d+)(_late)?"),
}

FAMILIES = tuple(family.family for family in (Gemv, SplitK, Tiled, Resident, Wgmma))
"""Names of the families, from the fewest tokens to the most."""


FUSING = ("gemv", "split_k")
"""Families that can take the residual add and the selection into their own launch."""

MOST_TOKENS_FUSED = 64
"""Tokens of a launch that chooses experts itself. In tiles of 8 tokens, each with a ticket counter for each of up to 8
CTAs of a cluster, they need half of the counters that templates/include/handover.h has.
"""


def parse(name: str) -> Variant:
    """The variant of that name, legal or not. ValueError for a name that no variant has."""
    for family, pattern in _NAMES.items():
        if match := pattern.fullmatch(name):
            *constants, late = match.groups()
            variant = family(*(int(digits or 1) for digits in constants), late is None)
            if variant.name == name:  # 01 is no way to write 1
                return variant
    raise ValueError(f"no variant has the name {name!r}")


def parse_served(name: str) -> Variant | Apart:
    """What serves a range by that name, a variant or one with the other stages apart. ValueError as `parse`."""
    inner = name.removeprefix(f"{Apart.family}_")
    return parse(name) if inner == name else Apart(parse(inner))


Order = tuple[int | str | bool, ...]
"""What `order_of_sums` gives; equal ones are the same order."""


def order_of_sums(problem: Problem, variant: Variant) -> Order:
    """What decides the order in which a row's products and squares are added: variants that share it give a row the
    same bits, whatever tile it lies in.
    """
    if isinstance(variant, Gemv):
        return variant.family, variant.warps, variant.chunks
    if isinstance(variant, SplitK):
        return variant.family, variant.split, variant.warps, variant.blocks, variant.rounds, variant.chains
    if isinstance(variant, Tiled):
        adds_steps = variant.adds_steps(problem)
        return variant.family, variant.split, variant.slice_warps, variant.step, adds_steps
    return variant.family, variant.split
