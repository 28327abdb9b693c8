"""What becomes of a record: tables, the picture, the page, and the check that nothing is faster."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench_records import a_record

from codegen.bench import check, page, plot, record, tables
from codegen.bench.peers import NAMES
from codegen.bench.record import Record
from codegen.bench.roofline import roofline_us
from codegen.errors import CheckFailed


def changed(change: Any, models: int = 1) -> Record:
    """A record after `change(its JSON)`."""
    text = json.loads(a_record(models=models).model_dump_json())
    change(text)
    return Record.model_validate_json(json.dumps(text))


def faster(candidate: str, tokens: int, median_us: float) -> Record:
    """A record in which a candidate takes so long at a token count."""

    def change(text: dict[str, Any]) -> None:
        text["models"]["model-0"]["points"][str(tokens)]["candidates"][candidate]["median_us"] = median_us

    return changed(change)


def before(text: dict[str, Any]) -> None:
    """As records were before rates and host costs."""
    del text["rates"]
    for model in text["models"].values():
        del model["host"]


# Tables.


def test_medians_ratios_and_the_best_peer() -> None:
    model = a_record().models["model-0"]
    assert tables.candidates(model) == list(NAMES)
    assert tables.medians(model, "ours") == pytest.approx({1: 4.02, 16: 4.32, 256: 9.12})
    assert tables.ratios(model, "ours", "probe")[1] == pytest.approx(4.02 / 5.02)
    assert tables.best_peer(model, 1) == "seed"
    assert tables.best_peers(model) == pytest.approx({1: 7.02, 16: 7.32, 256: 12.12})
    assert tables.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert tables.geometric_mean([]) is None


def test_rows() -> None:
    measured = a_record()
    model = measured.models["model-0"]
    headings, rows = tables.rows(model, measured.rates)
    assert headings[:3] == ["tokens", "normgate", "streaming probe"]
    assert headings[-4:] == ["roofline", "normgate / probe", "normgate / roofline", "best peer / normgate"]
    assert [row[0] for row in rows] == ["1", "16", "256"]
    assert measured.rates is not None
    floor = roofline_us(model, 16, measured.rates)
    assert rows[1][1:3] == ["4.32", "5.32"]
    assert rows[1][-4:] == [f"{floor:.2f}", f"{4.32 / 5.32:.2f}", f"{4.32 / floor:.2f}", f"{7.32 / 4.32:.2f}"]


def test_rows_without_marks_and_peers() -> None:
    model = a_record(("ours",)).models["model-0"]
    assert tables.ratios(model, "ours", "probe") == {}
    assert tables.best_peer(model, 1) is None
    headings, rows = tables.rows(model, None)
    assert headings == ["tokens", "normgate", "normgate / probe", "best peer / normgate"]
    assert rows[0] == ["1", "4.02", "-", "-"]


def test_markdown() -> None:
    lines = tables.markdown(["model", "us"], [["one", "1.00"]], left=1).splitlines()
    assert lines == ["| model | us |", "| --- | ---: |", "| one | 1.00 |"]


# The picture.


def test_plot(tmp_path: Path) -> None:
    measured = a_record(models=3)
    axes = plot.figure(measured).axes
    drawn = [tables.label(name) for name in (*NAMES, tables.ROOFLINE) if name != "empty"]
    for panel in axes[:3]:
        assert [line.get_label() for line in panel.get_lines()] == drawn
        assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    assert not axes[3].axison
    path = tmp_path / "measured" / "latency.png"
    plot.save(measured, path)
    first = path.read_bytes()
    plot.save(measured, path)
    assert path.read_bytes() == first


def test_plot_without_rates_has_no_roofline() -> None:
    labels = [line.get_label() for line in plot.figure(changed(before)).axes[0].get_lines()]
    assert "normgate" in labels and tables.ROOFLINE not in labels


def test_plot_styles_tell_candidates_apart() -> None:
    assert list(tables.LABELS) == list(NAMES)
    assert set(plot._STYLES) == {*NAMES, tables.ROOFLINE} - {"empty"}
    assert len({style[0] for style in plot._STYLES.values()}) == len(plot._STYLES)


# No peer is faster.


def test_nothing_to_find() -> None:
    check.require_fastest(a_record(models=2))


@pytest.mark.parametrize(
    ("candidate", "tokens", "median_us", "found"),
    [
        ("torch_compiled", 256, 8.9, "model-0, 256 tokens: 9.12 us, torch.compile 8.90 us"),
        ("torch_compiled", 256, 8.93, None),  # within the spreads, 0.1 and 0.1
        ("probe", 256, 1.0, None),  # a mark does not do the work
        ("empty", 256, 1.0, None),
        ("ours", 1, 4.6, "model-0, 1 tokens: 4.60 us, 16 tokens 4.32 us"),
        ("ours", 1, 4.5, None),
    ],
)
def test_what_is_found(candidate: str, tokens: int, median_us: float, found: str | None) -> None:
    measured = faster(candidate, tokens, median_us)
    if found is None:
        check.require_fastest(measured)
    else:
        with pytest.raises(CheckFailed) as failed:
            check.require_fastest(measured)
        assert str(failed.value) == found


# The page.


def test_page_holds_every_median_and_where_it_was_measured() -> None:
    measured = a_record(models=2)
    text = page.text(measured, "measured/h200-bench.json")
    for said in (measured.machine.chip, measured.source.commit, measured.machine.driver, "4.00 TB/s", "800 TFLOP/s"):
        assert said in text
    assert "[h200-bench.json](measured/h200-bench.json) by `python build.py draw`; not for editing" in text
    for name, model in measured.models.items():
        section = text.split(f"### {name}\n")[1].split("\n### ")[0]
        for tokens, point in model.points.items():
            row = next(line for line in section.splitlines() if line.startswith(f"| {tokens} |"))
            for measurement in point.candidates.values():
                assert f"{measurement.median_us:.2f}" in row


def test_page_means_are_geometric_and_apart_for_few_and_many_tokens() -> None:
    text = page.text(a_record(), "r.json")
    few, many = text.split("Up to 64 tokens:")[1].split("Above 64 tokens:")
    mean = (7.02 / 4.02 * 7.32 / 4.32) ** 0.5
    assert f"| model-0 | 64 x 16 | {mean:.2f} ({7.32 / 4.32:.2f} to {7.02 / 4.02:.2f}) |" in few
    assert f"| all |  | {12.12 / 9.12:.2f} (" in many


def test_page_says_where_normgate_is_not_the_fastest() -> None:
    assert "Nowhere: no peer takes less time" in page.text(a_record(), "r.json")
    text = page.text(faster("torch_compiled", 256, 8.0), "r.json")
    assert "| model-0 | torch.compile | 256 | 9.12 | 8.00 | 1.14 |" in text
    assert "| 256 | 9.12 |" in text and "| **8.00** |" in text


def test_page_says_what_a_call_costs_the_host() -> None:
    assert "| model-0 | 1 | 12.50 | 14.25 |" in page.text(a_record(), "r.json")


def test_page_counts_what_was_left_out() -> None:
    def leave_out(text: dict[str, Any]) -> None:
        for point in text["models"]["model-0"]["points"].values():
            del point["candidates"]["flashinfer"]
            point["left_out"] = {"flashinfer": "ModuleNotFoundError: No module named 'flashinfer'"}

    text = page.text(changed(leave_out), "r.json")
    assert "- FlashInfer, at 3 points: ModuleNotFoundError: No module named 'flashinfer'" in text


def test_page_of_an_older_record() -> None:
    text = page.text(changed(before), "r.json")
    assert "roofline" not in text and "costs the host" not in text
    assert "| 16 | **4.32** |" in text


def test_draw_writes_the_page_and_its_picture(cli, tmp_path):
    record.write(a_record(), tmp_path / "docs" / "measured" / "h200-bench.json")
    written = tmp_path / "docs" / "performance.md"
    done = cli("draw", tmp_path / "docs" / "measured" / "h200-bench.json", "--page", written)
    assert (done.returncode, done.stdout) == (0, "docs/performance.md written\n"), done.stderr
    assert "(measured/h200-bench.json)" in written.read_text()
    assert "(measured/latency.png)" in written.read_text()
    assert (written.parent / "measured" / "latency.png").stat().st_size > 10_000


def test_draw_check(cli, tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    record.write(a_record(), good)
    record.write(faster("torch_compiled", 256, 8.0), bad)
    assert cli("draw", good, "--check").returncode == 0
    done = cli("draw", bad, "--check")
    assert (done.returncode, done.stderr) == (1, "model-0, 256 tokens: 9.12 us, torch.compile 8.00 us\n")
    assert cli("draw", tmp_path / "none.json", "--check").returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json", "good.json"]
