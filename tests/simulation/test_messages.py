"""What players are shown and how their replies are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbtqa.llm.chat import Fault, Reply
from cbtqa.records import SessionState, Turn
from cbtqa.simulation.playing.messages import (
    SessionView,
    Spoken,
    end_token,
    read_patient,
    read_therapist,
    turn_content,
    whole_sentences,
)
from cbtqa.simulation.profiles import ready_profiles
from cbtqa.simulation.study import ReasoningForm, load_study, shipped_recipes
from tests.support.sessions import study_of

TURNS = (
    Turn(role="patient", text="I slept badly."),
    Turn(role="therapist", text="What kept you awake?", reasoning="Ask one thing."),
    Turn(role="patient", text="The bank."),
)
STATE = SessionState(
    agenda=("the letter",),
    homework=("open one letter",),
    conceptualisation="Avoiding keeps the fear alive.",
    mood=4,
    summary="They spoke about the bank.",
)


def _view(**changes: object) -> SessionView:
    study = study_of(**changes)
    return SessionView(study, study.arms[0], ready_profiles("test")[0])


def _says(text: str, form: ReasoningForm = "plain", reasoning: str | None = None) -> Spoken | Fault:
    return read_therapist(Reply(text, finish_reason="stop", reasoning=reasoning), form)


def test_a_thinking_reply_is_taken_apart() -> None:
    said = _says("<thinking>Stay.</thinking>\n<answer>Tell me more.</answer>", "cot")
    assert said == Spoken("Tell me more.", "Stay.")


def test_reasoning_that_the_server_took_apart_counts_too() -> None:
    assert _says("<answer>Tell me.</answer>", "cot", "Stay.") == Spoken("Tell me.", "Stay.")
    assert _says("Tell me.", "cot", "Stay.") == Spoken("Tell me.", "Stay.", ("loose",))


@pytest.mark.parametrize(
    "text", ["Tell me more.", "<thinking>I wonder", "   ", "<thinking>a</thinking>"]
)
def test_a_thinking_reply_without_an_answer_is_none(text: str) -> None:
    assert isinstance(_says(text, "cot"), Fault)


def test_an_answer_that_is_not_closed_is_taken_and_marked() -> None:
    said = _says("<thinking>Stay.</thinking><answer>Tell me more.", "cot")
    assert said == Spoken("Tell me more.", "Stay.", ("loose",))


@pytest.mark.parametrize("token", [end_token(), "<end_session>", "</ END_SESSION >"])
def test_the_end_token_is_heard_and_never_spoken(token: str) -> None:
    assert _says(f"Until then. {token}") == Spoken("Until then.", asks_to_end=True)
    assert _says(token) == Spoken("", asks_to_end=True)
    inside = f"<thinking>x</thinking><answer>Until then.{token}</answer>"
    assert _says(inside, "cot") == Spoken("Until then.", "x", asks_to_end=True)


def test_words_like_take_care_end_nothing() -> None:
    said = _says("Take care of your sleep first. Don't hesitate to reach out. See you next week!")
    assert isinstance(said, Spoken) and not said.asks_to_end


def test_speaking_for_the_other_side_is_cut_there_and_marked() -> None:
    said = _says("Therapist: What then?\nPatient: I cried.\nTherapist: I see.")
    assert said == Spoken("What then?", marks=("cut_at_label",))
    heard = read_patient(Reply("**Patient**: I cried.\n\nTherapist: I see."))
    assert heard == Spoken("I cried.", marks=("cut_at_label",))


def test_a_patient_cannot_end_the_session() -> None:
    assert read_patient(Reply(f"Bye then. {end_token()}")) == Spoken("Bye then.")
    assert isinstance(read_patient(Reply(end_token())), Fault)


def test_a_cut_text_keeps_its_whole_sentences() -> None:
    assert whole_sentences('One. "Two?" And then the') == 'One. "Two?"'
    assert whole_sentences("no end at all") == "no end at all"


@pytest.mark.parametrize("form", ["plain", "cot"])
@pytest.mark.parametrize("ends", [False, True])
def test_what_is_learned_is_what_is_read(form: ReasoningForm, ends: bool) -> None:
    written = turn_content(TURNS[1], form, ends=ends)
    reasoning = TURNS[1].reasoning if form == "cot" else None
    assert _says(written, form) == Spoken(TURNS[1].text, reasoning, asks_to_end=ends)


def test_every_view_alternates_and_begins_with_the_user() -> None:
    view = _view()
    therapist = [message["role"] for message in view.therapist_messages(TURNS)]
    patient = [message["role"] for message in view.patient_messages(TURNS[:2], None)]
    assert therapist == ["system", "user", "assistant", "user"]
    assert patient == ["system", "user", "assistant", "user"]


def test_reasoning_stays_out_of_the_history_unless_the_arm_keeps_it() -> None:
    arm = {"name": "a", "therapist": {"scripted": "present"}, "reasoning": "cot"}
    plain = _view(arms=[arm]).therapist_messages(TURNS)
    kept = _view(arms=[arm | {"history": "answers_and_reasoning"}]).therapist_messages(TURNS)
    assert plain[2]["content"] == "What kept you awake?"
    assert kept[2]["content"] == turn_content(TURNS[1], "cot")


def test_the_patient_sees_neither_reasoning_nor_arm_and_the_note_only_now() -> None:
    view = _view()
    messages = view.patient_messages(TURNS[:2], "Your phone rings.")
    text = "\n".join(message["content"] for message in messages)
    assert "Ask one thing." not in text and "attentive" not in text
    assert "Your phone rings." in messages[-1]["content"]
    assert "phone" not in view.patient_messages(TURNS[:2], None)[-1]["content"]


def test_a_patient_who_sees_few_messages_sees_the_newest_and_still_alternates() -> None:
    view = _view(patient_sees=2)
    turns = (*TURNS, Turn(role="therapist", text="And then?"))
    messages = view.patient_messages(turns, None)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in messages[2:]] == ["The bank.", "And then?"]


def test_notes_of_the_last_session_reach_the_therapist_typed_and_the_patient_as_memory() -> None:
    study = study_of(sessions=20, summariser={"scripted": "summariser"})
    view = SessionView(study, study.arms[0], ready_profiles("test")[0], 5, state=STATE)
    system = view.therapist_messages(TURNS)[0]["content"]
    for said in ("session 5", "initial", "the letter", "open one letter", "Avoiding keeps"):
        assert said in system
    patient = view.patient_messages((), None)[0]["content"]
    assert "They spoke about the bank." in patient and "Avoiding keeps" not in patient


def test_the_therapist_is_told_which_message_it_writes_and_which_is_the_last() -> None:
    view = _view(turns={"min": 1, "max": 2})

    def told(*turns: Turn) -> str:
        return view.therapist_messages(turns)[-1]["content"]

    assert told(TURNS[0]).endswith("message number 1 of at most 2; the last one: no.]")
    assert told(*TURNS).endswith("message number 2 of at most 2; the last one: yes.]")
    # a whole session to learn from holds what was said, and no note
    assert told(*TURNS[:2]) == TURNS[1].text
    second = _view(turns={"min": 1, "max": 2}, prompt_version=2)
    system = second.therapist_messages(TURNS[:2])[0]["content"]
    assert "message number 1 to 1 of at most 2; the last one: number 2" in system


def test_all_before_the_newest_message_stays_the_same_for_the_prefix_cache_of_a_server() -> None:
    view = _view()
    first, second = view.therapist_messages(TURNS[:1]), view.therapist_messages(TURNS)
    assert first[0] == second[0] and second[1]["content"] == TURNS[0].text
    assert first[1]["content"].startswith(second[1]["content"])  # the note comes after it
    older = _view(prompt_version=2)
    assert older.therapist_messages(TURNS[:1])[0] != older.therapist_messages(TURNS)[0]


@pytest.mark.parametrize("approach", ["cbt", "act"])
def test_newest_session_prompts_are_the_default_and_a_study_can_keep_the_first(
    approach: str,
) -> None:
    players = {"supervisor": {"scripted": "supervisor"}, "validator": {"scripted": "validator"}}
    course = {"sessions": 2, "summariser": {"scripted": "summariser"}}
    newest = _view(approach=approach, **players, **course)
    first = _view(approach=approach, prompt_version=1, **players, **course)
    assert [prompt.header.version for prompt in newest.prompts] == [3, 2, 2, 2, 2]
    assert {prompt.header.version for prompt in first.prompts} == {1}
    assert [one.header.id for one in first.prompts] == [one.header.id for one in newest.prompts]
    assert first.fingerprint != newest.fingerprint
    # that it is named changes no word: only what the prompts hold counts
    assert _view(approach=approach, prompt_version=3, **players, **course).fingerprint == (
        newest.fingerprint
    )
    second = _view(approach=approach, prompt_version=2, **players, **course)
    assert {prompt.header.version for prompt in second.prompts} == {2}


@pytest.mark.parametrize("name", shipped_recipes())
def test_recipes_of_published_studies_keep_the_first_prompts(name: str) -> None:
    study = load_study(Path(name))
    profile = ready_profiles("test")[0]
    for arm in study.arms:
        used = [study.shipped_prompt(study.patient_prompt), study.therapist_prompt(arm)]
        assert all(one.endswith(".v1") or one.startswith("act-") for one in used)
        if not used[1].startswith("act-"):  # names of the published study, no files
            prompts = SessionView(study, arm, profile).prompts
            assert {prompt.header.version for prompt in prompts} == {1}


def test_a_full_context_stops_or_drops_the_oldest_exchange() -> None:
    long = tuple(
        Turn(role=role, text=f"{n} " + "word " * 80)
        for n, role in enumerate(("patient", "therapist") * 6 + ("patient",))
    )
    for when_full, expected in (("stop", None), ("drop_oldest", "12 ")):
        view = _view(context_tokens=2200, when_full=when_full)
        view = view.fitting(view.therapist_messages(long))
        if expected is None:
            assert view is None
        else:
            assert view is not None and view[-1]["content"].startswith(expected)
            assert [one["role"] for one in view[:3]] == ["system", "user", "assistant"]
            assert len(view) < 14


def test_the_fingerprint_names_what_shapes_words_and_nothing_else() -> None:
    base = _view().fingerprint
    assert _view(id="other", title="x", replicates=4, instruments=["ctrs"]).fingerprint == base
    priced = {"scripted": "patient", "price_in": 1.0, "price_out": 2.0}
    assert _view(patient=priced).fingerprint == base
    assert _view(attempts=9).fingerprint == base
    for change in ({"seed": 6}, {"turns": {"min": 2, "max": 7}}, {"end_token": False}):
        assert _view(**change).fingerprint != base
