"""Reference pages: every command is one that the program takes, every import is there, sentences are short.

Tutorials and how-to pages are followed word for word (test_commands.py). The pages beside them show
commands on files that only a reader has, so here the program's own parser reads them.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from cbtqa.cli.main import app
from tests.docs.test_links import DOCS, inner_links
from tests.support.doc_blocks import blocks_of, commands_of
from tests.support.sources import ROOT

MOST_WORDS = 35
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path.name != "log.md"]
REFERENCES = [path for path in PAGES if path.parent == DOCS and path.name != "index.md"]
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`]*`")
_ITEM = re.compile(r"^\s*[-*]\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[)*\"”]*\s+(?=[A-Z(*`\"“0-9\[])")


def shown_commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """The words of each `cbtqa` command outside Python, YAML and output, up to a pipe."""
    for block in blocks_of(page):
        if block.language in ("", "bash"):
            for command in commands_of(block):
                if command.words.startswith("cbtqa "):
                    words = shlex.split(command.words.split(" | ")[0].split(" > ")[0])
                    yield command.line, words[1:]


@pytest.mark.parametrize(
    "page", [one for one in REFERENCES if any(shown_commands(one))], ids=lambda page: page.stem
)
def test_the_program_takes_every_command_of_a_reference_page(page: Path) -> None:
    for line, words in shown_commands(page):
        command = typer.main.get_command(app)
        while words and hasattr(command, "get_command"):
            found = command.get_command(None, words[0])
            assert found is not None, f"{page.name}:{line}: no command {words[0]}"
            command, words = found, words[1:]
        try:
            command.make_context("cbtqa", list(words))
        except typer.BadParameter.__base__ as error:  # type: ignore[misc]
            raise AssertionError(f"{page.name}:{line}: {error.format_message()}") from None


@pytest.mark.parametrize("page", REFERENCES, ids=lambda page: page.stem)
def test_what_a_python_block_imports_from_here_is_there(page: Path) -> None:
    for block in blocks_of(page):
        if block.language != "python":
            continue
        for node in ast.walk(compile(block.text, page.name, "exec", ast.PyCF_ONLY_AST)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("cbtqa"):
                module = importlib.import_module(str(node.module))
                missing = [one.name for one in node.names if not hasattr(module, one.name)]
                assert not missing, f"{page.name}:{block.line}"


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs, bullets and table cells, each on one line, without code blocks."""
    held: list[str] = []
    for line in [*_FENCE.sub("\n", text).splitlines(), ""]:
        is_row, is_item = line.lstrip().startswith("|"), bool(_ITEM.match(line))
        if held and (not line.strip() or line.startswith("#") or is_row or is_item):
            yield " ".join(held)
            held = []
        if is_row:
            yield from (cell.strip() for cell in line.split("|"))
        elif line.strip() and not line.startswith("#"):
            held.append(_ITEM.sub("", line, count=1).strip("> "))


def long_sentences(text: str) -> list[str]:
    """Sentences above `MOST_WORDS`; code counts as one word, a list of nothing but code as none."""
    found = []
    for paragraph in paragraphs(text):
        plain = re.sub(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)", r"\1", paragraph)
        plain = _CODE.sub("`x`", plain)
        for sentence in _SENTENCE_END.split(plain):
            is_prose = re.search(r"\w", sentence.replace("`x`", ""))
            if is_prose and len(re.findall(r"\S*\w\S*", sentence)) > MOST_WORDS:
                found.append(sentence)
    return found


@pytest.mark.parametrize(
    "page",
    [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "llms.txt")), *PAGES],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_no_sentence_has_more_than_35_words(page: Path) -> None:
    assert not long_sentences(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_page_leads_on_to_another(page: Path) -> None:
    onward = {target for _, target, _ in inner_links(page) if target.suffix == ".md"}
    assert onward - {page}, "a reader who comes here finds no way on"
