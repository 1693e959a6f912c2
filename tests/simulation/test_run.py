"""Played studies: the same bytes every time, the same events in every arm, an end with a reason."""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from cbtqa.errors import (
    ConfigError,
    DataError,
    EndpointAuthError,
    IncompleteRunError,
    UsageError,
)
from cbtqa.llm.limits import Limits
from cbtqa.manifest import read_manifest
from cbtqa.records import Session
from cbtqa.simulation.playing.estimate import estimate_study
from cbtqa.simulation.playing.events import names_help, plan_events
from cbtqa.simulation.playing.messages import end_token
from cbtqa.simulation.playing.players import RunLimits
from cbtqa.simulation.playing.run import RunSettings, run_study
from cbtqa.simulation.profiles import draw_profiles
from cbtqa.simulation.sessions import StudyFolder
from cbtqa.simulation.study import Events, load_study, parse_study
from tests.support.endpoint import (
    Answer,
    ScriptedEndpoint,
    Seen,
    content_filter,
    cut_by_length,
    failed,
    ok,
    refusal,
    server_error,
)
from tests.support.sessions import QUICK, asked_study, bytes_of, study_of

EVENTS = {"first": 1, "last": 6, "probability": 0.5, "set": "with_crisis"}


def _played(study: Any, out: Path, **options: Any) -> list[Session]:
    return list(run_study(study, out, limits=QUICK, **options).folder.read_sessions())


# --- the same everywhere -------------------------------------------------------------------------


def test_one_seed_gives_the_same_bytes_whatever_is_in_flight(tmp_path: Path) -> None:
    study = study_of(events=EVENTS, replicates=2)
    run_study(study, tmp_path / "a", limits=RunLimits(Limits(in_flight=3)))
    run_study(study, tmp_path / "b", limits=QUICK)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    run_study(study_of(events=EVENTS, replicates=2, seed=6), tmp_path / "c", limits=QUICK)
    assert bytes_of(tmp_path / "c") != bytes_of(tmp_path / "a")


def test_patients_seeds_and_events_are_the_same_in_every_arm(tmp_path: Path) -> None:
    study = study_of(events=EVENTS, end_token=False, replicates=2)
    sessions = _played(study, tmp_path / "s")
    by_arm: dict[str, dict[tuple[Any, ...], Any]] = {}
    for one in sessions:
        told = tuple(turn.event for turn in one.turns if turn.role == "patient")
        key = (one.profile_id, one.number, one.replicate)
        by_arm.setdefault(one.arm, {})[key] = (one.seed, told)
    first, second = by_arm.values()
    assert first == second
    assert len({seed for seed, _ in first.values()}) == len(first), "every session has its own"
    assert any(event for _, told in first.values() for event in told)


def test_events_fall_as_often_as_asked_and_only_where_asked() -> None:
    settings = Events(first=8, last=18, probability=0.2)
    planned = [
        plan_events(settings, seed=1, profile_id=one.id, number=1, replicate=1)
        for one in draw_profiles("act", 400, seed=0)
    ]
    assert all(8 <= turn <= 18 for plan in planned for turn in plan)
    mean = sum(map(len, planned)) / 400
    # 11 turns at 0.2: 2.2 a session, standard error 0.066; arXiv 2509.09712 says about two
    assert mean == pytest.approx(2.2, abs=0.25)
    capped = settings.model_copy(update={"most": 1})
    plan = plan_events(capped, seed=1, profile_id="act-0-0001", number=1, replicate=1)
    assert len(plan) <= 1


def test_a_study_that_draws_events_per_arm_says_so_in_what_happens(tmp_path: Path) -> None:
    study = study_of(events=EVENTS | {"drawn": "per_arm"}, end_token=False)
    told = {
        one.arm: [turn.event for turn in one.turns]
        for one in _played(study, tmp_path / "s")
        if one.profile_id == "test-ines"
    }
    assert told["attentive"] != told["lecturing"]


def test_a_crisis_is_answered_with_a_way_to_people(tmp_path: Path) -> None:
    events = {"set": "with_crisis", "first": 1, "last": 6, "probability": 1.0}
    study = study_of(events=events, patients={"ready": "test"})
    sessions = _played(study, tmp_path / "s")
    n_crises = 0
    for one in sessions:
        for turn, answer in zip(one.turns, one.turns[1:], strict=False):
            if turn.event == "dark_thought":
                n_crises += 1
                assert names_help(answer.text), answer.text
    assert n_crises > 3


