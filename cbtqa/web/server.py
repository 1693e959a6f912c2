"""The process that serves pages: who may enter, which names it answers to, where it listens.

    entry = Entry("cbtqa-chat", begin=cookie_of_token)
    serve(app, host=LOOPBACK, port=8765)

GET /r/<token> is the personal link; it becomes a cookie that no script reads, and leaves the
address.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from cbtqa.errors import UsageError, require
from cbtqa.safety.notices import Locale
from cbtqa.web.guards import READ_TIMEOUT_S, FailureLimit, Guard, impatient_protocol
from cbtqa.web.pages import render

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route


MAX_BODY_BYTES = 1 << 20
LANGUAGE_COOKIE = "cbtqa-language"


def html_response(page: str, status: int = 200) -> Response:
    """A page."""
    from starlette.responses import HTMLResponse

    return HTMLResponse(page, status)


def json_response(value: Mapping[str, Any], status: int = 200) -> Response:
    """An object for a page's script."""
    from starlette.responses import Response

    text = json.dumps(value, ensure_ascii=False)
    return Response(text, status, media_type="application/json")


@dataclass(frozen=True)
class Entry:
    """The way in, and the pages that say why there is none."""

    cookie: str
    begin: Callable[[str], str | None]
    """Gets the token of a link; gives the value of the cookie, or None for a wrong one."""
    words: Callable[[Locale], Mapping[str, Any]]
    """The room's words: `app`, `error_link`, `error_visit`."""
    otherwise: Locale
    """Language where the reader has chosen none."""
    failures: FailureLimit = field(default_factory=FailureLimit)

    def enter(self, request: Request) -> Response:
        """Swaps a link for a cookie. No redirect: a strict cookie would not follow one."""
        client = request.client.host if request.client else ""
        cookie = self.begin(request.path_params["token"])
        if cookie is None:
            # a right link always works: a whole clinic may share the address of one who errs
            if self.failures.is_exceeded(client):
                return self.refuse(request, "error_many", 429)
            self.failures.count(client)
            return self.refuse(request, "error_link", 403)
        response = html_response(self._page(request, "entry.html.j2"))
        response.set_cookie(
            self.cookie, cookie, max_age=180 * 86_400, httponly=True, samesite="strict"
        )
        return response

    def language(self, request: Request) -> Locale:
        """What the reader chose, by the address or before."""
        wanted = request.query_params.get("lang") or request.cookies.get(LANGUAGE_COOKIE)
        offered = get_args(Locale)
        return next((one for one in offered if one == wanted), self.otherwise)

    def keep_language(self, request: Request, response: Response) -> Response:
        """The response, with the chosen language for the next visit."""
        if "lang" in request.query_params:
            response.set_cookie(LANGUAGE_COOKIE, self.language(request), samesite="strict")
        return response

    def refuse(self, request: Request, name: str, status: int) -> Response:
        """A page with one sentence."""
        return html_response(self._page(request, "message.html.j2", message=name), status)

    def missing(self, request: Request, _error: Exception) -> Response:
        """There is no such page."""
        return self.refuse(request, "error_missing", 404)

    def _page(self, request: Request, template: str, **values: Any) -> str:
        language = self.language(request)
        words = self.words(language)
        return render("cbtqa.web", template, language, words, words["app"], **values)


def build_app(entry: Entry, routes: Sequence[Route], hosts: Collection[str]) -> Starlette:
    """The routes of a room behind the guard; `hosts` are the Host headers answered."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    every = [Route("/r/{token}", entry.enter), *routes]
    guard, errors = Middleware(Guard, hosts=hosts), {404: entry.missing}
    app = Starlette(routes=every, middleware=[guard], exception_handlers=errors)
    app.router.redirect_slashes = False
    return app


async def read_body(request: Request) -> bytes | Response:
    """The body, or the refusal of one that is cut off or larger than any honest one."""
    from starlette.requests import ClientDisconnect

    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return json_response({"error": "too large"}, 413)
    except ClientDisconnect:
        return json_response({"error": "cut off"}, 400)
    return bytes(body)


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
    """A socket that is not bound yet."""
    # the protocol is named: only then does asyncio turn Nagle's delay (40 ms per save) off
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)


def serve(app: Starlette, *, host: str, port: int) -> None:
    """Serves until interrupted; UsageError where the port cannot be had."""
    server = make_server(app)
    with tcp_listener() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot use {host}:{port}: {error.strerror}", hint="--port") from None
        server.run(sockets=[listener])


def make_server(app: Starlette, read_timeout_s: float = READ_TIMEOUT_S) -> uvicorn.Server:
    """The server of an app; a request that is not whole in time ends its connection."""
    require("uvicorn", "rate")
    import uvicorn

    protocol = impatient_protocol(read_timeout_s)
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    return uvicorn.Server(uvicorn.Config(app, http=protocol, lifespan="off", **quiet))
