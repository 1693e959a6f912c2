"""Trains and measures the light labeller: features, weights, calibration, thresholds.

Calibration and thresholds come from inner folds of the training part alone, and `cross_validate`
repeats all of it in each fold, so nothing measured on a text was chosen by looking at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cbtqa.distortions.encoder_means import EncoderColumns, MeansReader, scaled, spread_of
from cbtqa.distortions.features import BLOCK_WEIGHTS, N_BUCKETS, Block, encode_texts
from cbtqa.distortions.linear import (
    RULE_WEIGHT,
    Linear,
    LinearLabeller,
    LinearModel,
    decide,
    features_of_hit,
    fit_logistic,
    fit_platt,
    rule_features,
    word_classes,
)
from cbtqa.distortions.patterns import PatternLabeller
from cbtqa.distortions.taxonomy import Taxonomy, lift_id, load_taxonomy
from cbtqa.errors import require
from cbtqa.files import shipped_yaml
from cbtqa.llm.progress import StepCounter
from cbtqa.safety.normalise import language_of
from cbtqa.settings import Settings

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Say = Callable[[str], None]


class TrainingSettings(Settings):
    """Settings of a light model."""

    strength: float = Field(3.0, gt=0)
    """How closely the weights follow the data (C of the regression)."""
    min_texts: int = Field(2, ge=1)
    """Leave out n-grams that occur in fewer texts."""
    invented: bool = True
    """Learn from the package's invented Chinese texts on rare types, too, where most texts are
    Chinese; none of them is measured on."""
    rules: bool = True
    """Use hits of the pattern file as features, too."""
    min_probability: float = Field(0.05, ge=0, lt=1)
    """Never give a type below this probability."""
    at_least_one: Literal["auto", "yes", "no"] = "auto"
    """Give every text its likeliest type where none passes; auto: when no training text of a
    taxonomy of several types is without one."""
    inner_folds: int = Field(5, ge=2)
    """Folds for calibration and thresholds."""
    seed: int = 0
    """Seed of every split into folds."""


def invented_texts(taxonomy: Taxonomy) -> list[tuple[str, frozenset[str]]]:
    """The package's invented texts on types of a taxonomy, each with its types in it."""
    found: list[tuple[str, frozenset[str]]] = []
    for concept, texts in shipped_yaml(__package__, "contrast_pairs.zh.yaml").items():
        if (type_id := lift_id(concept, taxonomy)) is not None:
            found += [(text, frozenset((type_id,))) for text in texts["with"]]
            found += [(text, frozenset()) for text in texts["without"]]
    return found


class Features(NamedTuple):
    """N-grams and rule hits of all texts, before any is chosen or weighted."""

    blocks: list[Block]
    rule_hits: Bools
    """`(texts, rules)`."""


def _read_features(texts: Sequence[str], rules: tuple[str, ...]) -> Features:
    """Hashes the n-grams and looks for the rules, once for all folds."""
    hits = np.zeros((len(texts), len(rules)), bool)
    if rules:
        place = {rule: column for column, rule in enumerate(rules)}
        labeller = PatternLabeller(load_taxonomy("binary"))
        for row, text in zip(hits, texts, strict=True):
            for hit in labeller.find_hits(text):
                row[[place[name] for name in features_of_hit(hit)]] = True
    return Features(word_classes().read_blocks(encode_texts(texts)), hits)


def _choose_ngrams(features: Features, part: Ints, min_texts: int) -> tuple[Ints, Floats]:
    """Buckets of the n-grams that occur in enough texts of the part, and their idf there."""
    in_part = np.zeros(len(features.rule_hits), bool)
    in_part[part] = True
    n_texts = np.zeros(N_BUCKETS, np.int64)
    for buckets, text_of, _, _ in features.blocks:
        kept = in_part[text_of] & (buckets != N_BUCKETS)
        pairs = text_of[kept] * N_BUCKETS + buckets[kept]
        n_texts += np.bincount(np.unique(pairs) % N_BUCKETS, minlength=N_BUCKETS)
    chosen = np.flatnonzero(n_texts >= min_texts)
    # the root, because the classes' own counts weight n-grams once more, see `contrast_columns`
    return chosen, np.sqrt(np.log((1 + len(part)) / (1 + n_texts[chosen])) + 1)


