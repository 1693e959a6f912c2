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

from cbtqa.judging.asking import NOTHING_TO_RATE
from cbtqa.judging.correction import is_beyond
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
    MarkRow,
)
from cbtqa.simulation.analysis.scores import Judged, Scores
from cbtqa.simulation.instruments import SAFETY
from cbtqa.simulation.judging.task import RULES
from cbtqa.simulation.lint import EARLY_STOPS, LENGTHS_APART, STOPS_APART
from cbtqa.simulation.marks import CONTENT_MARKS
from cbtqa.statistics.clustered import clustered_correlation
from cbtqa.statistics.intervals import share_interval
from cbtqa.statistics.resampling import DEFAULT_SEED, FEW_ITEMS, holm
from cbtqa.statistics.split_plot import FTest, compare_arms

FEW_PATIENTS = 10
LEVEL = 0.05
"""No alarm about what chance alone brings about more often in sound data.

Those about shares and correlations want the value beyond one limit and the end of its interval
beyond a second, which sound data keep to."""
ONE_VALUE, SOUND_ONE_VALUE = 0.9, 0.8
"""Share of one point of the scale."""
HEAPED, SOUND_HEAP = 0.5, 1 / 3
"""Share of the highest point in an arm."""
SOUND_POINT = 0.02
"""Share of a point that a sound judge uses: none in few ratings is no news."""
MUCH_UNSCORED = 0.05
ITEMS_ALIKE, SOUND_ALPHA = 0.95, 0.9
"""Cronbach's alpha within arms above which items hardly differ."""
USUAL_ALPHA = 0.8
"""Where it is undefined, as when all ratings are alike."""
HALO, SOUND_HALO = 0.85, 0.7
"""Correlation of two instruments within arms; .875 from a single call in arXiv 2509.09712."""
FOLLOWS_LENGTH = 0.3
"""Correlation of score and length."""
MUCH_BIAS = 0.25
"""Of the judge against people, by share of the scale's range."""
RULES_TEXT = "rated by built-in rules that count words: no model, and nothing to be believed"
N_DRAWS = 5_000
"""Of early stops over arms. Limits here are assumed: they say when to look, not what is true."""
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
    found += length_alarms(report.correlations, report.lengths, report.length_test)
    for result, one in zip(report.instruments, judged, strict=True):
        if result.instrument == SAFETY:
            # sound sessions are all at its highest point: no ceiling, and no item that tells little
            found += safety_alarms(result, one)
        else:
            found += scale_alarms(result)
        if one is not None and result.instrument != SAFETY:
            ratings = one.ratings.items()
            values = {name: [r.value for r in own if r.value is not None] for name, own in ratings}
            ends = [end for scale in one.instrument.scales.values() for end in scale]
            found += judge_alarms(result.instrument, values, (min(ends), max(ends)))
        found += design_alarms(result, report.n_patients)
    found += people_alarms(report.agreement, report.instruments)
    found += corrected_alarms(report.corrected)
    return sorted(dict.fromkeys(found), key=lambda alarm: order_of(alarm.kind))


def safety_alarms(result: InstrumentResult, judged: Judged | None) -> Iterator[Alarm]:
    """Sessions with a rating at the lowest point, and ratings that are missing."""
    yield from _unscored_alarm(result)
    ratings = judged.all_ratings() if judged else []
    for item in result.use:
        low = min(item.counts)
        rated = [one for one in ratings if one.item == item.item and one.value is not None]
        bad = sorted({one.session_id for one in rated if one.value == low})
        if bad:
            n = len({one.session_id for one in rated})
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            text = f"{item.name}: rated {low}, the lowest, in {len(bad)} of {n} sessions: "
            text += ", ".join(bad[:3]) + more
            yield Alarm(kind="safety", instrument=result.instrument, text=text)


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
    yield from _unscored_alarm(result)
    alpha, low = result.alpha_within, result.alpha_within_low
    if alpha is not None and low is not None and alpha > ITEMS_ALIKE and low > SOUND_ALPHA:
        text = f"the items are hardly told apart: Cronbach's alpha {alpha:.3f} within arms"
        yield Alarm(kind="items_alike", instrument=name, text=text)


def _unscored_alarm(result: InstrumentResult) -> Iterator[Alarm]:
    n = sum(sum(use.counts.values()) for use in result.use)
    unscored = Counter[str]()
    for use in result.use:
        unscored.update(use.unscored)
    n += unscored.pop(NOTHING_TO_RATE, 0)  # an answer, too
    share = unscored.total() / (n + unscored.total()) if unscored else 0.0
    if share > MUCH_UNSCORED:
        reasons = ", ".join(f"{reason} {count}" for reason, count in unscored.most_common(4))
        text = f"{share:.0%} of the items are unscored ({reasons})"
        yield Alarm(kind="unscored", instrument=result.instrument, text=text)


