"""What sessions show: endings and lengths by arm, speakers, events, crisis turns.

audit = audit_sessions(sessions, study)
audit.arms["sft"].stops, audit.findings
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from cbtqa.errors import PromptError
from cbtqa.llm.cost import estimate_tokens
from cbtqa.prompts import load_prompt
from cbtqa.records import NonEmptyText, Record, Session
from cbtqa.simulation.export import has_adjacent_speakers
from cbtqa.simulation.playing.events import event_file, names_help, speaks_of_risk, unsafe_advice
from cbtqa.simulation.study import Arm, StudySettings

# --- parity --------------------------------------------------------------------------------------
# Arm parity as declared: everything in which arms differ besides what they are meant to differ
# in.
#
#     for finding in compare_arms(study): finding.code, finding.message
#
# A difference between arms that the study does not name as its factor is a confound: the scores
# cannot tell it from the factor.

Severity = Literal["error", "confound", "note"]
NOT_COMPARED = ("name", "levels", "observed")
"""Names, factor levels, and what is measured rather than set."""
UNHEARD = ("price_in", "price_out", "key_env")
"""Settings that change no word."""


class Finding(Record):
    """One thing that a reader of the study has to know."""

    code: NonEmptyText
    """Stable name, such as `arms_differ` or `early_stops`."""
    severity: Severity
    """`error`: data that must not be used so. `confound`: arms differ beside the factor."""
    subject: NonEmptyText
    """The field, session, arm or file that it is about."""
    message: NonEmptyText


def compare_arms(study: StudySettings) -> list[Finding]:
    """Confounds in the declaration: differing fields, training unlike serving, unshared events."""
    found = [*_differing_fields(study), *_unlike_training(study)]
    if study.events.probability > 0 and study.events.drawn == "per_arm":
        found.append(
            Finding(
                code="events_per_arm",
                severity="confound",
                subject="events.drawn",
                message="mid-session events are drawn anew for every arm: patients meet other "
                "events in other arms",
            )
        )
    return found


def _differing_fields(study: StudySettings) -> list[Finding]:
    flat = {arm.name: _flat(arm, study) for arm in study.arms}
    names = sorted({name for fields in flat.values() for name in fields})
    found = []
    for name in names:
        if _is_named(name, study.factor):
            continue
        values = {arm: fields[name] for arm, fields in flat.items() if name in fields}
        if name.startswith("training."):
            # an untuned arm has no teacher: only tuned arms are compared
            tuned = [arm.name for arm in study.arms if arm.training is not None]
            values = {arm: flat[arm].get(name) for arm in tuned}
        else:
            values = {arm: fields.get(name) for arm, fields in flat.items()}
        if len(set(map(repr, values.values()))) > 1:
            found.append(
                Finding(
                    code="arms_differ",
                    severity="confound",
                    subject=name,
                    message=f"{name} differs: {_grouped(values)}",
                )
            )
    return found


def _is_named(name: str, factor: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in (*factor, *NOT_COMPARED))


def _flat(arm: Arm, study: StudySettings) -> dict[str, Any]:
    """Every setting of an arm by dotted name, the prompt as file and hash."""
    plain = arm.model_dump(mode="json", exclude_none=True)
    fields = _flattened(plain)
    name = study.therapist_prompt(arm)
    fields["prompt"] = f"{name} {_hash_of(name)}".strip()
    return {key: value for key, value in fields.items() if not key.endswith(UNHEARD)}


def _flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, one in value.items():
        name = f"{prefix}{key}"
        found |= _flattened(one, f"{name}.") if isinstance(one, dict) else {name: one}
    return found


def _hash_of(prompt: str) -> str:
    """First digits of a prompt's hash; empty for a prompt that is not at hand."""
    try:
        return load_prompt(prompt).sha256[:8]
    except PromptError:
        return ""


def _grouped(values: Mapping[str, Any]) -> str:
    groups: dict[str, list[str]] = {}
    for arm, value in values.items():
        groups.setdefault("not set" if value in (None, []) else str(value), []).append(arm)
    return "; ".join(f"{value} ({', '.join(arms)})" for value, arms in groups.items())


def _unlike_training(study: StudySettings) -> list[Finding]:
    """Arms that are played otherwise than their model was trained."""
    found = []
    for arm in study.arms:
        if arm.training is None:
            continue
        served = study.therapist_prompt(arm)
        learned = arm.training.prompt
        if learned is not None and learned != served:
            found.append(
                Finding(
                    code="train_serve_prompt",
                    severity="confound",
                    subject=arm.name,
                    message=f"{arm.name} was trained on prompt {learned}, is played with {served}",
                )
            )
        if arm.training.history is not None and arm.training.history != arm.history:
            found.append(
                Finding(
                    code="train_serve_history",
                    severity="confound",
                    subject=arm.name,
                    message=f"{arm.name} was trained on {_words(arm.training.history)} as history, "
                    f"is played with {_words(arm.history)}",
                )
            )
    return found


def _words(name: str) -> str:
    return name.replace("_", " ")


# --- audit ---------------------------------------------------------------------------------------
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
