"""Reading and writing the file formats of this project, with `file:line` in every error.

JSONL and JSON are UTF-8; a byte-order mark is accepted. A file written here is either the old one
or the whole new one, never a part, and holds no key of an endpoint: see `secrets`.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from cbtqa.errors import DataError, faults_of
from cbtqa.paths import is_folder, readable, replacing
from cbtqa.plain_values import parse_json, parse_yaml, well_formed, well_formed_value
from cbtqa.secrets import masked, masked_value

if TYPE_CHECKING:
    import pyarrow as pa

ModelT = TypeVar("ModelT", bound=BaseModel)


# --- reading -------------------------------------------------------------------------------------


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[IO[str]]:
    """Opens a text file for reading; a UTF-8 byte-order mark is dropped.

    Raises:
        DataError: as `readable`, or not in `encoding` (with the flag that says so when the bytes
            read as GB18030).
    """
    codec = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        with readable(path), path.open(encoding=codec, newline="") as stream:
            yield stream
    except LookupError:
        raise DataError(f"unknown encoding '{encoding}'", where=str(path)) from None
    except UnicodeDecodeError as error:
        hint = None
        if "gb" not in encoding.lower() and _reads_as_gb18030(path):
            hint = "the bytes read as GBK: if that is what it is, add --encoding gb18030"
        found = f"not {encoding}: byte 0x{error.object[error.start]:02x} does not fit"
        raise DataError(found, where=str(path), hint=hint) from None
    except UnicodeError as error:  # UTF-16 without its mark, and an encoding such as idna
        raise DataError(f"not {encoding}: {error}", where=str(path)) from None


def _reads_as_gb18030(path: Path) -> bool:
    """True when the file's beginning decodes as Chinese, a character cut at its end left out."""
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(head)
        return any("\u4e00" <= letter <= "\u9fff" for letter in text)
    except UnicodeDecodeError:
        return False


def parse_record(model: type[ModelT], row: object, where: str) -> ModelT:
    """Turns one decoded row into a record.

    Raises:
        DataError: a field is missing, unknown or wrong; names `where` and the field.
    """
    try:
        return model.model_validate(row)
    except ValidationError as error:
        first = faults_of(error)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(first["msg"], where=f"{where}:{field}" if field else where) from None


def read_json(path: Path) -> Any:
    """One JSON document as plain values.

    Raises:
        DataError: missing, not UTF-8, or not JSON (with line and column).
    """
    with open_text(path) as stream:
        return parse_json(stream.read(), str(path))


def read_jsonl(path: Path, model: type[ModelT]) -> Iterator[ModelT]:
    """One record a line, in order; empty lines are passed over.

    Raises:
        DataError: at the first line that is not JSON or not this record.
    """
    for where, row in read_rows(path):
        yield parse_record(model, row, where)


