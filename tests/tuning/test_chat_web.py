"""The chat's page: over plain HTTP who gets in, and in a browser what is seen in danger."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cbtqa.cli.main import _run
from cbtqa.errors import EndpointTimeoutError
from cbtqa.llm.chat import Fault
from cbtqa.records import Question, Reason, Risk
from cbtqa.safety.notices import answer_withheld, help_text, no_answer
from cbtqa.tuning.answering.chat import SecondOpinions, Speaker
from cbtqa.tuning.answering.web import ChatPage, create_chat_app
from tests.support.served import Served, open_chromium

HARMLESS = "同事没有回我消息，我觉得所有人都讨厌我"
CONCERN = "最近活着没什么意思，觉得很累"
EXPLICIT = "我今晚想自杀"
PARTS = ["听得出来你很难受。", "这像是读心术。", "有别的可能吗？", "先写下三种解释。", "慢慢来。"]
FIVE = "\n\n".join(PARTS)
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>慢慢来。"
)


class Says(Speaker):
    """Says what the test wants, and counts how often it was asked."""

    name, is_local = "says", True

    def __init__(self) -> None:
        self.said: str | Fault | Exception = FIVE
        self.asked: list[str] = []

    def answer(self, question: Question, risk: Risk) -> str | Fault:
        self.asked.append(question.question)
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


class RunningChat(Served):
    def __init__(self) -> None:
        self.speaker = Says()
        self.page = ChatPage(self.speaker, SecondOpinions(), "zh")
        super().__init__(lambda hosts: create_chat_app(self.page, hosts))

    @property
    def link(self) -> str:
        return f"{self.address}/r/{self.page.token}"

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        reply = connection.getresponse()
        found = reply.read().decode(), {k.lower(): v for k, v in reply.getheaders()}
        connection.close()
        return reply.status, found

    def post(self, path: str, text: str) -> dict[str, Any]:
        page = self.page
        key = {"Cookie": f"cbtqa-chat={page._cookie}", "X_CSRF_Token": page._csrf}
        status, (body, _) = self.send("POST", path, {"text": text}, **key)
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found


@pytest.fixture
def chat() -> Iterator[RunningChat]:
    running = RunningChat()
    yield running
    running.stop()


def test_without_the_link_nothing_is_shown_and_nothing_asked(chat: RunningChat) -> None:
    page = chat.page
    cookie = {"Cookie": f"cbtqa-chat={page._cookie}"}
    assert chat.send("GET", "/")[0] == 403
    assert chat.send("GET", "/r/wrong")[0] == 403
    assert chat.send("POST", "/ask", {"text": HARMLESS})[0] == 401
    assert chat.send("POST", "/ask", {"text": HARMLESS}, **cookie)[0] == 403
    key = {**cookie, "X_CSRF_Token": page._csrf}
    assert chat.send("POST", "/ask", {"text": HARMLESS}, **key, Origin="http://evil.test")[0] == 403
    assert chat.send("POST", "/ask", {"text": HARMLESS}, **key, Host="evil.test")[0] == 400
    for bad in ({"text": ""}, {"text": " "}, {"text": "长" * 5001}, {"question": "怎么办"}, [1]):
        assert chat.send("POST", "/ask", bad, **key)[0] == 400
    assert chat.speaker.asked == []
    status, (body, headers) = chat.send("GET", f"/r/{page.token}")
    assert status == 200 and page.token not in body
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "httponly" in headers["set-cookie"].lower()


def test_help_comes_before_any_model_is_asked(chat: RunningChat) -> None:
    found = chat.post("/screen", EXPLICIT)
    assert found == {"risk": "explicit", "help": help_text("zh", "answer")}
    assert chat.post("/ask", EXPLICIT)["text"] is None
    assert chat.speaker.asked == []
    assert chat.post("/screen", CONCERN)["help"] == help_text("zh")
    assert chat.post("/screen", HARMLESS) == {"risk": "none", "help": None}


def test_an_answer_comes_in_its_steps_an_unsafe_one_not_at_all(chat: RunningChat) -> None:
    turn = chat.post("/ask", HARMLESS)
    assert [step["number"] for step in turn["steps"]] == [1, 2, 3, 4, 5]
    assert [step["text"] for step in turn["steps"]] == PARTS
    chat.speaker.said = "你可以自己把药停了。"
    turn = chat.post("/ask", HARMLESS)
    assert (turn["text"], turn["steps"]) == (None, [])
    assert turn["notice"] == answer_withheld("zh") and turn["withheld_for"]
    assert "药停" not in json.dumps(turn, ensure_ascii=False)
    chat.speaker.said = Fault(Reason.CUT, "cut at 8 tokens")
    turn = chat.post("/ask", HARMLESS)
    assert (turn["notice"], turn["fault"]) == (no_answer("zh"), "cut: cut at 8 tokens")
    chat.speaker.said = EndpointTimeoutError("cannot connect", hint="is the server running?")
    turn = chat.post("/ask", CONCERN)
    assert turn["error"] == "cannot connect" and turn["help"] == help_text("zh")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with open_chromium() as browser:
        yield browser


class Visitor:
    """A person at the page; notes every request and every script error."""

    def __init__(self, chromium: Any, chat: RunningChat, width: int = 1280) -> None:
        self.chat, self.n_asked = chat, 0
        self.context = chromium.new_context(viewport={"width": width, "height": 800})
        self.page = self.context.new_page()
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(chat.link)
        self.page.wait_for_selector("#text")

    def ask(self, text: str) -> Any:
        self.n_asked += 1
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")
        ended = f".exchange:nth-of-type({self.n_asked})[data-state=ended]"
        self.page.wait_for_selector(ended, timeout=20_000)
        return self.page.locator(f"{ended} .reply")

    @property
    def danger(self) -> str | None:
        """What the bar of help lines shows, if it is in view."""
        bar = self.page.locator("#danger")
        if not bar.is_visible():
            return None
        box = bar.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 800
        return str(self.page.inner_text("#danger-text"))

    def close(self) -> None:
        assert self.errors == []
        assert self.hosts == {f"127.0.0.1:{self.chat.port}"}
        self.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_danger_help_stays_in_view_and_gives_way_to_nothing_weaker(
    chromium: Any, chat: RunningChat, width: int
) -> None:
    person = Visitor(chromium, chat, width)
    assert "/r/" not in person.page.url
    reply = person.ask(HARMLESS)
    assert person.danger is None and reply.locator("li").count() == 5
    person.ask(CONCERN)
    assert person.danger == help_text("zh")
    n_asked = len(chat.speaker.asked)
    person.ask(EXPLICIT)
    assert person.danger == help_text("zh", "answer") and len(chat.speaker.asked) == n_asked
    for text in (HARMLESS, CONCERN, HARMLESS):
        person.ask(text)
    assert person.danger == help_text("zh", "answer")
    person.page.mouse.wheel(0, -5000)
    person.page.wait_for_timeout(100)
    assert person.danger == help_text("zh", "answer")
    assert person.page.evaluate("document.documentElement.scrollWidth") <= width
    person.close()


@pytest.mark.browser
def test_an_unsafe_answer_and_a_server_that_is_down_are_told(
    chromium: Any, chat: RunningChat
) -> None:
    person = Visitor(chromium, chat)
    person.page.click("text=English")
    chat.speaker.said = "你可以自己把药停了。"
    reply = person.ask(HARMLESS)
    assert "药停" not in person.page.inner_text("body")
    assert answer_withheld("zh") in reply.inner_text()
    assert "not shown, because of" in reply.inner_text() and person.danger == help_text("zh")
    chat.speaker.said = EndpointTimeoutError("cannot connect to 127.0.0.1:8000")
    assert "cannot connect to 127.0.0.1:8000" in person.ask(HARMLESS).inner_text()
    chat.stop()
    assert "does not answer" in person.ask(HARMLESS).inner_text()
    person.close()


@pytest.mark.browser
def test_what_people_and_models_write_is_never_markup(chromium: Any, chat: RunningChat) -> None:
    person = Visitor(chromium, chat)
    chat.speaker.said = HOSTILE
    reply = person.ask(HOSTILE)
    assert "<script>" in reply.inner_text()
    assert person.page.locator("#said img, #said script").count() == 0
    assert person.page.title() == "试用模型（研究软件）"
    person.close()


def test_the_command_shows_a_link_that_opens_the_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[Any, str, int]] = []
    monkeypatch.setattr(
        "cbtqa.web.server.serve", lambda app, host, port: served.append((app, host, port))
    )
    assert _run(["chat", "--web", "--port", "8123"], False) == 0
    assert "open http://127.0.0.1:8123/r/" in capsys.readouterr().err
    assert [one[1:] for one in served] == [("127.0.0.1", 8123)]
    assert _run(["chat", "--web", "--ask", HARMLESS], False) == 2
