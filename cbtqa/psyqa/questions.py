"""PsyQA's rows, and its common forks', as records.

Owns the schema: which column is which, what a row must hold, how text is cleaned, when two rows
are the same. One row of the published file:

    {"question": "...", "description": "...", "keywords": "恋爱,恋爱经营", "questionID": 4394,
     "answers": [{"answer_text": "...", "has_label": false, "labels_sequence": null}]}
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError, UsageError
from cbtqa.files import sha256_of
from cbtqa.psyqa.damage import (
    clean,
    find_bad_id,
    find_wrong_decoding,
    is_spreadsheet_error,
    move_offset,
)
from cbtqa.psyqa.rows import Row, identify, iterate_rows
from cbtqa.records import Question, Reason, ReferenceAnswer, Rejection, StrategySpan
from cbtqa.shapes import BadField, are_turns, as_list, first_turn, name_of, read_turns, shape_of

ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("questionid", "qid", "idx", "id", "编号"),
    "question": ("question", "title", "questiontitle", "标题", "问题"),
    "description": ("description", "content", "desc", "questiondescription", "detail", "描述"),
    "keywords": ("keywords", "keyword", "tags", "tag", "关键词", "标签"),
    "answers": (
        *("answers", "answer", "responses", "回答"),
        *("answertext", "response", "reply", "答案", "回复"),
    ),
}
"""Field to the column names in circulation, best first; case, `_`, `-` and blanks don't count."""
MAX_CHARS = 20_000
"""Default limit for one text, assumed: 50 times PsyQA's longest description (400)."""
MAX_ID_CHARS = 200
FIRST_TURN = "{} (first turn)"
"""What stands for the question's column where a conversation's first turn is the question."""
PATIENCE_ROWS = 20
"""After so many rows without a required column the whole file is rejected."""
_keyword_separator = re.compile(r"[,，、;；]")


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One usable row: the question, its human answers, and the rejected ones."""

    question: Question
    answers: tuple[ReferenceAnswer, ...]
    """Empty unless asked for."""
    rejected_answers: tuple[Rejection, ...]
    """Answers that do not fit the schema; the question stays."""
    n_cleaned: int
    """Characters removed or replaced: control, zero-width, half a surrogate pair."""
    where: str
    """`file:line`."""
    is_further: bool = False
    """True for a later row of the same question: another answer, or another conversation."""


class _WrongDecoding(BadField):
    """A text that a wrong decoding has ruined."""


class _Seen:
    """A set of 64-bit hashes at 12 to 24 bytes an entry, where Python's own set takes 70.

    Two different texts of a million share a hash with a chance of 3 in 100 million.
    """

    def __init__(self) -> None:
        self._slots, self._n = array("Q", bytes(8 << 12)), 0

    def __contains__(self, key: int) -> bool:
        return self._slots[self._slot_of(key)] == key

    def add(self, key: int) -> None:
        """Adds a key that is not in the set."""
        self._slots[self._slot_of(key)] = key
        self._n += 1
        if 3 * self._n > 2 * len(self._slots):
            self._double()

    def _slot_of(self, key: int) -> int:
        slots = self._slots
        mask = len(slots) - 1
        slot = key & mask
        while (found := slots[slot]) and found != key:
            slot = (slot + 1) & mask
        return slot

    def _double(self) -> None:
        old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
        for key in filter(None, old):
            self._slots[self._slot_of(key)] = key


def _hash(text: str) -> int:
    # 0 marks a free slot
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") or 1


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """`["question=title"]` as `{"question": "title"}`.

    Raises:
        UsageError: no `=`, or a field that questions do not have.
    """
    columns = {}
    for pair in pairs:
        field, _, column = (part.strip() for part in pair.partition("="))
        if field not in ALIASES or not column:
            raise UsageError(
                f"--column {pair}: expected FIELD=COLUMN with FIELD one of {', '.join(ALIASES)}"
            )
        columns[field] = column
    return columns


class QuestionReader(Iterator[SourceItem | Rejection]):
    """The rows of PsyQA's JSON, or of JSONL, CSV, TSV or Parquet, as items and rejections.

    Streams: memory grows by 32 bytes a question only, to find duplicates. Of rows with the same
    id, or with the same cleaned question and description, the first usable one stays. A file
    whose first row has no id column gets ids from its content (`q-` and 16 hex digits of
    SHA-256); in any other file a row without an id is rejected. Where a row holds one answer, later
    rows of the same question bring further answers: they are items of their own with
    `with_answers`, and only counted without.

    Args:
        encoding: of text files; a UTF-8 byte-order mark is accepted and noted in `source`.
        columns: field (id, question, description, keywords, answers) to column, where the names
            in circulation do not fit. `ques_info.title` is `title` inside `ques_info`.
        first_turn: rows are conversations; what the client says first is the question.
        with_answers: also read the human answers.
        max_chars: longest text accepted, in characters.

    Raises:
        UsageError: `columns` names a field that questions do not have.
        DataError: at once when the file is not what its name promises; while reading when its
            syntax is broken, with the line and the number of rows read before, or when no row has
            the question or a column of `columns`.
    """

    def __init__(
        self,
        path: Path,
        *,
        encoding: str = "utf-8",
        columns: Mapping[str, str] | None = None,
        first_turn: bool = False,
        with_answers: bool = False,
        max_chars: int = MAX_CHARS,
    ) -> None:
        columns = columns or {}
        if unknown := sorted(set(columns) - set(ALIASES)):
            raise UsageError(f"questions have no field '{unknown[0]}': {', '.join(ALIASES)}")
        if first_turn and "question" in columns:
            raise UsageError("--first-turn and --column question=... exclude each other")
        self.source = identify(path, encoding)
        self.n_rows = 0
        """Rows read so far."""
        self.n_further = 0
        """Rows read so far of earlier questions: a further answer, another conversation."""
        self.columns: dict[str, str] = {}
        """Field to column, as found in the rows so far."""
        self.unused_columns: dict[str, None] = {}
        """Columns that belong to no field, in order of appearance."""
        self.makes_ids = False
        """True when the file has no id column."""
        self._mapping, self._with_answers, self._max_chars = columns, with_answers, max_chars
        self._takes_first_turn = first_turn
        self._conversation = ""  # of the row being read; two may begin alike
        self._dotted = [column for column in columns.values() if "." in column]
        self._nested: dict[str, None] = {}  # `column.key` of the first rows, for a hint
        self._resolved: dict[tuple[str, ...], dict[str, str]] = {}
        self._ids, self._texts = _Seen(), _Seen()
        self._id_of_text: dict[int, str] = {}  # of questions that may get further answers
        self._rows = iterate_rows(self.source)

    def __next__(self) -> SourceItem | Rejection:
        while True:
            row = self._next_row()
            item_id = f"row {row.number}"
            try:
                if not isinstance(row.value, dict):
                    found = row.problem or f"expected an object, found {name_of(row.value)}"
                    raise BadField("", found)
                value = self._with_reached(row.value)
                columns = self._columns_of(tuple(value))
                item_id = self._id_of(value, columns) or item_id
                item = self._item(row, value, columns, item_id)
            except BadField as bad:
                is_decoding = isinstance(bad, _WrongDecoding)
                reason = Reason.WRONG_DECODING if is_decoding else Reason.BAD_ROW
                return _reject(row, item_id, reason, bad.field, bad.problem)
            if isinstance(item, SourceItem) and item.is_further:
                self.n_further += 1
                if not self._with_answers:
                    continue
            return item

    def _with_reached(self, value: dict[str, Any]) -> dict[str, Any]:
        """The row, with the values that dotted columns reach and with the first turn."""
        if row_is_early := self.n_rows <= PATIENCE_ROWS:
            for name, inner in value.items():
                if isinstance(inner, dict):
                    self._nested.update(dict.fromkeys(f"{name}.{key}" for key in inner))
        for column in self._dotted:
            if column not in value and (found := _reach(value, column.split("."))) is not None:
                value = {**value, column: found}
        if not self._takes_first_turn:
            return value
        shape = shape_of(value)
        if shape is None:
            if row_is_early:
                self.unused_columns.update(dict.fromkeys(map(str, value)))
            raise BadField("", "this row holds no conversation")
        name = FIRST_TURN.format(shape.columns[0])
        self.columns.setdefault("question", name)  # also where no turn of it can be read
        turns = read_turns(value)
        text, self._conversation = first_turn(turns), as_json(turns)
        if not text:
            raise BadField(shape.columns[0], "the client says nothing")
        rest = {name: part for name, part in value.items() if name not in shape.columns}
        return {**rest, name: text}

    def _next_row(self) -> Row:
        for row in self._rows:
            if row.number == PATIENCE_ROWS + 1:
                self._require_columns(self.columns)
            self.n_rows = row.number
            return row
        if 0 < self.n_rows <= PATIENCE_ROWS:
            self._require_columns(self.columns)
        raise StopIteration

    def _item(
        self, row: Row, value: dict[str, Any], columns: Mapping[str, str], item_id: str
    ) -> SourceItem | Rejection:
        title, n_title = self._text(value, columns, "question")
        description, n_description = self._text(value, columns, "description")
        if not title:
            also = f"; the description has {len(description)} characters" if description else ""
            raise BadField(columns.get("question", "question"), f"missing or empty{also}")
        whole = f"{title}\n{description}"
        if whole.isascii() and (wrong := find_wrong_decoding(whole)):
            raise _WrongDecoding(columns["question"], str(wrong))
        if "id" not in columns:
            if not self.makes_ids:
                raise BadField("id", "this row has no id, and the first row has one")
            item_id = f"q-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"
        id_key, text_key = _hash(item_id), _hash(whole)
        only_answer = self._conversation or _only_answer(value, columns)
        answer_key = _hash(f"{whole}\0{only_answer}") if only_answer else 0
        is_further = text_key in self._texts
        if is_further:
            if not answer_key or answer_key in self._texts:
                detail = "another row holds the same question and description"
                return _reject(row, item_id, Reason.DUPLICATE_QUESTION, columns["question"], detail)
            item_id = self._id_of_text.get(text_key, item_id)
        elif id_key in self._ids:
            detail = f"another row has the id {item_id}"
            return _reject(row, item_id, Reason.DUPLICATE_ID, columns.get("id", ""), detail)
        keywords = _keywords(value, columns)
        question = Question(id=item_id, question=title, description=description, keywords=keywords)
        if answer_key:
            self._texts.add(answer_key)
        if not is_further:
            self._ids.add(id_key)
            self._texts.add(text_key)
            if self._with_answers and answer_key and not self.makes_ids:
                self._id_of_text[text_key] = item_id
        answers, rejected = self._answers(row, value, columns, item_id)
        n_cleaned = n_title + n_description
        return SourceItem(question, answers, rejected, n_cleaned, row.where, is_further)

    def _columns_of(self, names: tuple[str, ...]) -> dict[str, str]:
        found = self._resolved.get(names)
        if found is None:
            mapping, fields = self._mapping, tuple(ALIASES)
            if self._takes_first_turn:  # last in the row: see `_with_reached`
                mapping, fields = {**mapping, "question": names[-1]}, ("id", "question", "keywords")
            found = _resolve_columns(names, mapping, {*fields, *mapping})
            if not self._resolved:
                self.makes_ids = "id" not in found and "id" not in self._mapping
            if len(self._resolved) < 1000:  # rows with ever new keys must not fill the memory
                self._resolved[names] = found
                self.columns = {**found, **self.columns}
                taken = {*found.values(), *(column.split(".")[0] for column in self._dotted)}
                others = (clean(name)[0] for name in names if name not in taken)
                self.unused_columns.update(dict.fromkeys(others))
            if self.source.format in ("CSV", "Parquet"):
                self._require_columns(found)
        return found

    def _require_columns(self, found: Mapping[str, str]) -> None:
        """Rejects a file without the question's column, or without one named by the caller."""
        wanted = {"question": "that holds the question"}
        wanted |= {field: f"'{column}'" for field, column in self._mapping.items()}
        names = [*self.columns.values(), *self.unused_columns]
        for field, column in wanted.items():
            if field not in found:
                if field == "question" and field not in self._mapping:
                    self._explain_rows(names)
                shown = [name for name in names if not self._keys_of(name)]
                shown = list(dict.fromkeys([*shown, *self._nested]))
                raise DataError(
                    f"no column {column} in the first rows; columns: "
                    f"{', '.join(shown[:12]) or 'none'}",
                    where=str(self.source.path),
                    hint=f"name it: {self._flags_for(field)}",
                )

    def _keys_of(self, column: str) -> list[str]:
        """The keys inside a column of objects, as dotted columns."""
        return [name for name in self._nested if name.startswith(f"{column}.")]

    def _flags_for(self, field: str) -> str:
        """Flags that name columns inside objects, where their keys are in circulation."""
        keys = {_plain(name.rpartition(".")[2]): name for name in reversed(self._nested)}
        nested = {
            one: next((keys[alias] for alias in aliases if alias in keys), None)
            for one, aliases in ALIASES.items()
        }
        if field == "question" and nested["question"]:
            inside = nested["question"].rpartition(".")[0]
            named = {
                one: name
                for one, name in nested.items()
                if name and one not in self.columns and name.rpartition(".")[0] == inside
            }
            return " ".join(f"--column {one}={name}" for one, name in named.items())
        return f"--column {field}=COLUMN"

    def _explain_rows(self, names: Sequence[str]) -> None:
        """Raises what to do with a file of conversations; returns for one of something else."""
        path = str(self.source.path)
        if self._takes_first_turn:
            found = ", ".join(names[:12]) or "none"
            hint = "--first-turn reads messages, conversations, Alpaca rows; see docs/formats.md"
            raise DataError(
                f"no conversation in the first rows; columns: {found}", where=path, hint=hint
            )
        if shape := shape_of(names):
            hint = "--first-turn takes what the client says first as the question"
            if len(shape.columns) > 1:
                flags = [f"--column question={name}" for name in reversed(shape.columns[:-1])]
                hint += f"; or name the column: {' or '.join(flags)}"
            found = f"holds {shape.name} ({', '.join(shape.columns)}), not questions"
            raise DataError(found, where=path, hint=hint)
        if are_turns(names):
            found = "each row is one turn: the file is one conversation, not a list of questions"
            hint = (
                "one conversation a line, then --first-turn: "
                "jq -c '{messages: .}' FOLDER/*.json > conversations.jsonl"
            )
            raise DataError(found, where=path, hint=hint)

    def _id_of(self, value: dict[str, Any], columns: Mapping[str, str]) -> str | None:
        column = columns.get("id")
        if column is None:
            return None
        found = value[column]
        if problem := find_bad_id(found):
            raise BadField(column, problem)
        if isinstance(found, float) and found.is_integer():
            found = int(found)  # what pandas makes of integers beside a missing value
        if type(found) is int:
            return str(found)
        if found is None or found == "":
            raise BadField(column, "missing id")
        if not isinstance(found, str):
            raise BadField(column, f"expected a number or text, found {name_of(found)}")
        text, _ = clean(found)
        if not text or "\n" in text or len(text) > MAX_ID_CHARS:
            raise BadField(column, f"expected one line of 1 to {MAX_ID_CHARS} characters")
        return text

    def _text(
        self, value: dict[str, Any], columns: Mapping[str, str], field: str
    ) -> tuple[str, int]:
        column = columns.get(field)
        found = value[column] if column is not None else None
        if found is None:
            return "", 0
        if not isinstance(found, str):
            raise BadField(column or field, f"expected text, found {name_of(found)}")
        if is_spreadsheet_error(found):
            raise BadField(column or field, f"{found.strip()} is an error of a spreadsheet")
        if not found.isascii() and (wrong := find_wrong_decoding(found)):
            raise _WrongDecoding(column or field, str(wrong))
        text, n_cleaned = clean(found)
        if len(text) > self._max_chars:
            problem = f"{len(text):,} characters; the limit is {self._max_chars:,}"
            raise BadField(column or field, problem)
        return text, n_cleaned

    def _answers(
        self, row: Row, value: dict[str, Any], columns: Mapping[str, str], question_id: str
    ) -> tuple[tuple[ReferenceAnswer, ...], tuple[Rejection, ...]]:
        column = columns.get("answers")
        if not self._with_answers or column is None:
            return (), ()
        answers, rejected = [], []
        cell = value[column]
        if isinstance(cell, str) and not cell.lstrip().startswith(("[", "{")) and cell.strip():
            # PsyQA's answer objects, one to a row
            cell = {"answer_text": cell, "labels_sequence": value.get("labels_sequence")}
        for index, found in enumerate(as_list(cell)):
            try:
                answers.append(read_answer(found, question_id, self._max_chars))
            except BadField as bad:
                field = ".".join(part for part in (column, str(index), bad.field) if part)
                part = row._replace(text=as_json(found))
                rejected.append(_reject(part, question_id, Reason.BAD_ROW, field, bad.problem))
        return tuple(answers), tuple(rejected)


