"""JSON and YAML as plain values: well-formed text, finite numbers, true, false, None, lists, and
objects with text as keys. Nothing else comes out of a file, and nothing else goes into one.

    parse_json('{"id": 1}', "a.jsonl:3")
    parse_yaml("seed: 7", "settings.yaml")

Whatever a text holds besides raises a DataError with its place: nesting beyond `MAX_DEPTH`, numbers
that no program can read back, names given twice, YAML's own types and its repetition bombs. Files
are opened in `files`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from cbtqa.errors import DataError

MAX_DEPTH = 100
"""Lists and objects inside each other; what is deeper overflows the stack of some later reader."""
MAX_REPEATED = 100_000
"""Values that the aliases of one YAML file may repeat: nine lines can stand for a billion."""
_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def well_formed(text: str) -> str:
    """The text with halves of a character (lone surrogates) replaced: UTF-8 cannot hold them."""
    return text if text.isascii() else _HALF.sub("\ufffd", text)


def well_formed_value(value: Any) -> Any:
    """The same for every text of a plain value, the names of fields included."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {well_formed(str(key)): well_formed_value(one) for key, one in value.items()}
    return [well_formed_value(one) for one in value] if isinstance(value, list) else value


# --- JSON ----------------------------------------------------------------------------------------


def _constant(name: str) -> None:
    """NaN, which pandas writes for a missing cell, is None; an infinity stands for nothing."""
    if name != "NaN":
        raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


decode_json = json.JSONDecoder(parse_constant=_constant, parse_float=_finite)
"""Decodes as `parse_json` does; what comes out is still to be passed through `refuse_deep`."""


def parse_json(text: str, where: str, *, is_line: bool = False) -> Any:
    """The value of one JSON text; a repeated name keeps its last value, as everywhere.

    Args:
        where: the file; for a line of a file, `file:line` with `is_line`.

    Raises:
        DataError: not JSON, or a value that is not plain.
    """
    try:
        value = decode_json.decode(text)
    except json.JSONDecodeError as error:
        place = where if is_line else f"{where}:{error.lineno}"
        raise DataError(f"not JSON: {error.msg} (column {error.colno})", where=place) from None
    except (ValueError, RecursionError) as error:
        raise DataError(json_fault(error), where=where) from None
    return _checked(value, text, where)


def json_fault(error: ValueError | RecursionError) -> str:
    """What is wrong with a JSON text, from the decoder's exception."""
    if isinstance(error, RecursionError):
        return _DEEP
    # int() refuses numbers of more than 4,300 digits in words about its own settings
    is_long = str(error).startswith("Exceeds the limit")
    return "holds a number of thousands of digits" if is_long else str(error)


def _checked(value: Any, text: str, where: str) -> Any:
    """A decoded value, well-formed.

    Raises:
        DataError: nested too deep.
    """
    refuse_deep(value, text, where)
    return well_formed_value(value) if _ESCAPED_HALF.search(text) else value


