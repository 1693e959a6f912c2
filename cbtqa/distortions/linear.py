"""The light trained labeller: a linear model on character n-grams and rule hits, in numpy.

A text's n-grams of each length are scaled to unit length on their own, so that the few short ones
are not drowned by the many long ones; then the score of a type is a weighted sum. The weights
also tell the evidence: the clause that adds most to the score.

    model = load_linear(Path("model"))
    LinearLabeller(model).label("我觉得自己一无是处")

A saved model is `model.npz` (arrays only, read without pickle) and `model.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cbtqa.distortions.clauses import split_clauses
from cbtqa.distortions.features import N_BUCKETS, encode_texts, hash_ngrams
from cbtqa.distortions.labellers import Labels
from cbtqa.distortions.patterns import PatternHit, PatternLabeller
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy
from cbtqa.records import DistortionLabel

Floats32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
_BATCH = 2048

ORDER_WEIGHTS = (1.0, 1.0, 0.7, 0.5)
"""Weight of the block of n-grams of length 1, 2, 3, 4; measured, see docs/distortions.md."""
RULE_WEIGHT = 0.3
"""Weight of one rule of the pattern file that holds somewhere in the text; measured likewise."""


@dataclass(frozen=True)
class LinearModel:
    """Arrays of one model; columns are the types of its taxonomy, in order."""

    taxonomy: Taxonomy
    name: str
    """Short name, for `trained:<name>`."""
    buckets: npt.NDArray[np.uint32]
    """`(rows,)`: the n-gram bucket of each row, ascending."""
    idf: Floats32
    """`(rows,)`."""
    coefficients: Floats32
    """`(rows, types)`."""
    rules: tuple[str, ...]
    """Rules and their types as features, see `rule_features`; empty when none are used."""
    rule_coefficients: Floats32
    """`(rules, types)`."""
    bias: Floats32
    """`(types,)`."""
    platt: Floats32
    """`(types, 2)`: slope and offset from score to probability."""
    thresholds: Floats32
    """`(types,)`: the probability from which a type is given."""


class _Scored(NamedTuple):
    probabilities: Floats
    """`(texts, types)`."""
    by_character: Floats
    """`(characters + 1, types)`: running sum of what each character's n-grams add."""
    starts: npt.NDArray[np.int64]
    """`(texts,)`."""


class LinearLabeller:
    """Labels by a `LinearModel`."""

    def __init__(self, model: LinearModel) -> None:
        self.model = model
        self.taxonomy = model.taxonomy
        self.name = f"trained:{model.name}"
        self._row_of = np.zeros(N_BUCKETS + 1, np.int32)
        self._row_of[model.buckets] = np.arange(1, len(model.buckets) + 1)
        unknown = np.zeros((1, len(model.taxonomy.ids)), np.float32)
        self._weights = np.vstack([unknown, model.coefficients * model.idf[:, None]])
        self._squares = np.concatenate([[np.float32(0)], model.idf**2])
        self._patterns = PatternLabeller(load_taxonomy("binary")) if model.rules else None
        self._rule_row = {rule: row for row, rule in enumerate(model.rules)}

    def label(self, text: str) -> Labels:
        """The types above their thresholds, most certain first."""
        return self.label_many([text])[0]

    def label_many(self, texts: Iterable[str]) -> list[Labels]:
        """The same for many texts; memory does not grow beyond the labels."""
        labels: list[Labels] = []
        source = iter(texts)
        while batch := list(islice(source, _BATCH)):
            labels.extend(self._label_batch(batch))
        return labels

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """`(texts, types)`: calibrated probability of each type."""
        parts = [
            self._score(texts[start : start + _BATCH]).probabilities
            for start in range(0, len(texts), _BATCH)
        ]
        return np.vstack(parts) if parts else np.zeros((0, len(self.taxonomy.ids)))

    def _label_batch(self, texts: list[str]) -> list[Labels]:
        scored = self._score(texts)
        given = scored.probabilities >= self.model.thresholds
        ids = self.taxonomy.ids
        labels: list[list[DistortionLabel]] = [[] for _ in texts]
        for row in np.flatnonzero(given.any(axis=1)):
            text, start = texts[row], int(scored.starts[row]) + 1
            spans = split_clauses(text)
            columns = np.flatnonzero(given[row])
            edges = np.array(spans) + start if spans else np.zeros((0, 2), int)
            added = scored.by_character[edges[:, 1]] - scored.by_character[edges[:, 0]]
            for column in columns[np.argsort(-scored.probabilities[row, columns])]:
                evidence = spans[int(added[:, column].argmax())].of(text) if spans else None
                labels[row].append(
                    DistortionLabel(
                        id=ids[column],
                        evidence=evidence,
                        labeller=self.name,
                        confidence=float(scored.probabilities[row, column]),
                    )
                )
        return [tuple(found) for found in labels]

    def _score(self, texts: Sequence[str]) -> _Scored:
        encoded = encode_texts(texts)
        n_types = len(self.taxonomy.ids)
        added = np.zeros((len(encoded.codes) + 1, n_types), np.float32)
        for weight, buckets in zip(
            ORDER_WEIGHTS, hash_ngrams(encoded, len(ORDER_WEIGHTS)), strict=True
        ):
            rows = self._row_of[buckets]
            lengths = np.sqrt(np.add.reduceat(self._squares[rows], encoded.starts))
            scale = np.where(lengths > 0, weight / np.maximum(lengths, 1e-6), 0)
            scale = scale.astype(np.float32)[encoded.text_of]
            added[1:] += self._weights[rows] * scale[:, None]
        hits = self._rule_hits(texts)
        scores = np.add.reduceat(added[1:], encoded.starts).astype(np.float64) + self.model.bias
        for row, found in enumerate(hits):
            for name in {name for hit in found for name in features_of_hit(hit)}:
                scores[row] += RULE_WEIGHT * self.model.rule_coefficients[self._rule_row[name]]
        self._add_hits(added, hits, encoded.starts)
        slope, offset = self.model.platt.T.astype(np.float64)
        probabilities = 1 / (1 + np.exp(-np.clip(scores * slope + offset, -500, 500)))
        running = np.cumsum(added, axis=0, dtype=np.float64)
        return _Scored(probabilities, running, encoded.starts)

    def _rule_hits(self, texts: Sequence[str]) -> list[list[PatternHit]]:
        if self._patterns is None:
            return []
        return [self._patterns.find_hits(text) for text in texts]

    def _add_hits(
        self,
        added: Floats32,
        hits: list[list[PatternHit]],
        starts: npt.NDArray[np.int64],
    ) -> None:
        """Lets a rule's weight count for the clause that it holds in."""
        for start, found in zip(starts, hits, strict=False):
            for hit in found:
                for name in features_of_hit(hit):
                    # `added` is shifted by one, and the text by its start mark
                    added[start + hit.span.start + 2] += (
                        RULE_WEIGHT * self.model.rule_coefficients[self._rule_row[name]]
                    )


def rule_features() -> tuple[str, ...]:
    """Names of the features that the shipped rules give: one for each rule and each type."""
    rules = PatternLabeller(load_taxonomy("binary")).rules
    return (*(rule.id for rule in rules), *sorted({f"type:{rule.type}" for rule in rules}))


def features_of_hit(hit: PatternHit) -> tuple[str, str]:
    """The features that one hit sets: its rule and its type."""
    return hit.rule.id, f"type:{hit.rule.type}"
