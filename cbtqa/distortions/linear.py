"""The light trained labeller: a linear model on character n-grams and rule hits, in numpy.

A text's n-grams of each length are scaled to unit length on their own, so that the few short ones
count beside the many long ones; the score of a type is then a weighted sum. The evidence is the
clause that adds most to the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cbtqa.distortions.encoder_means import EncoderColumns
from cbtqa.distortions.features import BLOCK_WEIGHTS, N_BUCKETS, WordClasses, encode_texts
from cbtqa.distortions.labellers import Labels
from cbtqa.distortions.patterns import Bounds, PatternHit, PatternLabeller, clause_bounds
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy
from cbtqa.errors import require
from cbtqa.records import DistortionLabel

Floats32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_BATCH = 1024

RULE_WEIGHT = 0.6
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
    at_least_one: bool = False
    """Whether a text in which no type passes is given the one nearest to its threshold."""
    encoder: EncoderColumns | None = None
    """What an encoder adds to the scores, where the model was trained with one."""


def decide(
    probabilities: Floats, thresholds: npt.ArrayLike, *, at_least_one: bool
) -> npt.NDArray[np.bool_]:
    """`(texts, types)`: which types are given.

    Args:
        at_least_one: a row that would get none is given the type whose odds come nearest to those
            of its threshold; a type whose threshold is 1 is never given.
    """
    limits = np.asarray(thresholds, np.float64)
    given = probabilities >= limits
    if at_least_one:
        margins = _log_odds(probabilities) - _log_odds(limits)
        empty = np.flatnonzero(~given.any(axis=1))
        given[empty, margins[empty].argmax(axis=1)] = True
    return given


def _log_odds(probabilities: Floats) -> Floats:
    bounded = np.clip(probabilities, 1e-9, 1 - 1e-9)
    return np.asarray(np.log(bounded / (1 - bounded)))


class _Scored(NamedTuple):
    probabilities: Floats
    """`(texts, types)`."""
    added: Floats32
    """`(characters, types)`: what the n-grams and rules that begin at a character add."""
    starts: npt.NDArray[np.int64]
    """`(texts,)`: the place of each text's start mark among the characters."""
    clauses: list[Bounds]
    """Of each text, where the rules needed them; else empty."""


