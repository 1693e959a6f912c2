"""Groups of patients and pairs of arms: the exploratory part of the analysis of one total.

    found = explore(rows, instrument.headline.id, arms, settings)
    found.wins[0].rate, found.groups[0].interaction.p

Sessions of one patient in one arm are averaged first, so that patients are the unit throughout.
Below five patients (in a group, or in all) figures are described and nothing is tested.

Source: the exploratory analyses of arXiv 2509.09712 (interaction with the archetype, Wilcoxon
within groups with Benjamini-Hochberg, win rates with sign test and Wilson's interval, importance
by permutation).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cbtqa.errors import UsageError
from cbtqa.simulation.analysis.outcomes import FEWEST_TESTED
from cbtqa.simulation.analysis.results import (
    Exploration,
    GroupedResult,
    GroupOfPatients,
    PairWithin,
    WinRate,
)
from cbtqa.simulation.analysis.scores import Scores
from cbtqa.simulation.analysis.settings import SubgroupSettings
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.importance import N_FOLDS, Prediction, permutation_importance
from cbtqa.statistics.intervals import share_interval
from cbtqa.statistics.mixed_model import LikelihoodRatio, fit_mixed, likelihood_ratio
from cbtqa.statistics.resampling import benjamini_hochberg, holm
from cbtqa.statistics.split_plot import arm_by_group, no_test
from cbtqa.statistics.tests_of_arms import sign_test, wilcoxon

MOST_GROUPS = 12
"""An attribute with more levels than this is no division into groups; assumed."""
FEWEST_PREDICTED = 2 * N_FOLDS
"""Patients below which nothing is predicted: two a fold."""


@dataclass(frozen=True)
class _Cells:
    """Patients by arms: the mean of each patient's sessions, NaN where there is none."""

    patients: Sequence[str]
    arms: Sequence[str]
    table: Floats
    traits: Mapping[str, Mapping[str, str]]

    def of(self, patients: Sequence[str]) -> _Cells:
        places = [self.patients.index(one) for one in patients]
        return _Cells(patients, self.arms, self.table[places], self.traits)

    def whole(self) -> _Cells:
        """Those patients who have every arm."""
        lacking = np.isnan(self.table).sum(axis=1).tolist()
        return self.of([one for one, n in zip(self.patients, lacking, strict=True) if not n])

    def groups(self, attribute: str) -> dict[str, list[str]]:
        """Level to its patients; those without the attribute are in none."""
        found: dict[str, list[str]] = {}
        for patient in self.patients:
            if level := self.traits.get(patient, {}).get(attribute):
                found.setdefault(level, []).append(patient)
        return dict(sorted(found.items()))

    def pair(self, i: int, j: int) -> tuple[Floats, Floats]:
        """The two arms with the patients who have both."""
        both = self.table[:, [i, j]]
        both = both[~np.isnan(both).any(axis=1)]
        return both[:, 0], both[:, 1]


def _cells(rows: Scores, total: str, arms: Sequence[str]) -> _Cells:
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if (value := row.total(total)) is not None:
            values.setdefault((row.patient, row.arm), []).append(value)
    patients = list(dict.fromkeys(patient for patient, _ in values))
    table = np.full((len(patients), len(arms)), np.nan)
    for (patient, arm), own in values.items():
        table[patients.index(patient), list(arms).index(arm)] = sum(own) / len(own)
    return _Cells(patients, arms, table, {row.patient: row.traits for row in rows})


