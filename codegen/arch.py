"""Facts about the SM targets normgate generates kernels for: one table, one row a target.

Shared memory figures and resident warps are those of the CUDA programming guide's table "Technical Specifications per
Compute Capability" ("Maximum amount of shared memory per multiprocessor" / "per thread block", "Maximum number of
resident warps per SM"; ptxas 13.0 says of the same targets that they have no room for 64). A block can have all
of an SM's shared memory but the 1 KiB that the driver reserves for each block.

The number of multiprocessors belongs to a product, not to a target: the cost model needs one, so each row
names the product it was taken from. It decides how fast a variant is thought to be, never whether it is
right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_KIB = 1024
REGISTERS_PER_SM = 65536  # of 32 bits; as the next, of every target (CUDA programming guide, the same table)
MAX_REGISTERS = 255  # of a thread
RESERVED_SMEM = _KIB  # bytes of an SM's for each of its blocks


@dataclass(frozen=True)
class Arch:
    """One SM target.

    sm: the number in `sm_<N>`; chip: a product of this target; multiprocessors: that product's count of SMs;
    max_warps_per_sm: of all blocks together; max_smem_per_sm: bytes of shared memory an SM can give to all blocks;
    max_smem_per_block: bytes one block can have after opting in
    (cudaFuncAttributeMaxDynamicSharedMemorySize); has_wgmma: warpgroup tensor-core instructions (PTX ISA: sm_90a
    alone, and no chip after it).
    """

    sm: int
    chip: str
    multiprocessors: int
    max_warps_per_sm: int
    max_smem_per_sm: int
    max_smem_per_block: int
    has_wgmma: bool = False

    @property
    def has_cluster(self) -> bool:
        """Thread block clusters and distributed shared memory (plain target, no `a` or `f` suffix)."""
        return self.sm >= 90

    @property
    def has_pdl(self) -> bool:
        """Programmatic dependent launch: griddepcontrol in the kernel, the launch attribute on the host."""
        return self.sm >= 90


def _arch(sm: int, chip: str, multiprocessors: int, warps: int, smem_kib: int) -> Arch:
    smem = smem_kib * _KIB
    return Arch(sm, chip, multiprocessors, warps, smem, smem - RESERVED_SMEM, has_wgmma=sm == 90)


_ROWS = (
    _arch(80, "A100", 108, 64, 164),  # A100 whitepaper: 108 SMs enabled of 128
    _arch(86, "A10", 72, 48, 100),  # A10 datasheet: 9216 CUDA cores, 128 an SM
    _arch(89, "L40S", 142, 48, 100),  # L40S datasheet: 18176 CUDA cores, 128 an SM
    _arch(90, "H200", 132, 64, 228),  # H100 whitepaper: 132 SMs (SXM5); H200 is the same die
    _arch(100, "B200", 148, 64, 228),  # device query, 148 SMs (74 a die); NVIDIA blog on DGX Spark, its table 8
    _arch(103, "B300", 148, 64, 228),  # device query, 148 SMs (the full chip has 160: NVIDIA blog on Blackwell Ultra)
    _arch(110, "Jetson Thor T5000", 20, 48, 228),  # Jetson Thor datasheet: 2560 CUDA cores, 128 an SM
    _arch(120, "RTX PRO 6000 Blackwell", 188, 48, 100),  # its datasheet: 24064 CUDA cores, 128 an SM
    _arch(121, "GB10 (DGX Spark)", 48, 48, 100),  # DGX Spark datasheet: 6144 CUDA cores, 128 an SM
)

ARCHS: dict[int, Arch] = {row.sm: row for row in _ROWS}
"""All targets by SM number, ascending."""

SM_TARGETS: tuple[int, ...] = tuple(ARCHS)
"""The SM numbers a spec may ask for, ascending."""


def arch(sm: int) -> Arch:
    """The facts of `sm`; KeyError when it is no target (specs and --sm are checked before they get here)."""
    return ARCHS[sm]


def gencode(sms: Iterable[int], ptx_sm: int | None, *, accelerated: bool = False) -> list[str]:
    """nvcc's flags that compile machine code for each of `sms`, if any, and PTX of `ptx_sm` when given.

    All machine code comes from the PTX of the oldest of `sms`: their kernels ask for no feature that it lacks, and
    compiling to PTX, the longer half of the work, is done once. accelerated: machine code may use the instructions that
    only this very target has (sm_90a). PTX is always plain, for it carries a kernel to chips that do not exist yet.
    """
    targets = sorted(set(sms))
    suffix = "a" if accelerated else ""
    flags = [f"-gencode=arch=compute_{targets[0]}{suffix},code=sm_{sm}{suffix}" for sm in targets]
    if ptx_sm is not None:
        flags.append(f"-gencode=arch=compute_{ptx_sm},code=compute_{ptx_sm}")
    return flags
