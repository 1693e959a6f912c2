"""Reads a rule file and compiles it: all anchors into one automaton, contexts into regexes.

A rule file holds *families*: anchors (the literals that the automaton looks for) with an ordered
list of *cases*. The first case that fits the surroundings of a found anchor decides its grade.
Cases may be named once under `contexts` and used by several families. docs/safety.md has examples.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import ahocorasick
from pydantic import BaseModel, ConfigDict, Field

from cbtqa.errors import DataError
from cbtqa.plain_values import parse_yaml
from cbtqa.records import Risk
from cbtqa.safety.normalise import Language, fold, squeeze

Subject = Literal["self", "third", "none"]
_HOLE = re.compile(r"(?<!P)<([a-z_]+)>")  # not the name of a regex group
_NEVER = "(?!)"
_REGEX_LETTERS = frozenset("PABDSWZ")  # of (?P<...>) and escapes; texts hold no upper case


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CaseEntry(_Entry):
    """One condition and its verdict, as written in the file. All given conditions must hold."""

    id: str = ""
    use: str | None = None
    """Name of a shared context instead of conditions of its own."""
    risk: Risk = "none"
    outcome: str = "stated"
    """Why the hit counts or not: `negated`, `third_person`, `idiom`, `quotation`, `past`..."""
    left: str | None = None
    """Searched in the sentence before the anchor; end it with `$` to touch the anchor."""
    right: str | None = None
    """Matched at the start of the sentence's rest after the anchor."""
    not_left: str | None = None
    not_right: str | None = None
    anchor: str | None = None
    """Must match the whole anchor."""
    text: str | None = None
    """Searched in the whole text."""
    subject: tuple[Subject, ...] | None = None
    """Who the clause speaks of, as `mentions` finds it."""


class FamilyEntry(_Entry):
    """Anchors that share their cases."""

    id: str
    anchors: tuple[str, ...] = ()
    """Literals with `<name>` holes; every combination is looked for."""
    misspelled: tuple[str, ...] = ()
    """Words looked for in every spelling that `sounds` gives, other than their own."""
    cases: tuple[CaseEntry, ...]
    default: Risk
    """Grade when no case fits."""


