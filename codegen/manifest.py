"""manifest.json: what a generated package was made from and consists of.

The manifest is what the later steps work from: `output` learns from it which files it owns, `compile` what to
compile for which SM, `check` whether the folder is what the specs say. It holds hashes, never times or
absolute paths, so that the same inputs give the same bytes on every machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import CheckFailed, ToolError

SCHEMA = 1
NAME = "manifest.json"
GENERATE = "python build.py generate"

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Source:
    """A file to compile: `path` relative to the package, `.cu` (nvcc) or `.cpp` (the host compiler).

    functions: the `extern "C" __global__` functions a .cu must turn out to hold; accelerated: uses instructions that
    only its very targets have (sm_90a), which its PTX leaves out; torch: needs torch's headers.
    """

    __pydantic_config__ = _STRICT
    path: str
    sm_targets: tuple[int, ...] = ()
    allow_spills: bool = False
    functions: tuple[str, ...] = ()
    accelerated: bool = False
    torch: bool = False


@dataclass(frozen=True)
class Variant:
    """One kernel function and the token counts it serves; last_token None: every larger count."""

    __pydantic_config__ = _STRICT
    name: str
    function: str
    first_token: int
    last_token: int | None


@dataclass(frozen=True)
class Group:
    """SM targets that share one list of variants."""

    __pydantic_config__ = _STRICT
    sm_targets: tuple[int, ...]
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Kernel:
    """What computes one router path, and the models that use it."""

    __pydantic_config__ = _STRICT
    models: tuple[str, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Manifest:
    """inputs and outputs map posix paths to SHA-256: inputs relative to the generator's root, outputs to the
    package.

    outputs holds every generated file but manifest.json itself.
    """

    __pydantic_config__ = _STRICT
    version: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    sources: tuple[Source, ...]
    kernels: Mapping[str, Kernel]
    models: Mapping[str, str]
    schema: int = field(default=SCHEMA)

    def text(self) -> str:
        """The JSON text: mappings sorted by key, sources in their own order, a source's unset fields left
        out.
        """
        data = dataclasses.asdict(self)
        data["sources"] = [_without_defaults(source) for source in self.sources]
        for name in ("inputs", "outputs", "kernels", "models"):
            data[name] = dict(sorted(data[name].items()))
        ordered = {"schema": data.pop("schema"), **data}
        return json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"


_ADAPTER = TypeAdapter(Manifest)


def sha256(content: str | bytes) -> str:
    """Hash of a file's content; text is hashed as the UTF-8 it is written as."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def hashes(files: Mapping[str, str | bytes]) -> dict[str, str]:
    """Path -> SHA-256 of every file but the manifest, sorted: what `Manifest.outputs` holds."""
    return {path: sha256(files[path]) for path in sorted(files) if path != NAME}


def load_manifest(package_dir: Path, mend: str = GENERATE) -> Manifest:
    """Read a package's manifest.json. `mend` is the command that writes it anew, named in every error.

    Raises CheckFailed: no manifest, not readable, of another schema, or wrong fields.
    """
    path = package_dir / NAME
    data = _read(path, mend)
    schema = data.get("schema")
    if schema != SCHEMA:
        raise CheckFailed(f"{path}: manifest schema is {schema!r}, this normgate reads {SCHEMA}; write it anew: {mend}")
    try:
        # JSON in, so that strict mode takes a JSON list for a tuple and still no "90" for 90.
        return _ADAPTER.validate_json(json.dumps(data))
    except ValidationError as error:
        problems = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise CheckFailed("\n".join([*problems, f"write the manifest anew: {mend}"])) from None


def check_outputs(manifest: Manifest, package_dir: Path, mend: str = GENERATE) -> None:
    """Hold the files in the folder against the manifest's hashes. Raises CheckFailed naming every file that
    differs.
    """
    problems = []
    for name, expected in manifest.outputs.items():
        path = package_dir / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif sha256(path.read_bytes()) != expected:
            problems.append(f"{path}: changed since it was generated")
    if problems:
        raise CheckFailed("\n".join([*problems, f"write the files anew: {mend}"]))


def owned_outputs(package_dir: Path) -> set[str] | None:
    """The files that the manifest there owns, of whatever schema; None when the folder has no manifest.

    Raises ToolError when it cannot be read: what cannot be read gives no right to replace or remove anything.
    """
    path = package_dir / NAME
    if not path.is_file():
        return None
    try:
        outputs = _read(path, GENERATE).get("outputs")
    except CheckFailed:
        outputs = None
    if not isinstance(outputs, dict) or not all(map(is_inside, outputs)):
        raise ToolError(
            f"{path}: not a readable normgate manifest (a merge conflict?), so it is unknown which files are "
            "normgate's; "
            f"bring one side's file back (git checkout --ours -- {NAME}), then: {GENERATE}"
        )
    return set(outputs)


def is_inside(path: str) -> bool:
    """Whether `path` is a plain relative posix path that stays in its folder."""
    pure = PurePosixPath(path)
    return path == str(pure) and path != "." and "\\" not in path and not pure.is_absolute() and ".." not in pure.parts


def _read(path: Path, mend: str) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckFailed(f"{path}: missing, so this is no generated package; write it: {mend}") from None
    except (OSError, ValueError) as error:
        raise CheckFailed(f"{path}: cannot be read ({error}); write it anew: {mend}") from None
    if not isinstance(data, dict):
        raise CheckFailed(f"{path}: not a JSON object; write it anew: {mend}")
    return data


def _without_defaults(source: Source) -> dict[str, object]:
    return {
        f.name: getattr(source, f.name)
        for f in dataclasses.fields(source)
        if f.default is dataclasses.MISSING or getattr(source, f.name) != f.default or _is_kernel(source, f.name)
    }


def _is_kernel(source: Source, name: str) -> bool:
    """A .cu file's own fields are written even where they are the default: a reader should see them."""
    return source.path.endswith(".cu") and name != "torch"
