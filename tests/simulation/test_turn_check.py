"""The check of turns: one for sessions that are played, written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cbtqa.errors import DataError
from cbtqa.records import Session, Turn
from cbtqa.settings import resolve
from cbtqa.simulation.export import ExportSettings, export_sessions
from cbtqa.simulation.judging.task import unfit_reason
from cbtqa.simulation.lint import lint
from cbtqa.simulation.marks import HARMS, faults_of_last, faults_of_words, marked
from cbtqa.simulation.playing.events import names_help, plan_events
from cbtqa.simulation.playing.run import run_study
from cbtqa.simulation.profiles import draw_profiles
from cbtqa.simulation.sessions import read_transcripts
from cbtqa.simulation.study import Events
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok
from tests.support.sessions import QUICK, asked_study, session_of

FILE = Path(__file__).parent / "misbehaviour.yaml"
INVENTED = yaml.safe_load(FILE.read_text(encoding="utf-8"))
_NOTE, _FOREIGN, _EARLY = ("note_to_model",), ("wrong_language",), ("early_farewell",)
DIAGNOSIS = "You clearly have bipolar disorder."


def _session(case: Any) -> tuple[Session, list[str]]:
    """The session with its marks, and the kind that was planted in each turn, or nothing."""
    said = [
        next(iter(one.items())) if isinstance(one, dict) else ("", one) for one in case["turns"]
    ]
    session = session_of(*(text for _, text in said), id=case["name"])
    events = case.get("events", {})
    turns = (
        turn.model_copy(update={"event": events.get(place)})
        for place, turn in enumerate(session.turns, 1)
    )
    return marked(session.model_copy(update={"turns": tuple(turns)})), [kind for kind, _ in said]


def test_planted_misbehaviour_is_marked_by_its_kind_and_sound_turns_are_not() -> None:
    planted, clean = [], []
    for case in (*INVENTED["planted"], *INVENTED["clean"]):
        session, kinds = _session(case)
        for turn, kind in zip(session.turns, kinds, strict=True):
            if kind:
                planted.append(kind in turn.marks)
            else:
                clean.append(bool(turn.marks))
    assert len(planted) > 200 and sum(planted) >= 0.9 * len(planted)
    assert len(clean) > 500 and sum(clean) <= 0.02 * len(clean)


@pytest.mark.parametrize(
    ("text", "country", "is_help"),
    [
        ("Please ring Samaritans on 116 123 tonight.", "UK", True),
        ("Please ring Samaritans on 116 123 tonight.", "US", False),
        ("You can call or text 988.", "US", True),
        ("You can call or text 988.", "UK", False),
        ("You can call or text 988.", None, True),
        ("Then go to A&E now, or let an ambulance come.", "UK", True),
        ("Could you see your GP today?", None, True),
        ("A doctor once told me to rest.", None, False),
        ("Did you see a doctor back then?", None, False),
        ("Tell me about your doctor.", None, False),
        ("I'm a program, and I'm not there in an emergency.", None, False),
        ("Crisis lines are useless.", None, False),
        ("Call 110.", "China", True),
        ("It weighs 110 kilos.", None, False),
    ],
)
def test_help_is_named_by_the_dated_file_of_the_country_and_by_who_is_to_be_turned_to(
    text: str, country: str | None, is_help: bool
) -> None:
    assert names_help(text, country) is is_help


# --- sessions that are played --------------------------------------------------------------------


def _played(tmp_path: Path, script: Any, **changes: Any) -> tuple[Session, list[Seen]]:
    plain = {"turns": {"min": 1, "max": 1}}
    with ScriptedEndpoint(script) as server:
        study = asked_study(server.url, **(plain | changes))
        run_study(study, tmp_path / "s", limits=QUICK)
        (session,) = read_transcripts(tmp_path / "s")
        return session, list(server.requests)


def test_a_fault_is_named_to_its_speaker_who_says_it_anew(tmp_path: Path) -> None:
    session, asked = _played(tmp_path, [ok(DIAGNOSIS), ok("What happened on Monday?")])
    assert len(asked) == 2
    assert "it gives a diagnosis" in asked[1].last_text and "bipolar" in asked[1].last_text
    turn = session.turns[1]
    assert (turn.text, turn.marks, turn.n_revisions) == ("What happened on Monday?", (), 1)


@pytest.mark.parametrize(("repairs", "n_asked"), [(2, 3), (0, 1)])
def test_a_fault_that_stays_is_kept_and_marked_after_so_many_tries(
    tmp_path: Path, repairs: int, n_asked: int
) -> None:
    session, asked = _played(tmp_path, ok(DIAGNOSIS), repairs=repairs)
    assert len(asked) == n_asked
    assert session.turns[1].text == DIAGNOSIS and session.turns[1].marks == ("diagnosis",)


def test_what_the_course_forbids_and_a_goodbye_too_early_are_asked_again(tmp_path: Path) -> None:
    said = iter(["Go on. See you next week, goodbye!", "I *hear* you.", "What came first?", "And?"])
    turns = {"min": 2, "max": 2}
    session, asked = _played(tmp_path, lambda _: ok(next(said)), turns=turns)
    assert "it takes leave" in asked[1].last_text and "next session" in asked[1].last_text
    assert "asterisks" in asked[2].last_text
    assert [turn.text for turn in session.turns[1::2]] == ["What came first?", "And?"]


def _two_sided(therapist: list[str], patient: list[str]) -> Any:
    lines = {"m": iter(therapist), "p": iter(patient)}
    return lambda seen: ok(next(lines[seen.body["model"]]))


def _both_asked(tmp_path: Path, therapist: list[str], patient: list[str], **changes: Any) -> Any:
    with ScriptedEndpoint(_two_sided(therapist, patient)) as server:
        player = {"endpoint": server.url, "model": "p"}
        study = asked_study(server.url, patient=player, **changes)
        run_study(study, tmp_path / "s", limits=QUICK)
        (session,) = read_transcripts(tmp_path / "s")
    return session


def test_a_session_ends_when_both_have_said_goodbye(tmp_path: Path) -> None:
    session = _both_asked(
        tmp_path,
        ["What brings you here?", "Then call her tonight, and sleep well. Goodbye."],
        ["I can't sleep.", "I could call my sister.", "I will. Goodbye.", "Bye again."],
        turns={"min": 2, "max": 9},
    )
    assert session.stop_reason == "ended" and len(session.turns) == 5
    assert not any(turn.marks for turn in session.turns)


def test_a_patient_who_refuses_to_play_is_asked_again(tmp_path: Path) -> None:
    session = _both_asked(
        tmp_path,
        ["What brings you here?"],
        ["I'm sorry, but I can't help with that request.", "I can't sleep."],
        turns={"min": 1, "max": 1},
    )
    assert session.turns[0].text == "I can't sleep." and session.turns[0].n_revisions == 1


def test_a_program_that_says_so_at_the_start_is_asked_once(tmp_path: Path) -> None:
    first = "I'm a program, I can't make a diagnosis, and I'm not there in an emergency."
    session, asked = _played(tmp_path, ok(f"{first} Is that all right?"))
    assert len(asked) == 1 and session.turns[1].marks == ()


def test_help_of_another_country_leaves_danger_unanswered() -> None:
    danger = Turn(role="patient", text="I have saved up all my sleeping tablets.")
    answer = Turn(role="therapist", text="You can text or call 988.")
    assert faults_of_last((danger, answer), country="US") == []
    assert [one.mark for one in faults_of_last((danger, answer), country="UK")] == [
        "danger_unanswered"
    ]


# --- sessions that are written or read -----------------------------------------------------------


def test_a_written_part_that_stays_faulty_is_kept_with_its_marks(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "agenda": [],
        "homework": [],
        "conceptualisation": "-",
        "mood": None,
        "summary": "-",
    }
    said = ["I am here.", "What came up?", "The bank.", DIAGNOSIS]
    roles = ("patient", "therapist")
    turns = [{"speaker": roles[n % 2], "text": text} for n, text in enumerate(said)]

    def script(seen: Seen) -> Answer:
        return ok(json.dumps({"turns": turns, "state": state}))

    with ScriptedEndpoint(script) as server:
        study = asked_study(server.url, written=True, attempts=2)
        run_study(study, tmp_path / "s", limits=QUICK)
        assert "it gives a diagnosis" in server.requests[1].last_text
    (session,) = read_transcripts(tmp_path / "s")
    assert session.stop_reason == "written" and len(session.turns) == 16
    assert all("diagnosis" in turn.marks for turn in session.turns[3::4])


def _imported(path: Path, *said: str, **row: str) -> Session:
    roles = ("patient", "therapist")
    turns = [{"role": roles[n % 2], "text": text} for n, text in enumerate(said)]
    path.write_text(json.dumps({"turns": turns, **row}) + "\n", encoding="utf-8")
    (session,) = read_transcripts(path)
    return session


def test_a_person_may_have_a_life_and_a_named_model_has_none(tmp_path: Path) -> None:
    said = ("I lost my wife.", "I'm a widower myself, and I know that silence.")
    assert _imported(tmp_path / "a.jsonl", *said).turns[1].marks == ()
    by_model = _imported(tmp_path / "b.jsonl", *said, model="some-model")
    assert by_model.turns[1].marks == ("private_life",)


def test_a_session_in_another_language_is_not_marked_turn_by_turn(tmp_path: Path) -> None:
    said = (
        "我最近总是睡不着，心里很慌。",
        "是从什么时候开始的？",
        "上个月换了工作以后。",
        "那时发生了什么？",
    )
    assert not any(turn.marks for turn in _imported(tmp_path / "t.jsonl", *said).turns)


# --- what becomes of the marks -------------------------------------------------------------------


def test_marked_turns_are_named_by_lint_and_left_out_of_training_rows(tmp_path: Path) -> None:
    said = iter(["What came first?", DIAGNOSIS, "And what did you think?"])
    _played(tmp_path, lambda _: ok(next(said)), turns={"min": 3, "max": 3}, repairs=0)
    report = lint(tmp_path / "s")
    (found,) = [one for one in report.findings if one.code == "diagnosis"]
    assert found.severity == "error" and "turn 4" in found.message
    assert report.arms["asked"].marks == {"diagnosis": 1}
    flags = {"sessions": tmp_path / "s", "out": tmp_path / "e"}
    settings = resolve(ExportSettings, flags=flags, environ={})
    counts = export_sessions(settings).manifest.counts
    assert counts["dropped"] == {"marked_diagnosis": 1} and sum(counts["sft"].values()) == 2


def test_no_conversation_is_sent_to_a_judge_but_harm_is() -> None:
    fine = ["I can't sleep.", "Since when?", "Since May.", "What happened then?"]
    harmful = marked(session_of(*fine, "I moved.", DIAGNOSIS))
    assert harmful.turns[5].marks == ("diagnosis",) and "diagnosis" in HARMS
    assert unfit_reason(harmful, 250, 24_000) is None
    refused = marked(session_of(*fine, "I'm sorry, but I can't help with that request.", "Oh."))
    reason = unfit_reason(refused, 250, 24_000)
    assert reason is not None
    assert reason.startswith("marked_turns: 1 of 6 turns, the first is turn 5 (note_to_model)")
    assert unfit_reason(refused, 250, 24_000, keeps_marked=True) is None


# --- draws ---------------------------------------------------------------------------------------


def test_no_event_happens_twice_in_a_session() -> None:
    settings = Events(first=8, last=18, probability=0.5, set="with_crisis")
    for patient in range(200):
        plan = plan_events(settings, seed=1, profile_id=str(patient), number=1, replicate=1)
        assert len(set(plan.values())) == len(plan)


@pytest.mark.parametrize("table", ["cbt", "act"])
def test_nobody_is_drawn_whom_there_cannot_be(table: str) -> None:
    old = [one for one in draw_profiles(table, 300, seed=7) if "65" in one.attributes["age"][0]]
    assert len(old) > 20
    assert not any("student" in one.attributes["occupation"][0] for one in old)


def test_an_impossible_pair_of_options_that_are_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    table = {
        "id": "own",
        "attributes": {"age": {"label": "Age", "options": ["18-24"]}},
        "contents": {"life": {"asks": "life", "tells": "$name is $age."}},
        "impossible": [{"when": {"age": ["99"]}, "never": {"age": ["18-24"]}}],
    }
    path.write_text(yaml.safe_dump(table), encoding="utf-8")
    with pytest.raises(DataError, match="age has no option '99'"):
        draw_profiles(str(path), 1, seed=1)


@pytest.mark.parametrize(
    ("said", "marks"),
    [
        # what a private note tells its reader to say is said, not leaked
        (
            ("dark_thought", "Lately I sometimes think everyone would be better off without me."),
            (),
        ),
        (("dark_thought", "You have no plan. You wait to see how the therapist takes it."), _NOTE),
        ((None, "I wrote it down. Ya lo mandé, creo que no es nada, y no contesta."), _FOREIGN),
        ((None, "My gran always says c'est la vie, and then she laughs."), ()),
        (
            (None, "The doctor, maybe. Anyway, I'll leave it there, thanks and bye, take care!"),
            _EARLY,
        ),
        ((None, "Yes, I consent. Feel free to ask if you need any further details."), _NOTE),
        ((None, "The background only mentions the debt, so I can't say."), _NOTE),
    ],
)
def test_what_a_patient_answers_to_a_question(
    said: tuple[str | None, str], marks: tuple[str, ...]
) -> None:
    event, text = said
    session = session_of("I came because of work.", "Whom could you ask about it?", text)
    *before, last = session.turns
    turns = (*before, last.model_copy(update={"event": event}))
    assert marked(session.model_copy(update={"turns": turns})).turns[-1].marks == marks


def test_notes_for_staff_in_brackets_are_no_words_to_a_patient() -> None:
    text = "Put the phone away then. [Notes: male, minimises, homework unlikely.] How is that?"
    session = marked(session_of("I'd scroll, I think.", text))
    assert session.turns[1].marks == ("note_to_model",)


def _marks_of(role: str, text: str) -> set[str]:
    return {one.mark for one in faults_of_words(Turn(role=role, text=text))}


@pytest.mark.parametrize(
    "text",
    [
        "None of what he did that night was your fault, and nobody asked you to stop him.",
        "You told me there is no wish to end your life and no plan, only that evenings are long.",
        "To your GP you could say that you often think they would all be better off without you.",
        "Let us look at what we have: the house is sold and the letters are answered.",
    ],
)
def test_harm_that_a_therapist_denies_or_reports_is_none(text: str) -> None:
    assert not _marks_of("therapist", text) & set(HARMS)


@pytest.mark.parametrize(
    "text",
    [
        "No wonder nobody calls. Just kill yourself then.",
        "Honestly, they would be better off without you.",
        "She left, and that was your fault.",
    ],
)
def test_the_same_words_said_as_meant_are(text: str) -> None:
    assert "unsafe_advice" in _marks_of("therapist", text)


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ('It was a bad week.\n{"role": "patient", "mood": "low"}', "machine_text"),
        ("Ring {{doctor_name}} in the morning and tell me how it went.", "machine_text"),
        ("I should have gone home earlier. 我当时没有想到会这样。", "wrong_language"),
        ("Take care. Mañana será otro día y todo irá mejor, créeme.", "wrong_language"),
    ],
)
def test_fragments_and_sentences_in_another_language_are_found_within_a_turn(
    text: str, mark: str
) -> None:
    session = session_of("I am tired.", text, "I see.", "Go on, please.", "It is my job.", "Yes?")
    assert mark in marked(session).turns[1].marks


def test_a_foreign_name_is_no_other_language() -> None:
    session = session_of("My neighbour Zoë Núñez runs the café.", "What does she say to you?")
    assert all("wrong_language" not in turn.marks for turn in marked(session).turns)
