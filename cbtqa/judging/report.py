"""The judge's report: means with intervals, differences of systems, use of the scale, what people
say of it, alarms.

Without human ratings the report states that a judge's mean is uncorrected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product

import numpy as np
from pydantic import Field

from cbtqa.judging.agreement import (
    Cells,
    Consistency,
    Correction,
    CriterionAgreement,
    agreement_on,
    cells_of,
    corrected_by,
    means_of,
    self_alpha,
)
from cbtqa.judging.answers import AnswerCounts, HumanRatings, JudgeRating
from cbtqa.judging.correction import LEVEL, HumanSample, is_beyond
from cbtqa.judging.rules import RULES
from cbtqa.metrics.base import Signature
from cbtqa.ratings.rubric import Criterion, Rubric
from cbtqa.records import MetricScore, Record
from cbtqa.report.page import Phrase, load_wording, same
from cbtqa.report.table import Cell, Column, Estimate, Table
from cbtqa.report.words import GAP, count, number, p_value, share, signed
from cbtqa.statistics.intervals import mean_interval
from cbtqa.statistics.resampling import (
    FEW_ITEMS,
    FEWEST_SWAPPED,
    ROUNDING,
    Interval,
    holm,
    randomisation_p,
    swapped_sums,
    why_unreliable,
)

ONE_POINT, MUCH_UNSCORED, MUCH_BIAS = 0.9, 0.05, 0.25
"""Alarms: share of one point of the scale; share without a rating; bias by share of the range. The
first and the last are raised when the whole 95 % interval lies beyond; what has no rating is
counted, not estimated."""


class RangeUse(Record):
    """How often each point was given, unscored ones by reason."""

    system: str
    criterion: str
    points: dict[int, int]
    unscored: dict[str, int]


class JudgedDifference(Record):
    """Two systems on one criterion, on the questions of which the judge rated both answers."""

    criterion: str
    first: str
    second: str
    difference: float | None
    """Mean of `second` less mean of `first`, in points of the scale; None without a question."""
    low: float | None = None
    """95 % interval; questions are random."""
    high: float | None = None
    interval_reason: str | None = None
    p: float | None = None
    """Two-sided, by approximate randomisation over questions."""
    p_reason: str | None = None
    p_holm: float | None = None
    """Adjusted for every p of the report."""
    n_questions: int
    n_wins: int
    """Questions on which `second` is rated higher."""
    n_losses: int
    n_ties: int


class JudgeReport(Record):
    """Everything the judge's ratings come to."""

    judge: str
    rubric: str
    n_repeats: int
    answers: tuple[AnswerCounts, ...] = ()
    scores: tuple[MetricScore, ...]
    differences: tuple[JudgedDifference, ...] = ()
    use: tuple[RangeUse, ...]
    consistency: tuple[Consistency, ...]
    agreement: tuple[CriterionAgreement, ...] = ()
    corrections: tuple[Correction, ...] = ()
    alarms: tuple[str, ...] = ()
    alarms_zh: tuple[str, ...] = ()
    """The same ones in Chinese, in this order."""
    n_human_passed_over: int = Field(default=0, ge=0)
    human_sample: HumanSample | None = None
    """How the answers that people rated were drawn; None where nobody said."""

    @property
    def is_by_rules(self) -> bool:
        """Whether the built-in rules rated, and no model."""
        return self.judge == RULES

    @property
    def judge_name(self) -> Phrase:
        """For people; a judge that is no model says so."""
        return _words()["rules.name"] if self.is_by_rules else same(self.judge or GAP)


