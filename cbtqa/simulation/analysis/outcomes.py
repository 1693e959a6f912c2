"""One total over all arms: means, mixed model, contrasts, and the same with length held equal.

analyse_outcome(rows, instrument, instrument.headline, arms, choices)
regress(rows, "total", ("model", "variant", "z(session)"), {"model": "llama"}, "ml")
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cbtqa.errors import UsageError
from cbtqa.ratings.rubric import Total
from cbtqa.records import ItemRating
from cbtqa.simulation.analysis.results import (
    Adjusted,
    ArmResult,
    ItemProfile,
    ItemUse,
    OutcomeResult,
    Regression,
)
from cbtqa.simulation.analysis.scores import SessionScore
from cbtqa.simulation.audit import EARLY_STOPS
from cbtqa.simulation.instruments import Instrument
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.contrasts import Wald, cohen_f, combine, explained_variance, pairwise, wald
from cbtqa.statistics.mixed_model import Method, MixedFit, bootstrap_icc, fit_mixed

INTERCEPT = "intercept"
LENGTH = "words"
_STANDARDISED = re.compile(r"^z\((\w+)\)$")


@dataclass(frozen=True)
class Choices:
    """How models are fitted."""

    method: Method = "reml"
    n_bootstrap: int = 500
    seed: int = 12345


@dataclass(frozen=True)
class _Data:
    """The rows that have a value, as arrays."""

    y: Floats
    arms: list[str]
    patients: list[str]


def analyse_outcome(
    rows: Sequence[SessionScore],
    instrument: Instrument,
    total: Total,
    arms: Sequence[str],
    choices: Choices,
) -> OutcomeResult:
    """Everything about one total; without a model, where none can be fitted, and why."""
    scored = [row for row in rows if row.total(total.id) is not None]
    data = _data(scored, total.id)
    low, high = instrument.rubric.range_of(total)
    result = OutcomeResult(
        instrument=instrument.id,
        total=total.id,
        name=total.name.to("en"),
        name_zh=total.name.to("zh"),
        low=low,
        high=high,
        n=len(scored),
        cutoff=total.cutoff,
        arms=tuple(_arm_result(arm, rows, total) for arm in arms),
        fit=None,
        cohen_f=cohen_f([data.y[_is(data.arms, arm)] for arm in arms]),
    )
    present = [arm for arm in arms if arm in set(data.arms)]
    try:
        x = _arm_columns(data.arms, present)
        names = (INTERCEPT, *present[1:])
        fit = _fit(data, x, names, choices)
    except ValueError as error:
        return result.model_copy(update={"no_fit_reason": str(error)})
    found = _with_model(result, fit, x, present, data, choices)
    return found.model_copy(
        update={
            "adjusted": _adjusted(scored, data, present, choices),
            "whole_only": _without_early(scored, total.id, present, choices),
        }
    )


def _data(rows: Sequence[SessionScore], total: str) -> _Data:
    values = np.array([row.total(total) for row in rows], dtype=np.float64)
    return _Data(values, [row.arm for row in rows], [row.patient for row in rows])


def _fit(data: _Data, x: Floats, names: Sequence[str], choices: Choices) -> MixedFit:
    return fit_mixed(data.y, x, names, data.patients, method=choices.method)


def _is(arms: Sequence[str], arm: str) -> Floats:
    return np.array([one == arm for one in arms], dtype=bool)


def _arm_columns(of_rows: Sequence[str], arms: Sequence[str]) -> Floats:
    """Intercept, and one column for every arm but the first."""
    columns = [np.ones(len(of_rows)), *(_is(of_rows, arm) for arm in arms[1:])]
    return np.stack(columns, axis=1).astype(np.float64)


def _arm_result(arm: str, rows: Sequence[SessionScore], total: Total) -> ArmResult:
    own = [row.total(total.id) for row in rows if row.arm == arm]
    values = np.array([value for value in own if value is not None])
    competent = None if total.cutoff is None else int((values >= total.cutoff).sum())
    return ArmResult(
        arm=arm,
        n=len(values),
        n_missing=len(own) - len(values),
        mean=float(values.mean()) if len(values) else None,
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        n_competent=competent,
    )


def _with_model(
    result: OutcomeResult,
    fit: MixedFit,
    x: Floats,
    arms: Sequence[str],
    data: _Data,
    choices: Choices,
) -> OutcomeResult:
    lines = list(_arm_columns(arms, arms))
    means = {arm: combine(fit, line, arm) for arm, line in zip(arms, lines, strict=True)}
    interval = None
    if choices.n_bootstrap:
        interval = bootstrap_icc(
            data.y,
            x,
            data.patients,
            method=choices.method,
            n_trials=choices.n_bootstrap,
            seed=choices.seed,
        )
    return result.model_copy(
        update={
            "arms": tuple(
                one.model_copy(update={"low": means[one.arm].low, "high": means[one.arm].high})
                if one.arm in means
                else one
                for one in result.arms
            ),
            "fit": fit,
            "omnibus": wald(fit, arms[1:]) if len(arms) > 1 else None,
            "contrasts": tuple(pairwise(fit, lines, arms)),
            "explained": explained_variance(fit, x),
            "icc": fit.icc,
            "icc_low": interval[0] if interval else None,
            "icc_high": interval[1] if interval else None,
        }
    )


def _adjusted(
    rows: Sequence[SessionScore], data: _Data, arms: Sequence[str], choices: Choices
) -> Adjusted | None:
    """The model with standardised words of the therapist; None where lengths are unknown."""
    words = np.array([row.numbers.get(LENGTH, np.nan) for row in rows])
    if not np.isfinite(words).all() or words.std() == 0:
        return None
    x = np.hstack([_arm_columns(data.arms, arms), _standardised(words)[:, None]])
    names = (INTERCEPT, *arms[1:], f"z({LENGTH})")
    try:
        fit = _fit(data, x, names, choices)
    except ValueError:
        return None
    lines = [np.append(line, 0.0) for line in _arm_columns(arms, arms)]
    return Adjusted(
        covariate=f"z({LENGTH})",
        effect=fit.effect(f"z({LENGTH})"),
        omnibus=wald(fit, arms[1:], "arms, length held equal") if len(arms) > 1 else None,
        contrasts=tuple(pairwise(fit, lines, arms)),
    )


def _without_early(
    rows: Sequence[SessionScore], total: str, arms: Sequence[str], choices: Choices
) -> Wald | None:
    whole = [row for row in rows if row.stop_reason not in EARLY_STOPS]
    if len(whole) == len(rows) or set(arms) != {row.arm for row in whole} or len(arms) < 2:
        return None
    data = _data(whole, total)
    try:
        x = _arm_columns(data.arms, arms)
        names = (INTERCEPT, *arms[1:])
        fit = _fit(data, x, names, choices)
    except ValueError:
        return None
    return wald(fit, arms[1:], "arms, without early stops")


def _standardised(values: Floats) -> Floats:
    """Mean 0, standard deviation 1 (by n)."""
    return np.asarray((values - values.mean()) / values.std(), dtype=np.float64)


# --- a model with terms of one's own -------------------------------------------------------------


def regress(
    rows: Sequence[SessionScore],
    instrument: str,
    total: str,
    terms: Sequence[str],
    references: Mapping[str, str],
    method: Method,
) -> Regression:
    """A mixed model of named terms.

    Args:
        terms: `arm`, a factor's name, a covariate's name, or `z(covariate)` for a standardised
            one.
        references: factor to the level that the intercept stands for; the first in
            alphabetical order otherwise.

    Raises:
        UsageError: a term or level that the data do not have, or terms that depend on each other.
    """
    scored = [row for row in rows if row.total(total) is not None]
    y = np.array([row.total(total) for row in scored], dtype=np.float64)
    columns, names = [np.ones(len(scored))], [INTERCEPT]
    groups: list[tuple[str, list[str]]] = []
    for term in terms:
        added = _columns_of(term, scored, references)
        columns += [column for _, column in added]
        names += [name for name, _ in added]
        if len(added) > 1:
            groups.append((term, [name for name, _ in added]))
    x = np.stack(columns, axis=1)
    patients = [row.patient for row in scored]
    try:
        fit = fit_mixed(y, x, names, patients, method=method)
    except ValueError as error:
        raise UsageError(f"no model of {' + '.join(terms)}: {error}") from None
    return Regression(
        instrument=instrument,
        total=total,
        formula=f"{total} ~ {' + '.join(terms)} + (1 | patient), {method.upper()}",
        fit=fit,
        omnibus=tuple(wald(fit, members, term) for term, members in groups),
    )


def _columns_of(
    term: str, rows: Sequence[SessionScore], references: Mapping[str, str]
) -> list[tuple[str, Floats]]:
    standard = _STANDARDISED.match(term)
    name = standard[1] if standard else term
    if rows and all(name in row.numbers for row in rows):
        values = np.array([row.numbers[name] for row in rows], dtype=np.float64)
        if values.std() == 0:
            raise UsageError(f"'{name}' is the same in every session")
        return [(term, _standardised(values) if standard else values)]
    levels = [row.arm if name == "arm" else row.factors.get(name) for row in rows]
    if standard or any(level is None for level in levels):
        factors = ("arm", *(rows[0].factors if rows else ()))
        numbers = rows[0].numbers if rows else ()
        raise UsageError(
            f"no term '{term}' in these scores",
            hint=f"factors: {', '.join(factors)}; numbers: {', '.join(numbers)}",
        )
    order = sorted(set(map(str, levels)))
    reference = references.get(name, order[0])
    if reference not in order:
        raise UsageError(f"'{name}' has no level '{reference}'", hint=f"levels: {', '.join(order)}")
    return [
        (f"{name}={level}", np.array([one == level for one in levels], dtype=np.float64))
        for level in order
        if level != reference
    ]


# --- items ---------------------------------------------------------------------------------------
# Items of one instrument over a study: profile by arm, use of the scale, homogeneity.


def cronbach_alpha(instrument: Instrument, rows: Sequence[SessionScore]) -> float | None:
    """How far the items of the headline total move together; None when that is undefined."""
    items = [criterion.id for criterion, _ in instrument.rubric.parts_of(instrument.headline)]
    table = [[row.values.get(item) for item in items] for row in rows]
    full = np.array([line for line in table if None not in line], dtype=np.float64)
    if len(full) < 3 or len(items) < 2:
        return None
    whole = full.sum(axis=1).var(ddof=1)
    if whole <= 0:
        return None
    return float(len(items) / (len(items) - 1) * (1 - full.var(axis=0, ddof=1).sum() / whole))


def item_profiles(
    instrument: Instrument, rows: Sequence[SessionScore], arms: Sequence[str]
) -> Iterator[ItemProfile]:
    """Means of every item and area by arm."""
    for item in instrument.items:
        means = {
            arm: _mean(row.values.get(item.id) for row in rows if row.arm == arm) for arm in arms
        }
        yield ItemProfile(
            item=item.id,
            name=item.name.to("en"),
            name_zh=item.name.to("zh"),
            is_area=False,
            low=item.low,
            high=item.high,
            means=means,
        )
    titles = {section.id: section.title for section in instrument.rubric.sections}
    if len(titles) < 2:
        return
    for area in instrument.areas({}):
        means = {
            arm: _mean(row.total(area.total) for row in rows if row.arm == arm) for arm in arms
        }
        yield ItemProfile(
            item=area.total,
            name=titles[area.total].to("en"),
            name_zh=titles[area.total].to("zh"),
            is_area=True,
            low=area.low,
            high=area.high,
            means=means,
        )


def _mean(values: Iterable[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None


def item_use(
    instrument: Instrument, rows: Sequence[SessionScore], ratings: Sequence[ItemRating] | None
) -> Iterator[ItemUse]:
    """How often each point was given.

    Args:
        ratings: single ratings, where they are known; else the rows' values count, each to the
            nearest point.
    """
    counts: dict[str, Counter[int]] = {item.id: Counter() for item in instrument.items}
    unscored: dict[str, Counter[str]] = {item.id: Counter() for item in instrument.items}
    if ratings is not None:
        for one in ratings:
            if one.value is not None:
                counts[one.item][one.value] += 1
            else:
                unscored[one.item][str(one.unscored_reason).partition(":")[0]] += 1
    else:
        for row in rows:
            for name, value in row.values.items():
                if value is not None:
                    counts[name][round(value)] += 1
                else:
                    unscored[name]["missing"] += 1
    for item in instrument.items:
        yield ItemUse(
            item=item.id,
            name=item.name.to("en"),
            counts={point: counts[item.id][point] for point in item.points},
            unscored=dict(unscored[item.id]),
        )
