"""The verbs of `python build.py`. Each says what it did; what is wrong goes to stderr, never as a traceback."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from . import hf, naming, places, terminal
from .errors import BadInput, CheckFailed, NormgateError, Problem
from .spec import RouterSpec, dump_spec, load_spec, load_specs

# Verbs import what they need: `add` needs no templates, and a build with nothing to do should take no time.

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)
_BENCH_TOKENS = "1,2,3,4,5,7,8,9,12,16,17,24,32,33,48,64,96,128,192,256,512,1024,2048,4096,8192"
_UNROUNDED_TOKENS = "1,16,64,512,4096"
_PATH_TOKENS = "1,2,4,8,12,16,24,32,64,128,512,4096"


def main(arguments: Sequence[str], program: str) -> int:
    """Run one command line; the exit code: 0 done, 1 a check did not hold, 2 bad input, 130 interrupted."""
    try:
        code = int(cli.main(list(arguments), prog_name=program, standalone_mode=False) or 0)
        sys.stdout.flush()
        return code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except NormgateError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # the reader has seen enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _specs_option(command: _Command) -> _Command:
    return click.option(
        "--spec", "specs", type=_PATH, multiple=True, help="A spec; may be repeated.  [default: all of specs/]"
    )(command)


def _json_option(keys: str) -> Callable[[_Command], _Command]:
    """--json: `keys` says what comes out, which stays so."""
    return click.option("--json", "as_json", is_flag=True, help=f"For programs, alone on stdout: {keys}")


def _all_option(command: _Command) -> _Command:
    return click.option(
        "--all", "every", is_flag=True, help="Those of specs/on_demand/ too, by default into build/all."
    )(command)


def _out_option(command: _Command) -> _Command:
    return click.option(
        "--out", type=_PATH, metavar="DIR", help="The package becomes DIR/normgate.  [default: generated]"
    )(command)


def _ops_option(command: _Command) -> _Command:
    return click.option(
        "--ops",
        default=naming.OPS,
        show_default=True,
        metavar="NAME",
        help="The operators become torch.ops.NAME; a copy to vendor needs a name of its own.",
    )(command)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_specs_option
@_all_option
@_out_option
@_ops_option
@click.option("--sm", default="all", show_default=True, metavar="native|all|90,100", help="SM targets to compile for.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time.")
@click.option("--ptx-only", is_flag=True, help="No machine code: chips later than --sm compile the PTX for themselves.")
@click.option("--table", is_flag=True, help="Show what every function needs, and not only the most of each kernel.")
@_json_option(
    "{library, sms, ptx_sms, compiled, seconds, rows: [{function, sm, registers, smem, spill, stack, source, "
    "object_bytes, seconds}]}, a row for each function and SM."
)
@click.pass_context
def cli(
    context: click.Context,
    specs: tuple[Path, ...],
    every: bool,
    out: Path | None,
    ops: str,
    sm: str,
    jobs: int | None,
    ptx_only: bool,
    table: bool,
    as_json: bool,
) -> None:
    """Generate the normgate package from specs and compile it. Without a verb: both."""
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE]
        if given:
            option = {"every": "all", "specs": "spec", "as_json": "json"}.get(given[0], given[0])
            raise click.UsageError(f"options go behind the verb: {context.invoked_subcommand} --{option}")
        return
    from .build import build_package

    console = terminal.console(stderr=as_json)
    specs, out = _asked(specs, every, out)
    report = build_package(specs, out, ops=ops, sm=sm, jobs=jobs, machine_code=not ptx_only, console=console)
    if report.compiled:
        for warning in report.warnings:
            print(warning, file=sys.stderr)
    if as_json:
        print(json.dumps({"library": places.shown(report.library), **report.data()}, indent=1))
        return
    if report.compiled or table:
        print(report.table() if table else report.summary())
    steps = f"{report.compiled} steps" if report.compiled else "nothing to compile"
    held = [f"PTX of sm_{sm}" for sm in report.ptx_sms] if ptx_only else [f"sm_{sm}" for sm in report.sms]
    print(f"{places.shown(report.library)}: {', '.join(held)}; {steps}, {report.seconds:.1f} s")


@cli.command()
@_specs_option
@_all_option
@_out_option
@_ops_option
def generate(specs: tuple[Path, ...], every: bool, out: Path | None, ops: str) -> None:
    """Render the package, and compile nothing."""
    from . import build

    build.generate(*_asked(specs, every, out), ops, terminal.console())


@cli.command()
@_specs_option
@_out_option
@_ops_option
def check(specs: tuple[Path, ...], out: Path | None, ops: str) -> None:
    """Say whether the generated package is what the specs give; exit code 1 when it is not."""
    from . import package

    out = out or _default_out()
    found = package.check(specs or places.all_specs(), out, ops)
    if not found.fresh:
        folder = places.shown(out / places.PACKAGE)
        raise CheckFailed("\n".join([*found.lines(), f"{folder} is not what the specs give: python build.py generate"]))
    print(f"{places.shown(out / places.PACKAGE)} is fresh")


@cli.command()
@click.option("--from", "built", type=_PATH, metavar="DIR", help="What was built there.  [default: generated]")
@click.option("--out", type=_PATH, metavar="DIR", help="The kernel's folder.  [default: build/hub]")
def hub(built: Path | None, out: Path | None) -> None:
    """Lay the compiled package out as a kernel that Hugging Face's `kernels` loads."""
    from . import hub as layout

    out = out or places.home() / "build" / "hub"
    for variant in layout.write(built or _default_out(), out):
        print(places.shown(out / "build" / variant))


