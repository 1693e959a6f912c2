"""How long answers are, in characters without whitespace, and against their references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cbtqa.metrics.base import Floats, MeanMetric, Metric, divided
from cbtqa.metrics.text.texts import Item, Texts
from cbtqa.safety.answers import check_answer
from cbtqa.safety.notices import load_hotlines


class Length(MeanMetric):
    """Mean characters of an answer."""

    unit = "characters"
    is_higher_better = None
    reads_reference = False

    def __init__(self) -> None:
        self.name, self.label = "length", "length"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        return predictions.characters.lengths.astype(np.float64)

    def own_fields(self) -> str:
        return "spaces:dropped"


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
        return divided(sums[..., 0], sums[..., 1], empty=np.nan)

    def nearness(self, statistics: Floats) -> Floats:
        """Of several references the closest in length counts, as in BLEU."""
        ours, theirs = statistics.T
        return np.where(theirs > 0, -np.abs(ours - theirs), np.nan)

    def own_fields(self) -> str:
        return "spaces:dropped"


class DistortionAgreement(Metric):
    """Micro-averaged F1 of a system's distortion labels against those of the references."""

    n_columns = 4
    weight_column = 3

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

    def as_share(self, statistics: Floats) -> tuple[Floats, Floats]:
        """Labels named on both sides, twice, and all labels named on either."""
        twice = 2 * statistics[..., 0]
        return twice, twice + statistics[..., 1] + statistics[..., 2]

    def why_unscored(
        self, predictions: Sequence[Item | None], references: Sequence[Item | None]
    ) -> str:
        """Which side has no labels, or that none is the answers'."""
        for name, side in (("predictions", predictions), ("references", references)):
            if all(item is None or item.labels is None for item in side):
                return f"the {name} hold no distortion labels"
        return self.unscored_reason

    def own_fields(self) -> str:
        return f"average:{self.average}|zero_division:1|labels:of_answers"


NO_ROUTE = "no_help_route"


class HelpRoute(MeanMetric):
    """Share of the answers to questions of any risk that name a help route (`cbtqa.safety`)."""

    has_few_values = True

    def __init__(self) -> None:
        self.name, self.label = "help_route", "help route"
        self.unscored_reason = "no question carries a risk"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        """1 or 0 where the reference's risk is not `none`, else NaN."""
        values = np.full(len(predictions), np.nan)
        for index, (ours, theirs) in enumerate(
            zip(predictions.items, references.items, strict=True)
        ):
            if theirs.risk is None or theirs.risk == "none":
                continue
            problems = check_answer(ours.text, theirs.risk)
            values[index] = all(problem.rule != NO_ROUTE for problem in problems)
        return values

    def own_fields(self) -> str:
        return f"hotlines:{load_hotlines().checked_on}"