# --- endings -------------------------------------------------------------------------------------


def _asked(tmp_path: Path, script: Any, **changes: Any) -> Session:
    with ScriptedEndpoint(script) as server:
        study = asked_study(server.url, **changes)
        (session,) = _played(study, tmp_path / "s")
    return session


def test_the_end_token_ends_a_session_but_not_too_early(tmp_path: Path) -> None:
    session = _asked(tmp_path, ok(f"Good bye. {end_token()}"), turns={"min": 3, "max": 9})
    assert session.stop_reason == "ended" and session.n_therapist_turns == 3
    marks = [turn.marks for turn in session.turns if turn.role == "therapist"]
    assert marks == [("early_farewell", "end_too_early"), ("early_farewell", "end_too_early"), ()]
    assert all(end_token() not in turn.text for turn in session.turns)


def test_phrases_of_leave_taking_end_nothing(tmp_path: Path) -> None:
    session = _asked(tmp_path, ok("Take care of yourself. Good bye, see you next week!"))
    assert session.stop_reason == "max_turns" and session.n_therapist_turns == 6


def test_an_end_token_alone_ends_without_an_empty_turn(tmp_path: Path) -> None:
    session = _asked(tmp_path, [ok("Tell me."), ok("And then?"), ok(end_token())])
    assert session.stop_reason == "ended" and session.turns[-1].role == "patient"


def test_a_full_context_ends_a_session_with_the_count(tmp_path: Path) -> None:
    session = _asked(tmp_path, ok("word " * 100), context_tokens=1600, turns={"min": 2, "max": 20})
    assert session.stop_reason == "context" and "of 1600 tokens" in session.stop_detail
    assert 0 < session.n_therapist_turns < 20


def test_the_context_of_the_server_counts_too(tmp_path: Path) -> None:
    too_long = failed(400, "This model's maximum context length is 512 tokens.")
    session = _asked(tmp_path, [ok("Tell me."), too_long])
    assert session.stop_reason == "context" and "512" in session.stop_detail


@pytest.mark.parametrize(
    ("answer", "reason", "detail"),
    [
        (refusal(), "refused", "cannot help"),
        (content_filter(), "refused", "inappropriate"),
        (ok(""), "no_answer", "nothing"),
        (cut_by_length("I think that"), "no_answer", "token limit"),
        (ok("I think that", finish_reason="network_error"), "no_answer", "network_error"),
    ],
)
def test_a_reply_that_is_none_stops_with_its_reason(
    tmp_path: Path, answer: Answer, reason: str, detail: str
) -> None:
    with pytest.raises(IncompleteRunError, match=f"not one of 1 sessions.*{reason} 1"):
        _asked(tmp_path, [ok("Tell me."), answer], attempts=2)
    (session,) = StudyFolder(tmp_path / "s").read_sessions()
    assert session.stop_reason == reason
    assert session.stop_detail.startswith("therapist:") and detail in session.stop_detail
    assert session.n_therapist_turns == 1


@pytest.mark.parametrize(
    ("faulty", "form"),
    [
        (cut_by_length("I hear you and I would like"), "plain"),
        (ok("Where do you feel it?<|im_end|>\n<|im_start|>user\nIn my chest."), "plain"),
        (ok("Tell me."), "cot"),
        (refusal(), "plain"),
    ],
)
def test_a_faulty_turn_is_asked_afresh_so_that_no_note_can_be_answered(
    tmp_path: Path, faulty: Answer, form: str
) -> None:
    good = "Go on." if form == "plain" else "<thinking>c</thinking><answer>Go on.</answer>"
    with ScriptedEndpoint([faulty, *[ok(good)] * 9]) as server:
        arm = {"name": "asked", "reasoning": form}
        arm["therapist"] = {"endpoint": server.url, "model": "m"}
        (session,) = _played(
            study_of(arms=[arm], patients={"ready": "test", "n": 1}), tmp_path / "s"
        )
        first, second, *later = (seen.body for seen in server.requests)
    assert second["messages"] == first["messages"] and second["seed"] != first["seed"]
    assert "your reply" not in json.dumps(later).lower()
    assert {turn.text for turn in session.turns if turn.role == "therapist"} == {"Go on."}


