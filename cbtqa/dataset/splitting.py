"""Which split each question goes to."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import rensa

from cbtqa.dataset.instruction import Item
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
        sketched: list[Sketches] = []
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

        for sketches, risks in map_blocks(_make_reader, (), texts()):
            sketched.append(sketches)
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
        signatures = np.concatenate([sketch(()), *sketched])
        del sketched  # the signatures of a million questions are not held twice
        first = cluster_near_duplicates(signatures, settings.near_duplicate)
        self.n_near_duplicates = int((first != np.arange(len(first))).sum())
        """Questions that joined the cluster of an earlier one."""
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


def _make_reader() -> Callable[[list[tuple[str, bool]]], tuple[Sketches, list[Risk | None]]]:
    return _read_block


def _read_block(texts: list[tuple[str, bool]]) -> tuple[Sketches, list[Risk | None]]:
    sketches = sketch([text for text, _ in texts])
    return sketches, [None if is_graded else screen(text).risk for text, is_graded in texts]


# --- near-duplicates -----------------------------------------------------------------------------
# MinHash signatures (rensa, 64 permutations over character 4-grams) are cut into bands; questions
# that agree in a band and whose estimated Jaccard similarity reaches the threshold are joined. Of
# each minimum the lower 16 bits are kept: two that differ agree in them once in 65,536. A million
# questions take 128 MB. Source: b-bit minwise hashing, arXiv 0910.3349.

N_PERMUTATIONS = 64
GRAM = 4
_PAIRS = 65_536
"""Pairs compared at a time."""
_NOT_TEXT = re.compile(r"[\W_]+")


Sketches: TypeAlias = npt.NDArray[np.uint16]
"""MinHash signatures, shape `(n, N_PERMUTATIONS)`, C order."""


def sketch(texts: Sequence[str]) -> Sketches:
    """The signature of each text (title and description), over its character 4-grams."""
    found = np.zeros((len(texts), N_PERMUTATIONS), dtype=np.uint16)
    for row, text in enumerate(texts):
        plain = _NOT_TEXT.sub("", text)
        grams = [plain[i : i + GRAM] for i in range(max(1, len(plain) - GRAM + 1))]
        minhash = rensa.RMinHash(num_perm=N_PERMUTATIONS, seed=1)
        minhash.update(grams)
        found[row] = np.array(minhash.digest(), dtype=np.uint32).astype(np.uint16)
    return found


def cluster_near_duplicates(signatures: Sketches, threshold: float) -> npt.NDArray[np.int64]:
    """For every question, in order, the index of its cluster's first question."""
    parent = np.arange(len(signatures), dtype=np.int64)
    for first, second in _alike_pairs(signatures, threshold):
        a, b = _root(parent, first), _root(parent, second)
        parent[max(a, b)] = min(a, b)
    while ((above := parent[parent]) != parent).any():
        parent = above
    return parent


def _alike_pairs(signatures: Sketches, threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs that agree in a band and are alike enough over the whole signature."""
    # 16 bands of 4 rows, 64 bits together: a pair of similarity 0.7 meets in some band with
    # probability 0.99
    bands = signatures.view(np.uint64)
    for keys in bands.T:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        for start in range(0, len(same), _PAIRS):
            at = same[start : start + _PAIRS]
            first, second = order[at], order[at + 1]
            alike = (signatures[first] == signatures[second]).mean(axis=1) >= threshold
            yield from zip(first[alike].tolist(), second[alike].tolist(), strict=True)


def _root(parent: npt.NDArray[np.int64], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return index
