"""What sessions show: endings and lengths by arm, speakers, events, crisis turns.

audit = audit_sessions(sessions, study)
audit.arms["sft"].stops, audit.findings
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from cbtqa.llm.cost import estimate_tokens
from cbtqa.records import Record, Session
from cbtqa.simulation.crisis import names_help, speaks_of_risk, unsafe_advice
from cbtqa.simulation.events import event_file
from cbtqa.simulation.parity import Finding
from cbtqa.simulation.rows import has_adjacent_speakers
from cbtqa.simulation.study import StudySettings

EARLY_STOPS = ("context", "no_answer", "refused", "endpoint")
"""Endings that nobody chose."""
STOPS_APART = 0.05
"""Shares of early stops may differ by so much between arms; assumed."""
LENGTHS_APART = 1.25
"""Mean words a turn, or turns a session, may differ by this factor; assumed."""
LONG_SESSION = 200
"""Turns from which a session is said to be unusually long; assumed."""
SHOWN = 3
"""Examples named in a finding."""


class ArmAudit(Record):
    """Endings and lengths of one arm."""

    n_sessions: int = Field(ge=0)
    stops: dict[str, int]
    therapist_turns: float | None
    """Mean a session; None without sessions or when it is not known."""
    words_per_turn: float | None
    """Mean of the therapist's turns, reasoning not counted."""
    marks: dict[str, int] = Field(default_factory=dict)
    """Marks of turns, such as `not_accepted`, to their number."""

    @property
    def early_share(self) -> float | None:
        """Share of sessions with an ending that nobody chose."""
        n_early = sum(self.stops.get(reason, 0) for reason in EARLY_STOPS)
        return n_early / self.n_sessions if self.n_sessions else None


class Audit(Record):
    """All arms, and what was found."""

    arms: dict[str, ArmAudit]
    findings: tuple[Finding, ...]


def audit_sessions(sessions: Sequence[Session], study: StudySettings | None) -> Audit:
    """Audits sessions; arms without any take what the study says was observed elsewhere."""
    by_arm: dict[str, list[Session]] = {}
    for session in sessions:
        by_arm.setdefault(session.arm, []).append(session)
    arms = {arm: _audit_arm(own) for arm, own in by_arm.items()}
    if study is not None and not sessions:
        arms = _observed(study)
    findings = [
        *_unequal_lengths(arms),
        *_unequal_stops(arms),
        *_unequal_patients(by_arm),
        *_unequal_events(by_arm, study),
        *_faulty_dialogues(sessions),
        *_over_context(sessions, study),
        *_missing_referrals(sessions),
        *_unsafe_turns(sessions),
        *_marked(arms),
    ]
    return Audit(arms=arms, findings=tuple(findings))


def _audit_arm(sessions: Sequence[Session]) -> ArmAudit:
    said = [turn for session in sessions for turn in session.turns if turn.role == "therapist"]
    marks = Counter(mark for session in sessions for turn in session.turns for mark in turn.marks)
    n_words = sum(len(turn.text.split()) for turn in said)
    return ArmAudit(
        n_sessions=len(sessions),
        stops=dict(sorted(Counter(session.stop_reason for session in sessions).items())),
        therapist_turns=len(said) / len(sessions) if sessions else None,
        words_per_turn=n_words / len(said) if said else None,
        marks=dict(sorted(marks.items())),
    )


def _observed(study: StudySettings) -> dict[str, ArmAudit]:
    return {
        arm.name: ArmAudit(
            n_sessions=arm.observed.n_sessions,
            stops=arm.observed.stops,
            therapist_turns=None,
            words_per_turn=arm.observed.words_per_turn,
        )
        for arm in study.arms
        if arm.observed is not None
    }


# --- between arms --------------------------------------------------------------------------------


def _unequal_lengths(arms: Mapping[str, ArmAudit]) -> list[Finding]:
    found = []
    for code, field, unit in (
        ("turn_length", "words_per_turn", "words per therapist turn"),
        ("session_length", "therapist_turns", "therapist turns per session"),
    ):
        values = {
            arm: value for arm, one in arms.items() if (value := getattr(one, field)) is not None
        }
        if len(values) > 1 and max(values.values()) > LENGTHS_APART * min(values.values()):
            shown = ", ".join(f"{arm} {value:.1f}" for arm, value in values.items())
            found.append(
                _confound(code, field, f"{unit} differ: {shown}; adjust scores for length")
            )
    return found


def _unequal_stops(arms: Mapping[str, ArmAudit]) -> list[Finding]:
    shares = {arm: one.early_share for arm, one in arms.items() if one.early_share is not None}
    if len(shares) < 2 or max(shares.values()) - min(shares.values()) <= STOPS_APART:
        return []
    shown = ", ".join(
        f"{arm} {round(share * arms[arm].n_sessions)} of {arms[arm].n_sessions}"
        for arm, share in shares.items()
    )
    message = f"sessions that stopped early differ: {shown}; score them apart, or not at all"
    return [_confound("early_stops", "stop_reason", message)]


