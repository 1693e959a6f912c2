"""One total over all arms: means, tests, contrasts, the same with length held equal, items.

analyse_outcome(rows, instrument, instrument.headline, arms, settings)
regress(rows, "total", ("model", "variant", "z(session)"), {"model": "llama"}, "ml")
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from cbtqa.errors import UsageError, require
from cbtqa.ratings.rubric import Total
from cbtqa.records import ItemRating
from cbtqa.simulation.analysis.results import (
    Adjusted,
    ArmResult,
    ItemProfile,
    ItemUse,
    MissingTotal,
    OutcomeResult,
    PublishedModel,
    Regression,
    TopShare,
)
from cbtqa.simulation.analysis.scores import Scores, SessionScore, mean_of
from cbtqa.simulation.analysis.settings import ModelSettings, split_names
from cbtqa.simulation.instruments import Instrument
from cbtqa.simulation.lint import EARLY_STOPS
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.clustered import ClusterRobust
from cbtqa.statistics.intervals import CONFIDENCE, mean_interval, share_interval
from cbtqa.statistics.mixed_model import (
    MixedFit,
    bootstrap_icc,
    cohen_f,
    explained_variance,
    fit_mixed,
    holm_sidak,
    pairwise,
    wald,
)
from cbtqa.statistics.resampling import Interval
from cbtqa.statistics.split_plot import (
    FEWEST_PATIENTS,
    ArmComparison,
    ArmContrast,
    FTest,
    compare_arms,
    no_test,
)

INTERCEPT = "intercept"
LENGTH = "words"
Z_LENGTH = f"z({LENGTH})"
MOST_AT_END = 0.25
"""Of the sessions of an arm; beyond it t covers a mean to .92 at most, .86 at two thirds."""
FEWEST_TESTED = 5
"""Patients of every arm below which arms are described and not tested: with three or four, one
patient decides; assumed."""
_STANDARDISED = re.compile(r"^z\((\w+)\)$")


def analyse_outcome(
    rows: Scores, instrument: Instrument, total: Total, arms: Sequence[str], settings: ModelSettings
) -> OutcomeResult:
    """Everything about one total; without a test, where none holds its level, and why."""
    scored = [row for row in rows if row.total(total.id) is not None]
    scale = instrument.rubric.range_of(total)
    present = [arm for arm in arms if any(row.arm == arm for row in scored)]
    model = _ArmModel(total.id, present, settings)
    return OutcomeResult(
        instrument=instrument.id,
        total=total.id,
        name=total.name.to("en"),
        name_zh=total.name.to("zh"),
        low=scale[0],
        high=scale[1],
        n=len(scored),
        cutoff=total.cutoff,
        arms=tuple(_arm_result(arm, rows, total, scale) for arm in arms),
        comparison=model.compare(scored),
        adjusted=_adjusted(scored, model),
        whole_only=_without_early(scored, model),
        published=model.published(scored),
    )


def too_few(rows: Scores) -> str | None:
    """Why these sessions come from too few patients for any p; None where they do not."""
    by_arm: dict[str, set[str]] = {}
    for row in rows:
        by_arm.setdefault(row.arm, set()).add(row.patient)
    n = min(map(len, by_arm.values()), default=0)
    if n >= FEWEST_TESTED:
        return None
    word = "patient" if n == 1 else "patients"
    return f"{n} {word} in an arm, fewer than {FEWEST_TESTED}: described only"


def _values(rows: Scores, total: str) -> Floats:
    return np.array([row.total(total) for row in rows], dtype=np.float64)


def _arm_columns(of_rows: Sequence[str], arms: Sequence[str]) -> Floats:
    """Intercept, and one column for every arm but the first."""
    columns = [np.ones(len(of_rows)), *(np.array(of_rows) == arm for arm in arms[1:])]
    return np.stack(columns, axis=1).astype(np.float64)


@dataclass(frozen=True)
class _ArmModel:
    """One total by arm: on patients and their arms, and as the papers' mixed model."""

    total: str
    arms: Sequence[str]
    settings: ModelSettings

    @property
    def lines(self) -> list[Floats]:
        """The line of x of each arm."""
        return list(_arm_columns(self.arms, self.arms))

    def compare(self, rows: Scores, title: str = "arms") -> ArmComparison:
        patients, arms_of = [row.patient for row in rows], [row.arm for row in rows]
        found = compare_arms(_values(rows, self.total), arms_of, patients, self.arms, title=title)
        reason = too_few(rows)
        if reason is None or len(self.arms) < 2:
            return found
        interaction = no_test(found.interaction.name, reason)
        untested = {"test": no_test(title, reason), "interaction": interaction}
        return found.model_copy(update={**untested, "contrasts": (), "sizes": None})

    def fit(self, rows: Scores, covariate: Floats | None = None) -> tuple[MixedFit, Floats]:
        """The fit and its x, with the covariate standardised; a ValueError where there is none."""
        x, names = _arm_columns([row.arm for row in rows], self.arms), [INTERCEPT, *self.arms[1:]]
        if covariate is not None:
            x, names = np.column_stack([x, _standardised(covariate)]), [*names, Z_LENGTH]
        patients, y = [row.patient for row in rows], _values(rows, self.total)
        return fit_mixed(y, x, names, patients, method=self.settings.method), x

    def published(self, rows: Scores) -> PublishedModel:
        try:
            fit, x = self.fit(rows)
        except ValueError as error:
            return PublishedModel(fit=None, no_fit_reason=str(error))
        interval: tuple[float | None, float | None] | None = None
        if self.settings.bootstrap:
            interval = bootstrap_icc(
                _values(rows, self.total),
                x,
                [row.patient for row in rows],
                method=self.settings.method,
                n_trials=self.settings.bootstrap,
                seed=self.settings.seed,
            )
        low, high = interval or (None, None)
        is_tested = too_few(rows) is None
        omnibus = wald(fit, self.arms[1:]) if len(self.arms) > 1 and is_tested else None
        return PublishedModel(
            fit=fit,
            omnibus=omnibus,
            contrasts=tuple(pairwise(fit, self.lines, self.arms)) if is_tested else (),
            explained=explained_variance(fit, x),
            cohen_f=cohen_f(omnibus, fit.n) if omnibus is not None else None,
            icc=fit.icc,
            icc_low=low,
            icc_high=high,
        )


