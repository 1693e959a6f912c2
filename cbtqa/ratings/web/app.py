"""The routes of the form. Reading never changes anything; every change is one `POST /save`.

GET  /r/<token>   personal link: swaps the token for a cookie
GET  /            welcome, guide, overview
GET  /item/<n>    the rater's n-th item
POST /save        {"changes": [{"key", "code", "field", "value", "seconds"}]}
GET  /mine.json   the rater's own events
"""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, get_args

from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError

from cbtqa.errors import UsageError, require
from cbtqa.ratings.answers import Answer, Change, check_change, is_done
from cbtqa.ratings.rubric import Language
from cbtqa.ratings.store import Event, Store, Visit
from cbtqa.ratings.study import StudyFolder
from cbtqa.ratings.web import pages
from cbtqa.ratings.web.guards import READ_TIMEOUT_S, FailureLimit, Guard, impatient_protocol
from cbtqa.records import NonEmptyText, Record

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response


MAX_BODY_BYTES = 1 << 20
MAX_CHANGES = 500
LANGUAGE_COOKIE = "cbtqa-language"


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
        self._cookie = f"cbtqa-{folder.study.id}"
        self._failures = FailureLimit()
        self._saving = threading.Lock()  # changes are checked against the latest state

    def enter(self, request: Request) -> Response:
        """Swaps a link for a cookie. No redirect: a strict cookie would not follow one."""
        language, client = self._language(request), request.client.host if request.client else ""
        cookie = self._store.begin_visit(request.path_params["token"])
        if cookie is None:
            # a right link always works: a whole clinic may share the address of one who errs
            if self._failures.is_exceeded(client):
                return _html(pages.render_message(language, "error_many"), 429)
            self._failures.count(client)
            return _html(pages.render_message(language, "error_link"), 403)
        response = _html(pages.render_entry(language))
        response.set_cookie(
            self._cookie, cookie, max_age=180 * 86_400, httponly=True, samesite="strict"
        )
        return response

    def _visit(self, request: Request) -> Visit | None:
        cookie = request.cookies.get(self._cookie)
        return self._store.visit(cookie) if cookie else None

    def _language(self, request: Request) -> Language:
        wanted = request.query_params.get("lang") or request.cookies.get(LANGUAGE_COOKIE)
        offered = get_args(Language)
        return next((one for one in offered if one == wanted), self._folder.study.language)

    def welcome(self, request: Request) -> Response:
        visit, language = self._visit(request), self._language(request)
        if visit is None:
            return _html(pages.render_message(language, "error_visit"), 403)
        answers = self._store.answers(visit.rater)
        page = pages.render_welcome(self._folder, visit.rater, answers, language)
        return self._keep_language(request, _html(page))

    def item(self, request: Request) -> Response:
        visit, language = self._visit(request), self._language(request)
        if visit is None:
            return _html(pages.render_message(language, "error_visit"), 403)
        plan = self._folder.shown_to(visit.rater)
        number = request.path_params["number"]
        if not 1 <= number <= len(plan):
            return _html(pages.render_message(language, "error_missing"), 404)
        answers = self._store.answers(visit.rater)
        page = pages.render_item(self._folder, plan[number - 1], answers, visit.csrf, language)
        return self._keep_language(request, _html(page))

    def mine(self, request: Request) -> Response:
        visit = self._visit(request)
        if visit is None:
            return _json({"error": "no visit"}, 403)
        events = self._store.events(visit.rater)
        for event in events:
            del event["key"], event["seq"]
        response = _json({"study": self._folder.study.id, "rater": visit.rater, "events": events})
        name = f"{self._folder.study.id}-{visit.rater}.json"
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return response

    def missing(self, request: Request, _error: Exception) -> Response:
        return _html(pages.render_message(self._language(request), "error_missing"), 404)

    def _keep_language(self, request: Request, response: Response) -> Response:
        if "lang" in request.query_params:
            response.set_cookie(LANGUAGE_COOKIE, self._language(request), samesite="strict")
        return response

    async def save(self, request: Request) -> Response:
        """Keeps changes for good and answers only then."""
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect

        try:
            body = await _read_body(request)
        except ClientDisconnect:
            return _json({"error": "cut off"}, 400)
        if body is None:
            return _json({"error": "too large"}, 413)
        return await run_in_threadpool(self._save, request, body)

    def _save(self, request: Request, body: bytes) -> Response:
        visit = self._visit(request)
        if visit is None:
            return _json({"error": "no visit"}, 401)
        if request.headers.get("x-csrf-token") != visit.csrf:
            return _json({"error": "no CSRF token"}, 403)
        try:
            sent = SentChanges.model_validate_json(body)
        except ValidationError as error:
            return _json({"error": error.errors(include_url=False)[0]["msg"]}, 400)
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
        return _json({"settled": kept, "refused": refused, "done": n_done, "total": len(plan)})


def create_app(folder: StudyFolder, store: Store, hosts: Collection[str]) -> Starlette:
    """The form as an ASGI application; `hosts` are the Host headers answered, with their port."""
    require("starlette.applications", "rate")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    form = Form(folder, store)
    routes = [
        Route("/", form.welcome),
        Route("/r/{token}", form.enter),
        Route("/item/{number:int}", form.item),
        Route("/mine.json", form.mine),
        Route("/save", form.save, methods=["POST"]),
    ]
    guard = Middleware(Guard, hosts=hosts)
    app = Starlette(routes=routes, middleware=[guard], exception_handlers={404: form.missing})
    app.router.redirect_slashes = False
    return app


async def _read_body(request: Request) -> bytes | None:
    """The body, or None when it is larger than any honest save."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _html(page: str, status: int = 200) -> Response:
    from starlette.responses import HTMLResponse

    return HTMLResponse(page, status)


def _json(value: dict[str, Any], status: int = 200) -> Response:
    from starlette.responses import Response

    text = json.dumps(value, ensure_ascii=False)
    return Response(text, status, media_type="application/json")


LOOPBACK = "127.0.0.1"


def lan_address() -> str:
    """This machine's address in the local network, as far as it is known without traffic."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # a documentation address; a datagram socket sends nothing
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return LOOPBACK
        return str(probe.getsockname()[0])


def allowed_hosts(port: int, names: Iterable[str] = ()) -> set[str]:
    """Values of the Host header that are answered: loopback, and these names."""
    hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
    for name in names:
        try:
            is_v6 = ipaddress.ip_address(name).version == 6
        except ValueError:
            is_v6 = False
        shown = f"[{name}]" if is_v6 else name
        hosts |= {f"{shown}:{port}", shown} if port in (80, 443) else {f"{shown}:{port}"}
    return hosts


def tcp_listener() -> socket.socket:
    # the protocol is named: only then does asyncio turn Nagle's delay (40 ms per save) off
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)


def serve(
    folder: StudyFolder, store: Store, *, host: str, port: int, names: Iterable[str] = ()
) -> None:
    """Serves until interrupted; `names` are further Host names, such as behind a tunnel."""
    server = make_server(create_app(folder, store, allowed_hosts(port, names)))
    with tcp_listener() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot use {host}:{port}: {error.strerror}", hint="--port") from None
        server.run(sockets=[listener])


def make_server(app: Starlette, read_timeout_s: float = READ_TIMEOUT_S) -> uvicorn.Server:
    """The server of the form; a request that is not whole in time ends its connection."""
    require("uvicorn", "rate")
    import uvicorn

    protocol = impatient_protocol(read_timeout_s)
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    return uvicorn.Server(uvicorn.Config(app, http=protocol, lifespan="off", **quiet))
