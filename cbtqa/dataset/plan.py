"""Which split each question goes to: near-duplicates together, crisis items by setting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from cbtqa.dataset.duplicates import NearDuplicates, Sketches, sketch
from cbtqa.dataset.instruction import Item
from cbtqa.dataset.processes import map_blocks
from cbtqa.dataset.settings import BuildSettings
from cbtqa.llm.journal import blocks_of
from cbtqa.records import Risk
from cbtqa.safety.screen import screen
from cbtqa.splits import split_of

BLOCK = 2000


class SplitPlan:
    """Where each question belongs: near-duplicates together, crisis items by setting."""

    def __init__(self, settings: BuildSettings, items: Iterable[Item]) -> None:
        """Reads all questions: compares their texts and grades those not graded yet."""
        self._settings = settings
        near = NearDuplicates(settings.near_duplicate)
        self._ids: list[str] = []
        self._is_crisis = bytearray()
        blocks: deque[list[Item]] = deque()

        def texts() -> Iterator[list[tuple[str, bool]]]:
            for block in blocks_of(items, BLOCK):
                blocks.append(block)
                yield [
                    (item.question.source_text, item.grades.is_known(item.place)) for item in block
                ]

        for sketches, risks in map_blocks(_make_reader, (), texts()):
            near.add(sketches)
            for item, risk in zip(blocks.popleft(), risks, strict=True):
                if risk is not None:
                    item.note(risk)
                self._ids.append(item.question.id)
                self._is_crisis.append(item.risk != "none" and settings.crisis == "split")
        self._clusters = near.clusters()
        self.n_near_duplicates = int((self._clusters != range(len(self._clusters))).sum())
        """Questions that joined the cluster of an earlier one."""

    def splits(self) -> Iterator[str]:
        """The split of each question, in the order added."""
        for index, first in enumerate(self._clusters.tolist()):
            if self._is_crisis[index]:
                yield "crisis"
            else:
                yield split_of(
                    self._ids[first],
                    seed=self._settings.split_seed,
                    validation=self._settings.validation,
                    test=self._settings.test,
                )


def _make_reader() -> Callable[[list[tuple[str, bool]]], tuple[Sketches, list[Risk | None]]]:
    return _read_block


def _read_block(texts: list[tuple[str, bool]]) -> tuple[Sketches, list[Risk | None]]:
    sketches = sketch([text for text, _ in texts])
    return sketches, [None if is_graded else screen(text).risk for text, is_graded in texts]
