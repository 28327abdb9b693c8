"""FlashInfer as a peer, where its package is installed: its norm kernel, and its router GEMM that fits the shape.

Read in the wheel of FlashInfer 0.7.2.post1:

- flashinfer/norm/__init__.py: `rmsnorm` multiplies in fp32 and rounds once, `gemma_rmsnorm` multiplies by 1 + weight;
  both launch with programmatic dependent launch where the chip has it. They run CuTe kernels where nvidia-cutlass-dsl
  is installed, and the CUDA kernels of csrc/norm.cu otherwise.
- flashinfer/gemm/routergemm.py: `mm_M1_16_K7168_N384` and its like, each for one shape and up to 16 tokens, bf16 in,
  fp32 out, no bias, on sm_90, sm_100 and sm_103 (in 0.6.18 not on sm_90, and none for 384 experts); `tinygemm_bf16`,
  bf16 in and out, bias or none, num_experts a multiple of 16, from sm_90 on, for "tiny batch sizes". Both may be
  launched as dependents, tinygemm only behind a kernel that is launched so too, which the norm is. By its docstring
  mm_M1_16_K7168_N384 loses to other GEMMs from 4 to 8 tokens on, so where both fit, the faster one counts.

vLLM gives tinygemm_bf16 up to 64 rows (the module docstring of its low-M bf16 GEMMs), and so does this.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ..spec import RouterSpec
from .agreement import tolerance
from .chain import Candidate, Outputs, Weights

_ROUTER_GEMM_SHAPES = ((7168, 256), (7168, 384), (6144, 256))  # hidden_size, num_experts
_ROUTER_GEMM_SMS = (90, 100, 103)
_ROUTER_GEMM_TOKENS = 16
_TINYGEMM = "tinygemm_bf16"
_TINYGEMM_TOKENS = 64


def candidates(spec: RouterSpec, num_tokens: int, sm: int) -> list[Candidate]:
    """Norm and GEMM, two launches; a candidate for each GEMM that fits, of which the fastest counts.

    sm: 90 for 9.0. They raise where FlashInfer is not installed, or its kernels do not take what `spec` has.
    """
    return [_candidate(spec, num_tokens, gemm) for gemm in gemms(spec, num_tokens, sm)]


def _candidate(spec: RouterSpec, num_tokens: int, gemm: str) -> Candidate:
    def launch(weights: Weights, x: Tensor, outputs: Outputs, stream: int) -> Outputs:
        norm, gate = _import("flashinfer.norm"), _import("flashinfer.gemm")
        if spec.norm is None or outputs.normed_x is None or outputs.router_logits is None:
            raise ValueError("there is no norm to run")
        if gemm == _TINYGEMM and num_tokens > _TINYGEMM_TOKENS:
            raise ValueError(f"its GEMM is for few tokens, timed up to {_TINYGEMM_TOKENS}")
        rms_norm = norm.gemma_rmsnorm if spec.norm.order == "G" else norm.rmsnorm
        normed = rms_norm(x, weights.norm_weight, spec.norm.eps, out=outputs.normed_x)
        if gemm == _TINYGEMM:
            logits = torch.empty_like(outputs.router_logits, dtype=torch.bfloat16)
            gate.tinygemm_bf16(normed, weights.gate_weight, logits, weights.gate_bias, use_pdl=True)
            return Outputs(normed, logits)
        getattr(gate, gemm)(normed, weights.gate_weight.t(), outputs.router_logits, launch_with_pdl=True)
        return Outputs(normed, outputs.router_logits)

    return Candidate(
        f"flashinfer_{gemm}",
        launch,
        f"rmsnorm + {gemm}{_version()}",
        tolerance=tolerance(spec, "rounded"),
        # What reads logits of this GEMM reads bf16: a conversion would be a launch that nobody makes.
        logits_dtype=torch.bfloat16 if gemm == _TINYGEMM else None,
        best_of="flashinfer",
        ours=False,
    )


def gemms(spec: RouterSpec, num_tokens: int, sm: int) -> list[str]:
    """Names of functions in flashinfer.gemm; dtypes that they do not take they refuse themselves."""
    shape = (spec.hidden_size, spec.num_experts)
    plain = spec.logits_dtype == "float32" and not spec.gate_bias
    if shape in _ROUTER_GEMM_SHAPES and plain and sm in _ROUTER_GEMM_SMS and num_tokens <= _ROUTER_GEMM_TOKENS:
        return ["mm_M1_16_K{}_N{}".format(*shape), _TINYGEMM]
    return [_TINYGEMM]


def _version() -> str:
    """As part of a variant's name; nothing where the package is not installed."""
    try:
        return f", FlashInfer {metadata.version('flashinfer-python')}"
    except metadata.PackageNotFoundError:
        return ""


def _import(name: str) -> Any:
    """Only where it is called: nothing but this candidate needs the package."""
    return importlib.import_module(name)
