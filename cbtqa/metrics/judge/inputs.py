"""What the judge reads: questions, the answers of each system, and what people rated."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cbtqa.errors import DataError, UsageError
from cbtqa.files import read_rows
from cbtqa.metrics.judge.task import Ask, JudgeRubric
from cbtqa.metrics.pairs import Columns, Predictions, References, read_predictions
from cbtqa.psyqa import read_questions
from cbtqa.records import Question, Rejection


@dataclass(frozen=True)
class Answers:
    """Every system's answers beside the questions."""

    questions: tuple[Question, ...]
    systems: tuple[Predictions, ...]

    def asks(self, n_repeats: int) -> list[Ask]:
        """Every answer with text, as often as it is to be rated; repeats of one stand together."""
        return [
            Ask(one.id, system.system, one.question, one.description, item.text, repeat)
            for system in self.systems
            for one, item in zip(self.questions, system.items, strict=True)
            if item is not None and item.text.strip()
            for repeat in range(n_repeats)
        ]

    @property
    def questions_sha256(self) -> str:
        """Of the questions that were asked about, ids and texts."""
        texts = (f"{one.id}\x1f{one.source_text}\x1e" for one in self.questions)
        return hashlib.sha256("".join(texts).encode("utf-8", "surrogatepass")).hexdigest()

    def n_without_text(self, system: Predictions) -> int:
        """Questions that a system did not answer, or with nothing but whitespace."""
        return sum(item is None or not item.text.strip() for item in system.items)


def read_answers(
    predictions: Sequence[Path], questions: Path, split: str, columns: Columns, sample: int | None
) -> Answers:
    """Reads questions and predictions; with `sample`, that many questions drawn by a fixed seed.

    Raises:
        UsageError: nothing to judge, or two systems of one name.
        DataError: a file that is not what it should be, or predictions for other questions.
    """
    if not predictions:
        raise UsageError(
            "nothing to judge", hint="cbtqa judge answers.jsonl --questions PsyQA_full.json"
        )
    known = {one.id: one for path in _files(questions, split) for one in _questions(path)}
    if not known:
        raise DataError("holds no usable question", where=str(questions))
    ids = tuple(known)
    if sample is not None and sample < len(ids):
        drawn = set(random.Random(f"judge {len(ids)}").sample(sorted(ids), sample))
        ids = tuple(one for one in ids if one in drawn)
    places = References(questions.name, ids, ids, (None,) * len(ids))
    systems: dict[str, Predictions] = {}
    for path in predictions:
        read = read_predictions(path, columns, places)
        name = path.stem if read.system in systems else read.system
        if name in systems:
            raise UsageError(f"two files name their system '{name}'", hint="rename one of them")
        systems[name] = Predictions(name, read.items, read.counts)
    return Answers(tuple(known[one] for one in ids), tuple(systems.values()))


def _files(questions: Path, split: str) -> list[Path]:
    data = questions / "data"
    if not data.is_dir():
        return [questions]
    names = ["*"] if split == "all" else [f"{name}-*" for name in split.split(",")]
    found = [path for name in names for path in sorted(data.glob(f"{name}.parquet"))]
    if not found:
        raise DataError(f"the dataset has no split '{split}'", where=str(questions))
    return found


def _questions(path: Path) -> list[Question]:
    return [row.question for row in read_questions(path) if not isinstance(row, Rejection)]


@dataclass
class HumanRatings:
    """What people gave: criterion, then (question, system), then rater to rating."""

    values: dict[str, dict[tuple[str, str], dict[str, int]]] = field(default_factory=dict)
    n_passed_over: int = 0
    """Rows that are no rating of an answer judged here: open, calibration, other systems."""


def read_human_ratings(path: Path, rubric: JudgeRubric, systems: Sequence[str]) -> HumanRatings:
    """The ratings of a study: rows with question_id, system, rater, criterion, value.

    Calibration items and second showings do not count.

    Raises:
        DataError: a column is missing, a value is outside the scale, or no row is of a system
            judged here (a study that is still blind names letters).
    """
    found = HumanRatings({criterion.id: defaultdict(dict) for criterion in rubric.criteria})
    scales = {criterion.id: criterion for criterion in rubric.criteria}
    named: set[str] = set()
    for where, row in read_rows(path):
        missing = [
            name
            for name in ("question_id", "system", "rater", "criterion", "value")
            if name not in row
        ]
        if missing:
            raise DataError(
                f"no column '{missing[0]}'",
                where=where,
                hint="--human takes ratings.jsonl of a study's report folder",
            )
        named.add(str(row["system"]))
        scale, value = scales.get(str(row["criterion"])), _number(row["value"])
        is_counted = row.get("phase", "main") == "main" and not int(row.get("repeat") or 0)
        if scale is None or value is None or not is_counted or row["system"] not in systems:
            found.n_passed_over += 1
            continue
        if value != int(value) or not scale.low <= value <= scale.high:
            raise DataError(
                f"{row['value']!r} is not a whole number from {scale.low} to {scale.high}",
                where=f"{where}:value",
            )
        key = (str(row["question_id"]), str(row["system"]))
        found.values[scale.id][key][str(row["rater"])] = int(value)
    if not any(found.values.values()):
        raise DataError(
            f"no rating of {', '.join(systems)} (found ratings of {', '.join(sorted(named))})",
            where=str(path),
            hint="unblind the study first, or name the systems alike in both",
        )
    return found


def _number(value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(str(value))
    except ValueError:
        return float("nan")
