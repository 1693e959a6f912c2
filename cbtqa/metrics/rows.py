"""The rows of a file of predictions or references: columns found, ids and texts checked.

A file is JSONL, JSON, CSV, TSV, Parquet, plain text (one answer a line), a folder of Parquet, a
folder that `datasets` saved, or a built dataset. `pairs` lays the rows of two files side by side.

    for row in keyed_rows(Path("qwen.jsonl"), Columns(), PREDICTION_NAMES, "all"):
        row.id, row.item
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from cbtqa.dataset_folder import has_splits, source_rows
from cbtqa.errors import DataError
from cbtqa.files import open_text
from cbtqa.metrics.grouping import QUESTION_IDS, QUESTION_TEXTS
from cbtqa.metrics.text.texts import Item
from cbtqa.paths import readable
from cbtqa.records import STEP_NAMES, Risk, reads_question_only

ID_NAMES = ("question_id", "id", "questionID")
TEXT_SUFFIXES = (".txt", ".zh", ".hyp", ".ref", "")
"""Names of plain text, one answer a line, as sacrebleu takes it."""
_LIKE_AN_ID = re.compile(
    r"(?:^|[\W_])(?:[a-z]?id|uuid|guid|idx|index|key|nr|no)$|编号$|序号$", re.IGNORECASE
)
_CAMEL_ID = re.compile(r"[a-z](?:ID|Id|Idx)$")
ANSWER_KEYS = ("answer_text", "text", "answer")
"""Where an entry of a list of answers holds its text, when it is not the text itself."""

MAX_TEXT_CHARS = 50_000
"""Comparing two texts takes the product of their lengths: 8 s for two of this length."""


@dataclass(frozen=True)
class Columns:
    """Names of columns; None lets the usual names decide."""

    id: str | None = None
    text: str | None = None
    cluster: str | None = None
    """Column that groups rows of one question; None: as the file's own columns tell."""
    encoding: str = "utf-8"
    """Of text files that are not UTF-8."""
    prefix: str = "--"
    """What the flags that name these columns start with."""