def explore(
    rows: Scores, total: str, arms: Sequence[str], settings: SubgroupSettings
) -> Exploration | None:
    """Win rates of pairs, groups of patients, and what the total is predicted from.

    None with one arm.

    Raises:
        UsageError: `by` names an attribute that the patients do not have.
    """
    present = [arm for arm in arms if any(row.arm == arm for row in rows)]
    cells = _cells(rows, total, present)
    if len(present) < 2 or not len(cells.patients):
        return None
    known = list(dict.fromkeys(name for one in cells.traits.values() for name in one))
    for name in settings.by:
        if name not in known:
            hint = f"attributes: {', '.join(known)}" if known else "add --patients FILE"
            raise UsageError(f"no attribute '{name}' of the patients", hint=hint)
    divided = _divisions(cells, settings.by or [name for name in known if _divides(cells, name)])
    alike = {name for names in divided.values() for name in names}
    prediction, reason = _predicted(cells, [name for name in known if name not in alike], divided)
    return Exploration(
        total=total,
        wins=tuple(_wins(cells)),
        groups=tuple(_grouped(cells, name, alike) for name, alike in divided.items()),
        prediction=prediction,
        no_prediction_reason=reason,
    )


def _divides(cells: _Cells, attribute: str) -> bool:
    sizes = [len(patients) for patients in cells.groups(attribute).values()]
    return len(sizes) <= MOST_GROUPS and sum(size >= FEWEST_TESTED for size in sizes) >= 2


def _divisions(cells: _Cells, names: Sequence[str]) -> dict[str, list[str]]:
    """Attributes that divide the patients in different ways, each with those that do it alike."""
    found: dict[str, list[str]] = {}
    seen: dict[tuple[tuple[str, ...], ...], str] = {}
    for name in names:
        division = tuple(sorted(tuple(own) for own in cells.groups(name).values()))
        if division in seen:
            found[seen[division]].append(name)
        else:
            seen[division] = name
            found[name] = []
    return found


def _few(n: int) -> str | None:
    word = "patient" if n == 1 else "patients"
    return f"{n} {word}, fewer than {FEWEST_TESTED}: described only" if n < FEWEST_TESTED else None


# --- pairs of arms -------------------------------------------------------------------------------


def _wins(cells: _Cells) -> Iterator[WinRate]:
    """How often the second arm of each pair is ahead of the first with the same patient."""
    found = []
    for i, j in combinations(range(len(cells.arms)), 2):
        first, second = cells.pair(i, j)
        n, wins, losses = len(first), int((second > first).sum()), int((second < first).sum())
        reason = _few(n)
        interval = share_interval(wins, n) if reason is None else None
        found.append(
            WinRate(
                first=cells.arms[i],
                second=cells.arms[j],
                n=n,
                wins=wins,
                losses=losses,
                rate=wins / n if n else None,
                low=interval.low if interval else None,
                high=interval.high if interval else None,
                p=sign_test(wins, losses) if reason is None else None,
                reason=reason,
            )
        )
    tested = [one for one in found if one.p is not None]
    adjusted = iter(holm([one.p for one in tested if one.p is not None]))
    for one in found:
        yield one if one.p is None else one.model_copy(update={"p_adjusted": next(adjusted)})


# --- groups of patients --------------------------------------------------------------------------


def _grouped(cells: _Cells, attribute: str, alike: Sequence[str]) -> GroupedResult:
    groups = cells.groups(attribute)
    tested = {level: own for level, own in groups.items() if _few(len(own)) is None}
    title = f"arms by {attribute}"
    chosen = [patient for own in tested.values() for patient in own]
    level_of = {patient: level for level, own in tested.items() for patient in own}
    if len(tested) < 2:
        reason = f"fewer than two groups of {FEWEST_TESTED} patients: described only"
        test, ratio = no_test(title, reason), None
    else:
        whole = cells.of(chosen).whole()
        test = arm_by_group(whole.table, [level_of[one] for one in whole.patients], title)
        ratio = None
        with suppress(ValueError):  # nothing varies, which the test has said
            ratio = _interaction(cells.of(chosen), [level_of[one] for one in chosen])
    return GroupedResult(
        attribute=attribute,
        same_as=tuple(alike),
        groups=tuple(_group(level, cells.of(own)) for level, own in groups.items()),
        n_without=len(cells.patients) - sum(map(len, groups.values())),
        interaction=test,
        published=ratio,
    )


