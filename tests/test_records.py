"""Invariants of the types that reach disk."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cbtqa.records import (
    STEP_NAMES,
    CbtAnswer,
    CbtSteps,
    MetricScore,
    Provenance,
    Question,
    ReferenceAnswer,
)

STEPS = CbtSteps(**{name: f"第{index}步的话。" for index, name in enumerate(STEP_NAMES)})
MADE = Provenance(model="m", version="1")


def test_steps_join_in_the_papers_order_with_a_blank_line_between() -> None:
    assert STEPS.joined().split("\n\n") == [f"第{index}步的话。" for index in range(5)]


def test_answers_written_without_blank_lines_are_still_read() -> None:
    text = STEPS.joined().replace("\n", "")
    answer = CbtAnswer(question_id="1", system="s", text=text, steps=STEPS, provenance=MADE)
    assert answer.text == text


def test_an_answer_whose_steps_do_not_rebuild_its_text_is_refused() -> None:
    CbtAnswer(question_id="1", system="s", text=STEPS.joined(), steps=STEPS, provenance=MADE)
    with pytest.raises(ValidationError, match="are not the text"):
        CbtAnswer(question_id="1", system="s", text="别的话", steps=STEPS, provenance=MADE)


@pytest.mark.parametrize("blank", ["", " ", "\u3000\n"])
def test_no_step_may_be_blank(blank: str) -> None:
    with pytest.raises(ValidationError):
        CbtSteps(**{**STEPS.model_dump(), "key_thought": blank})


@pytest.mark.parametrize("spans", [[(0, 3), (2, 4)], [(3, 4), (0, 3)], [(0, 99)], [(2, 2)]])
def test_strategy_spans_are_ordered_and_inside_the_text(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValidationError):
        ReferenceAnswer(
            question_id="1",
            text="一二三四五",
            strategies=tuple({"start": a, "end": b, "type": "Others"} for a, b in spans),
        )


def test_offsets_count_code_points_not_bytes() -> None:
    answer = ReferenceAnswer(
        question_id="1", text="😊好𠮷", strategies=({"start": 0, "end": 3, "type": "Others"},)
    )
    assert answer.text[answer.strategies[0].start : answer.strategies[0].end] == "😊好𠮷"


def test_records_are_frozen_and_know_their_fields() -> None:
    question = Question(id="1", question="怎么办？")
    with pytest.raises(ValidationError):
        question.id = "2"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        Question(id="1", question="怎么办？", answer="x")  # type: ignore[call-arg]


def test_a_score_without_a_value_needs_a_reason() -> None:
    score = {"metric": "bleu", "system": "a", "unit": "0-100", "n_total": 3, "signature": "s"}
    with pytest.raises(ValidationError, match="reason"):
        MetricScore(value=None, n_scored=0, **score)
    with pytest.raises(ValidationError, match="above"):
        MetricScore(value=1.0, n_scored=4, **score)
