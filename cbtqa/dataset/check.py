"""From a teacher's reply to a checked answer, or to the fault for which it is rejected.

The checks run in a fixed order and the first fault wins; each has its own reason in
`records.Reason`. Offline and online teachers pass the same checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from cbtqa.dataset.instruction import Grade
from cbtqa.distortions.labellers import labels_named_in
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.files import shipped_yaml
from cbtqa.llm.chat import Fault, fault_of_text
from cbtqa.prompts import FENCE_CLOSE, FENCE_OPEN, Prompt
from cbtqa.prompts.rules import AnswerRules, load_rules
from cbtqa.records import STEP_NAMES, CbtSteps, DistortionLabel, Question, Reason
from cbtqa.safety.answers import SURELY_UNSAFE, check_answer, is_at_stake
from cbtqa.safety.notices import load_hotlines
from cbtqa.safety.personal_data import find_personal_data
from cbtqa.safety.screen import screen
from cbtqa.text_faults import (
    find_broken_text,
    find_empty_words,
    find_foreign_text,
    find_machine_text,
)

LEAK_GRAM = 20
"""So many characters in a row shared with the instruction count as a leak of it: what it asks an
answer to say ("有没有别的证据、别的解释") is shorter."""
_SPEAKS_OF_THE_ASKER = re.compile("对方|提问者|原文|写明|篇幅")
"""Words of an instruction. The steps of a branch hold sentences that an answer may well say
("僵住不等于同意"): only what has one of these words is a leak of them."""
LEAST_DEFINITION = 12
"""A shorter definition of a type may be said in an answer's own words."""
SHORTEST_QUOTE = 4
"""Characters of its evidence that step two must quote to speak of a label."""
MIN_SHARE_HAN = 0.6
"""Below this share of Chinese characters among the letters a text is not Chinese (assumed)."""
MIN_SHARE_HAN_OF_STEP = 0.3
"""The same of one step, which may name a book in English (assumed)."""
_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u2600-\u26ff\u2700-\u2712\u2714-\u27bf\u2b50\u2b55\ufe0f]"
)
_ENUMERATION = re.compile(
    r"(?:^|(?<=[。！？；\s]))(?:首先|其次|再次|再者|第[一二三四五]点?)[，,、：]"
)
_QUOTED = re.compile(r"“[^”]*”|「[^」]*」|『[^』]*』|\"[^\"]*\"")
_PARAGRAPH = re.compile(r"\S[^\n]*")
_QUESTION_MARK = re.compile(r"[？?]+")
HELP_FIRST = 200
"""An answer in one flowing text names help within so many characters, a first paragraph."""
REACHES_A_PERSON = frozenset({"phone", "landline", "wechat", "qq", "email", "account", "url"})
"""Kinds of personal data through which a reader could be led to a stranger."""
_BLANK = re.compile(r"\s+")
_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]+")
_OTHER_LETTER = re.compile(r"[A-Za-z\u00c0-\u024f\u0400-\u04ff\u3040-\u30ff\uac00-\ud7af]+")
_LOOSE = re.compile(r"[\s\W_]+")
_FENCE = re.compile(
    rf"(?m:^\s*(?:{FENCE_OPEN}|{FENCE_CLOSE}))|(?:{FENCE_OPEN}|{FENCE_CLOSE})[^\S\n]*\n"
)
"""The delimiters of foreign text, as they stand at a line's head or end in a prompt."""


