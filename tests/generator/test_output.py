"""Writing a generated package: only what differs, only what is ours, and whole at any moment."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codegen import output
from codegen.errors import ToolError
from codegen.manifest import Manifest, hashes

ROOT = Path(__file__).parents[2]


def package(**files: str) -> dict[str, str | bytes]:
    """A set of files with its manifest; `csrc__a_cu` stands for csrc/a.cu."""
    named: dict[str, str | bytes] = {name.replace("__", "/").replace("_", "."): text for name, text in files.items()}
    manifest = Manifest("0.1.0", inputs={}, outputs=hashes(named), sources=(), kernels={}, models={})
    return {**named, "manifest.json": manifest.text()}


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_write_then_same_again_touches_nothing(tmp_path: Path) -> None:
    files = package(a_py="1\n", csrc__b_cu="2\n")
    first = output.write(files, tmp_path / "out")
    assert first.written == ("a.py", "csrc/b.cu", "manifest.json")
    assert (tmp_path / "out/csrc/b.cu").read_text() == "2\n"
    before = stamps(tmp_path / "out")
    assert set(before) == set(files)
    again = output.write(files, tmp_path / "out")
    assert (again.written, again.removed, again.unchanged) == ((), (), 3)
    assert stamps(tmp_path / "out") == before


def test_write_touches_only_what_changed(tmp_path: Path) -> None:
    output.write(package(a_py="1\n", b_py="2\n"), tmp_path)
    before = stamps(tmp_path)
    done = output.write(package(a_py="1\n", b_py="3\n"), tmp_path)
    assert done.written == ("b.py", "manifest.json")
    assert stamps(tmp_path)["a.py"] == before["a.py"]
    assert (tmp_path / "b.py").read_text() == "3\n"


def test_prune_removes_what_the_old_manifest_owns_and_nothing_else(tmp_path: Path) -> None:
    output.write(package(a_py="1\n", csrc__old_cu="2\n", csrc__deep__er_cu="3\n"), tmp_path)
    (tmp_path / "csrc" / "mine.txt").write_text("keep")
    (tmp_path / "libnormgate.so").write_text("keep")
    done = output.write(package(a_py="1\n"), tmp_path)
    assert done.removed == ("csrc/deep/er.cu", "csrc/old.cu")
    assert sorted(stamps(tmp_path)) == ["a.py", "csrc/mine.txt", "libnormgate.so", "manifest.json"]
    assert not (tmp_path / "csrc/deep").exists()


def test_foreign_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ToolError, match=r"holds files \(such as thesis.tex\) but no normgate manifest.json"):
        output.write(package(a_py="1\n"), tmp_path)
    assert list(stamps(tmp_path)) == ["thesis.tex"]


def test_unreadable_manifest_is_refused(tmp_path: Path) -> None:
    output.write(package(a_py="1\n"), tmp_path)
    (tmp_path / "manifest.json").write_text("<<<<<<< HEAD\n")
    with pytest.raises(ToolError, match="not a readable normgate manifest.*git checkout"):
        output.write(package(b_py="1\n"), tmp_path)
    assert (tmp_path / "a.py").exists()


def test_manifest_cannot_prune_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text('{"schema": 1, "outputs": {"../precious": ""}}')
    with pytest.raises(ToolError, match="not a readable normgate manifest"):
        output.write(package(a_py="1\n"), tmp_path / "out")
    assert (tmp_path / "precious").exists()


class Died(BaseException):
    """As a kill would have it: no handler of ours takes it for an error."""


@pytest.mark.parametrize("dies_at", range(12))
def test_a_write_that_dies_leaves_the_old_folder_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    """Dies at the n-th call of what changes a file system, and cleans nothing up."""
    folder = tmp_path / "out"
    old, new = package(a_py="old\n", gone_py="old\n", same_py="0\n"), package(a_py="1\n", b_py="2\n", same_py="0\n")
    output.write(old, folder)
    (folder / "libnormgate.so").write_text("keep")
    calls = 0

    def dying(module: Any, name: str) -> None:
        real = getattr(module, name)

        def called(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > dies_at:
                raise Died
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, called)

    for module, name in ((os, "link"), (os, "replace"), (Path, "write_bytes"), (Path, "unlink"), (shutil, "rmtree")):
        dying(module, name)
    with pytest.raises(Died):
        output.write(new, folder)
    monkeypatch.undo()
    assert output.diff(old, folder).fresh or (output.diff(new, folder).fresh and calls > 10)
    output.write(new, folder)
    assert output.diff(new, folder).fresh
    assert (folder / "libnormgate.so").read_text() == "keep"
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}


def test_a_full_disk_is_said_and_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = package(a_py="old\n"), package(a_py="1\n", b_py="2\n")
    output.write(old, tmp_path / "out")

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as stream:
            stream.write(content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        ToolError, match=r"cannot be written \(No space left on device\); free the path or name another"
    ):
        output.write(new, tmp_path / "out")
    monkeypatch.undo()
    assert output.diff(old, tmp_path / "out").fresh
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}, "a part of the new one is left"
    output.write(new, tmp_path / "out")
    assert output.diff(new, tmp_path / "out").fresh


def test_a_real_limit_on_file_sizes(cli: Any, small_spec: Path, tmp_path: Path) -> None:
    """The system itself refuses the write, in a process of its own: no file above 20 kB."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from codegen.cli import main; sys.exit(main(sys.argv[1:], 'build.py'))\n"
    )
    command = [sys.executable, "-c", script, "generate", "--spec", str(small_spec), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot be written (File too large); free the path or name another folder: --out DIR" in done.stderr
    assert not (tmp_path / "out/normgate").exists()
    assert cli("generate", "--spec", small_spec, "--out", tmp_path / "out").returncode == 0
    assert cli("check", "--spec", small_spec, "--out", tmp_path / "out").returncode == 0


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, whom permissions do not stop; so the system's answer is played."""
    output.write(package(a_py="old\n"), tmp_path / "out")

    def refused(path: Path, *arguments: Any, **named: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(ToolError, match="out.normgate-tmp: cannot be written .Read-only file system.; free the path"):
        output.write(package(a_py="1\n"), tmp_path / "out")
    monkeypatch.undo()
    assert (tmp_path / "out/a.py").read_text() == "old\n"


def exchange_fails_by(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class NoExchange:
        def renameat2(self, *arguments: object) -> int:
            ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **named: NoExchange())


def test_a_file_system_that_cannot_exchange_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = package(a_py="old\n", b_py="2\n"), package(a_py="1\n")
    output.write(old, tmp_path / "out")
    (tmp_path / "out/libnormgate.so").write_text("keep")
    exchange_fails_by(monkeypatch, errno.EIO)
    with pytest.raises(ToolError, match="out: cannot be written .Input/output error.; free the path"):
        output.write(new, tmp_path / "out")
    assert output.diff(old, tmp_path / "out").fresh
    exchange_fails_by(monkeypatch, errno.EINVAL)
    assert output.write(new, tmp_path / "out").removed == ("b.py",)
    assert output.diff(new, tmp_path / "out").fresh and (tmp_path / "out/libnormgate.so").read_text() == "keep"
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}


def test_killed_where_folders_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the old folder is gone: who takes the lock next puts the new one there."""
    old, new = package(a_py="old\n", b_py="2\n"), package(a_py="1\n")
    output.write(old, tmp_path / "out")
    exchange_fails_by(monkeypatch, errno.EXDEV)
    remove = shutil.rmtree

    def killed(path: Path, *arguments: Any, **named: Any) -> None:
        if path == tmp_path / "out":
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt
        remove(path, *arguments, **named)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        output.write(new, tmp_path / "out")
    monkeypatch.undo()
    with output.locked(tmp_path / "out"):
        assert output.diff(new, tmp_path / "out").fresh
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}


def test_what_takes_no_lock_finishes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the copy that a project's wheel takes along, which has no lock of its own to leave in the wheel."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("")
    ready = tmp_path / ".out.ready.normgate-tmp"
    ready.mkdir()
    (ready / "of a run that died").write_text("")
    exchange_fails_by(monkeypatch, errno.EXDEV)
    with output.replacing(tmp_path / "out") as stage:
        stage.mkdir()
        (stage / "new").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"] and not ready.exists()


def test_in_a_container_whose_image_brought_the_folder(tmp_path: Path) -> None:
    """overlayfs renames no folder of a lower layer."""
    old, new = package(a_py="old\n", csrc__c_cu="3\n"), package(a_py="1\n", csrc__c_cu="4\n")
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    output.write(old, image / "out")
    for name in ("upper", "work", "mounted"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={image},upperdir={tmp_path / 'upper'},workdir={tmp_path / 'work'}"
    done = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, mounted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no overlayfs may be mounted here: {done.stderr.strip()}")
    try:
        with pytest.raises(OSError, match="cross-device"):
            os.rename(mounted / "out", mounted / "moved")
        for files in (new, old, new):
            output.write(files, mounted / "out")
            assert output.diff(files, mounted / "out").fresh
        assert {path.name for path in mounted.iterdir()} == {"out", ".out.lock"}
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_link_to_the_folder_stays_one(tmp_path: Path) -> None:
    output.write(package(a_py="old\n"), tmp_path / "out")
    (tmp_path / "link").symlink_to("out")
    output.write(package(a_py="1\n"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "out/a.py").read_text() == "1\n"


def test_diff_names_missing_unknown_and_changed(tmp_path: Path) -> None:
    files = package(a_py="1\n", b_py="2\n", csrc__c_cu="3\n")
    assert output.diff(files, tmp_path / "nowhere").missing == tuple(sorted(files))
    output.write(files, tmp_path)
    assert output.diff(files, tmp_path).fresh
    (tmp_path / "a.py").unlink()
    (tmp_path / "b.py").write_text("2 \n")
    (tmp_path / "csrc/extra.cu").write_text("")
    found = output.diff(files, tmp_path)
    assert not found.fresh
    assert found.lines() == ["missing: a.py", "unknown: csrc/extra.cu", "changed: b.py"]


def test_diff_does_not_look_at_what_builds_leave(tmp_path: Path) -> None:
    files = package(a_py="1\n")
    output.write(files, tmp_path)
    for name in ("libnormgate.so", "libnormgate.build.json", "x.pyc", ".normgate.lock"):
        (tmp_path / name).write_text("")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.cpython-311.pyc").write_text("")
    assert output.diff(files, tmp_path).fresh


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", ""), ("a", "")], "two outputs want the path 'a'"),
        ([("a/b", ""), ("a", "")], "output 'a' is a file and the folder of 'a/b'"),
        ([("../a", "")], "output path '../a' is not a plain relative path"),
        ([("/a", "")], "output path '/a' is not a plain relative path"),
        ([("a//b", "")], "output path 'a//b' is not a plain relative path"),
    ],
)
def test_collect_rejects(pairs: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        output.collect(pairs)


def test_a_folder_in_the_way_is_a_tool_error(tmp_path: Path) -> None:
    output.write(package(a_py="1\n"), tmp_path)
    (tmp_path / "b.py").mkdir()
    with pytest.raises(ToolError, match="b.py: cannot be written"):
        output.write(package(a_py="1\n", b_py="2\n"), tmp_path)


def test_two_processes_wait_for_each_other(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from codegen.output import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('in', flush=True); sys.stdin.readline()\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], cwd=ROOT, text=True, **pipes)

    with start() as holder:
        assert holder.stdin and holder.stdout and holder.stdout.readline() == "in\n"
        with start() as second:
            assert second.stdin and second.stdout and second.stderr
            assert f"waiting for another normgate that works on {tmp_path / 'out'}" in second.stderr.readline()
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert second.stdout.readline() == "in\n"
            second.stdin.write("\n")
            second.stdin.flush()


def test_the_lock_can_be_taken_again_by_its_holder(tmp_path: Path) -> None:
    with output.locked(tmp_path / "out"):
        output.write(package(a_py="1\n"), tmp_path / "out")
    assert (tmp_path / "out/a.py").exists()
