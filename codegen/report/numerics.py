"""How far off each kernel was, and what was run to find out."""

from __future__ import annotations

from ..bench.agreement import UNROUNDED_TOLERANCE
from ..bench.path_agreement import UNROUNDED_TIE
from .charts import Dot, dots
from .facts import Facts
from .kernels import by_kind
from .parts import Figure, Table, power


def figures(facts: Facts) -> list[Figure]:
    """The worst error of each shipped kernel over all its variants, by the newest record of tests/gpu that has it."""
    worst = {name: one for run in facts.tests.values() if run.of_shipped for name, one in run.numerics().items()}
    found = []
    for title, kernels in by_kind(facts):
        is_gate = title.startswith("Norm")
        what = "logits" if is_gate else "weights"
        limit = UNROUNDED_TOLERANCE if is_gate else 10 * UNROUNDED_TIE
        rows, drawn = [], []
        for kernel in kernels:
            one = worst.get(kernel.name)
            if one is None:
                continue
            error = one.logits_error if is_gate else one.weight_error
            if error is None:
                continue
            models = ", ".join(kernel.models)
            differs = "-" if one.normed_x_differs is None else power(one.normed_x_differs)
            rows.append((models, power(error, 2), power(limit, 0), f"{one.cases:,}", differs, f"{one.ties:,}"))
            drawn.append(Dot(models, error * 1e6, "ours", f"{models}: worst error of {what} {error * 1e6:.2f}e-6"))
        if drawn:
            most = max(max(one.value for one in drawn) * 1.15, limit * 1.1e6 if is_gate else 0)
            words = f"{title}: worst relative error of {what} against float64, over all variants"
            shown = (limit * 1e6, f"the contract: {power(limit, 0)}") if limit * 1e6 < most else None
            chart = dots(
                [one.row for one in drawn], drawn, words, f"worst relative error of {what}, × 1e-6", (0, most), shown
            )
            about = f"{what}; the tests' limit is {power(limit, 0)}"
            headings = (
                "models",
                "worst error",
                "limit",
                "cases",
                "share of normed_x moved by a tie",
                "ties of experts",
            )
            table = Table(headings, tuple(rows))
            found.append(Figure(f"numerics-{what}", title, about, chart, table, "marks"))
    return found


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
