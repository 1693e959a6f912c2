"""The small grammar that the template teacher's language is written in.

A part is one or more whole sentences in a YAML list:

    night & not bereaved => (夜里|夜深的时候)，<feeling>往往(来得更凶|更难挡)。

`(a|b)` is a choice, `<name>` a hole for a found fact, and what stands before `=>` are conditions:
facts that must hold, or after `not` must not. A part is only taken where its holes can be filled,
at most once in an answer, and rather not when a telling word of it was used before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from cbtqa.errors import DataError
from cbtqa.files import shipped_yaml

_NODE = re.compile(r"\((?P<options>[^()]*)\)|<(?P<hole>[a-z_0-9]+)>")
ONCE = frozenset({"core", "asked", "retold", "thought2", "span"})
"""Holes whose filling an answer repeats to the asker only once."""
_TRIES = 4
"""Random picks in a list before it is walked in order; more only cost time."""


class Hole(NamedTuple):
    name: str


Option = tuple[str, int]
"""One wording of a choice, and the bits of the telling words in it."""
Node = str | tuple[Option, ...] | Hole


class Part(NamedTuple):
    number: int
    """Its own in this language, so that one part is used once."""
    nodes: tuple[Node, ...]
    needs: int
    """Bits of the facts that must hold, those of its holes among them."""
    avoids: int
    echoes: int


@dataclass
class Lexis:
    """Gives every fact name and every telling word a bit.

    Args:
        echo_words: words that tire a reader when an answer says them twice.
    """

    echo_words: Sequence[str]
    facts: dict[str, int] = field(default_factory=dict)
    n_parts: int = 0

    def fact(self, name: str) -> int:
        """The bit of a fact, the same for the same name."""
        return self.facts.setdefault(name, 1 << len(self.facts))

    def echoes(self, text: str) -> int:
        return sum(1 << at for at, word in enumerate(self.echo_words) if word in text)

    def compile(self, source: str, where: str) -> Part:
        """One part; DataError for an open bracket, a choice of one, or a hole in a choice."""
        conditions, _, body = source.rpartition("=>")
        needs = avoids = 0
        for name in filter(None, (word.strip() for word in conditions.split("&"))):
            if name.startswith("not "):
                avoids |= self.fact(name[4:])
            else:
                needs |= self.fact(name)
        nodes: list[Node] = []
        at = 0
        body = body.strip()
        for match in _NODE.finditer(body):
            nodes.append(body[at : match.start()])
            at = match.end()
            if match["hole"]:
                nodes.append(Hole(match["hole"]))
                needs |= self.fact(match["hole"])
                continue
            options = match["options"].split("|")
            if len(options) < 2 or "<" in match["options"]:
                raise DataError(f"not a choice of plain wordings: {match[0]}", where=where)
            nodes.append(tuple((text, self.echoes(text)) for text in options))
        nodes.append(body[at:])
        plain = "".join(node for node in nodes if isinstance(node, str))
        if any(mark in plain for mark in "()<>|"):
            raise DataError(f"a bracket without its partner: {source}", where=where)
        self.n_parts += 1
        kept = tuple(node for node in nodes if node != "")
        return Part(self.n_parts, kept, needs, avoids, self.echoes(plain))


class Dice:
    """Numbers that depend on the seed alone, on every machine and Python version."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & 0xFFFFFFFFFFFFFFFF

    def roll(self, sides: int) -> int:
        """A number from 0 to `sides` - 1. Source: Knuth's MMIX generator, its high bits."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (self._state >> 33) % sides


class Writer:
    """Writes one answer: keeps what was used, so that nothing is said or quoted twice.

    Args:
        quotes: fillings of `<quote>`; each is used once, in order.
    """

    __slots__ = ("_dice", "_echoed", "_facts", "_holes", "_lexis", "_quotes", "_used")

    def __init__(
        self,
        lexis: Lexis,
        flags: Iterable[str],
        holes: Mapping[str, str],
        quotes: Sequence[str],
        seed: int,
    ) -> None:
        self._lexis, self._holes, self._dice = lexis, dict(holes), Dice(seed)
        self._quotes = list(reversed(quotes))
        self._facts = 0
        for name in (*flags, *holes, *(("quote",) if quotes else ())):
            self._facts |= lexis.facts.get(name, 0)
        self._used: set[int] = set()
        self._echoed = 0

    def fill(self, name: str, text: str) -> None:
        """Adds a filling that was itself written."""
        self._holes[name] = text
        self._facts |= self._lexis.fact(name)

    def chance(self, sides: int) -> bool:
        return self._dice.roll(sides) == 0

    def pick(self, pool: Sequence[Part]) -> Part | None:
        """An unused part whose conditions hold, at best one without an echo; None if there is none.

        A part that is picked counts as used.
        """
        n = len(pool)
        if not n:
            return None
        roll, echoed = self._dice.roll, self._echoed
        for _ in range(_TRIES):
            part = pool[roll(n)]
            if not part.echoes & echoed and self._fits(part):
                return self._take(part)
        start, second_best = roll(n), None
        for at in range(start, start + n):
            part = pool[at % n]
            if self._fits(part):
                if not part.echoes & echoed:
                    return self._take(part)
                second_best = second_best or part
        return self._take(second_best) if second_best else None

    def say(self, part: Part) -> str:
        """The part with its choices made and its holes filled."""
        said = []
        roll = self._dice.roll
        for node in part.nodes:
            if isinstance(node, str):
                said.append(node)
            elif isinstance(node, Hole):
                said.append(self._filling(node.name))
            else:
                text, echoes = node[roll(len(node))]
                if echoes:
                    if echoes & self._echoed:
                        fresh = (option for option in node if not option[1] & self._echoed)
                        text, echoes = next(fresh, (text, echoes))
                    self._echoed |= echoes
                said.append(text)
        return "".join(said)

    def _filling(self, name: str) -> str:
        if name == "quote":
            text = self._quotes.pop()
            if not self._quotes:
                self._facts &= ~self._lexis.fact(name)
            return text
        if name in ONCE:
            self._facts &= ~self._lexis.fact(name)
        return self._holes[name]

    def _fits(self, part: Part) -> bool:
        facts = self._facts
        return not (part.needs & ~facts or part.avoids & facts or part.number in self._used)

    def _take(self, part: Part) -> Part:
        self._used.add(part.number)
        self._echoed |= part.echoes
        return part


TOPIC_FILES = ("topics_love", "topics_people", "topics_work", "topics_self", "topics_life")
Pools = Mapping[str, tuple[Part, ...]]


PlannedKind = tuple[str, str, bool]
"""An item of a plan: `topic`, `type`, `type2`, `cue` or empty (for any topic); kind; optional."""


class Language:
    """All parts of `template/*.yaml`, compiled; a pool is a list of parts of one kind."""

    def __init__(self) -> None:
        general, crisis, types = _load("language"), _load("crisis"), _load("types")
        lexis = self.lexis = Lexis(general.pop("echoes"))
        self.plans = {
            "none": _pools(lexis, general.pop("plans"), "language.plans"),
            **{
                risk: _pools(lexis, steps, f"crisis.plans.{risk}")
                for risk, steps in crisis.pop("plans").items()
            },
        }
        """Risk -> step -> plans, each a part that lists kinds."""
        steps = (found for by_step in self.plans.values() for found in by_step.values())
        self.kinds_of_plan = {plan.number: _read_plan(plan) for found in steps for plan in found}
        self.topics: dict[str, Pools] = {}
        self.groups: dict[str, Pools] = {}
        for name in TOPIC_FILES:
            loaded = _load(name)
            for group, kinds in loaded.pop("groups").items():
                self.groups[group] = _pools(lexis, kinds, f"{name}.{group}")
            for topic, kinds in loaded.items():
                self.topics[topic] = _pools(lexis, kinds, f"{name}.{topic}")
        topics = _load("facts")["topics"]
        self.group_of = {topic: str(words["group"]) for topic, words in topics.items()}
        self.terms = {
            key: str(kinds.pop("term")) for key, kinds in types.items() if "term" in kinds
        }
        """Concept id -> a plainer Chinese name than the taxonomy's own."""
        self.shared = _pools(lexis, general, "language")
        self.crisis = _pools(lexis, crisis, "crisis")
        self.types = {
            key: _pools(lexis, {**kinds, "gist": [kinds["gist"]]}, f"types.{key}")
            for key, kinds in types.items()
        }


@cache
def load_language() -> Language:
    """The shipped language; a malformed part is a DataError that names file and list."""
    return Language()


def _pools(lexis: Lexis, kinds: Mapping[str, list[str]], where: str) -> Pools:
    return {
        kind: tuple(lexis.compile(part, f"template/{where}.{kind}") for part in parts)
        for kind, parts in kinds.items()
    }


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = shipped_yaml("cbtqa.dataset", f"template/{name}.yaml")
    return loaded


def _read_plan(plan: Part) -> tuple[PlannedKind, ...]:
    kinds = []
    for word in "".join(node for node in plan.nodes if isinstance(node, str)).split():
        source, _, kind = word.removesuffix("?").rpartition(".")
        kinds.append((source, kind, word.endswith("?")))
    return tuple(kinds)
