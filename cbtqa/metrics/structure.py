"""Which of the five CBT steps an answer shows, and whether they come in order.

`cbt_record` reads the record's own steps. The other two read the text, so that systems with and
without step boundaries compare fairly: a step model says how likely each sentence does each step,
and the best division into stretches in the steps' order decides which steps are there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Iterable, Iterator
from functools import lru_cache
from heapq import nsmallest
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cbtqa.dataset_folder import DatasetFolder
from cbtqa.errors import DataError
from cbtqa.metrics.base import Floats, MeanMetric
from cbtqa.metrics.step_model import shipped_model
from cbtqa.metrics.text.texts import Texts
from cbtqa.records import STEP_NAMES, Record

SENTENCE = re.compile(r"[^。！？!?；;\n]*[。！？!?；;\n]+[”’」』）)\"]*|[^。！？!?；;\n]+")
PLACE_WEIGHT = 1.0
"""Chosen by cross-validation on the corpus among 0.3, 1, 2 and 4."""
LEAST = 1e-4
"""No sentence is less likely to do a step: one odd sentence must not decide a division."""
ENOUGH = 0.65
"""Sentences expected to do a step, from which it is there: in cross-validation on the corpus a step
that was dropped is then found missing in 87 %, and 87 % of whole answers are called complete."""
ASTRAY_COSTS = 1.5
"""Steps that one out of order takes off (assumed): shuffled answers score less than cold canned
ones, which show a step or two by chance; with 1 both had 0.3."""

Bools = NDArray[np.bool_]


class StepModel(Hashable, Protocol):
    """Anything that finds which step a sentence does."""

    name: str
    """With a hash of what decides, for the signature."""

    def probabilities(self, sentences: list[str]) -> Floats:
        """Shape (sentences, 6): the five steps in order, then none of them; rows add up to 1."""


def sentences_of(text: str) -> list[str]:
    """Sentences with their closing punctuation; whitespace alone is none."""
    return [found for found in SENTENCE.findall(text) if found.strip()]


def divide_in_order(evidence: Floats) -> list[int]:
    """The step of each sentence in the best division into stretches in the steps' order.

    Steps may be left out; the latest of equally good divisions wins. `evidence`: (sentences, 5).
    """
    total = [0.0] * len(STEP_NAMES)
    came_from: list[list[int]] = []
    for row in evidence.tolist():
        best, before, total_now = 0, [], []
        for step, weight in enumerate(row):
            if total[step] > total[best]:
                best = step
            before.append(best)
            total_now.append(total[best] + weight)
        came_from.append(before)
        total = total_now
    path = []
    step = total.index(max(total))
    for before in reversed(came_from):
        path.append(step)
        step = before[step]
    return path[::-1]


def _expected_places(n_sentences: int) -> Floats:
    """A slight pull of each sentence to the step due at its place; too weak to overrule a cue."""
    place = (np.arange(n_sentences)[:, None] + 0.5) / n_sentences
    due = (np.arange(len(STEP_NAMES))[None, :] + 0.5) / len(STEP_NAMES)
    return -PLACE_WEIGHT * np.abs(place - due)


def divide(probabilities: Floats) -> list[int]:
    """The step of each sentence in the likeliest division; a sentence that does none fits any."""
    likely = np.maximum(probabilities[:, :-1], probabilities[:, -1:])
    return divide_in_order(np.log(np.maximum(likely, LEAST)) + _expected_places(len(likely)))


def found_steps(probabilities: Floats) -> Bools:
    """Which of the five steps an answer shows in order, from the (sentences, 6) of a step model."""
    expected = np.zeros(len(STEP_NAMES))
    for row, step in zip(probabilities, divide(probabilities), strict=True):
        expected[step] += row[step] if row[step] >= row[-1] else 0.0
    return expected >= ENOUGH


def _shown_anywhere(probabilities: Floats) -> Bools:
    """Which steps have sentences of their own, wherever these stand."""
    is_likeliest = probabilities == probabilities.max(axis=1, keepdims=True)
    expected = np.where(is_likeliest, probabilities, 0.0).sum(axis=0)
    return np.asarray(expected[:-1] >= ENOUGH)


LEAST_STEPS = 3
"""Steps that must be found in order, before an answer is shown as divided into steps."""


def steps_of(text: str) -> list[tuple[str, str]] | None:
    """An answer as stretches with the names of their steps, for a reader; None without steps.

    Five paragraphs are the five steps, as `CbtSteps.joined` writes them. Otherwise the shipped
    model divides; a stretch whose step is not found for certain goes to the one before it.
    """
    paragraphs = [one.strip() for one in text.split("\n\n") if one.strip()]
    if len(paragraphs) == len(STEP_NAMES):
        return list(zip(STEP_NAMES, paragraphs, strict=True))
    sentences = sentences_of(text)
    if not sentences:
        return None
    probabilities = shipped_model().probabilities(sentences)
    found = found_steps(probabilities)
    if found.sum() < LEAST_STEPS:
        return None
    parts: list[tuple[str, str]] = []
    now = STEP_NAMES[int(found.argmax())]
    for sentence, step in zip(sentences, divide(probabilities), strict=True):
        now = STEP_NAMES[step] if found[step] else now
        if parts and parts[-1][0] == now:
            parts[-1] = (now, parts[-1][1] + sentence)
        else:
            parts.append((now, sentence))
    return [(name, part.strip()) for name, part in parts]


@lru_cache(1 << 13)  # both metrics ask for the same block of texts, one after the other
def order_of(text: str, model: StepModel) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the steps found, each after the ones before it, and of those found out of order."""
    sentences = sentences_of(text)
    if not sentences:
        return frozenset(), frozenset()
    probabilities = model.probabilities(sentences)
    in_order = found_steps(probabilities)
    astray = _shown_anywhere(probabilities) & ~in_order
    named = [
        frozenset(name for name, is_there in zip(STEP_NAMES, one, strict=True) if is_there)
        for one in (in_order, astray)
    ]
    return named[0], named[1]


