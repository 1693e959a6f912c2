"""Reads the public data sets of distortion labels, and files of your own, with their quirks.

`importers.yaml` says for each set which columns hold what and on which terms it may be used. Label
names go through the taxonomy's aliases; a name it does not have is an error with file and line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtqa.dataset_folder import source_rows
from cbtqa.distortions.taxonomy import Taxonomy, is_no_distortion, load_taxonomy, normalise_name
from cbtqa.errors import DataError, UsageError
from cbtqa.files import shipped_yaml
from cbtqa.records import NonEmptyText, Record

_SEPARATORS = re.compile(r"[;；|、,，/]+")


class DataFormat(Record):
    title: NonEmptyText
    citation: NonEmptyText
    licence: NonEmptyText
    taxonomy: NonEmptyText
    text: tuple[str, ...]
    before_text: tuple[str, ...] = ()
    """Columns whose text goes before the text, such as a situation."""
    label_columns: tuple[str, ...] = ()
    further_label_columns: tuple[str, ...] = ()
    """Optional columns with a further type."""
    one_column_per_type: bool = False
    parts_of: str | None = None
    """What the texts are sentences of, where the set does not say of which one."""


Row = Mapping[str, Any]


@cache
def data_formats() -> Mapping[str, DataFormat]:
    raw = shipped_yaml("cbtqa.distortions", "importers.yaml")
    return {name: DataFormat.model_validate(fields) for name, fields in raw.items()}


def read_gold(
    path: Path,
    *,
    form: str = "auto",
    taxonomy: str | None = None,
    encoding: str = "utf-8",
    cluster_column: str | None = None,
) -> GoldSet:
    """A labelled data set.

    Args:
        form: a name of `data_formats`, or `auto` to find it by the columns.
        cluster_column: names the document that a text is a sentence of; found by its name when
            None, and the id of a text counts as such where several texts have it.
        taxonomy: of the labels; the data set's own when None.
        encoding: of a text file; some older files are `gb18030`.

    Raises:
        DataError: wrong encoding, missing columns, an empty text, or a label that the taxonomy
            does not have; says file and line.
        UsageError: no such format.
    """
    # column names without blanks at the ends and in lower case: some sets have ` Text`
    rows = (
        (where, {str(key).strip().lower(): value for key, value in row.items()})
        for where, row in source_rows(path, encoding=encoding)
    )
    first = next(rows, None)
    if first is None:
        raise DataError("holds no rows", where=str(path))
    name = _tell_format(first[1], path) if form == "auto" else form
    if name not in data_formats():
        raise UsageError(f"no format '{name}'", hint=f"known: {', '.join(data_formats())}")
    known = data_formats()[name]
    chosen = load_taxonomy(taxonomy or known.taxonomy)
    column = _find_document_column(first[1], cluster_column, path)
    reader = _RowReader(known, chosen, first[1], path, column)
    items: dict[str, GoldItem] = {}
    n_rows = n_duplicates = n_contradictions = 0
    for n_rows, (where, row) in enumerate(chain([first], rows), 1):
        item = reader.read(where, row, n_rows)
        held = items.setdefault(item.text, item)
        if held is not item:
            n_duplicates += held.types == item.types
            n_contradictions += held.types != item.types
    counts = n_rows, n_duplicates, n_contradictions
    kept = tuple(items.values())
    documents = [item.document for item in kept if item.document]
    is_shared = len(set(documents)) < len(documents)
    return GoldSet(
        name, chosen, kept, known.licence, *counts, cluster_column=column if is_shared else None
    )


DOCUMENT_COLUMNS = (
    *("question_id", "questionid", "document_id", "document", "doc_id", "post_id", "thread_id"),
    *("session_id", "source_id", "id"),
)
"""Columns that name what a text is a part of; the first that is there counts."""


def _find_document_column(row: Row, asked: str | None, path: Path) -> str | None:
    if asked is None:
        return _first_of(DOCUMENT_COLUMNS, row)
    if asked.strip().lower() not in row:
        hint = f"columns: {', '.join(row)}"
        raise DataError(f"--cluster-column: no column '{asked}'", where=f"{path}:1", hint=hint)
    return asked.strip().lower()


def _first_of(names: tuple[str, ...], row: Row) -> str | None:
    return next((name for name in names if name in row), None)


def _tell_format(row: Row, path: Path) -> str:
    for name, known in data_formats().items():
        if _first_of(known.text, row) is None:
            continue
        if known.one_column_per_type:
            if len(_type_columns(row, load_taxonomy(known.taxonomy))) > 1:
                return name
        elif _first_of(known.label_columns, row) is not None and _fits(name, row):
            return name
    raise DataError(
        f"cannot tell the data set by its columns: {', '.join(row)}",
        where=f"{path}:1",
        hint=f"name it with --format: {', '.join(data_formats())}",
    )


def _fits(name: str, row: Row) -> bool:
    """False where a yes/no column holds other values, so that types are not read as binary."""
    if name != "cogdis":
        return True
    value = row[_first_of(data_formats()[name].label_columns, row) or ""]
    return str(value).strip() in ("0", "1", "True", "False", "true", "false")


def _type_columns(row: Row, taxonomy: Taxonomy) -> dict[str, str]:
    """Column name to type id, for columns named after a type."""
    return {key: entry.id for key in row if (entry := taxonomy.find(key)) is not None}


class _RowReader:
    """Turns rows of one file into gold items."""

    def __init__(
        self, known: DataFormat, taxonomy: Taxonomy, first: Row, path: Path, document: str | None
    ) -> None:
        self._taxonomy, self._document = taxonomy, document
        self._text = self._need(known.text, first, path, "the text")
        self._before = _first_of(known.before_text, first)
        self._by_column: dict[str, str] = {}
        self._named: list[str] = []
        if known.one_column_per_type:
            self._by_column = _type_columns(first, taxonomy)
            found = self._by_column.values()
            if missing := [entry.zh for entry in taxonomy.types if entry.id not in found]:
                raise DataError(f"no column for: {', '.join(missing)}", where=f"{path}:1")
        else:
            self._named = [self._need(known.label_columns, first, path, "the labels")]
            further = _first_of(known.further_label_columns, first)
            self._named += [further] if further else []

    @staticmethod
    def _need(names: tuple[str, ...], row: Row, path: Path, what: str) -> str:
        found = _first_of(names, row)
        if found is None:
            expected = f"expected one of {', '.join(names)}, found {', '.join(row)}"
            raise DataError(f"no column for {what}: {expected}", where=f"{path}:1")
        return found

    def read(self, where: str, row: Row, number: int) -> GoldItem:
        text = str(row.get(self._text) or "").strip()
        if not text:
            raise DataError("the text is empty", where=f"{where}:{self._text}")
        before = str(row.get(self._before) or "").strip() if self._before else ""
        types = {
            type_id
            for column, type_id in self._by_column.items()
            if _is_marked(row.get(column), f"{where}:{column}")
        }
        for column in self._named:
            types.update(self._types_named(row.get(column), f"{where}:{column}"))
        return GoldItem(
            id=str(row.get("id") or row.get("id_number") or number),
            text=f"{before}\n{text}" if before else text,
            types=frozenset(types),
            where=where,
            document=str(row.get(self._document) or "") or None if self._document else None,
        )

    def _types_named(self, cell: Any, where: str) -> Iterator[str]:
        for name in _names_in(cell):
            if is_no_distortion(name):
                continue
            entry = self._taxonomy.find(name)
            if entry is None:
                raise DataError(
                    f"'{name}' is not a type of {self._taxonomy.id}",
                    where=where,
                    hint=f"its types: {', '.join(entry.zh for entry in self._taxonomy.types)}",
                )
            yield entry.id


def _is_marked(cell: Any, where: str) -> bool:
    value = str("" if cell is None else cell).strip()
    if value not in ("1", "1.0", "True", "true", "0", "0.0", "False", "false", ""):
        raise DataError(f"expected 0 or 1, found '{value}'", where=where)
    return value[:1] in ("1", "T", "t")


def _names_in(cell: Any) -> list[str]:
    """Type names in a cell: a list, a list written as text, label records, or names with ; or |."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell.replace("'", '"'))
        except json.JSONDecodeError:
            return [cell]
    if isinstance(cell, list | tuple):
        return [str(entry["id"] if isinstance(entry, Mapping) else entry).strip() for entry in cell]
    whole = "" if cell is None else str(cell).strip()
    if whole.lower() in ("true", "false"):
        return ["1" if whole.lower() == "true" else "0"]
    if normalise_name(whole) == normalise_name("Magnification/Minimization"):
        return [whole]
    return [name.strip() for name in _SEPARATORS.split(whole) if name.strip()]


