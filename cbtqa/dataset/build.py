"""From a file of questions to a finished dataset folder.

Two passes over the input. The first has every question answered into the journal; whatever stops
it, the same command continues. The second reads the replies back in input order, checks them and
writes the folder, so the result depends on the input and the journal alone, never on which reply
came first. The manifest is written last: its presence means the folder is complete.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cbtqa.dataset.instruction import Grades, Item
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.splitting import SplitPlan
from cbtqa.dataset.teachers import EndpointTeacher
from cbtqa.dataset.template.teacher import OfflineTeacher
from cbtqa.dataset_folder import DatasetWriter, answer_row
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import Fault, fault_of_reply
from cbtqa.llm.journal import Journal, Outcome, blocks_of
from cbtqa.llm.runs import Run
from cbtqa.manifest import MANIFEST_NAME, Manifest, describe_file
from cbtqa.psyqa import SourceItem, parse_columns, read_questions
from cbtqa.records import CbtAnswer, Reason, Rejection
from cbtqa.safety.screen import screen
from cbtqa.settings import Resolved

Teacher: TypeAlias = EndpointTeacher | OfflineTeacher
"""Writes answers into a journal, and reads them back from it."""
Entry: TypeAlias = tuple[Item, SourceItem] | Rejection
"""One row of the input: a question with its source, or why it is none."""


@dataclass
class Build:
    """One run: its settings, its teacher, and what it counts on the way."""

    resolved: Resolved[BuildSettings]
    teacher: Teacher
    input_path: Path
    types: tuple[str, ...]
    """Ids of the taxonomy's types."""
    n_in: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    risks: Counter[str] = field(default_factory=Counter)
    n_human: int = 0
    n_human_rejected: int = 0
    near_duplicates: dict[str, Any] = field(default_factory=dict)
    _grades: Grades = field(default_factory=Grades)

    @property
    def settings(self) -> BuildSettings:
        return self.resolved.values

    @property
    def hashed_path(self) -> Path:
        """The file that identifies the input: itself, or the manifest of a dataset folder."""
        return self.input_path / MANIFEST_NAME if self.input_path.is_dir() else self.input_path

    def items(
        self, on_further: Callable[[SourceItem], None] = lambda source: None
    ) -> Iterator[Entry]:
        """Every question as an item with its risk, every other row as a rejection.

        Args:
            on_further: called with rows that only bring a further answer to a question.
        """
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
                text = entry.question.source_text
                if self.settings.crisis != "drop" or screen(text).risk == "none":
                    on_further(entry)
                continue
            n_entries += 1
            if isinstance(entry, Rejection):
                yield entry
                continue
            item = Item(entry.question, place, self._grades)
            place += 1
            if self.settings.crisis == "drop" and item.risk != "none":
                yield Rejection(
                    item_id=item.question.id,
                    stage="screen",
                    reason=Reason.CRISIS_DROPPED,
                    detail=f"risk {item.risk}; left out by --crisis drop",
                    where=entry.where,
                )
                continue
            yield item, entry

    def questions(self) -> Iterator[Item]:
        return (entry[0] for entry in self.items() if not isinstance(entry, Rejection))

    def generate(self, run: Run, on_progress: OnProgress | None) -> None:
        if isinstance(self.teacher, OfflineTeacher):
            self.teacher.generate(self.questions(), run.journal, on_progress)
            return
        # counting is a pass of its own: a paid run shows how much is left
        n_total = sum(1 for _ in self.questions())
        run.ask(self.questions(), self.teacher, n_total=n_total, on_progress=on_progress)

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

            for entry, outcome in _with_outcomes(self.items(add_human), journal):
                self.n_in += 1
                if isinstance(entry, Rejection):
                    self._reject(writer, entry)
                    continue
                item, source = entry
                split = next(splits)
                add_human(source)
                answer = self._finish(item, outcome, seen_answers)
                if isinstance(answer, Rejection):
                    self._reject(writer, answer)
                    continue
                self.risks[item.risk] += 1
                writer.add_answer(split, answer_row(item.question, answer))
            return writer.n_rows

    def _reject(self, writer: DatasetWriter, rejection: Rejection) -> None:
        self.rejected[rejection.reason.value] += 1
        writer.add_rejection(rejection)

    def _finish(
        self, item: Item, outcome: Outcome | None, seen_answers: set[bytes]
    ) -> CbtAnswer | Rejection:
        """The record of one item, or why there is none."""

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
            distortions=checked.distortions,
            risk=item.risk,
            provenance=self.teacher.provenance(outcome.reply),
        )

    def manifest(self, run: Run, splits: dict[str, int]) -> Manifest:
        counts: dict[str, Any] = {
            "n_in": self.n_in,
            "n_out": sum(splits.values()),
            "n_rejected": self.rejected.total(),
            "rejected": dict(self.rejected.most_common()),
            "splits": splits,
            "risk": dict(self.risks),
            **self.near_duplicates,
        }
        if self.settings.include_human:
            counts |= {"n_human": self.n_human, "n_human_rejected": self.n_human_rejected}
        return run.manifest(
            "dataset",
            self.resolved,
            inputs=(describe_file(self.hashed_path),),
            prompts=dict(self.teacher.prompts),
            counts=counts,
        )


def _with_outcomes(
    entries: Iterator[Entry], journal: Journal
) -> Iterator[tuple[Entry, Outcome | None]]:
    """Pairs every item with its outcome in the journal, in order, in blocks."""
    for block in blocks_of(entries, 1000):
        keys = [entry[0].key for entry in block if not isinstance(entry, Rejection)]
        outcomes = journal.outcomes(keys)
        for entry in block:
            yield entry, None if isinstance(entry, Rejection) else next(outcomes)[1]
