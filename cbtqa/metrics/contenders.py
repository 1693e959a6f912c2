"""The systems of a comparison, gathered from files and folders, and whether they may be compared.

Two numbers are compared only when everything able to change them is the same: references,
questions, and the settings in the metric's signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cbtqa.errors import DataError, UsageError
from cbtqa.metrics.base import Floats, Metric
from cbtqa.metrics.evaluation import OnBlock, SystemScores
from cbtqa.metrics.pairs import Predictions, References
from cbtqa.metrics.registry import additive_metric
from cbtqa.metrics.score_folder import SCORES_NAME, StoredScores
from cbtqa.metrics.scoring import ScoreReport, ScoreSettings, score
from cbtqa.metrics.sequences import Ints
from cbtqa.statistics.resampling import sum_by_cluster


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


def gather(settings: ScoreSettings, on_block: OnBlock) -> list[Contender]:
    """Every system of the folders and files named, the folders' first.

    Raises:
        UsageError: fewer than two systems, or two of one name.
    """
    folders = [path for path in settings.predictions if (path / SCORES_NAME).exists()]
    rest = tuple(path for path in settings.predictions if path not in folders)
    found: list[Contender] = []
    for folder in folders:
        stored = StoredScores(folder)
        anchors = {one.system for one in stored.report.systems if one.is_anchor}
        found += [
            Contender(
                answers, scores, stored.references, signatures_of(stored.report, answers.system)
            )
            for answers, scores in zip(stored.predictions, stored.evaluated, strict=True)
            if settings.anchors or answers.system not in anchors
        ]
    if rest:
        scored = score(settings.model_copy(update={"predictions": rest}), on_block)
        found += [
            Contender(
                answers, scores, scored.references, signatures_of(scored.report, answers.system)
            )
            for answers, scores in zip(scored.predictions, scored.evaluated, strict=True)
        ]
    names = [contender.name for contender in found]
    if len(names) < 2:
        raise UsageError(
            f"nothing to compare: found {', '.join(names) or 'no system'}",
            hint="cbtqa compare a.jsonl b.jsonl --ref cbtqa-dataset",
        )
    if len(set(names)) < len(names):
        raise UsageError(f"two systems of one name among {', '.join(names)}")
    return found


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
