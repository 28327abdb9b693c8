"""What the generator's tests share: a spec that plans and renders in a moment, and the command line as users run it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SMALL = """\
name: small
sources: ["a test"]
hidden_size: 64
num_experts: 16
dtypes: {activation: bfloat16, gate_weight: bfloat16}
norm: {order: B, eps: 1.0e-6}
gate_bias: false
routing: {top_k: 2, e_score_correction_bias: false}
sm_targets: [80, 90]
"""

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def small_spec(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs `python build.py ...` in a process of its own, in an empty folder, without a GPU's tools."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, ROOT / "build.py", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return run
