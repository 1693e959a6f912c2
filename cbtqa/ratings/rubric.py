"""Rubrics: what raters are asked, on which scale, in which words. Each is a YAML file.

    rubric = load_rubric("cbt-llm")                # shipped, or the path of a file of your own
    rubric.criterion("relevance").high == 2

A criterion is a `scale` (a whole number from low to high, anchors on any of its points) or a
`mark` (present or not, as for distortion labels). Marks share one rule: as soon as one of a row's
marks is set, or `none` is, the others count as not present; a row with no mark at all is open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.errors import DataError
from cbtqa.files import parse_record, read_text
from cbtqa.plain_values import parse_yaml
from cbtqa.records import NonEmptyText, Record
from cbtqa.report.page import Lang, Phrase

Language = Lang
NO_MARK = "none"
"""The mark for none of the others."""


class Words(Phrase):
    """One text in Chinese and English; a missing one falls back to the other."""

    zh: str = ""
    en: str = ""

    @model_validator(mode="after")
    def _not_both_empty(self) -> Self:
        if not (self.zh.strip() or self.en.strip()):
            raise ValueError("needs a text in zh or en")
        return self

    def first(self, lang: Lang) -> str:
        """The text in this language, or in the other when it has none."""
        return super().first(lang) or self.zh or self.en

    def to(self, language: Language) -> str:
        return self.first(language)


class Section(Record):
    id: NonEmptyText
    title: Words
    weight: float = Field(default=1.0, gt=0)
    """Factor of this section's ratings inside a total, such as 0.75 for four items among threes."""


class Total(Record):
    """A sum or mean over the criteria of some sections."""

    id: NonEmptyText
    name: Words
    sections: tuple[str, ...] = Field(min_length=1)
    how: Literal["sum", "mean"] = "sum"
    max_missing: int = Field(default=0, ge=0)
    """So many criteria may lack a rating: the mean of the others then replaces them."""
    cutoff: float | None = None
    """Published point from which on a total counts as competent; None when there is none."""


class Criterion(Record):
    id: NonEmptyText = Field(pattern=r"^[a-z][a-z0-9_]*$")
    name: Words
    question: Words
    kind: Literal["scale", "mark"] = "scale"
    low: int = 0
    high: int = 1
    anchors: dict[int, Words] = Field(default_factory=dict)
    """What a point means; points without one lie between their neighbours."""
    section: str | None = None
    reversed: bool = False
    """True when a low rating is the good one; reversed inside totals only."""
    required: bool = True
    evidence: bool = False
    """True when raters may quote the words (or `#turn`) that they rest on."""
    silent: int | None = None
    """The point that says that nothing of the kind happened: there is nothing to quote."""
    not_applicable: Words | None = None
    """When there is nothing to rate; such an item is left without a value, and counted apart from
    those that could not be judged."""

    @model_validator(mode="after")
    def _scale_holds_together(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"{self.id}: low {self.low} is not below high {self.high}")
        if self.high - self.low > 100:
            raise ValueError(f"{self.id}: a scale of more than 101 points")
        if self.kind == "mark" and (self.low, self.high) != (0, 1):
            raise ValueError(f"{self.id}: a mark is 0 or 1")
        named = [*self.anchors, *(() if self.silent is None else (self.silent,))]
        outside = [point for point in named if not self.low <= point <= self.high]
        if outside:
            raise ValueError(f"{self.id}: anchor {outside[0]} lies outside {self.low}-{self.high}")
        return self

    @property
    def points(self) -> range:
        return range(self.low, self.high + 1)


