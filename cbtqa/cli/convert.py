"""`cbtqa convert`: a checkpoint of 2023 that needs code from the Hub becomes a native one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cbtqa.cli.console import print_json, say
from cbtqa.cli.facts import print_facts
from cbtqa.cli.options import AsJson
from cbtqa.tuning.convert import ConversionRecord
from cbtqa.tuning.shards import GIB, Step

MIB = 1 << 20
Source = Annotated[str, typer.Argument(help="Name of a backbone, folder, or Hub id.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; must not exist yet.")]
Layout = Annotated[
    Literal["baichuan", "baichuan2", "qwen"] | None,
    typer.Option("--layout", help="What the checkpoint is, where its config.json is wrong."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Commit or branch on the Hub (default: newest).")
]
Shard = Annotated[
    int, typer.Option("--shard-mib", min=1, help="Size of the files written; memory holds one.")
]


def convert(
    source: Source,
    out: Out,
    layout: Layout = None,
    revision: Revision = None,
    shard_mib: Shard = 2048,
    as_json: AsJson = False,
) -> None:
    """Rewrite Baichuan-7B, Baichuan2-7B or Qwen-7B (first generation) for today's libraries.

    Baichuan becomes Llama, Qwen becomes Qwen2: weights in safetensors, tokenizer, generation
    settings and a record with the hashes of what went in. No code from the Hub is run. A run that
    was stopped goes on. Example: [bold]cbtqa convert baichuan --out baichuan-7b-llama[/bold]
    """
    from cbtqa.tuning.convert import convert as convert_checkpoint

    record = convert_checkpoint(
        source,
        out,
        layout=layout,
        revision=revision,
        shard_bytes=shard_mib * MIB,
        on_step=say_step,
    )
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        _print_record(record, out)


def say_step(step: Step) -> None:
    """One line of talk a file."""
    size = f"{step.n_bytes / GIB:.2f} GiB"
    how = "there already" if step.is_kept else f"{size}, {step.seconds:.0f} s"
    say(f"{step.what} {step.number} of {step.total}: {step.name} ({how})")


def _print_record(record: ConversionRecord, out: Path) -> None:
    tokenizer = record.tokenizer
    rows = [
        ("source", record.source.name),
        ("revision", record.source.revision or "a folder"),
        ("layout", record.conversion),
        ("parameters", f"{record.n_parameters:,} ({', '.join(record.dtypes)})"),
        ("tokenizer", f"{tokenizer.kind}, {tokenizer.n_tokens:,} tokens"),
        ("texts cut alike", f"{tokenizer.n_texts_compared:,} of {tokenizer.n_texts_compared:,}"),
        ("dropped", ", ".join(record.dropped) or "nothing"),
        *(("note", note) for note in record.exactness),
        ("weights' SHA-256", record.weights_sha256),
    ]
    print_facts(f"Converted: {out}", rows)
    say(f"next: cbtqa finetune --backbone {out} --dry-run")
