"""The mean that people would give, from many ratings of a judge and some of people.

A judge alone is biased, and its many ratings only make a wrong mean look certain. Where people
rated a random part of the answers, the difference between them and the judge on that part corrects
the judge's mean over all, and its spread widens the interval. With the weight below, the estimate
is never less precise than the people's own mean, however poor the judge.

Source: Angelopoulos et al., Prediction-powered inference, Science 2023; the weight is that of
PPI++, arXiv 2311.01453, example 6.1. With weight 1 it is the survey statistician's difference
estimator (Cassel, Sarndal and Wretman, 1976).
"""

from __future__ import annotations

import math

import numpy as np

from cbtqa.records import Record
from cbtqa.statistics.agreement import Floats

NORMAL_95 = 1.959963984540054


class CorrectedMean(Record):
    """A mean corrected by what people rated."""

    value: float
    low: float
    high: float
    weight: float
    """Of the judge's ratings, 0 to 1: 0 leaves the people's own mean."""
    n_human: int
    n_judge_only: int


def corrected_mean(human: Floats, judged: Floats, judge_only: Floats) -> CorrectedMean | None:
    """The mean over all answers, with its 95 % interval; None below two human ratings.

    Args:
        human: people's mean rating of each answer they rated, shape (n,).
        judged: the judge's rating of the same answers, shape (n,).
        judge_only: the judge's ratings of all other answers, shape (N,).
    """
    n, n_other = len(human), len(judge_only)
    if n < 2:
        return None
    weight = _weight(human, judged, judge_only)
    rest = human - weight * judged
    value = float(rest.mean())
    variance = float(rest.var(ddof=1)) / n
    if weight:
        value += weight * float(judge_only.mean())
        variance += weight**2 * float(judge_only.var(ddof=1)) / n_other
    half = NORMAL_95 * math.sqrt(variance)
    return CorrectedMean(
        value=value,
        low=value - half,
        high=value + half,
        weight=weight,
        n_human=n,
        n_judge_only=n_other,
    )


def _weight(human: Floats, judged: Floats, judge_only: Floats) -> float:
    """The weight that makes the variance least; 0 when the judge says nothing."""
    if len(judge_only) < 2:
        return 0.0
    spread = float(np.concatenate([judged, judge_only]).var(ddof=1))
    if spread == 0:
        return 0.0
    shared = float(np.cov(human, judged, ddof=1)[0, 1])
    return min(1.0, max(0.0, shared / ((1 + len(human) / len(judge_only)) * spread)))
