"""Versioned prompt files and how they are filled.

A prompt is a Markdown file `name.vN.md`: YAML front matter (id, version, language, variables,
output, source), then a `# system` and a `# user` block with `$name` holes. A released file is
never edited: a change is a new version, and `prompts.lock` holds the hashes.

    messages = load_prompt("cbt_answer").render(question="...", description="...")
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from cbtqa.errors import DataError, PromptError
from cbtqa.files import read_text
from cbtqa.plain_values import parse_yaml
from cbtqa.records import NonEmptyText, Record

FENCE_OPEN, FENCE_CLOSE = "<<<", ">>>"
"""Delimiters of foreign text; `fence` replaces them inside it."""


class PromptHeader(Record):
    """Front matter of a prompt file."""

    id: NonEmptyText
    version: int
    language: Literal["zh", "en"]
    variables: tuple[str, ...]
    output: Literal["json", "text"]
    source: NonEmptyText
    """Where the idea comes from; the wording is ours."""
    rules: NonEmptyText | None = None
    """The rules file that fills its holes and checks its replies, such as `cbt_answer.rules`."""
    note: NonEmptyText | None = None
    """What ends the newest message of a conversation. What changes with every message is here and
    not in the system text: all before it is then read from a server's prefix cache."""


@dataclass(frozen=True)
class Prompt:
    """A loaded prompt: header, the two blocks as templates, and the hash of the file."""

    header: PromptHeader
    system: Template
    user: Template
    sha256: str

    @property
    def name(self) -> str:
        """Id with version, such as `cbt_answer.v1`."""
        return f"{self.header.id}.v{self.header.version}"

    def render(self, **values: str) -> list[dict[str, str]]:
        """Chat messages with every hole filled once; `$` inside a value stays text.

        Raises:
            PromptError: a declared variable is missing, or an undeclared one is given.
        """
        if set(values) != set(self.header.variables):
            wanted = f"prompt {self.name} wants exactly {sorted(self.header.variables)}"
            raise PromptError(f"{wanted}, got {sorted(values)}")
        blocks = {"system": self.system, "user": self.user}
        return [
            {"role": role, "content": block.substitute(values)} for role, block in blocks.items()
        ]

    def fill(self, offered: Mapping[str, str]) -> list[dict[str, str]]:
        """As `render`, from values of which it takes those that it declares.

        Raises:
            PromptError: it declares a variable that is not on offer.
        """
        names = self.header.variables
        if missing := [name for name in names if name not in offered]:
            hint = f"on offer here: {', '.join(sorted(offered))}"
            raise PromptError(f"prompt {self.name} uses ${missing[0]}", hint=hint)
        return self.render(**{name: offered[name] for name in names})

    def fill_note(self, offered: Mapping[str, str]) -> str | None:
        """The note that ends the newest message; None where the prompt has none."""
        note = self.header.note
        return None if note is None else Template(note).substitute(offered)


def fence(text: str) -> str:
    """Foreign text between delimiters that it cannot close itself."""
    inner = text.replace(FENCE_OPEN, "＜＜＜").replace(FENCE_CLOSE, "＞＞＞")
    return f"{FENCE_OPEN}\n{inner}\n{FENCE_CLOSE}"


def parse_prompt(text: str, where: str) -> Prompt:
    """Reads one prompt file.

    Raises:
        PromptError: no front matter, a block is missing, or declared and used variables differ.
    """
    match = re.fullmatch(
        r"---\n(?P<header>.*?)\n---\n+# system\n(?P<system>.*?)\n# user\n(?P<user>.*)",
        text,
        flags=re.DOTALL,
    )
    if match is None:
        raise PromptError("expected front matter, `# system` and `# user`", where=where)
    try:
        header = PromptHeader.model_validate(parse_yaml(match["header"], "front matter"))
    except (DataError, ValueError) as error:
        raise PromptError(f"{error}", where=where) from None
    system, user = Template(match["system"].strip()), Template(match["user"].strip())
    blocks = (system, user, Template(header.note or ""))
    used = {name for block in blocks for name in block.get_identifiers()}
    if used != set(header.variables):
        found = f"declares {sorted(header.variables)} but uses {sorted(used)}"
        raise PromptError(found, where=where)
    return Prompt(header, system, user, hashlib.sha256(text.encode()).hexdigest())


@cache
def shipped_prompts() -> Mapping[str, Prompt]:
    """Every prompt of the package by name with version."""
    found = {}
    for entry in files(__name__).iterdir():
        if entry.name.endswith(".md"):
            prompt = parse_prompt(entry.read_text(encoding="utf-8"), entry.name)
            if entry.name != f"{prompt.name}.md":
                raise PromptError(f"file name and header disagree: {prompt.name}", where=entry.name)
            found[prompt.name] = prompt
    return found


def load_prompt(name: str) -> Prompt:
    """A prompt by id (newest version), by `id.vN`, or by the path of a file of your own.

    Raises:
        PromptError: no such prompt, or the file is malformed.
    """
    if name.endswith(".md"):
        return parse_prompt(read_text(Path(name)), name)
    shipped = shipped_prompts()
    if name in shipped:
        return shipped[name]
    versions = [prompt for prompt in shipped.values() if prompt.header.id == name]
    if not versions:
        raise PromptError(f"no prompt '{name}'", hint="shipped: " + ", ".join(sorted(shipped)))
    return max(versions, key=lambda prompt: prompt.header.version)
