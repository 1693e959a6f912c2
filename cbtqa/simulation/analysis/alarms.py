"""What a reader must know before believing a study: faults of scale, judge, length and design.

Each check was a fault of a published study first: no item above 7 of 10 in 6,523 ratings, scores
that follow length, arms that stop early, one judge nobody compared with people.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, get_args

import numpy as np

from cbtqa.records import Session
from cbtqa.simulation.analysis.outcomes import LENGTH
from cbtqa.simulation.analysis.results import (
    AgreementRow,
    Alarm,
    AlarmKind,
    AnalysisReport,
    CorrectedRow,
    Correlation,
    EndingRow,
    HaloRow,
    InstrumentResult,
    LengthCorrelation,
    LengthRow,
)
from cbtqa.simulation.analysis.scores import Judged, Scores
from cbtqa.simulation.judging.task import RULES
from cbtqa.simulation.lint import EARLY_STOPS, LENGTHS_APART, STOPS_APART
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.mixed_model import NORMAL_95
from cbtqa.statistics.resampling import FEW_ITEMS

ONE_VALUE = 0.9
"""Share of one point of the scale."""
HEAPED = 0.5
"""Share of the highest point over all items."""
MUCH_UNSCORED = 0.05
ITEMS_ALIKE = 0.95
"""Cronbach's alpha above which items hardly differ."""
HALO = 0.85
"""Correlation of two instruments; .875 from a single call in arXiv 2509.09712."""
FOLLOWS_LENGTH = 0.3
"""Correlation of score and length."""
MUCH_BIAS = 0.25
"""Of the judge against people, by share of the scale's range."""
RULES_TEXT = "rated by built-in rules that count words: no model, and nothing to be believed"
FEW_PATIENTS = 10
"""All thresholds here are assumed: they say when to look, not what is true."""
SHORT_TURNS = 5
POOLED, WITHIN = "pooled", "within arms"


def order_of(kind: AlarmKind) -> int:
    """Place of a kind of alarm in a report."""
    return get_args(AlarmKind).index(kind)


def all_alarms(
    report: AnalysisReport, judged: Sequence[Judged | None], notes: Sequence[str]
) -> list[Alarm]:
    """The alarms of a report, the heaviest first, each once."""
    found = [Alarm(kind="design", text=note) for note in notes]
    found += ending_alarms(report.endings)
    found += halo_alarms(report.halo)
    found += length_alarms(report.correlations, report.lengths)
    for result, one in zip(report.instruments, judged, strict=True):
        found += scale_alarms(result)
        if one is not None:
            ratings = one.ratings.items()
            values = {name: [r.value for r in own if r.value is not None] for name, own in ratings}
            ends = [end for scale in one.instrument.scales.values() for end in scale]
            found += judge_alarms(result.instrument, values, (min(ends), max(ends)))
        found += design_alarms(result, report.n_patients)
    found += people_alarms(report.agreement, report.instruments)
    found += corrected_alarms(report.corrected)
    return sorted(dict.fromkeys(found), key=lambda alarm: order_of(alarm.kind))


def scale_alarms(result: InstrumentResult) -> Iterator[Alarm]:
    """Ceiling, floor, points never given, one-value items, unscored items, items alike."""
    name = result.instrument
    pooled: Counter[int] = Counter()
    for use in result.use:
        pooled.update(use.counts)
    n = sum(pooled.values())
    is_one_ladder = len({tuple(one.counts) for one in result.use}) == 1
    if n >= FEW_ITEMS and is_one_ladder:
        yield from _range_alarms(result, pooled, n)
    yield from _item_alarms(result)
    unscored = Counter[str]()
    for use in result.use:
        unscored.update(use.unscored)
    share = unscored.total() / (n + unscored.total()) if unscored else 0.0
    if share > MUCH_UNSCORED:
        reasons = ", ".join(f"{reason} {count}" for reason, count in unscored.most_common(4))
        text = f"{share:.0%} of the items are unscored ({reasons})"
        yield Alarm(kind="unscored", instrument=name, text=text)
    if result.alpha is not None and result.alpha > ITEMS_ALIKE:
        text = f"the items are hardly told apart: Cronbach's alpha {result.alpha:.3f}"
        yield Alarm(kind="items_alike", instrument=name, text=text)


def _range_alarms(result: InstrumentResult, pooled: Counter[int], n: int) -> Iterator[Alarm]:
    given = [point for point, count in pooled.items() if count]
    low, high = min(pooled), max(pooled)
    n_items, ratings = len(result.use), f"{n:,} ratings"
    if max(given) < high:
        text = f"no item above {max(given)} of {high} in {ratings}"
        if result.outcomes and result.outcomes[0].high == high * n_items:
            # the headline total adds up all items without weights
            text += f"; totals cannot pass {max(given) * n_items} of {high * n_items}"
        yield Alarm(kind="ceiling", instrument=result.instrument, text=text)
    elif pooled[high] / n >= HEAPED:
        text = f"{pooled[high] / n:.0%} of the ratings are the highest point, {high}"
        yield Alarm(kind="ceiling", instrument=result.instrument, text=text)
    if min(given) > low:
        text = f"no item below {min(given)} (the scale begins at {low}) in {ratings}"
        yield Alarm(kind="floor", instrument=result.instrument, text=text)
    rare = [str(p) for p, c in sorted(pooled.items()) if not c and min(given) < p < max(given)]
    if rare:
        text = f"points never given between others: {', '.join(rare)}"
        yield Alarm(kind="unused", instrument=result.instrument, text=text)


