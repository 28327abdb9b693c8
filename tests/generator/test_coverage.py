"""What `coverage` prints and writes: claims of a run come from records only."""

from __future__ import annotations

import json
from pathlib import Path

from codegen import coverage, places
from codegen.spec import load_specs

ROOT = Path(__file__).parents[2]


def test_the_page_is_fresh(cli) -> None:
    done = cli("coverage", "--check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("docs/coverage.md is fresh\n")


def test_json_names_every_model_and_what_is_missing(cli) -> None:
    models = {one["model"]: one for one in json.loads(cli("coverage", "--json").stdout)}
    assert len(models) == len(places.every_spec())
    assert models["kimi-k2"]["sms"]["90"] == "run" and models["kimi-k2"]["sms"]["120"] == "built"
    assert models["mixtral-8x7b"]["sms"]["120"] == "compiled"
    assert models["mixtral-8x7b"]["sms"]["100"] == "planned"
    assert any("LayerNorm" in reason for reason in models["dbrx"]["missing"])


def test_the_table_fits_80_columns(cli) -> None:
    lines = cli("coverage").stdout.splitlines()
    assert max(len(line) for line in lines if " p " in line or " B " in line) <= 80


def test_a_run_is_claimed_from_a_record_of_that_chip_without_failures(tmp_path: Path) -> None:
    def record(name: str, kernel: str, failed: int = 0, code: str = "sm_80, sm_90, PTX of sm_90") -> None:
        tests = {f"test_variants[generated-{kernel}]": {}}
        outcomes = {"passed": 1, "failed": failed, "error": 0}
        text = {"packages": ["generated/normgate"], "code": [code], "outcomes": outcomes, "measured": tests}
        (tmp_path / name).write_text(json.dumps(text))

    record("h200-tests.json", "gate_a")
    record("h200-tests-failing.json", "gate_b", failed=1)
    record("h200-tests-ptx.json", "gate_c", code="PTX of sm_90")
    record("b200-tests.json", "gate_d")
    assert coverage.ran(tmp_path) == {"gate_a": frozenset({90})}


def test_only_what_came_through_without_spills_was_compiled(tmp_path: Path) -> None:
    assert coverage.compiled(tmp_path) == {}
    good = {"kernels": ["gate_a", "path_a"], "functions": {"90": 3, "120": 0}, "spills": 0}
    bad = {"kernels": ["gate_b"], "wrong": "compile: no", "functions": {"90": 3}, "spills": 0}
    spilled = {"kernels": ["gate_c"], "functions": {"90": 3}, "spills": 8}
    pending = {"kernels": ["gate_d"]}
    models = {"a": good, "b": bad, "c": spilled, "d": pending}
    (tmp_path / "models.json").write_text(json.dumps({"models": models}))
    assert coverage.compiled(tmp_path) == {"gate_a": frozenset({90}), "path_a": frozenset({90})}


def test_an_sm_that_a_spec_leaves_out_has_none() -> None:
    spec = load_specs([ROOT / "specs" / "kimi-k2.yaml"])[0].model_copy(update={"sm_targets": (90,)})
    (one,) = coverage.covered([spec], frozenset(), {})
    assert one.sms[90] == "planned" and {one.sms[sm] for sm in one.sms if sm != 90} == {"none"}
