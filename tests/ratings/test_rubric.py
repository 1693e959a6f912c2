"""Rubrics: what a YAML file may say, and how values settle."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.errors import DataError
from cbtqa.ratings.rubric import load_rubric, parse_rubric, shipped_rubrics
from cbtqa.ratings.scores import published_scores

MINIMAL = """
id: own
version: 2
title: {zh: 自己的}
source: invented
guidelines: {zh: 说明}
sections: [{id: s, title: {zh: 节}}]
criteria:
  - {id: one, name: {zh: 一}, question: {zh: 问}, low: -1, high: 3, anchors: {-1: {zh: 低}, 3: {zh: 高}}, section: s, reversed: true}
  - {id: two, name: {zh: 二}, question: {zh: 问}, low: 1, high: 5, required: false}
totals: [{id: all, name: {zh: 总}, sections: [s]}]
"""


def test_the_paper_rubric_has_three_criteria_from_0_to_2_in_both_languages() -> None:
    rubric = load_rubric("cbt-llm")
    assert [c.id for c in rubric.criteria] == ["relevance", "structure", "helpfulness"]
    assert all((c.low, c.high, set(c.anchors)) == (0, 2, {0, 1, 2}) for c in rubric.criteria)
    assert all(
        w.zh and w.en for c in rubric.criteria for w in (c.name, c.question, *c.anchors.values())
    )


@pytest.mark.parametrize(
    ("name", "n", "low", "high"),
    [("ctrs", 11, 0, 6), ("ctrs-ladder", 11, 1, 10), ("act-fm", 25, 0, 3), ("tes", 9, 1, 7)],
)
def test_session_instruments_fit_the_same_engine(name: str, n: int, low: int, high: int) -> None:
    rubric = load_rubric(name)
    assert (len(rubric.criteria), rubric.shows) == (n, "transcript")
    assert {(c.low, c.high) for c in rubric.criteria} == {(low, high)}


def test_act_fm_weighs_its_four_stance_items_as_three() -> None:
    rubric = load_rubric("act-fm")
    weights = {section.id: section.weight for section in rubric.sections}
    for total in rubric.totals:
        top = sum(
            c.high * weights[c.section or ""]
            for c in rubric.criteria
            if c.section in total.sections
        )
        assert top == 36


@pytest.mark.parametrize("taxonomy", ["burns-10", "socialcd-12"])
def test_the_marks_of_distortions_are_the_types_of_the_taxonomy_and_none(taxonomy: str) -> None:
    rubric = load_rubric(f"distortions:{taxonomy}")
    assert [mark.id for mark in rubric.marks] == [*load_taxonomy(taxonomy).ids, "none"]


def test_an_own_rubric_is_read_from_its_path_and_comments_do_not_change_its_hash(
    tmp_path: Path,
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    rubric = load_rubric(str(path))
    assert list(rubric.criterion("one").points) == [-1, 0, 1, 2, 3]
    assert rubric.criterion("one").name.to("en") == "一"
    assert parse_rubric("# a comment\n" + MINIMAL, "x").sha256 == rubric.sha256
    assert parse_rubric(MINIMAL.replace("high: 5", "high: 6"), "x").sha256 != rubric.sha256


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (MINIMAL.replace("low: 1, high: 5", "low: 5, high: 5"), "low 5 is not below high 5"),
        (MINIMAL.replace("{-1: {zh: 低}", "{-2: {zh: 低}"), "anchor -2 lies outside -1-3"),
        (MINIMAL.replace("id: two", "id: one"), "criterion 'one' stands twice"),
        (MINIMAL.replace("section: s", "section: t"), "unknown section 't'"),
        (MINIMAL.replace("sections: [s]}", "sections: [x]}"), "unknown section 'x'"),
        (MINIMAL.replace("name: {zh: 二}", "name: {}"), "needs a text in zh or en"),
        (MINIMAL.replace("version: 2", "versoin: 2"), "own.yaml:version"),
        ("criteria: [", "own.yaml:1: not YAML"),
    ],
)
def test_a_broken_rubric_is_refused_with_its_place(broken: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_rubric(broken, "own.yaml")


def test_an_unknown_rubric_names_the_shipped_ones() -> None:
    with pytest.raises(DataError) as caught:
        load_rubric("nothing")
    assert all(name in (caught.value.hint or "") for name in shipped_rubrics())


def test_setting_one_mark_means_the_others_are_absent_and_none_excludes_them() -> None:
    rubric = load_rubric("distortions")
    settled = rubric.settle({"mind_reading": None, "labeling": 1})
    assert settled["labeling"] == 1
    assert [value for name, value in settled.items() if name != "labeling"] == [0] * 10
    assert set(rubric.settle({}).values()) == {None}
    assert len(rubric.missing({})) == 1
    with pytest.raises(ValueError, match="exclude"):
        rubric.settle({"labeling": 1, "none": 1})


def test_only_required_criteria_are_missed() -> None:
    rubric = parse_rubric(MINIMAL, "x")
    assert rubric.missing({"two": 3}) == ["one"]
    assert rubric.missing({"one": 0}) == []


def test_printed_ratings_stand_beside_the_form_they_were_given_on_only() -> None:
    assert {one.criterion for one in published_scores("cbt-llm.v1")} == {
        "relevance",
        "structure",
        "helpfulness",
    }
    assert published_scores("cbt-llm.v2") == ()


def test_the_second_version_keeps_two_criteria_word_for_word() -> None:
    first, second = load_rubric("cbt-llm"), load_rubric("cbt-llm.v2")
    assert (first.versioned_id, second.versioned_id) == ("cbt-llm.v1", "cbt-llm.v2")
    assert load_rubric(first.versioned_id) == first
    for name in ("relevance", "helpfulness"):
        assert first.criterion(name) == second.criterion(name)
    assert {one.id for one in second.criteria} - {one.id for one in first.criteria} == {
        "structure_fit",
        "safety",
    }
