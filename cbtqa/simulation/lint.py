"""`cbtqa simulate lint`: the check before any score is believed.

    report = lint(Path("tahir-act-as-published"))
    [finding.code for finding in report.findings]

Takes a study file (what is declared), a study folder (declared and measured), an export (leaked
splits), or transcripts in a file (speakers, lengths, crisis turns). A difference between arms that
the study does not name as its factor is a confound: the scores cannot tell it from the factor.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from cbtqa.errors import DataError, PromptError, UsageError
from cbtqa.files import read_json, read_jsonl, read_rows, write_jsonl
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.checked_files import AskingSettings
from cbtqa.llm.cost import Estimate, estimate_tokens
from cbtqa.llm.second_opinion import GuardSettings, Opinions
from cbtqa.manifest import MANIFEST_NAME
from cbtqa.paths import refuse_existing
from cbtqa.prompts import load_prompt
from cbtqa.records import NonEmptyText, Record, Session, TurnMark
from cbtqa.safety.settings import ScreenModelSettings
from cbtqa.simulation.export import has_adjacent_speakers
from cbtqa.simulation.marks import (
    CONTENT_MARKS,
    FAULTY_SHARE,
    HARMS,
    SPOILING,
    is_danger,
    marked,
)
from cbtqa.simulation.playing.events import names_help, unsafe_advice
from cbtqa.simulation.playing.messages import UNSPOKEN
from cbtqa.simulation.playing.opinions import (
    ask_opinions,
    estimate_opinions,
    session_opinions,
)
from cbtqa.simulation.profiles import choose_profiles
from cbtqa.simulation.sessions import STUDY_NAME, StudyFolder, mark_risk, read_transcripts
from cbtqa.simulation.study import Arm, StudySettings, flattened, load_study, recipe_path
from cbtqa.splits import SPLITS

KINDS = ("sft", "orpo", "messages")
Sessions = Sequence[Session]
Severity = Literal["error", "confound", "note"]
NOT_COMPARED = ("name", "levels", "observed")
"""Names, factor levels, and what is measured rather than set."""
EARLY_STOPS = ("context", "no_answer", "refused", "endpoint")
"""Endings that nobody chose."""
STOPS_APART = 0.05
"""Shares of early stops may differ by so much between arms; assumed."""
LENGTHS_APART = 1.25
"""Mean words a turn, or turns a session, may differ by this factor; assumed."""
LONG_SESSION = 200
"""Turns from which a session is unusually long; assumed."""
SAYS: Mapping[TurnMark, str] = {
    "machine_text": "hold control tokens or a model's reasoning",
    "note_to_model": "speak about the task instead of to the other person",
    "wrong_speaker": "speak as the other side",
    "farewell_loop": "take leave once more after the leave-taking",
    "narration": "tell what somebody does",
    "repeated": "say again what was said before",
    "cut": "are cut",
    "speaker_name": "begin with a speaker's name",
    "markup": "hold lists, headings or bold letters",
    "wrong_language": "are not in the session's language",
    "early_farewell": "take leave long before the end",
    "next_session": "promise a next session where there is none",
    "diagnosis": "give a diagnosis",
    "promised_cure": "promise a cure",
    "private_life": "claim a body, licence or life that no program has",
}
ERRORS = (*SPOILING, *HARMS, "speaker_name", "wrong_language")
"""Marks of which one is too many; of the others it is a share of the session's turns."""
SHOWN = 3
"""Examples named in a finding."""


class Finding(Record):
    """One thing that a reader of the study has to know."""

    code: NonEmptyText
    """Stable name, such as `arms_differ` or `early_stops`."""
    severity: Severity
    """`error`: data that must not be used so. `confound`: arms differ beside the factor."""
    subject: NonEmptyText
    """The field, session, arm or file that it is about."""
    message: NonEmptyText

    @classmethod
    def of(cls, severity: Severity, code: str, subject: str, message: str) -> Finding:
        return cls(code=code, severity=severity, subject=subject, message=message)


# --- the declaration -----------------------------------------------------------------------------


