"""`cbtqa export`: a built dataset in the shapes that other programs read."""

from __future__ import annotations

from cbtqa.cli.console import print_json, say, show_table
from cbtqa.cli.options import AsJson, Newest, settings_flags
from cbtqa.report.table import Cell, Table
from cbtqa.settings import Resolved
from cbtqa.tuning.data.export import ExportSettings, usage
from cbtqa.tuning.data.export import export as write_export


@settings_flags(ExportSettings, positional="data", newest={"data": Newest("dataset")})
def export(resolved: Resolved[ExportSettings], as_json: AsJson = False) -> None:
    """Write a built dataset for LLaMA-Factory, ms-swift, TRL or EvalScope.

    Every split is a file of its own; questions with a risk are left out unless asked for. Prompts
    and answers are those that cbtqa finetune learns from.

    [bold]Examples[/bold]

    cbtqa export --for llama-factory

    cbtqa export runs/psyqa --for ms-swift --mode steps --out runs/swift
    """
    result = write_export(resolved)
    counts = result.manifest.counts
    if as_json:
        print_json(result.to_dict())
        return
    rows: list[list[Cell]] = [[f"{name}.jsonl", n] for name, n in counts["splits"].items()]
    rows += [[f"left out: {reason}", n] for reason, n in counts["rejected"].items()]
    show_table(Table(["", "n"], rows, str(result.folder)))
    say(usage(resolved.values.for_, result.folder, list(counts["splits"])))
    say("the files hold the questions' text, which PsyQA's agreement forbids passing on")
