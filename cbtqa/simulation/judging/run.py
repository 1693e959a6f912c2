"""`cbtqa simulate judge`: every judge on every instrument, one folder each.

judged/<instrument>/instrument.json    items, ranges and totals, in our words
judged/<instrument>/<judge>/
  journal.sqlite    every paid reply; the same command continues from it
  ratings.jsonl     one `records.ItemRating` a line, unscored ones with their reason
  manifest.json     written last: what judged, on what words, at what cost

A judge or an instrument added later gets a folder of its own beside the others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from cbtqa.errors import ConfigError, DataError, LicenceGateError, UsageError
from cbtqa.files import parse_record, read_json, write_json, write_jsonl
from cbtqa.llm.batch import run_batch
from cbtqa.llm.chat import Sampling
from cbtqa.llm.cost import Budget, Price, find_price, plan_run
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.llm.progress import Progress
from cbtqa.manifest import (
    MANIFEST_NAME,
    Manifest,
    describe_file,
    describe_settings,
    now,
    package_versions,
    write_manifest,
)
from cbtqa.ratings.rubric import Rubric
from cbtqa.records import ItemRating, Record, Session, Usage
from cbtqa.settings import Resolved, Settings
from cbtqa.simulation.instruments import Instrument, load_instrument
from cbtqa.simulation.judging.task import (
    RULES,
    JudgeLimits,
    RuleJudge,
    SessionAsk,
    SessionJudgeTask,
    make_rating,
    read_ratings,
    unfit_ratings,
    unfit_reason,
)
from cbtqa.simulation.sessions import StudyFolder, read_transcripts
from cbtqa.simulation.study import Player, StudySettings

# --- judges --------------------------------------------------------------------------------------
# Which judges rate a study: those named on the command line, those it declares, or the rules.


@dataclass(frozen=True)
class JudgeSpec:
    """One judge; without an endpoint it is the built-in rules."""

    name: str
    endpoint: Endpoint | None
    sampling: Sampling
    n_repeats: int
    price: Price | None = None


def judges_of(settings: SessionJudgeSettings, study: StudySettings | None) -> Iterator[JudgeSpec]:
    """The judges of a run: those named, else those the study declares, else the rules.

    Raises:
        UsageError: half a judge is named, or one that is no endpoint.
    """
    sampling = Sampling(
        temperature=settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed
    )
    if settings.endpoint or settings.model:
        if not (settings.endpoint and settings.model):
            raise UsageError(
                "--endpoint and --model go together", hint="--endpoint vllm --model Qwen3-32B"
            )
        for model in dict.fromkeys(settings.model):
            endpoint = Endpoint.parse(settings.endpoint, model)
            price = _price(settings.price_in, settings.price_out, model)
            yield JudgeSpec(model, endpoint, sampling, settings.repeats, price)
        return
    declared = study.judges if study and not settings.rules else ()
    if not declared:
        yield JudgeSpec(RULES, None, sampling, 1)
    for judge in declared:
        yield _declared(judge.player, judge.repeats, sampling)


def _declared(player: Player, n_repeats: int, default: Sampling) -> JudgeSpec:
    if player.scripted:
        return JudgeSpec(RULES, None, default, 1)
    if not player.endpoint or not player.model:
        raise UsageError(
            "a judge is an endpoint with a model, or scripted rules",
            hint="serve a local model (vllm, llama.cpp, ollama) and name its endpoint",
        )
    # a player's default limit fits one turn of a session, not twenty-five items with quotes
    n_tokens = max(player.max_tokens, default.max_tokens or 0)
    own = {
        "top_p": player.top_p,
        "stop": player.stop,
        "extra": player.extra,
        "max_tokens": n_tokens,
    }
    sampling = default.model_copy(update=own)
    if player.temperature is not None:
        sampling = sampling.model_copy(update={"temperature": player.temperature})
    endpoint = Endpoint.parse(player.endpoint, player.model)
    price = _price(player.price_in, player.price_out, player.model)
    return JudgeSpec(player.model, endpoint, sampling, n_repeats, price)


def _price(price_in: float | None, price_out: float | None, model: str) -> Price | None:
    if price_in is not None and price_out is not None:
        return Price(input=price_in, output=price_out)
    return find_price(model)


def check_disclosure(
    settings: SessionJudgeSettings, sessions: Sequence[Session], judges: Sequence[JudgeSpec]
) -> None:
    """Transcripts from elsewhere may be of real people; simulated ones are nobody's secret."""
    remote = [
        judge.endpoint.host for judge in judges if judge.endpoint and not judge.endpoint.is_local
    ]
    imported = sum(session.stop_reason == "imported" for session in sessions)
    if remote and imported and not settings.acknowledge_disclosure:
        raise LicenceGateError(
            f"{imported} transcripts made elsewhere would be sent to {remote[0]}, a third party",
            hint="use a local endpoint, or, if they may be passed on, add --acknowledge-disclosure",
        )


