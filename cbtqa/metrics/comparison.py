"""`cbtqa compare`: is one system better than another, by how much, and where.

For every metric and pair of systems: the difference with its bootstrap interval, a paired test
with Holm's correction over the whole table, and on how many questions each system wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from cbtqa.errors import UsageError
from cbtqa.files import write_json, write_text
from cbtqa.metrics.base import Floats, Metric
from cbtqa.metrics.contenders import (
    Bools,
    Contender,
    gather,
    on_same_rows,
    refuse_other_references,
    shared_metrics,
    with_one_grouping,
)
from cbtqa.metrics.evaluation import OnBlock
from cbtqa.metrics.grouping import Grouping
from cbtqa.metrics.page import compare_page
from cbtqa.metrics.scoring import Scored, ScoreSettings
from cbtqa.metrics.tables import METRIC, Missing, decimals, explained, label_of
from cbtqa.records import Record
from cbtqa.report.page import Lang, Phrase
from cbtqa.report.table import Cell, Column, Estimate, Table
from cbtqa.report.words import digits, number, p_value, signed
from cbtqa.statistics.intervals import jackknife_interval, ratio_interval
from cbtqa.statistics.resampling import (
    BOOTSTRAP_TRIALS,
    FEW_ITEMS,
    FEWEST_FOR_BOOTSTRAP,
    FEWEST_SCORED,
    FEWEST_SWAPPED,
    RANDOMISATION_TRIALS,
    Interval,
    PConvention,
    bootstrap_p,
    bootstrap_sums,
    defined_interval,
    holm,
    randomisation_p,
    sum_by_cluster,
    swapped_sums,
    why_unreliable,
)

Pair = tuple[Contender, Contender]
"""Baseline and system."""
Halves = tuple[Floats, Floats]
"""Of the baseline and of the system: sums or scores, one row a resample."""
TIE = 1e-9
"""Scores of a pair closer than this count as equal; they differ only in rounding."""


class CompareSettings(ScoreSettings):
    """The settings of `cbtqa compare`: those of `cbtqa score` and these."""

    predictions: tuple[Path, ...] = ()
    """Files with predictions, or folders made by cbtqa score --out."""
    anchors: bool = False
    """Also compare with the anchor rows."""
    baseline: str | None = None
    """Compare only with this system; otherwise all pairs."""
    test: Literal["ar", "bs"] = "ar"
    """Paired test: ar approximate randomisation, bs bootstrap."""
    bootstrap: int = Field(default=BOOTSTRAP_TRIALS, ge=1)
    """Resamples for intervals and --test bs."""
    trials: int = Field(default=RANDOMISATION_TRIALS, ge=1)
    """Trials of the randomisation test."""
    p_convention: PConvention = "ties"
    """What counts towards p: ties, every trial at least as far apart as the systems; sacrebleu,
    only those farther apart, to match its printed p."""
    common: bool = False
    """Compare on the questions that all systems answered."""
    by: str | None = None
    """Metric that picks the examples; the first one otherwise."""
    examples: int = Field(default=20, ge=0)
    """Best and worst pairs to show."""


class PairComparison(Record):
    """One metric, two systems, on the questions where it applies to both; None is unknown."""

    metric: str
    unit: str
    baseline: str
    system: str
    baseline_value: float | None = None
    system_value: float | None = None
    difference: float | None = None
    """System minus baseline, in the metric's unit."""
    unscored_reason: str | None = None
    """Why there are no values: the metric applies to no question on both sides."""
    low: float | None = None
    high: float | None = None
    """95 % bootstrap interval of the difference."""
    interval_reason: str | None = None
    """Why there is no interval."""
    n_left_out: int = 0
    """Resamples left out of the interval because the metric is undefined in them."""
    p: float | None = None
    p_adjusted: float | None = None
    """After Holm over every p of the comparison: all metrics, all pairs of systems."""
    p_reason: str | None = None
    """Why there is no p."""
    test: str
    """Test, trials, seed and convention of p, as `ar:10000|seed:12345|p:ties`."""
    n: int
    """Answers to which the metric applies in both systems."""
    n_total: int
    """Answers compared, whether the metric applies or not."""
    n_wins: int = 0
    """Those of the `n` on which the system scores above the baseline."""
    n_losses: int = 0
    n_ties: int = 0
    win_rate: float | None = None
    """Wins and half the ties, by `n`."""
    win_low: float | None = None
    """Lower end of its 95 % interval."""
    win_high: float | None = None
    win_interval_reason: str | None = None
    signature: str