def _answers(command: _Command) -> _Command:
    """A flag for each thing that a config.json may leave open; codegen/hf checks the words."""
    for flag, answer in reversed(hf.ANSWERS.items()):
        command = click.option(f"--{flag}", metavar=answer.metavar, help=answer.help)(command)
    return command


@cli.command()
@click.argument("config", type=_PATH, metavar="CONFIG")
@click.option("--name", help="The spec's name.  [default: made from _name_or_path]")
@click.option("--out", type=_PATH, metavar="DIR", help="Where the spec is written.  [default: specs]")
@click.option("--force", is_flag=True, help="Replace a spec of that name which says something else.")
@click.option("--source", default="said by a flag of add", metavar="TEXT", help="Where the answers come from.")
@_answers
def add(config: Path, name: str | None, out: Path | None, force: bool, source: str, **answers: str | None) -> None:
    """Write a spec from CONFIG, a model's Hugging Face config.json, or the checkpoint's folder with it, whose
    safetensors headers then say what the config does not.
    """
    given = {key.replace("_", "-"): word for key, word in answers.items() if word is not None}
    checkpoint = config if config.is_dir() else None
    file = config / "config.json" if checkpoint else config
    known = hf.load_config(file)
    spec = hf.spec_from_config(known, name=name, answers=given, file=str(file), source=source, checkpoint=checkpoint)
    text = dump_spec(spec, hf.comment_for(known))
    path = (out or places.home() / "specs") / f"{spec.name}.yaml"
    if path.exists() and not force:
        if path.read_bytes() != text.encode() and load_spec(path) != spec:
            raise BadInput(
                [
                    Problem(
                        places.shown(path),
                        None,
                        "is there and says something else; --force replaces it, --name NAME writes another",
                    )
                ]
            )
        print(f"{places.shown(path)} says so already")
        return
    from .output import replace_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, text.encode())
    except OSError as error:
        raise BadInput([Problem(places.shown(path), None, f"cannot be written: {error.strerror}")]) from None
    print(f"{places.shown(path)} written; next: python build.py")


@cli.command()
@_json_option("[{model, path, kernel, missing: [reason], sms: {sm: run, built, planned or none}}].")
@click.option("--write", is_flag=True, help="Write docs/coverage.md.")
@click.option("--check", is_flag=True, help="Exit code 1 where docs/coverage.md is not what --write would write.")
def coverage(as_json: bool, write: bool, check: bool) -> None:
    """Say which models' router paths are covered, on which chips, and what is missing."""
    from . import coverage as found
    from .output import replace_whole

    reference = load_specs(places.all_specs())
    records = places.home() / "docs" / "measured"
    generated = frozenset(spec.name for spec in reference)
    models = found.covered(load_specs(places.every_spec()), generated, found.ran(records), found.compiled(records))
    path, text = places.home() / "docs" / "coverage.md", found.page(models)
    if write:
        replace_whole(path, text.encode())
        print(f"{places.shown(path)} written: {found.summary(models)}")
    elif check:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            mend = "python build.py coverage --write"
            raise CheckFailed(f"{places.shown(path)} is not what the specs and records give: {mend}")
        print(f"{places.shown(path)} is fresh")
    elif as_json:
        print(json.dumps(found.data(models), indent=1))
    else:
        terminal.show(terminal.console(), *found.table(models))


