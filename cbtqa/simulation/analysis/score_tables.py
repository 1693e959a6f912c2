"""Tables with one row per session, as studies publish them, read without a flag.

    table = read_table(Path("parsed_evaluation_scores.csv"), settings)
    table.scores[0]        # an instrument and its SessionScore rows
    table.reading          # which column was taken for what

Instruments are found by their columns: all of `act_fm_item_1 .. 25`, `tes_item_1 .. 9`, or the
items' ids, names or words. Columns of the patient, arm and session, and the factors that names of
arms tell, are found by `score_tables.yaml`; a flag goes before. One error names all that is
missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from cbtqa.errors import DataError, UsageError
from cbtqa.files import read_rows
from cbtqa.records import NonEmptyText, Record
from cbtqa.simulation.analysis.scores import SessionScore, all_totals
from cbtqa.simulation.analysis.settings import AnalysisSettings, ColumnSettings, split_names
from cbtqa.simulation.instruments import Instrument, load_instrument, shipped_instruments
from cbtqa.simulation.study import shipped_yaml

MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "-"})
Rows = Sequence[tuple[str, Mapping[str, Any]]]
"""`file:line` and the cells of each row."""
_FLAGS = {"patient": "--patient-column", "arm": "--arm-column", "session": "--session-column"}
_FIRST_NUMBER = re.compile(r"\s*(\d+)(?:[_\-\s].*)?$")


class ArmPattern(Record):
    """What names of arms of one kind tell."""

    id: NonEmptyText
    pattern: NonEmptyText
    """Regular expression with a named group per factor, matched against the whole name."""
    levels: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Factor to the level that a text found stands for."""
    terms: str
    """Model of terms that these factors are for."""
    reference: tuple[str, ...] = ()
    """Levels that its intercept stands for."""

    def factors(self, arm: str) -> dict[str, str] | None:
        """Factor to level in lower case; None where the name does not match."""
        found = re.fullmatch(self.pattern, arm.lower())
        if found is None:
            return None
        texts = {name: text or "" for name, text in found.groupdict().items()}
        return {name: self.levels.get(name, {}).get(text, text) for name, text in texts.items()}

    def of_arms(self, arms: Iterable[str]) -> dict[str, dict[str, str]] | None:
        """The factors of every arm; None where a name does not match or a factor does not vary."""
        found = {arm: self.factors(arm) for arm in arms}
        known = {arm: levels for arm, levels in found.items() if levels is not None}
        if len(known) < len(found) or not known:
            return None
        names = next(iter(known.values()))
        varies = all(len({levels[name] for levels in known.values()}) > 1 for name in names)
        return known if varies else None


@cache
def _known() -> tuple[dict[str, list[str]], tuple[ArmPattern, ...]]:
    tree = shipped_yaml("score_tables.yaml")
    return tree["columns"], tuple(ArmPattern.model_validate(one) for one in tree["arms"])


@dataclass(frozen=True)
class ScoreTable:
    """A table's rows on every instrument that it holds."""

    scores: tuple[tuple[Instrument, tuple[SessionScore, ...]], ...]
    reading: tuple[str, ...]
    """Which columns were taken for what."""
    pattern: ArmPattern | None = None
    """What told the arms' factors; None where a flag or nothing did."""


