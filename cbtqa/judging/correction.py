"""Means that a judge gave, corrected to what people would give.

    corrected_mean(table, judged, judge_only, (0, 2)).low      # table: (raters, answers)

Random are the answers (or the clusters they belong to) and, from two raters on, the raters; with
one the mean is what this rater would give. Fixed are the judge and its prompt. Only answers drawn
by lot can speak for the rest, which is the caller's to know: `sample_reason`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cbtqa.errors import require
from cbtqa.files import read_json
from cbtqa.manifest import describe_file
from cbtqa.records import Record
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.crossed import CrossedEstimate, crossed_mean
from cbtqa.statistics.intervals import mean_interval, t_quantile
from cbtqa.statistics.resampling import FEW_ITEMS

HumanSample = Literal["random", "chosen"]
"""How the answers that people rated were drawn from those judged."""
Scale = tuple[float, float]
FEWEST_RATED = 5
"""Answers (or clusters of them) rated by people below which there is no corrected mean."""
FEWEST_FOR_WEIGHT = 10
"""Below so many the judge's weight is 1: a weight fitted on fewer flatters its own interval."""
COARSE = 4
"""Steps from end to end up to which few, or equal, differences of two ratings have an interval as
on a short scale; on longer ones such an interval would be some times too wide."""
NEAR_END, FEW_OFF_END = 0.05, 5
"""A mean is near an end of its scale when fewer than `FEW_OFF_END` answers that people rated lie
further from it than this share of the range."""
LEVEL = 0.05
"""Of alarms that are tests: all of one kind together."""
UNKNOWN_SAMPLE = "it is not known how the rated ones were drawn (--human-sample random, if by lot)"
CHOSEN_SAMPLE = "the rated ones were chosen, not drawn by lot, and cannot speak for the rest"


class CorrectedMean(Record):
    """A mean corrected by what people rated."""

    value: float
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    weight: float
    """Of the judge's ratings, 0 to 1: 0 leaves the people's own mean."""
    n_human: int
    n_judge_only: int
    n_raters: int
    """With one, the mean is what this rater would give: how raters differ is not known."""
    is_near_end: bool
    """Nearly all that people rated is at one end of the scale."""
    interval_reason: str | None = None
    """Why there is no interval."""


def sample_of(human: Path, judged: Iterable[Path]) -> HumanSample | None:
    """`random` where a rating study drew from these very files, as `cbtqa rate new` does by lot.

    Known by the study's folder, in which the ratings lie, and the hashes of its inputs; None where
    they tell nothing, as of the folder of a dataset.
    """
    judged = list(judged)
    if not all(one.is_file() for one in judged):
        return None
    study = next((p / "study.json" for p in human.parents[:2] if (p / "study.json").exists()), None)
    if study is None:
        return None
    known = {str(one.get("sha256")) for one in read_json(study).get("inputs", ())}
    return "random" if all(describe_file(one).sha256 in known for one in judged) else None


def sample_reason(sample: HumanSample | None, n_judge_only: int) -> str | None:
    """Why ratings of people cannot correct the rest; None where they can, or nothing is left."""
    if not n_judge_only or sample == "random":
        return None
    return CHOSEN_SAMPLE if sample == "chosen" else UNKNOWN_SAMPLE


def too_few_reason(n: int, what: str) -> str:
    """Why so few answers that people rated do not correct a mean."""
    return f"people rated {n} {what}; {FEWEST_RATED} are the least"


def people_mean(
    table: Floats,
    scale: Scale,
    clusters: Sequence[Hashable] | None = None,
    *,
    less: Floats | float = 0.0,
    weight: float = 1.0,
) -> CrossedEstimate:
    """The mean that people would give: answers (or clusters) and raters are random.

    A strict rater who stopped early moves it by no more than the others say of their severity.

    Args:
        table: `(raters, answers)` with NaN in the gaps.
        scale: of the ratings, people's and judge's.
        less: ratings of the same answers that are taken off first, times `weight`.
        clusters: what each answer belongs to, such as its patient.
    """
    table = np.atleast_2d(table)
    raters, answers = np.nonzero(~np.isnan(table))
    names = range(table.shape[1]) if clusters is None else clusters
    items = [names[place] for place in answers.tolist()]
    low, high = scale
    is_coarse = high - low <= COARSE
    values = (table - weight * less)[raters, answers]
    if np.ndim(less):
        found = crossed_mean(values, items, raters.tolist())
        reach = low - weight * high, high - weight * low
        return _of_few_steps(found, values, (items, raters.tolist()), reach) if is_coarse else found
    return crossed_mean(values, items, raters.tolist(), scale=scale if is_coarse else None)


