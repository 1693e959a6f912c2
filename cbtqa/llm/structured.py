"""Reply text -> JSON object, or the fault. What may be repaired and what may not.

    parse_object('好的：{"a": "甲"}')       # {'a': '甲'}
    parse_object('{"a": "甲", "b": "乙')    # Fault(NOT_JSON, 'the object does not end')

Strict JSON first. A damaged object is repaired with json_repair, and the repair accepted only when
it fits what was asked for and accounts for the reply character by character: every string of the
result stands verbatim in the reply, in order, with nothing but JSON's own marks between them, and
brackets and quotes are as many as the result needs. So a repaired cut, a quote that vanished from
a text, and a text that was dropped are never taken for success.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from cbtqa.llm.chat import Fault
from cbtqa.records import Reason

QUOTES = "\"'“”‘’"
_BETWEEN = frozenset(QUOTES + "{}[],: \t\r\n")
Fits = Callable[[dict[str, Any]], bool]


def parse_object(text: str, fits: Fits | None = None) -> dict[str, Any] | Fault:
    """The one JSON object of a reply, without the fences and politeness round it.

    A whole, undamaged object is returned even when it does not fit: what is wrong inside it is for
    the caller to name.

    Args:
        fits: tells whether an object is of the kind asked for; decides between several objects
            and over repairs. Anything but an empty object fits when left out.
    """
    fits = fits or bool
    text = _unwrapped(text)
    start = text.find("{")
    if start < 0:
        return Fault(Reason.NOT_JSON, "the reply holds no JSON object")
    first = _decode(text, start)
    if first is None:
        return _later(text, start, fits) or _repaired(text, start, fits)
    found, end = first
    if isinstance(found, Fault):
        return found
    if not fits(found):
        found = _later(text, start, fits) or found
    for other in _objects(text, end):
        if other != found and (fits(other) or not fits(found)):
            return Fault(Reason.NOT_JSON, "the reply holds several different objects")
    return found


def _unwrapped(text: str) -> str:
    """The inner text of an object that was encoded twice; any other text as it is."""
    stripped = text.strip()
    if stripped.startswith('"') and stripped.endswith('"'):
        with suppress(ValueError):
            inner = json.loads(stripped)
            if isinstance(inner, str):
                return inner
    return text


class _TwiceError(ValueError):
    """One key stands twice in an object, with different values."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if made.setdefault(key, value) != value:
            raise _TwiceError(f"the key '{key}' stands twice with different values")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# strict=False takes a raw line break inside a string as what it is
_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_unique, parse_constant=_no_constant)


def _decode(text: str, start: int) -> tuple[dict[str, Any] | Fault, int] | None:
    """The object that begins here and where it ends, or None when it is damaged."""
    try:
        found, end = _DECODER.raw_decode(text, start)
    except _TwiceError as error:
        return Fault(Reason.NOT_JSON, str(error)), start
    except (ValueError, RecursionError):
        return None
    return found, end


def _objects(text: str, start: int) -> Iterator[dict[str, Any]]:
    """Whole objects from here on, none of them inside another."""
    while (start := text.find("{", start)) >= 0:
        decoded = _decode(text, start)
        if decoded is None or isinstance(decoded[0], Fault):
            start += 1
        else:
            yield decoded[0]
            start = decoded[1]


def _later(text: str, start: int, fits: Fits) -> dict[str, Any] | None:
    """A whole object behind braces that are none, when it is plainly the one asked for.

    Only with a real `fits`: an object that stands inside a damaged one must not pass for it.
    """
    if fits is bool:
        return None
    return next((found for found in _objects(text, start + 1) if fits(found)), None)


def _repaired(text: str, start: int, fits: Fits) -> dict[str, Any] | Fault:
    from json_repair import loads

    end = text.rfind("}")
    if end < start:
        return Fault(Reason.NOT_JSON, "the object does not end")
    damaged = text[start : end + 1]
    try:
        found = loads(damaged, skip_json_loads=True)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found or not fits(found):
        return Fault(Reason.NOT_JSON, "the object is damaged")
    if not _accounts_for(found, damaged):
        return Fault(Reason.NOT_JSON, "the object is cut or damaged; a repair would change it")
    return found


def _accounts_for(found: dict[str, Any], damaged: str) -> bool:
    """True when the damaged text is the object's own strings and JSON's marks, and all of it."""
    place, n_strings, gaps = 0, 0, []
    for leaf in _leaves(found):
        forms = [leaf, json.dumps(leaf, ensure_ascii=False)[1:-1]] if isinstance(leaf, str) else []
        forms = forms or [json.dumps(leaf)]
        n_strings += isinstance(leaf, str)
        hits = [(damaged.find(form, place), form) for form in forms]
        hits = [hit for hit in hits if hit[0] >= 0]
        if not hits:
            return False
        at, form = min(hits)
        gaps.append(damaged[place:at])
        place = at + len(form)
    gaps.append(damaged[place:])
    between = "".join(gaps)
    if not _BETWEEN.issuperset(between):
        return False
    n_dicts, n_lists = _count(found, dict), _count(found, list)
    return (
        sum(map(between.count, QUOTES)) == 2 * n_strings
        and between.count("{") == between.count("}") == n_dicts
        and between.count("[") == between.count("]") == n_lists
    )


def _leaves(value: Any) -> Iterator[Any]:
    """Keys and values in the order in which they are written."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _count(value: Any, kind: type) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, kind) + sum(_count(one, kind) for one in inner)