@dataclass
class _Columns:
    """Columns that are used, by what they are; what is missing, in words."""

    names: Sequence[str]
    used: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Columns that were taken for nothing, where there are problems."""

    def free(self) -> list[str]:
        return [name for name in self.names if name not in self.used.values()]

    def take(self, what: str, named: str | None, *, is_needed: bool) -> None:
        """The column that a flag names, else the first of the known names that is there."""
        known = _known()[0].get(what, [])
        first = next((one for one in known if one in self.free()), None)
        found = first if named is None else named
        if found in self.names:
            self.used[what] = str(found)
        elif named is not None:
            self.problems.append(f"no column '{named}' ({_FLAGS.get(what, '--words-column')})")
        elif is_needed:
            self.problems.append(f"no column of the {what}: {' or '.join(known)} ({_FLAGS[what]})")


def read_table(
    path: Path, settings: AnalysisSettings, instruments: Sequence[str] = ()
) -> ScoreTable:
    """Scores of sessions from a table (CSV, TSV, JSONL, JSON, Parquet), one row per session.

    Args:
        instruments: only these; else all whose columns are there.

    Raises:
        DataError: `file:line:column` of a value that is no rating on the item's scale, missing
            columns (all of them), or no row at all.
        UsageError: `--item` names no such column or item; values fit several instruments.
    """
    rows = [(where, row) for where, row in read_rows(path)]
    if not rows:
        raise DataError("holds no row", where=str(path))
    columns = _Columns(list(rows[0][1]))
    columns.take("patient", settings.patient_column, is_needed=True)
    columns.take("arm", settings.arm_column, is_needed=True)
    columns.take("session", settings.session_column, is_needed=False)
    if settings.session_column is None:
        _drop_unless_numbers(columns, rows)
    if settings.words_column is not None:
        columns.take("words", settings.words_column, is_needed=True)
    forms = _find_forms(columns, rows, settings, instruments)
    if columns.problems:
        hint = f"other columns: {_some(columns.unknown, 12)}" if columns.unknown else ""
        hint += "; name a column by its flag, an item by --item 'COLUMN=item'"
        raise DataError("; ".join(columns.problems), where=str(path), hint=hint.lstrip("; "))
    arms = dict.fromkeys(_cell(row, columns.used["arm"]) for _, row in rows)
    pattern, factors = _factors(arms, settings, str(path))
    traits = _traits(rows, columns, settings)
    scores = tuple(
        (
            form,
            tuple(
                _score(where, row, number, columns.used, mapping, form, factors, traits)
                for number, (where, row) in enumerate(rows, 1)
            ),
        )
        for form, mapping in forms
    )
    return ScoreTable(scores, tuple(_reading(columns, forms, pattern)), pattern)


def _reading(
    columns: _Columns,
    forms: Sequence[tuple[Instrument, Mapping[str, str]]],
    pattern: ArmPattern | None,
) -> Iterator[str]:
    taken = set(columns.used.values())
    for what, name in columns.used.items():
        yield f"{what}: {name}"
    for form, mapping in forms:
        own = list(mapping)
        yield f"{form.id}: {len(own)} columns, {own[0]} to {own[-1]}"
        taken |= set(mapping)
    if pattern is not None:
        yield f"factors of arms: {pattern.id}"
    if unused := [name for name in columns.names if name not in taken]:
        yield f"not used: {_some(unused, 4)}"


def _some(names: Sequence[str], n: int) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


def _drop_unless_numbers(columns: _Columns, rows: Rows) -> None:
    """A column found by its name is the session's number only where every cell begins with one."""
    name = columns.used.get("session")
    if name is not None and not all(_FIRST_NUMBER.match(_cell(row, name)) for _, row in rows):
        if name == "session":
            return  # the plain name is meant: a cell that is no number is an error with its line
        del columns.used["session"]


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value).strip()


# --- instruments ---------------------------------------------------------------------------------

Forms = list[tuple[Instrument, dict[str, str]]]
"""Instruments, each with column to item."""


@dataclass(frozen=True)
class _Match:
    form: Instrument
    mapping: dict[str, str]
    """Column to item."""
    lacking: tuple[str, ...]
    """What there is no column for, or several."""
    is_numbered: bool
    """Whether columns are `..._item_1` and so on, which no other instrument has."""


def _find_forms(
    columns: _Columns, rows: Rows, settings: ColumnSettings, names: Sequence[str]
) -> Forms:
    named = [load_instrument(name) for name in names or shipped_instruments()]
    given = _given_items(columns.names, named, settings)
    matches = [_match(form, columns.free(), given) for form in named]
    whole = [one for one in matches if not one.lacking]
    partial = [one for one in matches if one.lacking and one.mapping]
    numbered = [one for one in partial if one.is_numbered and not _is_within(one, whole)]
    if names:
        wrong = [one for one in matches if one.lacking]
    elif whole or numbered:
        wrong = numbered
    else:
        wrong = sorted(partial, key=lambda one: len(one.lacking))[:1]
    columns.problems += [
        f"{one.form.id}: no column for {len(one.lacking)} of {len(one.form.items)} items: "
        f"{', '.join(one.lacking)}"
        for one in wrong
    ]
    if not whole and not wrong:
        columns.problems.append(f"no items of an instrument ({', '.join(shipped_instruments())})")
    if columns.problems:
        taken = {column for one in wrong for column in one.mapping}
        columns.unknown = [name for name in columns.free() if name not in taken]
        return []
    kept = whole if names else _without_doubles(whole, rows)
    return [(one.form, one.mapping) for one in kept]


