"""The routes of the form. Reading never changes anything; every change is one `POST /save`.

GET  /r/<token>   personal link: swaps the token for a cookie
GET  /            welcome, guide, overview
GET  /item/<n>    the rater's n-th item
POST /save        {"changes": [{"key", "code", "field", "value", "seconds"}]}
GET  /mine.json   the rater's own events
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import TYPE_CHECKING

from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError

from cbtqa.errors import require
from cbtqa.ratings.answers import Answer, Change, check_change, is_done
from cbtqa.ratings.store import Event, Store, Visit
from cbtqa.ratings.study import StudyFolder
from cbtqa.ratings.web import pages
from cbtqa.records import NonEmptyText, Record
from cbtqa.web.server import Entry, build_app, html_response, json_response, read_body

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response


MAX_CHANGES = 500


class SentChange(Record):
    key: NonEmptyText = Field(max_length=80)
    code: NonEmptyText
    field: NonEmptyText
    value: StrictInt | StrictStr | StrictBool | None
    seconds: float | None = Field(default=None, ge=0, le=86_400)


class SentChanges(Record):
    changes: tuple[SentChange, ...] = Field(min_length=1, max_length=MAX_CHANGES)


class Form:
    def __init__(self, folder: StudyFolder, store: Store) -> None:
        self._folder, self._store = folder, store
        self.entry = Entry(
            f"cbtqa-{folder.study.id}", store.begin_visit, pages.form_words, folder.study.language
        )
        self._saving = threading.Lock()  # changes are checked against the latest state

    def _visit(self, request: Request) -> Visit | None:
        cookie = request.cookies.get(self.entry.cookie)
        return self._store.visit(cookie) if cookie else None

    def welcome(self, request: Request) -> Response:
        visit, language = self._visit(request), self.entry.language(request)
        if visit is None:
            return self.entry.refuse(request, "error_visit", 403)
        answers = self._store.answers(visit.rater)
        page = pages.render_welcome(self._folder, visit.rater, answers, language)
        return self.entry.keep_language(request, html_response(page))

    def item(self, request: Request) -> Response:
        visit, language = self._visit(request), self.entry.language(request)
        if visit is None:
            return self.entry.refuse(request, "error_visit", 403)
        plan = self._folder.shown_to(visit.rater)
        number = request.path_params["number"]
        if not 1 <= number <= len(plan):
            return self.entry.refuse(request, "error_missing", 404)
        answers = self._store.answers(visit.rater)
        page = pages.render_item(self._folder, plan[number - 1], answers, visit.csrf, language)
        return self.entry.keep_language(request, html_response(page))

    def mine(self, request: Request) -> Response:
        visit = self._visit(request)
        if visit is None:
            return json_response({"error": "no visit"}, 403)
        events = self._store.events(visit.rater)
        for event in events:
            del event["key"], event["seq"]
        response = json_response(
            {"study": self._folder.study.id, "rater": visit.rater, "events": events}
        )
        name = f"{self._folder.study.id}-{visit.rater}.json"
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return response

    async def save(self, request: Request) -> Response:
        """Keeps changes for good and answers only then."""
        from starlette.concurrency import run_in_threadpool

        body = await read_body(request)
        if not isinstance(body, bytes):
            return body
        return await run_in_threadpool(self._save, request, body)

    def _save(self, request: Request, body: bytes) -> Response:
        visit = self._visit(request)
        if visit is None:
            return json_response({"error": "no visit"}, 401)
        if request.headers.get("x-csrf-token") != visit.csrf:
            return json_response({"error": "no CSRF token"}, 403)
        try:
            sent = SentChanges.model_validate_json(body)
        except ValidationError as error:
            return json_response({"error": error.errors(include_url=False)[0]["msg"]}, 400)
        with self._saving:
            return self._keep(visit, sent)

    def _keep(self, visit: Visit, sent: SentChanges) -> Response:
        answers = self._store.answers(visit.rater)
        events, refused = [], []
        for change in sent.changes:
            answer = answers.setdefault(change.code, Answer())
            try:
                wanted = Change(change.code, change.field, change.value)
                good = check_change(self._folder, visit.rater, wanted, answer)
            except ValueError as error:
                refused.append({"key": change.key, "field": change.field, "detail": str(error)})
                continue
            answer.set(good.field, good.value)
            events.append(Event(f"web:{visit.rater}:{change.key}", good, change.seconds))
        self._store.add(visit.rater, "web", events)
        plan = self._folder.shown_to(visit.rater)
        n_done = sum(is_done(self._folder, answers.get(shown.code)) for shown in plan)
        kept = [change.key for change in sent.changes]
        return json_response(
            {"settled": kept, "refused": refused, "done": n_done, "total": len(plan)}
        )


def create_app(folder: StudyFolder, store: Store, hosts: Collection[str]) -> Starlette:
    """The form as an ASGI application; `hosts` are the Host headers answered, with their port."""
    require("starlette.applications", "rate")
    from starlette.routing import Route

    form = Form(folder, store)
    routes = [
        Route("/", form.welcome),
        Route("/item/{number:int}", form.item),
        Route("/mine.json", form.mine),
        Route("/save", form.save, methods=["POST"]),
    ]
    return build_app(form.entry, routes, hosts)
