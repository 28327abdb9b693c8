"""What the generated package says about itself, asked of it before it is written anywhere."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from .plan import Plan
from .render import render

_NAME = "normgate_explained"


def explained(plan: Plan, model: str, num_tokens: int, sm: int) -> list[Any]:
    """What the package's own `explain` says of a model's gate and of its path: Explanations. The package's files are
    rendered to a temporary folder and imported.
    """
    with tempfile.TemporaryDirectory(prefix="normgate-") as folder:
        package = Path(folder) / _NAME
        package.mkdir()
        for name, text in render(plan).items():
            if "/" not in name:
                # The package itself would register its operators, which this process may hold already.
                (package / name).write_text("" if name == "__init__.py" else text, encoding="utf-8")
        sys.path.insert(0, folder)
        try:
            dispatch = importlib.import_module(f"{_NAME}.dispatch")
            table = dispatch.MODELS.get(model)
            names = [model] if table is None else [name for name in (model, table.path_kernel) if name]
            return [dispatch.explain(name, num_tokens, sm) for name in names]
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if name.partition(".")[0] == _NAME]:
                del sys.modules[name]


def as_data(explanation: Any) -> dict[str, object]:
    """An Explanation for JSON."""
    rejected = [{"variant": variant, "why": why} for variant, why in explanation.rejected]
    return {**dataclasses.asdict(explanation), "rejected": rejected}
