"""How far off each kernel was, and what was run to find out."""

from __future__ import annotations

from ..bench.agreement import ROUNDED_TOLERANCE, UNROUNDED_TOLERANCE
from ..bench.path_agreement import ROUNDED_TIE, UNROUNDED_TIE
from .charts import Dot, dots
from .facts import Facts, Kernel
from .kernels import by_kind
from .parts import Figure, Table, power
from .proofs import Numerics

_GATE_ERROR, _PATH_ERROR = "logits", "weights"
_HEADINGS = ("models", "worst error", "limit", "cases", "share of normed_x moved by a tie", "ties of experts")


def figures(facts: Facts) -> list[Figure]:
    """The worst error of each shipped kernel over all its variants and all records of tests/gpu."""
    found = []
    for title, kernels in by_kind(facts):
        what = _GATE_ERROR if title.startswith("Norm") else _PATH_ERROR
        rows, drawn, limits = [], [], set()
        for kernel in kernels:
            worst = _worst(facts, kernel, what)
            if worst is None:
                continue
            error, one = worst
            limit, models = _limit(kernel, what), ", ".join(kernel.models)
            differs = "-" if one.normed_x_differs is None else power(one.normed_x_differs)
            rows.append((models, power(error, 2), power(limit, 0), f"{one.cases:,}", differs, f"{one.ties:,}"))
            drawn.append(Dot(models, error * 1e6, "ours", f"{models}: worst error of {what} {error * 1e6:.2f}e-6"))
            limits.add(limit)
        if drawn:
            words = f"{title}: worst relative error of {what} against float64, over all variants"
            unit = f"worst relative error of {what}, × 1e-6"
            top = max(one.value for one in drawn) * 1.15
            # The contract is drawn where there is one for all, and near enough to leave the values apart.
            line, lowest = None, min(limits)
            if len(limits) == 1 and lowest * 1e6 < 4 * top:
                line, top = (lowest * 1e6, f"the contract: {power(lowest, 0)}"), max(top, lowest * 1.1e6)
            about = f"{what}; the tests allow {', '.join(power(limit, 0) for limit in sorted(limits))}"
            chart = dots([one.row for one in drawn], drawn, words, unit, (0, top), line)
            found.append(Figure(f"numerics-{what}", title, about, chart, Table(_HEADINGS, tuple(rows)), "marks"))
    return found


def _worst(facts: Facts, kernel: Kernel, what: str) -> tuple[float, Numerics] | None:
    """The largest error that a record of the shipped kernels has, and what else was seen in that run."""
    found = []
    for run in facts.tests.values():
        if run.of_shipped and (one := run.numerics().get(kernel.name)):
            error = one.logits_error if what == _GATE_ERROR else one.weight_error
            if error is not None:
                found.append((error, one))
    return max(found, key=lambda pair: pair[0], default=None)


def _limit(kernel: Kernel, what: str) -> float:
    """What tests/gpu allow."""
    problem = kernel.problem
    exact = problem.logits_from == "unrounded" and problem.logits_dtype == "float32"
    if what == _PATH_ERROR:
        return 10 * (UNROUNDED_TIE if exact else ROUNDED_TIE)
    return UNROUNDED_TOLERANCE if exact else ROUNDED_TOLERANCE


def runs(facts: Facts) -> Table:
    """What was run on a GPU, by record."""
    rows = []
    for name, run in facts.tests.items():
        of = run.outcomes
        failed = of.failed + of.error
        packages = ", ".join(run.packages)
        rows.append(
            (name, run.chip, packages, run.commit[:12], f"{of.passed} passed", f"{failed} failed, {of.skipped} skipped")
        )
    for name, sanitizer in facts.sanitizers.items():
        for tool, one in sanitizer.tools.items():
            what = f"{one.functions} functions, {one.launches:,} launches"
            rows.append(
                (name, sanitizer.chip, tool, sanitizer.commit[:12], what, f"{one.errors} errors, {one.left} left out")
            )
    return Table(("record", "chip", "of", "commit", "ran", "and"), tuple(rows), left=6)