def _arm_result(arm: str, rows: Scores, total: Total, scale: tuple[float, float]) -> ArmResult:
    own = [row for row in rows if row.arm == arm]
    scored = [row for row in own if row.total(total.id) is not None]
    values, patients = _values(scored, total.id), [row.patient for row in scored]
    interval = _interval(values, patients, scale)
    result = ArmResult(
        arm=arm,
        n=len(values),
        n_missing=len(own) - len(values),
        mean=float(values.mean()) if len(values) else None,
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        mean_least=_mean_bound(own, total.id, "least"),
        mean_most=_mean_bound(own, total.id, "most"),
        low=interval.low,
        high=interval.high,
        reason=interval.reason,
    )
    if total.cutoff is None:
        return result
    is_above = values >= total.cutoff
    share = _interval(is_above.astype(np.float64), patients, (0.0, 1.0))
    found = {"n_competent": int(is_above.sum()), "competent_low": share.low}
    return result.model_copy(update=found | {"competent_high": share.high})


def _mean_bound(rows: Scores, name: str, end: Literal["least", "most"]) -> float | None:
    """The mean of a total over all sessions, its missing items at one end of their scales."""
    totals = [one for row in rows for one in row.totals if one.total == name]
    bounds = [one.least if end == "least" else one.most for one in totals]
    known = [one for one in bounds if one is not None]
    return sum(known) / len(known) if known and len(known) == len(bounds) else None


def _interval(values: Floats, patients: Sequence[str], scale: tuple[float, float]) -> Interval:
    """Of a mean over sessions, or of a share (0 and 1), patients random."""
    n = len(set(patients))
    if n < FEWEST_PATIENTS:
        reason = f"{n} {'patient' if n == 1 else 'patients'}, fewer than {FEWEST_PATIENTS}"
        return Interval(None, None, reason, 0)
    if scale == (0.0, 1.0):
        if n == len(values):
            return share_interval(int(values.sum()), n)
        return mean_interval(values, scale=scale, clusters=patients)
    at_end = max(float((values == end).mean()) for end in scale)
    if at_end > MOST_AT_END:
        reason = f"{at_end:.0%} of the sessions are at the end of the scale"
        return Interval(None, None, reason, 0)
    # a total adds up many items: it is not the rating of few points that a short scale is meant for
    found = mean_interval(values, clusters=patients)
    if found.low is None or found.high is None:
        return found
    return found._replace(low=max(found.low, scale[0]), high=min(found.high, scale[1]))


