"""A study on disk, and transcripts read from elsewhere.

study/
  study.json        the declaration: arms with their settings, patients, instruments, judges
  profiles.jsonl    the patients
  turns.sqlite      the journal: every paid turn, durable before it is used
  sessions.jsonl    one Session a line
  manifest.json     written last; names hashes and counts
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import cbtqa
from cbtqa.errors import DataError
from cbtqa.files import parse_record, read_json, read_jsonl, read_rows
from cbtqa.records import Provenance, Session, Turn
from cbtqa.safety.encoder import ScreenEncoder, open_encoder
from cbtqa.safety.screen import screen_each
from cbtqa.simulation.marks import marked
from cbtqa.simulation.playing.events import speaks_of_risk
from cbtqa.simulation.study import StudySettings
from cbtqa.splits import Split, place_of

STUDY_NAME = "study.json"
PROFILES_NAME = "profiles.jsonl"
SESSIONS_NAME = "sessions.jsonl"
JOURNAL_NAME = "turns.sqlite"
ROLES = {
    **dict.fromkeys(("therapist", "assistant", "counselor", "counsellor", "gpt"), "therapist"),
    **dict.fromkeys(("patient", "client", "user", "human"), "patient"),
}
"""Names of the two roles in other people's transcripts."""


@dataclass(frozen=True)
class StudyFolder:
    """A folder that `cbtqa simulate run` or `corpus` made."""

    path: Path

    @property
    def sessions_path(self) -> Path:
        return self.path / SESSIONS_NAME

    @property
    def journal_path(self) -> Path:
        return self.path / JOURNAL_NAME

    def study(self) -> StudySettings:
        """The declaration of the study.

        Raises:
            DataError: no such folder, or it holds no study.
        """
        path = self.path / STUDY_NAME
        if not path.exists():
            raise DataError(
                f"holds no {STUDY_NAME}",
                where=str(self.path),
                hint="make a study first: cbtqa simulate run",
            )
        return parse_record(StudySettings, read_json(path), str(path))

    def read_sessions(self) -> Iterator[Session]:
        """Every finished session, its turns marked by the rules of now.

        Raises:
            DataError: none was finished yet, or a line is damaged.
        """
        if not self.sessions_path.exists():
            raise DataError(
                f"holds no {SESSIONS_NAME}", where=str(self.path), hint="cbtqa simulate run"
            )
        return map(marked, read_jsonl(self.sessions_path, Session))


def mark_risk(sessions: Iterable[Session], screen_model: str | None) -> Iterator[Session]:
    """The sessions with the mark `risk` on turns of patients in which an encoder finds danger
    and the built-in screen none.

    It takes no mark away. See `cbtqa.safety.screen`; without the name of an encoder they stay as
    they are.

    Raises:
        MissingExtraError, ConfigError: as `open_encoder`.
    """
    model = open_encoder(screen_model)
    for session in sessions:
        yield session if model is None else _with_risk(session, model)


def _with_risk(session: Session, model: ScreenEncoder) -> Session:
    asked = [
        (place, turn.text)
        for place, turn in enumerate(session.turns)
        if turn.role == "patient" and not speaks_of_risk(turn.text)
    ]
    screened = screen_each(asked, itemgetter(1), model=model, is_spoken=True)
    risky = {place for (place, _), found in screened if found.route != "none"}
    turns = tuple(
        turn.model_copy(update={"marks": (*turn.marks, "risk")})
        if place in risky and "risk" not in turn.marks
        else turn
        for place, turn in enumerate(session.turns)
    )
    return session if turns == session.turns else session.model_copy(update={"turns": turns})


def transcript_text(turns: Iterable[Turn]) -> str:
    """A line `Therapist: ...` or `Patient: ...` a turn; no reasoning."""
    return "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in turns)


def numbered(turns: Iterable[Turn]) -> str:
    """The transcript, a line a turn, each after its number from 1."""
    lines = (f"[{place}] {transcript_text([turn])}" for place, turn in enumerate(turns, 1))
    return "\n".join(lines)


def read_transcripts(path: Path) -> Iterator[Session]:
    """Sessions of a study folder, a `sessions.jsonl`, or transcripts made elsewhere.

    A foreign row holds `turns` or `messages`: a list of objects with a speaker (`role`, `speaker`
    or `from`: therapist/assistant/counselor or patient/client/user) and a text (`text`, `content`
    or `value`); `id`, `arm` and `patient` (or `profile_id`) where they are known.

    Raises:
        DataError: `file:line` of a row that is no transcript, or in which only one side speaks.
    """
    if path.is_dir():
        yield from StudyFolder(path).read_sessions()
        return
    for number, (where, row) in enumerate(read_rows(path), 1):
        session = (
            parse_record(Session, row, where)
            if "stop_reason" in row
            else _imported(row, where, f"{path.stem}-{number}")
        )
        roles = {turn.role for turn in session.turns}
        if len(roles) < 2:
            said = f"only the {roles.pop()} speaks" if roles else "nobody speaks"
            raise DataError(f"no dialogue: {said} in {session.id}", where=where)
        yield marked(session)


def _imported(row: Mapping[str, Any], where: str, default_id: str) -> Session:
    turns = row.get("turns", row.get("messages"))
    if not isinstance(turns, list):
        raise DataError("expected a list `turns` or `messages`", where=where)
    made = [_imported_turn(one, f"{where}:turn {place}") for place, one in enumerate(turns, 1)]
    return Session(
        id=str(row.get("id") or default_id),
        arm=str(row.get("arm") or "imported"),
        profile_id=str(row.get("profile_id") or row.get("patient") or row.get("id") or default_id),
        turns=tuple(turn for turn in made if turn is not None),
        stop_reason="imported",
        provenance=Provenance(model=str(row.get("model") or "unknown"), version=cbtqa.__version__),
    )


def _imported_turn(value: object, where: str) -> Turn | None:
    """One turn; None for a system message, which nobody speaks."""
    if not isinstance(value, Mapping):
        raise DataError("expected an object with a speaker and a text", where=where)
    speaker = next((value[key] for key in ("role", "speaker", "from") if key in value), None)
    text = next((value[key] for key in ("text", "content", "value") if key in value), None)
    if str(speaker).lower() == "system":
        return None
    role = ROLES.get(str(speaker).strip().lower())
    if role is None:
        known = ", ".join(ROLES)
        raise DataError(f"unknown speaker {speaker!r}", where=where, hint=f"known: {known}")
    if not isinstance(text, str) or not text.strip():
        raise DataError("the text is empty", where=where)
    return parse_record(Turn, {"role": role, "text": text.strip()}, where)


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
