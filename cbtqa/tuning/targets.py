"""What a dataset's answer becomes as text to learn, and how a model's text is read back.

write_target("steps", answer)            # 【理解与共情】... 【关键想法】...
read_target("steps", generated).steps    # CbtSteps, or None when a heading is missing
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from cbtqa.distortions.taxonomy import shipped_concepts
from cbtqa.files import parse_yaml
from cbtqa.records import STEP_NAMES, CbtAnswer, CbtSteps, Question
from cbtqa.tuning.settings import Mode

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": ...}`."""


@dataclass(frozen=True, slots=True)
class ReadTarget:
    """A model's text, taken apart."""

    text: str
    """The answer alone; steps joined, without headings."""
    steps: CbtSteps | None = None
    reasoning: str | None = None
    """What stood before the answer; None when the mode has none or the model wrote none."""


@cache
def wording() -> dict[str, Any]:
    """The resource file `targets.zh.yaml`."""
    text = (files("cbtqa.tuning") / "targets.zh.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = parse_yaml(text)
    return loaded


def prompt_messages(
    question: Question, mode: Mode = "answer", system_prompt: str | None = None
) -> list[Message]:
    """System text and question: the same at training and at generation.

    Args:
        system_prompt: None for the mode's own; an empty text for none at all.
    """
    system = wording()["system"][mode] if system_prompt is None else system_prompt
    turns = [{"role": "system", "content": system}] if system.strip() else []
    return [*turns, {"role": "user", "content": question.source_text.strip()}]


def write_target(mode: Mode, answer: CbtAnswer) -> str | None:
    """The text to learn; None when the answer lacks what the mode needs (steps)."""
    if mode == "answer":
        return answer.text.strip()
    if mode == "steps":
        if answer.steps is None:
            return None
        headings = wording()["headings"]
        parts = (f"{headings[name]}{getattr(answer.steps, name).strip()}" for name in STEP_NAMES)
        return "\n".join(parts)
    words = wording()["cot"]
    return f"{words['thinking']}{_thinking(answer)}\n{words['answer']}{answer.text.strip()}"


def _thinking(answer: CbtAnswer) -> str:
    words = wording()["cot"]
    concepts = shipped_concepts()
    found = []
    for label in answer.distortions:
        name = concepts[label.id].zh if label.id in concepts else label.id
        form = words["with_evidence" if label.evidence else "without_evidence"]
        found.append(Template(form).substitute(name=name, evidence=label.evidence or ""))
    return "".join(found) or str(words["none"])


def read_target(mode: Mode, text: str) -> ReadTarget:
    """Takes a model's text apart; what does not follow the mode's form stays as it is."""
    text = text.strip()
    if mode == "steps":
        return _read_steps(text)
    if mode == "cot":
        words = wording()["cot"]
        before, mark, after = text.partition("\n" + words["answer"])
        if mark and after.strip():
            reasoning = before.strip().removeprefix(words["thinking"]).strip()
            return ReadTarget(after.strip(), reasoning=reasoning or None)
    return ReadTarget(text)


def _read_steps(text: str) -> ReadTarget:
    headings = [wording()["headings"][name] for name in STEP_NAMES]
    pieces = re.split("|".join(map(re.escape, headings)), text)
    order = re.findall("|".join(map(re.escape, headings)), text)
    parts = [piece.strip() for piece in pieces]
    if order != headings or parts[0] or not all(parts[1:]):
        return ReadTarget(text)
    steps = CbtSteps(**dict(zip(STEP_NAMES, parts[1:], strict=True)))
    return ReadTarget(steps.joined(), steps=steps)
