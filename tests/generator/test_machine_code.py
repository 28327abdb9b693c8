"""What the compiler made of the shipped kernels, for each SM: the loads and the tensor-core instructions that were meant.

Reads the library that the README's first command builds, with the disassembler of PyPI. No function may have local
memory; of each family and SM some functions, drawn anew each time, are disassembled.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from random import Random

import pytest

from codegen import toolkit
from codegen.arch import SM_TARGETS
from codegen.compile import LIBRARY
from codegen.manifest import load_manifest

PACKAGE = Path(__file__).parents[2] / "generated/normgate"
OF_EACH_FAMILY = 1

# Loads of 16 bytes: to registers, to shared memory by a thread, by the copy engine. Tensor cores: of a warp, a warpgroup.
LOAD, COPY, BULK_COPY = r"LDG\.E(\.\w+)*\.128(\.\w+)*", r"LDGSTS\.E(\.\w+)*\.128(\.\w+)*", r"UTMALDG\.2D(\.\w+)*"
STORE, MMA, WARPGROUP_MMA = r"STG\.E(\.\w+)*\.128(\.\w+)*", r"HMMA\.16816\.F32(\.\w+)*", r"HGMMA\.\w+(\.\w+)*"
MEANT = {
    "gemv": (LOAD, STORE),
    "split_k": (LOAD, MMA),
    "tiled": (COPY, MMA),
    "resident": (COPY, BULK_COPY, WARPGROUP_MMA),
    "wgmma": (BULK_COPY, WARPGROUP_MMA),
    "add": (LOAD, STORE),
    "row_norm": (LOAD, STORE),
    "select": (),
    "finish": (LOAD,),
}
"""What functions of a family have to hold; tensor-core instructions that are not here they may not have."""
_TENSOR_CORES = (MMA, WARPGROUP_MMA)

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


@cache
def _cuobjdump() -> Path:
    binary = toolkit.find_toolkit().root / "bin/cuobjdump"
    if not binary.is_file():
        pytest.skip("needs cuobjdump, which this toolkit lacks: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return binary


def _say(*arguments: str) -> str:
    if not (PACKAGE / LIBRARY).is_file():
        pytest.skip(f"{LIBRARY} is not built: python build.py")
    command = [str(_cuobjdump()), *arguments, str(PACKAGE / LIBRARY)]
    environment = {"PATH": str(_cuobjdump().parent)}  # where it finds nvdisasm
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@cache
def _built_sms() -> frozenset[int]:
    return frozenset(map(int, re.findall(r"\.sm_(\d+)a?\.cubin", _say("-lelf"))))


def _family(function: str) -> str:
    """Which of `MEANT` a function is of."""
    if function.endswith("_finish"):  # a second launch sums what CTAs without clusters leave in memory
        return "finish"
    return next(name for name in MEANT if re.search(rf"_{name}(_[tswk]\d|_sm)", function))


def instructions(sm: int, functions: Iterable[str]) -> dict[str, set[str]]:
    """The kinds of instructions of each function, as in LDG.E.128."""
    text = _say("-sass", "-arch", f"sm_{sm}", "-fun", ",".join(functions))
    parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.MULTILINE)
    return {name: set(_INSTRUCTION.findall(body)) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("sm", SM_TARGETS)
def test_the_machine_code_is_what_was_meant(sm: int) -> None:
    if sm not in _built_sms():
        pytest.skip(f"the library was built without sm_{sm}")
    by_family: dict[str, list[str]] = {}
    for source in load_manifest(PACKAGE).sources:
        if sm in source.sm_targets and not source.allow_spills:
            for function in source.functions:
                by_family.setdefault(_family(function), []).append(function)
    assert {"gemv", "split_k", "tiled"} <= by_family.keys()
    assert ("wgmma" in by_family) == (sm == 90)
    drawn = [name for names in by_family.values() for name in Random().sample(names, min(OF_EACH_FAMILY, len(names)))]
    found = instructions(sm, drawn)
    assert found.keys() == set(drawn)
    for function, kinds in found.items():
        meant = MEANT[_family(function)]
        for pattern in meant:
            assert any(re.fullmatch(pattern, kind) for kind in kinds), f"{function}: no {pattern} in {sorted(kinds)}"
        for pattern in set(_TENSOR_CORES) - set(meant):
            assert not any(re.fullmatch(pattern, kind) for kind in kinds), f"{function}: {pattern}"
        assert not any(kind.split(".")[0] in ("LDL", "STL") for kind in kinds), f"{function}: local memory"


def test_no_function_has_local_memory() -> None:
    usage = re.findall(r"Function (\w+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", _say("-res-usage"))
    allowed = {name for source in load_manifest(PACKAGE).sources if source.allow_spills for name in source.functions}
    assert len(usage) > 100
    assert [name for name, stack, local in usage if (int(stack) or int(local)) and name not in allowed] == []
