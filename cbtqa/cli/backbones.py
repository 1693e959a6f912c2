"""`cbtqa backbones`: the base models that can be tuned, and everything known about one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cbtqa.cli.console import print_json, print_table, say
from cbtqa.cli.facts import print_facts
from cbtqa.cli.options import AsJson
from cbtqa.tuning.backbones import Backbone, find_backbone, load_backbones
from cbtqa.tuning.model_config import count_parameters

GIB = 1 << 30
Name = Annotated[
    str | None,
    typer.Argument(help="Name, alias, folder or Hub id to explain; without it, all are listed."),
]


def backbones(name: Name = None, as_json: AsJson = False) -> None:
    """List the base models, or explain one: download, licence, conversion, format, assumptions.

    Nothing is downloaded. Example: [bold]cbtqa backbones baichuan[/bold]
    """
    if name is None:
        known = list(load_backbones().values())
        if as_json:
            print_json({"backbones": [_told(backbone) for backbone in known]})
        else:
            _print_all(known)
        return
    backbone = find_backbone(name)
    if as_json:
        print_json(_told(backbone))
    else:
        _print_one(backbone, name)


def _told(backbone: Backbone) -> dict[str, Any]:
    plain = backbone.model_dump(mode="json", exclude={"path", "stop_tokens"})
    return {
        **plain,
        "name": backbone.told_name,
        "needs_conversion": backbone.needs_conversion,
        "stops": list(backbone.stops),
        "n_parameters": count_parameters(backbone.shape) if backbone.shape else None,
    }


def _print_all(known: list[Backbone]) -> None:
    rows = [
        [
            backbone.id,
            backbone.hub_id or "",
            _billions(backbone),
            " ".join(_first_steps(backbone)) or "-",
        ]
        for backbone in known
    ]
    print_table("Backbones", ["name", "Hub id", "weights", "first"], rows)
    say("one in detail: cbtqa backbones NAME; a folder or any other Hub id works too")


def _print_one(backbone: Backbone, given: str) -> None:
    shape = backbone.shape
    rows = [
        ("name", f"{backbone.title.en} / {backbone.title.zh}"),
        ("also", ", ".join(backbone.aliases)),
        ("made from", backbone.source_id or ""),
        ("weights", f"{backbone.told_name}{_download_size(backbone)}"),
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
        ("adapters on", ", ".join(backbone.target_modules)),
        *(("assumed", statement) for statement in backbone.assumed),
    ]
    print_facts(backbone.id, rows)
    if backbone.needs_conversion:
        say(f"first: cbtqa convert {given} --out {backbone.id.lower()}-converted")
        given = f"{backbone.id.lower()}-converted"
    say(f"next: cbtqa finetune --backbone {given} --dry-run")


def _first_steps(backbone: Backbone) -> list[str]:
    return ["convert"] * backbone.needs_conversion + ["accept licence"] * backbone.gated


def _billions(backbone: Backbone) -> str:
    return f"{count_parameters(backbone.shape) / 1e9:.2f} G" if backbone.shape else ""


def _download_size(backbone: Backbone) -> str:
    if backbone.path or not backbone.shape:
        return ""
    return f", a download of about {2 * count_parameters(backbone.shape) / GIB:.1f} GiB"
