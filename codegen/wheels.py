"""What a setup.py takes from normgate: the tag of a wheel that holds a library, and a build step that makes one.

Only setuptools and the standard library are imported until something is built.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from setuptools import Command
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class LibraryWheel(bdist_wheel):
    """One wheel of a platform for every CPython from 3.10 on: the library calls torch's stable ABI, and no Python."""

    def finalize_options(self) -> None:
        # What setuptools asks for where files go and how the wheel is tagged; an Extension this library is not.
        self.distribution.has_ext_modules = lambda: True  # type: ignore[method-assign]
        super().finalize_options()

    def run(self) -> None:
        # setuptools never empties this folder: what was generated once and is no more would come along.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "cp310", "abi3", super().get_tag()[2]


def router_kernels(package: str, specs: Sequence[str], *, ops: str, sm: str = "all") -> dict[str, type[Command]]:
    """The cmdclass of a setup() whose wheel carries kernels of its own.

    package: where the generated package goes, as "acme_engine.normgate"; the one around it must be the project's.
    specs: paths of the spec files. ops: the namespace of its operators, torch.ops.<ops>, which nobody else may have.
    sm: what to compile for, as behind --sm. Objects are kept in build/normgate, so a second build compiles only what
    changed. What goes wrong in the build is a NormgateError: what it was, and what mends it. Raises ValueError for a
    package that is in no other.
    """
    parent, _, name = package.rpartition(".")
    if not (parent and all(part.isidentifier() for part in package.split("."))):
        raise ValueError(
            f"package is {package!r}, expected one inside a package of the project, as acme_engine.normgate"
        )

    class BuildPy(build_py):
        def run(self) -> None:
            super().run()
            from .build import build_package
            from .output import locked, os_errors, replacing

            out = Path("build") / "normgate"
            around = self.get_package_dir(parent) if self.editable_mode else Path(self.build_lib, *parent.split("."))
            target = Path(around, name)
            with locked(out / "normgate"):  # nobody else's build comes between this one and its copy
                build_package([Path(spec) for spec in specs], out, ops=ops, sm=sm)
                with os_errors(target, "free the path"), replacing(target) as stage:
                    shutil.copytree(out / "normgate", stage)

    return {"build_py": BuildPy, "bdist_wheel": LibraryWheel}
