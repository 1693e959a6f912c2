"""The frame of every page that is served: language, style, help lines. All text is autoescaped.

A room's template extends `base.html.j2`; its words go over those of `words.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from cbtqa.files import shipped_yaml
from cbtqa.report.page import template_environment
from cbtqa.safety.notices import Locale, help_text
from cbtqa.web.guards import current_nonce

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def asset(package: str, name: str) -> Markup:
    """Our own style or script in a room's templates, which needs no escaping."""
    return Markup((files(package) / "templates" / name).read_text(encoding="utf-8"))


@cache
def _environment(package: str) -> Environment:
    from jinja2 import ChoiceLoader, PackageLoader

    own = template_environment(package)
    assert own.loader is not None
    return own.overlay(loader=ChoiceLoader([own.loader, PackageLoader(__package__)]))


@cache
def shared_words(language: Locale) -> Mapping[str, Any]:
    """What every page says."""
    words: Mapping[str, Any] = shipped_yaml(__package__, "words.yaml")[language]
    return words


def render(
    package: str,
    template: str,
    language: Locale,
    words: Mapping[str, Any],
    title: str,
    *,
    style: str = "",
    **values: Any,
) -> str:
    """A page out of a template of a room.

    Args:
        words: the room's own, over the shared ones.
        style: name of the room's style sheet among its templates.
    """
    sheet = asset(__package__, "base.css") + (asset(package, style) if style else Markup())
    return (
        _environment(package)
        .get_template(template)
        .render(
            words={**shared_words(language), **words},
            language=language,
            title=title,
            nonce=current_nonce.get(),
            style=sheet,
            helpline=help_text(language, "page"),
            **values,
        )
    )
