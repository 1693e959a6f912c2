"""The provenance of a run; `manifest.json` is written last: a folder with one is complete."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

import cbtqa
from cbtqa.errors import DataError, IncompleteRunError
from cbtqa.files import parse_record, read_json, sha256_of, write_json
from cbtqa.records import Record, Tabular, Usage
from cbtqa.settings import Resolved

MANIFEST_NAME = "manifest.json"
RETRY_HINT = "mend the cause, then give the same command with --retry rejected to ask again"
PACKAGES = (
    *("openai", "pyarrow", "pydantic", "aiohttp", "json-repair", "pyahocorasick"),
    *("numpy", "scipy", "jieba", "rjieba", "sacrebleu"),
    *("torch", "transformers", "peft", "accelerate", "datasets", "huggingface-hub"),
    *("tokenizers", "safetensors", "sentencepiece", "bitsandbytes"),
)
MAKERS = {
    "dataset": "cbtqa build-dataset",
    "adapter": "cbtqa finetune --backbone NAME",
    "answers": "cbtqa generate",
    "study": "cbtqa simulate run",
}
"""Kinds of folders that commands take by default, and the command that makes one."""


class SettingValue(Record):
    """One setting and where its value came from."""

    value: Any
    origin: str


class FileEntry(Record):
    """One file by name, size and hash; the name is relative to the run's folder."""

    name: str
    n_bytes: int = Field(ge=0)
    sha256: str


class Manifest(Record):
    """How a folder was made."""

    kind: str
    """What the folder holds, such as `dataset`."""
    format_version: int = 1
    cbtqa_version: str = cbtqa.__version__
    python: str = Field(default_factory=platform.python_version)
    packages: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, SettingValue] = Field(default_factory=dict)
    inputs: tuple[FileEntry, ...] = ()
    prompts: dict[str, str] = Field(default_factory=dict)
    """Prompt id to SHA-256 of its file."""
    counts: dict[str, Any] = Field(default_factory=dict)
    """Every input accounted for: `n_in`, `n_out`, `rejected` by reason, and more by kind."""
    usage: Usage | None = None
    cost: dict[str, Any] | None = None
    """Price estimate with its currency and the date of the price table."""
    acknowledgements: dict[str, str] = Field(default_factory=dict)
    """Gates that a person opened, each with what was acknowledged and when."""
    files: tuple[FileEntry, ...] = ()
    started_at: str
    finished_at: str


@dataclass(frozen=True)
class FolderResult(Tabular):
    """A finished run."""

    folder: Path
    manifest: Manifest
    was_complete: bool = False
    """True when the folder already held this very run and nothing was done."""

    @property
    def path(self) -> Path:
        """The input of the next command: the folder, or the file in it."""
        return self.folder

    def to_dict(self) -> dict[str, Any]:
        """Folder, counts, tokens and cost."""
        place = {"folder": str(self.folder), "was_complete": self.was_complete}
        return place | self.manifest.model_dump(include={"counts", "usage", "cost"})

    def to_rows(self) -> list[dict[str, Any]]:
        """The counts as one row."""
        return [self.manifest.counts]


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def new_manifest(
    kind: str, resolved: Resolved[Any] | None, started_at: str, **more: Any
) -> Manifest:
    """The manifest of a run that ends now: what is known of every run, and `more` over it."""
    known: dict[str, Any] = {
        "packages": package_versions(),
        "settings": describe_settings(resolved) if resolved else {},
        "finished_at": now(),
    }
    return Manifest(kind=kind, started_at=started_at, **(known | more))


def describe_file(path: Path, relative_to: Path | None = None) -> FileEntry:
    """Name (never an absolute path), size and hash of a file."""
    name = path.relative_to(relative_to).as_posix() if relative_to else path.name
    return FileEntry(name=name, n_bytes=path.stat().st_size, sha256=sha256_of(path))


def describe_settings(resolved: Resolved[Any]) -> dict[str, SettingValue]:
    """Settings as manifest entries; a path is reduced to its last part, a URL to its host."""
    values = resolved.values.model_dump(mode="python")
    return {
        name: SettingValue(value=_without_folder(value), origin=_origin(resolved.origins[name]))
        for name, value in values.items()
    }


def _without_folder(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str) and "://" in value:
        return urlsplit(value).hostname
    if isinstance(value, str) and value.startswith("batch-files:"):
        return f"batch-files:{Path(value.partition(':')[2]).name}"
    return [_without_folder(one) for one in value] if isinstance(value, tuple) else value


def _origin(origin: str) -> str:
    return origin if origin.startswith("--") else origin.rsplit("/", 1)[-1]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest; do this last."""
    write_json(folder / MANIFEST_NAME, manifest)


def refuse_empty(
    n_out: int,
    n_in: int,
    items: str,
    reasons: Mapping[str, int],
    *,
    kept: Path | None,
    hint: str = "",
) -> None:
    """Decides for every verb that a run which brought nothing out does not end with 0.

    Args:
        items: what did not come out, such as `questions has an answer`.
        reasons: why, with how often.
        kept: what was written, reasons included; None where nothing was.

    Raises:
        IncompleteRunError: nothing came out.
    """
    if n_out:
        return
    why = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items())
    where = f"; what was written is kept in {kept}" if kept else ""
    raise IncompleteRunError(
        f"not one of {n_in:,} {items}{f': {why}' if why else ''}",
        hint=f"{hint or RETRY_HINT}{where}",
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished run.

    Raises:
        IncompleteRunError: the folder exists but holds no manifest: the run did not finish.
        DataError: no such folder, or the manifest is damaged.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        if not folder.is_dir():
            raise DataError("no such folder", where=str(folder))
        raise IncompleteRunError(
            f"{folder} holds no {MANIFEST_NAME}: the run did not finish",
            hint="run the command that made it again; it continues where it stopped",
        )
    return parse_record(Manifest, read_json(path), str(path))


def newest_folder(kind: str, within: Path = Path()) -> Path | None:
    """The finished folder of a kind that ended last, one or two levels down; None: there is none.

    Files of the same name from other programs are ignored.
    """
    found: list[tuple[str, int, Path]] = []
    for path in (*within.glob(f"*/{MANIFEST_NAME}"), *within.glob(f"*/*/{MANIFEST_NAME}")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            row = json.loads(path.read_bytes())
            if row["kind"] == kind and "cbtqa_version" in row:
                found.append((str(row["finished_at"]), path.stat().st_mtime_ns, path.parent))
    return max(found)[2] if found else None
