"""The docs site: it builds without a warning, and a browser that reads it asks nothing of the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason='needs pip install -e ".[docs]"')
from mkdocs.exceptions import PluginError  # noqa: E402

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import cuts  # noqa: E402

_ASKS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(folder / "mkdocs.yml")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run([*command, "--site-dir", str(site)], env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Asked(HTMLParser):
    """What a browser loads for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attributes if name == _ASKS.get(tag) and value]
        # What would have the theme load mermaid.
        assert "mermaid" not in (dict(attributes).get("class") or "")


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        asked = Asked()
        asked.feed(page.read_text(encoding="utf-8"))
        assert asked.found
        for address in asked.found:
            assert not re.match(r"(https?:)?//", address), f"{page.name} loads {address}"
            if page.name != "404.html":  # which is served for any path, and so has absolute ones
                assert (page.parent / address.partition("#")[0].partition("?")[0]).exists(), f"{page.name}: {address}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s+)['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_pages_show_the_code(site: Path) -> None:
    page = (site / "reading-a-kernel.html").read_text(encoding="utf-8")
    assert "kGateTerms" in page and "```cut" not in page and "until:" not in page


@pytest.mark.parametrize(
    "text, says",
    [
        ("[gone](gone.md)", "gone.md"),
        ("[gone](index.md#gone)", "gone"),
        ("[a folder](measured)", "measured"),
        ("```cut\nREADME.md\nfrom: not in there at all\nto: x\n```", "no line has 'not in there at all'"),
        ("```cut\nnowhere.py\nfrom: a\nto: b\n```", "nowhere.py"),
    ],
)
def test_what_is_broken_fails(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("mkdocs.yml", "docs/cuts.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    config = re.sub(r"^nav:\n(  .*\n)+", "", (tmp_path / "mkdocs.yml").read_text(), flags=re.M)
    (tmp_path / "mkdocs.yml").write_text(config)
    (tmp_path / "README.md").write_text("")
    page = tmp_path / "docs" / "index.md"
    page.write_text("# Fine\n")
    assert build(tmp_path, tmp_path / "site").returncode == 0
    page.write_text(f"# Broken\n\n{text}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and says in done.stdout + done.stderr


CODE = "a\n  first {\n#pragma unroll\n    inside;\n  }\nafter }\n"


@pytest.mark.parametrize(
    "first, last, whole, expected",
    [
        ("first", "}", True, "first {\n#pragma unroll\n  inside;\n}"),
        ("first", "}", False, "first {\n#pragma unroll\n  inside;"),
        ("inside", "after", True, "    inside;\n  }\nafter }"),
    ],
)
def test_a_cut(first: str, last: str, whole: bool, expected: str) -> None:
    assert cuts.cut(CODE, first, last, whole=whole) == expected


@pytest.mark.parametrize("first, last", [("nowhere", "}"), ("first", "nowhere"), ("after", "a")])
def test_a_cut_that_is_gone(first: str, last: str) -> None:
    with pytest.raises(ValueError, match="no line"):
        cuts.cut(CODE, first, last)


def test_a_cut_is_no_chapter() -> None:
    with pytest.raises(ValueError, match="at most"):
        cuts.cut("first\n" + "x\n" * 100 + "last\n", "first", "last")


def test_half_a_cut_is_an_error() -> None:
    class Page:
        class file:
            src_uri = "index.md"

    with pytest.raises(PluginError, match="a cut is a file"):
        cuts.on_page_markdown("```cut\nREADME.md\nfrom: a\n```\n", Page(), None, None)
