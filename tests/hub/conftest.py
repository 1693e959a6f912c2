"""A stand-in Hub and finished runs for the tests of publishing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cbtqa.hub.publish import Prepared, prepare_dataset
from cbtqa.hub.settings import DatasetSettings
from tests.hub.runs import copy_of, write_adapter, write_dataset
from tests.support.hub import StandInHub

TOKEN = "hf_" + "q7" * 17


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    """A running stand-in with an account `lab`; the client uses Git LFS, whose bytes it keeps."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with StandInHub() as server:
        server.add_token(TOKEN, "lab")
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No waiting between attempts; the seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset; copy it before changing it."""
    return write_dataset(tmp_path_factory.mktemp("dataset") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished dataset of one's own."""
    return copy_of(finished, tmp_path / "run")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A finished adapter of one's own."""
    return write_adapter(tmp_path / "adapter")


@pytest.fixture(scope="session")
def ready(finished: Path) -> Prepared:
    """A dataset planned and scanned once, for tests that change nothing in it."""
    return prepare_dataset(DatasetSettings(run=finished, to="lab/cbt-qa"))