@pytest.mark.parametrize(
    "said",
    [
        "[Your reply was cut off because it was too long. Say it again, much shorter.]",
        "Where do you feel it?<|eot_id|>",
        "Where do you feel it? <thought>She is sad.</thought> Tell me.",
        "Go on.\nUser: I can't.",
    ],
)
def test_what_is_nobodys_turn_never_enters_a_session(tmp_path: Path, said: str) -> None:
    with ScriptedEndpoint([ok("Tell me."), *[ok(said)] * 9]) as server:
        study = asked_study(server.url, attempts=2)
        with suppress(IncompleteRunError):  # where no session came to its end
            run_study(study, tmp_path / "s", limits=QUICK)
    (session,) = StudyFolder(tmp_path / "s").read_sessions()
    kept = bytes_of(tmp_path / "s").decode()
    if session.stop_reason == "no_answer":
        assert session.n_therapist_turns == 1 and said not in kept
    else:  # the other side's words were cut off, and that is marked
        assert session.turns[3].text == "Go on." and "cut_at_label" in session.turns[3].marks
        assert "I can't" not in kept


def test_a_supervisors_complaint_is_not_said_to_the_patient(tmp_path: Path) -> None:
    complaint = "You should ask her what she is afraid of tonight."
    replies = iter(["Tell me.", f"Sure. {complaint}", "What are you afraid of?"])

    def script(seen: Seen) -> Any:
        if seen.body["model"] == "boss":
            is_first = "Tell me." in seen.last_text
            verdict = {"accepted": not is_first, "feedback": complaint if is_first else ""}
            return ok(json.dumps(verdict))
        return ok(next(replies))

    with ScriptedEndpoint(script) as server:
        boss = {"endpoint": server.url, "model": "boss"}
        study = asked_study(server.url, supervisor=boss, turns={"min": 1, "max": 1})
        (session,) = _played(study, tmp_path / "s")
    assert session.turns[1].text == "What are you afraid of?" and session.turns[1].n_revisions == 1


@pytest.mark.parametrize("ended", ["length", "network_error"])
def test_a_cut_reply_is_kept_to_its_last_sentence_where_the_study_says_so(
    tmp_path: Path, ended: str
) -> None:
    answer = ok("One. Two. And th", finish_reason=ended)
    session = _asked(tmp_path, answer, cut_replies="keep")
    assert session.stop_reason == "max_turns"
    said = [turn for turn in session.turns if turn.role == "therapist"]
    assert {(turn.text, turn.marks) for turn in said} == {("One. Two.", ("cut",))}


# --- endpoints that fail, and going on -----------------------------------------------------------


def test_an_endpoint_that_fails_in_mid_session_is_kept_and_taken_up_again(tmp_path: Path) -> None:
    is_broken = True

    def script(seen: Seen) -> Answer:
        n_said = sum(message["role"] == "assistant" for message in seen.body["messages"])
        return server_error() if is_broken and n_said == 2 else ok(f"Answer {n_said}.")

    patients = {"ready": "test", "n": 3}
    with ScriptedEndpoint(script) as server:
        study = asked_study(server.url, patients=patients)
        with pytest.raises(IncompleteRunError, match="3 of 3 sessions") as caught:
            _played(study, tmp_path / "s")
        assert "same command" in str(caught.value.hint)
        stopped = list(StudyFolder(tmp_path / "s").read_sessions())
        assert {one.stop_reason for one in stopped} == {"endpoint"}
        assert {one.n_therapist_turns for one in stopped} == {2}
        is_broken = False
        sessions = _played(study, tmp_path / "s")
        assert {one.stop_reason for one in sessions} == {"max_turns"}
        assert server.n_paid_again == 0
        assert [one.turns[:4] for one in sessions] == [one.turns[:4] for one in stopped]


