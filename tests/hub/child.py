"""Publishing in a process of its own, for tests that kill it.

Loaded once into the process that forks the children, so that each of them starts at once.
"""

from __future__ import annotations

import os
from pathlib import Path

import httpx2  # noqa: F401 - loaded ahead
import pyarrow.parquet  # noqa: F401 - loaded ahead
from huggingface_hub import constants, hf_api  # noqa: F401 - loaded ahead

from cbtqa.hub.publish import prepare_dataset, publish
from cbtqa.hub.settings import DatasetSettings

PRELOADED = "tests.hub.child"


def publish_in_child(run: Path, repo_id: str, endpoint: str, token: str) -> None:
    """Plans, scans and publishes, as `cbtqa publish dataset` does."""
    constants.HF_HUB_DISABLE_XET = True
    os.environ["HF_TOKEN"] = token
    publish(prepare_dataset(DatasetSettings(run=run, to=repo_id)), endpoint=endpoint)
