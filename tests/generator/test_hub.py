"""`python build.py hub`: a folder that the `kernels` package loads, from a whole package or not at all."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

variants = pytest.importorskip("kernels.variants")

STABLE = f"torch-stable-abi210-cu130-{platform.machine()}-linux"
LOAD = """\
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")  # torch's about a missing NumPy
import torch
from kernels import get_local_kernel
normgate = get_local_kernel(Path(sys.argv[1]))
layer = normgate.NormGateLinear.from_model("small")
for weight in layer.parameters():
    torch.nn.init.normal_(weight)
normed_x, logits = layer(torch.randn(3, 64).bfloat16())
assert normed_x.shape == (3, 64) and logits.shape == (3, 16) and logits.isfinite().all() and logits.any()
print(normgate.ops.LIBRARY)
"""


@pytest.fixture
def built(cli, small_spec, tmp_path: Path) -> Path:
    """A package with a library that loads and holds nothing, as if it had been compiled for two SMs."""
    assert cli("generate", "--spec", small_spec, "--out", tmp_path / "built").returncode == 0
    package = tmp_path / "built" / "normgate"
    library = package / "libnormgate.so"
    (tmp_path / "empty.cpp").write_text("")
    subprocess.run(["g++", "-shared", "-fPIC", tmp_path / "empty.cpp", "-o", library], check=True)
    stamp = {"manifest": digest(package / "manifest.json"), "library": digest(library)}
    stamp |= {"sms": [80, 90], "ptx_sms": [90], "nvcc": "13.0.88", "torch": "2.13.0"}
    (package / "libnormgate.build.json").write_text(json.dumps(stamp))
    return tmp_path / "built"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(folder: Path) -> str:
    """The library that the kernel in a folder has, by its own word, loaded in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", LOAD, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_kernels_loads_it(cli, built, tmp_path):
    out = tmp_path / "hub"
    done = cli("hub", "--from", built, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"hub/build/{STABLE}", "hub/build/torch-cpu"]
    # Beside the torch of this machine kernels chooses itself; the folder of CUDA builds it is given by name.
    import torch

    cuda = out / "build" / STABLE
    library = cuda / "normgate" / "libnormgate.so"
    assert load(out) == ("None" if torch.version.cuda is None else str(library))
    assert load(cuda) == str(library)
    done = subprocess.run([sys.executable, "-I", cuda / "normgate" / "verify.py"], capture_output=True, text=True)
    assert done.returncode == 0 and "libnormgate.so: verified" in done.stdout


@pytest.mark.parametrize(
    "torch, cuda, machine, chosen",
    [
        ("2.10", "13.0", platform.machine(), STABLE),
        ("2.13", "13.2", platform.machine(), STABLE),
        ("2.9", "13.0", platform.machine(), None),
        ("2.13", "12.8", platform.machine(), None),
        ("2.13", "13.0", "riscv64", None),
        ("2.9", None, platform.machine(), "torch-cpu"),
    ],
)
def test_kernels_chooses_the_library_where_it_runs(cli, built, tmp_path, torch, cuda, machine, chosen):
    from kernels.backends import CPU, CUDA
    from packaging.version import Version

    assert cli("hub", "--from", built, "--out", tmp_path / "hub").returncode == 0
    there = variants.get_variants_local(tmp_path / "hub" / "build")
    backend = CPU() if cuda is None else CUDA(Version(cuda))
    best, _ = variants._resolve_variant_for_system(there, backend, machine, "linux", Version(torch), True, None)
    assert [variant.variant_str for variant in best] == ([] if chosen is None else [chosen])


def test_it_names_the_chips(cli, built, tmp_path):
    from kernels._rust import Metadata
    from kernels.archs import _supports_cuda_capability

    cli("hub", "--from", built, "--out", tmp_path / "hub")
    said = Metadata.read_from_file(tmp_path / "hub" / "build" / STABLE / "metadata.json")
    assert said.backend.archs == ["8.0", "9.0+PTX"] and str(said.name) == "normgate"
    runs = {(8, 0): True, (8, 6): True, (9, 0): True, (12, 0): True, (7, 5): False}
    assert {chip: _supports_cuda_capability(said.backend.archs, chip) for chip in runs} == runs


def test_of_ptx_alone_it_names_what_runs_that(cli, built, tmp_path):
    path = built / "normgate" / "libnormgate.build.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sms": []}))
    assert cli("hub", "--from", built, "--out", tmp_path / "hub").returncode == 0
    metadata = json.loads((tmp_path / "hub" / "build" / STABLE / "metadata.json").read_text())
    assert metadata["backend"]["archs"] == ["9.0+PTX"]


def test_it_is_replaced_whole_and_only_if_it_is_one(cli, built, tmp_path):
    out = tmp_path / "hub"
    cli("hub", "--from", built, "--out", out)
    (out / "build" / "stale").mkdir()
    before = tree(out)
    assert cli("hub", "--from", built, "--out", out).returncode == 0
    assert tree(out) == before and not (out / "build" / "stale").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    done = cli("hub", "--from", built, "--out", mine)
    assert done.returncode == 2 and "mine: is there and no kernel" in done.stderr and "--out DIR" in done.stderr
    assert tree(mine) == {"thesis.tex": b"mine"}


@pytest.mark.parametrize(
    "harm, code, says",
    [
        (lambda package: (package / "libnormgate.so").unlink(), 2, "libnormgate.so: is not compiled"),
        (lambda package: (package / "libnormgate.build.json").unlink(), 2, "libnormgate.so: is not compiled"),
        (lambda package: (package / "libnormgate.so").write_bytes(b"other"), 1, "was not compiled from this package's"),
        (lambda package: (package / "ops.py").write_text("other"), 1, "ops.py: changed since it was generated"),
        (lambda package: (package / "manifest.json").unlink(), 1, "no generated package"),
    ],
    ids=["no library", "no stamp", "another library", "another file", "no package"],
)
def test_from_what_is_not_whole_nothing_is_written(cli, built, tmp_path, harm, code, says):
    cli("hub", "--from", built, "--out", tmp_path / "before")
    before = tree(tmp_path / "before")
    harm(built / "normgate")
    for out in ("hub", "before"):
        done = cli("hub", "--from", built, "--out", tmp_path / out)
        assert done.returncode == code and says in done.stderr and "python build.py" in done.stderr
    assert not (tmp_path / "hub").exists() and tree(tmp_path / "before") == before


def test_a_write_that_fails_leaves_the_old_folder(cli, built, tmp_path, monkeypatch):
    from codegen import hub, output
    from codegen.errors import ToolError

    out = tmp_path / "hub"
    hub.write(built, out)
    before = tree(out)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for module, name in ((hub.shutil, "copy2"), (output, "_put_in_place")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(ToolError, match="cannot be written .No space left on device."):
                hub.write(built, out)
        assert tree(out) == before
    assert [path.name for path in tmp_path.iterdir() if "normgate-tmp" in path.name] == []
    hub.write(built, out)
    assert tree(out) == before
