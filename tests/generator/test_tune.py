"""Tuned tables: names that read back, the rule of handing over, and a plan that follows what was measured."""

import io
import json
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from codegen import cost, families, manifest, naming, package, places, tune, tuned, variants
from codegen.arch import ARCHS
from codegen.bench.chain import Timing
from codegen.errors import BadInput, CheckFailed
from codegen.plan import make_plan
from codegen.problem import Problem
from codegen.protocol import Protocol, ProtocolRecord
from codegen.spec import load_spec, load_specs
from codegen.tuned import Measurement, TunedTable

ALL = tune.ANCHORS


@pytest.fixture
def small_spec(small_spec) -> Path:
    """Large enough that every count has candidates of the families it should."""
    small_spec.write_text(small_spec.read_text().replace("64", "512").replace("experts: 16", "experts: 64"))
    return small_spec


@pytest.fixture
def tuned_folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "specs" / "tuned"
    folder.mkdir(parents=True)
    monkeypatch.setattr(places, "tuned_folder", lambda: folder)
    return folder


def timed(**medians: float) -> dict[str, Measurement]:
    return {name: Measurement(median_us=us, spread_us=0.1) for name, us in medians.items()}


def winners(*measured: dict[str, Measurement]) -> list[tuple[int | None, str]]:
    at = dict(zip(ALL[-len(measured) :], measured, strict=True))
    return [(one.last_token, one.variant) for one in tuned.ranges_of(at)]


def table_of(spec_path: Path, counts=ALL, sm: int = 90) -> TunedTable:
    """Synthetic: at each count the cost model's choices, its second best measured fastest."""
    (kernel,) = make_plan([load_spec(spec_path)]).kernels
    table = TunedTable(
        kernel=kernel.name,
        sm=sm,
        chip="NVIDIA Test",
        driver="1",
        torch="2",
        cuda="13",
        commit="abc",
        protocol=ProtocolRecord.of(Protocol()),
    )
    for count in counts:
        names = [variant.name for variant in tune.candidates_at(kernel, ARCHS[sm], count, 4)]
        names = names[1:] + names[:1]
        found = {name: Measurement(median_us=2.0 + i, spread_us=0.1) for i, name in enumerate(names)}
        table = table.with_measured(count, found)
    return table


def write(table: TunedTable, folder: Path) -> Path:
    path = folder / table.file_name
    path.write_text(table.text())
    return path


@pytest.mark.parametrize("sm", [80, 90])
def test_every_candidate_s_name_reads_back(sm):
    seen = set()
    for spec in load_specs(places.all_specs()):
        for early in (True, False):
            problem = Problem.of(spec.model_copy(update={"early_weight_loads": early})).gate_part
            for count in (1, 8, 64, 4096):
                for variant in variants.candidates(problem, ARCHS[sm], count):
                    assert families.parse(variant.name) == variant
                    seen.add(variant.family)
    assert seen == {"gemv", "split_k", "tiled"} | ({"wgmma", "resident"} if sm == 90 else set())


@pytest.mark.parametrize("name", ["", "gemv", "gemv_t01_e1_w4_c1", "gemv_t1_e1_w4_c1_x", "split_k_t8_e16_s1_w4_b1_r1"])
def test_a_name_that_no_variant_has_is_refused(name):
    with pytest.raises(ValueError, match="no variant"):
        families.parse(name)


def test_the_fastest_serves_and_the_last_range_is_open():
    assert winners(timed(a=2, b=1), timed(a=1, b=2)) == [(4096, "b"), (None, "a")]


def test_within_the_spread_the_one_before_goes_on():
    assert winners(timed(a=1, b=2), timed(a=1.09, b=1), timed(a=2, b=1)) == [(4096, "a"), (None, "b")]


def test_what_two_runs_may_differ_by_is_no_reason_to_hand_over():
    steady = {name: Measurement(median_us=us, spread_us=0.0) for name, us in (("a", 10.0), ("b", 9.75))}
    assert winners(timed(a=1, b=2), steady, timed(a=2, b=1)) == [(4096, "a"), (None, "b")]


def test_who_was_not_measured_cannot_go_on():
    assert winners(timed(a=1), timed(b=1.05), timed(b=1)) == [(2048, "a"), (None, "b")]


def test_ranges_end_where_nothing_was_measured():
    assert [r.last_token for r in tuned.ranges_of({1: timed(a=1), 2: timed(b=1)})] == [1, 2]


