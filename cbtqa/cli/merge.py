"""`cbtqa merge`: an adapter becomes a plain model, for vLLM, llama.cpp and everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cbtqa.cli.console import print_json, say
from cbtqa.cli.convert import MIB, say_step
from cbtqa.cli.facts import print_facts
from cbtqa.cli.options import AsJson
from cbtqa.tuning.gguf import find_converter, serving_lines, write_gguf
from cbtqa.tuning.merge import MergeRecord

AdapterFolder = Annotated[Path, typer.Argument(help="Folder of the adapter, from cbtqa finetune.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; must not exist yet.")]
Base = Annotated[
    str | None,
    typer.Option("--base", help="Base model: folder, name or Hub id (default: the adapter's)."),
]
DTypeOption = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option("--dtype", help="Type of the merged weights (default: the base's)."),
]
Shard = Annotated[
    int, typer.Option("--shard-mib", min=1, help="Size of the files written; memory holds one.")
]
Gguf = Annotated[
    Path | None, typer.Option("--gguf", help="Also write this GGUF file, with llama.cpp's script.")
]
LlamaCpp = Annotated[
    Path | None,
    typer.Option("--llama-cpp", help="Source folder of llama.cpp (default: LLAMA_CPP)."),
]


def merge(
    adapter: AdapterFolder,
    out: Out,
    base: Base = None,
    dtype: DTypeOption = None,
    shard_mib: Shard = 2048,
    gguf: Gguf = None,
    llama_cpp: LlamaCpp = None,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base: in float32, cast once, one shard in memory at a time.

    The base must be the one the adapter was trained on, by hash. Tokenizer, chat format, end
    tokens and a record go with it. Example: [bold]cbtqa merge run --out merged[/bold]
    """
    from cbtqa.tuning.merge import merge as merge_adapter

    converter = find_converter(llama_cpp) if gguf else None
    record = merge_adapter(
        adapter, out, base=base, dtype=dtype, shard_bytes=shard_mib * MIB, on_step=say_step
    )
    if gguf and converter:
        write_gguf(out, gguf, converter)
    if as_json:
        print_json({**record.model_dump(mode="json"), "serve": serving_lines(out)})
    else:
        _print_record(record, out)


def _print_record(record: MergeRecord, out: Path) -> None:
    changed = f"{record.n_merged} by the adapter, {record.n_replaced} trained whole"
    rows = [
        ("base", record.base.name),
        ("adapter", f"{record.adapter} ({record.method})"),
        ("weights changed", changed),
        ("type", ", ".join(record.dtypes)),
        *(("note", note) for note in record.notes),
        ("weights' SHA-256", record.weights_sha256),
    ]
    print_facts(f"Merged: {out}", rows)
    for name, line in serving_lines(out).items():
        say(f"{name}: {line}")
