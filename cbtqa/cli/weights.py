"""`cbtqa convert`, `merge`, `backbones` and `cache`: base models and their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cbtqa.cli.console import print_facts, print_json, say, show_table
from cbtqa.cli.options import AsJson
from cbtqa.report.table import Table
from cbtqa.report.words import seconds, size
from cbtqa.tuning.backbones import Backbone, count_parameters, find_backbone, load_backbones
from cbtqa.tuning.weights.cache import cache_folder, cached_copies, clear_cache, find_copy
from cbtqa.tuning.weights.convert import ConversionRecord
from cbtqa.tuning.weights.files import Step
from cbtqa.tuning.weights.merge import MergeRecord, find_converter, serving_lines, write_gguf

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
    was stopped goes on. Other verbs convert what they need by themselves (cbtqa cache): this is
    for those who want the folder. Example: [bold]cbtqa convert baichuan --out baichuan-llama[/bold]
    """
    from cbtqa.tuning.weights.convert import convert as convert_checkpoint

    record = convert_checkpoint(
        source,
        out,
        layout=layout,
        revision=revision,
        shard_bytes=shard_mib * MIB,
        on_step=say_step,
    )
    print_json(record) if as_json else _print_record(record, out)


def say_step(step: Step) -> None:
    """One line of talk a file."""
    how = "there already" if step.is_kept else f"{size(step.n_bytes)}, {seconds(step.seconds)}"
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


