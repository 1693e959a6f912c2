"""The embedded default teacher: rules, no model, no key, no network, the same answer each time.

Answers are written by several processes (see `processes`) and checked where they are written.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import cbtqa
from cbtqa.dataset.check import AnswerChecks, CheckedAnswer
from cbtqa.dataset.instruction import Item
from cbtqa.dataset.processes import map_blocks
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.teachers import OnProgress
from cbtqa.dataset.template import TemplateTeacher
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy
from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.journal import Entry, Journal, State, blocks_of
from cbtqa.llm.progress import Meter
from cbtqa.records import STEP_NAMES, CbtSteps, DistortionLabel, Provenance, Question, Risk
from cbtqa.safety.screen import screen

BLOCK = 500
LABELLER = "patterns"
Written: TypeAlias = tuple[str, Fault | None, Risk]
"""Reply text, why it is turned away for good (or None), grade of the question. Plain, because it
travels between processes: a whole `Entry` took a twentieth of the time of writing it."""


class OfflineTeacher:
    """Answers by template; see `template`."""

    system = "template"
    prompts: Mapping[str, str] = {}
    is_paid = False
    price = None

    def __init__(self, settings: BuildSettings, taxonomy: Taxonomy) -> None:
        self._taxonomy, self._seed = taxonomy, settings.seed
        self._settings = settings
        self._provenance = Provenance(
            model="template",
            seed=settings.seed,
            is_training_source=False,
            version=cbtqa.__version__,
        )

    def fingerprint(self) -> dict[str, str]:
        """The version decides: the rules change with it."""
        return {
            "teacher": "template",
            "version": cbtqa.__version__,
            "taxonomy": self._taxonomy.id,
            "seed": str(self._seed),
            "step_chars": f"{self._settings.min_step_chars}-{self._settings.max_step_chars}",
        }

    def generate(
        self,
        items: Iterable[Item],
        journal: Journal,
        *,
        n_total: int | None,
        on_progress: OnProgress | None,
    ) -> None:
        """Writes what the journal does not hold; a kill costs at most a few blocks."""
        meter = Meter(n_total, price=None, earlier=journal.totals())

        asked: deque[list[Item]] = deque()

        def missing() -> Iterator[list[Question]]:
            for block in blocks_of(items, BLOCK):
                done = journal.standings([item.key for item in block])
                meter.n_skipped += len(done)
                left = [item for item in block if item.key not in done]
                if left:
                    asked.append(left)
                    yield [item.question for item in left]

        for written in map_blocks(_make_writer, (self._settings,), missing()):
            entries = []
            for item, (text, fault, risk) in zip(asked.popleft(), written, strict=True):
                item.note(risk)
                state = State.FINAL if fault else State.ACCEPTED
                reply = Reply(text, finish_reason="stop", model="template")
                entries.append(Entry(item.key, 1, state, reply, fault))
            meter.n_accepted += journal.record(entries)
            if on_progress is not None:
                on_progress(meter.progress(limit=1))

    def read(self, item: Item, reply: Reply) -> CheckedAnswer | Fault:
        """Taken as it was written: it was checked then."""
        value = json.loads(reply.text)
        steps = CbtSteps(**{name: value[name] for name in STEP_NAMES})
        labels = (DistortionLabel(labeller=LABELLER, **label) for label in value["distortions"])
        return CheckedAnswer(steps.joined(), steps, tuple(labels))

    def provenance(self, reply: Reply) -> Provenance:
        """Says that this text is no training source."""
        return self._provenance


class _Writer:
    """Grades, answers and checks; one in every process."""

    def __init__(self, settings: BuildSettings) -> None:
        taxonomy = load_taxonomy(settings.taxonomy)
        self._template = TemplateTeacher(taxonomy=settings.taxonomy, seed=settings.seed)
        self._checks = AnswerChecks(
            taxonomy, LABELLER, settings.min_step_chars, settings.max_step_chars
        )

    def write(self, questions: list[Question]) -> list[Written]:
        """One text a question."""
        return [self._write(question) for question in questions]

    def _write(self, question: Question) -> Written:
        risk = screen(question.source_text).risk
        answer = self._template.answer(question, risk)
        value: dict[str, Any] = answer.steps.model_dump()
        value["distortions"] = [
            {"id": label.id, "evidence": label.evidence, "confidence": label.confidence}
            for label in answer.distortions
        ]
        found = self._checks.check_object(question, risk, value)
        fault = found if isinstance(found, Fault) else None
        return json.dumps(value, ensure_ascii=False), fault, risk


def _make_writer(
    settings: BuildSettings,
) -> Callable[[list[Question]], list[Written]]:
    return _Writer(settings).write
