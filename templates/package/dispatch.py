"""Which kernel variant serves a call, and why: the table that the CUDA op dispatches by, in Python."""

import difflib
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ._tables import KERNELS, MODELS
from .table_types import GroupTable, KernelTable, ModelTable, SelectionTable, VariantRange

ADD_COMMAND = "python build.py add CONFIG.json && python build.py"


@dataclass(frozen=True)
class Explanation:
    """The answer of :func:`explain`; ``str()`` of it reads well in 80 columns.

    ``model`` is ``None`` when a kernel was asked for by its own name. ``variant`` is "reference" where no
    kernel serves the SM and "none" for 0 tokens; ``function`` is then ``None`` and the range empty.
    ``sm_target`` is the target whose code runs on the device: its own, an older one of its major version,
    or the PTX of the kernel's newest. ``sm_group`` holds all targets that share the variants. ``last_token``
    ``None`` is no upper end.
    """

    model: str | None
    kernel: str
    num_tokens: int
    sm: int
    sm_target: int | None
    sm_group: tuple[int, ...]
    variant: str
    function: str | None
    first_token: int | None
    last_token: int | None
    why: str
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        tokens = "1 token" if self.num_tokens == 1 else f"{self.num_tokens} tokens"
        lines = [_fill(f"{self.model or self.kernel}, {tokens}, sm_{self.sm}"), _line("kernel", self.kernel)]
        if self.function is None:
            lines.append(_line("variant", self.variant))
        else:
            lines.append(_line("variant", f"{self.variant}, {_range(self.first_token, self.last_token)}"))
            lines.append(_line("function", self.function))
        if self.sm_target is not None:
            shared = ", ".join(f"sm_{target}" for target in self.sm_group)
            lines.append(_line("code", f"sm_{self.sm_target} (one table for {shared})"))
        lines.append(_line("why", self.why))
        lines.extend(_line("rejected", f"{variant}: {reason}") for variant, reason in self.rejected)
        return "\n".join(lines)


def models() -> tuple[str, ...]:
    """Names of the models in the tables."""
    return tuple(MODELS)


def kernels() -> tuple[str, ...]:
    """Names of the kernels in the tables; models with the same router path share one."""
    return tuple(KERNELS)


def model_table(model: str) -> ModelTable:
    """The table of ``model``; ValueError when there is none."""
    if model not in MODELS:
        raise ValueError(_unknown("model", model, MODELS))
    return MODELS[model]


def kernel_table(kernel: str) -> KernelTable:
    """The table of ``kernel``; ValueError when there is none."""
    if kernel not in KERNELS:
        raise ValueError(_unknown("kernel", kernel, KERNELS))
    return KERNELS[kernel]


def variants(kernel: str, sm: int) -> tuple[VariantRange, ...]:
    """The variants of ``kernel`` on a device of ``sm`` (90 is compute capability 9.0), by token count.

    Empty where no target of the kernel runs on such a device. ValueError for an unknown kernel.
    """
    table = kernel_table(kernel)
    target = select_target(table, sm)
    return () if target is None else _group_of(table, target).variants_on(sm)