def _item_alarms(result: InstrumentResult) -> Iterator[Alarm]:
    """Items that (nearly) always get one value, in one alarm."""
    found = []
    for use in result.use:
        n = sum(use.counts.values())
        point, count = max(use.counts.items(), key=lambda entry: entry[1])
        if n >= FEW_ITEMS and count / n > ONE_VALUE:
            found.append(f"{use.item} {point}")
    if found:
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        text = f"{len(found)} of {len(result.use)} items get one value in more than "
        text += f"{ONE_VALUE:.0%} of the ratings: {', '.join(found[:8])}{more}"
        yield Alarm(kind="one_value", instrument=result.instrument, text=text)


def judge_alarms(
    instrument: str, values: dict[str, list[int]], span: tuple[int, int]
) -> Iterator[Alarm]:
    """A judge that gives (nearly) one value whatever it reads.

    Args:
        values: judge to all its ratings of this instrument.
    """
    for judge, given in values.items():
        if judge == RULES:
            yield Alarm(kind="people", text=RULES_TEXT)
        if len(given) < FEW_ITEMS:
            continue
        point, count = Counter(given).most_common(1)[0]
        if count / len(given) > ONE_VALUE:
            text = f"{judge} gives {point} (of {span[0]}-{span[1]}) in {count / len(given):.0%}"
            yield Alarm(kind="one_value", instrument=instrument, text=text)


def length_alarms(
    correlations: Sequence[LengthCorrelation], rows: Sequence[LengthRow]
) -> Iterator[Alarm]:
    """Scores that follow length, and arms of unequal length."""
    for one in correlations:
        is_clear = one.low > 0 or one.high < 0
        if one.scope in (POOLED, WITHIN) and abs(one.r) >= FOLLOWS_LENGTH and is_clear:
            text = f"{one.total} follows the therapist's words, {one.scope}: {_shown(one)}"
            yield Alarm(kind="length", instrument=one.instrument, text=text)
    if len(rows) > 1:
        longest = max(rows, key=lambda row: row.words)
        shortest = min(rows, key=lambda row: row.words)
        if longest.words > LENGTHS_APART * shortest.words:
            text = f"arms differ in length: {longest.arm} {longest.words:,.0f} words a session, "
            text += f"{shortest.arm} {shortest.words:,.0f}"
            yield Alarm(kind="length", text=text)


def _shown(one: Correlation) -> str:
    return f"r {one.r:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


def halo_alarms(rows: Sequence[HaloRow]) -> Iterator[Alarm]:
    """Instruments that say the same, although they ask different things."""
    for row in rows:
        if row.r >= HALO:
            text = f"{row.first} and {row.second} rise and fall together: {_shown(row)}"
            yield Alarm(kind="halo", text=text)


def ending_alarms(rows: Sequence[EndingRow]) -> Iterator[Alarm]:
    """Early stops that differ between arms: those sessions are scored with the rest."""
    shares = {row.arm: row.n_early / row.n for row in rows if row.n}
    if not shares or max(shares.values()) - min(shares.values()) <= STOPS_APART:
        return
    shown = ", ".join(f"{row.arm} {row.n_early} of {row.n}" for row in rows if row.n_early)
    yield Alarm(kind="endings", text=f"early stops differ between arms: {shown}")


def people_alarms(
    rows: Iterable[AgreementRow], instruments: Sequence[InstrumentResult]
) -> Iterator[Alarm]:
    """No people, or a judge far from them."""
    checked = [row for row in rows if row.kind == "judge-people"]
    seen = {row.instrument for row in checked}
    lacking = [one.instrument for one in instruments if one.instrument not in seen]
    if lacking:
        text = f"no human ratings on {', '.join(lacking)}: these figures are a judge's opinion, "
        text += "uncorrected; judges overrate sessions and miss faults of safety"
        yield Alarm(kind="people", text=text)
    spans = {
        (result.instrument, f"total:{outcome.total}"): outcome.high - outcome.low
        for result in instruments
        for outcome in result.outcomes
    }
    for row in checked:
        span = spans.get((row.instrument, row.item))
        if span is not None and row.bias is not None and abs(row.bias) > MUCH_BIAS * span:
            word = "milder" if row.bias > 0 else "stricter"
            text = f"{row.item.removeprefix('total:')}: {row.who} is {word} by {abs(row.bias):.1f}"
            yield Alarm(kind="bias", instrument=row.instrument, text=text)


def corrected_alarms(rows: Iterable[CorrectedRow]) -> Iterator[Alarm]:
    """Corrections that rest on few sessions."""
    few = sorted({row.arm for row in rows if row.corrected.n_human < FEW_ITEMS})
    if few:
        text = f"fewer than {FEW_ITEMS} sessions of {', '.join(few)} have human ratings: "
        text += "the corrected intervals say little"
        yield Alarm(kind="people", text=text)


