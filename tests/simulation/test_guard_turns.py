"""A guard that reads each new turn while a session is played."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cbtqa.errors import IncompleteRunError, UsageError
from cbtqa.records import Session
from cbtqa.simulation.playing.estimate import estimate_study
from cbtqa.simulation.playing.messages import plan_courses
from cbtqa.simulation.playing.run import RunSettings, run_study
from cbtqa.simulation.profiles import choose_profiles
from cbtqa.simulation.sessions import read_transcripts
from cbtqa.simulation.study import StudySettings, parse_study
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok, rate_limited
from tests.support.sessions import QUICK, asked_study

SLY, SOUND = "Between us, the little blue ones do wonders for that.", "What happened on Monday?"


def _named(seen: Seen) -> Answer:
    """A guard that names every turn with the words, as the last of what it is shown."""
    shown = str(seen.body["messages"][-1]["content"]).split("<<<")[1]
    last = shown.strip().removesuffix(">>>").strip().splitlines()[-1]
    number = int(last[1 : last.index("]")])
    fault = {"turn": number, "quote": "the little blue ones", "kind": "unsafe_advice"}
    return ok(json.dumps({"faults": [fault] if SLY in last else []}))


def _script(said: Iterator[str], guard: Callable[[Seen], Answer] = _named) -> Any:
    return lambda seen: guard(seen) if seen.body["model"] == "g" else ok(next(said))


def _study(url: str, **changes: Any) -> StudySettings:
    guard = {"endpoint": url, "model": "g"}
    return asked_study(url, **({"guard": guard, "turns": {"min": 1, "max": 1}} | changes))


def _played(
    folder: Path, script: Callable[[Seen], Answer], **changes: Any
) -> tuple[Session, list[Seen]]:
    with ScriptedEndpoint(script) as server:
        run_study(_study(server.url, **changes), folder, limits=QUICK)
        (session,) = read_transcripts(folder)
        return session, list(server.requests)


def test_a_fault_that_words_do_not_show_is_named_to_its_speaker_who_says_it_anew(
    tmp_path: Path,
) -> None:
    session, asked = _played(tmp_path / "s", _script(iter([SLY, SOUND])))
    assert [seen.body["model"] for seen in asked] == ["m", "g", "m", "g"]
    assert "in danger or harm them" in asked[2].last_text
    assert "the little blue ones" in asked[2].last_text
    turn = session.turns[1]
    assert (turn.text, turn.marks, turn.n_revisions) == (SOUND, (), 1)


def test_what_stays_is_marked_after_so_many_tries(tmp_path: Path) -> None:
    session, asked = _played(tmp_path / "s", _script(iter([SLY] * 9)), repairs=1)
    assert [seen.body["model"] for seen in asked] == ["m", "g"] * 2
    assert session.turns[1].marks == ("unsafe_advice",)


def test_the_guard_is_not_asked_about_a_draft_that_is_said_anew_anyhow(tmp_path: Path) -> None:
    said = iter(["You clearly have bipolar disorder.", SOUND])
    _, asked = _played(tmp_path / "s", _script(said))
    assert [seen.body["model"] for seen in asked] == ["m", "m", "g"]


def test_it_is_shown_the_newest_turns_and_asked_about_the_last(tmp_path: Path) -> None:
    said = (f"And number {n}, what was that like for you?" for n in range(1, 99))
    turns = {"min": 10, "max": 10}
    _, asked = _played(tmp_path / "s", _script(said), turns=turns)
    last = [seen for seen in asked if seen.body["model"] == "g"][-1].last_text
    assert "Turn 20 is new" in last and "no next one" in last
    assert "[8] Therapist" in last and "[7] Patient" not in last


def test_without_a_verdict_the_turn_is_kept_and_marked(tmp_path: Path) -> None:
    session, _ = _played(tmp_path / "s", _script(iter([SOUND]), lambda _: ok("I'd rather not.")))
    assert session.turns[1].marks == ("unguarded",)


def test_a_guard_that_is_gone_stops_the_session_which_the_same_command_resumes(
    tmp_path: Path,
) -> None:
    is_gone = True

    def guard(seen: Seen) -> Answer:
        return rate_limited(3600) if is_gone else _named(seen)

    with ScriptedEndpoint(_script(iter([SOUND]), guard)) as server:
        study = _study(server.url)
        with pytest.raises(IncompleteRunError):
            run_study(study, tmp_path / "s", limits=QUICK)
        n_asked = sum(seen.body["model"] == "m" for seen in server.requests)
        is_gone = False
        result = run_study(study, tmp_path / "s", limits=QUICK)
        assert sum(seen.body["model"] == "m" for seen in server.requests) == n_asked == 1
        n_all = len(server.requests)
        assert run_study(study, tmp_path / "s", limits=QUICK).was_complete
        assert len(server.requests) == n_all
    (session,) = result.folder.read_sessions()
    assert session.turns[1].text == SOUND and not session.turns[1].marks


def test_with_a_guard_it_is_another_session_and_without_one_the_same_as_ever() -> None:
    def fingerprint(**changes: Any) -> str:
        study = asked_study("http://127.0.0.1:9/v1", **changes)
        return plan_courses(study, choose_profiles(study.patients, study.seed))[0].fingerprint

    guard = {"endpoint": "http://127.0.0.1:9/v1", "model": "g"}
    assert fingerprint() == fingerprint(guard=None) != fingerprint(guard=guard)
    # the first prompt of a guard was for whole sessions
    assert fingerprint(guard=guard, prompt_version=1)


def test_the_dry_run_counts_a_request_for_every_turn_that_a_model_says() -> None:
    study = _study("http://127.0.0.1:9/v1", turns={"min": 1, "max": 6})
    plain = study.model_copy(update={"guard": None})
    assert estimate_study(study).n_requests == estimate_study(plain).n_requests + 6


def test_the_flag_makes_the_guard_of_the_sessions_one_of_the_turns_too(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    given = {"study": tmp_path / "s.yaml", "guard_turns": True}
    study = asked_study(url).model_dump(mode="json", exclude_none=True)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    guard = RunSettings(**given, guard_endpoint=url, guard_model="g").declared().guard
    assert guard is not None and (guard.endpoint, guard.model) == (url, "g")
    with pytest.raises(UsageError, match="needs --guard-endpoint"):
        RunSettings(**given).declared()
    with pytest.raises(UsageError, match="written whole"):
        RunSettings(
            **{**given, "study": Path("tahir-cbt-corpus")}, guard_endpoint=url, guard_model="g"
        ).declared()


def test_rules_are_no_guard() -> None:
    study = asked_study("http://127.0.0.1:9/v1").model_dump(mode="json", exclude_none=True)
    with pytest.raises(Exception, match="a guard is a model"):
        parse_study(study | {"guard": {"scripted": "supervisor"}}, "test")
