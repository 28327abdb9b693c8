"""What the safetensors headers of a checkpoint say of its router: the dtypes of gate and norm, the bias beside them.

The format: eight bytes that give the header's length, little-endian, then the header, a JSON object of each tensor's
dtype, shape and place (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, Problem
from ..strict_yaml import shown_key
from .answers import CORRECTION, IMAGE_BIAS, SCALES
from .config import IS_LFS_POINTER, LFS_POINTER

_INDEX = "model.safetensors.index.json"
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

_GATE = re.compile(r"(^|[._])(gate|router|wg|classifier|router_gate)(\.(wg|proj|gate|classifier|layer))*\.weight$")
_NOT_A_GATE = re.compile(r"(^|\.)(shared_expert_gate|experts|shared_experts?|mlp\.gate_proj|mtp|self_attn|attn)\.")
_NORM = re.compile(r"(^|\.)(post_attention_layernorm|ffn_norm|pre_mlp_layernorm|pre_ff_layernorm|norm)(\.0)?\.weight$")
_BESIDE_GATE = {
    CORRECTION: re.compile(r"(^|\.)(e_score_correction_bias|expert_bias|router_bias)$"),
    IMAGE_BIAS: re.compile(r"(^|\.)(e_score_correction_bias_vl|gate\.bias_vl)$"),
    SCALES: re.compile(r"(^|\.)per_expert_scale$"),
}


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]


def claims_of(folder: Path, hidden_size: object, num_experts: object, quantized: str) -> dict[str, dict[str, object]]:
    """By the spec's keys, what the headers in `folder` say: {"<file>: <tensor>": value}; {} while a size is not known.

    quantized: the method that quantizes the gate, as the config says it, or "". The gate weight is the tensor named as
    one whose shape is [num_experts, hidden_size]; where layers have several dtypes, each is claimed. Raises BadInput
    for files that are no safetensors, a gate of a dtype that no kernel reads, and gates of another shape only.
    """
    tensors = dict(_tensors(folder))
    gates = {at: tensor for at, tensor in tensors.items() if _is_gate(at)}
    if None in (hidden_size, num_experts):
        return {}
    found: dict[str, dict[str, object]] = {}
    right = {at: tensor for at, tensor in gates.items() if tensor.shape == (num_experts, hidden_size)}
    if gates and not right:
        at, tensor = next(iter(gates.items()))
        right_is = f"[num_experts, hidden_size] = [{num_experts}, {hidden_size}]"
        if quantized:
            stored = ", ".join(_DTYPES)
            right_is += f", and the config says that {quantized} quantizes it: a checkpoint with the gate in {stored}"
        raise BadInput([Problem(at, None, f"of shape {list(tensor.shape)}, {right_is} would be right")])
    for at, tensor in right.items():
        dtypes = found.setdefault("dtypes.gate_weight", {})
        if (dtype := _dtype(at, tensor, quantized)) not in dtypes.values():
            dtypes[at] = dtype
    if right:
        prefix = re.split(r"(?<=\blayers\.)\d+\.", next(iter(right)))[0]
        layers = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for key, named in _BESIDE_GATE.items():
            if beside := next((name for name in layers if named.search(name)), None):
                found[key] = {beside: True}
        biases = (at.removesuffix("weight") + "bias" for at in right)
        if bias := next((at for at in biases if at in tensors), None):
            found["gate_bias"] = {bias: True}
        # a bias of another name would be as long
        if not any(math.prod(tensor.shape) == num_experts for tensor in layers.values()):
            found[CORRECTION] = {f"{next(iter(right))} without a bias beside it": False}
    for at, tensor in tensors.items():
        if right and _NORM.search(at) and tensor.shape == (hidden_size,) and tensor.dtype in ("BF16", "F16"):
            found["dtypes.activation"] = {at: _DTYPES[tensor.dtype]}
            break
    return found


def _is_gate(at: str) -> bool:
    return bool(_GATE.search(at)) and not _NOT_A_GATE.search(at)


def _dtype(at: str, tensor: _Tensor, quantized: str) -> str:
    if tensor.dtype not in _DTYPES:
        stored = f"the gate weight is stored as {tensor.dtype}{f', quantized by {quantized}' * bool(quantized)}"
        raise BadInput([Problem(at, None, f"{stored}, {', '.join(_DTYPES)} would be right")])
    return _DTYPES[tensor.dtype]


def _tensors(folder: Path) -> Iterator[tuple[str, _Tensor]]:
    """("<file>: <tensor>", what it is) of the files that may hold a router."""
    for name in _files(folder):
        path = folder / name
        for tensor, about in _header(path).items():
            if tensor == "__metadata__":
                continue
            shape = about.get("shape") if isinstance(about, dict) else None
            dtype = about.get("dtype") if isinstance(about, dict) else None
            if not isinstance(dtype, str) or not isinstance(shape, list) or not all(type(n) is int for n in shape):
                raise BadInput([Problem(str(path), None, f"{shown_key(tensor)}: no dtype and shape are given")])
            yield f"{name}: {shown_key(tensor)}", _Tensor(shown_key(dtype), tuple(shape))


def _files(folder: Path) -> list[str]:
    """Of a sharded checkpoint the files of one gate's layer, else all."""
    index = folder / _INDEX
    if not index.is_file():
        return sorted(path.name for path in folder.glob("*.safetensors"))
    map_ = _object(index, index.read_bytes()).get("weight_map")
    if not isinstance(map_, dict) or not all(isinstance(file, str) for file in map_.values()):
        raise BadInput([Problem(str(index), None, "weight_map: an object of tensors and their files would be right")])
    for file in map_.values():
        if Path(file).name != file:
            raise BadInput([Problem(str(index), None, f"{shown_key(file)} given, a file's name would be right")])
    gates = [tensor for tensor in map_ if _is_gate(tensor)]
    if not gates:
        return []
    layer = re.match(r".*?\.layers?\.\d+\.|", gates[0])
    prefix = layer[0] if layer else ""
    return sorted({file for tensor, file in map_.items() if tensor.startswith(prefix) and "experts." not in tensor})


def _header(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            length = file.read(8)
            if not length:
                raise BadInput([Problem(str(path), None, "is empty, a safetensors file would be right")])
            if LFS_POINTER.startswith(length.decode("latin-1")):
                raise BadInput([Problem(str(path), None, IS_LFS_POINTER)])
            size = struct.unpack("<Q", length)[0] if len(length) == 8 else None
            if size is None or not 2 <= size <= min(_MOST_HEADER_BYTES, path.stat().st_size - 8):
                raise BadInput([Problem(str(path), None, "no safetensors file: its header has no possible length")])
            text = file.read(size)
    except OSError as error:
        raise BadInput([Problem(str(path), None, f"cannot be read: {error.strerror}")]) from None
    return _object(path, text)


def _object(path: Path, text: bytes) -> Mapping[str, Any]:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise BadInput([Problem(str(path), None, "no JSON object, which it has to hold")])
    return read
