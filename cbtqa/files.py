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
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from importlib.resources import files
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from cbtqa.errors import DataError
from cbtqa.secrets import masked, masked_value

if TYPE_CHECKING:
    import pyarrow as pa

ModelT = TypeVar("ModelT", bound=BaseModel)


# --- reading -------------------------------------------------------------------------------------


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[IO[str]]:
    """Opens a text file for reading; a UTF-8 byte-order mark is dropped.

    Raises:
        DataError: the file is missing, a folder, or not in `encoding` (with the flag that says so
            when the bytes read as GB18030).
    """
    codec = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        with path.open(encoding=codec, newline="") as stream:
            yield stream
    except FileNotFoundError:
        raise DataError("no such file", where=str(path)) from None
    except IsADirectoryError:
        raise DataError("is a folder, not a file", where=str(path)) from None
    except PermissionError:
        raise DataError("may not be read (permission denied)", where=str(path)) from None
    except LookupError:
        raise DataError(f"unknown encoding '{encoding}'", where=str(path)) from None
    except UnicodeDecodeError as error:
        hint = None
        if "gb" not in encoding.lower() and _reads_as_gb18030(path):
            hint = "the bytes read as GBK: if that is what it is, add --encoding gb18030"
        found = f"not {encoding}: byte 0x{error.object[error.start]:02x} does not fit"
        raise DataError(found, where=str(path), hint=hint) from None


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
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(first["msg"], where=f"{where}:{field}" if field else where) from None


def read_json(path: Path) -> Any:
    """One JSON document.

    Raises:
        DataError: missing, not UTF-8, or not JSON (with line and column).
    """
    return _load_json(path, "utf-8")


def _load_json(path: Path, encoding: str) -> Any:
    with open_text(path, encoding) as stream:
        try:
            return json.load(stream)
        except json.JSONDecodeError as error:
            found = f"not JSON: {error.msg} (column {error.colno})"
            raise DataError(found, where=f"{path}:{error.lineno}") from None


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
    if path.is_dir():
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
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"not JSON: {error.msg}", where=where) from None
            if not isinstance(row, dict):
                raise DataError(f"expected an object, found {type(row).__name__}", where=where)
            yield where, row


def _read_json_array(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = _load_json(path, encoding)
    if not isinstance(rows, list):
        raise DataError("expected a JSON array of objects", where=str(path))
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError("expected an object", where=f"{path}:item {number}")
        yield f"{path}:item {number}", row


def _read_csv(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_text(path, encoding) as stream:
        reader = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row:
                    raise DataError("more cells than columns", where=where)
                yield where, {str(key): value for key, value in row.items()}
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


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of each column that holds class labels, alone or in a list, as numbers."""
    stored = json.loads((schema.metadata or {}).get(FEATURES_KEY.encode(), b"{}"))
    names = {}
    for column, feature in stored.get("info", {}).get("features", {}).items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        is_label = inner.get("_type") == "ClassLabel" and column in schema.names
        if is_label and "int" in str(schema.field(column).type):
            names[column] = inner["names"]
    return names


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
        if missing := set(columns or ()) - set(schema.names):
            raise DataError(f"no column {', '.join(sorted(missing))}", where=str(path))
        names = class_names(schema)
        number = 0
        for batch in parquet.iter_batches(batch_size=1024, columns=columns and list(columns)):
            if ids is not None:
                batch = batch.filter(pc.is_in(batch.column("id"), pa.array(ids, pa.string())))
            for row in batch.to_pylist():
                number += 1
                for column in names.keys() & row.keys():
                    row[column] = _named(row[column], names[column])
                yield f"{path}:row {number}", row


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if value is not None and 0 <= value < len(names) else None


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise DataError("no such file", where=str(path)) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not Parquet: {error}", where=str(path)) from None


def parse_yaml(text: str | bytes | IO[str], where: str | None = None) -> Any:
    """Plain values of YAML: `yaml.safe_load`, by libyaml where it is there (eight times faster).

    Raises:
        DataError: not YAML, when `where` is given; names the line.
        yaml.YAMLError: not YAML, otherwise.
    """
    import yaml

    source = text if isinstance(text, str | bytes) else text.read()
    try:
        return yaml.load(source, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        try:
            return yaml.safe_load(source)  # its message is plainer, with the line
        except yaml.YAMLError as error:
            if where is None:
                raise
            mark = getattr(error, "problem_mark", None)
            place = f"{where}:{mark.line + 1}" if mark else where
            raise DataError(f"not YAML: {getattr(error, 'problem', error)}", where=place) from None


def shipped_yaml(package: str, name: str) -> Any:
    """Plain values of a YAML file that lies beside a package's code."""
    return parse_yaml(files(package).joinpath(name).read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on leaving without error it takes `path`'s place, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def json_text(value: BaseModel | Mapping[str, Any] | list[Any], **layout: Any) -> str:
    """Strict JSON without keys of endpoints, for every file and for `--json`.

    NaN is an error: `model_dump_json` would write null, and `json` the word NaN, which other
    readers reject.

    Raises:
        ValueError: NaN or an infinity in a field, which is named.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    # value by value: a number must not be masked because a key is made of the same digits
    plain = masked_value(plain)
    try:
        return json.dumps(plain, ensure_ascii=False, allow_nan=False, **layout)
    except ValueError:
        for field, number in _not_finite(plain):
            raise ValueError(f"{field}: {number} is not JSON") from None
        raise


def _not_finite(value: Any, field: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a document that JSON cannot hold, with its field."""
    if isinstance(value, float) and not math.isfinite(value):
        yield field, value
    elif isinstance(value, Mapping | list | tuple):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from _not_finite(part, f"{field}.{key}" if field else str(key))


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes what a killed `replacing` left, of files whose names begin so.

    The caller must hold a lock on them.
    """
    for path in folder.glob(f".{escape(name)}*.part"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(masked(text), encoding="utf-8")


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
            self._group.append(pa.RecordBatch.from_pylist(self._pending, schema=self._schema))
            self._pending.clear()
        if flush and self._group:
            self._writer.write_table(pa.Table.from_batches(self._group))
            self._group.clear()

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._pack(flush=True)
        finally:
            self._writer.close()
            self._replacing.__exit__(kind, value, trace)


def _numbered(value: Any, numbers: Mapping[str, int]) -> Any:
    if isinstance(value, list | tuple):
        return [numbers[one] for one in value]
    return None if value is None else numbers[value]
