"""`cbtqa rate export --for judge-sft`: people's ratings as rows to tune a judge on.

    rows/
      train.jsonl          {"id": "i1:R1", "prompt": [messages], "completion": [message]}
      train.meta.jsonl     item, rater, question of each row, in the same order
      validation.jsonl     and test.jsonl, with theirs: other questions
      manifest.json        rows by split, evidence by origin, what was left out and why

The prompt of a row is the request that the judge sends for the item, the completion one rater's
ratings in the form of its replies; each row is read back by the judge's own checks. Ids are those
of the study, which name neither system nor question.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field

from cbtqa.errors import ConfigError, UsageError
from cbtqa.files import read_jsonl, write_jsonl
from cbtqa.judging.answers import AnswerJudge, Ask, JudgeRating
from cbtqa.judging.asking import JudgeTask, is_quote_of
from cbtqa.judging.run import RATINGS_NAME
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.cost import estimate_tokens
from cbtqa.manifest import (
    MANIFEST_NAME,
    describe_file,
    new_manifest,
    now,
    refuse_empty,
    write_manifest,
)
from cbtqa.paths import make_folder
from cbtqa.ratings.answers import Answer
from cbtqa.ratings.rubric import Criterion, Rubric
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import Item, Presentation, StudyFolder
from cbtqa.records import Record
from cbtqa.report.page import Lang
from cbtqa.settings import Resolved, Settings
from cbtqa.splits import FEW_QUESTIONS, SPLITS, Split, split_few, split_of

AskT = TypeVar("AskT")
Row = dict[str, Any]
_SENTENCE = re.compile(r"[^。！？!?.\n]+[。！？!?.]*")
ROOM = 1.1
"""For control tokens, and for what the estimate is short of."""
BY_RATER, BY_JUDGE, BY_LENGTH = "rater", "judge", "longest sentence"
"""Where the evidence of a rating comes from."""


class JudgeRowSettings(Settings):
    """What can be set for rows of `judge-sft`."""

    panel: ClassVar[str] = "Rows to tune a judge on (judge-sft)"

    prompt: str | None = None
    """Prompt of the judge (default: that of cbtqa judge, for sessions of cbtqa simulate judge)."""
    judged: Path | None = None
    """Folder of cbtqa judge on the same answers: where it gave a rater's rating, its quote and
    reason are used where the rater quoted nothing."""
    quoted_only: bool = False
    """Leave out rows that lack such a quote, in place of quoting the longest sentence."""
    seed: int = Field(0, ge=0)
    """Of the splits."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the questions in the validation split."""
    test: float = Field(0.1, ge=0, lt=1)
    """Share of the questions in the test split."""


class JudgeRows(Record):
    """What was written."""

    n_rows: dict[str, int]
    """By split."""
    evidence: dict[str, int]
    """Ratings by where their evidence comes from."""
    left_out: dict[str, int]
    """Presentations without a row, by reason."""
    max_length: int
    """A `--max-length` that holds the longest row, by an estimate of tokens; a multiple of 1024."""


@dataclass(frozen=True)
class JudgeForm(Generic[AskT]):
    """A judge, and how an item of a rating study is put before it."""

    task: JudgeTask[AskT]
    ask: Callable[[Item, int], AskT]
    """The item as the judge is asked about it, for the rater of a place from 0."""
    quote: Callable[[Item, str], str]
    """A rater's evidence as the judge gives it."""
    stand_in: Callable[[Item], str]
    """Evidence that is formally right, where nobody gave any."""
    lang: Lang
    """Of the judge's reasons."""


def answer_form(rubric: Rubric, prompt: str | None) -> JudgeForm[Ask]:
    """The judge of answers; a UsageError where the rubric has no scale for them."""
    if rubric.shows != "answer" or not rubric.scales:
        raise UsageError(f"no judge rates on {rubric.versioned_id}: it has no scale for answers")
    judge = AnswerJudge(rubric, Sampling(seed=0), "", prompt=prompt or "judge_cbt_llm")
    return JudgeForm(
        judge,
        ask=lambda item, place: Ask(
            item.id, "", item.question, item.description, item.answer, place
        ),
        quote=lambda _, evidence: evidence,
        stand_in=lambda item: longest_sentence(item.answer),
        lang="zh",
    )


