"""One row per session and instrument: item means over judges and repeats, and the totals.

    judged = read_judged(study / "judged")            # every judge that has ended, by instrument
    rows = score_sessions(judged["ctrs"], sessions)   # SessionScore per session

A judge's repeats are averaged first, then the judges; an item that no judge could score is
missing, and so are the totals that want it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError, UsageError
from cbtqa.files import parse_record, read_json, read_jsonl, read_rows
from cbtqa.manifest import MANIFEST_NAME, read_manifest
from cbtqa.ratings.rubric import Rubric
from cbtqa.records import ItemRating, Session
from cbtqa.simulation.instruments import Instrument, TotalScore
from cbtqa.simulation.judging.run import INSTRUMENT_NAME, RATINGS_NAME
from cbtqa.simulation.judging.task import shown_turns

Cells = dict[str, dict[str, dict[int, int]]]
"""Session to item to repeat to rating; the scored ones only."""


@dataclass(frozen=True)
class SessionScore:
    """One session on one instrument."""

    session_id: str
    arm: str
    patient: str
    number: int
    values: Mapping[str, float | None]
    """Item to mean rating."""
    totals: tuple[TotalScore, ...]
    """Totals, headline first, then areas."""
    factors: Mapping[str, str] = field(default_factory=dict)
    """Further factors of the arm, such as `model`."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Covariates: `session`, and where the transcript is known `words`, `turns`."""
    stop_reason: str = ""
    traits: Mapping[str, str] = field(default_factory=dict)
    """Attributes of the patient, such as `archetype`."""

    def total(self, name: str) -> float | None:
        """The value of a total or area by its id."""
        return next(one.value for one in self.totals if one.total == name)


Scores = Sequence[SessionScore]


@dataclass(frozen=True)
class Judged:
    """All judges' ratings on one instrument."""

    instrument: Instrument
    ratings: Mapping[str, tuple[ItemRating, ...]]
    """Judge to ratings."""
    unfinished: tuple[str, ...] = ()
    """Folders of judges that have not ended."""

    def all_ratings(self) -> list[ItemRating]:
        return [one for ratings in self.ratings.values() for one in ratings]


def read_judged(folder: Path) -> dict[str, Judged]:
    """What judges have left in a folder, by instrument.

    Raises:
        DataError: no judge has ended yet, or a file is damaged.
    """
    found: dict[str, Judged] = {}
    for path in sorted(folder.glob(f"*/{INSTRUMENT_NAME}")):
        rubric = parse_record(Rubric, read_json(path), str(path))
        ratings: dict[str, tuple[ItemRating, ...]] = {}
        unfinished = []
        for judge in sorted(one for one in path.parent.iterdir() if one.is_dir()):
            if not (judge / MANIFEST_NAME).exists():
                unfinished.append(judge.name)
                continue
            name = str(read_manifest(judge).counts["judge"])
            ratings[name] = tuple(read_jsonl(judge / RATINGS_NAME, ItemRating))
        if ratings:
            found[rubric.id] = Judged(Instrument(rubric), ratings, tuple(unfinished))
    if not found:
        raise DataError(
            "no judge has ended here", where=str(folder), hint="cbtqa simulate judge STUDY"
        )
    return found


def cells_of(ratings: Iterable[ItemRating]) -> Cells:
    """One judge's ratings by session, item and repeat."""
    cells: Cells = defaultdict(lambda: defaultdict(dict))
    for one in ratings:
        cell = cells[one.session_id][one.item]
        if one.value is not None:
            cell[one.repeat] = one.value
    return cells


def item_means(cells: Mapping[str, Mapping[int, int]]) -> dict[str, float | None]:
    """Item to the mean of its repeats; None where none was scored."""
    return {item: sum(cell.values()) / len(cell) if cell else None for item, cell in cells.items()}


