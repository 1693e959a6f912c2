"""`run_study`: every therapist with every patient, resumed turn by turn from the journal.

    result = run_study(load_study(None), Path("study"))
    result.counts["stops"]             # {"attentive": {"ended": 10}, ...}

Each course (one arm, one patient, one repeat: one session, or several in order) is a coroutine.
Sessions are always rebuilt from the journal, so a run that was killed, one that continues and one
that finds everything done are the same thing; the same command resumes sessions that an
endpoint's failure stopped.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

import cbtqa
from cbtqa.errors import ConfigError, DataError, IncompleteRunError, UsageError
from cbtqa.files import write_json, write_jsonl
from cbtqa.llm.batch import BatchStoppedError, run_anywhere
from cbtqa.llm.chat import Fault
from cbtqa.llm.endpoint import BATCH_FILES
from cbtqa.llm.journal import Journal
from cbtqa.llm.progress import Progress, RecentRate
from cbtqa.llm.runs import EndpointSettings, Run, Service, open_run, refuse_foreign
from cbtqa.llm.second_opinion import GuardSettings, Opinions, ScreenEndpointSettings
from cbtqa.manifest import (
    MANIFEST_NAME,
    Manifest,
    SettingValue,
    describe_file,
    refuse_empty,
    write_manifest,
)
from cbtqa.prompts import shipped_prompts
from cbtqa.records import Provenance, Reason, Session, SessionState, StopReason
from cbtqa.safety.encoder import fingerprint_of
from cbtqa.safety.settings import ScreenModelSettings
from cbtqa.settings import Settings
from cbtqa.simulation.playing.course import cbt_course
from cbtqa.simulation.playing.messages import SessionView, plan_courses
from cbtqa.simulation.playing.opinions import ask_opinions, guard_of_turns
from cbtqa.simulation.playing.players import Players, RunLimits, endpoints_of
from cbtqa.simulation.playing.scripted import therapist_rules
from cbtqa.simulation.playing.session import ArmPlayers, PlayedSession
from cbtqa.simulation.playing.supervision import ask_state
from cbtqa.simulation.playing.writing import write_session
from cbtqa.simulation.profiles import Profile, choose_profiles
from cbtqa.simulation.sessions import (
    PROFILES_NAME,
    SESSIONS_NAME,
    STUDY_NAME,
    StudyFolder,
    mark_risk,
)
from cbtqa.simulation.study import Arm, Player, StudySettings, flattened, load_study

JOURNAL_FINGERPRINT = {"journal": "simulated sessions"}
FAILED = ("endpoint", "no_answer", "refused")
"""Endings of a session that failed."""
NOTICE = (
    "Simulated sessions for research: no patient is real, and nothing here is fit to treat anyone."
)


@dataclass(frozen=True)
class RunResult:
    folder: StudyFolder
    manifest: Manifest
    was_complete: bool
    """True when nothing had to be asked."""

    @property
    def counts(self) -> dict[str, Any]:
        return self.manifest.counts


def run_study(
    study: StudySettings,
    out: Path,
    *,
    limits: RunLimits | None = None,
    update: bool = False,
    is_acknowledged: bool = False,
    opinions: Opinions | None = None,
    screen_model: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Plays a study, or continues one that was interrupted.

    Args:
        update: play anew what was begun with other settings; its paid turns stay in the journal.
        is_acknowledged: the sessions may be passed on to the non-local endpoints of the study.
        opinions: further models that read the sessions and mark their turns.
        screen_model: an encoder that marks turns of patients, as `mark_risk`.
        on_progress: called twice a second; items are sessions.

    Raises:
        ConfigError: settings are wrong, or the folder holds these sessions with other settings.
        LicenceGateError: an endpoint is not local, and nobody acknowledged that.
        IncompleteRunError: stopped early, or an endpoint's failure left sessions unfinished.
        EndpointError: an endpoint refuses every request.
        KeyboardInterrupt: Ctrl-C; what was in flight was kept.
    """
    limits, described = limits or RunLimits(), dict[str, Any](fingerprint_of(screen_model))
    _refuse_unplayable(study)
    profiles = choose_profiles(study.patients, study.seed)
    folder = StudyFolder(out)
    refuse_foreign(folder.journal_path, "study")
    service = service_of(study.players(), limits, is_acknowledged=is_acknowledged)
    opinions, what = opinions or Opinions(), "the sessions"
    how: dict[str, Any] = {"further": opinions.services, "what": what}
    with (
        open_run(folder.journal_path, JOURNAL_FINGERPRINT, service, **how) as opened,
        opinions.open(what) as second,
    ):
        study = study if update else as_begun(study, profiles, opened.journal)
        courses = plan_courses(study, profiles)
        refuse_other_settings(opened.journal, courses, folder, update=update)
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        write_json(out / STUDY_NAME, study)
        write_jsonl(out / PROFILES_NAME, profiles)
        run = _StudyRun(courses, opened.journal, limits, on_progress)
        sessions = list(mark_risk(run.run(), screen_model))
        write_jsonl(folder.sessions_path, sessions)
        run.raise_what_stopped_it()
        if second.runs:
            spent = run.players.cost or 0.0
            how = {"n_sessions": study.sessions}
            sessions, asked = ask_opinions(sessions, second, [opened], spent, on_progress, **how)
            described |= {"second_opinion": asked}
            write_jsonl(folder.sessions_path, sessions)
        manifest = _manifest(folder, courses, sessions, opened, run.players.cost, described)
    write_manifest(out, manifest)
    _refuse_unfinished(sessions, folder)
    return RunResult(folder, manifest, was_complete=run.was_complete)


