"""`cbtqa compare`: is one system better than another, by how much, and where.

For every metric and pair of systems: the difference with its bootstrap interval, a paired test
with Holm's correction over all pairs, and on how many questions each system wins. Systems come
from files of predictions, or from folders that `cbtqa score --out` left.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from cbtqa.errors import UsageError
from cbtqa.metrics.base import Floats, Metric
from cbtqa.metrics.contenders import (
    Contender,
    gather,
    on_same_rows,
    refuse_other_references,
    shared_metrics,
)
from cbtqa.metrics.evaluation import OnBlock
from cbtqa.metrics.scoring import ScoreSettings
from cbtqa.records import Record
from cbtqa.statistics.resampling import (
    BOOTSTRAP_TRIALS,
    FEW_ITEMS,
    FEWEST_FOR_BOOTSTRAP,
    RANDOMISATION_TRIALS,
    PConvention,
    bootstrap_p,
    bootstrap_sums,
    holm,
    percentile_interval,
    randomisation_p,
    swapped_sums,
)

Pair = tuple[Contender, Contender]
"""Baseline and system."""
TIE = 1e-9
"""Scores of a pair closer than this count as equal; they differ only in rounding."""


class CompareSettings(ScoreSettings):
    """Everything `cbtqa compare` can be told; the fields of `cbtqa score` and these."""

    predictions: tuple[Path, ...] = Field(
        default=(), description="Files with predictions, or folders made by cbtqa score --out."
    )
    anchors: bool = Field(default=False, description="Also compare with the anchor rows.")
    baseline: str | None = Field(
        default=None, description="Compare only with this system; otherwise all pairs."
    )
    test: Literal["ar", "bs"] = Field(
        default="ar", description="Paired test: ar approximate randomisation, bs bootstrap."
    )
    bootstrap: int = Field(
        default=BOOTSTRAP_TRIALS, ge=1, description="Resamples for intervals and --test bs."
    )
    trials: int = Field(
        default=RANDOMISATION_TRIALS, ge=1, description="Trials of the randomisation test."
    )
    p_convention: PConvention = Field(
        default="ties",
        description="What counts towards p: ties, every trial at least as far apart as the "
        "systems; sacrebleu, only those farther apart, to match its printed p.",
    )
    common: bool = Field(
        default=False, description="Compare on the questions that all systems answered."
    )
    by: str | None = Field(
        default=None, description="Metric that picks the examples; the first one otherwise."
    )
    examples: int = Field(default=20, ge=0, description="Best and worst pairs to show.")


class PairComparison(Record):
    """One metric, two systems."""

    metric: str
    unit: str
    baseline: str
    system: str
    baseline_value: float
    system_value: float
    difference: float
    """System minus baseline, in the metric's unit."""
    low: float
    high: float
    """95 % bootstrap interval of the difference."""
    p: float
    p_adjusted: float
    """After Holm over all pairs of systems of this metric."""
    test: str
    """Test, trials, seed and convention of p, as `ar:10000|seed:12345|p:ties`."""
    n: int
    n_wins: int
    """Questions on which the system scores above the baseline."""
    n_losses: int
    n_ties: int
    win_rate: float
    """Wins and half the ties, by all."""
    signature: str


class Example(Record):
    """One question on which two systems differ much."""

    metric: str
    baseline: str
    system: str
    id: str
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


def compare(
    settings: CompareSettings, on_block: OnBlock = lambda n_done, n_total: None
) -> Comparison:
    """Compares systems on the questions that they share.

    Args:
        on_block: told now and then how many references are scored, and of how many.

    Raises:
        UsageError: fewer than two systems, an unknown baseline or metric, or too few questions
            for the test.
        DataError: the systems were scored on other questions, references or settings.
    """
    contenders = gather(settings, on_block)
    refuse_other_references(contenders)
    contenders = on_same_rows(contenders, is_common=settings.common)
    _refuse_bootstrap_test_of_few(contenders[0], settings)
    metrics = shared_metrics(contenders)
    by = _metric_for_examples(metrics, settings.by)
    pairs = _pairs(contenders, settings.baseline)
    best, worst = _examples(pairs, by, settings.examples)
    return Comparison(
        references=contenders[0].references.name,
        pairs=tuple(compare_pairs(contenders, metrics, pairs, settings)),
        best=tuple(best),
        worst=tuple(worst),
        warnings=tuple(_warnings(contenders[0], settings)),
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
    contenders: Sequence[Contender],
    metrics: Sequence[Metric],
    pairs: Sequence[Pair],
    settings: CompareSettings,
) -> list[PairComparison]:
    """Every metric of every pair; the contenders answer the same questions."""
    stacked = [contender.stacked(metrics) for contender in contenders]
    width = stacked[0].shape[1]
    # one set of draws for all systems and metrics, so that differences are comparable
    sums = bootstrap_sums(np.concatenate(stacked, axis=1), settings.bootstrap, settings.seed)
    place = {contender.name: index for index, contender in enumerate(contenders)}
    tested: dict[str, list[PairComparison]] = {metric.name: [] for metric in metrics}
    for pair in pairs:
        indices = [place[contender.name] for contender in pair]
        drawn = [sums[:, index * width : (index + 1) * width] for index in indices]
        swapped = None
        if settings.test == "ar":
            first, second = (stacked[index] for index in indices)
            swapped = swapped_sums(first, second, settings.trials, settings.seed)
        for metric, columns in zip(metrics, _slices(metrics), strict=True):
            tested[metric.name].append(
                _test_pair(
                    pair,
                    metric,
                    [metric.from_sums(half[:, columns]) for half in drawn],
                    [metric.from_sums(half[:, columns]) for half in swapped] if swapped else None,
                    settings,
                )
            )
    return [
        one.model_copy(update={"p_adjusted": adjusted})
        for rows in tested.values()
        for one, adjusted in zip(rows, holm([row.p for row in rows]), strict=True)
    ]


