"""manifest.json: the same bytes for the same facts, read back strictly, errors that say what mends them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from codegen.errors import CheckFailed
from codegen.manifest import (
    Group,
    Kernel,
    Manifest,
    Source,
    Variant,
    check_outputs,
    hashes,
    load_manifest,
    owned_outputs,
    sha256,
)

ROOT = Path(__file__).parents[2]
FILES: dict[str, str | bytes] = {
    "ops.py": "x = 1\n",
    "csrc/a.sm90.cu": b"// cuda\n",
    "manifest.json": "whatever",
}


def example() -> Manifest:
    variants = (Variant("gemv_1", "ng_a_gemv_1", 1, 1), Variant("split_k", "ng_a_split_k", 2, None))
    return Manifest(
        version="0.1.0",
        inputs={"specs/b.yaml": sha256("b"), "specs/a.yaml": sha256("a")},
        outputs=hashes(FILES),
        sources=(
            Source("csrc/a.sm90.cu", sm_targets=(90, 100), functions=("ng_a_gemv_1", "ng_a_split_k")),
            Source("csrc/binding.cpp", torch=True),
        ),
        kernels={"a": Kernel(("m2", "m1"), (Group((90, 100), variants),))},
        models={"m2": "a", "m1": "a"},
    )


def put(folder: Path, text: str) -> Path:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "manifest.json").write_text(text)
    return folder


def test_text_is_the_contract() -> None:
    text = example().text()
    assert text.endswith("}\n") and not text.endswith("\n\n")
    data = json.loads(text)
    assert list(data) == ["schema", "version", "inputs", "outputs", "sources", "kernels", "models"]
    assert data["schema"] == 1
    assert list(data["inputs"]) == ["specs/a.yaml", "specs/b.yaml"]
    assert list(data["models"]) == ["m1", "m2"]
    assert data["outputs"] == {"csrc/a.sm90.cu": sha256("// cuda\n"), "ops.py": sha256("x = 1\n")}
    assert data["sources"] == [
        {
            "path": "csrc/a.sm90.cu",
            "sm_targets": [90, 100],
            "allow_spills": False,
            "functions": ["ng_a_gemv_1", "ng_a_split_k"],
            "accelerated": False,
        },
        {"path": "csrc/binding.cpp", "torch": True},
    ]
    assert data["kernels"]["a"]["groups"][0]["variants"][1] == {
        "name": "split_k",
        "function": "ng_a_split_k",
        "first_token": 2,
        "last_token": None,
    }


def test_hash_seed_does_not_matter() -> None:
    script = "from tests.generator.test_manifest import example; print(example().text(), end='')"
    texts = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert texts == {example().text()}


def test_reads_back_equal(tmp_path: Path) -> None:
    put(tmp_path, example().text())
    assert load_manifest(tmp_path) == example()
    check_outputs(load_manifest(tmp_path), tmp_path)


def test_check_outputs_names_every_file_that_differs(tmp_path: Path) -> None:
    put(tmp_path, example().text())
    (tmp_path / "ops.py").write_text("x = 2\n")
    (tmp_path / "csrc/a.sm90.cu").unlink()
    with pytest.raises(CheckFailed) as caught:
        check_outputs(load_manifest(tmp_path), tmp_path, mend="make kernels")
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/csrc/a.sm90.cu: missing",
        f"{tmp_path}/ops.py: changed since it was generated",
        "write the files anew: make kernels",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "manifest schema is 2, this normgate reads 1"),
        ({"extra": 1}, "extra: Unexpected keyword argument"),
        ({"models": {"m": 3}}, "models.m: Input should be a valid string"),
        (
            {"sources": [{"path": "a.cu", "sm_targets": ["90"]}]},
            "sources.0.sm_targets.0: Input should be a valid integer",
        ),
        ({"version": None}, "version: Input should be a valid string"),
    ],
)
def test_wrong_content(tmp_path: Path, change: dict[str, object], message: str) -> None:
    put(tmp_path, json.dumps({**json.loads(example().text()), **change}))
    with pytest.raises(CheckFailed) as caught:
        load_manifest(tmp_path)
    assert f"{tmp_path}/manifest.json: {message}" in str(caught.value)
    assert "python build.py generate" in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ("[]", "not a JSON object")])
def test_no_manifest(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path, text)
    with pytest.raises(CheckFailed, match=message):
        load_manifest(tmp_path)


def test_missing(tmp_path: Path) -> None:
    assert owned_outputs(tmp_path) is None
    with pytest.raises(CheckFailed, match=r"manifest.json: missing.*python build.py generate"):
        load_manifest(tmp_path)
