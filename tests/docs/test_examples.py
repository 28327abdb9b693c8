"""Every example of the docs and the README is run, on the CPU, in a copy of the checkout.

A page's sh blocks run one after the other, then its Python blocks as one program. A text block behind a sh block is
what that prints, `...` for any lines. `<!-- not run: why -->` before a block leaves it out; commands that `.ci/run` reads
out of the README are left to it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"(?:<!-- (?P<left>not run|command): ?(?P<why>[^\n]*?) ?-->\n)?^```(?P<kind>sh|python|text)[^\n]*\n(?P<text>.*?)^```$",
    re.M | re.S,
)
_NOT_HERE = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", ".*_cache", "__pycache__")


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    why_not: str | None  # it is left out


def blocks(markdown: str) -> list[Block]:
    return [Block(found["kind"], found["text"], found["why"]) for found in _BLOCK.finditer(markdown)]


def wanted(page: Path) -> list[Block]:
    """What of a page is run."""
    found = blocks(page.read_text(encoding="utf-8"))
    return [block for block in found if block.why_not is None and block.kind != "text"]


_ALL = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "downstream" / "README.md"]
PAGES = [page for page in _ALL if wanted(page)]


def differs(expected: str, printed: str) -> str | None:
    """The first expected line that was not printed where it should be; None where all were."""
    lines = [line.rstrip() for line in printed.splitlines()]
    at, anywhere = 0, False
    for line in map(str.rstrip, expected.splitlines()):
        if line == "...":
            anywhere = True
            continue
        places = range(at, len(lines)) if anywhere else range(at, min(at + 1, len(lines)))
        found = next((place for place in places if lines[place] == line), None)
        if found is None:
            return line
        at, anywhere = found + 1, False
    return None if anywhere or at == len(lines) else f"no more, but: {lines[at]}"


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {
        **os.environ,
        "PATH": path,
        "COLUMNS": "80",
        "PYTHONPATH": str(folder / "generated"),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path) -> None:
    found = blocks(page.read_text(encoding="utf-8"))
    here = tmp_path / "checkout"
    shutil.copytree(ROOT, here, ignore=_NOT_HERE)
    printed: str | None = None
    for block in found:
        if block.kind == "text":
            if printed is not None:
                missing = differs(block.text, printed)
                assert missing is None, f"{page.name}: {missing!r} was not printed; this was:\n{printed}"
        elif block.kind == "sh":
            printed = run(["bash", "-euo", "pipefail", "-c", block.text], here) if block.why_not is None else None
    if program := "\n".join(block.text for block in wanted(page) if block.kind == "python"):
        run([sys.executable, "-c", program], here)


def test_examples_are_found() -> None:
    page = "<!-- not run: a GPU -->\n```sh\na\n```\n\n```python\nb\n```\n<!-- command: build -->\n```sh\nc\n```\n"
    assert blocks(page) == [Block("sh", "a\n", "a GPU"), Block("python", "b\n", None), Block("sh", "c\n", "build")]


@pytest.mark.parametrize(
    "expected, printed, missing",
    [
        ("a\nb\n", "a\nb\n", None),
        ("a\n...\n", "a\nb\nc\n", None),
        ("a\n...\nc\n", "a\nb\nc\n", None),
        ("a\n", "a\nb\n", "no more, but: b"),
        ("a\nc\n", "a\nb\nc\n", "c"),
        ("...\nd\n", "a\nb\n", "d"),
    ],
)
def test_what_is_printed_is_compared(expected: str, printed: str, missing: str | None) -> None:
    assert differs(expected, printed) == missing


def test_enough_is_run() -> None:
    """That blocks are found at all: a marker too many, and nothing would be tested."""
    kinds = [block.kind for page in PAGES for block in blocks(page.read_text()) if block.why_not is None]
    assert kinds.count("sh") >= 8 and kinds.count("python") >= 4 and kinds.count("text") >= 5
