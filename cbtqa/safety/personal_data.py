"""Finds and masks what identifies a person: numbers, accounts, addresses, names after cues.

    scrub("我叫王小明，微信 wxm_2001").text      # "我叫〔姓名〕，微信 〔微信号〕"

Numbers are recognised by form and checksum, never by length alone: years, scores, prices and
help lines are no personal data. Names without a cue are not found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from cbtqa.files import shipped_yaml
from cbtqa.records import NonEmptyText, Record
from cbtqa.safety.normalise import fold
from cbtqa.safety.notices import load_hotlines

_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643-1999
_ID_CHECK = "10x98765432"
_HOLE = re.compile(r"(?<!P)<([a-z]+)>")


@dataclass(frozen=True, slots=True)
class PersonalData:
    """One found place."""

    kind: str
    """`phone`, `landline`, `id_card`, `bank_card`, `email`, `url`, `qq`, `wechat`, `address`,
    `name`."""
    start: int
    end: int
    """Span in code points of the text as given."""
    text: str


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A text with every found place replaced by its mask."""

    text: str
    found: tuple[PersonalData, ...]
    """In order of appearance, with spans in the text as given."""


class KindEntry(Record):
    """One kind as the file gives it."""

    id: NonEmptyText
    mask: NonEmptyText
    pattern: NonEmptyText
    check: Literal["id_card", "luhn", "not_a_hotline"] | None = None
    """A test that the matched digits must pass."""


@dataclass(frozen=True, slots=True)
class _Kind:
    id: str
    mask: str
    pattern: re.Pattern[str]
    is_real: Callable[[str], bool]


def find_personal_data(text: str) -> tuple[PersonalData, ...]:
    """Every place that identifies a person, in order, without overlaps."""
    return scrub(text).found


def scrub(text: str) -> Scrubbed:
    """The text with personal data masked, and what was found."""
    places, masked = _places(text), text
    for start, end, kind in reversed(places):
        masked = masked[:start] + kind.mask + masked[end:]
    found = tuple(PersonalData(kind.id, a, b, text[a:b]) for a, b, kind in places)
    return Scrubbed(masked, found)


def _places(text: str) -> list[tuple[int, int, _Kind]]:
    folded = fold(text)
    places: list[tuple[int, int, _Kind]] = []
    for kind in _kinds():
        for match in kind.pattern.finditer(folded):
            start, end = match.span("it")
            if any(start < taken_end and taken < end for taken, taken_end, _ in places):
                continue
            if kind.is_real(match["it"]):
                places.append((start, end, kind))
    return sorted(places, key=lambda place: place[0])


@cache
def _kinds() -> tuple[_Kind, ...]:
    entry = shipped_yaml(__package__, "personal_data.yaml")

    def compiled(pattern: str) -> re.Pattern[str]:
        return re.compile(_HOLE.sub(lambda hole: entry["fragments"][hole[1]], pattern))

    return tuple(
        _Kind(kind.id, kind.mask, compiled(kind.pattern), _CHECKS[kind.check])
        for kind in map(KindEntry.model_validate, entry["kinds"])
    )


def _is_id_card(number: str) -> bool:
    total = sum(int(digit) * weight for digit, weight in zip(number, _ID_WEIGHTS, strict=False))
    return _ID_CHECK[total % 11] == number[17]


def _passes_luhn(number: str) -> bool:
    digits = [int(char) for char in reversed(number) if char.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return len(digits) in range(16, 20) and (sum(digits[0::2]) + sum(doubled)) % 10 == 0


def _is_no_hotline(number: str) -> bool:
    digits = "".join(char for char in number.split("转")[0] if char.isdigit())
    return all(digits not in lines.numbers for lines in load_hotlines().locales.values())


_CHECKS: Mapping[str | None, Callable[[str], bool]] = {
    None: lambda _: True,
    "id_card": _is_id_card,
    "luhn": _passes_luhn,
    "not_a_hotline": _is_no_hotline,
}
