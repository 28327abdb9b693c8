"""What the families reckon with: registers, mma that may share a sum, clusters side by side."""

from __future__ import annotations

from ..arch import ARCHS
from ..problem import Problem

# mma that may add to one accumulator: the tensor cores cut off what fp32 would round, about 3e-8 of the sum each time
# (measured on an H200, docs/notes/kernels.md), and logits are to stay within 2e-6.
MAX_CHAIN = 32
# Clusters of each size that an H200 runs side by side, one CTA an SM; a cluster's CTAs sit in one GPC, and GPCs differ
# (cudaOccupancyMaxActiveClusters, about 200 KiB of shared memory a CTA; up to 8 on an H200, from 10 on an H100, whose
# die is the same). Of 9 to 16, the sizes that are listed are those worth trying.
CLUSTERS_AT_ONCE = {1: 132, 2: 66, 3: 39, 4: 30, 5: 22, 6: 17, 7: 15, 8: 15, 10: 7, 12: 7, 14: 7, 16: 7}
RESIDENT_SMEM = ARCHS[90].max_smem_per_block  # bytes, of the one target that `resident` has
# Of a thread whose warpgroup takes registers of others. setmaxnreg gives steps of 8 (PTX ISA), 248 the last that a
# thread can use; what a thread needs is an estimate, so a step less.
MAX_TAKEN_REGISTERS = 240
PUSH_BARRIERS = 16  # bytes of the barriers that count what a cluster's CTAs push to each other
SPARE_REGISTERS = 56  # addresses, indices and temporaries, from the compiler's reports


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def mma_terms(problem: Problem) -> int:
    """mma for each 16-wide step of a tile: pairs of terms whose product is above fp32's last bit."""
    return sum(g + r <= 2 for g in range(problem.gate_terms) for r in range(problem.row_terms))