def _refuse_unplayable(study: StudySettings) -> None:
    for arm in study.arms:
        if arm.therapist.scripted is not None:
            therapist_rules(arm.therapist.scripted)  # refuses an unknown one
    most = cbt_course().n_sessions
    if study.written and study.sessions > most:
        raise ConfigError(f"sessions: {study.sessions} wanted, the course to be written has {most}")


def service_of(
    players: Iterable[Player], limits: RunLimits, *, is_acknowledged: bool
) -> Service | None:
    """The endpoints of all players together, for the gate; None when none is at an endpoint."""
    how = {"allows_plain_http": limits.allows_plain_http}
    endpoints = tuple(
        server for one in players for server in endpoints_of(one, limits.transport, **how)
    )
    if any(one.is_batch for one in endpoints):
        problem = f"a player's endpoint is {BATCH_FILES}FOLDER, and players are asked one by one"
        raise ConfigError(problem, hint="name a server; simulate judge takes it for a judge")
    service = Service(endpoints, limits.engine, is_acknowledged=is_acknowledged)
    return service if endpoints else None


def as_begun(study: StudySettings, profiles: Sequence[Profile], journal: Journal) -> StudySettings:
    """The study with the version of the shipped prompts that the folder was begun with.

    A study that names no version plays with the newest; one that was begun before there were
    newer ones goes on with its own, and keeps that version.
    """
    known = _known_marks(journal)
    if study.prompt_version is not None or not known:
        return study
    newest = max(prompt.header.version for prompt in shipped_prompts().values())
    for version in (None, *range(newest, 0, -1)):
        tried = study.model_copy(update={"prompt_version": version})
        given = {view.course: view.fingerprint for view in plan_courses(tried, profiles)}
        shared = given.keys() & known.keys()
        if shared and all(given[name] in known[name] for name in shared):
            return tried
    return study


def _known_marks(journal: Journal) -> dict[str, set[str]]:
    """Fingerprints of the courses that a journal holds turns of."""
    known: dict[str, set[str]] = {}
    for key in journal.done_keys():
        session, fingerprint, *_ = key.split("|")
        arm, patient, _, replicate = session.split("/")
        known.setdefault(f"{arm}/{patient}/{replicate}", set()).add(fingerprint)
    return known


