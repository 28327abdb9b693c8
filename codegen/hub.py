"""What was built, laid out as a kernel of the Hugging Face `kernels` package: `get_local_kernel(FOLDER)`, or to upload.

    FOLDER/build/torch-stable-abi210-cu130-x86_64-linux/    for CUDA builds of torch
    FOLDER/build/torch-cpu/                                 the same without the library: the reference, on the CPU

Each holds metadata.json and the generated package. `kernels` chooses by the torch it finds: a stable-ABI variant serves
that torch and every later one, with its CUDA or a later minor version.
"""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import places
from .compile import LIBRARY, OLDEST_TORCH, STAMP
from .errors import CheckFailed, ToolError
from .manifest import NAME, check_outputs, load_manifest, sha256
from .output import locked, os_errors, replacing

_BUILD = "python build.py"
_CPU = "torch-cpu"
_VERSION = 1  # of the interface: get_kernel(..., version=1)
_CARD = """\
---
library_name: kernels
license: apache-2.0
tags:
- kernels
---

# normgate

The router path of MoE models, RMSNorm and gate, in one CUDA launch. Generated ahead of time for: {models}.

```python
from kernels import get_kernel

normgate = get_kernel("OWNER/normgate", version={version})  # or get_local_kernel(Path("FOLDER"))
layer = normgate.NormGateLinear.from_model("{model}", device="cuda")
```
"""


@dataclass(frozen=True)
class _Built:
    """A package that was compiled: its files, what it was compiled for and by, and a hash of all that."""

    folder: Path
    files: tuple[str, ...]
    models: tuple[str, ...]
    sms: tuple[int, ...]  # of machine code, or of PTX where there is nothing else
    nvcc: str
    digest: str

    @property
    def variant(self) -> str:
        major, minor = OLDEST_TORCH
        cuda = "".join(self.nvcc.split(".")[:2])
        return f"torch-stable-abi{major}{minor}-cu{cuda}-{platform.machine()}-{platform.system().lower()}"

    @property
    def archs(self) -> list[str]:
        """Compute capabilities; later chips run PTX of the newest."""
        *older, newest = (f"{sm // 10}.{sm % 10}" for sm in sorted(self.sms))
        return [*older, f"{newest}+PTX"]


def write(built: Path, folder: Path) -> tuple[str, ...]:
    """Lay `built`/normgate out in `folder`, which appears whole or stays as it was; the names of the variants.

    Raises CheckFailed where the package is not whole or its library is not of it, ToolError where there is no library,
    or `folder` is something else or cannot be written.
    """
    package, folder = built / places.PACKAGE, folder.resolve()
    with locked(package), locked(folder):
        found = _require_built(package)
        if folder.exists() and not (folder / "build" / _CPU / "metadata.json").is_file():
            raise ToolError(f"{folder}: is there and no kernel that this wrote; name an empty or new folder: --out DIR")
        with os_errors(folder), replacing(folder) as stage:
            library = (*found.files, LIBRARY, STAMP)
            _write_variant(found, stage / "build" / found.variant, library, "cuda", found.archs)
            _write_variant(found, stage / "build" / _CPU, found.files, "cpu", None)
            card = _CARD.format(models=", ".join(found.models), model=found.models[0], version=_VERSION)
            (stage / "README.md").write_text(card, encoding="utf-8")
    return found.variant, _CPU


def _require_built(package: Path) -> _Built:
    manifest = load_manifest(package, _BUILD)
    check_outputs(manifest, package, _BUILD)
    try:
        stamp = json.loads((package / STAMP).read_bytes())
        library = sha256((package / LIBRARY).read_bytes())
    except (OSError, ValueError):
        raise ToolError(f"{package / LIBRARY}: is not compiled; compile it: {_BUILD}") from None
    digest = sha256((package / NAME).read_bytes())
    if stamp.get("manifest") != digest or stamp.get("library") != library:
        raise CheckFailed(f"{package / LIBRARY}: was not compiled from this package's files; compile it anew: {_BUILD}")
    files, models = (*manifest.outputs, NAME), tuple(manifest.models)
    return _Built(
        package, files, models, tuple(stamp["sms"] or stamp["ptx_sms"]), stamp["nvcc"], sha256(digest + library)
    )


def _write_variant(built: _Built, folder: Path, files: tuple[str, ...], backend: str, archs: list[str] | None) -> None:
    for name in files:
        target = folder / places.PACKAGE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built.folder / name, target)
    metadata: dict[str, object] = {
        # The name that the module gets: another build beside it is another module.
        "id": f"normgate_{backend}_{built.digest[:16]}",
        "name": places.PACKAGE,
        "version": _VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend, **({"archs": archs} if archs else {})},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