def select_target(table: KernelTable, sm: int) -> int | None:
    """The SM target whose code a device of ``sm`` runs: a minimum, never a maximum.

    The newest target of the device's own major version that is not newer than the device; else the kernel's
    newest target, as PTX, if the device is newer; else ``None``.
    """
    targets = [target for group in table.groups for target in group.sm_targets]
    newest = max(targets)
    runs = [target for target in targets if target <= sm and (target // 10 == sm // 10 or target == newest)]
    return max(runs, default=None)


def explain(model_or_kernel: str, num_tokens: int, sm: int | None = None) -> Explanation:
    """Which variant serves ``num_tokens`` tokens of a model or kernel, why, and what was rejected.

    ``sm`` is 90 for compute capability 9.0, by default that of the current CUDA device. It tells what the
    plan says; a library built for fewer SMs than the plan holds serves fewer. ValueError for an unknown
    name, a negative ``num_tokens``, or no ``sm`` where there is no CUDA device.
    """
    model = MODELS.get(model_or_kernel)
    kernel = model.kernel if model else model_or_kernel
    if kernel not in KERNELS:
        raise ValueError(_unknown("model or kernel", model_or_kernel, [*MODELS, *KERNELS]))
    if num_tokens < 0:
        raise ValueError(f"num_tokens is {num_tokens}, expected 0 or more")
    if sm is None:
        sm = current_sm()
    target = select_target(KERNELS[kernel], sm)
    group = GroupTable((), ()) if target is None else _group_of(KERNELS[kernel], target)
    chosen = next((variant for variant in group.variants_on(sm) if _serves(variant, num_tokens)), None)
    if chosen is not None:
        name, why = chosen.name, chosen.why
    elif num_tokens == 0:
        name, why = "none", "the outputs are empty, nothing is launched"
    elif target is None:
        name, why = "reference", f"{why_unserved(KERNELS[kernel], sm)}; until then the reference runs"
    else:
        name, why = "reference", f"no variant serves {num_tokens} tokens; the reference runs"
    return Explanation(
        model=model.model if model else None,
        kernel=kernel,
        num_tokens=num_tokens,
        sm=sm,
        sm_target=target,
        sm_group=group.sm_targets,
        variant=name,
        function=chosen.function if chosen else None,
        first_token=chosen.first_token if chosen else None,
        last_token=chosen.last_token if chosen else None,
        why=why,
        rejected=chosen.rejected if chosen else (),
    )


def find_kernel(
    hidden_size: int,
    num_experts: int,
    activation_dtype: str,
    gate_weight_dtype: str,
    logits_dtype: str,
    norm_order: str | None,
    gate_bias: bool,
    logits_from: str,
    residual: str = "",
    selection: tuple[object, ...] | None = None,
) -> KernelTable | None:
    """The kernel that computes exactly this, if one was generated; without a norm, whatever logits_from.

    ``residual`` and ``selection`` as in :class:`KernelTable`.
    """
    sizes = (hidden_size, num_experts)
    dtypes = (activation_dtype, gate_weight_dtype, logits_dtype)
    for table in KERNELS.values():
        same_logits = norm_order is None or table.logits_from == logits_from
        same_stages = table.residual == residual and _selects(table.selection, selection)
        if same_logits and same_stages and table[1:8] == (*sizes, *dtypes, norm_order, gate_bias):
            return table
    return None


def _selects(kernel: SelectionTable | None, call: tuple[object, ...] | None) -> bool:
    """Whether a kernel's selection serves a call's. One kernel serves a model's hash layers, whose experts come from a
    table without a correction bias, and its other layers.
    """
    if kernel is None or call is None:
        return kernel is None and call is None
    wanted = SelectionTable(*call)  # type: ignore[arg-type]
    same_choice = kernel.hashes if wanted.hashes else kernel.correction_bias == wanted.correction_bias
    return same_choice and wanted._replace(hashes=kernel.hashes, correction_bias=kernel.correction_bias) == kernel


def why_unserved(table: KernelTable, sm: int) -> str:
    """Why no target of ``table`` runs on a device of ``sm``, and what to do about it."""
    targets = sorted(target for group in table.groups for target in group.sm_targets)
    return (
        f"no SM target of {table.kernel} ({', '.join(map(str, targets))}) runs on sm_{sm}; if {sm} is a "
        "target of the generator, add it to sm_targets in the spec and run `python build.py`"
    )


def current_sm(device: torch.device | None = None) -> int:
    """The SM of a CUDA device, by default the current one: 90 for compute capability 9.0.

    ValueError where there is no current one.
    """
    if device is None and not torch.cuda.is_available():
        raise ValueError("sm is not given and there is no CUDA device to ask; pass it, e.g. sm=90")
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _serves(variant: VariantRange, num_tokens: int) -> bool:
    last = num_tokens if variant.last_token is None else variant.last_token
    return variant.first_token <= num_tokens <= last


def _group_of(table: KernelTable, target: int) -> GroupTable:
    return next(group for group in table.groups if target in group.sm_targets)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = ", ".join(difflib.get_close_matches(name, names) or names)
    return f"unknown {kind} {name!r}, expected one of: {near}; a new model is added by `{ADD_COMMAND}`"


def _range(first: int | None, last: int | None) -> str:
    if last is None:
        return f"{first} tokens and more"
    return f"{first} token{'s' if last > 1 else ''}" if first == last else f"{first} to {last} tokens"


def _line(label: str, text: str) -> str:
    return _fill(text, first=f"  {label:<10}", then=" " * 12)


def _fill(text: str, first: str = "", then: str = "  ") -> str:
    return textwrap.fill(
        text,
        width=80,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,  # names are to be copied, so they stay whole
        break_on_hyphens=False,
    )
