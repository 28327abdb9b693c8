"""The verbs of `python build.py`. Each says what it did; what is wrong goes to stderr, never as a traceback.

Verbs import what they need: `add` needs no templates, and a build with nothing to do should take no time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from ..errors import NormgateError
from .measure import bench, draw, report, tune
from .models import add, coverage, explain, plan
from .package import build, check, generate, hub

for verb in (generate, check, hub, add, coverage, plan, explain, bench, draw, report, tune):
    build.add_command(verb)


def main(arguments: Sequence[str], program: str) -> int:
    """Run one command line; the exit code: 0 done, 1 a check did not hold, 2 bad input, 130 interrupted."""
    try:
        code = int(build.main(list(arguments), prog_name=program, standalone_mode=False) or 0)
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
