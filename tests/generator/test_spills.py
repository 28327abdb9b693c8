"""What a compiler could not keep in registers: how a build learns of it and plans anew."""

import subprocess
import sys

import pytest

from codegen import build as building
from codegen import cli, compile, package, places, spills
from codegen.errors import BadInput, Spilled
from codegen.families import Apart
from codegen.path_ranges import MOST_SPILLED
from codegen.plan import make_plan
from codegen.resources import BuildReport
from codegen.spec import load_spec
from tests.generator.conftest import SMALL

ROUTED = SMALL.replace("routing: {top_k: 2,", "residual: {}\nrouting: {scoring: sigmoid, top_k: 2,")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A checkout of one's own: what a build writes beside the specs comes here."""
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "small.yaml").write_text(ROUTED)
    monkeypatch.setattr(places, "home", lambda: tmp_path)
    return tmp_path


def compiler_that_spills(monkeypatch, functions_of):
    """A compiler that spills what `functions_of` says of each run's manifest, and what it was asked to compile."""
    runs = []

    def compiled(package_dir, *, sms, **_):
        manifest = package.manifest.load_manifest(package_dir)
        functions = [name for source in manifest.sources for name in source.functions]
        runs.append(functions)
        if spilled := functions_of(functions):
            raise Spilled("some spill", spilled)
        return BuildReport(package_dir / "libnormgate.so", tuple(sms), (), (), 0, (), 0.0)

    monkeypatch.setattr(compile, "compile_package", compiled)
    return runs


def test_a_build_plans_anew_without_what_spills(home, monkeypatch, capsys):
    first = []

    def spilled(functions):
        first[:] = first or [name for name in functions if "_split_k_" in name or "_gemv_" in name][:2]
        return [name for name in first if name in functions]

    runs = compiler_that_spills(monkeypatch, spilled)
    assert cli.main(["--out", str(home / "out")], "build.py") == 0
    assert len(runs) > 1 and not set(first) & set(runs[-1])
    known = spills.read(home / "specs" / "tuned")
    assert all(any(variant in name for names in known.values() for variant in names) for name in first)
    assert "planned anew without" in capsys.readouterr().err
    # The next build begins with what the last one learned.
    runs.clear()
    assert cli.main(["--out", str(home / "out")], "build.py") == 0
    assert len(runs) == 1


def test_a_path_of_which_all_spills_has_its_stages_apart(home, monkeypatch):
    """As with a thousand experts, of which each lane of the warp that chooses holds more than there are registers for."""
    (path,) = make_plan([load_spec(home / "specs" / "small.yaml")]).paths

    def spilled(functions):
        own = [name for name in functions if name.startswith(path.name)]
        return [name for name in own if not any(part in name for part in ("_add_sm", "_select_sm"))]

    runs = compiler_that_spills(monkeypatch, spilled)
    assert cli.main(["--out", str(home / "out")], "build.py") == 0
    assert len(runs) <= 6 and any(name.startswith(path.name) for name in runs[-1])
    assert len(spills.read(home / "specs" / "tuned")[path.name]) >= MOST_SPILLED
    # The next build begins with what the last one learned.
    runs.clear()
    assert cli.main(["--out", str(home / "out")], "build.py") == 0
    assert len(runs) == 1


def test_what_no_plan_can_leave_out_is_the_error_that_it_was(home, monkeypatch, capsys):
    runs = compiler_that_spills(monkeypatch, lambda functions: [name for name in functions if "_select_sm" in name])
    assert cli.main(["--out", str(home / "out")], "build.py") == 1
    assert len(runs) == 1 and "some spill" in capsys.readouterr().err
    assert not (home / "specs" / "tuned" / spills.FILE).exists()


def test_it_ends_when_the_same_spills_again(home, monkeypatch):
    compiler_that_spills(monkeypatch, lambda functions: functions)
    assert cli.main(["--out", str(home / "out")], "build.py") == 1


def test_a_plan_leaves_out_what_spilled(home):
    spec = load_spec(home / "specs" / "small.yaml")
    before = make_plan([spec])
    kernels = [*before.kernels, *before.paths]
    found = {kernel.name: frozenset({kernel.groups[0].ranges[0].name}) for kernel in kernels}
    after = make_plan([spec], {}, found)
    for kernel in (*after.kernels, *after.paths):
        for group in kernel.groups:
            own = [v.inner if isinstance(v, Apart) else v for v in group.served_by]
            assert not {variant.name for variant in own} & found[kernel.name] or kernel in after.paths
            assert not {variant.name for variant in group.variants} & found[kernel.name]


@pytest.mark.parametrize("asked", ["", "token_thresholds: {gemv: 8, split_k: 64}\n"], ids=["estimated", "as the gate"])
def test_a_path_leaves_out_what_spills_only_with_the_other_stages(home, asked):
    (home / "specs" / "small.yaml").write_text(ROUTED + asked)
    spec = load_spec(home / "specs" / "small.yaml")
    (path,) = make_plan([spec]).paths
    found = {path.name: frozenset(variant.name for group in path.groups for variant in group.variants)}
    assert found[path.name]
    before, after = make_plan([spec]), make_plan([spec], {}, found)
    assert after.kernels == before.kernels
    assert not {variant.name for group in after.paths[0].groups for variant in group.variants} & found[path.name]


def test_functions_are_told_apart_by_the_longest_kernel_that_begins_them():
    kernels = ["gate_8x8_bf16_bf16_fp32", "gate_8x8_bf16_bf16_fp32_bias"]
    functions = [
        f"{kernels[1]}_gemv_t1_e1_w4_c2_sm90",
        f"{kernels[0]}_row_norm_sm80",
        f"{kernels[0]}_gemv_t1_e1_w4_c2_sm80",
    ]
    assert spills.named(functions, kernels) == {name: frozenset({"gemv_t1_e1_w4_c2"}) for name in kernels}


@pytest.mark.parametrize("text", ["{", "[]", '{"kernels": {"a": ["no_variant"]}}', '{"kernels": {"a": "gemv"}}'])
def test_a_file_that_is_none_is_said(tmp_path, text):
    (tmp_path / spills.FILE).write_text(text)
    with pytest.raises(BadInput, match="delete the file"):
        spills.read(tmp_path)


def test_builds_of_two_packages_add_to_what_is_known_at_once(tmp_path):
    script = (
        "import sys; from pathlib import Path; from codegen import spills\n"
        "for tile in range(8, 72, 8):\n"
        "    spills.add(Path(sys.argv[1]), {sys.argv[2]: frozenset({f'split_k_t{tile}_e16_s8_w4_b1'})})\n"
    )
    builds = [subprocess.Popen([sys.executable, "-c", script, tmp_path, kernel]) for kernel in ("one", "two", "three")]
    assert [build.wait() for build in builds] == [0, 0, 0]
    assert {kernel: len(names) for kernel, names in spills.read(tmp_path).items()} == dict.fromkeys(
        ("one", "two", "three"), 8
    )


def test_what_another_build_learned_meanwhile_is_no_error(tmp_path, monkeypatch):
    """It is in the file by the time that this build finds it out, but was not when this build made its plan."""
    monkeypatch.setattr(places, "tuned_folder", lambda: tmp_path)
    found = {"kernel": frozenset({"split_k_t8_e16_s8_w4_b1"})}
    spills.add(tmp_path, found)
    building.plan_without(Spilled("spills", ["f"]), found, {})
    with pytest.raises(Spilled):
        building.plan_without(Spilled("spills", ["f"]), found, found)
