"""The keys that this process knows, and their masking.

    remember(key)                        # every `llm.endpoint.Endpoint` does it with its own
    masked("refused: Bearer sk-...")     # "refused: Bearer [key]"

Replies of a server are masked before anything else (`llm.protocol`), and so is all that goes to
disk and screen (`files`, the journal's rows, `cli`). A key is found as it is, URL-encoded,
JSON-escaped and in base64, as in `Authorization: Basic`.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MASK = "[key]"
FEWEST_LETTERS = 8
"""Shorter keys are not masked: they are placeholders (`none`, `EMPTY`) and ordinary words."""

_AN_ESCAPE = re.compile(r"[%\\](?:[2-7][0-9A-Fa-f]|u00|[^\w\s])")
"""Quick test: most texts hold no escaped ASCII letter."""


@dataclass(frozen=True)
class _Spellings:
    """One key in the forms in which it is looked for."""

    plain: tuple[str, ...]
    escaped: re.Pattern[str]


_known: dict[str, _Spellings] = {}


def remember(key: str | None) -> None:
    """From now on the key is masked in this process; a short one is not."""
    if not key or len(key) < FEWEST_LETTERS or key in _known:
        return
    # any of its letters may be written as `%2D` or `\\u002d`, or behind a backslash
    escaped = re.compile("".join(map(_letter, key)))
    _known[key] = _Spellings((key, *_base64_of(key)), escaped)
    # a key that begins with another one is masked whole
    for longer in sorted(_known, key=len, reverse=True):
        _known[longer] = _known.pop(longer)


def masked(text: str) -> str:
    """The text without the keys that are known."""
    for spellings in tuple(_known.values()):
        if _AN_ESCAPE.search(text):
            # first, or the backslash before a masked key would stay
            text = spellings.escaped.sub(MASK, text)
        for plain in spellings.plain:
            text = text.replace(plain, MASK)
    return text


_PIECE = 6
"""Letters of a key in a row that betray it, where a server may show a part."""
_SHORTENED = re.compile(r"\S*(?:\*{2,}|[•…]+)\S*|\bsk-\S+", re.IGNORECASE)
"""A word that was made unreadable in part, as servers show a refused key, or looks like a key."""


def masked_pieces(text: str) -> str:
    """As `masked`, for words about a refused key: pieces of it are masked too."""
    text = _SHORTENED.sub(MASK, masked(text))
    for key in tuple(_known):
        pieces = {key[at : at + _PIECE] for at in range(len(key) - _PIECE + 1)}
        found = "|".join(map(re.escape, sorted(pieces)))
        text = re.sub(rf"[\w+/=.-]*(?:{found})[\w+/=.-]*", MASK, text)
    return text


def masked_value(value: Any) -> Any:
    """The same of every text in a value as JSON has them: in lists, in objects and in their names.

    Numbers stay numbers, whatever digits a key is made of.
    """
    if not _known:
        return value
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {masked_value(name): masked_value(one) for name, one in value.items()}
    if isinstance(value, list):
        return [masked_value(one) for one in value]
    if type(value) is tuple:
        return tuple(masked_value(one) for one in value)
    return value


def _letter(letter: str) -> str:
    code = ord(letter)
    forms = [r"\\+u" + _hex(code, 4)] if code < 0x10000 else []
    # \/ and \" in JSON
    forms += [] if letter.isalnum() else [r"\\+" + re.escape(letter)]
    forms.append("".join("%" + _hex(byte, 2) for byte in letter.encode()))
    forms.append(re.escape(letter))
    return f"(?:{'|'.join(forms)})"


def _hex(number: int, width: int) -> str:
    """A number in hex as a pattern that takes either letter case."""
    digits = f"{number:0{width}x}"
    return "".join(f"[{one}{one.upper()}]" if one.isalpha() else one for one in digits)


def _base64_of(key: str) -> tuple[str, ...]:
    """The key in base64 at each of its three possible offsets, without the letters at both ends
    that depend on the text around it."""
    found: dict[str, None] = {}
    data = key.encode()
    for before in range(3):
        whole = b64encode(b"\0" * before + data).decode()
        inner = whole[(0, 2, 3)[before] : (before + len(data)) * 8 // 6]
        found[inner] = None
        found[inner.replace("+", "-").replace("/", "_")] = None
    return tuple(found)