def test_one_patient_whose_turns_are_refused_does_not_stop_the_others(tmp_path: Path) -> None:
    def script(seen: Seen) -> Answer:
        return content_filter() if "Gordon" in json.dumps(seen.body) else ok("Go on.")

    with ScriptedEndpoint(script) as server:
        study = asked_study(server.url, patients={"ready": "test", "n": 3})
        sessions = _played(study, tmp_path / "s")
    assert [one.stop_reason for one in sessions] == ["max_turns", "refused", "max_turns"]


def test_a_refused_key_stops_the_run_and_stands_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CBTQA_API_KEY", "wrong-key-of-test")
    with ScriptedEndpoint(ok("Go on."), key="right") as server:
        with pytest.raises(EndpointAuthError):
            _played(asked_study(server.url), tmp_path / "s")
        monkeypatch.setenv("OWN_API_KEY", "right")
        arm = {"name": "asked", "therapist": {"endpoint": server.url, "model": "m"}}
        arm["therapist"] |= {"key_env": "OWN_API_KEY"}
        _played(asked_study(server.url, arms=[arm]), tmp_path / "t")
    for path in (tmp_path / "s", tmp_path / "t"):
        for file in path.rglob("*"):
            data = file.read_bytes()
            assert b"wrong-key-of-test" not in data and b"Bearer" not in data
            assert server.url.encode() not in data or file.name == "study.json"


def test_a_budget_stops_a_study_which_goes_on_with_more(tmp_path: Path) -> None:
    with ScriptedEndpoint(ok("Go on.", prompt_tokens=800, completion_tokens=10)) as server:
        study = asked_study(server.url, patients={"ready": "test", "n": 3})
        tight = RunLimits(Limits(in_flight=2, waits=False), budget_tokens=5000)
        for _ in range(3):
            # what was spent before counts: three runs together stay below the limit
            with pytest.raises(IncompleteRunError, match="budget is used up"):
                run_study(study, tmp_path / "s", limits=tight)
            assert 2 <= server.n_paid <= 5000 // 810
        assert len(_played(study, tmp_path / "s")) == 3
        assert server.n_paid_again == 0


def test_models_of_different_prices_share_one_budget_in_money(tmp_path: Path) -> None:
    with ScriptedEndpoint(ok("Go on.")) as server:
        arms = []
        for model, price in (("cheap", 1e6), ("dear", 2e6)):  # 150 and 300 a reply
            player = {"endpoint": server.url, "model": model, "max_tokens": 50}
            player |= {"price_in": price, "price_out": price}
            arms.append({"name": model, "therapist": player})
        study = study_of(arms=arms, patients={"ready": "test"}, end_token=False)
        with pytest.raises(IncompleteRunError, match="budget is used up"):
            limits = RunLimits(Limits(in_flight=2, waits=False), budget=3000)
            run_study(study, tmp_path / "s", limits=limits)
        models = [seen.body["model"] for seen in server.requests]
    assert 1500 < 150 * models.count("cheap") + 300 * models.count("dear") <= 3000


def test_several_arms_at_one_server_are_asked_at_the_same_time(tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda seen: Answer(200, ok("Go on.").body, delay_s=0.05)) as server:
        arms = [
            {"name": f"arm{n}", "therapist": {"endpoint": server.url, "model": f"m{n}"}}
            for n in range(2)
        ]
        sessions = _played(study_of(arms=arms, patients={"ready": "test"}), tmp_path / "s")
    assert len(sessions) == 10 and server.peak_in_flight == 10
    assert {one.provenance.model for one in sessions} == {"m0", "m1"}


def test_the_sampling_seed_of_a_turn_is_the_same_in_every_arm(tmp_path: Path) -> None:
    with ScriptedEndpoint(ok("Go on.")) as server:
        arms = [
            {"name": f"arm{n}", "therapist": {"endpoint": server.url, "model": f"m{n}"}}
            for n in range(2)
        ]
        _played(study_of(arms=arms), tmp_path / "s")
        seeds: dict[str, list[int]] = {}
        for seen in server.requests:
            seeds.setdefault(seen.body["model"], []).append(seen.body["seed"])
    assert sorted(seeds["m0"]) == sorted(seeds["m1"])
    assert len(set(seeds["m0"])) == len(seeds["m0"])


# --- supervision ---------------------------------------------------------------------------------


