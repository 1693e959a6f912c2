"""Tiny random models, made once a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # the variable is read when huggingface_hub is first imported, which may have been before
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield


@pytest.fixture(scope="session", autouse=True)
def _torch() -> None:
    pytest.importorskip("torch")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.metrics.neural.tiny_models import save_bert

    return save_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def bleurt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    from tests.metrics.neural.tiny_models import save_bleurt

    return save_bleurt(tmp_path_factory.mktemp("models") / "tiny-bleurt")
