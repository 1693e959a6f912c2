"""From a file to its decoded rows, one at a time, each with its line.

Text formats are recognised by content, so that a JSON array named `.jsonl` is read; everything
else must be what its name says. Memory does not grow with the file, not even for an array on one
single line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from cbtqa.dataset_folder import source_rows
from cbtqa.errors import DataError
from cbtqa.files import lines_of, open_text
from cbtqa.paths import is_folder, readable
from cbtqa.plain_values import decode_json, json_fault, parse_json, refuse_deep

Format = Literal["JSON", "JSON Lines", "JSON object", "CSV", "Parquet"]
UTF8_BOM = b"\xef\xbb\xbf"
HEAD_BYTES = 1 << 20
CHUNK_CHARS = 1 << 18
MAX_ROW_CHARS = 1 << 26
"""A JSON row beyond this is taken for an unclosed quote, so that memory stays bounded."""
MAX_CELL_CHARS = 1 << 24
MAX_OBJECT_BYTES = 1 << 28
"""A JSON object of columns or of rows by id is read whole: assumed, for 2 GB of memory."""

# First bytes of what people hand in by mistake, what to call it, and the way out.
LOOKALIKES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip archive", "unpack it first: gunzip FILE"),
    (b"PK\x03\x04", "a zip archive", "unpack it first: unzip FILE"),
    (b"PK\x05\x06", "an empty zip archive", "fetch the file again"),
    (b"BZh", "a bzip2 archive", "unpack it first: bunzip2 FILE"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it first: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first: unzstd FILE"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first: 7z x FILE"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"%PDF", "a PDF document", "the questions are needed as JSON, JSONL, CSV or Parquet"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "save it as CSV (UTF-8) and pass that"),
    (b"PAR1", "a Parquet file", "rename it to end in .parquet"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "run: git lfs pull"),
)
SPREADSHEET_HINT = "save the sheet as CSV (UTF-8) and pass that"


@dataclass(frozen=True)
class SourceFile:
    """What a file is, by its name and first bytes."""

    path: Path
    format: Format
    encoding: str
    has_bom: bool
    """True when a UTF-8 byte-order mark was found and dropped."""
    n_bytes: int
    delimiter: str = ","


class Row(NamedTuple):
    """One decoded row."""

    number: int
    """Position in the file, from 1."""
    where: str
    """`file:line` of the row's first character, or `file:row N` (Parquet)."""
    value: object
    text: str | None
    """The row as in the file; None for formats whose rows are not text."""
    problem: str | None = None
    """Set when the row could not be decoded; `value` is None then."""


def identify(path: Path, encoding: str = "utf-8") -> SourceFile:
    """What the file is, from its name and first bytes.

    Raises:
        DataError: missing, empty, or not one of the formats; names what it looks like.
    """
    if is_folder(path):
        n_bytes = sum(part.stat().st_size for part in path.rglob("*.parquet"))
        return SourceFile(path, "Parquet", "binary", False, n_bytes)
    head, n_bytes = _read_head(path)
    if path.suffix.lower() == ".parquet":
        if not head.startswith(b"PAR1"):
            found = "named .parquet, but its first bytes are not Parquet's"
            raise DataError(found, where=str(path))
        return SourceFile(path, "Parquet", "binary", False, n_bytes)
    _reject_lookalikes(path, head, encoding)
    try:
        text = head.removeprefix(UTF8_BOM).decode(encoding, errors="ignore")
    except LookupError:
        raise DataError(f"unknown encoding '{encoding}'", where=str(path)) from None
    text = text.lstrip("\ufeff").lstrip()
    if not text:
        raise DataError("the file is empty (blanks only)", where=str(path))
    if text.startswith("<"):
        hint = "a log-in or error page saved in place of the file? fetch it again"
        raise DataError("looks like an HTML or XML page, not data", where=str(path), hint=hint)
    found, delimiter = _text_format(path, text, n_bytes <= len(head))
    return SourceFile(path, found, encoding, head.startswith(UTF8_BOM), n_bytes, delimiter)


def _read_head(path: Path) -> tuple[bytes, int]:
    with readable(path), path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        n_bytes = path.stat().st_size
    if not head:
        raise DataError("the file is empty (0 bytes)", where=str(path))
    return head, n_bytes


def _reject_lookalikes(path: Path, head: bytes, encoding: str) -> None:
    for magic, name, hint in LOOKALIKES:
        if head.startswith(magic):
            if name == "a zip archive" and b"[Content_Types].xml" in head:
                name, hint = "an Excel or Word file", SPREADSHEET_HINT
            raise DataError(f"looks like {name}", where=str(path), hint=hint)
    if encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32", "utf16", "utf32")):
        return
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        hint = "add --encoding utf-16, or save as UTF-8"
        raise DataError("looks like UTF-16 text", where=str(path), hint=hint)
    if b"\x00" in head:
        found = f"holds a zero byte at position {head.index(0)}"
        raise DataError(f"{found}: binary data, or UTF-16 without a mark", where=str(path))