def make_report(
    ratings: Sequence[JudgeRating],
    rubric: Rubric,
    answers: Sequence[AnswerCounts],
    signature: Signature,
    n_repeats: int,
    human: HumanRatings | None,
    sample: HumanSample | None = None,
) -> JudgeReport:
    """The report of one judge.

    Args:
        answers: each system's questions; unanswered ones count in the total of its means.
        sample: how the answers that people rated were drawn from those judged, where it is known.
    """
    cells = cells_of(ratings)
    totals = {one.system: one.n_questions for one in answers}
    scores, use = [], []
    for system, n_total in totals.items():
        for criterion in rubric.scales:
            own = [one for one in ratings if (one.system, one.criterion) == (system, criterion.id)]
            scores.append(_score(system, criterion, cells[criterion.id], n_total, signature))
            use.append(_range_use(system, criterion, own))
    agreement, corrections = list[CriterionAgreement](), list[Correction]()
    if human:
        values = human.values
        agreement = [agreement_on(one, cells[one.id], values[one.id]) for one in rubric.scales]
        corrections = corrected_by(rubric, totals, cells, human, sample)
    alarms = [
        *_rules_alarms(ratings),
        *_unanswered_alarms(answers),
        *_use_alarms(rubric, totals, cells, use),
        *(_unused_alarms(rubric, totals, cells, human) if human else _alone_alarms(ratings)),
        *_people_alarms(rubric, agreement, corrections),
    ]
    return JudgeReport(
        judge=ratings[0].judge if ratings else "",
        rubric=rubric.versioned_id,
        n_repeats=n_repeats,
        answers=tuple(answers),
        scores=tuple(scores),
        differences=tuple(_differences(rubric, list(totals), cells)),
        use=tuple(use),
        consistency=tuple(
            Consistency(criterion=one.id, alpha=self_alpha(cells[one.id], n_repeats))
            for one in rubric.scales
        ),
        agreement=tuple(agreement),
        corrections=tuple(corrections),
        alarms=tuple(one.en for one in alarms),
        alarms_zh=tuple(one.zh for one in alarms),
        n_human_passed_over=human.n_passed_over if human else 0,
        human_sample=sample if human else None,
    )


def _range_use(system: str, criterion: Criterion, ratings: Sequence[JudgeRating]) -> RangeUse:
    points = Counter(one.value for one in ratings if one.value is not None)
    return RangeUse(
        system=system,
        criterion=criterion.id,
        points={point: points[point] for point in criterion.points},
        unscored=dict(Counter(one.unscored_reason for one in ratings if one.unscored_reason)),
    )


def _score(
    system: str, criterion: Criterion, cells: Cells, n_total: int, signature: Signature
) -> MetricScore:
    """The judge's own mean, uncorrected; its interval is over questions."""
    values = np.array([mean for key, mean in means_of(cells).items() if key[1] == system])
    interval = Interval(None, None, None, 0)
    if len(values):
        interval = mean_interval(values, scale=(criterion.low, criterion.high))
    return MetricScore(
        metric=f"judge_{criterion.id}",
        system=system,
        value=float(values.mean()) if len(values) else None,
        low=interval.low,
        high=interval.high,
        interval_reason=interval.reason,
        unit=f"{criterion.low}-{criterion.high}",
        n_scored=len(values),
        n_total=n_total,
        signature=str(signature.extended(criterion=criterion.id)),
        unscored_reason=None if len(values) else "no answer has a rating of the judge",
    )


def _differences(
    rubric: Rubric, systems: Sequence[str], cells: Mapping[str, Cells]
) -> list[JudgedDifference]:
    """Every pair of systems on every criterion; p adjusted over all of them."""
    found = [
        _difference(criterion, pair, means_of(cells[criterion.id]))
        for pair, criterion in product(combinations(systems, 2), rubric.scales)
    ]
    tested = [place for place, one in enumerate(found) if one.p is not None]
    adjusted = holm([found[place].p or 0.0 for place in tested])
    for place, p in zip(tested, adjusted, strict=True):
        found[place] = found[place].model_copy(update={"p_holm": p})
    return found