def refuse_other_settings(
    journal: Journal, courses: Sequence[SessionView], folder: StudyFolder, *, update: bool
) -> None:
    """Compares every course with the turns that the journal holds of it.

    A folder may grow by arms, patients, repeats and sessions; a course begun with other settings
    is refused, so that nothing paid for is mixed up or quietly paid for again.

    Raises:
        ConfigError: some were played with other settings, and `update` is not set.
    """
    study, known = courses[0].study, _known_marks(journal)
    are_asked = any(player.endpoint for player in study.players())
    n_answers = 0
    for key in journal.done_keys():
        player = _player_of(study, key)
        n_answers += player is None or player.scripted is None
    given = {view.course: view.fingerprint for view in courses}
    changed = [name for name, mark in given.items() if mark not in known.get(name, {mark})]
    if are_asked and not n_answers:
        return  # the rules alone have spoken, and no model answered them
    if changed and not update:
        message = f"{folder.path} holds {len(changed)} of these courses with other settings, "
        message += f"such as {changed[0]}:"
        raise ConfigError(
            "\n".join([message, *_differences(folder, courses[0].study)]),
            hint="name a new --out, or add --update to play them anew",
        )


def _differences(folder: StudyFolder, study: StudySettings) -> list[str]:
    """The settings that differ from those in the folder, one a line."""
    try:
        was, now_is = _by_name(folder.study()), _by_name(study)
    except DataError:
        return []
    names = [name for name in was | now_is if was.get(name) != now_is.get(name)]
    lines = [f"  {name}: was {was.get(name)!r}, is {now_is.get(name)!r}" for name in names]
    return lines or ["  a prompt, a sentence of the messages or a profile changed"]


def _by_name(study: StudySettings) -> dict[str, Any]:
    plain = study.model_dump(mode="json")
    return flattened({**plain, "arms": {arm["name"]: arm for arm in plain["arms"]}})


