"""examples/downstream: a project whose own build generates and compiles its kernels, into its own wheel."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from codegen.wheels import router_kernels

ROOT = Path(__file__).parents[2]
USE = """\
import warnings
warnings.simplefilter("ignore")  # torch's about a missing NumPy
import torch, acme_engine, normgate
layer = acme_engine.router()
for weight in layer.parameters():
    torch.nn.init.normal_(weight)
x = torch.randn(7, 512).bfloat16()
_, logits = layer(x)
x, norm, gate = x.double(), layer.norm.weight.double(), layer.gate.weight.double()
exact = (x * (x.square().mean(1, True) + 1e-6).rsqrt() * norm) @ gate.T
assert (logits - exact).abs().max() < 1e-5 * exact.abs().max()
assert torch._C._dispatch_has_kernel_for_dispatch_key("acme_engine::norm_gate", "CUDA")
assert acme_engine.normgate.ops.LIBRARY.parent.parent.name == "acme_engine"
assert acme_engine.normgate.models() == ("acme-moe",) and "acme-moe" not in normgate.models()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The example, and a `normgate` that is this checkout's, whether or not one is installed."""
    shutil.copytree(ROOT / "examples" / "downstream", tmp_path / "project")
    (tmp_path / "site" / "normgate").mkdir(parents=True)
    shutil.copytree(ROOT / "generated" / "normgate", tmp_path / "site" / "normgate", dirs_exist_ok=True)
    (tmp_path / "site" / "normgate" / "codegen").symlink_to(ROOT / "codegen")
    return tmp_path / "project"


def build(project: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("pip", reason="builds with pip")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", "dist", "."]
    environment = {**os.environ, "PYTHONPATH": str(project.parent / "site")}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def test_its_wheel_carries_kernels_of_its_own(project, tmp_path):
    done = build(project)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (project / "dist").iterdir()
    assert wheel.name.startswith("acme_engine-1.0-cp310-abi3-linux_")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    folder = tmp_path / "installed" / "acme_engine"
    assert {path.name for path in folder.iterdir()} == {"__init__.py", "normgate"}
    use = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "installed", tmp_path / "site")))}
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=use, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verify = [sys.executable, "-m", "acme_engine.normgate", "verify", "--json"]
    said = json.loads(subprocess.run(verify, cwd=tmp_path, env=use, capture_output=True, text=True).stdout)
    assert said["holds"] and said["library"] == "verified" and Path(said["folder"]) == folder / "normgate"


def test_what_is_wrong_with_its_spec_is_said(project):
    spec = project / "specs" / "acme-moe.yaml"
    spec.write_text(spec.read_text().replace("hidden_size: 512", "hidden_size: 511"))
    done = build(project)
    assert done.returncode == 1 and not list(project.glob("dist/*"))
    assert "specs/acme-moe.yaml:4: hidden_size: 511 given" in done.stdout + done.stderr


@pytest.mark.parametrize("package", ["normgate", "", ".normgate", "acme-engine.normgate", "acme_engine..normgate"])
def test_a_package_of_its_own_lies_inside_one(package):
    with pytest.raises(ValueError, match="inside a package of the project"):
        router_kernels(package, [], ops="acme_engine")
