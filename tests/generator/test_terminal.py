"""What the verbs print: 80 columns and no codes in a pipe, and JSON that says the same as the plan."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from codegen import explain, places, spills, terminal, tuned
from codegen.bench import record
from codegen.plan import make_plan
from codegen.resources import BuildReport, Row, Usage
from codegen.spec import load_specs

ROOT = Path(__file__).parents[2]
BENCH, PATHS = (ROOT / "docs" / "measured" / name for name in ("h200-bench.json", "h200-paths.json"))
LONGEST = max((path.stem for path in places.every_spec()), key=len)
MODELS = ["deepseek-v3", "gpt-oss-120b", LONGEST]


def piped(*arguments: object, **environment: str) -> str:
    """What a verb writes into a pipe of 80 columns."""
    plain = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS")}
    command = [sys.executable, str(ROOT / "build.py"), *map(str, arguments)]
    done = subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fits(text: str, columns: int = 80) -> None:
    """Every line that is longer is one word, but for a label or an indent before it."""
    assert "\x1b" not in text
    for line in text.splitlines():
        assert line == line.rstrip()
        label, _, name = line.rpartition(" ")
        assert cell_len(line) <= columns or (len(name) > columns - 24 and len(label.split()) <= 1), line


@pytest.mark.parametrize("model", MODELS)
def test_plan_and_explain_fit_a_pipe(model: str) -> None:
    fits(piped("plan", model, "--sm", 90))
    fits(piped("plan", model, COLUMNS="80", NO_COLOR="1"))
    fits(piped("explain", "--model", model, "--tokens", 300, "--sm", 120))


@pytest.mark.parametrize("arguments", [("coverage",), ("bench", "--show", BENCH), ("bench", "--show", PATHS)])
def test_tables_fit_a_pipe(arguments: tuple[object, ...]) -> None:
    fits(piped(*arguments))
    if "bench" in arguments:
        every = piped(*arguments, "--table")
        fits(every)
        assert "…" not in every


def test_a_wide_pipe_is_used(small_spec: Path) -> None:
    narrow, wide = (piped("plan", small_spec, "--sm", 90, COLUMNS=str(columns)) for columns in (60, 200))
    fits(narrow, 60)
    assert re.search(r"^gate_weight_bytes +num_experts \* hidden_size \* size of an element +2,048 +", wide, re.M)


def test_help_fits_too(cli) -> None:
    for verb in ([], ["plan"], ["explain"], ["coverage"], ["bench"], ["add"], ["tune"]):
        fits(cli(*verb, "--help", COLUMNS="80").stdout)


def test_plan_as_json_is_the_plan() -> None:
    (gate, path) = json.loads(piped("plan", "kimi-k2", "--sm", 90, "--json"))["kernels"]
    specs = [spec for spec in load_specs(places.every_spec()) if spec.name in gate["models"]]
    folder = places.tuned_folder()
    planned = make_plan(specs, tuned.load(specs, folder), spills.read(folder))
    for said, kernel in ((gate, planned.kernel_of("kimi-k2")), (path, planned.path_of("kimi-k2"))):
        assert kernel is not None and said["name"] == kernel.name
        group = kernel.group_of(90)
        assert group is not None
        (only,) = said["groups"]
        assert only["sm_targets"] == [90]
        assert [(one["first_token"], one["last_token"], one["variant"], one["why"]) for one in only["ranges"]] == [
            (served.first_token, served.last_token, served.name, served.why) for served in group.ranges
        ]
    quantities = {one["name"]: one["value"] for one in gate["quantities"]}
    assert quantities["gate_weight_bytes"] == 7168 * 384 * 2
    assert all(set(one) == {"name", "formula", "value", "meaning"} for one in gate["quantities"])
    threads = [one["value"] for served in only["ranges"] for one in served["quantities"] if one["name"] == "threads"]
    assert threads and all(isinstance(value, int) and value % 32 == 0 for value in threads)


def test_explain_as_json_is_what_is_explained(small_spec: Path) -> None:
    said = json.loads(piped("explain", "--model", "kimi-k2", "--tokens", 17, "--sm", 103, "--json"))
    assert [one["model"] for one in said] == ["kimi-k2", None]
    text = piped("explain", "--model", "kimi-k2", "--tokens", 17, "--sm", 103)
    for one in said:
        assert one["function"] in text and one["kernel"] in text
        assert all(f"{rejected['variant']}: {rejected['why']}" in text for rejected in one["rejected"])
    (found,) = explain.explained(make_plan(load_specs([small_spec])), "small", 17, 90)
    assert explain.as_data(found)["first_token"] == found.first_token


def test_bench_as_json_is_the_record() -> None:
    said = piped("bench", "--show", BENCH, "--json")
    assert record.Record.model_validate_json(said) == record.read(BENCH)


def test_bench_shows_what_the_record_has() -> None:
    found = record.read(BENCH).models["deepseek-v3"].points[1].candidates
    first = next(line.split() for line in piped("bench", "--show", BENCH).splitlines() if line.split()[:1] == ["1"])
    peers = {name: found[name].median_us for name in found if name not in ("ours", "probe", "empty")}
    best = min(peers.values())
    ours = found["ours"].median_us
    assert first[1:5] == [f"{value:.2f}" for value in (ours, best, best / ours, found["probe"].median_us)]


def test_bench_shows_no_record_that_is_none(cli, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    done = cli("bench", "--show", tmp_path / "record.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "record.json" in done.stderr


def report(*rows: tuple[str, Usage]) -> BuildReport:
    found = tuple(Row(usage, f"csrc/kernels/{source}", 2048, 1.5) for source, usage in rows)
    return BuildReport(Path("libnormgate.so"), (80, 90), (90,), found, 1, (), 1.0)


def test_a_build_in_short_is_the_worst_of_each_kernel() -> None:
    found = report(
        ("a.sm80.cu", Usage("a_f", 80, registers=40, smem=512, spill=0)),
        ("a.sm80.cu", Usage("a_g", 80, registers=255, smem=0, spill=8, stack=16)),
        ("a.sm90.cu", Usage("a_f", 90, registers=32, smem=1024)),
        ("b.sm90.cu", Usage("b_f", 90, registers=None)),
    )
    head, *lines = [line.split() for line in found.summary().splitlines()]
    assert head == ["functions", "regs", "smem", "spill", "stack", "KiB", "sec", "kernel"]
    assert lines == [
        ["2", "255", "1024", "8", "16", "4", "3.0", "a"],
        ["1", "0", "0", "0", "0", "2", "1.5", "b"],
        ["3", "255", "1024", "8", "16", "6", "4.5", "all", "of", "them"],
    ]
    assert len(report(("a.sm80.cu", Usage("a_f", 80, registers=40))).summary().splitlines()) == 2


def test_only_the_name_of_a_kernel_goes_beyond_80_columns() -> None:
    kernel = "add_norm_a_gate_sigmoid_top8_7168x256_bf16_bf16_fp32_corrected_groups8x4top2_bounded"
    found = report((f"{kernel}.sm80.cu", Usage(f"{kernel}_f", 80, registers=255, smem=48000)))
    for text in (found.summary(), found.table()):
        assert all(len(line.rpartition(" ")[0]) < 60 for line in text.splitlines())
        assert text.splitlines()[-1].split()[-1].startswith(kernel)


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")

    def drawn(**environment: str) -> Any:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        console = terminal.console()
        with console.capture() as got:
            terminal.title(console, "a title")
        return got.get()

    assert drawn() == drawn(NO_COLOR="1") == "a title\n"
    assert "\x1b" in drawn(FORCE_COLOR="1")  # who asks for them gets them