def read_rows(path: Path, encoding: str = "utf-8") -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a JSONL, JSON array, CSV, TSV or Parquet file, or a folder of Parquet files.

    Yields `(where, row)` where `where` is `file:line` (text) or `file:row N` (Parquet). Streams:
    memory does not grow with the file, except for a JSON array, which is read whole (PsyQA's
    own array is streamed by `cbtqa.psyqa`).

    Raises:
        DataError: unknown suffix, or a row that is not an object.
    """
    if is_folder(path):
        parts = sorted(path.rglob("*.parquet"))
        if not parts:
            raise DataError("the folder holds no .parquet file", where=str(path))
        for part in parts:
            yield from read_parquet(part)
        return
    match path.suffix.lower():
        case ".parquet":
            yield from read_parquet(path)
        case ".jsonl" | ".ndjson":
            yield from _read_json_lines(path, encoding)
        case ".json":
            yield from _read_json_array(path, encoding)
        case ".csv" | ".tsv":
            yield from _read_csv(path, encoding)
        case _:
            hint = "use .jsonl, .json, .csv, .tsv, .parquet or a folder of Parquet files"
            found = f"do not know the format '{path.suffix}'"
            raise DataError(found, where=str(path), hint=hint)


def _read_json_lines(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_text(path, encoding) as stream:
        for number, line in enumerate(lines_of(stream, path), 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            row = parse_json(line, where, is_line=True)
            if not isinstance(row, dict):
                raise DataError(f"expected an object, found {type(row).__name__}", where=where)
            yield where, row


def lines_of(stream: IO[str], path: Path) -> Iterator[str]:
    """The lines of a text; a DataError at one that no memory should hold."""
    for number in count(1):
        line = stream.readline(MAX_LINE_CHARS)
        if not line:
            return
        if len(line) == MAX_LINE_CHARS:
            found = f"the line is longer than {MAX_LINE_CHARS:,} characters"
            raise DataError(found, where=f"{path}:{number}")
        yield line


MAX_LINE_CHARS = 1 << 26


def _read_json_array(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_text(path, encoding) as stream:
        rows = parse_json(stream.read(), str(path))
    if not isinstance(rows, list):
        raise DataError("expected a JSON array of objects", where=str(path))
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError("expected an object", where=f"{path}:item {number}")
        yield f"{path}:item {number}", row


def _read_csv(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with open_text(path, encoding) as stream:
        reader = csv.reader(lines_of(stream, path), delimiter=delimiter, strict=True)
        try:
            columns = next(filter(None, reader), [])
            if doubled := [name for name, n in Counter(columns).items() if n > 1]:
                raise DataError(f"column named twice: {doubled[0]!r}", where=f"{path}:1")
            for cells in filter(None, reader):
                where = f"{path}:{reader.line_num}"
                if len(cells) != len(columns):
                    found = f"{len(cells)} cells for {len(columns)} columns"
                    raise DataError(found, where=where)
                yield where, dict(zip(columns, cells, strict=True))
        except csv.Error as error:
            raise DataError(f"not CSV: {error}", where=f"{path}:{reader.line_num}") from None


FEATURES_KEY = "huggingface"
"""Key of a Parquet schema's metadata that holds the `datasets.Features` of its columns."""


def parquet_schema(path: Path) -> pa.Schema:
    """The Arrow schema of a Parquet file.

    Raises:
        DataError: missing, or damaged.
    """
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        return pq.read_schema(path)


def expect_columns(path: Path, expected: Mapping[str, Collection[str]]) -> None:
    """Refuses a Parquet file in which a column that is there holds other values than it should.

    Args:
        expected: Arrow types by column, as `arrow_type_name` writes them.

    Raises:
        DataError: names the column and what it holds.
    """
    for field in parquet_schema(path):
        found, allowed = arrow_type_name(field.type), expected.get(field.name)
        if allowed is not None and found not in allowed:
            what = f"holds {found}, expected {' or '.join(sorted(allowed))}"
            raise DataError(what, where=f"{path}:{field.name}")


def arrow_type_name(kind: pa.DataType) -> str:
    """The name of an Arrow type, the same whichever program and version wrote the file."""
    return str(kind).replace("large_", "").replace("item: ", "element: ")


