"""Plan into text. Templates decide nothing: what they ask for is worked out here from the plan."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import jinja2

from . import naming
from .errors import ToolError
from .families import FAMILIES, Gemv, Resident, SplitK, Tiled, Variant, Wgmma, ceil_div
from .plan import Group, Kernel, Plan
from .problem import Problem

ROOT = Path(__file__).resolve().parent
_NORM_COMMENTS = {
    "A": "weight * round(xhat), rounded",
    "B": "weight * xhat, rounded once",
    "G": "(1 + weight) * xhat, rounded once",
}
_NORM_FORMULAS = {
    "A": "round(norm_weight[k] * round(x[m, k] * rstd[m]))",
    "B": "round(norm_weight[k] * x[m, k] * rstd[m])",
    "G": "round((1 + norm_weight[k]) * x[m, k] * rstd[m])",
}
ROW_NORM_THREADS = 256


def templates_folder() -> Path:
    """Beside the generator in a checkout, inside it when installed."""
    installed = ROOT / "templates"
    return installed if installed.is_dir() else ROOT.parent / "templates"


def environment() -> jinja2.Environment:
    templates = templates_folder()
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates / "kernels", templates / "package", templates]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(plan: Plan) -> dict[str, str]:
    """The whole package but its manifest: posix path in the package -> text, formatted."""
    env = environment()
    files: dict[str, str] = {}
    for kernel in plan.kernels:
        for group in kernel.groups:
            path = str(naming.source_path(kernel.name, group.sm))
            files[path] = env.get_template("kernel.cu.j2").render(
                kernel=_kernel_context(kernel), group=_group_context(kernel, group)
            )
    files["csrc/dispatch_table.cpp"] = env.get_template("csrc/dispatch_table.cpp.j2").render(_table_context(plan))
    files["_tables.py"] = env.get_template("_tables.py.j2").render(_table_context(plan))
    templates = templates_folder()
    for source in sorted((templates / "csrc").glob("*.cpp")):
        files[f"csrc/{source.name}"] = source.read_text()
    for source in sorted((templates / "include").iterdir()):
        files[f"csrc/include/{source.name}"] = source.read_text()
    for source in sorted((templates / "package").glob("*.py")):
        files[source.name] = source.read_text()
    return _formatted(files)


def functions(kernel: Kernel, group: Group) -> tuple[str, ...]:
    """The `__global__` functions of a group's source file."""
    return tuple(entry["symbol"] for entry in _entry_points(kernel, group))


def _kernel_context(kernel: Kernel) -> dict[str, Any]:
    problem = kernel.problem
    scale = "x[m, k]"
    if problem.has_norm:
        weight = "(1 + norm_weight[k])" if problem.norm_order == "G" else "norm_weight[k]"
        scale = "normed_x[m, k]" if problem.rounds_rows else f"x[m, k] * {weight}"
    formula = f"sum_k({scale} * gate_weight[n, k])"
    if problem.folds_norm:
        formula = f"rstd[m] * {formula}"
    if problem.gate_bias:
        formula += " + gate_bias[n]"
    models = ", ".join(spec.name for spec in kernel.specs)
    path = "RMSNorm and router gate" if problem.has_norm else "Router gate"
    return {
        "title": f"{path} of {models}.",
        "specs": [f"specs/{spec.name}.yaml" for spec in kernel.specs],
        "formula": formula,
        "norm_formula": _NORM_FORMULAS.get(problem.norm_order),
        "has_norm": problem.has_norm,
        "rounded": problem.rounds_rows,
        "hidden_size": problem.hidden_size,
        "num_experts": problem.num_experts,
        "activation_type": naming.cuda_type(problem.activation_dtype),
        "gate_weight_type": naming.cuda_type(problem.gate_weight_dtype),
        "logits_type": naming.cuda_type(problem.logits_dtype),
        "norm_type": f"Norm{problem.norm_order}",
        "norm_comment": _NORM_COMMENTS.get(problem.norm_order),
        "gate_bias": problem.gate_bias,
        "gate_terms": problem.gate_terms,
        "gate_terms_comment": ("a gate weight times a norm weight" if problem.folds_norm else "a gate weight exactly"),
        "row_terms": problem.row_terms,
    }


