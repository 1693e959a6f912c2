"""What a study is drawn from: the predictions of several systems, and the questions they answer.

A prediction row is a `records.CbtAnswer`, a row of a built dataset, or any row with an id
(`question_id`, `id`, `questionID`) and a text (`text`, `answer`, `prediction`); a session has
`turns` of `role` and `text` (or `content`). A row without a usable text is a `Rejection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from cbtqa.dataset_folder import source_rows
from cbtqa.errors import DataError, UsageError
from cbtqa.ratings.study import ShownTurn, clean_text
from cbtqa.records import Reason, Rejection, Risk

_ID_FIELDS = ("question_id", "questionID", "id", "q_id")
_SESSION_ID_FIELDS = ("profile_id", *_ID_FIELDS)
_TEXT_FIELDS = ("text", "answer", "prediction", "output")
_RISKS = get_args(Risk)


@dataclass(frozen=True)
class SourceQuestion:
    id: str
    question: str = ""
    description: str = ""
    risk: Risk = "none"
    distortions: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceAnswer:
    text: str = ""
    turns: tuple[ShownTurn, ...] = ()


@dataclass
class Pool:
    """All questions and all answers by system, and the rows that could not be used."""

    questions: dict[str, SourceQuestion] = field(default_factory=dict)
    answers: dict[str, dict[str, SourceAnswer]] = field(default_factory=dict)
    """System to question id to answer."""
    rejections: list[Rejection] = field(default_factory=list)

    def common_ids(self) -> list[str]:
        """Questions that every system answered and whose text is known, in the order read."""
        sides = self.answers.values()
        return [name for name in self.questions if all(name in answers for answers in sides)]


def read_pool(predictions: Sequence[str], questions: Path | None, shows: str) -> Pool:
    """Everything a study may draw from.

    Args:
        predictions: `PATH` or `NAME=PATH`; the name comes else from a row's `system` or the file.
        questions: file or folder with the question texts, needed when the predictions lack them.
        shows: what the rubric shows; `question` needs no predictions.

    Raises:
        DataError: a row without id, two answers of one system to one question, or no answer.
    """
    pool = Pool()
    if questions is not None:
        for where, row in source_rows(questions):
            name = _id_of(row, _ID_FIELDS, where)
            pool.questions.setdefault(name, _question(name, row))
    for given in predictions:
        _read_predictions(pool, given, shows)
    if shows == "question":
        pool.answers = {}
    elif not pool.answers and pool.rejections:
        wanted = "turns" if shows == "transcript" else f"an answer (in {', '.join(_TEXT_FIELDS)})"
        raise DataError(
            f"none of the {len(pool.rejections):,} rows to rate holds {wanted}",
            where=pool.rejections[0].where,
        )
    elif not pool.answers:
        raise UsageError(
            "no predictions to rate", hint="add --predictions NAME=PATH, once a system"
        )
    known = [q for q in pool.questions.values() if q.question or q.description]
    if shows != "transcript" and not known:
        raise UsageError(
            "the predictions do not hold the text of the questions",
            hint="add --questions PATH (PsyQA's JSON, or a built dataset)",
        )
    return pool


def _read_predictions(pool: Pool, given: str, shows: str) -> None:
    name, separator, rest = given.partition("=")
    path = Path(rest if separator else given)
    is_session = shows == "transcript"
    for where, row in source_rows(path):
        system = name if separator else str(row.get("system") or row.get("arm") or path.stem)
        item_id = _session_id(row, where) if is_session else _id_of(row, _ID_FIELDS, where)
        answer = _answer(row, is_session)
        found, known = _question(item_id, row), pool.questions.get(item_id, SourceQuestion(item_id))
        pool.questions[item_id] = SourceQuestion(
            id=item_id,
            question=known.question or found.question,
            description=known.description or found.description,
            risk=max(known.risk, found.risk, key=_RISKS.index),
            distortions=known.distortions or found.distortions,
        )
        if answer is None:
            detail = f"{system}: no {'turns' if is_session else 'text'}"
            rejection = {"item_id": item_id, "stage": "input", "detail": detail, "where": where}
            pool.rejections.append(Rejection(**rejection, reason=Reason.EMPTY))
            continue
        answers = pool.answers.setdefault(system, {})
        if item_id in answers and shows != "question":
            raise DataError(
                f"a second answer of '{system}' to question {item_id}",
                where=where,
                hint="several systems in one file need a `system` field, or NAME=PATH per file",
            )
        answers[item_id] = answer


def _id_of(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for value in map(row.get, names):
        if value not in (None, ""):
            return str(value)
    raise DataError(f"no id (looked for {', '.join(names)})", where=where)


def _session_id(row: Mapping[str, Any], where: str) -> str:
    """The patient; with the session's place where the same patient has several with one arm."""
    place = (row.get("number") or 1, row.get("replicate") or 1)
    name = _id_of(row, _SESSION_ID_FIELDS, where)
    return name if place == (1, 1) else f"{name}/s{place[0]}/r{place[1]}"


def _question(item_id: str, row: Mapping[str, Any]) -> SourceQuestion:
    labels = row.get("distortions")
    entries = labels if isinstance(labels, list | tuple) else ()
    found = [one.get("id") if isinstance(one, Mapping) else one for one in entries]
    return SourceQuestion(
        id=item_id,
        question=_text(row, ("question", "title")),
        description=_text(row, ("description",)),
        risk=next((risk for risk in _RISKS if risk == row.get("risk")), "none"),
        distortions=tuple(one for one in found if isinstance(one, str) and one),
    )


def _answer(row: Mapping[str, Any], is_session: bool) -> SourceAnswer | None:
    if not is_session:
        text = _text(row, _TEXT_FIELDS)
        return SourceAnswer(text=text) if text else None
    turns = row.get("turns") or row.get("messages") or ()
    shown = []
    for turn in turns if isinstance(turns, (list, tuple)) else ():
        if isinstance(turn, Mapping):
            text = _text(turn, ("text", "content"))
            shown.append(ShownTurn(role=str(turn.get("role") or "?"), text=text))
    return SourceAnswer(turns=tuple(shown)) if any(turn.text for turn in shown) else None


def _text(row: Mapping[str, Any], names: Sequence[str]) -> str:
    found = (value for value in map(row.get, names) if isinstance(value, str) and value.strip())
    return clean_text(next(found, ""))
