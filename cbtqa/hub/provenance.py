"""`provenance.json` of a repository: the run's manifest without what belongs to one machine.

Holds no time of publishing: the same run gives the same bytes, and the Hub dates its commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cbtqa
from cbtqa.files import write_json
from cbtqa.hub.plan import CARD_PATH, PROVENANCE_PATH, PlannedFile, RepoKind, staged_files
from cbtqa.manifest import Manifest

FORMAT_VERSION = 1
OF_ONE_MACHINE = {"out", "endpoint", "in_flight", "transport", "tracker"}
"""Settings that tell where somebody computes and change no result."""


def write_provenance(
    staging: Path,
    kind: RepoKind,
    manifest: Manifest,
    *,
    taken: Iterable[PlannedFile] = (),
    acknowledgements: Mapping[str, str],
    more: Mapping[str, Any],
) -> None:
    """Writes the file into the staging folder, with the hash of everything that is published but
    the card, which may be corrected on its own.

    Args:
        taken: files that are published from where they are, beside those of the staging folder.
        more: what this kind of publication adds, such as `has_source_text`.
    """
    files = [
        {"path": file.path, "n_bytes": file.n_bytes, "sha256": file.sha256}
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
