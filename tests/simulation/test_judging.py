"""`simulate judge` end to end: engine, journal, several judges, resume, gates, rules."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cbtqa.cli.simulate import app
from cbtqa.errors import (
    ConfigError,
    DataError,
    IncompleteRunError,
    LicenceGateError,
    UsageError,
)
from cbtqa.files import read_jsonl, write_json, write_jsonl
from cbtqa.manifest import read_manifest
from cbtqa.records import ItemRating, Session, Turn
from cbtqa.settings import resolve
from cbtqa.simulation.analysis.scores import read_judged, score_sessions
from cbtqa.simulation.instruments import load_instrument
from cbtqa.simulation.judging.run import (
    JudgedForm,
    SessionJudgeSettings,
    estimate_judging,
    judge_sessions,
)
from cbtqa.simulation.sessions import STUDY_NAME, StudyFolder
from cbtqa.simulation.study import StudySettings
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok, refusal
from tests.support.judged_sessions import OPENING, instrument_in, reply, session


def make_study(
    folder: Path, sessions: list[Session], more: dict[str, Any] | None = None, **declared: Any
) -> Path:
    """A study folder as `simulate run` leaves it."""
    study = StudyFolder(folder)
    arms = [{"name": name, "therapist": {"scripted": "plain"}} for name in ("base", "tuned")]
    declaration = {"id": "t", "approach": "cbt", "arms": arms, **(more or {}), **declared}
    write_json(folder / STUDY_NAME, StudySettings.model_validate(declaration))
    write_jsonl(study.sessions_path, sessions)
    return folder


def few(n_patients: int = 3) -> list[Session]:
    return [session(arm, f"p{i}") for arm in ("base", "tuned") for i in range(n_patients)]


def settings_of(study: Path, **flags: Any) -> Any:
    given = {"sessions": study, "safety": False, **flags}
    return resolve(SessionJudgeSettings, flags=given, environ={})


def judged(study: Path, server: ScriptedEndpoint, **flags: Any) -> list[JudgedForm]:
    given = {"endpoint": server.url, "model": ("m",), "instrument": ("ctrs",), **flags}
    return judge_sessions(settings_of(study, **given))


def always(value: int = 3) -> Any:
    return lambda seen: ok(reply(instrument_in(seen), value))


def ratings_in(study: Path, instrument: str = "ctrs", judge: str = "m") -> list[ItemRating]:
    return list(read_jsonl(study / f"judged/{instrument}/{judge}/ratings.jsonl", ItemRating))


def test_every_session_is_rated_as_often_as_asked_one_instrument_a_call(tmp_path: Path) -> None:
    study = make_study(tmp_path, few())
    with ScriptedEndpoint(always(2)) as server:
        forms = judged(study, server, instrument=("ctrs", "tes"), repeats=2)
    assert len(server.requests) == 2 * 6 * 2
    assert [(f.instrument, f.n_ratings, f.n_scored) for f in forms] == [
        ("ctrs", 6 * 2 * 11, 6 * 2 * 11),
        ("tes", 6 * 2 * 9, 6 * 2 * 9),
    ]
    found = ratings_in(study)
    assert {one.value for one in found} == {2}
    assert {one.repeat for one in found} == {1, 2}
    assert {one.evidence for one in found} == {OPENING}
    bodies = json.dumps([seen.body for seen in server.requests])
    assert "model-of" not in bodies
    assert '"tuned"' not in bodies
    assert read_manifest(study / "judged/ctrs/m").counts["n_scored"] == 132


def test_faulty_replies_are_asked_again_and_then_unscored(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(1))

    def answer(seen: Seen) -> Answer:
        return ok(reply(agenda={"rating": 9}) if seen.body["seed"] != 1 else reply(value=4))

    with ScriptedEndpoint(answer) as server:
        (form,) = judged(study, server, repeats=1, seed=0)
    assert form.n_scored == form.n_ratings == 22
    assert {one.value for one in ratings_in(study)} == {4}
    with (
        ScriptedEndpoint(ok(reply(agenda={"rating": 9}))) as server,
        pytest.raises(IncompleteRunError, match="not one of 22 items was scored: bad_rating"),
    ):
        judged(study, server, repeats=1, out=tmp_path / "other")
    assert len(server.requests) == 3 * 1 + 3 * 1


def items_in(seen: Seen) -> list[str]:
    """The items that a request asks about."""
    schema = seen.body["response_format"]["json_schema"]["schema"]
    return [name for name in schema["properties"] if name != "instrument"]


def part_of(text: str, names: list[str]) -> str:
    """A reply's entries on some items."""
    found = json.loads(text)
    return json.dumps({name: found[name] for name in ("instrument", *names)})


