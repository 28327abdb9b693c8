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
# What is shipped, and the package of tests/specs, which README's section on tests says how to build.
DEFAULT = ("generated/normgate", "build/test-package/normgate", "build/test-package-sm80/normgate")


@dataclass(frozen=True)
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
    """Those of NORMGATE_TEST_PACKAGES (paths, separated by :) or of the default places that are compiled."""
    named = os.environ.get("NORMGATE_TEST_PACKAGES")
    folders = [ROOT / path for path in (named.split(":") if named else DEFAULT)]
    return tuple(_read(folder) for folder in folders if (folder / "libnormgate.so").is_file())


def _read(folder: Path) -> Package:
    name = f"tables_of_{folder.parent.name.replace('-', '_')}"
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    tables = importlib.import_module(f"{name}._tables")
    return Package(folder.parent.name, folder, tables.KERNELS, tables.MODELS)


def kernels() -> Iterator[tuple[Package, Any]]:
    for package in packages():
        for kernel in package.kernels.values():
            yield package, kernel
