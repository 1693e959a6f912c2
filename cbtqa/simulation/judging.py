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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import parse_record, read_json, write_json, write_jsonl
from cbtqa.llm.batch import run_batch
from cbtqa.llm.cost import Budget, plan_run
from cbtqa.llm.disclosure import pass_disclosure_gates
from cbtqa.llm.journal import Journal
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
from cbtqa.settings import Resolved
from cbtqa.simulation.instruments import Instrument, load_instrument
from cbtqa.simulation.judge_settings import SessionJudgeSettings
from cbtqa.simulation.judge_task import (
    SessionAsk,
    SessionJudgeTask,
    make_rating,
    read_ratings,
    unfit_ratings,
)
from cbtqa.simulation.judged_text import unfit_reason
from cbtqa.simulation.judges import JudgeSpec, judges_of
from cbtqa.simulation.rule_judge import RULES, RuleJudge
from cbtqa.simulation.sessions import StudyFolder, read_transcripts

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
    acknowledgements: dict[str, str]

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
        LicenceGateError: transcripts would leave this machine without acknowledgement.
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
    """Requests, tokens and cost of a run; raises what `judge_sessions` raises before it asks.

    Nothing is sent, so nothing has to be acknowledged.
    """
    work = _prepare(resolved, sends=False)
    return [_plan_one(work, instrument, judge) for instrument, judge in work.pairs()]


# --- what is to be done --------------------------------------------------------------------------


def _prepare(resolved: Resolved[SessionJudgeSettings], *, sends: bool = True) -> _Work:
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
    acknowledgements = pass_disclosure_gates(
        (judge.endpoint for judge in judges if judge.endpoint and sends),
        "the transcripts",
        is_acknowledged=settings.acknowledge_disclosure,
    )
    instruments = tuple(load_instrument(name, settings.wording) for name in dict.fromkeys(names))
    return _Work(resolved, sessions, instruments, judges, out, acknowledgements)


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
        acknowledgements=work.acknowledgements,
        files=(describe_file(folder / RATINGS_NAME, folder),),
        started_at=started,
        finished_at=now(),
    )
