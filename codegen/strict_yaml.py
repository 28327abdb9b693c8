"""A strict reader for small YAML files: plain data plus the line each value stands on.

Reads the part of YAML that a spec needs: one document of mappings, lists and scalars. Scalars are typed by
the rules below and not by YAML 1.1, so `1e-6` is a number and `yes`, `0x10`, `7_168` and `1:30` are text.
Anchors, aliases, tags, several documents and duplicate keys are problems, each with its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 8
MAX_NODES = 1000

Where = tuple[str | int, ...]
"""The keys and list indices that lead to a value."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Nothing:
    """A key with no value (`norm:`, `norm: null`); not None, so that it is never taken for a value."""


@dataclass
class Document:
    """A mapping read from a file, and the line (from 1) on which each value in it was given."""

    data: dict[str, Any]
    lines: dict[Where, int] = field(default_factory=dict)

    def line(self, where: Where) -> int:
        """The line of `where`, or of the nearest thing around it when `where` is not in the file."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)


def plain_value(text: str) -> object:
    """What an unquoted scalar means: an int, a float, true, false, Nothing, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    if text in ("", "~", "null"):
        return Nothing()
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def shown(value: object) -> str:
    """`value` as a message shows it: short, on one line, as it would be written in YAML."""
    if isinstance(value, Nothing) or value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        text = "[" + ", ".join(map(shown, value[:20])) + ("]" if len(value) <= 20 else ", ...]")
    else:
        text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:80] + "..."


def shown_key(key: str) -> str:
    """`key` as a message shows it: short, and without control characters."""
    return key[:60] if key.isprintable() else repr(key[:60])


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> tuple[str, list[Problem]]:
    """The text of a small UTF-8 file; when it cannot be had, "" and the problem that says why."""
    try:
        if path.exists() and not path.is_file():
            return "", [Problem(str(path), None, "is no regular file")]
        with path.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return "", [Problem(str(path), None, f"cannot be read: {reason}")]
    if len(raw) > max_bytes:
        return "", [Problem(str(path), None, f"is larger than {max_bytes} bytes, far more than such a file needs")]
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return "", [Problem(str(path), line, f"byte 0x{raw[error.start]:02x} is not UTF-8 text")]


def read_yaml(path: Path) -> tuple[Document | None, list[Problem]]:
    """Read one mapping from `path`. The document is None when its structure makes no sense."""
    text, problems = read_text(path)
    if problems:
        return None, problems
    file = str(path)
    try:
        problems = _refused_events(file, text)
        if problems:
            return None, problems
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        said = ", ".join(filter(None, [error.context, error.problem]))
        return None, [Problem(file, _line(error.problem_mark or error.context_mark), f"not valid YAML: {said}")]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return None, [Problem(file, line, f"character U+{ord(text[error.position]):04X} is not allowed in YAML")]
    except ValueError as error:  # PyYAML lets this through for "\\U00110000", a character that does not exist
        return None, [Problem(file, None, f"not valid YAML: {error}")]
    if not isinstance(node, yaml.MappingNode):
        given = "an empty file" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "a value"
        return None, [Problem(file, 1, f"{given} given, a mapping of keys to values would be right")]
    document = Document({}, {(): 1})
    document.data = _mapping(node, (), document.lines, problems, file)
    return document, problems


def _line(mark: Any) -> int:
    return mark.line + 1 if mark is not None else 1


def _refused_events(file: str, text: str) -> list[Problem]:
    """Problems with structure that is legal YAML but never in a spec. Stops where reading on is costly."""
    problems: list[Problem] = []
    depth = documents = nodes = 0
    event: Any
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = _line(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents == 2:
                return [
                    *problems,
                    Problem(file, line, "a second document starts here, one a file would be right"),
                ]
        elif isinstance(event, yaml.AliasEvent):
            problems.append(Problem(file, line, f"alias *{event.anchor} given, the value written out would be right"))
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            nodes += 1
            if nodes > MAX_NODES:
                return [
                    *problems,
                    Problem(file, line, f"more than {MAX_NODES} values, far more than a file needs"),
                ]
            if event.anchor is not None:
                problems.append(Problem(file, line, f"anchor &{event.anchor} given, none would be right"))
            if event.tag is not None:
                problems.append(Problem(file, line, f"tag {shown(event.tag)} given, none would be right"))
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                return [*problems, Problem(file, line, f"nested deeper than {MAX_DEPTH} levels")]
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return problems


def _mapping(
    node: yaml.MappingNode, where: Where, lines: dict[Where, int], problems: list[Problem], file: str
) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = _line(key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(Problem(file, line, "a list or mapping used as a key, a plain name would be right"))
            continue
        key = key_node.value
        at = (*where, key)
        if key in data:
            dotted = ".".join(map(str, (*where, shown_key(key))))
            problems.append(Problem(file, line, f"{dotted}: given again, the first is on line {lines[at]}"))
            continue
        lines[at] = line
        data[key] = _value(value_node, at, lines, problems, file)
    return data


def _value(node: Any, where: Where, lines: dict[Where, int], problems: list[Problem], file: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, where, lines, problems, file)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            at = (*where, index)
            lines[at] = _line(item.start_mark)
            items.append(_value(item, at, lines, problems, file))
        return items
    return plain_value(node.value) if node.style is None else node.value
