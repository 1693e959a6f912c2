"""The pattern labeller: a readable rule file, compiled into one automaton.

`patterns.zh.yaml` holds the rules. The end of every phrase goes into one Aho-Corasick automaton;
only where a phrase ends are its beginning and its context checked: negation, conditions, what
other people said, whom the clause is about. The evidence is the clause that holds the hit.

    PatternLabeller().label("她们都在笑，我觉得自己就是个废物")[0].id == "labeling"
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import ahocorasick
from pydantic import Field

from cbtqa.distortions.clauses import Bounds, Span, clause_bounds
from cbtqa.distortions.labellers import Labels
from cbtqa.distortions.taxonomy import Taxonomy, lift_id, load_taxonomy, shipped_concepts
from cbtqa.errors import DataError
from cbtqa.files import open_text, parse_record, parse_yaml, shipped_yaml
from cbtqa.records import DistortionLabel, NonEmptyText, Record

_MAX_EXPANSIONS = 12_000
"""Words that one phrase may put into the automaton; what goes before them is matched by regex."""
_CONTEXT_LENGTH = 24
"""Characters before a hit that its context is read from."""
_LONGEST_ACROSS = 40
"""Characters that a phrase over several clauses may span; assumed."""


@cache
def _contexts() -> Mapping[str, re.Pattern[str]]:
    """Regexes over what comes before a phrase, in which it is not the writer's own thought."""
    raw = shipped_yaml("cbtqa.distortions", "contexts.zh.yaml")
    patterns = raw["contexts"].items()
    return {name: re.compile(text.replace("<person>", raw["person"])) for name, text in patterns}


class PatternRule(Record):
    """One rule of the file."""

    id: NonEmptyText
    type: NonEmptyText
    """A concept id, or `distorted` where the rule cannot tell which."""
    confidence: float = Field(gt=0, le=1)
    says: tuple[NonEmptyText, ...]
    as_if: bool = False
    of_others: bool = False
    negated: bool = False
    across: bool = False
    """The phrase may reach over commas, back to the beginning of its sentence."""


class PatternHit(NamedTuple):
    """One place where a rule holds."""

    rule: PatternRule
    span: Span
    """The end of the phrase, as found by the automaton."""
    clause: Span


class _Trigger(NamedTuple):
    rule: PatternRule
    before: re.Pattern[str] | None
    """What must come before the hit in the same clause; None when the phrase is whole."""


class _Rules(NamedTuple):
    automaton: Any
    """Words to `(length, triggers)`."""
    rules: tuple[PatternRule, ...]
    """All rules of the file, in its order."""
    words: Mapping[str, Sequence[str]]
    """The word classes of the file."""


class PatternLabeller:
    """Finds distortions by the rules of a file, the shipped one by default.

    Args:
        taxonomy: of the labels; rules whose type it has no place for give none.
        rules_path: a rule file of your own.
        min_confidence: rules below it give no label; `find_hits` still reports them.
    """

    name = "patterns"

    def __init__(
        self,
        taxonomy: Taxonomy | None = None,
        rules_path: Path | None = None,
        *,
        min_confidence: float = 0.5,
    ) -> None:
        self.taxonomy = taxonomy or load_taxonomy()
        self._min_confidence = min_confidence
        self._automaton, self.rules, self.words = _load_rules(rules_path)
        self._ids = {rule.type: lift_id(rule.type, self.taxonomy) for rule in self.rules}

    def label(self, text: str, hits: Iterable[PatternHit] | None = None) -> Labels:
        """One label for each type in `hits` (default: of the text), with its surest clause."""
        best: dict[str, PatternHit] = {}
        for hit in self.find_hits(text) if hits is None else hits:
            if self._counts(hit):
                held = best.setdefault(str(self._ids[hit.rule.type]), hit)
                if hit.rule.confidence > held.rule.confidence:
                    best[str(self._ids[hit.rule.type])] = hit
        ranked = sorted(best.items(), key=lambda item: -item[1].rule.confidence)
        return tuple(
            # unchecked: right by construction, and checking costs a tenth
            DistortionLabel.model_construct(
                id=type_id,
                evidence=hit.clause.of(text),
                labeller=self.name,
                confidence=hit.rule.confidence,
            )
            for type_id, hit in ranked
        )

    def label_many(self, texts: Iterable[str]) -> list[Labels]:
        """The labels of each text, in order."""
        return [self.label(text) for text in texts]

    def find_hits(self, text: str, clauses: Bounds | None = None) -> list[PatternHit]:
        """Every place where a rule holds, in order; `clauses` of the text save a second split."""
        hits: list[PatternHit] = []
        starts: list[int] = []
        bounds: Bounds = ()
        for last, (length, triggers) in self._automaton.iter(text):
            if not starts:
                bounds = clauses or clause_bounds(text)
                starts = [bound[0] for bound in bounds]
            start = last - length + 1
            clause = bounds[bisect_right(starts, start) - 1]
            for rule, before in triggers:
                begin, whole = start, clause
                if before is not None:
                    since = _sentence_start(text, start) if rule.across else clause[0]
                    found = before.search(text, since, start)
                    if found is None:
                        continue
                    begin = found.start()
                    if begin < clause[0]:
                        whole = (bounds[bisect_right(starts, begin) - 1][0], clause[1])
                span = Span(start, last + 1)
                if _holds(rule, text, begin, span):
                    hits.append(PatternHit(rule, span, Span(*whole)))
        return hits

    def _counts(self, hit: PatternHit) -> bool:
        """Whether a hit gives a label: its type is in the taxonomy, its rule sure enough."""
        return bool(self._ids[hit.rule.type]) and hit.rule.confidence >= self._min_confidence


