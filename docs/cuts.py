"""A hook of mkdocs: pages show code out of the repository's files, cut between two texts that are known.

A page says

    ```cut
    templates/include/selection.cuh
    from: float sigmoid(
    to: }
    ```

and gets the lines from the first that has one text to the next that has the other; with `until` in place of `to`, to
the line before. A text that is gone stops the build, so no page shows code that is not there.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
MOST_LINES = 70  # more is not for a page: the last text was found too late
_CUT = re.compile(r"^```cut\n(?P<file>\S+)\nfrom: (?P<first>.+)\n(?P<how>to|until): (?P<last>.+)\n```$", re.MULTILINE)
_LANGUAGES = {".py": "python", ".yaml": "yaml"}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the code into a page; mkdocs calls it."""
    where = page.file.src_uri
    text = _CUT.sub(lambda found: _shown(where, **found.groupdict()), markdown)
    if "```cut" in text:
        raise PluginError(f"docs/{where}: a cut is a file, `from: TEXT` and `to: TEXT` or `until: TEXT`, a line each")
    return text


def _shown(where: str, file: str, first: str, how: str, last: str) -> str:
    try:
        lines = cut((ROOT / file).read_text(encoding="utf-8"), first, last, whole=how == "to")
    except (OSError, ValueError) as error:
        raise PluginError(f"docs/{where}: {file}: {error}") from None
    language = _LANGUAGES.get(Path(file).suffix, "cuda" if file.endswith((".cu", ".cuh")) else "")
    return f'```{language} title="{Path(file).name}"\n{lines}\n```'


def cut(text: str, first: str, last: str, *, whole: bool = True) -> str:
    """The lines of `text` from the first with `first` to the next with `last`, that one too if `whole`; without what
    they are indented by, which #pragma lines are not.
    """
    lines = text.splitlines()
    begin = next((index for index, line in enumerate(lines) if first in line), None)
    if begin is None:
        raise ValueError(f"no line has {first!r}")
    end = next((index for index in range(begin + 1, len(lines)) if last in lines[index]), None)
    if end is None:
        raise ValueError(f"no line after {first!r} has {last!r}")
    found = lines[begin : end + whole]
    if len(found) > MOST_LINES:
        raise ValueError(f"{len(found)} lines from {first!r} to {last!r}: {MOST_LINES} at most")
    indent = min(len(line) - len(line.lstrip()) for line in found if line and not line.startswith("#"))
    return "\n".join(line if line.startswith("#") else line[indent:] for line in found).rstrip()
