"""What a question is graded, and what a model is asked about it.

A question's `Grade` names the branch of the prompt, once for all that depends on it: the steps,
the budget, whether labels may be named, and the checks of the reply.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from operator import attrgetter
from typing import Any, NamedTuple

from cbtqa.dataset.settings import BuildSettings
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.errors import ConfigError
from cbtqa.llm.chat import Message
from cbtqa.plain_values import parse_yaml
from cbtqa.prompts import Prompt, fence
from cbtqa.prompts.rules import AnswerRules, load_rules
from cbtqa.records import Danger, Question, Risk
from cbtqa.safety.encoder import ScreenEncoder
from cbtqa.safety.notices import load_hotlines
from cbtqa.safety.screen import Screening, screen, screen_each

# --- grades --------------------------------------------------------------------------------------


class Grade(NamedTuple):
    """What the screen says of a question, as far as its answer and its record depend on it."""

    risk: Risk
    """Of suicide and self-harm."""
    branch: str
    """Of the prompt's rules; see `branch_of`."""
    dangers: tuple[Danger, ...] = ()
    """Others, the likeliest first."""
    is_acute: bool = False
    """Whether one of the dangers is acute."""
    is_minor: bool = False

    @property
    def danger(self) -> Danger | None:
        """The danger that the branch is for; None where it is for another thing."""
        return next((kind for kind in self.dangers if kind == self.branch), None)

    @property
    def is_crisis(self) -> bool:
        """Whether it belongs to the crisis questions: any risk, or an acute danger."""
        return self.risk != "none" or self.is_acute

    @property
    def urgency(self) -> int:
        """4 explicit, 3 an acute danger, 2 a concern, 1 another danger, 0 none."""
        if self.risk == "explicit":
            return 4
        if self.is_acute:
            return 3
        return 2 if self.risk == "concern" else int(bool(self.dangers))

    @property
    def route(self) -> Risk:
        """The help that an answer has to name, as the `risk` of `check_answer`."""
        routes: tuple[Risk, ...] = ("none", "concern", "concern", "explicit", "explicit")
        return routes[self.urgency]


def branch_of(screening: Screening) -> str:
    """The one branch of the prompt: `explicit`, `concern`, `none` or the kind of a danger.

    Explicit risk comes before an acute danger, this before a concern, this before another danger;
    of several dangers the likeliest counts.
    """
    acute = [danger.kind for danger in screening.dangers if danger.risk == "explicit"]
    if screening.risk == "explicit" or (screening.risk == "concern" and not acute):
        return screening.risk
    return next(iter([*acute, *(danger.kind for danger in screening.dangers)]), "none")


def grade_of(screening: Screening) -> Grade:
    """The grade of a question that was screened."""
    return Grade(
        risk=screening.risk,
        branch=branch_of(screening),
        dangers=tuple(danger.kind for danger in screening.dangers),
        is_acute=any(danger.risk == "explicit" for danger in screening.dangers),
        is_minor=screening.is_minor,
    )


def grade_text(text: str, model: ScreenEncoder | None = None) -> Grade:
    """The grade of a question's text; `model` as in `screen`."""
    return grade_of(screen(text, model=model))


class Grades:
    """The grade of every question by its place in the input, four bytes each.

    A question is screened when its grade is first needed: a resumed run starts at once.

    Args:
        model: an encoder that reads the questions as well; it reads a batch at a time.
    """

    def __init__(self, model: ScreenEncoder | None = None) -> None:
        self.model = model
        self._known = array("I")  # one more than a place in `_distinct`; 0 is not known
        self._distinct: list[Grade] = []
        self._numbers: dict[Grade, int] = {}

    def is_known(self, place: int) -> bool:
        return place < len(self._known) and self._known[place] > 0

    def note(self, place: int, grade: Grade) -> None:
        if place >= len(self._known):
            self._known.extend([0] * (place + 1 - len(self._known)))
        if grade not in self._numbers:
            self._distinct.append(grade)
            self._numbers[grade] = len(self._distinct)
        self._known[place] = self._numbers[grade]

    def of(self, place: int, text: str) -> Grade:
        """The grade, screened now if it is not known yet."""
        if not self.is_known(place):
            self.note(place, grade_text(text, self.model))
        return self._distinct[self._known[place] - 1]

    def screen_all(self, items: Iterable[Item]) -> None:
        """Screens the items whose grade is not known yet."""
        unknown = (item for item in items if not item.is_graded)
        text_of = attrgetter("question.source_text")
        for item, screening in screen_each(unknown, text_of, model=self.model):
            self.note(item.place, grade_of(screening))


