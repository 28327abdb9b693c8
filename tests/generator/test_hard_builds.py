"""Builds that meet a broken tool, a full disk, a kill or each other: a clear error each, and the next run recovers."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from codegen import compile, output, package, toolkit
from codegen.errors import ToolError
from codegen.manifest import Manifest, Source, hashes

ROOT = Path(__file__).parents[2]
SOURCES = {
    "csrc/kernels/one.sm90.cu": 'extern "C" __global__ void ng_one(float* x) { *x += 1; }\n',
    "csrc/table.cpp": 'extern "C" void ng_one(float*);\nextern "C" void* ng_keep() { return (void*)ng_one; }\n',
}


class Project:
    """A package of one kernel, and a toolkit whose nvcc does first what `before` says, in shell."""

    def __init__(self, root: Path) -> None:
        self.root = root
        real = toolkit.find_toolkit()
        (root / "cuda/bin").mkdir(parents=True)
        for name in ("include", "lib", "lib64", "nvvm"):
            if (real.root / name).exists():
                (root / "cuda" / name).symlink_to(real.root / name)
        self.real = real.nvcc
        self.before("")
        self.changes = itertools.count(1)
        self.change()

    def before(self, script: str) -> None:
        nvcc = self.root / "cuda/bin/nvcc"
        nvcc.write_text(f'#!/bin/bash\ncase "$*" in *.cu*) {script or ":"};; esac\nexec "{self.real}" "$@"\n')
        nvcc.chmod(0o755)

    def change(self) -> None:
        """Write a package of which another library is made than of the last."""
        added = str(next(self.changes))
        files: dict[str, str | bytes] = {path: text.replace("+= 1", f"+= {added}") for path, text in SOURCES.items()}
        sources = (Source("csrc/kernels/one.sm90.cu", (90,), False, ("ng_one",)), Source("csrc/table.cpp"))
        manifest = Manifest("0.1.0", {}, hashes(files), sources, kernels={}, models={})
        output.write({**files, "manifest.json": manifest.text()}, self.root / "pkg")

    def build(self) -> compile.BuildReport:
        return compile.compile_package(self.root / "pkg", build_dir=self.root / "build")

    def library(self) -> bytes:
        return (self.root / "pkg/libnormgate.so").read_bytes()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("hard"))


@pytest.fixture
def project(shared: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Built, and changed since, so that there is something to compile and something to lose."""
    monkeypatch.setenv("CUDA_HOME", str(shared.root / "cuda"))
    shared.before("")
    if not (shared.root / "pkg/libnormgate.so").exists():
        shared.build()
    shared.change()
    return shared


def fails_and_recovers(project: Project, mend: Callable[[], object], match: str, steps: bool = True) -> None:
    """steps: whether the build after it has something left to compile."""
    before = project.library()
    with pytest.raises(ToolError, match=match):
        project.build()
    assert project.library() == before
    mend()
    assert bool(project.build().compiled) == steps
    assert project.library() != before


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -SEGV $$", "compiling failed:(.|\n)*Segmentation fault"),
        ("kill -KILL $$", "compiling failed:(.|\n)*Killed"),
        ("echo 'internal compiler error'; exit 139", "internal compiler error"),
        ("for last; do :; done; head -c 999 /bin/sh > obj/csrc/kernels/one.sm90.cu.o; exit 1", "compiling failed"),
    ],
)
def test_a_compiler_that_crashes(project: Project, script: str, said: str) -> None:
    project.before(script)
    fails_and_recovers(project, lambda: project.before(""), said)


def test_a_compiler_that_writes_half_an_object_and_says_all_is_well(project: Project) -> None:
    """The linker sees it; the next build, whose source has changed, mends it."""
    project.before(
        "head -c 999 /bin/sh > obj/csrc/kernels/one.sm90.cu.o; touch obj/csrc/kernels/one.sm90.cu.o.d; exit 0"
    )
    fails_and_recovers(project, lambda: (project.before(""), project.change()), "compiling failed")


def test_an_nvcc_that_is_none(project: Project, tmp_path: Path) -> None:
    nvcc = project.root / "cuda/bin/nvcc"
    nvcc.write_text("#!/bin/sh\necho hello\n")
    said = r"bin/nvcc \(from CUDA_HOME\) does not say its version and targets; a working one: pip install"
    fails_and_recovers(project, lambda: project.before(""), said)
    project.change()
    nvcc.write_text("no program at all")
    fails_and_recovers(project, lambda: project.before(""), "does not run .*; a working one: pip install")


