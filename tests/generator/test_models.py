"""The models beyond the eight of generated/: their specs are what `add` writes, and every one has kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codegen import variants
from codegen.arch import ARCHS, SM_TARGETS
from codegen.hf_config import comment_for, load_config, spec_from_config
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
    assert dump_spec(spec, comment_for(config)) == (SPECS / f"{name}.yaml").read_text()
    assert load_spec(SPECS / f"{name}.yaml") == spec


@pytest.mark.parametrize("name", SOURCES)
def test_every_chip_has_a_kernel_for_it(name: str) -> None:
    gate = Problem.of(load_spec(SPECS / f"{name}.yaml")).gate_part
    for count in (1, 16, 300, 8192):
        lacking = [sm for sm in SM_TARGETS if next(iter(variants.candidates(gate, ARCHS[sm], count)), None) is None]
        assert not lacking, f"nothing is legal at {count} tokens on {lacking}"