def share_in_order(text: str, model: StepModel) -> float:
    """Share of the five steps shown in order, 0 to 1, less what those out of order take off."""
    in_order, astray = order_of(text, model)
    return max(0.0, len(in_order) - ASTRAY_COSTS * len(astray)) / len(STEP_NAMES)


class StepsInOrder(MeanMetric):
    """Mean share of the five steps that a text shows in order, less those shown out of order."""

    reads_reference = False
    has_few_values = True

    def __init__(self) -> None:
        self.model: StepModel = shipped_model()
        self.name, self.label = "cbt_steps", "CBT steps"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        return np.array([share_in_order(item.text, self.model) for item in predictions.items])

    def own_fields(self) -> str:
        return f"steps:{self.model.name}|order:less_{ASTRAY_COSTS}_astray"


class StructureComplete(StepsInOrder):
    """Share of answers that show all five steps in order."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.label = "cbt_complete", "CBT complete"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        return np.floor(super().values(predictions, references))


class StepsInRecord(MeanMetric):
    """Share of records that hold the five steps themselves, none empty."""

    has_few_values = True
    reads_reference = False

    def __init__(self) -> None:
        self.name, self.label = "cbt_record", "CBT record"
        self.unscored_reason = "the predictions hold no CBT steps"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        """1, 0, or NaN for a source that holds no steps at all."""
        has_steps = [item.has_steps for item in predictions.items]
        return np.array([np.nan if held is None else float(held) for held in has_steps])

    def own_fields(self) -> str:
        return "steps:record|flowing_text:unscored"


# A step model learned from answers whose steps are known: naive Bayes over characters and pairs.
# It knows the wording of its training data, so it is for texts that are none of them.

SMOOTHING = 0.5  # assumed
CERTAIN = 6.0
"""Largest log-odds of one sentence: naive Bayes is far too sure of long ones."""
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

    def probabilities(self, sentences: list[str]) -> Floats:
        """Shape (sentences, 6); every sentence does a step, as in all that it learned from."""
        rows = np.zeros((len(sentences), len(STEP_NAMES)))
        for row, sentence in enumerate(sentences):
            known = [self._places[gram] for gram in _grams(sentence) if gram in self._places]
            rows[row] = self._weights[known].sum(0)
        rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
        odds = np.exp(np.clip(rows + np.log(len(STEP_NAMES)), -CERTAIN, CERTAIN))
        odds /= odds.sum(axis=1, keepdims=True)
        return np.column_stack([odds, np.zeros(len(sentences))])


def train_step_model(answers: Iterable[Answer]) -> TrainedModel:
    """One model from all answers, for texts that are none of them; a DataError without answers."""
    places: dict[str, int] = {}
    digest = hashlib.sha256()
    seen: list[list[int]] = [[] for _ in STEP_NAMES]
    for _, steps in _sample(answers, MOST_ANSWERS):
        for cell, text in zip(seen, steps, strict=True):
            digest.update(text.encode("utf-8", "surrogatepass"))
            grams = (gram for one in sentences_of(text) for gram in _grams(one))
            cell += [places.setdefault(gram, len(places)) for gram in grams]
    if not places:
        raise DataError("no answer with five steps to learn from")
    counts = np.array([np.bincount(cell, minlength=len(places)) for cell in seen], np.float64)
    total = counts.sum(1, keepdims=True) + SMOOTHING * len(places)
    weights = np.log((counts + SMOOTHING) / total)
    name = f"bayes-{digest.hexdigest()[:8]}"
    return TrainedModel(places, np.ascontiguousarray(weights.T), name)


def _sample(answers: Iterable[Answer], size: int) -> list[Answer]:
    """The same answers whatever the order they come in."""
    return nsmallest(size, answers, key=lambda answer: hashlib.sha256(answer[0].encode()).digest())


class StepAccuracy(Record):
    """How right a step model is on answers whose steps are known."""

    n_answers: int
    sentences: float
    """Share of sentences put into the step they were written for."""
    steps: float
    """Mean share of the five steps found in order; all five are there."""
    complete: float
    """Share of answers in which all five were found."""


def measure(model: StepModel, answers: Iterable[Answer]) -> StepAccuracy:
    """Judges answers with known steps; a DataError without answers."""
    right = total = found = complete = 0
    kept = _sample(answers, MOST_MEASURED)
    if not kept:
        raise DataError("no answer with five steps to measure on")
    for _, steps in kept:
        sentences = [(one, step) for step, text in enumerate(steps) for one in sentences_of(text)]
        path = divide(model.probabilities([one for one, _ in sentences]))
        right += sum(step == true for step, (_, true) in zip(path, sentences, strict=True))
        total += len(sentences)
        n_found = len(order_of("\n".join(steps), model)[0])
        found += n_found
        complete += n_found == len(STEP_NAMES)
    return StepAccuracy(
        n_answers=len(kept),
        sentences=right / max(total, 1),
        steps=found / len(STEP_NAMES) / len(kept),
        complete=complete / len(kept),
    )


def read_steps(dataset: DatasetFolder, split: str) -> Iterator[Answer]:
    """The steps of a built dataset's split, or of `all`; rows without all five are left out."""
    for row in dataset.rows(split, ("id", *STEP_NAMES)):
        steps = tuple(row[name] or "" for name in STEP_NAMES)
        if all(step.strip() for step in steps):
            yield row["id"], steps


def _grams(sentence: str) -> set[str]:
    text = "".join(sentence.split())
    return {*text, *(text[place : place + 2] for place in range(len(text) - 1))}
