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
        ({GATE: tensor("BF16", 4, 64)}, "of shape [4, 64], [num_experts, hidden_size] = [8, 64] would be right"),
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
    [b"\x01", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 3) + b"{}{", struct.pack("<Q", 2) + b"[]"],
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


QWEN3 = {
    "model_type": "qwen3_moe", "hidden_size": 64, "num_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-6,
    "norm_topk_prob": True, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize(
    ("quantization", "gate", "says"),
    [
        (
            {"quant_method": "bitsandbytes"},
            tensor("U8", 256, 1),
            "of shape [256, 1], [num_experts, hidden_size] = [8, 64], and the config says that bitsandbytes quantizes it: "
            "a checkpoint with the gate in BF16, F16, F32 would be right",
        ),
        (
            {"bits": 8, "group_size": 64},
            tensor("U32", 8, 64),
            "the gate weight is stored as U32, quantized by MLX, BF16, F16, F32 would be right",
        ),
    ],
)
def test_a_quantized_gate_is_named_as_one(cli, tmp_path: Path, quantization: Any, gate: Any, says: str) -> None:
    folder = checkpoint(tmp_path, {GATE: gate}, {**QWEN3, "quantization_config": quantization})
    done = cli("add", folder, "--name", "m", "--out", tmp_path)
    assert (done.returncode, done.stderr) == (2, f"model.safetensors: {GATE}: {says}\n")


def test_gates_of_several_dtypes_are_asked_about(cli, tmp_path: Path) -> None:
    other = GATE.replace("3", "4")
    folder = checkpoint(tmp_path, {GATE: tensor("BF16", 8, 64), other: tensor("F32", 8, 64)}, QWEN3)
    done = cli("add", folder, "--name", "m", "--out", tmp_path)
    assert done.returncode == 2
    assert (
        f"dtypes.gate_weight: the config disagrees with itself, model.safetensors: {GATE} bfloat16 and "
        f"model.safetensors: {other} float32; answer with --gate-weight-dtype"
    ) in done.stderr
    assert cli("add", folder, "--name", "m", "--out", tmp_path, "--gate-weight-dtype", "float32").returncode == 0


def test_a_norm_of_another_dtype_than_the_config_says(cli, tmp_path: Path) -> None:
    norm = "model.layers.3.post_attention_layernorm.weight"
    folder = checkpoint(tmp_path, {GATE: tensor("BF16", 8, 64), norm: tensor("F16", 64)}, QWEN3)
    done = cli("add", folder, "--name", "m", "--out", tmp_path)
    assert done.returncode == 2
    assert f"torch_dtype bfloat16 and model.safetensors: {norm} float16; answer with --activation-dtype" in done.stderr


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ({}, "e_score_correction_bias: false"),
        ({"e_score_correction_bias": tensor("F32", 8)}, "e_score_correction_bias: true"),
        ({"some_bias": tensor("F32", 1, 8)}, "e_score_correction_bias: true"),  # may be it by another name
    ],
)
def test_a_gate_without_a_correction_bias(cli, tmp_path: Path, beside: dict[str, Any], says: str) -> None:
    config = {
        **QWEN3, "model_type": "deepseek_v3", "n_group": 1, "routed_scaling_factor": 1.0, "scoring_func": "sigmoid",
    }  # fmt: skip
    gate = "model.layers.3.mlp.gate"
    tensors = {f"{gate}.weight": tensor("BF16", 8, 64)} | {f"{gate}.{name}": bias for name, bias in beside.items()}
    done = cli("add", checkpoint(tmp_path, tensors, config), "--name", "m", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert says in (tmp_path / "m.yaml").read_text()
    if not beside:  # against a key that says there is one
        checkpoint(tmp_path, tensors, {**config, "topk_method": "noaux_tc"})
        done = cli("add", tmp_path, "--name", "m", "--out", tmp_path)
        assert "topk_method noaux_tc, which means true and model.safetensors:" in done.stderr
        assert cli("add", tmp_path, "--name", "n", "--out", tmp_path, "--e-score-correction-bias", "no").returncode == 0


def test_a_gate_with_a_bias(cli, tmp_path: Path) -> None:
    """Another model under the class of a known one."""
    tensors = {GATE: tensor("BF16", 8, 64), GATE.replace("weight", "bias"): tensor("BF16", 8)}
    config = {**QWEN3, "model_type": "other", "architectures": ["Qwen3MoeForCausalLM"]}
    done = cli("add", checkpoint(tmp_path, tensors, config), "--name", "m", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gate_bias: true" in (tmp_path / "m.yaml").read_text()


def test_a_size_that_is_not_known_is_asked_for(cli, tmp_path: Path) -> None:
    config = {key: value for key, value in QWEN3.items() if key != "num_experts"}
    folder = checkpoint(tmp_path, {GATE: tensor("BF16", 8, 64)}, config)
    done = cli("add", folder, "--name", "m", "--out", tmp_path)
    assert "num_experts: the config does not say; answer with --num-experts N" in done.stderr
    assert "None" not in done.stderr
    assert cli("add", folder, "--name", "m", "--out", tmp_path, "--num-experts", "8").returncode == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty, a safetensors file would be right"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a git-lfs pointer, the file itself would be right; git lfs pull fetches it",
        ),
    ],
)
def test_files_that_are_not_there_yet(cli, tmp_path: Path, content: bytes, says: str) -> None:
    folder = checkpoint(tmp_path, {})
    (folder / "model.safetensors").write_bytes(content)
    done = cli("add", folder, "--name", "m", "--out", tmp_path)
    assert done.returncode == 2 and done.stderr.endswith(f"model.safetensors: {says}\n")