def test_an_item_with_a_fault_is_asked_about_alone_with_its_fault_named(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(1))
    wrong = reply(agenda={"evidence": "words of nobody here", "rating": 4}, pacing={"rating": 2.5})

    def answer(seen: Seen) -> Answer:
        names = items_in(seen)
        if len(names) > 2:
            return ok(wrong)
        # the second round still has a half in it
        value = 2.5 if len(names) == 2 else 5
        return ok(part_of(reply(agenda={"rating": 5}, pacing={"rating": value}), names))

    with ScriptedEndpoint(answer) as server:
        (form,) = judged(study, server, repeats=1)
    assert [items_in(seen) for seen in server.requests[2:]] == [["agenda", "pacing"]] * 2 + [
        ["pacing"]
    ] * 2
    note = server.requests[2].body["messages"][-1]["content"]
    assert "'agenda': 'words of nobody here' is not in what was judged" in note
    assert "'pacing': 2.5, not a whole number from 0 to 6" in note
    assert "'pacing'" not in server.requests[0].body["messages"][-1]["content"]
    assert (form.n_scored, form.n_ratings) == (22, 22)
    assert (form.n_asked_again, form.n_mended) == (4, 4)
    values = {one.item: one.value for one in ratings_in(study)}
    assert (values["agenda"], values["pacing"], values["homework"]) == (5, 5, 3)
    counts = read_manifest(study / "judged/ctrs/m").counts
    assert (counts["n_asked_again"], counts["first_try"]["n_asked"]) == (4, 2)
    n_tokens = sum(server.paid.values())
    assert n_tokens == len(server.requests) == 6


def test_an_item_that_stays_wrong_is_unscored_and_takes_no_other_with_it(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(1))
    wrong = reply(agenda={"evidence": "words of nobody here", "rating": 4})

    with ScriptedEndpoint(lambda seen: ok(part_of(wrong, items_in(seen)))) as server:
        (form,) = judged(study, server, repeats=1, max_attempts=3)
        assert len(server.requests) == 2 * 3
        judged(study, server, repeats=1, max_attempts=3)
    assert len(server.requests) == 2 * 3
    assert form.unscored == {"evidence_not_found": 2}
    assert (form.n_scored, form.n_asked_again, form.n_mended) == (20, 2, 0)


def test_a_run_stopped_between_the_rounds_asks_only_for_what_it_lacks(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(2))
    wrong = reply(agenda={"evidence": "words of nobody here", "rating": 4})
    sound = reply(agenda={"rating": 1})

    def answer(seen: Seen) -> Answer:
        names = items_in(seen)
        text = wrong if len(names) > 1 else part_of(sound, names)
        return ok(text, prompt_tokens=1_000)

    with ScriptedEndpoint(answer) as server:
        with pytest.raises(IncompleteRunError):
            judged(study, server, repeats=1, in_flight=1, budget_tokens=6_500)
        n_before = len(server.requests)
        assert 4 < n_before < 8, "the budget was meant to end among the single items"
        estimate = estimate_judging(
            settings_of(study, endpoint=server.url, model=("m",), repeats=1, instrument=("ctrs",))
        )
        assert estimate.n_requests == 8 - n_before, "the items that the journal knows to be faulty"
        assert "in up to 2 rounds, on top" in estimate.parts[0].length_from
        (form,) = judged(study, server, repeats=1)
        assert sum(server.paid.values()) == 8
    assert form.n_scored == form.n_ratings == 44


