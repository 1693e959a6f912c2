"""The code blocks of a Markdown page: its commands one by one, and the output shown under them.

for block in blocks_of(path):      # bash, python and text blocks, in order
    for command in commands_of(block): ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<'?(\w+)'?$")
_CODE = re.compile(r"#\s*(?:ends with|以) (\d+)")
_COMMENT = re.compile(r"(?:^|\s{1,})#\s.*$")


@dataclass(frozen=True)
class Block:
    """A fenced block with its language and the line on which its text begins."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """One command of a `bash` block, its lines joined and its comment taken off."""

    words: str
    code: int
    """The exit code that its comment announces (`# ends with 4`), 0 without one."""
    line: int


def blocks_of(path: Path) -> list[Block]:
    """Every fenced block of the page, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 2)
        for found in _FENCE.finditer(text)
    ]


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a `bash` block; one with a here-document keeps its lines."""
    lines = iter(enumerate(block.text.splitlines(), block.line))
    for number, line in lines:
        if not _COMMENT.sub("", line).strip():
            continue
        words = _COMMENT.sub("", line).rstrip()
        while words.endswith("\\"):
            line = next(lines)[1]
            words = words[:-1] + _COMMENT.sub("", line).strip()
        announced = _CODE.search(line)
        if end := _HEREDOC.search(words):
            for _, more in lines:
                words += "\n" + more
                if more == end[1]:
                    break
        yield Command(words, int(announced[1]) if announced else 0, number)


def is_shown_in(line: str, output: str, *, to_the_figure: bool = False) -> bool:
    """Whether the output holds this line, whatever its spaces, the table's rules and its figures."""
    return _normal(line, to_the_figure) in _normal(output, to_the_figure)


def _normal(text: str, to_the_figure: bool) -> str:
    text = re.sub(r"[\s│┃|]+", " ", re.sub(r"[┏┓┗┛┡┩╇┳┴┬├┤┼━─└┘┌┐]", " ", text))
    return (text if to_the_figure else re.sub(r"[\d.,:]*\d[\d.,:]*", "0", text)).strip()