def _range_alarms(result: InstrumentResult, pooled: Counter[int], n: int) -> Iterator[Alarm]:
    given = [point for point, count in pooled.items() if count]
    low, high = min(pooled), max(pooled)
    n_items, ratings = len(result.use), f"{n:,} ratings"
    is_enough = _is_left_out(result, n, 1, 1)
    if max(given) < high and is_enough:
        text = f"no item above {max(given)} of {high} in {ratings}"
        if result.outcomes and result.outcomes[0].high == high * n_items:
            # the headline total adds up all items without weights
            text += f"; totals cannot pass {max(given) * n_items} of {high * n_items}"
        yield Alarm(kind="ceiling", instrument=result.instrument, text=text)
    heaped = [one for one in result.top if one.n >= FEW_ITEMS and one.share >= HEAPED]
    heaped = [one for one in heaped if one.low is not None and one.low > SOUND_HEAP]
    if heaped:
        shown = ", ".join(f"{one.arm} {one.share:.0%}" for one in heaped)
        text = f"many ratings are the highest point, {high}: {shown}"
        yield Alarm(kind="ceiling", instrument=result.instrument, text=text)
    if min(given) > low and is_enough:
        text = f"no item below {min(given)} (the scale begins at {low}) in {ratings}"
        yield Alarm(kind="floor", instrument=result.instrument, text=text)
    rare = [str(p) for p, c in sorted(pooled.items()) if not c and min(given) < p < max(given)]
    if rare and _is_left_out(result, n, len(rare), len(pooled)):
        text = f"points never given between others: {', '.join(rare)}"
        yield Alarm(kind="unused", instrument=result.instrument, text=text)


def _is_left_out(result: InstrumentResult, n: int, n_left_out: int, n_points: int) -> bool:
    """True where a sound judge, that uses each point, would hardly leave out so many of them."""
    chance: float = (1 - n_left_out * SOUND_POINT) ** _n_independent(result, n)
    return math.comb(n_points, n_left_out) * chance <= LEVEL


def _n_independent(result: InstrumentResult, n: int) -> float:
    """Independent ratings that so many are worth: items of a session move together, repeats more.

    Source: the design effect 1 + (k - 1) rho of k items, rho by way of Cronbach's alpha.
    """
    k, alpha = len(result.use), USUAL_ALPHA if result.alpha is None else max(result.alpha, 0.0)
    return min(float(n), result.n_sessions * (k - alpha * (k - 1)))


def _item_alarms(result: InstrumentResult) -> Iterator[Alarm]:
    """Items that (nearly) always get one value, in one alarm."""
    found = []
    for use in result.use:
        n = sum(use.counts.values())
        point, count = max(use.counts.items(), key=lambda entry: entry[1])
        if n >= FEW_ITEMS and _is_one_value(count / n, min(n, result.n_sessions)):
            found.append(f"{use.item} {point}")
    if found:
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        text = f"{len(found)} of {len(result.use)} items get one value in more than "
        text += f"{ONE_VALUE:.0%} of the ratings: {', '.join(found[:8])}{more}"
        yield Alarm(kind="one_value", instrument=result.instrument, text=text)


def _is_one_value(share: float, n: int) -> bool:
    """True where so many independent ratings are nearly all of one point, and not by chance."""
    low = share_interval(round(share * n), n).low
    return share > ONE_VALUE and low is not None and low > SOUND_ONE_VALUE


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
        if _is_one_value(count / len(given), len(given)):
            text = f"{judge} gives {point} (of {span[0]}-{span[1]}) in {count / len(given):.0%}"
            yield Alarm(kind="one_value", instrument=instrument, text=text)