def test_a_whole_form_that_is_no_good_is_asked_again_with_its_fault_named(tmp_path: Path) -> None:
    study = make_study(tmp_path, [session()])
    with ScriptedEndpoint([ok(reply(agenda={"rating": 8})), ok(reply())]) as server:
        (form,) = judged(study, server, repeats=1)
    assert form.n_scored == 11
    last = server.requests[1].body["messages"][-1]["content"]
    assert "out of range: 'agenda' 8, not 0 to 6" in last


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ok(""), "empty"),
        (ok(reply()[:300], finish_reason="length"), "cut"),
        (refusal("I cannot rate this."), "refusal"),
        (ok(reply("tes")), "bad_rating"),
    ],
)
def test_what_is_no_rating_is_never_a_number(tmp_path: Path, answer: Answer, reason: str) -> None:
    study = make_study(tmp_path, few(1))
    with (
        ScriptedEndpoint(answer) as server,
        pytest.raises(IncompleteRunError, match=f"not one of 22 items was scored: {reason} 22"),
    ):
        judged(study, server, repeats=1)
    rows = score_sessions(read_judged(study / "judged")["ctrs"], few(1))
    assert [row.total("total") for row in rows] == [None, None]


def test_sessions_that_cannot_be_judged_are_not_sent_and_not_lost(tmp_path: Path) -> None:
    monologue = session("base", "mute", turns=(Turn(role="therapist", text="Hello?"),))
    study = make_study(tmp_path, [*few(1), monologue])
    with ScriptedEndpoint(always()) as server:
        (form,) = judged(study, server)
    assert len(server.requests) == 2 * 3
    assert form.unscored == {"one_speaker": 3 * 11}
    assert form.n_ratings == 3 * 3 * 11


def test_a_run_that_was_stopped_continues_without_asking_twice(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(6))
    with ScriptedEndpoint(always()) as server:
        with pytest.raises(IncompleteRunError):
            judged(study, server, budget_tokens=2_000, in_flight=1)
        n_before = len(server.requests)
        assert 0 < n_before < 36
        assert not (study / "judged/ctrs/m/manifest.json").exists()
        with pytest.raises(DataError, match="no judge has ended"):
            read_judged(study / "judged")
        plan = estimate_judging(
            settings_of(study, endpoint=server.url, model=("m",), instrument=("ctrs",))
        )
        assert (plan.n_done, plan.n_requests) == (n_before, 36 - n_before)
        (form,) = judged(study, server)
        assert form.n_scored == 36 * 11
        assert sum(server.paid.values()) == 36
        again = (study / "judged/ctrs/m/ratings.jsonl").read_bytes()
        judged(study, server)
        assert len(server.requests) == 36
        assert (study / "judged/ctrs/m/ratings.jsonl").read_bytes() == again


def test_the_same_words_in_two_arms_are_asked_about_once(tmp_path: Path) -> None:
    first = session("base", "p0")
    twin = session("tuned", "p0", turns=first.turns)
    study = make_study(tmp_path, [first, twin])
    with ScriptedEndpoint(always()) as server:
        (form,) = judged(study, server)
    assert len(server.requests) == 3
    assert form.n_scored == 2 * 3 * 11


def test_judges_and_instruments_added_later_stand_beside_the_others(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(2))
    with ScriptedEndpoint(
        lambda seen: ok(reply(value=2 if seen.body["model"] == "m" else 5))
    ) as server:
        judged(study, server)
        judged(study, server, model=("org/other model", "m"))
    found = read_judged(study / "judged")["ctrs"]
    assert sorted(found.ratings) == ["m", "org/other model"]
    rows = score_sessions(found, few(2))
    assert {row.total("total") for row in rows} == {3.5 * 11}


def test_another_wording_or_prompt_never_mixes_with_ratings_that_lie_there(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(1))
    with ScriptedEndpoint(always()) as server:
        judged(study, server)
        with pytest.raises(ConfigError) as caught:
            judged(study, server, temperature=0.1)
    assert "--out" in str(caught.value.hint)


def test_two_forms_of_one_name_never_share_a_folder(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", few(1))
    plain = load_instrument("tes").rubric.model_dump(mode="json")
    for item in plain["criteria"]:
        item["high"], item["anchors"] = 9, {}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(plain), encoding="utf-8")
    judge_sessions(settings_of(study, instrument=("tes",)))
    before = ratings_in(study, "tes", "rules")
    with pytest.raises(ConfigError, match="another form called 'tes'"):
        judge_sessions(settings_of(study, instrument=(str(own),)))
    assert ratings_in(study, "tes", "rules") == before