class Example(Record):
    """One question on which two systems differ much."""

    metric: str
    baseline: str
    system: str
    id: str
    asked: str = ""
    """The question with its description; empty where the references do not name it."""
    difference: float
    baseline_text: str
    system_text: str
    reference_text: str


class Comparison(Record):
    """Everything `cbtqa compare` found."""

    references: str
    pairs: tuple[PairComparison, ...]
    best: tuple[Example, ...]
    """Where the system gains most over the baseline."""
    worst: tuple[Example, ...]
    warnings: tuple[str, ...]
    grouping: Grouping = Grouping()
    """What intervals and tests draw."""


def compare(
    settings: CompareSettings,
    on_block: OnBlock = lambda n_done, n_total: None,
    scored: Sequence[Scored] = (),
) -> Comparison:
    """Compares systems on the questions that they share.

    Args:
        scored: results of `score`, beside what the settings name.
        on_block: called with the references scored so far and their number.

    Raises:
        UsageError: fewer than two systems, an unknown baseline or metric, or too few questions
            for the test.
        DataError: the systems were scored on other questions, references or settings.
    """
    contenders = gather(settings, on_block, scored)
    refuse_other_references(contenders)
    contenders = with_one_grouping(contenders)
    contenders = on_same_rows(contenders, is_common=settings.common)
    _refuse_bootstrap_test_of_few(contenders[0], settings)
    metrics = shared_metrics(contenders)
    by = _metric_for_examples(metrics, settings.by)
    pairs = _pairs(contenders, settings.baseline)
    best, worst = _examples(pairs, by, settings.examples)
    grouping = contenders[0].grouping
    return Comparison(
        grouping=grouping,
        references=contenders[0].references.name,
        pairs=tuple(compare_pairs(metrics, pairs, settings)),
        best=tuple(best),
        worst=tuple(worst),
        warnings=(*_warnings(contenders[0], settings), *grouping.warnings),
    )


def _metric_for_examples(metrics: Sequence[Metric], name: str | None) -> Metric:
    by_name = {metric.name: metric for metric in metrics}
    if name is not None and name not in by_name:
        raise UsageError(f"no metric '{name}' to pick examples by", hint=", ".join(by_name))
    return by_name[name] if name else metrics[0]


def _pairs(contenders: Sequence[Contender], baseline: str | None) -> list[Pair]:
    by_name = {contender.name: contender for contender in contenders}
    if baseline is None:
        return list(combinations(contenders, 2))
    if baseline not in by_name:
        raise UsageError(f"no system '{baseline}'", hint=f"systems: {', '.join(by_name)}")
    return [(by_name[baseline], other) for other in contenders if other.name != baseline]


def compare_pairs(
    metrics: Sequence[Metric], pairs: Sequence[Pair], settings: CompareSettings
) -> list[PairComparison]:
    """Every metric of every pair; the systems answer the same questions."""
    by_pair = [_compare_pair(pair, metrics, settings) for pair in pairs]
    rows = [one for of_metric in zip(*by_pair, strict=True) for one in of_metric]
    adjusted = iter(holm([one.p for one in rows if one.p is not None]))
    return [
        one.model_copy(update={"p_adjusted": None if one.p is None else next(adjusted)})
        for one in rows
    ]


def _compare_pair(
    pair: Pair, metrics: Sequence[Metric], settings: CompareSettings
) -> list[PairComparison]:
    """Every metric, without the adjustment for the others."""
    first, second = pair
    is_compared = [first.is_scored(metric) & second.is_scored(metric) for metric in metrics]
    sides = [one.stacked(metrics, is_compared) for one in pair]
    by_question: Halves = (sides[0], sides[1])
    drawn: Halves = (np.empty((0, sides[0].shape[1])),) * 2
    if settings.test == "bs" or settings.interval == "percentile":
        # the seed gives all pairs the same draws, so that their differences are comparable
        sums = bootstrap_sums(np.concatenate(sides, axis=1), settings.bootstrap, settings.seed)
        drawn = (sums[:, : sides[0].shape[1]], sums[:, sides[0].shape[1] :])
    tested = drawn
    if settings.test == "ar":
        tested = swapped_sums(*by_question, settings.trials, settings.seed)
    ends = np.cumsum([0, *(metric.n_columns for metric in metrics)]).tolist()
    slices = [slice(start, end) for start, end in pairwise(ends)]
    return [
        _compare_metric(
            pair,
            metric,
            counts,
            _Material(*(_columns_of(halves, columns) for halves in (by_question, drawn, tested))),
            settings,
        )
        for metric, counts, columns in zip(metrics, is_compared, slices, strict=True)
    ]


