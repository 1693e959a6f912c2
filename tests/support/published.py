"""A Hub on loopback that holds tiny random checkpoints in the layouts of 2023."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from cbtqa.tuning.backbones import load_backbones
from tests.support.hub import StandInHub
from tests.support.original_checkpoints import Kind, save_original


@contextmanager
def published(
    folder: Path, backbones: Mapping[str, Kind], *, in_parts: Collection[str] = ()
) -> Iterator[StandInHub]:
    """Serves a checkpoint for each listed backbone under its own Hub id, with empty caches.

    What this process imports finds the Hub there, and so does every process that it starts.
    """
    with StandInHub() as server, pytest.MonkeyPatch.context() as patch:
        for name, kind in backbones.items():
            save_original(folder / name, kind, parts=2 if name in in_parts else 1)
            config = json.loads((folder / name / "config.json").read_text())
            config |= {"max_position_embeddings": 2048}  # our text is many tokens of theirs
            config |= {"seq_length": 2048} if kind == "qwen" else {}
            (folder / name / "config.json").write_text(json.dumps(config))
            files = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
            hub_id = load_backbones()[name].hub_id
            assert hub_id is not None
            server.add_repo("model", hub_id, is_private=False, **files)
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(folder / "hf" / "hub"),
        }.items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", str(folder / "hf"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "user"))
        yield server
