"""Raters who may not have read: the same point throughout, no time taken, repeats that disagree.

    check_raters(folder, marks, practice)[0].is_flagged

Both front ends give the same checks, except for the time, which only the form measures. A flag is a
reason to ask the rater, never to drop ratings: nothing is left out here. All p-values of a study
are corrected together (Holm), so that a study of sound raters shows a flag in 5 % or less.

- `same_point`: one point on all items of a criterion. The p-value is the probability of that under
  the other raters' ratings of the same items, for raters whose strictness varies by `STRICTNESS`.
- `same_run`: the longest run of items with the same ratings on all criteria, against the same
  ratings in random orders (`N_ORDERS`): the order of items was random.
- `unrelated`: how far ratings lie from the other raters' of the same items, by what the same
  ratings in random order would give, against the other raters' mean and spread.
- `repeats`: how far second ratings lie from first ones, by what chance would give, and `practice`:
  how far the ratings of practice items lie from the other raters', each against the other raters'
  mean and spread.
- `too_fast`: more than half of the items took less time than anybody needs to read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from cbtqa.ratings.answers import Rating
from cbtqa.ratings.results import Check, RaterCheck
from cbtqa.ratings.study import StudyFolder
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.intervals import t_tail
from cbtqa.statistics.resampling import DEFAULT_SEED, holm

LEVEL = 0.05
STRICTNESS = 1.5
"""Standard deviation of raters' strictness in logits; assumed, wide."""
N_ORDERS = 2_000
FEWEST_ITEMS = 8
"""Below so many items of a rater, one point throughout or a run says nothing."""
FEWEST_REPEATS = 3
REPEAT_VARIANCE = 0.5
"""Of one repeated item's distance by that of chance; by simulation, on the safe side."""
FEWEST_TIMED = 5
FASTEST_READING = 15.0
"""Chinese characters or Latin words a second that nobody reads; silent reading is 4 to 6 (Brysbaert
2019), skimming twice that."""
_UNITS = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")


def check_raters(folder: StudyFolder, ratings: Sequence[Rating]) -> list[RaterCheck]:
    """Every check of every rater that the ratings allow, with p-values corrected together."""
    raters = folder.study.raters
    main = [one for one in ratings if one.phase == "main" and one.value is not None]
    first = [one for one in main if one.repeat == 0]
    practice = [one for one in ratings if one.phase == "calibration" and one.value is not None]
    found = [
        *_same_point(first, raters),
        *_same_run(first, raters),
        *_outlying("unrelated", _distances_from_others(first), raters),
        *_outlying("repeats", _repeat_distances(main), raters),
        *_outlying("practice", _practice_distances(practice), raters),
    ]
    adjusted = holm([one.p for one in found if one.p is not None])
    corrected = [
        one.model_copy(update={"p_holm": p, "is_flagged": p < LEVEL})
        for one, p in zip(found, adjusted, strict=True)
    ]
    return corrected + _too_fast(folder, first, raters)


def _same_point(first: Iterable[Rating], raters: Sequence[str]) -> list[RaterCheck]:
    by_criterion: dict[str, list[Rating]] = {}
    for one in first:
        by_criterion.setdefault(one.criterion, []).append(one)
    found = []
    for criterion, ratings in by_criterion.items():
        for rater in raters:
            own = {one.item_id: one.value for one in ratings if one.rater == rater}
            others = [one for one in ratings if one.rater != rater and one.item_id in own]
            if len(own) < FEWEST_ITEMS or not others:
                continue
            point, n = max(
                ((value, list(own.values()).count(value)) for value in set(own.values())),
                key=lambda pair: pair[1],
            )
            share = sum(one.value == point for one in others) / len(others)
            p = _probability_of_one_point(own, others, point) if n == len(own) else 1.0
            found.append(
                RaterCheck(
                    rater=rater,
                    check="same_point",
                    criterion=criterion,
                    n=len(own),
                    found=n / len(own),
                    expected=share,
                    p=p,
                )
            )
    return found


