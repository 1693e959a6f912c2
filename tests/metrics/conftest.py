"""Texts that exercise every rule: Latin, digits, symbols, emoji, rare characters, full width."""

from __future__ import annotations

import json
import logging
import random
import warnings
from pathlib import Path
from typing import Any

import pytest

ALPHABET = [
    *"我你他的了是在不有这压力很大焦虑睡眠情绪认知行为疗法自己别人考试工作",
    *"，。！？：；“”‘’…—（）《》、·",
    *"abcXYZ0123456789.,-+%#&_/@:!?()'\" \t\n\u3000",
    *"龦鿕㐀𠮷😊①Ａ１é\u200b\x1c\x85\u2028İ",
    *("T恤", "卡拉OK", "B超", "GPT-4", "59.5", "3.14%", "C++", "e.g.", "\r\n"),
    *(" running ", " runs ", " Stress ", "以偏概全", "认知行为疗法"),
]


def random_texts(n_texts: int, seed: int, longest: int = 60) -> list[str]:
    """Texts from `ALPHABET`, some of them empty."""
    rng = random.Random(seed)
    return ["".join(rng.choices(ALPHABET, k=rng.randrange(longest))) for _ in range(n_texts)]


def random_pairs(n_pairs: int, seed: int) -> tuple[list[str], list[str]]:
    """Predictions that share pieces with their references, and the references."""
    rng = random.Random(seed)
    references = random_texts(n_pairs, seed)
    predictions = [
        "".join(
            text[start : start + 7] if rng.random() < 0.6 else "".join(rng.choices(ALPHABET, k=4))
            for start in range(0, len(text), 7)
        )
        for text in references
    ]
    return predictions, references


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Values that independent programs gave."""
    path = Path(__file__).parents[1] / "golden" / "metrics.json"
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


@pytest.fixture(scope="session")
def jieba_cut() -> Any:
    """The real jieba."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba
    jieba.setLogLevel(logging.ERROR)
    return jieba.Tokenizer().lcut
