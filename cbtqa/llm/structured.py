"""Reply text -> JSON object, or the fault. What may be repaired and what may not.

Strict JSON first. A repair by json_repair is accepted only when it fits what was asked for and
accounts for the reply character by character: every string of the result is in the reply verbatim,
in order, with nothing but JSON's own marks between them, and brackets and quotes are as many as it
needs. So a cut, a lost quote and a dropped text are never taken for success.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from cbtqa.llm.chat import Fault
from cbtqa.records import Reason

QUOTES = "\"'“”‘’"
_BRACE = re.compile("[{}]")
_KEY = re.compile(r"""["'”’]\s*[:：]""")
"""What only a key is followed by; outside the object it is a sign of a lost part."""
_FORM_VALUE = re.compile(r'"\s*:\s*"([^"\n]+)"')
_LOST = Fault(Reason.NOT_JSON, "a key stands outside the object")
_BETWEEN = frozenset(QUOTES + "{}[],: \t\r\n")
Fits = Callable[[dict[str, Any]], bool]


def parse_object(text: str, fits: Fits | None = None) -> dict[str, Any] | Fault:
    """The one JSON object of a reply, without the fences and politeness round it.

    A whole, undamaged object is returned even when it does not fit: the caller names what is wrong.

    Args:
        fits: whether an object is of the kind asked for; decides between several objects and over
            repairs. By default anything but an empty object fits.
    """
    fits = fits or bool
    text = _unwrapped(text)
    start = text.find("{")
    if start < 0:
        return Fault(Reason.NOT_JSON, "the reply holds no JSON object")
    if _decode(text, start) is None:
        return _later(text, start, fits) or _repaired(text, start, fits)
    found: list[dict[str, Any]] = []
    for one in _top_level(text, start):
        if isinstance(one, Fault):
            return one
        found.append(one)
    fitting = list(filter(fits, found)) or found
    if any(other != fitting[0] for other in fitting):
        return Fault(Reason.NOT_JSON, "the reply holds several different objects")
    return fitting[0]


def strings_of_form(prompt: str) -> frozenset[str]:
    """What stands for the values in the form that a prompt shows, such as `……` or `原话`."""
    return frozenset(text.strip() for text in _FORM_VALUE.findall(prompt))


def find_echo(found: Any, form: frozenset[str]) -> Fault | None:
    """ECHO when a value of an object is still what stands for it in the form."""
    leaves = (leaf.strip() for leaf in _values(found) if isinstance(leaf, str))
    echoed = next((leaf for leaf in leaves if leaf in form), None)
    return None if echoed is None else Fault(Reason.ECHO, f"not filled in: '{echoed}'")


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


def _top_level(text: str, start: int) -> Iterator[dict[str, Any] | Fault]:
    """The whole objects from here on; a stray brace, as in `{"a": "x"}, "b": "y"}`, is a fault."""
    outside = [text[:start]]
    while brace := _BRACE.search(text, start):
        decoded = _decode(text, brace.start()) if brace[0] == "{" else None
        if decoded is None:
            yield Fault(Reason.NOT_JSON, "a brace stands outside the object")
            return
        outside.append(text[start : brace.start()])
        yield decoded[0]
        start = decoded[1]
    if any(map(_KEY.search, [*outside, text[start:]])):
        yield _LOST


def _later(text: str, start: int, fits: Fits) -> dict[str, Any] | None:
    """A whole object behind braces that are none, when it is plainly the one asked for.

    Only with a real `fits`: an object that is inside a damaged one must not pass for it.
    """
    if fits is bool:
        return None
    while (start := text.find("{", start + 1)) >= 0:
        decoded = _decode(text, start)
        if decoded and isinstance(decoded[0], dict) and fits(decoded[0]):
            return decoded[0]
    return None


def _repaired(text: str, start: int, fits: Fits) -> dict[str, Any] | Fault:
    from json_repair import loads

    end = text.rfind("}")
    if end < start:
        return Fault(Reason.NOT_JSON, "the object does not end")
    if _KEY.search(text[:start]) or _KEY.search(text[end:]):
        return _LOST
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
        hits = [(at, form) for form in forms if (at := damaged.find(form, place)) >= 0]
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


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)
    else:
        yield value


def _count(value: Any, kind: type) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, kind) + sum(_count(one, kind) for one in inner)
