"""The embedded default teacher: rules, no model, no key, no network, the same answer each time.

Blocks of questions are written by as many processes as there are processors; what they write does
not depend on how many there are. Answers are checked where they are written.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context, parent_process
from typing import Any

import cbtqa
from cbtqa.dataset.check import AnswerChecks, CheckedAnswer
from cbtqa.dataset.instruction import Item
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.teachers import OnProgress
from cbtqa.dataset.template import TemplateTeacher
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy
from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.journal import Entry, Journal, State, blocks_of
from cbtqa.llm.progress import Meter
from cbtqa.records import STEP_NAMES, CbtSteps, DistortionLabel, Provenance

BLOCK = 500
BLOCKS_ALONE = 4
"""So many blocks are written before other processes are worth their start."""
LABELLER = "patterns"


class OfflineTeacher:
    """Answers by template; see `template`."""

    system = "template"
    prompts: Mapping[str, str] = {}
    is_paid = False
    price = None

    def __init__(self, settings: BuildSettings, taxonomy: Taxonomy) -> None:
        self._taxonomy, self._seed = taxonomy, settings.seed
        self._writer = _Writer(settings, taxonomy)
        self._settings = settings

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

        def missing() -> Iterator[list[Item]]:
            for block in blocks_of(items, BLOCK):
                done = journal.standings([item.key for item in block])
                meter.n_skipped += len(done)
                yield [item for item in block if item.key not in done]

        for entries in self._written(missing()):
            meter.n_accepted += journal.record(entries)
            if on_progress is not None:
                on_progress(meter.progress(limit=1))

    def _written(self, blocks: Iterator[list[Item]]) -> Iterator[list[Entry]]:
        """The entries of each block in order, by several processes once it is worth it."""
        n_workers = os.cpu_count() or 1
        pending: deque[Future[list[Entry]]] = deque()
        with ExitStack() as stack:
            pool: ProcessPoolExecutor | None = None
            for number, block in enumerate(block for block in blocks if block):
                if number < BLOCKS_ALONE or n_workers == 1:
                    yield self._writer.write(block)
                    continue
                if pool is None:
                    pool = ProcessPoolExecutor(
                        n_workers,
                        mp_context=get_context("spawn"),
                        initializer=_start_worker,
                        initargs=(self._settings,),
                    )
                    stack.callback(pool.shutdown, cancel_futures=True)
                pending.append(pool.submit(_write_block, block))
                while len(pending) > 2 * n_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def read(self, item: Item, reply: Reply) -> CheckedAnswer | Fault:
        """Taken as it was written: it was checked then."""
        value = json.loads(reply.text)
        steps = CbtSteps(**{name: value[name] for name in STEP_NAMES})
        labels = (DistortionLabel(labeller=LABELLER, **label) for label in value["distortions"])
        return CheckedAnswer(steps.joined(), steps, tuple(labels))

    def provenance(self, reply: Reply) -> Provenance:
        """Says that this text is no training source."""
        return Provenance(
            model="template",
            seed=self._seed,
            is_training_source=False,
            version=cbtqa.__version__,
        )


class _Writer:
    """Writes and checks answers; one in every process."""

    def __init__(self, settings: BuildSettings, taxonomy: Taxonomy) -> None:
        self._template = TemplateTeacher(taxonomy=settings.taxonomy, seed=settings.seed)
        self._checks = AnswerChecks(
            taxonomy, LABELLER, settings.min_step_chars, settings.max_step_chars
        )

    def write(self, items: list[Item]) -> list[Entry]:
        """One entry an item: accepted, or turned away for good by a check."""
        return [self._entry(item) for item in items]

    def _entry(self, item: Item) -> Entry:
        answer = self._template.answer(item.question, item.risk)
        value: dict[str, Any] = answer.steps.model_dump()
        value["distortions"] = [
            {"id": label.id, "evidence": label.evidence, "confidence": label.confidence}
            for label in answer.distortions
        ]
        text = json.dumps(value, ensure_ascii=False)
        reply = Reply(text, finish_reason="stop", model="template")
        found = self._checks.check_object(item.question, item.risk, value)
        if isinstance(found, Fault):
            return Entry(item.key, 1, State.FINAL, reply, found)
        return Entry(item.key, 1, State.ACCEPTED, reply)


_worker: _Writer | None = None


def _start_worker(settings: BuildSettings) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Writer(settings, load_taxonomy(settings.taxonomy))


def _end_with_parent() -> None:
    """A worker would wait for ever for blocks from a parent that was killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_block(items: list[Item]) -> list[Entry]:
    assert _worker is not None, "a worker begins with _start_worker"
    return _worker.write(items)
