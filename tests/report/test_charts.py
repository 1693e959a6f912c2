"""Charts: well-formed, readable without sight, honest about what is missing, stable at the edges."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from cbtqa.report.charts import (
    Bar,
    HistogramBar,
    Interval,
    Levels,
    Line,
    bar_chart,
    flow_bar,
    heat_map,
    histogram,
    interval_chart,
    line_chart,
    stacked_bars,
)
from cbtqa.report.svg import TEXT_SIZE, WIDTH, Scale, fit_lines, fit_size, round_ticks, text_width

SVG = "{http://www.w3.org/2000/svg}"
SAYS = {"title": "标题 <1>", "description": 'says "what" & why'}
HOSTILE = '</text><script>alert("x")</script>'


def _every_chart(label: str = "读心术") -> list[str]:
    return [
        bar_chart([Bar(label, 3, "3", "Mind reading", 5.0)], reference_name="paper", **SAYS),
        interval_chart([Interval(label, 1.0, 0.5, 1.5), Interval("b", None, missing="no file")], **SAYS),
        stacked_bars([Levels(label, (1, 2, 7), "1.6")], ["0", "1", "2"], **SAYS),
        histogram([HistogramBar(0, 10, 3), HistogramBar(10, None, 1)], marks=[(4, label)], **SAYS),
        heat_map([label, "b"], ["c", label], [[1, None], [0, 4]], **SAYS),
        line_chart([Line(label, ((0, 1), (5, 2)), ((0, 0.5, 1.5), (5, 1, 3)))], x_name="x", **SAYS),
        flow_bar([(label, 9), ("cut", 1)], n_total=10, **SAYS),
    ]  # fmt: skip


def _texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("svg", _every_chart())
def test_every_chart_is_well_formed_and_says_its_title_and_description(svg: str) -> None:
    root = ET.fromstring(svg)
    named = {node.get("id"): node.text for node in root if node.get("id")}
    label, description = (root.get("aria-labelledby") or "").split()
    assert root.get("role") == "img"
    assert named[label] == SAYS["title"]
    assert named[description] == SAYS["description"]


@pytest.mark.parametrize("svg", _every_chart(HOSTILE))
def test_names_from_outside_stay_text_in_every_chart(svg: str) -> None:
    assert "<script" not in svg
    assert not list(ET.fromstring(svg).iter(f"{SVG}script"))


@pytest.mark.parametrize("svg", _every_chart("一个长得谁也放不下的名字" * 8))
def test_a_long_label_neither_leaves_the_drawing_nor_breaks_it(svg: str) -> None:
    assert "nan" not in svg.lower().replace("nance", "")
    for node in ET.fromstring(svg).iter(f"{SVG}rect"):
        assert float(node.get("x", 0)) + float(node.get("width", 0)) <= WIDTH + 0.01


def test_charts_of_nothing_are_drawings_too() -> None:
    empty = [
        bar_chart([], **SAYS), interval_chart([], **SAYS), stacked_bars([], ["a", "b"], **SAYS),
        histogram([], **SAYS), heat_map([], [], [], **SAYS), line_chart([], **SAYS),
        flow_bar([("a", 0)], n_total=0, **SAYS),
    ]  # fmt: skip
    for svg in empty:
        ET.fromstring(svg)


def test_a_missing_value_is_said_and_never_drawn_as_zero() -> None:
    svg = interval_chart([Interval("a", None, missing="未评分")], **SAYS)
    assert "未评分" in _texts(svg)
    assert not list(ET.fromstring(svg).iter(f"{SVG}circle"))


def test_bars_are_as_long_as_their_values() -> None:
    svg = bar_chart([Bar("a", 10, "10"), Bar("b", 5, "5"), Bar("c", 0, "0")], **SAYS)
    widths = [
        float(node.get("width", 0))
        for node in ET.fromstring(svg).iter(f"{SVG}rect")
        if "accent" in (node.get("style") or "")
    ]
    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.02)
    assert widths[2] == 0


def test_stacked_bars_show_shares_of_each_level() -> None:
    texts = _texts(stacked_bars([Levels("a", (20, 30, 50), "1.30")], ["0", "1", "2"], **SAYS))
    assert {"20%", "30%", "50%", "1.30"} <= set(texts)


def test_a_flow_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="add up to 9, not 10"):
        flow_bar([("kept", 8), ("cut", 1)], n_total=10, **SAYS)


def test_ids_differ_between_charts_of_one_page() -> None:
    first = bar_chart([Bar("a", 1, "1")], **SAYS)
    second = bar_chart([Bar("a", 2, "2")], **SAYS)
    ids = [ET.fromstring(svg).get("aria-labelledby") for svg in (first, second)]
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, (0, 0.25, 0.5, 0.75, 1)), (0, 37, (0, 10, 20, 30, 40)), (5, 5, (5, 7.5, 10))],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, expected: tuple) -> None:
    ticks = round_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    if low != high:
        assert ticks == pytest.approx(expected)


def test_a_scale_clamps_and_survives_an_empty_range() -> None:
    scale = Scale(0, 10, 100, 200)
    assert [scale(value) for value in (-5, 0, 5, 10, 99)] == [100, 100, 150, 200, 200]
    assert Scale(3, 3, 100, 200)(3) == 100


@pytest.mark.parametrize(
    "label", ["一个长得谁也放不下的名字" * 3, "a rather long name of a system " * 3]
)
def test_a_long_label_is_whole_on_two_lines_or_in_smaller_type(label: str) -> None:
    label = label.strip()
    for svg in (
        bar_chart([Bar(label, 1, "1")], **SAYS),
        heat_map([label], [label], [[1.0]], **SAYS),
    ):
        whole = "".join(_texts(svg)).replace(" ", "")
        assert label.replace(" ", "") in whole and "…" not in whole
    lines, size = fit_lines(label, 250)
    assert len(lines) == 2
    assert max(text_width(line, size) for line in lines) <= 250.01
    assert fit_lines("读心术", 1000) == (["读心术"], TEXT_SIZE)
    assert text_width("name" * 50, fit_size("name" * 50, 60)) <= 60.01
