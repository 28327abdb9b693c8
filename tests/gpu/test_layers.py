"""Every model of a package through its layer: what the operators of any package, not only the shipped one, give."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from packages import ROOT, Package, packages


@pytest.mark.parametrize("package", packages(), ids=[package.name for package in packages()])
def test_every_models_layer(package: Package, record: dict[str, Any]) -> None:
    """In a process of its own, which loads that package's operators; no call may fall back to the reference."""
    names = list(package.models)
    layers = [sys.executable, "-W", "ignore", "-m", "tests.models.ops", "--device", "cuda"]
    done = subprocess.run([*layers, str(package.folder), *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {one.pop("model"): one for one in map(json.loads, done.stdout.splitlines())}
    assert list(found) == names
    wrong = {name: outcome["wrong"] for name, outcome in found.items() if "wrong" in outcome}
    assert not wrong
    worst = {key: max(outcome[key] for outcome in found.values()) for key in ("logits_error", "weight_error")}
    record.update(models=len(found), **worst)