def _difference(
    criterion: Criterion, pair: tuple[str, str], means: Mapping[tuple[str, str], float]
) -> JudgedDifference:
    """Second less first, question by question: what questions are alike in drops out."""
    first, second = pair
    shared = [q for q, system in means if system == first and (q, second) in means]
    sides = np.array([[means[q, first], means[q, second]] for q in shared]).reshape(-1, 2)
    gaps, n = sides[:, 1] - sides[:, 0], len(shared)
    span = float(criterion.high - criterion.low)
    interval = mean_interval(gaps, scale=(-span, span))
    reason = why_unreliable(n, 0, 0, FEWEST_SWAPPED)
    p = None
    if reason is None:
        kept, swapped = swapped_sums(sides[:, :1], sides[:, 1:])
        observed = float(gaps.sum())
        # means of repeats add up to equal sums but for rounding
        is_equal = abs(observed) <= ROUNDING * max(1.0, float(np.abs(sides).sum()))
        p = 1.0 if is_equal else randomisation_p(kept[:, 0], swapped[:, 0], observed)
    return JudgedDifference(
        criterion=criterion.id,
        first=first,
        second=second,
        difference=float(gaps.mean()) if n else None,
        low=interval.low,
        high=interval.high,
        interval_reason=interval.reason,
        p=p,
        p_reason=reason,
        n_questions=n,
        n_wins=int(np.sum(gaps > ROUNDING)),
        n_losses=int(np.sum(gaps < -ROUNDING)),
        n_ties=int(np.sum(np.abs(gaps) <= ROUNDING)),
    )


Names = Mapping[str, Phrase]
"""Of criteria by id, for people; without one, a criterion is shown by its id."""


def _words() -> dict[str, Phrase]:
    return load_wording("cbtqa.judging", "page.yaml")


def _names(rubric: Rubric) -> Names:
    """English has the criterion's id, as files do."""
    return {one.id: Phrase(zh=one.name.first("zh"), en=one.id) for one in rubric.scales}


def _listed(names: Iterable[Phrase]) -> Phrase:
    found = list(names)
    return Phrase(zh="、".join(o.zh for o in found), en=", ".join(o.en for o in found))


def _rules_alarms(ratings: Sequence[JudgeRating]) -> list[Phrase]:
    """The judge is no model."""
    return [_words()["alarm.rules"]] if ratings and ratings[0].judge == RULES else []


def _alone_alarms(ratings: Sequence[JudgeRating]) -> list[Phrase]:
    """Nobody to check a model against; the rules are not even one."""
    return [] if _rules_alarms(ratings) else [_words()["alarm.alone"]]


def _unanswered_alarms(answers: Iterable[AnswerCounts]) -> list[Phrase]:
    """Questions without an answer: a mean over the others may flatter."""
    return [
        _words()["alarm.unanswered"].fill(
            system=one.system,
            n=count(one.n_without_text),
            n_all=count(one.n_questions),
            n_missing=count(one.n_missing),
        )
        for one in answers
        if one.n_without_text
    ]


def _use_alarms(
    rubric: Rubric,
    systems: Iterable[str],
    cells: Mapping[str, Cells],
    use: Sequence[RangeUse],
) -> list[Phrase]:
    """One point for nearly all answers, and ratings that are missing."""
    alarms, words, names = [], _words(), _names(rubric)
    for system, criterion in product(systems, rubric.scales):
        own = [cell for key, cell in cells[criterion.id].items() if key[1] == system and cell]
        for point in criterion.points if len(own) >= FEW_ITEMS else ():
            # an answer counts once, however often it was rated
            shares = [sum(v == point for v in cell.values()) / len(cell) for cell in own]
            mean, interval = float(np.mean(shares)), mean_interval(shares, scale=(0, 1))
            if is_beyond(mean, interval[:2], len(own), ONE_POINT):
                what = {"system": system, "criterion": names[criterion.id], "point": point}
                alarms.append(words["alarm.one_point"].fill(**what, share=share(mean, 0)))
    for one in use:
        n_scored, n_unscored = sum(one.points.values()), sum(one.unscored.values())
        if n_unscored and n_unscored / (n_scored + n_unscored) > MUCH_UNSCORED:
            alarms.append(
                words["alarm.unscored"].fill(
                    system=one.system,
                    criterion=names[one.criterion],
                    share=share(n_unscored / (n_scored + n_unscored), 0),
                    reasons=", ".join(f"{reason} {n}" for reason, n in one.unscored.items()),
                )
            )
    return alarms


