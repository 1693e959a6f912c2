"""An exception is told by its type and message: the repr of a foreign one may hold headers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

import pytest

from tests.support.sources import nodes_of, package_files

USUAL_NAMES = {"error", "err", "exc", "exception", "cause", "failure"}
"""Of exceptions that were not caught on the spot but handed on."""
REPRS = {"repr", "ascii", "vars"}


def _caught_names(nodes: Iterable[ast.AST]) -> set[str]:
    handlers = (node for node in nodes if isinstance(node, ast.ExceptHandler))
    return {handler.name for handler in handlers if handler.name} | USUAL_NAMES


def _reprs_of(nodes: Iterable[ast.AST], names: set[str]) -> Iterator[int]:
    """Lines in which an exception, or what it holds, is written as its repr."""

    def is_exception(value: ast.AST) -> bool:
        last = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
        return last in names or last in ("__cause__", "__context__")

    for node in nodes:
        if isinstance(node, ast.FormattedValue) and node.conversion in (ord("r"), ord("a")):
            if is_exception(node.value):
                yield node.lineno
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            handed = [*node.args, *(keyword.value for keyword in node.keywords)]
            if name in (*REPRS, "map") and any(map(is_exception, handed)):
                yield node.lineno
        elif isinstance(node, ast.Constant) and re.search("%r|!r}", str(node.value)):
            # the older ways to format: whose repr it is cannot be seen
            yield node.lineno


@pytest.mark.parametrize(
    "code",
    [
        "try: ...\nexcept ValueError as broken: say(f'{broken!r}')",
        "try: ...\nexcept ValueError as broken: say(repr(broken))",
        "say(f'{error.__cause__!r}')",
        "def told(cause): return repr(cause)",
        "say('%r' % error)",
        "say('{!r}'.format(error))",
    ],
)
def test_the_rule_finds_what_it_is_for(code: str) -> None:
    nodes = list(ast.walk(ast.parse(code)))
    assert list(_reprs_of(nodes, _caught_names(nodes)))


def test_no_module_keeps_the_repr_of_an_exception() -> None:
    found = []
    for path in package_files():
        nodes = nodes_of(path)
        found += [f"{path.name}:{line}" for line in _reprs_of(nodes, _caught_names(nodes))]
    assert not found, "use llm.server_words.described, or the type's name and a message"