read_questions = QuestionReader  # to callers a function; the counts are attributes of its result


def bundled_sample_path() -> Path:
    """The invented questions that come with the package, in PsyQA's schema."""
    package = Path(str(files("cbtqa")))
    installed = package / "data" / "psyqa-sample.json"
    return installed if installed.is_file() else package.parent / "data" / "psyqa" / "sample.json"


@cache
def _bundled_sample_sha256() -> str:
    return sha256_of(bundled_sample_path())


def is_bundled_sample(sha256: str) -> bool:
    """True for the hash of our own invented questions, wherever the file lies."""
    return sha256 == _bundled_sample_sha256()


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


def _resolve_columns(
    names: tuple[str, ...], mapping: Mapping[str, str], fields: Collection[str]
) -> dict[str, str]:
    plain = {_plain(name): name for name in reversed(names)}
    found = {}
    for field, aliases in ALIASES.items():
        if field not in fields:
            continue
        known = [plain[alias] for alias in aliases if alias in plain]
        fitting = [name for name in known if name not in mapping.values()]
        if field in mapping:
            fitting = [mapping[field]] if mapping[field] in names else []
        if fitting:
            found[field] = fitting[0]
    return found


def _reach(value: object, path: Sequence[str]) -> object:
    """The value at a path of keys and list positions; of every object of a list; else None."""
    for place, key in enumerate(path):
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal():
            value = value[int(key)] if int(key) < len(value) else None
        elif isinstance(value, list):
            return [found for one in value if (found := _reach(one, path[place:])) is not None]
        else:
            return None
    return value


