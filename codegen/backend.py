"""The build backend of normgate's own wheel (PEP 517): setuptools', and before it the compiler where it is needed.

A library that `python build.py` has compiled, of these sources and for what is asked, is taken as it is; then a wheel
needs neither torch nor a compiler. `pip wheel . -C sm=90,100` says what to compile for, as --sm does; all, if nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.config.pyprojecttoml import read_configuration

from .toolkit import select_sms

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, str | list[str]] | None

_OUT = Path("generated")
_PACKAGE = _OUT / "normgate"


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What normgate runs with is what it compiles with: torch and the CUDA toolkit among it."""
    requires = build_meta.get_requires_for_build_wheel()
    if not _is_compiled(_sm(config_settings)):
        requires += read_configuration("pyproject.toml")["project"]["dependencies"]
    return requires


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    sm = _sm(config_settings)
    if not _is_compiled(sm):
        from .compile import compile_package
        from .manifest import load_manifest

        targets = {target for source in load_manifest(_PACKAGE).sources for target in source.sm_targets}
        compile_package(_PACKAGE, sms=select_sms(sm, targets), build_dir=_OUT / "build")
    return build_meta.build_wheel(wheel_directory, None, metadata_directory)


def _sm(settings: Settings) -> str:
    given = (settings or {}).get("sm", "all")
    return given if isinstance(given, str) else ",".join(given)


def _is_compiled(sm: str) -> bool:
    """Whether the library there is of the package's files and for `sm`; without what normgate depends on."""
    try:
        manifest = (_PACKAGE / "manifest.json").read_bytes()
        stamp = json.loads((_PACKAGE / "libnormgate.build.json").read_bytes())
        library = (_PACKAGE / "libnormgate.so").read_bytes()
    except (OSError, ValueError):
        return False
    targets = {target for source in json.loads(manifest)["sources"] for target in source.get("sm_targets", ())}
    expected = {"manifest": _sha256(manifest), "library": _sha256(library), "sms": list(select_sms(sm, targets))}
    return expected.items() <= {**stamp}.items()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
