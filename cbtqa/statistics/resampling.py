"""Intervals and paired tests for scores computed from sums of additive statistics.

A system is a matrix, one row an item (or a cluster of items), whose column sums determine its
score: a resampled system is a product of draw counts and that matrix. The draws are those of
sacrebleu for the same seed.

    low, high = percentile_interval(score_of(bootstrap_sums(statistics, seed=12345)))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PConvention = Literal["ties", "sacrebleu"]
"""`ties`: the share of trials at least as far from no difference as the systems are. `sacrebleu`:
as sacrebleu 2.6.0 prints it, ties left out, which makes any difference significant where few items
differ."""
DEFAULT_SEED = 12345  # Source: sacrebleu's SACREBLEU_SEED
BOOTSTRAP_TRIALS = 1_000  # Source: sacrebleu, after Koehn, EMNLP 2004
RANDOMISATION_TRIALS = 10_000  # Source: sacrebleu, after Riezler and Maxwell, 2005
FEWEST_SCORED = 10
"""Below this many scored items there is no percentile interval and no bootstrap test."""
FEWEST_SWAPPED = 6
"""Items from which randomisation can reach p = .05: on five, two swaps in 32 are as far apart."""
FEWEST_DEFINED = 0.95
"""Share of the resamples in which a score must be defined for an interval or a test."""
FEW_ITEMS = 30
"""Below this many items, intervals and p-values say little; callers warn."""
FEWEST_FOR_BOOTSTRAP = 100
"""Items from which `bootstrap_p` is near its level of 5 %; on 54 it is at 6 %, on 9 at 10 %."""
ROUNDING = 1e-10
"""Two differences closer than this share of the scores are equal; they differ only in rounding."""
CELLS_PER_CHUNK = 1_000_000
"""Random draws held at once: few enough for the third cache, whatever the number of trials."""
EXACT_IN_FLOAT32 = 1 << 24


def sum_by_cluster(statistics: Floats, clusters: Sequence[str]) -> Floats:
    """Rows of the same cluster added up, in the order in which clusters first come.

    With several answers to one question, questions are drawn, not answers: answers to one
    question are not independent. Source: Miller, arXiv 2411.00640.
    """
    number = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    of_row = np.array([number[cluster] for cluster in clusters], np.int64)
    summed = np.zeros((len(number), statistics.shape[1]), np.float64)
    np.add.at(summed, of_row, statistics)
    return summed


def bootstrap_sums(
    statistics: Floats, n_trials: int = BOOTSTRAP_TRIALS, seed: int = DEFAULT_SEED
) -> Floats:
    """Column sums `(n_trials, columns)` of corpora drawn with replacement.

    Args:
        statistics: `(items, columns)`; systems and metrics side by side see the same draws.
    """
    n_items = len(statistics)
    rng = np.random.default_rng(seed)
    sums = np.empty((n_trials, statistics.shape[1]), np.float64)
    for first, last in _chunks(n_trials, n_items):
        drawn = rng.choice(n_items, size=(last - first, n_items), replace=True)
        drawn += np.arange(last - first)[:, None] * n_items
        counts = np.bincount(drawn.ravel(), minlength=(last - first) * n_items)
        sums[first:last] = counts.reshape(last - first, n_items).astype(np.float64) @ statistics
    return sums


def swapped_sums(
    baseline: Floats,
    system: Floats,
    n_trials: int = RANDOMISATION_TRIALS,
    seed: int = DEFAULT_SEED,
) -> tuple[Floats, Floats]:
    """Column sums of both systems after each item's two rows were swapped or not, by coin.

    Both are `(items, columns)`; of the two `(n_trials, columns)` that come back, the first keeps
    the baseline's row on heads.
    """
    n_items = len(baseline)
    rng = np.random.default_rng(seed)
    difference = baseline - system
    # float32 products are twice as fast, and exact while integers and their sums stay small
    is_small = np.abs(difference).sum(0) < EXACT_IN_FLOAT32
    is_exact = is_small & np.all(difference == np.rint(difference), axis=0)
    fast, slow = difference[:, is_exact].astype(np.float32), difference[:, ~is_exact]
    moved = np.empty((n_trials, baseline.shape[1]), np.float64)
    for first, last in _chunks(n_trials, n_items):
        heads = rng.integers(2, size=(last - first, n_items), dtype=np.bool_)
        if fast.size:
            moved[first:last, is_exact] = heads.astype(np.float32) @ fast
        if slow.size:
            moved[first:last, ~is_exact] = heads.astype(np.float64) @ slow
    total = system.sum(0)
    return total + moved, baseline.sum(0) - moved


def _chunks(n_trials: int, n_items: int) -> Iterator[tuple[int, int]]:
    # A multiple of 32 trials: numpy draws coins 32 to a word and drops the rest of the last word
    # of a call, so only whole words keep the stream that one big call would give.
    step = max(32, CELLS_PER_CHUNK // max(n_items, 1) // 32 * 32)
    for first in range(0, n_trials, step):
        yield first, min(first + step, n_trials)


def percentile_interval(scores: Floats) -> tuple[float, float]:
    """The 95 % percentile interval of resampled scores, ends chosen as sacrebleu does."""
    ordered = np.sort(scores)
    cut = len(ordered) // 40
    return float(ordered[cut]), float(ordered[len(ordered) - cut - 1])


class Interval(NamedTuple):
    """The 95 % interval of a score, or why it has none."""

    low: float | None
    high: float | None
    reason: str | None
    """None when there is an interval."""
    n_left_out: int
    """Resamples in which the score is undefined."""


def defined_interval(scores: Floats, n_scored: int) -> Interval:
    """`percentile_interval` of the resamples that have a score, if they can carry one.

    Args:
        scores: NaN where the score of a resample is undefined.
        n_scored: items that the score rests on.
    """
    defined = scores[~np.isnan(scores)]
    n_left_out = len(scores) - len(defined)
    if reason := why_unreliable(n_scored, n_left_out, len(scores)):
        return Interval(None, None, reason, n_left_out)
    return Interval(*percentile_interval(defined), None, n_left_out)


def why_unreliable(
    n_scored: int, n_left_out: int, n_drawn: int, fewest: int = FEWEST_SCORED
) -> str | None:
    """Why resamples can carry neither interval nor test; None when they can."""
    if n_scored < fewest:
        word = "question" if n_scored == 1 else "questions"
        return f"{n_scored} scored {word}, fewer than {fewest}"
    if n_drawn - n_left_out < FEWEST_DEFINED * n_drawn:
        return f"undefined in {n_left_out} of {n_drawn} resamples"
    return None


def bootstrap_p(
    baseline: Floats, system: Floats, observed: float, convention: PConvention = "ties"
) -> float:
    """Two-sided p of the paired bootstrap; too small below `FEWEST_FOR_BOOTSTRAP` items.

    The null is centred on the observed difference; sacrebleu, as Moses, takes absolute differences
    first and centres them on their mean. Two equal scores get 1: sacrebleu would call them
    different at the smallest p there is.

    Args:
        baseline: scores of the resampled baseline, and `system` alike, from the same draws.
        observed: difference of the two scores on the whole corpus, system minus baseline.
    """
    if observed == 0:
        return 1.0
    differences = system - baseline
    if convention == "sacrebleu":
        sizes = np.abs(differences)
        return _share_above(sizes - sizes.mean(), abs(observed))
    return _share_as_far(np.abs(differences - observed), abs(observed), baseline, system)


def randomisation_p(
    first: Floats, second: Floats, observed: float, convention: PConvention = "ties"
) -> float:
    """Two-sided p of approximate randomisation, from the scores of the swapped systems.

    Two equal scores get 1, as in `bootstrap_p`.
    """
    if observed == 0:
        return 1.0
    distances = np.abs(first - second)
    if convention == "sacrebleu":
        return _share_above(distances, abs(observed))
    return _share_as_far(distances, abs(observed), first, second)


def _share_as_far(distances: Floats, observed: float, *scores: Floats) -> float:
    """Share of trials, the data themselves among them, at least as far as observed; never 0.

    Source: Phipson and Smyth, 2010.
    """
    rounding = ROUNDING * max(float(np.abs(side).max()) for side in scores)
    # asked this way round, a trial without a score counts against a difference, not for it
    n_nearer = int(np.sum(distances < observed - rounding))
    return (len(distances) - n_nearer + 1) / (len(distances) + 1)


def _share_above(under_null: Floats, observed: float) -> float:
    """Share of null differences strictly above the observed one; never 0. Source: MultEval."""
    return (int(np.sum(under_null > observed)) + 1) / (len(under_null) + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing them all, in the order given. Source: Holm, 1979."""
    return step_down(p_values, lambda p, n: min(1.0, n * p))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that of all found below a limit at most that share is expected to be
    false, in the order given. Source: Benjamini & Hochberg 1995."""
    adjusted, n = [0.0] * len(p_values), len(p_values)
    running = 1.0
    order = sorted(range(n), key=p_values.__getitem__, reverse=True)
    for place, index in enumerate(order):
        running = min(running, p_values[index] * n / (n - place))
        adjusted[index] = running
    return adjusted


def step_down(p_values: Sequence[float], adjust: Callable[[float, int], float]) -> list[float]:
    """Each p adjusted for the number of tests from it on, the least first; never falling."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, adjust(p_values[index], len(p_values) - rank))
        adjusted[index] = running
    return adjusted