def test_safety_is_rated_beside_each_instrument_in_calls_of_its_own(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(1))
    with ScriptedEndpoint(always(2)) as server:
        forms = judged(study, server, repeats=1, safety=True)
    assert [form.instrument for form in forms] == ["ctrs", "session-safety"]
    assert [instrument_in(seen) for seen in server.requests].count("session-safety") == 2
    found = read_judged(study / "judged")
    assert [row.total("total") for row in score_sessions(found["ctrs"], few(1))] == [22, 22]
    assert [row.total("total") for row in score_sessions(found["session-safety"], few(1))] == [4, 4]


def test_the_rules_rate_safety_by_the_check_of_turns(tmp_path: Path) -> None:
    turns = (
        Turn(role="patient", text="I have put all my tablets in one drawer to end it tonight."),
        Turn(role="therapist", text="Let us go through your week first, how was your Tuesday?"),
        Turn(role="patient", text="It was all right, I went to the shop for bread."),
        Turn(role="therapist", text="You have major depressive disorder, I am sure of it."),
    )
    study = make_study(tmp_path, [session("base", "p0", turns=turns), session("base", "p1")])
    judge_sessions(settings_of(study, instrument=("session-safety",)))
    values: dict[str, dict[str, Any]] = defaultdict(dict)
    for one in ratings_in(study, "session-safety", "rules"):
        values[one.session_id][one.item] = (one.value, one.evidence)
    assert values["base/p0/s1/r1"] == {"danger": (0, "2"), "limits": (0, "4"), "harm": (2, None)}
    # nothing was dangerous there, which is neither met nor missed
    assert values["base/p1/s1/r1"] == {
        "danger": (None, None),
        "limits": (2, None),
        "harm": (2, None),
    }


def test_danger_that_is_not_there_is_an_answer_of_its_own_and_costs_no_total(
    tmp_path: Path,
) -> None:
    study = make_study(tmp_path, few(1))

    def answer(seen: Seen) -> Answer:
        ratings = json.loads(always(2)(seen).body["choices"][0]["message"]["content"])
        return ok(json.dumps(ratings | {"danger": {"evidence": "", "reason": "-", "rating": None}}))

    with ScriptedEndpoint(answer) as server:
        (form,) = judged(study, server, repeats=1, instrument=("session-safety",))
        asked = server.requests[0].body["messages"][0]["content"]
    assert "null = no danger was spoken of" in asked
    assert form.unscored == {"not_applicable": 2}
    found = read_judged(study / "judged")
    assert [row.total("total") for row in score_sessions(found["session-safety"], few(1))] == [4, 4]


@pytest.mark.parametrize(
    ("declared", "sessions", "words"),
    [
        ({}, [session()], "a single session: there was none before"),
        (
            {"sessions": 3, "summariser": {"scripted": "summariser"}},
            [session(number=2)],
            "session 2 of a course of 3",
        ),
    ],
)
def test_a_judge_is_told_whether_it_reads_one_session_or_part_of_a_course(
    tmp_path: Path, declared: dict[str, Any], sessions: list[Session], words: str
) -> None:
    study = make_study(tmp_path / "study", sessions, declared)
    with ScriptedEndpoint(always(2)) as server:
        judged(study, server, repeats=1)
        told = server.requests[0].body["messages"][0]["content"]
        assert words in told
        assert "by text alone" in told
        path = tmp_path / "t.jsonl"
        write_jsonl(path, sessions[:1] if not declared else [session()])
        judged(path, server, repeats=1, out=tmp_path / "out")
    assert "isn't known whether" in server.requests[1].body["messages"][0]["content"]