def _adjusted(rows: Scores, model: _ArmModel) -> Adjusted | None:
    """The model with the length held equal; None where lengths are unknown."""
    words = np.array([row.numbers.get(LENGTH, np.nan) for row in rows])
    if not len(words) or not np.isfinite(words).all() or words.std() == 0 or len(model.arms) < 2:
        return None
    if too_few(rows) is not None:
        return None
    try:
        fit, x = model.fit(rows, words)
    except ValueError:
        return None
    patients = [row.patient for row in rows]
    robust = ClusterRobust(x, _values(rows, model.total), patients, fit)
    lines = [np.append(one, 0.0) for one in model.lines]
    title, last = "arms, length held equal", np.eye(x.shape[1])[-1]
    return Adjusted(
        covariate=Z_LENGTH,
        effect=robust.effect(last, Z_LENGTH),
        omnibus=robust.test([line - lines[0] for line in lines[1:]], title),
        contrasts=tuple(_robust_contrasts(robust, lines, model.arms)),
    )


def _robust_contrasts(
    robust: ClusterRobust, lines: Sequence[Floats], arms: Sequence[str]
) -> Iterator[ArmContrast]:
    pairs = list(combinations(range(len(arms)), 2))
    effects = [robust.effect(lines[j] - lines[i], f"{arms[j]}-{arms[i]}") for i, j in pairs]
    p_values = [one.p for one in effects if one.p is not None]
    if len(p_values) < len(effects):
        return
    for (i, j), one, p in zip(pairs, effects, holm_sidak(p_values), strict=True):
        fields = one.model_dump(include={"se", "df", "t", "p", "low", "high"})
        yield ArmContrast(
            first=arms[i],
            second=arms[j],
            difference=one.estimate,
            p_adjusted=p,
            d=None,
            p_own_error=None,
            **fields,
        )


def _without_early(rows: Scores, model: _ArmModel) -> FTest | None:
    whole = [row for row in rows if row.stop_reason not in EARLY_STOPS]
    if len(whole) == len(rows) or set(model.arms) != {row.arm for row in whole}:
        return None
    return model.compare(whole, "arms, without early stops").test


def _standardised(values: Floats) -> Floats:
    """Mean 0, standard deviation 1 (by n)."""
    return np.asarray((values - values.mean()) / values.std(), dtype=np.float64)


