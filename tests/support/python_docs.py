"""docs/python.md as rendered from the docstrings of `cbtqa.api`, and the examples in them."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import NamedTuple

from cbtqa import api

EXAMPLE = re.compile(r"^Example(?: \((?P<needs>\w+)\))?:\n(?P<code>(?: {4}.*\n?|\n)+)", re.M)


class Example(NamedTuple):
    """The code of one docstring."""

    verb: str
    needs: str
    """What a run would need beside this package: `weights`, `server`, or nothing."""
    code: str


def verbs() -> list[str]:
    """The public functions, in the order of the file."""
    own = [
        (name, function.__code__.co_firstlineno)
        for name, function in inspect.getmembers(api, inspect.isfunction)
        if function.__module__ == api.__name__ and not name.startswith("_")
    ]
    return [name for name, _ in sorted(own, key=lambda pair: pair[1])]


def examples() -> list[Example]:
    """The example of every function."""
    found = []
    for verb in verbs():
        match = EXAMPLE.search(inspect.getdoc(getattr(api, verb)) or "")
        assert match, f"{verb} has no example"
        found.append(Example(verb, match["needs"] or "", textwrap.dedent(match["code"]).strip()))
    return found


def render_python_docs() -> str:
    """Every function with its signature and docstring, as Markdown."""
    head = "# Python\n\nMade by `scripts/make_python_docs` from the docstrings; do not edit. "
    head += "The same as commands: [cli.md](cli.md).\n\n"
    parts = [head + (inspect.getdoc(api) or "")]
    for verb in verbs():
        function = getattr(api, verb)
        text = EXAMPLE.sub("", inspect.getdoc(function) or "").strip()
        text = re.sub(r"^Args:\n((?: {4}.*\n?)+)", _arguments, text, flags=re.M)
        example = next(one for one in examples() if one.verb == verb)
        parts.append(f"## cbtqa.{verb}\n\n{text.strip()}\n\n```python\n{example.code}\n```")
    return "\n\n".join(parts) + "\n"


def _arguments(match: re.Match[str]) -> str:
    lines = textwrap.dedent(match[1]).strip().split("\n")
    joined = re.sub(r"\n +", " ", "\n".join(lines)).split("\n")
    return "".join("- `{}`:{}\n".format(*line.partition(":")[::2]) for line in joined)