# --- gold ----------------------------------------------------------------------------------------
class GoldItem(Record):
    id: NonEmptyText
    text: NonEmptyText
    types: frozenset[str]
    """Ids of the taxonomy; empty when no distortion was found."""
    where: str = ""
    """`file:line` it comes from."""
    document: str | None = None
    """What the text is a part of, such as the id of a question; None where no column says so."""


@dataclass(frozen=True)
class GoldSet:
    name: str
    """Short name of the source, such as `cogdis`."""
    taxonomy: Taxonomy
    items: tuple[GoldItem, ...]
    licence: str
    n_rows: int
    """Rows read, duplicates included."""
    n_duplicates: int = 0
    """Rows left out because an earlier row has the same text and the same types."""
    n_contradictions: int = 0
    """Rows left out because an earlier row has the same text and other types."""

    cluster_column: str | None = None
    """The column of the items' documents; None where each text stands for itself."""

    @property
    def clusters(self) -> list[str] | None:
        """The document of each text; None where each text stands for itself."""
        if self.cluster_column is None:
            return None
        return [item.document or f"text {n}" for n, item in enumerate(self.items)]

    @property
    def texts(self) -> list[str]:
        return [item.text for item in self.items]

    @property
    def matrix(self) -> npt.NDArray[np.bool_]:
        return type_matrix((item.types for item in self.items), self.taxonomy)

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(self.taxonomy.id.encode())
        for item in self.items:
            line = f"\n{item.text}\t{','.join(sorted(item.types))}"
            digest.update(line.encode("utf-8", "replace"))
        return digest.hexdigest()


def type_matrix(type_sets: Iterable[Iterable[str]], taxonomy: Taxonomy) -> npt.NDArray[np.bool_]:
    """`(items, types)`: which types each item has, in the taxonomy's order."""
    place = {type_id: column for column, type_id in enumerate(taxonomy.ids)}
    rows = [[place[type_id] for type_id in types] for types in type_sets]
    matrix = np.zeros((len(rows), len(place)), bool)
    for row, columns in zip(matrix, rows, strict=True):
        row[columns] = True
    return matrix