@cli.command()
@click.argument("spec_or_model", metavar="SPEC_OR_MODEL")
@click.option("--sm", type=int, metavar="N", help="For the chip sm_N, in full.  [default: every group of SM targets]")
@_json_option(
    "{kernels: [{name, models, quantities, groups: [{sm_targets, ranges: [{first_token, last_token "
    "(null: no end), variant, why, quantities}]}]}]}; a quantity is {name, formula, value, meaning}."
)
def plan(spec_or_model: str, sm: int | None, as_json: bool) -> None:
    """Print what follows from a spec: its quantities, by name, formula, value and meaning, and the variants that serve
    its token counts; with --sm the quantities of each variant too.
    """
    from . import derived, spills, tuned
    from .plan import make_plan

    path = Path(spec_or_model)
    if path.suffix == ".yaml" or path.is_file():
        spec = load_spec(path)
        sharing = [spec]
    else:
        sharing = _sharing(spec_or_model)
        spec = sharing[0]
    console, kernels = terminal.console(), []
    tables = tuned.load(sharing, places.tuned_folder())
    for kernel in make_plan(sharing, tables, spills.read(places.tuned_folder())).all_kernels:
        group = None if sm is None else kernel.group_of(sm)
        if sm is not None and group is None:
            targets = ", ".join(str(target) for each in kernel.groups for target in each.sm_targets)
            raise BadInput([Problem(None, None, f"--sm {sm}: no target of {spec.name} ({targets}) runs there")])
        groups = kernel.groups if group is None else (group,)
        if as_json:
            kernels.append(derived.data(kernel, groups, sm))
            continue
        for title, table in derived.tables(kernel, groups, sm):
            terminal.title(console, title)
            terminal.show(console, table, "")
    if as_json:
        print(json.dumps({"kernels": kernels}, indent=1))
    elif sm is None:
        terminal.show(console, "What each variant makes of it on a chip: --sm N")


@cli.command()
@click.option("--model", required=True, help="A spec's name, or a kernel's.")
@click.option("--tokens", type=click.IntRange(min=0), required=True, metavar="T")
@click.option(
    "--sm",
    type=click.IntRange(min=10),
    metavar="N",
    help="90 for compute capability 9.0.  [default: this machine's GPU]",
)
@_json_option(
    "[{model, kernel, num_tokens, sm, sm_target, sm_group, variant, function, first_token, last_token, why, "
    "rejected: [{variant, why}]}]: the gate with its norm, then the whole path, as normgate.explain has them."
)
def explain(model: str, tokens: int, sm: int | None, as_json: bool) -> None:
    """Say which variant serves T tokens of a model on a chip, why, and what was rejected."""
    from . import spills, tuned
    from .explain import as_data, explained
    from .plan import make_plan
    from .toolkit import native_sms

    sharing = _sharing(model)
    if sm is None:
        try:
            sm = native_sms()[0]
        except NormgateError:
            raise BadInput(
                [Problem(None, None, "--sm: not given, and this machine has no GPU to ask; --sm 90 would be right")]
            ) from None
    tables = tuned.load(sharing, places.tuned_folder())
    found = explained(make_plan(sharing, tables, spills.read(places.tuned_folder())), model, tokens, sm)
    print(json.dumps([as_data(one) for one in found], indent=1) if as_json else "\n\n".join(map(str, found)))


def _numbers(context: click.Context, parameter: click.Parameter, words: str | None) -> tuple[int, ...] | None:
    """A list of counts, as in 1,2,4."""
    if words is None:
        return None
    parts = [word.strip() for word in words.split(",")]
    if bad := [word for word in parts if not (word.isascii() and word.isdecimal() and 0 < int(word) <= 1 << 20)]:
        raise click.BadParameter(f"{bad[0]!r} given, whole numbers from 1 to 1048576 as in 1,2,4 would be right")
    return tuple(sorted({int(word) for word in parts}))


