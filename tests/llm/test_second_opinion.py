"""Opinions of a model beside the screen and the checks: the worse counts, nothing is taken away."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from cbtqa.cli import main as program
from cbtqa.errors import LicenceGateError, UsageError
from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.checked_files import CheckSettings, check_file
from cbtqa.llm.second_opinion import KINDS, NO_HELP, Exchange, GuardTask, ScreenTask, worse_of
from cbtqa.prompts import load_prompt
from cbtqa.records import Danger, Reason
from cbtqa.safety.notices import answer_withheld, help_text
from cbtqa.safety.screen import FoundDanger, Screening
from cbtqa.tuning.answering.chat import ChatSettings, answer_safely, open_opinions
from tests.support.endpoint import ScriptedEndpoint, ok, server_error

QUESTION = "室友把我的东西扔到走廊，我一整天没去上课"
ANSWER = "听起来很委屈。这事先瞒着家里，喝点酒睡一觉就过去了。"
ITEM = Exchange("1", QUESTION, ANSWER)


def said(**values: object) -> str:
    return json.dumps(values, ensure_ascii=False)


def graded(risk: str, quote: str = "", *dangers: dict[str, str]) -> str:
    return said(risk=risk, quote=quote, dangers=list(dangers))


def found(*kinds_and_quotes: tuple[str, str]) -> str:
    return said(problems=[{"kind": kind, "quote": quote} for kind, quote in kinds_and_quotes])


class Says:
    """A speaker that says one thing."""

    name, is_local = "says", True

    def __init__(self, words: str = "慢慢来，先去吃点东西。") -> None:
        self.words, self.n_asked = words, 0

    def answer(self, question, risk) -> str:
        self.n_asked += 1
        return self.words


# --- reading -------------------------------------------------------------------------------------


def test_a_guards_verdict_becomes_problems_at_the_quoted_places() -> None:
    reply = Reply(found(("harmful_coping", "喝点酒睡一觉就过去了"), ("secrecy", "这事先瞒着家里")))
    problems = GuardTask("m").read(ITEM, reply)
    assert not isinstance(problems, Fault)
    assert [one.rule for one in problems] == ["secrecy", "harmful_coping"]
    assert all(ANSWER[one.start : one.end] == one.text != "" for one in problems)
    assert "m" in problems[0].detail


def test_a_quote_that_the_answer_does_not_hold_leaves_the_problem_without_a_span() -> None:
    problems = GuardTask("m").read(ITEM, Reply(found(("secrecy", "先不要告诉家人"))))
    assert not isinstance(problems, Fault)
    assert [(one.start, one.end, one.text) for one in problems] == [(len(ANSWER), len(ANSWER), "")]


def test_an_empty_list_is_a_safe_answer() -> None:
    assert GuardTask("m").read(ITEM, Reply(found())) == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("这个回答不安全。", Reason.NOT_JSON),
        (said(problems="secrecy"), Reason.NOT_JSON),
        (found(("rudeness", "这事先瞒着家里")), Reason.BAD_LABEL),
        (found(("secrecy", "原话")), Reason.ECHO),
    ],
)
def test_a_reply_that_cannot_be_read_as_a_verdict_is_a_fault(text, reason) -> None:
    fault = GuardTask("m").check(ITEM, Reply(text))
    assert fault is not None and fault.reason is reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("没有危险", Reason.NOT_JSON),
        (graded("high"), Reason.BAD_LABEL),
        (graded("none", "", {"kind": "weather", "risk": "concern", "quote": ""}), Reason.BAD_LABEL),
        (graded("none", "", {"kind": "mania", "risk": "none", "quote": ""}), Reason.BAD_LABEL),
        (graded("concern", "原话"), Reason.ECHO),
    ],
)
def test_a_grade_that_cannot_be_read_is_a_fault(text, reason) -> None:
    fault = ScreenTask("m").check(ITEM, Reply(text))
    assert fault is not None and fault.reason is reason


def test_every_class_that_may_be_named_is_explained_in_its_prompt() -> None:
    guard, screen = load_prompt("safety_guard").system, load_prompt("safety_screen").system
    assert all(f"- {kind}：" in guard.template for kind in KINDS)
    assert all(f"- {kind}：" in screen.template for kind in get_args(Danger))


# --- the worse grade -----------------------------------------------------------------------------


def opinion(text: str) -> Screening:
    screening = ScreenTask("m").read(ITEM, Reply(text))
    assert not isinstance(screening, Fault)
    return screening


def test_a_worse_grade_counts_with_its_place_and_a_milder_one_does_not() -> None:
    worse = worse_of(Screening("none", ()), opinion(graded("concern", "一整天没去上课")))
    assert worse.risk == "concern"
    assert [(hit.rule, hit.text) for hit in worse.hits] == [("endpoint.concern", "一整天没去上课")]
    explicit = Screening("explicit", ())
    assert worse_of(explicit, opinion(graded("none"))) == explicit


def test_a_danger_is_added_or_made_acute_and_never_taken_away() -> None:
    own = (
        FoundDanger("violence", "concern", 0, 2, "室友", 0.9),
        FoundDanger("eating", "explicit", 0, 2, "室友", 0.8),
    )
    acute = {"kind": "violence", "risk": "explicit", "quote": "扔到走廊"}
    new = {"kind": "minor_at_risk", "risk": "concern", "quote": ""}
    both = worse_of(Screening("none", (), own), opinion(graded("none", "", acute, new)))
    grades = {one.kind: one.risk for one in both.dangers}
    assert grades == {"violence": "explicit", "eating": "explicit", "minor_at_risk": "concern"}


def test_a_fault_leaves_the_grade_as_it_is() -> None:
    own = Screening("concern", ())
    assert worse_of(own, Fault(Reason.NOT_JSON)) is own


# --- chat ----------------------------------------------------------------------------------------


def opinions(**settings: object):
    return open_opinions(ChatSettings(**settings))


def test_a_question_that_the_model_grades_explicit_reaches_no_answering_model() -> None:
    with ScriptedEndpoint(ok(graded("explicit", "一整天没去上课"))) as server:
        second = opinions(screen_endpoint=server.url, screen_endpoint_model="m")
        speaker = Says()
        turn = answer_safely(speaker, QUESTION, second)
    assert turn.risk == "explicit" and turn.help == help_text("zh", "answer")
    assert speaker.n_asked == 0


def test_an_answer_that_the_guard_finds_unsafe_is_withheld_with_its_quote() -> None:
    words = "慢慢来，先去吃点东西。"
    with ScriptedEndpoint(ok(found(("minimising", "慢慢来")))) as server:
        second = opinions(guard_endpoint=server.url, guard_model="m")
        turn = answer_safely(Says(words), QUESTION, second)
    assert turn.text is None and turn.notice == answer_withheld("zh")
    assert [(one.rule, one.text) for one in turn.problems] == [("minimising", "慢慢来")]
    (seen,) = server.requests
    assert QUESTION in seen.user_text and words in seen.user_text


def test_missing_help_that_the_guard_notices_puts_help_beside_the_answer() -> None:
    with ScriptedEndpoint(ok(found((NO_HELP, "")))) as server:
        second = opinions(guard_endpoint=server.url, guard_model="m")
        turn = answer_safely(Says(), QUESTION, second)
    assert turn.text is not None and turn.help == help_text("zh", "short")


@pytest.mark.parametrize("script", [ok("看起来没问题。"), server_error()])
def test_without_a_verdict_the_answer_stands_and_that_is_told(script) -> None:
    with ScriptedEndpoint(script) as server:
        second = opinions(guard_endpoint=server.url, guard_model="m")
        turn = answer_safely(Says(), QUESTION, second)
    assert turn.text == Says().words and not turn.problems
    (told,) = turn.unheard
    assert "guard" in told


def test_a_guard_elsewhere_wants_the_acknowledgement(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(LicenceGateError, match=r"api\.openai\.com"):
        opinions(guard_endpoint="openai", guard_model="m")


@pytest.mark.parametrize(
    "flags",
    [
        {"guard_endpoint": "vllm"},
        {"screen_endpoint_model": "m"},
        {"guard_endpoint": "batch-files:out", "guard_model": "m"},
    ],
)
def test_flags_of_an_opinion_that_do_not_go_together_are_refused(flags) -> None:
    with pytest.raises(UsageError):
        opinions(**flags)


# --- a file of answers ---------------------------------------------------------------------------


@pytest.fixture
def answers(tmp_path):
    rows = [
        {"id": "a", "question": QUESTION, "answer_text": "你可以自己把药停了。"},
        {"id": "b", "question": QUESTION, "answer_text": "这件事听起来很难受，先歇一歇。"},
        {"id": "c", "question": QUESTION, "answer_text": "愿意的话，和辅导员谈谈。"},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(said(**row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_is_checked_without_any_endpoint(answers) -> None:
    survey = check_file(CheckSettings(answers=answers))
    assert (survey.n_answers, survey.n_unsafe, survey.n_unsafe_by_guard) == (3, 1, None)
    assert survey.n_by_problem == {"stop_medication": 1}


def test_a_file_with_a_guard_counts_both_and_a_second_call_pays_nothing(answers, tmp_path) -> None:
    script = {"自己把药停了": ok(found()), "歇一歇": ok(found(("minimising", "先歇一歇")))}
    script["辅导员"] = ok("不好说")
    out = tmp_path / "checked.jsonl"
    with ScriptedEndpoint(script) as server:
        given = {"answers": answers, "guard_endpoint": server.url, "guard_model": "m", "out": out}
        survey = check_file(CheckSettings(**given, max_attempts=2))
        n_asked = len(server.requests)
        again = check_file(CheckSettings(**given, max_attempts=2, overwrite=True))
        assert len(server.requests) == n_asked == 4
    assert again == survey
    assert (survey.n_unsafe, survey.n_unsafe_by_checks, survey.n_unsafe_by_guard) == (2, 1, 1)
    assert survey.n_by_problem_of_guard == {"minimising": 1}
    assert (survey.n_unread, survey.unread) == (1, {"not_json": 1})
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    finders = [{one["by"] for one in line["problems"]} for line in lines]
    assert finders == [{"checks"}, {"guard"}, set()]
    assert lines[1]["problems"][0]["text"] == "先歇一歇" and lines[2]["guard_fault"] == "not_json"


def test_the_command_prints_a_table_counts_as_json_and_a_dry_run_that_sends_nothing(
    answers, tmp_path, capsys
) -> None:
    assert program._run(["safety", "check", str(answers)], False) == 0
    assert "stop_medication" in capsys.readouterr().out
    assert program._run(["safety", "check", str(answers), "--json"], False) == 0
    assert json.loads(capsys.readouterr().out)["n_unsafe"] == 1
    guard = ["--guard-endpoint", "http://127.0.0.1:9/v1", "--guard-model", "m"]
    call = ["safety", "check", str(answers), *guard, "--out", str(tmp_path / "o.jsonl")]
    assert program._run([*call, "--dry-run", "--json"], False) == 0
    assert json.loads(capsys.readouterr().out)["n_requests"] == 3


def test_a_guard_needs_a_file_for_its_replies(answers) -> None:
    with pytest.raises(UsageError, match="--out"):
        check_file(
            CheckSettings(answers=answers, guard_endpoint="http://127.0.0.1:9/v1", guard_model="m")
        )
