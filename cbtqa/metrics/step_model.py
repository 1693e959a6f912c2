"""A step model learnt from answers whose steps are known: naive Bayes over characters and pairs.

    models = cross_fitted(read_steps(Path("cbtqa-dataset"), "all"))
    models[fold_of("17")].evidence(["谢谢你愿意说出来。"]).argmax() == 0

It knows the wording of the data it was trained on. So no answer is judged by a model that has
seen an answer to its question: the answers are dealt into folds by question id, and each fold
has a model learnt from the others. `measure` says how right such models are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from heapq import nsmallest
from pathlib import Path

import numpy as np

from cbtqa.errors import DataError
from cbtqa.files import read_rows
from cbtqa.metrics.base import Floats
from cbtqa.metrics.structure import divide_in_order, fold_of, sentences_of, steps_in_order
from cbtqa.records import STEP_NAMES, Record

SMOOTHING = 0.5  # assumed
CERTAIN = 6.0
"""Largest evidence of one sentence: naive Bayes is far too sure of long ones."""
N_FOLDS = 5
MOST_ANSWERS = 1_000
"""More teach little; learning from these takes about a second."""
MOST_MEASURED = 200
Answer = tuple[str, tuple[str, ...]]
"""Question id and the texts of the five steps, in order."""


class TrainedModel:
    """Log-odds of each step against an even guess, from the grams of a sentence."""

    def __init__(self, places: dict[str, int], weights: Floats, name: str) -> None:
        self._places, self._weights = places, weights
        self.name = name

    def evidence(self, sentences: list[str]) -> Floats:
        """Shape (sentences, 5): log posterior minus log(1/5), within `CERTAIN` of zero."""
        rows = np.zeros((len(sentences), len(STEP_NAMES)))
        for row, sentence in enumerate(sentences):
            known = [self._places[gram] for gram in _grams(sentence) if gram in self._places]
            rows[row] = self._weights[known].sum(0)
        rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
        evidence: Floats = np.clip(rows + np.log(len(STEP_NAMES)), -CERTAIN, CERTAIN)
        return evidence


class _Counts:
    """How often each gram stood in each step, in each fold."""

    def __init__(self, answers: Sequence[Answer], n_folds: int) -> None:
        self.places: dict[str, int] = {}
        digest = hashlib.sha256()
        seen: list[list[int]] = [[] for _ in range(n_folds * len(STEP_NAMES))]
        for question_id, steps in answers:
            fold = fold_of(question_id, n_folds)
            for step, text in enumerate(steps):
                digest.update(text.encode("utf-8", "surrogatepass"))
                cell = seen[fold * len(STEP_NAMES) + step]
                for sentence in sentences_of(text):
                    cell += [
                        self.places.setdefault(gram, len(self.places)) for gram in _grams(sentence)
                    ]
        counted = [
            np.bincount(np.array(cell, np.int64), minlength=len(self.places)) for cell in seen
        ]
        shape = (n_folds, len(STEP_NAMES), len(self.places))
        self.by_fold = np.array(counted, np.float64).reshape(shape)
        self.name = f"bayes-{digest.hexdigest()[:8]}"

    def model(self, left_out: int | None) -> TrainedModel:
        """What all folds teach but one."""
        counts = self.by_fold.sum(0)
        if left_out is not None:
            counts -= self.by_fold[left_out]
        is_seen = counts.sum(0) > 0
        total = counts.sum(1, keepdims=True) + SMOOTHING * is_seen.sum()
        # a gram that none of them saw speaks for no step
        weights = np.where(is_seen, np.log((counts + SMOOTHING) / total), 0.0)
        return TrainedModel(self.places, np.ascontiguousarray(weights.T), self.name)


def train_step_model(answers: Iterable[Answer]) -> TrainedModel:
    """One model from all answers, for texts that are none of them.

    Raises:
        DataError: no answer to learn from.
    """
    return _counted(answers, 1)[1].model(None)


def cross_fitted(answers: Iterable[Answer]) -> tuple[TrainedModel, ...]:
    """A model for each fold of question ids, learnt from the answers of the other folds.

    Raises:
        DataError: no answer to learn from.
    """
    counts = _counted(answers, N_FOLDS)[1]
    return tuple(counts.model(fold) for fold in range(N_FOLDS))


def _counted(answers: Iterable[Answer], n_folds: int) -> tuple[list[Answer], _Counts]:
    kept = _sample(answers, MOST_ANSWERS)
    counts = _Counts(kept, n_folds)
    if not counts.places:
        raise DataError("no answer with five steps to learn from")
    return kept, counts


def _sample(answers: Iterable[Answer], size: int) -> list[Answer]:
    """The same answers whatever the order they come in."""
    return nsmallest(size, answers, key=lambda answer: hashlib.sha256(answer[0].encode()).digest())


class StepAccuracy(Record):
    """How right cross-fitted models are on answers whose steps are known."""

    n_answers: int
    sentences: float
    """Share of sentences put into the step they were written for."""
    steps: float
    """Mean share of the five steps found in order; all five are there."""
    complete: float
    """Share of answers in which all five were found."""


def measure(models: Sequence[TrainedModel], answers: Iterable[Answer]) -> StepAccuracy:
    """Judges answers with known steps, each by the model that has not seen its question.

    Raises:
        DataError: no answer.
    """
    right = total = found = complete = 0
    kept = _sample(answers, MOST_MEASURED)
    if not kept:
        raise DataError("no answer with five steps to measure on")
    for question_id, steps in kept:
        model = models[fold_of(question_id, len(models))]
        sentences = [(one, step) for step, text in enumerate(steps) for one in sentences_of(text)]
        path = divide_in_order(model.evidence([one for one, _ in sentences]))
        right += sum(step == true for step, (_, true) in zip(path, sentences, strict=True))
        total += len(sentences)
        n_found = len(steps_in_order("\n".join(steps), model))
        found += n_found
        complete += n_found == len(STEP_NAMES)
    return StepAccuracy(
        n_answers=len(kept),
        sentences=right / max(total, 1),
        steps=found / len(STEP_NAMES) / len(kept),
        complete=complete / len(kept),
    )


def read_steps(dataset: Path, split: str) -> Iterator[Answer]:
    """The steps of a built dataset; rows without all five are passed over.

    Args:
        split: one split, or `all`.

    Raises:
        DataError: the folder has no such split.
    """
    shards = sorted(dataset.glob("data/*.parquet" if split == "all" else f"data/{split}-*.parquet"))
    if not shards:
        raise DataError(f"no {split} split to learn the steps from", where=str(dataset))
    for shard in shards:
        for _, row in read_rows(shard):
            steps = tuple(str(row.get(name) or "") for name in STEP_NAMES)
            if all(step.strip() for step in steps):
                yield str(row.get("id")), steps


def _grams(sentence: str) -> set[str]:
    text = "".join(sentence.split())
    return {*text, *(text[place : place + 2] for place in range(len(text) - 1))}
