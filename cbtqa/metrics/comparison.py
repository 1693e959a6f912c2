"""`cbtqa compare`: is one system better than another, by how much, and where.

For every metric and pair of systems: the difference with its bootstrap interval, a paired test
with Holm's correction over all pairs, and on how many questions each system wins. Systems come
from files of predictions, or from folders that `cbtqa score --out` left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from cbtqa.errors import DataError, UsageError
from cbtqa.files import write_json, write_text
from cbtqa.metrics.base import Floats, Metric
from cbtqa.metrics.evaluation import OnBlock, SystemScores
from cbtqa.metrics.pairs import Predictions, References
from cbtqa.metrics.registry import additive_metric
from cbtqa.metrics.score_folder import (
    SCORES_NAME,
    Grid,
    StoredScores,
    label_of,
    latex,
    markdown,
    number,
)
from cbtqa.metrics.scoring import Scored, ScoreReport, ScoreSettings, score
from cbtqa.metrics.text.sequences import Ints
from cbtqa.records import Record
from cbtqa.statistics.resampling import (
    BOOTSTRAP_TRIALS,
    FEW_ITEMS,
    RANDOMISATION_TRIALS,
    bootstrap_p,
    bootstrap_sums,
    holm,
    percentile_interval,
    randomisation_p,
    sum_by_cluster,
    swapped_sums,
)

# --- contenders ----------------------------------------------------------------------------------
# The systems of a comparison, gathered from files and folders, and whether they may be compared.
#
# Two numbers are compared only when everything able to change them is the same: references,
# questions, and the settings in the metric's signature.


@dataclass(frozen=True)
class Contender:
    """One system with all that a comparison needs."""

    answers: Predictions
    scores: SystemScores
    references: References
    signatures: dict[str, tuple[str, str]]
    """Metric to unit and signature, for the metrics that have a value."""

    @property
    def name(self) -> str:
        """The system's name."""
        return self.answers.system

    def stacked(self, metrics: Sequence[Metric]) -> Floats:
        """Statistics of all metrics side by side, one row a question."""
        joined = np.concatenate([self.scores.matrices[metric.name] for metric in metrics], axis=1)
        clusters = [self.references.clusters[row] for row in self.scores.rows.tolist()]
        return sum_by_cluster(joined, clusters) if len(set(clusters)) < len(clusters) else joined


def signatures_of(report: ScoreReport, system: str) -> dict[str, tuple[str, str]]:
    """Unit and signature of every metric that has a value for the system."""
    return {
        one.metric: (one.unit, one.signature)
        for one in report.scores
        if one.system == system and one.value is not None
    }


def gather(
    settings: ScoreSettings, on_block: OnBlock, scored: Sequence[Scored] = ()
) -> list[Contender]:
    """Every system already scored, then of the folders and of the files named.

    Raises:
        UsageError: fewer than two systems, or two of one name.
    """
    folders = [path for path in settings.predictions if (path / SCORES_NAME).exists()]
    rest = tuple(path for path in settings.predictions if path not in folders)
    found: list[Contender] = []
    for one in scored:
        found += _contenders_of(one, with_anchors=settings.anchors)
    for folder in folders:
        found += _contenders_of(StoredScores(folder), with_anchors=settings.anchors)
    if rest:
        fresh = score(settings.model_copy(update={"predictions": rest}), on_block)
        found += _contenders_of(fresh, with_anchors=True)
    names = [contender.name for contender in found]
    if len(names) < 2:
        raise UsageError(
            f"nothing to compare: found {', '.join(names) or 'no system'}",
            hint="cbtqa compare a.jsonl b.jsonl --ref cbtqa-dataset",
        )
    if len(set(names)) < len(names):
        raise UsageError(f"two systems of one name among {', '.join(names)}")
    return found


