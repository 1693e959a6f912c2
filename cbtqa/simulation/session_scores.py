"""One row per session and instrument: item means over judges and repeats, and the totals.

    judged = read_judged(study / "judged")            # every judge that has ended, by instrument
    rows = score_sessions(judged["ctrs"], sessions)   # SessionScore per session

A judge's repeats are averaged first, then the judges; an item that no judge could score is
missing, and so are the totals that want it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cbtqa.errors import DataError
from cbtqa.files import parse_record, read_json, read_jsonl
from cbtqa.manifest import MANIFEST_NAME, read_manifest
from cbtqa.ratings.rubric import Rubric
from cbtqa.records import ItemRating, Session
from cbtqa.simulation.instruments import Instrument, TotalScore
from cbtqa.simulation.judged_text import shown_turns
from cbtqa.simulation.judging import INSTRUMENT_NAME, RATINGS_NAME

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

    def total(self, name: str) -> float | None:
        """The value of a total or area by its id."""
        return next(one.value for one in self.totals if one.total == name)


@dataclass(frozen=True)
class Judged:
    """All judges' ratings on one instrument."""

    instrument: Instrument
    ratings: Mapping[str, tuple[ItemRating, ...]]
    """Judge to ratings."""
    unfinished: tuple[str, ...] = ()
    """Folders of judges that have not ended."""

    def all_ratings(self) -> list[ItemRating]:
        """Every judge's ratings."""
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
) -> list[SessionScore]:
    """Every session that any judge was given, in the order of the sessions.

    Args:
        levels: arm to its levels of further factors.
    """
    by_judge = [cells_of(ratings) for ratings in judged.ratings.values()]
    scores = []
    for session in sessions:
        per_judge = [item_means(cells[session.id]) for cells in by_judge if session.id in cells]
        if not per_judge:
            continue
        values = {
            item.id: _mean(means.get(item.id) for means in per_judge)
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
                totals=all_totals(judged.instrument, values),
                factors=dict((levels or {}).get(session.arm, {})),
                numbers={
                    "session": float(session.number),
                    "turns": float(len(said)),
                    "words": float(sum(len(text.split()) for text in said)),
                },
                stop_reason=session.stop_reason,
            )
        )
    return scores


def all_totals(
    instrument: Instrument, values: Mapping[str, float | None]
) -> tuple[TotalScore, ...]:
    """Totals, then areas; a single area that is the whole form is left out."""
    areas = instrument.areas(values) if len(instrument.rubric.sections) > 1 else []
    return (*instrument.totals(values), *areas)


def _mean(values: Iterable[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None
