"""One self-contained HTML page out of titled sections of blocks.

    page = Page(title=Phrase(zh="...", en="..."), sections=(Section(title, (Text(phrase),)),))
    write_text(path, render_page(page))

No script, no request to anywhere: fonts and styles are inside, and a content-security policy says
so. Everything that is not `Markup` is escaped: question text and model text cannot become HTML.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from markupsafe import Markup

from cbtqa.files import parse_yaml
from cbtqa.records import Record

if TYPE_CHECKING:
    from jinja2 import Environment


# --- fonts ---------------------------------------------------------------------------------------
# Which slices of the embedded Chinese font a text needs, and the CSS that carries them.
#
# The slices in `fonts/` (woff2, OFL 1.1, made by `scripts/make_font`) together hold GB2312,
# Latin, punctuation and mathematical signs. A page embeds only those whose characters it shows.

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


# --- wording -------------------------------------------------------------------------------------
# Phrases in Chinese and English, read from YAML files beside the code that shows them.
#
# wording = load_wording("cbtqa.dataset", "report.yaml") wording["sections.splits"].fill(n=4).zh

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


# --- page ----------------------------------------------------------------------------------------
Cell = str | Markup | Phrase
"""A `Phrase` shows both languages."""


@dataclass(frozen=True)
class Text:
    """A paragraph in the page's language; `is_note` sets it small, as under a table."""

    phrase: Phrase
    is_note: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Fact:
    """One key figure: a large value over its name, and a word of context."""

    value: str
    name: Phrase
    context: str = ""


@dataclass(frozen=True)
class Facts:
    """A row of key figures."""

    facts: tuple[Fact, ...]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Table:
    """A table; columns after the first `n_text` are set as numbers, to the right."""

    columns: Sequence[Phrase]
    rows: Sequence[Sequence[Cell]]
    n_text: int = 1
    caption: Phrase | None = None
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Pairs:
    """Names with their values, as at the head of a protocol."""

    rows: Sequence[tuple[Phrase, Cell]]
    kind: ClassVar[str] = "pairs"


@dataclass(frozen=True)
class Figure:
    """A chart with its caption."""

    svg: Markup
    caption: Phrase
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Notice:
    """A framed notice in both languages, such as what this is not and where to find help."""

    title: Phrase
    paragraphs: tuple[Phrase, ...]
    kind: ClassVar[str] = "notice"


@dataclass(frozen=True)
class Items:
    """A list of short sentences."""

    phrases: tuple[Phrase, ...]
    kind: ClassVar[str] = "items"


@dataclass(frozen=True)
class Code:
    """A few lines to copy."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Fragment:
    """HTML made by a template of the caller (see `render_fragment`)."""

    html: Markup
    kind: ClassVar[str] = "fragment"


Block = Text | Facts | Table | Pairs | Figure | Notice | Items | Code | Fragment


@dataclass(frozen=True)
class Section:
    """A titled part of the page; `anchor` is its place in links."""

    title: Phrase
    blocks: tuple[Block, ...]
    anchor: str


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: Phrase
    kicker: Phrase
    lede: Phrase
    sections: tuple[Section, ...]
    opening: tuple[Block, ...] = ()
    """Blocks before the table of contents."""
    footer: Phrase = field(default_factory=lambda: Phrase(zh="", en=""))
    lang: Lang = "zh"


@cache
def _environment(package: str) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_fragment(package: str, template: str, lang: Lang, **values: object) -> Fragment:
    """A block from a template in `package/templates`; all values are escaped."""
    return Fragment(
        Markup(_environment(package).get_template(template).render(lang=lang, **values))
    )


def render_page(page: Page) -> str:
    """The page as one HTML document."""
    environment = _environment("cbtqa.report")
    body = environment.get_template("body.html.j2").render(page=page, lang=page.lang)
    style = files("cbtqa.report").joinpath("templates", "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        page=page,
        lang=page.lang,
        body=Markup(body),
        style=Markup(font_css(body) + style),
    )
