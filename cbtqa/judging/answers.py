"""What the judge is asked about one answer, and what its reply is worth.

One call rates one answer on all criteria, without a word on who wrote it or what else there is.
Repeats differ in seed and in the order of the criteria. A rating counts only when the words it
rests on stand in the answer; whatever else comes back is unscored with a reason, never a 0.

    task = JudgeTask(rubric, Sampling(temperature=0.7, seed=0), "qwen-plus")
    run_batch(asks, task, endpoint, journal, limits)
    list(read_ratings(asks, task, journal))
"""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import Field, model_validator

from cbtqa.dataset_folder import DatasetFolder
from cbtqa.errors import DataError, UsageError
from cbtqa.files import read_rows
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.journal import Journal, Outcome
from cbtqa.llm.structured import parse_object
from cbtqa.metrics.pairs import Columns, Predictions, References, read_predictions
from cbtqa.prompts import fence, load_prompt
from cbtqa.psyqa import read_questions
from cbtqa.records import NonEmptyText, Question, Reason, Record, Rejection

AskT = TypeVar("AskT")
SEED_STEP = 1_000
"""Between the seeds of two repeats, so that re-asks of one never take the seed of the next."""
SHORTEST_EVIDENCE = 4
"""Characters, punctuation not counted; less stands in nearly every answer."""
CANNOT_JUDGE = "cannot_judge"
"""The judge itself said that it cannot tell."""


class JudgeCriterion(Record):
    """One thing to rate, on a scale of whole numbers."""

    id: NonEmptyText
    name: NonEmptyText
    question: NonEmptyText
    low: int
    high: int
    anchors: dict[int, str] = Field(default_factory=dict)


class JudgeRubric(Record):
    """The criteria in the rubric's own order."""

    id: NonEmptyText
    """With version, such as `cbt-llm.v1`."""
    sha256: NonEmptyText
    criteria: tuple[JudgeCriterion, ...] = Field(min_length=1)


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


@dataclass(frozen=True)
class Verdict:
    """What a reply says on one criterion."""

    value: int | None
    fault: Fault | None = None
    evidence: str | None = None
    note: str = ""


class JudgeAsking(ABC, Generic[AskT]):
    """What every judge's task shares: another seed each repeat, no look back at a faulty reply."""

    _sampling: Sampling

    @abstractmethod
    def request(self, ask: AskT) -> ChatRequest:
        """The question."""

    @abstractmethod
    def read(self, ask: AskT, reply: Reply) -> dict[str, Verdict] | Fault:
        """A verdict on every criterion, or what is wrong with the reply as a whole."""

    def check(self, ask: AskT, reply: Reply) -> Fault | None:
        """The first thing wrong with a reply, or None."""
        verdicts = self.read(ask, reply)
        if isinstance(verdicts, Fault):
            return verdicts
        return next((verdict.fault for verdict in verdicts.values() if verdict.fault), None)

    def ask_again(self, ask: AskT, reply: Reply, fault: Fault) -> ChatRequest | None:
        """The same question afresh, with another seed; not after a refusal.

        The faulty reply is not shown again: it would anchor the new ratings to the old ones.
        """
        if fault.reason in (Reason.REFUSAL, Reason.CONTENT_FILTER):
            return None
        return self.request(ask)

    def _sampling_of(self, n_before: int) -> Sampling:
        """How the repeat after `n_before` others is sampled."""
        seed = self._sampling.seed
        if seed is None:
            return self._sampling
        return self._sampling.model_copy(update={"seed": seed + SEED_STEP * n_before})


class JudgeTask(JudgeAsking[Ask]):
    """The engine's task: asks, checks, asks again, reads back."""

    def __init__(
        self,
        rubric: JudgeRubric,
        sampling: Sampling,
        model: str,
        *,
        host: str = "",
        prompt: str = "judge_cbt_llm",
    ) -> None:
        self.rubric, self.model, self.host = rubric, model, host
        self.prompt, self._sampling = load_prompt(prompt), sampling

    def fingerprint(self) -> dict[str, str]:
        """Everything that can change a reply; the number of repeats may grow."""
        return {
            "task": "judge",
            "model": self.model,
            "endpoint_host": self.host,
            "prompt": self.prompt.name,
            "prompt_sha256": self.prompt.sha256,
            "rubric": self.rubric.id,
            "rubric_sha256": self.rubric.sha256,
            "sampling": json.dumps(self._sampling.described(), sort_keys=True),
        }

    def key(self, ask: Ask) -> str:
        """Question, answer and repeat. Two systems with the same answer share their ratings."""
        text = "\x1f".join((ask.question, ask.description, ask.answer))
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        return f"{ask.question_id}:{digest}:{ask.repeat}"

    def request(self, ask: Ask) -> ChatRequest:
        """The question about one answer."""
        criteria = self._turned(ask.repeat)
        messages = self.prompt.render(
            criteria="\n".join(map(_described, criteria)),
            shape=_shape(criteria),
            question=fence(ask.question),
            description=fence(ask.description or "（无）"),
            answer=fence(ask.answer),
        )
        return ChatRequest(
            messages,
            ratings_schema(criteria),
            schema_name="ratings",
            sampling=self._sampling_of(ask.repeat),
        )

    def _turned(self, repeat: int) -> list[JudgeCriterion]:
        """The criteria, each repeat beginning with another one."""
        criteria = list(self.rubric.criteria)
        first = repeat % len(criteria)
        return criteria[first:] + criteria[:first]

    def read(self, ask: Ask, reply: Reply) -> dict[str, Verdict] | Fault:
        """A verdict on every criterion, or what is wrong with the reply as a whole."""
        ids = [criterion.id for criterion in self.rubric.criteria]
        found = parse_object(reply.text, fits=lambda value: any(name in value for name in ids))
        if isinstance(found, Fault):
            return found
        return {
            criterion.id: _verdict(criterion, found.get(criterion.id), ask.answer)
            for criterion in self.rubric.criteria
        }