class Rubric(Record):
    id: NonEmptyText = Field(pattern=r"^[a-z][a-z0-9-]*$")
    version: int = Field(ge=1)
    title: Words
    source: NonEmptyText
    """Whom the idea comes from; the wording is ours except in files of your own."""
    shows: Literal["answer", "question", "transcript"] = "answer"
    """What is rated: an answer under its question, the question itself, or a whole session."""
    guidelines: Words
    sections: tuple[Section, ...] = ()
    criteria: tuple[Criterion, ...] = Field(min_length=1)
    totals: tuple[Total, ...] = ()

    @model_validator(mode="after")
    def _references_resolve(self) -> Self:
        ids = [criterion.id for criterion in self.criteria]
        if doubled := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"criterion '{doubled[0]}' stands twice")
        known = {section.id for section in self.sections}
        used = {c.section for c in self.criteria if c.section is not None}
        wanted = used | {name for total in self.totals for name in total.sections}
        if wanted - known:
            raise ValueError(f"unknown section '{sorted(wanted - known)[0]}'")
        return self

    @property
    def sha256(self) -> str:
        """Hash of the content; comments and layout of the YAML do not count."""
        content = self.model_dump(mode="json")
        for criterion in content["criteria"]:  # rubrics without it keep the hash that they had
            if criterion["not_applicable"] is None:
                del criterion["not_applicable"]
        plain = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(plain.encode()).hexdigest()

    @property
    def versioned_id(self) -> str:
        return f"{self.id}.v{self.version}"

    @property
    def scales(self) -> tuple[Criterion, ...]:
        return tuple(one for one in self.criteria if one.kind == "scale")

    @property
    def marks(self) -> tuple[Criterion, ...]:
        return tuple(criterion for criterion in self.criteria if criterion.kind == "mark")

    def scale_text(self) -> str:
        """The scales in short, such as `0-2` or `marks`."""
        kinds = ["marks" if c.kind == "mark" else f"{c.low}-{c.high}" for c in self.criteria]
        return ", ".join(dict.fromkeys(kinds))

    def criterion(self, name: str) -> Criterion:
        """The criterion of this id, or a KeyError."""
        return {criterion.id: criterion for criterion in self.criteria}[name]

    def settle(
        self, values: Mapping[str, int | None], language: Language = "en"
    ) -> dict[str, int | None]:
        """Values with unset marks 0 once any mark is set.

        Raises:
            ValueError: `none` beside a mark, named in this language.
        """
        settled = {criterion.id: values.get(criterion.id) for criterion in self.criteria}
        set_marks = [mark.id for mark in self.marks if settled[mark.id] == 1]
        if NO_MARK in set_marks and len(set_marks) > 1:
            other = next(mark for mark in set_marks if mark != NO_MARK)
            names = [self.criterion(name).name.to(language) for name in (NO_MARK, other)]
            raise ValueError(f"'{names[0]}' and '{names[1]}' exclude each other")
        if set_marks:
            settled.update({mark.id: int(mark.id in set_marks) for mark in self.marks})
        return settled

    def parts_of(self, total: Total) -> list[tuple[Criterion, float]]:
        """The criteria that enter a total, each with its weight."""
        weights = {section.id: section.weight for section in self.sections}
        inside = [c for c in self.criteria if c.section in total.sections]
        return [(criterion, weights[str(criterion.section)]) for criterion in inside]

    def total_of(self, total: Total, values: Mapping[str, float | None]) -> float | None:
        """A total; None when more than `max_missing` of its ratings are missing.

        Reversed criteria enter reversed.
        """
        summed = present = whole = 0.0
        n_missing = 0
        for criterion, weight in self.parts_of(total):
            value = values.get(criterion.id)
            whole += weight
            if value is None:
                n_missing += 1
                continue
            turned = criterion.low + criterion.high - value if criterion.reversed else value
            summed, present = summed + weight * turned, present + weight
        if not present or n_missing > total.max_missing:
            return None
        if total.how == "mean":
            return summed / present
        return summed * whole / present if n_missing else summed

    def range_of(self, total: Total) -> tuple[float, float]:
        parts = self.parts_of(total)
        below = sum(weight for _, weight in parts) if total.how == "mean" else 1.0
        return (
            sum(weight * criterion.low for criterion, weight in parts) / below,
            sum(weight * criterion.high for criterion, weight in parts) / below,
        )

    def missing(self, values: Mapping[str, int | None]) -> list[str]:
        """Required criteria without a value, in order; of open marks only the first is named."""
        settled = self.settle(values)
        names = [c.id for c in self.criteria if c.required and settled[c.id] is None]
        marks = {mark.id for mark in self.marks}
        first = next((name for name in names if name in marks), None)
        return [name for name in names if name not in marks or name == first]


def parse_rubric(text: str, where: str, taxonomy: str | None = None) -> Rubric:
    """One rubric, or a DataError with the field; `taxonomy` replaces the one in `marks_from`."""
    return parse_record(Rubric, _with_marks(parse_yaml(text, where), taxonomy), where)


def _with_marks(raw: Any, taxonomy: str | None) -> Any:
    """`marks_from` replaced by one mark per type of a taxonomy, and `none`."""
    if not isinstance(raw, dict) or "marks_from" not in raw:
        return raw
    plain = {key: value for key, value in raw.items() if key not in ("marks_from", NO_MARK)}
    chosen = taxonomy or str(raw["marks_from"])
    loaded = load_taxonomy() if chosen == "default" else load_taxonomy(chosen)
    marks: list[dict[str, Any]] = [
        {
            "id": entry.id,
            "kind": "mark",
            "name": {"zh": entry.zh, "en": entry.en},
            "question": {"zh": entry.definition, "en": entry.definition_en},
            "evidence": True,
        }
        for entry in loaded.types
    ]
    marks.append({"id": NO_MARK, "kind": "mark", **raw.get(NO_MARK, {})})
    plain["criteria"] = [*plain.get("criteria", []), *marks]
    plain["source"] = f"{plain.get('source', '')}; taxonomy {loaded.id}: {loaded.citation}"
    return plain


@cache
def shipped_rubrics() -> Mapping[str, Rubric]:
    """Every rubric of the package by the name that `load_rubric` takes: its id, from the second
    version on with the version; `distortions` with the default taxonomy."""
    return {
        name.removesuffix(".yaml"): parse_rubric(text, name)
        for name, text in _shipped_texts().items()
    }


@cache
def _shipped_texts() -> Mapping[str, str]:
    folder = files("cbtqa.ratings") / "rubrics"
    return {
        entry.name: entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }


def load_rubric(name: str) -> Rubric:
    """A shipped rubric by name, such as `cbt-llm.v2`, or one of your own by the path of its YAML.

    `distortions:socialcd-12` fills the marks from that taxonomy (or the path of a taxonomy file).
    """
    base, _, taxonomy = name.partition(":")
    base = base.removesuffix(".v1")  # as reports name a first version
    if f"{base}.yaml" in _shipped_texts():
        return parse_rubric(_shipped_texts()[f"{base}.yaml"], f"{base}.yaml", taxonomy or None)
    if name.endswith((".yaml", ".yml")):
        return parse_rubric(read_text(Path(name)), name)
    raise DataError(
        f"no rubric '{name}'",
        hint="shipped: " + ", ".join(sorted(shipped_rubrics())) + "; or the path of a .yaml file",
    )