# --- judge settings ------------------------------------------------------------------------------
# What can be set for `cbtqa simulate judge`, with the help text of each flag.


class SessionJudgeSettings(Settings):
    """Everything `cbtqa simulate judge` can be told."""

    sessions: Path = Path("cbtqa-study")
    """Study folder, or a file with transcripts."""
    instrument: tuple[str, ...] = ()
    """Instrument id or rubric file; several: several calls each."""
    wording: Path | None = None
    """File with the exact words of the form, for those who may use it."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible endpoint, or a preset."""
    model: tuple[str, ...] = ()
    """Judge at that endpoint; may be given several times."""
    rules: bool = False
    """Use the built-in rules (no model) whatever the study declares."""
    acknowledge_disclosure: bool = False
    """I may pass imported transcripts on to a non-local endpoint."""
    prompt: str = "judge_session"
    """Prompt, or the path of your own."""
    repeats: int = Field(default=3, ge=1, le=20)
    """Ratings of each session."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Assumed: repeats at 0 would only echo each other."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first repeat."""
    max_tokens: int = Field(default=4096, ge=64)
    """Token limit of one reply."""
    max_turns: int = Field(default=250, ge=2)
    """Longer sessions stay unscored."""
    max_transcript_tokens: int = Field(default=24_000, ge=100)
    """Longer transcripts stay unscored (estimated tokens)."""
    in_flight: int = Field(default=16, ge=1, le=16384)
    """Most requests at a time."""
    rpm: int | None = Field(default=None, ge=1)
    """Requests a minute, at most."""
    tpm: int | None = Field(default=None, ge=1)
    """Tokens a minute, at most."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds one request may take."""
    max_attempts: int = Field(default=3, ge=1, le=10)
    """Replies asked for per rating, faulty ones included."""
    budget: float | None = Field(default=None, gt=0)
    """Stop at this cost, per judge and instrument."""
    budget_tokens: int | None = Field(default=None, gt=0)
    """Stop after this many tokens, per judge and instrument."""
    price_in: float | None = Field(default=None, ge=0)
    """Price of 1M prompt tokens."""
    price_out: float | None = Field(default=None, ge=0)
    """Price of 1M reply tokens."""
    out: Path | None = None
    """Folder of journals and ratings (default: judged/ in the study)."""

    @property
    def judge_limits(self) -> JudgeLimits:
        """What a judge is still given to read."""
        return JudgeLimits(self.max_turns, self.max_transcript_tokens)

    @property
    def limits(self) -> Limits:
        """Limits of the engine."""
        return Limits(
            in_flight=self.in_flight,
            rpm=self.rpm,
            tpm=self.tpm,
            timeout_s=self.timeout_s,
            max_attempts=self.max_attempts,
        )


# --- run -----------------------------------------------------------------------------------------
JUDGED, JOURNAL_NAME, RATINGS_NAME = "judged", "journal.sqlite", "ratings.jsonl"
INSTRUMENT_NAME = "instrument.json"
KIND = "session-ratings"
REPLY_TOKENS_PER_ITEM = 60
"""A quote, a sentence and a number; assumed for the dry run."""
OnProgress = Callable[[Progress], None]


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
    usage: Usage | None
    cost: float | None