def _unused_alarms(
    rubric: Rubric, systems: Iterable[str], cells: Mapping[str, Cells], human: HumanRatings
) -> list[Phrase]:
    """Points that the judge never gives, where people gave them too often for that to be chance.

    Whether a point is missing by fault, or because no answer earns it, only people can say. If the
    judge were one more person, each answer's ratings could change places: of an answer with m human
    ratings, h of them this point, the judge's would be another one with probability
    (m + 1 - h) / (m + 1). The p-value is the product over answers; Holm over all points.
    """
    found, values, names = [], [], _names(rubric)
    for system, criterion in product(systems, rubric.scales):
        own = {key: cell for key, cell in cells[criterion.id].items() if key[1] == system and cell}
        given = {value for cell in own.values() for value in cell.values()}
        people = human.values[criterion.id]
        rated = [list(people[key].values()) for key in own if key in people]
        for point in criterion.points:
            n_given = sum(one.count(point) for one in rated)
            if point not in given and n_given:
                ratios = [(len(one) + 1 - one.count(point)) / (len(one) + 1) for one in rated]
                values.append(math.prod(ratios))
                what = {"system": system, "criterion": names[criterion.id], "point": point}
                found.append(_words()["alarm.never"].fill(**what, n=n_given))
    return [text for text, p in zip(found, holm(values), strict=True) if p < LEVEL]


def _people_alarms(
    rubric: Rubric, agreement: Sequence[CriterionAgreement], corrections: Sequence[Correction]
) -> list[Phrase]:
    """Bias, and what corrected means rest on."""
    alarms, words, names = [], _words(), _names(rubric)

    def told(kind: str, what: Iterable[Phrase], **values: object) -> None:
        alarms.append(words[f"alarm.{kind}"].fill(what=_listed(what), **values))

    def named(one: Correction) -> Phrase:
        name = names[one.criterion]
        return Phrase(zh=f"{one.system} {name.zh}", en=f"{one.system} {name.en}")

    if open_ones := [names[found.criterion] for found in agreement if not found.n_items]:
        told("unrated", open_ones)
    widths = {criterion.id: criterion.high - criterion.low for criterion in rubric.scales}
    for found in agreement:
        limit = MUCH_BIAS * widths[found.criterion]
        ends = found.bias_low, found.bias_high
        if found.bias and is_beyond(found.bias, ends, found.n_items, limit):
            kind = "milder" if found.bias > 0 else "stricter"
            told(kind, [names[found.criterion]], by=number(abs(found.bias)))
    corrected = [one for one in corrections if one.corrected]
    if corrected and all(one.corrected and one.corrected.n_raters == 1 for one in corrected):
        alarms.append(words["alarm.one_person"])
    if near := [named(o) for o in corrected if o.corrected and o.corrected.is_near_end]:
        told("near_end", near)
    tested = [one for one in corrected if one.selection_p is not None]
    ps = holm([one.selection_p or 0.0 for one in tested])
    if other := [named(o) for o, p in zip(tested, ps, strict=True) if p < LEVEL]:
        told("chosen", other)
    if few := sorted({one.system for one in corrected if one.n_human < FEW_ITEMS}):
        told("few", map(same, few), n=FEW_ITEMS)
    for reason in dict.fromkeys(one.reason for one in corrections if one.reason):
        alike = [one for one in corrections if one.reason == reason]
        everywhere = len(alike) == len(corrections)
        told(
            "uncorrected",
            [words["alarm.all_means"]] if everywhere else map(named, alike),
            reason=reason,
        )
    return alarms


def _row(what: Phrase, criterion: str, names: Names | None, **values: object) -> Phrase:
    """The head of a row in both languages; English has the criterion's id, as files do."""
    name = (names or {}).get(criterion, same(criterion))
    return what.fill(criterion=Phrase(zh=name.first("zh"), en=criterion), **values)