class _Material(NamedTuple):
    """Sums of one metric of both systems."""

    by_question: Halves
    drawn: Halves
    """Of the bootstrap's resamples; none where they are not needed."""
    tested: Halves
    """Of the test's."""


def _columns_of(halves: Halves, columns: slice) -> Halves:
    return halves[0][:, columns], halves[1][:, columns]


def _compare_metric(
    pair: Pair,
    metric: Metric,
    is_compared: Bools,
    material: _Material,
    settings: CompareSettings,
) -> PairComparison:
    n = int(is_compared.sum())
    n_trials = settings.bootstrap if settings.test == "bs" else settings.trials
    known: dict[str, Any] = {
        "metric": metric.name,
        "unit": metric.unit,
        "baseline": pair[0].name,
        "system": pair[1].name,
        "test": f"{settings.test}:{n_trials}|seed:{settings.seed}|p:{settings.p_convention}",
        "n": n,
        "n_total": len(is_compared),
        "signature": pair[0].reported[metric.name].signature,
    }
    if n == 0:
        reason = _why_not_compared(pair, metric)
        reasons = ("unscored_reason", "interval_reason", "p_reason")
        return PairComparison(**known, **dict.fromkeys(reasons, reason))
    first, second = (
        float(metric.from_sums(one.scores.matrices[metric.name][is_compared].sum(0)))
        for one in pair
    )
    gains = np.where(is_compared, _gains(pair, metric), 0.0)
    n_wins, n_losses = int(np.sum(gains > TIE)), int(np.sum(gains < -TIE))
    won = np.where(is_compared, 0.5 + 0.5 * (gains > TIE) - 0.5 * (gains < -TIE), 0.0)
    wins, sizes = sum_by_cluster(np.stack([won, is_compared], axis=1), pair[0].questions).T
    n_questions = int(np.count_nonzero(sizes))
    interval = _interval(metric, material, sizes, settings)
    win_interval = ratio_interval(wins, sizes, scale=(0, 1), word="question")
    scores = metric.from_sums(material.tested[0]), metric.from_sums(material.tested[1])
    p, p_reason = _p_value(scores, second - first, n_questions, settings)
    return PairComparison(
        **known,
        baseline_value=first,
        system_value=second,
        difference=second - first,
        low=interval.low,
        high=interval.high,
        interval_reason=interval.reason,
        n_left_out=interval.n_left_out,
        p=p,
        p_adjusted=p,
        p_reason=p_reason,
        n_wins=n_wins,
        n_losses=n_losses,
        n_ties=n - n_wins - n_losses,
        win_rate=0.5 + (n_wins - n_losses) / (2 * n),
        win_low=win_interval.low,
        win_high=win_interval.high,
        win_interval_reason=win_interval.reason,
    )


def _interval(
    metric: Metric, material: _Material, sizes: Floats, settings: CompareSettings
) -> Interval:
    """Of the difference; questions are drawn, each with all answers of both systems to it.

    Args:
        sizes: answers compared, by question.
    """
    if settings.interval == "percentile":
        first, second = (metric.from_sums(side) for side in material.drawn)
        return defined_interval(second - first, int(np.count_nonzero(sizes)))
    first, second = (side[sizes > 0] for side in material.by_question)
    (one, one_left), (other, other_left) = (
        (float(metric.from_sums(rows.sum(0))), metric.from_sums(rows.sum(0) - rows))
        for rows in (first, second)
    )
    found = jackknife_interval(other - one, other_left - one_left, first[:, metric.weight_column])
    shares = metric.as_share(first), metric.as_share(second)
    if found.low is None and shares[0] and shares[1]:  # alike on every question, or on two
        (hits, n), (more_hits, more) = shares[0], shares[1]
        if np.array_equal(n, more):
            return ratio_interval(more_hits - hits, n, scale=(-1, 1), word="question")
    return found