@cache
def wording() -> Mapping[str, Any]:
    """Step names, headings, leaks, refusals and the sentences that ask again."""
    loaded: Mapping[str, Any] = shipped_yaml("cbtqa.dataset", "check.zh.yaml")
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
    taxonomy: Taxonomy
    labeller: str
    min_step_chars: int
    max_step_chars: int
    prompt: Prompt | None = None
    """The instruction that must not leak into the answer; None for the template teacher."""

    @cached_property
    def _leak_grams(self) -> frozenset[str]:
        if not self.prompt:
            return frozenset()
        filled_in = self._rules.instructions() if self._rules else ()
        told = (g for text in filled_in for g in _grams(text) if _SPEAKS_OF_THE_ASKER.search(g))
        return frozenset((*_grams(self.prompt.system.template), *told))

    @cached_property
    def _definitions(self) -> tuple[str, ...]:
        """Of the types, as they stand in the instruction, without punctuation."""
        kinds = self.taxonomy.types if self.prompt else ()
        return tuple(_LOOSE.sub("", kind.definition) for kind in kinds)

    @cached_property
    def _rules(self) -> AnswerRules | None:
        """What the prompt was filled from; None for prompts that tell their rules themselves."""
        name = self.prompt.header.rules if self.prompt else None
        return load_rules(name) if name else None

    def check_object(
        self, question: Question, grade: Grade, reply: Mapping[str, Any]
    ) -> CheckedAnswer | Fault:
        """Checks a reply in five steps, already parsed as an object."""
        unknown = set(reply) - {*STEP_NAMES, "distortions"}
        if unknown:
            return Fault(Reason.NOT_JSON, f"unknown keys: {sorted(unknown)}")
        texts: dict[str, str] = {}
        for name in STEP_NAMES:
            value = reply.get(name)
            if not isinstance(value, str) or not value.strip():
                return Fault(Reason.MISSING_STEP, name, f"缺了 {name}")
            texts[name] = value.strip()
            if fault := self._check_length(name, texts[name]):
                return fault
        steps = CbtSteps(**texts)
        if fault := self._check_text(question, list(texts.values()), steps.joined(), grade):
            return fault
        labels = self._read_labels(question, reply.get("distortions"))
        if isinstance(labels, Fault):
            return labels
        if self._rules:
            text = steps.joined()
            fault = self._check_budget(text, grade.branch)
            fault = fault or self._check_safety_rules(
                question, grade, text, steps.validation_and_empathy, labels
            )
            fault = fault or self._check_labels(text, labels, grade.branch)
            if fault := fault or _unspoken(labels, steps.key_thought, self.taxonomy):
                return fault
        return CheckedAnswer(steps.joined(), steps, labels)

    def check_fused(
        self, question: Question, grade: Grade, text: str, labels: tuple[DistortionLabel, ...]
    ) -> CheckedAnswer | Fault:
        """Checks one flowing text; the labels were read from it by name, without evidence."""
        text = text.strip()
        fault = self._check_length("the text", text, n_steps=5) or self.refusal(text)
        fault = fault or self._check_text(question, [text], text, grade)
        if self._rules:
            fault = fault or self._check_paragraphs(text) or self._check_budget(text, grade.branch)
            fault = fault or self._check_safety_rules(
                question, grade, text, text[:HELP_FIRST], labels
            )
            fault = fault or self._check_labels(text, labels, grade.branch)
        return fault or CheckedAnswer(text, None, labels)

    def _check_paragraphs(self, text: str) -> Fault | None:
        """One flowing text is a letter of paragraphs, not a block."""
        assert self._rules
        n, (low, high) = len(_PARAGRAPH.findall(text)), self._rules.accepted_paragraphs
        if low <= n <= high:
            return None
        advice = f"全文分了 {n} 段，要求五个自然段，段与段之间空一行"
        return Fault(Reason.STYLE, f"{n} paragraphs, allowed {low}-{high}", advice)

    def _check_safety_rules(
        self,
        question: Question,
        grade: Grade,
        text: str,
        opening: str,
        labels: Sequence[DistortionLabel],
    ) -> Fault | None:
        """Help stands first where it is urgent, a minor is told of the line for minors, words of
        death are not given back, and nothing leads the reader to a stranger."""
        words = wording()["unsafe"]
        is_urgent = grade.route == "explicit"
        if is_urgent and "no_help_route" in {p.rule for p in check_answer(opening, "explicit")}:
            return Fault(Reason.UNSAFE, "help does not stand first", words["help_not_first"])
        youth = next(line for line in load_hotlines().locales["zh"].lines if line.id == "youth")
        if grade.is_minor and youth.number not in text:
            advice = words["no_line_for_minors"].format(number=youth.number)
            return Fault(Reason.UNSAFE, f"a minor is not told of {youth.number}", advice)
        if grade.risk != "none" or grade.danger == "harm_to_others":
            quotes = [found[0][1:-1] for found in _QUOTED.finditer(text)]
            for quote in [*quotes, *(label.evidence or "" for label in labels)]:
                if quote in question.source_text and screen(quote).risk != "none":
                    return Fault(
                        Reason.UNSAFE, f"quotes '{quote}'", f"{words['quoted_danger']}（{quote}）"
                    )
        for found in find_personal_data(text):
            if found.kind in REACHES_A_PERSON and found.text not in question.source_text:
                return Fault(Reason.PERSONAL_DATA, found.text)
        return None

    def _check_budget(self, text: str, branch: str) -> Fault | None:
        """What the prompt's rules say of the answer as a whole, with the prompt's own numbers."""
        assert self._rules
        budget = self._rules.budget_of(branch)
        n_characters, n_questions = length_and_questions(text)
        n, (low, high) = n_characters, budget.accepted
        if not low <= n <= high:
            reason = Reason.STEP_TOO_SHORT if n < low else Reason.STEP_TOO_LONG
            told = budget.told
            return Fault(
                reason,
                f"the answer has {n} characters, allowed {low}-{high}",
                f"全文 {n} 个字，要求 {told[0]} 到 {told[1]} 个字",
            )
        if found := _EMOJI.search(text) or _ENUMERATION.search(text):
            return Fault(Reason.STYLE, found[0], f"出现了“{found[0]}”")
        # in words that the asker might say to an elder it is right
        if "您" in _QUOTED.sub("", text):
            return Fault(Reason.STYLE, "您", "称呼对方用“你”，不用“您”")
        n, (low, high) = n_questions, budget.accepted_questions
        if not low <= n <= high:
            told = budget.questions
            return Fault(
                Reason.STYLE,
                f"{n} questions, allowed {low}-{high}",
                f"全文有 {n} 个问句，要求 {told[0]} 到 {told[1]} 个",
            )
        return None

    def _check_labels(
        self, text: str, labels: Sequence[DistortionLabel], branch: str
    ) -> Fault | None:
        """Labels against the rules for labels, and against the names that the text gives."""
        assert self._rules
        given = {label.id for label in labels}
        if given and not self._rules.branches[branch].labels:
            return Fault(
                Reason.BAD_LABEL,
                f"labels on a question of the branch {branch}",
                "distortions 要写 []",
            )
        most = self._rules.most_types
        if len(given) > most:
            found = f"{len(given)} types, at most {most}"
            return Fault(Reason.BAD_LABEL, found, f"标了 {len(given)} 种，最多 {most} 种")
        for named in labels_named_in(text, self.taxonomy):
            if named.id not in given:
                name = next(kind.zh for kind in self.taxonomy.types if kind.id == named.id)
                return Fault(
                    Reason.BAD_LABEL,
                    f"the text names {named.id}, which is no label",
                    f"正文里点了“{name}”的名，distortions 里却没有",
                )
        return None

    def _check_length(self, name: str, text: str, n_steps: int = 1) -> Fault | None:
        shortest, longest = n_steps * self.min_step_chars, n_steps * self.max_step_chars
        found = f"{name} has {len(text)} characters"
        part = "全文" if n_steps > 1 else name
        if len(text) < shortest:
            advice = f"{part} 只有 {len(text)} 个字，至少 {shortest} 个字"
            fault = Fault(Reason.STEP_TOO_SHORT, f"{found}, wants {shortest}", advice)
            return self.refusal(text) or fault
        if len(text) > longest:
            advice = f"{part} 有 {len(text)} 个字，最多 {longest} 个字"
            return Fault(Reason.STEP_TOO_LONG, f"{found}, allows {longest}", advice)
        return None

    def refusal(self, text: str) -> Fault | None:
        """REFUSAL when a short text declines to answer, else None."""
        found = _phrases("refusals").search(text)
        if found and len(text) <= wording()["refusal_max_chars"]:
            return Fault(Reason.REFUSAL, found.group())
        return None

    def _check_text(
        self, question: Question, parts: Sequence[str], text: str, grade: Grade
    ) -> Fault | None:
        for part in parts:
            if fault := _fault_of_part(part):
                return fault
        if fault := fault_of_language(text, MIN_SHARE_HAN):
            return fault
        if empty := find_empty_words(parts, question.source_text) or find_foreign_text(text):
            return fault_of_text(empty)
        if found := _phrases("step_names").search(text):
            return Fault(Reason.HEADINGS, found.group())
        if leak := self._find_leak(text):
            return Fault(Reason.PROMPT_LEAK, leak)
        # version 1 of the prompts asks for no route where there is another danger
        risk = grade.risk if self.prompt and not self._rules else grade.route
        at_stake = is_at_stake(question.source_text, grade.route)
        if problems := check_answer(text, risk, unsafe_from=SURELY_UNSAFE, at_stake=at_stake):
            words = wording()["unsafe"]
            advice = "；".join(dict.fromkeys(words[problem.rule] for problem in problems))
            return Fault(Reason.UNSAFE, "; ".join(map(str, problems)), advice)
        return None

    def _find_leak(self, text: str) -> str | None:
        if found := _phrases("leaks").search(text):
            return found.group()
        if not self._leak_grams:
            return None
        bare = _LOOSE.sub("", text)
        copied = (one for one in self._definitions if len(one) >= LEAST_DEFINITION and one in bare)
        leaks = (gram for gram in _grams(text) if gram in self._leak_grams)
        return next(copied, None) or next(leaks, None)

    def _read_labels(
        self, question: Question, entries: object
    ) -> tuple[DistortionLabel, ...] | Fault:
        if not isinstance(entries, list):
            advice = "distortions 要写成列表，没有时写 []"
            return Fault(Reason.BAD_LABEL, "distortions is not a list", advice)
        labels: dict[tuple[str, str], DistortionLabel] = {}
        for entry in entries:
            if not isinstance(entry, dict) or not {"id", "evidence"} <= set(entry):
                found, advice = (
                    f"not an object with id and evidence: {entry!r}",
                    "每个标注都要有 id 和 evidence",
                )
                return Fault(Reason.BAD_LABEL, found, advice)
            kind = self.taxonomy.find(str(entry["id"]))
            if kind is None:
                name = str(entry["id"])
                return Fault(Reason.BAD_LABEL, name, f"“{name}”不在类型表里")
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


