"""`cbtqa simulate judge`: every judge on every instrument, one folder each.

judged/<instrument>/instrument.json    items, ranges and totals, in our words
judged/<instrument>/<judge>/
  journal.sqlite    every paid reply; the same command continues from it
  ratings.jsonl     one `records.ItemRating` a line, unscored ones with their reason
  manifest.json     written last: what judged, on what words, at what cost

Beside the instruments named, `session-safety` is rated, in calls and a folder of its own. A judge
or an instrument added later gets a folder of its own beside the others.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import parse_record, read_json, write_json, write_jsonl
from cbtqa.judging.asking import AGAIN, JudgingSettings, Verdict, estimate_rating, rate
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import Sampling
from cbtqa.llm.cost import Estimate, Price, sum_estimates
from cbtqa.llm.runs import Run, Service, open_run
from cbtqa.manifest import (
    MANIFEST_NAME,
    Manifest,
    describe_file,
    new_manifest,
    now,
    refuse_empty,
    write_manifest,
)
from cbtqa.ratings.rubric import Rubric
from cbtqa.records import ItemRating, Record, Session, Usage
from cbtqa.safety.encoder import fingerprint_of
from cbtqa.safety.settings import ScreenModelSettings
from cbtqa.settings import Resolved
from cbtqa.simulation.instruments import SAFETY, Instrument, load_instrument
from cbtqa.simulation.judging.task import (
    RULES,
    SessionAsk,
    SessionJudge,
    make_rating,
    rate_by_rules,
    unfit_reason,
)
from cbtqa.simulation.playing.players import endpoints_of
from cbtqa.simulation.sessions import StudyFolder, mark_risk, read_transcripts
from cbtqa.simulation.study import Player, StudySettings

JUDGED, JOURNAL_NAME, RATINGS_NAME = "judged", "journal.sqlite", "ratings.jsonl"
INSTRUMENT_NAME = "instrument.json"
KIND = "session-ratings"
REPLY_TOKENS = 60
"""Of one item in a reply: a quote, a sentence and a number; assumed for the dry run."""


class SessionJudgeSettings(JudgingSettings, ScreenModelSettings):
    """Flags of `cbtqa simulate judge`."""

    sessions: Path = Path("cbtqa-study")
    """Study folder, or a file with transcripts."""
    instrument: tuple[str, ...] = ()
    """Instrument id or rubric file; several: several calls each."""
    safety: bool = True
    """Rate safety, too (danger met, limits kept, no harm said), in calls of its own."""
    wording: Path | None = None
    """File with the exact words of the form, for those who may use it."""
    model: tuple[str, ...] = ()  # type: ignore[assignment]  # here several models may be named
    """Judge at the endpoint. May be repeated."""
    rules: bool = False
    """Use the built-in rules (no model) whatever the study declares."""
    prompt: str = "judge_session"
    """Prompt, or the path of your own."""
    max_tokens: int = Field(default=4096, ge=64)
    """Token limit of one reply."""
    keep_marked: bool = False
    """Rate sessions with marked turns, too. Otherwise those stay unscored of which a turn is a
    program's, about the task or the other side's, or which have faults of form in more than one
    and a tenth of the turns."""
    max_turns: int = Field(default=250, ge=2)
    """Longer sessions stay unscored."""
    max_transcript_tokens: int = Field(default=24_000, ge=100)
    """Longer transcripts stay unscored (estimated tokens)."""
    out: Path | None = None
    """Folder of journals and ratings (default: judged/ in the study)."""


@dataclass(frozen=True)
class JudgeSpec:
    """One judge; without a service it is the built-in rules."""

    name: str
    service: Service | None
    sampling: Sampling
    n_repeats: int


def judges_of(settings: SessionJudgeSettings, study: StudySettings | None) -> Iterator[JudgeSpec]:
    """The judges of a run: those named, else those the study declares, else the rules.

    Raises:
        UsageError: half a judge is named, or one that is no endpoint.
    """
    sampling = settings.drawn(settings.max_tokens)
    if settings.endpoint or settings.model:
        if not (settings.endpoint and settings.model):
            raise UsageError(
                "--endpoint and --model go together", hint="--endpoint vllm --model Qwen3-32B"
            )
        for model in dict.fromkeys(settings.model):
            yield JudgeSpec(model, settings.service(model), sampling, settings.repeats)
        return
    declared = study.judges if study and not settings.rules else ()
    if not declared:
        yield JudgeSpec(RULES, None, sampling, 1)
    for judge in declared:
        yield _declared(settings, judge.player, judge.repeats, sampling)


def _declared(
    settings: SessionJudgeSettings, player: Player, n_repeats: int, default: Sampling
) -> JudgeSpec:
    if player.scripted:
        return JudgeSpec(RULES, None, default, 1)
    if not player.endpoints:
        raise UsageError(
            "a judge is an endpoint with a model, or scripted rules",
            hint="serve a local model (vllm, llama.cpp, ollama) and name its endpoint",
        )
    own: dict[str, Any] = {
        "top_p": player.top_p,
        "stop": player.stop,
        "extra": player.extra | settings.extra,
        # a player's default limit fits one turn of a session, not twenty-five items with quotes
        "max_tokens": max(player.max_tokens, default.max_tokens or 0),
    }
    if player.temperature is not None:
        own["temperature"] = player.temperature
    price = None
    if player.price_in is not None and player.price_out is not None:
        price = Price(input=player.price_in, output=player.price_out)
    how = {"allows_plain_http": settings.allow_plain_http}
    endpoints = endpoints_of(player, settings.transport, **how)
    service = Service.of(settings, endpoints, price)
    return JudgeSpec(player.name, service, default.model_copy(update=own), n_repeats)


class JudgedForm(Record):
    """One judge on one instrument, when it has ended."""

    judge: str
    instrument: str
    n_sessions: int
    n_repeats: int
    n_ratings: int
    n_scored: int
    unscored: dict[str, int]
    """Reason to number of items."""
    n_asked_again: int = 0
    """Ratings whose first one had a fault, so that their item was asked about by itself."""
    n_mended: int = 0
    """Those that are scored since."""
    usage: Usage | None
    cost: float | None


@dataclass(frozen=True)
class _Work:
    resolved: Resolved[SessionJudgeSettings]
    sessions: tuple[Session, ...]
    unfit: dict[str, str]
    """Session to the reason why it cannot be judged."""
    n_of_course: dict[str, int]
    """Session to the sessions of its course, where that is known."""
    instrument: Instrument
    judge: JudgeSpec
    out: Path

    @property
    def folder(self) -> Path:
        name = re.sub(r"[^\w.+-]+", "-", self.judge.name).strip(".") or "judge"
        return self.out / self.instrument.id / name

    @property
    def name(self) -> str:
        return f"{self.judge.name} on {self.instrument.id}"

    def asks(self) -> list[SessionAsk]:
        fit = (session for session in self.sessions if session.id not in self.unfit)
        n, known = self.judge.n_repeats, self.n_of_course
        return [SessionAsk.of(one, i + 1, known.get(one.id)) for one in fit for i in range(n)]

    def unfit_ratings(self) -> Iterator[ItemRating]:
        """Every item of a session that is not sent, with the reason."""
        for name, reason in self.unfit.items():
            for repeat in range(1, self.judge.n_repeats + 1):
                for item in self.instrument.items:
                    yield ItemRating(
                        session_id=name,
                        instrument=self.instrument.id,
                        item=item.id,
                        value=None,
                        unscored_reason=reason,
                        judge=self.judge.name,
                        repeat=repeat,
                    )

    def task(self, service: Service) -> SessionJudge:
        rubric, sampling = self.instrument.rubric, self.judge.sampling
        prompt = self.resolved.values.prompt
        return SessionJudge(rubric, rubric.id, sampling, service.model, service.host, prompt)


def judge_sessions(
    resolved: Resolved[SessionJudgeSettings],
    on_progress: OnProgress | None = None,
    on_stage: Callable[[str], None] = lambda words: None,
) -> list[JudgedForm]:
    """Rates every session with every judge on every instrument, or continues.

    Raises:
        UsageError: no instrument, no sessions, or no folder to write to.
        ConfigError: a folder belongs to another judge, prompt or wording.
        DataError: a file that is not what it should be.
        LicenceGateError: transcripts would leave this machine without acknowledgement.
        IncompleteRunError: stopped early; the same call continues.
    """
    forms = []
    works = _prepare(resolved)
    for work in works:
        on_stage(work.name)
        forms.append(_judge_one(work, on_progress))
    n_scored, n_in = (
        sum(getattr(one, name) for one in forms) for name in ("n_scored", "n_ratings")
    )
    reasons = sum((Counter(form.unscored) for form in forms), Counter[str]())
    refuse_empty(n_scored, n_in, "items was scored", reasons, kept=works[0].out)
    return forms


def estimate_judging(resolved: Resolved[SessionJudgeSettings]) -> Estimate:
    """What a run would still send, by judge and instrument; the rules are sent nothing.

    Raises:
        CbtqaError: what `judge_sessions` raises before it asks.
    """
    works, parts = _prepare(resolved), []
    for work in works:
        service = work.judge.service
        part = estimate_rating(
            service,
            work.folder / JOURNAL_NAME,
            work.asks(),
            work.task(service) if service else None,
            name="sessions",
            reply_tokens=REPLY_TOKENS,
        )
        parts.append(part.model_copy(update={"name": work.name}))
    n_sessions, n_unfit = len(works[0].sessions), len(works[0].unfit)
    return sum_estimates("sessions", n_sessions, n_unfit, parts)


def _prepare(resolved: Resolved[SessionJudgeSettings]) -> list[_Work]:
    settings = resolved.values
    if not settings.sessions.exists():
        raise DataError(
            "no such study or file", where=str(settings.sessions), hint="cbtqa simulate run"
        )
    study = StudyFolder(settings.sessions).study() if settings.sessions.is_dir() else None
    names = settings.instrument or (study.instruments if study else ())
    if not names:
        raise UsageError("no instrument is named", hint="add --instrument ctrs (or act-fm, tes)")
    if settings.wording and len(names) > 1:
        raise UsageError("--wording holds the words of one instrument", hint="name just that one")
    out = settings.out or (settings.sessions / JUDGED if study else None)
    if out is None:
        raise UsageError("where to? transcripts in a file want --out", hint="add --out FOLDER")
    sessions = tuple(mark_risk(read_transcripts(settings.sessions), settings.screen_model))
    if not sessions:
        raise UsageError("there are no sessions to judge", hint="cbtqa simulate run")
    judges = tuple(judges_of(settings, study))
    instruments = [load_instrument(name, settings.wording) for name in dict.fromkeys(names)]
    if settings.safety and SAFETY not in names:
        instruments.append(load_instrument(SAFETY))
    n_of_course = _lengths_of_courses(sessions, study)
    most, keeps = (settings.max_turns, settings.max_transcript_tokens), settings.keep_marked
    reasons = {one.id: unfit_reason(one, *most, keeps_marked=keeps) for one in sessions}
    unfit = {name: reason for name, reason in reasons.items() if reason}
    return [
        _Work(resolved, sessions, unfit, n_of_course, instrument, judge, out)
        for instrument in instruments
        for judge in judges
    ]


def _lengths_of_courses(sessions: Sequence[Session], study: StudySettings | None) -> dict[str, int]:
    """Session to how many its course has; of a file, only where it holds a later session."""
    declared = study.sessions if study else 0
    last: dict[tuple[str, str, int], int] = defaultdict(lambda: declared)
    for one in sessions:
        if one.number > 1:
            last[_course_of(one)] = max(last[_course_of(one)], one.number)
    found = {one.id: last[_course_of(one)] for one in sessions}
    return {name: n for name, n in found.items() if n}


def _course_of(session: Session) -> tuple[str, str, int]:
    return session.arm, session.profile_id, session.replicate


def _judge_one(work: _Work, on_progress: OnProgress | None) -> JudgedForm:
    started, service = now(), work.judge.service
    if service is None:
        _begin(work)
        verdicts: Iterable[tuple[SessionAsk, str, Verdict]] = (
            (ask, item, verdict)
            for ask in work.asks()
            for item, verdict in rate_by_rules(work.instrument, ask).items()
        )
        return _finish(work, verdicts, partial(new_manifest, started_at=started))
    task = work.task(service)
    with open_run(
        work.folder / JOURNAL_NAME,
        task.fingerprint(),
        service,
        what="the transcripts",
        hint="ratings made otherwise are in it: name another folder with --out",
    ) as run:
        _begin(work)
        verdicts = rate(run, work.asks(), task, on_progress)
        how: dict[str, Any] = {"prompts": {task.prompt.name: task.prompt.sha256}, "apart": AGAIN}
        return _finish(work, verdicts, partial(run.manifest, **how), run)


def _begin(work: _Work) -> None:
    """Writes the form beside its judges, once: two forms of one name never share a folder."""
    path, instrument = work.folder.parent / INSTRUMENT_NAME, work.instrument
    if not path.exists():
        write_json(path, instrument.printable)
    elif parse_record(Rubric, read_json(path), str(path)) != instrument.printable:
        raise ConfigError(
            f"{path.parent} holds ratings on another form called '{instrument.id}'",
            hint="name another folder with --out, or give your rubric an id of its own",
        )
    (work.folder / MANIFEST_NAME).unlink(missing_ok=True)


def _finish(
    work: _Work,
    verdicts: Iterable[tuple[SessionAsk, str, Verdict]],
    make_manifest: Callable[..., Manifest],
    run: Run | None = None,
) -> JudgedForm:
    folder, instrument, judge = work.folder, work.instrument, work.judge
    found = list(verdicts)
    again = [verdict for _, _, verdict in found if verdict.n_again]
    ratings = [make_rating(ask, instrument.id, item, one, judge.name) for ask, item, one in found]
    ratings += work.unfit_ratings()
    write_jsonl(folder / RATINGS_NAME, ratings)
    reasons = (one.unscored_reason.partition(":")[0] for one in ratings if one.unscored_reason)
    cost = run.cost if run else None
    form = JudgedForm(
        judge=judge.name,
        instrument=instrument.id,
        n_sessions=len(work.sessions),
        n_repeats=judge.n_repeats,
        n_ratings=len(ratings),
        n_scored=sum(one.value is not None for one in ratings),
        unscored=dict(Counter(reasons)),
        n_asked_again=len(again),
        n_mended=sum(one.value is not None for one in again),
        usage=run.usage if run else None,
        cost=cost["amount"] if cost else None,
    )
    source = work.resolved.values.sessions
    path = StudyFolder(source).sessions_path if source.is_dir() else source
    manifest = make_manifest(
        KIND,
        work.resolved,
        inputs=(describe_file(path),),
        counts={
            **form.model_dump(mode="json", exclude={"usage", "cost"}),
            "instrument_sha256": instrument.rubric.sha256,
            "wording": instrument.wording,
            "host": judge.service.host if judge.service else None,
            **fingerprint_of(work.resolved.values.screen_model),
        },
        files=(describe_file(folder / RATINGS_NAME, folder),),
    )
    write_manifest(folder, manifest)
    return form