class _StudyRun:
    def __init__(
        self,
        courses: Sequence[SessionView],
        journal: Journal,
        limits: RunLimits,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._courses, self._on_progress = courses, on_progress
        self._study, n = courses[0].study, limits.engine.in_flight
        self._in_flight = n * most_servers(self._study.players())
        report = self._report if on_progress else None
        self.players = Players(journal, limits, self._study.attempts, report)
        self._finished: list[list[Session]] = [[] for _ in courses]
        self._n_done = 0
        self._rate = RecentRate()

    def run(self) -> list[Session]:
        """Finished sessions in the order of the courses."""
        run_anywhere(self._play())
        return [session for course in self._finished for session in course]

    def raise_what_stopped_it(self) -> None:
        try:
            self.players.line.conclude()
        except BatchStoppedError as stopped:
            raise IncompleteRunError(
                f"{stopped}; {self._n_done} sessions are finished", hint=stopped.hint
            ) from None

    @property
    def was_complete(self) -> bool:
        meter = self.players.line.meter
        return not (meter.n_requests or meter.n_accepted or meter.rejected)

    async def _play(self) -> None:
        async with self.players.line as line:
            study, players = self._study, self.players
            opened = {arm.name: await _open_players(players, study, arm) for arm in study.arms}
            players.book_earlier(partial(_player_of, study))
            # so many courses at a time: finished sessions come early, memory stays small
            room = asyncio.Semaphore(self._in_flight)
            for view, sessions in zip(self._courses, self._finished, strict=True):
                line.start(self._course(view, opened[view.arm.name], room, sessions))

    async def _course(
        self,
        view: SessionView,
        arm_players: ArmPlayers,
        room: asyncio.Semaphore,
        sessions: list[Session],
    ) -> None:
        """Adds the finished sessions of one course, given its first."""
        async with room:
            for number in range(1, self._study.sessions + 1):
                view = replace(view, number=number)
                if self._study.written:
                    session = await write_session(view, arm_players.therapist, self.players)
                    reason = Reason.ENDPOINT if session.stop_reason == "endpoint" else Reason.EMPTY
                    fault = Fault(reason, f"session {number} was not written to its end")
                    state: SessionState | Fault | None = session.state or fault
                else:
                    session = await PlayedSession(view, arm_players, self.players).play()
                    state = await self._handed_over(view, session, arm_players)
                if isinstance(state, SessionState):
                    session = session.model_copy(update={"state": state})
                    view = replace(view, state=state)
                sessions.append(session)
                self._n_done += 1
                if isinstance(state, Fault):
                    sessions += _not_played(view, state)
                    return

    async def _handed_over(
        self, view: SessionView, session: Session, arm_players: ArmPlayers
    ) -> SessionState | Fault | None:
        """State for the next session; None where sessions are single; a fault ends the course."""
        if self._study.sessions == 1 or arm_players.summariser is None:
            return None
        if session.stop_reason == "endpoint":
            return Fault(Reason.ENDPOINT, f"session {session.number} did not end")
        if session.n_therapist_turns == 0:
            return Fault(Reason.EMPTY, f"session {session.number} has no therapist turn")
        return await ask_state(self.players, arm_players.summariser, view, session)

    def _report(self, plain: Progress) -> None:
        """The line's progress, counted in sessions."""
        assert self._on_progress is not None
        n_total = len(self._courses) * self._study.sessions
        if not plain.n_requests:  # what ended so far was in the journal
            self._rate = RecentRate(self._n_done)
        rate = self._rate.per_s(self._n_done, self._in_flight)
        self._on_progress(
            replace(
                plain,
                n_total=n_total,
                n_skipped=0,
                n_accepted=self._n_done,
                n_rejected=0,
                limit=self._in_flight,
                cost=self.players.cost or None,
                rate_per_s=rate,
                eta_s=(n_total - self._n_done) / rate if rate else None,
            )
        )


def _not_played(view: SessionView, fault: Fault) -> list[Session]:
    """The sessions after the one with which a course broke off: no turns, and the reason."""
    reason: StopReason = "endpoint" if fault.reason is Reason.ENDPOINT else "no_answer"
    stop = reason, f"not played: {fault.detail}"
    provenance = Provenance(model=view.arm.therapist.name, version=cbtqa.__version__)
    numbers = range(view.number + 1, view.study.sessions + 1)
    return [replace(view, number=number).session((), stop, provenance) for number in numbers]


def _player_of(study: StudySettings, key: str) -> Player | None:
    """Who answered under a key such as `arm/patient/s1/r1|3f2a...|therapist3|v0`."""
    session, _, part, *_ = (*key.split("|"), "", "")
    arms = {arm.name: arm.therapist for arm in study.arms}
    role = part.rstrip("0123456789")
    if role in ("therapist", "part"):
        return arms.get(session.split("/")[0])
    others = {"patient": study.patient, "supervisor": study.supervisor}
    others |= {"validator": study.validator, "summary": study.summariser}
    others |= {"guard_patient": study.guard, "guard_therapist": study.guard}
    return others.get(role)


async def _open_players(players: Players, study: StudySettings, arm: Arm) -> ArmPlayers:
    others = (study.supervisor, study.validator, study.summariser, study.guard)
    opened = [await players.open(player) if player else None for player in others]
    return ArmPlayers(await players.open(arm.therapist), await players.open(study.patient), *opened)


def _manifest(
    folder: StudyFolder,
    courses: Sequence[SessionView],
    sessions: Sequence[Session],
    opened: Run,
    cost: float | None,
    described: Mapping[str, Any],
) -> Manifest:
    names = (STUDY_NAME, PROFILES_NAME, SESSIONS_NAME)
    views = {view.arm.name: view for view in courses}
    prompts = [prompt for view in views.values() for prompt in view.prompts]
    stops: dict[str, Counter[str]] = {}
    for session in sessions:
        stops.setdefault(session.arm, Counter())[session.stop_reason] += 1
    counts = {
        "n_sessions": len(sessions),
        "n_turns": sum(len(session.turns) for session in sessions),
        "stops": {arm: dict(sorted(found.items())) for arm, found in stops.items()},
        **described,
    }
    second = described.get("second_opinion", {}).values()
    costs = [one["cost"]["amount"] for one in second if one["cost"]]
    total = None if cost is None and not costs else (cost or 0.0) + sum(costs)
    return opened.manifest(
        "study",
        None,
        settings={"study": SettingValue(value=courses[0].study.id, origin=STUDY_NAME)},
        prompts={prompt.name: prompt.sha256 for prompt in prompts},
        counts=counts,
        cost=None if total is None else {"value": round(total, 6)},
        acknowledgements={"notice": NOTICE, **opened.acknowledgements},
        files=tuple(describe_file(folder.path / name, folder.path) for name in names),
    )


def _refuse_unfinished(sessions: Sequence[Session], folder: StudyFolder) -> None:
    failed = [session for session in sessions if session.stop_reason == "endpoint"]
    if failed:
        raise IncompleteRunError(
            f"an endpoint failed in {len(failed)} of {len(sessions)} sessions, such as "
            f"{failed[0].id}: {failed[0].stop_detail}",
            hint="give the same command again; it resumes these sessions where they stopped",
        )
    bad = [one for one in sessions if one.stop_reason in FAILED or not one.n_therapist_turns]
    reasons = Counter[str](session.stop_reason for session in bad)
    first = f", such as {bad[0].id}: {bad[0].stop_detail}" if bad else ""
    refuse_empty(
        *(len(sessions) - len(bad), len(sessions), f"sessions was played{first}", reasons),
        kept=folder.path,
        hint="change what it names in the study file, then play it with --update, or ask the "
        "same again with --retry rejected",
    )


def most_servers(players: Iterable[Player]) -> int:
    """How many servers answer for the player that has most of them; 1 where nobody is asked."""
    return max([1, *(len(one.endpoints) for one in players)])


def at_endpoint(player: Player, settings: EndpointSettings) -> Player:
    """The player as the flags have it: other servers, model or price, further fields.

    Only a player that is asked at an endpoint changes.
    """
    if not player.endpoints:
        return player
    changes: dict[str, Any] = {}
    if settings.endpoint:
        servers = tuple(dict.fromkeys(settings.endpoint))
        changes["endpoint"] = servers[0] if len(servers) == 1 else servers
    if settings.model:
        changes["model"] = settings.model
    if settings.price_in is not None:
        changes |= {"price_in": settings.price_in, "price_out": settings.price_out}
    if settings.extra:
        changes["extra"] = player.extra | settings.extra
    return player.model_copy(update=changes)


class PlayersSettings(EndpointSettings):
    """The block of flags where a study file names who is asked; they hold for all its models."""

    endpoint: tuple[str, ...] = ()
    """Base URL or preset of the server that is asked in place of those in the study file. May be
    repeated: servers of the same models share the work."""
    model: str | None = None
    """Model that is asked in place of those at endpoints in the study file."""
    max_attempts: int = Field(3, ge=1, le=20)
    """Replies asked for in one place, faulty ones included. Default: the study file's."""

    why_one_by_one: ClassVar[str] = (
        "it takes requests that are independent of one another, and a turn of a session needs the "
        "reply before it"
    )
    """Why no cluster and no Batch API can be asked."""

    @property
    def run_limits(self) -> RunLimits:
        """How fast and how much, as a run takes it.

        Raises:
            UsageError: a way of sending that no session can be played over.
        """
        is_batch_files = any(one.startswith(BATCH_FILES) for one in self.endpoint)
        ways = {
            "--cluster": self.cluster is not None,
            "--transport batch-api": self.transport == "batch-api",
            f"--endpoint {BATCH_FILES}FOLDER": is_batch_files,
        }
        if way := next((name for name, is_given in ways.items() if is_given), None):
            raise UsageError(
                f"{way}: {self.why_one_by_one}",
                hint="several --endpoint share the work; simulate profiles and simulate judge "
                f"take {way}",
            )
        is_open = self.allow_plain_http
        return RunLimits(self.limits, self.budget, self.budget_tokens, self.transport, is_open)


class _StudySettings(Settings):
    """What the flags replace in a study file."""

    panel: ClassVar[str] = "Study"
    seed: int | None = None
    """Seed in place of the file's."""
    replicates: int | None = Field(None, ge=1)
    """Repeats in place of the file's."""
    patients: int | None = Field(None, ge=1)
    """Only the first N patients."""
    arm: tuple[str, ...] = ()
    """Only this arm. May be repeated."""


class RunSettings(
    _StudySettings, PlayersSettings, ScreenModelSettings, ScreenEndpointSettings, GuardSettings
):
    """Flags of `cbtqa simulate run`."""

    study: Path | None = None
    """YAML file of the study, or a recipe by name, such as tahir-act. Default: a small study
    between built-in players (rules, no model); with --endpoint and --model, six sessions in which
    that model plays both sides."""
    out: Path = Path("cbtqa-study")
    """Folder of the study."""
    guard_turns: bool = False
    """Have the guard read each new turn, too, while a session is played: a turn that it names is
    asked for again with the fault, then marked."""

    @property
    def _built_in(self) -> str:
        return "demo-endpoint" if self.endpoint or self.model else "demo"

    def declared(self) -> StudySettings:
        """The study file with what the flags replace.

        Raises:
            ConfigError: the file is wrong, or it has no such arm.
            DataError: no such file.
            UsageError: `--endpoint` or `--model` for a study that asks no endpoint, or one of them
                without a study file.
        """
        study = load_study(self.study, built_in=self._built_in)
        if study.id == "demo-endpoint" and not (self.endpoint and self.model):
            raise UsageError(
                "--endpoint and --model go together where no study file names the other",
                hint="add --model NAME (--endpoint URL), or name a study file",
            )
        given = {"seed": self.seed, "replicates": self.replicates}
        changes: dict[str, object] = {key: one for key, one in given.items() if one is not None}
        if self.patients is not None:
            changes["patients"] = study.patients.model_copy(update={"n": self.patients})
        if "max_attempts" in self.model_fields_set:
            changes["attempts"] = self.max_attempts
        arms = tuple(study.arm(name) for name in self.arm) or study.arms
        changes["arms"] = tuple(
            arm.model_copy(update={"therapist": at_endpoint(arm.therapist, self)}) for arm in arms
        )
        for role in ("patient", "supervisor", "validator", "summariser", "guard"):
            if (player := getattr(study, role)) is not None:
                changes[role] = at_endpoint(player, self)
        changed = study.model_copy(update=changes)
        if self.guard_turns:
            changed = changed.model_copy(update={"guard": guard_of_turns(self, study)})
        if (self.endpoint or self.model) and not any(one.endpoint for one in changed.players()):
            raise UsageError(
                f"--endpoint and --model: no player of study '{study.id}' is asked at an endpoint",
                hint="name endpoints in a study file of your own: cbtqa simulate run mine.yaml",
            )
        return changed


class CorpusSettings(RunSettings):
    """Flags of `cbtqa simulate corpus`."""

    study: Path | None = None
    """YAML file of the corpus, or a recipe by name, such as tahir-cbt-corpus. Default: a small
    one by the built-in players (rules, no model)."""
    approach: Literal["cbt", "act"] = "cbt"
    """Which built-in corpus: cbt writes courses of twenty sessions in four calls each, act plays
    single sessions turn by turn under a supervisor."""
    out: Path = Path("cbtqa-corpus")
    """Folder of the corpus."""

    @property
    def _built_in(self) -> str:
        return f"demo-corpus-{self.approach}"
