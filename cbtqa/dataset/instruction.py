"""What a model is asked: persona, taxonomy, crisis rule, worked examples, the question."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, get_args

from cbtqa.dataset.settings import BuildSettings
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.errors import ConfigError
from cbtqa.llm.chat import Message
from cbtqa.plain_values import parse_yaml
from cbtqa.prompts import Prompt, fence
from cbtqa.records import Question, Risk
from cbtqa.safety.screen import screen

RISKS: tuple[Risk, ...] = get_args(Risk)


class Grades:
    """The risk of every question by its place in the input, one byte each.

    A question is screened when its grade is first needed: a resumed run starts at once.
    """

    def __init__(self) -> None:
        self._known = bytearray()

    def is_known(self, place: int) -> bool:
        return place < len(self._known) and self._known[place] > 0

    def note(self, place: int, risk: Risk) -> None:
        if place >= len(self._known):
            self._known.extend(bytes(place + 1 - len(self._known)))
        self._known[place] = 1 + RISKS.index(risk)

    def of(self, place: int, text: str) -> Risk:
        """The grade, screened now if it is not known yet."""
        if not self.is_known(place):
            self.note(place, screen(text).risk)
        return RISKS[self._known[place] - 1]


@dataclass(frozen=True, slots=True)
class Item:
    """One question to be answered, at its place among the usable rows of the input."""

    question: Question
    place: int
    grades: Grades

    def __reduce__(self) -> tuple[type[Item], tuple[Question, int, Grades]]:
        """Pickled with its own grade alone."""
        grades = Grades()
        grades.note(0, self.risk)
        return Item, (self.question, 0, grades)

    @property
    def risk(self) -> Risk:
        """How strongly the question speaks of suicide or self-harm."""
        return self.grades.of(self.place, self.question.source_text)

    def note(self, risk: Risk) -> None:
        self.grades.note(self.place, risk)

    @property
    def key(self) -> str:
        """Names the paid reply: the id, and a hash that changes with the text."""
        text = self.question.source_text.encode()
        return f"{self.question.id}:{hashlib.blake2b(text, digest_size=8).hexdigest()}"


@cache
def _parts_file() -> tuple[dict[str, Any], str]:
    text = (files("cbtqa.prompts") / "cbt_answer.parts.yaml").read_text(encoding="utf-8")
    return parse_yaml(text), hashlib.sha256(text.encode()).hexdigest()


class Instruction:
    """Fills the answer prompt of one run: persona, taxonomy, crisis rule, worked examples."""

    def __init__(self, settings: BuildSettings, prompt: Prompt, taxonomy: Taxonomy) -> None:
        parts, file_hash = _parts_file()
        self._prompt, self._crisis_rules = prompt, parts["crisis_rules"]
        self._persona = parts["personas"].get(settings.persona, settings.persona)
        if settings.persona not in parts["personas"] and len(settings.persona) < 8:
            raise ConfigError(
                f"--persona: no persona '{settings.persona}'",
                hint=f"shipped: {', '.join(parts['personas'])}; or write a whole sentence",
            )
        self._taxonomy = "\n".join(
            f"- {kind.id}：{kind.zh}。{kind.definition}" for kind in taxonomy.types
        )
        self._examples = parts["examples"][: settings.examples]
        self._taxonomy_ids = set(taxonomy.ids)
        self._is_json = prompt.header.output == "json"
        inputs = [file_hash, self._persona, self._taxonomy, str(settings.examples)]
        self.sha256 = hashlib.sha256("\x00".join(inputs).encode()).hexdigest()

    def messages(self, item: Item) -> list[Message]:
        """System, worked examples as earlier turns, then the question."""
        system, user = self._render(
            item.question.question, item.question.description, self._crisis_rules[item.risk]
        )
        turns: list[Message] = [system]
        for example in self._examples:
            turns.append(self._render(example["question"], example["description"], "")[1])
            turns.append({"role": "assistant", "content": self._show(example["answer"])})
        return [*turns, user]

    def _render(self, question: str, description: str, crisis_rule: str) -> list[dict[str, str]]:
        return self._prompt.render(
            persona=self._persona,
            taxonomy=self._taxonomy,
            crisis_rule=crisis_rule,
            question=fence(question),
            description=fence(description or "（没有写描述）"),
        )

    def _show(self, answer: dict[str, Any]) -> str:
        if self._is_json:
            known = [label for label in answer["distortions"] if label["id"] in self._taxonomy_ids]
            return json.dumps({**answer, "distortions": known}, ensure_ascii=False)
        return "".join(value for name, value in answer.items() if name != "distortions")
