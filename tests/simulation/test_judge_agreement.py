"""Judges against themselves, each other and people, from records of `cbtqa rate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbtqa.errors import DataError, UsageError
from cbtqa.files import write_json, write_jsonl
from cbtqa.manifest import Manifest, write_manifest
from cbtqa.records import ItemRating, Session
from cbtqa.settings import resolve
from cbtqa.simulation.analysis.agreement import agreement_rows, corrected_rows
from cbtqa.simulation.analysis.results import AgreementRow
from cbtqa.simulation.analysis.run import analyse
from cbtqa.simulation.analysis.scores import Judged, read_people
from cbtqa.simulation.analysis.settings import AnalysisSettings
from cbtqa.simulation.instruments import load_instrument
from tests.support.judged_sessions import ratings, session

TES = load_instrument("tes")
ARMS = ("base", "tuned")
SESSIONS = [session(arm, f"p{i}") for arm in ARMS for i in range(20)]


def truth(seed: int = 0) -> dict[str, dict[str, int | None]]:
    """What a careful rater would give to every session, 2 to 5."""
    generator = np.random.default_rng(seed)
    return {
        one.id: {item: int(generator.integers(2, 6)) for item in TES.scales} for one in SESSIONS
    }


def rated(
    values: dict[str, dict[str, int | None]], shift: int = 0, **more: Any
) -> list[ItemRating]:
    return [
        rating
        for one in SESSIONS
        if one.id in values
        for rating in ratings(
            one,
            TES,
            {k: None if v is None else v + shift for k, v in values[one.id].items()},
            **more,
        )
    ]


def row_of(rows: list[AgreementRow], kind: str, item: str = "total:mean") -> AgreementRow:
    (found,) = [row for row in rows if row.kind == kind and row.item == item]
    return found


def value_of(row: AgreementRow, name: str) -> float:
    (found,) = [one for one in row.coefficients if one.name == name]
    assert found.value is not None
    return found.value


def test_repeats_that_are_alike_agree_perfectly_and_noise_does_not() -> None:
    alike = [one for repeat in (1, 2, 3) for one in rated(truth(), judge="m", repeat=repeat)]
    row = row_of(agreement_rows(Judged(TES, {"m": tuple(alike)}), (), SESSIONS), "repeats")
    assert value_of(row, "icc_A_1") == pytest.approx(1)
    assert value_of(row, "alpha_interval") == pytest.approx(1)
    noise = [one for repeat in (1, 2, 3) for one in rated(truth(repeat), judge="m", repeat=repeat)]
    rows = agreement_rows(Judged(TES, {"m": tuple(noise)}), (), SESSIONS)
    assert abs(value_of(row_of(rows, "repeats"), "icc_A_1")) < 0.3
    assert abs(value_of(row_of(rows, "repeats", "warmth"), "mean_kappa_quadratic")) < 0.3


def test_a_judge_that_inflates_is_consistent_and_not_in_agreement() -> None:
    judged = Judged(TES, {"mild": tuple(rated(truth(), 2, judge="mild"))})
    people = rated(truth(), judge="R1")
    row = row_of(agreement_rows(judged, people, SESSIONS), "judge-people")
    assert value_of(row, "icc_C_1") == pytest.approx(1)
    assert value_of(row, "icc_A_1") < 0.3
    assert row.bias == pytest.approx(2)
    assert row.limits == pytest.approx((2, 2))


def test_judges_are_compared_with_each_other_and_people_among_themselves() -> None:
    judged = Judged(
        TES, {"m": tuple(rated(truth(), judge="m")), "n": tuple(rated(truth(), 1, judge="n"))}
    )
    people = [*rated(truth(), judge="R1"), *rated(truth(), judge="R2")]
    rows = agreement_rows(judged, people, SESSIONS)
    assert row_of(rows, "judges").who == "m | n"
    assert value_of(row_of(rows, "judges"), "icc_C_1") == pytest.approx(1)
    assert value_of(row_of(rows, "people"), "icc_A_1") == pytest.approx(1)
    assert value_of(row_of(rows, "people", "warmth"), "mean_kappa_quadratic") == pytest.approx(1)
    kinds = {(row.kind, row.item) for row in rows}
    assert {("judges", item) for item in TES.scales} <= kinds


def test_sessions_without_a_rating_are_left_out_of_the_icc_and_counted() -> None:
    values = truth()
    values[SESSIONS[0].id]["warmth"] = None
    judged = Judged(TES, {"m": tuple(rated(values, judge="m"))})
    row = row_of(agreement_rows(judged, rated(truth(), judge="R1"), SESSIONS), "judge-people")
    assert row.coefficients[0].n_items == len(SESSIONS) - 1
    assert value_of(row, "icc_A_1") == pytest.approx(1)


def test_corrected_means_take_the_judges_inflation_back() -> None:
    judged = Judged(TES, {"mild": tuple(rated(truth(), 2, judge="mild"))})
    some = {one.id: truth()[one.id] for one in SESSIONS if int(one.profile_id[1:]) % 2}
    rows = corrected_rows(judged, rated(some, judge="R1"), SESSIONS, ARMS, "random")
    for row in rows:
        own = [truth()[one.id] for one in SESSIONS if one.arm == row.arm]
        expected = float(np.mean([list(values.values()) for values in own]))  # type: ignore[arg-type]
        assert row.judge_mean == pytest.approx(expected + 2)
        assert row.corrected is not None
        assert row.corrected.low is not None
        assert row.corrected.high is not None
        assert row.corrected.value == pytest.approx(expected, abs=0.25)
        assert row.corrected.low < expected < row.corrected.high
        assert (row.corrected.n_human, row.corrected.n_judge_only) == (10, 10)
    assert {row.arm for row in rows} == set(ARMS)


# --- what comes out of a rating study ------------------------------------------------------------


def human_rows(sessions: list[Session], value: int = 4, **changed: Any) -> list[dict[str, Any]]:
    """Rows as `cbtqa rate report` writes them into ratings.jsonl."""
    return [
        {
            "item_id": "i",
            "question_id": one.profile_id,
            "system": one.arm,
            "rater": "R1",
            "criterion": item,
            "value": value,
            "low": 1,
            "high": 7,
            "order": 1,
            "repeat": 0,
            "phase": "main",
            **changed,
        }
        for one in sessions
        for item in TES.scales
    ]


def people_of(folder: Path, rows: list[dict[str, Any]]) -> list[ItemRating]:
    write_jsonl(folder / "ratings.jsonl", rows)
    name, found = read_people(folder / "ratings.jsonl", [load_instrument("ctrs"), TES], SESSIONS)
    assert name == "tes"
    return found


def test_ratings_of_people_find_their_session_by_patient_and_arm(tmp_path: Path) -> None:
    rows = human_rows(SESSIONS[:2])
    rows += human_rows(SESSIONS[2:3], phase="calibration") + human_rows(SESSIONS[3:4], repeat=1)
    rows += human_rows([session("base", "stranger")])
    found = people_of(tmp_path, rows)
    assert {one.session_id for one in found} == {SESSIONS[0].id, SESSIONS[1].id}
    assert {(one.judge, one.value) for one in found} == {("R1", 4)}


def test_the_second_session_of_a_patient_is_told_from_the_first(tmp_path: Path) -> None:
    first, second = session("base", "ana"), session("base", "ana", number=2)
    rows = human_rows([first], 2) + human_rows([second], 6, question_id="ana/s2/r1")
    write_jsonl(tmp_path / "r.jsonl", rows)
    _, found = read_people(tmp_path / "r.jsonl", [TES], [first, second])
    assert {(one.session_id, one.value) for one in found} == {(first.id, 2), (second.id, 6)}


def test_the_names_are_those_that_the_rating_room_gives() -> None:
    from cbtqa.ratings.sources import _session_id

    second = session("base", "ana", number=2)
    assert _session_id(second.model_dump(), "here") == "ana/s2/r1"
    assert _session_id(session("base", "ana").model_dump(), "here") == "ana"


def test_open_items_stay_open_with_their_reason(tmp_path: Path) -> None:
    rows = human_rows(SESSIONS[:1])
    rows[0] |= {"value": None, "unrated_reason": "cannot_judge"}
    found = people_of(tmp_path, rows)
    assert (found[0].value, found[0].unscored_reason) == (None, "cannot_judge")


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"high": 5}, UsageError, "different ladders"),
        ({"value": 9}, DataError, "whole number from 1 to 7"),
        ({"value": 3.5}, DataError, "whole number"),
        ({"system": "A"}, DataError, "no rating of these sessions"),
        ({"criterion": "agenda"}, DataError, "items of none of: ctrs, tes"),
    ],
)
def test_ratings_that_are_not_of_these_sessions_or_this_ladder_are_refused(
    tmp_path: Path, changed: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        people_of(tmp_path, human_rows(SESSIONS[:1], **changed))


def test_forms_that_share_items_are_told_apart(tmp_path: Path) -> None:
    ctrs, revised, ladder = (load_instrument(name) for name in ("ctrs", "cts-r", "ctrs-ladder"))
    rows = [
        {**row, "criterion": item, "low": 0, "high": 6}
        for item in ctrs.scales
        for row in human_rows(SESSIONS[:1])[:1]
    ]
    write_jsonl(tmp_path / "r.jsonl", rows)
    name, found = read_people(tmp_path / "r.jsonl", [ladder, revised, ctrs], SESSIONS)
    assert name == "ctrs"
    assert {one.item for one in found} == set(ctrs.scales)
    with pytest.raises(DataError, match="items of none of: cts-r"):
        read_people(tmp_path / "r.jsonl", [revised], SESSIONS)
    with pytest.raises(UsageError, match="0-6, ctrs-ladder is 1-10"):
        read_people(tmp_path / "r.jsonl", [ladder], SESSIONS)


def test_a_study_with_people_is_analysed_with_bias_and_corrected_means(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sessions.jsonl", SESSIONS)
    folder = tmp_path / "judged" / "tes" / "mild"
    write_jsonl(folder / "ratings.jsonl", rated(truth(), 2, judge="mild"))
    write_json(folder.parent / "instrument.json", TES.rubric)
    manifest = Manifest(
        kind="session-ratings", counts={"judge": "mild"}, started_at="-", finished_at="-"
    )
    write_manifest(folder, manifest)
    people = [
        {**row, "value": truth()[one.id][row["criterion"]]}
        for one in SESSIONS
        for row in human_rows([one])
    ]
    write_jsonl(tmp_path / "people.jsonl", people)
    flags = {
        "source": tmp_path / "sessions.jsonl",
        "judged": tmp_path / "judged",
        "human": (tmp_path / "people.jsonl",),
        "bootstrap": 0,
    }
    report, _ = analyse(resolve(AnalysisSettings, flags=flags, environ={}))
    assert report.corrected
    assert any(alarm.kind == "bias" and "milder by 2.0" in alarm.text for alarm in report.alarms)
    assert not any("no human ratings" in alarm.text for alarm in report.alarms)
    assert "People rated" in report.methods
    assert [row.n for row in report.endings] == [20, 20]


def test_a_judge_that_has_not_ended_or_not_seen_all_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sessions.jsonl", SESSIONS)
    folder = tmp_path / "judged" / "tes" / "m"
    write_json(folder.parent / "instrument.json", TES.rubric)
    (folder.parent / "stopped").mkdir(parents=True)
    some = {one.id: truth()[one.id] for one in SESSIONS if one.profile_id != "p7"}
    write_jsonl(folder / "ratings.jsonl", rated(some, judge="m"))
    counts = {"judge": "m"}
    write_manifest(
        folder, Manifest(kind="session-ratings", counts=counts, started_at="-", finished_at="-")
    )
    flags = {"source": tmp_path / "sessions.jsonl", "judged": tmp_path / "judged", "bootstrap": 0}
    report, _ = analyse(resolve(AnalysisSettings, flags=flags, environ={}))
    told = [alarm.text for alarm in report.alarms if alarm.kind == "design"]
    assert "tes: the judge stopped has not ended and is left out" in told
    assert any("m was not given 2 of 40 sessions" in text for text in told)