def _slices(metrics: Sequence[Metric]) -> list[slice]:
    ends = np.cumsum([0, *(metric.n_columns for metric in metrics)]).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]


def _test_pair(
    pair: Pair,
    metric: Metric,
    drawn: Sequence[Floats],
    swapped: Sequence[Floats] | None,
    settings: CompareSettings,
) -> PairComparison:
    """One metric of one pair; `p_adjusted` is filled in when all pairs are known."""
    first, second = (
        float(metric.from_sums(one.scores.matrices[metric.name].sum(0))) for one in pair
    )
    difference = second - first
    low, high = percentile_interval(drawn[1] - drawn[0])
    if swapped is None:
        p = bootstrap_p(drawn[0], drawn[1], difference, settings.p_convention)
        test = f"bs:{settings.bootstrap}"
    else:
        p = randomisation_p(swapped[0], swapped[1], difference, settings.p_convention)
        test = f"ar:{settings.trials}"
    gains = _gains(pair, metric)
    n_wins, n_losses = int(np.sum(gains > TIE)), int(np.sum(gains < -TIE))
    return PairComparison(
        metric=metric.name,
        unit=metric.unit,
        baseline=pair[0].name,
        system=pair[1].name,
        baseline_value=first,
        system_value=second,
        difference=difference,
        low=low,
        high=high,
        p=p,
        p_adjusted=p,
        test=f"{test}|seed:{settings.seed}|p:{settings.p_convention}",
        n=len(gains),
        n_wins=n_wins,
        n_losses=n_losses,
        n_ties=len(gains) - n_wins - n_losses,
        win_rate=0.5 + (n_wins - n_losses) / (2 * len(gains)),
        signature=pair[0].signatures[metric.name][1],
    )


def _gains(pair: Pair, metric: Metric) -> Floats:
    """System minus baseline for each question; 0 where either is not scored."""
    first, second = (metric.per_pair(one.scores.matrices[metric.name]) for one in pair)
    return np.nan_to_num(second - first)


def _examples(
    pairs: Sequence[Pair], metric: Metric, n_examples: int
) -> tuple[list[Example], list[Example]]:
    """The questions on which each pair's second system gains and loses most."""
    best: list[Example] = []
    worst: list[Example] = []
    for pair in pairs:
        gains = _gains(pair, metric)
        order = np.argsort(gains, kind="stable").tolist()
        best += [
            _example(pair, metric, place, float(gains[place]))
            for place in order[::-1][:n_examples]
            if gains[place] > TIE
        ]
        worst += [
            _example(pair, metric, place, float(gains[place]))
            for place in order[:n_examples]
            if gains[place] < -TIE
        ]
    return best, worst


def _example(pair: Pair, metric: Metric, place: int, gain: float) -> Example:
    row = int(pair[0].scores.rows[place])
    ours = [one.answers.items[row] for one in pair]
    reference = pair[0].references.items[row]
    return Example(
        metric=metric.name,
        baseline=pair[0].name,
        system=pair[1].name,
        id=pair[0].references.ids[row],
        difference=gain,
        baseline_text=ours[0].text if ours[0] else "",
        system_text=ours[1].text if ours[1] else "",
        reference_text=reference.text if reference else "",
    )


def _refuse_bootstrap_test_of_few(contender: Contender, settings: CompareSettings) -> None:
    """sacrebleu's convention is left to those who ask for it by name."""
    n_questions = _n_questions(contender)
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


def _n_questions(contender: Contender) -> int:
    return len({contender.references.clusters[row] for row in contender.scores.rows.tolist()})


def _warnings(contender: Contender, settings: CompareSettings) -> list[str]:
    found = []
    n_questions = _n_questions(contender)
    if n_questions < FEW_ITEMS:
        found.append(f"only {n_questions} questions: below {FEW_ITEMS}, no test can be trusted")
    if settings.test == "bs" and n_questions < FEWEST_FOR_BOOTSTRAP:
        found.append(f"the bootstrap test is too sure on {n_questions} questions; prefer --test ar")
    if settings.p_convention == "sacrebleu":
        found.append(
            "p in sacrebleu's convention leaves ties out: it is too small where few differ"
        )
    return found
