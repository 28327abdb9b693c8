"""The kernels: which variant serves which tokens, and what the plan makes of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .. import derived
from ..arch import ARCHS
from ..families import FAMILIES, Apart, parse_served
from ..ranges import Range
from .charts import Band, bands, in_tokens
from .facts import Facts, Kernel, Model
from .parts import Figure, Key, Table, power

_FAMILY_LABELS = {"gemv": "GEMV", "split_k": "split-K", "tiled": "tiled", "resident": "resident", "wgmma": "wgmma"}


@dataclass(frozen=True)
class Served:
    """A range of a kernel on the report's chip: its function, and the variant's family."""

    served: Range
    function: str
    family: str

    @property
    def apart(self) -> bool:
        return isinstance(self.served.variant, Apart)


def ranges(kernel: Kernel | None) -> list[Served]:
    """In order; empty for a kernel that is not generated, or not for the chip."""
    found = []
    for one in kernel.group.variants if kernel and kernel.group else ():
        variant = parse_served(one.name)
        inner = variant.inner if isinstance(variant, Apart) else variant
        found.append(Served(Range(one.first_token, one.last_token, variant, "", ()), one.function, inner.family))
    return found


def family_legend() -> list[Key]:
    return [Key(family, _FAMILY_LABELS.get(family, family), "block") for family in FAMILIES]


def range_figures(facts: Facts) -> list[Figure]:
    """Which variant serves which range, of norm and gate and of the whole path; a row a model."""
    found = []
    for key, title in (("gate", "Norm and gate"), ("path", "Whole path")):
        served = {model.spec.name: ranges(model.gate if key == "gate" else model.path) for model in facts.models}
        served = {name: of for name, of in served.items() if of}
        if not served:
            continue
        drawn = [
            Band(name, r.served.first_token, r.served.last_token, r.family, f"{name}, {_in_words(r)}", r.apart)
            for name, of in served.items()
            for r in of
        ]
        table = Table(
            ("model", "tokens", "variant", "launches"),
            tuple(
                (name, span(r.served), r.served.name, "several" if r.apart else "1")
                for name, of in served.items()
                for r in of
            ),
            left=4,
        )
        words = f"{title}: which variant serves which token counts on sm_{facts.sm}"
        found.append(
            Figure(f"ranges-{key}", title, f"sm_{facts.sm}", bands(list(served), drawn, words), table, "marks")
        )
    return found


def variant_table(facts: Facts, kernel: Kernel | None, errors: Mapping[str, float]) -> Table | None:
    """A row for each range of a kernel: what follows from the plan, what the compiler said, how far off it was."""
    served = ranges(kernel)
    if kernel is None or not served:
        return None
    arch = ARCHS[facts.sm]
    quantities = [
        {quantity.name: quantity.shown for quantity in derived.of_range(kernel.problem, arch, one.served)}
        for one in served
    ]
    meanings = {
        quantity.name: quantity.meaning
        for one in served
        for quantity in derived.of_range(kernel.problem, arch, one.served)
        if quantity.name not in ("waves", "token_tiles", "expert_tiles")
    }
    names = list(dict.fromkeys(name for found in quantities for name in found))
    names.sort(key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    compiled = {"registers, compiled": "of a thread, by ptxas", "spills": "bytes, by ptxas"} if facts.usages else {}
    rows = []
    for one, found in zip(served, quantities, strict=True):
        usage = facts.usages.get((one.function, facts.sm))
        said = ["-" if usage is None else f"{usage.registers}", "-" if usage is None else f"{usage.spill}"]
        error = errors.get(one.function)
        rows.append(
            (
                span(one.served),
                one.served.name,
                *(found.get(name, "1" if name == "launches" else "-") for name in names),
                *(said if compiled else ()),
                "-" if error is None else power(error),
            )
        )
    shown = ["registers, estimated" if name == "registers" else name for name in names]
    headings = ("tokens", "variant", *shown, *compiled, "worst error")
    meanings = {**meanings, **compiled, "worst error": "relative, as the benchmark found it before it timed"}
    return Table(headings, tuple(rows), left=2, meanings=meanings)


_ORDER = (
    "launches", "ctas_first", "ctas_last", "waves", "threads", "expert_tiles", "token_tiles", "split", "slice", "steps",
    "idle", "row_chunks", "chunks_covered", "mma_per_block", "weight_bytes_read", "static_smem", "dynamic_smem",
    "registers",
)  # fmt: skip


def by_kind(facts: Facts) -> Iterator[tuple[str, list[Kernel]]]:
    gates = [kernel for kernel in facts.kernels if kernel.problem == kernel.problem.gate_part]
    yield "Norm and gate", _in_order(gates)
    yield "Whole path", _in_order(kernel for kernel in facts.kernels if kernel not in gates)


def launches(model: Model) -> list[tuple[str, bool]]:
    """Stretches of token counts in one launch (True) or in several, in words, of the whole path."""
    found: list[tuple[int, int | None, bool]] = []
    for one in ranges(model.path):
        first, last, single = one.served.first_token, one.served.last_token, not one.apart
        if found and found[-1][2] == single:
            found[-1] = (found[-1][0], last, single)
        else:
            found.append((first, last, single))
    return [(_span(first, last), single) for first, last, single in found]


def span(served: Range) -> str:
    """As in 9 to 16, or 2,049 and more."""
    return _span(served.first_token, served.last_token).removesuffix(" tokens").removesuffix(" token")


def short(kernel: Kernel, function: str) -> str:
    """A function's name without its kernel's."""
    return function.removeprefix(f"{kernel.name}_")


def _span(first: int, last: int | None) -> str:
    if last is None:
        return f"{first:,} tokens and more"
    return in_tokens(first) if first == last else f"{first:,} to {last:,} tokens"


def _in_words(one: Served) -> str:
    several = ", in several launches" if one.apart else ""
    return f"{_span(one.served.first_token, one.served.last_token)}: {one.served.name}{several}"


def _in_order(kernels: Iterable[Kernel]) -> list[Kernel]:
    return sorted(kernels, key=lambda kernel: kernel.models)
