"""The pattern labeller: a readable rule file, compiled into one automaton.

`patterns.zh.yaml` holds the rules. The end of every phrase goes into one Aho-Corasick automaton; a
text is walked once, and only where a phrase ends are the phrase's beginning and its context looked
at: negation, conditions, what other people said, whom the clause is about. The evidence is the
clause that holds the hit.

    PatternLabeller().label("她们都在笑，我觉得自己就是个废物")[0].id == "labeling"
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ahocorasick
from pydantic import Field

from cbtqa.distortions.labellers import Labels
from cbtqa.distortions.taxonomy import Taxonomy, lift_id, load_taxonomy, shipped_concepts
from cbtqa.errors import DataError
from cbtqa.files import parse_record, read_text
from cbtqa.plain_values import parse_yaml
from cbtqa.records import DistortionLabel, NonEmptyText, Record

# --- clauses -------------------------------------------------------------------------------------
_CLAUSE_END = re.compile(
    r"[，。！？；：…,.!?;:~～　\t-\r\x1c-\x1f\x85\u2028\u2029]+|(?<=[^\x00-\x7f]) +(?=[^\x00-\x7f])"
)
_CLAUSE = re.compile(r"[^，。！？；：…,.!?;:~～　\s]+")
"""A clause of a text without spaces: the same as between `_CLAUSE_END`, in one pass."""
_SENTENCE_END = re.compile(r"(?:[。！？…\n\r!?]|\.(?=\s|$)|;{2,})+[”’」』\"')）]*")


Bounds: TypeAlias = Sequence[tuple[int, int]]
"""Starts and ends of parts of a text, in order."""


class Span(NamedTuple):
    """A part of a text, in code points; `end` is exclusive."""

    start: int
    end: int

    def of(self, text: str) -> str:
        return text[self.start : self.end]


def split_clauses(text: str) -> list[Span]:
    """Parts between punctuation marks, in order, without blanks at the ends; none is empty."""
    return [Span(*bound) for bound in clause_bounds(text)]


def clause_bounds(text: str) -> Bounds:
    """The same as plain pairs, which are faster to make."""
    if " " not in text:
        return [found.span() for found in _CLAUSE.finditer(text)]
    return _between(text, _CLAUSE_END, keep_mark=False)


def split_sentences(text: str) -> list[Span]:
    """Sentences with their closing marks, in order; none is empty."""
    return _between(text, _SENTENCE_END, keep_mark=True)


def _between(text: str, mark: re.Pattern[str], *, keep_mark: bool) -> list[Span]:
    spans, start = [], 0
    cuts = [(found.start(), found.end()) for found in mark.finditer(text)]
    for cut_start, cut_end in [*cuts, (len(text), len(text))]:
        part = text[start : cut_end if keep_mark else cut_start]
        if stripped := part.strip():
            start += len(part) - len(part.lstrip())
            spans.append(Span(start, start + len(stripped)))
        start = cut_end
    return spans


# --- patterns ------------------------------------------------------------------------------------
SHIPPED_RULES = "patterns.zh.yaml"
_MAX_EXPANSIONS = 1_000
"""Words that one phrase may put into the automaton; what goes before them is matched by regex. At
12 times as many the rules take 2.2 CPU seconds to load instead of 0.4, and find no faster."""
_MAX_IN_END = 12_000
"""Words that the last pieces of a phrase may stand for together: the context of a hit ends before
them. The rules were written and measured with this one."""
_CONTEXT_LENGTH = 24
"""Characters before a hit that its context is read from."""

_LONGEST_ACROSS = 40
"""Characters that a phrase over several clauses may span; assumed."""

_THIRD_PERSON = (
    "孩子|儿子|女儿|宝宝|学生|弟弟|妹妹|哥哥|姐姐|老公|老婆|丈夫|妻子|男朋友|女朋友|男友|女友|"
    "妈妈|爸爸|母亲|父亲|我妈|我爸|父母|爸妈|婆婆|公公|朋友|闺蜜|同学|同事|室友|舍友|领导|老师|"
    "来访者|他们|她们|别人|人家|有的人|有些人|家人|他|她"
)
_NEGATED = re.compile(
    r"(?:(?<!是)不是|并非|并不是|不觉得|不认为|没觉得|没有觉得|不再|从不|哪有|谁说|不会(?:觉得|认为)|"
    r"不想(?:当|做|成为)|不愿(?:当|做|成为)|不要|别|停止|避免|克服|摆脱)[^，。！？；,]{0,6}$"
)
_A_NOT_A = re.compile(r"(.)不\1")
_SUPPOSED = re.compile(r"(?:如果|要是|假如|倘若|假设|即使|就算|哪怕|除非)[^。！？；]{0,16}$")
_SAID_BY_OTHERS = re.compile(
    rf"(?:{_THIRD_PERSON}|大家|所有人|人)[^，。！？；,]{{0,6}}"
    r"(?:说|骂|吼|喊|批评|指责|数落|回复|告诉我|嫌|讽刺|骂我|说我)[^，。！？；,]{0,3}[:：，,]?[“\"'「]?[^，。！？；,]{0,3}$"
)
_ABOUT_OTHERS = re.compile(
    rf"(?:^|[，。！？；,\n])(?:我|我的|我家|我们|这个|有个)?(?:{_THIRD_PERSON})[^我。！？]*$"
)


class PatternRule(Record):
    id: NonEmptyText
    type: NonEmptyText
    """A concept id, or `distorted` where the rule cannot tell which."""
    confidence: float = Field(gt=0, le=1)
    """Which of several hits goes first, and below 0.5 no label; no probability."""
    says: tuple[NonEmptyText, ...]
    as_if: bool = False
    of_others: bool = False
    negated: bool = False
    across: bool = False
    """The phrase may reach over commas, back to the beginning of its sentence."""


class PatternHit(NamedTuple):
    rule: PatternRule
    span: Span
    """The last pieces of the phrase."""
    clause: Span


class _Trigger(NamedTuple):
    rule: PatternRule
    before: re.Pattern[str] | None
    """What must come before the hit in the same clause, its group 1 where the last pieces begin;
    None when the phrase is whole."""


class _Rules(NamedTuple):
    automaton: Any
    """Words to `(length, triggers)`."""
    rules: tuple[PatternRule, ...]
    words: Mapping[str, Sequence[str]]


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
        self._rules = _load_rules(rules_path)
        self._ids = {rule.type: lift_id(rule.type, self.taxonomy) for rule in self._rules.rules}

    @property
    def rules(self) -> tuple[PatternRule, ...]:
        return self._rules.rules

    @property
    def words(self) -> Mapping[str, Sequence[str]]:
        return self._rules.words

    def label(self, text: str, hits: Iterable[PatternHit] | None = None) -> Labels:
        """A label per type with its surest clause, surest first; `hits` as of `find_hits`.

        Without a confidence: a rule's own is an order among rules, and no probability of being
        right (measured, see docs/log.md).
        """
        best: dict[str, PatternHit] = {}
        for hit in self.find_hits(text) if hits is None else hits:
            type_id = self._ids[hit.rule.type]
            if type_id is None or hit.rule.confidence < self._min_confidence:
                continue
            held = best.get(type_id)
            if held is None or hit.rule.confidence > held.rule.confidence:
                best[type_id] = hit
        ranked = sorted(best.items(), key=lambda item: -item[1].rule.confidence)
        return tuple(
            # unchecked: right by construction, and checking costs a tenth
            DistortionLabel.model_construct(
                id=type_id,
                evidence=hit.clause.of(text),
                labeller=self.name,
                confidence=None,
            )
            for type_id, hit in ranked
        )

    def label_many(self, texts: Iterable[str]) -> list[Labels]:
        return [self.label(text) for text in texts]

    def find_hits(self, text: str, clauses: Bounds | None = None) -> list[PatternHit]:
        """Every place where a rule holds, in order; `clauses` are the text's, when known."""
        hits: list[PatternHit] = []
        starts: list[int] = []
        bounds: Bounds = ()
        for last, (length, triggers) in self._rules.automaton.iter(text):
            if not starts:
                bounds = clauses or clause_bounds(text)
                starts = [bound[0] for bound in bounds]
            start = last - length + 1
            clause = bounds[bisect_right(starts, start) - 1]
            for rule, before in triggers:
                begin, end_start, whole = start, start, clause
                if before is not None:
                    since = _sentence_start(text, start) if rule.across else clause[0]
                    found = before.search(text, since, start)
                    if found is None:
                        continue
                    begin, end_start = found.start(), found.start(1)
                    if begin < clause[0]:
                        whole = (bounds[bisect_right(starts, begin) - 1][0], clause[1])
                span = Span(end_start, last + 1)
                if _holds(rule, text, begin, span):
                    hits.append(PatternHit(rule, span, Span(*whole)))
        return hits


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
    if not rule.negated and (_NEGATED.search(context) or _ends_in_not(text, start)):
        return False
    if not rule.as_if and _SUPPOSED.search(context):
        return False
    if rule.of_others:
        return True
    if _SAID_BY_OTHERS.search(context):
        return False
    # a question such as 好不好 or 行不行: the phrase's 不好 is then no verdict
    if _A_NOT_A.fullmatch(text, max(0, end_piece.end - 3), end_piece.end):
        return False
    return "我" in text[start : end_piece.end] or not _ABOUT_OTHERS.search(context)