def test_a_turn_that_the_supervisor_never_accepts_is_kept_and_marked(tmp_path: Path) -> None:
    verdict = json.dumps({"accepted": False, "feedback": "Ask one thing."})

    def script(seen: Seen) -> Answer:
        is_supervisor = "You supervise" in seen.body["messages"][0]["content"]
        return ok(verdict) if is_supervisor else ok(f"Draft {len(seen.body['messages'])}.")

    with ScriptedEndpoint(script) as server:
        supervisor = {"endpoint": server.url, "model": "s"}
        study = asked_study(server.url, supervisor=supervisor, turns={"min": 1, "max": 2})
        (session,) = _played(study, tmp_path / "s")
        asked = [seen for seen in server.requests if seen.body["model"] == "m"]
    turns = [turn for turn in session.turns if turn.role == "therapist"]
    assert [turn.marks for turn in turns] == [("not_accepted",)] * 2
    assert {(turn.n_revisions, turn.complaint) for turn in turns} == {(2, "Ask one thing.")}
    assert len(asked) == 6, "a draft and two revisions for each turn"
    assert "Ask one thing." in asked[1].last_text
    assert "Ask one thing." not in json.dumps(asked[3].body), "the history holds no supervision"


def test_a_verdict_that_cannot_be_read_is_no_acceptance(tmp_path: Path) -> None:
    def script(seen: Seen) -> Answer:
        is_supervisor = "You supervise" in seen.body["messages"][0]["content"]
        return ok("Looks fine to me!") if is_supervisor else ok("Go on.")

    with ScriptedEndpoint(script) as server:
        supervisor = {"endpoint": server.url, "model": "s"}
        (session,) = _played(asked_study(server.url, supervisor=supervisor), tmp_path / "s")
    turns = [turn for turn in session.turns if turn.role == "therapist"]
    assert {turn.marks for turn in turns} == {("unsupervised",)}
    assert all("no verdict" in (turn.complaint or "") for turn in turns)


# --- courses -------------------------------------------------------------------------------------


def test_notes_are_handed_from_session_to_session(tmp_path: Path) -> None:
    study = study_of(
        sessions=4, summariser={"scripted": "summariser"}, patients={"ready": "test", "n": 1}
    )
    sessions = _played(study, tmp_path / "s")
    assert [one.number for one in sessions] == [1, 2, 3, 4] * 2
    assert [one.phase for one in sessions[:4]] == ["assessment"] * 3 + ["initial"]
    assert all(one.state is not None for one in sessions)
    longer = study.model_copy(update={"sessions": 5})
    grown = run_study(longer, tmp_path / "s", limits=QUICK)
    assert not grown.was_complete
    kept = [one for one in grown.folder.read_sessions() if one.number < 5]
    assert kept == sessions, "a longer course plays no session anew"


def test_a_course_whose_notes_fail_leaves_no_session_out(tmp_path: Path) -> None:
    with ScriptedEndpoint(ok("no JSON")) as server:
        summariser = {"endpoint": server.url, "model": "m"}
        study = study_of(sessions=3, summariser=summariser, patients={"ready": "test", "n": 1})
        sessions = _played(study, tmp_path / "s")
    assert len(sessions) == 6
    assert [(one.number, len(one.turns) > 0) for one in sessions[:3]] == [
        (1, True),
        (2, False),
        (3, False),
    ]
    assert sessions[1].stop_reason == "no_answer" and "summariser" in sessions[1].stop_detail


# --- folders -------------------------------------------------------------------------------------


def test_a_finished_study_asks_nothing_again(tmp_path: Path) -> None:
    study = study_of()
    assert not run_study(study, tmp_path / "s", limits=QUICK).was_complete
    before = bytes_of(tmp_path / "s")
    assert run_study(study, tmp_path / "s", limits=QUICK).was_complete
    assert bytes_of(tmp_path / "s") == before
    manifest = read_manifest(tmp_path / "s")
    assert manifest.counts["n_sessions"] == 4 and "no patient is real" in str(manifest)