def parquet_table(path: Path) -> pa.Table:
    """A Parquet file as a whole; a DataError when it is missing or damaged."""
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        return pq.read_table(path)


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of each column that holds class labels, alone or in a list, as numbers.

    Raises:
        DataError: the description of the columns is damaged.
    """
    stored = (schema.metadata or {}).get(FEATURES_KEY.encode(), b"{}")
    described = parse_json(stored.decode(errors="replace"), FEATURES_KEY)
    names = {}
    for column, feature in _member(_member(described, "info"), "features").items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        is_label = isinstance(inner, dict) and inner.get("_type") == "ClassLabel"
        if is_label and column in schema.names and "int" in str(schema.field(column).type):
            names[column] = [str(name) for name in inner.get("names") or []]
    return names


def _member(value: Any, name: str) -> dict[str, Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, ids: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(where, row)` of a Parquet file, as a stream; class labels by name.

    Args:
        columns: what to read; None for all.
        ids: only the rows whose `id` is one of these.

    Raises:
        DataError: missing, damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with _parquet_errors(path), pq.ParquetFile(path) as parquet:
        schema = parquet.schema_arrow
        wanted = list(schema.names if columns is None else columns)
        needed = wanted if ids is None else [*wanted, "id"]
        if missing := set(needed) - set(schema.names):
            raise DataError(f"no column {', '.join(sorted(missing))}", where=str(path))
        if doubled := [name for name, n in Counter(schema.names).items() if n > 1]:
            raise DataError(f"column named twice: {doubled[0]!r}", where=str(path))
        names = class_names(schema)
        number = 0
        for batch in parquet.iter_batches(batch_size=1024, columns=[*dict.fromkeys(needed)]):
            if ids is not None:
                batch = batch.filter(pc.is_in(batch.column("id"), pa.array(ids, pa.string())))
            values = [_column(batch, name, names.get(name), path, number) for name in wanted]
            for cells in zip(*values, strict=True):
                number += 1
                yield f"{path}:row {number}", dict(zip(wanted, cells, strict=True))


def _column(
    batch: pa.RecordBatch, name: str, labels: list[str] | None, path: Path, n_before: int
) -> list[Any]:
    """The plain values of one column; DataError with the row at one that Python cannot hold."""
    column = batch.column(name)
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError):  # bad UTF-8, a time before the year 1
        for number, value in enumerate(column, n_before + 1):
            try:
                value.as_py()
            except (ValueError, OverflowError) as error:
                where = f"{path}:row {number}:{name}"
                raise DataError(f"the value cannot be read: {error}", where=where) from None
        raise
    if labels is not None:
        return [_named(value, labels) for value in values]
    return values if str(column.type) in _PLAIN_TYPES else [_plain(value) for value in values]


_PLAIN_TYPES = ("string", "large_string", "bool", "int8", "int16", "int32", "int64")


def _plain(value: Any) -> Any:
    """A value of Parquet as JSON has it: times and decimals as text, a number that is none None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if value is not None and 0 <= value < len(names) else None


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    with readable(path):
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            if getattr(error, "errno", None):  # the disk's own, not the file's
                raise
            raise DataError(f"not Parquet: {error}", where=str(path)) from None


