"""How raters agree and behave: coefficients per criterion, repeats, strictness, drift, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from cbtqa.ratings.answers import Rating
from cbtqa.ratings.results import (
    CriterionAgreement,
    Disagreement,
    OrderEffect,
    PairAgreement,
    RaterEffect,
    RaterRepeats,
    RepeatAgreement,
)
from cbtqa.ratings.rubric import Rubric
from cbtqa.ratings.scores import Mark, Scale
from cbtqa.statistics.agreement import (
    NOTHING_TO_COMPARE,
    Coefficient,
    Floats,
    Level,
    Weights,
    agreement_share,
    alpha_within,
    cohen_kappa,
    krippendorff_alpha,
    undefined,
)
from cbtqa.statistics.intervals import mean_interval, share_interval
from cbtqa.statistics.intraclass import intraclass_correlation
from cbtqa.statistics.tests_of_arms import spearman_rho

LEVELS_BESIDE: tuple[Level, ...] = ("nominal", "interval")
"""Of alpha, beside the ordinal one."""


def table_of(marks: Sequence[Mark], raters: Sequence[str]) -> Floats:
    """First showings as `(raters, items)`, NaN where a rater has no rating."""
    items = item_ids(marks)
    table = np.full((len(raters), len(items)), np.nan)
    for mark in marks:
        if mark.value is not None and mark.rating.repeat == 0:
            place = raters.index(mark.rating.rater), items[mark.rating.item_id]
            table[place] = mark.value
    return table


def item_ids(marks: Sequence[Mark]) -> dict[str, int]:
    """Each item's column of `table_of`."""
    return {
        name: place for place, name in enumerate(dict.fromkeys(m.rating.item_id for m in marks))
    }


def questions_of(marks: Sequence[Mark]) -> list[str]:
    """The question of each column of `table_of`."""
    return list({mark.rating.item_id: mark.rating.question_id for mark in marks}.values())


def study_alpha(
    scale: Scale, marks: Sequence[Mark], raters: Sequence[str], level: Level | None = None
) -> Coefficient:
    """Krippendorff's alpha of first showings; questions are random, and raters from three on."""
    own = [mark for mark in marks if mark.rating.repeat == 0]
    table = table_of(own, raters)
    return krippendorff_alpha(table, level or scale.level, clusters=questions_of(own))


def agree(scale: Scale, marks: Sequence[Mark], raters: Sequence[str]) -> CriterionAgreement:
    table = table_of(marks, raters)
    coefficients = [study_alpha(scale, marks, raters)]
    if scale.level == "ordinal":
        coefficients += [study_alpha(scale, marks, raters, level) for level in LEVELS_BESIDE]
    if scale.level != "nominal":
        coefficients += _icc(table)
    coefficients += _shares(scale, table)
    rows = zip(raters, table, strict=True) if scale.points else ()
    pairs = tuple(
        PairAgreement(first=first, second=second, kappa=_kappa(scale, one, other))
        for (first, one), (second, other) in combinations(rows, 2)
    )
    return CriterionAgreement(criterion=scale.id, coefficients=tuple(coefficients), pairs=pairs)


def _kappa(scale: Scale, one: Floats, other: Floats) -> Coefficient:
    weights: Weights = "none" if scale.level == "nominal" else "quadratic"
    return cohen_kappa(one, other, scale.points, weights)


def _icc(table: Floats) -> list[Coefficient]:
    """Two-way ICC of a full table; one-way as well where equally many raters share each item."""
    found = [intraclass_correlation(table, "A", of_mean=mean) for mean in (False, True)]
    per_item = (~np.isnan(table)).sum(axis=0)
    rated = table[:, per_item > 0]
    sizes = set(per_item[per_item > 0].tolist())
    if found[0].value is None and len(sizes) == 1 and 1 < min(sizes) < len(table):
        packed = np.array([column[~np.isnan(column)] for column in rated.T]).T
        found += [intraclass_correlation(packed, "1", of_mean=mean) for mean in (False, True)]
    return found


def _tolerances(scale: Scale) -> tuple[int, ...]:
    return (0, 1) if len(scale.points) > 2 else (0,)


def _shares(scale: Scale, table: Floats) -> list[Coefficient]:
    return [agreement_share(table, tolerance) for tolerance in _tolerances(scale)]


def repeat_agreement(scale: Scale, marks: Sequence[Mark], raters: Sequence[str]) -> RepeatAgreement:
    """First against second showing, within each rater."""
    items, questions = item_ids(marks), questions_of(marks)
    both = np.full((2, len(raters), len(items)), np.nan)
    for mark in marks:
        if mark.value is not None and mark.rating.repeat < 2:
            place = mark.rating.repeat, raters.index(mark.rating.rater)
            both[(*place, items[mark.rating.item_id])] = mark.value
    is_twice = ~np.isnan(both).any(axis=0)
    pairs = {
        rater: [(float(a), float(b)) for a, b in both[:, place, is_twice[place]].T]
        for place, rater in enumerate(raters)
        if is_twice[place].any()
    }
    shares = [_share_within(pairs, tolerance) for tolerance in _tolerances(scale)]
    alpha = alpha_within(list(both), scale.level, clusters=questions) if pairs else None
    return RepeatAgreement(
        criterion=scale.id,
        coefficients=(*shares, alpha) if alpha else tuple(shares),
        by_rater=tuple(
            RaterRepeats(rater=rater, coefficients=tuple(_of_repeats(scale, np.array(own).T)))
            for rater, own in pairs.items()
        ),
    )