def length_and_questions(text: str) -> tuple[int, int]:
    """Characters without blanks, and questions, as a budget counts them."""
    return len(_BLANK.sub("", text)), len(_QUESTION_MARK.findall(text))


def _unspoken(
    labels: Sequence[DistortionLabel], key_thought: str, taxonomy: Taxonomy
) -> Fault | None:
    """A label of which step two does not speak: neither its evidence nor its name is there."""
    named = {label.id for label in labels_named_in(key_thought, taxonomy)}
    said = _LOOSE.sub("", key_thought)
    for label in labels:
        quote = _LOOSE.sub("", label.evidence or "")
        size = min(SHORTEST_QUOTE, len(quote))
        is_quoted = any(quote[i : i + size] in said for i in range(len(quote) - size + 1))
        if label.id not in named and not is_quoted:
            return Fault(
                Reason.BAD_LABEL,
                f"step two does not speak of {label.id}",
                f"key_thought 里没有引用“{label.evidence}”来谈",
            )
    return None


def _fault_of_part(part: str) -> Fault | None:
    """What shows that a part is no Chinese words of a letter."""
    if found := find_machine_text(part):
        return fault_of_text(found)
    if fence := _FENCE.search(part):
        return Fault(Reason.PROMPT_LEAK, fence[0].strip())
    if heading := _heading().search(part):
        return Fault(Reason.HEADINGS, heading.group().strip()[:40])
    if found := find_broken_text(part):
        return fault_of_text(found)
    return fault_of_language(part, MIN_SHARE_HAN_OF_STEP)


