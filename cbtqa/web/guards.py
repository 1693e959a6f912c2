"""What every request must pass, whatever its route: a known Host, a same-site origin, headers.

Attacks closed here: DNS rebinding (Host), cross-site posts (Origin, besides the CSRF token and the
SameSite cookie), script injection (a policy that runs our nonce only), framing, guessing of links,
connections held open with half a request.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Collection, MutableMapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

current_nonce: ContextVar[str] = ContextVar("current_nonce")
"""Nonce of the request being answered; inline script and style carry it."""

POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
    "connect-src 'self'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware that refuses foreign requests and sets the headers of every answer."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        nonce = secrets.token_urlsafe(16)
        current_nonce.set(nonce)

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = {**HEADERS, "Content-Security-Policy": POLICY.format(nonce=nonce)}
                pairs = [(k.lower().encode(), v.encode()) for k, v in extra.items()]
                message["headers"] = [*message.get("headers", []), *pairs]
            await send(message)

        refusal = self._refusal(headers)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        from starlette.responses import PlainTextResponse

        status, text = refusal
        await PlainTextResponse(text, status)(scope, receive, send_guarded)

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        if headers.get("host", "").lower() not in self._hosts:
            return 400, "unknown Host"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() not in self._hosts:
            return 403, "cross-site request"
        return None


READ_TIMEOUT_S = 60.0
"""Seconds in which a request must be whole; a save has at most a megabyte."""


def impatient_protocol(read_timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol that leaves a peer who opens a connection and sends nothing, or half.

    uvicorn itself bounds the pause after an answer alone.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class ImpatientProtocol(H11Protocol):
        waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.waiting = self.loop.call_later(read_timeout_s, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_whole = self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)
            if is_whole and self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None
            elif not is_whole and self.waiting is None:
                self.waiting = self.loop.call_later(read_timeout_s, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
            super().connection_lost(exc)

    return ImpatientProtocol


class FailureLimit:
    """Counts failed attempts per client within a minute."""

    def __init__(self, limit: int = 20, window_s: float = 60.0) -> None:
        self._limit, self._window_s = limit, window_s
        self._failures: dict[str, deque[float]] = {}

    def is_exceeded(self, client: str) -> bool:
        """True while this client has failed too often."""
        recent = self._failures.get(client)
        if recent is None:
            return False
        while recent and recent[0] < time.monotonic() - self._window_s:
            recent.popleft()
        if not recent:
            del self._failures[client]
        return len(recent) >= self._limit

    def count(self, client: str) -> None:
        if len(self._failures) < 10_000:
            self._failures.setdefault(client, deque(maxlen=self._limit)).append(time.monotonic())