def _given_items(
    names: Sequence[str], forms: Sequence[Instrument], settings: ColumnSettings
) -> dict[str, str]:
    """Column to item, as `--item` has it."""
    given: dict[str, str] = {}
    items = {item.id for form in forms for item in form.items}
    for entry in settings.item:
        column, _, item = entry.rpartition("=")
        if column not in names or item not in items:
            raise UsageError(
                f"--item {entry}: expected COLUMN=item",
                hint=f"items: {_some(sorted(items), 12)}; columns: {_some(names, 12)}",
            )
        given[column] = item
    return given


def _match(form: Instrument, free: Sequence[str], given: Mapping[str, str]) -> _Match:
    """Column to item: as `--item` has it, else `..._item_1` and so on in the form's order, else by
    the item's id or name, else by words that begin like the id's ("Focusing on Key Cognitions" is
    `focus`); each item once.
    """
    own = {column: item for column, item in given.items() if item in form.scales}
    left = [name for name in free if name not in given]
    numbered, lacking = _by_number(form, left)
    if numbered:
        taken = set(own.values())
        numbered = {column: item for column, item in numbered.items() if item not in taken}
        gaps = [name for name, item in lacking.items() if item not in taken]
        return _Match(form, own | numbered, tuple(gaps), is_numbered=True)
    mapping, gaps = dict(own), []
    for item in form.items:
        if item.id in mapping.values():
            continue
        exact = {item.id, item.name.en.lower(), item.name.zh}
        hits = [name for name in left if name.strip().lower() in exact]
        hits = hits or [name for name in left if _begins_alike(item.id, name)]
        if len(hits) == 1:
            mapping[hits[0]] = item.id
            left.remove(hits[0])
        else:
            gaps.append(f"{item.id} (in several: {', '.join(hits)})" if hits else item.id)
    return _Match(form, mapping, tuple(gaps), is_numbered=False)


