"""`cbtqa stats`: what a dataset folder holds, beside what the CBT-LLM paper says of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cbtqa.cli.console import print_json, say, show_table
from cbtqa.cli.language import current
from cbtqa.cli.options import AsJson, take_newest
from cbtqa.dataset.stats import (
    DatasetStatistics,
    distortion_share,
    folder_statistics,
    paper_distortion_share,
    paper_facts,
)
from cbtqa.dataset_folder import DatasetFolder
from cbtqa.distortions.evaluate import read_evaluation
from cbtqa.distortions.prevalence import Prevalence
from cbtqa.errors import IncompleteRunError
from cbtqa.report.table import Cell, Column, Estimate, Table
from cbtqa.report.words import count, digits, share

Folder = Annotated[
    Path | None,
    typer.Argument(help="Built dataset (default: the newest dataset here).", show_default=False),
]
Partial = Annotated[
    bool, typer.Option("--partial", help="Count a folder whose build has not finished, too.")
]


Evaluation = Annotated[
    Path | None,
    typer.Option(
        help="JSON that `cbtqa distortions evaluate --out` wrote for the labeller of this dataset: "
        "corrects the labelled share for its errors.",
        show_default=False,
    ),
]


def stats(
    dataset: Folder = None,
    partial: Partial = False,
    labeller_evaluation: Evaluation = None,
    as_json: AsJson = False,
) -> None:
    """Count a dataset: splits, distortions, lengths, risk, template-likeness, the paper beside it.

    Lengths are in characters. Example: [bold]cbtqa stats[/bold]
    """
    folder = dataset or Path(take_newest("dataset"))
    try:
        dataset_folder = DatasetFolder.open(folder, partial=partial)
    except IncompleteRunError as error:
        raise IncompleteRunError(
            str(error), hint=f"{error.hint}\nor count what it holds so far: add --partial"
        ) from None
    manifest = dataset_folder.found
    evaluation = read_evaluation(labeller_evaluation) if labeller_evaluation else None
    statistics = folder_statistics(dataset_folder)
    ours, papers = distortion_share(statistics, evaluation), paper_distortion_share()
    if as_json:
        shares = {"dataset": ours.model_dump(mode="json"), "paper": papers.model_dump(mode="json")}
        found = {"dataset": statistics.model_dump(mode="json")}
        paper = paper_facts().model_dump(mode="json")
        asked: dict[str, Any] = {"first_try": None, "asked_again": {}, "question_labels": None}
        asked |= {"usage": None, "cost": None}
        if manifest:
            counts = {name: manifest.counts[name] for name in asked if name in manifest.counts}
            asked |= counts | manifest.model_dump(mode="json", include={"usage", "cost"})
        rest = {"paper": paper, "distortion_share": shares, "replies": asked}
        print_json(found | rest)
        return
    from cbtqa.dataset.report.measures import (
        label_table,
        length_table,
        likeness_table,
        reply_rows,
        reply_tables,
    )

    show_table(_overview(statistics, ours, papers))
    if manifest and (replies := reply_rows(manifest)):
        show_table(Table(["", ""], replies), "Replies of the model")
        for table in reply_tables(manifest.counts):
            show_table(table)
    say(f"here: {ours.sentence().first(current())}")
    say(f"paper: {papers.sentence().first(current())}")
    show_table(label_table(statistics), "Distortions")
    show_table(length_table(statistics), "Lengths (the paper's are unknown to us)")
    likeness = statistics.likeness
    n_sampled = count(likeness.n_sampled)
    title = f"Template-likeness: first 8 characters of {n_sampled} sampled answers"
    show_table(likeness_table(statistics), title)
    say(
        "repeated text: characters in runs of 12 that another answer has in the same step too "
        "(103 answers of people: 2 %; 91 of the template teacher: 55 %)"
    )
    distinct_2 = digits(3)(likeness.distinct_2)
    say(f"distinct-2: {distinct_2}; answers repeated whole: {likeness.n_repeated_answers}")
    say(f"paper: {paper_facts().citation}. {paper_facts().note}")


def _overview(statistics: DatasetStatistics, ours: Prevalence, papers: Prevalence) -> Table:
    paper = paper_facts()
    rows: list[tuple[Cell, ...]] = [
        ("entries", statistics.n_entries, paper.n_entries),
        ("with a distortion label", statistics.n_distorted, paper.n_distorted),
        ("labelled share", *(Estimate(one.share, one.low, one.high) for one in (ours, papers))),
        ("corrected share", *(_corrected(one) for one in (ours, papers))),
        ("fit for training", statistics.n_training_source, ""),
    ]
    for what, counts in (
        ("split", statistics.splits),
        ("risk", statistics.risk),
        ("danger", statistics.dangers),
        ("asker", {"under 18": statistics.n_minors} if statistics.n_minors else {}),
        ("written by", statistics.models),
    ):
        rows += [(f"{what} {name}", n, "") for name, n in counts.items()]
    return Table(["", Column("here", share), Column("paper", share)], rows, "Entries")


def _corrected(found: Prevalence) -> Estimate:
    """Without a reason: it stands in the sentence below the table."""
    one = found.corrected
    return Estimate(one.value, one.low, one.high) if one else Estimate(None)