def _fold(problem: Problem) -> str:
    """How gate weights become bf16 terms."""
    if problem.folds_norm:
        return "exact_product" if problem.gate_terms == 2 else "split_product"
    return "as_stored" if problem.gate_terms == 1 else "split"


def _group_context(kernel: Kernel, group: Group) -> dict[str, Any]:
    problem, cluster = kernel.problem, group.arch.has_cluster
    used = {v.family for v in group.variants}
    uses_tensor_cores = bool(used - {"gemv"})
    finishes = uses_tensor_cores and not cluster
    row_norm = finishes and problem.has_norm or bool(used & {"tiled", "wgmma", "resident"}) and problem.rounds_rows
    headers = ["launch.cuh", "normgate.h", "numbers.cuh"]
    headers += ["mma.cuh"] * uses_tensor_cores
    headers += ["norm.cuh"] * problem.has_norm
    headers += ["pdl.cuh"] * group.arch.has_pdl
    headers += ["cluster.cuh"] * (uses_tensor_cores and cluster)
    headers += ["async_copy.cuh"] * bool(used & {"tiled", "resident"})
    headers += ["mbarrier.cuh"] * (uses_tensor_cores and cluster)
    headers += ["tensor_map.cuh", "wgmma.cuh"] * group.accelerated
    families: list[str] = [family for family in FAMILIES if family in used]
    families += ["row_norm"] * row_norm
    families += ["finish"] * finishes
    chunks = ceil_div(problem.hidden_size, ROW_NORM_THREADS * 8)
    return {
        "chips": ", ".join(f"sm_{sm}" for sm in group.sm_targets),
        "headers": sorted(headers),
        "families": families,
        "uses_tensor_cores": uses_tensor_cores,
        "cluster": cluster,
        "pdl": group.arch.has_pdl,
        "fold": _fold(problem),
        "folds_norm": problem.folds_norm,
        "reads_norm_weight": problem.folds_norm or (problem.rounds_rows and cluster),
        "sums_squares": problem.folds_norm and cluster,
        "norms_rows": problem.rounds_rows and cluster,
        "finish_norms": problem.folds_norm,
        "row_norm": {"threads": ROW_NORM_THREADS, "chunks": chunks},
        "variants": [_variant_context(kernel, group, v) for v in group.variants],
        "wgmma_shapes": sorted(_wgmma_shapes(problem, group)),
        "entry_points": _entry_points(kernel, group),
    }


def _wgmma_shapes(problem: Problem, group: Group) -> set[tuple[int, bool]]:
    """Columns of each warpgroup instruction, and whether it takes the weights from shared memory."""
    shapes = {(v.tokens, _fold(problem) == "as_stored") for v in group.variants if isinstance(v, Wgmma)}
    return shapes | {(v.tokens, False) for v in group.variants if isinstance(v, Resident)}


