"""The one statement of what is legal for each kernel family: plan, tuner and tests all ask it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from .arch import MAX_REGISTERS, REGISTERS_PER_SM, RESERVED_SMEM, Arch
from .families import (
    CLUSTERS_AT_ONCE,
    FUSING,
    MAX_CHAIN,
    MAX_TAKEN_REGISTERS,
    Gemv,
    Resident,
    SplitK,
    Tiled,
    Variant,
    Wgmma,
    ceil_div,
)
from .problem import Problem

MAX_STATIC_SMEM = 48 * 1024  # bytes a kernel may declare without opting in (CUDA programming guide)
# To blocks of other kernels: 15.7 us at 512 tokens without, 14.0 with (docs/notes/kernels.md).
LEFT_SMEM = 8 * RESERVED_SMEM
MAX_PORTABLE_CLUSTER = 8  # CTAs; larger clusters are not launchable on every chip (CUDA programming guide)
MAX_CLUSTER = 16  # on Hopper, where a kernel asks for a size that is not portable (CUDA programming guide)


def objections(problem: Problem, arch: Arch, variant: Variant) -> list[str]:
    """Why a variant cannot serve a problem on a chip; empty if it can."""
    out: list[str] = []
    if not 1 <= variant.warps <= 32:
        out.append(f"{variant.warps} warps: a CTA has 1 to 32")
    if problem != problem.gate_part and variant.family not in FUSING:
        out.append(f"{variant.family} has no residual add and no selection; they are launches of their own around it")
    if isinstance(variant, Gemv):
        width = variant.threads * variant.chunks * 8
        if width < problem.hidden_size:
            out.append(f"its threads cover {width} of hidden_size {problem.hidden_size}")
        return out + _resource_objections(problem, arch, variant)
    if isinstance(variant, Resident):
        return out + _resident_objections(problem, arch, variant) + _resource_objections(problem, arch, variant)
    if arch.has_cluster and variant.split > MAX_PORTABLE_CLUSTER:
        out.append(f"a cluster of {variant.split} CTAs: at most {MAX_PORTABLE_CLUSTER} are portable")
    if isinstance(variant, SplitK):
        if variant.tokens % 8 or variant.experts % 16:
            out.append("tensor-core tiles are multiples of 8 tokens and 16 experts")
        width = variant.split * variant.slice
        if width < problem.hidden_size:
            out.append(f"its CTAs cover {width} of hidden_size {problem.hidden_size}")
        if variant.chain(problem) > MAX_CHAIN:
            out.append(f"{variant.chain(problem)} mma add to one accumulator: more than {MAX_CHAIN} lose too many bits")
        if arch.has_cluster and problem.rounds_rows and variant.rounds > 1:
            out.append("rounded logits need a row's whole slice in registers: one round")
    elif isinstance(variant, Wgmma):
        out += _wgmma_objections(problem, arch, variant)
    else:
        if variant.tokens % (8 * variant.token_warps) or variant.experts % (16 * variant.expert_warps):
            out.append("a warp's tensor-core tile is a multiple of 8 tokens and 16 experts")
        if variant.step % (32 * variant.slice_warps) or variant.step % 64:
            out.append("a step is a multiple of 64 elements and of 32 for each warp that shares it")
        if variant.stages < 2:
            out.append("copies need two stages to run beside the arithmetic")
        if (variant.split - 1) * variant.steps(problem) * variant.step >= problem.hidden_size:
            out.append("the last CTA of the split would have nothing to do")
    return out + _resource_objections(problem, arch, variant)


def _wgmma_objections(problem: Problem, arch: Arch, variant: Wgmma) -> list[str]:
    out: list[str] = []
    if not arch.has_wgmma:
        out.append(f"sm_{arch.sm} has no wgmma")
    if variant.tokens % 8 or not 8 <= variant.tokens <= 128 or variant.experts not in (64, 128):
        out.append("warpgroup tiles are a multiple of 8 tokens up to 128, and 64 or 128 experts")
    if problem.row_terms > 1:
        out.append("rows go from shared memory to the tensor cores as they are, and float16 has too many bits")
    if problem.folds_norm and variant.tokens % variant.split:
        out.append("the CTAs of a split finish as many tokens each")
    if variant.stages < 2:
        out.append("copies need two stages to run beside the arithmetic")
    if (variant.split - 1) * variant.steps(problem) * variant.step >= problem.hidden_size:
        out.append("the last CTA of the split would have nothing to do")
    return out


def _resident_objections(problem: Problem, arch: Arch, variant: Resident) -> list[str]:
    out: list[str] = []
    if not arch.has_wgmma:
        out.append(f"sm_{arch.sm} has no wgmma")
    if variant.tokens % 8 or not 8 <= variant.tokens <= 64 or variant.experts not in (32, 64):
        out.append("its tiles are a multiple of 8 tokens up to 64, and 32 or 64 experts")
    if variant.experts == 32 and problem.gate_terms != 2:
        out.append(f"32 experts have their two terms side by side, and weights have {problem.gate_terms} here")
    if not 2 <= variant.split <= MAX_CLUSTER:
        out.append(f"a cluster of {variant.split} CTAs: it takes 2 to {MAX_CLUSTER}")
    if problem.row_terms > 1:
        out.append("rows go from shared memory to the tensor cores as they are, and float16 has too many bits")
    if variant.chain(problem) > MAX_CHAIN:
        out.append(f"{variant.chain(problem)} mma add to one accumulator: more than {MAX_CHAIN} lose too many bits")
    if (variant.split - 1) * variant.steps(problem) * variant.step >= problem.hidden_size:
        out.append("the last CTA of the split would have nothing to do")
    return out


def _resource_objections(problem: Problem, arch: Arch, variant: Variant) -> list[str]:
    out: list[str] = []
    static = variant.static_smem(problem, arch.has_cluster)
    if static > MAX_STATIC_SMEM:
        out.append(f"{static} bytes of static shared memory: at most {MAX_STATIC_SMEM}")
    smem = static + variant.dynamic_smem(problem, arch.has_cluster)
    if smem > arch.max_smem_per_block:
        out.append(f"{smem} bytes of shared memory: a block has {arch.max_smem_per_block}")
    registers = variant.registers(problem)
    limit = min(MAX_REGISTERS, REGISTERS_PER_SM // (ceil_div(variant.warps, 4) * 4 * 32) // 8 * 8)
    if isinstance(variant, Wgmma):
        limit = MAX_TAKEN_REGISTERS
        if problem.folds_norm and variant.norm_registers(problem) < variant.fewest_norm_registers:
            out.append("its sums leave the warpgroup that norms rows too few registers")
    if isinstance(variant, Resident):
        limit = MAX_TAKEN_REGISTERS
        if problem.folds_norm and variant.norm_registers(problem) < variant.fewest_norm_registers:
            out.append("its weights leave the warpgroup that norms rows too few registers")
    if registers > limit:
        out.append(f"about {registers} registers a thread: {variant.warps} warps leave {limit}")
    return out


# Layouts of a tiled CTA's eight warps over tokens, experts and hidden_size: the four that led the sweeps.
_WARPS = ((2, 1, 4), (4, 1, 2), (2, 2, 2), (1, 2, 4))


def candidates(problem: Problem, arch: Arch, num_tokens: int) -> Iterator[Variant]:
    """Every legal variant worth a look for a token count, in a fixed order."""
    families = [_gemvs(problem, num_tokens), _split_ks(problem, num_tokens), _tileds(problem, num_tokens)]
    if arch.has_wgmma:
        families += [_residents(problem, num_tokens), _wgmmas(problem, arch, num_tokens)]
    for variant in itertools.chain(*families):
        if not objections(problem, arch, variant):
            yield variant


def _gemvs(problem: Problem, num_tokens: int) -> Iterator[Variant]:
    for tokens in (1, 2, 3, 4, 6, 8):
        if num_tokens <= tokens < 2 * num_tokens:
            for chunks in (1, 2, 3, 4, 7):
                warps = ceil_div(ceil_div(problem.hidden_size, 8), 32 * chunks)
                if warps > 16 and chunks < 7:
                    continue  # larger CTAs start late (docs/notes/kernels.md): only where nothing else covers a row
                for experts in (1, 2, 3, 4):
                    yield Gemv(tokens, experts, warps, chunks, problem.early_weight_loads)


def _split_ks(problem: Problem, num_tokens: int) -> Iterator[Variant]:
    row_blocks = ceil_div(problem.hidden_size, 32)
    for tokens in (8, 16, 32):
        if 8 < tokens >= 2 * num_tokens or num_tokens > 4 * tokens:
            continue
        for experts in (16, 32):
            if experts >= problem.num_experts + 16:
                continue
            for split in range(1, MAX_PORTABLE_CLUSTER + 1):
                for warps in (4, 5, 6, 7, 8, 10, 12, 14, 16):
                    for rounds in (1, 2):
                        blocks = ceil_div(row_blocks, split * warps * rounds)
                        covered = split * warps * rounds * blocks
                        # A tenth of idle lanes is the most that a better fit elsewhere could not win back.
                        if blocks <= 8 and covered <= 1.1 * row_blocks + 1:
                            yield SplitK(tokens, experts, split, warps, blocks, rounds, problem.early_weight_loads)


def _tileds(problem: Problem, num_tokens: int) -> Iterator[Variant]:
    for tokens in (32, 64, 128):
        if tokens >= 2 * num_tokens:
            continue
        for experts in (16, 32, 64, 96, 128):
            if experts >= problem.num_experts + 16 or experts == 16 and tokens > 32:
                continue
            for split in (1, 2, 3, 4, 6, 7, 8):
                for token_warps, expert_warps, slice_warps in _WARPS:
                    for step, stages in ((128, 3), (64, 4)):
                        warps = (token_warps, expert_warps, slice_warps)
                        yield Tiled(tokens, experts, split, *warps, step, stages, problem.early_weight_loads)


def _residents(problem: Problem, num_tokens: int) -> Iterator[Variant]:
    for tokens in (8, 16, 24, 32, 48, 64):
        if 8 < tokens >= 2 * num_tokens or num_tokens > 4 * tokens:
            continue
        for experts in (32, 64):
            for split in CLUSTERS_AT_ONCE:
                if split >= 4:
                    yield Resident(tokens, experts, split, problem.early_weight_loads)


def _wgmmas(problem: Problem, arch: Arch, num_tokens: int) -> Iterator[Variant]:
    for tokens in range(16, 129, 8):
        if tokens >= 2 * num_tokens:
            continue
        for experts in (64, 128):
            if experts >= problem.num_experts + 64:
                continue
            for split in range(1, MAX_PORTABLE_CLUSTER + 1):
                # As deep as the slice is long and shared memory allows that is not left to small CTAs of the kernels
                # before, beside which a CTA begins sooner; or so deep that the next launch's CTA has room beside.
                deepest = min(ceil_div(ceil_div(problem.hidden_size, 64), split), 12)
                variants = [Wgmma(tokens, experts, split, n, problem.early_weight_loads) for n in range(deepest, 1, -1)]
                sizes = {v: v.static_smem(problem, True) + v.dynamic_smem(problem, True) for v in variants}
                yield from [v for v in variants if sizes[v] <= arch.max_smem_per_block - LEFT_SMEM][:1]
                half = [v for v in variants if sizes[v] <= arch.max_smem_per_sm // 2 - RESERVED_SMEM][:1]
                yield from [v for v in half if 4 <= v.stages < deepest]
