"""Fixtures of the operator tests; all of them run on the CPU."""

import runpy
from pathlib import Path

import pytest


@pytest.fixture
def example_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package answers from the example tables, whatever was generated."""
    from normgate import dispatch

    tables = runpy.run_path(str(Path(__file__).with_name("example_tables.py")))
    monkeypatch.setattr(dispatch, "KERNELS", tables["KERNELS"])
    monkeypatch.setattr(dispatch, "MODELS", tables["MODELS"])