def _probability_of_one_point(
    own: Mapping[str, int | None], others: Sequence[Rating], point: int | None
) -> float:
    """That a rater of unknown strictness gives this point to all items, as others see them."""
    overall = (sum(one.value == point for one in others) + 0.5) / (len(others) + 1)
    hits = dict.fromkeys(own, 0)
    seen = dict.fromkeys(own, 0)
    for one in others:
        hits[one.item_id] += one.value == point
        seen[one.item_id] += 1
    shares = np.array([(hits[item] + overall) / (seen[item] + 1) for item in own])
    logits = np.log(shares / (1 - shares))
    strictness = np.linspace(-5, 5, 201)
    weight = np.exp(-(strictness**2) / 2)
    odds = logits + STRICTNESS * strictness[:, None]
    every = np.exp(-np.logaddexp(0, -odds).sum(axis=1))
    return float(weight @ every / weight.sum())


def _same_run(first: Iterable[Rating], raters: Sequence[str]) -> list[RaterCheck]:
    found = []
    rows: dict[str, dict[int, dict[str, int | None]]] = {}
    for one in first:
        rows.setdefault(one.rater, {}).setdefault(one.order, {})[one.criterion] = one.value
    for rater in (one for one in raters if len(rows.get(one, ())) >= FEWEST_ITEMS):
        answers = [tuple(sorted(row.items())) for _, row in sorted(rows[rater].items())]
        number = {answer: place for place, answer in enumerate(dict.fromkeys(answers))}
        codes = np.array([number[answer] for answer in answers])
        longest = max(sum(1 for _ in run) for _, run in groupby(codes.tolist()))
        orders = np.tile(codes, (N_ORDERS, 1))
        under_chance = _longest_runs(np.random.default_rng(DEFAULT_SEED).permuted(orders, axis=1))
        found.append(
            RaterCheck(
                rater=rater,
                check="same_run",
                n=len(codes),
                found=longest,
                expected=float(under_chance.mean()),
                p=(1 + int((under_chance >= longest).sum())) / (1 + N_ORDERS),
            )
        )
    return found


def _longest_runs(codes: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Floats:
    """The longest run of equal codes in each row."""
    length = np.ones(len(codes))
    longest = length.copy()
    for before, after in zip(codes.T, codes.T[1:], strict=False):
        length = np.where(before == after, length + 1, 1)
        longest = np.maximum(longest, length)
    return longest


class _Measured(NamedTuple):
    value: float
    n: int
    """Items."""
    variance: float
    """Of the value, from the sampling of items."""


def _repeat_distances(main: Iterable[Rating]) -> dict[str, _Measured]:
    """Of each rater: mean distance of both ratings of an item, by that of random pairs of items.

    0 is a rater who repeats every rating, 1 one whose second ratings have nothing to do with the
    first. By itself the distance would accuse whoever uses the scale where others stay at its end.
    """
    both: dict[tuple[str, str, str], dict[int, Rating]] = {}
    for one in main:
        both.setdefault((one.rater, one.criterion, one.item_id), {})[one.repeat] = one
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    n_items: dict[str, set[str]] = {}
    for (rater, criterion, item), pair in both.items():
        if {0, 1} <= pair.keys():
            span = pair[0].high - pair[0].low
            given = float(pair[0].value or 0) / span, float(pair[1].value or 0) / span
            pairs.setdefault(rater, {}).setdefault(criterion, []).append(given)
            n_items.setdefault(rater, set()).add(item)
    return _by_chance(pairs, {rater: len(items) for rater, items in n_items.items()})


def _by_chance(
    pairs: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], n_items: Mapping[str, int]
) -> dict[str, _Measured]:
    """Mean distance of pairs by that of random pairs, over the criteria of each rater."""
    found = {}
    for rater, own in pairs.items():
        tables = [np.array(given) for given in own.values()]
        observed = sum(float(np.abs(table[:, 1] - table[:, 0]).mean()) for table in tables)
        chance = sum(
            float(np.abs(np.subtract.outer(table[:, 1], table[:, 0])).mean()) for table in tables
        )
        n = n_items[rater]
        if n >= FEWEST_REPEATS and chance > 0:
            found[rater] = _Measured(observed / chance, n, REPEAT_VARIANCE / n)
    return found


