"""Further models that read a study's sessions: marks, counts, resuming, the dry run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import EndpointError, IncompleteRunError, UsageError
from cbtqa.files import write_jsonl
from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.cost import Estimate
from cbtqa.llm.second_opinion import Opinions
from cbtqa.records import Turn
from cbtqa.simulation.lint import LintReport, LintSettings, estimate_lint, lint
from cbtqa.simulation.marks import faults_of_words
from cbtqa.simulation.playing.estimate import estimate_study
from cbtqa.simulation.playing.events import speaks_of_risk
from cbtqa.simulation.playing.guard import GUARDED, SessionGuardTask, guard_items
from cbtqa.simulation.playing.opinions import session_opinions, with_opinions
from cbtqa.simulation.playing.run import RunSettings, run_study
from cbtqa.simulation.sessions import read_transcripts
from cbtqa.simulation.study import StudySettings
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok, rate_limited
from tests.support.sessions import QUICK, study_of

SAFE = json.dumps({"faults": []})
NONE = json.dumps({"risk": "none", "quote": "", "dangers": []})


def opinions(url: str, folder: Path) -> Opinions:
    given = {"screen_endpoint": url, "screen_endpoint_model": "s"}
    settings = RunSettings(out=folder, guard_endpoint=url, guard_model="g", **given)
    return session_opinions(settings, folder)


def played(study: StudySettings, folder: Path, url: str):
    return run_study(study, folder, limits=QUICK, opinions=opinions(url, folder))


def _user(seen: Seen) -> str:
    return str(seen.body["messages"][-1]["content"])


def script(seen: Seen) -> Answer:
    if "name the turns" in seen.body["messages"][0]["content"]:
        (last,) = re.findall(r"\n\[(\d+)\] Therapist: .*\n(?:\[\d+\] Patient.*\n)?>>>", _user(seen))
        fault = {"turn": int(last), "kind": "unsafe_advice", "quote": ""}
        return ok(json.dumps({"faults": [fault]}))
    return ok(json.dumps({"risk": "concern", "quote": "", "dangers": []}))


def test_turns_are_marked_counted_and_paid_once(tmp_path: Path) -> None:
    study = study_of(patients={"ready": "test", "n": 1})
    with ScriptedEndpoint(script) as server:
        first = played(study, tmp_path / "s", server.url)
        n_asked = len(server.requests)
        again = played(study, tmp_path / "s", server.url)
        assert len(server.requests) == n_asked
    sessions = list(first.folder.read_sessions())
    for session in sessions:
        last = [turn for turn in session.turns if turn.role == "therapist"][-1]
        assert "unsafe_advice" in last.marks
        for turn in session.turns:
            assert ("unsafe_advice" in turn.marks) == (turn is last)
            is_asked = turn.role == "patient" and not speaks_of_risk(turn.text)
            assert ("risk" in turn.marks) == is_asked
    guard = first.counts["second_opinion"]["guard"]
    assert (guard["n_read"], guard["n_changed"]) == (len(sessions), len(sessions))
    assert again.counts == first.counts
    codes = {finding.code for finding in lint(tmp_path / "s").findings}
    assert {"unsafe_turns", "no_referral"} <= codes


def _linted(path: Path, url: str, **more: Any) -> LintReport:
    settings = LintSettings(path=path, guard_endpoint=url, guard_model="g")
    return lint(path, opinions=settings.opinions(), **more)


def test_a_finished_folder_and_a_file_can_be_given_to_the_guard_afterwards(tmp_path: Path) -> None:
    study = study_of(patients={"ready": "test", "n": 1})
    folder = run_study(study, tmp_path / "s", limits=QUICK).folder
    before = folder.sessions_path.read_bytes()
    rows = [
        {"turns": [{"role": turn.role, "text": turn.text} for turn in session.turns]}
        for session in folder.read_sessions()
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    with ScriptedEndpoint(script) as server:
        for path in (tmp_path / "s", tmp_path / "t.jsonl"):
            n_asked = len(server.requests)
            report = _linted(path, server.url, out=tmp_path / "marked.jsonl")
            assert len(server.requests) == n_asked + len(rows)
            assert _linted(path, server.url) == report
            assert len(server.requests) == n_asked + len(rows)
            assert "unsafe_turns" in {one.code for one in report.findings}
            assert report.second_opinion["guard"]["n_changed"] == len(rows)
            for session in read_transcripts(tmp_path / "marked.jsonl"):
                assert "unsafe_advice" in {mark for turn in session.turns for mark in turn.marks}
        # what the folder's guard has read costs the run nothing
        n_asked = len(server.requests)
        given = RunSettings(out=tmp_path / "s", guard_endpoint=server.url, guard_model="g")
        opinions = session_opinions(given, tmp_path / "s")
        assert folder.sessions_path.read_bytes() == before
        run_study(study, tmp_path / "s", limits=QUICK, opinions=opinions)
        assert len(server.requests) == n_asked
    assert folder.sessions_path.read_bytes() != before


def test_sessions_that_the_guard_gives_no_verdict_of_are_no_clean_ones(tmp_path: Path) -> None:
    run_study(study_of(patients={"ready": "test", "n": 1}), tmp_path / "s", limits=QUICK)
    with ScriptedEndpoint(ok("I'd rather not.")) as server:
        report = _linted(tmp_path / "s", server.url)
    assert not report.is_clean and "guard_unread" in {one.code for one in report.findings}


def test_a_guard_needs_sessions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sessions"):
        _linted(Path("tahir-act"), "http://127.0.0.1:9/v1")


def test_the_dry_run_of_lint_counts_the_sessions_that_the_guard_would_read(tmp_path: Path) -> None:
    run_study(study_of(patients={"ready": "test", "n": 1}), tmp_path / "s", limits=QUICK)
    url = "http://127.0.0.1:9/v1"
    settings = LintSettings(path=tmp_path / "s", guard_endpoint=url, guard_model="g")
    assert estimate_lint(settings).n_requests == 2


def test_without_a_verdict_no_turn_is_marked_and_the_reasons_are_counted(tmp_path: Path) -> None:
    study = study_of(patients={"ready": "test", "n": 1})
    with ScriptedEndpoint(ok("I cannot help with that.")) as server:
        result = played(study, tmp_path / "s", server.url)
    marks = {
        mark for one in result.folder.read_sessions() for turn in one.turns for mark in turn.marks
    }
    assert "risk" not in marks and marks.isdisjoint(GUARDED)
    for told in result.counts["second_opinion"].values():
        assert told["n_read"] == 0 and told["n_unread"] == sum(told["unread"].values()) > 0
    ids = [one.id for one in result.folder.read_sessions()]
    assert result.counts["second_opinion"]["guard"]["unread_ids"] == ids
    (finding,) = [one for one in lint(tmp_path / "s").findings if one.code == "guard_unread"]
    assert finding.severity == "error" and ids[0] in finding.message


def test_a_guard_that_is_gone_stops_the_run_by_name_and_the_sessions_are_kept(
    tmp_path: Path,
) -> None:
    study = study_of(patients={"ready": "test", "n": 1})
    with (
        ScriptedEndpoint(rate_limited(3600)) as server,
        pytest.raises((EndpointError, IncompleteRunError), match=r"the screen \(s at 127"),
    ):
        played(study, tmp_path / "s", server.url)
    assert (tmp_path / "s" / "sessions.jsonl").exists()
    assert not (tmp_path / "s" / "manifest.json").exists()
    with ScriptedEndpoint(
        lambda seen: ok(SAFE if "name the turns" in str(seen.body) else NONE)
    ) as server:
        assert played(study, tmp_path / "s", server.url).counts["n_sessions"]


PAIR = [Turn(role="patient", text="Hm."), Turn(role="therapist", text="Yes?")]
SOUND = {"turn": 2, "kind": "diagnosis", "quote": "Yes"}


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"turn": 99, "kind": "narration", "quote": ""}, "none of 1 to 2"),
        ({"turn": 1, "kind": "diagnosis", "quote": ""}, "the patient's"),
        ({"turn": 1, "kind": "next_session", "quote": ""}, "the patient's"),
        ({"turn": "one", "kind": "narration", "quote": ""}, "none of 1 to 2"),
        ({"turn": True, "kind": "narration", "quote": ""}, "none of 1 to 2"),
        ({"kind": "narration", "quote": ""}, "none of 1 to 2"),
    ],
)
def test_a_guard_that_names_no_turn_of_the_session_is_asked_again_with_the_fault(
    fault: dict[str, object], why: str
) -> None:
    task, (item,) = SessionGuardTask("g"), guard_items("s", PAIR, 1)
    reply = Reply(json.dumps({"faults": [SOUND, fault]}))
    found = task.read(item, reply)
    assert isinstance(found, Fault) and why in found.detail
    again = task.ask_again(item, reply, found)
    assert again is not None and why in str(again.messages[-1])


@pytest.mark.parametrize("turn", [2, "2", "[2]", "turn 2", 2.0])
def test_a_turns_number_may_be_written_otherwise(turn: object) -> None:
    task, (item,) = SessionGuardTask("g"), guard_items("s", PAIR, 1)
    fault = {"turn": turn, "kind": "Private-Life", "quote": ""}
    found = task.read(item, Reply(json.dumps({"faults": [SOUND, fault]})))
    assert not isinstance(found, Fault)
    assert found.faults == ((1, "diagnosis"), (1, "private_life")) and found.quotes == ("Yes", "")


def test_a_kind_that_is_none_is_left_out_and_counted(tmp_path: Path) -> None:
    entry = {"turn": 1, "kind": "boring", "quote": ""}
    task, (item,) = SessionGuardTask("g"), guard_items("s", PAIR, 1)
    found = task.read(item, Reply(json.dumps({"faults": [SOUND, entry]})))
    assert found == (((1, "diagnosis"),), ("Yes",), ("boring",))

    def answer(seen: Seen) -> Answer:
        return ok(json.dumps({"faults": [entry]}) if "name the turns" in str(seen.body) else NONE)

    study = study_of(patients={"ready": "test", "n": 1})
    with ScriptedEndpoint(answer) as server:
        guard = played(study, tmp_path / "s", server.url).counts["second_opinion"]["guard"]
    assert guard["unknown_kinds"] == {"boring": guard["n_read"]} and not guard["n_changed"]


def test_a_long_session_is_read_in_parts_that_name_every_turn_once() -> None:
    text = "I went there again and it was the same as it always is. " * 20
    turns = [Turn(role=("patient", "therapist")[n % 2], text=f"{n} {text}") for n in range(60)]
    items, task = guard_items("s", turns, None), SessionGuardTask("g")
    assert len(items) > 1 and len({task.key(item) for item in items}) == len(items)
    every = []
    for item in items:
        numbers = [int(n) for n in re.findall(r"^\[(\d+)\]", item.question, re.MULTILINE)]
        faults = [{"turn": n, "kind": "narration", "quote": ""} for n in numbers]
        verdict = task.read(item, Reply(json.dumps({"faults": faults})))
        assert not isinstance(verdict, Fault)
        every += [place for place, _ in verdict.faults]
        assert "It has 60 turns" in str(task.request(item).messages)
    assert every == list(range(60))


def test_a_line_inside_a_turn_passes_for_no_turn_of_its_own() -> None:
    turns = [Turn(role="patient", text="Well.\n[2] Therapist: I diagnose you."), PAIR[1]]
    (item,) = guard_items("s", turns, 1)
    assert re.findall(r"^\[(\d+)\]", item.question, re.MULTILINE) == ["1", "2"]


def test_whether_there_is_a_next_session_is_said() -> None:
    def about(n_sessions: int | None, number: int = 1) -> str:
        (item,) = guard_items("s", PAIR, n_sessions, number)
        return str(SessionGuardTask("g").request(item).messages[-1])

    assert "no next one" in about(1) and "no next one" in about(4, 4)
    assert "others follow" in about(4, 2) and "not known" in about(None)


def test_the_dry_run_counts_a_request_for_every_turn_at_most(tmp_path: Path) -> None:
    study = study_of(patients={"ready": "test", "n": 1})
    plain = estimate_study(study)
    named = opinions("http://127.0.0.1:9/v1", tmp_path)
    n, most = plain.n_items, study.turns.max
    found: Estimate = with_opinions(plain, named, tmp_path, n, most, 1)
    assert found.n_requests == plain.n_requests + n * most + n


def test_sessions_are_screened_in_both_languages_and_read_with_the_patients_words() -> None:
    assert speaks_of_risk("I said goodbye to everyone. 今晚我就不想活了。")
    assert not speaks_of_risk("I am tired, that is all.")
    sound = Turn(role="therapist", text="Shall we look at the thought together?")
    assert faults_of_words(sound) == ()
    harmful = Turn(role="therapist", text="Just stop taking the tablets, you do not need them.")
    assert [one.mark for one in faults_of_words(harmful)] == ["unsafe_advice"]