def regress(rows: Scores, instrument: Instrument, settings: ModelSettings) -> Regression:
    """A mixed model of the headline total by the settings' terms.

    A term is `arm`, the name of a factor, attribute of patients or covariate, `z(covariate)` for a
    standardised one, or `a:b` for how much the effect of one differs with the other.
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
    robust, unit = ClusterRobust(x, _values(scored, total), patients, fit), np.eye(len(names))
    effects = [robust.effect(unit[i], name) for i, name in enumerate(names)]
    tests = [robust.test([unit[names.index(each)] for each in own], term) for term, own in groups]
    if reason := too_few(scored):
        none = {"se": None, "df": None, "t": None, "p": None, "low": None, "high": None}
        effects = [one.model_copy(update={**none, "reason": reason}) for one in effects]
        tests = [no_test(term, reason) for term, _ in groups]
    return Regression(
        instrument=instrument.id,
        total=total,
        formula=f"{total} ~ {' + '.join(terms)} + (1 | patient), {method.upper()}",
        effects=tuple(effects),
        tests=tuple(tests),
        fit=fit,
        omnibus=() if reason else tuple(wald(fit, own, term) for term, own in groups),
    )


def _reference(text: str) -> tuple[str, str]:
    name, separator, level = text.partition("=")
    if not separator or not name or not level:
        raise UsageError(f"--reference {text}: expected FACTOR=LEVEL")
    return name, level


def _level(row: SessionScore, name: str) -> str | None:
    return row.arm if name == "arm" else row.factors.get(name, row.traits.get(name))


def _columns_of(term: str, rows: Scores, references: Mapping[str, str]) -> list[tuple[str, Floats]]:
    standard = _STANDARDISED.match(term)
    name = standard[1] if standard else term
    if ":" in name and not standard:
        first, _, rest = name.partition(":")
        return [
            (f"{one}:{other}", a * b)
            for one, a in _columns_of(first, rows, references)
            for other, b in _columns_of(rest, rows, references)
        ]
    if rows and all(name in row.numbers for row in rows):
        values = np.array([row.numbers[name] for row in rows], dtype=np.float64)
        if values.std() == 0:
            raise UsageError(f"'{name}' is the same in every session")
        return [(term, _standardised(values) if standard else values)]
    levels = [_level(row, name) for row in rows]
    if standard or any(level is None for level in levels):
        factors = ("arm", *({**rows[0].factors, **rows[0].traits} if rows else ()))
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
    table, _ = _full_items(instrument, rows)
    return _alpha(table - table.mean(axis=0)) if len(table) >= 3 else None


def alpha_within_arms(instrument: Instrument, rows: Scores) -> tuple[float, float] | None:
    """Cronbach's alpha of deviations from the arms' means, and the lower end of its interval."""
    table, arms = _full_items(instrument, rows)
    for arm in set(arms):
        own = np.array([one == arm for one in arms])
        table[own] -= table[own].mean(axis=0)
    df, k = len(table) - len(set(arms)), table.shape[1]
    alpha = _alpha(table) if df >= 2 else None
    if alpha is None:
        return None
    quantile = float(require("scipy.special", "rate").fdtri(df, df * (k - 1), (1 + CONFIDENCE) / 2))
    return alpha, 1 - (1 - alpha) * quantile


def _full_items(instrument: Instrument, rows: Scores) -> tuple[Floats, list[str]]:
    """Items of the headline total in the sessions that have all of them, and their arms."""
    items = [criterion.id for criterion, _ in instrument.rubric.parts_of(instrument.headline)]
    kept = [(line, row.arm) for row in rows if None not in (line := _line(row, items))]
    table = np.array([line for line, _ in kept], dtype=np.float64).reshape(len(kept), len(items))
    return table, [arm for _, arm in kept]


def _line(row: SessionScore, items: Sequence[str]) -> list[float | None]:
    return [row.values.get(item) for item in items]


def _alpha(centred: Floats) -> float | None:
    whole, k = float((centred.sum(axis=1) ** 2).sum()), centred.shape[1]
    if k < 2 or whole <= 1e-12 * max(1.0, float(np.abs(centred).max(initial=0.0))):
        return None
    return float(k / (k - 1) * (1 - (centred**2).sum() / whole))


def top_shares(
    instrument: Instrument,
    rows: Scores,
    ratings: Sequence[ItemRating] | None,
    arms: Sequence[str],
) -> Iterator[TopShare]:
    """How often each arm got the highest point; nothing where items have different points."""
    points = {item.points for item in instrument.items}
    if len(points) != 1:
        return
    highest = max(next(iter(points)))
    given: dict[str, list[float]] = {row.session_id: [] for row in rows}
    if ratings is None:
        for row in rows:
            given[row.session_id] += [round(v) for v in row.values.values() if v is not None]
    else:
        for one in ratings:
            if one.value is not None and one.session_id in given:
                given[one.session_id].append(one.value)
    for arm in arms:
        own = [row for row in rows if row.arm == arm and given[row.session_id]]
        if not own:
            continue
        shares = [np.mean([v == highest for v in given[row.session_id]]) for row in own]
        interval = mean_interval(
            np.array(shares, dtype=np.float64),
            scale=(0, 1),
            clusters=[row.patient for row in own],
        )
        n = sum(len(given[row.session_id]) for row in own)
        yield TopShare(arm=arm, n=n, share=float(np.mean(shares)), low=interval.low)


def missing_totals(instrument: Instrument, rows: Scores) -> Iterator[MissingTotal]:
    """The sessions that lack a total, in the order of the rows."""
    names = {total.id for total in instrument.rubric.totals}
    for row in rows:
        for one in row.totals:
            if one.total in names and one.value is None:
                where = {"session_id": row.session_id, "arm": row.arm, "total": one.total}
                ends = {"least": one.least, "most": one.most}
                yield MissingTotal(**where, **ends, reason=str(one.reason))


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
