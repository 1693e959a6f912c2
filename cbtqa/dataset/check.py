"""From a teacher's reply to a checked answer, or to the fault that turns it away.

The checks run in a fixed order and the first fault wins; each has its own reason in
`records.Reason`, so that "N in, M out" explains itself. Offline and online teachers pass the
same checks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.files import parse_yaml
from cbtqa.llm.chat import Fault
from cbtqa.prompts import Prompt
from cbtqa.records import STEP_NAMES, CbtSteps, DistortionLabel, Question, Reason, Risk
from cbtqa.safety.answers import check_answer

LEAK_GRAM = 14
"""So many characters in a row shared with the instruction count as a leak of it (assumed)."""
MIN_SHARE_HAN = 0.6
"""Below this share of Chinese characters among the letters a text is not Chinese (assumed)."""
_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]+")
_OTHER_LETTER = re.compile(r"[A-Za-z\u00c0-\u024f\u0400-\u04ff\u3040-\u30ff\uac00-\ud7af]+")
_LOOSE = re.compile(r"[\s\W_]+")


@cache
def wording() -> Mapping[str, Any]:
    """The resource file of step names, headings, leaks, refusals and re-ask sentences."""
    text = (files("cbtqa.dataset") / "check.zh.yaml").read_text(encoding="utf-8")
    loaded: Mapping[str, Any] = parse_yaml(text)
    return loaded


@cache
def _phrases(kind: str) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(phrase) for phrase in wording()[kind]))


@cache
def _heading() -> re.Pattern[str]:
    return re.compile(wording()["heading_pattern"], flags=re.MULTILINE)


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer that passed every check; `steps` is None for one flowing text."""

    text: str
    steps: CbtSteps | None
    distortions: tuple[DistortionLabel, ...]


