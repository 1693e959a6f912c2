"""Predictions and references, laid side by side by question id.

Where neither side has ids, rows belong together by their order, and their numbers must agree. A
question may have several references: lists in a file, several files, or PsyQA's human answers. A
file of predictions may bring its own references:

    {"prompt": ..., "predict": ..., "label": ...}      LLaMA-Factory, generated_predictions.jsonl
    {"response": ..., "labels": ..., "messages": ...}  ms-swift, the result of `swift infer`
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cbtqa.dataset_folder import has_splits
from cbtqa.endings import Ending, ending_of, reason_text
from cbtqa.errors import DataError, UsageError
from cbtqa.metrics.grouping import (
    EACH_ROW,
    SAME_REFERENCE,
    Grouping,
    clusters_by,
    clusters_by_reference,
    ignored_columns,
    is_telling,
    names_questions,
    question_column,
)
from cbtqa.metrics.rows import (
    ID_NAMES,
    TEXT_SUFFIXES,
    Columns,
    KeyedRow,
    as_one_source,
    cluster_of,
    keyed_rows,
    raw_rows,
    text_column_of,
)
from cbtqa.metrics.text.texts import Item
from cbtqa.psyqa import ALIASES, read_questions
from cbtqa.records import Rejection
from cbtqa.text_faults import find_machine_text

PREDICTION_NAMES = ("text", "prediction", "predict", "answer", "output", "response")
ANSWERS = "answers"
REFERENCE_NAMES = (
    *("answer", "reference", "text", "label", "labels", "output"),
    *("references", ANSWERS),
)
OWN_REFERENCE_NAMES = ("label", "labels", "reference")
"""Columns of a file of predictions that hold what they are to be scored against."""
SENTENCE_ENDS = "。！？!?….~～”’\"')）】》」』♡❤"
"""A text that ends in none of these, nor in an emoji, looks cut."""
N_SHOWN = 5


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
    asked: tuple[str, ...] = ()
    """Each row's question with its description; empty where no file names them."""

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

    Where the column holds lists, each question has several references. Of a file of questions, as
    PsyQA's, ids and cleaning are those of every other verb.
    """
    if (column := _answers_column(path, columns, names)) is not None:
        return _read_answer_lists(path, columns, column)
    rows = list(keyed_rows(path, columns, names, split, takes_lists=True))
    if not rows:
        raise DataError("holds no row", where=str(path))
    text_column = text_column_of(rows[0].values, columns, names, rows[0].where)
    clusters, grouping = _grouped(rows, columns, text_column)
    settled = iter(as_one_source(item for row in rows for item in (row.item, *row.others)))
    groups = [[next(settled) for _ in (row.item, *row.others)] for row in rows]
    others = tuple(tuple(item for item in group[1:] if item) for group in groups)
    return References(
        name=path.name,
        ids=tuple(row.id for row in rows),
        clusters=clusters,
        items=tuple(group[0] for group in groups),
        text_column=text_column,
        has_ids=rows[0].has_id,
        grouping=grouping,
        others=others if any(others) else (),
        asked=tuple(row.asked for row in rows),
    )


def joined_references(parts: Sequence[References]) -> References:
    """Several files as several references to each question, in the order of the files.

    Questions that a later file alone has come after the others.

    Raises:
        DataError: some have ids and some not, rows without ids differ in number, or a file shares
            no id with the first.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        _refuse_unpaired(first, part)
    items: dict[str, list[Item]] = {}
    clusters, asked = dict[str, str](), dict[str, str]()
    for part in parts:
        theirs = part.asked or ("",) * len(part.ids)
        rows = zip(part.ids, part.items, part.groups, part.clusters, theirs, strict=True)
        for one, item, group, cluster, question in rows:
            items.setdefault(one, []).extend(group if item else group[1:])
            clusters.setdefault(one, cluster)
            asked[one] = asked.get(one) or question
    n_drawn = len(set(clusters.values()))
    return replace(
        first,
        name=" + ".join(part.name for part in parts),
        ids=tuple(items),
        clusters=tuple(clusters.values()),
        items=tuple(own[0] if own else None for own in items.values()),
        grouping=first.grouping.model_copy(update={"n_drawn": n_drawn, "n_rows": len(items)}),
        others=tuple(tuple(own[1:]) for own in items.values()),
        asked=tuple(asked.values()),
    )