def _contenders_of(scored: Scored | StoredScores, *, with_anchors: bool) -> list[Contender]:
    anchors = {one.system for one in scored.report.systems if one.is_anchor}
    return [
        Contender(answers, scores, scored.references, signatures_of(scored.report, answers.system))
        for answers, scores in zip(scored.predictions, scored.evaluated, strict=True)
        if with_anchors or answers.system not in anchors
    ]


def refuse_other_references(contenders: Sequence[Contender]) -> None:
    """Looks at the references' hashes.

    Raises:
        DataError: two systems were scored against other references; shows both.
    """
    first = contenders[0]
    for other in contenders[1:]:
        if other.references.sha256 != first.references.sha256:
            shown = "\n".join(
                f"  {one.name}: {one.references.name}, refs:{one.references.sha256[:12]}"
                for one in (first, other)
            )
            raise DataError(
                f"{first.name} and {other.name} were scored against other references:\n{shown}",
                hint="score both against the same --ref and --split",
            )


def on_same_rows(contenders: Sequence[Contender], *, is_common: bool) -> list[Contender]:
    """The systems restricted to the questions that all of them answer.

    Raises:
        DataError: they answer other questions and `is_common` is False, or share none.
    """
    first = contenders[0]
    common = first.scores.rows
    for other in contenders[1:]:
        if not np.array_equal(first.scores.rows, other.scores.rows) and not is_common:
            raise DataError(
                f"{first.name} answers {len(first.scores.rows)} questions and {other.name} "
                f"{len(other.scores.rows)}, not the same ones",
                hint="--common compares on the questions that all answer",
            )
        common = np.intersect1d(common, other.scores.rows)
    if not len(common):
        raise DataError("the systems have no answered question in common")
    return [replace(one, scores=_restricted(one.scores, common)) for one in contenders]


def _restricted(scores: SystemScores, rows: Ints) -> SystemScores:
    keep = np.isin(scores.rows, rows)
    matrices = {name: matrix[keep] for name, matrix in scores.matrices.items()}
    return SystemScores(scores.system, rows, matrices, scores.whole)


def shared_metrics(contenders: Sequence[Contender]) -> list[Metric]:
    """Metrics that all systems have, after their settings were seen to be the same.

    Raises:
        DataError: a metric was computed with other settings (shows both), or none is shared.
    """
    first = contenders[0]
    mine = first.signatures
    metrics = []
    for name, (unit, signature) in mine.items():
        for other in contenders[1:]:
            theirs = other.signatures.get(name)
            if theirs and _settings_of(theirs[1]) != _settings_of(signature):
                raise DataError(
                    f"{name} of {first.name} and of {other.name} were computed with other "
                    f"settings and cannot be compared:\n  {signature}\n  {theirs[1]}",
                    hint="score both again with the same settings",
                )
        metric = additive_metric(name, unit)
        if metric is not None and all(name in other.signatures for other in contenders):
            metrics.append(metric)
    if not metrics:
        raise DataError("the systems have no metric in common that can be tested")
    return metrics


def _settings_of(signature: str) -> list[str]:
    """A signature without the number of pairs, which `on_same_rows` has already looked at."""
    return [field for field in signature.split("|") if not field.startswith(("n:", "clusters:"))]


# --- comparison ----------------------------------------------------------------------------------
Pair = tuple[Contender, Contender]
"""Baseline and system."""
TIE = 1e-9
"""Scores of a pair closer than this count as equal; they differ only in rounding."""