def _distances_from_others(first: Iterable[Rating]) -> dict[str, _Measured]:
    """Of each rater: mean distance from the others' mean of an item, by that of random items."""
    shared: dict[tuple[str, str], list[Rating]] = {}
    for one in first:
        shared.setdefault((one.criterion, one.item_id), []).append(one)
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    n_items: dict[str, set[str]] = {}
    for (criterion, item), ratings in shared.items():
        total = sum(float(one.value or 0) for one in ratings)
        for one in ratings if len(ratings) > 1 else ():
            value, span = float(one.value or 0), one.high - one.low
            pair = value / span, (total - value) / (len(ratings) - 1) / span
            pairs.setdefault(one.rater, {}).setdefault(criterion, []).append(pair)
            n_items.setdefault(one.rater, set()).add(item)
    kept = {rater: len(own) for rater, own in n_items.items() if len(own) >= FEWEST_ITEMS}
    return _by_chance({rater: pairs[rater] for rater in kept}, kept)


def _practice_distances(practice: Iterable[Rating]) -> dict[str, _Measured]:
    """Of each rater: mean distance from the other raters' mean, in shares of the scale."""
    shared: dict[tuple[str, str], list[Rating]] = {}
    for one in practice:
        shared.setdefault((one.item_id, one.criterion), []).append(one)
    items: dict[str, dict[str, list[float]]] = {}
    for (item, _), ratings in shared.items():
        total = sum(float(one.value or 0) for one in ratings)
        for one in ratings if len(ratings) > 1 else ():
            others = (total - float(one.value or 0)) / (len(ratings) - 1)
            distance = abs(float(one.value or 0) - others) / (one.high - one.low)
            items.setdefault(one.rater, {}).setdefault(item, []).append(distance)
    found = {}
    for rater, own in items.items():
        distances = [float(np.mean(one)) for one in own.values()]
        if len(distances) >= FEWEST_REPEATS:
            # an item at half the scale is added: a few that all agree do not show certainty
            variance = (float(np.var(distances)) * len(distances) + 0.25) / len(distances)
            found[rater] = _Measured(
                float(np.mean(distances)), len(distances), variance / len(distances)
            )
    return found


def _outlying(
    check: Check, measured: Mapping[str, _Measured], raters: Sequence[str]
) -> list[RaterCheck]:
    """One-sided t of each rater against the others, three raters or more.

    The standard error is that of the spread between the other raters (their number less one is the
    degrees of freedom) or, where larger, of the sampling of items.
    """
    kept = [name for name in raters if name in measured]
    found = []
    for rater in kept if len(kept) > 2 else ():
        own, others = measured[rater], [measured[name] for name in kept if name != rater]
        values = np.array([one.value for one in others])
        between = float(values.var(ddof=1)) * (1 + 1 / len(others))
        sampling = own.variance + sum(one.variance for one in others) / len(others) ** 2
        t = (own.value - float(values.mean())) / math.sqrt(max(between, sampling))
        df = len(others) - 1 if between > sampling else math.inf
        p = t_tail(t, df) / 2
        found.append(
            RaterCheck(
                rater=rater,
                check=check,
                n=own.n,
                found=own.value,
                expected=float(values.mean()),
                p=p if t > 0 else 1 - p,
            )
        )
    return found


def _too_fast(
    folder: StudyFolder, first: Iterable[Rating], raters: Sequence[str]
) -> list[RaterCheck]:
    """Of the text that was rated alone: the question may be known from another answer to it."""
    seconds: dict[str, dict[str, float]] = {}
    for one in first:
        if one.seconds:
            seconds.setdefault(one.rater, {})[one.item_id] = one.seconds
    found = []
    for rater in (one for one in raters if len(seconds.get(one, ())) >= FEWEST_TIMED):
        least = {name: _reading_s(folder, name) for name in seconds[rater]}
        n_fast = sum(taken < least[name] for name, taken in seconds[rater].items())
        share = n_fast / len(least)
        found.append(
            RaterCheck(
                rater=rater,
                check="too_fast",
                n=len(least),
                found=float(np.median(list(seconds[rater].values()))),
                expected=float(np.median(list(least.values()))),
                is_flagged=share > 0.5,
            )
        )
    return found


def _reading_s(folder: StudyFolder, item_id: str) -> float:
    """Seconds in which nobody reads the text that is rated."""
    item = folder.items[item_id]
    text = item.answer or "\n".join(turn.text for turn in item.turns) or item.description
    return len(_UNITS.findall(text)) / FASTEST_READING
