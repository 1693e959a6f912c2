"""What a labeller is, and what needs no model: the answer's own words, and a vote.

Patterns are in `patterns`, trained models in `linear` and `encoder`, the language model in
`llm_labeller`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, Protocol

from cbtqa.distortions.taxonomy import Taxonomy, lift_id, ordinary_names, shipped_concepts
from cbtqa.records import DistortionLabel

Labels = tuple[DistortionLabel, ...]
VoteRule = Literal["majority", "any", "all"]


class Labeller(Protocol):
    """Patterns, or a trained model."""

    @property
    def name(self) -> str:
        """As in `DistortionLabel.labeller`, such as `patterns`."""

    @property
    def taxonomy(self) -> Taxonomy:
        """The closed set that every label id comes from."""

    def label(self, text: str) -> Labels:
        """The distortions of one text, most certain first; empty when none is found."""

    def label_many(self, texts: Iterable[str]) -> list[Labels]:
        """The same for many texts, in their order."""


_NO_NEGATION = re.compile(
    r"不(?:知不觉|自觉|由得?|妨|仅|只|光|少|小心|免|经意|过是|就是|正是)|忍不住|免不了|没准|差不多"
    r"|不(?:太|怎么)?(?:合理|公平|现实|舒服|安|好|够)|没有?(?:意识|察觉|发现|注意)到|是不是|会不会|有没有|算不算|能不能"
)
"""Holds a word of negation and denies nothing that follows."""
_NEGATED = re.compile(
    r"(?:不|没|并非|而非|别|勿|无需|避免|防止|摆脱|谈不上|算不上)[^，。！？；：\n]{0,12}$"
)
_NEGATED_AFTER = re.compile(
    r"^[”」』’\"']?[^，。！？；：\n]{0,4}(?:谈不上|算不上|说不上|倒没有|并不|不存在|是没有的)"
)
_NAMED_AS_TERM = re.compile(r"^(?:[”」』’\"']|的?(?:思维|认知|倾向|想法|陷阱|歪曲|扭曲|偏差|模式))")
_QUOTED = re.compile(r"[“「『‘\"'（(]$")


def labels_named_in(answer_text: str, taxonomy: Taxonomy) -> Labels:
    """Distortions that a running answer names, in the order named, each once.

    A name that is also an everyday word (放大, should) counts only in quotes, in brackets, or
    before a word such as 思维, unless it is the name that the taxonomy itself gives the type:
    prompts prescribe it. A name whose clause denies it (不是, 谈不上, 没有看到, 别) does not count.
    Evidence is None: the answer names the type but does not mark a span of the question.
    """
    prescribed = {kind.zh for kind in taxonomy.types}
    pattern, ids = _name_pattern(taxonomy)
    found: dict[str, None] = {}
    for match in pattern.finditer(answer_text):
        name, before = match.group().casefold(), answer_text[: match.start()]
        after = answer_text[match.end() :]
        if _NEGATED.search(_NO_NEGATION.sub("", before[-20:])) or _NEGATED_AFTER.match(after):
            continue
        is_term = _QUOTED.search(before) or _NAMED_AS_TERM.match(after)
        if name in ordinary_names() and name not in prescribed and not is_term:
            continue
        found.setdefault(ids[name])
    return tuple(DistortionLabel(id=type_id, labeller="answer") for type_id in found)


@lru_cache(maxsize=16)
def _name_pattern(taxonomy: Taxonomy) -> tuple[re.Pattern[str], dict[str, str]]:
    names: dict[str, str] = {}
    for concept in (*taxonomy.types, *shipped_concepts().values()):
        type_id = lift_id(concept.id, taxonomy)
        for name in map(str.casefold, concept.names if type_id is not None else ()):
            if len(name) > 1:
                names.setdefault(name, str(type_id))
    parts = [
        rf"(?<![a-z]){re.escape(name)}(?![a-z])" if name.isascii() else re.escape(name)
        for name in sorted(names, key=len, reverse=True)
    ]
    return re.compile("|".join(parts), re.IGNORECASE), names


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