def test_an_nvcc_of_another_version(project: Project) -> None:
    """One from before Hopper."""
    answers = (
        'case "$1" in --version) echo "Cuda compilation tools, release 11.4, V11.4.100";;'
        " --list-gpu-code) echo sm_70; echo sm_80;; esac"
    )
    (project.root / "cuda/bin/nvcc").write_text(f"#!/bin/sh\n{answers}\n")
    said = r"nvcc 11.4.100 at .*nvcc \(from CUDA_HOME\) does not know sm_90; it knows sm_70, sm_80. .* pip install"
    fails_and_recovers(project, lambda: project.before(""), said)


def test_no_nvcc(project: Project) -> None:
    (project.root / "cuda/bin/nvcc").unlink()
    fails_and_recovers(
        project, lambda: project.before(""), "has no bin/nvcc; set it to a CUDA toolkit, or unset it and"
    )


def test_no_ninja(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ninja" else real(name, *rest))
    mend = lambda: monkeypatch.setattr(importlib.util, "find_spec", real)  # noqa: E731
    fails_and_recovers(project, mend, "ninja is missing, which runs the compilers; .*: pip install ninja")


def test_no_host_compiler(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    fails_and_recovers(project, lambda: monkeypatch.delenv("CXX"), "no-such-compiler is not on PATH; install one")


@pytest.mark.parametrize("step", ["build.ninja", "library"])
def test_a_full_disk(project: Project, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*arguments: Any, **_: Any) -> None:
        if step == "library":
            Path(arguments[1]).write_bytes(b"a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[-1]))

    where, name = (shutil, "copy2") if step == "library" else (Path, "write_bytes")
    real = getattr(where, name)
    monkeypatch.setattr(where, name, full)
    (project.root / "build/build.ninja").unlink()
    mend = lambda: monkeypatch.setattr(where, name, real)  # noqa: E731
    said = r"cannot be written \(No space left on device\); free the path or name another"
    fails_and_recovers(project, mend, said, steps=step != "library")
    assert not list((project.root / "pkg").glob("*.normgate-tmp"))


def test_a_build_that_is_killed_takes_its_compilers_along(project: Project) -> None:
    """Else they would write objects while the next build, whom no lock stops, does."""
    pids = project.root / "pids"
    project.before(f"echo $$ > {pids}; exec sleep 600")
    script = (
        "import sys; from pathlib import Path; from codegen.compile import compile_package; root = Path(sys.argv[1])\n"
        "compile_package(root / 'pkg', build_dir=root / 'build')"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(project.root)], cwd=ROOT)
    wait_until(lambda: pids.exists() and pids.read_text().strip() != "")
    compiler = int(pids.read_text())
    assert is_running(compiler)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not is_running(compiler))
    pids.unlink()
    before = project.library()
    project.before("")
    assert project.build().compiled and project.library() != before


def is_running(pid: int) -> bool:
    try:
        return re.search(r"^State:\s+[ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is None
    except FileNotFoundError:
        return False


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def test_a_build_without_a_compiler_ends_in_a_sentence(cli: Any, small_spec: Path, tmp_path: Path) -> None:
    """As users meet it: the package is generated, whole, and what is missing is said."""
    done = cli("--spec", small_spec, "--out", tmp_path / "out", CUDA_HOME=str(tmp_path))
    assert done.returncode == 2
    assert f"CUDA_HOME is {tmp_path}, which has no bin/nvcc" in done.stderr
    assert cli("check", "--spec", small_spec, "--out", tmp_path / "out").returncode == 0


def test_two_generates_at_once(small_spec: Path, tmp_path: Path) -> None:
    """Of different specs into one folder: it holds what the later one wants, whole."""
    other = tmp_path / "other.yaml"
    other.write_text(
        small_spec.read_text().replace("name: small", "name: other").replace("num_experts: 16", "num_experts: 24")
    )
    specs = [small_spec, other]
    command = [sys.executable, "build.py", "generate", "--out", str(tmp_path / "out"), "--spec"]
    running = [subprocess.Popen([*command, str(spec)], cwd=ROOT, stderr=subprocess.PIPE) for spec in specs * 2]
    assert [process.communicate()[1] for process in running if process.wait()] == []
    assert any(package.check([spec], tmp_path / "out").fresh for spec in specs)


def test_all_that_generate_writes_has_one_writer_at_a_time(
    small_spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stamp beside the package too: its temporary file has one name."""
    out, written = tmp_path / "out", []
    replace = output._replace

    def replaced(path: Path, content: bytes) -> None:
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(out / ".normgate.lock").acquire(timeout=0)
        written.append(path.name)
        replace(path, content)

    monkeypatch.setattr(output, "_replace", replaced)
    assert package.generate([small_spec], out)
    assert {"manifest.json", "generated.json"} <= set(written)
