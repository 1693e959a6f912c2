"""One self-contained HTML page out of titled sections of blocks.

    page = Page(title=Phrase(zh="...", en="..."), sections=(Section(title, (Text(phrase),)),))
    write_text(path, render_page(page))

No script, no request to anywhere: fonts and styles are inside, and a content-security policy says
so. Everything that is not `Markup` is escaped: question text and model text cannot become HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, ClassVar

from markupsafe import Markup

from cbtqa.report.fonts import font_css
from cbtqa.report.wording import Lang, Phrase

if TYPE_CHECKING:
    from jinja2 import Environment

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