def compare_arms(study: StudySettings) -> list[Finding]:
    """Confounds in the declaration: differing fields, training unlike serving, unshared events."""
    found = [*_differing_fields(study), *_unlike_training(study)]
    if study.events.probability > 0 and study.events.drawn == "per_arm":
        message = "mid-session events are drawn anew for every arm: patients meet other events "
        message += "in other arms"
        found.append(Finding.of("confound", "events_per_arm", "events.drawn", message))
    return found


def _differing_fields(study: StudySettings) -> Iterator[Finding]:
    flat = {arm.name: _flat(arm, study) for arm in study.arms}
    # an untuned arm has no teacher: only tuned arms are compared in their training
    tuned = [arm.name for arm in study.arms if arm.training is not None]
    meant = (*study.factor, *NOT_COMPARED)
    for name in sorted({name for fields in flat.values() for name in fields}):
        if any(name == one or name.startswith(f"{one}.") for one in meant):
            continue
        arms = tuned if name.startswith("training.") else flat
        groups: dict[str, list[str]] = defaultdict(list)
        for arm in arms:
            value = flat[arm].get(name)
            groups["not set" if value in (None, []) else str(value)].append(arm)
        if len(groups) > 1:
            shown = "; ".join(f"{value} ({', '.join(own)})" for value, own in groups.items())
            yield Finding.of("confound", "arms_differ", name, f"{name} differs: {shown}")


def _flat(arm: Arm, study: StudySettings) -> dict[str, Any]:
    """Every setting of an arm by dotted name, the prompt as file and hash where it is found."""
    fields = flattened(arm.model_dump(mode="json", exclude_none=True))
    fields["prompt"] = study.therapist_prompt(arm)
    with suppress(PromptError):
        fields["prompt"] += f" {load_prompt(fields['prompt']).sha256[:8]}"
    return {key: value for key, value in fields.items() if not key.endswith(UNSPOKEN)}


def _unlike_training(study: StudySettings) -> Iterator[Finding]:
    """Arms that are played otherwise than their model was trained."""
    for arm in study.arms:
        if arm.training is None:
            continue
        served, learned = study.therapist_prompt(arm), arm.training.prompt
        if learned is not None and learned != served:
            message = f"{arm.name} was trained on prompt {learned}, is played with {served}"
            yield Finding.of("confound", "train_serve_prompt", arm.name, message)
        if arm.training.history not in (None, arm.history):
            taught, given = (
                str(one).replace("_", " ") for one in (arm.training.history, arm.history)
            )
            message = f"{arm.name} was trained on {taught} as history, is played with {given}"
            yield Finding.of("confound", "train_serve_history", arm.name, message)


# --- the sessions --------------------------------------------------------------------------------


class ArmAudit(Record):
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


def audit_sessions(
    sessions: Sessions, study: StudySettings | None
) -> tuple[dict[str, ArmAudit], tuple[Finding, ...]]:
    """Arms and findings; without sessions, what the study declares as observed elsewhere."""
    by_arm: dict[str, list[Session]] = defaultdict(list)
    for session in sessions:
        by_arm[session.arm].append(session)
    arms = {arm: _audit_arm(own) for arm, own in by_arm.items()}
    if study is not None and not sessions:
        arms = {
            arm.name: ArmAudit(therapist_turns=None, **arm.observed.model_dump())
            for arm in study.arms
            if arm.observed is not None
        }
    findings = (
        *_unequal_lengths(arms),
        *_unequal_stops(arms),
        *_unequal_patients(by_arm),
        *_unequal_events(by_arm, study),
        *_faulty_dialogues(sessions, study),
        *_missing_referrals(sessions),
        *_unsafe_turns(sessions),
        *_turns_that_are_none(sessions),
        *_marked(arms),
    )
    return arms, findings


def _audit_arm(sessions: Sessions) -> ArmAudit:
    said = [turn for session in sessions for turn in session.turns if turn.role == "therapist"]
    marks = Counter(mark for session in sessions for turn in session.turns for mark in turn.marks)
    n_words = sum(len(turn.text.split()) for turn in said)
    return ArmAudit(
        n_sessions=len(sessions),
        stops=dict(sorted(Counter(session.stop_reason for session in sessions).items())),
        therapist_turns=len(said) / len(sessions),
        words_per_turn=n_words / len(said) if said else None,
        marks=dict(sorted(marks.items())),
    )


