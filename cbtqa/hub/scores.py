"""Scores for a model card, from a folder of `cbtqa score`: value, interval, counts, signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cbtqa.errors import DataError, UsageError
from cbtqa.files import parse_record, read_json
from cbtqa.manifest import read_manifest
from cbtqa.metrics.score_folder import SCORES_NAME
from cbtqa.metrics.scoring import ScoreReport
from cbtqa.metrics.tables import cell, label_of
from cbtqa.records import MetricScore


class ModelScores(NamedTuple):
    """One system on one set of references."""

    references: str
    references_sha256: str
    split: str | None
    system: str
    scores: tuple[MetricScore, ...]
    warnings: tuple[str, ...]

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Rows for a card: metric, value with interval, unit, signature."""
        return [
            (label_of(score.metric), cell(score), score.unit, score.signature)
            for score in self.scores
        ]

    def index_entry(self, datasets: tuple[str, ...]) -> dict[str, Any]:
        """An entry of the model index; what was not scored has no place there."""
        return {
            "task": {"type": "text-generation", "name": "Chinese CBT question answering"},
            "dataset": {
                "type": datasets[0] if datasets else "cbt-qa",
                "name": f"{self.references} (SHA-256 {self.references_sha256[:12]})",
                **({"split": self.split} if self.split else {}),
            },
            "metrics": [
                {
                    "type": score.metric,
                    "name": f"{label_of(score.metric)} ({score.unit})",
                    "value": score.value,
                    "args": {
                        "signature": score.signature,
                        "unit": score.unit,
                        "low": score.low,
                        "high": score.high,
                        "interval": "95 % percentile bootstrap over questions",
                        "n_scored": score.n_scored,
                        "n_total": score.n_total,
                    },
                }
                for score in self.scores
                if score.value is not None
            ],
        }


def read_scores(folder: Path, system: str | None) -> ModelScores:
    """The scores of one system.

    Args:
        system: its name; None: the only one that is no anchor.

    Raises:
        UsageError: several systems and none named, or no such system.
        DataError: not a folder of scores.
        IncompleteRunError: the scoring did not finish.
    """
    manifest = read_manifest(folder)
    if manifest.kind != "scores":
        raise DataError(f"holds a {manifest.kind}, not scores", where=str(folder))
    path = folder / SCORES_NAME
    report = parse_record(ScoreReport, read_json(path), str(path))
    names = [one.system for one in report.systems if not one.is_anchor]
    if system is None and len(names) != 1:
        raise UsageError(
            f"{folder} scores {len(names)} systems: {', '.join(names)}",
            hint="say which one this model is: --system NAME",
        )
    wanted = system or names[0]
    if wanted not in names:
        raise UsageError(f"{folder} scores no system '{wanted}', only {', '.join(names)}")
    setting = manifest.settings.get("split")
    return ModelScores(
        references=Path(report.references).name,
        references_sha256=report.references_sha256,
        split=str(setting.value) if setting and isinstance(setting.value, str) else None,
        system=wanted,
        scores=tuple(score for score in report.scores if score.system == wanted),
        warnings=report.warnings,
    )
