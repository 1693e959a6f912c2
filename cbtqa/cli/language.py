"""The language of the console: English as the source has it, or Chinese out of the catalogue.

    choose(["--lang", "zh", "score"])
    told("no such file")                        # '没有这个文件'

Messages are translated where they leave for the console, not where they are made. The catalogue is
imported with the first message in Chinese. Files, `--json`, `--help` and the Python face are not
translated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cbtqa.report.page import Lang

FLAG, VARIABLE = "--lang", "CBTQA_LANG"
LANGUAGES = ("en", "zh")
LOCALES = ("LC_ALL", "LC_MESSAGES", "LANG")
"""The first that is set decides, as POSIX has it."""

_chosen = "en"


def choose(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> None:
    """Sets the language of this process: a flag before the verb, CBTQA_LANG, then the locale."""
    global _chosen
    asked = _asked(words) or environ.get(VARIABLE, "")
    if asked not in LANGUAGES:
        locale = next((environ[name] for name in LOCALES if environ.get(name)), "")
        asked = "zh" if locale.lower().startswith("zh") else "en"
    _chosen = asked if asked == "en" or _can_write_chinese() else "en"


def _asked(words: Sequence[str]) -> str:
    """The value of `--lang` before the verb: behind it, the flag is the verb's own."""
    before = words[: len(words) - len(from_verb(words))]
    values = [word.partition("=")[2] for word in before if word.startswith(f"{FLAG}=")]
    values += [value for word, value in pairwise([*before, ""]) if word == FLAG]
    return values[-1] if values else ""


def from_verb(words: Sequence[str]) -> Sequence[str]:
    """The words of a command line from its verb on, without the program's own flags."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] == FLAG else 1
    return words[at:]


def _can_write_chinese() -> bool:
    for stream in (sys.stdout, sys.stderr):
        try:
            "中文".encode(getattr(stream, "encoding", None) or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return False
    return True


def current() -> Lang:
    """The language of messages, for what comes in both."""
    return "zh" if _chosen == "zh" else "en"


def told(message: str) -> str:
    """A message in the language of the console."""
    if current() == "en":
        return message
    from cbtqa.report.catalogue import translate

    return translate(message)


def told_head(text: str) -> str:
    """A column's head, a table's title or the name of a fact: single words are translated, too."""
    if current() == "en":
        return text
    from cbtqa.report.catalogue import translate_head

    return translate_head(text)


def told_cell(text: str) -> str:
    """A cell: of single words only those that are no name of a setting or column."""
    if current() == "en":
        return text
    from cbtqa.report.catalogue import translate_cell

    return translate_cell(text)