def _unequal_lengths(arms: Mapping[str, ArmAudit]) -> Iterator[Finding]:
    for code, field, unit in (
        ("turn_length", "words_per_turn", "words per therapist turn"),
        ("session_length", "therapist_turns", "therapist turns per session"),
    ):
        found = {arm: getattr(one, field) for arm, one in arms.items()}
        values = {arm: value for arm, value in found.items() if value is not None}
        if len(values) > 1 and max(values.values()) > LENGTHS_APART * min(values.values()):
            shown = ", ".join(f"{arm} {value:.1f}" for arm, value in values.items())
            message = f"{unit} differ: {shown}; adjust scores for length"
            yield Finding.of("confound", code, field, message)


def _unequal_stops(arms: Mapping[str, ArmAudit]) -> Iterator[Finding]:
    shares = {arm: one.early_share for arm, one in arms.items() if one.early_share is not None}
    if len(shares) > 1 and max(shares.values()) - min(shares.values()) > STOPS_APART:
        shown = ", ".join(
            f"{arm} {round(share * arms[arm].n_sessions)} of {arms[arm].n_sessions}"
            for arm, share in shares.items()
        )
        message = f"sessions that stopped early differ: {shown}; score them apart, or not at all"
        yield Finding.of("confound", "early_stops", "stop_reason", message)


def _unequal_patients(by_arm: Mapping[str, Sessions]) -> Iterator[Finding]:
    played = {
        arm: {(one.profile_id, one.number, one.replicate) for one in own}
        for arm, own in by_arm.items()
    }
    everywhere = set().union(*played.values())
    lines = []
    for arm, own in played.items():
        if missing := sorted(everywhere - own):
            patient, number, replicate = missing[0]
            example = f"{patient} session {number} repeat {replicate}"
            lines.append(f"{arm} lacks {len(missing)}, such as {example}")
    if lines:
        message = "arms have unequal patients: " + "; ".join(lines)
        yield Finding.of("error", "unequal_patients", "arms", message)


def _unequal_events(
    by_arm: Mapping[str, Sessions], study: StudySettings | None
) -> Iterator[Finding]:
    """Patients who met another event in another arm, at a turn that both sessions reached."""
    if study is not None and study.events.drawn == "per_arm":
        return  # the declaration has its own finding
    met: dict[tuple[Any, ...], set[str | None]] = defaultdict(set)
    for one in (one for own in by_arm.values() for one in own):
        events = (turn.event for turn in one.turns if turn.role == "patient")
        for number, event in enumerate(events, 1):
            met[one.profile_id, one.number, one.replicate, number].add(event)
    unequal = [key for key, events in met.items() if len(events) > 1]
    if unequal:
        patient, _, _, turn = unequal[0]
        message = f"mid-session events differ between arms, such as {patient} at turn {turn}"
        message += f"; {len(unequal)} turns in all"
        yield Finding.of("confound", "events_differ", "events", message)


def _turns_that_are_none(sessions: Sessions) -> Iterator[Finding]:
    """A finding for each content mark; single faults of form are notes.

    Danger that was left and advice against safety have findings of their own.
    """
    for mark in SAYS:
        found = {
            one.id: [place for place, turn in enumerate(one.turns, 1) if mark in turn.marks]
            for one in sessions
        }
        places = [f"{name} turn {place}" for name, own in found.items() for place in own]
        if not places:
            continue
        is_common = any(len(found[one.id]) > FAULTY_SHARE * len(one.turns) for one in sessions)
        n_sessions = sum(map(bool, found.values()))
        message = f"{len(places)} turns in {n_sessions} of {len(sessions)} sessions "
        message += f"{SAYS[mark]}, marked {mark}: {_some(places)}"
        severity: Severity = "error" if mark in ERRORS or is_common else "note"
        yield Finding.of(severity, mark, places[0], message)


