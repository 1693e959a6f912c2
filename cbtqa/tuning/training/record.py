"""The records of a training run: its start, by which a later command resumes it, and its manifest.

run.json        settings, data and base by hash; written first
base.json       the base model the adapter belongs to
README.md       how to load the adapter
manifest.json   all of it with counts, versions and files; written last
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

from cbtqa.errors import ConfigError
from cbtqa.files import parse_record, read_json, read_rows, write_text
from cbtqa.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    SettingValue,
    describe_file,
    describe_settings,
    now,
    package_versions,
    write_manifest,
)
from cbtqa.records import Record
from cbtqa.report.charts import Line, line_chart
from cbtqa.settings import Resolved
from cbtqa.tuning.libraries import shipped_yaml
from cbtqa.tuning.settings import FinetuneSettings
from cbtqa.tuning.weights.files import BaseRecord

RUN_NAME, README_NAME, CURVE_NAME = "run.json", "README.md", "loss.svg"
WITHOUT_EFFECT = {
    *("out", "data", "validation_data", "backbone", "micro_batch_tokens", "packing", "log_steps"),
    *("gradient_checkpointing", "compile", "keep_checkpoints", "tracker", "n_samples"),
    *("sample_tokens", "allow_template", "preset", "from_"),
}
"""Settings that change speed, memory or the log, never what is learnt but for rounding. Data and
backbone are compared by hash instead."""


class RunStart(Record):
    """The settings, data and base that a run began with: `run.json`."""

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
    described = describe_settings(resolved)
    for name in ("backbone", "preset", "chat_format"):
        value = described[name].value
        if value and Path(value).exists():  # a folder of this machine
            update = {"value": Path(value).resolve().name}
            described[name] = described[name].model_copy(update=update)
    return RunStart(
        settings=described,
        inputs=tuple(inputs),
        base=base,
        split_sha256={
            name: hashlib.sha256("\n".join(of_split).encode()).hexdigest()
            for name, of_split in ids.items()
        },
        started_at=now(),
    )


def check_folder(folder: Path) -> None:
    """Raises ConfigError for a folder that is neither new nor a training run."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file")
    foreign = [path for path in folder.glob("*") if not path.name.startswith(".")]
    if foreign and not (folder / RUN_NAME).exists():
        raise ConfigError(
            f"--out: {folder} is not empty and is no training run", hint="name a new folder"
        )


def continued(folder: Path, start: RunStart) -> RunStart:
    """The record of this run in the folder, or `start`; raises ConfigError for another run."""
    path = folder / RUN_NAME
    if not path.exists():
        return start
    before = parse_record(RunStart, read_json(path), str(path))
    changes = []
    for name, entry in start.settings.items():
        if name not in before.settings and entry.origin == "default":
            continue  # a setting that cbtqa did not have then
        old = before.settings[name].value if name in before.settings else None
        if name not in WITHOUT_EFFECT and old != entry.value:
            changes.append(f"  {name}: {old!r} there, {entry.value!r} now")
    if [entry.sha256 for entry in before.inputs] != [entry.sha256 for entry in start.inputs]:
        changes.append("  data: other bytes there")
    if before.split_sha256 != start.split_sha256:
        changes.append("  data: other rows there")
    if before.base.weights_sha256 != start.base.weights_sha256:
        changes.append(f"  backbone: {before.base.name} there, {start.base.name} now")
    if changes:
        raise ConfigError(
            f"{folder} holds a run of other settings:\n" + "\n".join(changes),
            hint="name a new --out, or give the same settings to resume it",
        )
    return before


def write_readme(folder: Path, start: RunStart) -> None:
    """Writes the adapter's README: its base, how to load it."""
    text = shipped_yaml("adapter_readme.md")
    base = start.base
    words = {name: start.settings[name].value for name in ("objective", "preset", "mode")}
    words |= {"published": base.hub_id or base.name}
    words |= {"base": base.name, "revision": base.revision or "main", "sha256": base.weights_sha256}
    write_text(folder / README_NAME, Template(text).substitute(words))


def write_record(folder: Path, start: RunStart, counts: dict[str, Any]) -> None:
    """Writes the manifest, last of all."""
    base = {"base": start.base.model_dump(), "split_sha256": start.split_sha256}
    parts = sorted(path for path in folder.glob("*") if path.is_file() and path.name[0] != ".")
    manifest = Manifest(
        kind="adapter",
        packages=package_versions(),
        settings=start.settings,
        inputs=start.inputs,
        counts={**counts, **base, "source_revision": source_revision()},
        files=tuple(describe_file(path, folder) for path in parts if path.name != MANIFEST_NAME),
        started_at=start.started_at,
        finished_at=now(),
    )
    write_manifest(folder, manifest)


def source_revision() -> str | None:
    """The commit of cbtqa's own source, with `-dirty` when changed; None for an installed copy."""
    source = Path(__file__).parents[3]
    if not (source / ".git").exists():
        return None
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            words, cwd=source, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def write_curve(folder: Path, log_path: Path) -> None:
    """Draws training and validation loss over steps into the folder."""
    rows = [row for _, row in read_rows(log_path)] if log_path.exists() else []
    drawn = []
    for label, key in (("train", "loss"), ("validation", "eval_loss")):
        points = tuple((float(row["step"]), float(row[key])) for row in rows if key in row)
        if points:
            drawn.append(Line(label, points))
    last = ", ".join(f"{line.label} {line.points[-1][1]:.4f}" for line in drawn) or "no line"
    words = f"Loss over optimiser steps; at the end: {last}."
    chart = line_chart(drawn, title="Loss", description=words, x_name="step", y_name="loss")
    write_text(folder / CURVE_NAME, str(chart))
