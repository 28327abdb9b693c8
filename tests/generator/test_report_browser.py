"""The report of the recorded runs, opened in Chromium: what is drawn is what the records say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codegen.bench.tables import LABELS, MARKS, PATH_LABELS
from codegen.compile import reported
from codegen.report import drawing, page, screenshot

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "docs" / "measured"
MOST_BYTES, MOST_SECONDS = 5e6, 2.0

Json = dict[str, Any]

playwright = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install -e ".[test]"')
CHROMIUM = screenshot.find_chromium()
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(not drawing.can_draw(), reason=f"no vl-convert-python: {drawing.INSTALL}"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    page.write(path, MEASURED, ROOT / "generated")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=list(screenshot.QUIET))
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """The report in a window of a desk; what the console says and what is fetched is empty at the end."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    tab.goto(report.as_uri())
    yield tab
    assert said == []
    context.close()


def read(name: str) -> Json:
    found: Json = json.loads((MEASURED / name).read_text())
    return found


def drawn(tab: Any, anchor: str) -> list[Json]:
    """The marks of a chart as they stand on the page: what they say, and the middle of where they are."""
    found: list[Json] = tab.evaluate(
        """(anchor) => [...document.querySelectorAll(`[id="${anchor}"] svg [role=graphics-symbol]:not([aria-roledescription=axis])`)]
          .map((mark) => { const box = mark.getBoundingClientRect();
            return { said: mark.getAttribute("aria-label"), x: box.x + box.width / 2, y: box.y + box.height / 2, left: box.left, right: box.right }; })""",
        anchor,
    )
    return found


def in_tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"


def require_scale(points: list[tuple[float, float]]) -> None:
    """(value, pixel) pairs: all on one straight line, to a pixel."""
    (low, at_low), (high, at_high) = min(points), max(points)
    for value, pixel in points:
        expected = at_low + (value - low) / (high - low) * (at_high - at_low)
        assert abs(pixel - expected) < 1.0, (value, pixel, expected)


def require_lines(tab: Any, anchor: str, expected: dict[str, tuple[int, float]]) -> None:
    """A chart shows just these values (tokens, microseconds, by what their marks say), each at its place."""
    marks = drawn(tab, anchor)
    # The roofline is computed, not recorded.
    found = {mark["said"]: mark for mark in marks if not mark["said"].startswith("roofline")}
    assert found.keys() == expected.keys()
    require_scale([(math.log2(tokens), found[said]["x"]) for said, (tokens, _) in expected.items()])
    require_scale([(math.log2(us), found[said]["y"]) for said, (_, us) in expected.items()])


# What is drawn.


def test_every_chart_is_drawn(opened: Any) -> None:
    models = read("h200-bench.json")["models"]
    paths = read("h200-paths.json")["models"]
    found = opened.evaluate(
        """() => [...document.querySelectorAll("figure.chart")].map((figure) => {
          const svg = figure.querySelector(".plot > svg"), box = svg ? svg.getBoundingClientRect() : { width: 0, height: 0 };
          return { id: figure.id, width: box.width, height: box.height,
            marks: figure.querySelectorAll("svg [role=graphics-symbol][aria-label]:not([aria-roledescription=axis])").length,
            rows: figure.querySelectorAll("details table tbody tr").length }; })"""
    )
    anchors = {figure["id"] for figure in found}
    assert {f"h200-gate-{name}" for name in models} | {f"h200-path-{name}" for name in paths} <= anchors
    assert {"ranges-gate", "ranges-path", "numerics-logits", "numerics-weights"} <= anchors
    for figure in found:
        assert figure["width"] > 300 and figure["height"] > 150, figure
        assert figure["marks"] >= 8 and figure["rows"] >= 8, figure


@pytest.mark.parametrize("model", sorted(read("h200-bench.json")["models"]))
def test_latency_of_norm_and_gate_is_the_record(opened: Any, model: str) -> None:
    points = read("h200-bench.json")["models"][model]["points"]
    expected = {
        f"{LABELS[name]}, {in_tokens(int(tokens))}: {measured['median_us']:.2f} µs": (
            int(tokens),
            measured["median_us"],
        )
        for tokens, point in points.items()
        for name, measured in point["candidates"].items()
        if name != "empty"
    }
    require_lines(opened, f"h200-gate-{model}", expected)