def _by_number(form: Instrument, free: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Column to item where columns are numbered, and the columns that lack, with their item."""
    prefix = form.id.removesuffix("-ladder").replace("-", "_")
    wanted = {f"{prefix}_item_{k}": item.id for k, item in enumerate(form.items, 1)}
    by_name = {name.strip().lower(): name for name in free}
    found = {by_name[name]: item for name, item in wanted.items() if name in by_name}
    return found, {name: item for name, item in wanted.items() if name not in by_name}


def _is_within(one: _Match, whole: Sequence[_Match]) -> bool:
    """True when all its columns are those of an instrument that is there whole."""
    return any(set(one.mapping) <= set(other.mapping) for other in whole)


def _begins_alike(item: str, column: str) -> bool:
    """True when every word of the id begins a word of the column."""
    words = re.findall(r"[a-z0-9]+", column.lower())
    return all(any(word.startswith(part) for word in words) for part in item.split("_"))


def _without_doubles(whole: Sequence[_Match], rows: Rows) -> list[_Match]:
    """One instrument for the same columns: the one that takes more of them, or whose scale all
    values keep to."""
    kept: list[_Match] = []
    for one in sorted(whole, key=lambda match: -len(match.mapping)):
        rivals = [other for other in kept if set(other.mapping) & set(one.mapping)]
        if not rivals:
            kept.append(one)
            continue
        other = rivals[0]
        if len(other.mapping) > len(one.mapping):
            continue
        fits = [match for match in (other, one) if _fits(match, rows)]
        if len(fits) > 1:
            raise UsageError(
                f"the columns and values fit {other.form.id} and {one.form.id}",
                hint=f"name it: --instrument {other.form.id} or --instrument {one.form.id}",
            )
        kept[kept.index(other)] = fits[0] if fits else _widest(other, one)
    return kept


def _fits(match: _Match, rows: Rows) -> bool:
    for _, row in rows:
        for column, item in match.mapping.items():
            with suppress(ValueError):
                low, high = match.form.scales[item]
                if not low <= float(_cell(row, column)) <= high:
                    return False
    return True


def _widest(*matches: _Match) -> _Match:
    return max(matches, key=lambda one: max(item.high for item in one.form.items))


# --- rows ----------------------------------------------------------------------------------------


def _factors(
    arms: Iterable[str], settings: ColumnSettings, where: str
) -> tuple[ArmPattern | None, dict[str, dict[str, str]]]:
    """What told the factors, and arm to factor to level."""
    if names := split_names(settings.arm_factors):
        found = {}
        for arm in arms:
            parts = arm.split(settings.arm_separator)
            if len(parts) != len(names):
                text = f"arm '{arm}' has {len(parts)} parts at '{settings.arm_separator}'"
                raise DataError(f"{text}, expected {', '.join(names)}", where=where)
            found[arm] = dict(zip(names, parts, strict=True))
        return None, found
    for pattern in _known()[1]:
        if (levels := pattern.of_arms(arms)) is not None:
            return pattern, levels
    return None, {}


def _score(
    where: str,
    row: Mapping[str, Any],
    number: int,
    used: Mapping[str, str],
    mapping: Mapping[str, str],
    form: Instrument,
    factors: Mapping[str, Mapping[str, str]],
    traits: Mapping[str, Mapping[str, str]],
) -> SessionScore:
    values = {
        item: _rating(row.get(column), form.scales[item], f"{where}:{column}")
        for column, item in mapping.items()
    }
    arm, patient = _cell(row, used["arm"]), _cell(row, used["patient"])
    if not arm or not patient:
        raise DataError("an empty arm or patient", where=where)
    numbers = {"session": 1.0}
    if (name := used.get("session")) is not None:
        cell = _cell(row, name)
        leading = _FIRST_NUMBER.match(cell)
        numbers["session"] = _number(leading[1] if leading else cell, f"{where}:{name}")
    if (name := used.get("words")) is not None:
        numbers["words"] = _number(row.get(name), f"{where}:{name}")
    return SessionScore(
        session_id=f"row {number}",
        arm=arm,
        patient=patient,
        number=int(numbers["session"]),
        values=values,
        totals=all_totals(form, values),
        factors=factors.get(arm, {}),
        numbers=numbers,
        traits=traits.get(patient, {}),
    )


def _rating(value: object, scale: tuple[int, int], where: str) -> float | None:
    text = str(value).strip() if value is not None else ""
    if text.lower() in MISSING:
        return None
    number = _number(value, where)
    if not scale[0] <= number <= scale[1]:
        raise DataError(f"{text} is outside {scale[0]}-{scale[1]}", where=where)
    return number


def _number(value: object, where: str) -> float:
    with suppress(ValueError):
        number = float(str(value))
        if math.isfinite(number):
            return number
    raise DataError(f"{value!r} is no number", where=where)


# --- attributes of patients ----------------------------------------------------------------------


def _traits(rows: Rows, columns: _Columns, settings: AnalysisSettings) -> dict[str, dict[str, str]]:
    """Patient to attributes: of `--patients`, and of the table's own columns that `--by` names."""
    patients = list(dict.fromkeys(_cell(row, columns.used["patient"]) for _, row in rows))
    found: dict[str, dict[str, str]] = {patient: {} for patient in patients}
    if settings.patients is not None:
        found = read_traits(settings.patients, patients)
    for name in settings.by:
        if name not in columns.names:
            continue
        for where, row in rows:
            own, value = found[_cell(row, columns.used["patient"])], _cell(row, name)
            if own.setdefault(name, value) != value:
                text = f"{own[name]!r} before, and {value!r} here, for the same patient"
                raise DataError(text, where=f"{where}:{name}")
    return found


def read_traits(path: Path, patients: Sequence[str]) -> dict[str, dict[str, str]]:
    """Attributes of these patients from a file with a row each; its further patients are left out.

    Rows are named by the columns of a patient's id (`score_tables.yaml`, or `id`), and where there
    is none by their place: 1, 2 and so on, as in the profiles of arXiv 2509.09712.

    Raises:
        DataError: a patient is missing in it, or there twice.
    """
    rows = [row for _, row in read_rows(path)]
    ids = [one for one in ("id", *_known()[0]["patient"]) if rows and one in rows[0]]
    names = [_cell(row, ids[0]) if ids else str(place) for place, row in enumerate(rows, 1)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"patient '{twice[0]}' is there twice", where=str(path))
    found = {
        name: {key: str(value).strip() for key, value in row.items() if key not in ids[:1]}
        for name, row in zip(names, rows, strict=True)
    }
    if lacking := [one for one in patients if one not in found]:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        by = f"column {ids[0]}" if ids else "place"
        raise DataError(
            f"no patient {', '.join(lacking[:3])}{more} (patients are told by {by})",
            where=str(path),
        )
    return {one: found[one] for one in patients}