def fault_of_language(text: str, least: float) -> Fault | None:
    """What is wrong where less than this share of the letters is Chinese, or none; else None."""
    n_han = sum(map(len, _HAN.findall(text)))
    n_other = sum(map(len, _OTHER_LETTER.findall(text)))
    if n_han < least * (n_han + n_other) or n_han == 0:
        return Fault(Reason.WRONG_LANGUAGE, f"{n_han} Chinese of {n_han + n_other} letters")
    return None


def _grams(text: str) -> Iterator[str]:
    return (text[i : i + LEAK_GRAM] for i in range(len(text) - LEAK_GRAM + 1))


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


MOST_REPETITIONS = 2_000
"""llama.cpp refuses a grammar with as many. Source: its issues 17473, 27087."""


def answer_json_schema(taxonomy: Taxonomy, limits: tuple[int, int] | None = None) -> dict[str, Any]:
    """JSON schema of a reply in five steps, for servers that hold a model to one.

    Args:
        limits: characters of a step, from and to; None where the server knows no lengths. The
            schema allows one more than the check: a text that the server ended there was cut, and
            is found to be too long.
    """

    def closed(properties: dict[str, Any]) -> dict[str, Any]:
        required = {"required": list(properties), "additionalProperties": False}
        return {"type": "object", "properties": properties, **required}

    text: dict[str, Any] = {"type": "string"}
    step = dict(text)
    if limits and limits[1] + 1 < MOST_REPETITIONS:
        step |= {"minLength": limits[0], "maxLength": limits[1] + 1}
    label = closed({"id": {**text, "enum": list(taxonomy.ids)}, "evidence": text})
    labels = {"type": "array", "items": label}
    return closed({**dict.fromkeys(STEP_NAMES, step), "distortions": labels})
