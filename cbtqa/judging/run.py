"""`cbtqa judge`: the run through the engine, or by rules, and the folder it leaves.

journal.sqlite         every paid reply; the same command continues from it (empty by rules)
judge_ratings.jsonl    one rating a line: answer, criterion, repeat, evidence
judge.json             means, differences, agreement with people, corrected means, alarms
judge.md               the same as tables
report.html            the same as a page, with the worst and the best answers
manifest.json          written last
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from cbtqa.errors import ConfigError, UsageError
from cbtqa.files import read_jsonl, write_json, write_jsonl, write_text
from cbtqa.judging.answers import (
    AnswerJudge,
    Answers,
    Ask,
    JudgeRating,
    load_judged_rubric,
    rating_of,
    read_answers,
    read_human_ratings,
)
from cbtqa.judging.asking import AGAIN, JudgingSettings, Verdict, estimate_rating, rate
from cbtqa.judging.correction import HumanSample, sample_of
from cbtqa.judging.page import judge_page
from cbtqa.judging.report import JudgeReport, make_report, report_markdown
from cbtqa.judging.rules import RULES, rate_all_by_rules
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.cost import Estimate
from cbtqa.llm.runs import Run, Service, open_run, refuse_foreign
from cbtqa.manifest import MANIFEST_NAME, describe_file, refuse_empty, write_manifest
from cbtqa.metrics.base import Signature, maker
from cbtqa.metrics.rows import Columns
from cbtqa.psyqa import bundled_sample_path
from cbtqa.report.page import Lang
from cbtqa.settings import Resolved

REPLY_TOKENS = 80
"""Of one criterion in a reply: a quote, a sentence, a number; assumed for the dry run."""
JOURNAL_NAME, RATINGS_NAME, REPORT_NAME = "journal.sqlite", "judge_ratings.jsonl", "judge.json"
TABLES_NAME, PAGE_NAME = "judge.md", "report.html"
RESULT_NAMES = (RATINGS_NAME, REPORT_NAME, TABLES_NAME, PAGE_NAME)


class JudgeSettings(JudgingSettings):
    """All settings of `cbtqa judge`."""

    predictions: tuple[Path, ...] = ()
    """Files with predictions."""
    questions: Path | None = None
    """Questions: PsyQA's file, or a built dataset."""
    split: str = "test"
    """Splits of a built dataset, comma-separated, or all."""
    sample: int | None = Field(default=None, ge=1)
    """Judge only so many questions, drawn by a fixed seed."""
    rules: bool = False
    """Rate by the built-in rules (no model, no key), whatever endpoint is set: to try the steps.
    They count words, and every output states this."""
    human: Path | None = None
    """Ratings by people (ratings.jsonl of a study) to check against."""
    human_sample: HumanSample | None = None
    """How the answers with human ratings were drawn: random (by lot) or chosen (means stay
    uncorrected). Known for a study of cbtqa rate on the same files."""
    rubric: str = "cbt-llm.v2"
    """Rubric, or the path of your own. cbt-llm, with --prompt judge_cbt_llm.v1, is that of the
    papers: structure as five steps whatever is asked, nothing on safety."""
    prompt: str = "judge_cbt_llm"
    """Prompt, or the path of your own."""
    max_tokens: int = Field(default=1024, ge=64)
    """Token limit of one reply."""
    id_column: str | None = None
    """Id column of the predictions."""
    prediction_column: str | None = None
    """Column with the prediction."""
    encoding: str = "utf-8"
    """Encoding of text files."""
    lang: Lang = "zh"
    """Main language of the page."""
    out: Path = Path("cbtqa-judge")
    """Folder of journal and results."""

    @property
    def columns(self) -> Columns:
        return Columns(self.id_column, self.prediction_column, None, self.encoding)


