"""Judges against themselves, each other and people: coefficients, bias, corrected means.

    agreement_rows(judged, people)                     # AgreementRow per item, total and pair
    corrected_rows(judged, people, sessions, arms)     # arms as people would rate them

Absolute agreement (ICC A,1) and consistency (C,1) stand side by side: a judge that inflates every
rating alike is consistent and wrong, and only the first one shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from cbtqa.judging.agreement import corrected_mean, mean_kappa
from cbtqa.records import ItemRating, Session
from cbtqa.simulation.analysis.results import AgreementRow, CorrectedRow
from cbtqa.simulation.analysis.scores import Cells, Judged, cells_of, item_means
from cbtqa.simulation.instruments import Instrument
from cbtqa.statistics.agreement import Coefficient, Floats, cohen_kappa, krippendorff_alpha
from cbtqa.statistics.intraclass import intraclass_correlation

N_RESAMPLES = 500
TOTAL = "total:"
Table = list[list[float | None]]
"""One row per rater, one column per session."""
Value = Callable[[str], float | None]
"""Session to one rater's value."""


def agreement_rows(judged: Judged, people: Sequence[ItemRating] = ()) -> list[AgreementRow]:
    """Every comparison that the ratings allow, totals first."""
    instrument = judged.instrument
    names = [TOTAL + total.id for total in instrument.rubric.totals]
    names += [item.id for item in instrument.items]
    judges = {judge: cells_of(ratings) for judge, ratings in judged.ratings.items()}
    raters = _by_rater(people)
    rows = []
    for name in names:
        for judge, cells in judges.items():
            rows += _of_repeats(instrument, name, judge, cells)
        if len(judges) > 1:
            rows.append(_of_judges(instrument, name, judges))
        for judge, cells in judges.items():
            rows += _with_people(instrument, name, judge, cells, raters)
        if len(raters) > 1:
            rows.append(_among_people(instrument, name, raters))
    return rows


def _by_rater(people: Sequence[ItemRating]) -> dict[str, Cells]:
    names = sorted({one.judge for one in people})
    return {name: cells_of(one for one in people if one.judge == name) for name in names}


def _value(instrument: Instrument, name: str, values: Mapping[str, float | None]) -> float | None:
    if not name.startswith(TOTAL):
        return values.get(name)
    wanted = name.removeprefix(TOTAL)
    total = next(one for one in instrument.rubric.totals if one.id == wanted)
    return instrument.rubric.total_of(total, values)


def _mean_value(instrument: Instrument, name: str, cells: Cells) -> Value:
    return lambda session: (
        _value(instrument, name, item_means(cells[session])) if session in cells else None
    )


def _repeat_value(instrument: Instrument, name: str, cells: Cells, repeat: int) -> Value:
    return lambda session: _value(
        instrument, name, {item: cell.get(repeat) for item, cell in cells[session].items()}
    )


def _middle_value(name: str, cells: Cells) -> Value:
    """The middle one of an item's repeats: a whole number, as a rater would give."""

    def middle(session: str) -> float | None:
        given = sorted(cells[session][name].values()) if session in cells else []
        return given[(len(given) - 1) // 2] if given else None

    return middle


def _table(values: Sequence[Value], sessions: Sequence[str]) -> Table:
    return [[value(session) for session in sessions] for value in values]


# --- the comparisons -----------------------------------------------------------------------------


def _of_repeats(instrument: Instrument, name: str, judge: str, cells: Cells) -> list[AgreementRow]:
    repeats = sorted({r for items in cells.values() for cell in items.values() for r in cell})
    if len(repeats) < 2:
        return []
    values = [_repeat_value(instrument, name, cells, repeat) for repeat in repeats]
    table = _table(values, list(cells))
    whole = None if name.startswith(TOTAL) else table
    found = _coefficients(instrument, name, table, whole)
    return [_row(instrument, name, "repeats", judge, found)]


def _of_judges(instrument: Instrument, name: str, judges: Mapping[str, Cells]) -> AgreementRow:
    sessions = list(dict.fromkeys(s for cells in judges.values() for s in cells))
    means = _table([_mean_value(instrument, name, c) for c in judges.values()], sessions)
    whole = None
    if not name.startswith(TOTAL):
        whole = _table([_middle_value(name, c) for c in judges.values()], sessions)
    found = _coefficients(instrument, name, means, whole)
    return _row(instrument, name, "judges", " | ".join(judges), found)


def _with_people(
    instrument: Instrument, name: str, judge: str, cells: Cells, raters: Mapping[str, Cells]
) -> list[AgreementRow]:
    if not raters:
        return []
    sessions = list(dict.fromkeys(s for one in raters.values() for s in one if s in cells))
    mine = _table([_mean_value(instrument, name, cells)], sessions)[0]
    theirs = _people_means(instrument, name, raters, sessions)
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None]
    whole = None
    if not name.startswith(TOTAL):
        whole = _table(
            [_middle_value(name, cells), *(_middle_value(name, one) for one in raters.values())],
            sessions,
        )
    table: Table = [[a for a, _ in pairs], [b for _, b in pairs]]
    row = _row(
        instrument, name, "judge-people", judge, _coefficients(instrument, name, table, whole)
    )
    if not pairs:
        return [row]
    gaps = np.array([a - b for a, b in pairs])
    half = 1.96 * float(gaps.std(ddof=1)) if len(gaps) > 1 else None
    bias = float(gaps.mean())
    limits = None if half is None else (bias - half, bias + half)
    return [row.model_copy(update={"bias": bias, "limits": limits})]