def _build_rows(features: Features, buckets: Ints, idf: Floats) -> Any:
    """All texts as rows of a `csr_array`: a column per kept n-gram, then one per rule."""
    n_texts, n_rules = features.rule_hits.shape
    column_of = np.full(N_BUCKETS + 1, -1, np.int64)
    column_of[buckets] = np.arange(len(buckets))
    rows_with_rule, rules = np.nonzero(features.rule_hits)
    entries = [(rows_with_rule, len(buckets) + rules, np.full(len(rules), RULE_WEIGHT))]
    for weight, block in zip(BLOCK_WEIGHTS, features.blocks, strict=True):
        found = column_of[block.buckets]
        kept = found >= 0
        text_of, columns_here = block.text_of[kept], found[kept]
        values = idf[columns_here]
        lengths = np.sqrt(np.bincount(text_of, weights=values**2, minlength=n_texts))
        entries.append((text_of, columns_here, weight * values / lengths[text_of]))
    texts, columns, values = map(np.concatenate, zip(*entries, strict=True))
    shape = (n_texts, len(buckets) + n_rules)
    return require("scipy.sparse", "rate").csr_array((values, (texts, columns)), shape=shape)


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
    reader: MeansReader | None = None,
    say: Say | None = None,
    counter: StepCounter | None = None,
) -> LinearModel:
    """The model of all texts, with an encoder's columns where its reader is given.

    Args:
        counter: counts the fits, see `n_fits`.
    """
    trainer = _Trainer(texts, gold, taxonomy, settings or TrainingSettings(), name, reader, say)
    return trainer.train(np.arange(len(texts)), counter, "final model")


def n_fits(taxonomy: Taxonomy, settings: TrainingSettings, n_folds: int = 0) -> int:
    """Fits of a model, one for each type in each inner fold and once of all, and of its folds."""
    return (n_folds + 1) * (settings.inner_folds + 1) * len(taxonomy.ids)


def cross_validate(
    texts: Sequence[str],
    gold: Bools,
    taxonomy: Taxonomy,
    settings: TrainingSettings | None = None,
    *,
    n_folds: int = 5,
    reader: MeansReader | None = None,
    say: Say | None = None,
    counter: StepCounter | None = None,
) -> Floats:
    """Out-of-fold outcome, `(texts, types)`: the probability where the type is given, else -1 x it.

    Each text is labelled by a model that was trained, calibrated and given its thresholds without
    it. A value > 0 means that the type was given.
    """
    settings = settings or TrainingSettings()
    trainer = _Trainer(texts, gold, taxonomy, settings, "fold", reader, say)
    outcome = np.zeros(gold.shape)
    for number, held_out in enumerate(split_folds(len(texts), n_folds, settings.seed), 1):
        part = np.setdiff1d(np.arange(len(texts)), held_out)
        model = trainer.train(part, counter, f"fold {number} of {n_folds}")
        probabilities = LinearLabeller(model).probabilities([texts[row] for row in held_out])
        given = decide(probabilities, model.thresholds, at_least_one=model.at_least_one)
        outcome[held_out] = np.where(given, probabilities, -probabilities)
    return outcome


class _Calibrated(NamedTuple):
    platt: list[tuple[float, float]]
    thresholds: Floats
    quality: float
    """Micro plus macro F1 on the inner folds."""