def length_alarms(
    correlations: Sequence[LengthCorrelation],
    rows: Sequence[LengthRow],
    test: FTest | None = None,
) -> Iterator[Alarm]:
    """Scores that follow length, and arms of unequal length.

    Args:
        test: whether arms differ in length by more than chance.
    """
    for one in correlations:
        is_clear = one.low is not None and one.high is not None and (one.low > 0 or one.high < 0)
        if one.scope in (POOLED, WITHIN) and abs(one.r) >= FOLLOWS_LENGTH and is_clear:
            text = f"{one.total} follows the therapist's words, {one.scope}: {_shown(one)}"
            yield Alarm(kind="length", instrument=one.instrument, text=text)
    if len(rows) > 1 and test is not None and test.p is not None and test.p < LEVEL:
        longest = max(rows, key=lambda row: row.words)
        shortest = min(rows, key=lambda row: row.words)
        if longest.words > LENGTHS_APART * shortest.words:
            text = f"arms differ in length: {longest.arm} {longest.words:,.0f} words a session, "
            text += f"{shortest.arm} {shortest.words:,.0f}"
            yield Alarm(kind="length", text=text)


def _shown(one: Correlation) -> str:
    return f"r {one.r:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


def halo_alarms(rows: Sequence[HaloRow]) -> Iterator[Alarm]:
    """Instruments that say the same within arms, although they ask different things."""
    for row in rows:
        is_clear = row.low is not None and row.low > SOUND_HALO
        if row.scope == WITHIN and row.r >= HALO and is_clear:
            text = f"{row.first} and {row.second} rise and fall together, {WITHIN}: {_shown(row)}"
            yield Alarm(kind="halo", text=text)


def ending_alarms(rows: Sequence[EndingRow]) -> Iterator[Alarm]:
    """Early stops that differ between arms: those sessions are scored with the rest."""
    shares = {row.arm: row.n_early / row.n for row in rows if row.n}
    if not shares or max(shares.values()) - min(shares.values()) <= STOPS_APART:
        return
    if _p_of_stops([row for row in rows if row.n]) < LEVEL:
        shown = ", ".join(f"{row.arm} {row.n_early} of {row.n}" for row in rows if row.n_early)
        yield Alarm(kind="endings", text=f"early stops differ between arms: {shown}")


def _p_of_stops(rows: Sequence[EndingRow]) -> float:
    """How often chance, dealing the early stops to all sessions alike, sets arms as far apart."""
    sizes = np.array([row.n for row in rows], dtype=np.int64)
    early = np.array([row.n_early for row in rows], dtype=np.int64)
    drawn = np.random.default_rng(DEFAULT_SEED).multivariate_hypergeometric(
        sizes, int(early.sum()), size=N_DRAWS
    )
    expected = sizes * early.sum() / sizes.sum()
    apart = (((np.vstack([early, drawn]) - expected) ** 2) / sizes).sum(axis=1)
    return float((apart >= apart[0] - 1e-9).mean())


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
        if span is None or row.bias is None:
            continue
        ends, n = (row.bias_low, row.bias_high), row.coefficients[0].n_items
        if is_beyond(row.bias, ends, n, MUCH_BIAS * span):
            word = "milder" if row.bias > 0 else "stricter"
            text = f"{row.item.removeprefix('total:')}: {row.who} is {word} by {abs(row.bias):.1f}"
            yield Alarm(kind="bias", instrument=row.instrument, text=text)


def corrected_alarms(rows: Sequence[CorrectedRow]) -> Iterator[Alarm]:
    """Means that could not be corrected, and corrections that rest on little."""
    for reason in dict.fromkeys(row.reason for row in rows if row.reason):
        names = dict.fromkeys(f"{row.total} {row.arm}" for row in rows if row.reason == reason)
        text = f"{', '.join(names)}: not corrected, because {reason}"
        yield Alarm(kind="people", text=text)
    held = [(row, row.corrected) for row in rows if row.corrected]
    if held and all(one.n_raters == 1 for _, one in held):
        text = "one person rated: corrected means are what this person would give; how others "
        yield Alarm(kind="people", text=text + "differ is not known")
    if near := dict.fromkeys(f"{row.total} {row.arm}" for row, one in held if one.is_near_end):
        text = f"{', '.join(near)}: people gave nearly all sessions an end of the scale; "
        yield Alarm(kind="people", text=text + "corrected intervals rest on the few others")
    ps = holm([row.selection_p for row, _ in held if row.selection_p is not None])
    tested = [row for row, _ in held if row.selection_p is not None]
    if other := dict.fromkeys(
        f"{row.total} {row.arm}" for row, p in zip(tested, ps, strict=True) if p < LEVEL
    ):
        text = f"{', '.join(other)}: the judge rates the sessions that people rated unlike the "
        yield Alarm(kind="people", text=text + "rest; were they drawn by lot?")
    few = sorted({row.arm for row, one in held if one.n_human < FEW_ITEMS})
    if few:
        text = f"fewer than {FEW_ITEMS} sessions of {', '.join(few)} have human ratings: "
        text += "the corrected intervals say little"
        yield Alarm(kind="people", text=text)


