"""What the tests of tuning share: no Hub, one thread."""

from __future__ import annotations

from collections.abc import Iterator

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
