"""What a labeller is, and what needs no model: the answer's own words, and a vote.

A labeller is anything that reads a text and names its distortions, with evidence. Patterns live
in `patterns`, trained models in `trained` and `encoder`, the language model in `llm_labeller`.

    labels_named_in("这有点像以偏概全。", load_taxonomy("burns-10"))[0].id == "overgeneralization"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal, Protocol

from cbtqa.distortions.taxonomy import Taxonomy, lift_id, ordinary_names, shipped_concepts
from cbtqa.records import DistortionLabel

Labels = tuple[DistortionLabel, ...]
VoteRule = Literal["majority", "any", "all"]


class Labeller(Protocol):
    """Patterns, or a trained model."""

    @property
    def name(self) -> str:
        """What stands in `DistortionLabel.labeller`, such as `patterns`."""

    @property
    def taxonomy(self) -> Taxonomy:
        """The closed set that every label id comes from."""

    def label(self, text: str) -> Labels:
        """The distortions of one text, most certain first; empty when none is found."""

    def label_many(self, texts: Iterable[str]) -> list[Labels]:
        """The same for many texts, in their order."""


# --- what an answer says -------------------------------------------------------------------------

_NEGATED = re.compile(r"(?:不是|并非|不算|不属于|没有|而非|不等于|避免|不再)[^，。！？；]{0,4}$")
_NAMED_AS_TERM = re.compile(r"^(?:[”」』’\"']|的?(?:思维|认知|倾向|想法|陷阱|歪曲|扭曲|偏差|模式))")
_QUOTED = re.compile(r"[“「『‘\"'（(]$")


def labels_named_in(answer_text: str, taxonomy: Taxonomy) -> Labels:
    """Distortions that a running answer names, in the order named, each once.

    A name that is also an everyday word (放大, should) counts only in quotes, in brackets, or
    before a word such as 思维; a name after 不是 does not count. Evidence is None: the answer
    names the type but does not mark a span of the question.
    """
    pattern, ids = _name_pattern(taxonomy)
    found: dict[str, None] = {}
    for match in pattern.finditer(answer_text):
        name, before = match.group().casefold(), answer_text[: match.start()]
        after = answer_text[match.end() :]
        if _NEGATED.search(before[-12:]):
            continue
        is_term = _QUOTED.search(before) or _NAMED_AS_TERM.match(after)
        if name in ordinary_names() and not is_term:
            continue
        found.setdefault(ids[name])
    return tuple(DistortionLabel(id=type_id, labeller="answer") for type_id in found)


@cache
def _cached_name_pattern(
    names: tuple[tuple[str, str], ...],
) -> tuple[re.Pattern[str], dict[str, str]]:
    longest_first = sorted((name for name, _ in names), key=len, reverse=True)
    parts = [
        rf"(?<![a-z]){re.escape(name)}(?![a-z])" if name.isascii() else re.escape(name)
        for name in longest_first
    ]
    return re.compile("|".join(parts), re.IGNORECASE), dict(names)


def _name_pattern(taxonomy: Taxonomy) -> tuple[re.Pattern[str], dict[str, str]]:
    names: dict[str, str] = {}
    for entry in taxonomy.types:
        for name in entry.names:
            names.setdefault(name.casefold(), entry.id)
    for finer in shipped_concepts().values():
        broader = lift_id(finer.id, taxonomy)
        for name in finer.names if broader is not None else ():
            names.setdefault(name.casefold(), str(broader))
    kept = {name: type_id for name, type_id in names.items() if len(name) > 1}
    return _cached_name_pattern(tuple(kept.items()))


# --- a vote --------------------------------------------------------------------------------------


def count_votes(ballot: Sequence[Labels], rule: VoteRule) -> Labels:
    """The outcome of one vote over one text.

    The evidence of a winning type is the surest voter's; its confidence is the mean over all
    voters, where a voter that does not give the type counts 0 and one without a figure 1.
    """
    needed = {"any": 1, "majority": len(ballot) // 2 + 1, "all": len(ballot)}[rule]
    by_type: dict[str, dict[int, DistortionLabel]] = {}
    for voter, labels in enumerate(ballot):
        for label in labels:
            given = by_type.setdefault(label.id, {})
            if voter not in given or _surety(label) > _surety(given[voter]):
                given[voter] = label
    won = []
    for type_id, given in by_type.items():
        if len(given) < needed:
            continue
        ranked = sorted(given.values(), key=_surety, reverse=True)
        evidence = next((label.evidence for label in ranked if label.evidence), None)
        confidence = sum(map(_surety, given.values())) / len(ballot)
        won.append(
            DistortionLabel(id=type_id, evidence=evidence, labeller="vote", confidence=confidence)
        )
    return tuple(sorted(won, key=_surety, reverse=True))


def _surety(label: DistortionLabel) -> float:
    return 1.0 if label.confidence is None else label.confidence