class _Trainer:
    def __init__(
        self,
        texts: Sequence[str],
        gold: Bools,
        taxonomy: Taxonomy,
        settings: TrainingSettings,
        name: str,
        reader: MeansReader | None = None,
        say: Say | None = None,
    ) -> None:
        n_chinese = sum(language_of(text) == "zh" for text in texts)
        is_useful = settings.invented and 2 * n_chinese > len(texts)
        invented = invented_texts(taxonomy) if is_useful else []
        marks = [[type_id in own for type_id in taxonomy.ids] for _, own in invented]
        self._gold = np.vstack([gold, np.array(marks, bool).reshape(-1, gold.shape[1])])
        self._taxonomy, self._settings, self._name = taxonomy, settings, name
        self._rules = rule_features() if settings.rules else ()
        every = [*texts, *(text for text, _ in invented)]
        self._features = _read_features(every, self._rules)
        self._reader = reader
        self._means = reader.means(every, say) if reader else np.zeros((len(every), 0))
        # a column of an encoder is in every text, so that there is no contrast to weight it by
        self._contrasts = _CONTRASTS[:1] if reader else _CONTRASTS
        self._invented = np.arange(len(texts), len(self._gold))
        self._at_least_one = settings.at_least_one == "yes" or (
            settings.at_least_one == "auto" and gold.shape[1] > 1 and bool(gold.any(axis=1).all())
        )

    def train(self, part: Ints, counter: StepCounter | None = None, stage: str = "") -> LinearModel:
        """Weights from the part; contrasts, calibration and thresholds from its inner folds."""
        settings = self._settings
        scores = np.zeros((len(self._contrasts), len(part), self._gold.shape[1]))
        inner = split_folds(len(part), settings.inner_folds, settings.seed + 1)
        for number, held_out in enumerate(inner, 1):
            seen = np.concatenate([np.delete(part, held_out), self._invented])
            *_, rows = self._rows(seen)
            fitted, unseen = rows[seen], rows[part[held_out]]
            for column in range(self._gold.shape[1]):
                for place, model in enumerate(self._fit(fitted, seen, column, self._contrasts)):
                    scores[place, held_out, column] = unseen @ model.weights + model.bias
                if counter:
                    counter.step(f"{stage}, inner fold {number} of {len(inner)}")
        gold = self._gold[part]  # calibrated without the invented texts: their shares are made
        plain, mixed = self._calibrate(scores[0], gold), self._calibrate(scores.mean(axis=0), gold)
        contrasts = self._contrasts if mixed.quality > plain.quality else self._contrasts[:1]
        platt, thresholds, _ = mixed if mixed.quality > plain.quality else plain
        part = np.concatenate([part, self._invented])
        buckets, idf, rows = self._rows(part)
        fitted = rows[part]
        models = []
        for column, type_id in enumerate(self._taxonomy.ids):
            models.append(mean_model(self._fit(fitted, part, column, contrasts)))
            if counter:
                counter.step(f"{stage}, weights of {type_id}")
        weights = np.stack([model.weights for model in models], axis=1)
        n_ngrams, n_light = len(buckets), len(buckets) + len(self._rules)
        return LinearModel(
            taxonomy=self._taxonomy,
            name=self._name,
            buckets=buckets.astype(np.uint32),
            idf=idf.astype(np.float32),
            coefficients=weights[:n_ngrams].astype(np.float32),
            rules=self._rules,
            rule_coefficients=weights[n_ngrams:n_light].astype(np.float32),
            bias=np.array([model.bias for model in models], np.float32),
            platt=np.array(platt, np.float32),
            thresholds=np.array(thresholds, np.float32),
            at_least_one=self._at_least_one,
            encoder=self._columns(part, weights[n_light:]),
        )

    def _columns(self, part: Ints, weights: Floats) -> EncoderColumns | None:
        if self._reader is None:
            return None
        given, sha256 = self._reader.given, self._reader.weights_sha256
        spread = spread_of(self._means[part])
        return EncoderColumns(given, sha256, *spread, weights.astype(np.float32))

    def _fit(self, rows: Any, part: Ints, column: int, contrasts: Sequence[float]) -> list[Linear]:
        """One model of a type for each share of contrast, from the part's rows."""
        trust = np.ones(rows.shape[1])
        if self._gold.shape[1] > 1:
            own = f"type:{self._taxonomy.ids[column]}"
            first_rule = rows.shape[1] - self._means.shape[1] - len(self._rules)
            trust[[first_rule + n for n, rule in enumerate(self._rules) if rule == own]] = _TRUST
        targets, strength = self._gold[part, column], self._settings.strength
        return [fit_type(rows, targets, strength, share, trust) for share in contrasts]

    def _rows(self, part: Ints) -> tuple[Ints, Floats, Any]:
        """The n-grams that a part of the texts keeps, their idf, and all texts in them."""
        chosen = _choose_ngrams(self._features, part, self._settings.min_texts)
        rows = _build_rows(self._features, *chosen)
        if self._reader:
            further = scaled(self._means, *spread_of(self._means[part]))
            rows = require("scipy.sparse", "rate").hstack([rows, further]).tocsr()
        return *chosen, rows

    def _calibrate(self, scores: Floats, gold: Bools) -> _Calibrated:
        platt = [fit_platt(*columns) for columns in zip(scores.T, gold.T, strict=True)]
        slope, offset = np.array(platt).T
        probabilities = 1 / (1 + np.exp(-np.clip(scores * slope + offset, -500, 500)))
        floor, at_least_one = self._settings.min_probability, self._at_least_one
        thresholds = choose_thresholds(probabilities, gold, floor, at_least_one=at_least_one)
        given = decide(probabilities, thresholds, at_least_one=at_least_one)
        right, total = (given & gold).sum(axis=0), (given.sum(axis=0) + gold.sum(axis=0))
        micro, by_type = 2 * right.sum() / max(1, total.sum()), 2 * right / np.maximum(total, 1)
        return _Calibrated(platt, thresholds, float(micro + by_type.mean()))


