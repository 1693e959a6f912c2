"""Facts of a question, by its words: topic, cues, feelings, people, quotable clauses.

One pass of an automaton over the folded text finds every word of `template/facts.yaml`; the
clauses around the words are read only where a fact or a quotation may come from them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import ahocorasick

from cbtqa.files import shipped_yaml
from cbtqa.records import Question
from cbtqa.safety.normalise import fold

READ_AT_MOST = 1_500
"""Characters of a question that facts are read from; PsyQA's longest description has 400."""
_TITLE_WEIGHT, _KEYWORD_WEIGHT, _COUNT_AT_MOST = 3, 2, 3
_MIN_QUOTE, _MIN_RETOLD, _MAX_QUOTE = 6, 8, 24
_MIN_THOUGHT, _MAX_THOUGHT = 3, 32
_CLAUSE_END = re.compile(r"[,。!?;:…\n\r\t.~ 、]+")
_SOME_HAN = re.compile(r"(?:[\u4e00-\u9fff][^\u4e00-\u9fff]*){4}")
_MAX_QUOTES, _TELLING = 3, 3
_STRONG, _SELF_WEIGHT, _OTHERS_WEIGHT, _TITLE_CLAUSE_WEIGHT = 3, 2, -2, 3
_LONG, _SHORT = 140, 14
_PLAIN = re.compile(r"[\u4e00-\u9fff，0-9a-zA-Z]+")
_RISKY_LETTERS = re.compile(r"[0-9]{4,}|[a-zA-Z]{4,}|[a-zA-Z][0-9]|[0-9][a-zA-Z]")
_NOT_RETOLD = re.compile("我(?:该|想问|想请|是不是|要怎|应该|怎|就|也|还|又|却|才|都)")
"""Beginnings that ask, or that hang on the clause before."""
_MENTION = re.compile(r"我(?!们)|我们")


class Clause(NamedTuple):
    """A stretch between punctuation marks, in code points of the source text."""

    start: int
    end: int
    mark: str
    """The folded punctuation that ends it; empty at the end of the text."""


@dataclass
class Facts:
    topic: str = "general"
    holes: dict[str, str] = field(default_factory=dict)
    """Verbatim or named facts, for the holes of the grammar."""
    quotes: list[str] = field(default_factory=list)
    """Clauses worth quoting, verbatim, the most telling first."""
    flags: set[str] = field(default_factory=set)
    """Cues, audience, kind of question, register."""


