"""`cbtqa judge`: the run through the engine, and the folder it leaves.

journal.sqlite         every paid reply; the same command continues from it
judge_ratings.jsonl    one rating a line: answer, criterion, repeat, evidence
judge.json             means, agreement with people, corrected means, alarms
manifest.json          written last
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from cbtqa.errors import ConfigError, UsageError
from cbtqa.files import write_json, write_jsonl
from cbtqa.judging.answers import (
    Answers,
    JudgeRating,
    JudgeRubric,
    JudgeTask,
    read_answers,
    read_human_ratings,
    read_ratings,
)
from cbtqa.judging.report import JudgeReport, make_report
from cbtqa.llm.batch import run_batch
from cbtqa.llm.chat import Sampling
from cbtqa.llm.cost import Budget, token_counter
from cbtqa.llm.endpoint import Endpoint, pass_disclosure_gate
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
from cbtqa.metrics.base import Signature, maker
from cbtqa.metrics.pairs import Columns
from cbtqa.records import Record, Usage
from cbtqa.settings import Resolved, Settings

ASSUMED_REPLY_TOKENS = 80
"""Tokens of one criterion in a reply: a quote, a sentence, a number."""
JOURNAL_NAME, RATINGS_NAME, REPORT_NAME = "journal.sqlite", "judge_ratings.jsonl", "judge.json"


def judge(
    resolved: Resolved[JudgeSettings],
    rubric: JudgeRubric,
    on_progress: Callable[[Progress], None] | None = None,
) -> JudgeReport:
    """Rates every answer, or continues a run that was interrupted, and sums up.

    Raises:
        UsageError: predictions, questions, endpoint or model are missing.
        ConfigError: the folder belongs to another judge.
        DataError: a file that is not what it should be.
        LicenceGateError: texts would go to a non-local endpoint without acknowledgement.
        IncompleteRunError: stopped early; the same call continues.
    """
    started, settings = now(), resolved.values
    prepared = _prepare(settings, rubric)
    answers, task = prepared.answers, prepared.task
    names = [system.system for system in answers.systems]
    human = read_human_ratings(settings.human, rubric, names) if settings.human else None
    ratings, usage = _rate(settings, prepared, on_progress)
    report = make_report(
        ratings,
        rubric,
        dict.fromkeys(names, len(answers.questions)),
        _signature(settings, task, answers),
        settings.repeats,
        human,
    )
    write_jsonl(settings.out / RATINGS_NAME, ratings)
    write_json(settings.out / REPORT_NAME, report)
    manifest = _manifest(resolved, task, answers).model_copy(
        update={
            "usage": usage,
            "acknowledgements": prepared.acknowledgements,
            "started_at": started,
        }
    )
    write_manifest(settings.out, manifest)
    return report


class JudgeEstimate(Record):
    """Numbers of a dry run; nothing was sent."""

    n_answers: int
    n_requests: int
    """Without re-asks, and without what the journal holds already."""
    n_done: int
    prompt_tokens: int
    completion_tokens: int
    """At the assumed length of a reply."""
    tokenizer: str


def estimate(resolved: Resolved[JudgeSettings], rubric: JudgeRubric) -> JudgeEstimate:
    """Counts requests and tokens of a run; raises what `judge` raises before it asks."""
    settings = resolved.values
    prepared = _prepare(settings, rubric)
    answers, task = prepared.answers, prepared.task
    asks = {task.key(ask): ask for ask in answers.asks(settings.repeats)}
    path, done = settings.out / JOURNAL_NAME, 0
    if path.exists():
        with Journal(path, read_only=True) as journal:
            standings = journal.standings(list(asks)).values()
            done = sum(one.is_done(settings.max_attempts) for one in standings)
    count, tokenizer = token_counter(task.model)
    texts = (m["content"] for ask in asks.values() for m in task.request(ask).messages)
    n_prompt = sum(map(count, texts))
    n_requests = len(asks) - done
    return JudgeEstimate(
        n_answers=len(answers.asks(1)),
        n_requests=n_requests,
        n_done=done,
        prompt_tokens=round(n_prompt * n_requests / len(asks)) if asks else 0,
        completion_tokens=n_requests * ASSUMED_REPLY_TOKENS * len(rubric.criteria),
        tokenizer=tokenizer,
    )


@dataclass(frozen=True)
class _Prepared:
    """A run before its first request: gates passed, inputs read."""

    endpoint: Endpoint
    answers: Answers
    task: JudgeTask
    acknowledgements: dict[str, str]


def _prepare(settings: JudgeSettings, rubric: JudgeRubric) -> _Prepared:
    if settings.questions is None or settings.endpoint is None or settings.model is None:
        raise UsageError(
            "the judge wants --questions, --endpoint and --model",
            hint="cbtqa judge a.jsonl --questions PsyQA.json --endpoint vllm --model Qwen3-32B",
        )
    endpoint = Endpoint.parse(settings.endpoint, settings.model)
    acknowledgements = pass_disclosure_gate(
        endpoint, "questions and answers", is_acknowledged=settings.acknowledge_disclosure
    )
    answers = read_answers(
        settings.predictions, settings.questions, settings.split, settings.columns, settings.sample
    )
    return _Prepared(endpoint, answers, _task(settings, rubric, endpoint), acknowledgements)


def _rate(
    settings: JudgeSettings,
    prepared: _Prepared,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[list[JudgeRating], Usage]:
    """Every rating, and the tokens that all of them cost so far."""
    task, asks = prepared.task, prepared.answers.asks(settings.repeats)
    with _journal(settings.out, task) as journal:
        (settings.out / MANIFEST_NAME).unlink(missing_ok=True)
        run_batch(
            asks,
            task,
            prepared.endpoint,
            journal,
            _limits(settings),
            budget=Budget(max_tokens=settings.budget_tokens) if settings.budget_tokens else None,
            n_total=len(asks),
            on_progress=on_progress,
        )
        return list(read_ratings(asks, task, journal)), journal.totals().usage


def _manifest(resolved: Resolved[JudgeSettings], task: JudgeTask, answers: Answers) -> Manifest:
    settings = resolved.values
    inputs = (*settings.predictions, settings.questions, settings.human)
    return Manifest(
        kind="judge",
        packages=package_versions(),
        settings=describe_settings(resolved),
        inputs=tuple(describe_file(path) for path in inputs if path and path.is_file()),
        prompts={task.prompt.name: task.prompt.sha256},
        counts=_counts(answers, len(answers.asks(settings.repeats))),
        files=tuple(
            describe_file(settings.out / name, settings.out) for name in (RATINGS_NAME, REPORT_NAME)
        ),
        started_at=now(),
        finished_at=now(),
    )


def _task(settings: JudgeSettings, rubric: JudgeRubric, endpoint: Endpoint) -> JudgeTask:
    sampling = Sampling(
        temperature=settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed
    )
    return JudgeTask(rubric, sampling, endpoint.model, host=endpoint.host, prompt=settings.prompt)


def _journal(folder: Path, task: JudgeTask) -> Journal:
    try:
        return Journal(folder / JOURNAL_NAME, task.fingerprint())
    except ConfigError as error:
        hint = "one folder holds one judge: name another with --out"
        raise ConfigError(str(error), hint=hint) from None


def _limits(settings: JudgeSettings) -> Limits:
    return Limits(
        in_flight=settings.in_flight,
        rpm=settings.rpm,
        tpm=settings.tpm,
        timeout_s=settings.timeout_s,
        max_attempts=settings.max_attempts,
    )


def _counts(answers: Answers, n_asked: int) -> dict[str, object]:
    return {
        "n_questions": len(answers.questions),
        "n_asked": n_asked,
        "systems": {
            system.system: {**system.counts, "n_without_text": answers.n_without_text(system)}
            for system in answers.systems
        },
    }


def _signature(settings: JudgeSettings, task: JudgeTask, answers: Answers) -> Signature:
    return Signature(
        (
            ("judge", task.model),
            ("host", task.host),
            ("prompt", f"{task.prompt.name}-{task.prompt.sha256[:12]}"),
            ("rubric", f"{task.rubric.id}-{task.rubric.sha256[:12]}"),
            ("repeats", str(settings.repeats)),
            ("temperature", f"{settings.temperature:g}"),
            ("seed", str(settings.seed)),
            ("questions", answers.questions_sha256[:12]),
            ("by", maker()),
        )
    )


# --- settings ------------------------------------------------------------------------------------
# What can be set for `cbtqa judge`, with the help text of each flag.


class JudgeSettings(Settings):
    """Everything `cbtqa judge` can be told."""

    predictions: tuple[Path, ...] = ()
    """Files with predictions."""
    questions: Path | None = None
    """Questions: PsyQA's file, or a built dataset."""
    split: str = "test"
    """Splits of a built dataset, comma-separated, or all."""
    sample: int | None = Field(default=None, ge=1)
    """Judge only so many questions, drawn by a fixed seed."""
    human: Path | None = None
    """Ratings by people (ratings.jsonl of a study) to check against."""
    rubric: str = "cbt-llm"
    """Rubric id, or the path of your own."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible endpoint, or a preset."""
    model: str | None = None
    """The judge's model name."""
    acknowledge_disclosure: bool = False
    """I may pass these texts on to the operator of a non-local endpoint."""
    prompt: str = "judge_cbt_llm"
    """Prompt, or the path of your own."""
    repeats: int = Field(default=3, ge=1, le=20)
    """Ratings of each answer."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Assumed: repeats at 0 would only echo each other."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first repeat."""
    max_tokens: int = Field(default=1024, ge=64)
    """Token limit of one reply."""
    id_column: str | None = None
    """Id column of the predictions."""
    prediction_column: str | None = None
    """Column with the prediction."""
    encoding: str = "utf-8"
    """Encoding of text files."""
    in_flight: int = Field(default=32, ge=1, le=16384)
    """Most requests at a time."""
    rpm: int | None = Field(default=None, ge=1)
    """Requests a minute, at most."""
    tpm: int | None = Field(default=None, ge=1)
    """Tokens a minute, at most."""
    timeout_s: float = Field(default=180.0, gt=0)
    """Seconds one request may take."""
    max_attempts: int = Field(default=3, ge=1, le=10)
    """Replies asked for per rating, faulty ones included."""
    budget_tokens: int | None = Field(default=None, gt=0)
    """Stop after this many tokens."""
    out: Path = Path("cbtqa-judge")
    """Folder of journal and results."""

    @property
    def columns(self) -> Columns:
        """Columns of the predictions."""
        return Columns(self.id_column, self.prediction_column, None, self.encoding)