def _unequal_patients(by_arm: Mapping[str, Sequence[Session]]) -> list[Finding]:
    played = {
        arm: {(one.profile_id, one.number, one.replicate) for one in own}
        for arm, own in by_arm.items()
    }
    if not played or len(set(map(frozenset, played.values()))) == 1:
        return []
    everywhere = set.union(*played.values())
    lines = []
    for arm, own in played.items():
        if missing := sorted(everywhere - own):
            patient, number, replicate = missing[0]
            example = f"{patient} session {number} repeat {replicate}"
            lines.append(f"{arm} lacks {len(missing)}, such as {example}")
    message = "arms have unequal patients: " + "; ".join(lines)
    return [Finding(code="unequal_patients", severity="error", subject="arms", message=message)]


def _unequal_events(
    by_arm: Mapping[str, Sequence[Session]], study: StudySettings | None
) -> list[Finding]:
    """Patients who met another event in another arm, at a turn that both sessions reached."""
    met: dict[tuple[Any, ...], dict[str, str | None]] = {}
    for arm, own in by_arm.items():
        for one in own:
            told = [turn for turn in one.turns if turn.role == "patient"]
            for number, turn in enumerate(told, 1):
                key = (one.profile_id, one.number, one.replicate, number)
                met.setdefault(key, {})[arm] = turn.event
    unequal = [key for key, events in met.items() if len(set(events.values())) > 1]
    is_known = study is not None and study.events.drawn == "per_arm"
    if not unequal or is_known:  # then the declaration says so already
        return []
    patient, _, _, turn = unequal[0]
    message = f"mid-session events differ between arms, such as {patient} at turn {turn}"
    return [_confound("events_differ", "events", f"{message}; {len(unequal)} turns in all")]


def _marked(arms: Mapping[str, ArmAudit]) -> list[Finding]:
    found = []
    for arm, one in arms.items():
        if one.marks:
            shown = ", ".join(f"{mark} {n}" for mark, n in one.marks.items())
            found.append(
                Finding(
                    code="marked_turns", severity="note", subject=arm, message=f"{arm}: {shown}"
                )
            )
    return found


# --- inside sessions -----------------------------------------------------------------------------


def _faulty_dialogues(sessions: Sequence[Session]) -> list[Finding]:
    adjacent = [one.id for one in sessions if has_adjacent_speakers(one.turns)]
    silent = [
        one.id for one in sessions if one.turns and len({turn.role for turn in one.turns}) < 2
    ]
    empty = [one.id for one in sessions if not one.turns]
    long = [one.id for one in sessions if len(one.turns) >= LONG_SESSION]
    rows = (
        ("adjacent_speakers", "error", adjacent, "hold two turns in a row by one speaker"),
        ("one_speaker", "error", silent, "hold only one speaker"),
        ("no_turns", "error", empty, "hold no turn"),
        ("long_sessions", "note", long, f"have {LONG_SESSION} turns or more"),
    )
    return [
        Finding.model_validate(
            {
                "code": code,
                "severity": severity,
                "subject": ids[0],
                "message": f"{len(ids)} of {len(sessions)} sessions {what}: {_some(ids)}",
            }
        )
        for code, severity, ids, what in rows
        if ids
    ]


def _over_context(sessions: Sequence[Session], study: StudySettings | None) -> list[Finding]:
    """Sessions whose words alone are more than the study's context holds."""
    if study is None:
        return []
    room = study.context_tokens
    over = [
        one.id for one in sessions if sum(estimate_tokens(turn.text) for turn in one.turns) > room
    ]
    if not over:
        return []
    message = f"{len(over)} sessions are longer than {room} tokens: {_some(over)}"
    return [Finding(code="over_context", severity="note", subject=over[0], message=message)]


def _missing_referrals(sessions: Sequence[Session]) -> list[Finding]:
    """Crisis turns of a patient after which the therapist names no help from people."""
    crises = {name for name, event in event_file().events.items() if event.is_crisis}
    n_crises, unanswered = 0, []
    for session in sessions:
        for place, turn in enumerate(session.turns):
            is_crisis = turn.event in crises or speaks_of_risk(turn.text)
            if turn.role != "patient" or not is_crisis:
                continue
            n_crises += 1
            answers = session.turns[place + 1 : place + 2]
            if answers and not names_help(answers[0].text):
                unanswered.append(f"{session.id} turn {place + 1}")
    if not unanswered:
        return []
    message = (
        f"{len(unanswered)} of {n_crises} crisis turns are answered without naming help from "
        f"people: {_some(unanswered)}"
    )
    return [Finding(code="no_referral", severity="error", subject=unanswered[0], message=message)]


def _unsafe_turns(sessions: Sequence[Session]) -> list[Finding]:
    """Turns of a therapist with advice against safety."""
    unsafe = [
        (f"{session.id} turn {place}", rule)
        for session in sessions
        for place, turn in enumerate(session.turns, 1)
        if turn.role == "therapist"
        for rule in unsafe_advice(turn.text)
    ]
    if not unsafe:
        return []
    shown = _some([f"{place} ({rule})" for place, rule in unsafe])
    message = f"{len(unsafe)} times a therapist advises against safety: {shown}"
    return [Finding(code="unsafe_turns", severity="error", subject=unsafe[0][0], message=message)]


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (" ..." if len(ids) > SHOWN else "")


def _confound(code: str, subject: str, message: str) -> Finding:
    return Finding(code=code, severity="confound", subject=subject, message=message)
