"""Coverage: model x stage x SM."""

from __future__ import annotations

from .. import coverage
from ..arch import SM_TARGETS
from ..coverage import Covered
from ..spec import RouterSpec
from .facts import Facts
from .parts import Cell, Table

_MARKS = {coverage.RUN: "●", coverage.BUILT: "◐", coverage.COMPILED: "◔", coverage.PLANNED: "○", coverage.NONE: "–"}
MEANINGS = {
    coverage.RUN: "run: a kernel of the path passed every test on the chip",
    coverage.BUILT: "compiled, not run",
    coverage.COMPILED: "compiled on demand, not run: docs/measured/models.json",
    coverage.PLANNED: "planned: compiled on demand",
    coverage.NONE: "no kernel: the reference serves",
}
_STAGES = ("add", "norm", "gate", "scoring", "choice")


def legend() -> list[tuple[str, str, str]]:
    """Mark, class and meaning of each status."""
    return [(_MARKS[status], f"is-{status}", meaning) for status, meaning in MEANINGS.items()]


def table(facts: Facts, *, shipped: bool) -> Table:
    """The models that are generated here, or the others."""
    names = {model.spec.name for model in facts.models}
    rows = tuple(_row(one, facts.specs[one.model]) for one in facts.coverage if (one.model in names) is shipped)
    return Table(("model", *_STAGES, *(f"sm_{sm}" for sm in SM_TARGETS)), rows, left=len(_STAGES) + 1)


def _row(one: Covered, spec: RouterSpec) -> tuple[Cell, ...]:
    sms = [
        Cell(_MARKS[one.sms[sm]], f"is-{one.sms[sm]}", f"{one.model} on sm_{sm}: {MEANINGS[one.sms[sm]]}")
        for sm in SM_TARGETS
    ]
    return (Cell(one.model, "", "; ".join(one.missing)), *_stage_cells(one, spec), *sms)


def _stage_cells(one: Covered, spec: RouterSpec) -> list[Cell]:
    """What the kernel does of each stage; what the engine does beside it is said at the model."""
    routing = spec.routing
    choice = f"top {routing.top_k}" if routing.scoring else ""
    if choice and routing.groups:
        choice += f" of {routing.groups.topk_group}/{routing.groups.n_group} groups"
    scoring = (routing.scoring or "").replace("_", " ")
    texts = {
        "add": "add" if spec.residual else "",
        "norm": f"order {spec.norm.order}" if spec.norm else "",
        "gate": f"{spec.hidden_size:,} × {spec.num_experts}",
        "scoring": scoring,
        "choice": choice,
    }
    found = [
        Cell(text, "stage", "") if text else Cell("–", "none", f"{one.model}: {stage} is not in the kernel")
        for stage, text in texts.items()
    ]
    if one.missing:
        found[-1] = Cell(f"{found[-1].text} *", found[-1].kind, "; ".join(one.missing))
    return found
