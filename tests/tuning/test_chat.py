"""`cbtqa chat`: who answers, and what never reaches the person."""

from __future__ import annotations

import io
import json
import re
import socket
from pathlib import Path

import pytest

from cbtqa.cli import main as program
from cbtqa.errors import EndpointError, LicenceGateError, UsageError
from cbtqa.llm.chat import Fault
from cbtqa.records import Question, Reason, Risk
from cbtqa.safety.notices import answer_withheld, help_text, no_answer, required_notices
from cbtqa.tuning.answering.chat import ChatSettings, Turn, answer_safely, open_speaker
from cbtqa.tuning.data.examples import prompt_messages
from tests.support.endpoint import ScriptedEndpoint, ok, server_error

HARMLESS = "同事没有回我消息，我觉得所有人都讨厌我"
CONCERN = "最近活着没什么意思，觉得很累"
EXPLICIT = "我今晚想自杀"


class Says:
    """A speaker that says one thing and counts how often it was asked."""

    name = "says"

    def __init__(self, said: str | Fault, *, is_local: bool = True) -> None:
        self.said, self.is_local, self.asked = said, is_local, []

    def answer(self, question: Question, risk: Risk) -> str | Fault:
        self.asked.append(question.question)
        return self.said


def test_a_harmless_question_gets_the_answer_and_no_help_routes() -> None:
    assert answer_safely(Says("慢慢来。"), HARMLESS) == Turn("none", None, "慢慢来。")


@pytest.mark.parametrize(
    ("text", "language"), [(EXPLICIT, "zh"), ("I want to kill myself tonight", "en")]
)
def test_explicit_danger_gets_help_routes_and_no_model_is_asked(text: str, language) -> None:
    speaker = Says("慢慢来。")
    turn = answer_safely(speaker, text)
    assert turn == Turn("explicit", help_text(language, "answer"))
    assert speaker.asked == []


def test_a_concern_gets_help_routes_beside_the_answer() -> None:
    turn = answer_safely(Says("听起来很累。"), CONCERN)
    assert turn == Turn("concern", help_text("zh", "short"), "听起来很累。")


@pytest.mark.parametrize(
    "unsafe",
    [
        "你可以自己把药停了。",
        "请拨打 800-999-1234 求助。",
        "You could just stop taking your pills.",
        "慢慢来。You could just stop taking your pills.",
        "Please call 800-999-1234.",
    ],
)
def test_an_unsafe_answer_is_withheld_with_its_reason(unsafe: str) -> None:
    turn = answer_safely(Says(unsafe), HARMLESS)
    assert turn.text is None and turn.problems
    assert unsafe not in str(turn.help)
    assert turn.notice == answer_withheld("zh") and turn.help == help_text("zh", "short")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("我已经割了，血止不住", "120"),
        ("药我刚才全吃了，不想活了", "120"),
        ("I just took all my pills, I want to die", "911"),
    ],
)
def test_an_attempt_under_way_is_told_to_call_now_before_anything_else(
    text: str, number: str
) -> None:
    turn = answer_safely(Says("慢慢来。"), text)
    assert turn.risk == "explicit" and turn.help is not None
    assert number in turn.help[:20]
    assert turn.text is None


def test_what_goes_to_an_endpoint_elsewhere_has_personal_data_masked() -> None:
    text = "我叫王小明，电话13812345678，最近总睡不好"
    local, elsewhere = Says("慢慢来。"), Says("慢慢来。", is_local=False)
    assert answer_safely(local, text).masked == () and local.asked == [text]
    turn = answer_safely(elsewhere, text)
    assert elsewhere.asked == ["我叫〔姓名〕，电话〔手机号〕，最近总睡不好"]
    assert turn.masked == ("name", "phone") and turn.text == "慢慢来。"


def test_the_request_itself_holds_no_personal_data(monkeypatch) -> None:
    found = socket.getaddrinfo
    monkeypatch.setenv("CBTQA_API_KEY", "k")
    monkeypatch.setattr(  # a public name that leads here
        socket, "getaddrinfo", lambda host, *rest, **more: found("127.0.0.1", *rest, **more)
    )
    with ScriptedEndpoint(ok("慢慢来。")) as server:
        url = server.url.replace("127.0.0.1", "llm.example.com")
        settings = ChatSettings(
            endpoint=url,
            model="m",
            allow_plain_http=True,
            acknowledge_disclosure=True,
        )
        turn = answer_safely(open_speaker(settings), "加我微信 wxm_2001，我总睡不好")
    (seen,) = server.requests
    assert "wxm_2001" not in json.dumps(seen.body) and turn.masked == ("wechat",)
    assert seen.body["messages"][-1]["content"] == "加我微信 〔微信号〕，我总睡不好"


