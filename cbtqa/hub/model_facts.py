"""Which base a run's weights belong to, as a Hub id and a revision, never a path.

The training's own records are read leniently: `base.json` of an adapter, `merge.json` of a merged
model, the manifest, and at last what PEFT wrote into `adapter_config.json`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cbtqa.errors import DataError, UsageError
from cbtqa.files import parse_record, read_json
from cbtqa.hub.plan import PublishRefusedError
from cbtqa.hub.settings import REPO_ID, ModelSettings
from cbtqa.manifest import read_manifest
from cbtqa.metrics.score_folder import SCORES_NAME
from cbtqa.metrics.scoring import ScoreReport
from cbtqa.metrics.tables import estimate_of, label_of
from cbtqa.records import MetricScore
from cbtqa.report.page import Phrase
from cbtqa.report.table import Table

MOVING = {"main", "master", "HEAD", "latest"}
_GIVEN = re.compile(r"(?P<id>[^@\s]+)@(?P<revision>[\w.-]{1,100})", re.ASCII)


@dataclass(frozen=True)
class BaseModel:
    hub_id: str
    revision: str
    """Commit or tag; never a branch."""
    is_converted: bool
    """True when the reader has to run `cbtqa convert` on it first."""
    weights_sha256: str | None = None
    """As the training recorded it."""
    is_quantized: bool = False
    """True when the training saw the base in 4 bits."""


def find_base(settings: ModelSettings, manifest_counts: dict[str, Any]) -> BaseModel:
    """The base that was named, or that the run recorded; PublishRefusedError without either."""
    record = _recorded(settings.run, manifest_counts)
    name, revision = str(record.get("hub_id") or record.get("name") or ""), record.get("revision")
    is_on_hub = bool(REPO_ID.fullmatch(name)) and not Path(name).exists()
    known = record.get("backbone")
    if settings.base is not None:
        found = _GIVEN.fullmatch(settings.base)
        if found is None or not REPO_ID.fullmatch(found["id"]):
            raise PublishRefusedError(
                f"--base {settings.base}: expected owner/name@revision",
                hint="the revision is the commit that the page 'Files and versions' shows",
            )
        name, revision = found["id"], found["revision"]
    elif not is_on_hub or not revision:
        shown = f" ({known or name})" if known or name else ""
        raise PublishRefusedError(
            f"the run does not say which repository and revision of the Hub its base{shown} is",
            hint="name it: --base owner/name@COMMIT",
        )
    if str(revision) in MOVING:
        raise PublishRefusedError(
            f"{name}@{revision}: a branch moves, and with it the base",
            hint="name the commit: --base owner/name@COMMIT",
        )
    was_converted = bool(record.get("is_converted")) or (bool(known) and not is_on_hub)
    return BaseModel(
        hub_id=name,
        revision=str(revision),
        is_converted=was_converted if settings.converted is None else settings.converted,
        weights_sha256=record.get("weights_sha256"),
        is_quantized=bool(record.get("is_quantized")),
    )


def _recorded(run: Path, counts: dict[str, Any]) -> dict[str, Any]:
    """The run's record of its base, the most precise source first."""
    if (run / "base.json").is_file():
        return dict(read_json(run / "base.json"))
    if (run / "merge.json").is_file():
        return dict(read_json(run / "merge.json").get("base") or {})
    if isinstance(counts.get("base"), dict):
        return dict(counts["base"])
    if (run / "adapter_config.json").is_file():
        config = read_json(run / "adapter_config.json")
        return {"name": config.get("base_model_name_or_path"), "revision": config.get("revision")}
    return {}


class ModelScores(NamedTuple):
    """One system on one set of references."""

    references: str
    references_sha256: str
    split: str | None
    system: str
    scores: tuple[MetricScore, ...]
    warnings: tuple[str, ...]
    finished_at: str
    """When it was scored: UTC, ISO 8601."""

    def table(self) -> Table:
        """Metric, value with interval, unit, signature."""
        names = {"指标": "metric", "值": "value", "单位": "unit", "签名": "signature"}
        heads = [Phrase(zh=zh, en=en) for zh, en in names.items()]
        rows = [
            (label_of(score.metric), estimate_of(score), score.unit, f"`{score.signature}`")
            for score in self.scores
        ]
        return Table(heads, rows)

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
                        **score.model_dump(include={"signature", "unit", "low", "high"}),
                        "interval": "95% percentile bootstrap over questions",
                        **score.model_dump(include={"n_scored", "n_total"}),
                    },
                }
                for score in self.scores
                if score.value is not None
            ],
        }

    def eval_results(self, benchmark: str, source: str) -> list[dict[str, Any]]:
        """The entries of a file in `.eval_results/`, one a scored metric, which is the task's id.

        Source: the Hub's evaluation results and `huggingface_hub.EvalResultEntry` (2.4).

        Args:
            benchmark: owner/name of the dataset, with @revision where it is known.
            source: address of the page that says how it was scored.
        """
        dataset, _, revision = benchmark.partition("@")
        where = {"id": dataset, **({"revision": revision} if revision else {})}
        return [
            {
                "dataset": {**where, "task_id": score.metric},
                "value": score.value,
                "date": self.finished_at,
                "source": {"url": source, "name": "cbtqa score"},
                "notes": f"{score.unit}; {score.signature}; {score.n_scored} of {score.n_total} "
                f"scored; references SHA-256 {self.references_sha256}",
            }
            for score in self.scores
            if score.value is not None
        ]


def read_scores(folder: Path, system: str | None) -> ModelScores:
    """One system's scores in a `cbtqa score` folder; None means the only one that is no anchor."""
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
        finished_at=manifest.finished_at,
    )
