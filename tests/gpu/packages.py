"""The compiled packages under test, their tables read without registering their operators."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Other packages, such as that of tests/specs, are tested in a run of their own, with NORMGATE_TEST_PACKAGES naming their
# folders: a library registers its operators when it is loaded, and a second one would take them over.
OTHERS = os.environ.get("NORMGATE_TEST_PACKAGES", "")


@dataclass(frozen=True, eq=False)  # hashed by identity
class Package:
    name: str
    folder: Path
    kernels: dict[str, Any]  # name -> KernelTable
    models: dict[str, Any]

    @property
    def library(self) -> Path:
        return self.folder / "libnormgate.so"


@cache
def packages() -> tuple[Package, ...]:
    """Those of NORMGATE_TEST_PACKAGES (paths, separated by :) or the shipped one, as far as they are compiled."""
    folders = [ROOT / path for path in (OTHERS.split(":") if OTHERS else ["generated/normgate"])]
    return tuple(_read(folder) for folder in folders if (folder / "libnormgate.so").is_file())


def _read(folder: Path) -> Package:
    name = f"tables_of_{folder.parent.name.replace('-', '_')}"
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    tables = importlib.import_module(f"{name}._tables")
    return Package(folder.parent.name, folder, tables.KERNELS, tables.MODELS)


def kernels() -> Iterator[tuple[Package, Any]]:
    """The kernels of gates, with their norms."""
    return ((package, kernel) for package, kernel in _all_kernels() if not _is_path(kernel))


def paths() -> Iterator[tuple[Package, Any]]:
    """The kernels of whole paths, which add a residual before the gate's part, choose experts after it, or both."""
    return ((package, kernel) for package, kernel in _all_kernels() if _is_path(kernel))


def _all_kernels() -> Iterator[tuple[Package, Any]]:
    for package in packages():
        for kernel in package.kernels.values():
            yield package, kernel


def _is_path(kernel: Any) -> bool:
    return kernel.residual != "" or kernel.selection is not None
