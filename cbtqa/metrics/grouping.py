"""Which rows stand for one question: what intervals and tests draw, and what they leave aside.

Answers to one question are not independent. So where a file says which rows share a question, the
questions are drawn, without being asked: rows with one question id, one text of the question, or,
in files that name no question, one reference. Columns that group rows in any other way (patients,
raters, sessions) are told and not used: which of them is the unit, only their owner knows.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cbtqa.records import Record

QUESTION_IDS = ("question_id", "questionID", "questionId", "qid", "问题编号")
QUESTION_TEXTS = ("question", "query", "prompt", "input", "messages", "问题")
"""Columns that hold the question's words; a conversation counts up to its last user turn."""
FEWEST_TEXTS = 5
"""A column of texts with fewer different ones names templates or topics rather than questions."""
SAME_REFERENCE = "one reference"
_GROUPS = re.compile(
    r"question|patient|client|person|people|user|subject|participant|speaker|rater|annotator|judge"
    r"|coder|worker|counsel|therapist|session|dialog|conversation|thread|chat|visit|group|cluster"
    r"|case|item|post|profile|author|sample"
    r"|(?:^|[\W_])(?:[a-z]?id|idx)$|问题|患者|病人|来访|用户|评分|标注|咨询|会话|对话|编号",
    re.IGNORECASE,
)


class Grouping(Record):
    """What is drawn in intervals and tests."""

    by: str | None = None
    """The column whose equal values make rows one question, or `one reference`; None: each row
    is a question of its own."""
    n_drawn: int = 0
    n_rows: int = 0
    ignored: tuple[str, ...] = ()
    """Columns that group rows too and are not used, with their numbers of groups."""

    @property
    def line(self) -> str:
        """What is random and what is fixed, in a sentence."""
        is_question = self.by in (None, SAME_REFERENCE, *QUESTION_IDS, *QUESTION_TEXTS)
        drawn = f"{self.n_drawn:,} {'questions' if is_question else 'groups'}"
        if self.n_drawn < self.n_rows:
            drawn += f" ({self.n_rows:,} rows, those with the same {_shown(self.by)} together)"
        return (
            f"random in intervals and tests: {drawn}; fixed: the references and each system's "
            "answers as they are"
        )

    @property
    def warnings(self) -> list[str]:
        """Of columns that are not used."""
        unit = "questions" if self.by else "rows"
        return [
            f"column {one} is not used: {unit} that share it count as independent; "
            f"--cluster-column {one.split('`')[1]} draws its groups instead"
            for one in self.ignored
        ]


EACH_ROW = Grouping()
"""Nothing is known to belong together."""


def _shown(by: str | None) -> str:
    return "reference" if by == SAME_REFERENCE else f"`{by}`"


Rows = Sequence[Mapping[str, Any]]


def question_column(rows: Rows, not_these: Iterable[str] = ()) -> str | None:
    """The column that says which rows share a question; None where no question stands twice."""
    for names, fewest in ((QUESTION_IDS, 2), (QUESTION_TEXTS, FEWEST_TEXTS)):
        for name in names:
            if name not in not_these:
                known = [value for row in rows if (value := _value(row.get(name)))]
                if fewest <= len(set(known)) < len(known):
                    return name
    return None


def names_questions(rows: Rows, not_these: Iterable[str] = ()) -> bool:
    """Whether any column tells questions apart, so that equal references need not be one's."""
    names = [name for name in (*QUESTION_IDS, *QUESTION_TEXTS) if name not in not_these]
    return any(len({_value(row.get(name)) for row in rows}) > 1 for name in names)


def is_telling(column: str) -> bool:
    """Whether a column's name says that its values group rows, or are questions."""
    return column in (*QUESTION_IDS, *QUESTION_TEXTS) or bool(_GROUPS.search(column))


def clusters_by(rows: Rows, ids: Sequence[str], column: str) -> tuple[str, ...]:
    """The question of each row; a row without one is its own."""
    return tuple(_value(row.get(column)) or one for row, one in zip(rows, ids, strict=True))


def clusters_by_reference(texts: Sequence[str | None], ids: Sequence[str]) -> tuple[str, ...]:
    """Rows with the same reference together; rows without are their own."""
    return tuple((text or "").strip() or one for text, one in zip(texts, ids, strict=True))


def ignored_columns(rows: Rows, clusters: Sequence[str], not_these: Iterable[str]) -> list[str]:
    """Columns by whose names and values rows in different clusters belong together."""
    found, not_these = [], set(not_these)
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in not_these or not _GROUPS.search(str(name)):
            continue
        spans: dict[str, set[str]] = defaultdict(set)
        for row, cluster in zip(rows, clusters, strict=True):
            if isinstance(row.get(name), str | int) and (value := _value(row[name])):
                spans[value].add(cluster)
        if len(spans) > 1 and any(len(inside) > 1 for inside in spans.values()):
            found.append(f"`{name}` ({len(spans):,} groups)")
    return found


def _value(value: object) -> str:
    """What is compared: text without its line breaks; a conversation without its last answer."""
    if isinstance(value, list):
        turns = list(value)
        while turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
            turns.pop()
        return json.dumps(turns, ensure_ascii=False, sort_keys=True, default=str) if turns else ""
    return "" if value is None else " ".join(str(value).split())
