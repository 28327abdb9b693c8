"""Verbs that measure on a GPU, and show what was measured: bench, draw, report, tune."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.core import ParameterSource

from .. import places, terminal
from ..errors import BadInput, Problem
from ..spec import load_specs
from .options import PATH, default_out, json_option, out_option, specs_option

_BENCH_TOKENS = "1,2,3,4,5,7,8,9,12,16,17,24,32,33,48,64,96,128,192,256,512,1024,2048,4096,8192"
_UNROUNDED_TOKENS = "1,16,64,512,4096"
_PATH_TOKENS = "1,2,4,8,12,16,24,32,64,128,512,4096"


def _numbers(context: click.Context, parameter: click.Parameter, words: str | None) -> tuple[int, ...] | None:
    """A list of counts, as in 1,2,4."""
    if words is None:
        return None
    parts = [word.strip() for word in words.split(",")]
    if bad := [word for word in parts if not (word.isascii() and word.isdecimal() and 0 < int(word) <= 1 << 20)]:
        raise click.BadParameter(f"{bad[0]!r} given, whole numbers from 1 to 1048576 as in 1,2,4 would be right")
    return tuple(sorted({int(word) for word in parts}))


@click.command()
@specs_option
@out_option
@click.option("--tokens", callback=_numbers, default=_BENCH_TOKENS, show_default=True, metavar="T,T,...")
@click.option(
    "--unrounded-tokens",
    callback=_numbers,
    default=_UNROUNDED_TOKENS,
    show_default=True,
    metavar="T,T,...",
    help="Where torch_compiled_unrounded is timed, the slowest of all, if --tokens has them.",
)
@click.option(
    "--path-tokens",
    callback=_numbers,
    metavar="T,T,...",
    help=f"Where whole paths are timed.  [default: {_PATH_TOKENS}, or --tokens where that is given]",
)
@click.option(
    "--only",
    type=click.Choice(["gates", "paths"]),
    help="Norm and gate, or whole paths, with residual add and choice of experts.  [default: both]",
)
@click.option("--candidates", metavar="NAME,...", help="What is timed.  [default: everything]")
@click.option("--record", type=PATH, metavar="FILE", help="The JSON record.  [default: docs/measured/CHIP-bench.json]")
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="No point is begun later.",
)
@click.option("--resume", is_flag=True, help="Keep the points that the record has.")
@click.option(
    "--against",
    type=PATH,
    metavar="FILE",
    help="A record of the same chip: fail where normgate became slower than spread explains.",
)
@click.option("--sm", type=int, metavar="N", help="The SM target to build for.  [default: that of this GPU]")
@click.option("--build-only", is_flag=True, help="Build the benchmark, and run nothing: needs no GPU.")
@click.option("--no-build", is_flag=True, help="Run what an earlier --build-only built: needs no compilers.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time.")
@click.option("--show", type=PATH, metavar="FILE", help="Print the tables of a record and time nothing: needs no GPU.")
@click.option("--table", is_flag=True, help="Print the times of every candidate, and not only of the best peer.")
@json_option(
    "the record: {machine, source, protocol, rates, models: {model: {points: {tokens: "
    "{candidates: {name: {median_us, spread_us, ...}}, left_out}}, host, path, ...}}}."
)
@click.pass_context
def bench(
    context: click.Context,
    specs: tuple[Path, ...],
    out: Path | None,
    tokens: tuple[int, ...],
    path_tokens: tuple[int, ...] | None,
    only: str | None,
    unrounded_tokens: tuple[int, ...],
    candidates: str | None,
    record: Path | None,
    budget: float,
    resume: bool,
    against: Path | None,
    sm: int | None,
    build_only: bool,
    no_build: bool,
    jobs: int | None,
    show: Path | None,
    table: bool,
    as_json: bool,
) -> None:
    """Time the compiled package against its peers on this machine's GPU.

    The package must have been compiled before.
    """
    if show is not None:
        from ..bench import record as records
        from ..bench import shown

        if as_json:
            print(records.text(records.read(show)), end="")
        else:
            shown.show(records.read(show), terminal.console(), every=table)
        return
    if build_only and no_build:
        raise click.UsageError("--build-only and --no-build: one of them")
    if build_only and sm is None:
        raise click.UsageError("--build-only needs --sm N")
    from ..bench import verb

    if path_tokens is None:
        given = context.get_parameter_source("tokens") == ParameterSource.COMMANDLINE
        path_tokens = tokens if given else tuple(map(int, _PATH_TOKENS.split(",")))
    verb.bench(
        load_specs(specs or places.all_specs()),
        () if only == "paths" else tokens,
        out=out or default_out(),
        path_tokens=() if only == "gates" else path_tokens,
        unrounded_tokens=unrounded_tokens,
        candidates=None if candidates is None else tuple(candidates.split(",")),
        record_file=record,
        budget_s=budget,
        resume=resume,
        against_file=against,
        sm=sm,
        build_only=build_only,
        no_build=no_build,
        jobs=jobs,
        every=table,
        as_json=as_json,
        console=terminal.console(stderr=as_json),
    )


@click.command()
@click.argument("record", type=PATH, required=False)
@click.option("--page", type=PATH, metavar="FILE", help="The Markdown page.  [default: docs/performance.md]")
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing: fail where a peer is faster than normgate, or a count costs more than the next.",
)
def draw(record: Path | None, page: Path | None, check: bool) -> None:
    """Write the page of the RECORD of a `bench`, and its picture under measured/ beside it: needs no GPU.

    Without RECORD it is the one docs/measured/*-bench.json. Whole paths come from the *-paths.json beside it, if there
    is one.
    """
    docs = places.home() / "docs"
    record = record or _only(docs / "measured", "*-bench.json")
    paths: Path | None = record.with_name(record.name.removesuffix("-bench.json") + "-paths.json")
    if paths == record or not (paths and paths.is_file()):
        paths = None
    if check:
        from ..bench.check import require_fastest
        from ..bench.record import read

        require_fastest(*map(read, filter(None, (record, paths))))
        print(f"{places.shown(record)}: no peer is faster than normgate, no count costs more than the next")
        return
    from ..bench import page as pages

    page = page or docs / "performance.md"
    pages.write(record, page, paths)
    print(f"{places.shown(page)} written")


@click.command()
@click.option("--out", type=PATH, metavar="FILE", help="The HTML file.  [default: build/report.html]")
@click.option("--records", type=PATH, metavar="DIR", help="Where recorded runs lie.  [default: docs/measured]")
@click.option("--from", "built", type=PATH, metavar="DIR", help="What was built there.  [default: generated]")
@click.option("--against", type=PATH, metavar="FILE", help="An older record, or report: show what changed since.")
@click.option("--screenshot", type=PATH, metavar="FILE", help="A PNG of its first screens too: needs Chromium.")
def report(
    out: Path | None, records: Path | None, built: Path | None, against: Path | None, screenshot: Path | None
) -> None:
    """Write one HTML page of what was recorded, planned and compiled: needs no GPU and no network."""
    from ..report import page
    from ..report import screenshot as pictures

    out = out or places.home() / "build" / "report.html"
    found = page.write(out, records or places.home() / "docs" / "measured", built or default_out(), against)
    for one in found.missing:
        print(f"not in the report: {one.what}; {one.command}", file=sys.stderr)
    print(f"{places.shown(out)} written")
    if screenshot:
        pictures.take(out, screenshot)
        print(f"{places.shown(screenshot)} written")


@click.command()
@specs_option
@out_option
@click.option(
    "--tokens", callback=_numbers, metavar="T,T,...", help="Counts to measure.  [default: the plan's boundaries]"
)
@click.option(
    "--candidates-per-count",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    metavar="N",
    help="Best by the cost model at each count, and some of each family.",
)
@click.option("--tuned-dir", type=PATH, metavar="DIR", help="Where the tables are written.  [default: specs/tuned]")
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="No count is begun later; run again for the rest.",
)
@click.option("--sm", type=int, metavar="N", help="The SM target to tune for.  [default: that of this GPU]")
@click.option(
    "--what",
    type=click.Choice(["all", "gates", "paths"]),
    default="all",
    show_default=True,
    help="Kernels of gates with their norms, or of whole paths, which go around gates as their tables have them.",
)
@click.option("--build-only", is_flag=True, help="Build the candidates, and run nothing: needs no GPU.")
@click.option("--no-build", is_flag=True, help="Run what an earlier --build-only built: needs no compilers.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time.")
def tune(
    specs: tuple[Path, ...],
    out: Path | None,
    tokens: tuple[int, ...] | None,
    candidates_per_count: int,
    tuned_dir: Path | None,
    budget: float,
    sm: int | None,
    what: str,
    build_only: bool,
    no_build: bool,
    jobs: int | None,
) -> None:
    """Measure which variant serves which token counts best on this machine's GPU, for the plan to follow.

    Counts that a table of the same chip, commit and protocol has already are kept.
    """
    if build_only and no_build:
        raise click.UsageError("--build-only and --no-build: one of them")
    if build_only and sm is None:
        raise click.UsageError("--build-only needs --sm N")
    from .. import tune as verb

    verb.tune(
        load_specs(specs or places.all_specs()),
        tokens or verb.ANCHORS,
        out=out or default_out(),
        tuned_dir=tuned_dir or places.home() / "specs" / "tuned",
        number=candidates_per_count,
        budget_s=budget,
        sm=sm,
        what=what,
        build_only=build_only,
        no_build=no_build,
        jobs=jobs,
        console=terminal.console(),
    )


def _only(folder: Path, pattern: str) -> Path:
    """The one file that fits."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        many = ", ".join(path.name for path in found) or "none"
        raise BadInput([Problem(places.shown(folder), None, f"{many} of {pattern}: name the record")])
    return found[0]