class LinearLabeller:
    def __init__(self, model: LinearModel) -> None:
        self.model = model
        self.taxonomy = model.taxonomy
        self.name = f"trained:{model.name}"
        self._row_of = np.zeros(N_BUCKETS + 1, np.int32)
        self._row_of[model.buckets] = np.arange(1, len(model.buckets) + 1)
        unknown = np.zeros((1, len(model.taxonomy.ids)), np.float32)
        self._weights = np.vstack([unknown, model.coefficients * model.idf[:, None]])
        self._squares = np.concatenate([[np.float32(0)], model.idf**2])
        self._classes = word_classes()
        self._patterns = PatternLabeller(load_taxonomy("binary")) if model.rules else None
        self._rule_row = {rule: row for row, rule in enumerate(model.rules)}

    def label(self, text: str) -> Labels:
        return self.label_many([text])[0]

    def label_many(self, texts: Iterable[str]) -> list[Labels]:
        source = iter(texts)
        batches = iter(lambda: list(islice(source, _BATCH)), [])
        return [labels for batch in batches for labels in self._label_batch(batch)]

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """`(texts, types)`: calibrated probability of each type."""
        parts = [
            self._score(texts[start : start + _BATCH]).probabilities
            for start in range(0, len(texts), _BATCH)
        ]
        return np.vstack(parts) if parts else np.zeros((0, len(self.taxonomy.ids)))

    def _label_batch(self, texts: list[str]) -> list[Labels]:
        scored = self._score(texts)
        given = decide(
            scored.probabilities, self.model.thresholds, at_least_one=self.model.at_least_one
        )
        given[[not text.strip() for text in texts]] = False
        rows, columns = np.nonzero(given)
        sure = scored.probabilities[rows, columns].tolist()
        with_labels = np.unique(rows).tolist()
        spans = {row: scored.clauses[row] or clause_bounds(texts[row]) for row in with_labels}
        sums = _clause_sums(scored, spans)
        ids = self.taxonomy.ids
        labels: list[Labels] = [()] * len(texts)
        found: dict[int, list[DistortionLabel]] = {row: [] for row in with_labels}
        for row, column, probability in zip(rows.tolist(), columns.tolist(), sure, strict=True):
            evidence = None
            if here := spans[row]:
                heaviest = int(sums[row][:, column].argmax()) if len(here) > 1 else 0
                evidence = texts[row][slice(*here[heaviest])]
            found[row].append(
                # unchecked: all four fields are right by construction, and checking costs a tenth
                DistortionLabel.model_construct(
                    id=ids[column], evidence=evidence, labeller=self.name, confidence=probability
                )
            )
        for row, given_here in found.items():
            labels[row] = tuple(sorted(given_here, key=lambda label: -(label.confidence or 0)))
        return labels

    def _score(self, texts: Sequence[str]) -> _Scored:
        encoded = encode_texts(texts)
        n_types = len(self.taxonomy.ids)
        added = np.zeros((len(encoded.codes), n_types), np.float32)
        blocks = self._classes.read_blocks(encoded)
        for weight, (buckets, text_of, starts, places) in zip(BLOCK_WEIGHTS, blocks, strict=True):
            rows = self._row_of[buckets]
            lengths = np.sqrt(np.add.reduceat(self._squares[rows], starts))
            scale = np.where(lengths > 0, weight / np.maximum(lengths, 1e-6), 0)
            here = self._weights.take(rows, axis=0, mode="clip")
            here *= scale.astype(np.float32)[text_of][:, None]
            added[slice(None) if places is None else places] += here
        scores = np.add.reduceat(added, encoded.starts).astype(np.float64) + self.model.bias
        clauses: list[Bounds] = [()] * len(texts)
        if self._patterns:
            clauses = list(map(clause_bounds, texts))
            hits = list(map(self._patterns.find_hits, texts, clauses))
            self._add_hits(added, scores, hits, encoded.starts)
        if self.model.encoder:
            scores += self.model.encoder.scores(texts)
        slope, offset = self.model.platt.T.astype(np.float64)
        probabilities = 1 / (1 + np.exp(-np.clip(scores * slope + offset, -500, 500)))
        return _Scored(probabilities, added, encoded.starts, clauses)

    def _add_hits(
        self, added: Floats32, scores: Floats, hits: list[list[PatternHit]], starts: Ints
    ) -> None:
        """Adds each rule once to its text's score, and to the clause of every hit."""
        once: set[tuple[int, int]] = set()
        each: list[tuple[int, int]] = []
        for row, found in enumerate(hits):
            for hit in found:
                rules = [self._rule_row[name] for name in features_of_hit(hit)]
                once.update((row, rule) for rule in rules)
                place = int(starts[row]) + 1 + hit.span.start
                each += [(place, rule) for rule in rules]
        weights = RULE_WEIGHT * self.model.rule_coefficients
        for table, pairs in ((scores, sorted(once)), (added, each)):
            if pairs:
                places, rules = map(list, zip(*pairs, strict=True))
                np.add.at(table, places, weights[rules])


def _clause_sums(scored: _Scored, spans: dict[int, Bounds]) -> dict[int, Floats32]:
    """For each text of several clauses, `(clauses, types)`: what each clause adds to each type."""
    several = {row: here for row, here in spans.items() if len(here) > 1}
    edges: list[int] = []
    for row, here in several.items():
        start = int(scored.starts[row]) + 1
        edges += [start + place for bound in here for place in bound]
    if not edges:
        return {}
    # every second sum is that of a clause, the others are of what lies between clauses
    sums = np.add.reduceat(scored.added, edges)[::2]
    ends = np.cumsum([len(here) for here in several.values()])
    return dict(zip(several, np.split(sums, ends[:-1]), strict=True))


