"""Judges against themselves, each other and people: coefficients, bias, corrected means.

    agreement_rows(judged, people, sessions)                    # per item, total and pair
    corrected_rows(judged, people, sessions, arms, "random")    # arms as people would rate them

Absolute agreement (ICC A,1) and consistency (C,1) are both given: a judge that inflates every
rating alike is consistent and wrong, and only the first one shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from cbtqa.judging.agreement import (
    ICC_A,
    ICC_C,
    KAPPA,
    JudgeAndPeople,
    coefficient_of,
    icc_of_raters,
    kappa_of_raters,
)
from cbtqa.judging.correction import (
    HumanSample,
    corrected_mean,
    people_mean,
    sample_reason,
    selection_p,
    too_few_reason,
)
from cbtqa.records import ItemRating, Session
from cbtqa.simulation.analysis.results import AgreementKind, AgreementRow, CorrectedRow
from cbtqa.simulation.analysis.scores import Cells, Judged, cells_of, item_means
from cbtqa.simulation.instruments import Instrument
from cbtqa.statistics.agreement import Floats, as_table, krippendorff_alpha

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

    def row(
        self, kind: AgreementKind, who: str, table: Table, whole: Table, patients: Sequence[str]
    ) -> AgreementRow:
        """The coefficients of some raters who are alike: repeats, judges or people.

        ICC (A,1) and (C,1) over sessions that all rated, alpha over all, kappa of pairs of raters.

        Args:
            whole: ratings as whole numbers, for alpha and kappa of items; totals have no points.
            patients: of the sessions, which are independent where their patients differ.
        """
        rated = as_table(table)
        is_full = ~np.isnan(rated).any(axis=0)
        full = rated[:, is_full]
        of_full = [patients[place] for place in np.flatnonzero(is_full).tolist()]
        found = [
            coefficient_of(name, partial(icc_of_raters, form), full, of_full)
            for name, form in ((ICC_A, "A"), (ICC_C, "C"))
        ]
        if self.is_total:
            found.append(krippendorff_alpha(rated, "interval", clusters=patients))
        else:
            items = as_table(whole)
            found.append(krippendorff_alpha(items, "ordinal", clusters=patients))
            found.append(coefficient_of(KAPPA, kappa_of_raters, items, patients))
        return AgreementRow(
            instrument=self.instrument.id,
            item=self.name,
            kind=kind,
            who=who,
            coefficients=tuple(found),
        )

    def row_of_means(
        self, kind: AgreementKind, who: str, raters: Sequence[Cells], patient_of: Mapping[str, str]
    ) -> AgreementRow:
        """The row of raters who each count with the mean of their repeats."""
        sessions = _sessions_of(raters)
        means = _table(map(self.means, raters), sessions)
        whole = self.whole(raters, sessions)
        return self.row(kind, who, means, whole, [patient_of[name] for name in sessions])

    @property
    def scale(self) -> tuple[float, float]:
        """The least and the greatest value of the item or total."""
        if self._total is None:
            return self.instrument.scales[self.name]
        return self.instrument.rubric.range_of(self._total)

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


def agreement_rows(
    judged: Judged, people: Sequence[ItemRating], sessions: Sequence[Session]
) -> list[AgreementRow]:
    """Every comparison that the ratings allow, totals first; patients are random."""
    instrument, raters = judged.instrument, _by_rater(people)
    names = [TOTAL + total.id for total in instrument.rubric.totals]
    names += [item.id for item in instrument.items]
    known = {one.id for one in sessions}
    judges = {
        judge: {name: cell for name, cell in cells_of(ratings).items() if name in known}
        for judge, ratings in judged.ratings.items()
    }
    raters = [{name: cell for name, cell in own.items() if name in known} for own in raters]
    patient_of = {one.id: one.profile_id for one in sessions}
    rows: list[AgreementRow] = []
    for measure in (_Measure(instrument, name) for name in names):
        for judge, cells in judges.items():
            table = _table(measure.repeats(cells), list(cells))
            if len(table) > 1:
                patients = [patient_of[name] for name in cells]
                rows.append(measure.row("repeats", judge, table, table, patients))
        if len(judges) > 1:
            who, every = " | ".join(judges), list(judges.values())
            rows.append(measure.row_of_means("judges", who, every, patient_of))
        if raters:
            rows += [
                _with_people(measure, judge, cells, raters, sessions)
                for judge, cells in judges.items()
            ]
        if len(raters) > 1:
            who = f"{len(raters)} raters"
            rows.append(measure.row_of_means("people", who, raters, patient_of))
    return rows


def _with_people(
    measure: _Measure,
    judge: str,
    cells: Cells,
    raters: Sequence[Cells],
    sessions: Sequence[Session],
) -> AgreementRow:
    """One judge against the people, never people against each other, with bias and limits."""
    mine = measure.means(cells)
    theirs = [measure.means(own) for own in raters]
    rated = [
        one
        for one in sessions
        if mine.get(one.id) is not None and any(own.get(one.id) is not None for own in theirs)
    ]
    names = [one.id for one in rated]
    whole = measure.middles(cells)
    both = JudgeAndPeople(
        judge=np.array([mine[name] for name in names], dtype=np.float64),
        whole=np.array([whole.get(name) for name in names], dtype=np.float64),
        people=_rated_table(theirs, names),
        groups=[one.arm for one in rated],
        clusters=[one.profile_id for one in rated],
    )
    wanted = (ICC_A, ICC_C) if measure.is_total else (ICC_A, ICC_C, KAPPA)
    bias = both.bias(measure.scale) if rated else None
    limits = both.limits(bias.value) if bias else None
    return AgreementRow(
        instrument=measure.instrument.id,
        item=measure.name,
        kind="judge-people",
        who=judge,
        coefficients=tuple(both.coefficient(name) for name in wanted),
        within_arms=tuple(
            both.coefficient(name, is_within=True) for name in wanted if len(set(both.groups)) > 1
        ),
        bias=bias.value if bias else None,
        bias_low=bias.low if bias else None,
        bias_high=bias.high if bias else None,
        bias_reason=bias.reason if bias else None,
        limits=limits[0] if limits else None,
        limit_intervals=limits[1] if limits else None,
    )


def _rated_table(raters: Iterable[Values], sessions: Sequence[str]) -> Floats:
    """Raters by sessions, without raters who rated none of these."""
    rows = [row for row in _table(raters, sessions) if any(value is not None for value in row)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(sessions))


def corrected_rows(
    judged: Judged,
    people: Sequence[ItemRating],
    sessions: Sequence[Session],
    arms: Sequence[str],
    sample: HumanSample | None,
) -> list[CorrectedRow]:
    """Arm means of every total, corrected by what people rated, or why not; patients are random.

    Args:
        sample: how the sessions that people rated were drawn, where it is known.
    """
    instrument, raters = judged.instrument, _by_rater(people)
    return [
        row
        for total in instrument.rubric.totals
        for judge, ratings in judged.ratings.items()
        for arm in arms
        if (
            row := _corrected_row(
                _Measure(instrument, TOTAL + total.id),
                judge,
                cells_of(ratings),
                raters,
                [one for one in sessions if one.arm == arm],
                sample,
            )
        )
    ]


def _corrected_row(
    measure: _Measure,
    judge: str,
    cells: Cells,
    raters: Sequence[Cells],
    sessions: Sequence[Session],
    sample: HumanSample | None,
) -> CorrectedRow | None:
    """One arm; None where people rated none of its sessions."""
    mine = measure.means(cells)
    theirs = [measure.means(own) for own in raters]
    scored = [one for one in sessions if mine.get(one.id) is not None]
    is_rated = [any(own.get(one.id) is not None for own in theirs) for one in scored]
    rated = [one for one, is_known in zip(scored, is_rated, strict=True) if is_known]
    rest = [one for one, is_known in zip(scored, is_rated, strict=True) if not is_known]
    if not rated:
        return None
    by_judge, others = (
        np.array([mine[one.id] for one in some], dtype=np.float64) for some in (rated, rest)
    )
    clusters, other_clusters = ([one.profile_id for one in some] for some in (rated, rest))
    human = _rated_table(theirs, [one.id for one in rated])
    reason = sample_reason(sample, len(rest))
    corrected = None
    if reason is None:
        corrected = corrected_mean(
            human,
            by_judge,
            others,
            measure.scale,
            clusters=clusters,
            other_clusters=other_clusters,
        )
        if corrected is None:
            reason = too_few_reason(len(set(clusters)), "patients with sessions")
    return CorrectedRow(
        instrument=measure.instrument.id,
        total=measure.name.removeprefix(TOTAL),
        judge=judge,
        arm=rated[0].arm,
        judge_mean=float(np.concatenate([by_judge, others]).mean()),
        human_mean=people_mean(human, measure.scale, clusters).value,
        n_human=len(rated),
        corrected=corrected,
        reason=reason,
        selection_p=selection_p(by_judge, others, clusters, other_clusters) if corrected else None,
    )