def longest_sentence(text: str) -> str:
    """Of equals the first; the whole text where it has none."""
    return max((one.strip() for one in _SENTENCE.findall(text)), key=len, default=text.strip())


def export_judge_rows(
    folder: StudyFolder,
    store: Store,
    form: JudgeForm[AskT],
    out: Path,
    resolved: Resolved[JudgeRowSettings],
) -> JudgeRows:
    """Writes the rows of every presentation that a rater has finished.

    Calibration items, second showings, what a rater could not judge and ratings whose row the
    judge itself would not accept are left out and counted.

    Raises:
        ConfigError: the shares leave nothing for train.
        UsageError: `judged` for a study of sessions.
        DataError: `judged` holds no ratings.
        IncompleteRunError: no row at all.
    """
    started, settings = now(), resolved.values
    if settings.judged is not None and folder.rubric.shows != "answer":
        raise UsageError("--judged takes ratings of answers, and this study is of sessions")
    if settings.validation + settings.test >= 1:
        raise ConfigError("validation and test leave nothing for train")
    made = _Made(folder, form, _Quotes.read(settings.judged), settings.quoted_only)
    answers = store.answers()
    rows = [
        (shown, row)
        for shown in folder.plan
        if (row := made.row(shown, answers.get(shown.code))) is not None
    ]
    refuse_empty(
        len(rows),
        len(folder.plan),
        "presentations made a row",
        made.left_out,
        kept=None,
        hint="cbtqa rate status STUDY shows what is open; ratings without a quote are taken "
        "without --quoted-only",
    )
    make_folder(out)
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    found = JudgeRows(
        n_rows=_write(folder, rows, out, settings),
        evidence=dict(made.evidence),
        left_out=dict(sorted(made.left_out.items())),
        max_length=1024 * math.ceil(ROOM * made.longest / 1024),
    )
    folder.log("exported", to="judge-sft", n=len(rows))
    manifest = new_manifest(
        "judge-rows",
        resolved,
        started,
        inputs=(describe_file(folder.path / "items.jsonl"),),
        prompts={form.task.prompt.name: form.task.prompt.sha256},
        counts={"study": folder.study.id, "rubric": folder.study.rubric, **found.model_dump()},
        files=tuple(describe_file(path, out) for path in sorted(out.glob("*.jsonl"))),
    )
    write_manifest(out, manifest)
    return found


def _write(
    folder: StudyFolder,
    rows: Sequence[tuple[Presentation, Row]],
    out: Path,
    settings: JudgeRowSettings,
) -> dict[str, int]:
    """The files of each split, and how many rows it has."""
    splits = _splits([folder.item_of(shown).question_id for shown, _ in rows], settings)
    counts: dict[str, int] = {}
    for split in SPLITS:
        own = [one for one in rows if splits[folder.item_of(one[0]).question_id] == split]
        counts[split] = len(own)
        write_jsonl(out / f"{split}.jsonl", (row for _, row in own))
        write_jsonl(out / f"{split}.meta.jsonl", (_meta(folder, shown) for shown, _ in own))
    return counts


def _meta(folder: StudyFolder, shown: Presentation) -> Row:
    item = folder.item_of(shown)
    return {"item_id": item.id, "rater": shown.rater, "question_id": item.question_id}


def _splits(questions: list[str], settings: JudgeRowSettings) -> dict[str, Split]:
    """Every question's split; of few the shares are counted out."""
    shares = {"validation": settings.validation, "test": settings.test}
    names = list(dict.fromkeys(questions))
    if len(names) < FEW_QUESTIONS:
        return split_few(dict.fromkeys(names, 1), seed=settings.seed, **shares)
    return {name: split_of(name, seed=settings.seed, **shares) for name in names}