AdapterFolder = Annotated[Path, typer.Argument(help="Folder of the adapter, from cbtqa finetune.")]
Base = Annotated[
    str | None,
    typer.Option("--base", help="Base model: folder, name or Hub id (default: the adapter's)."),
]
DTypeOption = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option("--dtype", help="Type of the merged weights (default: the base's)."),
]
ThinkingOption = Annotated[
    Literal["off", "on", "keep"] | None,
    typer.Option(
        "--thinking", help="Reasoning before an answer, by default (default: as trained)."
    ),
]
Gguf = Annotated[
    Path | None,
    typer.Option(
        "--gguf",
        help="Also write this GGUF file, with llama.cpp's script, and a Modelfile for Ollama.",
    ),
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
    thinking: ThinkingOption = None,
    shard_mib: Shard = 2048,
    gguf: Gguf = None,
    llama_cpp: LlamaCpp = None,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base: in float32, cast once, one shard in memory at a time.

    The base must be the one the adapter was trained on, by hash. Tokenizer, chat format, end
    tokens and a record go with it.

    With --gguf the converter of a llama.cpp checkout runs afterwards, and a Modelfile lies beside
    the file: chat template, system text of the training, end tokens, notices. Ollama itself has
    neither the crisis screen nor the checks: cbtqa chat --endpoint ollama puts them in front.

    [bold]Examples[/bold]

    cbtqa merge run --out merged

    cbtqa merge run --out merged --gguf cbt.gguf --llama-cpp llama.cpp
    """
    from cbtqa.tuning.answering.modelfile import write_modelfile
    from cbtqa.tuning.weights.merge import merge as merge_adapter

    converter = find_converter(llama_cpp, gguf) if gguf else None
    record = merge_adapter(
        adapter,
        out,
        base=base,
        dtype=dtype,
        thinking=thinking,
        shard_bytes=shard_mib * MIB,
        on_step=say_step,
        on_stage=say,
    )
    lines = serving_lines(out)
    if gguf and converter:
        write_gguf(out, gguf, converter)
        lines = serving_lines(out, gguf, write_modelfile(out, adapter, gguf))
    found = {**record.model_dump(mode="json"), "serve": lines}
    print_json(found) if as_json else _print_merged(record, out, lines)


def _print_merged(record: MergeRecord, out: Path, lines: dict[str, str]) -> None:
    rows = [
        ("base", record.base.name),
        ("adapter", f"{record.adapter} ({record.method})"),
        ("weights changed", f"{record.n_merged} by the adapter, {record.n_replaced} trained whole"),
        ("type", ", ".join(record.dtypes)),
        *(("note", note) for note in record.notes),
        ("weights' SHA-256", record.weights_sha256),
    ]
    print_facts(f"Merged: {out}", rows)
    for name, line in lines.items():
        say(f"{name}: {line}")


Name = Annotated[
    str | None,
    typer.Argument(help="Name, alias, folder or Hub id to explain; without it, all are listed."),
]


def backbones(name: Name = None, as_json: AsJson = False) -> None:
    """List the base models, or explain one: download, licence, conversion, format, assumptions.

    Nothing is downloaded. Example: [bold]cbtqa backbones baichuan[/bold]
    """
    known = list(load_backbones().values()) if name is None else [find_backbone(name)]
    found = [_described(backbone) for backbone in known]
    if as_json:
        print_json(found[0] if name else {"backbones": found})
    elif name:
        _print_one(known[0], name)
    else:
        rows = [(one.id, one.hub_id or "", _billions(one), _first_steps(one)) for one in known]
        show_table(Table(["name", "Hub id", "weights", "first"], rows, "Backbones"))
        say("one in detail: cbtqa backbones NAME; a folder or any other Hub id works too")


def _described(backbone: Backbone) -> dict[str, Any]:
    plain = backbone.model_dump(mode="json", exclude={"path", "stop_tokens"})
    return {
        **plain,
        "name": backbone.display_name,
        "needs_conversion": backbone.needs_conversion,
        "stops": list(backbone.stops),
        "n_parameters": count_parameters(backbone.shape) if backbone.shape else None,
    }


def _print_one(backbone: Backbone, given: str) -> None:
    shape = backbone.shape
    rows = [
        ("name", f"{backbone.title.en} / {backbone.title.zh}"),
        ("also", ", ".join(backbone.aliases)),
        ("made from", backbone.source_id or ""),
        ("weights", f"{backbone.display_name}{_download_size(backbone)}"),
        ("on ModelScope", backbone.modelscope_id or ""),
        ("revision", backbone.revision or ("" if backbone.path else "newest (none is pinned)")),
        ("licence", backbone.licence),
        ("gate", "accept the licence on the model's page first" if backbone.gated else "none"),
        ("published class", backbone.source_architecture or backbone.architecture or "not read"),
        ("trained as", backbone.architecture or "read when it is loaded"),
        ("parameters", _billions(backbone) or "read when it is loaded"),
        ("layers x hidden", f"{shape.layers} x {shape.hidden:,}" if shape else ""),
        ("vocabulary", f"{shape.vocab:,}" if shape else ""),
        ("context", f"{backbone.context:,} tokens" if backbone.context else ""),
        ("chat format", backbone.template or "the tokenizer's own"),
        ("an answer ends with", " or ".join(backbone.stops) or "the tokenizer's end token"),
        ("adapters on", ", ".join(backbone.target_modules) or "every linear layer but the head"),
        *(("looked up", source) for source in backbone.sources),
        *(("assumed", statement) for statement in backbone.assumed),
    ]
    if backbone.needs_conversion:
        made = f"by the first verb that needs it, once, into {cache_folder()}"
        rows.append(("converted", str(find_copy(backbone) or made)))
    print_facts(backbone.id, rows)
    say(f"next: cbtqa finetune --backbone {given} --dry-run")


def _first_steps(one: Backbone) -> str | None:
    return "accept licence" if one.gated else None


def _billions(backbone: Backbone) -> str:
    return f"{count_parameters(backbone.shape) / 1e9:.2f} G" if backbone.shape else ""


def _download_size(backbone: Backbone) -> str:
    if backbone.path or not backbone.shape:
        return ""
    return f", a download of about {size(2 * count_parameters(backbone.shape))}"


Clear = Annotated[
    list[str] | None,
    typer.Option("--clear", help="Remove the copy of this name, or all; may be given repeatedly."),
]


def cache(clear: Clear = None, as_json: AsJson = False) -> None:
    """List the converted copies of base models that verbs made by themselves, or remove some.

    They are in ~/.cache/cbtqa, or in CBTQA_CACHE. A copy that is removed is made again when it is
    needed. Example: [bold]cbtqa cache --clear all[/bold]
    """
    copies = clear_cache(clear) if clear else cached_copies()
    found = [
        {
            "name": copy.name,
            "source": copy.record.source.name if copy.record else None,
            "revision": copy.record.source.revision if copy.record else None,
            "is_complete": copy.record is not None,
            "n_bytes": copy.n_bytes,
        }
        for copy in copies
    ]
    if as_json:
        print_json({"folder": str(cache_folder()), "removed" if clear else "copies": found})
        return
    rows = []
    for copy in copies:
        made_from = copy.record.source.name if copy.record else "stopped; the next use resumes it"
        rows.append((copy.name, made_from, size(copy.n_bytes)))
    folder = cache_folder()
    title = f"Removed from {folder}" if clear else f"Converted copies in {folder}"
    show_table(Table(["name", "made from", "size"], rows, title)) if rows else say(f"{title}: none")