class JudgePlan(Record):
    """One judge on one instrument, before anything is sent."""

    judge: str
    instrument: str
    n_sessions: int
    n_unfit: int
    """Sessions that would not be sent."""
    n_requests: int
    n_done: int
    """Held by the journal already."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    currency: str | None


@dataclass(frozen=True)
class _Work:
    """What all judges share."""

    resolved: Resolved[SessionJudgeSettings]
    sessions: tuple[Session, ...]
    instruments: tuple[Instrument, ...]
    judges: tuple[JudgeSpec, ...]
    out: Path

    @property
    def settings(self) -> SessionJudgeSettings:
        return self.resolved.values

    def folder(self, instrument: Instrument, judge: JudgeSpec) -> Path:
        name = re.sub(r"[^\w.+-]+", "-", judge.name).strip(".") or "judge"
        return self.out / instrument.id / name

    def pairs(self) -> list[tuple[Instrument, JudgeSpec]]:
        return [(one, judge) for one in self.instruments for judge in self.judges]


def judge_sessions(
    resolved: Resolved[SessionJudgeSettings],
    on_progress: OnProgress | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> list[JudgedForm]:
    """Rates every session with every judge on every instrument, or continues.

    Raises:
        UsageError: no instrument, no sessions, or no folder to write to.
        ConfigError: a folder belongs to another judge, prompt or wording.
        DataError: a file that is not what it should be.
        LicenceGateError: imported transcripts would leave this machine without acknowledgement.
        IncompleteRunError: stopped early; the same call continues.
    """
    work = _prepare(resolved)
    forms = []
    for instrument, judge in work.pairs():
        if on_stage is not None:
            on_stage(f"{judge.name} on {instrument.id}")
        forms.append(_judge_one(work, instrument, judge, on_progress))
    return forms


def plan_judging(resolved: Resolved[SessionJudgeSettings]) -> list[JudgePlan]:
    """Requests, tokens and cost of a run; raises what `judge_sessions` raises before it asks."""
    work = _prepare(resolved)
    return [_plan_one(work, instrument, judge) for instrument, judge in work.pairs()]


# --- what is to be done --------------------------------------------------------------------------


def _prepare(resolved: Resolved[SessionJudgeSettings]) -> _Work:
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
    sessions = tuple(read_transcripts(settings.sessions))
    if not sessions:
        raise UsageError("there are no sessions to judge", hint="cbtqa simulate run")
    judges = tuple(judges_of(settings, study))
    check_disclosure(settings, sessions, judges)
    instruments = tuple(load_instrument(name, settings.wording) for name in dict.fromkeys(names))
    return _Work(resolved, sessions, instruments, judges, out)


# --- doing it ------------------------------------------------------------------------------------


def _judge_one(
    work: _Work, instrument: Instrument, judge: JudgeSpec, on_progress: OnProgress | None
) -> JudgedForm:
    started, folder = now(), work.folder(instrument, judge)
    unfit = {s.id: unfit_reason(s, work.settings.judge_limits) for s in work.sessions}
    fit = [session for session in work.sessions if unfit[session.id] is None]
    asks = [SessionAsk.of(s, repeat + 1) for s in fit for repeat in range(judge.n_repeats)]
    _keep_instrument(folder.parent / INSTRUMENT_NAME, instrument)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    usage: Usage | None = None
    prompts: dict[str, str] = {}
    if judge.endpoint is None:
        rules = RuleJudge(instrument)
        ratings = [
            make_rating(ask, instrument.id, item, verdict, RULES)
            for ask in asks
            for item, verdict in rules.rate(ask).items()
        ]
    else:
        task = _task(work.settings, instrument, judge)
        prompts = {task.prompt.name: task.prompt.sha256}
        ratings, usage = _asked(work.settings, folder, task, judge, asks, on_progress)
    for session in work.sessions:
        if reason := unfit[session.id]:
            ratings += unfit_ratings(session, instrument, reason, judge.name, judge.n_repeats)
    write_jsonl(folder / RATINGS_NAME, ratings)
    form = _form(work, instrument, judge, ratings, usage)
    write_manifest(folder, _manifest(work, instrument, judge, form, prompts, started))
    return form


def _keep_instrument(path: Path, instrument: Instrument) -> None:
    """Writes the form beside its judges, once: two forms of one name never share a folder."""
    if path.exists():
        if parse_record(Rubric, read_json(path), str(path)) != instrument.printable:
            raise ConfigError(
                f"{path.parent} holds ratings on another form called '{instrument.id}'",
                hint="name another folder with --out, or give your rubric an id of its own",
            )
        return
    write_json(path, instrument.printable)


def _asked(
    settings: SessionJudgeSettings,
    folder: Path,
    task: SessionJudgeTask,
    judge: JudgeSpec,
    asks: Sequence[SessionAsk],
    on_progress: OnProgress | None,
) -> tuple[list[ItemRating], Usage]:
    assert judge.endpoint is not None
    budget = None
    if settings.budget or settings.budget_tokens:
        budget = Budget(settings.budget, settings.budget_tokens, judge.price)
    with _journal(folder, task) as journal:
        run_batch(
            asks,
            task,
            judge.endpoint,
            journal,
            settings.limits,
            budget=budget,
            price=judge.price,
            n_total=len(asks),
            on_progress=on_progress,
        )
        return list(read_ratings(asks, task, journal)), journal.totals().usage


def _task(
    settings: SessionJudgeSettings, instrument: Instrument, judge: JudgeSpec
) -> SessionJudgeTask:
    assert judge.endpoint is not None
    return SessionJudgeTask(
        instrument,
        judge.sampling,
        judge.endpoint.model,
        host=judge.endpoint.host,
        prompt=settings.prompt,
    )


def _journal(folder: Path, task: SessionJudgeTask) -> Journal:
    try:
        return Journal(folder / JOURNAL_NAME, task.fingerprint())
    except ConfigError as error:
        hint = "ratings made otherwise lie there: name another folder with --out"
        raise ConfigError(str(error), hint=hint) from None


def _plan_one(work: _Work, instrument: Instrument, judge: JudgeSpec) -> JudgePlan:
    settings = work.settings
    fit = [s for s in work.sessions if unfit_reason(s, settings.judge_limits) is None]
    n_unfit = len(work.sessions) - len(fit)
    if judge.endpoint is None:
        return JudgePlan(
            judge=judge.name,
            instrument=instrument.id,
            n_sessions=len(work.sessions),
            n_unfit=n_unfit,
            n_requests=0,
            n_done=0,
            prompt_tokens=0,
            completion_tokens=0,
            cost=None,
            currency=None,
        )
    task = _task(settings, instrument, judge)
    asks = [SessionAsk.of(s, repeat + 1) for s in fit for repeat in range(judge.n_repeats)]
    by_key = {task.key(ask): ask for ask in asks}
    path = work.folder(instrument, judge) / JOURNAL_NAME
    done: set[str] = set()
    if path.exists():
        with Journal(path, read_only=True) as journal:
            standings = journal.standings(list(by_key))
            done = {k for k, one in standings.items() if one.is_done(settings.max_attempts)}
    plan = plan_run(
        (task.request(ask) for key, ask in by_key.items() if key not in done),
        task.model,
        in_flight=settings.in_flight,
        price=judge.price,
        reply_tokens=REPLY_TOKENS_PER_ITEM * len(instrument.items),
    )
    return JudgePlan(
        judge=judge.name,
        instrument=instrument.id,
        n_sessions=len(work.sessions),
        n_unfit=n_unfit,
        n_requests=plan.n_requests,
        n_done=len(done),
        prompt_tokens=plan.prompt_tokens,
        completion_tokens=plan.completion_tokens,
        cost=plan.cost,
        currency=judge.price.currency if judge.price else None,
    )


def _form(
    work: _Work,
    instrument: Instrument,
    judge: JudgeSpec,
    ratings: Sequence[ItemRating],
    usage: Usage | None,
) -> JudgedForm:
    reasons = (one.unscored_reason.partition(":")[0] for one in ratings if one.unscored_reason)
    return JudgedForm(
        judge=judge.name,
        instrument=instrument.id,
        n_sessions=len(work.sessions),
        n_repeats=judge.n_repeats,
        n_ratings=len(ratings),
        n_scored=sum(one.value is not None for one in ratings),
        unscored=dict(Counter(reasons)),
        usage=usage,
        cost=judge.price.of(usage) if judge.price and usage else None,
    )


def _manifest(
    work: _Work,
    instrument: Instrument,
    judge: JudgeSpec,
    form: JudgedForm,
    prompts: dict[str, str],
    started: str,
) -> Manifest:
    folder, source = work.folder(instrument, judge), work.settings.sessions
    path = StudyFolder(source).sessions_path if source.is_dir() else source
    return Manifest(
        kind=KIND,
        packages=package_versions(),
        settings=describe_settings(work.resolved),
        inputs=(describe_file(path),),
        prompts=prompts,
        counts={
            **form.model_dump(mode="json", exclude={"usage", "cost"}),
            "instrument_sha256": instrument.rubric.sha256,
            "wording": instrument.wording,
            "host": judge.endpoint.host if judge.endpoint else None,
        },
        usage=form.usage,
        cost={"amount": form.cost, "currency": judge.price.currency} if judge.price else None,
        acknowledgements={"disclosure": f"acknowledged {started}"}
        if work.settings.acknowledge_disclosure
        else {},
        files=(describe_file(folder / RATINGS_NAME, folder),),
        started_at=started,
        finished_at=now(),
    )
