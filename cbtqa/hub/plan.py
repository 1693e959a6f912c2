"""What would leave: a list of files with their place in the repository, and what stays behind.

Making a plan touches no network. Generated files lie in `RUN/publish/files`, so that a person can
look at exactly what would be sent; weights are taken from where they are.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cbtqa.errors import ConfigError, LicenceGateError
from cbtqa.files import sha256_of
from cbtqa.hub.settings import Gate
from cbtqa.manifest import MANIFEST_NAME, Manifest, read_manifest

RepoKind = Literal["dataset", "model"]
STAGING = "publish"
CARD_PATH = "README.md"
PROVENANCE_PATH = "provenance.json"
"""Says what a repository holds and how it was made; also the mark of a repository of ours."""


class PublishRefusedError(LicenceGateError):
    """Something would leave that must not, or would leave to a place that is not private."""


@dataclass(frozen=True)
class PlannedFile:
    """One file of the repository to be."""

    path: str
    """Place in the repository, with `/`."""
    source: Path
    """Where its bytes are now."""

    @property
    def n_bytes(self) -> int:
        """Size now."""
        return self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Hash of the bytes, in hex, as they were when first asked: a file that changes between
        plan and upload shows when the upload is compared."""
        return sha256_of(self.source)


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
        """The card's text."""
        return self.file(CARD_PATH).source.read_text(encoding="utf-8")

    @property
    def n_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.n_bytes for file in self.files)

    def file(self, path: str) -> PlannedFile:
        """The file at this place of the repository."""
        return next(file for file in self.files if file.path == path)

    def summary(self) -> dict[str, Any]:
        """Files, sizes, hashes, visibility and what stays behind, for `--json`."""
        return {
            "kind": self.kind,
            "repo_id": self.repo_id,
            "visibility": "private",
            "gate": self.gate,
            "has_source_text": self.has_source_text,
            "n_bytes": self.n_bytes,
            "files": [
                {"path": file.path, "n_bytes": file.n_bytes, "sha256": file.sha256}
                for file in self.files
            ],
            "left_out": [{"path": path, "reason": reason} for path, reason in self.left_out],
            "remarks": list(self.remarks),
        }


def open_run(folder: Path) -> Manifest:
    """The manifest of a run that may be published.

    Raises:
        PublishRefusedError: the run did not finish.
        DataError: no such folder, or a damaged manifest.
    """
    if folder.is_dir() and not (folder / MANIFEST_NAME).exists():
        raise PublishRefusedError(
            f"{folder} holds no {MANIFEST_NAME}: the run did not finish, and half a run is not "
            "published",
            hint="run the command that made it again; it continues where it stopped",
        )
    return read_manifest(folder)


def fresh_staging(run: Path) -> Path:
    """An empty folder for the files to publish, inside the run.

    Raises:
        ConfigError: nothing can be written there.
    """
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
