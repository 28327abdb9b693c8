"""Generated C++ and CUDA as clang-format has it, the one that is pinned."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

from ..errors import ToolError
from ..places import templates_folder

_INSTALL = "pip install --force-reinstall clang-format"


def formatted(files: dict[str, str]) -> dict[str, str]:
    """C++ and CUDA through clang-format, whose style is `.clang-format` of the templates folder."""
    style = f"--style=file:{templates_folder() / '.clang-format'}"
    out = dict(files)
    for path, text in files.items():
        if Path(path).suffix in {".cu", ".cuh", ".cpp", ".h"}:
            out[path] = _formatted(text, [binary(), style, f"--assume-filename={Path(path).with_suffix('.cpp').name}"])
    return out


def _formatted(text: str, command: list[str]) -> str:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise ToolError(f"clang-format fails: {said.strip()}; install it anew: {_INSTALL}") from None


def binary() -> str:
    """The binary inside the clang-format package: its console script would start a Python for each file."""
    spec = importlib.util.find_spec("clang_format")
    if spec is None or spec.origin is None:
        raise ToolError(f"clang-format is not installed; generated code is formatted with it: {_INSTALL}")
    return str(Path(spec.origin).parent / "data" / "bin" / "clang-format")