def test_another_arm_plays_only_its_own_sessions(tmp_path: Path) -> None:
    run_study(study_of(), tmp_path / "s", limits=QUICK)
    with sqlite3.connect(tmp_path / "s/turns.sqlite") as db:
        (n_before,) = db.execute("SELECT count(*) FROM attempts").fetchone()
    arms = study_of().arms
    third = arms[0].model_copy(
        update={
            "name": "plain",
            "therapist": arms[0].therapist.model_copy(update={"scripted": "plain"}),
        }
    )
    grown = study_of().model_copy(update={"arms": (*arms, third)})
    sessions = _played(grown, tmp_path / "s")
    assert {one.arm for one in sessions} == {"attentive", "lecturing", "plain"}
    with sqlite3.connect(tmp_path / "s/turns.sqlite") as db:
        keys = [key for (key,) in db.execute("SELECT key FROM attempts")]
    assert all(key.startswith("plain/") for key in keys[n_before:])


def test_other_settings_are_refused_with_the_difference_unless_asked_for(tmp_path: Path) -> None:
    run_study(study_of(), tmp_path / "s", limits=QUICK)
    changed = study_of(turns={"min": 2, "max": 4})
    with pytest.raises(ConfigError, match=r"turns\.max: was 6, is 4"):
        run_study(changed, tmp_path / "s", limits=QUICK)
    sessions = _played(changed, tmp_path / "s", update=True)
    assert max(one.n_therapist_turns for one in sessions) <= 4
    assert run_study(study_of(), tmp_path / "s", limits=QUICK).was_complete, "its turns are kept"


def test_a_folder_goes_on_with_the_prompts_that_it_was_begun_with(tmp_path: Path) -> None:
    older = study_of(prompt_version=2)
    first = _played(older, tmp_path / "s")
    # the same study as somebody has it who never named a version, after newer ones came
    result = run_study(study_of(), tmp_path / "s", limits=QUICK)
    assert result.was_complete and StudyFolder(tmp_path / "s").study().prompt_version == 2
    again = StudyFolder(tmp_path / "s").read_sessions()
    assert [one.turns for one in again] == [one.turns for one in first]
    newest = run_study(study_of(), tmp_path / "new", limits=QUICK)
    assert StudyFolder(tmp_path / "new").study().prompt_version is None
    assert any(name.endswith(".v3") for name in newest.manifest.prompts)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and holds no study"):
        run_study(study_of(), tmp_path, limits=QUICK)
    with pytest.raises(DataError, match=r"holds no study\.json"):
        StudyFolder(tmp_path).study()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id: a\napproach: cbt\narms: []\n", "arms"),
        (
            "id: a\napproach: cbt\nseeed: 1\narms: [{name: x, therapist: {scripted: plain}}]\n",
            "seeed: unknown key",
        ),
        (
            "id: a\napproach: cbt\narms: [{name: x, therapist: {}}]\n",
            r"arms\.0\.therapist: .*one of scripted",
        ),
        (
            "id: a\napproach: cbt\nsessions: 2\narms: [{name: x, therapist: {scripted: plain}}]\n",
            "summariser",
        ),
        (
            "id: a\napproach: cbt\narms: [{name: x, therapist: {scripted: plain}}, {name: x, therapist: {scripted: plain}}]\n",
            "arms of one name: x",
        ),
        ("- a\n", "expected `key: value`"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_wrong_study_file_names_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_study(path)
    assert "study.yaml" in str(caught.value)


def test_an_unknown_scripted_therapist_is_a_clear_error(tmp_path: Path) -> None:
    arms = [{"name": "x", "therapist": {"scripted": "wise"}}]
    with pytest.raises(ConfigError, match="no scripted therapist 'wise'"):
        run_study(study_of(arms=arms), tmp_path / "s", limits=QUICK)
    assert not (tmp_path / "s").exists()


# --- the dry run ---------------------------------------------------------------------------------


def test_a_dry_run_counts_calls_price_and_what_is_done_without_a_key(tmp_path: Path) -> None:
    arm = {"name": "x", "therapist": {"endpoint": "openai", "model": "gpt-4o-mini"}}
    study = study_of(arms=[arm], supervisor={"scripted": "supervisor"}, replicates=3)
    estimated = estimate_study(study, tmp_path / "none")
    assert estimated.n_items == 6 and estimated.n_requests == 6 * 6 * 3
    asked = estimated.parts[0]
    assert asked.name == "gpt-4o-mini" and asked.n_requests == 36
    assert estimated.seconds == 36 * 10 / 6  # six courses at a time
    expected = (asked.prompt_tokens * 0.15 + asked.completion_tokens * 0.60) / 1e6
    assert estimated.cost == pytest.approx(expected) and expected > 0
    unknown = study_of(arms=[{"name": "x", "therapist": {"endpoint": "openai", "model": "new"}}])
    assert estimate_study(unknown).cost is None


def test_a_dry_run_is_an_upper_bound_of_the_calls_made(tmp_path: Path) -> None:
    study = study_of(end_token=False)
    most = estimate_study(study).n_requests
    run_study(study, tmp_path / "s", limits=QUICK)
    after = estimate_study(study, tmp_path / "s")
    assert after.n_done == most == 2 * 2 * 6 * 2 and after.n_requests == 0


def test_an_address_with_a_secret_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    player = {"endpoint": "http://127.0.0.1:1/v1?key=hidden-word", "model": "m"}
    for place in (
        {"arms": [{"name": "asked", "therapist": player}]},
        {"judges": [{"player": player}]},
        {"pairs": {"rejected": player}},
    ):
        with pytest.raises(ConfigError, match="carries a user, a query") as caught:
            run_study(study_of(**place), tmp_path / "s", limits=QUICK)
        assert "hidden-word" not in str(caught.value) and not (tmp_path / "s").exists()


def test_a_journal_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    run_study(study_of(), tmp_path / "s", limits=QUICK)
    with sqlite3.connect(tmp_path / "s/turns.sqlite") as db:
        db.execute("DELETE FROM attempts WHERE key LIKE 'lecturing/test-gordon%'")
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON attempts BEGIN SELECT RAISE(FAIL, 'disk full'); END"
        )
    with pytest.raises(IncompleteRunError, match="cannot be written"):
        run_study(study_of(), tmp_path / "s", limits=QUICK)
    assert not (tmp_path / "s/manifest.json").exists()


