"""Finds and masks what identifies a person: numbers, accounts, addresses, names, schools, firms.

    scrub("我叫王小明，微信 wxm_2001").text      # "我叫〔姓名〕，微信 〔微信号〕"

Numbers are recognised by form, checksum or cue, never by length alone: years, scores, prices and
help lines are no personal data. Digits may be Chinese (一三八零零...), circled, keycaps, or set
apart. Names, schools and firms are found after a cue only. What each kind misses stands in
`personal_data.yaml`, with the patterns.
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

_HOLE = re.compile(r"(?<!P)<([A-Za-z_]+)>")
_NUMERALS = str.maketrans("零〇一二三四五六七八九幺壹贰叁肆伍陆柒捌玖两", "0012345678911234567892")
View = Literal["folded", "digits", "as_written"]


@dataclass(frozen=True, slots=True)
class PersonalData:
    """One found place."""

    kind: str
    """An id of `personal_data.yaml`: `phone`, `wechat`, `name` ..."""
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
    misses: str
    """What it does not find, for people; empty in the further entries of a kind."""
    view: View = "folded"
    needs: NonEmptyText | None = None
    """A cheap pattern; where it is not found, no other is tried."""
    patterns: tuple[NonEmptyText, ...]
    check: (
        Literal["bank_card", "not_a_hotline", "named", "name", "full_name", "english_name"] | None
    ) = None
    """A test that what matched must pass."""


@dataclass(frozen=True, slots=True)
class _Kind:
    id: str
    mask: str
    view: View
    needs: re.Pattern[str] | None
    patterns: tuple[re.Pattern[str], ...]
    is_real: Callable[[re.Match[str]], bool]


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


def what_is_missed() -> Mapping[str, str]:
    """Kind to what of it is not found, for people, in the order of the file."""
    return {kind.id: kind.misses for kind in _entries() if kind.misses}


def _places(text: str) -> list[tuple[int, int, _Kind]]:
    folded = fold(text)
    if "沈" in text:  # the surname, which is folded to 沉 elsewhere
        folded = "".join(
            "沈" if given == "沈" else char for given, char in zip(text, folded, strict=True)
        )
    views: dict[View, str] = {
        "folded": folded,
        "digits": folded.translate(_NUMERALS),
        "as_written": text,
    }
    places: list[tuple[int, int, _Kind]] = []
    for kind in _kinds():
        view = views[kind.view]
        if kind.needs is not None and not kind.needs.search(view):
            continue
        for pattern in kind.patterns:
            for match in pattern.finditer(view):
                start, end = match.span("it")
                if any(start < taken_end and taken < end for taken, taken_end, _ in places):
                    continue
                if kind.is_real(match):
                    places.append((start, end, kind))
    return sorted(places, key=lambda place: place[0])


@cache
def _entries() -> tuple[KindEntry, ...]:
    kinds = shipped_yaml(__package__, "personal_data.yaml")["kinds"]
    return tuple(map(KindEntry.model_validate, kinds))


@cache
def _kinds() -> tuple[_Kind, ...]:
    fragments = shipped_yaml(__package__, "personal_data.yaml")["fragments"]

    def compiled(pattern: str) -> re.Pattern[str]:
        while _HOLE.search(pattern):  # a fragment may hold others
            pattern = _HOLE.sub(lambda hole: fragments[hole[1]], pattern)
        return re.compile(pattern)

    return tuple(
        _Kind(
            kind.id,
            kind.mask,
            kind.view,
            compiled(kind.needs) if kind.needs else None,
            tuple(map(compiled, kind.patterns)),
            _CHECKS[kind.check],
        )
        for kind in _entries()
    )


@cache
def _common() -> Mapping[str, re.Pattern[str]]:
    """What looks like a name or belongs to every school: the regexes of the word file."""
    entry = shipped_yaml(__package__, "personal_data_words.yaml")
    return {name: re.compile(pattern) for name, pattern in entry["patterns"].items()}


@cache
def _two_characters() -> Mapping[str, frozenset[str]]:
    """The lists of common words of two characters: `verbs`, `nouns`, `run_over`, `adverbs`."""
    entry = shipped_yaml(__package__, "personal_data_words.yaml")
    return {
        name: frozenset(entry[name].split()) for name in ("verbs", "nouns", "run_over", "adverbs")
    }


def _is_bank_card(match: re.Match[str]) -> bool:
    """By its cue, the prefix of UnionPay, or Luhn's check."""
    digits = [int(char) for char in reversed(match["it"]) if char.isdigit()]
    if match.start() < match.start("it"):
        return True
    if len(digits) not in range(16, 20):
        return False
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return match["it"].startswith("62") or (sum(digits[0::2]) + sum(doubled)) % 10 == 0


def _is_no_hotline(match: re.Match[str]) -> bool:
    digits = "".join(char for char in match["it"].split("转")[0] if char.isdigit())
    return all(digits not in lines.numbers for lines in load_hotlines().locales.values())


def _is_named(match: re.Match[str]) -> bool:
    """More than what any school or firm may be called: 师范大学 and 科技公司 are no names."""
    return not _common()["generic"].fullmatch(match["it"]) and not _is_wished(match)


def _is_wished(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 4) : match.start("it")]
    return bool(_common()["wished"].search(before))


def _is_name(match: re.Match[str]) -> bool:
    return not _common()["no_name"].match(match["it"])


def _is_full_name(match: re.Match[str]) -> bool:
    """A name that no common word runs through: 高兴, 常年, and 周平 in 周平时."""
    text, (start, end) = match.string, match.span("it")
    words, pairs = _common()["words"], _two_characters()
    first, last = text[start : start + 2], text[end - 1 : end + 1]
    if not _is_name(match) or words.match(text, start) or first in pairs["verbs"]:
        return False
    if text[start + 1 : end] in pairs["adverbs"]:
        return False
    if end - start == 2 and (first in pairs["nouns"] or last in pairs["run_over"]):
        return False
    # a word that begins inside the name and runs over its end
    return not any(
        (found := words.match(text, at)) and found.end() > end for at in range(start + 1, end)
    )


def _is_english_name(match: re.Match[str]) -> bool:
    return not any(_common()["no_english_name"].fullmatch(word) for word in match["it"].split())


_CHECKS: Mapping[str | None, Callable[[re.Match[str]], bool]] = {
    None: lambda _: True,
    "bank_card": _is_bank_card,
    "not_a_hotline": _is_no_hotline,
    "named": _is_named,
    "name": _is_name,
    "full_name": _is_full_name,
    "english_name": _is_english_name,
}