def _only_answer(value: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """The answer of a row that holds one, as a text to compare; None for a list or none."""
    cell = value.get(columns.get("answers", ""))
    if cell is None or isinstance(cell, list):
        return None
    found = as_list(cell)
    return as_json(found[0]) if len(found) == 1 and found[0] else None


def _keywords(value: dict[str, Any], columns: Mapping[str, str]) -> tuple[str, ...]:
    column = columns.get("keywords")
    if column is None:
        return ()
    parts = as_list(value[column])
    if not all(isinstance(part, str) for part in parts):
        raise BadField(column, f"expected text or a list of texts, found {name_of(value[column])}")
    return _tags_in(tuple(parts))


@lru_cache(maxsize=4096)  # a million rows hold a few hundred topics
def _tags_in(parts: tuple[str, ...]) -> tuple[str, ...]:
    tags = (clean(tag)[0] for part in parts for tag in _keyword_separator.split(part))
    return tuple(dict.fromkeys(tag for tag in tags if tag))


def _reject(row: Row, item_id: str, reason: Reason, field: str, detail: str) -> Rejection:
    raw = row.text
    if raw is None and row.value is not None:
        raw = as_json(row.value)
    where = f"{row.where}:{field}" if field else row.where
    return Rejection(
        item_id=item_id, stage="input", reason=reason, detail=detail, where=where, raw=raw
    )


ANSWER_TEXT = ("answer_text", "text", "content", "answer", "回答")


def read_answer(found: object, question_id: str, max_chars: int) -> ReferenceAnswer:
    """One answer, given as an object of PsyQA's or as plain text.

    Raises:
        BadField: no text, too much text, or strategy spans that do not fit it.
    """
    labels: object = None
    field, text = "", found
    if isinstance(found, dict):
        field = next((name for name in ANSWER_TEXT if name in found), ANSWER_TEXT[0])
        text, labels = found.get(field), found.get("labels_sequence")
    if not isinstance(text, str):
        raise BadField(field, f"expected text, found {name_of(text)}")
    cleaned, _ = clean(text)
    if not cleaned or len(cleaned) > max_chars:
        raise BadField(field, f"{len(cleaned):,} characters; expected 1 to {max_chars:,}")
    spans = _spans(labels, text, cleaned)
    return ReferenceAnswer(question_id=question_id, text=cleaned, strategies=spans)


def _spans(labels: object, text: str, cleaned: str) -> tuple[StrategySpan, ...]:
    """Strategy spans, moved to the places of their text after cleaning."""
    if not labels:
        return ()
    try:
        found = sorted((span["start"], span["end"], span["type"]) for span in as_list(labels))
        position = 0
        for start, end, name in found:
            is_whole = type(start) is int and type(end) is int
            if not is_whole or not position <= start < end <= len(text) or not clean(name)[0]:
                problem = f"span {start}-{end} is empty, overlaps or leaves the text of {len(text)}"
                raise BadField("labels_sequence", problem)
            position = end
    except (KeyError, TypeError, AttributeError) as error:
        raise BadField("labels_sequence", f"expected start, end, type: {error}") from None
    if cleaned != text:
        found = [(move_offset(text, start), move_offset(text, end), n) for start, end, n in found]
    return tuple(
        StrategySpan(start=start, end=end, type=clean(name)[0])
        for start, end, name in found
        if start < end  # a span of blanks at either end is gone with them
    )


def as_json(value: object) -> str:
    """A decoded value as JSON text that any file can hold."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair has no UTF-8
