"""What a question says for certain, and nothing that it does not say.

The template teacher knows no more of a question than stands here: what kind of thing is asked,
whom it is about, a topic where title and description agree, a feeling and one clause of the
asker's own. Where the words leave a doubt, the fact is left out and the answer stays general.

    reading = read_question(Question(id="q", question="怕被拒绝，怎么争取自己想要的？"))
    reading.facts  # {"how", "self", "fear", ...}
    reading.holes  # {"thought": "怕被拒绝"}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from cbtqa.files import shipped_yaml
from cbtqa.records import Question
from cbtqa.safety.normalise import fold

READ_AT_MOST = 1_500
"""Characters of a question that are read; PsyQA's longest description has 400."""
_LONG_TITLE = 60
_MAX_TOLD, _MIN_TOLD = 36, 5
_MIN_THOUGHT, _MAX_THOUGHT, _MAX_EVIDENCE = 5, 22, 26
_SOME_HAN = re.compile(r"(?:[\u4e00-\u9fff][^\u4e00-\u9fff]*){5}")
_CLAUSE_END = re.compile(r"[,。!?;:…\n\r\t.~ ]+")
_SENTENCE_END = re.compile(r"[。!?…\n]|\.{2,}")
_PLAIN = re.compile(r"[\u4e00-\u9fff，、0-9a-zA-Z]+")


BETWEEN = frozenset({"breakup", "quarrel", "distance", "inlaws", "parents", "teased", "leftout"})
"""Topics between the asker and others; the rest are of the asker alone."""
_DENIED_OR_OTHERS = re.compile(
    "[不没别].{0,2}$|(?:[妈爸他她]|别人|老公|老婆|孩子|老师|同学|朋友)[^我]*$"
)
_TOLD_BY_OTHERS = re.compile("说|骂|以为|如果|要是|告诉我|担心|怕")
CARED_FOR = frozenset({"child", "pupil", "sibling"})
"""Roles whose trouble is theirs without more words."""
NOT_THE_ASKER = ("他", "她", "对方", "别人")
HANGING = (*"他她这那还都也就又而但可并", "或者", "所以", "因为")
"""Beginnings that hang on the sentence before."""
_SENTENCE = re.compile(r"[^。!?…\n]+[。!?…\n]*")
_ASKS = re.compile("[?]|怎么办|请问|该怎么|该如何")
_NOT_FELT = re.compile("[不没](?:怕|累|烦|哭|担心|难受|难过|焦虑|紧张|痛苦|崩溃|后悔|着急)")
_AT_RISK = re.compile(
    "(?:说|想|要|闹|喊|威胁|有).{0,8}(?:不想活|想?死|自杀|轻生|不活|跳楼|自残|自伤|想走)"
)
_TO_ME = (
    "(?:说|骂|数落|催|忘|不理|管|嫌|逼|让|骗|冷|欺负|孤立|针对|欠|借|不?回|叫|打压|翻|盯|拉黑)"
    ".{0,4}我"
)
_OF_OTHERS = re.compile("(?:[他她]|的人|妈|爸|孩子|儿子|女儿|老公|老婆|对方)[^我]*$")
_GREETING = re.compile(
    "^(?:(?:各位|大家|老师|专家|你|您)?好?|求助|请问|想请?问(?:一?下)?(?:大家)?)[，,：:、 ]+"
    "|^(?:请问|想请?问(?:一?下)?(?:大家|各位)?)"
)
_OF_SELF = re.compile("我|自己|不能|不会|不好|麻烦|讨厌")


class Reading(NamedTuple):
    facts: frozenset[str]
    """Names of what holds: kind of question, role, topic, what kind of clause is quoted."""
    holes: Mapping[str, str]
    """Words to put into an answer: `told` (the title), `thought`, `feeling`, `who`."""


class _Clause(NamedTuple):
    start: int
    end: int
    opens_sentence: bool
    mark: str
    """Folded punctuation that ends it; empty at the end of the text."""


