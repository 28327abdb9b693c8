"""The warning of a CUDA call that no generated kernel serves: once for each shape and reason."""

import functools
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch
from .routing import residual_key
from .table_types import SelectionTable, dtype_name

ALIGNMENT_BYTES = 16  # of what the kernels read at once


class RouterPath(NamedTuple):
    """What a kernel is looked up by: the arguments of :func:`dispatch.find_kernel`."""

    hidden_size: int
    num_experts: int
    activation_dtype: str
    gate_weight_dtype: str
    logits_dtype: str
    norm_order: str | None
    gate_bias: bool
    logits_from: str
    residual: str = ""
    selection: SelectionTable | None = None


def warn(
    library_loaded: bool,
    x: Tensor,
    norm_weight: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    norm_order: str | None,
    logits_from: str,
    logits_dtype: torch.dtype,
    *,
    residual: Tensor | None = None,
    residual_multiplier: float = 1.0,
    stream_multiplier: float = 1.0,
    selection: SelectionTable | None = None,
) -> None:
    """Warn that the reference composition serves this call; nothing happens when it did so before."""
    num_experts, hidden_size = gate_weight.shape
    dtypes = (dtype_name(x.dtype), dtype_name(gate_weight.dtype), dtype_name(logits_dtype))
    added = "" if residual is None else residual_key(residual_multiplier, stream_multiplier)
    gate = (norm_order, gate_bias is not None, logits_from)
    path = RouterPath(hidden_size, num_experts, *dtypes, *gate, added, selection)
    rows = [tensor for tensor in (x, residual) if tensor is not None]
    weights = [tensor for tensor in (norm_weight, gate_weight, gate_bias) if tensor is not None]
    starts = [tensor.data_ptr() for tensor in (*rows, *weights)]
    if x.shape[0] > 1:
        starts.extend(tensor.stride(0) * tensor.element_size() for tensor in rows)
    aligned = all(start % ALIGNMENT_BYTES == 0 for start in starts)
    _warn_once(path, dispatch.current_sm(x.device), library_loaded, aligned)


@functools.cache
def _warn_once(path: RouterPath, sm: int, library_loaded: bool, aligned: bool) -> None:
    warnings.warn(message(path, sm, library_loaded, aligned), RuntimeWarning, stacklevel=2)


def message(path: RouterPath, sm: int, library_loaded: bool, aligned: bool) -> str:
    """The warning's text."""
    called = (
        f"{_stages(path)}, hidden_size {path.hidden_size}, num_experts {path.num_experts}, "
        f"x {path.activation_dtype}, gate weight {path.gate_weight_dtype}, logits {path.logits_dtype}, sm_{sm}"
    )
    table = dispatch.find_kernel(*path)
    if table is None:
        reason = f"no kernel was generated for it; `{dispatch.ADD_COMMAND}` generates and compiles one"
    elif dispatch.select_target(table, sm) is None:
        reason = dispatch.why_unserved(table, sm)
    elif not library_loaded:
        reason = "libnormgate.so is not beside the package; `python build.py` compiles it"
    elif not aligned:
        rows = "x and residual" if path.residual else "x"
        reason = f"the weights and each row of {rows} must start at a multiple of {ALIGNMENT_BYTES} bytes"
    else:
        reason = f"the loaded library holds no code for this SM; `python build.py --sm {sm}` compiles it"
    return f"normgate runs the PyTorch reference composition, right but slower, for {called}: {reason}"


def _stages(path: RouterPath) -> str:
    added = {"add": "residual add", "scaled_add": "scaled residual add", "scaled_sum": "sum of scaled residual and x"}
    stages = [added[path.residual]] if path.residual else []
    if path.norm_order is not None:
        stages.append(f"norm order {path.norm_order}")
    logits = "" if path.norm_order is None else f", logits from {path.logits_from}"
    stages.append(f"gate{logits}{' with bias' if path.gate_bias else ''}")
    if path.selection:
        stages.append(_choice(path.selection))
    return " + ".join(stages)


def _choice(selection: SelectionTable) -> str:
    groups = f"from {selection.topk_group} of {selection.n_group} groups by {selection.group_score}"
    said = {
        "with correction bias": selection.correction_bias,
        "experts from tid2eid": selection.hashes,
        groups: selection.n_group > 1,
        "renormalized": selection.renormalize == "sum",
        "renormalized within bounds": selection.renormalize == "bounded",
        "softcap": selection.softcaps,
        "a correction bias of images": selection.image_bias,
        "a scale per expert": selection.scales_experts,
        "logits returned": selection.returns_logits,
    }
    particulars = [text for text, holds in said.items() if holds]
    dtypes = f"ids {selection.ids_dtype}, weights {selection.weights_dtype}"
    return ", ".join([f"{selection.scoring} top-{selection.top_k}", *particulars, dtypes])
