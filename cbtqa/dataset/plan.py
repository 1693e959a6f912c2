"""Which split each question goes to: near-duplicates together, crisis items by setting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from cbtqa.dataset.duplicates import NearDuplicates, Sketches, sketch
from cbtqa.dataset.instruction import Item
from cbtqa.dataset.processes import map_blocks
from cbtqa.dataset.rows import SPLITS
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
        near = NearDuplicates(settings.near_duplicate)
        # by place: where the question alone would go, an index into SPLITS; whether it is apart
        own, is_crisis = bytearray(), bytearray()
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
                split = split_of(
                    item.question.id,
                    seed=settings.split_seed,
                    validation=settings.validation,
                    test=settings.test,
                )
                own.append(SPLITS.index(split))
                is_crisis.append(item.risk != "none" and settings.crisis == "split")
        first = near.clusters()
        self.n_near_duplicates = int((first != np.arange(len(first))).sum())
        """Questions that joined the cluster of an earlier one."""
        apart = np.frombuffer(is_crisis, dtype=bool)
        together = np.frombuffer(own, dtype=np.uint8)[first]
        self._places = np.where(apart, SPLITS.index("crisis"), together).astype(np.uint8).tobytes()

    def splits(self) -> Iterator[str]:
        """The split of each question, in the order added."""
        return (SPLITS[place] for place in self._places)


def _make_reader() -> Callable[[list[tuple[str, bool]]], tuple[Sketches, list[Risk | None]]]:
    return _read_block


def _read_block(texts: list[tuple[str, bool]]) -> tuple[Sketches, list[Risk | None]]:
    sketches = sketch([text for text, _ in texts])
    return sketches, [None if is_graded else screen(text).risk for text, is_graded in texts]
