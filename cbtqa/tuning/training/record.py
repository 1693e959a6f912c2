"""What a training run leaves on paper: its start, so that a later command may continue it, and its
manifest, written last.

    run.json        settings, data and base by hash; written first
    base.json       the base model the adapter belongs to
    README.md       how to load the adapter
    manifest.json   all of it with counts, versions and files; its presence means complete
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from cbtqa.errors import ConfigError
from cbtqa.files import parse_record, read_json, read_rows, write_json, write_text
from cbtqa.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    SettingValue,
    describe_file,
    describe_settings,
    now,
    package_versions,
    read_manifest,
    write_manifest,
)
from cbtqa.records import Record
from cbtqa.report.charts import Line, line_chart
from cbtqa.settings import Resolved
from cbtqa.tuning.settings import FinetuneSettings
from cbtqa.tuning.weights.files import BaseRecord

RUN_NAME, README_NAME = "run.json", "README.md"
WITHOUT_EFFECT = {
    *("out", "data", "validation_data", "backbone", "micro_batch_tokens", "packing", "log_steps"),
    *("gradient_checkpointing", "compile", "keep_checkpoints", "tracker", "n_samples"),
    *("sample_tokens", "allow_template", "preset"),
}
"""Settings that change speed, memory or what is told, never what is learnt but for rounding. Data
and backbone are compared by hash instead."""


class RunStart(Record):
    """What a run began with: `run.json`."""

    settings: dict[str, SettingValue]
    inputs: tuple[FileEntry, ...]
    base: BaseRecord
    split_sha256: dict[str, str]
    """Split to the hash of its items' ids, in order."""
    started_at: str


def start_of(
    resolved: Resolved[FinetuneSettings],
    inputs: Iterable[FileEntry],
    base: BaseRecord,
    ids: dict[str, list[str]],
) -> RunStart:
    """The record of a run that begins now."""
    told = describe_settings(resolved)
    for name in ("backbone", "preset", "chat_format"):
        value = told[name].value
        if value and Path(value).exists():  # a folder of this machine
            told[name] = told[name].model_copy(update={"value": Path(value).resolve().name})
    return RunStart(
        settings=told,
        inputs=tuple(inputs),
        base=base,
        split_sha256={name: hash_ids(of_split) for name, of_split in ids.items()},
        started_at=now(),
    )


def hash_ids(ids: Iterable[str]) -> str:
    """SHA-256 of ids in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def check_folder(folder: Path) -> None:
    """Refuses a folder that is neither new nor a training run.

    Raises:
        ConfigError: a file, or a folder with something else in it.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file")
    foreign = [path for path in folder.glob("*") if not path.name.startswith(".")]
    if foreign and not (folder / RUN_NAME).exists():
        raise ConfigError(
            f"--out: {folder} is not empty and is no training run", hint="name a new folder"
        )


def continued(folder: Path, start: RunStart) -> RunStart:
    """The run's first record, when the folder holds this very run; else `start`.

    Raises:
        ConfigError: the folder holds a run of other settings, data or base; lists them.
    """
    path = folder / RUN_NAME
    if not path.exists():
        return start
    before = parse_record(RunStart, read_json(path), str(path))
    changes = _differences(before, start)
    if changes:
        raise ConfigError(
            f"{folder} holds a run of other settings:\n" + "\n".join(changes),
            hint="name a new --out, or give the same settings to continue it",
        )
    return before


def _differences(before: RunStart, now_: RunStart) -> list[str]:
    changes = []
    for name, entry in now_.settings.items():
        old = before.settings[name].value if name in before.settings else None
        if name not in WITHOUT_EFFECT and old != entry.value:
            changes.append(f"  {name}: {old!r} there, {entry.value!r} now")
    if [entry.sha256 for entry in before.inputs] != [entry.sha256 for entry in now_.inputs]:
        changes.append("  data: other bytes there")
    if before.split_sha256 != now_.split_sha256:
        changes.append("  data: other rows there")
    if before.base.weights_sha256 != now_.base.weights_sha256:
        changes.append(f"  backbone: {before.base.name} there, {now_.base.name} now")
    return changes


def finished(folder: Path) -> Manifest | None:
    """The manifest of a finished run, or None."""
    return read_manifest(folder) if (folder / MANIFEST_NAME).exists() else None


def write_start(folder: Path, start: RunStart) -> None:
    """Writes `run.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN_NAME, start)


def write_readme(folder: Path, start: RunStart) -> None:
    """Writes the adapter's README: what it belongs to, how to load it."""
    text = (files("cbtqa.tuning") / "adapter_readme.md").read_text(encoding="utf-8")
    base = start.base
    words = {
        "base": base.name,
        "revision": base.revision or "main",
        "sha256": base.weights_sha256,
        "objective": start.settings["objective"].value,
        "preset": start.settings["preset"].value,
        "mode": start.settings["mode"].value,
    }
    write_text(folder / README_NAME, Template(text).substitute(words))


def write_record(folder: Path, start: RunStart, counts: dict[str, Any]) -> Manifest:
    """Writes the manifest, last of all, and gives it."""
    told = {**counts, "base": start.base.model_dump(), "split_sha256": start.split_sha256}
    told["source_revision"] = source_revision()
    parts = sorted(path for path in folder.glob("*") if path.is_file() and path.name[0] != ".")
    manifest = Manifest(
        kind="adapter",
        packages=package_versions(),
        settings=start.settings,
        inputs=start.inputs,
        counts=told,
        files=tuple(describe_file(path, folder) for path in parts if path.name != MANIFEST_NAME),
        started_at=start.started_at,
        finished_at=now(),
    )
    write_manifest(folder, manifest)
    return manifest


def source_revision() -> str | None:
    """The commit of cbtqa's own source, with `-dirty` when changed; None for an installed copy."""
    source = Path(__file__).parents[3]
    if not (source / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=source,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


# --- curve ---------------------------------------------------------------------------------------
# The loss curve of a run as SVG, from its log lines.

CURVE_NAME = "loss.svg"


def write_curve(folder: Path, log_path: Path) -> None:
    """Draws training and validation loss over steps into the folder."""
    lines = [row for _, row in read_rows(log_path)] if log_path.exists() else []
    write_text(folder / CURVE_NAME, draw_curve(lines))


def draw_curve(lines: Iterable[Mapping[str, Any]]) -> str:
    """The chart of log lines: those with `loss`, and those with `eval_loss`."""
    rows = list(lines)
    drawn = []
    for label, key in (("train", "loss"), ("validation", "eval_loss")):
        points = tuple((float(row["step"]), float(row[key])) for row in rows if key in row)
        if points:
            drawn.append(Line(label, points))
    last = ", ".join(f"{line.label} {line.points[-1][1]:.4f}" for line in drawn) or "no line"
    return str(
        line_chart(
            drawn,
            title="Loss",
            description=f"Loss over optimiser steps; at the end: {last}.",
            x_name="step",
            y_name="loss",
        )
    )