@dataclass
class _Quotes:
    """What a judge quoted for a rating of a question, of whatever system's answer."""

    by_rating: dict[tuple[str, str, int], list[tuple[str, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    @classmethod
    def read(cls, folder: Path | None) -> _Quotes:
        found = cls()
        for one in read_jsonl(folder / RATINGS_NAME, JudgeRating) if folder else ():
            if one.value is not None and one.evidence:
                key = (one.question_id, one.criterion, one.value)
                found.by_rating[key].append((one.evidence, one.note))
        return found

    def of(self, item: Item, criterion: str, value: int) -> tuple[str, str] | None:
        """The first quote that is in this answer: the study may still be blind."""
        found = self.by_rating.get((item.question_id, criterion, value), ())
        return next((one for one in found if is_quote_of(one[0], item.answer)), None)


@dataclass
class _Made(Generic[AskT]):
    """Rows, one by one, with the counts of what they hold."""

    folder: StudyFolder
    form: JudgeForm[AskT]
    quotes: _Quotes
    quoted_only: bool
    evidence: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    """Estimated tokens of a row."""

    def row(self, shown: Presentation, answer: Answer | None) -> Row | None:
        """The row of one presentation, or None, with the reason counted."""
        if (reason := self._unfit(shown, answer)) is not None or answer is None:
            self.left_out[reason or "open"] += 1
            return None
        item = self.folder.item_of(shown)
        ask = self.form.ask(item, self.folder.study.raters.index(shown.rater))
        request = self.form.task.request(ask)
        entries = dict(self._entries(ask, item, answer))
        if len(entries) < len(self.form.task.criteria):
            self.left_out["no_quote"] += 1
            return None
        named = {name: entry for name, (entry, _) in entries.items()}
        text = json.dumps(_in_order(request, named), ensure_ascii=False)
        read = self.form.task.read(ask, Reply(text))
        for criterion in self.form.task.criteria:
            verdict = read if isinstance(read, Fault) else read[criterion.id]
            if isinstance(verdict, Fault) or verdict.value != answer.values[criterion.id]:
                fault = verdict if isinstance(verdict, Fault) else verdict.fault
                self.left_out[fault.reason.value if fault else "not_read_back"] += 1
                return None
        self.evidence.update(origin for _, origin in entries.values())
        completion = [{"role": "assistant", "content": text}]
        messages = [*request.messages, *completion]
        n_tokens = sum(estimate_tokens(one["content"]) for one in messages)
        self.longest = max(self.longest, n_tokens)
        name = f"{item.id}:{shown.rater}"
        return {"id": name, "prompt": request.messages, "completion": completion}

    def _unfit(self, shown: Presentation, answer: Answer | None) -> str | None:
        if shown.phase == "calibration":
            return "calibration"
        if shown.repeat:
            return "second_showing"
        if answer is not None and answer.cannot_judge:
            return "cannot_judge"
        scales = [one.id for one in self.form.task.criteria]
        is_open = answer is None or any(answer.values.get(name) is None for name in scales)
        return "open" if is_open else None

    def _entries(
        self, ask: AskT, item: Item, answer: Answer
    ) -> Iterator[tuple[str, tuple[Row, str]]]:
        """Criterion to its entry in the reply and the origin of its evidence."""
        for criterion in self.form.task.criteria:
            value = int(answer.values[criterion.id] or 0)  # none is open: `_unfit`
            anchor = _anchor(criterion, value, self.form.lang)
            for evidence, reason, origin in self._evidence(item, answer, criterion.id, value):
                # a rater may quote the question, and the judge may not
                if self.form.task.rests_on(ask, criterion, value, evidence):
                    entry = {"evidence": evidence, "reason": reason or anchor, "rating": value}
                    yield criterion.id, (entry, origin)
                    break

    def _evidence(
        self, item: Item, answer: Answer, criterion: str, value: int
    ) -> Iterator[tuple[str, str, str]]:
        """Evidence, the reason that goes with it and its origin, the best first."""
        if given := answer.evidence.get(criterion):
            yield self.form.quote(item, given), "", BY_RATER
        if quoted := self.quotes.of(item, criterion, value):
            yield *quoted, BY_JUDGE
        if not self.quoted_only:
            yield self.form.stand_in(item), "", BY_LENGTH


def _in_order(request: ChatRequest, entries: Mapping[str, Row]) -> Row:
    """The reply with what the request asks for, in its order."""
    properties = (request.json_schema or {})["properties"]
    fixed = {name: shape["enum"][0] for name, shape in properties.items() if name not in entries}
    return {name: fixed.get(name, entries.get(name)) for name in properties}


def _anchor(criterion: Criterion, value: int, lang: Lang) -> str:
    """What the rubric says of this point, or of the nearest below it."""
    below = [point for point in criterion.anchors if point <= value]
    return (criterion.anchors[max(below)] if below else criterion.name).to(lang)
