"""`cbtqa safety`: screen, check, evaluate, scrub, hotlines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cbtqa.cli.console import give, live_progress, print_json, say, show, show_content, show_table
from cbtqa.cli.dry_run import DryRun, print_estimate, say_opinions
from cbtqa.cli.help import CommandGroup
from cbtqa.cli.options import AsJson, ScreenModel, settings_flags
from cbtqa.dataset_folder import is_text
from cbtqa.llm.checked_files import (
    AnswerSurvey,
    CheckSettings,
    ScreenedFile,
    ScreenSettings,
    check_file,
    estimate_check,
    estimate_screen,
    screen_texts,
)
from cbtqa.records import Danger
from cbtqa.report.table import Column, Estimate, Table
from cbtqa.report.words import share
from cbtqa.safety.evaluation import ScreenEvaluation, Share, evaluate_file, parse_labels
from cbtqa.safety.notices import Locale, help_text, load_hotlines, stale_warning
from cbtqa.safety.screen import ScreenLanguage
from cbtqa.safety.survey import ScreenedText, scrub_file
from cbtqa.settings import Resolved

app = CommandGroup(
    help="Grade crisis content, mask personal data, list the dated help lines.",
)
File = Annotated[
    Path,
    typer.Argument(
        help="JSONL, JSON array, CSV, TSV, Parquet or a folder of it; .txt or - (a text a line); "
        "or one text itself."
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Text column; repeat to join several. Default: the usual ones."),
]
Encoding = Annotated[str, typer.Option(help="Of a text file, such as gb18030.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")]
Lang = Annotated[Locale, typer.Option(help="Language of the help lines.")]
Rules = Annotated[
    ScreenLanguage, typer.Option("--language", help="Whose rules read the texts; auto: both.")
]
_COLOURS = {"explicit": "bold white on red", "concern": "black on yellow", "none": "dim underline"}


@app.command()
@settings_flags(ScreenSettings, positional="file")
def screen(
    resolved: Resolved[ScreenSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Grade every text of a file: none, concern or explicit, and other dangers; say where.

    Example: cbtqa safety screen questions.jsonl --explain 5 --out screened.jsonl

    Of one text: cbtqa safety screen 最近睡不好，什么都不想做

    With a model that grades as well, the worse grade counting: cbtqa safety screen questions.jsonl
    --screen-endpoint vllm --screen-endpoint-model Qwen3-32B --out screened.jsonl
    """
    settings = resolved.values
    if is_text(settings.file):
        say("read as one text, not as a file")
    if dry_run:
        print_estimate(estimate_screen(settings), as_json)
        return
    with live_progress() as progress:
        survey = screen_texts(settings, progress.update)
    give(as_json, survey, *_survey_tables(survey))
    for item in survey.shown if not as_json else ():
        _show_item(item)
    _say_how(survey, settings.out)


