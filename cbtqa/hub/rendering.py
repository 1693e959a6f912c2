"""Markdown from the templates in `card/`, and the front matter above it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from cbtqa.files import parse_yaml

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template filled in; a missing value is an error, three blank lines become one."""
    text = _environment().get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def join_card(front: Mapping[str, Any], *parts: str) -> str:
    """A whole card: YAML head, then the parts."""
    head = yaml.safe_dump(dict(front), allow_unicode=True, sort_keys=False, width=1_000)
    return f"---\n{head}---\n\n" + "\n".join(parts)


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and Markdown of a card.

    Raises:
        ValueError: no front matter.
    """
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if found is None:
        raise ValueError("the card has no front matter")
    front: dict[str, Any] = parse_yaml(found[1])
    return front, card[found.end() :]


def code(text: str) -> str:
    """A name from outside as inline code that it cannot leave."""
    return "`" + re.sub(r"[`\s]+", " ", str(text)).strip() + "`"


def cell(text: str) -> str:
    """Text from outside in a cell of a table."""
    return re.sub(r"\s+", " ", str(text)).replace("\\", "\\\\").replace("|", "\\|")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cbtqa.hub", "card"),
        autoescape=False,  # Markdown, not HTML; names from outside go through `code` and `cell`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": code, "cell": cell}
    return environment
