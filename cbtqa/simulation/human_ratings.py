"""Ratings of sessions by people, from `cbtqa rate`, as the same records that judges leave.

    read_people(Path("study/report/ratings.jsonl"), instrument, sessions)

In a rating study a session is named by its patient and its arm (`profile`, or `profile/s2/r1`
where a patient has several), or by the session's own id.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError, UsageError
from cbtqa.files import read_rows
from cbtqa.records import ItemRating, Session
from cbtqa.simulation.instruments import Instrument


def read_people(
    path: Path, instrument: Instrument, sessions: Sequence[Session]
) -> list[ItemRating]:
    """Ratings on this instrument; calibration items, second showings and other forms are left out.

    Raises:
        DataError: a column is missing, a value is no rating, or no row is of a session here.
        UsageError: ratings on another ladder.
    """
    by_name = _names(sessions)
    found: list[ItemRating] = []
    arms: set[str] = set()
    n_rows = 0
    for where, row in read_rows(path):
        missing = [name for name in ("system", "rater", "criterion", "value") if name not in row]
        if missing:
            raise DataError(
                f"no column '{missing[0]}'",
                where=where,
                hint="--human takes ratings.jsonl of a rating study's report folder",
            )
        n_rows += 1
        item = str(row["criterion"])
        if item not in instrument.scales:
            continue
        _check_ladder(row, instrument, where)
        is_counted = row.get("phase", "main") == "main" and not int(row.get("repeat") or 0)
        arms.add(str(row["system"]))
        session_id = by_name.get((str(row.get("question_id")), str(row["system"])))
        session_id = session_id or by_name.get((str(row.get("session_id")), ""))
        if is_counted and session_id is not None:
            found.append(_rating(row, session_id, item, instrument, where))
    if not found:
        named = ", ".join(sorted(arms)) or "none on this instrument"
        raise DataError(
            f"no rating of these sessions on {instrument.id} (arms found: {named})",
            where=str(path),
            hint="unblind the rating study first, and name its systems like the arms",
        )
    return found


def _names(sessions: Sequence[Session]) -> dict[tuple[str, str], str]:
    names = {}
    for session in sessions:
        place = f"{session.profile_id}/s{session.number}/r{session.replicate}"
        if (session.number, session.replicate) == (1, 1):
            place = session.profile_id
        names[place, session.arm] = session.id
        names[session.id, ""] = session.id
    return names


def _check_ladder(row: dict[str, Any], instrument: Instrument, where: str) -> None:
    low, high = instrument.scales[str(row["criterion"])]
    theirs = (row.get("low", low), row.get("high", high))
    if (low, high) != theirs:
        raise UsageError(
            f"{where}: people rated on {theirs[0]}-{theirs[1]}, {instrument.id} is {low}-{high}: "
            "different ladders are not compared",
            hint="have people rate on the judge's own instrument: cbtqa rate new --rubric "
            f"{instrument.id}",
        )


def _rating(
    row: dict[str, Any], session_id: str, item: str, instrument: Instrument, where: str
) -> ItemRating:
    value = row["value"]
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
