"""A released prompt is never edited: the lock file holds the hash of every shipped prompt."""

from __future__ import annotations

import json
from importlib.resources import files

from cbtqa.prompts import shipped_prompts


def test_shipped_prompts_are_the_locked_ones() -> None:
    lock = json.loads((files("cbtqa.prompts") / "prompts.lock").read_text(encoding="utf-8"))
    assert {name: prompt.sha256 for name, prompt in shipped_prompts().items()} == lock, (
        "a released prompt was edited, or a new one is not locked: "
        "make a new version, then run scripts/lock_prompts"
    )
