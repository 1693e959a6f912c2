"""`cbtqa simulate export --format inspect`: judged sessions as logs for Inspect (inspect_ai).

    OUT/
      2026-11-21T02-12-30+00-00_STUDY_ARM.json   a log an arm, a sample a session
      manifest.json                              what was read, and the counts

The therapist's turns are the assistant's messages, the patient's turns the user's. Every judge on
every instrument is a scorer; a score maps items and totals to numbers, None where there is none,
with quotes and reasons in its explanation. Repeats of a session are epochs.

    inspect view --log-dir OUT
    inspect_ai.analysis.samples_df("OUT")

Source: version 2 of Inspect's log in JSON, as inspect_ai 0.3.285 reads it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cbtqa
from cbtqa.errors import DataError
from cbtqa.files import write_json
from cbtqa.manifest import (
    MANIFEST_NAME,
    FolderResult,
    describe_file,
    new_manifest,
    now,
    read_manifest,
    write_manifest,
)
from cbtqa.paths import make_folder
from cbtqa.records import ItemRating, Session, Turn
from cbtqa.settings import Resolved, refuse_ignored
from cbtqa.simulation.analysis.scores import (
    Judged,
    all_totals,
    cells_of,
    item_means,
    mean_of,
    read_judged,
)
from cbtqa.simulation.export import ExportSettings, refuse_foreign
from cbtqa.simulation.judging.run import JUDGED
from cbtqa.simulation.playing.run import NOTICE
from cbtqa.simulation.sessions import StudyFolder
from cbtqa.simulation.study import StudySettings

LOG_VERSION = 2
HEEDED = ("sessions", "out", "format", "judged")
"""Settings that mean something to logs; the others are about rows."""
LOGS = "[0-9]*T*_*.json"
"""Names of logs: Inspect lists only those that begin with a time."""


def export_logs(resolved: Resolved[ExportSettings]) -> FolderResult:
    """Writes a log for every arm that was judged.

    Raises:
        UsageError: settings of rows were given.
        ConfigError: an `--out` that is something else.
        DataError: no study there, nobody has judged it, or the ratings are of other sessions.
    """
    settings, started_at = resolved.values, now()
    refuse_ignored(resolved, HEEDED, "--format inspect")
    source, out = StudyFolder(settings.sessions), settings.out
    folder = settings.judged or settings.sessions / JUDGED
    refuse_foreign(out, LOGS, MANIFEST_NAME)
    sessions, study = list(source.read_sessions()), source.study()
    judged = read_judged(folder)
    ended = max(read_manifest(path.parent).finished_at for path in folder.glob("*/*/manifest.json"))
    arms: dict[str, list[Session]] = defaultdict(list)
    for one in sessions:
        arms[one.arm].append(one)
    logs = [_Log(study, arm, tuple(own), judged, ended) for arm, own in arms.items()]
    n_judged = sum(bool(sample["scores"]) for log in logs for sample in log.samples)
    if not n_judged:
        raise DataError(f"its ratings are of no session of {source.path}", where=str(folder))
    make_folder(out)
    for path in (out / MANIFEST_NAME, *out.glob(LOGS)):
        path.unlink(missing_ok=True)
    for log in logs:
        write_json(out / log.name, log.made())
    manifest = new_manifest(
        "inspect logs",
        resolved,
        started_at,
        inputs=(describe_file(source.sessions_path),),
        counts={
            "n_sessions": len(sessions),
            "n_judged": n_judged,
            "scorers": [name for name, *_ in _scorers(judged)],
            "unfinished": [name for one in judged.values() for name in one.unfinished],
            "logs": {log.arm: log.name for log in logs},
        },
        acknowledgements={"notice": NOTICE},
        files=tuple(describe_file(out / log.name, out) for log in logs),
    )
    write_manifest(out, manifest)
    return FolderResult(out, manifest, False)


def _scorers(judged: Mapping[str, Judged]) -> Iterator[tuple[str, Judged, tuple[ItemRating, ...]]]:
    """Every judge on every instrument, named `instrument/judge`."""
    for instrument, one in judged.items():
        for judge, ratings in one.ratings.items():
            yield f"{instrument}/{judge}", one, ratings


@dataclass(frozen=True)
class _Log:
    """One arm of a study."""

    study: StudySettings
    arm: str
    sessions: Sequence[Session]
    judged: Mapping[str, Judged]
    ended: str
    """When the last judge ended: UTC, ISO 8601."""

    @property
    def name(self) -> str:
        time = re.sub(r"[:.]", "-", self.ended)
        return f"{time}_{_slug(self.study.id)}_{_slug(self.arm)}.json"

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        scores: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, judged, ratings in _scorers(self.judged):
            by_session: dict[str, list[ItemRating]] = defaultdict(list)
            for rating in ratings:
                by_session[rating.session_id].append(rating)
            for one in self.sessions:
                if own := by_session.get(one.id):
                    scores[one.id][name] = _score(judged, own)
        return [_sample(one, scores[one.id]) for one in self.sessions]

    def made(self) -> dict[str, Any]:
        """The log, in the order of keys that Inspect wants when it reads the head alone."""
        models = sorted({one.provenance.model for one in self.sessions})
        patients = {one.patient_provenance.model for one in self.sessions if one.patient_provenance}
        names = [name for name, *_ in _scorers(self.judged)]
        same = {"run_id": self.study.id, "eval_id": f"{self.study.id}/{self.arm}"}
        ids = list(dict.fromkeys(sample["id"] for sample in self.samples))
        return {
            "version": LOG_VERSION,
            "status": "success",
            "eval": {
                **same,
                "created": self.ended,
                "task": self.study.id,
                "task_id": self.arm,
                "tags": ["simulated", self.study.approach],
                "dataset": {"name": self.study.id, "samples": len(ids), "sample_ids": ids},
                "model": ", ".join(models),
                "config": {"epochs": max(one.replicate for one in self.sessions)},
                "packages": {"cbtqa": cbtqa.__version__},
                "metadata": {"arm": self.arm, "patients": sorted(patients), "notice": NOTICE},
                "scorers": [{"name": name} for name in names],
            },
            "plan": {"name": "cbtqa simulate", "steps": [], "config": {}},
            "results": {
                "total_samples": len(self.samples),
                "completed_samples": len(self.samples),
                "scores": [score for name in names for score in self._means(name)],
            },
            "stats": {"completed_at": self.ended},
            "samples": self.samples,
        }

    def _means(self, scorer: str) -> Iterator[dict[str, Any]]:
        """The mean of each total over the sessions that have it."""
        scored = [one["scores"][scorer] for one in self.samples if scorer in one["scores"]]
        for total in scored[0]["metadata"]["totals"] if scored else ():
            values = [one["value"][total] for one in scored]
            mean, n_missing = mean_of(values), values.count(None)
            yield {
                "name": f"{scorer}/{total}",
                "scorer": scorer,
                "scored_samples": len(values) - n_missing,
                "unscored_samples": len(self.samples) - len(values) + n_missing,
                "metrics": {} if mean is None else {"mean": {"name": "mean", "value": mean}},
            }


def _slug(name: str) -> str:
    """A part of a log's name: Inspect divides it at `_`."""
    return re.sub(r"[^\w.+-]|_", "-", name)