def fit_type(rows: Any, targets: Bools, strength: float, contrast: float, trust: Floats) -> Linear:
    """The model of one type.

    Args:
        contrast: share of a column's own contrast in its scale, see `contrast_columns`; 0 leaves
            all columns alike.
        trust: `(columns,)`: factor of each column, so that trusted ones need less evidence.
    """
    scale = trust if contrast == 0 else trust * contrast_columns(rows, targets, contrast)
    fitted = fit_logistic(rows.multiply(scale).tocsr(), targets, strength)
    return Linear(fitted.weights * scale, fitted.bias)


def mean_model(models: Sequence[Linear]) -> Linear:
    """The model whose score is the mean of their scores."""
    weights = np.mean([model.weights for model in models], axis=0)
    return Linear(weights, float(np.mean([model.bias for model in models])))


def contrast_columns(rows: Any, targets: Bools, share: float) -> Floats:
    """`(columns,)`: how much each column separates texts of a type from the others, signed.

    The log ratio of the column's share among texts with the type and among the rest, clipped at
    `_MOST_CONTRAST` and, below a share of 1, drawn towards the mean size.

    Source: Wang and Manning, Baselines and Bigrams (ACL 2012), section 2.3.
    """
    present = rows != 0
    with_type, without = present[targets].sum(axis=0) + 1.0, present[~targets].sum(axis=0) + 1.0
    ratio = np.log(with_type / with_type.sum()) - np.log(without / without.sum())
    ratio = np.clip(ratio, -_MOST_CONTRAST, _MOST_CONTRAST)
    return np.asarray(share * ratio + (1 - share) * np.abs(ratio).mean())


_CONTRASTS = (0.0, 0.6, 1.0)
"""Shares of contrast; the models of all are averaged where this beats 0 in the inner folds."""
_MOST_CONTRAST = 3.0
_TRUST = 3.0
"""Scale of the feature of rules of a type's own name: few texts cannot teach it."""


def choose_thresholds(
    probabilities: Floats, gold: Bools, floor: float, *, at_least_one: bool = False
) -> Floats:
    """For each type the probability from which it is given, `(types,)`.

    Giving a type to one more text raises an F1 when its probability is above half that F1. The
    thresholds are those at which one more label no longer raises micro F1 plus `_MACRO_SHARE` times
    macro F1; the F1s depend on the thresholds, so both are found in turns. Nothing is searched:
    the peak of a curve over few examples would be an accident of the sample. A type without a
    single example is never given.

    Source: Lipton, Elkan and Naryanaswamy, Optimal Thresholding of Classifiers to Maximize F1
    Measure (2014).
    """
    support = gold.sum(axis=0)
    thresholds = np.full(gold.shape[1], 0.3)
    for _ in range(_TURNS):
        given = decide(probabilities, thresholds, at_least_one=at_least_one)
        right, n_given = (given & gold).sum(axis=0), given.sum(axis=0)
        total = max(1, int(n_given.sum() + support.sum()))
        micro = 2 * right.sum() / total
        sizes = n_given + support + _PRIOR_LABELS
        own = (2 * right + _PRIOR_LABELS * _PRIOR_F1) / sizes
        pull = _MACRO_SHARE / (sizes * len(support))
        wanted = (micro / total + own * pull) / (2 / total + 2 * pull)
        thresholds = (thresholds + np.clip(wanted, floor, 0.9)) / 2
    return np.where(support > 0, thresholds, 1.0)


_TURNS = 20
_MACRO_SHARE = 1.0
_PRIOR_LABELS, _PRIOR_F1 = 2, 0.25
"""What a type's F1 is taken for before anything is seen, so that a hit or two show no skill."""