def _interaction(cells: _Cells, levels: Sequence[str]) -> LikelihoodRatio:
    """Likelihood ratio of arms by groups against arms and groups, patients random, by ML."""
    rows, columns = np.nonzero(~np.isnan(cells.table))
    arm = [(columns == place).astype(np.float64) for place in range(1, len(cells.arms))]
    of_row = np.array(levels)[rows]
    group = [(of_row == level).astype(np.float64) for level in sorted(set(levels))[1:]]
    plain = [np.ones(len(rows)), *arm, *group]
    both = [*plain, *(a * g for a in arm for g in group)]
    y, patients = cells.table[rows, columns], [cells.patients[row] for row in rows.tolist()]
    larger, smaller = (
        fit_mixed(y, np.stack(x, axis=1), [f"x{k}" for k in range(len(x))], patients, method="ml")
        for x in (both, plain)
    )
    return likelihood_ratio(larger, smaller)


def _group(level: str, cells: _Cells) -> GroupOfPatients:
    """One group: means, and Wilcoxon's test of each pair, adjusted within the group."""
    with np.errstate(invalid="ignore"):
        counted = (~np.isnan(cells.table)).sum(axis=0)
        means = np.nansum(cells.table, axis=0) / counted
    pairs, tests = [], []
    for i, j in combinations(range(len(cells.arms)), 2):
        first, second = cells.pair(i, j)
        reason = _few(len(first))
        found = wilcoxon(first, second) if reason is None else None
        gap = float((second - first).mean()) if len(first) else None
        names = {"first": cells.arms[i], "second": cells.arms[j], "n": len(first)}
        why = reason or (found.reason if found else None)
        p, effect = (found.p, found.effect) if found else (None, None)
        pairs.append(PairWithin(**names, difference=gap, p=p, effect=effect, reason=why))
        tests += [p] if p is not None else []
    adjusted = iter(benjamini_hochberg(tests))
    return GroupOfPatients(
        level=level,
        n_patients=len(cells.patients),
        means={
            arm: float(mean) if n else None
            for arm, mean, n in zip(cells.arms, means, counted, strict=True)
        },
        pairs=tuple(
            one if one.p is None else one.model_copy(update={"p_adjusted": next(adjusted)})
            for one in pairs
        ),
    )


# --- prediction ----------------------------------------------------------------------------------


def _predicted(
    cells: _Cells, known: Sequence[str], divided: Collection[str]
) -> tuple[Prediction | None, str | None]:
    """The total from the arm and the patients' attributes, held out by patient; or why not."""
    whole = cells.whole()
    if not known:
        return None, None
    if len(whole.patients) < FEWEST_PREDICTED:
        return None, f"{len(whole.patients)} patients with every arm, fewer than {FEWEST_PREDICTED}"
    n_arms = len(whole.arms)
    columns = {"arm": np.tile(np.eye(n_arms)[:, 1:], (len(whole.patients), 1))}
    for name in known:
        texts = [whole.traits.get(one, {}).get(name, "") for one in whole.patients]
        own = _numbers(texts)
        if own is None and name in divided:
            levels = sorted(set(texts))[1:]
            own = np.array([[text == level for level in levels] for text in texts], np.float64)
        if own is not None and own.size and np.ptp(own, axis=0).any():
            columns[name] = np.repeat(own, n_arms, axis=0)
    if len(columns) == 1:
        return None, "no attribute of the patients divides them or is a number"
    patients = [one for one in whole.patients for _ in range(n_arms)]
    try:
        return permutation_importance(whole.table.ravel(), columns, patients), None
    except ValueError as error:
        return None, str(error)


def _numbers(texts: Sequence[str]) -> Floats | None:
    with suppress(ValueError):
        values = np.array([float(text) for text in texts])
        if np.isfinite(values).all():
            return values[:, None]
    return None
