"""What would leave: a list of files with their place in the repository, and what stays behind.

Making a plan touches no network. Generated files lie in `RUN/publish/files`, so that a person can
look at exactly what would be sent; weights are taken from where they are.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cbtqa
from cbtqa.dataset.report.material import is_invented
from cbtqa.errors import ConfigError, LicenceGateError
from cbtqa.files import sha256_of, write_json
from cbtqa.hub.settings import DatasetSettings, Gate
from cbtqa.manifest import MANIFEST_NAME, Manifest, describe_file, read_manifest

RepoKind = Literal["dataset", "model"]
STAGING = "publish"
CARD_PATH = "README.md"
CROISSANT_PATH = "croissant.json"
PROVENANCE_PATH = "provenance.json"
"""Says what a repository holds and how it was made; also the mark of a repository of ours."""


class PublishRefusedError(LicenceGateError):
    """Something would leave that must not, or would leave to a place that is not private."""


@dataclass(frozen=True)
class PlannedFile:
    path: str
    """Place in the repository, with `/`."""
    source: Path
    """Where its bytes are now."""

    @property
    def n_bytes(self) -> int:
        return self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Hash of the bytes, in hex, as they were when first asked: a file that changes between
        plan and upload shows when the upload is compared."""
        return sha256_of(self.source)

    def described(self) -> dict[str, Any]:
        return {"path": self.path, "n_bytes": self.n_bytes, "sha256": self.sha256}


@dataclass(frozen=True)
class PublishPlan:
    """Everything that is decided before the first network call."""

    kind: RepoKind
    repo_id: str
    files: tuple[PlannedFile, ...]
    gate: Gate
    has_source_text: bool = False
    """True when question text is part of the dataset, by flag and permission."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Files of the run that stay behind, each with the reason."""
    remarks: tuple[str, ...] = ()
    """What the person who publishes should know, a sentence each."""
    acknowledgements: dict[str, str] = field(default_factory=dict)
    """Gates that this publication opens, to be recorded in the run's manifest."""

    @property
    def card(self) -> str:
        return self.file(CARD_PATH).source.read_text(encoding="utf-8")

    def file(self, path: str) -> PlannedFile:
        return next(file for file in self.files if file.path == path)

    def summary(self) -> dict[str, Any]:
        """Files, sizes, hashes, visibility and what stays behind, for `--json`."""
        return {
            "kind": self.kind,
            "repo_id": self.repo_id,
            "visibility": "private",
            "gate": self.gate,
            "has_source_text": self.has_source_text,
            "n_bytes": sum(file.n_bytes for file in self.files),
            "files": [file.described() for file in self.files],
            "left_out": [{"path": path, "reason": reason} for path, reason in self.left_out],
            "remarks": list(self.remarks),
        }


def open_run(folder: Path) -> Manifest:
    """The manifest of a run; PublishRefusedError when the run did not finish."""
    if folder.is_dir() and not (folder / MANIFEST_NAME).exists():
        raise PublishRefusedError(
            f"{folder} holds no {MANIFEST_NAME}: the run did not finish, and half a run is not "
            "published",
            hint="run the command that made it again; it continues where it stopped",
        )
    return read_manifest(folder)


def fresh_staging(run: Path) -> Path:
    """An empty folder for the files to publish, inside the run."""
    staging = run / STAGING / "files"
    try:
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"the files to publish cannot be written to {staging}: {error.strerror}",
            hint="copy the run to a folder that you may write to",
        ) from None
    return staging


def staged_files(staging: Path) -> tuple[PlannedFile, ...]:
    """Every file of the staging folder under its path in the repository, in a stable order."""
    paths = sorted(path for path in staging.rglob("*") if path.is_file())
    return tuple(PlannedFile(path.relative_to(staging).as_posix(), path) for path in paths)


FORMAT_VERSION = 1
OF_ONE_MACHINE = {"out", "endpoint", "in_flight", "transport", "tracker"}
"""Settings that show where somebody computes and change no result."""


def write_provenance(
    staging: Path,
    kind: RepoKind,
    manifest: Manifest,
    *,
    taken: Iterable[PlannedFile] = (),
    acknowledgements: Mapping[str, str],
    more: Mapping[str, Any],
) -> None:
    """Writes the run's manifest, without what belongs to one machine, with the hash of every
    published file but the card. No time of publishing: the same run gives the same bytes.

    Args:
        taken: files that are published from where they are, beside those of the staging folder.
        more: what this kind of publication adds, such as `has_source_text`.
    """
    files = [
        file.described()
        for file in (*staged_files(staging), *taken)
        if file.path not in (CARD_PATH, PROVENANCE_PATH)
    ]
    run = manifest.model_dump(mode="json", exclude={"files", "settings"})
    run["acknowledgements"] = dict(acknowledgements)
    run["settings"] = {
        name: entry.value for name, entry in manifest.settings.items() if name not in OF_ONE_MACHINE
    }
    write_json(
        staging / PROVENANCE_PATH,
        {
            "published_by": "cbtqa",
            "cbtqa_version": cbtqa.__version__,
            "format_version": FORMAT_VERSION,
            "kind": kind,
            **more,
            "run": run,
            "files": files,
        },
    )


KEY = "source_text"
"""Under this key the manifest's acknowledgements keep the permission."""
AGREEMENT_ENDED = "2026-05-18"
"""End of the period that PsyQA's public agreement prints (data/psyqa/README.md)."""
NO_END = (
    "the end of the permission is not stated (--permission-until); the period printed in "
    f"PsyQA's agreement ended on {AGREEMENT_ENDED}"
)


@dataclass(frozen=True)
class Permission:
    """Whether question text is published, and on what grounds."""

    has_source_text: bool
    acknowledgement: str | None = None
    """Sentence for the manifest; None when nothing needs to be permitted."""
    remark: str | None = None
    """What the person should know first."""


def pass_permission_gate(settings: DatasetSettings, manifest: Manifest) -> Permission:
    """Decides whether question text is published.

    PublishRefusedError: it was asked for without a permission, with an empty one, or with one that
    has ended.
    """
    if not settings.include_source_text:
        return Permission(False)
    if settings.permission is None:
        if is_invented(manifest):
            return Permission(True, remark="the questions are the invented sample of cbtqa")
        raise PublishRefusedError(
            "--include-source-text wants --permission FILE: PsyQA's user agreement forbids copying "
            "its questions onward, and other sources have owners too",
            hint="publish without the text (the default): readers who have the file put it back "
            "with cbtqa join",
        )
    if not settings.permission.is_file() or settings.permission.stat().st_size == 0:
        raise PublishRefusedError(
            f"{settings.permission} is no permission: no such file, or an empty one",
            hint="name the file that permits publishing the questions",
        )
    until = settings.permission_until
    if until is not None and datetime.date.fromisoformat(until) < datetime.date.today():
        raise PublishRefusedError(
            f"the permission ended on {until}", hint="renew it, or publish without the text"
        )
    entry = describe_file(settings.permission)
    valid = f", valid until {until}" if until else ""
    ground = (
        f"question text published to {settings.to} under the permission {entry.name} "
        f"(SHA-256 {entry.sha256}{valid})"
    )
    # the day of the first acknowledgement is kept, so that a run stays equal to itself
    before = manifest.acknowledgements.get(KEY, "")
    is_same = before.startswith(ground)
    sentence = before if is_same else f"{ground}; acknowledged {datetime.date.today()}"
    return Permission(True, sentence, None if until else NO_END)
