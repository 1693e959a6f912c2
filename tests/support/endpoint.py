"""A real HTTP server in a thread that answers chat completions by a script.

    with ScriptedEndpoint(ok("你好")) as server:                      # always the same answer
    with ScriptedEndpoint([rate_limited(1), ok("你好")]) as server:   # in order; the last repeats
    with ScriptedEndpoint({"失眠": [server_error(), ok("好")]}) as server:  # by a word of the user
    with ScriptedEndpoint(lambda seen: ok(seen.user_text[::-1])) as server:  # by a function

`server.url` is the base URL. `server.requests` holds everything that was asked, and
`server.paid` counts, for every distinct body, how often it was answered with a completion: what a
client that sends the same thing twice would pay for. Answers are values: see the functions below.
The Batch API (`/files`, `/batches`) is served with the same script.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int = 200
    body: Any = None
    """An object sent as JSON, or bytes sent as they are."""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: str | None = None
    """`connection`: nothing is sent; `body`: half of the body is sent, then the line drops."""
    raw: bytes | None = None
    """Sent as it is in place of an HTTP answer, be it one or not; then the line drops. In the
    results of a batch: the line, with `{id}` for the id of its request."""


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    path: str
    at_s: float
    """Monotonic time of arrival."""
    number: int
    """Counts from 0 over the server's life."""

    @property
    def user_text(self) -> str:
        """Content of the first user message."""
        return next((m["content"] for m in self.body["messages"] if m["role"] == "user"), "")

    @property
    def last_text(self) -> str:
        """Content of the last message."""
        return str(self.body["messages"][-1]["content"])


Script = (
    Answer | Sequence[Answer] | Mapping[str, Answer | Sequence[Answer]] | Callable[[Seen], Answer]
)


# --- answers -------------------------------------------------------------------------------------


def completion(
    content: str | None,
    *,
    finish_reason: str | None = "stop",
    prompt_tokens: int = 100,
    completion_tokens: int = 50,
    **message: Any,
) -> dict[str, Any]:
    """A chat completion body; further fields go into the message."""
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def ok(content: str | None, *, headers: Mapping[str, str] | None = None, **fields: Any) -> Answer:
    """A good answer; `fields` as in `completion`."""
    return Answer(200, completion(content, **fields), headers or {})


