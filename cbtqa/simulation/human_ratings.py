"""Ratings of sessions by people, from `cbtqa rate`, as the same records that judges leave.

    name, ratings = read_people(Path("study/report/ratings.jsonl"), instruments, sessions)

In a rating study a session is named by its patient and its arm (`profile`, or `profile/s2/r1`
where a patient has several), or by the session's own id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError, UsageError
from cbtqa.files import read_rows
from cbtqa.records import ItemRating, Session
from cbtqa.simulation.instruments import Instrument

WANTED = ("system", "rater", "criterion", "value", "low", "high")
Row = tuple[str, dict[str, Any]]
"""Where a row stands, and what it holds."""


def read_people(
    path: Path, instruments: Sequence[Instrument], sessions: Sequence[Session]
) -> tuple[str, list[ItemRating]]:
    """The instrument that people rated on, and their ratings of these sessions.

    The form is known by its items and their ranges: CTRS and CTS-R share names of items.
    Calibration items, second showings and other sessions are left out.

    Raises:
        DataError: a column is missing, a value is no rating, another form, or no row is of a
            session here.
        UsageError: ratings on another ladder.
    """
    rows = list(_checked(path))
    instrument = _instrument_of(path, rows, instruments)
    by_name = _names(sessions)
    found = []
    for where, row in rows:
        is_counted = row.get("phase", "main") == "main" and not int(row.get("repeat") or 0)
        session_id = by_name.get((str(row.get("question_id")), str(row["system"])))
        session_id = session_id or by_name.get((str(row.get("session_id")), ""))
        if is_counted and session_id is not None:
            found.append(_rating(row, session_id, instrument, where))
    if not found:
        arms = ", ".join(sorted({str(row["system"]) for _, row in rows}))
        raise DataError(
            f"no rating of these sessions (arms found: {arms})",
            where=str(path),
            hint="unblind the rating study first, and name its systems like the arms",
        )
    return instrument.id, found


def _checked(path: Path) -> Iterator[Row]:
    for where, row in read_rows(path):
        missing = [name for name in WANTED if name not in row]
        if missing:
            raise DataError(
                f"no column '{missing[0]}'",
                where=where,
                hint="--human takes ratings.jsonl of a rating study's report folder",
            )
        yield where, row


def _instrument_of(
    path: Path, rows: Sequence[Row], instruments: Sequence[Instrument]
) -> Instrument:
    """The one with just these items, on just these ranges."""
    items = {str(row["criterion"]) for _, row in rows}
    alike = [one for one in instruments if set(one.scales) == items]
    theirs = {str(row["criterion"]): (_int(row["low"]), _int(row["high"])) for _, row in rows}
    for one in alike:
        if theirs == one.scales:
            return one
    if not alike:
        known = ", ".join(one.id for one in instruments)
        shown = ", ".join(sorted(items)[:4])
        raise DataError(
            f"rates {len(items)} criteria ({shown} ...), which are the items of none of: {known}",
            where=str(path),
        )
    one = alike[0]
    item = next(name for name, scale in one.scales.items() if theirs[name] != scale)
    low, high = one.scales[item]
    raise UsageError(
        f"{path}: people rated {item} on {theirs[item][0]}-{theirs[item][1]}, {one.id} is "
        f"{low}-{high}: different ladders are not compared",
        hint=f"have people rate on the judge's own instrument: cbtqa rate new --rubric {one.id}",
    )


def _int(value: object) -> int | None:
    text = str(value).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _names(sessions: Sequence[Session]) -> dict[tuple[str, str], str]:
    names = {}
    for session in sessions:
        place = f"{session.profile_id}/s{session.number}/r{session.replicate}"
        if (session.number, session.replicate) == (1, 1):
            place = session.profile_id
        names[place, session.arm] = session.id
        names[session.id, ""] = session.id
    return names


def _rating(row: dict[str, Any], session_id: str, instrument: Instrument, where: str) -> ItemRating:
    item, value = str(row["criterion"]), row["value"]
    low, high = instrument.scales[item]
    if value in (None, ""):
        value = None
    elif str(value) not in map(str, range(low, high + 1)):
        raise DataError(
            f"{value!r} is not a whole number from {low} to {high}", where=f"{where}:value"
        )
    reason = None if value is not None else str(row.get("unrated_reason") or "open")
    return ItemRating(
        session_id=session_id,
        instrument=instrument.id,
        item=item,
        value=None if value is None else int(str(value)),
        unscored_reason=reason,
        evidence=str(row["evidence"]) if row.get("evidence") else None,
        judge=str(row["rater"]),
    )