def _sample(session: Session, scores: dict[str, Any]) -> dict[str, Any]:
    messages = [_message(turn) for turn in session.turns]
    said = [message for message in messages if message["role"] == "assistant"]
    model = session.provenance.model
    choices = [{"message": said[-1], "stop_reason": "stop"}] if said else []
    return {
        "id": f"{session.profile_id}/s{session.number}",
        "epoch": session.replicate,
        "input": f"patient {session.profile_id}, session {session.number}",
        "target": "",
        "messages": messages,
        "output": {"model": model, "choices": choices},
        "scores": scores,
        "metadata": {
            "session_id": session.id,
            **session.model_dump(
                include={"arm", "profile_id", "number", "phase", "seed", "stop_reason"}
            ),
            "is_training_source": session.provenance.is_training_source,
        },
        "uuid": session.id,
    }


def _message(turn: Turn) -> dict[str, Any]:
    role = "assistant" if turn.role == "therapist" else "user"
    content: Any = turn.text
    if turn.reasoning:
        thought = {"type": "reasoning", "reasoning": turn.reasoning}
        content = [thought, {"type": "text", "text": turn.text}]
    facts = turn.model_dump(include={"marks", "event"}, exclude_defaults=True)
    return {"role": role, "content": content, **({"metadata": facts} if facts else {})}


def _key_of(total: str, items: Container[str]) -> str:
    """A total's own id, marked where an item of the instrument has the same one."""
    return f"{total} (total)" if total in items else total


def _score(judged: Judged, ratings: Sequence[ItemRating]) -> dict[str, Any]:
    """One judge's ratings of one session: repeats averaged, then the totals."""
    means = item_means(cells_of(ratings)[ratings[0].session_id])
    values = {item.id: means.get(item.id) for item in judged.instrument.items}
    totals = all_totals(judged.instrument, values)
    lines = []
    for one in ratings:
        given = one.unscored_reason if one.value is None else f"{one.value}"
        quote = f": {one.evidence}" if one.evidence else ""
        lines.append(f"{one.item} (repeat {one.repeat}) {given}{quote}")
    return {
        "value": {**values, **{_key_of(one.total, values): one.value for one in totals}},
        "explanation": "\n".join(lines),
        "metadata": {
            "instrument": judged.instrument.id,
            "judge": ratings[0].judge,
            "totals": {
                _key_of(one.total, values): {"low": one.low, "high": one.high} for one in totals
            },
            "unscored": {one.item: one.unscored_reason for one in ratings if one.unscored_reason},
        },
    }