@dataclass(frozen=True)
class AnswerChecks:
    """The checks of one run, with its limits."""

    taxonomy: Taxonomy
    labeller: str
    min_step_chars: int
    max_step_chars: int
    prompt: Prompt | None = None
    """The instruction that must not leak into the answer; None for the template teacher."""
    _leak_grams: frozenset[str] = field(init=False, repr=False, default=frozenset())

    def __post_init__(self) -> None:
        if self.prompt is not None:
            text = self.prompt.system.template
            grams = {text[i : i + LEAK_GRAM] for i in range(len(text) - LEAK_GRAM + 1)}
            object.__setattr__(self, "_leak_grams", frozenset(grams))

    def check_object(
        self, question: Question, risk: Risk, reply: Mapping[str, Any]
    ) -> CheckedAnswer | Fault:
        """Checks a reply in five steps, already parsed as an object."""
        unknown = set(reply) - {*STEP_NAMES, "distortions"}
        if unknown:
            return Fault(Reason.NOT_JSON, f"unknown keys: {sorted(unknown)}")
        texts: dict[str, str] = {}
        for name in STEP_NAMES:
            value = reply.get(name)
            if not isinstance(value, str) or not value.strip():
                return Fault(Reason.MISSING_STEP, name)
            texts[name] = value.strip()
            fault = self._check_length(name, texts[name])
            if fault:
                return fault
        steps = CbtSteps(**texts)
        fault = self._check_text(texts.values(), steps.joined(), risk)
        if fault:
            return fault
        labels = self._read_labels(question, reply.get("distortions"))
        if isinstance(labels, Fault):
            return labels
        return CheckedAnswer(steps.joined(), steps, labels)

    def check_fused(
        self, question: Question, risk: Risk, text: str, labels: tuple[DistortionLabel, ...]
    ) -> CheckedAnswer | Fault:
        """Checks one flowing text; the labels were read from it by name, without evidence."""
        text = text.strip()
        shortest, longest = 5 * self.min_step_chars, 5 * self.max_step_chars
        if len(text) < shortest:
            return self.refusal(text) or Fault(
                Reason.STEP_TOO_SHORT, f"the text has {len(text)} characters, wants {shortest}"
            )
        if len(text) > longest:
            return Fault(
                Reason.STEP_TOO_LONG, f"the text has {len(text)} characters, allows {longest}"
            )
        fault = self.refusal(text) or self._check_text([text], text, risk)
        return fault or CheckedAnswer(text, None, labels)

    def _check_length(self, name: str, text: str) -> Fault | None:
        if len(text) < self.min_step_chars:
            return self.refusal(text) or Fault(
                Reason.STEP_TOO_SHORT,
                f"{name} has {len(text)} characters, wants {self.min_step_chars}",
            )
        if len(text) > self.max_step_chars:
            return Fault(
                Reason.STEP_TOO_LONG,
                f"{name} has {len(text)} characters, allows {self.max_step_chars}",
            )
        return None

    def refusal(self, text: str) -> Fault | None:
        """REFUSAL when a short text declines to answer, else None."""
        found = _phrases("refusals").search(text)
        if found and len(text) <= wording()["refusal_max_chars"]:
            return Fault(Reason.REFUSAL, found.group())
        return None

    def _check_text(self, parts: Any, text: str, risk: Risk) -> Fault | None:
        n_han = sum(map(len, _HAN.findall(text)))
        n_other = sum(map(len, _OTHER_LETTER.findall(text)))
        if n_han < MIN_SHARE_HAN * (n_han + n_other) or n_han == 0:
            return Fault(Reason.WRONG_LANGUAGE, f"{n_han} Chinese of {n_han + n_other} letters")
        for part in parts:
            found = _heading().search(part)
            if found:
                return Fault(Reason.HEADINGS, found.group().strip()[:40])
        found = _phrases("step_names").search(text)
        if found:
            return Fault(Reason.HEADINGS, found.group())
        leak = self._find_leak(text)
        if leak:
            return Fault(Reason.PROMPT_LEAK, leak)
        problems = check_answer(text, risk)
        if problems:
            return Fault(Reason.UNSAFE, "; ".join(str(problem) for problem in problems))
        return None

    def _find_leak(self, text: str) -> str | None:
        found = _phrases("leaks").search(text)
        if found:
            return found.group()
        if self._leak_grams:
            for i in range(len(text) - LEAK_GRAM + 1):
                if text[i : i + LEAK_GRAM] in self._leak_grams:
                    return text[i : i + LEAK_GRAM]
        return None

    def _read_labels(
        self, question: Question, entries: object
    ) -> tuple[DistortionLabel, ...] | Fault:
        if not isinstance(entries, list):
            return Fault(Reason.BAD_LABEL, "distortions is not a list")
        labels: dict[tuple[str, str], DistortionLabel] = {}
        for entry in entries:
            if not isinstance(entry, dict) or not {"id", "evidence"} <= set(entry):
                return Fault(Reason.BAD_LABEL, f"not an object with id and evidence: {entry!r}")
            kind = self.taxonomy.find(str(entry["id"]))
            if kind is None:
                return Fault(Reason.BAD_LABEL, str(entry["id"]))
            evidence = find_verbatim(str(entry["evidence"]), question)
            if evidence is None:
                return Fault(Reason.EVIDENCE_NOT_FOUND, str(entry["evidence"]))
            confidence = entry.get("confidence")
            labels[kind.id, evidence] = DistortionLabel(
                id=kind.id,
                evidence=evidence,
                labeller=self.labeller,
                confidence=confidence if isinstance(confidence, float) else None,
            )
        return tuple(labels.values())


def find_verbatim(evidence: str, question: Question) -> str | None:
    """The span of the title or description that the evidence quotes, or None.

    A quotation that differs only in spaces, punctuation or letter case stands for the asker's
    own characters, which are given back; any other difference is not repaired.
    """
    for source in (question.question, question.description):
        if evidence and evidence in source:
            return evidence
    wanted = _LOOSE.sub("", evidence).casefold()
    if not wanted:
        return None
    for source in (question.question, question.description):
        kept = [
            (lower, place)
            for place, letter in enumerate(source)
            for lower in letter.casefold()
            if not _LOOSE.fullmatch(letter)
        ]
        start = "".join(lower for lower, _ in kept).find(wanted)
        if start >= 0:
            return source[kept[start][1] : kept[start + len(wanted) - 1][1] + 1]
    return None


def answer_json_schema(taxonomy: Taxonomy) -> dict[str, Any]:
    """JSON schema of a reply in five steps, for servers that hold a model to one."""
    label = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "enum": list(taxonomy.ids)},
            "evidence": {"type": "string"},
        },
        "required": ["id", "evidence"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            **{name: {"type": "string"} for name in STEP_NAMES},
            "distortions": {"type": "array", "items": label},
        },
        "required": [*STEP_NAMES, "distortions"],
        "additionalProperties": False,
    }
