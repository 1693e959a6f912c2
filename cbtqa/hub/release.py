"""`cbtqa publish release`: makes a repository public, after its content is checked again."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.errors import BadResponseError, EndpointError, UsageError
from cbtqa.hub.client import Hub, RepoState, find_token
from cbtqa.hub.plan import (
    CARD_PATH,
    PROVENANCE_PATH,
    PlannedFile,
    PublishRefusedError,
    RepoKind,
)
from cbtqa.hub.scan import Watch, places_of, refuse_findings, scan_file
from cbtqa.hub.upload import require_write

KINDS: tuple[RepoKind, ...] = ("dataset", "model")


@dataclass(frozen=True)
class Checked:
    hub: Hub
    state: RepoState
    tag: str
    n_files: int
    has_source_text: bool
    permission: str | None
    """The record of the permission, where question text is part of it."""

    def summary(self) -> dict[str, Any]:
        hub, state = self.hub, self.state
        return {
            "repo_id": hub.repo_id,
            "kind": hub.kind,
            "url": hub.url,
            "tag": self.tag,
            "commit": state.head,
            "gate": state.gate,
            "n_files": self.n_files,
            "has_source_text": self.has_source_text,
            "permission": self.permission,
        }


def check_release(
    repo_id: str, kind: RepoKind | None = None, *, endpoint: str | None = None
) -> Checked:
    """The repository on the Hub; `kind` where a dataset and a model have this name.

    PublishRefusedError: it was not published with cbtqa, changed since, or its card has gaps.
    """
    token = find_token()
    hubs = [Hub(token, repo_id, one, endpoint=endpoint) for one in KINDS if kind in (None, one)]
    require_write(hubs[0].account(), repo_id)
    found = [(hub, state) for hub in hubs if (state := hub.state()) is not None]
    if not found:
        raise EndpointError(
            f"there is no repository {repo_id} that this token can see",
            hint="publish it first: cbtqa publish dataset RUN --to owner/name",
        )
    if len(found) > 1:
        raise UsageError(f"{repo_id} is a dataset and a model", hint="say which: --type dataset")
    hub, state = found[0]
    if not state.is_private:
        raise UsageError(f"{hub.url} is public already")
    if PROVENANCE_PATH not in hub.files(state.head):
        raise PublishRefusedError(
            f"{hub.repo_id} was not published with cbtqa: it holds no {PROVENANCE_PATH}",
            hint="what was not scanned is not made public here; use the Hub's settings page",
        )
    provenance: dict[str, Any] = json.loads(hub.read(PROVENANCE_PATH, state.head))
    _refuse_strangers(hub, state.head, provenance)
    tag = next((name for name, commit in hub.tags().items() if commit == state.head), None)
    if tag is None:
        raise PublishRefusedError(
            "the newest commit has no tag: it is not what a publication finished with",
            hint="run cbtqa publish again; it completes what is missing",
        )
    has_source_text = bool(provenance.get("has_source_text"))
    if has_source_text and state.gate == "none":
        raise PublishRefusedError(
            "it holds question text and has no gate: everybody could copy it",
            hint="publish again with --gate manual",
        )
    permission = provenance.get("run", {}).get("acknowledgements", {}).get("source_text")
    return Checked(hub, state, tag, len(hub.files(state.head)), has_source_text, permission)


def release(checked: Checked, typed: str) -> str:
    """Makes it public once its name is typed out; returns its address."""
    hub = checked.hub
    if typed.strip() != hub.repo_id:
        raise UsageError(f"'{typed.strip()}' is not {hub.repo_id}: it stays private")
    now = hub.state()
    if now is None or now.head != checked.state.head or now.gate != checked.state.gate:
        raise PublishRefusedError("the repository changed meanwhile: it stays private")
    hub.make_public()
    after = hub.state()
    if after is None or after.is_private:
        raise BadResponseError("the Hub took the request, but the repository is private still")
    return hub.url


def _refuse_strangers(hub: Hub, head: str, provenance: dict[str, Any]) -> None:
    """Refuses files that no publication of ours put there, and a card that does not pass."""
    known = {entry["path"]: entry["sha256"] for entry in provenance.get("files", ())}
    for path, file in hub.files(head).items():
        if path in (CARD_PATH, PROVENANCE_PATH) or path in hub.own_files:
            continue
        sha256 = file.sha256 or hashlib.sha256(hub.read(path, head)).hexdigest()
        if known.get(path) != sha256:
            raise PublishRefusedError(
                f"{path} on the Hub is not what was published",
                hint="run cbtqa publish again; it brings the repository into order",
            )
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder) / CARD_PATH
        card.write_bytes(hub.read(CARD_PATH, head))
        refuse_findings(list(scan_file(PlannedFile(CARD_PATH, card), Watch(places=places_of()))))