def _variant_context(kernel: Kernel, group: Group, variant: Variant) -> dict[str, Any]:
    constants = [
        ("kTokens", variant.tokens, "tokens that a CTA serves"),
        ("kExperts", variant.experts, "experts that a CTA computes"),
    ]
    if isinstance(variant, Gemv):
        constants += [
            ("kThreads", variant.threads, "threads of a CTA"),
            ("kChunks", variant.chunks, "16-byte chunks of a row that a thread holds"),
            ("kGroup", variant.group, "rows that a thread has on their way at once"),
        ]
    elif isinstance(variant, Tiled):
        constants += [
            ("kSplit", variant.split, "CTAs that share hidden_size"),
            ("kTokenWarps", variant.token_warps, "warps side by side over the tokens"),
            ("kExpertWarps", variant.expert_warps, "warps side by side over the experts"),
            ("kSliceWarps", variant.slice_warps, "warps that share a step"),
            ("kStep", variant.step, "elements of hidden_size in a step"),
            ("kStages", variant.stages, "steps in shared memory at a time"),
            ("kSmemBytes", variant.dynamic_smem(kernel.problem, group.arch.has_cluster), "dynamic shared memory"),
        ]
    elif isinstance(variant, Wgmma):
        constants += [
            ("kSplit", variant.split, "CTAs that share hidden_size"),
            ("kStages", variant.stages, "steps in shared memory at a time"),
            ("kChainSteps", variant.chain_steps(kernel.problem), "steps whose products add to one accumulator"),
            *[("kRowPlaces", variant.row_places(kernel.problem), "rows on their way to be normed")]
            * kernel.problem.folds_norm,
            ("kCopyRegisters", variant.copy_registers(kernel.problem), "registers of a thread that copies"),
            *[("kNormRegisters", variant.norm_registers(kernel.problem), "of one that norms rows")]
            * kernel.problem.folds_norm,
            ("kSumRegisters", variant.sum_registers(kernel.problem), "of one that multiplies"),
            ("kSmemBytes", variant.dynamic_smem(kernel.problem, True), "dynamic shared memory"),
        ]
    elif isinstance(variant, Resident):
        constants += [
            ("kSplit", variant.split, "CTAs that share hidden_size"),
            ("kSumRegisters", variant.sum_registers(kernel.problem), "registers of a thread that multiplies"),
            *[("kNormRegisters", variant.norm_registers(kernel.problem), "of one that norms rows")]
            * kernel.problem.folds_norm,
            ("kCopyRegisters", variant.copy_registers, "of one that copies"),
            ("kSmemBytes", variant.dynamic_smem(kernel.problem, True), "dynamic shared memory"),
        ]
    else:
        constants += [
            ("kSplit", variant.split, "CTAs that share hidden_size"),
            ("kWarps", variant.warps, "warps of a CTA; they share the CTA's slice"),
            ("kRounds", variant.rounds, "rounds in which a warp goes through its part"),
            ("kBlocks", variant.blocks, "32-wide blocks of hidden_size that a warp takes in a round"),
            ("kChains", variant.chains, "accumulators that share a sum, so that one mma does not wait for the other"),
        ]
    typed: list[tuple[str, str, int | str, str]] = [("int", *constant) for constant in constants]
    if group.arch.has_pdl:
        early = "read weights before waiting for the kernel before"
        typed.append(("bool", "kEarlyWeights", str(variant.early_weights).lower(), early))
    if isinstance(variant, Tiled):
        adds = "sums step by step: the tensor cores cut off what fp32 would round, with each mma into one sum"
        typed.append(("bool", "kAddsSteps", str(variant.adds_steps(kernel.problem)).lower(), adds))
    if not isinstance(variant, Gemv) and not group.arch.has_cluster:
        row = variant.workspace_row(kernel.problem)
        typed.append(("int64_t", "kWorkspaceRow", row, "sums of one token in the workspace"))
    serves = [r for r in (*group.ranges, *group.portable_ranges) if r.variant == variant]
    spans = dict.fromkeys(f"{_span(r.first_token, r.last_token)}: {r.why}" for r in serves)
    what = "; ".join(spans) or "not dispatched to"
    return {
        "name": variant.name,
        "comment": f"{variant.name}, {what}.",
        "struct": naming.struct_name(variant.name),
        "function": naming.function_name(kernel.name, variant.name, group.sm),
        "constants": [dict(zip(("type", "name", "value", "comment"), c, strict=True)) for c in typed],
        "steps": _steps(kernel, group, variant),
    }


def _span(first: int, last: int | None) -> str:
    if last is None:
        return f"{first} tokens and more"
    return f"{first} token{'s' * (first > 1)}" if first == last else f"{first} to {last} tokens"


