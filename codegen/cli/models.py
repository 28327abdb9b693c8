"""Verbs that answer for a model: add, coverage, plan, explain."""

from __future__ import annotations

import difflib
import json
import shlex
from pathlib import Path

import click

from .. import hf, naming, places, terminal
from ..errors import BadInput, CheckFailed, NormgateError, Problem
from ..spec import RouterSpec, dump_spec, load_spec, load_specs
from ..strict_yaml import shown_key
from .options import PATH, Command, json_option


def _answers(command: Command) -> Command:
    """A flag for each thing that a config.json may leave open; codegen/hf checks the words."""
    for flag, answer in reversed(hf.ANSWERS.items()):
        command = click.option(f"--{flag}", metavar=answer.metavar, help=answer.help)(command)
    return command


@click.command()
@click.argument("config", type=PATH, metavar="CONFIG")
@click.option("--name", help="The spec's name.  [default: made from _name_or_path]")
@click.option("--out", type=PATH, metavar="DIR", help="Where the spec is written.  [default: specs]")
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
    text = dump_spec(spec, hf.comment_for(known, spec))
    path = (out or places.home() / "specs") / f"{spec.name}.yaml"
    _require_free(path)
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
    from ..output import replace_whole

    replace_whole(path, text.encode())
    if unread := hf.unread_keys(known):
        print(f"not read: {', '.join(map(shown_key, unread))}; where one says something of the router, edit the spec")
    elsewhere = "" if _is_home(path.parent) else f" --spec {shlex.quote(str(path))} --out DIR"
    print(f"{places.shown(path)} written; next: python build.py{elsewhere}")


def _is_home(folder: Path) -> bool:
    """Whether `folder` is the one whose specs `python build.py` builds."""
    return folder.resolve() == (places.home() / "specs").resolve()


def _require_free(path: Path) -> None:
    """Raises BadInput where `path` would give a spec of the specs folder the name of another one there."""
    for other in places.every_spec():
        if _is_home(path.parent) and other.stem == path.stem and other.resolve() != path.resolve():
            file = places.shown(other)
            build = f"python build.py --spec {file} --out DIR builds that one, --name NAME writes another"
            raise BadInput([Problem(file, None, f"is a spec of the name {path.stem} already; {build}")])


@click.command()
@json_option("[{model, path, kernel, missing: [reason], sms: {sm: run, built, planned or none}}].")
@click.option("--write", is_flag=True, help="Write docs/coverage.md.")
@click.option("--check", is_flag=True, help="Exit code 1 where docs/coverage.md is not what --write would write.")
def coverage(as_json: bool, write: bool, check: bool) -> None:
    """Say which models' router paths are covered, on which chips, and what is missing."""
    from .. import coverage as found
    from ..output import replace_whole

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


@click.command()
@click.argument("spec_or_model", metavar="SPEC_OR_MODEL")
@click.option("--sm", type=int, metavar="N", help="For the chip sm_N, in full.  [default: every group of SM targets]")
@json_option(
    "{kernels: [{name, models, quantities, groups: [{sm_targets, ranges: [{first_token, last_token "
    "(null: no end), variant, why, quantities}]}]}]}; a quantity is {name, formula, value, meaning}."
)
def plan(spec_or_model: str, sm: int | None, as_json: bool) -> None:
    """Print what follows from a spec: its quantities, by name, formula, value and meaning, and the variants that serve
    its token counts; with --sm the quantities of each variant too.
    """
    from .. import derived, spills, tuned
    from ..plan import make_plan

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


@click.command()
@click.option("--model", required=True, help="A spec's name, or a kernel's.")
@click.option("--tokens", type=click.IntRange(min=0), required=True, metavar="T")
@click.option(
    "--sm",
    type=click.IntRange(min=10),
    metavar="N",
    help="90 for compute capability 9.0.  [default: this machine's GPU]",
)
@json_option(
    "[{model, kernel, num_tokens, sm, sm_target, sm_group, variant, function, first_token, last_token, why, "
    "rejected: [{variant, why}]}]: the gate with its norm, then the whole path, as normgate.explain has them."
)
def explain(model: str, tokens: int, sm: int | None, as_json: bool) -> None:
    """Say which variant serves T tokens of a model on a chip, why, and what was rejected."""
    from .. import spills, tuned
    from ..explain import as_data, explained
    from ..plan import make_plan
    from ..toolkit import native_sms

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


def _sharing(model: str) -> list[RouterSpec]:
    """The specs that share a kernel with `model`, which comes first; `model` may be a kernel's name."""
    from ..problem import Problem as Path_

    specs = load_specs(places.every_spec())
    problems = {spec.name: Path_.of(spec).gate_part for spec in specs}
    by_kernel = {naming.kernel_name(of): spec.name for spec in specs for of in (problems[spec.name], Path_.of(spec))}
    name = by_kernel.get(model, model)
    if name not in problems:
        near = difflib.get_close_matches(model, problems, n=3) or list(problems)
        raise BadInput([Problem(None, None, f"unknown model {model!r}, one of {', '.join(near)} would be right")])
    found = [spec for spec in specs if problems[spec.name] == problems[name]]
    return sorted(found, key=lambda spec: spec.name != name)