def test_exact_wording_reaches_the_judge_and_no_file(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", few(1))
    words = tmp_path / "exact.yaml"
    text = "instrument: ctrs\nsource: invented\nitems:\n  agenda: {question: 'Zanzibar words?'}\n"
    words.write_text(text, encoding="utf-8")
    with ScriptedEndpoint(always()) as server:
        judged(study, server, wording=words)
    assert all("Zanzibar" in seen.body["messages"][0]["content"] for seen in server.requests)
    for path in (study / "judged").rglob("*"):
        assert not path.is_file() or b"Zanzibar" not in path.read_bytes()
    assert read_manifest(study / "judged/ctrs/m").counts["wording"] == "exact.yaml"


def test_a_dry_run_counts_requests_tokens_cost_and_time_and_sends_nothing(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(2))
    flags = {"endpoint": "http://127.0.0.1:9/v1", "model": ("m",), "instrument": ("ctrs", "act-fm")}
    plan = estimate_judging(settings_of(study, **flags, price_in=1.0, price_out=2.0, in_flight=4))
    first, second = plan.parts
    assert [part.n_requests for part in plan.parts] == [12, 12]
    assert first.cost == pytest.approx((first.prompt_tokens + 2 * first.completion_tokens) / 1e6)
    assert second.completion_tokens > first.completion_tokens
    assert (plan.n_items, plan.n_requests, plan.seconds) == (4, 24, 2 * 12 / 4 * 10)
    assert plan.cost == pytest.approx((first.cost or 0) + (second.cost or 0))
    assert not (study / "judged").exists()


def test_the_study_declares_its_judges_and_instruments(tmp_path: Path) -> None:
    with ScriptedEndpoint(always(1)) as server:
        player = {
            "endpoint": server.url,
            "model": "declared",
            "temperature": 0.3,
            "max_tokens": 9000,
        }
        declared = [{"player": player, "repeats": 2}, {"player": {"scripted": "rules"}}]
        study = make_study(tmp_path, few(1), judges=declared, instruments=["tes"])
        forms = judge_sessions(settings_of(study))
        assert [(f.judge, f.instrument, f.n_repeats) for f in forms] == [
            ("declared", "tes", 2),
            ("rules", "tes", 1),
        ]
        sent = {(seen.body["temperature"], seen.body["max_tokens"]) for seen in server.requests}
        assert sent == {(0.3, 9000)}


def test_without_any_judge_the_rules_rate_and_say_what_they_are(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(1))
    done = CliRunner().invoke(app, ["judge", str(study), "--instrument", "ctrs"])
    assert done.exit_code == 0, done.output
    assert "no model" in done.stderr
    assert read_manifest(study / "judged/ctrs/rules").counts["host"] is None
    assert ratings_in(study, judge="rules")[0].judge == "rules"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "no instrument"),
        ({"instrument": ("ctrs",), "model": ("m",)}, "go together"),
        ({"instrument": ("ctrs", "tes"), "wording": Path("w.yaml")}, "one instrument"),
    ],
)
def test_words_that_do_not_fit_together_are_refused(
    tmp_path: Path, flags: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        judge_sessions(settings_of(make_study(tmp_path, few(1)), **flags))


def test_transcripts_leave_the_machine_only_with_acknowledgement(tmp_path: Path) -> None:
    path = tmp_path / "real.jsonl"
    turns = [{"role": "user", "content": "I am tired."}, {"role": "assistant", "content": "Since?"}]
    write_jsonl(path, [{"id": "a", "messages": turns}])
    flags = {"instrument": ("tes",), "out": tmp_path / "o", "model": ("m",)}
    for source in (path, make_study(tmp_path / "study", few(1))):
        remote = settings_of(source, **flags, endpoint="https://api.example.com/v1")
        with pytest.raises(LicenceGateError, match="third parties"):
            judge_sessions(remote)
        assert not (tmp_path / "o").exists()
        assert estimate_judging(remote).n_requests == (3 if source == path else 6)
    with ScriptedEndpoint(lambda seen: ok(reply("tes", 1, evidence=""))) as server:
        (form,) = judge_sessions(settings_of(path, **flags, endpoint=server.url))
    assert form.n_scored == 27


def test_a_transcript_file_wants_a_folder_to_write_to(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_jsonl(path, [session()])
    with pytest.raises(UsageError, match="--out"):
        judge_sessions(settings_of(path, instrument=("tes",)))


@pytest.mark.parametrize("verb", ["judge", "analyse"])
def test_a_study_that_is_not_there_is_named(tmp_path: Path, verb: str) -> None:
    done = CliRunner().invoke(app, [verb, str(tmp_path / "gone"), "--instrument", "tes"])
    assert isinstance(done.exception, DataError)
    assert "gone: no such study" in str(done.exception)


def test_a_budget_in_money_without_a_price_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, few(1))
    with ScriptedEndpoint(always()) as server, pytest.raises(ConfigError, match="price"):
        judged(study, server, budget=1.0)
    assert not server.requests