def score_table(report: JudgeReport, names: Names | None = None) -> Table:
    """The judge's means beside those of people, and as people would rate."""
    words = _words()
    corrected = {(one.system, one.criterion): one for one in report.corrections}
    rows: list[tuple[Cell, ...]] = []
    for score in report.scores:
        criterion = score.metric.removeprefix("judge_")
        found = corrected.get((score.system, criterion))
        held = found.corrected if found else None
        # why a mean is not corrected is one of the alarms: here it would widen every row
        corrected_cell: Cell = Estimate(None) if found else None
        if held:
            corrected_cell = Estimate(held.value, held.low, held.high, held.interval_reason)
        rows.append(
            (
                _row(words["tables.score"], criterion, names, system=score.system, unit=score.unit),
                Estimate(score.value, score.low, score.high, score.unscored_reason),
                Estimate(found.human_mean, note=f"(n {found.n_human})") if found else None,
                corrected_cell,
                f"{count(score.n_scored)}/{count(score.n_total)}",
            )
        )
    judge = "by_rules" if report.is_by_rules else "judge"
    heads = (Column(words[f"tables.{name}"], number) for name in (judge, "people", "corrected"))
    title = words["tables.scores"].fill(
        judge=report.judge_name, rubric=report.rubric, n=report.n_repeats
    )
    return Table([words["tables.of_system"], *heads, words["tables.scored"]], rows, title)


def difference_table(report: JudgeReport, names: Names | None = None) -> Table:
    """Every pair of systems on every criterion."""
    words = _words()
    rows: list[tuple[Cell, ...]] = [
        (
            _row(words["tables.pair"], one.criterion, names, second=one.second, first=one.first),
            Estimate(one.difference, one.low, one.high, one.interval_reason, show=signed),
            Estimate(one.p, reason=one.p_reason, show=p_value),
            Estimate(one.p_holm, show=p_value),
            f"{one.n_wins}/{one.n_losses}/{one.n_ties}",
            one.n_questions,
        )
        for one in report.differences
    ]
    heads = [words["tables.difference"], words["tables.points"], same("p"), same("Holm")]
    n_tests = sum(one.p is not None for one in report.differences)
    title = words["tables.differences"].fill(n=n_tests)
    return Table([*heads, words["tables.won"], same("n")], rows, title)


def agreement_table(report: JudgeReport, names: Names | None = None) -> Table:
    """The judge with people, over all answers and within systems, people with each other, the
    judge with itself."""
    words = _words()
    rows: list[tuple[Cell, ...]] = []

    def head(kind: str, criterion: str, measure: str = "") -> Phrase:
        return _row(words[f"tables.{kind}"], criterion, names, measure=measure)

    for found in report.agreement:
        within = {one.name: Estimate.of(one) for one in found.judge_human_within}
        rows += [
            (head("with_people", found.criterion, one.name), Estimate.of(one), cell, one.n_items)
            for one in found.judge_human
            for cell in (within.get(one.name),)
        ]
        rows += [
            (head("among_people", found.criterion, one.name), Estimate.of(one), None, one.n_items)
            for one in found.human_human
        ]
        if found.bias is not None:
            bias = Estimate(
                found.bias, found.bias_low, found.bias_high, found.bias_reason, show=signed
            )
            rows.append((head("less_people", found.criterion), bias, None, found.n_items))
    for criterion, alpha in ((one.criterion, one.alpha) for one in report.consistency):
        name = head("with_itself", criterion, alpha.name)
        rows.append((name, Estimate.of(alpha), None, alpha.n_items))
    heads = [*(words[f"tables.{name}"] for name in ("what", "value", "within")), same("n")]
    if not any(row[2] for row in rows):
        heads, rows = [*heads[:2], heads[3]], [(*row[:2], row[3]) for row in rows]
    return Table(heads, rows, words["tables.agreement"])


def report_tables(report: JudgeReport) -> list[Table]:
    """Means, differences where there are two systems, agreement."""
    differences = [difference_table(report)] if report.differences else []
    return [score_table(report), *differences, agreement_table(report)]


def report_markdown(report: JudgeReport) -> str:
    """The tables, alarms and signatures as one document."""
    tables = (f"## {one.title_in()}\n\n{one.markdown()}" for one in report_tables(report))
    alarms = "".join(f"- {alarm}\n" for alarm in report.alarms)
    signatures = dict.fromkeys(score.signature for score in report.scores)
    lines = "".join(f"- `{signature}`\n" for signature in signatures)
    return "\n".join(
        [*tables, *([f"## Alarms\n\n{alarms}"] if alarms else []), f"## Signatures\n\n{lines}"]
    )