def raw_rows(path: Path, split: str, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(where, row)` of a file or folder, as it is; plain text in the column `text`."""
    is_named = encoding.lower().replace("_", "-") not in ("utf-8", "utf8")
    if path.is_dir() and not has_splits(path) and list(path.rglob("*.arrow")):
        for shard in sorted(path.rglob("*.arrow")):
            yield from _read_arrow(shard)
        return
    encoding = "utf-8" if is_named and _is_utf8(path) else encoding
    if path.suffix.lower() in TEXT_SUFFIXES and (path.suffix or path.is_file()):
        with open_text(path, encoding) as stream:
            for number, line in enumerate(stream, 1):
                if number == 1 and line.startswith("{") and line.rstrip().endswith("}"):
                    hint = "rename it to end in .jsonl"
                    raise DataError("looks like JSON Lines, not text", where=str(path), hint=hint)
                yield f"{path}:{number}", {"text": line.rstrip("\r\n")}
    else:
        yield from source_rows(path, split, encoding)


def _is_utf8(path: Path) -> bool:
    """Whether a text file can be read as UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with readable(path), path.open("rb") as stream:
            while block := stream.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _read_arrow(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of one file that `datasets.save_to_disk` wrote."""
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(path) as reader:
            rows = (row for batch in reader for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield f"{path}:row {number}", row
    except pa.ArrowInvalid as error:
        raise DataError(f"not an Arrow stream: {error}", where=str(path)) from None


class KeyedRow(NamedTuple):
    """One row of predictions or references."""

    where: str
    id: str
    """Its id, or its number where the file has none."""
    has_id: bool
    item: Item | None
    """None when there is no answer."""
    values: dict[str, Any]
    id_column: str | None = None
    others: tuple[Item, ...] = ()
    """Further answers, where the row holds a list."""

    @property
    def asked(self) -> str:
        """The question and its description; empty where the row does not hold them as text."""
        names = [name for name in QUESTION_TEXTS if isinstance(self.values.get(name), str)]
        parts = [*names[:1], *(["description"] if names else [])]
        return "\n".join(str(self.values[name]) for name in parts if self.values.get(name))


def keyed_rows(
    path: Path,
    columns: Columns,
    text_names: Sequence[str],
    split: str,
    *,
    takes_lists: bool = False,
) -> Iterator[KeyedRow]:
    """The rows of a file, in order; a DataError for a bad or repeated id and for a bad text.

    Args:
        text_names: the usual names of the column with the text, best first.
        takes_lists: whether a row may hold a list of texts, as references do.
    """
    seen: dict[str, str] = {}
    text_name, id_name = "", None
    for number, (where, row) in enumerate(raw_rows(path, split, columns.encoding), 1):
        if not text_name:
            text_name = text_column_of(row, columns, text_names, where)
            id_name = _id_column(row, columns, text_name, where)
            if columns.id is None and id_name in QUESTION_IDS and "id" in row:
                # several rows to a question: `question_id` groups them, `id` names them
                found = raw_rows(path, split, columns.encoding)
                asked = [str(row.get(id_name)) for _, row in found]
                id_name = id_name if len(set(asked)) == len(asked) else "id"
        value, text = number if id_name is None else row.get(id_name), row.get(text_name)
        place = where if id_name is None else f"{where}:{id_name}"
        if value is None or not str(value).strip():
            raise DataError("the id is missing", where=place)
        texts = _texts_of(text, f"{where}:{text_name}", takes_lists=takes_lists)
        question_id = str(value)
        if question_id in seen:
            raise DataError(
                f"the id {question_id} was already at {seen[question_id]}",
                where=place,
                hint="keep one row per id; for several answers to a question give each row an id "
                "of its own and name the question with --cluster-column",
            )
        seen[question_id] = where
        items = tuple(_item(text, question_id, row, where) for text in texts)
        first = items[0] if items else None
        yield KeyedRow(where, question_id, id_name is not None, first, row, id_name, items[1:])


def _texts_of(value: object, where: str, *, takes_lists: bool) -> list[str]:
    """The texts of a cell: none, one, or those of a list, without its blank ones."""
    if isinstance(value, list) and takes_lists:
        entries = [
            next((one[key] for key in ANSWER_KEYS if key in one), one)
            if isinstance(one, dict)
            else one
            for one in value
        ]
        found = [text for one in entries for text in _texts_of(one, where, takes_lists=False)]
        return [text for text in found if text.strip()]
    if value is None:
        return []
    if not isinstance(value, str):
        raise DataError(f"expected text, found {type(value).__name__}", where=where)
    if len(value) > MAX_TEXT_CHARS:
        raise DataError(
            f"{len(value):,} characters, at most {MAX_TEXT_CHARS:,} are scored",
            where=where,
            hint="is a whole file in one cell?",
        )
    return [value]


def _id_column(row: Mapping[str, Any], columns: Columns, text_name: str, where: str) -> str | None:
    """The column with the ids; None for rows that have none and pair by their order."""
    flag = f"{columns.prefix}id-column"
    if columns.id is None and not any(name in row for name in ID_NAMES):
        # an id under another name must not be passed over: rows in another order would be paired
        alike = [
            name
            for name in map(str, row)
            if name != text_name and (_LIKE_AN_ID.search(name) or _CAMEL_ID.search(name))
        ]
        if not alike:
            return None
        raise DataError(
            f"no column with an id (none of {list(ID_NAMES)}), but {', '.join(alike)} may be one",
            where=where,
            hint=f"columns found: {', '.join(map(str, row))}; name the right one with {flag}",
        )
    return _column(row, columns.id, ID_NAMES, "an id", flag, where)


def text_column_of(
    row: Mapping[str, Any], columns: Columns, names: Sequence[str], where: str
) -> str:
    flag = "--prediction-column" if columns.prefix == "--" else f"{columns.prefix}column"
    return _column(row, columns.text, names, "the text", flag, where)


def _column(
    row: Mapping[str, Any],
    wanted: str | None,
    usual: Sequence[str],
    what: str,
    flag: str,
    where: str,
) -> str:
    for name in [wanted] if wanted else usual:
        if name in row:
            return name
    raise DataError(
        f"no column '{wanted}'" if wanted else f"no column with {what} (none of {list(usual)})",
        where=where,
        hint=f"columns found: {', '.join(map(str, row))}; name the right one with {flag}",
    )


def cluster_of(row: Mapping[str, Any], name: str, where: str) -> str:
    if row.get(name) is None:
        raise DataError("the cluster is missing", where=f"{where}:{name}")
    return str(row[name])


def _item(text: str, question_id: str, row: Mapping[str, Any], where: str) -> Item:
    risk = row.get("risk")
    labels = _labels(row.get("distortions"), f"{where}:distortions")
    return Item(
        text=text,
        has_steps=_has_steps(row),
        labels=None if labels is None else frozenset(label for label, _ in labels),
        is_labelled_by_question=bool(labels)
        and all(reads_question_only(labeller) for _, labeller in labels or ()),
        risk=risk if risk in get_args(Risk) else None,
        question_id=question_id,
    )


def _has_steps(row: Mapping[str, Any]) -> bool | None:
    steps = row["steps"] if isinstance(row.get("steps"), dict) else row
    held = [bool(str(steps.get(name) or "").strip()) for name in STEP_NAMES]
    return all(held) if any(held) else None


def as_one_source(rows: Iterable[Item | None]) -> tuple[Item | None, ...]:
    """The rows of one file, where an empty cell means what the other rows make of it.

    In a file with steps, an answer without any lacks them. A list of labels that is empty in every
    row is no labelling. A row without labels was labelled by whatever labelled the others.
    """
    rows = tuple(rows)
    items = [item for item in rows if item is not None]
    has_steps = any(item.has_steps is not None for item in items)
    labelled = [item for item in items if item.labels]
    is_by_question = bool(labelled) and all(item.is_labelled_by_question for item in labelled)

    def settled(item: Item) -> Item:
        return replace(
            item,
            has_steps=bool(item.has_steps) if has_steps else None,
            labels=item.labels if labelled else None,
            is_labelled_by_question=item.is_labelled_by_question if item.labels else is_by_question,
        )

    return tuple(None if item is None else settled(item) for item in rows)


def _labels(value: object, where: str) -> list[tuple[str, str]] | None:
    """Distortion ids with their labellers, "" where only the id is given; None without a column."""
    if isinstance(value, str):  # a list in a CSV cell
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise DataError("expected a JSON list of distortions", where=where) from None
    if value is None:
        return None
    if not isinstance(value, list):
        raise DataError(f"expected a list, found {type(value).__name__}", where=where)
    labels = [label if isinstance(label, dict) else {"id": label} for label in value]
    if not all(isinstance(label.get("id"), str) for label in labels):
        raise DataError("expected distortion ids", where=where)
    return [(label["id"], str(label.get("labeller") or "")) for label in labels]
