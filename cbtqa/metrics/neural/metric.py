"""What the neural metrics share: their columns, their mean, and what they tell beside the score."""

from __future__ import annotations

import numpy as np

from cbtqa.metrics.base import Floats, Metric, divided

VALUE, SCORED, CUT_PREDICTION, CUT_REFERENCE, UNKNOWN, TOKENS = range(6)
PAIRS_PER_BLOCK = 500
"""Pairs whose reference embeddings are held: 0.8 GB at 512 tokens of 768 float32 numbers."""
MANY_UNKNOWN = 0.05
"""Share of unknown tokens above which a warning is given; a Chinese model has under one percent."""


class NeuralMetric(Metric):
    """A mean over pairs whose statistics also count texts that were cut and unknown tokens."""

    n_columns = 6
    pairs_per_block = PAIRS_PER_BLOCK

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
