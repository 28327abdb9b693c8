"""Whether the files of this package are those that were generated and compiled.

``python -m normgate verify`` holds every file against the SHA-256 in manifest.json, and the compiled library against
the one in libnormgate.build.json, which compiling wrote. ``python -I FOLDER/verify.py`` does so before any other file
of the package is run, with the standard library alone.

The two JSON files are what is trusted; their own hashes are printed, to be compared with those of the copy that was
reviewed. Not looked at: Python's caches, and ``codegen/``, the generator, where it is installed in the same folder.
"""

import argparse
import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

MANIFEST = "manifest.json"
LIBRARY = "libnormgate.so"
STAMP = "libnormgate.build.json"


@dataclass(frozen=True)
class Verified:
    """What was found; paths are relative to the package, posix, sorted.

    files    how many are as the manifest says
    missing  in the manifest, not in the folder; the library is no such file, a package works without it
    changed  with another hash than recorded, the library too
    unknown  in the folder, recorded nowhere
    library  "verified", "none", or what speaks against it
    hashes   SHA-256 of the two files that hold the others' hashes
    """

    files: int
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    unknown: tuple[str, ...]
    library: str
    hashes: dict[str, str]

    @property
    def holds(self) -> bool:
        return not (self.missing or self.changed or self.unknown) and self.library in ("verified", "none")


def verify(folder: Path) -> Verified:
    """Hold the package in ``folder`` against its manifest. ValueError where that cannot be read."""
    manifest = _read(folder / MANIFEST)
    expected = manifest.get("outputs")
    if not isinstance(expected, dict):
        raise ValueError(f"{folder / MANIFEST}: names no hashes, so it is none of normgate's")
    there = _files(folder)
    found = {path: _sha256(folder / path) for path in there & expected.keys()}
    changed = [path for path in found if found[path] != expected[path]]
    hashes = {name: _sha256(folder / name) for name in (MANIFEST, STAMP) if name in there}
    library = "none"
    if LIBRARY in there:
        library = _library(folder, hashes)
        if library == "changed":
            changed.append(LIBRARY)
    return Verified(
        files=len(found) - len([path for path in changed if path != LIBRARY]),
        missing=tuple(sorted(expected.keys() - there)),
        changed=tuple(sorted(changed)),
        unknown=tuple(sorted(there - expected.keys() - {MANIFEST, LIBRARY, STAMP})),
        library=library,
        hashes=hashes,
    )


def main(arguments: list[str]) -> int:
    """Exit code 0: all holds; 1: something does not; 2: there is nothing to hold it against."""
    parser = argparse.ArgumentParser("verify", description="Hold the package's files against its manifest.")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    as_json = parser.parse_args(arguments).json
    folder = Path(__file__).resolve().parent
    try:
        found = verify(folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps({"folder": str(folder), "holds": found.holds, **asdict(found)}, indent=1))
    else:
        print("\n".join(_lines(folder, found)))
    return 0 if found.holds else 1


def _lines(folder: Path, found: Verified) -> list[str]:
    kinds = (("missing", found.missing), ("changed", found.changed), ("unknown", found.unknown))
    lines = [f"{kind}: {path}" for kind, paths in kinds for path in paths]
    lines.append(f"{folder}: {found.files} files are as generated; {LIBRARY}: {found.library}")
    lines += [f"{digest}  {name}" for name, digest in found.hashes.items()]
    if named := os.environ.get("NORMGATE_LIBRARY"):
        lines.append(f"NORMGATE_LIBRARY names another library, which was not looked at: {named}")
    if not found.holds:
        lines.append("install the package anew, or where it was generated: python build.py")
    return lines


def _library(folder: Path, hashes: dict[str, str]) -> str:
    if STAMP not in hashes:
        return f"unverified, there is no {STAMP}"
    try:
        stamp = _read(folder / STAMP)
    except ValueError:
        return f"unverified, {STAMP} cannot be read"
    if stamp.get("library") != _sha256(folder / LIBRARY):
        return "changed"
    if stamp.get("manifest") != hashes[MANIFEST]:
        return f"compiled from another {MANIFEST}"
    return "verified"


def _files(folder: Path) -> set[str]:
    """Every file, and every link even to a folder, but what the module's text leaves out."""
    found = set()
    for root, folders, names in os.walk(folder):
        here = Path(root)
        links = [name for name in folders if (here / name).is_symlink()]
        installed = ["codegen"] if here == folder and (here / "codegen" / "__init__.py").is_file() else []
        folders[:] = [name for name in folders if name not in (*links, *installed, "__pycache__")]
        found |= {(here / name).relative_to(folder).as_posix() for name in (*names, *links)}
    return found


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is no JSON object")
    return content


def _sha256(path: Path) -> str:
    """Of the file's content; of a link that leads nowhere, of nothing."""
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
