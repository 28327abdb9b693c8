"""A generated kernel's CUDA, cut where a reader would fold it: into its parts, and those into their stages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from pygments.lexers.c_cpp import CppLexer  # type: ignore[import-untyped]
from pygments.token import Comment, Keyword, Literal, Token  # type: ignore[import-untyped]

_PART = re.compile(r"^// -{20,}\n", re.MULTILINE)
_STAGE = re.compile(r"^[ ]+// Stage: (.*)\n", re.MULTILINE)
_HEADLINE = re.compile(r"// ([a-z_]+): (.*)")
# What follows the last part of the kernel's stages: variants and entry points.
_VARIANTS = re.compile(r"^// [a-z]\w*_t\d.*\n(?:// .*\n)*struct ", re.MULTILINE)

# Few classes, for each coloured word is an element of the page.
_CLASSES: tuple[tuple[Any, str], ...] = (
    (Comment.Preproc, "p"),
    (Comment, "c"),
    (Keyword, "k"),
    (Literal.Number, "n"),
    (Literal.String, "n"),
)


@dataclass(frozen=True)
class Fold:
    """A piece of the file: title, one line on it, its lines of code, and the folds within, which follow those lines."""

    title: str
    about: str
    code: Markup
    lines: int
    folds: tuple[Fold, ...] = ()


def folds(text: str) -> list[Fold]:
    """The file in order, nothing left out: concatenating the code of all folds gives its text."""
    head, *parts = _PART.split(text)
    found = [_fold("header", "what is computed, shapes and types", head)]
    for index, part in enumerate(parts):
        tail = ""
        if index == len(parts) - 1 and (match := _VARIANTS.search(part)):
            part, tail = part[: match.start()], part[match.start() :]
        headline = _HEADLINE.match(part)
        title, about = headline.groups() if headline else (f"part {index + 1}", "")
        about = about.partition(". ")[0].rstrip(".:")
        before, *rest = list(_stages(part))
        inner = tuple(_fold(*_titled(code)) for code in rest)
        found.append(_fold(title, about, before, inner))
        if tail:
            found.append(
                _fold("variants and launches", "constants of each tile, entry points, what the host does", tail)
            )
    return found


def _stages(part: str) -> Iterator[str]:
    starts = [0, *(match.start() for match in _STAGE.finditer(part)), len(part)]
    for start, end in zip(starts, starts[1:], strict=False):
        yield part[start:end]


def _titled(code: str) -> tuple[str, str, str]:
    match = _STAGE.match(code)
    assert match  # _stages cuts there
    title, _, about = match.group(1).partition(". ")
    return f"stage: {title.rstrip('.')}", about, code


def _fold(title: str, about: str, code: str, inner: tuple[Fold, ...] = ()) -> Fold:
    return Fold(title, about, coloured(code), code.count("\n") + sum(one.lines for one in inner), inner)


def coloured(code: str) -> Markup:
    """The code as HTML: everything escaped, words of _CLASSES in <i class>."""
    pieces: list[tuple[str, str]] = []
    for kind, text in CppLexer(stripnl=False, ensurenl=False).get_tokens(code):
        name = next((name for of, name in _CLASSES if kind in of), "")
        if pieces and (pieces[-1][0] == name or (kind in Token.Text.Whitespace and text.isspace())):
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + text)
        else:
            pieces.append((name, text))
    marked = Markup('<i class="{}">{}</i>')
    return Markup("").join(marked.format(name, text) if name else Markup.escape(text) for name, text in pieces)
