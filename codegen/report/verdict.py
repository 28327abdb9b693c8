"""What the records say first: how many times a peer takes, and where normgate is not the fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..bench import check, tables
from ..bench.page import FEW_TOKENS
from .charts import in_tokens
from .facts import Chip
from .latency import paths
from .parts import Highlight, Table


@dataclass(frozen=True)
class Behind:
    """Where normgate is not the fastest. points: at how many; faster: what is; by: how much longer normgate takes;
    starts: the first counts, each with its models.
    """

    kind: str
    points: int
    faster: str
    by: str
    starts: tuple[tuple[str, str], ...]
    table: Table


def highlights(chip: Chip) -> Iterator[Highlight]:
    """What the records say first."""
    few = f"up to {FEW_TOKENS} tokens"
    if chip.gates:
        models = [model for model in chip.gates.models.values() if model.points]
        ratios = [
            ratio
            for model in models
            for tokens, ratio in tables.quotients(tables.best_peers(model), tables.medians(model, "ours")).items()
            if tokens <= FEW_TOKENS
        ]
        if mean := tables.geometric_mean(ratios):
            detail = f"geometric mean over {len(models)} models, {min(ratios):.1f} to {max(ratios):.1f}"
            yield Highlight(f"{mean:.1f}×", f"as fast as the best peer, norm and gate {few}", detail, "latency")
    whole = [path for _, path in paths(chip.paths)]
    for peer, says in (
        ("torch_compiled", "as fast as compiled torch"),
        ("one_by_one", "as fast as a launch for each stage"),
    ):
        ratios = [
            ratio
            for path in whole
            for tokens, ratio in tables.ratios(path, peer, "ours").items()
            if tokens <= FEW_TOKENS
        ]
        if mean := tables.geometric_mean(ratios):
            detail = f"geometric mean over {len(whole)} models, {min(ratios):.1f} to {max(ratios):.1f}"
            if peer == "one_by_one":
                detail = f"of our own kernels, {min(ratios):.1f} to {max(ratios):.1f}"
            yield Highlight(f"{mean:.1f}×", f"{says}, whole path {few}", detail, "paths")
    if points := measured_points(chip):
        detail = f"{points - slower_points(chip)} of {points} points, to {_most_tokens(chip):,} tokens"
        share = 1 - slower_points(chip) / points
        yield Highlight(f"{share:.0%}", "of what was measured: nothing else is faster", detail, f"behind-{chip.slug}")


def behind(chip: Chip) -> list[Behind]:
    """Where a peer takes less time, by more than the spreads of both: one for each record that has models."""
    found = []
    for kind, record in (("Norm and gate", chip.gates), ("The whole path", chip.paths)):
        if record is None or not record.models:
            continue
        findings = check.faster_peers(record)
        of_model = {
            name: [one for one in findings if one.model in (name, f"{name}, whole path")] for name in record.models
        }
        first = {name: min(one.num_tokens for one in ones) for name, ones in of_model.items() if ones}
        starts = [
            (f"first at {in_tokens(count)}", ", ".join(name for name in first if first[name] == count))
            for count in sorted(set(first.values()))
        ]
        never = ", ".join(name for name, ones in of_model.items() if not ones)
        longer = [one.ours_us / one.faster_us - 1 for one in findings]
        by = f"{min(longer):.0%} to {max(longer):.0%}" if longer else ""
        faster = " and ".join(dict.fromkeys(one.faster for one in findings))
        points = len({(one.model, one.num_tokens) for one in findings})
        found.append(
            Behind(kind, points, faster, by, (*starts, *([("never", never)] if never else [])), _behind_table(findings))
        )
    return found


def _behind_table(findings: Sequence[check.Finding]) -> Table:
    rows = tuple(
        (
            one.model.removesuffix(", whole path"),
            one.faster,
            f"{one.num_tokens:,}",
            f"{one.ours_us:.2f}",
            f"{one.faster_us:.2f}",
            f"{one.ours_us / one.faster_us - 1:.0%}",
        )
        for one in findings
    )
    return Table(("model", "faster there", "tokens", "normgate, µs", "it, µs", "longer by"), rows, left=2)


def measured_points(chip: Chip) -> int:
    """How many points were measured at which something could have been faster."""
    gates = chip.gates.models.values() if chip.gates else ()
    counts = sum(bool(tables.peers(model, tokens)) for model in gates for tokens in model.points)
    return counts + sum(
        bool(tables.path_peers(path, tokens)) for _, path in paths(chip.paths) for tokens in path.points
    )


def _most_tokens(chip: Chip) -> int:
    gates = [count for model in (chip.gates.models.values() if chip.gates else ()) for count in model.points]
    return max([*gates, *(count for _, path in paths(chip.paths) for count in path.points)])


def slower_points(chip: Chip) -> int:
    """At how many of them something was."""
    return len({(one.model, one.num_tokens) for record in chip.records for one in check.faster_peers(record)})
