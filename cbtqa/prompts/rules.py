"""What an answer is held to: budgets, label rules and branches, read from one file.

Prompts from version 2 on are filled from it and replies to them are checked by it, so that no rule
is told in one number and checked in another.

    rules = load_rules("cbt_answer.rules")
    rules.branches["explicit"].budget       # 'crisis'
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Annotated, Literal

from pydantic import Field

from cbtqa.errors import PromptError
from cbtqa.plain_values import parse_yaml
from cbtqa.records import NonEmptyText, Record

Range = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
"""From and to, both included."""


class Budget(Record):
    """How much an answer may ask of its reader. Characters are counted without blanks."""

    told: Range
    """Characters of the whole answer, as the prompt says it."""
    accepted: Range
    """Characters outside of which the answer is asked again."""
    questions: Range
    accepted_questions: Range
    actions: Range
    """Things to do; told, and not countable by a program."""
    steps: tuple[Range, ...]
    """Characters of each step, as the prompt says it."""


class Branch(Record):
    """What is written in one kind of situation."""

    budget: str
    labels: bool
    """False where no distortion may be named."""
    text: NonEmptyText
    """The steps; `$name` holes are help routes, or notes of the file."""


class Example(Record):
    """A worked example: a question and the answer to it, by step, with `distortions`."""

    question: NonEmptyText
    description: str
    answer: dict[str, object]


class AnswerRules(Record):
    """One rules file."""

    label_rules: tuple[NonEmptyText, ...]
    most_types: int = Field(ge=1)
    labels_words: dict[str, NonEmptyText]
    budgets: dict[str, Budget]
    accepted_paragraphs: Range
    """Of an answer in one flowing text, which is told to have five."""
    budget_words: NonEmptyText
    questions_words: tuple[tuple[int, int, NonEmptyText], ...]
    actions_words: tuple[tuple[int, int, NonEmptyText], ...]
    branches: dict[str, Branch]
    risk_note: NonEmptyText
    """What ends the texts on suicide and self-harm."""
    danger_note: NonEmptyText
    """What ends every text on a danger beside suicide and self-harm."""
    minor: NonEmptyText
    """What is added to any branch where the asker is under 18."""
    examples: tuple[Example, ...]
    sha256: str
    """Of the file."""

    def budget_of(self, branch: str) -> Budget:
        """The budget of a branch."""
        return self.budgets[self.branches[branch].budget]

    def text_of(self, branch: str, routes: Mapping[str, str], *, is_minor: bool) -> str:
        """The steps of a branch, with the help routes by name in its holes."""
        notes = {name: getattr(self, name) for name in ("risk_note", "danger_note")}
        steps = Template(self.branches[branch].text).safe_substitute(notes)
        text = Template(steps).substitute(routes)
        return f"{text}\n\n{Template(self.minor).substitute(routes)}" if is_minor else text

    def instructions(self) -> tuple[str, ...]:
        """What the prompt says to the model and not to the reader: branches, notes, minors."""
        branches = (branch.text for branch in self.branches.values())
        return (*branches, self.risk_note, self.danger_note, self.minor)

    def labels_block(self) -> str:
        """The rules for labels as lines of a prompt."""
        return "\n".join(f"- {line}" for line in self.label_rules)

    def labels_of_answer(self, branch: str, types: str, output: Literal["json", "text"]) -> str:
        """All that a prompt for answers says of labels; `types` is the taxonomy, line by line."""
        if not self.branches[branch].labels:
            return self.labels_words[f"none_{output}"]
        words = Template(self.labels_words[output])
        return words.substitute(rules=self.labels_block(), types=types)

    def budget_block(self, branch: str) -> str:
        """The budget of a branch as lines of a prompt."""
        budget = self.budget_of(branch)
        words = [
            {(low, high): text for low, high, text in entries}
            for entries in (self.questions_words, self.actions_words)
        ]
        return Template(self.budget_words).substitute(
            low=budget.told[0],
            high=budget.told[1],
            steps="、".join(f"{low}-{high}" for low, high in budget.steps),
            questions=words[0][budget.questions],
            actions=words[1][budget.actions],
        )


@cache
def load_rules(name: str) -> AnswerRules:
    """A shipped rules file by name, such as `cbt_answer.rules`.

    Raises:
        PromptError: no such file.
    """
    path = files("cbtqa.prompts") / f"{name}.yaml"
    if not path.is_file():
        raise PromptError(f"no rules '{name}'", hint="shipped: cbt_answer.rules")
    text = path.read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return AnswerRules.model_validate({**parse_yaml(text), "sha256": digest})