def _of_repeats(scale: Scale, table: Floats) -> list[Coefficient]:
    return [*_shares(scale, table), krippendorff_alpha(table, scale.level)]


def _share_within(
    pairs: Mapping[str, Sequence[tuple[float, float]]], tolerance: int
) -> Coefficient:
    """Share of repeated items on which a rater comes within `tolerance`; raters are random."""
    name = "exact_agreement" if tolerance == 0 else f"within_{tolerance}"
    hits = [(abs(b - a) <= tolerance, rater) for rater, own in pairs.items() for a, b in own]
    if not hits:
        return undefined(name, "no item was rated twice by the same rater")
    shares = [float(hit) for hit, _ in hits]
    if len(pairs) > 1:
        found = mean_interval(shares, scale=(0, 1), clusters=[rater for _, rater in hits])
    else:
        found = share_interval(round(sum(shares)), len(shares))
    return Coefficient(
        name=name,
        value=float(np.mean(shares)),
        low=found.low,
        high=found.high,
        n_items=len(shares),
        n_ratings=2 * len(shares),
    )


def rater_effects(scale: Scale, marks: Sequence[Mark], raters: Sequence[str]) -> list[RaterEffect]:
    table, questions = table_of(marks, raters), questions_of(marks)
    effects = []
    for place, rater in enumerate(raters):
        own = table[place]
        others = np.delete(table, place, axis=0)
        n_others = (~np.isnan(others)).sum(axis=0)
        both = ~np.isnan(own) & (n_others > 0)
        severity = own[both] - np.nansum(others[:, both], axis=0) / n_others[both]
        drawn = [name for name, is_both in zip(questions, both, strict=True) if is_both]
        found = mean_interval(severity, clusters=drawn)
        mine = [mark for mark in marks if mark.rating.rater == rater]
        seconds = [m.rating.seconds for m in mine if m.value is not None and m.rating.seconds]
        rated = own[~np.isnan(own)]
        effects.append(
            RaterEffect(
                rater=rater,
                criterion=scale.id,
                n=len(rated),
                mean=float(rated.mean()) if len(rated) else None,
                severity=float(severity.mean()) if both.any() else None,
                severity_low=found.low,
                severity_high=found.high,
                repeats=sum(mark.rating.repeat == 1 for mark in mine),
                seconds_median=float(np.median(seconds)) if seconds else None,
            )
        )
    return effects


def order_effect(scale: Scale, marks: Sequence[Mark], raters: Sequence[str]) -> OrderEffect:
    """Mean over raters of the correlation of place in the list with the deviation from others."""
    table = table_of(marks, raters)
    items, sums, counts = item_ids(marks), np.nansum(table, axis=0), (~np.isnan(table)).sum(axis=0)
    own: dict[str, list[tuple[float, float]]] = {}
    for mark in marks:
        item = items[mark.rating.item_id]
        if mark.value is not None and mark.rating.repeat == 0 and counts[item] > 1:
            others = (sums[item] - mark.value) / (counts[item] - 1)
            deviation = round(float(mark.value - others), 9)
            own.setdefault(mark.rating.rater, []).append((float(mark.rating.order), deviation))
    found = [spearman_rho(*zip(*pairs, strict=True)) for pairs in own.values()]
    rhos = [one.value for one in found if one.value is not None]
    name, n = "spearman_within", sum(map(len, own.values()))
    if not rhos:
        reason = found[0].reason if found else NOTHING_TO_COMPARE
        return OrderEffect(criterion=scale.id, rho=undefined(name, reason or "", n))
    ends = mean_interval(rhos)
    low = None if ends.low is None else max(-1.0, ends.low)
    high = None if ends.high is None else min(1.0, ends.high)
    mean = float(np.mean(rhos))
    rho = Coefficient(name=name, value=mean, low=low, high=high, n_items=len(items), n_ratings=n)
    return OrderEffect(criterion=scale.id, rho=rho)


def disagreements(rubric: Rubric, ratings: Sequence[Rating]) -> list[Disagreement]:
    """Marks on which raters of the same item differ, items with most disagreement first."""
    marks = {mark.id for mark in rubric.marks}
    votes: dict[tuple[str, str, str], dict[str, Rating]] = {}
    for rating in ratings:
        is_first = rating.repeat == 0 and rating.phase == "main"
        if rating.criterion in marks and is_first and rating.value is not None:
            key = (rating.item_id, rating.question_id, rating.criterion)
            votes.setdefault(key, {})[rating.rater] = rating
    found = []
    for (item, question, criterion), own in votes.items():
        yes = tuple(rater for rater, rating in own.items() if rating.value == 1)
        no = tuple(rater for rater, rating in own.items() if rating.value == 0)
        if yes and no:
            quoted = {rater: own[rater].evidence or "" for rater in yes}
            found.append(
                Disagreement(
                    item_id=item,
                    question_id=question,
                    criterion=criterion,
                    yes=yes,
                    no=no,
                    evidence={rater: text for rater, text in quoted.items() if text},
                )
            )
    return sorted(found, key=lambda d: (-min(len(d.yes), len(d.no)), d.item_id, d.criterion))
