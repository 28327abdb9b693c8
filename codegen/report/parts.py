"""What sections are made of, ready for the page: text, tables, charts."""

from __future__ import annotations

from dataclasses import dataclass, field

from .drawing import Chart


@dataclass(frozen=True)
class Cell:
    """Text with a class of the style sheet, and words for who hovers or listens."""

    text: str
    kind: str = ""
    said: str = ""


@dataclass(frozen=True)
class Table:
    """The first `left` columns are text, the others numbers."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    left: int = 1
    meanings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A chart and the table behind it. kind: lines (the script shows all values at a token count) or marks."""

    anchor: str
    title: str
    about: str
    chart: Chart
    table: Table
    kind: str = "lines"


@dataclass(frozen=True)
class Key:
    """An entry of a legend. look: line, or the colour alone of a square."""

    key: str
    label: str
    look: str = "line"
    dash: str = ""


@dataclass(frozen=True)
class Highlight:
    """A figure of the first screen: the number, what it says, and from where."""

    number: str
    says: str
    detail: str = ""
    link: str = ""


def power(number: float, digits: int = 1) -> str:
    """As in 2.5e-7."""
    return f"{number:.{digits}e}".replace("e-0", "e-").replace("e+0", "e+")
