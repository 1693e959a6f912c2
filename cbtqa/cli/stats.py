"""`cbtqa stats`: what a dataset folder holds, beside what the CBT-LLM paper says of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cbtqa.cli.console import print_json, say, show_table
from cbtqa.cli.options import AsJson, take_newest
from cbtqa.dataset.stats import DatasetStatistics, folder_statistics, paper_facts
from cbtqa.dataset_folder import DatasetFolder
from cbtqa.errors import IncompleteRunError
from cbtqa.report.table import Cell, Column, Table
from cbtqa.report.words import count, share

Folder = Annotated[
    Path | None,
    typer.Argument(help="Built dataset (default: the newest dataset here).", show_default=False),
]
Partial = Annotated[
    bool, typer.Option("--partial", help="Count a folder whose build has not finished, too.")
]


def stats(dataset: Folder = None, partial: Partial = False, as_json: AsJson = False) -> None:
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
    statistics = folder_statistics(dataset_folder)
    if as_json:
        paper = paper_facts().model_dump(mode="json")
        print_json({"dataset": statistics.model_dump(mode="json"), "paper": paper})
        return
    from cbtqa.dataset.report.measures import label_table, length_table, likeness_table

    show_table(_overview(statistics))
    show_table(label_table(statistics), "Distortions")
    show_table(length_table(statistics), "Lengths (the paper's are unknown to us)")
    n_sampled = count(statistics.likeness.n_sampled)
    title = f"Template-likeness: first 8 characters of {n_sampled} sampled answers"
    show_table(likeness_table(statistics), title)
    say(f"paper: {paper_facts().citation}. {paper_facts().note}")


def _overview(statistics: DatasetStatistics) -> Table:
    paper = paper_facts()
    rows: list[tuple[Cell, ...]] = [
        ("entries", statistics.n_entries, paper.n_entries),
        ("with a distortion", statistics.n_distorted, paper.n_distorted),
        ("share with a distortion", statistics.share_distorted, paper.share_distorted),
        ("fit for training", statistics.n_training_source, ""),
    ]
    for what, counts in (
        ("split", statistics.splits),
        ("risk", statistics.risk),
        ("written by", statistics.models),
    ):
        rows += [(f"{what} {name}", n, "") for name, n in counts.items()]
    return Table(["", Column("here", share), Column("paper", share)], rows, "Entries")