def judge(resolved: Resolved[JudgeSettings], on_progress: OnProgress | None = None) -> JudgeReport:
    """Rates every answer, or continues a run that was interrupted, and sums up.

    Raises:
        UsageError: predictions, questions, endpoint or model are missing.
        ConfigError, LicenceGateError, IncompleteRunError: as `llm.runs.open_run`.
    """
    settings, out = resolved.values, resolved.values.out
    service, answers, task = _prepare(settings)
    n_repeats = settings.repeats if service else 1
    names = [system.system for system in answers.systems]
    human = read_human_ratings(settings.human, task.rubric, names) if settings.human else None
    drawn = sample_of(settings.human, settings.predictions) if settings.human else None
    sample = settings.human_sample or drawn
    asks = answers.asks(n_repeats)
    refuse_foreign(out / JOURNAL_NAME, "ratings of a judge")
    _refuse_other_judge(out / RATINGS_NAME, task.model)
    with open_run(
        out / JOURNAL_NAME,
        task.fingerprint(),
        service,
        what="questions and answers",
        hint="one folder holds one judge: name another with --out",
    ) as run:
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        ratings = [rating_of(*o, task.model) for o in _verdicts(run, asks, task, on_progress)]
        report = make_report(
            ratings,
            task.rubric,
            answers.counts(),
            _signature(settings, task, answers),
            n_repeats,
            human,
            sample,
        )
        page = judge_page(report, task.rubric, answers, ratings, settings.lang)
        _write(out, ratings, report, page)
        inputs = (*settings.predictions, settings.questions, settings.human)
        manifest = run.manifest(
            "judge",
            resolved,
            apart=AGAIN,
            inputs=tuple(describe_file(path) for path in inputs if path and path.is_file()),
            prompts={task.prompt.name: task.prompt.sha256} if service else {},
            counts={
                "n_questions": len(answers.questions),
                "n_asked": len(asks),
                "systems": {
                    one.system: {**one.counts, "n_without_text": answers.n_without_text(one)}
                    for one in answers.systems
                },
            },
            files=tuple(describe_file(out / name, out) for name in RESULT_NAMES),
        )
    write_manifest(out, manifest)
    reasons = Counter(
        one.unscored_reason.partition(":")[0] for one in ratings if one.unscored_reason
    )
    n_scored = sum(one.value is not None for one in ratings)
    refuse_empty(n_scored, len(ratings), "ratings was given", reasons, kept=out)
    return report


def _verdicts(
    run: Run, asks: Sequence[Ask], task: AnswerJudge, on_progress: OnProgress | None
) -> Iterator[tuple[Ask, str, Verdict]]:
    if run.service is None:
        return rate_all_by_rules(task.rubric, asks, on_progress)
    return rate(run, asks, task, on_progress)


def _refuse_other_judge(path: Path, judge: str) -> None:
    """The rules leave the journal empty, so that it cannot tell whose the folder is."""
    first = next(iter(read_jsonl(path, JudgeRating)), None) if path.exists() else None
    if first is not None and first.judge != judge:
        raise ConfigError(
            f"{path.parent} holds ratings of {first.judge}, and {judge} is to rate",
            hint="one folder holds one judge: name another with --out",
        )


def _write(out: Path, ratings: Sequence[JudgeRating], report: JudgeReport, page: str) -> None:
    write_jsonl(out / RATINGS_NAME, ratings)
    write_json(out / REPORT_NAME, report)
    write_text(out / TABLES_NAME, report_markdown(report))
    write_text(out / PAGE_NAME, page)


def estimate_judge(resolved: Resolved[JudgeSettings]) -> Estimate:
    """What a run would still send; raises what `judge` raises before it asks."""
    settings = resolved.values
    service, answers, task = _prepare(settings)
    estimate = estimate_rating(
        service,
        settings.out / JOURNAL_NAME,
        answers.asks(settings.repeats if service else 1),
        task,
        name="answers",
        reply_tokens=REPLY_TOKENS,
    )
    n_without = sum(map(answers.n_without_text, answers.systems))
    n_answers = len(answers.asks(1))
    return estimate.model_copy(update={"n_items": n_answers, "n_left_out": n_without})


def _prepare(settings: JudgeSettings) -> tuple[Service | None, Answers, AnswerJudge]:
    """A run before its first request: inputs read, nothing sent. No service: by rules."""
    service = None if settings.rules else settings.service()
    if settings.questions is None or not (service or settings.rules):
        wanted = {"--questions": settings.questions, "--endpoint and --model": service}
        missing = [name for name, value in wanted.items() if value is None]
        raise UsageError(
            f"the judge wants {' and '.join(missing)}",
            hint=f"cbtqa judge a.jsonl --questions {bundled_sample_path()} --rules tries it with "
            "invented questions and no key; for real: --questions PsyQA_full.json --endpoint vllm "
            "--model Qwen3-32B",
        )
    task = AnswerJudge(
        load_judged_rubric(settings.rubric),
        settings.drawn(settings.max_tokens),
        service.model if service else RULES,
        host=service.host if service else "",
        prompt=settings.prompt,
    )
    answers = read_answers(
        settings.predictions, settings.questions, settings.split, settings.columns, settings.sample
    )
    return service, answers, task


def _signature(settings: JudgeSettings, task: AnswerJudge, answers: Answers) -> Signature:
    asked = {
        "host": task.host,
        "prompt": f"{task.prompt.name}-{task.prompt.sha256[:12]}",
        "repeats": str(settings.repeats),
        "temperature": f"{settings.temperature:g}",
        "seed": str(settings.seed),
    }
    found = {
        "judge": task.model,
        **({"model": "none"} if settings.rules else asked),
        "rubric": f"{task.form_id}-{task.rubric.sha256[:12]}",
        "questions": answers.questions_sha256[:12],
        "by": maker(),
    }
    return Signature(tuple(found.items()))
