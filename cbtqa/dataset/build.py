"""From a file of questions to a finished dataset folder.

Two passes over the input. The first has every question answered into the journal; whatever stops
it, the same command continues. The second reads the replies back in input order, checks them and
writes the folder, so the result depends on the input and the journal alone, never on which reply
came first. The manifest is written last: its presence means the folder is complete.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from cbtqa.dataset.check import CheckedAnswer
from cbtqa.dataset.instruction import Grade, Grades, Item, grade_of, grade_text
from cbtqa.dataset.near_duplicates import Texts, plain_text
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.teachers import LABELS, EndpointTeacher, QuestionLabels
from cbtqa.dataset.template.teacher import OfflineTeacher
from cbtqa.dataset_folder import SPLITS, DatasetWriter, answer_row
from cbtqa.distortions.llm_labeller import TextsToLabel
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import Fault, fault_of_reply
from cbtqa.llm.journal import Entry, Journal, Outcome, State, blocks_of
from cbtqa.llm.runs import Run
from cbtqa.llm.second_opinion import (
    NO_OPINIONS,
    Exchange,
    OpenOpinion,
    OpenOpinions,
    OpinionCounts,
    Opinions,
    changes,
    worse_of,
)
from cbtqa.manifest import MANIFEST_NAME, Manifest, describe_file
from cbtqa.processes import map_blocks
from cbtqa.psyqa import SourceItem, parse_columns, read_questions
from cbtqa.records import CbtAnswer, DistortionLabel, Reason, Rejection, Usage
from cbtqa.safety.answers import Problem
from cbtqa.safety.encoder import fingerprint_of, open_encoder
from cbtqa.safety.screen import READ_TOGETHER, Screening, screen
from cbtqa.settings import Resolved
from cbtqa.splits import FEW_QUESTIONS, split_few, split_of

Teacher: TypeAlias = EndpointTeacher | OfflineTeacher
"""Writes answers into a journal, and reads them back from it."""
Row: TypeAlias = tuple[Item, SourceItem] | Rejection
"""One row of the input: a question with its source, or why it is none."""


@dataclass
class Build:
    """One run: its settings, its teacher, and what it counts on the way."""

    resolved: Resolved[BuildSettings]
    teacher: Teacher
    input_path: Path
    types: tuple[str, ...]
    """Ids of the taxonomy's types."""
    opinions: Opinions
    """Further models that grade the questions and read the answers."""
    n_in: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    risks: Counter[str] = field(default_factory=Counter)
    dangers: Counter[str] = field(default_factory=Counter)
    n_minors: int = 0
    n_labels_read: int = 0
    """Questions whose labels the second pass gave."""
    labels_failed: Counter[str] = field(default_factory=Counter)
    """Faults of questions whose labels are the names in their answer's text instead."""
    labels_dropped: Counter[str] = field(default_factory=Counter)
    """Types that the second pass gave beyond the most that are kept."""
    n_labels_differ: int = 0
    """Answers whose text does not name just the types that the second pass left them."""
    only_named: Counter[str] = field(default_factory=Counter)
    """Types that the answer's text names and its labels lack."""
    only_labelled: Counter[str] = field(default_factory=Counter)
    """Types that are labels and that the answer's text does not name."""
    n_human: int = 0
    n_human_rejected: int = 0
    near_duplicates: dict[str, Any] = field(default_factory=dict)
    opinion_counts: dict[str, OpinionCounts] = field(init=False)
    """By role, of the models that are asked."""
    _grades: Grades = field(init=False)

    def __post_init__(self) -> None:
        self._grades = Grades(open_encoder(self.settings.screen_model))
        self.opinion_counts = {one.role: OpinionCounts(one) for one in self.opinions.each}

    @property
    def settings(self) -> BuildSettings:
        return self.resolved.values

    @property
    def hashed_path(self) -> Path:
        """The file that identifies the input: itself, or the manifest of a dataset folder."""
        return self.input_path / MANIFEST_NAME if self.input_path.is_dir() else self.input_path

    def items(
        self, on_further: Callable[[SourceItem], None] = lambda source: None
    ) -> Iterator[Row]:
        """Every question as an item with its grade, every other row as a rejection.

        Args:
            on_further: called with rows that only bring a further answer to a question.
        """
        dropped: set[str] = set()
        entries = self._entries()
        for entry in self._screened(entries) if self._grades.model else entries:
            if isinstance(entry, SourceItem):
                if entry.question.id not in dropped:
                    on_further(entry)
                continue
            if isinstance(entry, Rejection):
                yield entry
                continue
            item, source = entry
            if self.settings.crisis == "drop" and item.grade.is_crisis:
                dropped.add(item.question.id)
                yield Rejection(
                    item_id=item.question.id,
                    stage="screen",
                    reason=Reason.CRISIS_DROPPED,
                    detail=f"risk {item.grade.risk}{_told(item.grade)}; left out by --crisis drop",
                    where=source.where,
                )
                continue
            yield entry

    def _screened(self, entries: Iterable[Row | SourceItem]) -> Iterator[Row | SourceItem]:
        """The rows after the encoder has read them, a batch at a time."""
        for block in blocks_of(entries, READ_TOGETHER):
            self._grades.screen_all(one[0] for one in block if isinstance(one, tuple))
            yield from block

    def _entries(self) -> Iterator[Row | SourceItem]:
        """Every row; one that only brings a further answer to a question as its source alone."""
        reader = read_questions(
            self.input_path,
            encoding=self.settings.encoding,
            columns=parse_columns(self.settings.column),
            first_turn=self.settings.first_turn,
            with_answers=self.settings.include_human,
        )
        place, n_entries = 0, 0
        while n_entries != self.settings.limit and (entry := next(reader, None)) is not None:
            if isinstance(entry, SourceItem) and entry.is_further:
                yield entry
                continue
            n_entries += 1
            if isinstance(entry, Rejection):
                yield entry
                continue
            yield Item(entry.question, place, self._grades), entry
            place += 1

    def questions(self) -> Iterator[Item]:
        return (entry[0] for entry in self.items() if not isinstance(entry, Rejection))

    def fingerprint(self) -> dict[str, str]:
        """What shapes the teacher's replies: its own, and whose grades choose the branch."""
        encoder = fingerprint_of(self.settings.screen_model)
        return self.teacher.fingerprint() | self.opinions.fingerprint() | encoder

    def grade(
        self,
        run: Run,
        opened: OpenOpinions,
        on_progress: OnProgress | None,
        chosen: Sequence[Item] | None = None,
    ) -> None:
        """Has a further model grade the questions; the worse grade chooses the prompt's branch."""
        asked = opened.screen
        if asked is None:
            return

        def items() -> Iterator[Item]:
            found = self.questions() if chosen is None else iter(chosen)
            return (item for item in found if item.grade.risk != "explicit")  # nothing is worse

        others = (run, *(one for one in opened.runs if one is not asked.run))
        n_total = sum(1 for _ in items())
        texts = map(exchange_of, items())
        asked.ask(texts, n_total=n_total, beside=others, on_progress=on_progress)
        for block in blocks_of(items(), 512):
            verdicts = asked.read(map(exchange_of, block))
            for item, (text, verdict) in zip(block, verdicts, strict=True):
                changed: tuple[str, ...] = ()
                if isinstance(verdict, Screening) and (verdict.risk != "none" or verdict.dangers):
                    own = screen(text.question, model=self._grades.model)
                    worse = worse_of(own, verdict)
                    changed = changes(own, worse)
                    item.note(grade_of(worse))
                self.opinion_counts["screen"].add(verdict, changed)

    def guard(
        self,
        run: Run,
        opened: OpenOpinions,
        on_progress: OnProgress | None,
        chosen: Sequence[Item] | None = None,
    ) -> None:
        """Has a further model read the accepted answers; one it finds unsafe is asked for again.

        An answer that is refused at the teacher's last attempt is rejected. What the guard gives
        no verdict on stays accepted, and is counted.
        """
        asked = opened.guard
        if asked is None:
            return
        others = (run, *(one for one in opened.runs if one is not asked.run))
        is_offline = isinstance(self.teacher, OfflineTeacher)
        while True:
            n_total = sum(1 for _ in self.accepted(run.journal, chosen))
            texts = (exchange for *_, exchange in self.accepted(run.journal, chosen))
            asked.ask(texts, n_total=n_total, beside=others, on_progress=on_progress)
            refused = []
            for item, outcome, exchange in self.accepted(run.journal, chosen):
                verdict = asked.verdict(exchange)
                if isinstance(verdict, Fault) or not verdict or outcome.reply is None:
                    continue
                fault = Fault(Reason.UNSAFE, "; ".join(map(str, verdict)))
                # its tokens are counted in the row that accepted it
                reply = replace(outcome.reply, usage=Usage())
                state = State.FINAL if is_offline else State.FAULTY
                refused.append(Entry(item.key, outcome.n_attempts, state, reply, fault))
            if not refused:
                break
            run.journal.record(refused)
            if not is_offline:  # the templates would write the same again
                self.generate(run, on_progress, chosen, opened.runs)
        self._count_guarded(run.journal, asked, chosen)

    def _count_guarded(
        self,
        journal: Journal,
        asked: OpenOpinion[tuple[Problem, ...]],
        chosen: Sequence[Item] | None,
    ) -> None:
        """Counts the verdict on every answer that the guard has read, those it refused included."""
        counts = self.opinion_counts["guard"]
        items = self.questions() if chosen is None else iter(chosen)
        for item in items:
            for entry in journal.replies(item.key):
                answer = entry.reply and self.teacher.read(item, entry.reply)
                if answer is None or isinstance(answer, Fault):
                    continue
                read = asked.outcome(exchange_of(item, answer.text))
                if read is not None:
                    verdict = asked.by.task.read_outcome(exchange_of(item, answer.text), read)
                    problems = () if isinstance(verdict, Fault) else verdict
                    counts.add(verdict, [one.rule for one in problems])

    def accepted(
        self, journal: Journal, chosen: Sequence[Item] | None = None
    ) -> Iterator[tuple[Item, Outcome, Exchange]]:
        """The questions whose answer passes the checks, with both as the guard reads them."""
        items = self.questions() if chosen is None else iter(chosen)
        for block in blocks_of(items, 512):
            outcomes = journal.outcomes([item.key for item in block])
            for item, (_, outcome) in zip(block, outcomes, strict=True):
                if outcome is None or not outcome.is_accepted or outcome.reply is None:
                    continue
                answer = self.teacher.read(item, outcome.reply)
                if not isinstance(answer, Fault):
                    yield item, outcome, exchange_of(item, answer.text)

    def generate(
        self,
        run: Run,
        on_progress: OnProgress | None,
        chosen: Sequence[Item] | None = None,
        beside: Sequence[Run] = (),
    ) -> None:
        """Has the questions answered into the run's journal; `chosen`: these alone."""
        asked = self.questions() if chosen is None else iter(chosen)
        if isinstance(self.teacher, OfflineTeacher):
            self.teacher.generate(asked, run.journal, on_progress)
            return
        # counting is a pass of its own: a paid run shows how much is left
        n_total = sum(1 for _ in self.questions()) if chosen is None else len(chosen)
        how: dict[str, Any] = {"n_total": n_total, "beside": beside, "on_progress": on_progress}
        run.ask(asked, self.teacher, **how)

    @property
    def labels(self) -> QuestionLabels | None:
        """The second pass over the questions; None where labels come with the answers."""
        return self.teacher.labels if isinstance(self.teacher, EndpointTeacher) else None

    def label(
        self,
        run: Run,
        labels: QuestionLabels,
        on_progress: OnProgress | None,
        chosen: Sequence[Item] | None = None,
        beside: Sequence[Run] = (),
    ) -> None:
        """Asks for the labels of the questions that have an accepted answer; `chosen` alone."""

        def texts() -> Iterator[TextsToLabel]:
            asked = self.questions() if chosen is None else iter(chosen)
            return self._to_label(asked, run.journal, labels)

        n_total = sum(1 for _ in texts())
        how: dict[str, Any] = {"n_total": n_total, "beside": beside, "on_progress": on_progress}
        run.ask(texts(), labels.task, **how)

    @staticmethod
    def _to_label(
        items: Iterator[Item], journal: Journal, labels: QuestionLabels
    ) -> Iterator[TextsToLabel]:
        for block in blocks_of(items, 1000):
            standings = journal.standings([item.key for item in block])
            for item in block:
                standing, text = standings.get(item.key), labels.text_of(item)
                if text and standing and standing.state is State.ACCEPTED:
                    yield text

    def write(self, folder: Path, journal: Journal) -> dict[str, int]:
        """Writes shards and rejects from the journal; returns rows per split."""
        plan = SplitPlan(self.settings, self.questions())
        self.near_duplicates = {
            "n_near_duplicates": plan.n_near_duplicates,
            "near_duplicates": plan.near_duplicates,
        }
        splits = plan.splits()
        seen_answers: set[bytes] = set()
        with DatasetWriter(folder, self.types) as writer:

            def add_human(source: SourceItem) -> None:
                for human in source.answers:
                    writer.add_human(human)
                for rejection in source.rejected_answers:
                    writer.add_rejection(rejection)
                self.n_human += len(source.answers)
                self.n_human_rejected += len(source.rejected_answers)

            entries = self.items(add_human)
            for entry, outcome, labelled in _with_outcomes(entries, journal, self.labels):
                self.n_in += 1
                if isinstance(entry, Rejection):
                    self._reject(writer, entry)
                    continue
                item, source = entry
                split = next(splits)
                add_human(source)
                answer = self.finish(item, outcome, labelled, seen_answers)
                if isinstance(answer, Rejection):
                    self._reject(writer, answer)
                    continue
                grade = item.grade
                self.risks[grade.risk] += 1
                self.dangers.update(grade.dangers)
                self.n_minors += grade.is_minor
                writer.add_answer(split, answer_row(item.question, answer))
            return writer.n_rows

    def _reject(self, writer: DatasetWriter, rejection: Rejection) -> None:
        self.rejected[rejection.reason.value] += 1
        writer.add_rejection(rejection)

    def finish(
        self,
        item: Item,
        outcome: Outcome | None,
        labelled: Outcome | None,
        seen_answers: set[bytes],
    ) -> CbtAnswer | Rejection:
        """The record of one item, or why there is none.

        Args:
            labelled: what the second pass over the question gave, where there is one.
        """

        raw = outcome.reply.text if outcome and outcome.reply else None

        def rejected(fault: Fault, stage: Literal["generate", "check"] = "check") -> Rejection:
            why: dict[str, Any] = {"reason": fault.reason, "detail": fault.detail, "raw": raw}
            return Rejection(item_id=item.question.id, stage=stage, **why)

        if outcome is None:
            return rejected(Fault(Reason.ENDPOINT, "no reply in the journal"), "generate")
        if outcome.fault or outcome.reply is None:
            return rejected(outcome.fault or Fault(Reason.ENDPOINT), "generate")
        # a journal may hold what an earlier version took for a whole answer
        if cut := fault_of_reply(outcome.reply):
            return rejected(cut, "generate")
        checked = self.teacher.read(item, outcome.reply)
        if isinstance(checked, Fault):
            return rejected(checked)
        mark = hashlib.blake2b(checked.text.encode(), digest_size=8).digest()
        if mark in seen_answers:
            return rejected(Fault(Reason.DUPLICATE_ANSWER, "another question has this answer"))
        seen_answers.add(mark)
        return CbtAnswer(
            question_id=item.question.id,
            system=self.teacher.system,
            text=checked.text,
            steps=checked.steps,
            distortions=self._labels_of(item, checked, labelled),
            risk=item.grade.risk,
            dangers=item.grade.dangers,
            is_acute=item.grade.is_acute,
            is_minor=item.grade.is_minor,
            provenance=self.teacher.provenance(outcome.reply),
        )

    def _labels_of(
        self, item: Item, checked: CheckedAnswer, labelled: Outcome | None
    ) -> tuple[DistortionLabel, ...]:
        """The labels of the question; where they failed, those that the answer names."""
        if self.labels is None:
            return checked.distortions
        kept: tuple[DistortionLabel, ...] = ()
        if text := self.labels.text_of(item):
            found = self.labels.task.read_outcome(text, labelled)
            if isinstance(found, Fault):
                self.labels_failed[found.reason.value] += 1
                return checked.distortions
            self.n_labels_read += 1
            # the surest come first
            kept = found[0].labels[: self.labels.most_types]
            self.labels_dropped.update(one.id for one in found[0].labels[len(kept) :])
        given, named = ({one.id for one in labels} for labels in (kept, checked.distortions))
        self.n_labels_differ += given != named
        self.only_named.update(named - given)
        self.only_labelled.update(given - named)
        return kept

    def manifest(
        self, run: Run, splits: dict[str, int], opened: OpenOpinions = NO_OPINIONS
    ) -> Manifest:
        counts: dict[str, Any] = {
            "n_in": self.n_in,
            "n_out": sum(splits.values()),
            "n_rejected": self.rejected.total(),
            "rejected": dict(self.rejected.most_common()),
            "splits": splits,
            "risk": dict(self.risks),
            **fingerprint_of(self.settings.screen_model),
            "dangers": dict(self.dangers.most_common()),
            "n_minors": self.n_minors,
            **self.near_duplicates,
        }
        if self.labels:
            counts["question_labels"] = {
                "n_read": self.n_labels_read,
                "n_failed": self.labels_failed.total(),
                "failed": dict(self.labels_failed.most_common()),
                "n_dropped": self.labels_dropped.total(),
                "dropped": dict(self.labels_dropped.most_common()),
                "n_differ": self.n_labels_differ,
                "only_named": dict(self.only_named.most_common()),
                "only_labelled": dict(self.only_labelled.most_common()),
                **run.journal.first_replies(LABELS),
            }
        if opened.runs:
            counts["second_opinion"] = {
                one.by.role: self.opinion_counts[one.by.role].described(one.run)
                for one in opened.each
            }
        if self.settings.include_human:
            counts |= {"n_human": self.n_human, "n_human_rejected": self.n_human_rejected}
        return run.manifest(
            "dataset",
            self.resolved,
            apart=LABELS,
            beside=opened.runs,
            inputs=(describe_file(self.hashed_path),),
            prompts=dict(self.teacher.prompts) | self.opinions.prompts,
            counts=counts,
        )


