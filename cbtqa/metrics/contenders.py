"""The systems of a comparison, gathered from files and folders, and whether they may be compared.

Two numbers are compared only when everything able to change them is the same: references,
questions, and the settings in the metric's signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cbtqa.errors import DataError, UsageError
from cbtqa.metrics.base import Floats, Metric
from cbtqa.metrics.evaluation import OnBlock, SystemScores
from cbtqa.metrics.grouping import Grouping
from cbtqa.metrics.pairs import Predictions, References
from cbtqa.metrics.registry import additive_metric
from cbtqa.metrics.score_folder import SCORES_NAME, StoredScores
from cbtqa.metrics.scoring import Scored, ScoreSettings, score
from cbtqa.psyqa import bundled_sample_path
from cbtqa.records import MetricScore
from cbtqa.statistics.resampling import sum_by_cluster

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Contender:
    """One system with all that a comparison needs."""

    answers: Predictions
    scores: SystemScores
    references: References
    reported: dict[str, MetricScore]
    """Metric to the score it was given on all its answers."""

    @property
    def name(self) -> str:
        return self.answers.system

    def is_scored(self, metric: Metric) -> Bools:
        """Which of its answers the metric applies to."""
        return metric.is_scored(self.scores.matrices[metric.name])

    @property
    def grouping(self) -> Grouping:
        """What is drawn of its answers."""
        known, questions = self.references.grouping, self.questions
        by = known.by or ("question" if self.n_questions < len(self.references.ids) else None)
        counts = {"by": by, "n_drawn": len(set(questions)), "n_rows": len(questions)}
        return known.model_copy(update=counts)

    @property
    def n_questions(self) -> int:
        """Questions of all references."""
        return len(set(self.references.clusters))

    @property
    def questions(self) -> list[str]:
        """The question that each answer answers."""
        return [self.references.clusters[row] for row in self.scores.rows.tolist()]

    def stacked(self, metrics: Sequence[Metric], is_compared: Sequence[Bools]) -> Floats:
        """Statistics of all metrics, one row a question; `is_compared`: the answers that count."""
        parts = [
            self.scores.matrices[metric.name] * counts[:, None]
            for metric, counts in zip(metrics, is_compared, strict=True)
        ]
        joined, questions = np.concatenate(parts, axis=1), self.questions
        is_one_each = len(set(questions)) == len(questions)
        return joined if is_one_each else sum_by_cluster(joined, questions)


def gather(
    settings: ScoreSettings, on_block: OnBlock, scored: Sequence[Scored] = ()
) -> list[Contender]:
    """Every system already scored, then of the folders and files named; at least two."""
    folders = [path for path in settings.predictions if (path / SCORES_NAME).exists()]
    rest = tuple(path for path in settings.predictions if path not in folders)
    if settings.cluster_column and not rest:
        raise UsageError(
            "--cluster-column needs files: a folder of scores keeps the questions it was made with",
            hint="give --cluster-column to cbtqa score, then compare its folder",
        )
    known: list[Scored | StoredScores] = [*scored, *map(StoredScores, folders)]
    found = [one for each in known for one in _contenders_of(each, with_anchors=settings.anchors)]
    if rest:
        fresh = score(settings.model_copy(update={"predictions": rest}), on_block, is_checked=False)
        found += _contenders_of(fresh, with_anchors=True)
    names = [contender.name for contender in found]
    if len(names) < 2:
        raise UsageError(
            f"nothing to compare: found {', '.join(names) or 'no system'}",
            hint="cbtqa compare a.jsonl b.jsonl --ref cbtqa-dataset; invented questions with "
            f"answers, to try it: --ref {bundled_sample_path()}",
        )
    if len(set(names)) < len(names):
        raise UsageError(f"two systems of one name among {', '.join(names)}")
    return found


def _contenders_of(scored: Scored | StoredScores, *, with_anchors: bool) -> list[Contender]:
    anchors = {one.system for one in scored.report.systems if one.is_anchor}
    reported: dict[str, dict[str, MetricScore]] = {}
    for one in scored.report.scores:
        reported.setdefault(one.system, {})[one.metric] = one
    return [
        Contender(answers, scores, scored.references, reported.get(answers.system, {}))
        for answers, scores in zip(scored.predictions, scored.evaluated, strict=True)
        if with_anchors or answers.system not in anchors
    ]


def refuse_other_references(contenders: Sequence[Contender]) -> None:
    """Raises a DataError when two systems were scored against other references; shows both."""
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


def with_one_grouping(contenders: Sequence[Contender]) -> list[Contender]:
    """All with the questions that some were scored with; a DataError where these differ."""
    grouped = [one for one in contenders if one.n_questions < len(one.references.ids)]
    for other in grouped[1:]:
        if other.references.clusters != grouped[0].references.clusters:
            raise DataError(
                f"{grouped[0].name} and {other.name} were scored with other questions: by "
                f"{grouped[0].references.grouping.by} and by {other.references.grouping.by}",
                hint="score both again with the same --cluster-column",
            )
    source = (grouped or contenders)[0].references
    clusters, grouping = source.clusters, source.grouping
    return [
        replace(one, references=replace(one.references, clusters=clusters, grouping=grouping))
        for one in contenders
    ]


def on_same_rows(contenders: Sequence[Contender], *, is_common: bool) -> list[Contender]:
    """The systems on the questions that all answer; a DataError when these differ or are none."""
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
    restricted = []
    for one in contenders:
        keep = np.isin(one.scores.rows, common)
        matrices = {name: matrix[keep] for name, matrix in one.scores.matrices.items()}
        scores = replace(one.scores, rows=common, matrices=matrices)
        restricted.append(replace(one, scores=scores))
    return restricted


def shared_metrics(contenders: Sequence[Contender]) -> list[Metric]:
    """Metrics that all systems have; a DataError when their settings differ or none is shared."""
    first = contenders[0]
    metrics = []
    for name, score_of_first in first.reported.items():
        signature = score_of_first.signature
        if any(name not in one.scores.matrices for one in contenders):
            continue  # not additive, or not computed for one of them
        for other in contenders[1:]:
            theirs = other.reported.get(name)
            if theirs and _settings_of(theirs.signature) != _settings_of(signature):
                raise DataError(
                    f"{name} of {first.name} and of {other.name} were computed with other "
                    f"settings and cannot be compared:\n  {signature}\n  {theirs.signature}",
                    hint="score both again with the same settings",
                )
        metric = additive_metric(name, score_of_first.unit)
        if metric is not None and all(name in other.reported for other in contenders):
            metrics.append(metric)
    if not metrics:
        raise DataError("the systems have no metric in common that can be tested")
    return metrics


def _settings_of(signature: str) -> list[str]:
    """A signature's fields that can change a score.

    Not the number of pairs, which `on_same_rows` has looked at, nor how the score's own interval
    was made.
    """
    others = ("n:", "clusters:", "ci:", "bs:", "seed:")
    return [field for field in signature.split("|") if not field.startswith(others)]
