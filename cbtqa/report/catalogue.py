"""The Chinese for what commands say: `zh/*.yaml`, and how a message is found in it.

    translate("nope.json: no such file")        # 'nope.json：没有这个文件'

A key is the text as it stands in the source, with `{}` for a value. In a key of few letters that is
one word or the end behind a colon, else any text, as `{t}` always is; `{n}` is a number with its
unit, `{w}` one of the catalogue's words. Of several keys that fit, the one with the most letters of
its own is taken. A value stays as it is, unless it is a message itself; what has no translation
stays English. `words` are for heads and labels, `cells` for cells too: no name of a setting or
column is one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

FEW_LETTERS = 12
"""Keys with fewer of their own would fit any sentence, were their values not held to one word."""
_HOLES = {
    "{}": "(.*?)",
    "{t}": "(.*?)",
    "{n}": r"([-+<~]? ?\d[\d.,]*(?: ?(?:%|s|min|h \d+ min|bytes|[KMG]iB|[A-Z]{3}))?|-|unlimited)",
    "{w}": r"([\w' -]+?)",
}
_ONE_WORD = "(\\S*|'[^']*')"
_PARTS = re.compile(r"\{\{|\}\}|\{[ntw]?\}")
_FILL = re.compile(r"\{\{|\}\}|\{(\d*)\}")
_UNITS = (
    (re.compile(r"(\d[\d.,]*) s"), r"\1 秒"),
    (re.compile(r"(\d+) h (\d+) min"), r"\1 小时 \2 分"),
    (re.compile(r"(\d[\d.,]*) min"), r"\1 分钟"),
    (re.compile(r"(\d[\d.,]*) bytes"), r"\1 字节"),
)
_CODE = re.compile("(cbtqa|pip|hf|git|export|python) |--")
"""How what is to be typed begins: the same in every language."""
SEVERITIES = ("error", "hint", "warning", "note", "fix")
"""What comes before a message; no key begins so."""
_SEVERITY = re.compile(f"({'|'.join(SEVERITIES)}): +(.+)", re.DOTALL)
_LABEL = re.compile(r"( *)([A-Za-z][\w ,'-]*?):( +)(.+)", re.DOTALL)
_REASON = re.compile(r"([^()]+) \((.+)\)", re.DOTALL)
_WIDE = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")


class Pattern(NamedTuple):
    """A key with holes, and the Chinese for it."""

    key: str
    zh: str
    literals: tuple[str, ...]
    """What stands between the holes."""
    anchor: str
    """The longest of them."""
    n_letters: int

    def values(self, text: str) -> tuple[str, ...] | None:
        """What stands in the holes of a text, or None where it is another text."""
        first, last = self.literals[0], self.literals[-1]
        if not (text.startswith(first) and text.endswith(last)):
            return None
        found = _compiled(self.key).fullmatch(text)
        return found.groups() if found else None


@cache
def _compiled(key: str) -> re.Pattern[str]:
    literals = literals_of(key)
    is_weak = n_letters_of(literals) < FEW_LETTERS
    pieces = [re.escape(literals[0])]
    for hole, before, after in zip(_holes_of(key), literals, literals[1:], strict=False):
        is_end = not after and before.endswith(": ")
        one_word = is_weak and hole == "{}" and not is_end
        pieces += [_ONE_WORD if one_word else _HOLES[hole], re.escape(after)]
    return re.compile("".join(pieces), re.DOTALL)


def _holes_of(key: str) -> list[str]:
    return [part[0] for part in _PARTS.finditer(key) if part[0] in _HOLES]


def n_letters_of(literals: Sequence[str]) -> int:
    """How much a key has of its own: its letters; a quotation mark tells as much as two."""
    return sum(letter.isalpha() + 2 * (letter == "'") for one in literals for letter in one)


class Catalogue:
    """The Chinese messages and words, in the order in which they are tried."""

    def __init__(self, files: Mapping[str, Mapping[str, Mapping[str, str]]]) -> None:
        self.words: dict[str, str] = {}
        self.cells: dict[str, str] = {}
        self.exact: dict[str, str] = {}
        self.patterns: list[Pattern] = []
        for sections in files.values():
            self.words |= sections.get("words") or {}
            self.cells |= sections.get("cells") or {}
            for key, zh in (sections.get("messages") or {}).items():
                literals = literals_of(key)
                if len(literals) == 1:
                    self.exact[literals[0]] = _filled(zh, ())
                    continue
                anchor = max(literals, key=len)
                self.patterns.append(Pattern(key, zh, literals, anchor, n_letters_of(literals)))
        # a word of the catalogue is as good as letters
        self.patterns.sort(key=lambda one: -one.n_letters - 12 * one.key.count("{w}"))

    def keys(self) -> list[str]:
        """Every key, words included."""
        return [*self.words, *self.cells, *self.exact, *(one.key for one in self.patterns)]

    def find(self, text: str) -> str | None:
        """The Chinese for a whole message, or None."""
        exact = self.exact.get(text)
        if exact is not None:
            return exact
        # nearly all keys are sorted out here: a table has many cells
        for pattern in [one for one in self.patterns if one.anchor in text]:
            values = pattern.values(text)
            if values is not None and (filled := self._fill(pattern, values)) is not None:
                return filled
        return None

    def _fill(self, pattern: Pattern, values: Sequence[str]) -> str | None:
        told_values = []
        for kind, value in zip(_holes_of(pattern.key), values, strict=True):
            if kind == "{w}":
                if value not in self.words:
                    return None
                value = self.words[value]
            elif kind == "{n}":
                value = _number(value)
            elif " " in value:
                value = translate(value)
            told_values.append(value)
        return _filled(pattern.zh, told_values)


def literals_of(key: str) -> tuple[str, ...]:
    """What stands between the holes of a key, one more than there are holes."""
    found, at = [""], 0
    for part in _PARTS.finditer(key):
        found[-1] += key[at : part.start()]
        at = part.end()
        if part[0] in _HOLES:
            found.append("")
        else:
            found[-1] += part[0][0]
    found[-1] += key[at:]
    return tuple(found)


def _number(text: str) -> str:
    for unit, zh in _UNITS:
        if unit.fullmatch(text):
            return unit.sub(zh, text)
    return text


def _filled(zh: str, values: Sequence[str]) -> str:
    """The Chinese with its values; between two wide characters no space is left at a hole."""
    filled, at, n_filled, is_after_hole = "", 0, 0, False
    for part in _FILL.finditer(zh):
        between = zh[at : part.start()]
        filled = _beside(filled, between) if is_after_hole else filled + between
        at, is_after_hole = part.end(), part[0] not in ("{{", "}}")
        if is_after_hole:
            filled = _beside(filled, values[int(part[1]) if part[1] else n_filled])
            n_filled += 1
        else:
            filled += part[0][0]
    return _beside(filled, zh[at:]) if is_after_hole else filled + zh[at:]


def _beside(left: str, right: str) -> str:
    bare_left, bare_right = left.rstrip(" "), right.lstrip(" ")
    if bare_left and bare_right and _WIDE.match(bare_left[-1]) and _WIDE.match(bare_right):
        return bare_left + bare_right
    return left + right


@cache
def catalogue() -> Catalogue:
    """The catalogue that comes with the package."""
    from importlib.resources import files

    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    room = files("cbtqa.report") / "zh"
    found = sorted((one for one in room.iterdir() if one.name.endswith(".yaml")), key=_name)
    # not parse_yaml: it looks for attacks in files of others, at ten times the price
    return Catalogue({_name(one): yaml.load(one.read_bytes(), Loader=loader) for one in found})


def _name(file: object) -> str:
    return str(getattr(file, "name", ""))


def translate_head(text: str) -> str:
    """A column's head, a table's title or the name of a fact: single words are translated, too."""
    return _by_words(text, catalogue().words | catalogue().cells)


def translate_cell(text: str) -> str:
    """A cell: of single words only those that are no name of a setting or column."""
    return _by_words(text, catalogue().cells)


def _by_words(text: str, words: Mapping[str, str]) -> str:
    bare = text.strip(" ")
    pad = " " * (len(text) - len(text.lstrip(" ")))
    return pad + words[bare] if bare in words else translate(text)


def translate(text: str) -> str:
    """The Chinese for a text, or as much of it as is known: whole, by lines, or by its parts."""
    if not re.search("[A-Za-z]{2}", text):
        return text
    if "\n" in text and catalogue().find(text) is None:
        return "\n".join(map(translate, text.split("\n")))
    bare = text.strip(" ")
    if bare != text and catalogue().find(text) is None:
        start = text.index(bare)
        return text[:start] + translate(bare) + text[start + len(bare) :]
    return next((told for way in _WAYS if (told := way(text)) is not None), text)


def _by_unit(text: str) -> str | None:
    shown = _number(text)
    return None if shown == text else shown


def _by_severity(text: str) -> str | None:
    found = _SEVERITY.fullmatch(text)
    return f"{catalogue().words[found[1]]}：{translate(found[2])}" if found else None


def _whole(text: str) -> str | None:
    """A message of the catalogue, with or without its full stop."""
    found = catalogue().find(text)
    if found is None and text.endswith("."):
        bare = catalogue().find(text[:-1])
        return None if bare is None else f"{bare}。"
    return found


def _several(text: str) -> str | None:
    """Messages with semicolons between them, each of them known: no value reaches over two."""
    parts = text.split("; ")
    if len(parts) == 1 or text in catalogue().exact:
        return None
    found = [catalogue().find(part) for part in parts]
    return "；".join(one or "" for one in found) if all(found) else None


def _by_label(text: str) -> str | None:
    """`warning: ...`, `page: ...`: the label is a word of the catalogue, what follows is told."""
    found = _LABEL.fullmatch(text)
    if found is None or (label := catalogue().words.get(found[2])) is None:
        return None
    return f"{found[1]}{label}：{translate(found[4])}"


def _by_parts(text: str) -> str | None:
    """Several messages in one line, if all of them are known, or commands to type."""
    for mark, wide in ((" or ", "，或"), ("; ", "；"), (", ", "，")):
        parts = text.split(mark)
        told_parts = [translate(part) for part in parts] if len(parts) > 1 else parts
        pairs = list(zip(parts, told_parts, strict=True))
        if any(a != b for a, b in pairs) and all(a != b or _CODE.match(a) for a, b in pairs):
            return wide.join(told_parts)
    return None


def _behind_place(text: str) -> str | None:
    """`file:line:field: message`: the place stays as it is."""
    for end in _colons(text):
        found = catalogue().find(text[end:])
        if found is not None:
            return text[: end - 2] + "：" + found
    return None


def _colons(text: str) -> Iterator[int]:
    at = text.find(": ")
    while at >= 0:
        yield at + 2
        at = text.find(": ", at + 1)


def _by_reason(text: str) -> str | None:
    """`- (reason)`: a value, with a message behind it."""
    found = _REASON.fullmatch(text)
    told_reason = catalogue().find(found[2]) if found else None
    return f"{found[1]}（{told_reason}）" if found and told_reason else None


_WAYS = (_by_unit, _by_severity, _several, _whole, _by_label, _by_parts, _behind_place, _by_reason)
"""How a text is translated, in the order in which it is tried."""
