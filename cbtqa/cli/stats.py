"""`cbtqa stats`: what a dataset folder holds, beside what the CBT-LLM paper says of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cbtqa.cli.console import print_json, print_table, say
from cbtqa.cli.options import AsJson, take_newest
from cbtqa.dataset.stats import DatasetStatistics, folder_statistics, paper_facts
from cbtqa.dataset_folder import DatasetFolder

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
    statistics = folder_statistics(DatasetFolder.open(folder, partial=partial))
    if as_json:
        paper = paper_facts().model_dump(mode="json")
        print_json({"dataset": statistics.model_dump(mode="json"), "paper": paper})
        return
    _print_overview(statistics)
    _print_labels(statistics)
    _print_lengths(statistics)
    _print_likeness(statistics)
    say(f"paper: {paper_facts().citation}. {paper_facts().note}")


def _print_overview(statistics: DatasetStatistics) -> None:
    paper, n = paper_facts(), statistics.n_entries
    rows = [
        ["entries", f"{n:,}", f"{paper.n_entries:,}"],
        ["with a distortion", f"{statistics.n_distorted:,}", f"{paper.n_distorted:,}"],
        [
            "share with a distortion",
            _percent(statistics.share_distorted),
            _percent(paper.share_distorted),
        ],
        ["fit for training", f"{statistics.n_training_source:,}", ""],
    ]
    rows += [[f"split {name}", f"{k:,}", ""] for name, k in statistics.splits.items()]
    rows += [[f"risk {name}", f"{k:,}", ""] for name, k in statistics.risk.items()]
    rows += [[f"written by {name}", f"{k:,}", ""] for name, k in statistics.models.items()]
    print_table("Entries", ["", "here", "paper"], rows)


def _print_labels(statistics: DatasetStatistics) -> None:
    known = dict(paper_facts().labels)
    rows = [
        [
            label.id,
            f"{label.n_entries:,}",
            _percent(label.share_of_entries),
            _percent(label.share_of_distorted),
            _percent(known.pop(label.id, None)),
        ]
        for label in statistics.labels
    ]
    rows += [[name, "0", _percent(0.0), _percent(0.0), _percent(s)] for name, s in known.items()]
    columns = ["type", "entries", "of all", "of distorted", "paper, of distorted"]
    print_table("Distortions", columns, rows)


def _print_lengths(statistics: DatasetStatistics) -> None:
    rows = [
        [
            name,
            f"{s.mean:.1f}",
            f"{s.sd:.1f}",
            f"{s.min:,}",
            f"{s.median:g}",
            f"{s.p95:.0f}",
            f"{s.max:,}",
        ]
        for name, s in statistics.lengths.items()
    ]
    columns = ["characters", "mean", "sd", "min", "median", "95 %", "max"]
    print_table("Lengths (the paper's are unknown to us)", columns, rows)


def _print_likeness(statistics: DatasetStatistics) -> None:
    likeness = statistics.likeness
    rows = [
        [
            entry.column,
            f"{entry.n_distinct:,}",
            _percent(entry.n_distinct / entry.n),
            f"{entry.most_common[0][0]} × {entry.most_common[0][1]}" if entry.most_common else "-",
        ]
        for entry in likeness.openings
    ]
    columns = ["opening of", "distinct", "share", "most common"]
    title = f"Template-likeness: first 8 characters of {likeness.n_sampled:,} sampled answers"
    print_table(title, columns, rows)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