def _of_few_steps(
    found: CrossedEstimate, values: Floats, drawn: tuple[Sequence[Hashable], ...], scale: Scale
) -> CrossedEstimate:
    """A mean of differences that are few or all alike, no surer than their short scale lets it be.

    Differences lie in the middle of their scale, where the intervals that `crossed_mean` gives to
    ratings near an end would be far too wide.

    Args:
        drawn: answers and raters of the values.
        scale: the least and the greatest difference there can be.
    """
    if found.n_items < 2:
        return found
    low, high = found.low, found.high
    for one in drawn if low is None and found.are_raters_random else drawn[:1]:
        ends = mean_interval(values, scale=scale, clusters=one)
        if ends.low is not None and ends.high is not None:
            low = ends.low if low is None else min(low, ends.low)
            high = ends.high if high is None else max(high, ends.high)
    if low is None or high is None:
        return found
    return found._replace(low=max(low, scale[0]), high=min(high, scale[1]), reason=None)


def means_by_answer(table: Floats) -> Floats:
    """Each answer's mean over its raters, freed of who happened to rate it.

    Plain means where all raters rated all answers; elsewhere a rater's severity, as their shared
    answers tell it, is taken off (least squares, shrunk by one rating each, assumed).
    """
    table = np.atleast_2d(table)
    is_rated = (~np.isnan(table)).astype(np.float64)
    given, n = np.where(is_rated > 0, table, 0.0), is_rated.sum(axis=0)
    means = given.sum(axis=0) / n
    rest = ((given - means) * is_rated).sum(axis=1)
    shared = np.diag(is_rated.sum(axis=1)) - (is_rated / n) @ is_rated.T
    severity = np.linalg.solve(shared + np.eye(len(table)), rest)
    return np.asarray(means - (severity[:, None] * is_rated).sum(axis=0) / n)


def corrected_mean(
    human: Floats,
    judged: Floats,
    judge_only: Floats,
    scale: Scale,
    *,
    clusters: Sequence[Hashable] | None = None,
    other_clusters: Sequence[Hashable] | None = None,
) -> CorrectedMean | None:
    """The mean that people would give to all answers, with its 95 % interval.

    None below `FEWEST_RATED` rated answers (or clusters of them).

    Many ratings of a biased judge only make a wrong mean look certain. The difference between
    people and judge, where people rated a random part, corrects the judge's mean over all, and its
    spread widens the interval, as does that of the raters. The two parts are put together as
    intervals (MOVER), so that each keeps its degrees of freedom and its end of the scale.

    Args:
        human: people's ratings of the answers they rated, `(raters, n)` with NaN in the gaps.
        judged: the judge's rating of the same answers, shape (n,).
        judge_only: the judge's ratings of all other answers, shape (N,).
        clusters, other_clusters: what the answers of `judged` and `judge_only` belong to.

    Source: Angelopoulos et al., Prediction-powered inference, Science 2023; weight of PPI++,
        arXiv 2311.01453, example 6.1. At weight 1 it is the difference estimator of Cassel,
        Sarndal and Wretman, 1976. MOVER: Zou and Donner 2008.
    """
    table = np.atleast_2d(human)
    n, n_other = table.shape[1], len(judge_only)
    names = list(range(n)) if clusters is None else list(clusters)
    others = list(range(n, n + n_other)) if other_clusters is None else list(other_clusters)
    n_clusters = len(set(names))
    if n_clusters < FEWEST_RATED:
        return None
    weight = _weight(means_by_answer(table), judged, judge_only, n_clusters)
    rest = people_mean(table, scale, names, less=judged, weight=weight)
    value, reason = rest.value, rest.reason
    below, above = _reaches(rest.value, rest.low, rest.high)
    if weight:
        middle = float(judge_only.mean())
        value += weight * middle
        own = mean_interval(judge_only, scale=scale, clusters=others)
        reason = reason or own.reason
        parts = [weight * part for part in _reaches(middle, own.low, own.high)]
        gaps = means_by_answer(table) - weight * judged
        shared = max(0.0, 2 * weight * _covariance(gaps, names, judge_only, others))
        more = t_quantile(n_clusters - 1) * math.sqrt(shared)
        below, above = math.hypot(below, parts[0], more), math.hypot(above, parts[1], more)
    value = min(scale[1], max(scale[0], value))
    return CorrectedMean(
        value=value,
        low=None if reason else max(scale[0], value - below),
        high=None if reason else min(scale[1], value + above),
        weight=weight,
        n_human=n,
        n_judge_only=n_other,
        n_raters=len(table),
        is_near_end=_is_near_end(table, scale),
        interval_reason=reason,
    )