def _entry_points(kernel: Kernel, group: Group) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for variant in group.variants:
        symbol = naming.function_name(kernel.name, variant.name, group.sm)
        struct = naming.struct_name(variant.name)
        entry = {
            "symbol": symbol,
            "struct": struct,
            "threads": variant.threads_for(kernel.problem),
            "body": variant.family,
        }
        entries.append({**entry, "accelerated": variant.accelerated, "maps": _maps(variant)})
        if _finishes_apart(group, variant):
            finish = {
                "symbol": symbol + "_finish",
                "struct": struct,
                "threads": ROW_NORM_THREADS,
                "body": "finish",
                "accelerated": False,
                "maps": [],
            }
            entries.append(finish)
    if any(_norms_apart(kernel, group, variant) for variant in group.variants):
        symbol = naming.function_name(kernel.name, "row_norm", group.sm)
        entry = {"symbol": symbol, "struct": "RowNorm", "threads": ROW_NORM_THREADS, "body": "row_norm"}
        entries.append({**entry, "accelerated": False, "maps": []})
    return entries


def _steps(kernel: Kernel, group: Group, variant: Variant) -> list[dict[str, Any]]:
    """The launches of a variant, in order."""
    problem = kernel.problem
    symbol = naming.function_name(kernel.name, variant.name, group.sm)
    overlap = str(group.arch.has_pdl).lower()
    uses_smem = variant.dynamic_smem(problem, group.arch.has_cluster) > 0
    smem = f"{naming.struct_name(variant.name)}::kSmemBytes" if uses_smem else 0
    step = {
        "symbol": symbol,
        "threads": variant.threads_for(kernel.problem),
        "smem": smem,
        "cluster": 1,
        "overlap": overlap,
    }
    step |= {"args": "args", "maps": _maps(variant)}
    if isinstance(variant, Gemv):
        return [{**step, "ctas": variant.ctas(problem, variant.tokens)}]
    step["ctas"] = f"ceil_div(args.num_tokens, {variant.tokens}) * {variant.tiles(problem) * variant.split}"
    if isinstance(variant, Resident):
        token_tiles = f"std::min<int64_t>(ceil_div(args.num_tokens, {variant.tokens}), {variant.token_groups(problem)})"
        step["ctas"] = f"{token_tiles} * {variant.tiles(problem) * variant.split}"
    if group.arch.has_cluster:
        step["cluster"] = variant.split
    steps = [step]
    per_row = {**step, "ctas": "args.num_tokens", "threads": ROW_NORM_THREADS, "smem": 0, "cluster": 1, "maps": []}
    if _norms_apart(kernel, group, variant):
        step["args"] = f"from_normed_x(args, {problem.hidden_size})"
        steps.insert(0, {**per_row, "symbol": naming.function_name(kernel.name, "row_norm", group.sm)})
    if _finishes_apart(group, variant):
        steps.append({**per_row, "symbol": symbol + "_finish"})
    return steps


def _maps(variant: Variant) -> list[str]:
    """The matrices that a kernel copies in boxes, which need a map each."""
    return ["x_map"] * isinstance(variant, Resident | Wgmma) + ["gate_map"] * isinstance(variant, Wgmma)


def _finishes_apart(group: Group, variant: Variant) -> bool:
    """Chips without clusters add the sums of a split in a launch of their own."""
    return not isinstance(variant, Gemv) and not group.arch.has_cluster


def _norms_apart(kernel: Kernel, group: Group, variant: Variant) -> bool:
    """The gate reads rows as they are written, and no CTA of the variant sees one whole: the norm is its own launch."""
    fused = isinstance(variant, Gemv) or (isinstance(variant, SplitK) and group.arch.has_cluster)
    return kernel.problem.rounds_rows and not fused


