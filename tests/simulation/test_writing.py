"""Courses written part by part: what a part has to be, and what is asked for again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbtqa.llm.chat import Fault, Reply
from cbtqa.prompts import Prompt, load_prompt
from cbtqa.records import Reason, Turn
from cbtqa.simulation.playing.course import cbt_course
from cbtqa.simulation.playing.events import event_file, load_events
from cbtqa.simulation.playing.run import run_study
from cbtqa.simulation.playing.scripted import lines
from cbtqa.simulation.playing.writing import WrittenPart, read_part
from cbtqa.simulation.study import StudySettings
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok
from tests.support.sessions import QUICK, study_of

COURSE = cbt_course()
OPENING, BEGIN, _, CLOSE = COURSE.parts
FIRST, NEWEST = load_prompt("course_part.v1"), load_prompt("course_part")
CLOSES = "You write now: the part `close`"
STATE = {
    "agenda": ["the letter"],
    "homework": [],
    "conceptualisation": "Avoiding keeps it going.",
    "mood": None,
    "summary": "word " * 80,
}


def _turns(*texts: str, first: str = "patient") -> list[dict[str, str]]:
    order = ("patient", "therapist") if first == "patient" else ("therapist", "patient")
    return [{"speaker": order[n % 2], "text": text} for n, text in enumerate(texts)]


GOOD = _turns("I am here.", "What's on the agenda?", "The bank.", "Let's look at it.")


def _read(
    turns: Any,
    part: Any = BEGIN,
    before: tuple[Turn, ...] = (),
    prompt: Prompt = FIRST,
    **more: Any,
) -> WrittenPart | Fault:
    text = json.dumps({"turns": turns, **more})
    return read_part(Reply(text, finish_reason="stop"), part, COURSE, before, prompt)


def test_the_course_has_the_published_phases() -> None:
    # arXiv 2412.00251: assessment 1-3, initial 4-7, middle 8-17, termination 18-20
    found = {number: COURSE.phase_of(number).id for number in range(1, 21)}
    assert [number for number, name in found.items() if name == "assessment"] == [1, 2, 3]
    assert [number for number, name in found.items() if name == "initial"] == [4, 5, 6, 7]
    assert [number for number, name in found.items() if name == "middle"] == list(range(8, 18))
    assert [number for number, name in found.items() if name == "termination"] == [18, 19, 20]
    assert COURSE.n_sessions == 20 and len(COURSE.parts) == 4


def test_a_good_part_becomes_turns() -> None:
    part = _read(GOOD, OPENING)
    assert isinstance(part, WrittenPart) and part.state is None
    assert [turn.role for turn in part.turns] == ["patient", "therapist"] * 2


@pytest.mark.parametrize(
    ("turns", "reason", "detail"),
    [
        ([*GOOD[:1], *GOOD], Reason.MISSING_STEP, "turn 2 is the patient's"),
        (
            _turns("a", "b", "c", "d", first="therapist"),
            Reason.MISSING_STEP,
            "turn 1 is the therapist's",
        ),
        (GOOD[:2], Reason.MISSING_STEP, "list of 4 or more"),
        (
            _turns("I am here.", "Go on.<|im_end|>", "The bank.", "I see."),
            Reason.CONTROL_TOKENS,
            "turn 2: the reply holds '<|im_end|>'",
        ),
        (
            _turns("I am here.", "Your reply was cut off because it was too long.", "a", "b"),
            Reason.PROMPT_LEAK,
            "turn 2: the reply repeats a note",
        ),
        ([*GOOD, {"speaker": "patient", "text": "Yes."}], Reason.MISSING_STEP, "last turn"),
        (
            [*GOOD[:3], {"speaker": "therapist", "text": " "}],
            Reason.MISSING_STEP,
            "turn 4 has no text",
        ),
        (_turns("*sighs* I am here.", "b", "c", "d"), Reason.HEADINGS, "turn 1 holds asterisks"),
        (_turns("(pauses) I am here.", "b", "c", "d"), Reason.HEADINGS, "stage directions"),
        (_turns("a", "b", "c", "Therapist: d"), Reason.OTHER_SPEAKER, "turn 4: the reply holds"),
        (_turns("a", "b", "c", "See you next week."), Reason.STYLE, "turn 4 takes leave"),
        (_turns("I want to kill myself.", "b", "c", "d"), Reason.UNSAFE, "turn 1 speaks of risk"),
        ("none", Reason.MISSING_STEP, "list"),
    ],
)
def test_a_part_that_breaks_a_rule_is_turned_away_with_the_rule(
    turns: Any, reason: Reason, detail: str
) -> None:
    found = _read(turns)
    assert isinstance(found, Fault)
    assert found.reason is reason and detail in found.detail


def test_risk_that_is_answered_with_help_passes() -> None:
    turns = _turns("I think of suicide.", "Are you safe? Call a crisis line, please.", "c", "d")
    assert isinstance(_read(turns), WrittenPart)


def test_take_care_of_is_no_leave_taking() -> None:
    assert isinstance(_read(_turns("a", "Who could take care of the post?", "c", "d")), WrittenPart)


def test_a_part_goes_on_with_the_other_speaker() -> None:
    before = (Turn(role="patient", text="a"),)
    assert isinstance(_read(_turns("b", "c", "d", "e", first="therapist"), before=before), Fault)
    turns = _turns("b", "c", "d", "e", "f", first="therapist")
    assert isinstance(_read(turns, before=before), WrittenPart)


def test_newer_prompts_ask_for_no_set_word_and_no_length_of_the_notes() -> None:
    # neither may be wanted of a session in which there was nothing to say
    turns = _turns("a", "b", "c", "d")
    assert isinstance(_read(turns, OPENING, prompt=NEWEST), WrittenPart)
    state = STATE | {"summary": "She came late and said little."}
    assert isinstance(_read(GOOD, CLOSE, state=state, prompt=NEWEST), WrittenPart)
    empty = _read(GOOD, CLOSE, state=STATE | {"summary": ""}, prompt=NEWEST)
    assert isinstance(empty, Fault) and "summary" in empty.detail


def test_the_opening_names_the_agenda_and_only_the_last_part_closes() -> None:
    found = _read(_turns("a", "b", "c", "d"), OPENING)
    assert isinstance(found, Fault) and "agenda" in found.detail
    leave = _turns("a", "b", "c", "See you next week.")
    assert isinstance(_read(leave, CLOSE, state=STATE), WrittenPart)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"summary": "Too short."}, "the summary has 2 words"),
        ({"mood": 11}, "state:mood"),
        ({"homework": "one letter"}, "state:homework"),
        ({"extra": 1}, "state:extra"),
    ],
)
def test_the_state_is_checked_field_by_field(change: dict[str, Any], detail: str) -> None:
    found = _read(GOOD, CLOSE, state=STATE | change)
    assert isinstance(found, Fault) and detail in found.detail


# --- whole courses -------------------------------------------------------------------------------


def _course(url: str | None = None, **changes: Any) -> StudySettings:
    therapist = {"endpoint": url, "model": "m"} if url else {"scripted": "attentive"}
    plain: dict[str, Any] = {
        "written": True,
        "sessions": 3,
        "arms": [{"name": "corpus", "therapist": therapist}],
        "patients": {"draw": "cbt", "n": 2},
    }
    return study_of(**(plain | changes))


def test_a_course_is_four_calls_a_session_and_hands_its_state_on(tmp_path: Path) -> None:
    def script(seen: Seen) -> Answer:
        is_last = CLOSES in seen.body["messages"][0]["content"]
        return ok(json.dumps({"turns": GOOD, **({"state": STATE} if is_last else {})}))

    with ScriptedEndpoint(script) as server:
        result = run_study(_course(server.url), tmp_path / "s", limits=QUICK)
        assert server.n_paid == 2 * 3 * 4 and server.n_paid_again == 0
        second = [
            seen
            for seen in server.requests
            if "session 2 of 20" in seen.body["messages"][0]["content"]
        ]
    sessions = list(result.folder.read_sessions())
    assert {one.stop_reason for one in sessions} == {"written"}
    assert all(len(one.turns) == 16 and one.state is not None for one in sessions)
    assert "the letter" in second[0].body["messages"][1]["content"]


def test_only_the_first_version_asks_for_the_mood_since_a_last_time_in_session_one(
    tmp_path: Path,
) -> None:
    told: dict[int | None, str] = {}

    def script(seen: Seen) -> Answer:
        is_last = "Then fill in the state" in str(seen.body["messages"]) or CLOSES in str(seen.body)
        return ok(json.dumps({"turns": GOOD, **({"state": STATE} if is_last else {})}))

    for version in (1, None):
        with ScriptedEndpoint(script) as server:
            study = _course(
                server.url, prompt_version=version, sessions=1, patients={"draw": "cbt", "n": 1}
            )
            result = run_study(study, tmp_path / f"s{version}", limits=QUICK)
            told[version] = server.requests[0].body["messages"][0]["content"]
        used = next(iter(result.folder.read_sessions())).provenance.prompt_id
        assert used == ("course_part.v1" if version else NEWEST.name)
    assert "asks about the mood since last time" in told[1] and "word agenda" in told[1]
    assert "mood since" not in told[None] and "agenda is used" not in told[None]
    assert "You write now: the part `opening`" in told[None]


def test_a_faulty_part_is_asked_for_again_with_the_complaint(tmp_path: Path) -> None:
    def script(seen: Seen) -> Answer:
        is_last = CLOSES in seen.body["messages"][0]["content"]
        faulty = len(seen.body["messages"]) == 2
        turns = [*GOOD[:1], *GOOD] if faulty else GOOD
        return ok(json.dumps({"turns": turns, **({"state": STATE} if is_last else {})}))

    with ScriptedEndpoint(script) as server:
        study = _course(server.url, sessions=1, patients={"draw": "cbt", "n": 1})
        result = run_study(study, tmp_path / "s", limits=QUICK)
        assert "turn 2 is the patient's" in server.requests[1].last_text
        assert server.n_paid == 8
    (session,) = result.folder.read_sessions()
    assert session.stop_reason == "written" and len(session.turns) == 16


def test_a_part_that_never_fits_ends_the_course_and_no_session_vanishes(tmp_path: Path) -> None:
    def script(seen: Seen) -> Answer:
        system = seen.body["messages"][0]["content"]
        if "session 2 of 20" in system:
            return ok("I'd rather not.")
        return ok(json.dumps({"turns": GOOD, **({"state": STATE} if CLOSES in system else {})}))

    with ScriptedEndpoint(script) as server:
        study = _course(server.url, attempts=2, patients={"draw": "cbt", "n": 1})
        result = run_study(study, tmp_path / "s", limits=QUICK)
        assert server.n_paid == 4 + 2
    sessions = list(result.folder.read_sessions())
    assert [one.stop_reason for one in sessions] == ["written", "no_answer", "no_answer"]
    assert "opening" in sessions[1].stop_detail and "not played" in sessions[2].stop_detail


def test_the_built_in_writer_keeps_every_rule_through_twenty_sessions(tmp_path: Path) -> None:
    result = run_study(_course(sessions=20), tmp_path / "s", limits=QUICK)
    sessions = list(result.folder.read_sessions())
    assert len(sessions) == 40 and {one.stop_reason for one in sessions} == {"written"}
    n_turns = 2 * sum(lines()["writer"]["exchanges"])
    assert {len(one.turns) for one in sessions} == {n_turns}
    assert [one.phase for one in sessions[:20]] == [COURSE.phase_of(n).id for n in range(1, 21)]
    assert not any(one.provenance.is_training_source for one in sessions)


def test_the_phases_of_the_shipped_course_follow_each_other() -> None:
    expected = 1
    for phase in COURSE.phases:
        assert phase.first == expected
        assert phase.last >= phase.first
        expected = phase.last + 1
    assert COURSE.n_sessions == 20


def test_every_shipped_set_of_events_names_events_that_are_there() -> None:
    for name, ids in event_file().sets.items():
        assert list(load_events(name)) == list(ids)