class _Words:
    """The shipped patterns, compiled."""

    def __init__(self) -> None:
        raw: dict[str, Any] = shipped_yaml("cbtqa.dataset", "template/words.yaml")
        # verbose, because long patterns are folded over several lines
        plain = {
            name: re.compile(pattern, re.VERBOSE)
            for name, pattern in raw.items()
            if isinstance(pattern, str)
        }
        self.pattern: Mapping[str, re.Pattern[str]] = plain
        self.asks = _compiled(raw["asks"])
        self.thoughts = _compiled(raw["thought"])
        self.guarded = _compiled(raw["guarded"])
        self.topics = {name: _compiled(pair) for name, pair in raw["topics"].items()}
        self.said: Mapping[str, str] = raw["said"]
        self.roles = {word: role for role, words in raw["people"].items() for word in words}
        people = "|".join(sorted(self.roles, key=len, reverse=True))
        self.person = re.compile(f"(?!{raw['not_people']})(?:{people})")
        self.subject = re.compile(f"(?:{raw['before_subject']})({people})", re.VERBOSE)
        feelings = "|".join(f"(?P<{noun}>{words})" for noun, words in raw["feelings"].items())
        self.feeling = re.compile(
            rf"(?:^|[^不没别])(?:觉得|感觉|感到|很|特别|非常|十分|极度|好|真的|太)(?:{raw['degree']})(?:{feelings})"
        )
        self.sure_rules = _compiled(raw["sure_rules"])


def _compiled(patterns: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern, re.VERBOSE) for name, pattern in patterns.items()}


@cache
def load_words() -> _Words:
    """The shipped patterns."""
    return _Words()


def read_question(question: Question) -> Reading:
    """Every fact of a question that an answer may depend on."""
    return _Reader(question).read()


def is_sure_label(rule_id: str, text: str, start: int, end: int) -> bool:
    """Whether a hit of the pattern labeller is of a kind that is right in 8 places of 10.

    The clause must be the asker's own statement about the asker, and fit to be quoted whole.
    """
    words, clause = load_words(), text[start:end]
    rule = words.sure_rules.get(rule_id)
    if rule is None or len(clause) > _MAX_EVIDENCE or not rule.search(clause):
        return False
    if not _PLAIN.fullmatch(clause) or words.pattern["never_label"].search(clause):
        return False
    sentence = fold(text[max(0, start - 60) : end + 60])
    place = min(start, 60)
    before = _SENTENCE_END.split(sentence[:place])[-1]
    ending = _SENTENCE_END.search(sentence, place + end - start)
    is_asked = ending is not None and ending[0].startswith("?")
    return not is_asked and not _TOLD_BY_OTHERS.search(before)


