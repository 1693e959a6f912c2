"""Which split each question goes to."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cbtqa.dataset.instruction import Item
from cbtqa.dataset.near_duplicates import Texts, plain_text
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset_folder import SPLITS
from cbtqa.llm.journal import blocks_of
from cbtqa.processes import map_blocks
from cbtqa.records import Risk
from cbtqa.safety.screen import screen
from cbtqa.splits import FEW_QUESTIONS, split_few, split_of

BLOCK = 2000


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
            for block in blocks_of(items, BLOCK):
                blocks.append(block)
                yield [
                    (item.question.source_text, item.grades.is_known(item.place)) for item in block
                ]

        for plain, risks in map_blocks(_make_reader, (), texts()):
            compared.add(plain)
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
                if len(first_ids) < FEW_QUESTIONS:
                    first_ids.append(item.question.id)
                is_crisis.append(item.risk != "none" and settings.crisis == "split")
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


def _make_reader() -> Callable[[list[tuple[str, bool]]], tuple[list[str], list[Risk | None]]]:
    return _read_block


def _read_block(texts: list[tuple[str, bool]]) -> tuple[list[str], list[Risk | None]]:
    plain = [plain_text(text) for text, _ in texts]
    return plain, [None if is_graded else screen(text).risk for text, is_graded in texts]
