"""`build.py report`, without a browser: what it reads, refuses, escapes, and does without."""

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_records import a_record, with_paths
from conftest import Cli

from codegen import manifest, package, places
from codegen.bench import record
from codegen.bench.record import ChipRates, ModelRecord, Record
from codegen.bench.roofline import roofline_us
from codegen.cli import main
from codegen.errors import BadInput
from codegen.problem import Problem
from codegen.report import drawing, facts, listing, older, page, proofs, stages
from codegen.spec import RouterSpec, load_specs

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "docs" / "measured"
Run = Callable[..., tuple[int, str]]

HOSTILE = "</script><script>alert('x')</script>&amp;"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A folder with records of a made-up benchmark and of a test run."""
    folder = tmp_path / "measured"
    folder.mkdir()
    found = with_paths(a_record(models=2))
    record.write(
        found.model_copy(
            update={"models": {name: of.model_copy(update={"path": None}) for name, of in found.models.items()}}
        ),
        folder / "h200-bench.json",
    )
    record.write(
        found.model_copy(
            update={"models": {name: of.model_copy(update={"points": {}}) for name, of in found.models.items()}}
        ),
        folder / "h200-paths.json",
    )
    shutil.copy(MEASURED / "h200-tests.json", folder)
    return folder


def written(folder: Path, out: Path, against: Path | None = None) -> str:
    """The report of the records in `folder` and of no package."""
    page.write(out, folder, out.parent / "nothing-generated", against)
    return out.read_text(encoding="utf-8")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`build.py report` with these arguments, in this process and an empty folder: its exit code and complaints."""

    def report(*arguments: object) -> tuple[int, str]:
        code = main(["report", *map(str, arguments)], "python build.py")
        return code, capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    return report


def spec_ids(spec: RouterSpec) -> str:
    return spec.name


# The path as a picture.


@pytest.mark.parametrize("spec", load_specs(places.every_spec()), ids=spec_ids)
def test_bytes_and_flops_of_norm_and_gate_are_those_of_the_roofline(spec: RouterSpec) -> None:
    found = stages.stages(Problem.of(spec).gate_part)
    model = ModelRecord.of(spec)
    for tokens in (1, 64, 4096):
        moved = roofline_us(model, tokens, ChipRates(copy_bytes_per_s=1e6, gemm_flops_per_s=1e30))
        assert sum(stage.bytes_at(tokens) for stage in found) == pytest.approx(moved)
    multiplied = roofline_us(model, 1, ChipRates(copy_bytes_per_s=1e30, gemm_flops_per_s=1e6))
    terms = model.problem.gate_terms * model.problem.row_terms
    assert next(stage.flops for stage in found if stage.key == "gate") * terms == pytest.approx(multiplied)


def test_a_whole_path_moves_what_its_stages_hand_out_and_no_tensor_twice() -> None:
    [spec] = load_specs([ROOT / "specs" / "deepseek-v3.yaml"])
    found = stages.stages(Problem.of(spec))
    assert [stage.key for stage in found] == ["add", "norm", "gate", "scoring", "choice"]
    row = 7168 * 2
    assert sum(stage.token_bytes for stage in found) == 4 * row + 8 * (4 + 4)  # x, residual, residual_out, normed_x
    assert sum(stage.fixed_bytes for stage in found) == row + 7168 * 256 * 2 + 256 * 4
    tensors = [name for stage in found for name in (*stage.reads, *stage.writes)]
    assert len(tensors) == len(set(tensors))


@pytest.mark.parametrize(("name", "flops"), [("add-norm-gate", 1), ("granite-4-h-small", 2), ("minimax-text-01", 3)])
def test_an_add_that_multiplies_too_counts_that(name: str, flops: int) -> None:
    [spec] = load_specs([ROOT / "tests" / "specs" / f"{name}.yaml"])
    assert stages.stages(Problem.of(spec))[0].flops == flops * spec.hidden_size


def test_softmax_of_the_chosen_comes_after_the_choice() -> None:
    [spec] = load_specs([ROOT / "specs" / "gpt-oss-120b.yaml"])
    assert [stage.key for stage in stages.stages(Problem.of(spec))][-2:] == ["choice", "scoring"]


# The kernel, folded.


def test_folding_loses_nothing_of_a_kernel() -> None:
    source = sorted((ROOT / "generated" / "normgate" / "csrc" / "kernels").glob("add_*deepseek*")) or sorted(
        (ROOT / "generated" / "normgate" / "csrc" / "kernels").glob("add_*sm90.cu")
    )
    text = source[0].read_text()
    found = listing.folds(text)

    def code(fold: listing.Fold) -> str:
        return html.unescape(re.sub(r"</?i[^>]*>", "", fold.code)) + "".join(map(code, fold.folds))

    assert "".join(map(code, found)) == re.sub(r"^// -{20,}\n", "", text, flags=re.MULTILINE)
    titles = [fold.title for fold in found]
    assert titles[0] == "header" and titles[-1] == "variants and launches"
    assert {"select", "gemv", "split_k"} <= set(titles)
    gemv = next(fold for fold in found if fold.title == "gemv")
    assert gemv.folds and all(fold.title.startswith("stage: ") for fold in gemv.folds)
    assert sum(fold.lines for fold in found) == text.count("\n") - len(re.findall(r"^// -{20,}$", text, re.MULTILINE))


