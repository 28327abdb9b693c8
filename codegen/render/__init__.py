"""Plan into text. Templates decide nothing: what they ask for is worked out here from the plan."""

from __future__ import annotations

import jinja2

from .. import naming
from ..places import templates_folder
from ..plan import Plan
from .clang_format import formatted
from .kernel import group_context, kernel_context
from .launches import ROW_NORM_THREADS, SELECT_WARPS, functions, uses_handover
from .tables import routing_of, table_context

__all__ = [
    "HANDOVER",
    "ROW_NORM_THREADS",
    "SELECT_WARPS",
    "environment",
    "functions",
    "render",
    "routing_of",
    "uses_handover",
]

HANDOVER = "csrc/handover.cu"


def render(plan: Plan, ops: str = naming.OPS) -> dict[str, str]:
    """The whole package but its manifest: posix path in the package -> text, formatted.

    ops: the namespace of its operators, torch.ops.<ops>; BadInput where it cannot be one.
    """
    naming.check_ops(ops)
    env = environment()
    files: dict[str, str] = {}
    for kernel in plan.all_kernels:
        for group in kernel.groups:
            path = str(naming.source_path(kernel.name, group.sm))
            files[path] = env.get_template("kernel.cu.j2").render(
                kernel=kernel_context(kernel), group=group_context(plan, kernel, group)
            )
    files["csrc/dispatch_table.cpp"] = env.get_template("csrc/dispatch_table.cpp.j2").render(table_context(plan))
    files["_tables.py"] = env.get_template("_tables.py.j2").render(table_context(plan), ops=ops)
    files["csrc/include/ops.h"] = env.get_template("csrc/ops.h.j2").render(ops=ops)
    templates = templates_folder()
    for source in sorted((templates / "csrc").glob("*.cpp")):
        files[f"csrc/{source.name}"] = source.read_text()
    if any(uses_handover(kernel, group) for kernel in plan.all_kernels for group in kernel.groups):
        files[HANDOVER] = (templates / HANDOVER).read_text()
    for source in sorted((templates / "include").iterdir()):
        files[f"csrc/include/{source.name}"] = source.read_text()
    for source in sorted((templates / "package").rglob("*.py")):
        files[source.relative_to(templates / "package").as_posix()] = source.read_text()
    return formatted(files)


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