def _sentence_start(text: str, place: int) -> int:
    """Where the sentence that `place` lies in begins, or where an across-phrase stops looking."""
    since = max(0, place - _LONGEST_ACROSS)
    return max(since, *(text.rfind(mark, since, place) + 1 for mark in "。！？!?\n"))


def _holds(rule: PatternRule, text: str, start: int, end_piece: Span) -> bool:
    """Whether the context leaves a phrase the writer's own, meant thought.

    Read up to the phrase's last piece, so that a 不 inside the phrase's gap is seen, too.
    """
    # a last piece that begins with 是 may be that of 不是
    until = end_piece.start + text.startswith("是", end_piece.start)
    context = text[max(0, start - _CONTEXT_LENGTH) : until]
    if not context:
        return True
    contexts = _contexts()
    is_after_not = start and contexts["not_before"].match(text, start - 1)
    if not rule.negated and (is_after_not or contexts["negated"].search(context)):
        return False
    if not rule.as_if and contexts["supposed"].search(context):
        return False
    if rule.of_others:
        return True
    end = end_piece.end
    # in a question such as 好不好 or 行不行 the phrase's 不好 is no verdict
    is_question = text[end - 2 : end - 1] == "不" and text[end - 3 : end - 2] == text[end - 1]
    if is_question or contexts["said_by_others"].search(context):
        return False
    return "我" in text[start:end] or not contexts["about_others"].search(context)


# --- the rule file -------------------------------------------------------------------------------


@cache
def _load_rules(path: Path | None) -> _Rules:
    """The compiled rules of a file, the shipped one by default.

    Raises:
        DataError: not YAML, a bad rule, an unknown word class, type, or too large a phrase.
    """
    path = path or Path(__file__).with_name("patterns.zh.yaml")
    where = str(path)
    with open_text(path) as stream:
        raw = parse_yaml(stream, where)
    if not isinstance(raw, dict) or not isinstance(raw.get("rules"), list):
        raise DataError("expected `words` and a list `rules`", where=where)
    words: dict[str, list[str]] = raw.get("words", {})
    gap = int(raw.get("gap", 8))
    rules = tuple(
        parse_record(PatternRule, entry, f"{where}:rules.{index}")
        for index, entry in enumerate(raw["rules"])
    )
    triggers: dict[str, dict[tuple[str, str], _Trigger]] = {}
    for rule in rules:
        if rule.type not in shipped_concepts():
            raise DataError(f"unknown type '{rule.type}'", where=f"{where}:{rule.id}")
        for phrase in rule.says:
            before, ends = _split_phrase(phrase, words, gap, f"{where}:{rule.id}")
            for end in ends:
                key = (rule.id, before.pattern if before else "")
                triggers.setdefault(end, {})[key] = _Trigger(rule, before)
    automaton = ahocorasick.Automaton()
    for word, found in triggers.items():
        automaton.add_word(word, (len(word), tuple(found.values())))
    automaton.make_automaton()
    return _Rules(automaton, rules, words)


_PIECE = re.compile(r"\{(?P<word>[^}]+)\}|\((?P<options>[^)]*)\)|(?P<plain>[^{}()]+)")


def _options(phrase: str, words: dict[str, list[str]], where: str) -> list[list[str]]:
    """Alternatives of each piece of a phrase, in order."""
    pieces: list[list[str]] = []
    for piece in _PIECE.finditer(phrase):
        if piece["word"] is not None:
            if piece["word"] not in words:
                raise DataError(f"unknown word class '{{{piece['word']}}}'", where=where)
            pieces.append(words[piece["word"]])
        elif piece["options"] is not None:
            options: list[str] = []
            for option in piece["options"].split("|"):
                name = option.strip("{}")
                options.extend(words.get(name, [option]) if "{" in option else [option])
            pieces.append(options)
        else:
            pieces.append([piece["plain"]])
    return pieces


def _split_phrase(
    phrase: str, words: dict[str, list[str]], gap: int, where: str
) -> tuple[re.Pattern[str] | None, set[str]]:
    """A phrase as (what must come before, words for the automaton).

    The automaton gets as many of the last pieces as expand to at most `_MAX_EXPANSIONS` words.
    """
    *heads, last = (_options(part, words, where) for part in phrase.split("…"))
    cut, size = len(last), 1
    while cut and size * len(last[cut - 1]) <= _MAX_EXPANSIONS:
        cut -= 1
        size *= len(last[cut])
    ends = {"".join(parts) for parts in itertools.product(*last[cut:])}
    if "" in ends:
        raise DataError(f"the end of '{phrase}' may be empty", where=where)
    parts = ["".join(map(_either, head)) + f".{{0,{gap}}}" for head in heads]
    pattern = "".join([*parts, *map(_either, last[:cut])])
    return (_compiled(pattern + "$") if pattern else None), ends


def _either(options: list[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, options))})"


_compiled = cache(re.compile)  # `re` itself keeps the last 512 only