def test_code_is_escaped() -> None:
    assert "<script" not in listing.coloured('// <script>alert("x")</script>\nint a = b < c;\n')


# What it is made of, and what is wrong with that.


def test_the_same_inputs_give_the_same_bytes(cli: Cli, records: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):  # of Python's sets
        done = cli("report", "--records", records, "--from", tmp_path, "--out", f"{seed}.html", PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_words_of_records_are_text_and_never_markup(tmp_path: Path) -> None:
    folder = tmp_path / "measured"
    folder.mkdir()
    text = json.loads(a_record().model_dump_json())
    text["models"][HOSTILE] = text["models"].pop("model-0")
    text["machine"]["chip"] = text["machine"]["driver"] = HOSTILE
    text["models"][HOSTILE]["points"]["1"]["left_out"] = {"flashinfer": HOSTILE}
    (folder / "h200-bench.json").write_text(json.dumps(text))
    found = written(folder, tmp_path / "report.html")
    assert "<script>alert" not in found
    assert found.count("<script") == found.count("</script>") == 2  # the records and the script of the page
    assert "&lt;/script&gt;&lt;script&gt;alert" in found
    assert older.read(tmp_path / "report.html") == [record.read(folder / "h200-bench.json")]


def test_what_is_missing_is_said_with_its_command(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, said = run("--records", "empty", "--from", "empty", "--out", "report.html")
    assert code == 0, said
    for what, command in (
        ("no record *-bench.json", "python build.py bench --only gates"),
        ("no record *-paths.json", "python build.py bench --only paths"),
        ("no record *-tests.json", "python -m pytest tests/gpu"),
        ("nothing is generated", manifest.GENERATE),
    ):
        line = next(line for line in said.splitlines() if what in line)
        assert command in line
        assert command in html.unescape((tmp_path / "report.html").read_text())


def test_a_test_that_a_run_ended_within_has_measured_nothing(records: Path) -> None:
    record = json.loads((records / "h200-tests.json").read_text())
    whole = proofs.test_runs(records)["h200-tests.json"].numerics()
    ended = next(name for name in record["measured"] if name.startswith("test_variants["))
    record["measured"][ended] = {}
    (records / "h200-tests.json").write_text(json.dumps(record))
    left = proofs.test_runs(records)["h200-tests.json"].numerics()
    assert len(left) == len(whole) - 1 and left.items() < whole.items()


def test_a_package_that_is_not_compiled_names_the_build(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(
        ROOT / "generated" / "normgate", out / "normgate", ignore=shutil.ignore_patterns("*.so", "*.build.json", "csrc")
    )
    found = facts.collect(records, out)
    assert [one.command for one in found.missing if "registers" in one.what] == ["python build.py"]
    assert found.models[0].path is not None and found.models[0].source is None


def test_without_the_drawing_library_tables_are_open(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "can_draw", lambda: False)
    found = written(records, tmp_path / "report.html")
    assert "<svg xmlns" not in found and found.count("<details open>") == found.count("<figure") > 0
    assert drawing.INSTALL in html.unescape(found)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("h200-bench.json", "{", "Invalid JSON"),
        ("h200-paths.json", '{"verb": "bench"}', "machine: Field required"),
        ("h200-tests.json", "[]", "json: Input should be an object"),
        ("h200-tests.json", '{"chip": "c", "commit": "1", "torch": "2", "packages": ["p/normgate"], "measured": {"test_variants[p-k]": {"cases": "many"}}, "outcomes": {"passed": 1, "failed": 0, "error": 0, "skipped": 0}}', "cases: Input should be a valid integer"),
        ("h200-sanitize.json", '{"chip": 1}', "chip: Input should be a valid string"),
    ],
)  # fmt: skip
def test_a_bad_record_is_refused_by_name_and_the_old_report_stays(
    run: Run, records: Path, tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (records / name).write_text(content)
    out = tmp_path / "report.html"
    out.write_text("old")
    code, said = run("--records", records, "--from", tmp_path, "--out", out)
    assert code == 2
    assert str(records / name) in said and reason in said
    assert out.read_text() == "old" and not list(tmp_path.glob("*tmp*"))


def test_one_record_may_hold_gates_and_paths(records: Path, tmp_path: Path) -> None:
    (records / "h200-paths.json").unlink()
    record.write(with_paths(a_record(models=1)), records / "h200-bench.json")
    [chip] = facts.collect(records, tmp_path).chips
    assert chip.gates and chip.gates.models["model-0"].path is None
    assert chip.paths and not chip.paths.models["model-0"].points
    found = written(records, tmp_path / "report.html")
    assert 'id="h200-gate-model-0"' in found and 'id="h200-path-model-0"' in found


@pytest.mark.parametrize("time", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_time_is_named(records: Path, tmp_path: Path, time: float) -> None:
    text = json.loads((records / "h200-bench.json").read_text())
    text["models"]["model-1"]["points"]["16"]["candidates"]["torch_eager"]["median_us"] = time
    (records / "h200-bench.json").write_text(json.dumps(text))
    with pytest.raises(BadInput, match="h200-bench.json: model-1: 16 tokens, torch_eager: .* us is no time"):
        written(records, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_model_that_nothing_was_measured_of_has_no_chart(records: Path, tmp_path: Path) -> None:
    text = json.loads((records / "h200-bench.json").read_text())
    for point in text["models"]["model-1"]["points"].values():
        point["candidates"] = {}
    (records / "h200-bench.json").write_text(json.dumps(text))
    found = written(records, tmp_path / "report.html")
    assert 'id="h200-gate-model-0"' in found and 'id="h200-gate-model-1"' not in found


# Against an older one.


def slower(found: Record) -> Record:
    text: dict[str, Any] = json.loads(found.model_dump_json())
    for model in text["models"].values():
        for point in model["points"].values():
            point["candidates"]["ours"]["median_us"] *= 2
    return Record.model_validate_json(json.dumps(text))


def test_changes_against_an_older_report_and_an_older_record(records: Path, tmp_path: Path) -> None:
    written(records, tmp_path / "old.html")
    bench = record.read(records / "h200-bench.json")
    shutil.copy(records / "h200-bench.json", tmp_path / "old.json")
    record.write(slower(bench), records / "h200-bench.json")
    for before in ("old.html", "old.json"):
        found = written(records, tmp_path / "new.html", tmp_path / before)
        said = re.findall(r'aria-label="(model-\d, \d+ tokens: [^"]*, before [^"]*)"', found)
        ours = bench.models["model-1"].points[16].candidates["ours"].median_us
        assert f"model-1, 16 tokens: {2 * ours:.2f} µs, before {ours:.2f} µs" in said
        assert "0 faster, 6 slower" in found
    assert "Nothing to compare with" in written(records, tmp_path / "new.html")


@pytest.mark.parametrize(
    ("name", "content", "code", "reason"),
    [
        ("old.html", "<p>a page</p>", 2, "no report of build.py"),
        ("old.html", '<script id="records">[{}]</script>', 2, "its records: 0.verb: Field required"),
        ("old.json", "[]", 2, "old.json"),
        ("none.html", None, 2, "cannot be read"),
    ],
)
def test_what_is_no_older_report_is_refused(
    run: Run, records: Path, tmp_path: Path, name: str, content: str | None, code: int, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    found, said = run("--records", records, "--from", tmp_path, "--out", "report.html", "--against", name)
    assert found == code and reason in said
    assert not (tmp_path / "report.html").exists()


def test_another_chip_is_not_compared(run: Run, records: Path, tmp_path: Path) -> None:
    found = a_record()
    other = found.model_copy(update={"machine": found.machine.model_copy(update={"chip": "NVIDIA B200"})})
    record.write(other, tmp_path / "old.json")
    code, said = run("--records", records, "--from", tmp_path, "--out", "report.html", "--against", "old.json")
    assert code == 1 and "no ratio compares chips" in said
    assert not (tmp_path / "report.html").exists()


def test_a_screenshot_needs_a_browser(run: Run, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = run("--records", records, "--from", tmp_path, "--out", "r.html", "--screenshot", "s.png")
    assert code == 2 and "apt-get install chromium" in said
    assert (tmp_path / "r.html").is_file() and not (tmp_path / "s.png").exists()


def test_no_package_is_made_from_the_reports_templates() -> None:
    inputs = package.inputs_of(places.all_specs())
    assert "templates/kernels/kernel.cu.j2" in inputs
    assert not [name for name in inputs if name.startswith("templates/report/")]


def test_decode_loops_are_shown_as_recorded(records: Path, tmp_path: Path) -> None:
    assert 'id="decode"' not in written(records, tmp_path / "without.html")
    shutil.copy(MEASURED / "h200-decode.json", records)
    text = written(records, tmp_path / "with.html")
    recorded = json.loads((MEASURED / "h200-decode.json").read_text())
    for name, model in recorded["models"].items():
        for sequences, point in model["points"].items():
            row = rf"{name}</th>\s*<td>{sequences}</td>\s*<td>{point['before']['median_us']:,.1f} "
            assert re.search(row, text), (name, sequences)


def test_a_bad_record_of_decode_loops_is_refused_by_name(records: Path, tmp_path: Path) -> None:
    (records / "h200-decode.json").write_text("{}")
    with pytest.raises(BadInput, match=r"h200-decode\.json"):
        written(records, tmp_path / "page.html")