def _refuse_unpaired(first: References, part: References) -> None:
    if part.has_ids != first.has_ids:
        some, none = (part, first) if part.has_ids else (first, part)
        raise DataError(
            f"{some.name} has ids and {none.name} has none: rows cannot be paired",
            hint="give all references ids, or none",
        )
    if not first.has_ids and len(part.ids) != len(first.ids):
        raise DataError(
            f"{first.name} has {len(first.ids):,} rows and {part.name} {len(part.ids):,}: "
            "without ids they belong together by their order alone",
            hint="give each row an id, or the same rows to all",
        )
    if not set(part.ids) & set(first.ids):
        raise DataError(
            f"no id of {first.name} occurs in {part.name}",
            hint=f"{', '.join(first.ids[:N_SHOWN])}; {', '.join(part.ids[:N_SHOWN])}",
        )


def _answers_column(path: Path, columns: Columns, names: Sequence[str]) -> str | None:
    """The column of a file of questions that holds lists of answers; None in any other file."""
    if has_splits(path) or path.is_dir() or path.suffix.lower() in TEXT_SUFFIXES:
        return None
    _, row = next(raw_rows(path, "all", columns.encoding), ("", {}))
    if columns.text is None and any(name in row for name in names if name != ANSWERS):
        return None
    column = columns.text or ANSWERS
    is_of_questions = any(str(name).lower() in ALIASES["question"] for name in row)
    return column if is_of_questions and isinstance(row.get(column), list) else None


def _read_answer_lists(path: Path, columns: Columns, column: str) -> References:
    """Questions with lists of answers, cleaned and with the ids of `psyqa.read_questions`."""
    named = {"answers": column} | ({} if columns.id is None else {"id": columns.id})
    rows = read_questions(path, encoding=columns.encoding, columns=named, with_answers=True)
    found: dict[str, list[Item]] = {}
    asked: dict[str, str] = {}
    for row in rows:
        if not isinstance(row, Rejection):
            question = row.question
            asked.setdefault(question.id, f"{question.question}\n{question.description}".strip())
            own = found.setdefault(question.id, [])
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
        asked=tuple(asked.values()),
    )


def _grouped(
    rows: Sequence[KeyedRow], columns: Columns, text_column: str
) -> tuple[tuple[str, ...], Grouping]:
    """The question of each row, as the file tells or `--cluster-column` does."""
    values, ids = [row.values for row in rows], [row.id for row in rows]
    used = {text_column, *filter(None, (rows[0].id_column, columns.cluster))}
    by: str | None = None
    clusters = tuple(ids)
    if columns.cluster:
        clusters = tuple(cluster_of(row.values, columns.cluster, row.where) for row in rows)
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
    """Whether the first row of a file of predictions holds its own references as texts."""
    if path.is_dir() or path.suffix.lower() in TEXT_SUFFIXES:
        return False
    try:
        _, row = next(raw_rows(path, "all", encoding), ("", {}))
    except DataError:
        return False  # told when the predictions are read
    names = OWN_REFERENCE_NAMES if column is None else (column,)
    found = next((name for name in names if name in row), None)
    has_other = any(name in row for name in PREDICTION_NAMES if name != found)
    if found is None or not has_other:
        return False
    value = row[found]
    is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return is_list or isinstance(value, str | None)


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
    for read in keyed_rows(path, columns, text_names, split or "all"):
        if read.has_id != references.has_ids:
            raise _one_sided(path, references, read)
        text_column = text_column or text_column_of(read.values, columns, text_names, read.where)
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
    found = dict(zip(found, as_one_source(found.values()), strict=True))
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


def _one_sided(path: Path, references: References, read: KeyedRow) -> DataError:
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