def _alternation(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


class _Lexicon:
    """The shipped word lists, compiled."""

    def __init__(self) -> None:
        raw = shipped_yaml("cbtqa.dataset", "template/facts.yaml")
        self.raw: Mapping[str, Any] = raw
        self.automaton = _automaton(raw)
        """Folded words to length, weight as a quotation, (topic, weight) pairs, and (kind, name)
        pairs of everything else."""
        # patterns, not plain words: `_alternation` would escape them
        self.lead = re.compile(f"(?:{'|'.join(sorted(raw['lead_words'], key=len, reverse=True))})+")
        self.bad_starts = tuple(raw["bad_starts"])
        self.bad_ends = (*raw["bad_ends"], *"0123456789abcdefghijklmnopqrstuvwxyz")
        self.never = re.compile(_alternation(raw["never_quoted"]))
        self.not_before = re.compile(f"(?:{_alternation(raw['not_before'])}).?$")
        self.others = tuple(raw["others"])
        self.duration = {name: re.compile(pattern) for name, pattern in raw["duration"].items()}
        self.adult_age = re.compile(raw["adult_age"])
        self.asking_start = re.compile(_alternation(raw["asking_starts"]))
        self.asked_start = re.compile(_alternation(raw["asked_starts"]))
        self.asks = {name: re.compile(_alternation(words)) for name, words in raw["asks"].items()}
        self.tails = tuple(sorted(raw["tail_words"], key=len, reverse=True))


def _automaton(raw: Mapping[str, Any]) -> Any:
    topics: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for topic, words in raw["topics"].items():
        for weight, key in ((_STRONG, "strong"), (1, "weak")):
            for word in words.get(key, ()):
                topics[word].append((topic, weight))
    named: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for kind in ("cues", "audience", "emotions", "people"):
        for name, words in raw[kind].items():
            for word in words:
                named[word].append((kind, name))
    for kind in ("adult", "scenes"):
        for word in raw[kind]:
            named[word].append((kind, word))
    weights = {
        word: int(weight) for weight, words in raw["quote_weights"].items() for word in words
    }
    automaton = ahocorasick.Automaton()
    for word in {*topics, *named, *weights}:
        found = tuple(topics.get(word, ())), tuple(named.get(word, ()))
        automaton.add_word(word, (len(word), weights.get(word, 0), *found))
    automaton.make_automaton()
    return automaton


@cache
def load_lexicon() -> _Lexicon:
    return _Lexicon()


def read_facts(question: Question) -> Facts:
    """Every fact of a question that the language has a condition or hole for."""
    return _Reader(question).read()


class _Reader:
    def __init__(self, question: Question) -> None:
        self._lexicon = load_lexicon()
        self._text = question.source_text[:READ_AT_MOST]
        self._folded = fold(self._text)
        self._title_end = len(question.question)
        broad = self._lexicon.raw["broad_keywords"]
        self._keywords = ",".join(word for word in question.keywords if word not in broad)
        self._clauses = self._split()
        self._ends = [clause.end for clause in self._clauses]
        self._scores = [0] * len(self._clauses)
        self._topics: dict[str, int] = defaultdict(int)
        self._found: dict[str, dict[str, int]] = defaultdict(dict)
        """kind -> name -> place of its first word"""
        self._facts = Facts()

    def read(self) -> Facts:
        self._walk()
        facts, topics = self._facts, self._topics
        best = max(topics, key=topics.__getitem__, default=None)
        if best is not None and topics[best] >= _STRONG:
            facts.topic = best
        self._read_people()
        self._read_flags()
        self._read_quotes()
        return facts

    def _split(self) -> list[Clause]:
        clauses, start = [], 0
        for match in _CLAUSE_END.finditer(self._folded):
            if match.start() > start:
                clauses.append(Clause(start, match.start(), match[0]))
            start = match.end()
        if start < len(self._folded):
            clauses.append(Clause(start, len(self._folded), ""))
        return clauses

    def _walk(self) -> None:
        folded, title_end = self._folded, self._title_end
        times: dict[tuple[str, str], int] = defaultdict(int)
        last_person = -1
        for last, (length, quote_weight, topics, named) in self._lexicon.automaton.iter(folded):
            start = last + 1 - length
            if quote_weight:
                self._scores[bisect_right(self._ends, start)] += quote_weight
            for topic, weight in topics:
                key = (topic, folded[start : last + 1])
                times[key] += 1
                if times[key] <= _COUNT_AT_MOST:
                    self._topics[topic] += weight * (_TITLE_WEIGHT if start < title_end else 1)
            for kind, name in named:
                if kind == "people":
                    # of words that end in one place the longest comes first: 女朋友, not 朋友
                    if last != last_person:
                        self._found[kind].setdefault(
                            f"{name}:{self._text[start : last + 1]}", start
                        )
                    last_person = last
                elif name not in self._found[kind] and (
                    kind != "emotions" or self._is_own_feeling(start)
                ):
                    self._found[kind][name] = start
        for _, (_, _, topics, _) in self._lexicon.automaton.iter(self._keywords):
            for topic, weight in topics:
                self._topics[topic] += weight * _KEYWORD_WEIGHT

    def _is_own_feeling(self, start: int) -> bool:
        clause = self._clauses[bisect_right(self._ends, start)]
        before = self._folded[clause.start : start]
        if self._lexicon.not_before.search(before):
            return False
        if lead := self._lexicon.lead.match(before):
            before = before[lead.end() :]
        return "我" in before[1:] or not before.startswith(self._lexicon.others)

    def _read_people(self) -> None:
        said = self._lexicon.raw["people_said"]
        wrong = self._lexicon.raw["not_people"]
        holes = self._facts.holes
        for name, place in self._found["people"].items():
            role, word = name.split(":", 1)
            around = self._folded[max(0, place - 1) : place + len(word) + 1]
            if role not in holes and not any(bad in around for bad in wrong):
                holes[role] = said.get(word, word)

    def _read_flags(self) -> None:
        facts, found = self._facts, self._found
        facts.flags.update(found["cues"])
        facts.flags.add(self._read_audience())
        feelings = list(found["emotions"])
        for hole, feeling in zip(("feeling", "feeling2"), feelings, strict=False):
            facts.holes[hole] = feeling
        heavy = facts.flags.intersection(self._lexicon.raw["heavy_cues"])
        facts.flags.add("distress" if feelings or heavy else "calm")
        if found["scenes"]:
            facts.holes["scene"] = next(iter(found["scenes"]))
        n = len(self._text)
        facts.flags.add("long" if n > _LONG else "short" if n < _SHORT else "medium")
        if not _SOME_HAN.search(self._text):
            facts.topic = "unclear"
        if span := self._read_span():
            facts.holes["span"] = span

    def _read_audience(self) -> str:
        named = self._found["audience"]
        if self._found["adult"]:
            return "adult"
        if "campus" in named:
            return "campus"
        if self._lexicon.adult_age.search(self._folded):
            return "adult"
        if "minor" in named:
            return "minor"
        return "campus" if "dorm" in named else "adult"

    def _read_span(self) -> str | None:
        rules, folded = self._lexicon.duration, self._folded
        for match in rules["amount"].finditer(folded):
            start, end = match.span()
            if rules["after"].match(folded, end) or (
                rules["before"].search(folded[max(0, start - 8) : start])
                and not rules["not_after"].match(folded, end)
            ):
                return self._text[start:end]
        return None

    # --- quotations ------------------------------------------------------------------------------

    def _read_quotes(self) -> None:
        taken: list[str] = []
        scores, folded, others = self._scores, self._folded, self._lexicon.others
        for at, (start, end, _) in enumerate(self._clauses):
            if folded.find("我", start, end) >= 0:
                scores[at] += _SELF_WEIGHT
            if start < self._title_end:
                scores[at] += _TITLE_CLAUSE_WEIGHT
            if scores[at] >= _TELLING and folded.startswith(others, start):
                scores[at] += _OTHERS_WEIGHT
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        for at in order[:12]:
            if len(taken) >= _MAX_QUOTES or self._scores[at] < _TELLING:
                break
            clause = self._clauses[at]
            quote = None if "?" in clause.mark else self._trim(clause, _MIN_QUOTE)
            if not quote or self._lexicon.asking_start.match(quote):
                continue
            if not any(quote in other or other in quote for other in taken):
                taken.append(quote)
        self._read_asked(taken)
        self._read_retold(taken)
        self._facts.quotes = taken

    def _trim(self, clause: Clause, shortest: int) -> str | None:
        span = slice(clause.start, clause.end)
        return _trim(self._text[span], self._folded[span], shortest, _MAX_QUOTE)

    def _read_asked(self, taken: list[str]) -> None:
        lexicon = self._lexicon
        for clause in self._clauses:
            if "?" not in clause.mark:
                continue
            asked = self._trim(clause, _MIN_QUOTE)
            if not asked or not lexicon.asked_start.match(asked):
                continue
            if not any(asked in other or other in asked for other in taken):
                self._facts.holes["asked"] = asked
                kinds = lexicon.asks.items()
                self._facts.flags.update(name for name, words in kinds if words.search(asked))
                return

    def _read_retold(self, taken: list[str]) -> None:
        for clause in self._clauses:
            if not self._text.startswith("我", clause.start) or "?" in clause.mark:
                continue
            text = self._text[clause.start : clause.end]
            if "你" in text or "您" in text or _NOT_RETOLD.match(text):
                continue
            retold = self._trim(clause, _MIN_RETOLD)
            if retold and len(_MENTION.findall(retold)) <= 2 and retold not in taken:
                self._facts.holes["retold"] = retold.replace("我", "你")
                return


def quote_evidence(evidence: str) -> str | None:
    """A labelled clause as it can be quoted, verbatim; None where it cannot."""
    return _trim(evidence, fold(evidence), _MIN_THOUGHT, _MAX_THOUGHT)


def _trim(text: str, folded: str, shortest: int, longest: int) -> str | None:
    """A clause without a hanging beginning, or None where it cannot stand alone."""
    lexicon = load_lexicon()
    if lead := lexicon.lead.match(folded):
        text, folded = text[lead.end() :], folded[lead.end() :]
    while folded.endswith(lexicon.tails):
        folded = folded[: -len(next(word for word in lexicon.tails if folded.endswith(word)))]
    text = text[: len(folded)]
    if (
        not shortest <= len(text) <= longest
        or folded.startswith(lexicon.bad_starts)
        or folded.endswith(lexicon.bad_ends)
        or not _PLAIN.fullmatch(text)
        or _RISKY_LETTERS.search(folded)
        or lexicon.never.search(folded)
    ):
        return None
    return text
