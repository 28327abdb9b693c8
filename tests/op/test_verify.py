"""`python -m normgate verify`: what it says of a package's files, whole and tampered with."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "templates" / "package" / "verify.py"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package as generated, compiled and installed; it needs no torch, for no test imports it."""
    folder = tmp_path / "normgate"
    (folder / "csrc").mkdir(parents=True)
    shutil.copy(SOURCE, folder / "verify.py")
    (folder / "ops.py").write_text("x = 1\n")
    (folder / "csrc" / "kernel.cu").write_text("// a kernel\n")
    outputs = {path: digest(folder / path) for path in ("verify.py", "ops.py", "csrc/kernel.cu")}
    (folder / "manifest.json").write_text(json.dumps({"outputs": outputs}))
    (folder / "libnormgate.so").write_bytes(b"machine code")
    stamp = {"library": digest(folder / "libnormgate.so"), "manifest": digest(folder / "manifest.json")}
    (folder / "libnormgate.build.json").write_text(json.dumps(stamp))
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", folder / "verify.py", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def found(folder: Path, exit_code: int) -> dict[str, object]:
    done = run(folder, "--json")
    assert (done.returncode, done.stderr) == (exit_code, "")
    return json.loads(done.stdout)


def test_a_whole_package_holds(package):
    said = found(package, 0)
    assert said["holds"] and said["files"] == 3 and said["library"] == "verified"
    assert said["hashes"] == {name: digest(package / name) for name in ("manifest.json", "libnormgate.build.json")}
    text = run(package)
    assert text.returncode == 0 and "3 files are as generated; libnormgate.so: verified" in text.stdout
    assert digest(package / "manifest.json") in text.stdout


def test_missing_changed_and_unknown_files_are_named(package):
    (package / "csrc" / "kernel.cu").unlink()
    (package / "ops.py").write_text("x = 2\n")
    (package / "json.py").write_text("raise SystemExit('run')\n")
    said = found(package, 1)
    assert (said["missing"], said["changed"], said["unknown"]) == (["csrc/kernel.cu"], ["ops.py"], ["json.py"])
    assert said["files"] == 1 and not said["holds"]
    text = run(package).stdout
    assert "missing: csrc/kernel.cu\nchanged: ops.py\nunknown: json.py\n" in text and "python build.py" in text


def test_the_library_is_held_against_the_hash_that_compiling_wrote(package):
    library, stamp = package / "libnormgate.so", package / "libnormgate.build.json"
    library.write_bytes(b"other machine code")
    assert found(package, 1)["changed"] == ["libnormgate.so"]
    stamp.unlink()
    assert found(package, 1)["library"] == "unverified, there is no libnormgate.build.json"
    stamp.write_text("{")
    assert found(package, 1)["library"] == "unverified, libnormgate.build.json cannot be read"
    library.unlink()
    assert found(package, 0)["library"] == "none"


def test_a_library_of_other_sources_is_told(package):
    (package / "ops.py").unlink()
    manifest = json.loads((package / "manifest.json").read_text())
    del manifest["outputs"]["ops.py"]
    (package / "manifest.json").write_text(json.dumps(manifest))
    said = found(package, 1)
    assert said["library"] == "compiled from another manifest.json" and not said["missing"]


def test_links_are_files_and_are_not_followed(package, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "evil.py").write_text("")
    (package / "plugins").symlink_to(tmp_path / "elsewhere")
    (package / "nowhere.py").symlink_to(tmp_path / "nothing")
    assert found(package, 1)["unknown"] == ["nowhere.py", "plugins"]


def test_caches_and_the_installed_generator_are_not_looked_at(package):
    for folder, name in (("__pycache__", "ops.cpython-311.pyc"), ("codegen", "__init__.py")):
        (package / folder).mkdir()
        (package / folder / name).write_text("")
    assert found(package, 0)["holds"]
    (package / "codegen" / "__init__.py").rename(package / "codegen" / "plugin.py")
    assert found(package, 1)["unknown"] == ["codegen/plugin.py"]


def test_another_library_in_the_environment_is_said(package):
    assert "not looked at: /tmp/mine.so" in run(package, NORMGATE_LIBRARY="/tmp/mine.so").stdout


@pytest.mark.parametrize("manifest", [None, "{", "[]", "{}"])
def test_without_hashes_there_is_nothing_to_hold_it_against(package, manifest):
    (package / "manifest.json").unlink()
    if manifest is not None:
        (package / "manifest.json").write_text(manifest)
    done = run(package)
    assert done.returncode == 2 and "manifest.json: " in done.stderr and "Traceback" not in done.stderr


def test_verify_is_a_verb_of_the_package():
    """On the package under test, in whatever state it is: with the verb, the module's own answer."""
    import normgate

    folder = Path(normgate.__file__).parent
    by_verb = subprocess.run(
        [sys.executable, "-m", "normgate", "verify", "--json"], capture_output=True, text=True, cwd=folder.parent
    )
    by_file = run(folder, "--json")
    assert by_verb.returncode == by_file.returncode and by_verb.stdout == by_file.stdout


def test_what_is_no_verb_says_what_is():
    import normgate

    command = [sys.executable, "-m", "normgate", "very"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(normgate.__file__).parents[1])
    assert done.returncode == 2 and "no verb 'very'" in done.stderr and "verify" in done.stderr
