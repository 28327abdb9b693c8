"""A model of what a variant costs, for chips without a tuned table. It ranks variants; its microseconds are an H200's.

The terms are the work that a launch cannot hide, each in microseconds of one multiprocessor at full rate; the
coefficients beside them say how much of it shows. They were fitted to exploratory sweeps of four shapes on an H200
(docs/notes/kernels.md); tests/generator/test_tune.py holds what they rank best against what specs/tuned records.
"""

from __future__ import annotations

from .arch import MAX_REGISTERS, REGISTERS_PER_SM, RESERVED_SMEM, Arch
from .families import CLUSTERS_AT_ONCE, Gemv, Resident, SplitK, Tiled, Variant, Wgmma, ceil_div, mma_terms
from .problem import ACTIVATION_BYTES, Problem

_CYCLES_PER_US = 1750.0  # an SM's clock under load (H200, nvidia-smi during the sweeps)
_SCHEDULERS = 4  # of an SM, an instruction of a warp each a cycle (CUDA programming guide)
_MMA_CYCLES = 6.5  # of a scheduler's tensor core for an m16n8k16 (fitted: about 60 % of the peak rate)
_L2_BYTES_PER_US = 5.5e6  # all SMs together (fitted)
_HBM_BYTES_PER_US = 4.3e6  # device-to-device copy, H200
_SMEM_BYTES_PER_CYCLE = 128  # of an SM (CUDA programming guide: 32 banks of 4 bytes)
_PUSHED_BYTES_PER_CYCLE = 13.0  # from an SM into the shared memory of others (docs/notes/kernels.md)
_SMEM_CYCLES = 4  # of shared memory for a warp's 16-byte loads
_ROW_NORM_LAUNCH = 2.0  # a norm in a launch of its own
# A path's other stages, apart and within the gate's launch (H200, up to 16 tokens, docs/notes/path.md).
_ADD_LAUNCH, _ADD_FUSED = 1.2, 0.2
_SELECT_LAUNCH, _SELECT_FUSED = 1.7, 1.1


def microseconds(problem: Problem, arch: Arch, variant: Variant, num_tokens: int) -> float:
    """Estimated time of the variant's launches at a token count."""
    if isinstance(variant, Gemv):
        return _gemv(problem, arch, variant)
    if isinstance(variant, SplitK):
        return _split_k(problem, arch, variant, num_tokens)
    if isinstance(variant, Wgmma):
        return _wgmma(problem, arch, variant, num_tokens)
    if isinstance(variant, Resident):
        return _resident(problem, arch, variant, num_tokens)
    return _tiled(problem, arch, variant, num_tokens)


def apart_microseconds(problem: Problem) -> float:
    """What a path's stages before and after the gate take as launches of their own."""
    return _ADD_LAUNCH * bool(problem.residual) + _SELECT_LAUNCH * bool(problem.selection)


def fused_microseconds(problem: Problem) -> float:
    """What they take within the gate's launch."""
    return _ADD_FUSED * bool(problem.residual) + _SELECT_FUSED * bool(problem.selection)


