"""The flag that names a further model of the screen; apart, so that `--help` loads no numpy."""

from __future__ import annotations

from typing import ClassVar

from cbtqa.settings import Settings


class ScreenModelSettings(Settings):
    """A further model of the screen."""

    panel: ClassVar[str] = "Second opinion"
    screen_model: str | None = None
    """An encoder that reads texts beside the built-in screen, both weighed together:
    intfloat/multilingual-e5-small, a folder of it, or one of scripts/train_safety. Needs torch."""