def _p_value(
    tested: Halves, difference: float, n_questions: int, settings: CompareSettings
) -> tuple[float | None, str | None]:
    """p from the resamples in which both systems have a score, or why there is none."""
    is_defined = ~np.isnan(tested[0] + tested[1])
    n_left_out = int(np.sum(~is_defined))
    fewest = FEWEST_SWAPPED if settings.test == "ar" else FEWEST_SCORED
    if reason := why_unreliable(n_questions, n_left_out, len(is_defined), fewest):
        return None, reason
    first, second = tested[0][is_defined], tested[1][is_defined]
    if settings.test == "ar":
        return randomisation_p(first, second, difference, settings.p_convention), None
    if settings.p_convention == "ties" and n_questions < FEWEST_FOR_BOOTSTRAP:
        return None, f"--test bs on {n_questions} questions, fewer than {FEWEST_FOR_BOOTSTRAP}"
    return bootstrap_p(first, second, difference, settings.p_convention), None


def _why_not_compared(pair: Pair, metric: Metric) -> str:
    """Of two systems that share no question to which the metric applies."""
    reasons = {one.name: one.reported[metric.name].unscored_reason for one in pair}
    given = {name: reason for name, reason in reasons.items() if reason}
    if not given:
        return "no question to which it applies in both systems"
    if len(given) == len(pair) and len(set(given.values())) == 1:
        return next(iter(given.values()))
    return "; ".join(f"{name}: {reason}" for name, reason in given.items())


def _gains(pair: Pair, metric: Metric) -> Floats:
    """System minus baseline for each question; NaN where either is not scored."""
    first, second = (metric.per_pair(one.scores.matrices[metric.name]) for one in pair)
    return second - first


def _examples(
    pairs: Sequence[Pair], metric: Metric, n_examples: int
) -> tuple[list[Example], list[Example]]:
    """The questions on which each pair's second system gains and loses most."""
    best: list[Example] = []
    worst: list[Example] = []
    for pair in pairs:
        gains = np.nan_to_num(_gains(pair, metric))
        order = np.argsort(gains, kind="stable").tolist()
        gained = [place for place in order[::-1][:n_examples] if gains[place] > TIE]
        lost = [place for place in order[:n_examples] if gains[place] < -TIE]
        best += [_example(pair, metric, place, float(gains[place])) for place in gained]
        worst += [_example(pair, metric, place, float(gains[place])) for place in lost]
    return best, worst


def _example(pair: Pair, metric: Metric, place: int, gain: float) -> Example:
    row = int(pair[0].scores.rows[place])
    ours = [one.answers.items[row] for one in pair]
    known = pair[0].references
    reference = known.items[row]
    return Example(
        metric=metric.name,
        baseline=pair[0].name,
        system=pair[1].name,
        id=known.ids[row],
        asked=known.asked[row] if known.asked else "",
        difference=gain,
        baseline_text=ours[0].text if ours[0] else "",
        system_text=ours[1].text if ours[1] else "",
        reference_text=reference.text if reference else "",
    )


def _refuse_bootstrap_test_of_few(contender: Contender, settings: CompareSettings) -> None:
    """sacrebleu's convention is left to those who ask for it by name."""
    n_questions = len(set(contender.questions))
    if (
        settings.test == "bs"
        and settings.p_convention != "sacrebleu"
        and n_questions < FEWEST_FOR_BOOTSTRAP
    ):
        raise UsageError(
            f"--test bs finds too many differences on {n_questions} questions; it needs "
            f"{FEWEST_FOR_BOOTSTRAP}",
            hint="use --test ar, which holds on any number",
        )


def _warnings(contender: Contender, settings: CompareSettings) -> list[str]:
    found = []
    n_questions = len(set(contender.questions))
    if n_questions < FEW_ITEMS:
        found.append(
            f"only {n_questions} questions: below {FEW_ITEMS}, intervals and tests say little"
        )
    if settings.test == "bs" and n_questions < FEWEST_FOR_BOOTSTRAP:
        found.append(f"the bootstrap test is too sure on {n_questions} questions; prefer --test ar")
    if settings.p_convention == "sacrebleu" and settings.test == "bs":
        found.append(
            "p of the bootstrap in sacrebleu's convention is one-sided: two equal systems get "
            "p <= .05 in 11 to 17 of 100 comparisons, on any number of questions"
        )
    elif settings.p_convention == "sacrebleu":
        found.append(
            "p in sacrebleu's convention leaves ties out: it is too small where few differ"
        )
    if settings.interval == "percentile" and n_questions < FEWEST_FOR_BOOTSTRAP:
        found.append(f"percentile intervals are too narrow on {n_questions} questions")
    return found


COMPARISON_NAME, PAGE_NAME = "compare.json", "compare.html"
DIFFERENCE = Phrase(zh="差别 [95% 区间]", en="difference [95% interval]")
WIN_RATE = Phrase(zh="胜率", en="win rate")