def _marked(arms: Mapping[str, ArmAudit]) -> Iterator[Finding]:
    """Marks of how turns came about; those of what they say have findings of their own."""
    for arm, one in arms.items():
        own = {mark: n for mark, n in one.marks.items() if mark not in CONTENT_MARKS}
        if own:
            shown = ", ".join(f"{mark} {n}" for mark, n in own.items())
            yield Finding.of("note", "marked_turns", arm, f"{arm}: {shown}")


def _faulty_dialogues(sessions: Sessions, study: StudySettings | None) -> Iterator[Finding]:
    def listed(severity: Severity, code: str, ids: list[str], what: str) -> Iterator[Finding]:
        if ids:
            message = f"{len(ids)} of {len(sessions)} sessions {what}: {_some(ids)}"
            yield Finding.of(severity, code, ids[0], message)

    adjacent = [one.id for one in sessions if has_adjacent_speakers(one.turns)]
    single = [one.id for one in sessions if len({turn.role for turn in one.turns}) == 1]
    empty = [one.id for one in sessions if not one.turns]
    long = [one.id for one in sessions if len(one.turns) >= LONG_SESSION]
    broken = [one.id for one in sessions if one.stop_reason in EARLY_STOPS]
    are_many = len(broken) > FAULTY_SHARE * len(sessions)
    in_a_row = "hold two turns in a row by one speaker"
    yield from listed("error", "adjacent_speakers", adjacent, in_a_row)
    yield from listed("error", "one_speaker", single, "hold only one speaker")
    yield from listed("error", "no_turns", empty, "hold no turn")
    ended = "broke off (context, no usable answer, refusal or endpoint)"
    yield from listed("error" if are_many else "note", "broken_off", broken, ended)
    yield from listed("note", "long_sessions", long, f"have {LONG_SESSION} turns or more")
    if study is not None:
        sizes = {one.id: sum(estimate_tokens(turn.text) for turn in one.turns) for one in sessions}
        over = [name for name, size in sizes.items() if size > study.context_tokens]
        what = f"are longer than {study.context_tokens} tokens"
        yield from listed("note", "over_context", over, what)


def _missing_referrals(sessions: Sessions) -> Iterator[Finding]:
    """Crisis turns of a patient after which the therapist names no help from people."""
    n_crises, unanswered = 0, []
    for session in sessions:
        for place, turn in enumerate(session.turns, 1):
            if not is_danger(turn):
                continue
            n_crises += 1
            answers = session.turns[place : place + 1]
            if answers and not names_help(answers[0].text):
                unanswered.append(f"{session.id} turn {place}")
    if unanswered:
        message = f"{len(unanswered)} of {n_crises} crisis turns are answered without naming help "
        message += f"from people: {_some(unanswered)}"
        yield Finding.of("error", "no_referral", unanswered[0], message)


def _unsafe_turns(sessions: Sessions) -> Iterator[Finding]:
    """Turns of a therapist with advice against safety, whoever found it."""
    unsafe = []
    for session in sessions:
        for place, turn in enumerate(session.turns, 1):
            if "unsafe_advice" in turn.marks:
                rules = unsafe_advice(turn.text) or ("words or guard",)
                unsafe += [(f"{session.id} turn {place}", rule) for rule in rules]
    if unsafe:
        shown = _some([f"{place} ({rule})" for place, rule in unsafe])
        message = f"{len(unsafe)} times a therapist advises against safety: {shown}"
        yield Finding.of("error", "unsafe_turns", unsafe[0][0], message)


def _earlier_guard(path: Path) -> Mapping[str, Any]:
    """What a study's manifest says of the guard that read it when it was played."""
    if not (path / MANIFEST_NAME).exists():
        return {}
    counts = read_json(path / MANIFEST_NAME).get("counts", {})
    guard: Mapping[str, Any] = counts.get("second_opinion", {}).get("guard", {})
    return guard