@cli.command()
@_specs_option
@_out_option
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
@click.option("--record", type=_PATH, metavar="FILE", help="The JSON record.  [default: docs/measured/CHIP-bench.json]")
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
    type=_PATH,
    metavar="FILE",
    help="A record of the same chip: fail where normgate became slower than spread explains.",
)
@click.option("--sm", type=int, metavar="N", help="The SM target to build for.  [default: that of this GPU]")
@click.option("--build-only", is_flag=True, help="Build the benchmark, and run nothing: needs no GPU.")
@click.option("--no-build", is_flag=True, help="Run what an earlier --build-only built: needs no compilers.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time.")
@click.option("--show", type=_PATH, metavar="FILE", help="Print the tables of a record and time nothing: needs no GPU.")
@click.option("--table", is_flag=True, help="Print the times of every candidate, and not only of the best peer.")
@_json_option(
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
        from .bench import record as records
        from .bench import shown

        if as_json:
            print(records.text(records.read(show)), end="")
        else:
            shown.show(records.read(show), terminal.console(), every=table)
        return
    if build_only and no_build:
        raise click.UsageError("--build-only and --no-build: one of them")
    if build_only and sm is None:
        raise click.UsageError("--build-only needs --sm N")
    from .bench import verb

    if path_tokens is None:
        given = context.get_parameter_source("tokens") == ParameterSource.COMMANDLINE
        path_tokens = tokens if given else tuple(map(int, _PATH_TOKENS.split(",")))
    verb.bench(
        load_specs(specs or places.all_specs()),
        () if only == "paths" else tokens,
        out=out or _default_out(),
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


@cli.command()
@click.argument("record", type=_PATH, required=False)
@click.option("--page", type=_PATH, metavar="FILE", help="The Markdown page.  [default: docs/performance.md]")
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
        from .bench.check import require_fastest
        from .bench.record import read

        require_fastest(*map(read, filter(None, (record, paths))))
        print(f"{places.shown(record)}: no peer is faster than normgate, no count costs more than the next")
        return
    from .bench import page as pages

    page = page or docs / "performance.md"
    pages.write(record, page, paths)
    print(f"{places.shown(page)} written")


@cli.command()
@click.option("--out", type=_PATH, metavar="FILE", help="The HTML file.  [default: build/report.html]")
@click.option("--records", type=_PATH, metavar="DIR", help="Where recorded runs lie.  [default: docs/measured]")
@click.option("--from", "built", type=_PATH, metavar="DIR", help="What was built there.  [default: generated]")
@click.option("--against", type=_PATH, metavar="FILE", help="An older record, or report: show what changed since.")
@click.option("--screenshot", type=_PATH, metavar="FILE", help="A PNG of its first screens too: needs Chromium.")
def report(
    out: Path | None, records: Path | None, built: Path | None, against: Path | None, screenshot: Path | None
) -> None:
    """Write one HTML page of what was recorded, planned and compiled: needs no GPU and no network."""
    from .report import page
    from .report import screenshot as pictures

    out = out or places.home() / "build" / "report.html"
    found = page.write(out, records or places.home() / "docs" / "measured", built or _default_out(), against)
    for one in found.missing:
        print(f"not in the report: {one.what}; {one.command}", file=sys.stderr)
    print(f"{places.shown(out)} written")
    if screenshot:
        pictures.take(out, screenshot)
        print(f"{places.shown(screenshot)} written")


@cli.command()
@_specs_option
@_out_option
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
@click.option("--tuned-dir", type=_PATH, metavar="DIR", help="Where the tables are written.  [default: specs/tuned]")
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
    from . import tune as verb

    verb.tune(
        load_specs(specs or places.all_specs()),
        tokens or verb.ANCHORS,
        out=out or _default_out(),
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


def _asked(specs: tuple[Path, ...], every: bool, out: Path | None) -> tuple[tuple[Path, ...], Path]:
    """The specs asked for, and where their package goes."""
    if every and specs:
        raise click.UsageError("--all is every spec there is: leave --spec out")
    if every:
        return places.every_spec(), out or places.home() / "build" / "all"
    return specs or places.all_specs(), out or _default_out()


def _sharing(model: str) -> list[RouterSpec]:
    """The specs that share a kernel with `model`, which comes first; `model` may be a kernel's name."""
    from .problem import Problem as Path_

    specs = load_specs(places.every_spec())
    problems = {spec.name: Path_.of(spec).gate_part for spec in specs}
    by_kernel = {naming.kernel_name(of): spec.name for spec in specs for of in (problems[spec.name], Path_.of(spec))}
    name = by_kernel.get(model, model)
    if name not in problems:
        near = difflib.get_close_matches(model, problems, n=3) or list(problems)
        raise BadInput([Problem(None, None, f"unknown model {model!r}, one of {', '.join(near)} would be right")])
    found = [spec for spec in specs if problems[spec.name] == problems[name]]
    return sorted(found, key=lambda spec: spec.name != name)


def _only(folder: Path, pattern: str) -> Path:
    """The one file that fits."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        many = ", ".join(path.name for path in found) or "none"
        raise BadInput([Problem(places.shown(folder), None, f"{many} of {pattern}: name the record")])
    return found[0]


def _default_out() -> Path:
    return places.home() / "generated"
