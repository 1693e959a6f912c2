"""The routes of the form, and its pages. Reading never changes anything; every change is one
`POST /save`.

GET  /r/<token>   personal link: swaps the token for a cookie
GET  /            welcome, guide, overview
GET  /item/<n>    the rater's n-th item
POST /save        {"changes": [{"key", "code", "field", "value", "seconds"}]}
GET  /mine.json   the rater's own events
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError

from cbtqa.errors import faults_of, require
from cbtqa.files import shipped_yaml
from cbtqa.ratings.answers import Answer, Change, check_change, is_done
from cbtqa.ratings.rubric import Criterion, Language
from cbtqa.ratings.store import Event, Store, Visit
from cbtqa.ratings.study import Presentation, StudyFolder
from cbtqa.records import NonEmptyText, Record
from cbtqa.web.pages import asset, render
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
            f"cbtqa-{folder.study.id}", store.begin_visit, form_words, folder.study.language
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
        page = render_welcome(self._folder, visit.rater, answers, language)
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
        page = render_item(self._folder, plan[number - 1], answers, visit.csrf, language)
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
            return json_response({"error": faults_of(error)[0]["msg"]}, 400)
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


PACKAGE = "cbtqa.ratings.web"
MARK_KEYS = "1234567890qwertyuiopasdhjklzvm"
"""Keys of marks in order; those of the form's own actions (b c f g n x) are left out."""
FEW_POINTS = 4
"""Up to so many points each gets a button with its words; above, a row of numbers."""

_ANSWER_DATA = ("values", "evidence", "note", "cannot_judge", "crisis")
_CRITERION_DATA = {"id", "kind", "low", "high", "required", "evidence"}
_SAVING_WORDS = ("saving", "saved", "unsaved", "unsaved_note", "link_dead", "refused")
_WORDS_OF_SCRIPT = (*_SAVING_WORDS, "stay", "progress")


@cache
def form_words(language: Language) -> Mapping[str, Any]:
    words: Mapping[str, Any] = shipped_yaml("cbtqa.ratings", "wording/form.yaml")[language]
    return words


def render_form(template: str, language: Language, title: str, **values: Any) -> str:
    """A page of the form."""
    words = form_words(language)
    return render(PACKAGE, template, language, words, title, style="form.css", **values)


def render_welcome(
    folder: StudyFolder, rater: str, answers: Mapping[str, Answer], language: Language
) -> str:
    """Where a rater lands: what to do, the guide, and all items at a glance."""
    shown = folder.shown_to(rater)
    cells = [(p.order, is_done(folder, answers.get(p.code))) for p in shown]
    n_done = sum(done for _, done in cells)
    first_open = next((number for number, done in cells if not done), 1)
    return render_form(
        "welcome.html.j2",
        language,
        title_of(folder, language),
        rater=rater,
        cells=cells,
        n_done=n_done,
        n_total=len(cells),
        first_open=first_open,
        rubric=folder.rubric,
    )


def render_item(
    folder: StudyFolder,
    shown: Presentation,
    answers: Mapping[str, Answer],
    csrf: str,
    language: Language,
) -> str:
    plan = folder.shown_to(shown.rater)
    n_done = sum(is_done(folder, answers.get(p.code)) for p in plan)
    data = {
        **_item_data(folder, shown, answers.get(shown.code, Answer())),
        "csrf": csrf,
        "next": f"/item/{shown.order + 1}" if shown.order < len(plan) else "/",
        "words": {name: form_words(language)[name] for name in _WORDS_OF_SCRIPT},
    }
    return render_form(
        "item.html.j2",
        language,
        title_of(folder, language),
        shown=shown,
        item=folder.item_of(shown),
        rubric=folder.rubric,
        groups=_groups(folder),
        mark_keys=data["mark_keys"],
        few_points=FEW_POINTS,
        data=data,
        script=asset(PACKAGE, "form.js"),
        is_last=shown.order == len(plan),
        n_done=n_done,
        n_total=len(plan),
    )


def _item_data(folder: StudyFolder, shown: Presentation, answer: Answer) -> dict[str, Any]:
    marks = (mark.id for mark in folder.rubric.marks)
    return {
        "study": folder.study.id,
        "rater": shown.rater,
        "code": shown.code,
        "previous": f"/item/{shown.order - 1}" if shown.order > 1 else "/",
        "criteria": [one.model_dump(include=_CRITERION_DATA) for one in folder.rubric.criteria],
        "mark_keys": dict(zip(marks, MARK_KEYS, strict=False)),
        "answer": {name: getattr(answer, name) for name in _ANSWER_DATA},
    }


def title_of(folder: StudyFolder, language: Language) -> str:
    return folder.study.title or folder.rubric.title.to(language)


def _groups(folder: StudyFolder) -> list[tuple[str | None, list[Criterion]]]:
    """Runs of criteria under the id of their section, in the rubric's order."""
    runs = groupby(folder.rubric.criteria, lambda criterion: criterion.section)
    return [(section, list(own)) for section, own in runs]


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
