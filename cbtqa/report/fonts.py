"""Which slices of the embedded Chinese font a text needs, and the CSS that carries them.

The slices in `fonts/` (woff2, OFL 1.1, made by `scripts/make_font`) together hold GB2312, Latin,
punctuation and mathematical signs. A page embeds only those whose characters it shows.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from importlib.resources import files

FAMILY = "cbtqa Sans SC"


@cache
def font_slices() -> dict[str, frozenset[str]]:
    """Characters of each slice by its name, the most frequent first."""
    text = (files("cbtqa.report") / "fonts" / "slices.json").read_text(encoding="utf-8")
    return {name: frozenset(characters) for name, characters in json.loads(text).items()}


def needed_slices(text: str) -> list[str]:
    """Names of the slices that hold at least one character of the text."""
    shown = frozenset(text)
    return [name for name, characters in font_slices().items() if shown & characters]


def font_css(text: str) -> str:
    """`@font-face` rules with the needed slices as data, and the custom property `--font`."""
    names = needed_slices(text)
    faces = "".join(_face(name) for name in names)
    stack = "".join(f"'{FAMILY} {name}', " for name in names)
    return f"{faces}:root{{--font: {stack}'Noto Sans CJK SC', 'PingFang SC', sans-serif}}\n"


@cache
def _face(name: str) -> str:
    data = base64.b64encode((files("cbtqa.report") / "fonts" / f"{name}.woff2").read_bytes())
    return (
        f"@font-face{{font-family:'{FAMILY} {name}';font-display:block;"
        f"src:url(data:font/woff2;base64,{data.decode()}) format('woff2')}}\n"
    )