def _with_outcomes(
    entries: Iterator[Row], journal: Journal, labels: QuestionLabels | None
) -> Iterator[tuple[Row, Outcome | None, Outcome | None]]:
    """Every row with the outcomes of its answer and of its labels in the journal, in order."""
    for block in blocks_of(entries, 1000):
        items = [entry[0] for entry in block if not isinstance(entry, Rejection)]
        outcomes = journal.outcomes([item.key for item in items])
        keys = [key for item in items if (key := labels.key(item))] if labels else []
        labelled = dict(journal.outcomes(keys))
        for entry in block:
            if isinstance(entry, Rejection):
                yield entry, None, None
                continue
            key = labels.key(entry[0]) if labels else None
            yield entry, next(outcomes)[1], labelled.get(key) if key else None


def exchange_of(item: Item, answer: str = "") -> Exchange:
    """A question, and an answer, as a further model reads them."""
    return Exchange(item.question.id, item.question.source_text, answer)


def _told(grade: Grade) -> str:
    """The acute dangers of a rejection's detail."""
    return f", acute danger ({', '.join(grade.dangers)})" if grade.is_acute else ""


# --- splits --------------------------------------------------------------------------------------

_BLOCK = 2000


class SplitPlan:
    """Where each question belongs: near-duplicates together, crisis items by setting."""

    def __init__(self, settings: BuildSettings, items: Iterable[Item]) -> None:
        """Reads all questions: compares their texts and grades those not graded yet."""
        compared = Texts()
        # by place: where the question alone would go, an index into SPLITS; whether it is apart
        own, is_crisis = bytearray(), bytearray()
        first_ids: list[str] = []
        blocks: deque[list[Item]] = deque()

        def texts() -> Iterator[list[tuple[str, bool]]]:
            for block in blocks_of(items, _BLOCK):
                blocks.append(block)
                yield [
                    (item.question.source_text, item.grades.is_known(item.place)) for item in block
                ]

        for plain, grades in map_blocks(_make_reader, (), texts()):
            compared.add(plain)
            for item, grade in zip(blocks.popleft(), grades, strict=True):
                if grade is not None:
                    item.note(grade)
                split = split_of(
                    item.question.id,
                    seed=settings.split_seed,
                    validation=settings.validation,
                    test=settings.test,
                )
                own.append(SPLITS.index(split))
                if len(first_ids) < FEW_QUESTIONS:
                    first_ids.append(item.question.id)
                is_crisis.append(item.grade.is_crisis and settings.crisis == "split")
        clusters = compared.clusters(settings.near_cosine)
        del compared  # two bytes a character
        first = clusters.first
        self.n_near_duplicates = clusters.n_joined
        """Questions that joined the cluster of an earlier one."""
        self.near_duplicates: dict[str, Any] = clusters.describe(settings.near_cosine)
        """How they were found."""
        apart = np.frombuffer(is_crisis, dtype=bool)
        if len(own) < FEW_QUESTIONS:
            sizes = Counter(first_ids[place] for place in first[~apart])
            few = split_few(
                sizes,
                seed=settings.split_seed,
                validation=settings.validation,
                test=settings.test,
            )
            for place, item_id in enumerate(first_ids):
                own[place] = SPLITS.index(few.get(item_id, "train"))
        together = np.frombuffer(own, dtype=np.uint8)[first]
        self._places = np.where(apart, SPLITS.index("crisis"), together).astype(np.uint8).tobytes()

    def splits(self) -> Iterator[str]:
        """The split of each question, in the order added."""
        return (SPLITS[place] for place in self._places)


def _make_reader() -> Callable[[list[tuple[str, bool]]], tuple[list[str], list[Grade | None]]]:
    return _read_block


def _read_block(texts: list[tuple[str, bool]]) -> tuple[list[str], list[Grade | None]]:
    plain = [plain_text(text) for text, _ in texts]
    return plain, [None if is_graded else grade_text(text) for text, is_graded in texts]