@cache
def word_classes() -> WordClasses:
    return WordClasses(PatternLabeller(load_taxonomy("binary")).words)


def rule_features() -> tuple[str, ...]:
    """Names of the features that the shipped rules give: one for each rule and each type."""
    rules = PatternLabeller(load_taxonomy("binary")).rules
    return (*(rule.id for rule in rules), *sorted({f"type:{rule.type}" for rule in rules}))


def features_of_hit(hit: PatternHit) -> tuple[str, str]:
    """The features that one hit sets: its rule and its type."""
    return hit.rule.id, f"type:{hit.rule.type}"


# --- logistic regression -------------------------------------------------------------------------

_MAX_STEPS = 200
_TOLERANCE = 3e-3
"""Largest entry of the gradient at the end, relative to the one at the start."""


class Linear(NamedTuple):
    """A fitted model: score = weights . x + bias."""

    weights: Floats
    """`(columns,)`."""
    bias: float


def fit_logistic(rows: Any, targets: npt.NDArray[np.bool_], strength: float) -> Linear:
    """The L2-regularised model of one label: the weights w and bias b that minimise

        |w|^2 / 2 + C * sum_i log(1 + exp(-y_i (w . x_i + b)))

    Args:
        rows: a `scipy.sparse.csr_array` of `(rows, columns)`.
        targets: `(rows,)`; when all are alike the weights are 0 and the bias is far to that side.
        strength: C in the formula; larger fits the data more closely.
    """
    if targets.all() or not targets.any():
        return Linear(np.zeros(rows.shape[1]), 9.0 if targets.all() else -9.0)
    signs = np.where(targets, 1.0, -1.0)

    def loss(point: Floats) -> tuple[float, Floats]:
        weights, bias = point[:-1], point[-1]
        margins = signs * (rows @ weights + bias)
        value = 0.5 * weights @ weights + strength * np.logaddexp(0, -margins).sum()
        pull = -strength * signs / (1 + np.exp(np.clip(margins, -500, 500)))
        return float(value), np.append(weights + rows.T @ pull, pull.sum())

    start = np.zeros(rows.shape[1] + 1)
    start[-1] = np.log(targets.mean() / (1 - targets.mean()))
    found = _minimise(loss, start)
    return Linear(found[:-1], float(found[-1]))


def fit_platt(scores: Floats, targets: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset such that 1 / (1 + exp(-(slope * score + offset))) is a probability.

    Targets are smoothed as Platt does, so that few examples do not give certainty.

    Source: Platt, Probabilistic Outputs for Support Vector Machines (1999), section 2.
    """
    n_yes, n_no = int(targets.sum()), int((~targets).sum())
    goals = np.where(targets, (n_yes + 1) / (n_yes + 2), 1 / (n_no + 2))

    def loss(point: Floats) -> tuple[float, Floats]:
        logits = point[0] * scores + point[1]
        value = np.logaddexp(0, logits).sum() - goals @ logits
        error = 1 / (1 + np.exp(-np.clip(logits, -500, 500))) - goals
        return float(value), np.array([error @ scores, error.sum()])

    slope, offset = _minimise(loss, np.array([1.0, 0.0]))
    return float(slope), float(offset)


def _minimise(loss: Callable[[Floats], tuple[float, Floats]], start: Floats) -> Floats:
    """The minimum of a smooth convex function that gives its value and gradient, by L-BFGS."""
    enough = _TOLERANCE * float(np.abs(loss(start)[1]).max())
    options = {"maxiter": _MAX_STEPS, "gtol": enough, "ftol": 0.0}
    minimise = require("scipy.optimize", "rate").minimize
    found: Floats = minimise(loss, start, jac=True, method="L-BFGS-B", options=options).x
    return found
