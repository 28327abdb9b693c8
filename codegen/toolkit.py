"""Find what compiles: the CUDA toolkit, the host compiler, ninja, and the SMs of the GPUs of this machine.

Nothing here imports torch: a CPU build of torch knows no CUDA_HOME, and importing it takes longer than a
build that has nothing to do. Everything that is missing is a ToolError: what is missing, and the command that
gets it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .arch import SM_TARGETS
from .errors import ToolError

INSTALL = 'pip install "cuda-toolkit[nvcc,cudart,cccl]==13.0.*"'


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can build: `root`, what was asked for it (`found_by`), nvcc's version, the SMs it
    knows.
    """

    root: Path
    found_by: str
    lib: Path
    version: str
    sms: frozenset[int]

    @property
    def nvcc(self) -> Path:
        return self.root / "bin" / "nvcc"

    @property
    def include(self) -> Path:
        return self.root / "include"

    def require(self, sms: Iterable[int]) -> None:
        """Raise ToolError when nvcc has no code generator for one of `sms`."""
        lacking = [sm for sm in sms if sm not in self.sms]
        if lacking:
            raise ToolError(
                f"nvcc {self.version} at {self.nvcc} (from {self.found_by}) does not know {_names(lacking)}; "
                f"it knows {_names(sorted(self.sms))}. Leave them out with --sm, or get a newer toolkit: "
                f"{INSTALL}"
            )


def find_toolkit() -> Toolkit:
    """The first toolkit of: CUDA_HOME, the PyPI package, the one behind `nvcc` on PATH, /usr/local/cuda.

    Raises ToolError: none found, CUDA_HOME set to a folder without nvcc, or a toolkit without what a build
    needs.
    """
    for root, found_by in _roots():
        nvcc = root / "bin" / "nvcc"
        if nvcc.is_file():
            return _toolkit(root, found_by)
        if found_by == "CUDA_HOME":
            raise ToolError(
                f"CUDA_HOME is {root}, which has no bin/nvcc; set it to a CUDA toolkit, or unset it and: {INSTALL}"
            )
    raise ToolError(
        "no CUDA toolkit: CUDA_HOME is not set, this Python has no cuda-toolkit package, there is no nvcc on "
        f"PATH and no /usr/local/cuda. To get one without a system installation: {INSTALL}"
    )


def host_compiler() -> list[str]:
    """The command of the host C++ compiler: $CXX (which may be several words, as "ccache g++"), else g++.

    Raises ToolError when there is none.
    """
    words = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    for word in words:
        if not word.startswith("-") and shutil.which(word) is None:
            raise ToolError(
                f"no host C++ compiler: {word} is not on PATH; install one (apt-get install g++) or set CXX to one"
            )
    return words


def find_ninja() -> Path:
    """The ninja of the PyPI package that normgate depends on. Raises ToolError when it is missing."""
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        binary = Path(ninja.BIN_DIR) / "ninja"
        if binary.is_file():
            return binary
    raise ToolError("ninja is missing, which runs the compilers; it comes with normgate: pip install ninja")


def select_sms(wanted: str, targets: Collection[int] = SM_TARGETS) -> tuple[int, ...]:
    """What --sm means: `all`, `native` (the GPUs of this machine) or a list as `90,100`; SM numbers,
    ascending.

    targets: what there is to choose from. Raises ToolError for an SM that is none of them, and for `native`
    without a GPU or with one that no target serves.
    """
    if wanted == "all":
        return tuple(sorted(targets))
    if wanted == "native":
        return tuple(sorted({serving(sm, targets) for sm in native_sms()}))
    words = [word.strip() for word in wanted.split(",")]
    bad = [word for word in words if not word.isdecimal() or int(word) not in targets]
    if bad:
        raise ToolError(
            f"--sm {wanted}: {bad[0]!r} is no target here; use all, native or some of "
            + ",".join(map(str, sorted(targets)))
        )
    return tuple(sorted({int(word) for word in words}))


def native_sms() -> tuple[int, ...]:
    """SM numbers of all GPUs of this machine, ascending, each once. Raises ToolError when there is none."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    advice = "name the SMs to compile for, as --sm 90, or take --sm all"
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        raise ToolError(
            f"--sm native: nvidia-smi does not run here, so this machine has no GPU to ask; {advice}"
        ) from None
    found = {int(major + minor) for major, minor in re.findall(r"^\s*(\d+)\.(\d)\s*$", done.stdout, re.MULTILINE)}
    if done.returncode != 0 or not found:
        answer = (done.stdout + done.stderr).strip() or "nothing"
        raise ToolError(f"--sm native: nvidia-smi names no GPU (it says: {answer}); {advice}")
    return tuple(sorted(found))


def serving(sm: int, targets: Collection[int]) -> int:
    """The target whose code runs on `sm`: the newest up to it, of its own generation if there is one.

    Machine code runs on later minor versions of its major one; beyond that the newest target's PTX carries. Raises
    ToolError where every target is newer.
    """
    older = [target for target in targets if target <= sm]
    if not older:
        raise ToolError(
            f"the GPU here is sm_{sm}, and the oldest target is sm_{min(targets)}: no kernel runs on it; "
            f"--sm {min(targets)} compiles for another machine"
        )
    return max(older)


def _roots() -> Iterator[tuple[Path, str]]:
    if home := os.environ.get("CUDA_HOME"):
        yield Path(home), "CUDA_HOME"
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for root in sorted(Path(folder).glob("cu[0-9][0-9]"), reverse=True):
            yield root, "the PyPI package"
    if nvcc := shutil.which("nvcc"):
        # nvcc may be a wrapper script elsewhere than its toolkit, so it is asked where it is at home.
        done = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], check=False, capture_output=True, text=True)
        if top := re.search(r"^#\$ TOP=(.*?)\s*$", done.stderr, re.MULTILINE):
            yield Path(top.group(1)), "nvcc on PATH"
    yield Path("/usr/local/cuda"), "/usr/local/cuda"


def _toolkit(root: Path, found_by: str) -> Toolkit:
    root = root.resolve()
    nvcc = root / "bin" / "nvcc"
    libs = [root / name for name in ("lib64", "lib") if (root / name / "libcudart_static.a").is_file()]
    if not libs or not (root / "include" / "cuda_runtime.h").is_file():
        raise ToolError(
            f"the CUDA toolkit at {root} (from {found_by}) has nvcc but not both include/cuda_runtime.h and "
            f"libcudart_static.a in lib64 or lib; a whole one: {INSTALL}"
        )
    release = re.search(r"V(\d+\.\d+\.\d+)", _ask(nvcc, "--version"))
    known = re.findall(r"sm_(\d+)\b", _ask(nvcc, "--list-gpu-code"))
    if not release or not known:
        raise ToolError(f"{nvcc} (from {found_by}) does not say its version and targets; a working one: {INSTALL}")
    return Toolkit(root, found_by, libs[0], release.group(1), frozenset(map(int, known)))


def _ask(nvcc: Path, flag: str) -> str:
    try:
        done = subprocess.run([nvcc, flag], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"{nvcc} does not run ({error}); a working one: {INSTALL}") from None
    return done.stdout


def _names(sms: Iterable[int]) -> str:
    return ", ".join(f"sm_{sm}" for sm in sms)
