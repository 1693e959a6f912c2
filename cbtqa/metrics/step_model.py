"""A step model learnt from answers whose steps are known: naive Bayes over characters and pairs.

    model = train_step_model(read_steps(Path("cbtqa-dataset")))
    model.evidence(["谢谢你愿意说出来。"]).argmax() == 0

It knows the wording of the data it was trained on. Judge systems trained on a dataset with a
model learnt from the same dataset's train split, and read the accuracy in `docs/metrics.md`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cbtqa.errors import DataError
from cbtqa.files import read_rows
from cbtqa.metrics.base import Floats
from cbtqa.metrics.structure import sentences_of
from cbtqa.records import STEP_NAMES

SMOOTHING = 0.5  # assumed
CERTAIN = 6.0
"""Largest evidence of one sentence: naive Bayes is far too sure of long ones."""


class TrainedModel:
    """Log-odds of each step against an even guess, from the grams of a sentence."""

    def __init__(self, weights: dict[str, Floats], name: str) -> None:
        self._weights = weights
        self.name = name

    def evidence(self, sentences: list[str]) -> Floats:
        """Shape (sentences, 5): log posterior minus log(1/5), within `CERTAIN` of zero."""
        rows = np.zeros((len(sentences), len(STEP_NAMES)))
        for row, sentence in zip(rows, sentences, strict=True):
            for gram in _grams(sentence):
                row += self._weights.get(gram, 0.0)
        rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
        evidence: Floats = np.clip(rows + np.log(len(STEP_NAMES)), -CERTAIN, CERTAIN)
        return evidence


def train_step_model(answers: Iterable[tuple[str, ...]]) -> TrainedModel:
    """Counts grams by step.

    Args:
        answers: the texts of the five steps, in order.

    Raises:
        DataError: no answer to learn from.
    """
    counts: dict[str, Counter[int]] = {}
    total = np.zeros(len(STEP_NAMES))
    digest = hashlib.sha256()
    for steps in answers:
        for step, text in enumerate(steps):
            digest.update(text.encode("utf-8", "surrogatepass"))
            for sentence in sentences_of(text):
                for gram in _grams(sentence):
                    counts.setdefault(gram, Counter())[step] += 1
                    total[step] += 1
    if not counts:
        raise DataError("no answer with five steps to learn from")
    total += SMOOTHING * len(counts)
    weights = {
        gram: np.log((np.array([seen[k] for k in range(len(total))]) + SMOOTHING) / total)
        for gram, seen in counts.items()
    }
    return TrainedModel(weights, f"bayes-{digest.hexdigest()[:8]}")


def read_steps(dataset: Path) -> Iterator[tuple[str, ...]]:
    """The steps of a built dataset's train split; rows without all five are passed over.

    Raises:
        DataError: the folder has no train split.
    """
    shards = sorted(dataset.glob("data/train-*.parquet"))
    if not shards:
        raise DataError("no train split to learn the steps from", where=str(dataset))
    for shard in shards:
        for _, row in read_rows(shard):
            steps = tuple(str(row.get(name) or "") for name in STEP_NAMES)
            if all(step.strip() for step in steps):
                yield steps


def _grams(sentence: str) -> set[str]:
    text = "".join(sentence.split())
    return {*text, *(text[place : place + 2] for place in range(len(text) - 1))}
