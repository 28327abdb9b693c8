"""GPU tests: skipped with a reason where there is no GPU or nothing compiled; recorded where NORMGATE_RECORD names a file.

With `-n` of pytest-xdist each worker has one of the GPUs that CUDA_VISIBLE_DEVICES lists.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from packages import ROOT, Package, packages  # noqa: E402

_worker, _visible = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
if _worker and _visible[0]:  # gw0, gw1, ...; CUDA has not been asked anything yet
    os.environ["CUDA_VISIBLE_DEVICES"] = _visible[int(_worker[2:]) % len(_visible)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = None
    if not torch.cuda.is_available():
        reason = "no GPU that torch can use"
    elif not packages():
        reason = "no compiled package: python build.py"
    here = Path(__file__).parent
    for item in items:  # of the whole session, not only of this folder
        if reason and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def sm() -> int:
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor


@pytest.fixture
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a test measured, for the record of the run, where it passes."""
    measured: dict[str, Any] = {}
    request.node.user_properties.append(("measured", measured))  # which workers hand over with each test's outcome
    return measured


def software() -> dict[str, Any]:
    """What a record of a run names: chip, driver, torch, CUDA and commit."""
    commit = os.environ.get("NORMGATE_COMMIT")
    if not commit:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "chip": torch.cuda.get_device_name(),
        "driver": subprocess.run(driver, capture_output=True, text=True, check=False).stdout.split("\n")[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit,
    }


def _code(package: Package) -> str:
    """What the library holds, by what compiling left beside it."""
    stamp = json.loads(package.library.with_name("libnormgate.build.json").read_text())
    held = [f"sm_{sm}" for sm in stamp["sms"]] + [f"PTX of sm_{sm}" for sm in stamp["ptx_sms"]]
    return ", ".join(held)


def pytest_sessionfinish(session: pytest.Session) -> None:
    out = os.environ.get("NORMGATE_RECORD")
    if not out or _worker or not torch.cuda.is_available():
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    outcomes = {name: len(reporter.stats.get(name, ())) for name in ("passed", "failed", "error", "skipped")}
    passed = reporter.stats.get("passed", ())
    measured = {
        one.nodeid.partition("::")[2]: found
        for one in passed
        for what, found in one.user_properties
        if what == "measured" and found
    }
    record = {
        "what": "pytest tests/gpu",
        **software(),
        "packages": [str(p.folder.relative_to(ROOT)) for p in packages()],
        "code": [_code(package) for package in packages()],
        "outcomes": outcomes,
        "passed": dict(sorted(Counter(one.nodeid.partition("[")[0] for one in passed).items())),
        "measured": dict(sorted(measured.items())),
    }
    Path(out).write_text(json.dumps(record, indent=1) + "\n")