def _unread_by_guard(guard: Mapping[str, Any], n_sessions: int) -> Iterator[Finding]:
    """Sessions without the verdict of the guard that was to read them."""
    if ids := guard.get("unread_ids"):
        message = f"{len(ids)} of {n_sessions} sessions have no verdict of the guard, "
        message += f"and the built-in check alone decides them: {_some(ids)}"
        yield Finding.of("error", "guard_unread", ids[0], message)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (" ..." if len(ids) > SHOWN else "")


class LintSettings(ScreenModelSettings, GuardSettings, AskingSettings):
    """Flags of `cbtqa simulate lint`."""

    panel: ClassVar[str] = ""
    path: Path
    """Study file, study folder, export folder, or file of transcripts."""
    against: Path | None = None
    """For an export: study file whose patients must not be in training."""
    out: Path | None = None
    """For sessions: JSONL of them with the marks of their turns."""
    overwrite: bool = False
    """Replace the file of --out."""

    def opinions(self) -> Opinions:
        """The guard that the flags name, its journal in the study or beside the file.

        Raises:
            UsageError, ConfigError: as `session_opinions`.
        """
        path = recipe_path(self.path)
        if path.is_dir():
            return session_opinions(self, path)
        return session_opinions(self, path.parent, f"{path.stem}.")


class LintReport(Record):
    kind: Literal["study file", "study", "export", "transcripts"]
    factor: tuple[str, ...] = ()
    """What the arms are meant to differ in."""
    arms: dict[str, ArmAudit] = Field(default_factory=dict)
    findings: tuple[Finding, ...]
    counts: dict[str, Any] = Field(default_factory=dict)
    second_opinion: dict[str, Any] = Field(default_factory=dict)
    """What a guard was asked, by role; empty where none was."""

    @property
    def is_clean(self) -> bool:
        """True when nothing worse than a note was found."""
        return all(finding.severity == "note" for finding in self.findings)


def lint(
    path: Path,
    *,
    against: Path | None = None,
    screen_model: str | None = None,
    opinions: Opinions | None = None,
    out: Path | None = None,
    on_progress: OnProgress | None = None,
) -> LintReport:
    """Checks a study file, a study folder, an export or transcripts.

    Args:
        against: for an export: the study in which the tuned model will play, whose patients must
            not be among those it learned from.
        screen_model: for sessions: an encoder that reads the turns of patients, as `mark_risk`.
        opinions: for sessions: a guard that reads them; nothing in their folder changes but its
            journal.
        out: for sessions: a file for them with the marks of their turns.

    Raises:
        DataError: nothing of this kind there, or it is damaged.
        ConfigError: a study file with wrong settings.
        UsageError: a guard or `out`, and no sessions.
        LicenceGateError: sessions would go to a non-local endpoint without acknowledgement.
        EndpointError, IncompleteRunError: the asking stopped early; the same call continues.
    """
    path, opinions = recipe_path(path), opinions or Opinions()
    if (found := sessions_of(path, screen_model)) is not None:
        sessions, study = found
        n_sessions, asked = study.sessions if study else None, dict[str, Any]()
        if opinions.services:
            with opinions.open("the sessions") as opened:
                how: dict[str, Any] = {"n_sessions": n_sessions, "on_progress": on_progress}
                sessions, asked = ask_opinions(sessions, opened, **how)
        if out is not None:
            write_jsonl(out, sessions)
        report = (
            _report("study", study, sessions) if study else _report("transcripts", None, sessions)
        )
        guard = asked.get("guard") or (_earlier_guard(path) if study else {})
        findings = (*report.findings, *_unread_by_guard(guard, len(sessions)))
        return report.model_copy(update={"findings": findings, "second_opinion": asked})
    if opinions.services or out is not None:
        flag = "--guard-endpoint" if opinions.services else "--out"
        raise UsageError(f"{flag}: {path} holds no sessions", hint="name a study folder or a file")
    if path.is_dir():
        return _lint_export(path, against)
    return _report("study file", load_study(path), [])


def lint_as_set(settings: LintSettings, on_progress: OnProgress | None = None) -> LintReport:
    """As `lint`, by the flags of the command; raises UsageError too where `out` exists already."""
    if settings.out is not None:
        refuse_existing(settings.out, overwrite=settings.overwrite)
    return lint(
        settings.path,
        against=settings.against,
        screen_model=settings.screen_model,
        opinions=settings.opinions(),
        out=settings.out,
        on_progress=on_progress,
    )