def _ends_in_not(text: str, start: int) -> bool:
    """A 不 right before the phrase, but not that of 是不是, 会不会 or 要不."""
    if start == 0 or text[start - 1] != "不":
        return False
    return start < 2 or text[start - 2] not in "是会要好能"


@cache
def _load_rules(path: Path | None) -> _Rules:
    if path is None:
        entry = files("cbtqa.distortions") / SHIPPED_RULES
        return _compile_rules(entry.read_text(encoding="utf-8"), SHIPPED_RULES)
    return _compile_rules(read_text(path), str(path))


def _compile_rules(text: str, where: str) -> _Rules:
    """DataError: not YAML, a bad rule, an unknown word class or type, or an empty phrase end."""
    raw = parse_yaml(text, where)
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
    end, cut = _first_of(last, _MAX_IN_END), _first_of(last, _MAX_EXPANSIONS)
    while cut > end and all("" in options for options in last[cut:]):
        cut -= 1
    ends = {"".join(parts) for parts in itertools.product(*last[cut:])}
    if "" in ends:
        raise DataError(f"the end of '{phrase}' may be empty", where=where)
    if not heads and not cut:
        return None, ends
    parts = ["".join(map(_either, head)) + f".{{0,{gap}}}?" for head in heads]
    pattern = "".join([*parts, *map(_either, last[:end]), "()", *map(_either, last[end:cut])])
    return _compiled(pattern + "$"), ends


def _first_of(pieces: list[list[str]], most: int) -> int:
    """Which piece begins the last ones that expand to at most `most` words together."""
    cut, size = len(pieces), 1
    while cut and size * len(pieces[cut - 1]) <= most:
        cut -= 1
        size *= len(pieces[cut])
    return cut


def _either(options: list[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, options))})"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