@pytest.mark.parametrize("model", sorted(read("h200-paths.json")["models"]))
def test_latency_of_whole_paths_is_the_record(opened: Any, model: str) -> None:
    points = read("h200-paths.json")["models"][model]["path"]["points"]
    expected = {
        f"{PATH_LABELS[name]}, {in_tokens(int(tokens))}: {measured['median_us']:.2f} µs": (
            int(tokens),
            measured["median_us"],
        )
        for tokens, point in points.items()
        for name, measured in point["candidates"].items()
    }
    require_lines(opened, f"h200-path-{model}", expected)


def test_first_figures_and_ratios_are_of_the_record(opened: Any) -> None:
    few, everything = [], {}
    for model, of in read("h200-bench.json")["models"].items():
        for tokens, point in of["points"].items():
            times = {name: measured["median_us"] for name, measured in point["candidates"].items() if name not in MARKS}
            ours = times.pop("ours")
            everything[model, f"{int(tokens):,}"] = min(times.values()) / ours
            if int(tokens) <= 64:
                few.append(min(times.values()) / ours)
    mean = math.exp(sum(map(math.log, few)) / len(few))
    assert opened.locator(".highlights b").first.inner_text() == f"{mean:.1f}×"
    counts = opened.locator("#latency .heat thead th").all_inner_texts()
    rows = opened.locator("#latency .heat tbody tr").all()
    assert len(rows) * (len(counts) - 1) == len(everything)
    for row in rows:
        model = row.locator("th").inner_text()
        kinds = row.locator("td").evaluate_all("(cells) => cells.map((cell) => [cell.innerText, cell.dataset.kind])")
        for count, (shown, kind) in zip(counts[1:], kinds, strict=True):
            ratio = everything[model, count]
            assert float(shown) == pytest.approx(ratio, abs=0.051)
            assert (kind == "heat-behind") == (ratio < 0.98)


def test_token_ranges_are_the_manifest(opened: Any) -> None:
    made = json.loads((ROOT / "generated" / "normgate" / "manifest.json").read_text())
    expected = {}
    for model, kernel in made["models"].items():
        [group] = [group for group in made["kernels"][kernel]["groups"] if 90 in group["sm_targets"]]
        for one in group["variants"]:
            first, last = one["first_token"], one["last_token"]
            words = f"{first:,} to {last:,} tokens" if last else f"{first:,} tokens and more"
            expected[f"{model}, {in_tokens(first) if first == last else words}: {one['name']}"] = (first, last)
    found = {mark["said"]: mark for mark in drawn(opened, "ranges-gate")}
    assert found.keys() == expected.keys()
    require_scale([(math.log2(first), found[said]["left"]) for said, (first, _) in expected.items()])
    require_scale([(math.log2(last + 1), found[said]["right"]) for said, (_, last) in expected.items() if last])


def test_numerics_are_the_record(opened: Any) -> None:
    made = json.loads((ROOT / "generated" / "normgate" / "manifest.json").read_text())
    measured = read("h200-tests.json")["measured"]
    for anchor, test, key in (
        ("logits", "test_variants", "logits_error"),
        ("weights", "test_functions", "weight_error"),
    ):
        expected = {}
        for name, found in measured.items():
            if name.startswith(f"{test}[generated-"):
                models = ", ".join(made["kernels"][name.removeprefix(f"{test}[generated-").rstrip("]")]["models"])
                expected[f"{models}: worst error of {anchor} {found[key] * 1e6:.2f}e-6"] = found[key]
        marks = {mark["said"]: mark for mark in drawn(opened, f"numerics-{anchor}")}
        marks.pop("the contract: 2e-6", None)
        assert marks.keys() == expected.keys()
        require_scale([(error, marks[said]["x"]) for said, error in expected.items()])


def test_registers_are_the_compilers(opened: Any) -> None:
    usages = [row.usage for row in reported(ROOT / "generated" / "normgate", ROOT / "generated" / "build")]
    if not usages:
        pytest.skip("not compiled here: python build.py")
    expected = sorted(
        (
            usage.registers,
            f"{usage.registers} registers, {usage.smem:,} bytes of static shared memory, {usage.spill} bytes of spills",
        )
        for usage in usages
        if usage.sm == 90 and usage.registers is not None and not usage.function.startswith("normgate_")
    )
    marks = [*drawn(opened, "registers-norm"), *drawn(opened, "registers-whole")]
    assert sorted(mark["said"].partition(": ")[2] for mark in marks) == sorted(said for _, said in expected)
    for anchor in ("registers-norm", "registers-whole"):
        of = drawn(opened, anchor)
        require_scale([(float(mark["said"].partition(": ")[2].split()[0]), mark["x"]) for mark in of])