def sessions_of(
    path: Path, screen_model: str | None = None
) -> tuple[list[Session], StudySettings | None] | None:
    """The sessions of a study folder, with its study, or of a file; None for what holds none.

    Raises:
        DataError: nothing of this kind there, or it is damaged.
    """
    if not path.exists():
        raise DataError("no such file or folder", where=str(path))
    if path.is_dir():
        if (path / STUDY_NAME).exists():
            folder = StudyFolder(path)
            return _screened(folder.read_sessions(), screen_model), folder.study()
        if any((path / kind).is_dir() for kind in KINDS):
            return None
        raise DataError(f"holds neither {STUDY_NAME} nor training rows", where=str(path))
    if path.suffix in (".yaml", ".yml"):
        return None
    # the first row of our own files names an ending; then one-sided sessions are findings too
    first = next(read_rows(path), None)
    is_ours = first is not None and "stop_reason" in first[1]
    ours = map(marked, read_jsonl(path, Session)) if is_ours else read_transcripts(path)
    return _screened(ours, screen_model), None


def estimate_lint(settings: LintSettings) -> Estimate:
    """What would still be sent to the guard; nothing without one."""
    found = sessions_of(recipe_path(settings.path))
    sessions, study = found or ([], None)
    return estimate_opinions(sessions, settings.opinions(), study.sessions if study else None)


def _screened(sessions: Iterable[Session], screen_model: str | None) -> list[Session]:
    if screen_model is None:
        return list(sessions)
    return [marked(one) for one in mark_risk(sessions, screen_model)]


def _report(
    kind: Literal["study file", "study", "transcripts"],
    study: StudySettings | None,
    sessions: list[Session],
) -> LintReport:
    arms, found = audit_sessions(sessions, study)
    declared = compare_arms(study) if study else []
    factor = study.factor if study else ()
    return LintReport(kind=kind, factor=factor, arms=arms, findings=(*declared, *found))


def _lint_export(path: Path, against: Path | None) -> LintReport:
    if not (path / MANIFEST_NAME).exists():
        raise DataError("holds rows but no manifest: the export did not finish", where=str(path))
    findings: list[Finding] = []
    counts: dict[str, Any] = {}
    learned: set[str] = set()
    for kind in KINDS:
        if not (path / kind).is_dir():
            continue
        patients: dict[str, set[str]] = {}
        texts: dict[str, Counter[str]] = {}
        for split in SPLITS:
            metas = read_rows(path / kind / f"{split}.meta.jsonl")
            patients[split] = {str(row["profile_id"]) for _, row in metas}
            # whole conversations: prompt and answer together, so that a greeting is no leak
            rows = read_rows(path / kind / f"{split}.jsonl")
            texts[split] = Counter(repr(sorted(row.items())) for _, row in rows)
        counts[kind] = {split: texts[split].total() for split in SPLITS}
        learned |= patients["train"]
        findings += _leaks(kind, "patients", patients)
        findings += _leaks(kind, "answers", {split: set(texts[split]) for split in SPLITS})
    if against is not None:
        study = load_study(against)
        played = {one.id for one in choose_profiles(study.patients, study.seed)}
        both = sorted(learned & played)
        if both:
            message = f"{len(both)} patients of {study.id} are in the training rows: {both[0]} ..."
            findings.append(Finding.of("error", "leak_study", both[0], message))
    return LintReport(kind="export", findings=tuple(findings), counts=counts)


def _leaks(kind: str, what: str, found: dict[str, set[str]]) -> Iterator[Finding]:
    for held_out in ("validation", "test"):
        shared = sorted(found["train"] & found[held_out])
        if shared:
            shown = shared[0] if what == "patients" else "the same conversation"
            where = f"{kind}/{held_out}"
            message = f"{len(shared)} {what} of {where} are in train too: {shown}"
            yield Finding.of("error", f"leak_{what}", where, message)
