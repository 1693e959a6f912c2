"""What one rater gave for one presentation, what is allowed, and the records it makes.

Both front ends write `Change`s: one field of one presentation set to one value. `check_change` is
the only judge of what is allowed, so a sheet and the form accept exactly the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from pydantic import Field, model_validator

from cbtqa.files import json_line
from cbtqa.ratings.rubric import Criterion
from cbtqa.ratings.study import StudyFolder, clean_text
from cbtqa.records import NonEmptyText, Record

VALUE, EVIDENCE = "value", "evidence"
NOTE, CANNOT_JUDGE, CRISIS = "note", "cannot_judge", "crisis"
MAX_TEXT = 10_000
"""Longest note or quote, in characters."""

Scalar = int | str | bool | None
Unrated = Literal["open", "cannot_judge"]


class Rating(Record):
    item_id: NonEmptyText
    question_id: NonEmptyText
    system: NonEmptyText
    """The system's name, or its letter while the study is blind."""
    rater: NonEmptyText
    criterion: NonEmptyText
    value: int | None
    """Inside `low` to `high`; None when there is no rating."""
    low: int
    high: int
    unrated_reason: Unrated | None = None
    """Why there is no value: not (yet) filled in, or the rater could not judge."""
    evidence: str | None = None
    note: str = ""
    is_crisis: bool = False
    """The rater raised the crisis flag on this item."""
    order: int = Field(ge=1)
    """Place in this rater's order."""
    repeat: int = Field(default=0, ge=0)
    """1 for the second showing of an item to the same rater."""
    phase: Literal["calibration", "main"] = "main"
    seconds: float | None = None
    """Active time on the whole item; None when the front end does not measure it."""

    @model_validator(mode="after")
    def _value_is_in_range_or_explained(self) -> Self:
        if self.value is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} lies outside {self.low}-{self.high}")
        if (self.value is None) == (self.unrated_reason is None):
            raise ValueError("a rating has either a value or a reason why it has none")
        return self


@dataclass(frozen=True)
class Change:
    """One field of one presentation set to one value; `None` takes it back."""

    code: str
    field: str
    """`value:<criterion>`, `evidence:<criterion>`, `note`, `cannot_judge` or `crisis`."""
    value: Scalar


@dataclass
class Answer:
    """The present state of one presentation."""

    values: dict[str, int | None] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)
    note: str = ""
    cannot_judge: bool = False
    crisis: bool = False
    seconds: float | None = None

    def get(self, name: str) -> Scalar:
        """The value of a field as `Change` names it; None when it is not set, or no field."""
        kind, _, criterion = name.partition(":")
        if kind == VALUE:
            return self.values.get(criterion)
        if kind == EVIDENCE:
            return self.evidence.get(criterion) or None
        if kind == NOTE:
            return self.note or None
        flags = {CANNOT_JUDGE: self.cannot_judge, CRISIS: self.crisis}
        return True if flags.get(kind) else None

    def set(self, name: str, value: Scalar) -> None:
        """Takes over a change that `check_change` has passed."""
        kind, _, criterion = name.partition(":")
        if kind == VALUE:
            self.values[criterion] = _as_int(value)
        elif kind == EVIDENCE:
            self.evidence[criterion] = str(value or "")
        elif kind == NOTE:
            self.note = str(value or "")
        else:
            setattr(self, kind, bool(value))


def check_change(
    folder: StudyFolder, rater: str, change: Change, answer: Answer | None = None
) -> Change:
    """The change in its stored form, or a ValueError; `answer` is the presentation's state."""
    shown = folder.by_code.get(change.code)
    if shown is None or shown.rater != rater:
        raise ValueError(f"{change.code} is not in the plan of {rater}")
    kind, _, name = change.field.partition(":")
    if kind == VALUE:
        criterion, value = _criterion(folder, name), change.value
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (is_whole and value in criterion.points):
            expected = f"a whole number from {criterion.low} to {criterion.high}"
            raise ValueError(f"found {value!r}, expected {expected}")
        values = {**(answer.values if answer else {}), name: _as_int(change.value)}
        folder.rubric.settle(values, folder.study.language)
        return change
    if kind == EVIDENCE:
        if not _criterion(folder, name).evidence:
            title = _criterion(folder, name).name.to(folder.study.language)
            raise ValueError(f"'{title}' takes no evidence")
        text = _checked_text(change.value)
        if text and not folder.item_of(shown).quotes(text):
            raise ValueError("the evidence does not occur in the text shown")
        return Change(change.code, change.field, text)
    if change.field == NOTE:
        return Change(change.code, NOTE, _checked_text(change.value))
    if change.field in (CANNOT_JUDGE, CRISIS):
        if not (change.value is None or isinstance(change.value, bool)):
            raise ValueError(f"found {change.value!r}, expected yes or no")
        return Change(change.code, change.field, True if change.value else None)
    raise ValueError(f"unknown field '{change.field}'")


def _criterion(folder: StudyFolder, name: str) -> Criterion:
    try:
        return folder.rubric.criterion(name)
    except KeyError:
        raise ValueError(f"no criterion '{name}' in {folder.study.rubric}") from None


def _as_int(value: Scalar) -> int | None:
    return None if value is None else int(value)


def _checked_text(value: Scalar) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"found {value!r}, expected text")
    text = clean_text(value)
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} characters; at most {MAX_TEXT} are kept")
    return text or None


def is_done(folder: StudyFolder, answer: Answer | None) -> bool:
    """True when nothing required is open, or the rater cannot judge."""
    if answer is None:
        return False
    try:
        return answer.cannot_judge or not folder.rubric.missing(answer.values)
    except ValueError:
        return False


def make_ratings(folder: StudyFolder, answers: Mapping[str, Answer]) -> list[Rating]:
    """Every rating of the study, open ones included, alike whatever front end they came through."""
    systems = folder.names_of_arms()
    ratings = []
    for shown in folder.plan:
        item, answer = folder.item_of(shown), answers.get(shown.code, Answer())
        try:
            settled = folder.rubric.settle(answer.values)
        except ValueError:
            # two front ends that wrote at the same moment: contradicting marks count as open
            marks = {mark.id for mark in folder.rubric.marks}
            kept = {name: value for name, value in answer.values.items() if name not in marks}
            settled = folder.rubric.settle(kept)
        for criterion in folder.rubric.criteria:
            value = None if answer.cannot_judge else settled[criterion.id]
            reason: Unrated = "cannot_judge" if answer.cannot_judge else "open"
            ratings.append(
                Rating(
                    item_id=item.id,
                    question_id=item.question_id,
                    system=systems[item.arm],
                    criterion=criterion.id,
                    value=value,
                    low=criterion.low,
                    high=criterion.high,
                    unrated_reason=reason if value is None else None,
                    evidence=answer.evidence.get(criterion.id) or None,
                    note=answer.note,
                    is_crisis=answer.crisis,
                    seconds=answer.seconds,
                    **shown.model_dump(include={"rater", "order", "repeat", "phase"}),
                )
            )
    return ratings


def digest_ratings(ratings: Iterable[Rating]) -> str:
    """Hash of the ratings themselves; system names and times do not enter."""
    digest = hashlib.sha256()
    for rating in ratings:
        plain = rating.model_dump(include={"item_id", "rater", "criterion", "value", "repeat"})
        digest.update(json_line(plain).encode())
    return digest.hexdigest()