def _clusters_at_once(multiprocessors: int, size: int) -> int:
    """Clusters of `size` CTAs that run side by side, one CTA an SM; other chips scale from the H200."""
    return max(1, CLUSTERS_AT_ONCE[size] * multiprocessors // CLUSTERS_AT_ONCE[1])


def _waves(arch: Arch, ctas: int, cluster: int, resident: int) -> tuple[float, float]:
    """CTAs that the busiest SM runs, and waves of CTAs when `resident` of them share an SM."""
    clusters, at_once = ctas // cluster, _clusters_at_once(arch.multiprocessors, cluster)
    if clusters > 3 * at_once * resident:
        return clusters / at_once, clusters / (at_once * resident)
    return ceil_div(clusters, at_once), ceil_div(clusters, at_once * resident)


def _fitting(arch: Arch, warps: int, registers: int, smem: int) -> int:
    """CTAs that fit an SM at once."""
    by_registers = REGISTERS_PER_SM // (registers * warps * 32)
    return max(1, min(arch.max_warps_per_sm // warps, by_registers, arch.max_smem_per_sm // (smem + RESERVED_SMEM)))


def _cycles(instructions: float) -> float:
    """Microseconds that warp instructions take to issue."""
    return instructions / _SCHEDULERS / _CYCLES_PER_US


def _gemv(problem: Problem, arch: Arch, variant: Gemv) -> float:
    ctas = variant.ctas(problem, variant.tokens)
    per_sm = ceil_div(ctas, arch.multiprocessors)
    arithmetic = _cycles(variant.tokens * variant.chunks * 8 * (3 + 2 * variant.experts) * variant.warps * per_sm)
    weight_bytes = variant.experts * problem.hidden_size * problem.gate_weight_bytes
    row_bytes = ctas * variant.tokens * problem.hidden_size * ACTIVATION_BYTES
    return 1.16 + 1.91 * arithmetic + 0.2 * weight_bytes / 1e5 + 0.64 * row_bytes / _L2_BYTES_PER_US


def _split_k(problem: Problem, arch: Arch, variant: SplitK, num_tokens: int) -> float:
    cluster = variant.split if arch.has_cluster else 1
    registers = min(MAX_REGISTERS, variant.registers(problem))
    resident = _fitting(arch, variant.warps, registers, variant.static_smem(problem, arch.has_cluster))
    ctas = variant.ctas(problem, num_tokens)
    per_sm, _ = _waves(arch, ctas, cluster, resident)
    expert_tiles, token_tiles = variant.experts // 16, variant.tokens // 8
    warp_blocks = variant.rounds * variant.blocks * variant.warps * per_sm
    products = expert_tiles * token_tiles * 2 * mma_terms(problem) + 2 * token_tiles * problem.row_terms**2
    mma = _cycles(warp_blocks * products * _MMA_CYCLES)
    fold = _cycles(warp_blocks * expert_tiles * 8 * problem.gate_terms * (1 if problem.gate_terms == 2 else 4))
    row_bytes = min(variant.tokens, num_tokens) * ACTIVATION_BYTES
    operands = ctas * variant.slice * (row_bytes + variant.experts * problem.gate_weight_bytes) / _L2_BYTES_PER_US
    sums = _cycles(variant.tokens * variant.experts / 4 / 32 * (2 * variant.warps + 4) * per_sm)
    apart = 0.0 if arch.has_cluster else _ROW_NORM_LAUNCH * (1 + problem.rounds_rows)
    return (
        1.58
        + 2.51 * mma
        + 0.16 * fold
        + 0.55 * operands
        + 12.3 * sums
        + 0.29 * (variant.split > 1)
        + 0.85 * (variant.rounds - 1)
        + apart
    )


def _tiled(problem: Problem, arch: Arch, variant: Tiled, num_tokens: int) -> float:
    cluster = variant.split if arch.has_cluster else 1
    smem = variant.dynamic_smem(problem, arch.has_cluster) + variant.static_smem(problem, arch.has_cluster)
    resident = _fitting(arch, variant.warps, max(64, min(MAX_REGISTERS, variant.registers(problem))), smem)
    ctas = variant.ctas(problem, num_tokens)
    per_sm, waves = _waves(arch, ctas, cluster, resident)
    slice_ = variant.steps(problem) * variant.step
    expert_tiles, token_tiles = variant.experts // 16, variant.tokens // 8
    mma = _cycles(slice_ / 16 * expert_tiles * token_tiles * mma_terms(problem) * per_sm * _MMA_CYCLES)
    squares = _cycles(slice_ / 16 * token_tiles * per_sm * _MMA_CYCLES)
    fold_one = 8 * problem.gate_terms * (1 if problem.gate_terms == 2 else 4)
    fold = _cycles(slice_ / 32 * expert_tiles * fold_one * variant.token_warps * per_sm)
    weight_loads = 2 * expert_tiles * variant.token_warps * problem.gate_weight_bytes / 2
    row_loads = token_tiles * variant.expert_warps
    smem_loads = slice_ / 32 * (weight_loads + row_loads) * _SMEM_CYCLES * per_sm / _SCHEDULERS / _CYCLES_PER_US
    sums = _cycles(variant.tokens * variant.experts / 4 / 32 * (2 * variant.slice_warps + 6) * per_sm)
    steps = variant.steps(problem) * waves / 10
    rows_again = num_tokens * problem.hidden_size * 4 / _HBM_BYTES_PER_US
    apart = _ROW_NORM_LAUNCH * ((not arch.has_cluster) + problem.rounds_rows)
    return (
        0.45
        + 0.96 * mma
        + 0.99 * squares
        + 0.45 * fold
        + 1.44 * smem_loads
        + 47.0 * sums
        + 1.2 * (variant.split > 1)
        + 0.55 * (waves - 1)
        + 2.15 * steps
        + 1.33 * rows_again
        + apart
    )


def _wgmma(problem: Problem, arch: Arch, variant: Wgmma, num_tokens: int) -> float:
    ctas = variant.ctas(problem, num_tokens)
    waves = ceil_div(ctas // variant.split, _clusters_at_once(arch.multiprocessors, variant.split))
    # Shared memory is the limit: each mma reads its rows, and copies, folds and norms pass them once more.
    weights = variant.experts * variant.step * problem.gate_weight_bytes
    rows = variant.tokens * variant.step * 2
    step = mma_terms(problem) * variant.groups * rows + rows + 2 * weights
    if problem.folds_norm:
        norm_weights = (
            4 * variant.groups * variant.step // 8 * 128
        )  # a warp reads 4 bytes a thread, twice for 16 elements
        step += norm_weights + 3 * rows // (variant.tiles(problem) * variant.split)
    smem = waves * variant.steps(problem) * step / _SMEM_BYTES_PER_CYCLE / _CYCLES_PER_US
    sums = waves * variant.tokens * variant.experts * 4 * (1 - 1 / variant.split)
    apart = _ROW_NORM_LAUNCH * problem.rounds_rows
    return 3.2 + 1.5 * (waves - 1) + 1.2 * smem + sums / _PUSHED_BYTES_PER_CYCLE / _CYCLES_PER_US + apart


def _resident(problem: Problem, arch: Arch, variant: Resident, num_tokens: int) -> float:
    groups = min(ceil_div(num_tokens, variant.tokens), variant.token_groups(problem))
    turns = ceil_div(ceil_div(num_tokens, variant.tokens), groups)
    waves = ceil_div(groups * variant.tiles(problem), _clusters_at_once(arch.multiprocessors, variant.split))
    parts = (
        variant.steps(problem) * 4 * variant.term_turns(problem)
    )  # warpgroup instructions, each no shorter than 20 cycles
    mma = parts * max(20.0, variant.tokens / 2) / _CYCLES_PER_US
    pushes = variant.tokens * variant.experts * 4 / _PUSHED_BYTES_PER_CYCLE / _CYCLES_PER_US
    weights = variant.experts * variant.steps(problem) * variant.step * problem.gate_weight_bytes / 1e5
    apart = _ROW_NORM_LAUNCH * problem.rounds_rows
    return 1.88 + 0.4 * weights + waves * turns * (0.3 + mma + 2.8 * pushes) + apart
