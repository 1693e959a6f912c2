"""Every command has a help text with an example, a thin body, and its place in docs/cli.md."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_docs import render_cli_docs, walk_commands
from tests.support.sources import ROOT, tree_of

MAX_STATEMENTS = 15
COMMANDS = [(words, command) for words, command in walk_commands()]
LEAVES = [(words, command) for words, command in COMMANDS if not hasattr(command, "list_commands")]


@pytest.mark.parametrize(("words", "command"), LEAVES, ids=[words for words, _ in LEAVES])
def test_a_command_explains_itself_with_an_example(words: str, command: Any) -> None:
    assert command.help, f"{words} has no help text"
    assert words in command.help, f"the help of {words} shows no example"
    for parameter in command.params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"{words} {parameter.name} has no help text"


def test_the_command_reference_is_fresh() -> None:
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == render_cli_docs(), (
        "run scripts/make_cli_docs"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "cbtqa/cli").glob("*.py")), ids=lambda p: p.stem)
def test_command_bodies_are_thin(path: Path) -> None:
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            n = sum(isinstance(part, ast.stmt) for part in ast.walk(node)) - 2
            assert n <= MAX_STATEMENTS, f"{node.name} has {n} statements"