def read_yaml(path: Path) -> Any:
    """One YAML document as plain values.

    Raises:
        DataError: missing, longer than what people declare, or not YAML; with the line.
    """
    return parse_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a file that a person wrote: settings, a prompt, a rubric.

    Raises:
        DataError: as `open_text`, or longer than people write.
    """
    with open_text(path) as stream:
        text = stream.read(MAX_WRITTEN_CHARS + 1)
    if len(text) > MAX_WRITTEN_CHARS:
        raise DataError(f"longer than {MAX_WRITTEN_CHARS:,} characters", where=str(path))
    return text


MAX_WRITTEN_CHARS = 1 << 24


def shipped_yaml(package: str, name: str) -> Any:
    """Plain values of a YAML file that lies beside a package's code."""
    return parse_yaml(files(package).joinpath(name).read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with readable(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- writing -------------------------------------------------------------------------------------


def json_text(value: BaseModel | Mapping[str, Any] | list[Any], **layout: Any) -> str:
    """Strict JSON without keys of endpoints, for every file and for `--json`.

    NaN is an error: `model_dump_json` would write null, and `json` the word NaN, which other
    readers reject. Halves of a character are replaced, since UTF-8 cannot hold them.

    Raises:
        DataError: NaN or an infinity in a field, which is named.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    # value by value: a number must not be masked because a key is made of the same digits
    plain = masked_value(plain)
    try:
        return well_formed(json.dumps(plain, ensure_ascii=False, allow_nan=False, **layout))
    except ValueError as error:
        for field, number in _not_finite(plain):
            raise DataError(f"{field}: {number} is not JSON") from None
        raise DataError(f"cannot be written as JSON: {error}") from None


def _not_finite(value: Any, field: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a document that JSON cannot hold, with its field."""
    if isinstance(value, float) and not math.isfinite(value):
        yield field, value
    elif isinstance(value, Mapping | list | tuple):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from _not_finite(part, f"{field}.{key}" if field else str(key))


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(well_formed(masked(text)), encoding="utf-8")


def write_json(path: Path, value: BaseModel | Mapping[str, Any] | list[Any]) -> None:
    """Writes one indented JSON document as `json_text` gives it, whole or not at all."""
    text = json_text(value, indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_line(record: BaseModel | Mapping[str, Any]) -> str:
    """One record as a line of JSONL, with its newline, as `json_text` gives it."""
    separators = (",", ":") if isinstance(record, BaseModel) else None
    return json_text(record, separators=separators) + "\n"


def write_jsonl(path: Path, records: Iterable[BaseModel | Mapping[str, Any]]) -> int:
    """Writes records one a line, whole or not at all; returns how many."""
    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json_line(record))
            count += 1
    return count


class ParquetRows:
    """Streams rows into one Parquet file, which appears when its `with` block ends without error.

    Class labels are given by name. Small groups and a page index let the Hub's viewer read a page
    without the whole file.
    """

    _ROWS_PER_BATCH = 250  # as Python objects, rows take ten times the memory

    def __init__(self, path: Path, schema: pa.Schema, rows_per_group: int = 5_000) -> None:
        self.n_rows = 0
        self._path, self._schema, self._rows_per_group = path, schema, rows_per_group
        self._numbers = {
            column: {name: number for number, name in enumerate(names)}
            for column, names in class_names(schema).items()
        }
        self._pending: list[Mapping[str, Any]] = []
        self._group: list[pa.RecordBatch] = []

    def __enter__(self) -> ParquetRows:
        import pyarrow.parquet as pq

        self._replacing = replacing(self._path)
        self._writer = pq.ParquetWriter(
            self._replacing.__enter__(), self._schema, compression="zstd", write_page_index=True
        )
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds one row; keys are the schema's columns."""
        if self._numbers:
            numbers = {name: _numbered(row[name], of) for name, of in self._numbers.items()}
            row = {**row, **numbers}
        self._pending.append(masked_value(row))
        self.n_rows += 1
        is_group_full = self.n_rows % self._rows_per_group == 0
        if is_group_full or len(self._pending) >= self._ROWS_PER_BATCH:
            self._pack(flush=is_group_full)

    def _pack(self, *, flush: bool) -> None:
        import pyarrow as pa

        if self._pending:
            try:
                batch = pa.RecordBatch.from_pylist(self._pending, schema=self._schema)
            except UnicodeEncodeError:  # half a character, which UTF-8 cannot hold
                rows = well_formed_value(self._pending)
                batch = pa.RecordBatch.from_pylist(rows, schema=self._schema)
            self._group.append(batch)
            self._pending.clear()
        if flush and self._group:
            self._writer.write_table(pa.Table.from_batches(self._group))
            self._group.clear()

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._pack(flush=True)
                self._writer.close()
        except BaseException as error:
            self._drop(type(error), error, error.__traceback__)
            raise
        if kind is None:
            self._replacing.__exit__(None, None, None)
        else:
            self._drop(kind, value, trace)

    def _drop(self, kind: Any, value: Any, trace: Any) -> None:
        """Leaves nothing: half a file must not take the place of a whole one."""
        # or its finaliser closes it once more, and prints what fails then
        self._writer.is_open = False
        self._replacing.__exit__(kind, value, trace)


def _numbered(value: Any, numbers: Mapping[str, int]) -> Any:
    if isinstance(value, list | tuple):
        return [numbers[one] for one in value]
    return None if value is None else numbers[value]
