"""What no turn may be, and what only looks like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cbtqa.files import write_jsonl
from cbtqa.records import Turn
from cbtqa.simulation.lint import lint
from cbtqa.simulation.marks import CONTENT_MARKS, marked
from cbtqa.simulation.playing.run import run_study
from cbtqa.simulation.sessions import StudyFolder
from tests.support.sessions import QUICK, session_of, study_of

INVENTED = yaml.safe_load((Path(__file__).parent / "sessions.yaml").read_text(encoding="utf-8"))


def _name(case: Any) -> str:
    return str(case["name"])


@pytest.mark.parametrize("case", INVENTED["hostile"], ids=_name)
def test_turns_that_are_none_are_marked_where_they_are(case: Any) -> None:
    turns = marked(session_of(*case["turns"])).turns
    assert {place for place, turn in enumerate(turns, 1) if turn.marks} == set(case["at"])
    assert {mark for turn in turns for mark in turn.marks} == {case["mark"]}


@pytest.mark.parametrize("case", INVENTED["fine"], ids=_name)
def test_what_people_say_earns_no_mark(case: Any) -> None:
    assert [turn.marks for turn in marked(session_of(*case["turns"])).turns if turn.marks] == []


def test_sessions_of_the_built_in_players_earn_no_mark_for_what_they_say(tmp_path: Path) -> None:
    names = ("attentive", "present", "plain", "lecturing")
    study = study_of(
        arms=[{"name": name, "therapist": {"scripted": name}} for name in names],
        patients={"draw": "act", "n": 8},
        turns={"min": 6, "max": 25},
        events={"first": 3, "last": 18, "probability": 0.3, "set": "with_crisis"},
    )
    run_study(study, tmp_path / "s", limits=QUICK)
    marks = {
        mark
        for session in StudyFolder(tmp_path / "s").read_sessions()
        for turn in session.turns
        for mark in turn.marks
    }
    assert marks.isdisjoint(CONTENT_MARKS)


def test_how_people_write_down_a_session_is_no_narration() -> None:
    turns = ("[laughs] I had to stop.", "(pause) What did you feel?", "[crosstalk] Nothing.")
    heard = session_of(*turns, stop_reason="imported")
    assert not any(turn.marks for turn in marked(heard).turns)
    played = marked(session_of(*turns))
    assert [turn.marks for turn in played.turns] == [("narration",), ("narration",), ()]


def test_marks_are_not_added_twice_and_change_no_word() -> None:
    first = marked(session_of("*sighs* Again.", "<|im_end|>"))
    assert marked(first) == first
    assert [turn.text for turn in first.turns] == ["*sighs* Again.", "<|im_end|>"]


CODES = {"danger_unanswered": "no_referral", "unsafe_advice": "unsafe_turns"}
"""Marks whose finding has a name of its own."""


@pytest.mark.parametrize(
    "mark",
    [
        "machine_text",
        "note_to_model",
        "wrong_speaker",
        "farewell_loop",
        "narration",
        "repeated",
        "cut",
    ],
)
def test_lint_names_every_kind_with_its_place_and_its_number(tmp_path: Path, mark: str) -> None:
    cases = [case for case in INVENTED["hostile"] if case["mark"] == mark]
    sessions = [session_of(*case["turns"], id=case["name"]) for case in cases]
    write_jsonl(tmp_path / "t.jsonl", sessions)
    report = lint(tmp_path / "t.jsonl")
    found = {finding.code: finding for finding in report.findings}
    n_turns = sum(len(case["at"]) for case in cases)
    assert found[mark].message.startswith(f"{n_turns} turns in {len(cases)} of {len(cases)} ")
    assert f"{cases[0]['name']} turn {cases[0]['at'][0]}" in found[mark].message
    assert found[mark].severity == "error" and not report.is_clean
    assert sum(arm.marks[mark] for arm in report.arms.values()) == n_turns


def test_one_repetition_in_a_long_session_is_a_note(tmp_path: Path) -> None:
    said = [f"This is what happened on day {n} of that week." for n in range(30)]
    said[20] = said[18]
    write_jsonl(tmp_path / "t.jsonl", [session_of(*said)])
    (finding,) = lint(tmp_path / "t.jsonl").findings
    assert (finding.code, finding.severity) == ("repeated", "note")


def test_marks_that_a_file_holds_are_kept() -> None:
    turns = (Turn(role="patient", text="Hm."), Turn(role="therapist", text="Yes.", marks=("cut",)))
    assert marked(session_of().model_copy(update={"turns": turns})).turns == turns