def test_the_study_in_the_documentation_is_a_study() -> None:
    text = (Path(__file__).parents[2] / "docs/simulation.md").read_text(encoding="utf-8")
    example = text.split("```yaml\n")[1].split("```")[0]
    study = parse_study(yaml.safe_load(example), "docs/simulation.md")
    assert [arm.name for arm in study.arms] == ["tuned", "instruct"]


def test_a_server_that_refuses_every_question_is_no_finished_study(tmp_path: Path) -> None:
    with ScriptedEndpoint(failed(422, "extra input: seed")) as server:
        study = asked_study(server.url)
        with pytest.raises(IncompleteRunError, match=r"refused.*extra input: seed"):
            run_study(study, tmp_path / "s", limits=QUICK)
    assert not (tmp_path / "s/manifest.json").exists()
    with ScriptedEndpoint(ok("Go on.")) as server:
        _played(asked_study(server.url), tmp_path / "s")


@pytest.mark.parametrize(("field", "sent"), [("random_seed", True), (None, False)])
def test_the_seed_goes_by_the_name_that_the_server_knows(
    tmp_path: Path, field: str | None, sent: bool
) -> None:
    with ScriptedEndpoint(ok("Go on.")) as server:
        player = {"endpoint": server.url, "model": "m", "seed_field": field}
        _played(asked_study(server.url, arms=[{"name": "a", "therapist": player}]), tmp_path / "s")
        bodies = [seen.body for seen in server.requests]
    assert all("seed" not in body and ("random_seed" in body) == sent for body in bodies)


# --- without a study file ------------------------------------------------------------------------


def test_an_endpoint_and_a_model_alone_play_six_sessions_with_each_other(tmp_path: Path) -> None:
    lines = [f"What happened on day {n} of that week, and what went with it?" for n in range(500)]
    with ScriptedEndpoint([ok(line) for line in lines]) as server:
        settings = RunSettings(endpoint=(server.url,), model="m", out=tmp_path)
        sessions = _played(settings.declared(), tmp_path / "s")
        assert {seen.body["model"] for seen in server.requests} == {"m"}
    assert len(sessions) == 6
    assert {one.provenance.model for one in sessions} == {"m"}


@pytest.mark.parametrize("given", [{"model": "m"}, {"endpoint": ("http://127.0.0.1:9/v1",)}])
def test_half_an_endpoint_without_a_study_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="go together"):
        RunSettings(**given).declared()
