"""A fast OpenAI-shaped server for load tests: one process, one thread, no work per answer.

    python scripts/bench/endpoint.py --port 8011 --latency 1.0 &
    curl -s localhost:8011/stats       # counts since the last /reset

A reply waits on a timer, so a thousand requests in flight cost a thousand timers and no work; on
one core the server answers several times more than any Python client asks. `--faults 0.3` answers
so large a share (told by a hash of the user's text and the turn, so that a run can be repeated
exactly) with every kind of fault in turn. `--track` counts how often one body was paid for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
import zlib
from collections import Counter
from hashlib import blake2b
from typing import Any

STEPS = (
    "validation_and_empathy",
    "key_thought",
    "challenge_or_reflection",
    "strategy_or_insight",
    "encouragement_and_foresight",
)
SENTENCE = (
    "这几个星期你一直在替别人着想，夜里却睡不着，心里像压着一块石头，这样的日子换了谁都会累。"
)
KINDS = ("bad", "cut", "empty", "refusal", "drop", "500", "429", "400")
"""Paid replies that are no good, then failures, then a refusal for good."""


def answer_text(n_characters: int) -> str:
    """Five steps of JSON with about so many Chinese characters."""
    each = n_characters // len(STEPS)
    pool = SENTENCE * (each // len(SENTENCE) + 2)
    steps = {name: pool[3 * n : 3 * n + each] for n, name in enumerate(STEPS)}
    return json.dumps(steps, ensure_ascii=False)


def http(status: str, body: dict[str, Any], extra: str = "") -> bytes:
    """The bytes of one HTTP answer."""
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def completion(content: str | None, finish: str = "stop", **message: Any) -> bytes:
    """The bytes of a chat completion."""
    return http(
        "200 OK",
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "bench",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content, **message},
                    "finish_reason": finish,
                }
            ],
            "usage": {"prompt_tokens": 520, "completion_tokens": 480, "total_tokens": 1000},
        },
    )


class Counts:
    """What was asked and answered since the last reset."""

    def __init__(self) -> None:
        self.n_requests = self.in_flight = self.peak = 0
        self.answered: Counter[str] = Counter()
        self.first = self.last = self.peak_at = 0.0
        self.paid: Counter[bytes] = Counter()
        self.failed: set[bytes] = set()
        self.cpu_at_start = time.process_time()

    def as_json(self) -> dict[str, Any]:
        span = max(self.last - self.first, 1e-9)
        return {
            "requests": self.n_requests,
            "answered": dict(self.answered),
            "peak_in_flight": self.peak,
            "peak_after_s": round(self.peak_at - self.first, 3),
            "span_s": round(span, 3),
            "distinct": len(self.paid),
            "paid_again": self.paid.total() - len(self.paid),
            "cpu_s": round(time.process_time() - self.cpu_at_start, 2),
        }


class Server:
    """Ready-made answers and the choice between them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.latency, self.track = arguments.latency, arguments.track
        self.share = arguments.faults
        self.counts = Counts()
        text = answer_text(arguments.characters)
        error = {"error": {"message": "The server had an error", "code": None}}
        limit = {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}
        blocked = {"error": {"message": "inappropriate", "code": "data_inspection_failed"}}
        self.answers = {
            "ok": completion(text),
            "bad": completion("好的，我来回答：" + text[: len(text) // 2].replace('"', "")),
            "cut": completion(text[: len(text) * 6 // 10], "length"),
            "empty": completion(None),
            "refusal": completion(None, refusal="抱歉，我不能回答。"),
            "drop": b"",
            "500": http("500 Internal Server Error", error),
            "429": http("429 Too Many Requests", limit, "Retry-After: 0\r\n"),
            "400": http("400 Bad Request", blocked),
        }

    def choose(self, body: bytes) -> str:
        """`ok`, or a kind of fault; the same body may fare better at a later turn only."""
        if not self.share:
            return "ok"
        mark = zlib.crc32(body)
        if mark % 1000 >= self.share * 1000:
            return "ok"
        return KINDS[mark // 1000 % len(KINDS)]


class Connection(asyncio.Protocol):
    """One client connection; HTTP/1.1 with Content-Length or chunked bodies, and no more."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server, self.loop = server, loop
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.buffer:
            head, mark, rest = self.buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            lowered = head.lower()
            at = lowered.find(b"content-length:")
            if at >= 0:
                length = int(lowered[at + 15 :].split(b"\r\n", 1)[0])
                if len(rest) < length:
                    return
                body, self.buffer = rest[:length], rest[length:]
            elif b"transfer-encoding: chunked" in lowered:
                body, mark, after = rest.partition(b"\r\n0\r\n\r\n")
                if not mark:
                    return
                self.buffer = after
            else:
                body, self.buffer = b"", rest
            self.handle(head.split(b" ", 2)[1], body)

    def handle(self, path: bytes, body: bytes) -> None:
        server = self.server
        if path.endswith(b"/chat/completions"):
            self.chat(body)
        elif path == b"/stats":
            self.transport.write(http("200 OK", server.counts.as_json()))
        elif path == b"/reset":
            server.counts = Counts()
            self.transport.write(http("200 OK", {}))
        else:
            models = {"object": "list", "data": [{"id": "bench", "object": "model"}]}
            self.transport.write(http("200 OK", models))

    def chat(self, body: bytes) -> None:
        counts, now = self.server.counts, time.perf_counter()
        counts.first = counts.first or now
        counts.n_requests += 1
        counts.in_flight += 1
        if counts.in_flight > counts.peak:
            counts.peak, counts.peak_at = counts.in_flight, now
        self.loop.call_later(self.server.latency, self.answer, body, counts)

    def answer(self, body: bytes, counts: Counts) -> None:
        kind, mark = self.server.choose(body), blake2b(body, digest_size=12).digest()
        if kind in ("drop", "500", "429"):
            # the endpoint recovers: the same body passes when it comes a second time
            kind = "ok" if mark in counts.failed else kind
            counts.failed.add(mark)
        counts.in_flight -= 1
        counts.answered[kind] += 1
        counts.last = time.perf_counter()
        if self.transport.is_closing():
            return
        if self.server.track and kind in ("ok", "bad", "cut", "empty", "refusal"):
            counts.paid[mark] += 1
        if kind == "drop":
            self.transport.abort()
        else:
            self.transport.write(self.server.answers[kind])


async def serve(arguments: argparse.Namespace) -> None:
    """Listens until the process is ended."""
    loop = asyncio.get_running_loop()
    server = Server(arguments)
    listening = await loop.create_server(
        lambda: Connection(server, loop), "127.0.0.1", arguments.port, backlog=8192
    )
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


def main() -> None:
    """Reads the flags and serves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one and prints it")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds before each answer")
    parser.add_argument("--characters", type=int, default=600, help="of an answer")
    parser.add_argument("--faults", type=float, default=0.0, help="share of faulty answers, 0-1")
    parser.add_argument("--track", action="store_true", help="count bodies paid for twice")
    parser.add_argument("--core", type=int, help="pin the server to this core")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
