"""Making a study: the same questions for all, blind, repeatable, and refused when it cannot be."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import DataError, UsageError
from cbtqa.ratings.design import NewStudySettings, create_study
from cbtqa.ratings.sheets import write_sheets
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import UNFINISHED, StudyFolder, open_study, unblind
from tests.ratings.conftest import MakeStudy, write_inputs, write_rows


def test_every_system_answers_the_same_questions_and_every_rater_sees_all(
    make_study: MakeStudy,
) -> None:
    made = make_study(n=6, n_available=12, repeat_share=0.25)
    folder = made.folder
    by_arm = {arm: {i.question_id for i in folder.items.values() if i.arm == arm} for arm in "AB"}
    assert by_arm["A"] == by_arm["B"] and len(by_arm["A"]) == 6
    for rater in folder.study.raters:
        shown = folder.shown_to(rater)
        assert {p.item_id for p in shown} == set(folder.items)
        assert sum(p.repeat for p in shown) == 3 == folder.study.n_repeats
        assert [p.order for p in shown] == list(range(1, 16))


def test_system_names_stand_in_the_key_alone(make_study: MakeStudy) -> None:
    made = make_study(systems=("baichuan-cbt", "alpaca-cbt"))
    write_sheets(made.folder)
    write_sheets(made.folder, as_csv=True)
    Store(made.folder.store_path, made.folder.study.id).close()
    for path in made.folder.path.rglob("*"):
        if path.is_file() and path.suffix != ".xlsx":
            text = path.read_bytes().decode("utf-8", errors="replace")
            assert "baichuan" not in text and "alpaca" not in text, path
    assert set(json.loads(made.key_path.read_text())["systems"].values()) == {
        "baichuan-cbt",
        "alpaca-cbt",
    }
    assert made.key_path.stat().st_mode & 0o077 == 0
    assert made.folder.path.stat().st_mode & 0o077 == 0


def test_what_a_rater_sees_does_not_tell_the_arm(make_study: MakeStudy) -> None:
    folder = make_study(n=40, n_available=40).folder
    arms = [folder.item_of(p).arm for p in folder.shown_to("R1") if not p.repeat]
    numbers = [int(item.id[1:]) for item in folder.items.values() if item.arm == "A"]
    assert 12 <= Counter(arms[:40])["A"] <= 28
    assert max(numbers) > 40 and min(numbers) < 41


def test_the_same_seed_makes_the_same_study_and_another_seed_another(tmp_path: Path) -> None:
    values = write_inputs(tmp_path)
    one, same, other = (
        create_study(NewStudySettings(**values, out=tmp_path / name, seed=seed)).folder
        for name, seed in (("one", 5), ("same", 5), ("other", 6))
    )
    assert (one.study.id, one.plan, one.items) == (same.study.id, same.plan, same.items)
    assert one.plan != other.plan


def test_blocks_of_raters_rate_all_answers_to_their_questions(make_study: MakeStudy) -> None:
    folder = make_study(raters=4, per_item=2, repeat_share=0).folder
    raters_of = {item: {p.rater for p in folder.plan if p.item_id == item} for item in folder.items}
    assert {len(raters) for raters in raters_of.values()} == {2}
    for item in folder.items.values():
        twin = next(
            o
            for o in folder.items.values()
            if o.question_id == item.question_id and o.arm != item.arm
        )
        assert raters_of[item.id] == raters_of[twin.id]


def test_calibration_items_come_first_and_are_the_same_for_all(make_study: MakeStudy) -> None:
    folder = make_study(n=5, n_available=8, calibration=3).folder
    first = {tuple(p.item_id for p in folder.shown_to(r)[:3]) for r in folder.study.raters}
    assert len(first) == 1
    main = {p.item_id for p in folder.plan if p.phase == "main"}
    assert main.isdisjoint(next(iter(first)))


def test_strata_keep_their_share(make_study: MakeStudy) -> None:
    folder = make_study(n=8, n_available=16, stratify="risk").folder
    drawn = {item.question_id: item.risk for item in folder.items.values()}
    assert Counter(drawn.values()) == {"none": 6, "explicit": 2}


def test_a_system_that_answered_less_narrows_the_choice_and_says_so(tmp_path: Path) -> None:
    values = write_inputs(tmp_path)
    rows = [{"question_id": f"q{i}", "text": "短答" if i < 4 else "  "} for i in range(8)]
    short = write_rows(tmp_path / "short.jsonl", rows)
    values["predictions"] = (*values["predictions"], f"short={short}")
    with pytest.raises(UsageError, match="8 questions wanted, 4 are answered by every system"):
        create_study(NewStudySettings(**values, out=tmp_path / "s"))
    made = create_study(NewStudySettings(**{**values, "n": 4}, out=tmp_path / "s"))
    assert (made.n_available, made.n_left_out) == (4, 4)
    left_out = (tmp_path / "s.left_out.jsonl").read_text(encoding="utf-8")
    assert not [p for p in made.folder.path.rglob("*") if "left_out" in p.name]
    assert left_out.count('"reason":"empty"') == 4


def test_a_second_answer_to_a_question_is_refused_not_chosen_from(tmp_path: Path) -> None:
    values = write_inputs(tmp_path)
    rows = [{"question_id": "q1", "text": "甲"}, {"question_id": "q1", "text": "乙"}]
    twice = write_rows(tmp_path / "twice.jsonl", rows)
    values["predictions"] = (str(twice),)
    with pytest.raises(
        DataError, match=r"twice.jsonl:2: a second answer of 'twice' to question q1"
    ):
        create_study(NewStudySettings(**values, out=tmp_path / "s"))


def test_a_file_without_a_single_answer_is_not_called_missing(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    write_rows(path, [{"id": "q1", "question": "怎么办？"}, {"id": "q2", "question": "为什么？"}])
    settings = NewStudySettings(
        predictions=(f"a={path}",), questions=path, raters=2, out=tmp_path / "s"
    )
    with pytest.raises(DataError, match=r"questions.jsonl:1: none of the 2 rows") as caught:
        create_study(settings)
    assert "prediction" in str(caught.value)


def test_predictions_without_question_texts_need_the_questions(tmp_path: Path) -> None:
    values = {**write_inputs(tmp_path), "questions": None, "out": tmp_path / "s"}
    with pytest.raises(UsageError, match="do not hold the text of the questions"):
        create_study(NewStudySettings(**values))


def test_a_text_that_names_its_system_is_pointed_out(tmp_path: Path) -> None:
    values = write_inputs(tmp_path)
    rows = [
        {"question_id": f"q{i}", "text": "我是Alpha助手" if i == 3 else "你好"} for i in range(8)
    ]
    telling = write_rows(tmp_path / "telling.jsonl", rows)
    values["predictions"] = (f"alpha={telling}", values["predictions"][1])
    made = create_study(NewStudySettings(**values, out=tmp_path / "s"))
    assert [made.folder.items[item].question_id for item in made.telling_items] == ["q3"]


def test_questions_alone_can_be_rated(make_study: MakeStudy) -> None:
    folder = make_study(predictions=(), rubric="distortions").folder
    assert folder.study.arms == ("A",)
    assert {tuple(item.parts) for item in folder.items.values()} == {("question", "description")}


def test_sessions_are_shown_turn_by_turn(tmp_path: Path) -> None:
    turns = [
        {"role": "client", "content": "I feel low."},
        {"role": "therapist", "content": "Since when?"},
    ]
    for arm in ("a", "b"):
        write_rows(tmp_path / f"{arm}.jsonl", [{"id": "s1", "profile_id": "p1", "turns": turns}])
    made = create_study(
        NewStudySettings(
            predictions=(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")),
            rubric="ctrs",
            n=1,
            raters=1,
            out=tmp_path / "s",
        )
    )
    item = next(iter(made.folder.items.values()))
    assert item.parts["session"] == "#1 client: I feel low.\n#2 therapist: Since when?"
    assert item.quotes("#2") and item.quotes("Since when?") and not item.quotes("#3")


def test_nothing_is_written_over(make_study: MakeStudy, tmp_path: Path) -> None:
    made = make_study()
    with pytest.raises(UsageError, match="already holds a study; a study is never written over"):
        make_study(key=tmp_path / "other.json")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="is no empty folder"):
        make_study(out=tmp_path / "foreign", key=tmp_path / "other.json")
    with pytest.raises(UsageError, match="a key is never written over"):
        make_study(out=tmp_path / "second", key=made.key_path)
    assert not (tmp_path / "second").exists()


def test_the_key_may_not_lie_in_the_study(make_study: MakeStudy, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="whoever holds the folder stays blind"):
        make_study(key=tmp_path / "study" / "key.json")


def test_a_changed_rubric_is_noticed(folder: StudyFolder) -> None:
    path = folder.path / "rubric.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"high": 2', '"high": 3'), encoding="utf-8"
    )
    with pytest.raises(DataError, match="not the one the study was made with"):
        open_study(folder.path)


def test_unblinding_is_logged_and_wants_the_right_key(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    made = make_study()
    foreign = tmp_path / "foreign.json"
    foreign.write_text(made.key_path.read_text().replace(made.folder.study.id, "0" * 12))
    with pytest.raises(DataError, match="opens study 000000000000"):
        unblind(made.folder, foreign, "甲", 0, "x")
    assert made.folder.systems() is None
    unblind(made.folder, made.key_path, "甲", 12, "digest")
    assert set((made.folder.systems() or {}).values()) == {"alpha", "beta"}
    entry = json.loads((made.folder.path / "log.jsonl").read_text("utf-8").splitlines()[-1])
    assert (entry["action"], entry["by"], entry["n_ratings"]) == ("unblinded", "甲", 12)


@pytest.mark.parametrize(
    ("n_available", "systems", "n_drawn"),
    [
        (120, ("a", "b"), 100),
        (120, ("a", "b", "c", "d"), 50),
        (30, ("a", "b"), 30),
        (120, ("a",), 100),
    ],
)
def test_without_a_number_a_rater_gets_what_a_person_can_do(
    make_study: MakeStudy, n_available: int, systems: tuple[str, ...], n_drawn: int
) -> None:
    made = make_study(n=None, n_available=n_available, systems=systems, raters=1, sheets=False)
    assert made.folder.study.n_questions == n_drawn
    assert made.folder.study.n_items <= 200


@pytest.mark.parametrize("n_removed", range(7))
def test_an_unfinished_study_is_removed_even_when_the_removal_was_killed(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, n_removed: int
) -> None:
    # its files: rubric, items, plan, study, log, store, the mark, and the key beside the folder
    path = make_study().folder.path
    path.with_name(f"{path.name}.key.json").unlink()
    (path / UNFINISHED).write_text("killed")
    left = n_removed
    unlink = os.unlink

    def killed(*given: Any, **more: Any) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        unlink(*given, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.unlink", killed)
        make_study()
    assert len(make_study().folder.items) == 16
