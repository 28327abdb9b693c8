"""A checkpoint's safetensors headers as a source of `add`: what the config does not say, and files that are none."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

CONFIG = {
    "model_type": "mixtral", "hidden_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}  # fmt: skip
GATE = "model.layers.3.block_sparse_moe.gate.weight"


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 0]}


def write(path: Path, tensors: dict[str, Any]) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def config_of_deepseek_v4() -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "data" / "configs" / "deepseek-v4-flash.json").read_text())


def checkpoint(folder: Path, tensors: dict[str, Any], config: dict[str, Any] = CONFIG) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    write(folder / "model.safetensors", tensors)
    return folder


EXPERT = {"model.layers.3.block_sparse_moe.experts.0.w1.weight": tensor("BF16", 8, 64)}


def test_the_gates_dtype_is_read(cli, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, {**EXPERT, GATE: tensor("F32", 8, 64)})
    done = cli("add", folder, "--name", "m", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "m.yaml").read_text()
    assert "gate_weight: float32" in text
    assert f'"dtypes.gate_weight float32: read in model.safetensors: {GATE}"' in text


def test_of_a_sharded_checkpoint_only_the_gates_layer_is_read(cli, tmp_path: Path) -> None:
    checkpoint(tmp_path, {GATE: tensor("BF16", 8, 64)}).joinpath("model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_text("never read")
    weights = {GATE: "a.safetensors", "lm_head.weight": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    done = cli("add", tmp_path, "--name", "m", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gate_weight: bfloat16" in (tmp_path / "m.yaml").read_text()


def test_a_correction_bias_and_the_activation_dtype(cli, tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("model_type", "torch_dtype")}
    tensors = {
        "model.layers.3.mlp.gate.weight": tensor("BF16", 8, 64),
        "model.layers.3.mlp.gate.e_score_correction_bias": tensor("F32", 8),
        "model.layers.3.post_attention_layernorm.weight": tensor("F16", 64),
    }
    done = cli("add", checkpoint(tmp_path, tensors, config), "--name", "m", "--out", tmp_path)
    assert done.returncode == 2
    assert "e_score_correction_bias" not in done.stderr and "activation" not in done.stderr


def test_weights_beside_the_gate_say_that_the_router_has_them(cli, tmp_path: Path) -> None:
    config = {key: value for key, value in config_of_deepseek_v4().items() if key != "vision_n_layers"}
    sizes = config["n_routed_experts"], config["hidden_size"]
    tensors = {
        "layers.3.ffn.gate.weight": tensor("BF16", *sizes),
        "layers.3.ffn.gate.bias_vl": tensor("F32", sizes[0]),
        "layers.3.ffn.gate.per_expert_scale": tensor("F32", sizes[0]),
    }
    done = cli("add", checkpoint(tmp_path, tensors, config), "--name", "m", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "m.yaml").read_text()
    assert "  e_score_correction_bias_vl: true\n  per_expert_scale: true\n" in text
    assert "routing.e_score_correction_bias_vl true: read in model.safetensors: layers.3.ffn.gate.bias_vl" in text


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({GATE: tensor("F8_E4M3", 8, 64)}, "the gate weight is stored as F8_E4M3, BF16, F16, F32 would be right"),
        ({GATE: tensor("BF16", 4, 64)}, "of shape [4, 64], [num_experts, hidden_size] = [8, 64], as the config says"),
        ({GATE: {"dtype": 3}}, "no dtype and shape are given"),
        ({}, "answer with --gate-weight-dtype"),
    ],
)
def test_headers_that_do_not_answer(cli, tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    done = cli("add", checkpoint(tmp_path, tensors), "--name", "m", "--out", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "m.yaml").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x01", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 3) + b"{}{", struct.pack("<Q", 2) + b"[]"],
)
def test_files_that_are_no_safetensors(cli, tmp_path: Path, content: bytes) -> None:
    folder = checkpoint(tmp_path, {})
    (folder / "model.safetensors").write_bytes(content)
    done = cli("add", folder, "--name", "m", "--out", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "model.safetensors: no " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/etc/passwd"])
def test_an_index_names_files_of_the_folder_only(cli, tmp_path: Path, file: str) -> None:
    checkpoint(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {GATE: file}}))
    done = cli("add", tmp_path, "--name", "m", "--out", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a file's name would be right" in done.stderr