def score_sessions(
    judged: Judged,
    sessions: Sequence[Session],
    levels: Mapping[str, Mapping[str, str]] | None = None,
    traits: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[SessionScore, ...]:
    """Every session that any judge was given, in the order of the sessions.

    Args:
        levels: arm to its levels of further factors.
        traits: patient to its attributes.
    """
    by_judge = [cells_of(ratings) for ratings in judged.ratings.values()]
    reasons = _reasons_of(judged.all_ratings())
    scores = []
    for session in sessions:
        per_judge = [item_means(cells[session.id]) for cells in by_judge if session.id in cells]
        if not per_judge:
            continue
        values = {
            item.id: mean_of(means.get(item.id) for means in per_judge)
            for item in judged.instrument.items
        }
        said = [turn.text for turn in shown_turns(session) if turn.role == "therapist"]
        scores.append(
            SessionScore(
                session_id=session.id,
                arm=session.arm,
                patient=session.profile_id,
                number=session.number,
                values=values,
                totals=tuple(
                    _with_reasons(one, judged.instrument, values, reasons[session.id])
                    for one in all_totals(judged.instrument, values)
                ),
                factors=dict((levels or {}).get(session.arm, {})),
                numbers={
                    "session": float(session.number),
                    "turns": float(len(said)),
                    "words": float(sum(len(text.split()) for text in said)),
                },
                stop_reason=session.stop_reason,
                traits=dict((traits or {}).get(session.profile_id, {})),
            )
        )
    return tuple(scores)


Reasons = dict[str, Counter[str]]
"""Item to why ratings of it are missing, such as `refusal`, and how many."""


def _reasons_of(ratings: Iterable[ItemRating]) -> dict[str, Reasons]:
    """The same by session."""
    found: dict[str, Reasons] = defaultdict(lambda: defaultdict(Counter))
    for one in ratings:
        if one.unscored_reason:
            found[one.session_id][one.item][one.unscored_reason.partition(":")[0]] += 1
    return found


def _with_reasons(
    total: TotalScore, instrument: Instrument, values: Mapping[str, float | None], reasons: Reasons
) -> TotalScore:
    """A missing total that tells of every missing item why it is missing."""
    if total.value is not None:
        return total
    own = instrument.items_of(total.total)
    by_reason: dict[str, list[str]] = defaultdict(list)
    for item in own:
        if values.get(item) is None:
            words = [reason for reason, _ in reasons[item].most_common()] or ["not rated"]
            by_reason[", ".join(words)].append(item)
    parts = (
        f"{'any item' if len(items) == len(own) else ', '.join(items)} ({words})"
        for words, items in by_reason.items()
    )
    return total.model_copy(update={"reason": f"no rating of {'; '.join(parts)}"})


def all_totals(
    instrument: Instrument, values: Mapping[str, float | None]
) -> tuple[TotalScore, ...]:
    """Totals, then areas; a single area that is the whole form is left out."""
    areas = instrument.areas(values) if len(instrument.rubric.sections) > 1 else []
    return (*instrument.totals(values), *areas)


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None without any."""
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None


# --- ratings by people ---------------------------------------------------------------------------

WANTED = ("system", "rater", "criterion", "value", "low", "high")
Row = tuple[str, dict[str, Any]]
"""The place of a row, and the row."""


def read_people(
    path: Path, instruments: Sequence[Instrument], sessions: Sequence[Session]
) -> tuple[str, list[ItemRating]]:
    """The instrument that people rated on in `cbtqa rate`, and their ratings of these sessions.

    A session is named by its patient and arm (`profile`, or `profile/s2/r1` where a patient has
    several) or by its own id. The form is known by its items and their ranges: CTRS and CTS-R
    share names of items. Calibration items, second showings and other sessions are left out.

    Raises:
        DataError: a column is missing, a value is no rating, another form, or no row is of a
            session here.
        UsageError: ratings on another ladder.
    """
    rows = list(read_rows(path))
    for where, row in rows:
        if missing := [name for name in WANTED if name not in row]:
            hint = "--human takes ratings.jsonl of a rating study's report folder"
            raise DataError(f"no column '{missing[0]}'", where=where, hint=hint)
    instrument = _instrument_of(path, rows, instruments)
    by_name: dict[tuple[str, str], str] = {}
    for one in sessions:
        is_first = (one.number, one.replicate) == (1, 1)
        name = one.profile_id if is_first else f"{one.profile_id}/s{one.number}/r{one.replicate}"
        by_name |= {(name, one.arm): one.id, (one.id, ""): one.id}
    found = []
    for where, row in rows:
        is_counted = row.get("phase", "main") == "main" and not int(row.get("repeat") or 0)
        session_id = by_name.get((str(row.get("question_id")), str(row["system"])))
        session_id = session_id or by_name.get((str(row.get("session_id")), ""))
        if is_counted and session_id is not None:
            found.append(_rating_by_person(row, session_id, instrument, where))
    if not found:
        arms = ", ".join(sorted({str(row["system"]) for _, row in rows}))
        raise DataError(
            f"no rating of these sessions (arms found: {arms})",
            where=str(path),
            hint="unblind the rating study first, and name its systems like the arms",
        )
    return instrument.id, found


def _instrument_of(
    path: Path, rows: Sequence[Row], instruments: Sequence[Instrument]
) -> Instrument:
    """The one with just these items, on just these ranges."""
    theirs = {str(row["criterion"]): (_int(row["low"]), _int(row["high"])) for _, row in rows}
    alike = [one for one in instruments if set(one.scales) == set(theirs)]
    if not alike:
        known = ", ".join(one.id for one in instruments)
        shown = ", ".join(sorted(theirs)[:4])
        raise DataError(
            f"rates {len(theirs)} criteria ({shown} ...), which are the items of none of: {known}",
            where=str(path),
        )
    if same := [one for one in alike if one.scales == theirs]:
        return same[0]
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


def _rating_by_person(
    row: dict[str, Any], session_id: str, instrument: Instrument, where: str
) -> ItemRating:
    item, value = str(row["criterion"]), row["value"]
    low, high = instrument.scales[item]
    is_open = value in (None, "")
    if not is_open and str(value) not in map(str, range(low, high + 1)):
        message = f"{value!r} is not a whole number from {low} to {high}"
        raise DataError(message, where=f"{where}:value")
    return ItemRating(
        session_id=session_id,
        instrument=instrument.id,
        item=item,
        value=None if is_open else int(str(value)),
        unscored_reason=str(row.get("unrated_reason") or "open") if is_open else None,
        evidence=str(row["evidence"]) if row.get("evidence") else None,
        judge=str(row["rater"]),
    )