def failed(
    status: int,
    message: str,
    *,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """An error in OpenAI's shape."""
    return Answer(status, {"error": {"message": message, "code": code}}, headers or {})


def rate_limited(retry_after: str | float | None = None) -> Answer:
    """429, with `Retry-After` when given (seconds, or an HTTP date as text)."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return failed(429, "Rate limit reached", code="rate_limit_exceeded", headers=headers)


def out_of_quota() -> Answer:
    """429 that no waiting helps against."""
    return failed(429, "You exceeded your current quota", code="insufficient_quota")


def server_error() -> Answer:
    """500."""
    return failed(500, "The server had an error")


def unavailable(retry_after: float | None = None) -> Answer:
    """503, with `Retry-After` when given."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return failed(503, "Overloaded", headers=headers)


def slow(answer: Answer, delay_s: float) -> Answer:
    """The same answer after a wait."""
    return replace(answer, delay_s=delay_s)


def cut_connection() -> Answer:
    """The line drops before anything is answered."""
    return Answer(cut="connection")


def cut_body() -> Answer:
    """The line drops in the middle of a good answer."""
    return Answer(200, completion("断" * 400), cut="body")


def not_the_protocol() -> Answer:
    """200 with a page of HTML."""
    return Answer(200, b"<html>login</html>", {"Content-Type": "text/html"})


def null_content() -> Answer:
    """A completion without any text."""
    return ok(None, completion_tokens=0)


def refusal(text: str = "I cannot help with that.") -> Answer:
    """A completion whose message carries a refusal instead of content."""
    return ok(None, refusal=text)


def cut_by_length(text: str) -> Answer:
    """A completion that ended at the token limit."""
    return ok(text, finish_reason="length")


def content_filter() -> Answer:
    """400 of a provider's content filter."""
    return failed(
        400, "Input data may contain inappropriate content.", code="data_inspection_failed"
    )


def unsupported_format(kind: str = "json_schema") -> Answer:
    """400 of a server that does not know this response format."""
    return failed(400, f"'response_format.type' : '{kind}' is not supported with this model")


def unless_format(kinds: Sequence[str], answer: Answer) -> Callable[[Seen], Answer]:
    """A script: 400 when the request asks for one of these response formats, else `answer`."""

    def script(seen: Seen) -> Answer:
        kind = seen.body.get("response_format", {}).get("type", "text")
        return unsupported_format(kind) if kind in kinds else answer

    return script


# --- the server ----------------------------------------------------------------------------------


class ScriptedEndpoint:
    """An OpenAI-compatible server on a free loopback port, for one `with` block."""

    def __init__(self, script: Script, *, key: str | None = None, port: int = 0) -> None:
        """Args:
        key: when given, requests without `Authorization: Bearer <key>` get 401.
        port: to listen on; 0 for a free one.
        """
        self.requests: list[Seen] = []
        self.paid: Counter[str] = Counter()
        self.peak_in_flight = 0
        self.batches: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.batch_trouble: str | None = None
        """Why the next batches fail as a whole."""
        self._script, self._key, self._wanted = script, key, port
        self._turns: dict[str, int] = {}
        self._in_flight = 0
        self._ids = itertools.count(1)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> ScriptedEndpoint:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the scripted endpoint did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """Base URL, such as `http://127.0.0.1:40123/v1`."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def n_paid(self) -> int:
        """Completions given out."""
        return sum(self.paid.values())

    @property
    def n_paid_again(self) -> int:
        """Completions given out for a body that had got one before."""
        return sum(self.paid.values()) - len(self.paid)

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}/content", self._download)
        app.router.add_post("/v1/batches", self._create_batch)
        app.router.add_get("/v1/batches", self._list_batches)
        app.router.add_get("/v1/batches/{id}", self._get_batch)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._wanted, backlog=1024)
        await site.start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    def _answer_to(self, seen: Seen) -> Answer:
        script = self._script
        if callable(script):
            return script(seen)
        turn_key = ""
        if isinstance(script, Mapping):
            whole = json.dumps(seen.body, ensure_ascii=False)
            turn_key = next((key for key in script if key in whole), "")
            if not turn_key:
                return failed(500, "the script has no answer to this")
            script = script[turn_key]
        if isinstance(script, Answer):
            return script
        turn = self._turns.get(turn_key, 0)
        self._turns[turn_key] = turn + 1
        return script[min(turn, len(script) - 1)]

    def _see(self, body: dict[str, Any], request: web.Request) -> tuple[Seen, Answer]:
        seen = Seen(body, dict(request.headers), request.path, time.monotonic(), len(self.requests))
        self.requests.append(seen)
        if self._key and request.headers.get("Authorization") != f"Bearer {self._key}":
            return seen, failed(401, "Incorrect API key provided", code="invalid_api_key")
        answer = self._answer_to(seen)
        if (
            answer.status == 200
            and isinstance(answer.body, dict)
            and not answer.cut
            and not answer.raw
        ):
            self.paid[json.dumps(body, sort_keys=True, ensure_ascii=False)] += 1
        return seen, answer

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self._in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        try:
            _, answer = self._see(json.loads(await request.read()), request)
            if answer.delay_s:
                await asyncio.sleep(answer.delay_s)
            return await self._send(answer, request)
        finally:
            self._in_flight -= 1

    async def _send(self, answer: Answer, request: web.Request) -> web.StreamResponse:
        if answer.raw is not None and request.transport is not None:
            request.transport.write(answer.raw)
            request.transport.close()
            return web.Response()
        data = answer.body
        if not isinstance(data, bytes):
            data = json.dumps(data, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", **answer.headers}
        if answer.cut is None:
            return web.Response(status=answer.status, body=data, headers=headers)
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = len(data)
        if answer.cut == "body":
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
        if request.transport is not None:
            request.transport.abort()
        return response

    # The Batch API: a batch is worked off when it is created; polls see `in_progress` once.

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        upload = form["file"]
        assert isinstance(upload, web.FileField)
        name = f"file-{next(self._ids)}"
        self.files[name] = upload.file.read()
        return web.json_response(self._file_object(name))

    def _file_object(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "file",
            "bytes": len(self.files[name]),
            "created_at": 1_700_000_000,
            "filename": "batch.jsonl",
            "purpose": "batch",
            "status": "processed",
        }

    async def _create_batch(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name = f"batch-{next(self._ids)}"
        good, bad = [], []
        for line in self.files[asked["input_file_id"]].splitlines():
            row = json.loads(line)
            if self.batch_trouble:
                continue
            _, answer = self._see(row["body"], request)
            response = {"status_code": answer.status, "request_id": "r", "body": answer.body}
            result = {"id": "x", "custom_id": row["custom_id"], "response": response, "error": None}
            if not answer.status:  # never executed, as in a batch that expired
                result |= {"response": None, "error": answer.body}
            result_line = json.dumps(result)
            if answer.raw is not None:  # the line itself
                result_line = answer.raw.decode().replace("{id}", row["custom_id"])
            (good if answer.status == 200 else bad).append(result_line)
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "created_at": 1_700_000_000,
            "status": "in_progress",
            "metadata": asked.get("metadata"),
            "errors": {"object": "list", "data": [{"message": self.batch_trouble}]}
            if self.batch_trouble
            else None,
            "output_file_id": self._keep(good),
            "error_file_id": self._keep(bad),
            "request_counts": {
                "total": len(good) + len(bad),
                "completed": len(good),
                "failed": len(bad),
            },
        }
        return web.json_response(self.batches[name])

    def _keep(self, lines: list[str]) -> str | None:
        if not lines:
            return None
        name = f"file-{next(self._ids)}"
        self.files[name] = ("\n".join(lines) + "\n").encode()
        return name

    async def _get_batch(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        seen = dict(batch)
        batch["status"] = "failed" if self.batch_trouble else "completed"
        return web.json_response(seen)

    async def _list_batches(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": list(self.batches.values()), "has_more": False}
        )

    async def _download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])
