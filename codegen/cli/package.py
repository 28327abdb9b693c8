"""Verbs that make a package: the build, which is no verb at all, generate, check, hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from click.core import ParameterSource

from .. import naming, places, terminal
from ..errors import CheckFailed
from .options import PATH, Command, default_out, json_option, out_option, specs_option


def _all_option(command: Command) -> Command:
    return click.option(
        "--all", "every", is_flag=True, help="Those of specs/on_demand/ too, by default into build/all."
    )(command)


def _ops_option(command: Command) -> Command:
    return click.option(
        "--ops",
        default=naming.OPS,
        show_default=True,
        metavar="NAME",
        help="The operators become torch.ops.NAME; a copy to vendor needs a name of its own.",
    )(command)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@specs_option
@_all_option
@out_option
@_ops_option
@click.option("--sm", default="all", show_default=True, metavar="native|all|90,100", help="SM targets to compile for.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time.")
@click.option("--ptx-only", is_flag=True, help="No machine code: chips later than --sm compile the PTX for themselves.")
@click.option("--table", is_flag=True, help="Show what every function needs, and not only the most of each kernel.")
@json_option(
    "{library, sms, ptx_sms, compiled, seconds, rows: [{function, sm, registers, smem, spill, stack, source, "
    "object_bytes, seconds}]}, a row for each function and SM."
)
@click.pass_context
def build(
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
    from ..build import build_package

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


@click.command()
@specs_option
@_all_option
@out_option
@_ops_option
def generate(specs: tuple[Path, ...], every: bool, out: Path | None, ops: str) -> None:
    """Render the package, and compile nothing."""
    from .. import build as building

    building.generate(*_asked(specs, every, out), ops, terminal.console())


@click.command()
@specs_option
@out_option
@_ops_option
def check(specs: tuple[Path, ...], out: Path | None, ops: str) -> None:
    """Say whether the generated package is what the specs give; exit code 1 when it is not."""
    from .. import package

    out = out or default_out()
    found = package.check(specs or places.all_specs(), out, ops)
    if not found.fresh:
        folder = places.shown(out / places.PACKAGE)
        raise CheckFailed("\n".join([*found.lines(), f"{folder} is not what the specs give: python build.py generate"]))
    print(f"{places.shown(out / places.PACKAGE)} is fresh")


@click.command()
@click.option("--from", "built", type=PATH, metavar="DIR", help="What was built there.  [default: generated]")
@click.option("--out", type=PATH, metavar="DIR", help="The kernel's folder.  [default: build/hub]")
def hub(built: Path | None, out: Path | None) -> None:
    """Lay the compiled package out as a kernel that Hugging Face's `kernels` loads."""
    from .. import hub as layout

    out = out or places.home() / "build" / "hub"
    for variant in layout.write(built or default_out(), out):
        print(places.shown(out / "build" / variant))


def _asked(specs: tuple[Path, ...], every: bool, out: Path | None) -> tuple[tuple[Path, ...], Path]:
    """The specs asked for, and where their package goes."""
    if every and specs:
        raise click.UsageError("--all is every spec there is: leave --spec out")
    if every:
        return places.every_spec(), out or places.home() / "build" / "all"
    return specs or places.all_specs(), out or default_out()
