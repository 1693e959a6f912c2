"""What a model is asked: persona, taxonomy, crisis rule, worked examples, the question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any, get_args

from cbtqa.dataset.settings import BuildSettings
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.errors import ConfigError
from cbtqa.llm.chat import Message
from cbtqa.plain_values import parse_yaml
from cbtqa.prompts import Prompt, fence
from cbtqa.prompts.rules import load_rules
from cbtqa.records import Question, Risk
from cbtqa.safety.notices import load_hotlines
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


def _help_routes() -> dict[str, str]:
    """What stands in the `$name` holes of a branch, from the dated file of help lines."""
    known = load_hotlines().locales["zh"]
    national = next(line for line in known.lines if line.id == "national")
    by_name = {one.name: one.number for one in known.emergencies}
    return {
        "national": f"{national.name} {national.number}",
        "police": by_name["报警"],
        "ambulance": by_name["急救"],
    }


class Instruction:
    """Fills the answer prompt of one run: persona, branch by risk, taxonomy, worked examples."""

    def __init__(self, settings: BuildSettings, prompt: Prompt, taxonomy: Taxonomy) -> None:
        parts, file_hash = _parts_file()
        self._prompt = prompt
        self._by_risk: dict[Risk, Mapping[str, str]] = {
            risk: {"crisis_rule": parts["crisis_rules"][risk]} for risk in RISKS
        }
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
            file_hash += rules.sha256
            examples = [one.model_dump() for one in rules.examples]
            for risk, own in self._by_risk.items():
                self._by_risk[risk] = {
                    **own,
                    "branch": Template(rules.branches[risk].text).substitute(_help_routes()),
                    "budget": rules.budget_block(risk),
                    "labels": rules.labels_of_answer(risk, self._taxonomy, prompt.header.output),
                }
        self._examples = examples[: settings.examples]
        self._taxonomy_ids = set(taxonomy.ids)
        self._is_json = prompt.header.output == "json"
        inputs = [file_hash, self._persona, self._taxonomy, str(settings.examples)]
        self.sha256 = hashlib.sha256("\x00".join(inputs).encode()).hexdigest()

    def messages(self, item: Item) -> list[Message]:
        """System, worked examples as earlier turns, then the question."""
        asked = item.question
        system, user = self._render(asked.question, asked.description, item.risk)
        turns: list[Message] = [system]
        for example in self._examples:
            turns.append(self._render(example["question"], example["description"], "none")[1])
            turns.append({"role": "assistant", "content": self._show(example["answer"])})
        return [*turns, user]

    def _render(self, question: str, description: str, risk: Risk) -> list[dict[str, str]]:
        return self._prompt.fill(
            {
                **self._by_risk[risk],
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