def _verdict(criterion: JudgeCriterion, entry: object, answer: str) -> Verdict:
    if not isinstance(entry, Mapping) or "rating" not in entry:
        return Verdict(None, Fault(Reason.BAD_RATING, f"'{criterion.id}' has no rating"))
    value, note = entry["rating"], str(entry.get("reason") or "").strip()
    if value is None:
        return Verdict(None, note=note)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not criterion.low <= value <= criterion.high:
        scale = f"{criterion.low} to {criterion.high}"
        found = json.dumps(value, ensure_ascii=False)[:40]
        return Verdict(None, Fault(Reason.BAD_RATING, f"'{criterion.id}': {found}, not {scale}"))
    evidence = str(entry.get("evidence") or "").strip()
    if not stands_in(evidence, answer):
        detail = f"'{criterion.id}': '{evidence[:80]}' does not stand in the answer"
        return Verdict(None, Fault(Reason.EVIDENCE_NOT_FOUND, detail))
    return Verdict(value, evidence=evidence, note=note)


def stands_in(evidence: str, answer: str) -> bool:
    """True when the words are quoted from the answer.

    Widths, blanks, punctuation and quotation marks do not count: models change them when they put
    a quote into JSON. At least four characters, or the whole of a shorter answer.
    """
    quoted, whole = _bare(evidence), _bare(answer)
    return len(quoted) >= min(SHORTEST_EVIDENCE, max(len(whole), 1)) and quoted in whole


def _bare(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).lower()
    return "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC")


def _described(criterion: JudgeCriterion) -> str:
    anchors = "".join(
        f"\n  {point} 分：{text}" for point, text in sorted(criterion.anchors.items())
    )
    scale = f"{criterion.low} 到 {criterion.high} 分，只用整数"
    return f"- {criterion.id}（{criterion.name}，{scale}）：{criterion.question}{anchors}"


def _shape(criteria: Iterable[JudgeCriterion]) -> str:
    entry = '{"evidence": "回复里的原话", "reason": "一句理由", "rating": 分数}'
    return "{" + ", ".join(f'"{criterion.id}": {entry}' for criterion in criteria) + "}"


def ratings_schema(criteria: Iterable[JudgeCriterion]) -> dict[str, Any]:
    """JSON schema of a reply: evidence and reason come before the rating."""
    entries = {
        criterion.id: {
            "type": "object",
            "properties": {
                "evidence": {"type": "string"},
                "reason": {"type": "string"},
                "rating": {
                    "type": ["integer", "null"],
                    "enum": [*range(criterion.low, criterion.high + 1), None],
                },
            },
            "required": ["evidence", "reason", "rating"],
            "additionalProperties": False,
        }
        for criterion in criteria
    }
    return {
        "type": "object",
        "properties": entries,
        "required": list(entries),
        "additionalProperties": False,
    }


def read_ratings(asks: Iterable[Ask], task: JudgeTask, journal: Journal) -> Iterator[JudgeRating]:
    """Every criterion of every ask, in order; what was turned away carries its reason.

    Of a reply that was turned away for one criterion, the good ratings on the others are kept.
    """
    for ask in asks:
        verdicts = _verdicts(ask, task, journal.outcome(task.key(ask)))
        for criterion in task.rubric.criteria:
            verdict = verdicts[criterion.id]
            reason = verdict.fault.reason.value if verdict.fault else CANNOT_JUDGE
            yield JudgeRating(
                question_id=ask.question_id,
                system=ask.system,
                criterion=criterion.id,
                repeat=ask.repeat,
                value=verdict.value,
                unscored_reason=reason if verdict.value is None else None,
                evidence=verdict.evidence,
                note=verdict.fault.detail if verdict.fault else verdict.note,
                judge=task.model,
            )


def _verdicts(ask: Ask, task: JudgeTask, outcome: Outcome | None) -> dict[str, Verdict]:
    fault = outcome.fault if outcome else Fault(Reason.ENDPOINT, "no reply yet")
    whole = {
        criterion.id: Verdict(None, fault or Fault(Reason.EMPTY, "the reply holds nothing"))
        for criterion in task.rubric.criteria
    }
    if outcome is None or outcome.reply is None:
        return whole
    if fault and fault.reason not in (Reason.EVIDENCE_NOT_FOUND, Reason.BAD_RATING):
        return whole
    read = task.read(ask, outcome.reply)
    return whole if isinstance(read, Fault) else read


# --- inputs --------------------------------------------------------------------------------------
# What the judge reads: questions, the answers of each system, and what people rated.


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
    known = {one.id: one for one in _questions(questions, split)}
    if not known:
        raise DataError("holds no usable question", where=str(questions))
    ids = tuple(known)
    if sample is not None and sample < len(ids):
        drawn = set(random.Random(f"judge {len(ids)}").sample(sorted(ids), sample))
        ids = tuple(one for one in ids if one in drawn)
    places = References(questions.name, ids, ids, (None,) * len(ids))
    systems: dict[str, Predictions] = {}
    for path in predictions:
        read = read_predictions(path, columns, places, split)
        name = path.stem if read.system in systems else read.system
        if name in systems:
            raise UsageError(f"two files name their system '{name}'", hint="rename one of them")
        systems[name] = Predictions(name, read.items, read.counts)
    return Answers(tuple(known[one] for one in ids), tuple(systems.values()))


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
