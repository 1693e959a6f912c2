"""docs/python.md says what the docstrings say."""

from __future__ import annotations

from pathlib import Path

from tests.support.python_docs import render_python_docs


def test_the_python_reference_is_fresh() -> None:
    path = Path(__file__).parents[2] / "docs/python.md"
    assert path.read_text(encoding="utf-8") == render_python_docs(), "run scripts/make_python_docs"
