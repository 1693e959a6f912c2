"""What the judge is asked about one answer, and where questions, answers and people's ratings are.

task = AnswerJudge(load_judged_rubric("cbt-llm.v2"), Sampling(temperature=0.7, seed=0), "qwen-plus")
answers = read_answers(predictions, questions, "test", columns, None)
ratings = [rating_of(*found, task.model) for found in rate(run, answers.asks(3), task)]
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from cbtqa.dataset_folder import DatasetFolder
from cbtqa.errors import DataError, UsageError
from cbtqa.files import read_rows
from cbtqa.judging.asking import JudgeTask, Verdict, is_quote_of
from cbtqa.llm.chat import Sampling
from cbtqa.metrics.pairs import Predictions, References, read_predictions
from cbtqa.metrics.rows import Columns
from cbtqa.prompts import fence
from cbtqa.psyqa import read_questions
from cbtqa.ratings.rubric import Criterion, Rubric, load_rubric
from cbtqa.records import NonEmptyText, Question, Record, Rejection

RATING_COLUMNS = ("question_id", "system", "rater", "criterion", "value")


class JudgeRating(Record):
    """One repeat's rating of one answer on one criterion."""

    question_id: NonEmptyText
    system: NonEmptyText
    criterion: NonEmptyText
    repeat: int = Field(ge=0)
    value: int | None
    unscored_reason: str | None = None
    """Why there is no value: `cannot_judge`, `no_question`, or a `records.Reason`."""
    evidence: str | None = None
    """The words of the answer that the rating rests on."""
    note: str = ""
    """The judge's reason, or what was wrong with its reply."""
    judge: NonEmptyText

    @model_validator(mode="after")
    def _value_or_reason(self) -> Self:
        if (self.value is None) == (self.unscored_reason is None):
            raise ValueError("a rating has either a value or a reason why it has none")
        return self


@dataclass(frozen=True)
class Ask:
    """One answer to rate once."""

    question_id: str
    system: str
    """For reading back only: never sent."""
    question: str
    description: str
    answer: str
    repeat: int


def load_judged_rubric(name: str) -> Rubric:
    """A rubric for answers, by id or path; a UsageError where it has no scale for them."""
    rubric = load_rubric(name)
    if rubric.shows != "answer" or not rubric.scales:
        raise UsageError(f"the rubric {rubric.id} has no scale for answers", hint="cbt-llm has")
    return rubric


class AnswerJudge(JudgeTask[Ask]):
    """Rates one answer under its question, in Chinese."""

    task, form = "judge", "rubric"
    entry = '{"evidence": "回复里的原话", "reason": "一句理由", "rating": 分数}'
    fault_words = "你上一次的输出无法使用：{fault}。请按要求的格式重新给出完整的 JSON。"
    again_words = "你已经评过一次，下面各项无法使用，请只重评这些项（按上面的格式）：\n{faults}"

    def __init__(
        self,
        rubric: Rubric,
        sampling: Sampling,
        model: str,
        *,
        host: str = "",
        prompt: str = "judge_cbt_llm",
    ) -> None:
        super().__init__(rubric, rubric.versioned_id, sampling, model, host, prompt)

    def key(self, ask: Ask) -> str:
        """Question, answer and repeat. Two systems with the same answer share their ratings."""
        text = "\x1f".join((ask.question, ask.description, ask.answer))
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        return f"{ask.question_id}:{digest}:{ask.repeat}"

    def turn(self, ask: Ask) -> tuple[int, int]:
        """Each repeat begins one criterion further on."""
        return ask.repeat, ask.repeat

    def holes(self, ask: Ask, criteria: Sequence[Criterion]) -> dict[str, str]:
        return {
            "criteria": "\n".join(map(_described, criteria)),
            "shape": "{" + ", ".join(f'"{one.id}": {self.entry}' for one in criteria) + "}",
            "question": fence(ask.question),
            "description": fence(ask.description or "（无）"),
            "answer": fence(ask.answer),
        }

    def rests_on(self, ask: Ask, criterion: Criterion, value: int, evidence: str) -> bool:
        return is_quote_of(evidence, ask.answer)


def _described(criterion: Criterion) -> str:
    anchors = "".join(
        f"\n  {point} 分：{words.to('zh')}" for point, words in sorted(criterion.anchors.items())
    )
    scale = f"{criterion.low} 到 {criterion.high} 分，只用整数"
    name, question = criterion.name.to("zh"), criterion.question.to("zh")
    return f"- {criterion.id}（{name}，{scale}）：{question}{anchors}"


def rating_of(ask: Ask, criterion: str, verdict: Verdict, judge: str) -> JudgeRating:
    return JudgeRating(
        question_id=ask.question_id,
        system=ask.system,
        criterion=criterion,
        repeat=ask.repeat,
        value=verdict.value,
        unscored_reason=verdict.reason(in_full=False),
        evidence=verdict.evidence,
        note=verdict.fault.detail if verdict.fault else verdict.note,
        judge=judge,
    )


