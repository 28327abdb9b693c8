"""What --against names: an older record of a benchmark, or an older report, which carries its records."""

from __future__ import annotations

from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ..bench import against, record
from ..bench.against import Change
from ..bench.record import Record
from ..errors import BadInput, CheckFailed, Problem

CARRIED = "records"
"""The id of the script element in which a report carries its records."""

_RECORDS = TypeAdapter(list[Record])


def carried(records: Iterable[Record]) -> list[object]:
    """The records as a report carries them."""
    return [one.model_dump(mode="json") for one in records]


def read(path: Path) -> list[Record]:
    """The records of an older report, or the one record. BadInput for what is neither."""
    if path.suffix.lower() not in (".html", ".htm"):
        return [record.read(path)]
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput([Problem(str(path), None, f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError:
        raise BadInput([Problem(str(path), None, "not UTF-8, so no report")]) from None
    finder = _Finder()
    finder.feed(text)
    if finder.found is None:
        raise BadInput([Problem(str(path), None, f"no report of build.py: it has no <script id={CARRIED!r}>")])
    try:
        return _RECORDS.validate_json(finder.found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput([Problem(str(path), None, f"its records: {where}: {first['msg']}")]) from error


def compare(now: Iterable[Record], before: Iterable[Record]) -> list[Change]:
    """Every point that both have, of records that can be compared. CheckFailed with the reasons where none can."""
    changes: list[Change] = []
    reasons: list[str] = []
    older = list(before)
    for new in now:
        for old in older:
            try:
                changes += against.compare(new, old)
            except CheckFailed as failed:
                reasons.append(str(failed))
    if not changes:
        raise CheckFailed("\n".join(dict.fromkeys(reasons)) or "no record to compare: python build.py bench")
    return changes


class _Finder(HTMLParser):
    """The text of the script element that carries the records."""

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script" and dict(attrs).get("id") == CARRIED

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found = (self.found or "") + data
