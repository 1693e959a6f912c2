"""What programs have done to a text before it came here: wrong decodings, spreadsheets, HTML.

Control and invisible characters are removed.
A text that was decoded wrongly cannot be Chinese any more, and a model would answer it all the
same: such a row is rejected, with the decoding that repairs the file. An id whose digits a
spreadsheet has thrown away names no question. HTML entities can be read and are only counted.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_CP1252 = {bytes([byte]).decode("cp1252", "ignore") or chr(byte): byte for byte in range(128, 256)}
"""What a byte becomes where text is read as Windows-1252; undefined bytes become control
characters, as browsers do."""
_BYTE_OF = {chr(byte): byte for byte in range(128, 256)} | _CP1252
_LATIN_RUN = re.compile("[" + "".join(map(re.escape, _BYTE_OF)) + "]{2,}")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_CHINESE = re.compile("[\u2010-\u2027\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uff00-\uffef]")
BROWSERS_1252 = "windows-1252"
MIN_HAN = 2
"""Chinese characters that a repair must bring out, assumed: one may be chance."""
_EXPONENT = re.compile(r"[+-]?\d(?:[.,]\d+)?[eE]\+?\d+")
_SPREADSHEET_ERROR = re.compile(r"#(?:NAME\?|REF!|VALUE!|N/A|NUM!|DIV/0!|NULL!)|#{4,}")
_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});")
DIGITS_OF_A_SPREADSHEET = 15
"""A spreadsheet keeps so many digits of a number and writes zeros for the others."""
EXACT_FLOATS = 1 << 53
"""Whole numbers above this are rounded in a float, which is what pandas and JavaScript hold."""


class WrongDecoding(NamedTuple):
    """How a text was read wrongly."""

    written_as: str
    """The encoding that the bytes are in."""
    read_as: str
    """The encoding they were read as; empty when nothing brings the text back."""

    def __str__(self) -> str:
        if not self.read_as:
            return f"cannot be Chinese: {self.written_as}; fetch the file again"
        repair = f"TEXT.encode('{self.read_as}').decode('{self.written_as}') in Python repairs it"
        if self.read_as == BROWSERS_1252:
            repair = "the library ftfy repairs it"
        return f"cannot be Chinese: {self.written_as} that was read as {self.read_as}; {repair}"


def find_wrong_decoding(text: str) -> WrongDecoding | None:
    """How a text was decoded wrongly; None for a text that nothing speaks against."""
    if text.isascii():
        n_asked = text.count("?")
        if n_asked >= 4 and n_asked * 2 >= len("".join(text.split())):
            return WrongDecoding("its characters were replaced by '?'", "")
        return None
    return _read_as_latin(text) or _read_as_gbk(text)


def _read_as_latin(text: str) -> WrongDecoding | None:
    if _HAN.search(text):
        return None
    found_runs = _LATIN_RUN.findall(text)
    runs = "".join(found_runs)
    if len(runs) * 2 < sum(not letter.isascii() for letter in text):
        return None
    for encoding in ("utf-8", "gb18030"):
        found = "".join(
            bytes(_BYTE_OF[letter] for letter in run).decode(encoding, "replace")
            for run in found_runs
        )
        # of GBK any two letters make a character: only those of everyday use count
        n_good = len(_CHINESE.findall(found)) if encoding == "utf-8" else _n_everyday(found)
        is_whole = "\ufffd" not in found and n_good * 10 >= len(found) * 9
        if len(set(_HAN.findall(found))) >= MIN_HAN and is_whole:
            return WrongDecoding(encoding, _reader_of(runs))
    if _has_leads(runs):
        return WrongDecoding("utf-8 read as latin-1 that lost bytes on the way", "")
    return None


def _reader_of(letters: str) -> str:
    """Which of the alike encodings Python must write the letters in to get the bytes back."""
    if all(ord(letter) < 256 for letter in letters):
        return "latin-1"
    has_undefined = any("\x80" <= letter <= "\x9f" for letter in letters)
    return BROWSERS_1252 if has_undefined else "cp1252"


def _has_leads(runs: str) -> bool:
    """True when the letters are spread as the first bytes of Chinese in UTF-8 are."""
    n_leads = sum("\u00e3" <= letter <= "\u00ef" for letter in runs)
    return n_leads >= MIN_HAN and n_leads * 5 >= len(runs)


def _n_everyday(text: str) -> int:
    """Characters of level 1 of GB 2312, which are sorted by use, and Chinese punctuation."""
    n = 0
    for letter in text:
        coded = letter.encode("gb2312", "ignore")
        n += len(coded) == 2 and (0xB0 <= coded[0] <= 0xD7 or coded[0] in (0xA1, 0xA3))
    return n


def _read_as_gbk(text: str) -> WrongDecoding | None:
    """UTF-8 that was read as GBK: characters that no one writes, which make good Chinese."""
    given = text.replace("\ufffd", "?")
    bytes_before = given.encode("gb18030", "replace")
    found = bytes_before.decode("utf-8", "replace")
    if found.count("\ufffd") * 2 > len(found):  # as for nearly every text: the costly part is saved
        return None
    n_strange = sum(not letter.isascii() for letter in found)
    n_good, n_han = len(_CHINESE.findall(found)), len(_HAN.findall(found))
    # of 68,000 pieces of real text none reaches either
    is_sure = n_good * 10 >= n_strange * 9 and n_han >= MIN_HAN
    is_likely = n_good * 2 >= n_strange and n_han >= 2 * MIN_HAN
    if not (is_sure or is_likely):
        return None
    is_whole = "\ufffd" not in found and "\ufffd" not in text
    if is_whole:
        return WrongDecoding("utf-8", "gb18030")
    return WrongDecoding("utf-8 read as gbk that lost bytes on the way", "")


def find_bad_id(value: object) -> str | None:
    """Why a spreadsheet or a float has left no id here; None for an id that can be used."""
    if isinstance(value, float) and value.is_integer() and abs(value) >= EXACT_FLOATS:
        return f"the id {value!r} is a figure whose last digits are lost; export ids as text"
    if isinstance(value, str) and _EXPONENT.fullmatch(value.strip()):
        return (
            f"the id {value.strip()[:40]} is a long number as a spreadsheet shows it: its digits "
            "are lost; export the column as text"
        )
    if isinstance(value, str) and is_spreadsheet_error(value):
        return f"the id {value.strip()[:40]} is an error of a spreadsheet"
    return None


def is_spreadsheet_error(text: str) -> bool:
    """True for a cell that holds a spreadsheet's own error, such as `#NAME?`."""
    return _SPREADSHEET_ERROR.fullmatch(text.strip()) is not None


