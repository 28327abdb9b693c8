"""How the verbs print: 80 columns in a pipe, no codes there, and names whole, so that they can be copied."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

_PIPE_WIDTH = 80


def console(*, stderr: bool = False) -> Console:
    """Standard output, or where progress goes while a program reads it. A pipe has COLUMNS columns, or 80: rich would
    ask for the width of a terminal that only the keyboard is on.
    """
    found = Console(highlight=False, stderr=stderr)
    if not found.is_terminal:
        columns = os.environ.get("COLUMNS", "")
        found.width = int(columns) if columns.isdecimal() and int(columns) else _PIPE_WIDTH
    return found


def table(*headings: str | Column) -> Table:
    """An empty table as all verbs have it; a heading alone is a column of figures."""
    columns = [Column(word, justify="right", overflow="fold") if isinstance(word, str) else word for word in headings]
    return Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def words(heading: str, *, whole: bool = True) -> Column:
    """A column of words: `whole` ones in one line, others wrapped."""
    return Column(heading, no_wrap=whole, overflow="fold")


def show(console: Console, *parts: str | Table) -> None:
    """Print texts, wrapped between words, and tables; no line ends in spaces."""
    for part in parts:
        if isinstance(part, str):
            console.print(wrapped(part, console.width), markup=False, soft_wrap=True)
            continue
        with console.capture() as drawn:
            console.print(part)
        lines = [line.rstrip() for line in drawn.get().splitlines()]
        console.print(Text.from_ansi("\n".join(lines)), soft_wrap=True)


def title(console: Console, text: str) -> None:
    """What stands above a table."""
    console.print(Text(wrapped(text, console.width), style="bold"), soft_wrap=True)


def wrapped(text: str, width: int = _PIPE_WIDTH) -> str:
    """Each line of `text` in lines of `width`, what follows the first indented; a word that is longer stays whole."""
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )


def names_last(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of figures and then a name, however long: the lines of a table that none can be folded in."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings) - 1)]
    return "\n".join("  ".join([*map(str.rjust, line, widths), line[-1]]) for line in lines)


def bar(console: Console) -> Progress:
    """A bar in one line, with as much of what is being done as there is room for; gone when it is full."""
    doing = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), doing)
    return Progress(*columns, console=console, transient=True)