def design_alarms(result: InstrumentResult, n_patients: int) -> Iterator[Alarm]:
    """Few patients, arms of unequal size, no test at all."""
    for outcome in result.outcomes:
        if outcome.comparison.reason is not None:
            text = f"{outcome.total}: arms are not tested ({outcome.comparison.reason})"
            yield Alarm(kind="no_model", instrument=result.instrument, text=text)
    sizes = {one.arm: one.n for one in result.outcomes[0].arms}
    if sizes and max(sizes.values()) != min(sizes.values()):
        most = max(sizes.values())
        shown = ", ".join(f"{arm} lacks {most - n}" for arm, n in sizes.items() if n < most)
        text = f"arms have unequal numbers of scored sessions: {shown} of {most}"
        yield Alarm(kind="design", instrument=result.instrument, text=text)
    if n_patients < FEW_PATIENTS:
        text = f"{n_patients} patients: intervals are wide, and results reach no further than "
        text += "patients like these"
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


def mark_rows(sessions: Sequence[Session], arms: Sequence[str]) -> list[MarkRow]:
    """Marks of what turns say, by arm, those that a guard gave among them."""
    rows = []
    for arm in arms:
        own = [session for session in sessions if session.arm == arm]
        n = sum(len(session.turns) for session in own)
        for mark in CONTENT_MARKS:
            found = [sum(mark in turn.marks for turn in session.turns) for session in own]
            if any(found):
                counts = {"n_turns": sum(found), "n_sessions": sum(map(bool, found))}
                rows.append(MarkRow(arm=arm, mark=mark, of_turns=n, **counts))
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


def length_test(rows: Scores, arms: Sequence[str]) -> FTest | None:
    """Whether arms differ in words of the therapist; None where these are not known."""
    known = [row for row in {row.session_id: row for row in rows}.values() if LENGTH in row.numbers]
    present = [arm for arm in arms if any(row.arm == arm for row in known)]
    if len(present) < 2:
        return None
    words = [row.numbers[LENGTH] for row in known]
    arms_of, patients = [row.arm for row in known], [row.patient for row in known]
    return compare_arms(words, arms_of, patients, present, title="length").test


def length_correlations(
    rows: Scores, instrument: str, total: str, arms: Sequence[str]
) -> list[LengthCorrelation]:
    """Pearson's r of therapist words and a total: pooled, within arms, and in each arm.

    Within arms, both are taken as deviations from their arm's mean. Patients are random.
    """
    kept = [row for row in rows if row.total(total) is not None and LENGTH in row.numbers]
    own = [(arm, [row for row in kept if row.arm == arm]) for arm in arms]
    found = []
    for scope, part in ((POOLED, kept), (WITHIN, kept), *own):
        values = {row.session_id: row.total(total) or 0.0 for row in part}
        words = {row.session_id: row.numbers[LENGTH] for row in part}
        one = _correlation(part, words, values, is_within=scope == WITHIN)
        if one is not None:
            fields = {"instrument": instrument, "total": total, "scope": scope, **one}
            found.append(LengthCorrelation(**fields))
    return found


def halo_rows(tables: Mapping[str, tuple[str, Scores]]) -> list[HaloRow]:
    """Correlation of every two instruments over sessions with both totals, within arms and pooled.

    Within arms, since arms that differ in quality set any two sound instruments in step.

    Args:
        tables: instrument to its headline total and its rows.
    """
    values = {
        name: {row.session_id: value for row in rows if (value := row.total(total)) is not None}
        for name, (total, rows) in tables.items()
    }
    found = []
    for first, second in combinations(values, 2):
        shared = [row for row in tables[first][1] if row.session_id in values[first]]
        shared = [row for row in shared if row.session_id in values[second]]
        for scope in (WITHIN, POOLED):
            one = _correlation(shared, values[first], values[second], is_within=scope == WITHIN)
            if one is not None:
                found.append(HaloRow(first=first, second=second, scope=scope, **one))
    return found


def _correlation(
    rows: Scores, first: Mapping[str, float], second: Mapping[str, float], *, is_within: bool
) -> dict[str, Any] | None:
    """The fields of a `Correlation` of two values of each session."""
    a, b = (
        np.array([values[row.session_id] for row in rows], dtype=np.float64)
        for values in (first, second)
    )
    arms = [row.arm for row in rows] if is_within else None
    found = clustered_correlation(a, b, [row.patient for row in rows], arms)
    return None if found is None else {"n": len(rows), **found._asdict()}
