"""Phrases in Chinese and English, read from YAML files beside the code that shows them.

wording = load_wording("cbtqa.dataset", "report.yaml")
wording["sections.splits"].fill(n=4).zh
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any, Literal

from cbtqa.files import parse_yaml
from cbtqa.records import Record

Lang = Literal["zh", "en"]


class Phrase(Record):
    """One phrase in both languages; `$name` are holes."""

    zh: str
    en: str

    def fill(self, **values: object) -> Phrase:
        """The phrase with every hole filled once; a missing value is a KeyError."""
        return Phrase(
            zh=Template(self.zh).substitute(values), en=Template(self.en).substitute(values)
        )

    def first(self, lang: Lang) -> str:
        """The text in the page's main language."""
        return self.zh if lang == "zh" else self.en

    def second(self, lang: Lang) -> str:
        """The text in the other language; empty when both say the same."""
        other = self.en if lang == "zh" else self.zh
        return "" if other == self.first(lang) else other


def same(text: str) -> Phrase:
    """A phrase that reads the same in both languages, such as a name or a number."""
    return Phrase(zh=text, en=text)


@cache
def load_wording(package: str, name: str) -> dict[str, Phrase]:
    """Phrases of a YAML resource by dotted key; a leaf is a mapping with just `zh` and `en`."""
    return dict(_leaves("", parse_yaml(files(package).joinpath(name).read_text("utf-8"))))


def _leaves(prefix: str, node: dict[str, Any]) -> Iterator[tuple[str, Phrase]]:
    for key, value in node.items():
        if set(value) == {"zh", "en"}:
            yield prefix + key, Phrase.model_validate(value)
        else:
            yield from _leaves(f"{prefix}{key}.", value)
