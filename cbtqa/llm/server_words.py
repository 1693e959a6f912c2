"""What a server says: made safe to be shown, and what a provider means by its codes and words.

    said = Said.of('{"error": {"code": "1113", "message": "余额不足"}}')
    meaning_of(429, said, "open.bigmodel.cn")   # "money": read before the number of the status

The table is `provider_codes.yaml`, one line a code with its public source. What is compared are the
fields in which errors speak, never the whole body: a server that repeats the question, which may
speak of money or of anything else, must not be misread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from cbtqa.files import shipped_yaml
from cbtqa.records import Record
from cbtqa.secrets import masked

SHOWN = 300
"""Characters of a server's message that an error quotes."""
MOST_READ = 200_000
"""Characters of it that are looked at."""
Meaning = Literal["filter", "money", "wait", "key"]
FORMAT_WORDS = (
    *("response_format", "response format", "json_schema", "json_object", "json mode"),
    *("guided_", "guided decoding", "grammar", "structured output", "structured_output"),
    *("structural_tag", "响应格式", "结构化输出"),
)
"""Words by which a server says that it does not know the response format asked for."""
_CODES = ("code", "error_code", "status_code", "type", "error_type", "limit_source", "status")
_WORDS = (
    *("message", "msg", "error_msg", "errmsg", "status_msg", "error_message", "detail", "error"),
    *("reason", "reasons", "raw", "title", "description", "param"),
)
"""Fields in which errors speak, as the providers of the table name them."""
MOST_DEPTH, MOST_LETTERS = 8, 2_000


class _Line(Record):
    """One line of the table."""

    means: Meaning
    code: str = ""
    words: str = ""
    at: str = ""
    host: str = ""
    status: int = 0
    source: str

    def fits(self, said: Said, status: int, host: str) -> bool:
        """True when an error is the one of this line."""
        if self.status and self.status != status:
            return False
        if self.host and not f".{host}".endswith(f".{self.host}"):
            return False
        if self.code:
            return said.has_code(self.code.lower(), self.at)
        return self.words.lower() in said.words


@dataclass(frozen=True)
class Said:
    """What the body of an error says: its codes by field, and its words."""

    codes: tuple[tuple[str, str], ...]
    words: str
    """In small letters, codes included."""

    @classmethod
    def of(cls, body: str) -> Said:
        """Reads a body, be it JSON or not."""
        try:
            found = list(_speaking("", json.loads(body if len(body) <= MOST_READ else "")))
        except (ValueError, RecursionError):
            found = [("message", body[:MOST_LETTERS].lower())]
        codes = tuple((name, text) for name, text in found if name in _CODES)
        return cls(codes, "\n".join(text for _, text in found))

    def has_code(self, code: str, at: str) -> bool:
        """True when a code is given, in a field of its own or quoted in the message."""
        for name, value in self.codes:
            is_code = value == code or value.endswith(f".{code}")
            if is_code and (name == at or not (at or name == "status_code")):
                return True
        if not code.isdigit():
            return code in self.words
        name = re.escape(at or "code")
        return re.search(rf"(?<![a-z_]){name}\W{{1,6}}{code}\b", self.words) is not None

    @property
    def names_format(self) -> bool:
        """True when it speaks of the response format."""
        return any(word in self.words for word in FORMAT_WORDS)


def _speaking(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    """`(field, text)` of all fields in which an error speaks; a list speaks for its field."""
    if isinstance(value, dict) and depth < MOST_DEPTH:
        for key, inner in value.items():
            yield from _speaking(str(key).lower(), inner, depth + 1)
    elif isinstance(value, list) and depth < MOST_DEPTH:
        for inner in value[:20]:
            yield from _speaking(name, inner, depth + 1)
    elif isinstance(value, str | int) and (name in _CODES or name in _WORDS or not name):
        yield name, str(value)[:MOST_LETTERS].lower()


@cache
def _table() -> tuple[_Line, ...]:
    lines: list[Any] = shipped_yaml("cbtqa.llm", "provider_codes.yaml")
    return tuple(map(_Line.model_validate, lines))


def meaning_of(status: int, said: Said, host: str) -> Meaning | None:
    """What an error means by the table; None leaves it to the number of the status."""
    return next((line.means for line in _table() if line.fits(said, status, host)), None)


def clean(value: object) -> str:
    """A text of a server without known keys, and with lone surrogates made visible.

    JSON escapes can smuggle these in; no file can be written with them.
    """
    if not isinstance(value, str):
        return ""
    text = masked(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def described(error: BaseException) -> str:
    """A foreign exception by its type and its message; never its repr, which may hold headers."""
    # aiohttp's str adds the address, and its repr the request with all its headers
    message = getattr(error, "message", None)
    said = shown(message if isinstance(message, str) else str(error))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def shown(text: bytes | str) -> str:
    """The beginning of what a server said, on one line, without keys."""
    if isinstance(text, bytes):
        text = text[:MOST_READ].decode("utf-8", "replace")
    # masked before it is cut short: a piece of a key would not be found
    text = clean(" ".join(text[:MOST_READ].split())[: 8 * SHOWN])
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