class _Reader:
    def __init__(self, question: Question) -> None:
        self._words = load_words()
        self._title, self._told = _split(question)
        self._folded_title, self._folded = fold(self._title), fold(self._told)
        self._keywords = ",".join(question.keywords)
        self._title_clauses = _clauses(self._folded_title)
        self._clauses = _clauses(self._folded)
        self._facts: set[str] = set()
        self._holes: dict[str, str] = {}

    def read(self) -> Reading:
        facts, words = self._facts, self._words
        whole = f"{self._folded_title}\n{self._folded}"
        if not _SOME_HAN.search(whole):
            return Reading(frozenset({"unclear", "self"}), {})
        facts.add(self._read_ask())
        if re.search("我|自己", self._folded_title):
            facts.add("mine")
        facts.add(self._read_role())
        # a death in passing is no question about grief, but violence is never passed over
        for name, pattern in words.guarded.items():
            if pattern.search(self._folded_title if name in {"pet", "grief"} else whole):
                facts.add(name)
        if not facts & set(words.guarded):
            self._read_topic()
        read = _NOT_FELT.sub("", whole)
        for name in ("distress", "hinted", "tell_child", "treated"):
            if words.pattern[name].search(read):
                facts.add(name)
        for name in ("speak", "state", "luck"):
            if words.pattern[name].search(self._folded_title):
                facts.add(name)
        for name in ("impact", "severe"):
            hits = words.pattern[name].finditer(read)
            starts = [read[max(0, hit.start() - 15) : hit.start()] for hit in hits]
            if not all(_OF_OTHERS.search(before) for before in starts):
                facts.add(name)
        if words.pattern["minor"].search(whole) and not words.pattern["adult"].search(whole):
            facts.add("minor")
        self._read_told()
        self._read_thought()
        self._read_feeling()
        return Reading(frozenset(facts | set(self._holes)), self._holes)

    # --- what is asked, and whom it is about ------------------------------------------------------

    def _read_ask(self) -> str:
        asks = self._words.asks
        for name, pattern in asks.items():
            if pattern.search(self._folded_title.rstrip(" ?!。,~.")):
                self._facts.add("asked")
                return name
        for sentence in reversed(_SENTENCE.findall(self._folded)[-3:]):
            if not _ASKS.search(sentence):
                continue
            for name in ("why", "how", "whether"):
                if asks[name].search(sentence.rstrip("?!。…\n ")):
                    return name
        return "tell"

    def _read_role(self) -> str:
        """`self`, `with` (the asker and somebody), or `other` (somebody else's trouble)."""
        words, title = self._words, self._folded_title
        person = words.person.search(title)
        patterns = words.pattern
        teaches = patterns["teaching"].search(f"{title},{self._folded},{self._keywords}")
        is_of_class = re.search("学生|课|班级|班会", title) and "我" not in title
        if teaches and is_of_class and "how" in self._facts:
            return self._other("学生")
        if person is None:
            return self._role_by_description()
        who = person[0]
        told = patterns["asking"].sub("", title)
        if len(set(words.person.findall(title))) == 1:
            if re.search(f"被[^,]{{0,4}}{who}|{who}[^,]{{0,10}}{_TO_ME}", told):
                self._facts.add("acted")
            elif re.search(f"(?:和|跟|与|对|讨厌|受不了|烦)[^,]{{0,4}}{who}", told):
                self._facts.add("between")
        is_theirs = words.roles[who] in CARED_FOR or patterns["trouble"].search(title)
        if re.search("(?:安慰|帮|劝|陪|照顾|开导).{0,2}(?:他|她)", title) or (
            is_theirs and patterns["helping"].search(title) and not patterns["both"].search(title)
        ):
            return self._other(who)
        for clause in _CLAUSE_END.split(told)[:1]:
            found = words.subject.match(clause)
            if found is None or patterns["both"].search(title) or words.roles[found[1]] == "ex":
                continue
            theirs = words.roles[found[1]] in CARED_FOR or patterns["trouble"].search(clause)
            if theirs and not re.search("我|自己", told[found.end(1) :]):
                return self._other(found[1])
        self._holes["who"] = words.said.get(who, who)
        self._facts.add(words.roles[who])
        return "with"

    def _role_by_description(self) -> str:
        """Another's trouble where the title names nobody and the description hardly the asker."""
        if re.search("我|自己", self._folded_title):
            return "self"
        words = self._words
        clauses = [one for one in _CLAUSE_END.split(self._folded) if one]
        subjects = [found for one in clauses if (found := words.subject.match(one))]
        n_other = len(subjects) + sum(one.startswith(("他", "她")) for one in clauses)
        n_self = sum(one.startswith("我") and not words.subject.match(one) for one in clauses)
        first = words.subject.match(clauses[0]) if clauses else None
        if first and "我" not in clauses[0][first.end(1) :] and n_other > max(1, 2 * n_self):
            return self._other(subjects[0][1])
        return "self"

    def _other(self, who: str) -> str:
        words = self._words
        self._holes["who"] = words.said.get(who, who)
        self._facts.add(words.roles[who])
        if _AT_RISK.search(f"{self._folded_title},{self._folded}"):
            self._facts.add("for_another")
        return "other"

    def _read_topic(self) -> None:
        """The first topic that title and description agree on."""
        if self._facts & {"other", "fact", "thanks", "angry"}:
            return
        told = f"{self._folded},{self._keywords}"
        own = ",".join(self._own_part(one) for one in _CLAUSE_END.split(self._folded_title))
        for name, patterns in self._words.topics.items():
            # a question of one line has nothing that could disagree
            if patterns["title"].search(self._folded_title if name in BETWEEN else own) and (
                not self._folded.strip() or patterns["told"].search(told)
            ):
                self._facts.update((name, "topic"))
                return

    def _own_part(self, clause: str) -> str:
        """What a clause of the title says of the asker: of one about another, the part from 我."""
        found = self._words.subject.match(clause)
        if found is None:
            return clause
        at = clause.find("我", found.end())
        return clause[at:] if at >= 0 else ""

    # --- words to hold up -------------------------------------------------------------------------

    def _read_told(self) -> None:
        """The title as it stands, or its last sentence, where that is fit to be quoted."""
        bare = _GREETING.sub("", self._title.strip())
        parts = [part.strip(" ,，、") for part in re.split(r"[。！？!?\n]", bare)]
        parts = [part for part in parts if part]
        whole = parts[0] if len(parts) == 1 else ""
        asks = self._words.asks
        asking = [one for one in parts if any(found.search(fold(one)) for found in asks.values())]
        for text in (whole, *reversed(asking), *parts[:1]):
            is_sayable = _MIN_TOLD <= len(text) <= _MAX_TOLD and _PLAIN.fullmatch(text)
            is_cut = text is not whole and text.startswith(HANGING)
            never = self._words.pattern["title_never"]
            if is_sayable and not is_cut and not never.search(fold(text)):
                self._holes["told"] = text
                return

    def _read_thought(self) -> None:
        """One whole clause of the asker's own that says a fear, a view, or what cannot be done."""
        if self._facts & {"other", "mind", "ill", "choose", "meaning", "either", "fact", "thanks"}:
            return
        found: dict[str, tuple[int, str, bool]] = {}
        for text, folded, clauses, is_title in (
            (self._title, self._folded_title, self._title_clauses, True),
            (self._told, self._folded, self._clauses, False),
        ):
            for clause, said in self._own_clauses(text, folded, clauses):
                kind = self._kind_of(said)
                # what is said of oneself weighs more than what is said of things
                weight = len(_OF_SELF.findall(clause[1:])) + is_title
                if kind and weight > found.get(kind, (-1,))[0]:
                    found[kind] = weight, clause, is_title
        for kind in self._words.thoughts:
            if kind in found:
                self._facts.add(kind)
                _, self._holes["thought"], is_title = found[kind]
                if is_title:
                    self._holes.pop("told", None)
                return

    def _kind_of(self, clause: str) -> str | None:
        for kind, pattern in self._words.thoughts.items():
            if pattern.search(clause):
                return kind
        return None

    def _own_clauses(
        self, text: str, folded: str, clauses: list[_Clause]
    ) -> Iterator[tuple[str, str]]:
        """Clauses of the asker's own that keep their sense alone: verbatim and folded."""
        patterns = self._words.pattern
        is_others = False
        """Whether somebody else is the subject of the sentence so far."""
        before = ""
        for at, (start, end, opens_sentence, mark) in enumerate(clauses):
            said = folded[start:end]
            if opens_sentence:
                is_others, before = False, ""
            lead = patterns["lead"].match(said)
            cut = lead.end() if lead else 0
            body = said[cut:]
            is_other = self._words.subject.match(body) or body.startswith(NOT_THE_ASKER)
            is_others = bool(is_other) or (is_others and not body.startswith("我"))
            hangs, before = patterns["opens"].search(before), said
            if is_others or hangs or not patterns["own_start"].match(body):
                continue
            if not _MIN_THOUGHT <= len(body) <= _MAX_THOUGHT or "?" in mark or ":" in mark:
                continue
            if patterns["never_quoted"].search(body) or patterns["bad_end"].search(body):
                continue
            after = clauses[at + 1] if at + 1 < len(clauses) else None
            flows_on = after is not None and not after.opens_sentence
            if after and flows_on and patterns["turns"].search(folded[after.start : after.end]):
                continue
            if _PLAIN.fullmatch(quoted := text[start + cut : end]):
                yield quoted, body

    def _read_feeling(self) -> None:
        """A feeling that the asker names as an own one, in a clause about nobody else."""
        if self._facts & {"other", "thanks", "light", "fact"}:
            return
        words = self._words
        for folded, clauses in (
            (self._folded_title, self._title_clauses),
            (self._folded, self._clauses),
        ):
            if not words.feeling.search(folded):
                continue
            is_others = False
            for start, end, opens_sentence, mark in clauses:
                clause = folded[start:end]
                starts_other = bool(words.subject.match(clause)) or clause[:1] in "他她它"
                is_others = starts_other or (is_others and not opens_sentence)
                if clause.startswith("我") and not starts_other:
                    is_others = False
                if is_others or "?" in mark or words.pattern["opens"].search(clause):
                    continue
                found = words.feeling.search(clause)
                if found and not _DENIED_OR_OTHERS.search(clause[: found.start() + 1]):
                    self._holes["feeling"] = str(found.lastgroup)
                    return


def _split(question: Question) -> tuple[str, str]:
    """Title and description; of a text that came as one long title, its last question is it."""
    title, told = question.question, question.description[:READ_AT_MOST]
    if len(title) <= _LONG_TITLE or told:
        return title[:READ_AT_MOST], told
    title = title[:READ_AT_MOST]
    ends = [found.end() for found in re.finditer(r"[。！？!?\n]", title)]
    starts = [0, *(end for end in ends if end < len(title.rstrip()))]
    last = title[starts[-1] :]
    return (last, title[: starts[-1]]) if len(starts) > 1 and len(last) <= 80 else (title, title)


def _clauses(folded: str) -> list[_Clause]:
    clauses, start, opens = [], 0, True
    for match in _CLAUSE_END.finditer(folded):
        if match.start() > start:
            clauses.append(_Clause(start, match.start(), opens, match[0]))
            opens = False
        opens = opens or bool(_SENTENCE_END.search(match[0]))
        start = match.end()
    if start < len(folded):
        clauses.append(_Clause(start, len(folded), opens, ""))
    return clauses