def pair_tables(comparison: Comparison) -> list[Table]:
    """One table a pair of systems, one row a metric."""
    by_pair: dict[tuple[str, str], list[tuple[Cell, ...]]] = {}
    for one in comparison.pairs:
        n = decimals(one.unit)
        applies = f"({one.n}/{one.n_total})" if one.n < one.n_total else ""
        by_pair.setdefault((one.baseline, one.system), []).append(
            (
                f"{label_of(one.metric)} ({one.unit})",
                number(one.baseline_value, n),
                number(one.system_value, n),
                Estimate(one.difference, one.low, one.high, show=partial(signed, digits=n)),
                *(one.p, one.p_adjusted),
                Estimate(one.win_rate, one.win_low, one.win_high, note=applies, show=digits(2)),
            )
        )
    heads = ("p", Phrase(zh="校正后 p", en="p adjusted"))
    ps = [Column(name, p_value) for name in heads]
    return [
        Table(
            [METRIC, baseline, system, DIFFERENCE, *ps, WIN_RATE],
            rows,
            f"{system} minus {baseline}",
        )
        for (baseline, system), rows in by_pair.items()
    ]


def missing_figures(comparison: Comparison) -> list[str]:
    """Why values, intervals or p-values are a dash."""

    def missing(one: PairComparison) -> Iterator[tuple[str, str]]:
        if one.win_interval_reason and one.win_interval_reason != one.interval_reason:
            yield "no interval of the win rate", one.win_interval_reason
        if one.unscored_reason:
            yield "not compared", one.unscored_reason
        elif one.interval_reason and one.interval_reason == one.p_reason:
            yield "no interval and no test", one.interval_reason
        else:
            yield from (("no interval", one.interval_reason),) if one.interval_reason else ()
            yield from (("no test", one.p_reason),) if one.p_reason else ()

    return explained(
        Missing(what, one.metric, f"{one.system} and {one.baseline}", reason)
        for one in comparison.pairs
        for what, reason in missing(one)
    )


def tests_made(comparison: Comparison) -> str:
    """Which tests, and what p adjusted is adjusted for."""
    names = sorted({one.test for one in comparison.pairs if one.p is not None})
    if not names:
        return "nothing was tested"
    n_tests = sum(one.p is not None for one in comparison.pairs)
    return (
        f"tests: {', '.join(names)}; p adjusted by Holm over the whole table, metrics times pairs "
        f"of systems ({n_tests})"
    )


def write_comparison(folder: Path, comparison: Comparison, lang: Lang = "zh") -> None:
    """`compare.html` and `compare.md` with the examples' text, `compare.tex`; `compare.json` last.

    Args:
        lang: main language of the page.
    """
    tables = pair_tables(comparison)
    parts = [
        f"# Comparison against {comparison.references}\n",
        *(f"## {one.title}\n\n{one.markdown()}" for one in tables),
        "A question counts where the metric applies to it in both systems; n/all in brackets where "
        f"that is not all of them. What was tested: {tests_made(comparison)}.\n",
        f"- {comparison.grouping.line}.\n",
        *(f"- {line}.\n" for line in missing_figures(comparison)),
        *(f"- Warning: {warning}\n" for warning in comparison.warnings),
        *_section("Where the system gains most", comparison.best),
        *_section("Where the system loses most", comparison.worst),
        "## Signatures\n",
        *(f"- `{one}`" for one in dict.fromkeys(pair.signature for pair in comparison.pairs)),
        "",
    ]
    write_text(folder / "compare.md", "\n".join(parts))
    write_text(folder / "compare.tex", "\n".join(f"% {one.title}\n{one.latex()}" for one in tables))
    lines = [tests_made(comparison), comparison.grouping.line, *missing_figures(comparison)]
    write_text(folder / PAGE_NAME, compare_page(comparison, tables, lines, lang))
    write_json(folder / COMPARISON_NAME, comparison)


def _section(title: str, examples: Sequence[Example]) -> list[str]:
    if not examples:
        return []
    lines = [f"## {title}\n"]
    for one in examples:
        lines += [
            f"### {one.id}: {one.system} against {one.baseline}, {one.metric} "
            f"{signed(one.difference, 4)}\n",
            _quoted("Reference", one.reference_text),
            _quoted(one.baseline, one.baseline_text),
            _quoted(one.system, one.system_text),
        ]
    return lines


def _quoted(name: str, text: str) -> str:
    return f"**{name}**\n\n" + "\n".join(f"> {line}" for line in text.splitlines() or [""]) + "\n"
