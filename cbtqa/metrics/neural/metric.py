"""What the neural metrics share: their columns, their mean, and what they tell beside the score."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from cbtqa.metrics.base import Collector, CorpusMetric, Floats, Metric, divided
from cbtqa.metrics.text.texts import Texts

VALUE, SCORED, CUT_PREDICTION, CUT_REFERENCE, UNKNOWN, TOKENS = range(6)
PAIRS_PER_BLOCK = 100
"""Pairs whose reference embeddings are held: 0.16 GB at 512 tokens of 768 float32 numbers. On a CPU
they take three minutes, after which progress is reported."""
MANY_UNKNOWN = 0.05
"""Share of unknown tokens above which a warning is given; a Chinese model has under one percent."""


class NeuralMetric(Metric):
    """A mean over pairs whose statistics also count texts that were cut and unknown tokens."""

    n_columns = 6
    pairs_per_block = PAIRS_PER_BLOCK
    is_optional = False
    """True when a preset brought it: where it cannot run, it has no score and stops nothing."""

    @abstractmethod
    def why_absent(self) -> str | None:
        """Why it cannot run here as it is; None when its libraries and weights are there."""

    def from_sums(self, sums: Floats) -> Floats:
        """Sum of the values by their number."""
        return divided(sums[..., VALUE], sums[..., SCORED], empty=np.nan)

    def notes(self, statistics: Floats) -> list[str]:
        """What a reader must know about one system's scores: texts cut, tokens unknown."""
        n, sums = self.n_scored(statistics), statistics.sum(0)
        found = []
        if n and (sums[CUT_PREDICTION] or sums[CUT_REFERENCE]):
            found.append(
                f"{self.name}: the model did not read the end of "
                f"{sums[CUT_PREDICTION] / n:.1%} of the answers and "
                f"{sums[CUT_REFERENCE] / n:.1%} of the references"
            )
        if sums[TOKENS] and sums[UNKNOWN] / sums[TOKENS] > MANY_UNKNOWN:
            share = sums[UNKNOWN] / sums[TOKENS]
            found.append(f"{self.name}: {share:.1%} of the tokens are unknown to the model")
        return found


class Absent(CorpusMetric):
    """A neural metric that a preset named and that cannot run here: it has a reason, no score."""

    is_computed = False

    def __init__(self, metric: NeuralMetric, reason: str) -> None:
        self.name, self.label, self.unit = metric.name, metric.label, metric.unit
        self.unscored_reason = reason

    def collector(self) -> Collector:
        return _Nothing()

    def own_fields(self) -> str:
        return "computed:no"


class _Nothing(Collector):
    def add(self, predictions: Texts, is_scored: NDArray[np.bool_]) -> None:
        """Takes nothing in."""

    def score(self) -> float | None:
        return None