def _table_context(plan: Plan) -> dict[str, Any]:
    kernels = []
    for kernel in plan.kernels:
        problem = kernel.problem
        groups = []
        for group in kernel.groups:
            index = {variant: i for i, variant in enumerate(group.variants)}
            group_id = f"{kernel.name}_sm{group.sm}"
            variants = [
                {
                    "name": v.name,
                    "function": naming.function_name(kernel.name, v.name, group.sm),
                    "workspace_bytes_per_token": _workspace_bytes_per_token(kernel, group, v),
                }
                for v in group.variants
            ]
            ranges, portable = (
                [
                    {
                        "name": r.name,
                        "function": variants[index[r.variant]]["function"] if r.variant else "",
                        "first": r.first_token,
                        "last_token": r.last_token,
                        "last": "kNoEnd" if r.last_token is None else r.last_token,
                        "variant": f"&{group_id}_variants[{index[r.variant]}]" if r.variant else "nullptr",
                        "comment": f"from {r.first_token}: {r.name}",
                        "why": r.why,
                        "rejected": r.rejected,
                    }
                    for r in served
                ]
                for served in (group.ranges, group.portable_ranges)
            )
            condition = " || ".join(f"defined(NORMGATE_SM_{sm})" for sm in group.sm_targets)
            common = {"id": group_id, "sm_targets": group.sm_targets, "condition": condition}
            groups.append({**common, "variants": variants, "ranges": ranges, "portable_ranges": portable})
        kernels.append(
            {
                "name": kernel.name,
                "models": [spec.name for spec in kernel.specs],
                "hidden_size": problem.hidden_size,
                "num_experts": problem.num_experts,
                "activation_dtype": problem.activation_dtype,
                "gate_weight_dtype": problem.gate_weight_dtype,
                "logits_dtype": problem.logits_dtype,
                "activation": _dtype_constant(problem.activation_dtype),
                "gate_weight": _dtype_constant(problem.gate_weight_dtype),
                "logits": _dtype_constant(problem.logits_dtype),
                "norm_order": problem.norm_order or "-",
                "logits_from": problem.logits_from,
                "rounded": str(problem.rounds_rows).lower(),
                "gate_bias": str(problem.gate_bias).lower(),
                "batch_invariant": kernel.specs[0].batch_invariant,
                "groups": groups,
            }
        )
    models = [{"spec": spec, "kernel": kernel.name} for kernel in plan.kernels for spec in kernel.specs]
    models.sort(key=_model_name)
    targets = sorted({sm for kernel in plan.kernels for group in kernel.groups for sm in group.sm_targets})
    return {"kernels": kernels, "models": models, "sm_targets": targets}


def _model_name(model: dict[str, Any]) -> str:
    return str(model["spec"].name)


def _dtype_constant(dtype: str) -> str:
    return {"bfloat16": "kBFloat16", "float16": "kFloat16", "float32": "kFloat32"}[dtype]


def _workspace_bytes_per_token(kernel: Kernel, group: Group, variant: Variant) -> int:
    if isinstance(variant, Gemv) or group.arch.has_cluster:
        return 0
    return variant.split * variant.workspace_row(kernel.problem) * 4


def _clang_format() -> str:
    """The binary inside the clang-format package: its console script would start a Python for each file."""
    spec = importlib.util.find_spec("clang_format")
    if spec is None or spec.origin is None:
        raise ToolError("clang-format is not installed; generated code is formatted with it: pip install clang-format")
    return str(Path(spec.origin).parent / "data" / "bin" / "clang-format")


def _formatted(files: dict[str, str]) -> dict[str, str]:
    """C++ and CUDA through clang-format, whose style is `.clang-format` of the templates folder."""
    style = f"--style=file:{templates_folder() / '.clang-format'}"
    out = dict(files)
    for path, text in files.items():
        if Path(path).suffix in {".cu", ".cuh", ".cpp", ".h"}:
            command = [_clang_format(), style, f"--assume-filename={Path(path).with_suffix('.cpp').name}"]
            out[path] = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return out
