"""How long answers are, in characters without whitespace, and against their references."""

from __future__ import annotations

import numpy as np

from cbtqa.metrics.base import Floats, MeanMetric, Metric, divided
from cbtqa.metrics.texts import Texts


class Length(MeanMetric):
    """Mean characters of an answer."""

    unit = "characters"
    is_higher_better = None

    def __init__(self) -> None:
        self.name, self.label = "length", "length"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        """Characters of each prediction."""
        return predictions.characters.lengths.astype(np.float64)

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """What counts as a character."""
        return (("spaces", "dropped"),)


class LengthRatio(Metric):
    """Characters of all predictions by characters of all references; 1 is as long."""

    n_columns = 2
    unit = "ratio"
    is_higher_better = None

    def __init__(self) -> None:
        self.name, self.label = "length_ratio", "length ratio"
        self.unscored_reason = "every reference is empty"

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        """Both lengths; zeros against an empty reference, which has no ratio."""
        ours, theirs = predictions.characters.lengths, references.characters.lengths
        return np.stack([np.where(theirs > 0, ours, 0), theirs], axis=1).astype(np.float64)

    def from_sums(self, sums: Floats) -> Floats:
        """Their quotient; NaN against empty references."""
        return divided(sums[..., 0], sums[..., 1], empty=np.nan)

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """What counts as a character."""
        return (("spaces", "dropped"),)