def test_an_endpoint_on_this_machine_is_local_and_one_elsewhere_is_not(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    here = ChatSettings(endpoint="http://127.0.0.1:9/v1", model="m")
    there = ChatSettings(endpoint="openai", model="m", acknowledge_disclosure=True)
    assert open_speaker(here).is_local and not open_speaker(there).is_local
    assert open_speaker(ChatSettings()).is_local


@pytest.mark.parametrize("mode", ["answer", "steps", "cot"])
def test_the_models_own_system_text_claims_no_practice_and_bounds_what_it_may_do(mode) -> None:
    system = prompt_messages(Question(id="q", question="怎么办？"), mode)[0]["content"]
    assert not re.search("多年|资深|经验丰富|心理咨询师", system)
    assert "不是真人" in system
    for bound in ("诊断", "药", "语言", "范围", "危险"):
        assert bound in system


@pytest.mark.parametrize("safe", ["需要时可拨打 12356。", "You can call 988, or text a friend."])
def test_each_languages_own_help_lines_may_be_named(safe: str) -> None:
    assert answer_safely(Says(safe), HARMLESS).text == safe


def test_a_reply_that_is_no_answer_is_told_as_such() -> None:
    fault = Fault(Reason.CUT, "at the limit")
    turn = answer_safely(Says(fault), HARMLESS)
    assert turn == Turn("none", None, fault=fault, notice=no_answer("zh"))


def test_without_a_model_the_template_system_answers_on_topic() -> None:
    speaker = open_speaker(ChatSettings())
    assert speaker.name == "template"
    turn = answer_safely(speaker, HARMLESS)
    assert turn.text is not None and "讨厌我" in turn.text
    assert turn.text != answer_safely(speaker, "高考前一直失眠，怕考砸").text


def test_an_endpoint_is_asked_with_the_models_own_system_text() -> None:
    with ScriptedEndpoint(ok("慢慢来。")) as server:
        settings = ChatSettings(endpoint=server.url, model="m", system_prompt="温和地回答")
        assert answer_safely(open_speaker(settings), HARMLESS).text == "慢慢来。"
    (seen,) = server.requests
    assert [turn["content"] for turn in seen.body["messages"]] == ["温和地回答", HARMLESS]
    assert seen.body["max_tokens"] == settings.max_new_tokens


def test_a_reply_that_repeats_its_instruction_is_no_answer() -> None:
    system = "你是一位温和的倾听者，回答分为五个部分。"
    with ScriptedEndpoint(ok(f"好的，{system}")) as server:
        settings = ChatSettings(endpoint=server.url, model="m", system_prompt=system)
        turn = answer_safely(open_speaker(settings), HARMLESS)
    assert turn.text is None and turn.fault is not None
    assert turn.fault.reason is Reason.PROMPT_LEAK


def test_a_failing_endpoint_is_an_error() -> None:
    with ScriptedEndpoint(server_error()) as server:
        speaker = open_speaker(ChatSettings(endpoint=server.url, model="m"))
        with pytest.raises(EndpointError):
            answer_safely(speaker, HARMLESS)


def test_text_leaves_the_machine_only_with_acknowledgement(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(LicenceGateError, match=r"api\.openai\.com"):
        open_speaker(ChatSettings(endpoint="openai", model="m"))
    told = ChatSettings(endpoint="openai", model="m", acknowledge_disclosure=True)
    assert open_speaker(told).name == "m at api.openai.com"


@pytest.mark.parametrize(
    "flags", [{"endpoint": "vllm"}, {"base": "b"}, {"model": "m", "adapter": Path("a")}]
)
def test_flags_that_do_not_go_together_are_refused(flags) -> None:
    with pytest.raises(UsageError):
        open_speaker(ChatSettings(**flags))


# --- the command ---------------------------------------------------------------------------------


def test_one_question_as_json(capsys) -> None:
    assert program._run(["chat", "--ask", HARMLESS, "--json"], False) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["risk"] == "none" and told["text"] and not told["withheld_for"]
    assert set(required_notices()) < set(told["notices"])


def test_a_conversation_shows_notices_first_and_ends_at_an_empty_line(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{HARMLESS}\n{EXPLICIT}\n\n{HARMLESS}\n"))
    assert program._run(["chat"], False) == 0
    printed = capsys.readouterr()
    shown, talk = ("".join(part.split()) for part in (printed.out, printed.err))
    for notice in required_notices():
        assert "".join(notice.split()) in talk
    assert shown.count("讨厌我") == 1
    assert "".join(help_text("zh", "answer").split()) in shown


def test_a_conversation_knows_help_and_quit_and_asks_no_model_about_them(
    capsys, monkeypatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/help\n/halt\n/quit\n{HARMLESS}\n"))
    assert program._run(["chat"], False) == 0
    printed = capsys.readouterr()
    assert printed.err.count("/quit, an empty line or Ctrl-D ends") == 2
    assert "no such command: /halt" in printed.err and not printed.out.strip()


@pytest.mark.parametrize(
    ("ask", "language"), [(HARMLESS, "zh"), ("My boss hates me, I think.", "en")]
)
def test_a_withheld_answer_is_told_to_the_asker_and_has_an_exit_code_of_its_own(
    ask: str, language, capsys
) -> None:
    unsafe = "你可以自己把药停了。"
    with ScriptedEndpoint(ok(unsafe)) as server:
        flags = ["chat", "--endpoint", server.url, "--model", "m", "--ask", ask]
        assert program._run(flags, False) == 8
        printed = capsys.readouterr()
        assert program._run([*flags, "--json"], False) == 8
        told = json.loads(capsys.readouterr().out)
    shown = "".join(printed.out.split())
    assert "".join(answer_withheld(language).split()) in shown
    assert "".join(help_text(language, "short").split()) in shown
    assert unsafe not in printed.out + printed.err and "stop_medication" in printed.err
    assert told["text"] is None and set(told["withheld_for"]) == {"stop_medication"}
    assert told["notice"] == answer_withheld(language) and told["help"]


def test_a_reply_that_is_no_answer_ends_one_question_with_the_code_of_endpoints(capsys) -> None:
    with ScriptedEndpoint(ok("")) as server:
        flags = ["chat", "--endpoint", server.url, "--model", "m", "--ask", HARMLESS]
        assert program._run(flags, False) == 5
    printed = capsys.readouterr()
    assert "".join(no_answer("zh").split()) in "".join(printed.out.split())
    assert "empty" in printed.err


def test_json_without_a_question_is_a_usage_error(capsys) -> None:
    assert program._run(["chat", "--json"], False) == 2
    assert program._run(["chat", "--ask", " "], False) == 2
    assert "--ask" in capsys.readouterr().err
