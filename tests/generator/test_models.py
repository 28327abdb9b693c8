"""The models beyond the eight of generated/: their specs are what `add` writes, and every one has kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from codegen import naming, variants
from codegen.arch import ARCHS, SM_TARGETS
from codegen.hf import comment_for, load_config, spec_from_config
from codegen.problem import Problem
from codegen.spec import dump_spec, load_spec

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "models"
SOURCES = json.loads((DATA / "sources.json").read_text())
SPECS = ROOT / "specs" / "on_demand"


def test_each_config_has_a_spec_and_each_spec_a_config() -> None:
    names = {path.stem for path in DATA.glob("*.json")} - {"sources"}
    assert names == set(SOURCES) == {path.stem for path in SPECS.glob("*.yaml")}
    assert len(names) + 8 == 82  # models of the table that this was built from, the eight reference models among them


@pytest.mark.parametrize("name", SOURCES)
def test_the_spec_is_what_add_writes(name: str) -> None:
    config, said = load_config(DATA / f"{name}.json"), SOURCES[name]
    source = said.get("source") or "said by a flag of add"
    spec = spec_from_config(config, name=name, answers=said.get("answers", {}), source=source)
    assert dump_spec(spec, comment_for(config, spec)) == (SPECS / f"{name}.yaml").read_text()
    assert load_spec(SPECS / f"{name}.yaml") == spec


@pytest.mark.parametrize("name", SOURCES)
def test_every_chip_has_a_kernel_for_it(name: str) -> None:
    gate = Problem.of(load_spec(SPECS / f"{name}.yaml")).gate_part
    for count in (1, 16, 300, 8192):
        lacking = [sm for sm in SM_TARGETS if next(iter(variants.candidates(gate, ARCHS[sm], count)), None) is None]
        assert not lacking, f"nothing is legal at {count} tokens on {lacking}"


def test_the_record_of_all_of_them() -> None:
    """What `python -m tests.models` wrote: every model came through, and is compiled under the name it has today."""
    record = json.loads((ROOT / "docs" / "measured" / "models.json").read_text())
    specs = {path.stem: load_spec(path) for path in (*SPECS.glob("*.yaml"), *SPECS.parent.glob("*.yaml"))}
    outcomes = record["models"]
    assert outcomes.keys() == specs.keys() and record["library"] == "loaded"
    for name, outcome in outcomes.items():
        assert "wrong" not in outcome and outcome["spills"] == 0, name
        assert outcome["functions"].keys() == {"90", "120"} and all(outcome["functions"].values()), name
        assert outcome["kernels"][-1] == naming.kernel_name(Problem.of(specs[name])), name
        assert outcome["missing"] == list(specs[name].not_covered), name
        assert outcome["logits_error"] < 2e-6 and outcome["weight_error"] < 1e-5, name
    assert sum(outcome["served"] == "entirely" for outcome in outcomes.values()) >= 75


def run(work: Path, sm: str, *names: str) -> dict[str, dict[str, object]]:
    """`python -m tests.models` of some; the outcomes."""
    record = work / "record.json"
    command = [sys.executable, "-m", "tests.models", "--work", str(work), "--sm", sm, "--record", str(record)]
    done = subprocess.run([*command, "--models", *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(record.read_text())["models"]


def test_a_share_of_that_run(tmp_path: Path) -> None:
    """Through to the CPU op: models with stages that few have, and one of those served in part."""
    names = ("deepseek-v4-flash-vision-exp", "gemma-4-26b-a4b", "minimax-text-01", "phi-3.5-moe")
    outcomes = run(tmp_path, "none", *names)
    assert [outcomes[name]["served"] for name in names] == ["entirely"] * 3 + ["in part"]
    assert all(0 < outcome["logits_error"] < 2e-6 for outcome in outcomes.values())


def test_one_of_them_through_the_compiler(tmp_path: Path) -> None:
    (outcome,) = run(tmp_path, "90", "granite-3.0-1b-a400m").values()
    assert outcome["functions"]["90"] > 0 and outcome["spills"] == 0 and outcome["logits_error"] < 2e-6
