"""`cbtqa distortions`: label, train, evaluate, agree, annotate, taxonomies."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from cbtqa.cli.console import give, live_progress, say
from cbtqa.cli.dry_run import DryRun, print_estimate
from cbtqa.cli.help import CommandGroup
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.dataset_folder import is_text
from cbtqa.distortions.annotators import AnnotateSettings, draw_for_annotation
from cbtqa.distortions.labelling import LabelSettings, estimate_labels, label_file, read_labels
from cbtqa.distortions.studies import (
    EvaluateSettings,
    TrainSettings,
    estimate_evaluation,
    evaluate_labellers,
    read_annotations,
    train_labeller,
)
from cbtqa.distortions.tables import (
    agreement_table,
    evaluation_tables,
    taxonomies_table,
    taxonomy_table,
    training_table,
    types_table,
)
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.errors import UsageError
from cbtqa.report.table import Table
from cbtqa.settings import Resolved

app = CommandGroup(
    name="distortions",
    help="Labels of cognitive distortions: give them, learn them, measure them.",
)


@app.command("label")
@settings_flags(LabelSettings, positional="input")
def label(
    resolved: Resolved[LabelSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Mark the distortions in every text of a file or dataset, each with the clause it rests on.

    Example: cbtqa distortions label questions.jsonl --level both --out labels.parquet

    Of one text: cbtqa distortions label 我总是把事情搞砸，大家肯定都看不起我
    """
    settings = resolved.values
    if dry_run:
        print_estimate(estimate_labels(settings), as_json)
        return
    if settings.is_shown_only:
        _show_labels(settings, as_json)
        return
    with live_progress() as progress:
        run = label_file(settings, on_progress=progress.update)
    summary = run.model_dump(mode="json")
    if run.rejects:
        say(f"{run.n_rejected:,} parts without labels, with reasons: {run.rejects}")
    if run.n_hopeless:
        say(
            f"{run.n_hopeless:,} rows say that life has no meaning or cannot go on "
            "(column hopelessness, no distortion): see cbtqa safety screen"
        )
    give(as_json, summary, types_table(summary), title=f"{run.n_rows:,} rows in {run.out}")


def _show_labels(settings: LabelSettings, as_json: bool) -> None:
    """Labels of texts that are in no file: shown, and kept nowhere."""
    if "llm" in settings.labeller:
        raise UsageError("what a model answers is kept: name a file with --out")
    if is_text(settings.input):
        say("read as one text, not as a file")
    with TemporaryDirectory() as folder:
        out = Path(folder, "labels.jsonl")
        run = label_file(settings.model_copy(update={"out": out}))
        found = read_labels(run).rows
    rows = [(row.id, label.id, label.evidence) for row in found for label in row.labels]
    table = Table(["text", "type", "evidence"], rows, "Labels")
    texts = [row.model_dump(mode="json") for row in found]
    give(as_json, {"texts": texts}, *([table] if rows else ()))
    if not as_json and (bare := [row.id for row in found if not row.labels]):
        say(f"without a label: {len(bare)} of {len(found)} rows, such as text {bare[0]}")


@app.command("train")
@settings_flags(TrainSettings, positional="data")
def train(resolved: Resolved[TrainSettings], as_json: AsJson = False) -> None:
    """Train a labeller, measure it by cross-validation, save it without pickle.

    Example: cbtqa distortions train cogdis.tsv --out model
    """
    settings = resolved.values
    say(f"reading {settings.data}")
    with live_progress() as progress:
        trained = train_labeller(settings, say=say, on_progress=progress.update)
    title = f"{trained.name} in {settings.out}"
    if not trained.types and not as_json:
        say(title)
        return
    give(as_json, trained, training_table(trained), title=title)


@app.command("evaluate")
@settings_flags(EvaluateSettings, positional="data")
def evaluate(
    resolved: Resolved[EvaluateSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Measure labellers against gold labels, beside the paper's Table 3.

    Example: cbtqa distortions evaluate gold.tsv --labeller patterns --labeller model
    """
    settings = resolved.values
    if dry_run:
        print_estimate(estimate_evaluation(settings, say=say), as_json)
        return
    with live_progress() as progress:
        report = evaluate_labellers(settings, say=say, on_progress=progress.update)
    give(as_json, report, *evaluation_tables(report))


@app.command("agree")
def agree(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILES...", help="One labelled file per annotator; ids in common."),
    ],
    taxonomy: Annotated[str, typer.Option(help="Taxonomy of the labels.")] = "burns-10",
    as_json: AsJson = False,
) -> None:
    """Agreement of annotators: Krippendorff's alpha for each type, and MASI over the sets.

    Example: cbtqa distortions agree anna.jsonl ben.jsonl
    """
    agreement = read_annotations(files, load_taxonomy(taxonomy))
    give(as_json, agreement, agreement_table(agreement))


@app.command("annotate")
@settings_flags(AnnotateSettings, positional="input")
def annotate(resolved: Resolved[AnnotateSettings], as_json: AsJson = False) -> None:
    """Draw a stratified sample and make a blinded annotation study of it (sheets and web form).

    Example: cbtqa distortions annotate questions.jsonl --n 500 --raters 2 --out study
    """
    from cbtqa.ratings.design import NewStudySettings, create_study

    settings = resolved.values
    sample = draw_for_annotation(settings)
    rubric, n = f"distortions:{settings.taxonomy}", sample.n
    given = settings.model_dump(include={"out", "raters", "seed"})
    study = NewStudySettings(questions=sample.path, rubric=rubric, n=n, **given)
    n_sheets = len(create_study(study, with_sheets=True).sheets)
    say(f"{n} texts, {settings.raters} raters; sheets: {n_sheets}; form: cbtqa rate serve")
    found = {**sample.summary(), "study": str(settings.out), "sheets": n_sheets}
    give(as_json, found, sample.table(), title=f"Sample in {sample.path}")


@app.command("taxonomies")
def taxonomies(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Explain this taxonomy's types.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the taxonomies, or explain the types of one.

    Example: cbtqa distortions taxonomies burns-10
    """
    if name is None:
        table = taxonomies_table()
        give(as_json, {"taxonomies": table.records()}, table)
    else:
        taxonomy = load_taxonomy(name)
        give(as_json, taxonomy, taxonomy_table(taxonomy))