def _reaches(value: float, low: float | None, high: float | None) -> tuple[float, float]:
    """How far an interval reaches below and above its value."""
    return (0.0, 0.0) if low is None or high is None else (value - low, high - value)


def _weight(human: Floats, judged: Floats, judge_only: Floats, n_clusters: int) -> float:
    """The weight of the judge's ratings that makes the variance least, 0 to 1."""
    n, n_other = len(judged), len(judge_only)
    spread = float(np.concatenate([judged, judge_only]).var(ddof=1))
    if n_other < 2 or spread <= 0:  # the judge's ratings say nothing
        return 0.0
    if n_clusters < FEWEST_FOR_WEIGHT:
        return 1.0
    shared = float(np.cov(human, judged, ddof=1)[0, 1])
    return min(1.0, max(0.0, shared / ((1 + n / n_other) * spread)))


def _covariance(
    rated: Floats, names: Sequence[Hashable], others: Floats, other_names: Sequence[Hashable]
) -> float:
    """Covariance of two means over clusters, some of which have answers in both."""
    first, second = _sums(rated, names), _sums(others, other_names)
    shared = sum(value * second[name] for name, value in first.items() if name in second)
    return shared / (len(rated) * len(others))


def _sums(values: Floats, names: Sequence[Hashable]) -> dict[Hashable, float]:
    """The deviations from the mean, added up by cluster."""
    found = dict.fromkeys(names, 0.0)
    for name, value in zip(names, (values - values.mean()).tolist(), strict=True):
        found[name] += value
    return found


def _is_near_end(table: Floats, scale: Scale) -> bool:
    means, margin = means_by_answer(table), NEAR_END * (scale[1] - scale[0])
    n_off = min((means < scale[1] - margin).sum(), (means > scale[0] + margin).sum())
    return bool(n_off < FEW_OFF_END)


def is_beyond(
    value: float | None, ends: tuple[float | None, float | None], n: int, limit: float
) -> bool:
    """True when a whole interval lies beyond `limit` on either side of 0.

    Where `FEW_ITEMS` values or more are all alike they have no interval and need none.
    """
    low, high = ends
    if value is not None and low is None and n >= FEW_ITEMS:
        low = high = value
    return low is not None and high is not None and (low > limit or high < -limit)


def selection_p(
    judged: Floats,
    judge_only: Floats,
    clusters: Sequence[Hashable],
    other_clusters: Sequence[Hashable],
) -> float | None:
    """Two-sided p that the judge rates what people rated as it rates the rest (Welch's t).

    Clusters count by their mean, those with answers in both parts not at all. None where there are
    fewer than `FEWEST_RATED` in either part, or nothing varies.
    """
    shared = set(clusters) & set(other_clusters)
    parts = []
    for values, names in ((judged, clusters), (judge_only, other_clusters)):
        own: dict[Hashable, list[float]] = {}
        for name, value in zip(names, values.tolist(), strict=True):
            if name not in shared:
                own.setdefault(name, []).append(value)
        parts.append([float(np.mean(some)) for some in own.values()])
    if min(map(len, parts)) < FEWEST_RATED or any(np.ptp(part) == 0 for part in parts):
        return None
    return float(require("scipy.stats", "rate").ttest_ind(*parts, equal_var=False).pvalue)
