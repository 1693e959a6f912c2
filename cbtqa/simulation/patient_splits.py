"""Train, validation and test without leakage: all sessions of a patient fall on one side.

split_of, by = split_sessions(sessions, validation=0.1, test=0.1, seed=0)
split_of[sessions[0].id], by        # "train", "patient"
"""

from __future__ import annotations

from collections.abc import Sequence

from cbtqa.records import Session
from cbtqa.splits import Split, place_of


def split_sessions(
    sessions: Sequence[Session], *, validation: float, test: float, seed: int
) -> tuple[dict[str, Split], str]:
    """Session id to split, and the unit that was divided: `patient`, or `session` for one patient.

    Patients are put in the order of a hash and shared out, so that small numbers fill the splits
    too; every share above 0 gets at least one once there are three.
    """
    by = "patient" if len({one.profile_id for one in sessions}) > 1 else "session"
    units = {one.id: one.profile_id if by == "patient" else one.id for one in sessions}
    ordered = sorted(set(units.values()), key=lambda unit: (place_of(unit, seed=seed), unit))
    n_test, n_validation = _share(test, len(ordered)), _share(validation, len(ordered))
    split_of_unit: dict[str, Split] = dict.fromkeys(ordered, "train")
    split_of_unit |= dict.fromkeys(ordered[:n_test], "test")
    split_of_unit |= dict.fromkeys(ordered[n_test : n_test + n_validation], "validation")
    return {session: split_of_unit[unit] for session, unit in units.items()}, by


def _share(share: float, n: int) -> int:
    return max(1, round(share * n)) if share > 0 and n >= 3 else 0
