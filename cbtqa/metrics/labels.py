"""How far a system's distortion labels agree with those of the reference, question by question."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cbtqa.metrics.base import Floats, Metric, divided
from cbtqa.metrics.texts import Texts


class DistortionAgreement(Metric):
    """Micro-averaged F1 over all labels of all questions."""

    n_columns = 4

    def __init__(self, average: Literal["micro"] = "micro") -> None:
        self.average = average
        self.name, self.label = f"distortion_{average}_f1", "distortion F1"
        self.unscored_reason = "the predictions or the references carry no distortion labels"

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        """`[in both, only predicted, only in the reference, 1]`."""
        rows = np.zeros((len(predictions), self.n_columns), np.float64)
        for row, ours, theirs in zip(rows, predictions.items, references.items, strict=True):
            if ours.labels is not None and theirs.labels is not None:
                both = len(ours.labels & theirs.labels)
                row[:] = both, len(ours.labels) - both, len(theirs.labels) - both, 1
        return rows

    def from_sums(self, sums: Floats) -> Floats:
        """F1; 1 where both sides name none, NaN where nothing was labelled."""
        twice = 2 * sums[..., 0]
        score = divided(twice, twice + sums[..., 1] + sums[..., 2], empty=1.0)
        return np.where(sums[..., 3] > 0, score, np.nan)

    def n_scored(self, statistics: Floats) -> int:
        """Pairs with labels on both sides."""
        return int(statistics[:, 3].sum())

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """The kind of average."""
        return (("average", self.average), ("zero_division", "1"))