# How it reads.


def test_links_lead_somewhere(opened: Any) -> None:
    found = opened.evaluate(
        """() => ({ links: [...document.querySelectorAll("a[href]")].map((link) => link.getAttribute("href")),
          ids: [...document.querySelectorAll("[id]")].map((one) => one.id) })"""
    )
    assert len(found["ids"]) == len(set(found["ids"]))
    assert all(link.startswith("#") for link in found["links"])
    assert {link[1:] for link in found["links"]} <= set(found["ids"])
    opened.locator("nav a", has_text="Numerics").click()
    assert opened.evaluate("location.hash") == "#numerics"
    assert 0 <= opened.locator("#numerics h2").bounding_box()["y"] < 900


def test_it_is_small_and_loads_at_once(browser: Any, report: Path) -> None:
    assert report.stat().st_size < MOST_BYTES
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy with other tests
        tab = browser.new_page()
        tab.goto(report.as_uri())
        seconds.append(tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
        tab.close()
    assert 0 < min(seconds) < MOST_SECONDS


def test_the_keyboard_reaches_and_opens_everything(opened: Any) -> None:
    wanted = opened.evaluate(
        """() => { let count = 0;
          for (const one of document.querySelectorAll("nav a, summary, .plot")) if (one.checkVisibility()) one.dataset.stop = String(count++);
          return count; }"""
    )
    assert wanted > 60
    reached = set()
    for _ in range(4 * wanted):
        opened.keyboard.press("Tab")
        stop, at_end = opened.evaluate(
            "[document.activeElement.dataset.stop ?? null, document.activeElement === document.body]"
        )
        if at_end:
            break
        reached.add(stop)
    assert reached - {None} == {str(stop) for stop in range(wanted)}
    first = opened.locator("figure.chart summary").first
    first.focus()
    opened.keyboard.press("Enter")
    assert opened.locator("figure.chart details").first.evaluate("(details) => details.open")


def test_arrow_keys_and_the_pointer_say_the_values(opened: Any) -> None:
    plot = opened.locator(".plot").first
    model = opened.locator("figure.chart figcaption b").first.inner_text()
    points = read("h200-bench.json")["models"][model]["points"]
    plot.focus()
    for tokens in sorted(map(int, points))[:2]:
        opened.keyboard.press("ArrowRight")
        # The event of the scroll that brought the chart into view may come only now.
        opened.evaluate("dispatchEvent(new Event('scroll'))")
        said = opened.locator("#tip").inner_text().split("\n")
        assert said[0] == in_tokens(tokens)
        assert f"normgate: {points[str(tokens)]['candidates']['ours']['median_us']:.2f} µs" in said
    opened.keyboard.press("Escape")
    assert not opened.locator("#tip").is_visible()
    box = plot.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    assert "normgate: " in opened.locator("#tip").inner_text()
    opened.evaluate("scrollBy(0, 40)")
    opened.locator("#tip").wait_for(state="hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, report: Path, scheme: str) -> None:
    tab = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    tab.goto(report.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    background, ink, label = tab.evaluate(
        """() => { const colour = (one, what) => getComputedStyle(one)[what].match(/\\d+/g).slice(0, 3).map(Number);
          return [colour(document.body, "backgroundColor"), colour(document.body, "color"), colour(document.querySelector(".plot text"), "fill")]; }"""
    )
    bright = {"light": background, "dark": ink}[scheme]
    assert min(bright) > 200
    assert all(abs(sum(text) - sum(background)) > 3 * 90 for text in (ink, label)), (background, ink, label)
    tab.close()


def test_a_kernel_and_its_spec_are_in_the_model(opened: Any) -> None:
    model = opened.locator("#model-deepseek-v3")
    assert model.locator(".stages b").all_inner_texts() == [
        "residual add",
        "RMSNorm",
        "gate",
        "sigmoid",
        "top 8 of the best 4 of 8 groups",
    ]
    assert (ROOT / "specs" / "deepseek-v3.yaml").read_text() in model.locator("pre").all_text_contents()
    assert "__global__" in "".join(model.locator("pre").all_text_contents())


def test_print_opens_nothing_that_moves(opened: Any) -> None:
    opened.emulate_media(media="print", color_scheme="light")
    assert not opened.locator("nav").is_visible()
    assert opened.locator("figure.chart svg").first.is_visible()
