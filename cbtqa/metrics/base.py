"""What a metric is: a small exact object that turns pairs into additive statistics and back.

One matrix of statistics serves the corpus score, the score of each pair, the interval and every
paired test: a resampled corpus is a sum of rows. The shape follows sacrebleu's.

    statistics = metric.statistics(predictions, references)     # shape (pairs, columns)
    metric.from_sums(statistics.sum(0))                         # the corpus score
    metric.from_sums(statistics)                                # the score of each pair
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

import cbtqa
from cbtqa.metrics.text.texts import Ints, Item, Texts

Floats = NDArray[np.float64]
ENDS = {"0-1": (0.0, 1.0), "0-100": (0.0, 100.0)} | dict.fromkeys(
    ("characters", "ratio"), (0.0, math.inf)
)
"""Least and greatest score by unit; other units have no ends."""


@dataclass(frozen=True)
class Signature:
    """Every setting able to change a value, as `key:value` joined by `|`."""

    fields: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, text: str) -> Signature:
        """The signature that prints as `text`."""
        pairs = (field.partition(":") for field in text.split("|"))
        return cls(tuple((key, value) for key, _, value in pairs))

    def __str__(self) -> str:
        return "|".join(f"{key}:{value}" for key, value in self.fields)

    def extended(self, **fields: object) -> Signature:
        """With more fields at its end; those it has already change in their place."""
        changed = dict(self.fields) | {key: str(value) for key, value in fields.items()}
        return Signature(tuple(changed.items()))


class _Described(ABC):
    """Name, unit and signature: what every metric has."""

    name: str
    """Stable id, as on the command line and in files."""
    label: str
    """As printed at the head of a column."""
    unit: str = "0-1"
    is_higher_better: ClassVar[bool | None] = True
    """None when neither direction is better, as for a length."""
    unscored_reason: str = "no pair could be scored"

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest score there can be."""
        return ENDS.get(self.unit, (-math.inf, math.inf))

    @abstractmethod
    def own_fields(self) -> str:
        """The settings of this metric, as in its signature."""

    def signature(self) -> Signature:
        """Name, own settings, and the program that computed it."""
        return Signature.of(f"metric:{self.name}|{self.own_fields()}|by:{maker()}")


class Metric(_Described):
    """Base of all metrics whose statistics add up over pairs."""

    n_columns: int
    """Columns of the statistics."""
    pairs_per_block: ClassVar[int | None] = None
    """Most pairs it wants at a time; None when any number will do."""
    reads_reference: ClassVar[bool] = True
    """False where the text of the reference changes nothing, so that one is as good as several."""

    @abstractmethod
    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        """Shape (pairs, n_columns); a pair that cannot be scored is a row of zeros."""

    def best_statistics(self, predictions: Texts, references: Texts, starts: Ints) -> Floats:
        """Statistics of each prediction against several references: those of the best one.

        Args:
            predictions: one for every reference, repeated.
            starts: shape (predictions,); the first reference of each prediction, ascending from 0.
        """
        rows = self.statistics(predictions, references)
        values = np.nan_to_num(self.nearness(rows), nan=-np.inf)
        ends = np.append(starts[1:], len(values))
        best = [
            first + int(values[first:end].argmax())
            for first, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        return rows[best]

    @abstractmethod
    def from_sums(self, sums: Floats) -> Floats:
        """Scores from summed statistics, shape (..., n_columns) to (...); NaN when unscored."""

    def per_pair(self, statistics: Floats) -> Floats:
        """The score of each pair, shape (pairs,); NaN for a pair that cannot be scored."""
        return self.from_sums(statistics)

    def nearness(self, statistics: Floats) -> Floats:
        """Shape (pairs,); of several references the one where this is greatest is taken."""
        return self.per_pair(statistics)

    weight_column: ClassVar[int] = 1
    """What a row weighs in the corpus score: its scored pairs, or the length of its references."""

    def as_share(self, statistics: Floats) -> tuple[Floats, Floats] | None:
        """Of a score that is a share, 0-1, of things that take few values: hits, and all of them.

        Rows are pairs or questions. Its interval is that of a short scale, and it has one where
        all are alike too. None for a score of any other kind.
        """
        return None

    def is_scored(self, statistics: Floats) -> NDArray[np.bool_]:
        """Which pairs the metric applies to."""
        return ~np.isnan(self.per_pair(statistics))

    def n_scored(self, statistics: Floats) -> int:
        return int(self.is_scored(statistics).sum())

    def why_unscored(
        self, predictions: Sequence[Item | None], references: Sequence[Item | None]
    ) -> str:
        """Why it applies to none of these pairs."""
        return self.unscored_reason

    def notes(self, statistics: Floats) -> list[str]:
        """What a reader must know about one system's scores, such as texts not read to the end."""
        return []


class MeanMetric(Metric):
    """A metric whose corpus score is the mean of its pairs."""

    n_columns = 2
    has_few_values: ClassVar[bool] = False
    """Whether a pair scores 0, 1 or one of a few steps between."""

    def as_share(self, statistics: Floats) -> tuple[Floats, Floats] | None:
        """The sums of the values and their numbers, where the values are few."""
        return (statistics[..., 0], statistics[..., 1]) if self.has_few_values else None

    @abstractmethod
    def values(self, predictions: Texts, references: Texts) -> Floats:
        """The score of each pair, shape (pairs,); NaN for a pair that cannot be scored."""

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        """`[value, 1]` for a scored pair, `[0, 0]` for the rest."""
        values = self.values(predictions, references)
        is_scored = ~np.isnan(values)
        return np.stack([np.where(is_scored, values, 0.0), is_scored.astype(np.float64)], axis=1)

    def from_sums(self, sums: Floats) -> Floats:
        """Sum of the values by their number."""
        return divided(sums[..., 0], sums[..., 1], empty=np.nan)


def divided(above: Floats, below: Floats | Ints, empty: float = 0.0) -> Floats:
    """Element-wise quotient; `empty` where there is nothing to divide by."""
    shape = np.broadcast_shapes(np.shape(above), np.shape(below))
    out = np.full(shape, empty, np.result_type(above, below, np.float32))
    np.divide(above, below, out=out, where=np.broadcast_to(np.asarray(below) > 0, shape))
    return out


def maker() -> str:
    return f"cbtqa-{cbtqa.__version__}"


class Collector(ABC):
    """What one system's texts have come to so far."""

    @abstractmethod
    def add(self, predictions: Texts, is_scored: NDArray[np.bool_]) -> None:
        """Takes in a block of texts; those not scored are passed over."""

    @abstractmethod
    def score(self) -> float | None:
        """The score; None when there was nothing to score."""


class CorpusMetric(_Described):
    """A metric of a whole system that does not add up over pairs; it has no interval."""

    interval_reason = "compares a system's answers with each other: they cannot be drawn apart"
    is_higher_better: ClassVar[bool | None] = None
    unscored_reason = "no text could be scored"
    is_computed: ClassVar[bool] = True
    """False of one that cannot run here, whose `unscored_reason` says why."""

    @abstractmethod
    def collector(self) -> Collector:
        """A fresh collector for one system."""
