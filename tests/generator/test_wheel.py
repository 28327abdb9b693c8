"""normgate's own wheel: what is in it, when the compiler is asked for, and what a library is taken as it is for."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BACKEND = "import json, sys; from codegen import backend; settings = json.loads(sys.argv[1]); "


@pytest.fixture
def checkout(cli, small_spec, tmp_path: Path) -> Path:
    """A checkout whose generated package is a small one, for sm_80 and sm_90, and has a library that was compiled."""
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    for name in ("codegen", "templates", "specs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert cli("generate", "--spec", small_spec, "--out", root / "generated").returncode == 0
    package = root / "generated" / "normgate"
    (package / "libnormgate.so").write_bytes(b"machine code")
    stamp = {"manifest": digest(package / "manifest.json"), "library": digest(package / "libnormgate.so")}
    (package / "libnormgate.build.json").write_text(json.dumps({**stamp, "sms": [80, 90]}))
    return root


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def requires(root: Path, settings: dict[str, object]) -> list[str]:
    """What pip would install before it builds a wheel; the backend sees the standard library and setuptools alone."""
    code = f"sys.modules.update(dict.fromkeys(['pydantic', 'torch', 'click', 'jinja2'])); {BACKEND}"
    say = "print(json.dumps(backend.get_requires_for_build_wheel(settings)))"
    command = [sys.executable, "-c", f"import sys; {code}{say}", json.dumps(settings)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_compiled_library_is_packed_as_it_is(checkout):
    for lib in ("lib", f"lib.{sys.platform}-x86_64-cpython-{sys.version_info.major}{sys.version_info.minor}"):
        stale = checkout / "build" / lib / "normgate" / "of_an_earlier_build.py"
        stale.parent.mkdir(parents=True)
        stale.write_text("")
    inner = checkout / "generated" / "normgate" / "integrations"
    inner.mkdir(exist_ok=True)
    (inner / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", f"{BACKEND}print(backend.build_wheel('dist'))", "{}"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (checkout / "dist").iterdir()
    assert wheel.name.startswith("normgate-") and "-cp310-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read("normgate/libnormgate.so") == b"machine code"
        metadata = next(archive.read(name).decode() for name in names if name.endswith("/WHEEL"))
    assert "Root-Is-Purelib: false" in metadata
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"normgate"}
    assert not [name for name in names if "of_an_earlier_build" in name or name.endswith(".pyc")]
    generated = json.loads((checkout / "generated" / "normgate" / "manifest.json").read_text())["outputs"]
    files = {
        *generated,
        "manifest.json",
        "libnormgate.build.json",
        *(f"codegen/{path.relative_to(ROOT / 'codegen')}" for path in (ROOT / "codegen").rglob("*.py")),
    }
    files |= {"codegen/templates/kernels/kernel.cu.j2", "codegen/templates/.clang-format", "integrations/__init__.py"}
    files |= {"codegen/templates/report/page.html.j2", "codegen/templates/report/style.css"}
    files |= {
        f"codegen/specs/{path.relative_to(ROOT / 'specs')}"
        for path in (ROOT / "specs").rglob("*.*")
        if path.suffix != ".md"
    }
    assert {f"normgate/{name}" for name in files} <= {*names}


def test_only_without_the_library_asked_for_are_torch_and_the_compiler_needed(checkout):
    assert (
        requires(checkout, {}) == requires(checkout, {"sm": "80,90"}) == requires(checkout, {"sm": ["90", "80"]}) == []
    )
    needed = requires(checkout, {"sm": "90"})
    assert any(need.startswith("torch>=") for need in needed) and any("nvcc" in need for need in needed)


@pytest.mark.parametrize("name", ["libnormgate.so", "libnormgate.build.json", "manifest.json"])
def test_a_library_of_something_else_is_not_packed(checkout, name):
    path = checkout / "generated" / "normgate" / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"', b' "', 1) if name.endswith("manifest.json") else b"[")
    assert requires(checkout, {})
    path.unlink()
    assert requires(checkout, {})
    path.write_bytes(content)
    assert not requires(checkout, {})


def test_what_is_no_target_is_said(checkout):
    code = f"{BACKEND}backend.build_wheel('dist', settings)"
    command = [sys.executable, "-c", code, '{"sm": "99"}']
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 1 and "--sm 99: '99' is no target here" in done.stderr
    assert not (checkout / "dist").exists()