class CompareSettings(ScoreSettings):
    """Everything `cbtqa compare` can be told; the fields of `cbtqa score` and these."""

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
    common: bool = False
    """Compare on the questions that all systems answered."""
    by: str | None = None
    """Metric that picks the examples; the first one otherwise."""
    examples: int = Field(default=20, ge=0)
    """Best and worst pairs to show."""


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
    """Test, trials and seed, as `ar:10000|seed:12345`."""
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
    settings: CompareSettings,
    on_block: OnBlock = lambda n_done, n_total: None,
    scored: Sequence[Scored] = (),
) -> Comparison:
    """Compares systems on the questions that they share.

    Args:
        scored: results of `score`, beside what the settings name.
        on_block: told now and then how many references are scored, and of how many.

    Raises:
        UsageError: fewer than two systems, or an unknown baseline or metric.
        DataError: the systems were scored on other questions, references or settings.
    """
    contenders = gather(settings, on_block, scored)
    refuse_other_references(contenders)
    contenders = on_same_rows(contenders, is_common=settings.common)
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
        p, test = bootstrap_p(drawn[0], drawn[1], difference), f"bs:{settings.bootstrap}"
    else:
        p, test = randomisation_p(swapped[0], swapped[1], difference), f"ar:{settings.trials}"
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
        test=f"{test}|seed:{settings.seed}",
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


def _warnings(contender: Contender, settings: CompareSettings) -> list[str]:
    found = []
    n_questions = len(
        {contender.references.clusters[row] for row in contender.scores.rows.tolist()}
    )
    if n_questions < FEW_ITEMS:
        found.append(f"only {n_questions} questions: below {FEW_ITEMS}, no test can be trusted")
        if settings.test == "bs":
            found.append("the bootstrap test is too sure on so few questions; prefer --test ar")
    return found


# --- comparison page -----------------------------------------------------------------------------
# A comparison as tables and as a Markdown page with its examples.

COMPARISON_NAME = "compare.json"


def comparison_grid(comparison: Comparison) -> tuple[list[str], Grid]:
    """One row a metric and pair of systems."""
    heads = ["metric", "baseline", "system", "difference [95 %]", "p", "p adjusted", "win rate"]
    rows = [
        [
            f"{label_of(one.metric)} ({one.unit})",
            f"{one.baseline} {number(one.baseline_value, one.unit)}",
            f"{one.system} {number(one.system_value, one.unit)}",
            f"{_signed(one.difference, one.unit)} "
            f"[{_signed(one.low, one.unit)}, {_signed(one.high, one.unit)}]",
            f"{one.p:.4f}",
            f"{one.p_adjusted:.4f}",
            f"{one.win_rate:.3f}",
        ]
        for one in comparison.pairs
    ]
    return heads, rows


def _signed(value: float, unit: str) -> str:
    text = number(value, unit)
    return text if text.startswith("-") else f"+{text}"


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """`compare.json`, `compare.md` with the examples' text, and `compare.tex`."""
    heads, rows = comparison_grid(comparison)
    tests = sorted({one.test for one in comparison.pairs})
    parts = [
        f"# Comparison against {comparison.references}\n",
        markdown(heads, rows),
        f"Differences are system minus baseline. Tests: {', '.join(tests)}; p adjusted by Holm "
        "over the pairs of systems of a metric.\n",
        *(f"- Warning: {warning}\n" for warning in comparison.warnings),
        *_section("Where the system gains most", comparison.best),
        *_section("Where the system loses most", comparison.worst),
        "## Signatures\n",
        *(f"- `{one}`" for one in dict.fromkeys(pair.signature for pair in comparison.pairs)),
        "",
    ]
    write_text(folder / "compare.md", "\n".join(parts))
    write_text(folder / "compare.tex", latex(heads, rows))
    write_json(folder / COMPARISON_NAME, comparison)


def _section(title: str, examples: Sequence[Example]) -> list[str]:
    if not examples:
        return []
    lines = [f"## {title}\n"]
    for one in examples:
        lines += [
            f"### {one.id}: {one.system} against {one.baseline}, {one.metric} "
            f"{one.difference:+.4f}\n",
            _quoted("Reference", one.reference_text),
            _quoted(one.baseline, one.baseline_text),
            _quoted(one.system, one.system_text),
        ]
    return lines


def _quoted(name: str, text: str) -> str:
    return f"**{name}**\n\n" + "\n".join(f"> {line}" for line in text.splitlines() or [""]) + "\n"
