"""Trains the light labeller: features, weights, calibration, thresholds, and an honest estimate.

Nothing that is measured on a text was chosen by looking at it: calibration and thresholds come
from inner folds of the training part alone, and `cross_validate` repeats all of it in each fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cbtqa.distortions.features import N_BUCKETS, EncodedTexts, encode_texts, hash_ngrams
from cbtqa.distortions.linear import (
    ORDER_WEIGHTS,
    RULE_WEIGHT,
    LinearLabeller,
    LinearModel,
    features_of_hit,
    rule_features,
)
from cbtqa.distortions.logistic import Linear, SparseRows, fit_logistic, fit_platt
from cbtqa.distortions.patterns import PatternLabeller
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy
from cbtqa.settings import Settings

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Tick = Callable[[int, int], None]
"""Called with fits done and fits in all."""


class TrainingSettings(Settings):
    """What shapes a light model."""

    strength: float = Field(
        3.0, gt=0, description="How closely the weights follow the data (C of the regression)."
    )
    min_texts: int = Field(2, ge=1, description="Leave out n-grams that stand in fewer texts.")
    rules: bool = Field(True, description="Use hits of the pattern file as features, too.")
    min_probability: float = Field(
        0.1, ge=0, lt=1, description="Never give a type below this probability."
    )
    inner_folds: int = Field(5, ge=2, description="Folds for calibration and thresholds.")
    seed: int = Field(0, description="Seed of every split into folds.")


class Features(NamedTuple):
    """What the texts of one call look like, before any of it is chosen or weighted."""

    encoded: EncodedTexts
    ngrams: list[npt.NDArray[np.uint32]]
    rule_hits: Bools
    """`(texts, rules)`."""


class FeatureSpace(NamedTuple):
    """The n-grams that a training part keeps, with their weights."""

    buckets: npt.NDArray[np.uint32]
    idf: Floats


def read_features(texts: Sequence[str], rules: tuple[str, ...]) -> Features:
    """Hashes the n-grams and looks for the rules, once for all folds."""
    encoded = encode_texts(texts)
    hits = np.zeros((len(texts), len(rules)), bool)
    if rules:
        place = {rule: column for column, rule in enumerate(rules)}
        labeller = PatternLabeller(load_taxonomy("binary"))
        for row, text in zip(hits, texts, strict=True):
            for hit in labeller.find_hits(text):
                row[[place[name] for name in features_of_hit(hit)]] = True
    return Features(encoded, hash_ngrams(encoded, len(ORDER_WEIGHTS)), hits)


def choose_space(features: Features, part: Ints, min_texts: int) -> FeatureSpace:
    """N-grams that stand in enough texts of the part, with idf counted there."""
    in_part = np.zeros(len(features.encoded.starts), bool)
    in_part[part] = True
    n_texts = np.zeros(N_BUCKETS, np.int64)
    for buckets in features.ngrams:
        kept = in_part[features.encoded.text_of] & (buckets != N_BUCKETS)
        pairs = features.encoded.text_of[kept] * N_BUCKETS + buckets[kept]
        n_texts += np.bincount(np.unique(pairs) % N_BUCKETS, minlength=N_BUCKETS)
    chosen = np.flatnonzero(n_texts >= min_texts)
    idf = np.log((1 + len(part)) / (1 + n_texts[chosen])) + 1
    return FeatureSpace(chosen.astype(np.uint32), idf)


def build_rows(features: Features, space: FeatureSpace) -> SparseRows:
    """All texts as sparse rows: a column per kept n-gram, then one per rule, then a blank.

    The blank column keeps every row non-empty; its values are 0.
    """
    n_texts, n_rules = features.rule_hits.shape
    n_columns = len(space.buckets) + n_rules + 1
    column_of = np.full(N_BUCKETS + 1, -1, np.int64)
    column_of[space.buckets] = np.arange(len(space.buckets))
    texts: list[Ints] = [np.arange(n_texts)]
    columns: list[Ints] = [np.full(n_texts, n_columns - 1)]
    values: list[Floats] = [np.zeros(n_texts)]
    for weight, buckets in zip(ORDER_WEIGHTS, features.ngrams, strict=True):
        found = column_of[buckets]
        kept = found >= 0
        text_of, columns_here = features.encoded.text_of[kept], found[kept]
        idf = space.idf[columns_here]
        lengths = np.sqrt(np.bincount(text_of, weights=idf**2, minlength=n_texts))
        texts.append(text_of)
        columns.append(columns_here)
        values.append(weight * idf / lengths[text_of])
    rows_with_rule, rules = np.nonzero(features.rule_hits)
    texts.append(rows_with_rule)
    columns.append(len(space.buckets) + rules)
    values.append(np.full(len(rules), RULE_WEIGHT))
    return _merge(np.concatenate(texts), np.concatenate(columns), np.concatenate(values), n_columns)


def _merge(texts: Ints, columns: Ints, values: Floats, n_columns: int) -> SparseRows:
    """Sorted by text and column, entries of one cell added up."""
    cells, place = np.unique(texts * n_columns + columns, return_inverse=True)
    summed = np.bincount(place, weights=values).astype(np.float64)
    text_of = cells // n_columns
    starts = np.searchsorted(text_of, np.arange(text_of[-1] + 1))
    return SparseRows(cells % n_columns, summed, starts, n_columns)


# --- one model -----------------------------------------------------------------------------------


def split_folds(n_items: int, n_folds: int, seed: int) -> list[Ints]:
    """Held-out parts of a seeded shuffle, as even as can be."""
    order = np.random.default_rng(seed).permutation(n_items)
    return [np.sort(part) for part in np.array_split(order, n_folds)]


def train_linear(
    texts: Sequence[str],
    gold: Bools,
    taxonomy: Taxonomy,
    settings: TrainingSettings | None = None,
    *,
    name: str = "linear",
    tick: Tick | None = None,
) -> LinearModel:
    """A model from texts and a `(texts, types)` matrix of what they hold."""
    settings = settings or TrainingSettings()
    rules = rule_features() if settings.rules else ()
    features = read_features(texts, rules)
    trainer = _Trainer(features, gold, taxonomy, settings, rules, name, tick)
    return trainer.train(np.arange(len(texts)))


def cross_validate(
    texts: Sequence[str],
    gold: Bools,
    taxonomy: Taxonomy,
    settings: TrainingSettings | None = None,
    *,
    n_folds: int = 5,
    tick: Tick | None = None,
) -> Floats:
    """Out-of-fold outcome, `(texts, types)`: the probability where the type is given, else -1 x it.

    Each text is labelled by a model that was trained, calibrated and given its thresholds without
    it. A value > 0 means that the type was given.
    """
    settings = settings or TrainingSettings()
    rules = rule_features() if settings.rules else ()
    features = read_features(texts, rules)
    trainer = _Trainer(features, gold, taxonomy, settings, rules, "fold", tick, n_folds)
    outcome = np.zeros(gold.shape)
    for held_out in split_folds(len(texts), n_folds, settings.seed):
        part = np.setdiff1d(np.arange(len(texts)), held_out)
        model = trainer.train(part)
        probabilities = LinearLabeller(model).probabilities([texts[row] for row in held_out])
        given = probabilities >= model.thresholds
        outcome[held_out] = np.where(given, probabilities, -probabilities)
    return outcome


class _Trainer:
    """Fits on parts of one set of texts, counting fits."""

    def __init__(
        self,
        features: Features,
        gold: Bools,
        taxonomy: Taxonomy,
        settings: TrainingSettings,
        rules: tuple[str, ...],
        name: str,
        tick: Tick | None,
        n_models: int = 1,
    ) -> None:
        self._features, self._gold, self._taxonomy = features, gold, taxonomy
        self._settings, self._rules, self._name, self._tick = settings, rules, name, tick
        self._n_done, self._n_fits = 0, n_models * (settings.inner_folds + 1)

    def train(self, part: Ints) -> LinearModel:
        """Weights from the part; calibration and thresholds from its inner folds."""
        settings = self._settings
        scores = np.zeros((len(part), self._gold.shape[1]))
        for held_out in split_folds(len(part), settings.inner_folds, settings.seed + 1):
            inner = np.delete(part, held_out)
            space, models = self._fit(inner)
            rows = build_rows(self._features, space).take(part[held_out])
            for column, model in enumerate(models):
                scores[held_out, column] = rows.dot(model.weights) + model.bias
        space, models = self._fit(part)
        platt, thresholds = self._calibrate(scores, self._gold[part])
        weights = np.stack([model.weights for model in models], axis=1)
        n_ngrams = len(space.buckets)
        return LinearModel(
            taxonomy=self._taxonomy,
            name=self._name,
            buckets=space.buckets,
            idf=space.idf.astype(np.float32),
            coefficients=weights[:n_ngrams].astype(np.float32),
            rules=self._rules,
            rule_coefficients=weights[n_ngrams:-1].astype(np.float32),
            bias=np.array([model.bias for model in models], np.float32),
            platt=np.array(platt, np.float32),
            thresholds=np.array(thresholds, np.float32),
        )

    def _fit(self, part: Ints) -> tuple[FeatureSpace, list[Linear]]:
        space = choose_space(self._features, part, self._settings.min_texts)
        rows = build_rows(self._features, space).take(part)
        models = [
            fit_logistic(rows, self._gold[part, column], self._settings.strength)
            for column in range(self._gold.shape[1])
        ]
        self._n_done += 1
        if self._tick:
            self._tick(self._n_done, self._n_fits)
        return space, models

    def _calibrate(self, scores: Floats, gold: Bools) -> tuple[list[tuple[float, float]], Floats]:
        platt = [fit_platt(*columns) for columns in zip(scores.T, gold.T, strict=True)]
        slope, offset = np.array(platt).T
        probabilities = 1 / (1 + np.exp(-np.clip(scores * slope + offset, -500, 500)))
        return platt, choose_thresholds(probabilities, gold, self._settings.min_probability)


def choose_thresholds(probabilities: Floats, gold: Bools, floor: float) -> Floats:
    """For each type the probability from which it is given, `(types,)`.

    Thresholds are chosen together to make the mean of micro and macro F1 best: alone, a rare type
    gains most by being given nearly always, which floods the rest. The peak of such a curve is an
    accident of the sample, so of all candidates nearly as good as the best the mean is taken. A
    type without a single example is never given.
    """
    n_types = gold.shape[1]
    candidates = [_candidates(column, floor) for column in probabilities.T]
    counts = [
        np.array([[(given & truth).sum(), given.sum()] for given in column[None] >= grid[:, None]])
        for column, truth, grid in zip(probabilities.T, gold.T, candidates, strict=True)
    ]
    support = gold.sum(axis=0)
    chosen = np.array([_best(_f1(count, n)) for count, n in zip(counts, support, strict=True)])
    for _ in range(_ROUNDS if n_types > 1 else 0):
        for column in range(n_types):
            totals = sum(
                counts[other][chosen[other]] for other in range(n_types) if other != column
            )
            micro = _f1(counts[column] + totals, int(support.sum()))
            own = _f1(counts[column], int(support[column])) / n_types
            chosen[column] = _best(micro + own)
    thresholds = np.ones(n_types)
    for column in np.flatnonzero(support).tolist():
        thresholds[column] = candidates[column][chosen[column]]
    return thresholds


_ROUNDS = 4
_NEARLY = 0.002
_SMOOTHING = 2
"""Errors added to every F1, so that a hit or two do not look like skill."""


def _candidates(probabilities: Floats, floor: float) -> Floats:
    ends = np.quantile(probabilities, np.linspace(0, 1, 400))
    return np.unique(np.append(ends[ends > floor], max(floor, 1e-6)))


def _f1(counts: npt.NDArray[np.int64], support: int) -> Floats:
    return np.asarray(2 * counts[:, 0] / (counts[:, 1] + support + _SMOOTHING))


def _best(values: Floats) -> int:
    """The middle of the candidates that are nearly as good as the best."""
    good = np.flatnonzero(values >= values.max() - _NEARLY)
    return int(good[len(good) // 2])