def is_long_number(item_id: str) -> bool:
    """True for an id of more digits than a spreadsheet keeps."""
    return item_id.isascii() and item_id.isdigit() and len(item_id) > DIGITS_OF_A_SPREADSHEET


def is_rounded(item_id: str) -> bool:
    """True for a long number that is zeros where a spreadsheet writes zeros."""
    return is_long_number(item_id) and not item_id[DIGITS_OF_A_SPREADSHEET:].strip("0")


def has_replacement(text: str) -> bool:
    """True when a text holds U+FFFD, as it is or read as GBK."""
    return "\ufffd" in text or "锟斤拷" in text


def has_entities(text: str) -> bool:
    """True when a text holds HTML entities, such as `&nbsp;`."""
    return _ENTITY.search(text) is not None


def is_hardly_chinese(text: str) -> bool:
    """True when fewer than a fifth of the characters are Chinese."""
    plain = "".join(text.split())
    return len(_HAN.findall(plain)) * 5 < len(plain)


# --- cleaning ------------------------------------------------------------------------------------
# Removed: control characters but tab and newline, zero-width and direction marks, the soft hyphen,
# byte-order marks, blanks at both ends. Kept: the zero-width joiner and variation selectors, which
# hold emoji together. Half a surrogate pair, which no file can hold, becomes U+FFFD; line ends
# become `\n`, no-break blanks plain ones.

_REPLACED = {"\u00a0": " ", "\r": ""}
_half_pairs = re.compile("[\ud800-\udfff]")
_odd_marks = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00a0\u00ad\u200b\u200c\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]"
)


def clean(text: str) -> tuple[str, int]:
    """The cleaned text, and how many characters were odd (line ends and blanks don't count)."""
    if _odd_marks.search(text) is None:
        return text.strip(), 0
    n_odd = sum(mark not in _REPLACED for mark in _odd_marks.findall(text))
    return _scrub(text).strip(), n_odd


def move_offset(text: str, offset: int) -> int:
    """Where an offset into a raw text lies in its cleaned form."""
    scrubbed = _scrub(text)
    n_leading = len(scrubbed) - len(scrubbed.lstrip())
    moved = len(_scrub(text[:offset])) - n_leading
    return min(max(moved, 0), len(scrubbed.strip()))


def _scrub(text: str) -> str:
    """Character by character, so that a prefix of the text gives a prefix of the result."""
    whole = _half_pairs.sub("\ufffd", text)
    return _odd_marks.sub(lambda odd: _REPLACED.get(odd[0], ""), whole)
