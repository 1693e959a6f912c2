"""How raters agree and behave: coefficients per criterion, repeats, strictness, drift, labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from cbtqa.ratings.answers import Rating
from cbtqa.ratings.results import (
    CriterionAgreement,
    Disagreement,
    OrderEffect,
    PairAgreement,
    RaterEffect,
    RepeatAgreement,
)
from cbtqa.ratings.rubric import Rubric
from cbtqa.ratings.scores import Mark, Scale
from cbtqa.statistics.agreement import (
    Coefficient,
    Floats,
    Weights,
    agreement_share,
    cohen_kappa,
    krippendorff_alpha,
)
from cbtqa.statistics.intraclass import intraclass_correlation
from cbtqa.statistics.tests_of_arms import spearman_rho

N_RESAMPLES = 1_000


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


def agree(scale: Scale, marks: Sequence[Mark], raters: Sequence[str]) -> CriterionAgreement:
    table = table_of(marks, raters)
    coefficients = [krippendorff_alpha(table, scale.level, n_resamples=N_RESAMPLES)]
    if scale.level == "ordinal":
        coefficients += [krippendorff_alpha(table, level) for level in ("nominal", "interval")]
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


def _shares(scale: Scale, table: Floats) -> list[Coefficient]:
    shares = [agreement_share(table)]
    if len(scale.points) > 2:
        shares.append(agreement_share(table, 1))
    return shares


def repeat_agreement(scale: Scale, marks: Sequence[Mark]) -> RepeatAgreement:
    """First against second showing, all raters pooled."""
    both: dict[tuple[str, str], dict[int, float | None]] = {}
    for mark in marks:
        own = both.setdefault((mark.rating.rater, mark.rating.item_id), {})
        own[mark.rating.repeat] = mark.value
    pairs = [(own[0], own[1]) for own in both.values() if {0, 1} <= own.keys()]
    table = np.array(pairs, float).reshape(-1, 2).T
    coefficients = [*_shares(scale, table), krippendorff_alpha(table, scale.level)]
    if scale.points:
        coefficients.append(_kappa(scale, *table))
    return RepeatAgreement(criterion=scale.id, coefficients=tuple(coefficients))


def rater_effects(scale: Scale, marks: Sequence[Mark], raters: Sequence[str]) -> list[RaterEffect]:
    table = table_of(marks, raters)
    effects = []
    for place, rater in enumerate(raters):
        own = table[place]
        others = np.delete(table, place, axis=0)
        n_others = (~np.isnan(others)).sum(axis=0)
        both = ~np.isnan(own) & (n_others > 0)
        mean_of_others = np.nansum(others[:, both], axis=0) / n_others[both]
        mine = [mark for mark in marks if mark.rating.rater == rater]
        seconds = [m.rating.seconds for m in mine if m.value is not None and m.rating.seconds]
        rated = own[~np.isnan(own)]
        effects.append(
            RaterEffect(
                rater=rater,
                criterion=scale.id,
                n=len(rated),
                mean=float(rated.mean()) if len(rated) else None,
                severity=float((own[both] - mean_of_others).mean()) if both.any() else None,
                repeats=sum(mark.rating.repeat == 1 for mark in mine),
                seconds_median=float(np.median(seconds)) if seconds else None,
            )
        )
    return effects


def order_effect(scale: Scale, marks: Sequence[Mark], raters: Sequence[str]) -> OrderEffect:
    """Correlation of place in the list with the deviation from the other raters' mean."""
    table = table_of(marks, raters)
    items, sums, counts = item_ids(marks), np.nansum(table, axis=0), (~np.isnan(table)).sum(axis=0)
    places, deviations = [], []
    for mark in marks:
        item = items[mark.rating.item_id]
        if mark.value is not None and mark.rating.repeat == 0 and counts[item] > 1:
            others = (sums[item] - mark.value) / (counts[item] - 1)
            places.append(float(mark.rating.order))
            deviations.append(round(float(mark.value - others), 9))
    return OrderEffect(criterion=scale.id, rho=spearman_rho(places, deviations))


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
