"""`cbtqa chat --web`: the chat as a page on this machine, for the one who holds its link.

GET  /r/<token>   personal link: swaps the token for a cookie
GET  /            the page
POST /screen      {"text"} -> {"risk", "help"}: at once, by the built-in screen, before any model
POST /ask         {"text"} -> the whole turn, after every check

A model may take a minute: help lines must not wait for it, so the page asks /screen first, and /ask
grades the text again, with all that the settings name. Answers are sent whole or not at all.
Nothing is stored, here or in the browser.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from cbtqa.errors import EndpointError, IncompleteRunError, faults_of, require
from cbtqa.files import shipped_yaml
from cbtqa.metrics.structure import steps_of
from cbtqa.records import STEP_NAMES, NonEmptyText, Record
from cbtqa.report.page import load_wording
from cbtqa.safety.normalise import language_of
from cbtqa.safety.notices import Locale, help_text, not_a_therapist, required_notices, stale_warning
from cbtqa.safety.screen import screen
from cbtqa.tuning.answering.chat import SecondOpinions, Speaker, Turn, answer_safely
from cbtqa.web.pages import asset, render
from cbtqa.web.server import Entry, build_app, html_response, json_response, read_body

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PACKAGE = "cbtqa.tuning"
MAX_CHARACTERS = 5_000
_WORDS_OF_SCRIPT = (
    "asked",
    "waiting",
    "lost",
    "failed",
    "withheld",
    "no_answer",
    "masked",
    "steps",
    "explicit",
)


class Asked(Record):
    """What the page sends."""

    text: NonEmptyText = Field(max_length=MAX_CHARACTERS)


def chat_words(language: Locale) -> Mapping[str, Any]:
    """The words of the page."""
    words: Mapping[str, Any] = shipped_yaml(PACKAGE, "chat.yaml")[language]
    return words


class ChatPage:
    """The page and its two questions; one visitor, one question at a time."""

    def __init__(self, speaker: Speaker, opinions: SecondOpinions, language: Locale) -> None:
        self._speaker, self._opinions = speaker, opinions
        self.token, self._cookie, self._csrf = (secrets.token_urlsafe(24) for _ in range(3))
        self.entry = Entry("cbtqa-chat", self._begin, chat_words, language)
        self._asking = threading.Lock()  # a model in this process answers one question at a time

    def _begin(self, token: str) -> str | None:
        return self._cookie if secrets.compare_digest(token.encode(), self.token.encode()) else None

    def _is_visitor(self, request: Request) -> bool:
        cookie = request.cookies.get(self.entry.cookie, "")
        return secrets.compare_digest(cookie.encode(), self._cookie.encode())

    def page(self, request: Request) -> Response:
        """Notices, the field, and what was said; the script fills it."""
        if not self._is_visitor(request):
            return self.entry.refuse(request, "error_visit", 403)
        language = self.entry.language(request)
        words = chat_words(language)
        data = {
            "csrf": self._csrf,
            "language": language,
            "helpline": help_text(language, "page"),
            "words": {one: words[one] for one in _WORDS_OF_SCRIPT},
        }
        opinions = self._opinions
        page = render(
            PACKAGE,
            "chat.html.j2",
            language,
            words,
            words["app"],
            style="chat.css",
            script=asset(PACKAGE, "chat.js"),
            data=data,
            notices=[not_a_therapist(language), *required_notices(language)],
            stale=stale_warning(),
            speaker=self._speaker.name,
            opinions=list(dict.fromkeys(opinions.names)),
            leaves=not (self._speaker.is_local and opinions.is_local),
            most=MAX_CHARACTERS,
        )
        return self.entry.keep_language(request, html_response(page))

    async def screen(self, request: Request) -> Response:
        """The grade of the built-in screen, with help routes."""
        return await self._answer(request, screened)

    async def ask(self, request: Request) -> Response:
        """One turn, as `answer_safely` gives it."""
        return await self._answer(request, self._turn)

    async def _answer(self, request: Request, reply: Callable[[str], dict[str, Any]]) -> Response:
        from starlette.concurrency import run_in_threadpool

        body = await read_body(request)
        if not isinstance(body, bytes):
            return body
        if not self._is_visitor(request):
            return json_response({"error": "no visit"}, 401)
        if request.headers.get("x-csrf-token") != self._csrf:
            return json_response({"error": "no CSRF token"}, 403)
        try:
            text = Asked.model_validate_json(body).text.strip()
        except ValidationError as error:
            return json_response({"error": faults_of(error)[0]["msg"]}, 400)
        if not text:
            return json_response({"error": "an empty text"}, 400)
        return json_response(await run_in_threadpool(reply, text))

    def _turn(self, text: str) -> dict[str, Any]:
        with self._asking:
            try:
                turn = answer_safely(self._speaker, text, self._opinions)
            except (
                EndpointError,
                IncompleteRunError,
            ) as error:  # the next question may fare better
                return {**screened(text), "error": str(error), "hint": error.hint}
        return described(turn)


def screened(text: str) -> dict[str, Any]:
    """Risk and help routes of a text by the built-in screen, which takes milliseconds."""
    found, language = screen(text), language_of(text)
    if found.risk == "explicit":
        return {"risk": found.risk, "help": help_text(language, "answer")}
    routes = [help_text(language)] if found.risk == "concern" else []
    routes += [help_text(language, danger=danger.kind) for danger in found.dangers]
    return {"risk": found.risk, "help": "\n".join(routes) or None}


def described(turn: Turn) -> dict[str, Any]:
    """A turn as the page shows it: an answer in the steps that are found in it."""
    found = steps_of(turn.text) if turn.text else None
    names = load_wording("cbtqa.dataset.report", "wording.yaml")
    steps = [
        {**names[f"texts.{n}"].model_dump(), "number": STEP_NAMES.index(n) + 1, "text": part}
        for n, part in found or ()
    ]
    return {
        "risk": turn.risk,
        "help": turn.help,
        "text": turn.text,
        "steps": steps,
        "notice": turn.notice,
        "withheld_for": list(dict.fromkeys(f"{one.rule}: {one.detail}" for one in turn.problems)),
        "fault": f"{turn.fault.reason.value}: {turn.fault.detail}" if turn.fault else None,
        "masked": list(turn.masked),
        "unheard": list(turn.unheard),
    }


def create_chat_app(page: ChatPage, hosts: Collection[str]) -> Starlette:
    """The page as an ASGI application; `hosts` are the Host headers answered, with their port."""
    require("starlette.applications", "rate")
    from starlette.routing import Route

    routes = [
        Route("/", page.page),
        Route("/screen", page.screen, methods=["POST"]),
        Route("/ask", page.ask, methods=["POST"]),
    ]
    return build_app(page.entry, routes, hosts)