def _text_format(path: Path, text: str, is_whole: bool) -> tuple[Format, str]:
    """Format and delimiter; `text` is the head without leading blanks."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        header = text.split("\n", 1)[0]
        return "CSV", "\t" if suffix == ".tsv" else max(",;\t", key=header.count)
    if suffix not in (".json", ".jsonl", ".ndjson"):
        raise DataError(
            f"do not know the format '{suffix or path.name}'",
            where=str(path),
            hint="use .json, .jsonl, .csv, .tsv, .parquet or a folder of Parquet files",
        )
    if text.startswith("["):
        return "JSON", ","
    if not text.startswith("{"):
        found = f"expected JSON, found text that begins with {text[:20]!r}"
        raise DataError(found, where=str(path))
    if suffix != ".json" or _is_lines(text, is_whole):
        return "JSON Lines", ","
    return "JSON object", ","


def _is_lines(text: str, is_whole: bool) -> bool:
    """True when an object ends with its line and another object begins on the next."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        first_line = text.split("\n", 1)[0].rstrip()
        # an object cut off by the end of the head: one long line is JSONL, an open brace is not
        return not is_whole and len(first_line) > 4096
    rest = text[end:]
    return rest.lstrip(" \t\r").startswith("\n") and rest.lstrip().startswith("{")


def iterate_rows(source: SourceFile) -> Iterator[Row]:
    """The rows of a file, in order.

    A row that cannot be decoded by itself (a broken line of JSONL, a CSV row with too many cells)
    comes with its `problem`, and reading goes on.

    Raises:
        DataError: the syntax is broken so that no next row can be found; names the line and how
            many rows were read before.
    """
    readers = {
        "JSON": _array,
        "JSON Lines": _lines,
        "JSON object": _object,
        "CSV": _csv,
        "Parquet": _parquet,
    }
    return readers[source.format](source)


_decode = decode_json.raw_decode
_blanks = re.compile(r"[ \t\n\r]*")
# An error this close to the end of the window may come from a literal or escape cut in two.
_EDGE_CHARS = 16


class _Window:
    """The part of a JSON text being decoded; grows and slides along a stream."""

    def __init__(self, stream: IO[str]) -> None:
        self.text, self.position, self.line = "", 0, 1
        self._stream, self._is_at_end = stream, False

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            match = _blanks.match(self.text, self.position)
            self._advance(match.end() if match else self.position)
            if self.position < len(self.text):
                return self.text[self.position]
            if self._is_at_end:
                return ""
            self._grow()

    def skip(self) -> None:
        """Passes over one character that is no line end."""
        self.position += 1

    def decode(self) -> tuple[object, str]:
        """The JSON value here and its text.

        Raises:
            ValueError: not JSON; the message names line and column.
        """
        while True:
            try:
                value, end = _decode(self.text, self.position)
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error):
                    raise ValueError(self._describe(error)) from None
            else:
                if end < len(self.text) or self._is_at_end:
                    text = self.text[self.position : end]
                    self._advance(end)
                    return value, text
            if len(self.text) - self.position > MAX_ROW_CHARS:
                raise ValueError(
                    f"the row is longer than {MAX_ROW_CHARS:,} characters: a quote not closed?"
                )
            self._grow()

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        is_near_edge = error.pos >= len(self.text) - _EDGE_CHARS
        return not self._is_at_end and (is_near_edge or error.msg.startswith("Unterminated"))

    def _describe(self, error: json.JSONDecodeError) -> str:
        line = self.line + self.text.count("\n", self.position, error.pos)
        column = error.pos - self.text.rfind("\n", 0, error.pos)
        near = self.text[max(0, error.pos - 10) : error.pos + 10]
        what = error.msg.removesuffix(" at")
        return f"not JSON: {what} (line {line}, column {column}, near {near!r})"

    def _advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.position, end)
        self.position = end

    def _grow(self) -> None:
        kept = self.text[self.position :]
        wanted = max(CHUNK_CHARS, len(kept))  # doubling: a long row is decoded few times over
        more = self._stream.read(wanted)
        self._is_at_end = len(more) < wanted
        self.text, self.position = kept + more, 0


def _array(source: SourceFile) -> Iterator[Row]:
    with open_text(source.path, source.encoding) as stream:
        window, number = _Window(stream), 0
        found = window.peek()  # the bracket that opens the array
        while found in ("[", ","):
            window.skip()
            if window.peek() == "]" and found == "[":
                found = "]"
                break
            where = f"{source.path.name}:{window.line}"
            try:
                value, text = window.decode()
                refuse_deep(value, text, f"{source.path}:{window.line}")
            except UnicodeDecodeError:  # a ValueError too, but open_text words it better
                raise
            except (ValueError, RecursionError) as error:
                raise _broken(source, window.line, json_fault(error), number) from None
            number += 1
            yield Row(number, where, value, text)
            found = window.peek()
        if found != "]":
            cut = "the file ends before the array does: cut off on the way?"
            what = f"expected ',' or ']', found {found!r}" if found else cut
            raise _broken(source, window.line, what, number)
        window.skip()
        if window.peek():
            raise _broken(source, window.line, "more text after the end of the array", number)