def design_alarms(result: InstrumentResult, n_patients: int) -> Iterator[Alarm]:
    """Few patients, a model at its boundary, cells of unequal size, no model at all."""
    for outcome in result.outcomes:
        if outcome.fit is None:
            text = f"{outcome.total}: no mixed model ({outcome.no_fit_reason})"
            yield Alarm(kind="no_model", instrument=result.instrument, text=text)
            continue
        if outcome.fit.is_boundary:
            text = f"{outcome.total}: the variance between patients is estimated as 0"
            yield Alarm(kind="design", instrument=result.instrument, text=text)
    sizes = {one.arm: one.n for one in result.outcomes[0].arms}
    if sizes and max(sizes.values()) != min(sizes.values()):
        most = max(sizes.values())
        shown = ", ".join(f"{arm} lacks {most - n}" for arm, n in sizes.items() if n < most)
        text = f"arms have unequal numbers of scored sessions: {shown} of {most}"
        yield Alarm(kind="design", instrument=result.instrument, text=text)
    if n_patients < FEW_PATIENTS:
        text = f"{n_patients} patients: the variance between patients and its interval say "
        text += "little, and results do not reach beyond these patients"
        yield Alarm(kind="design", text=text)


def endings(sessions: Sequence[Session], arms: Sequence[str]) -> list[EndingRow]:
    """Stop reasons by arm."""
    rows = []
    for arm in arms:
        counts = Counter(session.stop_reason for session in sessions if session.arm == arm)
        n_early = sum(n for reason, n in counts.items() if reason in EARLY_STOPS)
        rows.append(
            EndingRow(
                arm=arm, n=counts.total(), counts=dict(sorted(counts.items())), n_early=n_early
            )
        )
    return rows


def lengths(rows: Scores, arms: Sequence[str]) -> list[LengthRow]:
    """Words and turns of the therapist by arm; empty where they are not known."""
    known = {row.session_id: row for row in rows if LENGTH in row.numbers}
    found = []
    for arm in arms:
        own = [row.numbers for row in known.values() if row.arm == arm]
        if not own:
            continue
        words = float(np.mean([one[LENGTH] for one in own]))
        turns = [one["turns"] for one in own if "turns" in one]
        n_turns = sum(turns)
        found.append(
            LengthRow(
                arm=arm,
                n=len(own),
                turns=float(np.mean(turns)) if turns else None,
                words=words,
                words_per_turn=words * len(own) / n_turns if n_turns else None,
                n_short=sum(one < SHORT_TURNS for one in turns) if turns else None,
            )
        )
    return found


def length_correlations(
    rows: Scores, instrument: str, total: str, arms: Sequence[str]
) -> list[LengthCorrelation]:
    """Pearson's r of therapist words and a total: pooled, within arms, and in each arm.

    Within arms, both are taken as deviations from their arm's mean.
    """
    kept = [row for row in rows if row.total(total) is not None and LENGTH in row.numbers]
    words = np.array([row.numbers[LENGTH] for row in kept])
    values = np.array([row.total(total) for row in kept], dtype=np.float64)
    own = {arm: np.array([row.arm == arm for row in kept], dtype=bool) for arm in arms}
    centred_words, centred_values = words.copy(), values.copy()
    present = [place for place in own.values() if place.any()]
    for place in present:
        centred_words[place] -= words[place].mean()
        centred_values[place] -= values[place].mean()
    parts = [
        (POOLED, words, values, 3),
        (WITHIN, centred_words, centred_values, 2 + len(present)),
        *((arm, words[place], values[place], 3) for arm, place in own.items()),
    ]
    return [
        LengthCorrelation(instrument=instrument, total=total, scope=scope, **one)
        for scope, a, b, lost in parts
        if (one := _correlation(a, b, lost)) is not None
    ]


def halo_rows(tables: Mapping[str, tuple[str, Scores]]) -> list[HaloRow]:
    """Correlation of every two instruments over sessions that have both totals.

    Args:
        tables: instrument to its headline total and its rows.
    """
    values = {
        name: {row.session_id: value for row in rows if (value := row.total(total)) is not None}
        for name, (total, rows) in tables.items()
    }
    found = []
    for first, second in combinations(values, 2):
        shared = [key for key in values[first] if key in values[second]]
        a, b = (np.array([values[name][key] for key in shared]) for name in (first, second))
        one = _correlation(a, b, 3)
        if one is not None:
            found.append(HaloRow(first=first, second=second, **one))
    return found


def _correlation(a: Floats, b: Floats, lost: int) -> dict[str, Any] | None:
    """The fields of a `Correlation`, by Fisher's z with `len(a) - lost` degrees of freedom."""
    if len(a) < 4 or len(a) <= lost or a.std() < 1e-12 or b.std() < 1e-12:
        return None
    r = low = high = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    if abs(r) < 1 - 1e-12:
        half = NORMAL_95 / math.sqrt(len(a) - lost)
        low, high = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    return {"n": len(a), "r": r, "low": low, "high": high}
