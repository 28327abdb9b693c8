"""Options that several verbs have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import places

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def specs_option(command: Command) -> Command:
    return click.option(
        "--spec", "specs", type=PATH, multiple=True, help="A spec; may be repeated.  [default: all of specs/]"
    )(command)


def out_option(command: Command) -> Command:
    return click.option(
        "--out", type=PATH, metavar="DIR", help="The package becomes DIR/normgate.  [default: generated]"
    )(command)


def default_out() -> Path:
    return places.home() / "generated"


def json_option(keys: str) -> Callable[[Command], Command]:
    """--json: `keys` says what comes out, which stays so."""
    return click.option("--json", "as_json", is_flag=True, help=f"For programs, alone on stdout: {keys}")
