"""Judges against themselves, each other and people: coefficients, bias, corrected means.

    agreement_rows(judged, people)                     # AgreementRow per item, total and pair
    corrected_rows(judged, people, sessions, arms)     # arms as people would rate them

Absolute agreement (ICC A,1) and consistency (C,1) are both given: a judge that inflates every
rating alike is consistent and wrong, and only the first one shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from cbtqa.judging.agreement import corrected_mean, mean_kappa
from cbtqa.records import ItemRating, Session
from cbtqa.simulation.analysis.results import AgreementRow, CorrectedRow
from cbtqa.simulation.analysis.scores import Cells, Judged, cells_of, item_means, mean_of
from cbtqa.simulation.instruments import Instrument
from cbtqa.statistics.agreement import cohen_kappa, krippendorff_alpha
from cbtqa.statistics.intraclass import intraclass_correlation

N_RESAMPLES = 500
TOTAL = "total:"
Values = dict[str, float | None]
"""Session to one rater's value."""
Table = list[list[float | None]]
"""One row per rater, one column per session."""


class _Measure:
    """One item or total (`total:<id>`) of an instrument."""

    def __init__(self, instrument: Instrument, name: str) -> None:
        self.instrument, self.name = instrument, name
        self.is_total = name.startswith(TOTAL)
        totals = {TOTAL + total.id: total for total in instrument.rubric.totals}
        self._total = totals.get(name)

    def of(self, items: Mapping[str, float | None]) -> float | None:
        """The value from one session's items."""
        if self._total is None:
            return items.get(self.name)
        return self.instrument.rubric.total_of(self._total, items)

    def means(self, cells: Cells) -> Values:
        """From the means of the repeats."""
        return {session: self.of(item_means(items)) for session, items in cells.items()}

    def repeats(self, cells: Cells) -> list[Values]:
        """From each repeat."""
        numbers = sorted({n for items in cells.values() for cell in items.values() for n in cell})
        return [
            {
                session: self.of({item: cell.get(n) for item, cell in items.items()})
                for session, items in cells.items()
            }
            for n in numbers
        ]

    def middles(self, cells: Cells) -> Values:
        """The middle one of an item's repeats: a whole number, as a rater would give."""
        given = {name: sorted(items.get(self.name, {}).values()) for name, items in cells.items()}
        return {name: some[(len(some) - 1) // 2] if some else None for name, some in given.items()}

    def people(self, raters: Sequence[Cells]) -> Values:
        """The mean over the people who rated a session."""
        values = list(map(self.means, raters))
        return {name: mean_of(one.get(name) for one in values) for name in _sessions_of(raters)}

    def row(self, kind: str, who: str, table: Table, whole: Table, **more: Any) -> AgreementRow:
        """The coefficients of some raters.

        ICC (A,1) and (C,1) over sessions that all rated, alpha over all, kappa of pairs of raters.

        Args:
            whole: ratings as whole numbers, for alpha and kappa of items; totals have no points.
        """
        full = [column for column in zip(*table, strict=True) if None not in column]
        complete = np.array(full, dtype=np.float64).T.reshape(len(table), -1)
        found = [intraclass_correlation(complete, form) for form in ("A", "C")]
        if self.is_total:
            # no bootstrap: a total has a hundred values, and alpha's cost grows with their square
            found.append(krippendorff_alpha(table, "interval"))
        else:
            low, high = self.instrument.scales[self.name]
            labels = [float(point) for point in range(low, high + 1)]
            kappas = [cohen_kappa(a, b, labels, "quadratic") for a, b in combinations(whole, 2)]
            found.append(krippendorff_alpha(whole, "ordinal", n_resamples=N_RESAMPLES))
            found.append(mean_kappa(kappas))
        fields = {"kind": kind, "who": who, "coefficients": tuple(found), **more}
        return AgreementRow(instrument=self.instrument.id, item=self.name, **fields)

    def row_of_means(self, kind: str, who: str, raters: Sequence[Cells]) -> AgreementRow:
        """The row of raters who each count with the mean of their repeats."""
        sessions = _sessions_of(raters)
        means = _table(map(self.means, raters), sessions)
        return self.row(kind, who, means, self.whole(raters, sessions))

    def whole(self, raters: Iterable[Cells], sessions: Sequence[str]) -> Table:
        """Ratings of an item as whole numbers; nothing for a total."""
        return [] if self.is_total else _table(map(self.middles, raters), sessions)


def _table(values: Iterable[Values], sessions: Sequence[str]) -> Table:
    return [[one.get(session) for session in sessions] for one in values]


def _sessions_of(raters: Iterable[Cells]) -> list[str]:
    return list(dict.fromkeys(session for cells in raters for session in cells))


def _by_rater(people: Sequence[ItemRating]) -> list[Cells]:
    names = sorted({one.judge for one in people})
    return [cells_of(one for one in people if one.judge == name) for name in names]


def agreement_rows(judged: Judged, people: Sequence[ItemRating] = ()) -> list[AgreementRow]:
    """Every comparison that the ratings allow, totals first."""
    instrument, raters = judged.instrument, _by_rater(people)
    names = [TOTAL + total.id for total in instrument.rubric.totals]
    names += [item.id for item in instrument.items]
    judges = {judge: cells_of(ratings) for judge, ratings in judged.ratings.items()}
    rows: list[AgreementRow] = []
    for measure in (_Measure(instrument, name) for name in names):
        for judge, cells in judges.items():
            table = _table(measure.repeats(cells), list(cells))
            if len(table) > 1:
                rows.append(measure.row("repeats", judge, table, table))
        if len(judges) > 1:
            rows.append(measure.row_of_means("judges", " | ".join(judges), list(judges.values())))
        if raters:
            rows += [_with_people(measure, judge, cells, raters) for judge, cells in judges.items()]
        if len(raters) > 1:
            rows.append(measure.row_of_means("people", f"{len(raters)} raters", raters))
    return rows


def _with_people(
    measure: _Measure, judge: str, cells: Cells, raters: Sequence[Cells]
) -> AgreementRow:
    """One judge and the mean of the people, with bias and limits of agreement."""
    sessions = [session for session in _sessions_of(raters) if session in cells]
    table = _table([measure.means(cells), measure.people(raters)], sessions)
    pairs = [(a, b) for a, b in zip(*table, strict=True) if a is not None and b is not None]
    more: dict[str, Any] = {}
    if pairs:
        gaps = np.array([a - b for a, b in pairs])
        bias = more["bias"] = float(gaps.mean())
        if len(gaps) > 1:
            half = 1.96 * float(gaps.std(ddof=1))
            more["limits"] = (bias - half, bias + half)
    both: Table = [[a for a, _ in pairs], [b for _, b in pairs]]
    whole = measure.whole([cells, *raters], sessions)
    return measure.row("judge-people", judge, both, whole, **more)


def corrected_rows(
    judged: Judged, people: Sequence[ItemRating], sessions: Sequence[Session], arms: Sequence[str]
) -> list[CorrectedRow]:
    """Arm means of every total, corrected by what people rated; arms with fewer than two such
    sessions are left out."""
    instrument, raters = judged.instrument, _by_rater(people)
    found = []
    for total in instrument.rubric.totals:
        measure = _Measure(instrument, TOTAL + total.id)
        theirs = measure.people(raters)
        for judge, ratings in judged.ratings.items():
            mine = measure.means(cells_of(ratings))
            for arm in arms:
                own = [
                    one.id for one in sessions if one.arm == arm and mine.get(one.id) is not None
                ]
                rated = [name for name in own if theirs.get(name) is not None]
                rest = [name for name in own if theirs.get(name) is None]
                human, by_judge, others = (
                    np.array([values[name] for name in names], dtype=np.float64)
                    for values, names in ((theirs, rated), (mine, rated), (mine, rest))
                )
                corrected = corrected_mean(human, by_judge, others)
                if corrected is not None:
                    found.append(
                        CorrectedRow(
                            instrument=instrument.id,
                            total=total.id,
                            judge=judge,
                            arm=arm,
                            judge_mean=float(np.concatenate([by_judge, others]).mean()),
                            human_mean=float(human.mean()),
                            corrected=corrected,
                        )
                    )
    return found
