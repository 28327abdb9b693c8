"""The C interface of libnormgate.so: kernels by name on torch tensors, for tests, tuner and benchmark."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ToolError

if TYPE_CHECKING:
    from torch import Tensor

_UNKNOWN = -1


class LaunchArgs(ctypes.Structure):
    """`struct normgate_args` of normgate.h, field for field."""

    _fields_ = (
        ("router_logits", ctypes.c_void_p),
        ("normed_x", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("norm_weight", ctypes.c_void_p),
        ("gate_weight", ctypes.c_void_p),
        ("gate_bias", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("x_row_stride", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("stream", ctypes.c_void_p),
        ("residual_out", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("residual_row_stride", ctypes.c_int64),
        ("residual_multiplier", ctypes.c_float),
        ("stream_multiplier", ctypes.c_float),
        ("topk_weights", ctypes.c_void_p),
        ("topk_ids", ctypes.c_void_p),
        ("e_score_correction_bias", ctypes.c_void_p),
        ("e_score_correction_bias_vl", ctypes.c_void_p),
        ("image_mask", ctypes.c_void_p),
        ("per_expert_scale", ctypes.c_void_p),
        ("tid2eid", ctypes.c_void_p),
        ("input_ids", ctypes.c_void_p),
        ("vocab_size", ctypes.c_int64),
        ("softcap", ctypes.c_float),
        ("renormalize_epsilon", ctypes.c_float),
        ("renormalize_floor", ctypes.c_float),
        ("routed_scaling_factor", ctypes.c_float),
        ("tickets", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class PathArgs:
    """What a whole path's kernel takes and gives beside the gate's, as the header says; None for stages it has not.

    residual may have a row stride; every other tensor is contiguous.
    """

    residual: Tensor | None = None
    residual_out: Tensor | None = None
    residual_multiplier: float = 1.0
    stream_multiplier: float = 1.0
    topk_weights: Tensor | None = None
    topk_ids: Tensor | None = None
    e_score_correction_bias: Tensor | None = None
    e_score_correction_bias_vl: Tensor | None = None
    image_mask: Tensor | None = None
    per_expert_scale: Tensor | None = None
    tid2eid: Tensor | None = None
    input_ids: Tensor | None = None
    softcap: float = 0.0
    renormalize_epsilon: float = 0.0
    renormalize_floor: float = 0.0
    routed_scaling_factor: float = 1.0

    @property
    def dense(self) -> tuple[Tensor | None, ...]:
        chosen = (self.topk_weights, self.topk_ids, self.e_score_correction_bias, self.tid2eid, self.input_ids)
        of_few_models = (self.e_score_correction_bias_vl, self.image_mask, self.per_expert_scale)
        return (self.residual_out, *chosen, *of_few_models)


def launch_args(
    *,
    router_logits: Tensor | None,
    normed_x: Tensor | None,
    x: Tensor,
    norm_weight: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    eps: float,
    stream: int,
    workspace: Tensor | None = None,
    path: PathArgs | None = None,
) -> LaunchArgs:
    """The arguments of one call; what a kernel does not use may be None.

    Shapes and dtypes as the header says, all on one CUDA device; every tensor but x is contiguous, x may have
    a row stride; `stream` is a cudaStream_t. The caller keeps the tensors alive until the kernel has run.
    ValueError for a tensor that is laid out in another way: the C interface could not notice.
    """
    path = path or PathArgs()
    dense = (router_logits, normed_x, norm_weight, gate_weight, gate_bias, workspace, *path.dense)
    rows = [tensor for tensor in (x, path.residual) if tensor is not None]
    if any(tensor.dim() != 2 or tensor.stride(1) != 1 for tensor in rows):
        raise ValueError("x and residual must have contiguous rows")
    if not all(tensor is None or tensor.is_contiguous() for tensor in dense):
        raise ValueError("every tensor but x and residual must be contiguous")

    def address(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    return LaunchArgs(
        router_logits=address(router_logits),
        normed_x=address(normed_x),
        x=address(x),
        norm_weight=address(norm_weight),
        gate_weight=address(gate_weight),
        gate_bias=address(gate_bias),
        workspace=address(workspace),
        x_row_stride=x.stride(0),
        num_tokens=x.shape[0],
        eps=eps,
        stream=stream,
        residual_out=address(path.residual_out),
        residual=address(path.residual),
        residual_row_stride=path.residual.stride(0) if path.residual is not None else 0,
        residual_multiplier=path.residual_multiplier,
        stream_multiplier=path.stream_multiplier,
        topk_weights=address(path.topk_weights),
        topk_ids=address(path.topk_ids),
        e_score_correction_bias=address(path.e_score_correction_bias),
        e_score_correction_bias_vl=address(path.e_score_correction_bias_vl),
        image_mask=address(path.image_mask),
        per_expert_scale=address(path.per_expert_scale),
        tid2eid=address(path.tid2eid),
        input_ids=address(path.input_ids),
        vocab_size=path.tid2eid.shape[0] if path.tid2eid is not None else 0,
        softcap=path.softcap,
        renormalize_epsilon=path.renormalize_epsilon,
        renormalize_floor=path.renormalize_floor,
        routed_scaling_factor=path.routed_scaling_factor,
    )


class Library:
    """A compiled libnormgate.so."""

    def __init__(self, path: Path) -> None:
        """Loads the library; ToolError when there is none or it does not load."""
        import torch  # noqa: F401  the library needs torch's libraries, which importing torch loads

        try:
            self._c: Any = ctypes.CDLL(str(path))
        except OSError as error:
            raise ToolError(f"{path} does not load: {error}; compile it with: python build.py") from error
        declarations: tuple[tuple[str, Any, list[Any]], ...] = (
            ("normgate_select", ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_int, ctypes.c_int64]),
            ("normgate_workspace_bytes", ctypes.c_int64, [ctypes.c_char_p, ctypes.c_int64]),
            ("normgate_launch", ctypes.c_int, [ctypes.c_char_p, ctypes.POINTER(LaunchArgs)]),
            ("normgate_built_sms", ctypes.c_char_p, []),
            *self._more_declarations(),
        )
        for name, result, arguments in declarations:
            function = self._function(path, name)
            function.restype = result
            function.argtypes = arguments

    def select(self, kernel: str, sm: int, num_tokens: int) -> str | None:
        """The function that serves `num_tokens` rows of `kernel` on `sm` (90 for 9.0), None for none."""
        name: bytes | None = self._c.normgate_select(kernel.encode(), sm, num_tokens)
        return None if name is None else name.decode()

    def workspace_bytes(self, function: str, num_tokens: int) -> int:
        """Bytes of zeroed scratch that `function` needs for `num_tokens` rows."""
        return int(self._c.normgate_workspace_bytes(function.encode(), num_tokens))

    def workspace(self, function: str, num_tokens: int) -> Tensor | None:
        """That scratch on the current CUDA device; None where none is needed."""
        import torch

        size = self.workspace_bytes(function, num_tokens)
        return torch.zeros(size, dtype=torch.uint8, device="cuda") if size > 0 else None

    def launch(self, function: str, args: LaunchArgs) -> None:
        """Launch a function by name. RuntimeError when CUDA refuses, ValueError for an unknown name."""
        self._check(self._c.normgate_launch(function.encode(), ctypes.byref(args)), function)

    def has_stream_symbol(self) -> bool:
        """Whether the library finds torch's current CUDA stream: a CUDA build of torch is loaded.

        Not for a benchmark's library, which does not go through torch.
        """
        return bool(self._c.normgate_has_stream_symbol())  # an int, as ctypes takes it for unless told otherwise

    def built_sms(self) -> str:
        """What the library holds machine code for, as in "80,90,120"."""
        name: bytes = self._c.normgate_built_sms()
        return name.decode()

    def _more_declarations(self) -> tuple[tuple[str, Any, list[Any]], ...]:
        return ()

    def _function(self, path: Path, name: str) -> Any:
        try:
            return getattr(self._c, name)
        except AttributeError as error:
            raise ToolError(
                f"{path} has no {name}: it is of another version; compile it with: python build.py"
            ) from error

    @staticmethod
    def _check(code: int, what: str) -> None:
        if code == _UNKNOWN:
            raise ValueError(f"the library has no {what}")
        if code != 0:
            import torch

            text = str(torch.cuda.CudaError(code)) if torch.cuda.is_available() else f"cudaError {code}"
            raise RuntimeError(f"{what}: {text}")


class BenchLibrary(Library):
    """The library of a benchmark package: kernels to compare with, and templates/bench/probe.cu.j2."""

    def probe(self, geometry: int, args: LaunchArgs) -> None:
        """Launch the streaming probe in the geometry of that index in `probe.geometries(...)`."""
        self._check(self._c.bench_probe(geometry, ctypes.byref(args)), f"probe geometry {geometry}")

    def row_norm(self, args: LaunchArgs) -> None:
        """Launch a kernel that only norms rows, x into normed_x; for specs with a norm."""
        self._check(self._c.bench_row_norm(ctypes.byref(args)), "bench_row_norm")

    def add_row_norm(self, args: LaunchArgs) -> None:
        """The same behind a residual add, x and residual into residual_out and normed_x; for specs with both."""
        self._check(self._c.bench_add_row_norm(ctypes.byref(args)), "bench_add_row_norm")

    def producer(self, x: Tensor, source: Tensor, stream: int) -> None:
        """Copy `source` to `x`, both contiguous and of the same size, a multiple of 16 bytes."""
        size = x.numel() * x.element_size()
        self._check(self._c.bench_producer(x.data_ptr(), source.data_ptr(), size, stream), "bench_producer")

    def empty(self, stream: int) -> None:
        """Launch a kernel that does nothing."""
        self._check(self._c.bench_empty(stream), "bench_empty")

    def _more_declarations(self) -> tuple[tuple[str, Any, list[Any]], ...]:
        pointer = ctypes.c_void_p
        return (
            ("bench_probe", ctypes.c_int, [ctypes.c_int, ctypes.POINTER(LaunchArgs)]),
            ("bench_producer", ctypes.c_int, [pointer, pointer, ctypes.c_int64, pointer]),
            ("bench_empty", ctypes.c_int, [pointer]),
        )
