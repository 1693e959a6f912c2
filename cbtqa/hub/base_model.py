"""Which base a run's weights belong to, as a Hub id and a revision, never a path.

The training's own records are read leniently: `base.json` of an adapter, `merge.json` of a merged
model, the manifest, and at last what PEFT wrote into `adapter_config.json`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.files import read_json
from cbtqa.hub.plan import PublishRefusedError
from cbtqa.hub.settings import REPO_ID, ModelSettings

MOVING = {"main", "master", "HEAD", "latest"}
_GIVEN = re.compile(r"(?P<id>[^@\s]+)@(?P<revision>[\w.-]{1,100})", re.ASCII)


@dataclass(frozen=True)
class BaseModel:
    """The base as a reader gets it."""

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
    """The base that was named, or that the run recorded.

    Raises:
        PublishRefusedError: neither names a repository and a revision of it.
    """
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
        told = f" ({known or name})" if known or name else ""
        raise PublishRefusedError(
            f"the run does not say which repository and revision of the Hub its base{told} is",
            hint="name it: --base owner/name@COMMIT",
        )
    if str(revision) in MOVING:
        raise PublishRefusedError(
            f"{name}@{revision}: a branch moves, and with it the base",
            hint="name the commit: --base owner/name@COMMIT",
        )
    converted = settings.converted
    if converted is None:
        converted = bool(known) and not is_on_hub
    return BaseModel(
        hub_id=name,
        revision=str(revision),
        is_converted=converted,
        weights_sha256=record.get("weights_sha256"),
        is_quantized=bool(record.get("is_quantized")),
    )


def _recorded(run: Path, counts: dict[str, Any]) -> dict[str, Any]:
    """What the run says of its base, the most telling source first."""
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