def test_a_table_reads_back_equal_and_goes_on(small_spec, tuned_folder):
    table = table_of(small_spec)
    read = tuned.read(write(table, tuned_folder))
    assert read == table
    assert json.loads(table.text())["schema"] == 1
    assert table.continues(table_of(small_spec, ALL[:2]))
    assert not table.continues(table.model_copy(update={"commit": "another"}))


def test_the_plan_follows_the_table_and_says_so(small_spec):
    table = table_of(small_spec)
    (kernel,) = make_plan([load_spec(small_spec)], {(table.kernel, 90): table}).kernels
    ranges = kernel.group_of(90).ranges
    assert [(r.last_token, r.name) for r in ranges] == [(r.last_token, r.variant) for r in table.ranges]
    first = ranges[0]
    assert first.why.startswith("measured on NVIDIA Test: 2.00 us at ")
    assert f"next best {first.rejected[0][0]} 3.00" in first.why
    assert first.rejected[0][1] == "1.50 times the time" and len(first.rejected) == 3
    assert "no tuned table for this SM (python build.py tune); cost model" in kernel.group_of(80).ranges[0].why


def test_beyond_what_was_measured_the_cost_model_decides(small_spec):
    table = table_of(small_spec, ALL[:3])
    ranges = make_plan([load_spec(small_spec)], {(table.kernel, 90): table}).kernels[0].group_of(90).ranges
    assert "measured on NVIDIA Test" in ranges[0].why
    assert ranges[-1].last_token is None and "not measured on this SM yet" in ranges[-1].why
    assert all(a.last_token + 1 == b.first_token for a, b in zip(ranges, ranges[1:], strict=False))


def test_explicit_thresholds_win_and_choose_by_what_was_measured(small_spec):
    table = table_of(small_spec)
    small_spec.write_text(small_spec.read_text() + "token_thresholds: {gemv: 2, split_k: 64}\n")
    ranges = make_plan([load_spec(small_spec)], {(table.kernel, 90): table}).kernels[0].group_of(90).ranges
    families = {(r.first_token, r.variant.family) for r in ranges}
    assert all((first <= 2) == (family == "gemv") for first, family in families)
    assert all((first > 64) == (family in ("tiled", "wgmma")) for first, family in families)
    assert "measured on NVIDIA Test" in ranges[0].why


def test_explain_names_the_measurement(small_spec):
    from codegen.explain import explained

    table = table_of(small_spec)
    (found,) = explained(make_plan([load_spec(small_spec)], {(table.kernel, 90): table}), "small", 1, 90)
    text = str(found)
    assert table.ranges[0].variant in text and "measured on NVIDIA Test" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gemv_t1_e1_w33_c1", "33 warps"),
        ("gemv_t1_e1_w2_c1", "serves 1 tokens at most"),
        ("split_k_t8_e16_s1_w2_b1_late", "early_weight_loads is true"),
        ("warp_t1", "no variant has the name 'warp_t1'"),
    ],
)
def test_a_range_that_cannot_be_is_bad_input_with_its_file(small_spec, tuned_folder, name, said):
    table = table_of(small_spec)
    served = table.ranges[-1].model_copy(update={"variant": name})
    path = write(table.model_copy(update={"ranges": (served,)}), tuned_folder)
    with pytest.raises(BadInput, match=said) as caught:
        package.files_of([small_spec])
    assert path.name in str(caught.value)


def test_a_table_that_is_no_table_is_bad_input_with_its_file(small_spec, tuned_folder):
    path = write(table_of(small_spec), tuned_folder)
    path.write_text(path.read_text().replace('"median_us"', '"mean_us"', 1))
    with pytest.raises(BadInput, match="mean_us") as caught:
        package.files_of([small_spec])
    assert str(path) in str(caught.value)


def test_the_manifest_lists_the_tables_of_its_kernels_alone(small_spec, tuned_folder):
    table = table_of(small_spec)
    path = write(table, tuned_folder)
    shutil.copy(path, tuned_folder / "norm_b_gate_128x16_bf16_bf16_fp32.sm90.json")
    said = manifest._ADAPTER.validate_json(str(package.files_of([small_spec])[manifest.NAME]))
    listed = {name: digest for name, digest in said.inputs.items() if name.startswith("specs/tuned/")}
    assert listed == {f"specs/tuned/{table.file_name}": manifest.sha256(path.read_bytes())}


