"""Copies of the generated package beside each other in one process, each with operators of its own."""

import shutil
import subprocess
import sys

import pytest

TWO_COPIES = """\
import torch, warnings
warnings.simplefilter("ignore")  # torch's about a missing NumPy
import acme.normgate, normgate
x = torch.randn(5, 64, dtype=torch.float64).bfloat16()
weight, gate = torch.randn(64).bfloat16(), torch.randn(16, 64).bfloat16()
say = {"norm_order": "B", "eps": 1e-6}
by_acme, by_other = (each.norm_gate(x, weight, gate, **say) for each in (acme.normgate, normgate))
assert all(map(torch.equal, by_acme, by_other)) and by_acme[1].any()
compiled = torch.compile(lambda x: acme.normgate.norm_gate(x, weight, gate, **say)[1], fullgraph=True, backend="eager")
assert torch.equal(compiled(x), by_other[1])
assert torch.ops.acme_moe.route is not torch.ops.normgate.route
try:
    acme.normgate.norm_gate(x.double(), weight, gate, **say)
except RuntimeError as error:
    assert "acme_moe::norm_gate: x has dtype" in str(error), error
else:
    raise AssertionError("float64 taken")
assert acme.normgate.Routed is not normgate.Routed
try:
    import again
except ImportError as error:
    print(error)
"""


def test_two_copies_live_in_one_process_if_their_operators_differ(cli, small_spec, tmp_path):
    for ops, place in (("acme_moe", "acme"), ("normgate", ".")):
        assert cli("generate", "--spec", small_spec, "--out", tmp_path / ops, "--ops", ops).returncode == 0
        shutil.copytree(tmp_path / ops / "normgate", tmp_path / "site" / place / "normgate")
    shutil.copytree(tmp_path / "site" / "normgate", tmp_path / "site" / "again")
    done = subprocess.run([sys.executable, "-c", TWO_COPIES], cwd=tmp_path / "site", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch.ops.normgate belongs to another package that is loaded, so again" in done.stdout
    assert "--ops NAME" in done.stdout


def test_another_namespace_is_another_package(cli, small_spec, tmp_path):
    cli("generate", "--spec", small_spec, "--out", tmp_path, "--ops", "acme_moe")
    assert cli("check", "--spec", small_spec, "--out", tmp_path, "--ops", "acme_moe").returncode == 0
    done = cli("check", "--spec", small_spec, "--out", tmp_path)
    assert done.returncode == 1
    assert "changed: _tables.py" in done.stderr and "changed: csrc/include/ops.h" in done.stderr
    assert "up to date" not in cli("generate", "--spec", small_spec, "--out", tmp_path).stdout


@pytest.mark.parametrize("ops", ["", "Acme", "acme-moe", "acme.moe", "1acme", "a" * 65, 'a"; }', "acme\n", "aé"])
def test_what_is_no_namespace_becomes_no_code(cli, small_spec, tmp_path, ops):
    done = cli("--spec", small_spec, "--out", tmp_path / "out", "--ops", ops)
    assert done.returncode == 2 and f"--ops {ops!r}: " in done.stderr and "acme_engine" in done.stderr
    assert not (tmp_path / "out").exists()
