"""Instruments for whole sessions: CTRS in two ladders, CTS-R, ACT-FM, TES; a form of safety.

    ctrs = load_instrument("ctrs")                       # the rubric that people rate on, too
    ctrs.totals({"agenda": 4, ...})[0].value             # None while an item is missing
    load_instrument("ctrs", wording=Path("ctrs-exact.yaml"))

One YAML file per instrument (`cbtqa/ratings/rubrics`) serves judges and people alike. Its wording
is ours: topics, short, cited. `wording` lays the exact text of a published form over it, for those
who may use it; ranges, groups and totals stay those of the instrument.

A missing item is missing: a total that lacks more items than its rule allows is None, with the
reason. Totals of different ladders are never compared (`comparable`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import Field

from cbtqa.errors import DataError
from cbtqa.files import parse_record, read_yaml
from cbtqa.ratings.rubric import Criterion, Rubric, Total, load_rubric, shipped_rubrics
from cbtqa.records import NonEmptyText, Record

OWN_WORDING = "cbtqa"
SAFETY = "session-safety"
"""The form that is rated beside every instrument, and added to none."""


class ItemWording(Record):
    """The words of one item; what is left out stays ours."""

    name: str | None = None
    question: str | None = None
    anchors: dict[int, str] = Field(default_factory=dict)


class Wording(Record):
    """A file with the exact words of a published form, in English."""

    instrument: NonEmptyText
    source: NonEmptyText
    """The form and the permission under which it is used."""
    guidelines: str | None = None
    items: dict[str, ItemWording] = Field(min_length=1)


class TotalScore(Record):
    instrument: NonEmptyText
    total: NonEmptyText
    value: float | None
    low: float
    """Lowest value on this ladder."""
    high: float
    reason: str | None = None
    """Why there is no value; None with one."""
    least: float | None = None
    """The total with every missing item at the end of its scale that makes it smallest."""
    most: float | None = None
    """The same at the other end; None where items are not known."""


@dataclass(frozen=True)
class Instrument:
    """A rubric for sessions, in the words chosen."""

    rubric: Rubric
    wording: str = OWN_WORDING
    """`cbtqa`, or the name of the file that the words came from."""
    plain: Rubric | None = None
    """The same in our words, where `rubric` holds a form's exact ones: what may be written out."""

    @property
    def printable(self) -> Rubric:
        """The rubric without foreign words, for folders that may be passed on."""
        return self.plain or self.rubric

    @property
    def id(self) -> str:
        """Such as `ctrs`; the same whatever the wording."""
        return self.rubric.id

    @property
    def items(self) -> tuple[Criterion, ...]:
        return self.rubric.criteria

    @cached_property
    def scales(self) -> dict[str, tuple[int, int]]:
        """Item to lowest and highest point."""
        return {item.id: (item.low, item.high) for item in self.items}

    @property
    def headline(self) -> Total:
        """The total that studies report first."""
        return self.rubric.totals[0]

    @property
    def scale(self) -> str:
        """Ladder in short, such as `11 x 0-6`: what must be equal for totals to be compared."""
        return f"{len(self.items)} x {self.rubric.scale_text()}"

    def totals(self, values: Mapping[str, float | None]) -> list[TotalScore]:
        """Every total of one session's item ratings, headline first.

        Raises:
            ValueError: an item of another instrument, or a value outside its scale.
        """
        self._check(values)
        return [self._total(total, values) for total in self.rubric.totals]

    def areas(self, values: Mapping[str, float | None]) -> list[TotalScore]:
        """The sum of each section, weighted: ACT-FM's areas 0-9, CTRS's two halves."""
        self._check(values)
        sections = self.rubric.sections
        areas = (Total(id=one.id, name=one.title, sections=(one.id,)) for one in sections)
        return [self._total(area, values) for area in areas]

    def items_of(self, name: str) -> list[str]:
        """The items that a total or an area adds up."""
        totals = [one for one in self.rubric.totals if one.id == name]
        sections = totals[0].sections if totals else (name,)
        return [item.id for item in self.items if item.section in sections]

    def _check(self, values: Mapping[str, float | None]) -> None:
        for item, value in values.items():
            if item not in self.scales:
                raise ValueError(f"{self.id} has no item '{item}'")
            low, high = self.scales[item]
            if value is not None and not low <= value <= high:
                raise ValueError(f"{self.id} {item}: {value:g} lies outside {low}-{high}")

    def _total(self, total: Total, values: Mapping[str, float | None]) -> TotalScore:
        low, high = self.rubric.range_of(total)
        value = self.rubric.total_of(total, values)
        gaps = [c.id for c, _ in self.rubric.parts_of(total) if values.get(c.id) is None]
        reason = f"no rating of {', '.join(gaps)}" if value is None else None
        least, most = (self._bound(total, values, at_most=at_most) for at_most in (False, True))
        return TotalScore(
            instrument=self.id,
            total=total.id,
            value=value,
            low=low,
            high=high,
            reason=reason,
            least=least,
            most=most,
        )

    def _bound(
        self, total: Total, values: Mapping[str, float | None], *, at_most: bool
    ) -> float | None:
        """A total with its missing items at their worst or best: what it can be at all."""
        filled = dict(values)
        for item, weight in self.rubric.parts_of(total):
            if filled.get(item.id) is None:
                is_high = at_most != item.reversed if weight >= 0 else at_most == item.reversed
                filled[item.id] = item.high if is_high else item.low
        return self.rubric.total_of(total, filled)


def shipped_instruments() -> list[str]:
    return [name for name, rubric in shipped_rubrics().items() if rubric.shows == "transcript"]


def load_instrument(name: str, wording: Path | None = None) -> Instrument:
    """A shipped instrument by id, or one of your own by the path of its rubric file.

    Args:
        wording: a file with exact words to lay over it; see `Wording`.

    Raises:
        DataError: no such instrument, or a wording that does not fit it.
    """
    try:
        rubric = load_rubric(name)
    except DataError as error:
        known = ", ".join(shipped_instruments())
        hint = f"shipped: {known}; or the path of a .yaml file"
        raise DataError(f"no instrument: {error}", hint=hint) from None
    if rubric.shows != "transcript" or rubric.marks or not rubric.totals:
        raise DataError(
            f"'{rubric.id}' is no instrument for sessions: it must show a transcript, hold scales "
            "only and have a total",
            hint=f"shipped: {', '.join(shipped_instruments())}",
        )
    if wording is None:
        return Instrument(rubric)
    worded = _with_wording(rubric, wording)
    return Instrument(worded, wording.name, rubric)


def _with_wording(rubric: Rubric, path: Path) -> Rubric:
    where = str(path)
    wording = parse_record(Wording, read_yaml(path), where)
    if wording.instrument != rubric.id:
        raise DataError(f"words of '{wording.instrument}', not of '{rubric.id}'", where=where)
    unknown = sorted(set(wording.items) - {item.id for item in rubric.criteria})
    if unknown:
        raise DataError(f"'{rubric.id}' has no item '{unknown[0]}'", where=f"{where}:items")
    plain = rubric.model_dump()
    for item in plain["criteria"]:
        words = wording.items.get(item["id"], ItemWording())
        exact = {"name": words.name, "question": words.question}
        item |= {field: {"en": text} for field, text in exact.items() if text is not None}
        if words.anchors:  # replaced as a whole, since ours may not fit beside them
            item["anchors"] = {point: {"en": text} for point, text in words.anchors.items()}
    if wording.guidelines is not None:
        plain["guidelines"] = {"en": wording.guidelines}
    plain["source"] = f"{rubric.source}; words: {wording.source}"
    return parse_record(Rubric, plain, where)
