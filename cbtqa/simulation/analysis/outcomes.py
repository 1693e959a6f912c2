"""One total over all arms: means, mixed model, contrasts, and the same with length held equal.

analyse_outcome(rows, instrument, instrument.headline, arms, settings)
regress(rows, "total", ("model", "variant", "z(session)"), {"model": "llama"}, "ml")
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from cbtqa.simulation.analysis.scores import Scores, mean_of
from cbtqa.simulation.analysis.settings import ModelSettings, split_names
from cbtqa.simulation.instruments import Instrument
from cbtqa.simulation.lint import EARLY_STOPS
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.mixed_model import (
    Method,
    MixedFit,
    Wald,
    bootstrap_icc,
    cohen_f,
    combine,
    explained_variance,
    fit_mixed,
    pairwise,
    wald,
)

INTERCEPT = "intercept"
LENGTH = "words"
Z_LENGTH = f"z({LENGTH})"
_STANDARDISED = re.compile(r"^z\((\w+)\)$")


def analyse_outcome(
    rows: Scores, instrument: Instrument, total: Total, arms: Sequence[str], settings: ModelSettings
) -> OutcomeResult:
    """Everything about one total; without a model, where none can be fitted, and why."""
    scored = [row for row in rows if row.total(total.id) is not None]
    low, high = instrument.rubric.range_of(total)
    values = [_values([row for row in scored if row.arm == arm], total.id) for arm in arms]
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
        cohen_f=cohen_f(values),
    )
    present = [arm for arm in arms if any(row.arm == arm for row in scored)]
    model = _ArmModel(total.id, present, settings.method)
    try:
        fit, x = model.fit(scored)
    except ValueError as error:
        return result.model_copy(update={"no_fit_reason": str(error)})
    means = {arm: combine(fit, line, arm) for arm, line in zip(present, model.lines, strict=True)}
    interval: tuple[float | None, float | None] = (None, None)
    if settings.bootstrap:
        interval = (
            bootstrap_icc(
                _values(scored, total.id),
                x,
                [row.patient for row in scored],
                method=settings.method,
                n_trials=settings.bootstrap,
                seed=settings.seed,
            )
            or interval
        )
    shown = (
        one.model_copy(update={"low": means[one.arm].low, "high": means[one.arm].high})
        if one.arm in means
        else one
        for one in result.arms
    )
    found = {
        "arms": tuple(shown),
        "fit": fit,
        "omnibus": model.test(fit),
        "contrasts": tuple(pairwise(fit, model.lines, present)),
        "explained": explained_variance(fit, x),
        "icc": fit.icc,
        "icc_low": interval[0],
        "icc_high": interval[1],
        "adjusted": _adjusted(scored, model),
        "whole_only": _without_early(scored, model),
    }
    return result.model_copy(update=found)


def _values(rows: Scores, total: str) -> Floats:
    return np.array([row.total(total) for row in rows], dtype=np.float64)


def _arm_columns(of_rows: Sequence[str], arms: Sequence[str]) -> Floats:
    """Intercept, and one column for every arm but the first."""
    columns = [np.ones(len(of_rows)), *(np.array(of_rows) == arm for arm in arms[1:])]
    return np.stack(columns, axis=1).astype(np.float64)


@dataclass(frozen=True)
class _ArmModel:
    """The mixed model of one total by arm, patients as groups."""

    total: str
    arms: Sequence[str]
    method: Method

    @property
    def lines(self) -> list[Floats]:
        """The line of x of each arm."""
        return list(_arm_columns(self.arms, self.arms))

    def fit(self, rows: Scores, covariate: Floats | None = None) -> tuple[MixedFit, Floats]:
        """The fit and its x, with the covariate standardised; a ValueError where there is none."""
        x, names = _arm_columns([row.arm for row in rows], self.arms), [INTERCEPT, *self.arms[1:]]
        if covariate is not None:
            x, names = np.column_stack([x, _standardised(covariate)]), [*names, Z_LENGTH]
        patients = [row.patient for row in rows]
        return fit_mixed(_values(rows, self.total), x, names, patients, method=self.method), x

    def test(self, fit: MixedFit, *title: str) -> Wald | None:
        """The omnibus test of the arms; None with a single one."""
        return wald(fit, self.arms[1:], *title) if len(self.arms) > 1 else None


def _arm_result(arm: str, rows: Scores, total: Total) -> ArmResult:
    own = [row.total(total.id) for row in rows if row.arm == arm]
    values = np.array([value for value in own if value is not None])
    return ArmResult(
        arm=arm,
        n=len(values),
        n_missing=len(own) - len(values),
        mean=float(values.mean()) if len(values) else None,
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        n_competent=None if total.cutoff is None else int((values >= total.cutoff).sum()),
    )


def _adjusted(rows: Scores, model: _ArmModel) -> Adjusted | None:
    """The model with the length held equal; None where lengths are unknown."""
    words = np.array([row.numbers.get(LENGTH, np.nan) for row in rows])
    if not np.isfinite(words).all() or words.std() == 0:
        return None
    try:
        fit, _ = model.fit(rows, words)
    except ValueError:
        return None
    return Adjusted(
        covariate=Z_LENGTH,
        effect=fit.effect(Z_LENGTH),
        omnibus=model.test(fit, "arms, length held equal"),
        contrasts=tuple(pairwise(fit, [np.append(one, 0.0) for one in model.lines], model.arms)),
    )


def _without_early(rows: Scores, model: _ArmModel) -> Wald | None:
    whole = [row for row in rows if row.stop_reason not in EARLY_STOPS]
    if len(whole) == len(rows) or set(model.arms) != {row.arm for row in whole}:
        return None
    try:
        fit, _ = model.fit(whole)
    except ValueError:
        return None
    return model.test(fit, "arms, without early stops")


def _standardised(values: Floats) -> Floats:
    """Mean 0, standard deviation 1 (by n)."""
    return np.asarray((values - values.mean()) / values.std(), dtype=np.float64)


def regress(rows: Scores, instrument: Instrument, settings: ModelSettings) -> Regression:
    """A mixed model of the headline total by the settings' terms.

    A term is `arm`, a factor's name, a covariate's name, or `z(covariate)` for a standardised one.
    The intercept stands for the reference of a factor: the level named, else the first in
    alphabetical order.

    Raises:
        UsageError: a term or level that the data do not have, or terms that depend on each other.
    """
    total, terms, method = (
        instrument.headline.id,
        split_names(settings.terms),
        settings.terms_method,
    )
    references = dict(map(_reference, settings.reference))
    scored = [row for row in rows if row.total(total) is not None]
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
        fit = fit_mixed(_values(scored, total), x, names, patients, method=method)
    except ValueError as error:
        raise UsageError(f"no model of {' + '.join(terms)}: {error}") from None
    return Regression(
        instrument=instrument.id,
        total=total,
        formula=f"{total} ~ {' + '.join(terms)} + (1 | patient), {method.upper()}",
        fit=fit,
        omnibus=tuple(wald(fit, members, term) for term, members in groups),
    )


def _reference(text: str) -> tuple[str, str]:
    name, separator, level = text.partition("=")
    if not separator or not name or not level:
        raise UsageError(f"--reference {text}: expected FACTOR=LEVEL")
    return name, level


def _columns_of(term: str, rows: Scores, references: Mapping[str, str]) -> list[tuple[str, Floats]]:
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


def cronbach_alpha(instrument: Instrument, rows: Scores) -> float | None:
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
    instrument: Instrument, rows: Scores, arms: Sequence[str]
) -> Iterator[ItemProfile]:
    """Means of every item and area by arm."""
    by_arm = {arm: [row for row in rows if row.arm == arm] for arm in arms}
    for item in instrument.items:
        yield ItemProfile(
            item=item.id,
            name=item.name.to("en"),
            name_zh=item.name.to("zh"),
            is_area=False,
            low=item.low,
            high=item.high,
            means={arm: mean_of(row.values.get(item.id) for row in by_arm[arm]) for arm in arms},
        )
    titles = {section.id: section.title for section in instrument.rubric.sections}
    for area in instrument.areas({}) if len(titles) > 1 else ():
        yield ItemProfile(
            item=area.total,
            name=titles[area.total].to("en"),
            name_zh=titles[area.total].to("zh"),
            is_area=True,
            low=area.low,
            high=area.high,
            means={arm: mean_of(row.total(area.total) for row in by_arm[arm]) for arm in arms},
        )


def item_use(
    instrument: Instrument, rows: Scores, ratings: Sequence[ItemRating] | None
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