def refuse_deep(value: Any, text: str, where: str) -> None:
    """Raises a DataError for a value that is nested deeper than is read."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise DataError(_DEEP, where=where)


def _depth(value: Any) -> int:
    """Levels of lists and objects; level by level, for recursion is what must not happen here."""
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            break
        level = [
            inner for one in level for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return depth


# --- YAML ----------------------------------------------------------------------------------------

_STANDARD, _MERGE = "tag:yaml.org,2002:", "<<"


def parse_yaml(text: str | bytes, where: str = "YAML") -> Any:
    """Plain values of one YAML document, None for an empty one.

    Names are text as they are written (`1:` is "1", `no:` is "no"), and so are dates.

    Raises:
        DataError: not YAML, or more than plain values; with the line.
    """
    return parse_yaml_lines(text, where)[0]


def parse_yaml_lines(text: str | bytes, where: str) -> tuple[Any, dict[str, int]]:
    """The same, and the lines of the topmost names."""
    import yaml

    source = text.decode() if isinstance(text, bytes) else text
    builder = _Builder(where)
    try:
        # by libyaml where it is there, eight times faster
        for event in yaml.parse(source, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            builder.take(event)
    except yaml.YAMLError as error:
        mark, last = getattr(error, "problem_mark", None), source.rstrip().count("\n") + 1
        place = f"{where}:{min(mark.line + 1, last)}" if mark else where
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DataError(f"not YAML: {problem}", where=place) from None
    return builder.root, builder.lines


@dataclass
class _Open:
    """A list or object whose end has not come."""

    value: dict[str, Any] | list[Any]
    anchor: str | None
    key: str | None = None
    """The name whose value comes next; None where a name comes next, and in a list."""
    n_values: int = 1

    @property
    def wants_key(self) -> bool:
        return self.key is None and isinstance(self.value, dict)


class _Builder:
    """Makes plain values of the parser's events, so that no YAML type is ever constructed."""

    def __init__(self, where: str) -> None:
        self.root: Any = None
        self.lines: dict[str, int] = {}
        self._where, self._line = where, 1
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._n_documents = self._n_repeated = 0

    def take(self, event: Any) -> None:
        """The next event.

        Raises:
            DataError: it stands for something that is not plain.
        """
        import yaml

        self._line = event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent():
                self._n_documents += 1
                if self._n_documents > 1:
                    raise self._refused("a second document begins here; expected one")
            case yaml.ScalarEvent() if self._open and self._open[-1].wants_key:
                self._take_key(well_formed(event.value))
                self._remember(event.anchor, event.value, 1)
            case yaml.ScalarEvent():
                value = self._scalar(event)
                self._remember(event.anchor, value, 1)
                self._add(value, 1)
            case yaml.AliasEvent():
                self._add(*self._repeated(str(event.anchor)))
            case yaml.SequenceStartEvent():
                self._begin(event, [], "seq")
            case yaml.MappingStartEvent():
                self._begin(event, {}, "map")
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                ended = self._open.pop()
                value = self._merged(ended.value)
                self._remember(ended.anchor, value, ended.n_values)
                self._add(value, ended.n_values)

    def _take_key(self, name: str) -> None:
        top = self._open[-1]
        assert isinstance(top.value, dict)
        if name in top.value:
            raise self._refused(f"the name '{name}' is given twice")
        top.key = name
        if len(self._open) == 1:
            self.lines[name] = self._line

    def _scalar(self, event: Any) -> Any:
        import yaml

        tag = event.tag
        if tag in (None, "!"):
            is_plain = tag is None and event.implicit[0]
            tag = _resolver().resolve(yaml.ScalarNode, event.value, (is_plain, not is_plain))
        try:
            match str(tag).removeprefix(_STANDARD):
                case "null":
                    return None
                case "bool":
                    return yaml.SafeLoader.bool_values[event.value.lower()]
                case "int":
                    return _resolver().construct_yaml_int(yaml.ScalarNode(tag, event.value))
                case "float":
                    return self._finite(event.value)
                case "str" | "timestamp" | "value" | "merge":
                    return well_formed(event.value)
        except (ValueError, KeyError):
            kind = tag.removeprefix(_STANDARD)
            raise self._refused(f"cannot be read as {kind}: {event.value[:40]}") from None
        raise self._refused(f"the type {tag} is not read")

    def _finite(self, text: str) -> float:
        import yaml

        number = float(_resolver().construct_yaml_float(yaml.ScalarNode("", text)))
        if not math.isfinite(number):
            raise self._refused(f"expected a finite number, found {text[:40]}")
        return number

    def _begin(self, event: Any, value: dict[str, Any] | list[Any], kind: str) -> None:
        if event.tag not in (None, "!", _STANDARD + kind):
            raise self._refused(f"the type {event.tag} is not read")
        if len(self._open) == MAX_DEPTH:
            raise self._refused(_DEEP)
        self._open.append(_Open(value, event.anchor))

    def _remember(self, anchor: str | None, value: Any, n_values: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = value, n_values

    def _repeated(self, anchor: str) -> tuple[Any, int]:
        if anchor not in self._anchors:
            raise self._refused(f"nothing before it is named &{anchor}")
        value, n_values = self._anchors[anchor]
        self._n_repeated += n_values
        if self._n_repeated > MAX_REPEATED:
            raise self._refused(f"the aliases repeat more than {MAX_REPEATED:,} values")
        return value, n_values

    def _merged(self, value: dict[str, Any] | list[Any]) -> Any:
        """An object with what its `<<` names: its own values go first."""
        if isinstance(value, list) or _MERGE not in value:
            return value
        given = value.pop(_MERGE)
        found: dict[str, Any] = {}
        for one in reversed(given if isinstance(given, list) else [given]):
            if not isinstance(one, dict):
                raise self._refused(f"'{_MERGE}' takes objects alone")
            found |= one
        return found | value

    def _add(self, value: Any, n_values: int) -> None:
        """Puts a finished value where it belongs."""
        if not self._open:
            self.root = value
            return
        top = self._open[-1]
        top.n_values += n_values
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is None:
            raise self._refused("expected text as a name, found a list, an object or an alias")
        else:
            top.value[top.key] = value
            top.key = None

    def _refused(self, what: str) -> DataError:
        return DataError(what, where=f"{self._where}:{self._line}")


@cache
def _resolver() -> Any:
    """What knows YAML's ways to write numbers and truth values."""
    import yaml

    return yaml.SafeLoader("")
