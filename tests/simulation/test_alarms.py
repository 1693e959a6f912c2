"""Each alarm is raised by the fault it is named after, and silent without it."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from cbtqa.records import Session, Turn
from cbtqa.report.page import load_wording
from cbtqa.simulation.analysis.alarms import (
    ending_alarms,
    endings,
    halo_alarms,
    halo_rows,
    judge_alarms,
    length_alarms,
    length_correlations,
    length_test,
    lengths,
    order_of,
    scale_alarms,
)
from cbtqa.simulation.analysis.outcomes import (
    alpha_within_arms,
    analyse_outcome,
    cronbach_alpha,
    item_profiles,
    item_use,
    top_shares,
)
from cbtqa.simulation.analysis.results import Alarm, AlarmKind, InstrumentResult
from cbtqa.simulation.analysis.scores import Judged, SessionScore, score_sessions
from cbtqa.simulation.analysis.settings import ModelSettings
from cbtqa.simulation.instruments import load_instrument
from tests.support.judged_sessions import ratings, session

LADDER = load_instrument("ctrs-ladder")
ARMS = ("base", "tuned")


def result_of(values: Any, name: str = "ctrs-ladder", n: int = 20) -> InstrumentResult:
    """Sessions of two arms; `values(number, place of the item)` is the rating."""
    instrument = load_instrument(name)
    sessions = [session(ARMS[i % 2], f"p{i // 2}") for i in range(n)]
    made = [
        one
        for i, each in enumerate(sessions)
        for one in ratings(
            each, instrument, {item.id: values(i, k) for k, item in enumerate(instrument.items)}
        )
    ]
    judged = Judged(instrument, {"judge": tuple(made)})
    rows = score_sessions(judged, sessions)
    alpha, alpha_low = alpha_within_arms(instrument, rows) or (None, None)
    return InstrumentResult(
        instrument=instrument.id,
        title="t",
        title_zh="t",
        scale=instrument.scale,
        source="s",
        judges=("judge",),
        n_sessions=n,
        alpha=cronbach_alpha(instrument, rows),
        alpha_within=alpha,
        alpha_within_low=alpha_low,
        outcomes=(
            analyse_outcome(
                rows, instrument, instrument.headline, ARMS, ModelSettings(bootstrap=0)
            ),
        ),
        regression=None,
        profile=tuple(item_profiles(instrument, rows, ARMS)),
        use=tuple(item_use(instrument, rows, judged.all_ratings())),
        top=tuple(top_shares(instrument, rows, judged.all_ratings(), ARMS)),
    )


def texts(alarms: Any, kind: str) -> list[str]:
    return [alarm.text for alarm in alarms if alarm.kind == kind]


def dice(low: int, high: int, seed: int = 0) -> Any:
    table = np.random.default_rng(seed).integers(low, high + 1, (200, 25))
    return lambda i, k: int(table[i, k])


def test_a_judge_that_uses_the_whole_scale_raises_nothing_about_it() -> None:
    kinds = {alarm.kind for alarm in scale_alarms(result_of(dice(1, 10)))}
    assert kinds <= {"items_alike"}


def test_a_ceiling_below_the_top_of_the_ladder_is_told_with_what_totals_can_reach() -> None:
    found = texts(scale_alarms(result_of(dice(1, 7))), "ceiling")
    assert found == ["no item above 7 of 10 in 220 ratings; totals cannot pass 77 of 110"]
    weighted = texts(scale_alarms(result_of(dice(0, 2), "act-fm")), "ceiling")
    assert weighted == ["no item above 2 of 3 in 500 ratings"]


def test_ratings_heaped_on_the_top_are_a_ceiling_too() -> None:
    found = texts(scale_alarms(result_of(lambda i, k: 10 if (i + k) % 2 else 1 + k % 9)), "ceiling")
    assert found == ["many ratings are the highest point, 10: tuned 55%"]


def test_floor_and_unused_points_are_told() -> None:
    alarms = list(scale_alarms(result_of(lambda i, k: (4, 6, 10)[(i + k) % 3])))
    assert texts(alarms, "floor") == ["no item below 4 (the scale begins at 1) in 220 ratings"]
    assert texts(alarms, "unused") == ["points never given between others: 5, 7, 8, 9"]


def test_items_with_one_value_are_told_together() -> None:
    alarms = list(scale_alarms(result_of(lambda i, k: 5 if k < 2 else dice(1, 10)(i, k), n=40)))
    (found,) = texts(alarms, "one_value")
    assert found.startswith("2 of 11 items get one value")
    assert "agenda 5" in found


def test_a_few_ratings_raise_no_alarm_about_the_scale() -> None:
    assert not list(scale_alarms(result_of(lambda i, k: 5, n=2)))


def test_unscored_items_are_told_with_their_reasons() -> None:
    values = dice(1, 10)
    alarms = scale_alarms(result_of(lambda i, k: None if k == 0 else values(i, k)))
    assert texts(alarms, "unscored") == ["9% of the items are unscored (open 20)"]


def test_items_that_all_move_together_are_told() -> None:
    base = dice(1, 10)
    result = result_of(lambda i, k: base(i, 0))
    assert result.alpha == pytest.approx(1)
    assert texts(scale_alarms(result), "items_alike")


def test_a_judge_of_one_value_and_the_rules_are_named() -> None:
    alarms = list(judge_alarms("tes", {"m": [4] * 95 + [5] * 5, "n": [1, 7] * 50}, (1, 7)))
    assert texts(alarms, "one_value") == ["m gives 4 (of 1-7) in 95%"]
    assert "no model" in texts(judge_alarms("tes", {"rules": []}, (1, 7)), "people")[0]


# --- length and endings --------------------------------------------------------------------------


def score(arm: str, patient: int, value: int, words: float) -> SessionScore:
    values = {item.id: float(value) for item in LADDER.items}
    return SessionScore(
        session_id=f"{arm}{patient}",
        arm=arm,
        patient=f"p{patient}",
        number=1,
        values=values,
        totals=tuple(LADDER.totals(values)),
        numbers={"words": words, "turns": 4.0},
    )


def test_scores_that_follow_length_are_told_pooled_and_within_arms() -> None:
    rows = [score(arm, i, 1 + i % 10, 100.0 * (1 + i % 10)) for arm in ARMS for i in range(20)]
    correlations = length_correlations(rows, "ctrs-ladder", "total", ARMS)
    assert {one.scope: round(one.r, 6) for one in correlations} == {
        "pooled": 1,
        "within arms": 1,
        "base": 1,
        "tuned": 1,
    }
    assert len(texts(length_alarms(correlations, lengths(rows, ARMS)), "length")) == 2


def test_length_that_only_tells_arms_apart_is_pooled_and_not_within() -> None:
    wiggle = [(-1) ** i for i in range(20)]
    rows = [
        score(arm, i, value + wiggle[i], words + wiggle[(i // 2) % 20] + i % (value - 1))
        for arm, value, words in (("base", 3, 100.0), ("tuned", 8, 300.0))
        for i in range(20)
    ]
    by_scope = {c.scope: c for c in length_correlations(rows, "ctrs-ladder", "total", ARMS)}
    assert by_scope["pooled"].r > 0.9
    assert abs(by_scope["within arms"].r) < 0.3
    test = length_test(rows, ARMS)
    found = texts(length_alarms(list(by_scope.values()), lengths(rows, ARMS), test), "length")
    assert any("pooled" in text for text in found)
    assert any("arms differ in length: tuned 303 words" in text for text in found)
    assert not any("within" in text for text in found)


def test_correlation_equals_scipy() -> None:
    from scipy.stats import pearsonr

    generator = np.random.default_rng(3)
    rows = [score("base", i, int(generator.integers(1, 11)), generator.random()) for i in range(30)]
    (pooled, *_) = length_correlations(rows, "ctrs-ladder", "total", ("base",))
    theirs = pearsonr([r.numbers["words"] for r in rows], [r.totals[0].value or 0 for r in rows])
    interval = theirs.confidence_interval()
    assert pooled.r == pytest.approx(theirs.statistic)
    assert (pooled.low, pooled.high) == pytest.approx((interval.low, interval.high))


def ended(arm: str, reasons: list[Any]) -> list[Session]:
    return [session(arm, f"p{i}", stop=reason) for i, reason in enumerate(reasons)]


def test_early_stops_that_differ_between_arms_are_told() -> None:
    sessions = ended("base", ["ended"] * 20)
    sessions += ended("tuned", ["context"] * 3 + ["no_answer"] * 2 + ["max_turns"] * 15)
    rows = endings(sessions, ARMS)
    assert [row.n_early for row in rows] == [0, 5]
    assert rows[1].counts == {"context": 3, "max_turns": 15, "no_answer": 2}
    assert texts(ending_alarms(rows), "endings") == [
        "early stops differ between arms: tuned 5 of 20"
    ]
    both = ended("base", ["context", "ended"]) + ended("tuned", ["context", "ended"])
    assert not list(ending_alarms(endings(both, ARMS)))


def test_instruments_that_rise_and_fall_together_are_told() -> None:
    mild = [score("base", i, 1 + i % 10, 10.0) for i in range(30)]
    other = [score("base", i, 1 + (i * 7) % 10, 10.0) for i in range(30)]
    tables = {"a": ("total", mild), "b": ("total", mild), "c": ("total", other)}
    rows = halo_rows(tables)
    assert [(row.first, row.second, round(row.r, 6)) for row in rows][0] == ("a", "b", 1)
    assert [row.scope for row in rows] == ["within arms", "pooled"] * 3
    (alarm,) = halo_alarms(rows)
    assert alarm.text.startswith("a and b rise and fall together, within arms: r +1.00")
    assert halo_rows({"a": ("total", mild[:3]), "b": ("total", mild)}) == []


def test_lengths_count_the_therapists_words_and_short_sessions() -> None:
    turns = (
        Turn(role="therapist", text="one two three"),
        Turn(role="patient", text="not counted"),
        Turn(role="therapist", text="four <think>hidden words</think>"),
    )
    made = [session("base", turns=turns)]
    judged = Judged(LADDER, {"j": tuple(ratings(made[0], LADDER, 5))})
    (row,) = lengths(score_sessions(judged, made), ("base",))
    assert (row.words, row.turns, row.words_per_turn, row.n_short) == (4, 2, 2, 1)


def test_the_heaviest_alarms_come_first() -> None:
    kinds = ["design", "length", "ceiling", "people"]
    alarms = [Alarm(kind=kind, text="x") for kind in kinds]  # type: ignore[arg-type]
    ordered = sorted(alarms, key=lambda one: order_of(one.kind))
    assert [one.kind for one in ordered] == ["people", "ceiling", "length", "design"]


def test_every_kind_of_alarm_has_its_words_and_its_place() -> None:
    words = load_wording("cbtqa.simulation", "analysis.yaml")
    for kind in get_args(AlarmKind):
        assert words[f"alarm_kinds.{kind}"].en
        assert order_of(kind) >= 0
