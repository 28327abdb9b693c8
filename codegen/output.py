"""Put a set of generated files into a folder, and say how a folder differs from one.

The set is a mapping of relative posix path to content and holds manifest.json. A folder that is not
normgate's is never written to, and only files that the manifest in a folder owns are ever removed from it.
The folder is replaced as a whole, in one step: whoever dies midway leaves the old one or the new one. Where the file
system has no such step, whoever takes the folder's lock next finishes what was begun.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from . import manifest
from .errors import ToolError

Content = str | bytes

_TMP = ".normgate-tmp"
# What builds, Python and this module leave in a package folder: not generated, and nobody's mistake.
_NOT_OURS = ("libnormgate.so", "libnormgate.*.json", "*.pyc", "*.lock", f"*{_TMP}")


@dataclass(frozen=True)
class Freshness:
    """How a folder differs from the files that belong in it; each a sorted tuple of relative posix paths.

    missing: not in the folder; unknown: in the folder, in no set; changed: with another content.
    """

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def fresh(self) -> bool:
        return not (self.missing or self.unknown or self.changed)

    def lines(self) -> list[str]:
        """One line a file, `<what>: <path>`."""
        kinds = (("missing", self.missing), ("unknown", self.unknown), ("changed", self.changed))
        return [f"{kind}: {path}" for kind, paths in kinds for path in paths]


@dataclass(frozen=True)
class Written:
    """What a write did: paths written and removed; how many files were right already."""

    written: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int


def collect(files: Iterable[tuple[str, Content]]) -> dict[str, Content]:
    """Make a set of files out of (path, content) pairs.

    Raises ValueError when two pairs want one path, when a file's path is another's folder, or when a path
    leaves the folder: each is a mistake of the generator, not of its user.
    """
    result: dict[str, Content] = {}
    for path, content in files:
        if not manifest.is_inside(path):
            raise ValueError(f"output path {path!r} is not a plain relative path")
        if path in result:
            raise ValueError(f"two outputs want the path {path!r}")
        result[path] = content
    for path in result:
        for parent in PurePosixPath(path).parents:
            if str(parent) in result:
                raise ValueError(f"output {str(parent)!r} is a file and the folder of {path!r}")
    return result


@contextmanager
def os_errors(path: Path, mend: str = "free the path or name another folder: --out DIR") -> Iterator[None]:
    """Inside, what the system refuses (a full disk, a read-only folder) is a ToolError that names the path."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or path
        raise ToolError(f"{where}: cannot be written ({error.strerror or error}); {mend}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a package folder: one process at a time writes or builds it, the next one waits and
    says so.

    The lock file lies beside the folder, so that a folder that gets vendored carries no lock. The lock can be
    taken again by who holds it.
    """
    folder = folder.resolve()
    path = folder.parent / f".{folder.name}.lock"
    with os_errors(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another normgate that works on {folder}", file=sys.stderr)
            lock.acquire()
    try:
        with os_errors(folder):
            _finish(folder)
        yield
    finally:
        lock.release()


def write(files: Mapping[str, Content], folder: Path) -> Written:
    """Make `folder` hold exactly what `files` says, touching only what differs.

    The new folder is made beside the old one, whose files it shares but those that differ, and takes its place in one
    step: at any moment the folder is whole, the old one or the new one. A file with the right content keeps its time
    stamp, so ninja has nothing to do. Files of the manifest found there that are not in `files` are removed, and no
    others.

    Raises ToolError: the folder holds files but no normgate manifest, its manifest cannot be read, or the
    system refuses a write. Raises ValueError when `files` has no manifest.json.
    """
    files = collect(files.items())
    if manifest.NAME not in files:
        raise ValueError(f"a set of outputs needs its {manifest.NAME}")
    folder = folder.resolve()  # a link to it stays
    with locked(folder), os_errors(folder):
        owned = manifest.owned_outputs(folder)
        if owned is None:
            _refuse_foreign(folder)
            owned = set()
        wrong = [path for path, content in files.items() if _read(folder / path) != _bytes(content)]
        gone = sorted(path for path in owned - files.keys() if (folder / path).is_file())
        if wrong or gone:
            with replacing(folder) as stage:
                if folder.is_dir():
                    shutil.copytree(folder, stage, symlinks=True, copy_function=_link)
                for path in gone:
                    _remove(stage, path)
                for path in wrong:
                    _replace(stage / path, _bytes(files[path]))
    return Written(tuple(sorted(wrong)), tuple(gone), len(files) - len(wrong))


def diff(files: Mapping[str, Content], folder: Path) -> Freshness:
    """Say how `folder` differs from `files`. Built libraries, Python's caches and lock files are not looked
    at.
    """
    there = set(_walk(folder))
    missing = files.keys() - there
    changed = [path for path in files.keys() & there if _read(folder / path) != _bytes(files[path])]
    return Freshness(tuple(sorted(missing)), tuple(sorted(there - files.keys())), tuple(sorted(changed)))


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A path for a folder to be made, which takes the place of `folder` when all went well."""
    _finish(folder)
    stage = folder.with_name(f".{folder.name}{_TMP}")
    shutil.rmtree(stage, ignore_errors=True)  # of a run that died
    try:
        yield stage
        _put_in_place(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def replace_whole(path: Path, content: bytes) -> bool:
    """Write a file so that readers see the old or the new one, never a part. False: it was right already.

    The folder is made if need be. Raises ToolError where the system refuses.
    """
    with os_errors(path, "free the path or name another"):
        if _read(path) == content:
            return False
        _replace(path, content)
    return True


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            if not any(fnmatch(name, pattern) for pattern in _NOT_OURS):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _refuse_foreign(folder: Path) -> None:
    for found in _walk(folder):
        raise ToolError(
            f"{folder}: holds files (such as {found}) but no normgate {manifest.NAME}, so nothing is written "
            "there; "
            "name an empty or new folder: --out DIR"
        )


def _remove(folder: Path, path: str) -> None:
    """Remove a file and the folders that it leaves empty."""
    (folder / path).unlink()
    for parent in (folder / path).parents:
        if parent == folder or any(parent.iterdir()):
            return
        parent.rmdir()


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed name, in the same folder: a leftover of a run that died is overwritten by the next one.
    tmp = path.with_name(path.name + _TMP)
    try:
        tmp.write_bytes(content)
        os.replace(tmp, path)
    except OSError:
        tmp.unlink(missing_ok=True)  # on a full disk it is in the way of everybody
        raise


def _link(source: str, target: str) -> None:
    """One file under two names; a copy with its time stamp where the file system has no such thing."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _put_in_place(stage: Path, folder: Path) -> None:
    """Give `stage` the name of `folder`, in one step if the file system can; where there was a folder, that one is gone
    or `stage` afterwards.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        os.rename(stage, folder)
        return
    # renameat2 of Linux has no door in Python. 1 << 1 is RENAME_EXCHANGE, -100 AT_FDCWD (linux/fs.h, fcntl.h).
    exchanged = ctypes.CDLL(None, use_errno=True).renameat2(
        -100, os.fsencode(stage), -100, os.fsencode(folder), ctypes.c_uint(1 << 1)
    )
    if not exchanged:
        return
    number = ctypes.get_errno()
    if number not in _CANNOT_EXCHANGE:
        raise OSError(number, os.strerror(number), str(folder))
    os.rename(stage, _ready(folder))  # from here on the new folder is what counts, whoever finishes
    _finish(folder)


# overlayfs says EXDEV of a folder that comes with a container's image, other file systems EINVAL; old kernels ENOSYS.
_CANNOT_EXCHANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def _ready(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.ready{_TMP}")


def _finish(folder: Path) -> None:
    """Put a folder in place that was ready when a run died, or is now."""
    if (ready := _ready(folder)).is_dir():
        if folder.is_dir():
            shutil.rmtree(folder)
        os.rename(ready, folder)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _bytes(content: Content) -> bytes:
    return content.encode() if isinstance(content, str) else content
