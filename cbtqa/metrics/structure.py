"""Which of the five CBT steps an answer shows, and whether they come in order.

`cbt_record` asks the record: does it hold five steps that are not empty? The other two read the
text, sentence by sentence, so that systems with and without step boundaries compare fairly: a
step model gives every sentence its evidence for every step, and the best division of the answer
into stretches in the steps' order decides which steps are there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable
from functools import cache, lru_cache
from importlib.resources import files
from typing import Protocol

import numpy as np

from cbtqa.files import parse_yaml
from cbtqa.metrics.base import Floats, MeanMetric
from cbtqa.metrics.texts import Texts
from cbtqa.records import STEP_NAMES

SENTENCE = re.compile(r"[^。！？!?；;\n]*[。！？!?；;\n]+[”’」』）)\"]*|[^。！？!?；;\n]+")
PLACE_WEIGHT = 0.3  # assumed


class StepModel(Hashable, Protocol):
    """Anything that tells which steps a sentence speaks for."""

    name: str
    """With a hash of what decides, for the signature."""

    def evidence(self, sentences: list[str]) -> Floats:
        """Shape (sentences, 5): above 0 speaks for a step, below 0 against it."""


class RuleModel:
    """Counts the cue phrases of `steps.zh.yaml`."""

    def __init__(self) -> None:
        text = files(__package__).joinpath("steps.zh.yaml").read_bytes()
        cues = parse_yaml(text)
        self._cues = [[re.compile(cue) for cue in cues[step]] for step in STEP_NAMES]
        self._any_cue = [re.compile("|".join(cues[step])) for step in STEP_NAMES]
        self.name = f"rules-{hashlib.sha256(text).hexdigest()[:8]}"

    def evidence(self, sentences: list[str]) -> Floats:
        """How many of a step's cues occur in each sentence."""
        found = np.zeros((len(sentences), len(STEP_NAMES)))
        for row, sentence in zip(found, sentences, strict=True):
            for step, any_cue in enumerate(self._any_cue):
                if any_cue.search(sentence):
                    row[step] = sum(cue.search(sentence) is not None for cue in self._cues[step])
        return found


@cache
def rule_model() -> RuleModel:
    """The rules, compiled once."""
    return RuleModel()


def sentences_of(text: str) -> list[str]:
    """Sentences with their closing punctuation; whitespace alone is none."""
    return [found for found in SENTENCE.findall(text) if found.strip()]


def divide_in_order(evidence: Floats) -> list[int]:
    """The step of each sentence in the best division into stretches in the steps' order.

    Steps may be left out. Of equally good divisions the one that moves on latest wins.

    Args:
        evidence: shape (sentences, 5).
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


def fold_of(question_id: str, n_folds: int) -> int:
    """Which of the folds a question is dealt to, by its id alone."""
    if n_folds == 1:
        return 0
    return int.from_bytes(hashlib.sha256(question_id.encode("utf-8")).digest()[:4]) % n_folds


def _expected_places(n_sentences: int) -> Floats:
    """A slight pull of each sentence to the step due at its place; too weak to overrule a cue."""
    place = (np.arange(n_sentences)[:, None] + 0.5) / n_sentences
    due = (np.arange(len(STEP_NAMES))[None, :] + 0.5) / len(STEP_NAMES)
    return -PLACE_WEIGHT * np.abs(place - due)


@lru_cache(1 << 13)  # both metrics ask for the same block of texts, one after the other
def steps_in_order(text: str, model: StepModel) -> frozenset[str]:
    """Names of the steps found, each after the ones before it."""
    sentences = sentences_of(text)
    if not sentences:
        return frozenset()
    evidence = model.evidence(sentences)
    found = np.zeros(len(STEP_NAMES))
    for index, step in enumerate(divide_in_order(evidence + _expected_places(len(sentences)))):
        found[step] += max(evidence[index, step], 0.0)
    return frozenset(name for name, weight in zip(STEP_NAMES, found, strict=True) if weight > 0)


class StepsInOrder(MeanMetric):
    """Mean share of the five steps that a text shows in order."""

    def __init__(self, *models: StepModel) -> None:
        self.models = models or (rule_model(),)
        """One for all texts, or one for each fold of question ids."""
        self.name, self.label = "cbt_steps", "CBT steps"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        """Found steps by five."""
        n_folds = len(self.models)
        found = [
            steps_in_order(item.text, self.models[fold_of(item.question_id, n_folds)])
            for item in predictions.items
        ]
        return np.array([len(steps) / len(STEP_NAMES) for steps in found])

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """What found the steps."""
        folds = (("folds", str(len(self.models))),) if len(self.models) > 1 else ()
        return (("steps", self.models[0].name), *folds, ("order", "yes"))


class StructureComplete(StepsInOrder):
    """Share of answers that show all five steps in order."""

    def __init__(self, *models: StepModel) -> None:
        super().__init__(*models)
        self.name, self.label = "cbt_complete", "CBT complete"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        """1 for an answer with all five, else 0."""
        return np.floor(super().values(predictions, references))


class StepsInRecord(MeanMetric):
    """Share of records that hold the five steps themselves, none empty."""

    def __init__(self) -> None:
        self.name, self.label = "cbt_record", "CBT record"
        self.unscored_reason = "the predictions hold no CBT steps"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        """1, 0, or NaN for a source that holds no steps at all."""
        has_steps = [item.has_steps for item in predictions.items]
        return np.array([np.nan if held is None else float(held) for held in has_steps])

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """Where the steps are read."""
        return (("steps", "record"), ("flowing_text", "unscored"))