@app.command()
@settings_flags(CheckSettings, positional="answers")
def check(
    resolved: Resolved[CheckSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Check every answer of a file: advice against safety, help lines, a missing help route.

    Example: cbtqa safety check answers.jsonl --out checked.jsonl

    With a model that reads question and answer as well: cbtqa safety check answers.jsonl
    --guard-endpoint vllm --guard-model Qwen3-32B --out checked.jsonl
    """
    settings = resolved.values
    if dry_run:
        print_estimate(estimate_check(settings), as_json)
        return
    with live_progress() as progress:
        survey = check_file(settings, progress.update)
    give(as_json, survey, _problem_table(survey))
    say_opinions(survey.second_opinion)
    if settings.out is not None:
        say(f"written to {settings.out}")


@app.command()
def evaluate(
    gold: File,
    column: Columns = None,
    label_column: Annotated[str, typer.Option(help="Column with the true grade.")] = "risk",
    label: Annotated[
        list[str] | None,
        typer.Option(help="LABEL=GRADE, where labels are no grades: 1=explicit 0=none."),
    ] = None,
    language: Rules = "auto",
    screen_model: ScreenModel = None,
    encoding: Encoding = "utf-8",
    max_errors: Annotated[int, typer.Option(help="Errors to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Compare the screen with true grades: recall and precision with intervals, and the errors.

    Example: cbtqa safety evaluate gold.tsv --label-column high_risk --label 1=explicit
    --label 0=none
    """
    report = evaluate_file(
        gold,
        columns=column or (),
        label_column=label_column,
        grade_of=parse_labels(label or ()),
        language=language,
        screen_model=screen_model,
        encoding=encoding,
    )
    if as_json:
        print_json(report)
        return
    _show_evaluation(report, gold, max_errors)


def _show_evaluation(report: ScreenEvaluation, gold: Path, max_errors: int) -> None:
    """Shares with their intervals, grades against grades, and the first errors."""
    graded = {"explicit": report.explicit, "concern or explicit": report.flagged}
    scores = [
        (name, _estimate(one.recall), _estimate(one.precision), one.f1)
        for name, one in graded.items()
    ]
    heads = ["grade", "recall [95% interval]", "precision [95% interval]", "F1"]
    show_table(Table(heads, scores, f"{gold}: {report.n_texts} texts"))
    rows = [(grade, *found.values()) for grade, found in report.confusion.items()]
    show_table(Table(["gold", *report.confusion], rows, "Gold (rows) by grade found"))
    for error in report.errors[:max_errors]:
        rules = ", ".join(error.rules) or "no rule"
        show_content(f"{error.where}  {error.gold} -> {error.found}  {error.text}  {rules}")
    empty = f"; rows without a text, left out: {report.n_empty}" if report.n_empty else ""
    say(f"{len(report.errors)} errors; {report.signature}{empty}")


@app.command()
def scrub(
    file: File,
    column: Columns = None,
    encoding: Encoding = "utf-8",
    out: Annotated[
        Path | None, typer.Option(help="JSONL with all columns, the text columns masked.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Count and mask personal data: numbers, accounts, addresses, names, schools, firms after cues.

    It says per kind what it finds and what it does not: no anonymisation.

    Example: cbtqa safety scrub questions.jsonl --out masked.jsonl
    """
    survey = scrub_file(file, columns=column or (), encoding=encoding, out=out, overwrite=overwrite)
    title = f"{file}: {survey.n_texts_with_data} of {survey.n_texts} texts hold personal data"
    if survey.n_empty:
        say(f"rows without a text, kept as they are: {survey.n_empty}")
    rows = [(kind, survey.n_by_kind.get(kind, 0), missed) for kind, missed in survey.misses.items()]
    give(as_json, survey, Table(["kind", "places", "not found"], rows, title))
    if out is not None:
        say(f"written to {out}")


@app.command()
def hotlines(
    locale: Lang = "zh",
    danger: Annotated[
        Danger | None, typer.Option(help="Only what serves this danger, and its help text.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The dated help lines that answers and pages may name, and the help texts.

    Example: cbtqa safety hotlines --locale en

    For one danger: cbtqa safety hotlines --danger violence
    """
    found = load_hotlines()
    lines = found.locales[locale]
    if danger is not None:
        serving = tuple(one for one in lines.lines if danger in one.dangers)
        lines = lines.model_copy(update={"lines": serving})
    rows = [(one.name, one.number, one.hours, one.coverage) for one in lines.lines]
    rows += [(one.name, one.number, "", "") for one in lines.emergencies]
    title = f"{lines.region}, checked on {found.checked_on} or later"
    table = Table(["line", "number", "hours", "coverage"], rows, title)
    give(as_json, {"checked_on": str(found.checked_on), **lines.model_dump(mode="json")}, table)
    if not as_json:
        show_content(help_text(locale, "page", danger=danger))
    if warning := stale_warning():
        say(f"warning: {warning}")


def _problem_table(survey: AnswerSurvey) -> Table:
    own, guards = survey.n_by_problem, survey.n_by_problem_of_guard
    heads = ["problem", "by the checks", *([f"by {survey.guard}"] if survey.guard else [])]
    rows: list[tuple[str | int | None, ...]] = [
        (name, own.get(name, 0), *([guards.get(name, 0)] if survey.guard else []))
        for name in dict.fromkeys((*own, *guards))
    ]
    total = survey.n_unsafe_by_guard
    rows.append(("answers with any", survey.n_unsafe_by_checks, *([total] if survey.guard else [])))
    return Table(heads, rows, f"{survey.n_unsafe} of {survey.n_answers} answers are unsafe")


def _survey_tables(survey: ScreenedFile) -> Iterator[Table]:
    rows = [(risk, n, n / survey.n_texts) for risk, n in survey.n_by_risk.items()]
    yield Table(["grade", "texts", Column("share", share)], rows, f"{survey.n_texts} texts")
    if counted := list(survey.n_by_rule.items())[:15]:
        yield Table(["rule", "hits"], counted, "Rules that counted most")
    if dropped := list(survey.n_suppressed.items()):
        yield Table(["why", "hits"], dropped, "Hits that did not count")
    others = [*survey.n_by_danger.items(), ("writer under 18", survey.n_minors)]
    if any(n for _, n in others):
        yield Table(["other danger", "texts"], others, "Other dangers (a text may have several)")


def _say_how(survey: ScreenedFile, out: Path | None) -> None:
    """Rows that were not graded, further models that graded, and where it is written."""
    if survey.n_empty:
        more = ", ..." if survey.n_empty > len(survey.empty) else ""
        say(f"rows without a text, not graded: {survey.n_empty} ({', '.join(survey.empty)}{more})")
    if survey.screen_model:
        say(f"read by {survey.screen_model.partition('@')[0]} as well")
    if survey.second_opinion:
        say_opinions({"screen": survey.second_opinion})
    if out is not None:
        say(f"written to {out}")


def _show_item(item: ScreenedText) -> None:
    from rich.text import Text

    show(f"\n{item.where}  {item.risk}", style="bold")
    body = Text(item.text)
    for hit in item.hits:
        body.stylize(_COLOURS[hit.risk], hit.start, hit.end)
    show_content(body)
    for hit in item.hits:
        show(f"{hit.risk:8} {hit.rule} ({hit.outcome}) {hit.start}-{hit.end}", indent=2)
    for danger in item.dangers:
        sure = f", probability {danger.probability:.2f}" if danger.probability else ""
        place = f"{danger.start}-{danger.end}{sure}"
        show(f"{danger.risk:8} {danger.kind} {place}", indent=2)


def _estimate(of: Share) -> Estimate:
    return Estimate(of.value, of.low, of.high, note=f"({of.n}/{of.n_total})")