def test_a_changed_table_makes_the_package_stale(small_spec, tuned_folder, tmp_path):
    path = write(table_of(small_spec), tuned_folder)
    out = tmp_path / "out"
    package.generate([small_spec], out)
    assert package.check([small_spec], out).fresh and package.generate([small_spec], out) is None
    path.write_text(path.read_text().replace("NVIDIA Test", "NVIDIA Other"))
    assert not package.check([small_spec], out).fresh
    assert package.generate([small_spec], out) is not None
    assert package.check([small_spec], out).fresh


def test_what_the_plan_has_is_always_a_candidate(small_spec):
    (kernel,) = make_plan([load_spec(small_spec)]).kernels
    for count in ALL:
        found = tune.candidates_at(kernel, ARCHS[90], count, 1)
        assert kernel.group_of(90).range_of(count).variant in found
        assert len(found) == len(set(found))


def test_tuning_without_a_gpu_or_a_build_says_what_to_do(cli, tmp_path):
    done = cli("tune", "--no-build", "--out", tmp_path / "out", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "tune --build-only --sm N" in done.stderr
    assert cli("tune", "--build-only").returncode == 2


def test_a_run_writes_after_each_count_and_goes_on_where_it_was(small_spec, tmp_path, monkeypatch):
    """Everything but the GPU: a later candidate is always slower, one count fails to agree in the second run."""
    plan = make_plan([load_spec(small_spec)])
    (kernel,) = plan.kernels
    at = {count: [v.name for v in tune.candidates_at(kernel, ARCHS[90], count, 2)] for count in (1, 2)}
    parts = {"part.0": {name: f"f_{name}" for names in at.values() for name in names}}
    index = tune.Index(sm=90, kernels={kernel.name: tune.Built(parts=parts, candidates=at)})
    measured: list[int] = []

    def random_chain(bench, spec, weights, num_tokens, path):
        def measure(candidates, protocol):
            measured.append(num_tokens)
            return SimpleNamespace(timings={one.name: Timing(2.0 + i, 0.1) for i, one in enumerate(candidates)})

        return SimpleNamespace(measure=measure, inputs_of_last=lambda *_: (None, None), weights=[])

    machine = tune.record.Machine(
        chip="Fake", sm=90, multiprocessors=132, l2_bytes=1, driver="1", torch="2", cuda_runtime="13", clocks={}
    )
    problem = ""
    monkeypatch.setattr(tune.record, "machine", lambda: machine)
    monkeypatch.setattr(tune.run, "weight_sets", lambda *_: [])
    monkeypatch.setattr(tune, "random_chain", random_chain)
    monkeypatch.setattr(tune, "BenchLibrary", lambda _: SimpleNamespace(workspace=lambda *_: None))
    monkeypatch.setattr(tune.agreement, "expected", lambda *_: None)
    monkeypatch.setattr(tune.agreement, "agree", lambda *_: SimpleNamespace(problem=problem))

    def run(*tokens, budget_s=60.0):
        reference = SimpleNamespace(reference=None)
        said = Console(width=200, record=True, file=io.StringIO())
        tune.run_all(
            plan, index, tmp_path, tokens, package=reference, tuned_dir=tmp_path, budget_s=budget_s, console=said
        )
        return said.export_text()

    path = tmp_path / tuned.file_name(kernel.name, 90)
    run(1)
    first = tuned.read(path)
    assert set(first.measured) == {1} and first.ranges[0].variant == at[1][0]
    assert "1 counts were not begun" in run(1, 2, budget_s=0.0) and tuned.read(path) == first
    problem = "logits are off"
    with pytest.raises(CheckFailed, match="small, 2 tokens, f_.*: logits are off"):
        run(1, 2)
    problem = ""
    assert at[2][0] in run(1, 2)
    assert set(tuned.read(path).measured) == {1, 2} and measured == [1, 2]


def test_cost_model_picks_close_to_the_best_of_what_was_measured() -> None:
    """Over every recorded point: the measured time of the model's pick over that of the fastest, geometric mean."""
    specs = load_specs(places.all_specs())
    tables = tuned.load(specs, Path(__file__).resolve().parents[2] / "specs" / "tuned")
    ratios = []
    for spec in specs:
        problem = Problem.of(spec).gate_part
        for (kernel, sm), table in tables.items():
            if kernel != naming.kernel_name(problem):
                continue
            for tokens in table.measured:
                timed = tuned.legal_measured(table, problem, tokens)
                pick = min(timed, key=lambda one: cost.microseconds(problem, ARCHS[sm], one[1], tokens))  # noqa: B023
                ratios.append(pick[0] / timed[0][0])
    assert len(ratios) >= 90
    assert statistics.geometric_mean(ratios) < 1.12  # 1.109 with the coefficients as fitted