def _broken(source: SourceFile, line: int, what: str, n_before: int) -> DataError:
    return DataError(f"{what}; {n_before:,} rows were read before", where=f"{source.path}:{line}")


def _lines(source: SourceFile) -> Iterator[Row]:
    number, name = 0, source.path.name
    with open_text(source.path, source.encoding) as stream:
        for line_number, line in enumerate(lines_of(stream, source.path), 1):
            text = line.strip()
            if not text:
                continue
            number += 1
            where = f"{name}:{line_number}"
            try:
                value = decode_json.decode(text)
                refuse_deep(value, text, where)
            except (ValueError, RecursionError, DataError) as error:
                said = str(error) if isinstance(error, DataError) else json_fault(error)
                if number == 1:  # not one good line yet: this is no JSONL at all
                    raise _broken(source, line_number, f"not JSON Lines: {said}", 0) from None
                yield Row(number, where, None, text, f"not JSON: {said}")
            else:
                yield Row(number, where, value, text)


def _object(source: SourceFile) -> Iterator[Row]:
    """The rows of one JSON object: columns of pandas or `datasets`, or rows by their id."""
    if source.n_bytes > MAX_OBJECT_BYTES:
        found = f"one JSON object of {source.n_bytes:,} bytes, too large to be read whole"
        raise DataError(found, where=str(source.path), hint="save one object a line (.jsonl)")
    with open_text(source.path, source.encoding) as stream:
        document = parse_json(stream.read(), str(source.path))
    rows = _rows_of_object(document)
    if rows is None:
        keys = [key for key, value in document.items() if isinstance(value, list)]
        found = "a JSON object; expected an array of questions: [{...}, {...}]"
        ways = [f"if the questions are under '{key}': jq '.{key}' FILE > q.json" for key in keys]
        raise DataError(found, where=str(source.path), hint=next(iter(ways), None))
    return (
        Row(number, f"{source.path.name}:{key}", value, None)
        for number, (key, value) in enumerate(rows, 1)
    )


def _rows_of_object(document: dict[str, Any]) -> Iterator[tuple[str, object]] | None:
    """Each row with its name; None for an object that is no table."""
    names, data, parts = document.get("columns"), document.get("data"), list(document.values())
    if isinstance(names, list) and isinstance(data, list):  # pandas, orient="split"
        return (
            (
                f"row {number}",
                dict(zip(map(str, names), cells, strict=False)) if _fits(cells, names) else cells,
            )
            for number, cells in enumerate(data, 1)
        )
    if parts and all(isinstance(part, dict) for part in parts):
        indexes = {tuple(part) for part in parts}
        if len(indexes) == 1 and all(key.isdecimal() for key in parts[0]):  # pandas, by column
            return (
                (f"row {key}", {name: column[key] for name, column in document.items()})
                for key in parts[0]
            )
        has_ids = any(key.lower() in ("id", "questionid", "question_id") for key in parts[0])
        return (
            (key, value if has_ids else {"id": key, **value}) for key, value in document.items()
        )
    are_lists = parts and all(isinstance(part, list) for part in parts)
    if (
        are_lists
        and len({len(part) for part in parts}) == 1
        and any(not isinstance(cell, dict) for part in parts for cell in part[:1])
    ):  # `datasets`, or pandas with orient="list"
        return (
            (f"row {number}", dict(zip(document, cells, strict=True)))
            for number, cells in enumerate(zip(*parts, strict=True), 1)
        )
    return None


def _fits(cells: object, names: list[Any]) -> bool:
    return isinstance(cells, list) and len(cells) == len(names)


def _csv(source: SourceFile) -> Iterator[Row]:
    # the module's default of 128 KiB is less than a cell that holds all answers of a question
    csv.field_size_limit(MAX_CELL_CHARS)
    number, start = 0, 1
    with open_text(source.path, source.encoding) as stream:
        reader = csv.reader(stream, delimiter=source.delimiter, strict=True)
        try:
            header = [name.strip() for name in next(filter(None, reader), [])]
            doubled = sorted({name for name in header if header.count(name) > 1})
            if doubled:
                raise DataError(f"column named twice: {doubled[0]!r}", where=f"{source.path}:1")
            start = reader.line_num + 1
            for cells in reader:
                where, start = f"{source.path.name}:{start}", reader.line_num + 1
                number += bool(cells)
                if cells and len(cells) == len(header):
                    yield Row(number, where, dict(zip(header, cells, strict=True)), None)
                elif cells:
                    problem = f"{len(cells)} cells for {len(header)} columns"
                    text = json.dumps(cells, ensure_ascii=False)
                    yield Row(number, where, None, text, problem)
        except csv.Error as error:
            raise _broken(source, start, f"not CSV: {error}", number) from None


def _parquet(source: SourceFile) -> Iterator[Row]:
    root: Path = source.path if source.path.is_dir() else source.path.parent
    value: dict[str, Any]
    for number, (where, value) in enumerate(source_rows(source.path), 1):
        yield Row(number, where.removeprefix(f"{root}/"), value, None)
