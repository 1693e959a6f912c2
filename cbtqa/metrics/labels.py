"""How far a system's distortion labels agree with those of the reference, question by question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cbtqa.metrics.base import Floats, Metric, divided
from cbtqa.metrics.texts import Item, Texts


class DistortionAgreement(Metric):
    """Micro-averaged F1 over all labels of all questions."""

    n_columns = 4

    def __init__(self, average: Literal["micro"] = "micro") -> None:
        self.average = average
        self.name, self.label = f"distortion_{average}_f1", "distortion F1"
        self.unscored_reason = "labels on both sides were read from the question, not the answer"

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        """`[in both, only predicted, only in the reference, 1]`.

        A pair without labels on either side counts nothing, and neither does one whose labels
        both come from the question: they agree whatever the answers are.
        """
        rows = np.zeros((len(predictions), self.n_columns), np.float64)
        for row, ours, theirs in zip(rows, predictions.items, references.items, strict=True):
            is_of_question = ours.is_labelled_by_question and theirs.is_labelled_by_question
            if ours.labels is not None and theirs.labels is not None and not is_of_question:
                both = len(ours.labels & theirs.labels)
                row[:] = both, len(ours.labels) - both, len(theirs.labels) - both, 1
        return rows

    def from_sums(self, sums: Floats) -> Floats:
        """F1; 1 where both sides name none, NaN where nothing was labelled."""
        twice = 2 * sums[..., 0]
        score = divided(twice, twice + sums[..., 1] + sums[..., 2], empty=1.0)
        return np.where(sums[..., 3] > 0, score, np.nan)

    def why_unscored(
        self, predictions: Sequence[Item | None], references: Sequence[Item | None]
    ) -> str:
        """Which side has no labels, or that none is the answers'."""
        for name, side in (("predictions", predictions), ("references", references)):
            if all(item is None or item.labels is None for item in side):
                return f"the {name} hold no distortion labels"
        return self.unscored_reason

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """The kind of average."""
        return (("average", self.average), ("zero_division", "1"), ("labels", "of_answers"))
