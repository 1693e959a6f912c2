"""Reading predictions and references, and laying them side by side by question id.

A file is JSONL, JSON, CSV, TSV, Parquet, plain text (one answer a line), a folder of Parquet, a
folder that `datasets` saved, or a dataset built by `cbtqa build-dataset` (whose test split is
read). Columns are found by their usual names or named by setting. Where neither side has ids, rows
belong together by their order, and their numbers must agree. A file of predictions may bring its
own references:

    {"prompt": ..., "predict": ..., "label": ...}      LLaMA-Factory, generated_predictions.jsonl
    {"response": ..., "labels": ..., "messages": ...}  ms-swift, the result of `swift infer`
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

from cbtqa.dataset_folder import has_splits, source_rows
from cbtqa.endings import Ending, ending_of, reason_text
from cbtqa.errors import DataError, UsageError
from cbtqa.files import open_text
from cbtqa.metrics.grouping import (
    EACH_ROW,
    QUESTION_IDS,
    SAME_REFERENCE,
    Grouping,
    clusters_by,
    clusters_by_reference,
    ignored_columns,
    is_telling,
    names_questions,
    question_column,
)
from cbtqa.metrics.text.texts import Item
from cbtqa.paths import readable
from cbtqa.psyqa import read_questions
from cbtqa.records import STEP_NAMES, Rejection, Risk, reads_question_only
from cbtqa.text_faults import find_machine_text

ID_NAMES = ("question_id", "id", "questionID")
PREDICTION_NAMES = ("text", "prediction", "predict", "answer", "output", "response")
REFERENCE_NAMES = ("answer", "reference", "text", "label", "labels", "output")
OWN_REFERENCE_NAMES = ("label", "labels", "reference")
"""Columns of a file of predictions that hold what they are to be scored against."""
TEXT_SUFFIXES = (".txt", ".zh", ".hyp", ".ref", "")
"""Names of plain text, one answer a line, as sacrebleu takes it."""
_LIKE_AN_ID = re.compile(
    r"(?:^|[\W_])(?:[a-z]?id|uuid|guid|idx|index|key|nr|no)$|编号$|序号$", re.IGNORECASE
)
_CAMEL_ID = re.compile(r"[a-z](?:ID|Id|Idx)$")
SENTENCE_ENDS = "。！？!?….~～”’\"')）】》」』♡❤"
"""A text that ends in none of these, nor in an emoji, looks cut."""
N_SHOWN = 5

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


@dataclass(frozen=True)
class References:
    """The pairs' one side, in the order of the file."""

    name: str
    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    items: tuple[Item | None, ...]
    """None where the file holds no answer."""
    text_column: str = ""
    has_ids: bool = True
    """False where the ids are the rows' numbers."""
    grouping: Grouping = EACH_ROW
    """Where the clusters come from."""
    others: tuple[tuple[Item, ...], ...] = ()
    """Further answers to each question; empty where the file holds one each."""

    @cached_property
    def groups(self) -> list[tuple[Item, ...]]:
        """All answers of each row, one of no text where it has none."""
        firsts = ((item or Item(""),) for item in self.items)
        if not self.others:
            return list(firsts)
        return [first + more for first, more in zip(firsts, self.others, strict=True)]

    @property
    def n_texts(self) -> list[int]:
        """How many answers each row has."""
        n_more = [len(more) for more in self.others] or [0] * len(self.items)
        return [(item is not None) + n for item, n in zip(self.items, n_more, strict=True)]

    @cached_property
    def sha256(self) -> str:
        """Of all ids and texts in order: resampling depends on the order."""
        digest = hashlib.sha256()
        for question_id, group in zip(self.ids, self.groups, strict=True):
            text = "\x1f".join(item.text for item in group)
            digest.update(f"{question_id}\x1f{text}\x1e".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


@dataclass(frozen=True)
class Predictions:
    """One system's answers, laid beside the references."""

    system: str
    items: tuple[Item | None, ...]
    """One per reference; None where the system has no answer."""
    counts: dict[str, int]
    """Everything that is not a plain scored pair; see `docs/metrics.md`."""
    text_column: str = ""
    grouping: Grouping = EACH_ROW
    """What its file says of rows that belong together."""
    clusters: tuple[str, ...] = ()
    """One per reference, where its file names questions that stand several times."""
    has_row: tuple[bool, ...] = ()
    """One per reference: whether the file has a row for it, with an answer or without."""


def read_references(
    path: Path, columns: Columns, split: str, *, names: Sequence[str] = REFERENCE_NAMES
) -> References:
    """The references of a file or dataset; a DataError for a missing column or a repeated id.

    A file of questions with lists of answers, as PsyQA's, gives each question several references.
    """
    if (column := _answers_column(path, columns, names)) is not None:
        return _read_answer_lists(path, columns, column)
    rows = list(_keyed_rows(path, columns, names, split))
    if not rows:
        raise DataError("holds no row", where=str(path))
    text_column = _text_column(rows[0].values, columns, names, rows[0].where)
    clusters, grouping = _grouped(rows, columns, text_column)
    return References(
        name=path.name,
        ids=tuple(row.id for row in rows),
        clusters=clusters,
        items=_as_one_source(row.item for row in rows),
        text_column=text_column,
        has_ids=rows[0].has_id,
        grouping=grouping,
    )


def _answers_column(path: Path, columns: Columns, names: Sequence[str]) -> str | None:
    """The column whose first row is a list of answers; None where there is one answer a row."""
    if has_splits(path) or path.is_dir() or path.suffix.lower() in TEXT_SUFFIXES:
        return None
    _, row = next(_rows(path, "all", columns.encoding), ("", {}))
    if columns.text is None and any(name in row for name in names):
        return None
    column = columns.text or "answers"
    return column if isinstance(row.get(column), list) else None


def _read_answer_lists(path: Path, columns: Columns, column: str) -> References:
    """Questions with lists of answers, cleaned and with the ids of `psyqa.read_questions`."""
    named = {"answers": column} | ({} if columns.id is None else {"id": columns.id})
    rows = read_questions(path, encoding=columns.encoding, columns=named, with_answers=True)
    found: dict[str, list[Item]] = {}
    for row in rows:
        if not isinstance(row, Rejection):
            own = found.setdefault(row.question.id, [])
            own += [Item(answer.text, question_id=row.question.id) for answer in row.answers]
    if not any(found.values()):
        raise DataError(f"`{column}` holds no answer in any row", where=str(path))
    ids = tuple(found)
    return References(
        name=path.name,
        ids=ids,
        clusters=ids,
        items=tuple(own[0] if own else None for own in found.values()),
        text_column=column,
        grouping=Grouping(n_drawn=len(ids), n_rows=len(ids)),
        others=tuple(tuple(own[1:]) for own in found.values()),
    )


def _grouped(
    rows: Sequence[_KeyedRow], columns: Columns, text_column: str
) -> tuple[tuple[str, ...], Grouping]:
    """The question of each row, as the file tells or `--cluster-column` does."""
    values, ids = [row.values for row in rows], [row.id for row in rows]
    used = {text_column, *filter(None, (rows[0].id_column, columns.cluster))}
    by: str | None = None
    clusters = tuple(ids)
    if columns.cluster:
        clusters = tuple(_cluster(row.values, columns.cluster, row.where) for row in rows)
        by = columns.cluster
    elif by := question_column(values, used):
        clusters = clusters_by(values, ids, by)
    elif not names_questions(values, {text_column}):
        texts = [None if row.item is None else row.item.text for row in rows]
        found = clusters_by_reference(texts, ids)
        if 1 < len(set(found)) < len(found):
            clusters, by = found, SAME_REFERENCE
    ignored = ignored_columns(values, clusters, {*used, by or text_column})
    return clusters, Grouping(
        by=by, n_drawn=len(set(clusters)), n_rows=len(rows), ignored=tuple(ignored)
    )


def brings_references(path: Path, encoding: str = "utf-8", column: str | None = None) -> bool:
    """Whether the first row of a file of predictions holds its own reference as a text."""
    if path.is_dir() or path.suffix.lower() in TEXT_SUFFIXES:
        return False
    try:
        _, row = next(_rows(path, "all", encoding), ("", {}))
    except DataError:
        return False  # told when the predictions are read
    names = OWN_REFERENCE_NAMES if column is None else (column,)
    found = next((name for name in names if name in row), None)
    has_other = any(name in row for name in PREDICTION_NAMES if name != found)
    return found is not None and has_other and isinstance(row[found], str | None)


def read_own_references(paths: Sequence[Path], columns: Columns) -> References:
    """The references that files of predictions bring along, which must be the same in all.

    Raises:
        DataError: a file without, or with others than the first.
    """
    first: References | None = None
    for path in paths:
        read = read_references(path, columns, "all", names=OWN_REFERENCE_NAMES)
        if first is not None and read.sha256 != first.sha256:
            raise DataError(
                f"its `{read.text_column}` differs from that of {first.name}",
                where=str(path),
                hint="score one file at a time, or name the references of all with --ref",
            )
        first = first or read
    assert first is not None
    if not any(item and item.text.strip() for item in first.items):
        raise DataError(f"`{first.text_column}` holds no text in any row", where=str(paths[0]))
    return replace(first, name=f"{first.text_column} of {first.name}")


def read_predictions(
    path: Path, columns: Columns, references: References, split: str | None = None
) -> Predictions:
    """One system's answers; a DataError as for references, or when no id is theirs.

    Args:
        split: of a built dataset; without one, a dataset of predictions is a UsageError.
    """
    text_names: Sequence[str] = PREDICTION_NAMES
    if has_splits(path):
        text_names = REFERENCE_NAMES
        if split is None:
            raise UsageError(
                f"{path} is a dataset in the place of predictions, but --ref is none",
                hint="predictions come first, references after --ref",
            )
    own_name = path.name if path.is_dir() else path.stem
    found: dict[str, Item | None] = {}
    told: dict[str, Mapping[str, Any]] = {}
    systems: Counter[str] = Counter()
    n_cut, n_machine, text_column = 0, 0, ""
    for read in _keyed_rows(path, columns, text_names, split or "all"):
        if read.has_id != references.has_ids:
            raise _one_sided(path, references, read)
        text_column = text_column or _text_column(read.values, columns, text_names, read.where)
        found[read.id] = read.item
        not_these = (text_column, read.id_column, columns.cluster)
        told[read.id] = {
            name: value
            for name, value in read.values.items()
            if name not in not_these and is_telling(str(name))
        }
        systems[str(read.values.get("system") or own_name)] += 1
        n_cut += read.item is not None and is_cut(read.item.text, _finish_reason(read.values))
        n_machine += read.item is not None and find_machine_text(read.item.text) is not None
    _check_pairing(path, references, found)
    known = set(references.ids)
    n_extra = sum(question_id not in known for question_id in found)
    found = dict(zip(found, _as_one_source(found.values()), strict=True))
    items = tuple(found.get(question_id) for question_id in references.ids)
    counts = {
        "n_rows": len(found),
        "n_not_in_references": n_extra,
        "n_missing": len(references.ids) - len(found) + n_extra,
        "n_none": sum(one in found and found[one] is None for one in references.ids),
        "n_cut": n_cut,
        "n_machine": n_machine,
        **_text_counts(items, references.groups),
    }
    system = next(iter(systems)) if len(systems) == 1 else own_name
    clusters, grouping = _grouped_by_predictions(references, told)
    has_row = tuple(question_id in found for question_id in references.ids)
    return Predictions(system, items, counts, text_column, grouping, clusters, has_row)


def _grouped_by_predictions(
    references: References, told: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[str, ...], Grouping]:
    """The question of each reference by the predictions' columns, where the references have none.

    Args:
        told: by id, the values of columns that may group rows.
    """
    rows = [told.get(one, {}) for one in references.ids]
    clusters: tuple[str, ...] = ()
    by = None
    if references.grouping.by is None and (by := question_column(rows)):
        clusters = clusters_by(rows, references.ids, by)
    ignored = ignored_columns(rows, clusters or references.clusters, filter(None, (by,)))
    n_drawn = len(set(clusters or references.clusters))
    return clusters, Grouping(by=by, n_drawn=n_drawn, n_rows=len(rows), ignored=tuple(ignored))


def _check_pairing(path: Path, references: References, found: Mapping[str, object]) -> None:
    if not references.has_ids and len(found) != len(references.ids):
        raise DataError(
            f"{len(found):,} rows, and {references.name} has {len(references.ids):,}: rows without "
            "ids belong together by their order alone",
            where=str(path),
            hint="give both sides an id column, or the same rows",
        )
    if not set(references.ids) & found.keys():
        shown = ", ".join(list(found)[:N_SHOWN]) or "no row at all"
        raise DataError(
            f"no id of {references.name} occurs here (found {shown})",
            where=str(path),
            hint=f"references have ids such as {', '.join(references.ids[:N_SHOWN])}; "
            "is the split or the id column another?",
        )


def _one_sided(path: Path, references: References, read: _KeyedRow) -> DataError:
    columns = ", ".join(map(str, read.values))
    if read.has_id:
        return DataError(
            f"has ids, and the references in {references.name} have none: rows cannot be paired",
            where=str(path),
            hint="name their id column with --ref-id-column",
        )
    hint = f"columns found: {columns}; name the right one with --id-column"
    if any(name in read.values for name in OWN_REFERENCE_NAMES):
        hint += ", or leave --ref out to score against the file's own references"
    return DataError(
        f"no column with an id (none of {list(ID_NAMES)}), and the references in "
        f"{references.name} have ids",
        where=read.where,
        hint=hint,
    )


def _text_counts(items: Sequence[Item | None], groups: Sequence[Sequence[Item]]) -> dict[str, int]:
    texts = [item.text.strip() for item in items if item is not None]
    repeats = Counter(text for text in texts if text)
    return {
        "n_empty": sum(not text for text in texts),
        "n_identical": sum(
            item is not None and item.text.strip() in {one.text.strip() for one in group}
            for item, group in zip(items, groups, strict=True)
        ),
        "n_repeated": sum(count for count in repeats.values() if count > 1),
    }


def is_cut(text: str, finish_reason: str | None) -> bool:
    """True when its finish reason is not that of a whole text, or it ends inside a sentence."""
    if finish_reason is not None:
        return ending_of(finish_reason) is not Ending.WHOLE
    last = text.rstrip()[-1:]
    return bool(last) and (last.isalnum() or last in "，、；：,;:") and last not in SENTENCE_ENDS


def _finish_reason(row: Mapping[str, Any]) -> str | None:
    made = row.get("provenance")
    reason = made.get("finish_reason") if isinstance(made, dict) else row.get("finish_reason")
    return None if isinstance(reason, float) else reason_text(reason)  # pandas' NaN: no reason


def _rows(path: Path, split: str, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
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


class _KeyedRow(NamedTuple):
    """One row of predictions or references."""

    where: str
    id: str
    """Its id, or its number where the file has none."""
    has_id: bool
    item: Item | None
    """None when there is no answer."""
    values: dict[str, Any]
    id_column: str | None = None


def _keyed_rows(
    path: Path, columns: Columns, text_names: Sequence[str], split: str
) -> Iterator[_KeyedRow]:
    """The rows of a file, in order."""
    seen: dict[str, str] = {}
    text_name, id_name = "", None
    for number, (where, row) in enumerate(_rows(path, split, columns.encoding), 1):
        if not text_name:
            text_name = _text_column(row, columns, text_names, where)
            id_name = _id_column(row, columns, text_name, where)
            if columns.id is None and id_name in QUESTION_IDS and "id" in row:
                # several rows to a question: `question_id` groups them, `id` names them
                asked = [str(one.get(id_name)) for _, one in _rows(path, split, columns.encoding)]
                id_name = id_name if len(set(asked)) == len(asked) else "id"
        value, text = number if id_name is None else row.get(id_name), row.get(text_name)
        place = where if id_name is None else f"{where}:{id_name}"
        if value is None or not str(value).strip():
            raise DataError("the id is missing", where=place)
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"expected text, found {type(text).__name__}", where=f"{where}:{text_name}"
            )
        if text is not None and len(text) > MAX_TEXT_CHARS:
            raise DataError(
                f"{len(text):,} characters, at most {MAX_TEXT_CHARS:,} are scored",
                where=f"{where}:{text_name}",
                hint="is a whole file in one cell?",
            )
        question_id = str(value)
        if question_id in seen:
            raise DataError(
                f"the id {question_id} was already at {seen[question_id]}",
                where=place,
                hint="keep one row per id; for several answers to a question give each row an id "
                "of its own and name the question with --cluster-column",
            )
        seen[question_id] = where
        item = None if text is None else _item(text, question_id, row, where)
        yield _KeyedRow(where, question_id, id_name is not None, item, row, id_name)


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


def _text_column(row: Mapping[str, Any], columns: Columns, names: Sequence[str], where: str) -> str:
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


def _cluster(row: Mapping[str, Any], name: str, where: str) -> str:
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


def _as_one_source(rows: Iterable[Item | None]) -> tuple[Item | None, ...]:
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
