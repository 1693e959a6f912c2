"""One self-contained HTML page out of a template of the room that makes it.

    render_page("cbtqa.hub", "preview.html.j2", Head(title, kicker, lede), files=table, ...)

The room's template extends `body.html.j2` and fills its blocks `opening` and `main` with the parts
that `parts.html.j2` knows (`ui.section`, `ui.table`, `ui.figure`, ...). No request to anywhere:
fonts and styles are inside, and the room's own script if it has one; a content-security policy
allows this and nothing else. A phrase stands there in both languages, of which a switch shows one
without a script. Everything that is not `Markup` is escaped: question text and model text cannot
become HTML.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from cbtqa.plain_values import parse_yaml
from cbtqa.records import Record
from cbtqa.report.words import count, number, share

if TYPE_CHECKING:
    from jinja2 import Environment


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
    source = f"url(data:font/woff2;base64,{data.decode()}) format('woff2')"
    return f"@font-face{{font-family:'{FAMILY} {name}';font-display:block;src:{source}}}\n"


Lang = Literal["zh", "en"]


class Phrase(Record):
    """One phrase in both languages; `$name` are holes."""

    zh: str
    en: str

    def fill(self, **values: object) -> Phrase:
        """The phrase with every hole filled once; a missing value is a KeyError.

        A value that is a phrase itself fills each language with its text of that language.
        """
        filled = {}
        for lang, text in (("zh", self.zh), ("en", self.en)):
            own = {k: getattr(v, lang) if isinstance(v, Phrase) else v for k, v in values.items()}
            filled[lang] = Template(text).substitute(own)
        return Phrase(**filled)

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


def told(text: str | Phrase) -> Phrase:
    """A message of the program in both languages; English in both where it has no Chinese."""
    if isinstance(text, Phrase):
        return text
    from cbtqa.report.catalogue import translate  # read with the first message of a page

    return Phrase(zh=translate(text), en=text)


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


@dataclass(frozen=True)
class Head:
    """What is above and below the body of a page."""

    title: Phrase
    kicker: Phrase
    lede: Phrase
    footer: Phrase = field(default_factory=lambda: same(""))
    lang: Lang = "zh"
    script: str = ""
    """File in the room's `templates` whose content runs when the page is open."""


@cache
def template_environment(package: str) -> Environment:
    """The templates of a room beside those of every page; what is not `Markup` is escaped."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("cbtqa.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "number": number, "share": share, "told": told}
    return environment


def render_page(package: str, template: str, head: Head, **values: object) -> str:
    """The page as one HTML document, from a template in `package/templates`; values are escaped."""
    environment = template_environment(package)
    sections: list[tuple[str, Phrase]] = []

    def begin_section(anchor: str, title: Phrase) -> int:
        sections.append((anchor, title))
        return len(sections)

    shared = {"lang": head.lang, "begin_section": begin_section}
    parts = environment.get_template("parts.html.j2").make_module(shared)
    values = {**values, **shared, "head": head, "ui": parts, "sections": sections}
    body = environment.get_template(template).render(values)
    style = files("cbtqa.report").joinpath("templates", "page.css").read_text(encoding="utf-8")
    script = head.script and files(package).joinpath("templates", head.script).read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        head=head,
        lang=head.lang,
        body=Markup(body),
        style=Markup(font_css(body) + style),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
