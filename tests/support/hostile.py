"""Answers of a server that repeats what it was sent, the key included, wherever it can.

    with ScriptedEndpoint(lambda seen: HOSTILE["400"](seen, "good answer")) as server: ...
    assert_nowhere(folder, shown)

Each answer is a function of the request and of a good answer's text.
"""

from __future__ import annotations

import json
import sqlite3
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq

from tests.support.endpoint import Answer, Seen, completion, failed, ok

KEY = "sk-invented/4f9Qz+7Lk2Wm8Rt3Yp6Xc1Vb5Nd0Hs"
HostileAnswer = Callable[[Seen, str], Answer]


def _echo(seen: Seen) -> str:
    """The request's headers as a careless server repeats them."""
    return "; ".join(f"{name}: {value}" for name, value in seen.headers.items())


def _key_of(seen: Seen) -> str:
    return seen.headers["Authorization"].removeprefix("Bearer ")


def _with_key(value: Any, key: str) -> Any:
    """The same with the key behind every text of it."""
    if isinstance(value, str):
        return f"{value} {key}"
    if isinstance(value, list):
        return [_with_key(one, key) for one in value]
    if isinstance(value, dict):
        return {name: _with_key(one, key) for name, one in value.items()}
    return value


def _in_content(seen: Seen, good: str) -> Answer:
    try:
        return ok(json.dumps(_with_key(json.loads(good), _key_of(seen)), ensure_ascii=False))
    except ValueError:
        return ok(f"{good} {_key_of(seen)}")


def _in_parts(seen: Seen, good: str) -> Answer:
    """A list of parts, the key cut in two."""
    key, body = _key_of(seen), completion(None)
    texts = (good, key[:15], key[15:])
    body["choices"][0]["message"]["content"] = [{"type": "text", "text": text} for text in texts]
    return Answer(200, body)


def _with_field(good: str, **fields: Any) -> Answer:
    return Answer(200, {**completion(good), **fields})


def _behind(n: int, text: str) -> str:
    """The text behind so many letters: where a quoting error may cut it."""
    return "x" * n + text


def _escaped(text: str) -> bytes:
    """A JSON body in which every letter of a text is escaped."""
    letters = "".join(f"\\u{ord(letter):04x}" for letter in text)
    return f'{{"error": {{"message": "{letters}"}}}}'.encode()


ITEM_LEVEL: dict[str, HostileAnswer] = {
    "content": _in_content,
    "content in parts": _in_parts,
    "reasoning": lambda seen, good: ok(good, reasoning_content=_echo(seen)),
    "thinking": lambda seen, good: ok(f"<think>{_echo(seen)}</think>{good}"),
    "refusal": lambda seen, good: ok(None, refusal=_echo(seen)),
    "finish reason": lambda seen, good: ok(good, finish_reason=_echo(seen)),
    "model": lambda seen, good: _with_field(good, model=_echo(seen)),
    "usage": lambda seen, good: _with_field(good, usage={"prompt_tokens": _echo(seen)}),
    "no usage": lambda seen, good: _with_field(good, usage=_echo(seen)),
    "error with 200": lambda seen, good: Answer(200, {"error": {"message": _echo(seen)}}),
    "page with 200": lambda seen, good: Answer(200, _echo(seen).encode()),
    "400": lambda seen, good: failed(400, _echo(seen)),
    "400, cut in the key": lambda seen, good: failed(400, _behind(260, _key_of(seen))),
    "400, escaped": lambda seen, good: Answer(400, _escaped(_echo(seen))),
    "400, in an address": lambda seen, good: failed(400, f"?key={quote(_key_of(seen), safe='')}"),
    "400, basic": lambda seen, good: failed(400, b64encode(f":{_key_of(seen)}".encode()).decode()),
    "500": lambda seen, good: failed(500, _echo(seen)),
    "broken chunk": lambda seen, good: Answer(
        raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
        + f"X-Seen: {_echo(seen)}\r\n\r\n{_echo(seen)}\r\n".encode()
    ),
    "cut in a header": lambda seen, good: Answer(
        raw=f"HTTP/1.1 200 OK\r\nX-Seen: {_echo(seen)}".encode()
    ),
    "no header": lambda seen, good: Answer(
        raw=f"HTTP/1.1 200 OK\r\n{_key_of(seen)}\r\n\r\n{{}}".encode()
    ),
    "no status": lambda seen, good: Answer(raw=f"{_echo(seen)}\r\n\r\n".encode()),
}
"""What happens to one request; a run goes on."""
RUN_LEVEL: dict[str, HostileAnswer] = {
    "401": lambda seen, good: failed(401, _echo(seen)),
    "403": lambda seen, good: failed(403, f"insufficient_quota {_echo(seen)}"),
    "404": lambda seen, good: failed(404, _echo(seen)),
    "429": lambda seen, good: failed(429, _echo(seen)),
    "302": lambda seen, good: Answer(
        302, {}, {"Location": f"http://127.0.0.1:9/?key={_key_of(seen)}"}
    ),
    "nothing but broken chunks": ITEM_LEVEL["broken chunk"],
    "nothing but 500": ITEM_LEVEL["500"],
}
"""What all requests meet; a run ends by it."""
HOSTILE = ITEM_LEVEL | RUN_LEVEL


def hostile_in_turn(good: Callable[[Seen], str]) -> Callable[[Seen], Answer]:
    """A script: a good answer, then one of each kind that a run survives, and again."""
    kinds = [lambda seen, text: ok(text), *ITEM_LEVEL.values()]

    def script(seen: Seen) -> Answer:
        answer = kinds[seen.number % len(kinds)](seen, good(seen))
        return replace(answer, headers={**answer.headers, "X-Seen": _echo(seen)})

    return script


# --- searching -----------------------------------------------------------------------------------

_PIECE = 12
_BASIC = b64encode(f":{KEY}".encode()).decode()
_TRACES = {
    *(KEY[:_PIECE], KEY[_PIECE : 2 * _PIECE], KEY[-_PIECE:]),
    *(quote(KEY, safe="")[:_PIECE], _BASIC[4 : 4 + _PIECE], _BASIC[-_PIECE - 4 : -4]),
    "".join(f"\\u{ord(letter):04x}" for letter in KEY[:4]),
}
"""Pieces that no text may hold: a cut key is a key told in part."""


def traces_in(text: str) -> set[str]:
    """The pieces of the key that a text holds."""
    return {trace for trace in _TRACES if trace in text}


def _texts_of(path: Path) -> list[str]:
    """A file's bytes as text; of a table also its cells, which may be packed."""
    data = path.read_bytes()
    texts = [data.decode("utf-8", "replace")]
    if data.startswith(b"SQLite format 3"):
        with sqlite3.connect(path) as db:
            texts += db.iterdump()
    if data.startswith(b"PAR1"):
        texts.append(str(pq.read_table(path).to_pylist()))
    return texts


def told_under(folder: Path) -> str:
    """Everything that stands in the files of a folder, to be searched."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return "\n".join(f"{path}\n{text}" for path in files for text in _texts_of(path))
