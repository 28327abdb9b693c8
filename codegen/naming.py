"""Every identifier, symbol and path of what is generated."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from .errors import BadInput
from .errors import Problem as Wrong
from .problem import Problem

OPS = "normgate"
"""The namespace of the operators, torch.ops.normgate, where none is asked for."""

_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_CUDA_TYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "float", "int32": "int32_t", "int64": "int64_t"}
_GROUP_SCORE = {"top2_sum": "top2", "max": "max"}


def check_ops(ops: str) -> str:
    """`ops` itself, which becomes C++ and Python. BadInput where it is no name for a namespace of operators."""
    if not re.fullmatch("[a-z][a-z0-9_]{0,63}", ops):
        expected = "up to 64 of a to z, 0 to 9 and _, a letter first, as in acme_engine, would be right"
        raise BadInput([Wrong(None, None, f"--ops {ops!r}: {expected}")])
    return ops


def short_dtype(dtype: str) -> str:
    """`bf16` for `bfloat16`."""
    return _SHORT[dtype]


def cuda_type(dtype: str) -> str:
    """The name of the type in CUDA sources, for floats that of `numbers.cuh`, as in `bf16`."""
    return _CUDA_TYPE[dtype]


def kernel_name(problem: Problem) -> str:
    """As in `norm_b_gate_7168x384_bf16_bf16_fp32`: path, shape, dtypes of activation, gate weight and logits.

    What comes before and after the gate stands at its place in the path, and its particulars at the end:
    `add_norm_a_gate_sigmoid_top8_7168x256_bf16_bf16_fp32_corrected_groups8x4top2_bounded`.
    """
    path = f"norm_{problem.norm_order.lower()}_gate" if problem.has_norm else "gate"
    if problem.residual:
        path = f"{problem.residual}_{path}"
    if chosen := problem.selection:
        path += f"_{chosen.scoring}_top{chosen.top_k}"
    dtypes = (problem.activation_dtype, problem.gate_weight_dtype, problem.logits_dtype)
    name = f"{path}_{problem.hidden_size}x{problem.num_experts}_" + "_".join(map(short_dtype, dtypes))
    if problem.gate_bias:
        name += "_bias"
    if problem.rounds_rows:
        name += "_rounded"
    if not problem.early_weight_loads:
        name += "_late_weights"
    if chosen:
        groups = f"_groups{chosen.n_group}x{chosen.topk_group}{_GROUP_SCORE.get(chosen.group_score, '')}"
        said = {
            "_corrected": chosen.correction_bias,
            groups: chosen.n_group > 1,
            "_normalized": chosen.renormalize == "sum",
            "_bounded": chosen.renormalize == "bounded",
            "_softcap": chosen.softcaps,
            "_hash": chosen.hashes,
            "_images": chosen.image_bias,
            "_scaled": chosen.scales_experts,
            "_logits": chosen.returns_logits,
            "_int64": chosen.ids_dtype == "int64",
            "_bf16": chosen.weights_dtype == "bfloat16",
        }
        name += "".join(word for word, holds in said.items() if holds)
    return name


def function_name(kernel: str, variant: str, group_sm: int) -> str:
    """The symbol of a variant's `__global__` function and, with `launch_` before it, of its launcher."""
    return f"{kernel}_{variant}_sm{group_sm}"


def finish_name(function: str) -> str:
    """The symbol of what a variant's function leaves to a second launch."""
    return f"{function}_finish"


def group_name(kernel: str, group_sm: int) -> str:
    """Of what the look-up tables hold for a kernel on one group of SM targets."""
    return f"{kernel}_sm{group_sm}"


def struct_name(variant: str) -> str:
    """`SplitKT16E16` for `split_k_t16_e16`."""
    return "".join(part.capitalize() for part in variant.split("_"))


def source_path(kernel: str, group_sm: int) -> PurePosixPath:
    """Where a kernel's CUDA lies in the package."""
    return PurePosixPath("csrc/kernels") / f"{kernel}.sm{group_sm}.cu"
