"""A model's part of the report: its path as a picture, what the plan makes of it, the kernel, the spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .. import derived
from ..bench import tables
from ..bench.record import ChipRates
from ..problem import Problem
from . import kernels, listing, stages
from .charts import in_tokens
from .facts import Facts, Model
from .listing import Fold
from .parts import Highlight, Table, power
from .stages import Stage

_COUNTS = (1, 64, 4096)


@dataclass(frozen=True)
class Rail:
    """How token counts in words are launched: the groups of stages, each a launch, by how many stages it spans."""

    tokens: str
    launches: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Card:
    """A model, ready for the page."""

    name: str
    shape: str
    path: str
    facts: tuple[tuple[str, str], ...]
    highlights: tuple[Highlight, ...]
    stages: tuple[Stage, ...]
    rails: tuple[Rail, ...]
    work: Table
    derived: Table
    variants: tuple[tuple[str, Table], ...]
    source: str
    folds: tuple[Fold, ...]
    yaml: str
    yaml_name: str
    links: tuple[tuple[str, str], ...]


def card(facts: Facts, model: Model, errors: Mapping[str, float]) -> Card:
    spec, problem = model.spec, Problem.of(model.spec)
    found = stages.stages(problem)
    rates = next((r.rates for chip in facts.chips for r in chip.records if r.rates), None)
    variants = []
    whole = [] if model.path is model.gate else [("whole path", model.path)]
    for title, kernel in (*whole, ("norm and gate", model.gate)):
        if table := kernels.variant_table(facts, kernel, errors):
            variants.append((title, table))
    name, text = model.source or ("", "")
    return Card(
        name=spec.name,
        shape=f"{spec.hidden_size:,} × {spec.num_experts}",
        path=spec.stages,
        facts=_facts(model),
        highlights=tuple(_highlights(facts, model)),
        stages=tuple(found),
        rails=tuple(_rails(model, found)),
        work=_work(found, rates),
        derived=Table(
            ("name", "formula", "value", "meaning"),
            tuple(quantity.row for quantity in derived.of_problem(problem)),
            left=2,
        ),
        variants=tuple(variants),
        source=name,
        folds=tuple(listing.folds(text)) if text else (),
        yaml=model.yaml,
        yaml_name=f"specs/{spec.name}.yaml",
        links=tuple(_links(facts, spec.name)),
    )


def _facts(model: Model) -> tuple[tuple[str, str], ...]:
    spec = model.spec
    norm = f"order {spec.norm.order}, eps {power(spec.norm.eps, 0)}" if spec.norm else "none"
    dtypes = f"{spec.activation_dtype}, gate weight {spec.gate_weight_dtype}, logits {spec.logits_dtype}"
    return (
        ("norm", norm),
        ("dtypes", dtypes),
        ("logits from", f"the {spec.logits_from} norm"),
        ("kernel", model.path.name if model.path else "not generated"),
    )


def _highlights(facts: Facts, model: Model) -> list[Highlight]:
    found = []
    for chip in facts.chips:
        measured = chip.gates and chip.gates.models.get(model.spec.name)
        path = chip.paths and chip.paths.models.get(model.spec.name)
        for count in (1, 64):
            if measured and (us := tables.medians(measured, "ours").get(count)):
                found.append(Highlight(f"{us:.2f} µs", f"norm and gate, {in_tokens(count)}", chip.name))
        for count in (1, 64):
            if path and path.path and (us := tables.medians(path.path, "ours").get(count)):
                found.append(Highlight(f"{us:.2f} µs", f"whole path, {in_tokens(count)}", chip.name))
    return found


def _links(facts: Facts, name: str) -> list[tuple[str, str]]:
    found = []
    for chip in facts.chips:
        if chip.gates and name in chip.gates.models and chip.gates.models[name].points:
            found.append((f"{chip.slug}-gate-{name}", f"latency of norm and gate, {chip.name}"))
        if chip.paths and name in chip.paths.models and chip.paths.models[name].path:
            found.append((f"{chip.slug}-path-{name}", f"latency of the whole path, {chip.name}"))
    return found


def _rails(model: Model, found: list[Stage]) -> list[Rail]:
    before = sum(stage.key == "add" for stage in found)
    after = sum(stage.key in ("scoring", "choice") for stage in found)
    several = [("add", before), ("norm and gate", len(found) - before - after), ("selection", after)]
    rails = []
    for tokens, single in kernels.launches(model):
        whole = (("one launch", len(found)),)
        rails.append(Rail(tokens, whole if single else tuple((name, span) for name, span in several if span)))
    return rails


def _work(found: list[Stage], rates: ChipRates | None) -> Table:
    """Bytes and FLOPs of each stage; the least time that they take at the rates the chip reaches."""
    headings = ["stage", "reads", "writes", "bytes, once", "bytes a token", "FLOP a token"]
    headings += [f"bytes at {in_tokens(count)}" for count in _COUNTS]
    rows = [
        (
            stage.name,
            ", ".join(stage.reads) or "-",
            ", ".join(stage.writes) or "-",
            f"{stage.fixed_bytes:,}",
            f"{stage.token_bytes:,}",
            f"{stage.flops:,}" if stage.flops else stage.work or "-",
            *(f"{stage.bytes_at(count):,}" for count in _COUNTS),
        )
        for stage in found
    ]
    sums = [sum(stage.bytes_at(count) for stage in found) for count in _COUNTS]
    rows.append(
        (
            "all",
            "",
            "",
            f"{sum(stage.fixed_bytes for stage in found):,}",
            f"{sum(stage.token_bytes for stage in found):,}",
            f"{sum(stage.flops for stage in found):,}",
            *(f"{total:,}" for total in sums),
        )
    )
    if rates:
        times = [f"{1e6 * total / rates.copy_bytes_per_s:.2f} µs" for total in sums]
        rows.append(("at the speed of a copy", "", "", "", "", "", *times))
    return Table(tuple(headings), tuple(rows), left=3)
