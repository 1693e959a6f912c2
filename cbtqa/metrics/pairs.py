"""Reading predictions and references, and laying them side by side by question id.

A file is JSONL, JSON, CSV, TSV, Parquet, a folder of Parquet, a folder that `datasets` saved, or
a dataset built by `cbtqa build-dataset` (whose test split is read). Columns are found by their
usual names or named by setting.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from cbtqa.dataset_folder import has_splits, source_rows
from cbtqa.endings import Ending, ending_of, reason_text
from cbtqa.errors import DataError, UsageError
from cbtqa.metrics.text.texts import Item
from cbtqa.records import STEP_NAMES, Risk, reads_question_only

ID_NAMES = ("question_id", "id", "questionID")
PREDICTION_NAMES = ("text", "prediction", "predict", "answer", "output", "response")
REFERENCE_NAMES = ("answer", "reference", "text", "label", "output")
SENTENCE_ENDS = "。！？!?….~～”’\"')）】》」』♡❤"
"""A text that ends in none of these, nor in an emoji, looks cut."""
N_SHOWN = 5


@dataclass(frozen=True)
class Columns:
    """Names of columns; None lets the usual names decide."""

    id: str | None = None
    text: str | None = None
    cluster: str | None = None
    """Column that groups rows of one question; None: every row is its own question."""
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

    @cached_property
    def sha256(self) -> str:
        """Of all ids and texts in order: resampling depends on the order."""
        digest = hashlib.sha256()
        for question_id, item in zip(self.ids, self.items, strict=True):
            text = "" if item is None else item.text
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


def read_references(path: Path, columns: Columns, split: str) -> References:
    """The references of a file or dataset; a DataError for a missing column or a repeated id."""
    rows = list(_keyed_rows(path, columns, REFERENCE_NAMES, split))
    if not rows:
        raise DataError("holds no row", where=str(path))
    clusters = tuple(
        _cluster(row, columns.cluster, question_id, where) for where, question_id, _, row in rows
    )
    return References(
        name=path.name,
        ids=tuple(question_id for _, question_id, _, _ in rows),
        clusters=clusters,
        items=_as_one_source(
            None if text is None else _item(text, question_id, row, where)
            for where, question_id, text, row in rows
        ),
        text_column=_text_column(rows[0][3], columns, REFERENCE_NAMES, rows[0][0]),
    )


def read_predictions(
    path: Path, columns: Columns, references: References, split: str | None = None
) -> Predictions:
    """One system's answers; a DataError as for references, or when no id is theirs.

    Args:
        split: of a built dataset; None when the references are no dataset, for a dataset of
            predictions then means that the two were swapped: a UsageError.
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
    systems: Counter[str] = Counter()
    n_cut, text_column = 0, ""
    for where, question_id, text, row in _keyed_rows(path, columns, text_names, split or "all"):
        text_column = text_column or _text_column(row, columns, text_names, where)
        item = None if text is None else _item(text, question_id, row, where)
        found[question_id] = item
        systems[str(row.get("system") or own_name)] += 1
        n_cut += item is not None and is_cut(item.text, _finish_reason(row))
    known = set(references.ids)
    extra = [question_id for question_id in found if question_id not in known]
    if len(extra) == len(found):
        shown = ", ".join(extra[:N_SHOWN]) or "no row at all"
        raise DataError(
            f"no id of {references.name} occurs here (found {shown})",
            where=str(path),
            hint=f"references have ids such as {', '.join(references.ids[:N_SHOWN])}; "
            "is the split or the id column another?",
        )
    found = dict(zip(found, _as_one_source(found.values()), strict=True))
    items = tuple(found.get(question_id) for question_id in references.ids)
    counts = {
        "n_rows": len(found),
        "n_not_in_references": len(extra),
        "n_missing": len(references.ids) - len(found) + len(extra),
        "n_none": sum(one in found and found[one] is None for one in references.ids),
        "n_cut": n_cut,
        **_text_counts(items, references.items),
    }
    system = next(iter(systems)) if len(systems) == 1 else own_name
    return Predictions(system, items, counts, text_column)


def _text_counts(items: Sequence[Item | None], references: Sequence[Item | None]) -> dict[str, int]:
    texts = [item.text.strip() for item in items if item is not None]
    repeats = Counter(text for text in texts if text)
    return {
        "n_empty": sum(not text for text in texts),
        "n_identical": sum(
            item is not None and other is not None and item.text.strip() == other.text.strip()
            for item, other in zip(items, references, strict=True)
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
    else:
        yield from source_rows(path, split, "utf-8" if is_named and _is_utf8(path) else encoding)


def _is_utf8(path: Path) -> bool:
    """Whether a text file can be read as UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except (UnicodeDecodeError, OSError):
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


def _keyed_rows(
    path: Path, columns: Columns, text_names: Sequence[str], split: str
) -> Iterator[tuple[str, str, str | None, dict[str, Any]]]:
    """Yields where, id, text (None when there is no answer) and the whole row."""
    seen: dict[str, str] = {}
    id_name = text_name = ""
    for where, row in _rows(path, split, columns.encoding):
        if not id_name:
            flag = f"{columns.prefix}id-column"
            id_name = _column(row, columns.id, ID_NAMES, "an id", flag, where)
            text_name = _text_column(row, columns, text_names, where)
        value, text = row.get(id_name), row.get(text_name)
        if value is None or not str(value).strip():
            raise DataError("the id is missing", where=f"{where}:{id_name}")
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"expected text, found {type(text).__name__}", where=f"{where}:{text_name}"
            )
        question_id = str(value)
        if question_id in seen:
            raise DataError(
                f"the id {question_id} was already at {seen[question_id]}",
                where=f"{where}:{id_name}",
                hint="keep one row per id; for several answers to a question give each row an id "
                "of its own and name the question with --cluster-column",
            )
        seen[question_id] = where
        yield where, question_id, text, row


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


def _cluster(row: Mapping[str, Any], name: str | None, question_id: str, where: str) -> str:
    if name is None:
        return question_id
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