class AnswerCounts(Record):
    """What became of the questions that one system was asked."""

    system: str
    n_questions: int
    """That at least one of the systems judged together was asked: what its means are out of."""
    n_answered: int
    n_missing: int
    """Questions that its file has no row for."""
    n_without_text: int
    """Questions without an answer, or with one of whitespace only; `n_missing` among them."""
    n_not_in_questions: int
    """Rows whose question is not known; not judged."""


@dataclass(frozen=True)
class Answers:
    """Every system's answers beside the questions that a file of predictions has a row for."""

    questions: tuple[Question, ...]
    systems: tuple[Predictions, ...]

    def counts(self) -> list[AnswerCounts]:
        """What became of the questions, by system."""
        return [
            AnswerCounts(
                system=one.system,
                n_questions=len(self.questions),
                n_answered=len(self.questions) - self.n_without_text(one),
                n_missing=sum(not has for has in one.has_row),
                n_without_text=self.n_without_text(one),
                n_not_in_questions=one.counts["n_not_in_references"],
            )
            for one in self.systems
        ]

    def asks(self, n_repeats: int) -> list[Ask]:
        """Every answer with text, as often as it is rated; repeats of one follow each other."""
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

    What counts are the questions that at least one file of predictions has a row for: a file of
    questions may be far larger. One that a system left out, or has without a text, is unanswered.

    Raises:
        UsageError: nothing to judge, or two systems of one name.
    """
    if not predictions:
        raise UsageError(
            "nothing to judge", hint="cbtqa judge answers.jsonl --questions PsyQA_full.json"
        )
    known = {one.id: one for one in _questions(questions, split)}
    if not known:
        raise DataError("holds no usable question", where=str(questions))
    ids = tuple(known)
    places = References(questions.name, ids, ids, (None,) * len(ids))
    systems: dict[str, Predictions] = {}
    for path in predictions:
        read = read_predictions(path, columns, places, split)
        name = path.stem if read.system in systems else read.system
        if name in systems:
            raise UsageError(f"two files name their system '{name}'", hint="rename one of them")
        systems[name] = replace(read, system=name)
    rows = zip(*(one.has_row for one in systems.values()), strict=True)
    covered = [place for place, has_row in enumerate(rows) if any(has_row)]
    if sample is not None and sample < len(covered):
        names = sorted(ids[place] for place in covered)
        drawn = set(random.Random(f"judge {len(names)}").sample(names, sample))
        covered = [place for place in covered if ids[place] in drawn]
    return Answers(
        tuple(known[ids[place]] for place in covered),
        tuple(_at(one, covered) for one in systems.values()),
    )


def _at(system: Predictions, places: Sequence[int]) -> Predictions:
    """A system's answers at some of the questions."""
    has_row = tuple(system.has_row[place] for place in places)
    return replace(
        system,
        items=tuple(system.items[place] for place in places),
        counts={**system.counts, "n_missing": has_row.count(False)},
        clusters=(),
        has_row=has_row,
    )


def _questions(path: Path, split: str) -> Iterator[Question]:
    if path.is_dir():
        yield from DatasetFolder.open(path).questions(split)
    else:
        for row in read_questions(path):
            if not isinstance(row, Rejection):
                yield row.question


@dataclass
class HumanRatings:
    """What people gave: criterion, then (question, system), then rater to rating."""

    values: dict[str, dict[tuple[str, str], dict[str, int]]] = field(default_factory=dict)
    n_passed_over: int = 0
    """Rows that are no rating of an answer judged here: open, calibration, other systems."""


def read_human_ratings(path: Path, rubric: Rubric, systems: Sequence[str]) -> HumanRatings:
    """The ratings of a study: rows with question_id, system, rater, criterion, value.

    Calibration items and second showings do not count.

    Raises:
        DataError: a column is missing, a value is outside the scale, or no row is of a system
            judged here (a study that is still blind names letters).
    """
    found = HumanRatings({criterion.id: defaultdict(dict) for criterion in rubric.scales})
    scales = {criterion.id: criterion for criterion in rubric.scales}
    named: set[str] = set()
    for where, row in read_rows(path):
        if missing := [name for name in RATING_COLUMNS if name not in row]:
            raise DataError(
                f"no column '{missing[0]}'",
                where=where,
                hint="--human takes ratings.jsonl of a study's report folder",
            )
        named.add(str(row["system"]))
        scale, value = scales.get(str(row["criterion"])), row["value"]
        is_counted = row.get("phase", "main") == "main" and not int(row.get("repeat") or 0)
        is_rated = value not in (None, "")
        if scale is None or not is_rated or not is_counted or row["system"] not in systems:
            found.n_passed_over += 1
            continue
        try:
            rating = float(str(value))
        except ValueError:
            rating = math.nan
        if rating not in scale.points:
            raise DataError(
                f"{value!r} is not a whole number from {scale.low} to {scale.high}",
                where=f"{where}:value",
            )
        key = (str(row["question_id"]), str(row["system"]))
        found.values[scale.id][key][str(row["rater"])] = int(rating)
    if not any(found.values.values()):
        raise DataError(
            f"no rating of {', '.join(systems)} (found ratings of {', '.join(sorted(named))})",
            where=str(path),
            hint="unblind the study first, or name the systems alike in both",
        )
    return found
