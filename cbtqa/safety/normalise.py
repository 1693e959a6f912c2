"""One spelling of a text for matching, and the way back to offsets of the original.

Two steps. *Folding* replaces characters one for one (full-width, styled Latin, Kangxi radicals,
traditional forms), so offsets stay. *Squeezing* deletes what people put inside words to get past
filters: spaces, symbols, emoji, zero-width characters. Offsets are worked out only for hits.

    squeeze(fold("我 想 自*殺"), "zh") == "我想自杀"
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache
from typing import Literal

from cbtqa.files import shipped_yaml

Language = Literal["zh", "en"]
_COMPATIBILITY_RANGES = (
    (0x2460, 0x24FF),  # circled letters and digits
    (0x2E80, 0x2FDF),  # radicals that look like characters
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0xFF01, 0xFF5E),  # full-width Latin, digits and punctuation
    (0x1D400, 0x1D7FF),  # styled mathematical letters
    (0x1F130, 0x1F189),  # squared letters
)
_SYMBOLS = (
    r"\x00-\x08\x0b-\x1f*_~`^|\\#@+=<>(){}\[\]【】〔〕〖〗–·•●○◎★☆■□▪◆◇※→←↑↓♥♡✝†‡¥$%&"
    r"\xad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202f\u205f-\u2064\u2066-\u206f"
    r"\u2190-\u2bff\u3013\u3164\u30fb\ufe00-\ufe0f\ufeff\uffa0\ufffc\ufffd"
    r"\U0001f000-\U0001faff\U000e0000-\U000e01ef"
)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_HAN_PAIR = "[\u4e00-\u9fff]{2}"
_READINGS = {
    # a pure character class: the fast path that nearly every text takes
    "zh": rf"[ {_SYMBOLS}.\-—/…]+",
    # spaces between longer pieces stay: people type them in place of commas
    "zh_pauses": rf"[{_SYMBOLS}.\-—/…]+|(?<!{_HAN_PAIR}) +| (?= )| (?!{_HAN_PAIR})",
    # English words need their spaces: only marks inside a word and double spaces go
    "en": rf"[{_SYMBOLS}]+|(?<=[a-z])[.\-/](?=[a-z])|(?<=\s)\s+"
    r"|(?<=[^a-z][b-hj-z]) (?=[a-z](?![a-z]))|(?<=[^a-z][a-z]) (?=[b-hj-z](?![a-z]))",
}
_NOISE = {name: re.compile(pattern) for name, pattern in _READINGS.items()}
_NOISE_AND_ENTITIES = {
    name: re.compile(rf"&(?:nbsp|amp|ensp|emsp|zwnj|zwj);|{pattern}")
    for name, pattern in _READINGS.items()
}


def language_of(text: str) -> Language:
    """The language of a text: Chinese with any Chinese character."""
    return "zh" if _CHINESE.search(text) else "en"


@cache
def traditional_to_simplified() -> Mapping[str, str]:
    """Traditional characters that the rules can meet, and pictures, each with its plain form."""
    entry = shipped_yaml(__package__, "rules/traditional.yaml")
    return {pair[0]: pair[1] for name in ("pairs", "pictures") for pair in entry[name].split()}


@cache
def _fold_table() -> Mapping[str, str]:
    table = {chr(code): chr(code + 32) for code in range(ord("A"), ord("Z") + 1)}
    for first, last in _COMPATIBILITY_RANGES:
        for code in range(first, last + 1):
            plain = unicodedata.normalize("NFKC", chr(code)).lower()
            if len(plain) == 1 and plain != chr(code):
                table[chr(code)] = plain
    table.update(traditional_to_simplified())
    table.update(zip("‘’「」『』〈〉\r", "''“”“”《》\n", strict=True))
    table.update(dict.fromkeys("\t\u00a0\u2002\u2003\u3000", " "))
    # a form that is itself folded (a radical of a traditional character) goes all the way
    return {char: table.get(plain, plain) for char, plain in table.items()}


def fold(text: str) -> str:
    """The text with every character in its plain form; same length, same offsets.

    One `replace` for each foldable character that occurs: a text holds few different ones, and
    `str.translate` looks every single character up (half as fast on plain Chinese).
    """
    table = _fold_table()
    for char in table.keys() & text:
        text = text.replace(char, table[char])
    return text


def squeeze(folded: str, language: Language, *, keep_pauses: bool = False) -> str:
    """The folded text without the marks that people put inside words.

    With `keep_pauses`, spaces between longer Chinese parts, typed like commas, become commas.
    """
    squeezed = _noise(folded, language, keep_pauses).sub("", folded)
    return squeezed.replace(" ", ",") if keep_pauses and language == "zh" else squeezed


def _noise(folded: str, language: Language, keep_pauses: bool) -> re.Pattern[str]:
    has_pauses = keep_pauses and language == "zh" and " " in folded
    reading = "zh_pauses" if has_pauses else language
    return (_NOISE_AND_ENTITIES if "&" in folded else _NOISE)[reading]


class Offsets:
    """Maps positions of the squeezed text back to the folded (and so the original) text."""

    def __init__(self, folded: str, language: Language, *, keep_pauses: bool = False) -> None:
        self._starts = [0]
        self._shifts = [0]
        shift = 0
        for match in _noise(folded, language, keep_pauses).finditer(folded):
            shift += match.end() - match.start()
            self._starts.append(match.end() - shift)
            self._shifts.append(shift)

    def original(self, position: int) -> int:
        """Offset in the original of the character at `position` of the squeezed text."""
        return position + self._shifts[bisect_right(self._starts, position) - 1]