class RuleFile(_Entry):
    """A whole rule file."""

    words: dict[str, list[str]] = Field(default_factory=dict)
    """Lists for `<name>` in anchors and regexes (there as an alternation)."""
    masks: tuple[str, ...] = ()
    """Words that hold a negation but negate nothing (忍不住); hidden from `negated` cases."""
    sounds: dict[str, list[str]] = Field(default_factory=dict)
    """Other spellings of a character, for the words under `misspelled`."""
    third: str = _NEVER
    """Regex for a person who is not the writer, as the subject of a clause."""
    self: str = _NEVER
    """Regex for the writer as the subject."""
    skip: str = _NEVER
    """Regex for persons mentioned as objects, which are no subject."""
    expressive: str = _NEVER
    """Regex at the anchor's left that only fits the writer's own feeling (好想, 真的想)."""
    topic_of_third: str = _NEVER
    """Regex for a clause that goes on speaking of a third person in the next clause."""
    contexts: dict[str, CaseEntry] = Field(default_factory=dict)
    hints: tuple[str, ...] = ()
    """`family.case` of explicit cases that do not decide alone: the model must find some
    probability of it as well, else they are a concern."""
    families: tuple[FamilyEntry, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A compiled case."""

    rule: str
    risk: Risk
    outcome: str
    left: re.Pattern[str] | None
    right: re.Pattern[str] | None
    not_left: re.Pattern[str] | None
    not_right: re.Pattern[str] | None
    anchor: re.Pattern[str] | None
    text: re.Pattern[str] | None
    subject: tuple[Subject, ...] | None
    is_hint: bool
    """Whether it is among `RuleFile.hints`."""


@dataclass(frozen=True)
class RuleBook:
    """Everything `screen` needs for one language."""

    language: Language
    automaton: Any
    """pyahocorasick automaton over squeezed text; a value is (length, family indices)."""
    families: tuple[tuple[Case, ...], ...]
    """The cases of each family in order, the default last."""
    mentions: re.Pattern[str]
    """Finds persons, in a group of who it is: `skip`, `third` or `self`."""
    expressive: re.Pattern[str]
    topic_of_third: re.Pattern[str]
    masks: re.Pattern[str] | None


@cache
def load_rules(language: Language, purpose: Literal["screen", "answers"] = "screen") -> RuleBook:
    """The shipped rules of a language, compiled once.

    Args:
        purpose: `screen` grades what people write, `answers` finds advice against safety; there
            the grade `explicit` means a problem.
    """
    name = f"rules/{purpose}.{language}.yaml"
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return compile_rules(text, language, name)


def compile_rules(source: str, language: Language, where: str) -> RuleBook:
    """Compiles the text of a rule file.

    Raises:
        DataError: not the schema, an unknown name, or a bad regex; names the place.
    """
    try:
        entry = RuleFile.model_validate(parse_yaml(source, where))
    except ValueError as error:
        raise DataError(f"rule file: {error}", where=where) from None
    compiler = _Compiler(entry, language, where)
    families = tuple(compiler.family(family) for family in entry.families)
    rules = {case.rule for cases in families for case in cases if case.risk == "explicit"}
    if unknown := sorted(set(entry.hints) - rules):
        raise DataError(f"rule file: hints name no explicit rule: {unknown}", where=where)
    persons = f"(?P<skip>{entry.skip})|(?P<third>{entry.third})|(?P<self>{entry.self})"
    return RuleBook(
        language=language,
        automaton=compiler.automaton(),
        families=families,
        mentions=compiler.regex(persons, "mentions"),
        expressive=compiler.regex(entry.expressive, "expressive"),
        topic_of_third=compiler.regex(entry.topic_of_third, "topic_of_third"),
        masks=compiler.regex("|".join(entry.masks), "masks") if entry.masks else None,
    )


def _alternation(words: list[str]) -> str:
    """The words as alternatives, behind one look at the first character where that is literal.

    `re` tries alternatives one by one; the look ahead spares it that at nearly every position.
    """
    branches = "(?:" + "|".join(words) + ")"
    if all(word and word[0].isalnum() and word[1:2] not in tuple("?*{") for word in words):
        return "(?:(?=[" + "".join(sorted({word[0] for word in words})) + "])" + branches + ")"
    return branches


class _Compiler:
    def __init__(self, entry: RuleFile, language: Language, where: str) -> None:
        self._entry, self._language, self._where = entry, language, where
        self._compiled: dict[str, re.Pattern[str]] = {}

    def regex(self, pattern: str, rule: str) -> re.Pattern[str]:
        # most families share their contexts: every third pattern has been met
        if pattern not in self._compiled:
            self._compiled[pattern] = self._new_regex(pattern, rule)
        return self._compiled[pattern]

    def _new_regex(self, pattern: str, rule: str) -> re.Pattern[str]:
        def alternation(hole: re.Match[str]) -> str:
            return _alternation(self._words(hole[1], rule))

        full = _HOLE.sub(alternation, pattern)
        folded = zip(full, fold(full), strict=True)
        if odd := sorted({char for char, plain in folded if char != plain} - _REGEX_LETTERS):
            found = f"rule {rule}: {odd} cannot match, texts are folded first"
            raise DataError(found, where=self._where)
        try:
            return re.compile(full)
        except re.error as error:
            raise DataError(f"rule {rule}: bad regex: {error}", where=self._where) from None

    def _words(self, name: str, rule: str) -> list[str]:
        if name not in self._entry.words:
            raise DataError(f"rule {rule}: unknown words <{name}>", where=self._where)
        return self._entry.words[name]

    def automaton(self) -> Any:
        owners: dict[str, dict[int, None]] = {}
        for index, family in enumerate(self._entry.families):
            for literal in self._literals(family):
                owners.setdefault(literal, {})[index] = None
        automaton = ahocorasick.Automaton()
        for literal, families in owners.items():
            automaton.add_word(literal, (len(literal), tuple(families)))
        automaton.make_automaton()
        return automaton

    def _literals(self, family: FamilyEntry) -> Iterator[str]:
        for anchor in family.anchors:
            # every second part is the name of a hole
            choices = [
                self._words(part, family.id) if place % 2 else [part]
                for place, part in enumerate(_HOLE.split(anchor))
            ]
            for chosen in itertools.product(*choices):
                yield squeeze(fold("".join(chosen)), self._language)
        sounds = self._entry.sounds
        for word in family.misspelled:
            spellings = itertools.product(*([char, *sounds.get(char, [])] for char in word))
            yield from (spelling for spelling in map("".join, spellings) if spelling != word)

    def family(self, entry: FamilyEntry) -> tuple[Case, ...]:
        outcome = "incidental" if entry.default == "none" else "stated"
        default = CaseEntry(id="mentioned", risk=entry.default, outcome=outcome)
        return tuple(self._case(case, entry.id) for case in (*entry.cases, default))

    def _case(self, case: CaseEntry, family: str) -> Case:
        if case.use is not None:
            if case.use not in self._entry.contexts:
                raise DataError(f"{family}: unknown context '{case.use}'", where=self._where)
            case = self._entry.contexts[case.use].model_copy(update={"id": case.use})
        rule = f"{family}.{case.id}"
        patterns = {
            name: self.regex(pattern, rule) if (pattern := getattr(case, name)) else None
            for name in ("left", "right", "not_left", "not_right", "anchor", "text")
        }
        is_hint = rule in self._entry.hints
        return Case(
            rule, case.risk, case.outcome, subject=case.subject, is_hint=is_hint, **patterns
        )
