"""What text from outside is freed of before it becomes a record.

Removed: control characters but tab and newline, zero-width and direction marks, the soft hyphen,
byte-order marks. Kept: the zero-width joiner and variation selectors, which hold emoji together.
Half a surrogate pair, which no file can hold, becomes U+FFFD. Line ends become `\\n`, no-break
blanks plain ones, blanks at both ends go. Wording, spelling and punctuation stay untouched.
"""

from __future__ import annotations

import re

_REPLACED = {"\u00a0": " ", "\r": ""}
_pattern = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00a0\u00ad\u200b\u200c\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]"
)


def clean(text: str) -> tuple[str, int]:
    """The cleaned text, and how many characters were odd (line ends and blanks don't count)."""
    if _pattern.search(text) is None:
        return text.strip(), 0
    n_odd = sum(mark not in _REPLACED for mark in _pattern.findall(text))
    return _scrub(text).strip(), n_odd


def move_offset(text: str, offset: int) -> int:
    """Where an offset into a raw text lies in its cleaned form."""
    scrubbed = _scrub(text)
    n_leading = len(scrubbed) - len(scrubbed.lstrip())
    moved = len(_scrub(text[:offset])) - n_leading
    return min(max(moved, 0), len(scrubbed.strip()))


def _scrub(text: str) -> str:
    """Character by character, so that a prefix of the text gives a prefix of the result."""
    return _pattern.sub(_replacement, text)


def _replacement(match: re.Match[str]) -> str:
    mark = match[0]
    return "\ufffd" if "\ud800" <= mark <= "\udfff" else _REPLACED.get(mark, "")
