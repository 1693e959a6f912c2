"""Instruments: ranges, totals, gaps, ladders that do not mix, exact wording from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtqa.errors import DataError
from cbtqa.ratings.rubric import Criterion
from cbtqa.simulation.instruments import (
    Instrument,
    load_instrument,
    shipped_instruments,
)


def all_at(instrument: Instrument, value: int) -> dict[str, float | None]:
    return {item.id: float(value) for item in instrument.items}


@pytest.mark.parametrize(
    ("name", "n_items", "low", "high", "totals"),
    [
        ("ctrs", 11, 0, 6, {"total": (0, 66)}),
        ("ctrs-ladder", 11, 1, 10, {"total": (11, 110)}),
        ("cts-r", 12, 0, 6, {"total": (0, 72)}),
        ("act-fm", 25, 0, 3, {"consistent": (0, 36), "inconsistent": (0, 36)}),
        ("tes", 9, 1, 7, {"mean": (1, 7)}),
    ],
)
def test_every_instrument_has_its_published_size(
    name: str, n_items: int, low: int, high: int, totals: dict[str, tuple[int, int]]
) -> None:
    instrument = load_instrument(name)
    assert len(instrument.items) == n_items
    assert set(instrument.scales.values()) == {(low, high)}
    for value, end in ((low, 0), (high, 1)):
        found = instrument.totals(all_at(instrument, value))
        assert {one.total: one.value for one in found} == {k: v[end] for k, v in totals.items()}
    assert "cbtqa" in instrument.rubric.source or "Tahir" in instrument.rubric.source
    assert name in shipped_instruments()


def test_act_fm_stance_counts_three_quarters_and_areas_end_at_nine() -> None:
    act = load_instrument("act-fm")
    values = dict.fromkeys((item.id for item in act.items), 0.0)
    values |= {f"stance_{i}": 3.0 for i in (1, 2, 3, 4)}
    assert {one.total: one.value for one in act.totals(values)} == {
        "consistent": 9,
        "inconsistent": 0,
    }
    areas = {one.total: one for one in act.areas(values)}
    assert areas["stance"].value == 9
    assert {(one.low, one.high) for one in areas.values()} == {(0, 9)}
    values["stance_1"] = 1.0
    assert act.totals(values)[0].value == 7.5


def test_a_missing_item_is_missing_and_so_is_its_total_but_not_the_other_one() -> None:
    act = load_instrument("act-fm")
    values = all_at(act, 2)
    values["open_2"] = None
    consistent, inconsistent = act.totals(values)
    assert consistent.value is None
    assert consistent.reason == "no rating of open_2"
    assert inconsistent.value == 24
    # eleven items at 2, and one that may be anything from 0 to 3
    assert (consistent.least, consistent.most) == (22, 25)
    assert (inconsistent.least, inconsistent.most) == (24, 24)
    assert {one.total for one in act.areas(values) if one.value is None} == {"open"}
    tes = load_instrument("tes")
    assert tes.totals({"warmth": 7.0})[0].value is None


def test_an_instrument_of_ones_own_may_let_items_be_missing(tmp_path: Path) -> None:
    plain = load_instrument("ctrs").rubric.model_dump(mode="json")
    plain["id"], plain["totals"][0]["max_missing"] = "own", 2
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    own = load_instrument(str(path))
    values = all_at(own, 4)
    values |= {"agenda": None, "homework": None}
    assert own.totals(values)[0].value == pytest.approx(44)
    values["focus"] = None
    assert own.totals(values)[0].value is None


SHIPPED = [load_instrument(name) for name in shipped_instruments()]


@settings(max_examples=50)
@given(st.data())
def test_a_total_never_leaves_its_range(data: st.DataObject) -> None:
    instrument = data.draw(st.sampled_from(SHIPPED))
    values: dict[str, float | None] = {
        item.id: data.draw(st.none() | st.floats(item.low, item.high)) for item in instrument.items
    }
    for one in (*instrument.totals(values), *instrument.areas(values)):
        if one.value is not None:
            assert one.low - 1e-9 <= one.value <= one.high + 1e-9


def test_values_of_another_form_or_off_the_scale_are_no_ratings() -> None:
    ctrs = load_instrument("ctrs")
    with pytest.raises(ValueError, match="no item 'stance_1'"):
        ctrs.totals({"stance_1": 1.0})
    with pytest.raises(ValueError, match="outside 0-6"):
        ctrs.totals({"agenda": 7.0})


def test_totals_of_one_value_are_told_apart_by_their_ladders() -> None:
    ctrs, ladder = load_instrument("ctrs"), load_instrument("ctrs-ladder")
    one, other = ctrs.totals(all_at(ctrs, 4))[0], ladder.totals(all_at(ladder, 4))[0]
    assert one.value == other.value == 44
    assert (one.instrument, one.low, one.high) == ("ctrs", 0, 66)
    assert (other.instrument, other.low, other.high) == ("ctrs-ladder", 11, 110)
    consistent, inconsistent = load_instrument("act-fm").totals({})
    assert consistent.total != inconsistent.total


def test_published_cut_offs_belong_to_their_own_ladder() -> None:
    cutoffs = {name: load_instrument(name).headline.cutoff for name in shipped_instruments()}
    assert cutoffs == {
        "ctrs": 40,
        "cts-r": 36,
        "ctrs-ladder": None,
        "act-fm": None,
        "session-safety": None,
        "tes": None,
    }


@pytest.mark.parametrize("name", shipped_instruments())
def test_every_item_says_what_earns_its_points_in_words_of_its_own(name: str) -> None:
    items = load_instrument(name).items
    anchors = [words for item in items for words in _english(item)]
    assert all(len(item.anchors) >= 3 for item in items)
    assert len(set(anchors)) == len(anchors)
    assert min(len(words.split()) for item in items for words in _english(item)) >= 2


def _english(item: Criterion) -> list[str]:
    return [words.to("en") for words in item.anchors.values()]


# --- wording -------------------------------------------------------------------------------------


def wording_file(folder: Path, **changed: Any) -> Path:
    plain = {
        "instrument": "ctrs",
        "source": "an invented form, used with permission",
        "items": {
            "agenda": {"question": "Exact words about the plan?", "anchors": {0: "None", 6: "All"}}
        },
    }
    path = folder / "exact.yaml"
    path.write_text(yaml.safe_dump({**plain, **changed}), encoding="utf-8")
    return path


def test_exact_words_replace_ours_and_leave_ranges_and_totals_alone(tmp_path: Path) -> None:
    ours, exact = load_instrument("ctrs"), load_instrument("ctrs", wording_file(tmp_path))
    agenda, feedback = exact.items[:2]
    assert agenda.question.to("en") == "Exact words about the plan?"
    assert {point: words.to("en") for point, words in agenda.anchors.items()} == {
        0: "None",
        6: "All",
    }
    assert feedback == ours.items[1]
    assert exact.scales == ours.scales
    assert exact.id == ours.id
    assert exact.rubric.sha256 != ours.rubric.sha256
    assert exact.wording == "exact.yaml"
    assert "Exact words" not in exact.printable.model_dump_json()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"instrument": "tes"}, "words of 'tes'"),
        ({"items": {"stance_1": {"question": "?"}}}, "no item 'stance_1'"),
        ({"items": {"agenda": {"anchors": {9: "off"}}}}, "outside 0-6"),
        ({"items": {}}, "at least 1"),
        ({"scale": 7}, "scale"),
    ],
)
def test_a_wording_that_does_not_fit_is_refused(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        load_instrument("ctrs", wording_file(tmp_path, **changed))


@pytest.mark.parametrize("name", ["cbt-llm", "distortions", "nothing", "missing.yaml"])
def test_what_is_no_instrument_for_sessions_is_refused(name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_instrument(name)
    assert "act-fm" in str(caught.value.hint)
