"""The warning of a CUDA call that no generated kernel serves: once for each shape and reason."""

import functools
import warnings

import torch
from torch import Tensor

from . import dispatch

ALIGNMENT_BYTES = 16  # of what the kernels read at once

# What a kernel is looked up by: the arguments of dispatch.find_kernel.
RouterPath = tuple[int, int, str, str, str, str | None, bool, str]


def warn(
    library_loaded: bool,
    x: Tensor,
    norm_weight: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    norm_order: str | None,
    logits_from: str,
    logits_dtype: torch.dtype,
) -> None:
    """Warn that the reference composition serves this call; nothing happens when it did so before."""
    major, minor = torch.cuda.get_device_capability(x.device)
    num_experts, hidden_size = gate_weight.shape
    dtypes = (_name(x.dtype), _name(gate_weight.dtype), _name(logits_dtype))
    path = (hidden_size, num_experts, *dtypes, norm_order, gate_bias is not None, logits_from)
    starts = [tensor.data_ptr() for tensor in (x, norm_weight, gate_weight, gate_bias) if tensor is not None]
    if x.shape[0] > 1:
        starts.append(x.stride(0) * x.element_size())
    aligned = all(start % ALIGNMENT_BYTES == 0 for start in starts)
    _warn_once(path, 10 * major + minor, library_loaded, aligned)


@functools.cache
def _warn_once(path: RouterPath, sm: int, library_loaded: bool, aligned: bool) -> None:
    warnings.warn(message(path, sm, library_loaded, aligned), RuntimeWarning, stacklevel=2)


def message(path: RouterPath, sm: int, library_loaded: bool, aligned: bool) -> str:
    """The warning's text. ``path`` is what :func:`dispatch.find_kernel` looks a kernel up by."""
    hidden_size, num_experts, activation, gate_weight, logits, norm_order, gate_bias, logits_from = path
    norm = "gate" if norm_order is None else f"norm order {norm_order} + gate, logits from {logits_from}"
    called = (
        f"{norm}{' with bias' if gate_bias else ''}, hidden_size {hidden_size}, num_experts {num_experts}, "
        f"x {activation}, gate weight {gate_weight}, logits {logits}, sm_{sm}"
    )
    table = dispatch.find_kernel(*path)
    if table is None:
        reason = f"no kernel was generated for it; `{dispatch.ADD_COMMAND}` generates and compiles one"
    elif dispatch.select_target(table, sm) is None:
        reason = dispatch.why_unserved(table, sm)
    elif not library_loaded:
        reason = "libnormgate.so is not beside the package; `python build.py` compiles it"
    elif not aligned:
        reason = f"the weights and each row of x must start at a multiple of {ALIGNMENT_BYTES} bytes"
    else:
        reason = f"the loaded library holds no code for this SM; `python build.py --sm {sm}` compiles it"
    return f"normgate runs the PyTorch reference composition, right but slower, for {called}: {reason}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