def _among_people(instrument: Instrument, name: str, raters: Mapping[str, Cells]) -> AgreementRow:
    sessions = list(dict.fromkeys(s for cells in raters.values() for s in cells))
    table = _table([_mean_value(instrument, name, cells) for cells in raters.values()], sessions)
    whole = None if name.startswith(TOTAL) else table
    found = _coefficients(instrument, name, table, whole)
    return _row(instrument, name, "people", f"{len(raters)} raters", found)


def _people_means(
    instrument: Instrument, name: str, raters: Mapping[str, Cells], sessions: Sequence[str]
) -> list[float | None]:
    """Mean over the people who rated a session."""
    values = [_mean_value(instrument, name, cells) for cells in raters.values()]
    means: list[float | None] = []
    for session in sessions:
        given = [one for value in values if (one := value(session)) is not None]
        means.append(sum(given) / len(given) if given else None)
    return means


def _row(
    instrument: Instrument, name: str, kind: str, who: str, coefficients: Sequence[Coefficient]
) -> AgreementRow:
    return AgreementRow.model_validate(
        {
            "instrument": instrument.id,
            "item": name,
            "kind": kind,
            "who": who,
            "coefficients": tuple(coefficients),
        }
    )


def _coefficients(
    instrument: Instrument, name: str, table: Table, whole: Table | None
) -> list[Coefficient]:
    """ICC (A,1) and (C,1) over sessions that all rated, alpha over all, kappa of pairs of raters.

    Args:
        whole: ratings as whole numbers, for kappa; None for totals, which have no points.
    """
    full = [list(column) for column in zip(*table, strict=True) if None not in column]
    complete = np.array(full, dtype=np.float64).T.reshape(len(table), -1)
    found = [intraclass_correlation(complete, form) for form in ("A", "C")]
    if whole is None:
        # no bootstrap: a total has a hundred values, and alpha's cost grows with their square
        return [*found, krippendorff_alpha(table, "interval")]
    low, high = instrument.scales[name]
    labels = [float(point) for point in range(low, high + 1)]
    kappas = [cohen_kappa(a, b, labels, "quadratic") for a, b in combinations(whole, 2)]
    alpha = krippendorff_alpha(whole, "ordinal", n_resamples=N_RESAMPLES)
    return [*found, alpha, mean_kappa(kappas)]


# --- corrected means -----------------------------------------------------------------------------


def corrected_rows(
    judged: Judged, people: Sequence[ItemRating], sessions: Sequence[Session], arms: Sequence[str]
) -> list[CorrectedRow]:
    """Arm means of every total, corrected by what people rated; arms with fewer than two such
    sessions are left out."""
    instrument, raters = judged.instrument, _by_rater(people)
    found = []
    for total in instrument.rubric.totals:
        name = TOTAL + total.id
        for judge, ratings in judged.ratings.items():
            value = _mean_value(instrument, name, cells_of(ratings))
            for arm in arms:
                own = [session.id for session in sessions if session.arm == arm]
                theirs = _people_means(instrument, name, raters, own)
                pairs = list(zip([value(s) for s in own], theirs, strict=True))
                row = _corrected(pairs)
                if row is not None:
                    common = {"instrument": instrument.id, "total": total.id, "judge": judge}
                    found.append(CorrectedRow.model_validate({**common, "arm": arm, **row}))
    return found


def _corrected(pairs: Sequence[tuple[float | None, float | None]]) -> dict[str, object] | None:
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    mine: Floats = np.array([a for a, _ in both], dtype=np.float64)
    theirs: Floats = np.array([b for _, b in both], dtype=np.float64)
    others = np.array([a for a, b in pairs if a is not None and b is None], dtype=np.float64)
    corrected = corrected_mean(theirs, mine, others)
    if corrected is None:
        return None
    return {
        "judge_mean": float(np.concatenate([mine, others]).mean()),
        "human_mean": float(theirs.mean()),
        "corrected": corrected,
    }
