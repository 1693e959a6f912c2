"""Labels read from an answer's own words, and the vote of several labellers."""

from __future__ import annotations

import pytest

from cbtqa.distortions.labellers import count_votes, labels_named_in
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.records import DistortionLabel

BURNS = load_taxonomy("burns-10")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (
            "这里有一点以偏概全，也有“读心术”的影子。",
            ["overgeneralization", "jumping_to_conclusions"],
        ),
        ("这是一种非此即彼的想法（All-or-Nothing Thinking）。", ["all_or_nothing"]),
        ("这并不是以偏概全，你只是累了。", []),
        ("别把困难放大，我们无法预测未来。", []),
        ("这属于“放大”。", ["magnification"]),
        ("你好像陷入了灾难化思维。", ["magnification"]),
        ("You should rest; this is not labelling.", []),
        ("", []),
    ],
)
def test_names_count_where_they_are_meant_as_terms(text: str, ids: list[str]) -> None:
    labels = labels_named_in(text, BURNS)
    assert [label.id for label in labels] == ids
    assert all(label.evidence is None and label.labeller == "answer" for label in labels)


def one(type_id: str, confidence: float | None, evidence: str | None = None) -> DistortionLabel:
    return DistortionLabel(id=type_id, evidence=evidence, labeller="x", confidence=confidence)


BALLOT = [
    (one("labeling", 0.4, "甲"), one("should", 0.9, "乙")),
    (one("labeling", 0.8, "丙"),),
    (one("labeling", None), one("magnification", 0.6, "丁")),
]


@pytest.mark.parametrize(
    ("rule", "ids"),
    [
        ("majority", ["labeling"]),
        ("any", ["labeling", "should", "magnification"]),
        ("all", ["labeling"]),
    ],
)
def test_a_vote_gives_what_enough_voters_give(rule, ids) -> None:
    assert [label.id for label in count_votes(BALLOT, rule)] == ids


def test_the_surest_voter_lends_evidence_and_the_mean_over_all_is_the_confidence() -> None:
    labeling, should, _ = count_votes(BALLOT, "any")
    assert labeling.evidence == "丙", "the surest voter quotes nothing, so the next one does"
    assert labeling.confidence == pytest.approx((0.4 + 0.8 + 1.0) / 3)
    assert should.confidence == pytest.approx(0.3), "two voters did not give it"
    assert labeling.labeller == "vote"


def test_half_of_the_voters_are_no_majority() -> None:
    assert count_votes([(one("should", 0.9),), ()], "majority") == ()