@dataclass(frozen=True, slots=True)
class Item:
    """One question to be answered, at its place among the usable rows of the input."""

    question: Question
    place: int
    grades: Grades

    def __reduce__(self) -> tuple[type[Item], tuple[Question, int, Grades]]:
        """Pickled with its own grade alone."""
        grades = Grades()
        grades.note(0, self.grade)
        return Item, (self.question, 0, grades)

    @property
    def grade(self) -> Grade:
        """What the screen says of the question."""
        return self.grades.of(self.place, self.question.source_text)

    @property
    def is_graded(self) -> bool:
        """Whether its grade is known already."""
        return self.grades.is_known(self.place)

    def note(self, grade: Grade) -> None:
        self.grades.note(self.place, grade)

    @property
    def key(self) -> str:
        """Names the paid reply: the id, and a hash that changes with the text."""
        text = self.question.source_text.encode()
        return f"{self.question.id}:{hashlib.blake2b(text, digest_size=8).hexdigest()}"


# --- the instruction -----------------------------------------------------------------------------


@cache
def _parts_file() -> tuple[dict[str, Any], str]:
    text = (files("cbtqa.prompts") / "cbt_answer.parts.yaml").read_text(encoding="utf-8")
    return parse_yaml(text), hashlib.sha256(text.encode()).hexdigest()


def _help_routes() -> dict[str, str]:
    """What stands in the `$name` holes of a branch, from the dated file of help lines."""
    known = load_hotlines().locales["zh"]
    by_name = {one.name: one.number for one in known.emergencies}
    return {
        **{line.id: f"{line.name} {line.number}" for line in known.lines},
        "police": by_name["报警"],
        "ambulance": by_name["急救"],
    }


class Instruction:
    """Fills the answer prompt of one run: persona, branch by grade, taxonomy, worked examples."""

    def __init__(self, settings: BuildSettings, prompt: Prompt, taxonomy: Taxonomy) -> None:
        parts, file_hash = _parts_file()
        self._prompt = prompt
        self._crisis_rules: Mapping[str, str] = parts["crisis_rules"]
        self._by_branch: dict[tuple[str, bool], dict[str, str]] = {}
        self._persona = parts["personas"].get(settings.persona, settings.persona)
        if settings.persona not in parts["personas"] and len(settings.persona) < 8:
            raise ConfigError(
                f"--persona: no persona '{settings.persona}'",
                hint=f"shipped: {', '.join(parts['personas'])}; or write a whole sentence",
            )
        self._taxonomy = "\n".join(
            f"- {kind.id}：{kind.zh}。{kind.definition}" for kind in taxonomy.types
        )
        examples = parts["examples"]
        if prompt.header.rules:
            rules = load_rules(prompt.header.rules)
            examples = [one.model_dump() for one in rules.examples]
            self._fill_branches(rules)
            # what is sent, help lines included: they are dated and change by themselves
            written = json.dumps(sorted(self._by_branch.items()), ensure_ascii=False)
            file_hash += rules.sha256 + hashlib.sha256(written.encode()).hexdigest()
        self._examples = examples[: settings.examples]
        self._taxonomy_ids = set(taxonomy.ids)
        self._is_json = prompt.header.output == "json"
        inputs = [file_hash, self._persona, self._taxonomy, str(settings.examples)]
        self.sha256 = hashlib.sha256("\x00".join(inputs).encode()).hexdigest()

    def _fill_branches(self, rules: AnswerRules) -> None:
        routes, output = _help_routes(), self._prompt.header.output
        for branch in rules.branches:
            for is_minor in (False, True):
                self._by_branch[branch, is_minor] = {
                    "branch": rules.text_of(branch, routes, is_minor=is_minor),
                    "budget": rules.budget_block(branch),
                    "labels": rules.labels_of_answer(branch, self._taxonomy, output),
                }

    def messages(self, item: Item) -> list[Message]:
        """System, worked examples as earlier turns, then the question."""
        asked = item.question
        system, user = self._render(asked.question, asked.description, item.grade)
        turns: list[Message] = [system]
        for example in self._examples:
            shown = self._render(example["question"], example["description"], item.grade)
            turns.append(shown[1])
            turns.append({"role": "assistant", "content": self._show(example["answer"])})
        return [*turns, user]

    def _render(self, question: str, description: str, grade: Grade) -> list[dict[str, str]]:
        return self._prompt.fill(
            {
                "crisis_rule": self._crisis_rules[grade.risk],
                **self._by_branch.get((grade.branch, grade.is_minor), {}),
                "persona": self._persona,
                "taxonomy": self._taxonomy,
                "question": fence(question),
                "description": fence(description or "（没有写描述）"),
            }
        )

    def _show(self, answer: dict[str, Any]) -> str:
        if self._is_json:
            known = [label for label in answer["distortions"] if label["id"] in self._taxonomy_ids]
            return json.dumps({**answer, "distortions": known}, ensure_ascii=False)
        steps = [value for name, value in answer.items() if name != "distortions"]
        return "\n\n".join(steps)
