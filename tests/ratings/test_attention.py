"""Signs that a rater did not read: found where they are, and never in raters who are sound."""

from __future__ import annotations

import random

import pytest

from cbtqa.ratings.analysis import analyse
from cbtqa.ratings.answers import Answer
from cbtqa.ratings.page import rating_page
from cbtqa.ratings.results import RaterCheck
from cbtqa.ratings.study import Presentation, StudyFolder
from tests.ratings.conftest import MakeStudy


def sound(folder: StudyFolder, seed: int = 1) -> dict[str, Answer]:
    """Raters who differ in strictness, and now and then from themselves."""
    rng = random.Random(seed)
    strictness = {rater: rng.gauss(0, 0.3) for rater in folder.study.raters}
    quality = {item: rng.gauss(1.2, 0.6) for item in folder.items}

    def rate(shown: Presentation) -> int:
        latent = quality[shown.item_id] + strictness[shown.rater] + rng.gauss(0, 0.4)
        return min(2, max(0, round(latent)))

    return {
        shown.code: Answer(
            values={criterion.id: rate(shown) for criterion in folder.rubric.criteria}, seconds=60.0
        )
        for shown in folder.plan
    }


def flagged(folder: StudyFolder, answers: dict[str, Answer]) -> list[RaterCheck]:
    return [one for one in analyse(folder, answers).checks if one.is_flagged]


@pytest.fixture
def study(make_study: MakeStudy) -> StudyFolder:
    size = {"n": 30, "n_available": 34, "calibration": 4, "raters": 4, "repeat_share": 0.2}
    return make_study(**size, language="en").folder


def test_nothing_stands_out_in_sound_raters(study: StudyFolder) -> None:
    report = analyse(study, sound(study))
    assert len(report.checks) > 20
    assert [one for one in report.checks if one.is_flagged] == []
    assert "nothing stands out" in rating_page(study, report)


def test_a_rater_who_gives_the_same_point_throughout_is_named(study: StudyFolder) -> None:
    answers = sound(study)
    for shown in study.shown_to("R2"):
        answers[shown.code].values = dict.fromkeys(answers[shown.code].values, 1)
    found = flagged(study, answers)
    assert {(one.rater, one.check) for one in found} == {("R2", "same_point")}
    assert {one.found for one in found} == {1.0}
    page = rating_page(study, analyse(study, answers))
    assert "share of one point" in page and "nothing stands out" not in page


def test_the_same_point_is_no_sign_where_the_others_give_it_too(study: StudyFolder) -> None:
    answers = sound(study)
    for shown in study.plan:
        values = answers[shown.code].values
        is_odd = shown.rater != "R2" and shown.order % 20 == 0
        answers[shown.code].values = dict.fromkeys(values, 1 if is_odd else 2)
    assert flagged(study, answers) == []


def test_a_rater_who_stops_reading_halfway_is_named(study: StudyFolder) -> None:
    answers = sound(study)
    shown_to = study.shown_to("R3")
    for shown in shown_to[len(shown_to) // 2 :]:
        answers[shown.code].values = dict.fromkeys(answers[shown.code].values, 1)
    assert ("R3", "same_run") in {(one.rater, one.check) for one in flagged(study, answers)}


def test_a_rater_faster_than_anybody_reads_is_named(study: StudyFolder) -> None:
    answers = sound(study)
    for shown in study.shown_to("R1"):
        answers[shown.code].seconds = 0.5
    assert [(one.rater, one.check) for one in flagged(study, answers)] == [("R1", "too_fast")]
    for shown in study.plan:
        answers[shown.code].seconds = None  # as in sheets
    assert not any(one.check == "too_fast" for one in analyse(study, answers).checks)


def test_a_study_of_one_rater_has_no_others_to_compare_with(make_study: MakeStudy) -> None:
    folder = make_study(n=10, raters=1).folder
    checks = analyse(folder, sound(folder)).checks
    assert {one.check for one in checks} <= {"same_run", "too_fast"}
