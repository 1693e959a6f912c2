"""What may be said about an item, by whichever front end it comes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cbtqa.ratings.answers import Answer, Change, Rating, check_change, is_done, make_ratings
from cbtqa.ratings.study import StudyFolder
from tests.ratings.conftest import MakeStudy


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("value:relevance", 3, "found 3, expected a whole number from 0 to 2"),
        ("value:relevance", "2", "found '2'"),
        ("value:relevance", True, "found True"),
        ("value:kindness", 1, "no criterion 'kindness'"),
        ("evidence:relevance", "x", "takes no evidence"),
        ("note", 5, "expected text"),
        ("note", "x" * 10_001, "at most 10000"),
        ("crisis", 1, "expected yes or no"),
        ("system", "alpha", "unknown field"),
    ],
)
def test_what_is_not_on_offer_is_refused(
    folder: StudyFolder, field: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_change(folder, "R1", Change("R1-001", field, value))


def test_another_raters_item_is_refused(folder: StudyFolder) -> None:
    with pytest.raises(ValueError, match="R2-001 is not in the plan of R1"):
        check_change(folder, "R1", Change("R2-001", "value:relevance", 1))


def test_evidence_must_stand_in_the_text_and_marks_exclude_none(make_study: MakeStudy) -> None:
    folder = make_study(predictions=(), rubric="distortions", raters=1).folder
    item = folder.item_of(folder.by_code["R1-001"])
    quote = Change("R1-001", "evidence:labeling", f"  {item.description[3:9]} ")
    assert check_change(folder, "R1", quote).value == item.description[3:9].strip()
    with pytest.raises(ValueError, match="does not occur"):
        check_change(folder, "R1", Change("R1-001", "evidence:labeling", "没有的话"))
    answer = Answer(values={"labeling": 1})
    with pytest.raises(ValueError, match="exclude each other"):
        check_change(folder, "R1", Change("R1-001", "value:none", 1), answer)


def test_an_item_is_done_when_rated_or_set_aside(folder: StudyFolder) -> None:
    full = {"relevance": 0, "structure": 1, "helpfulness": 2}
    assert not is_done(folder, None)
    assert not is_done(folder, Answer(values={**full, "helpfulness": None}))
    assert is_done(folder, Answer(values=dict(full)))
    assert is_done(folder, Answer(cannot_judge=True))


def test_cannot_judge_and_open_are_missing_values_with_their_own_reasons(
    folder: StudyFolder,
) -> None:
    answers = {
        "R1-001": Answer(values={"relevance": 2}, cannot_judge=True, note="不确定"),
        "R1-002": Answer(values={"relevance": 0}),
    }
    ratings = make_ratings(folder, answers)
    assert len(ratings) == 3 * len(folder.plan)
    first = [r for r in ratings if r.rater == "R1" and r.order == 1]
    assert {(r.value, r.unrated_reason, r.note) for r in first} == {
        (None, "cannot_judge", "不确定")
    }
    second = [(r.value, r.unrated_reason) for r in ratings if r.rater == "R1" and r.order == 2]
    assert second == [(0, None), (None, "open"), (None, "open")]


def test_a_rating_keeps_its_own_range() -> None:
    plain: dict[str, Any] = {
        "item_id": "I1",
        "question_id": "q",
        "system": "A",
        "rater": "R1",
        "criterion": "c",
        "low": 0,
        "high": 2,
        "order": 1,
    }
    assert Rating(**plain, value=2).value == 2
    with pytest.raises(ValidationError, match="3 lies outside 0-2"):
        Rating(**plain, value=3)
    with pytest.raises(ValidationError, match="either a value or a reason"):
        Rating(**plain, value=None)
    with pytest.raises(ValidationError, match="either a value or a reason"):
        Rating(**plain, value=1, unrated_reason="open")


def test_marks_that_contradict_each_other_in_the_store_count_as_open(make_study: MakeStudy) -> None:
    folder = make_study(predictions=(), rubric="distortions", raters=1).folder
    ratings = make_ratings(folder, {"R1-001": Answer(values={"none": 1, "labeling": 1})})
    assert {r.unrated_reason for r in ratings if r.order == 1} == {"open"}
