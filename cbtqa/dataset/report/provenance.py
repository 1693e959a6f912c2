"""Sections that say where a dataset comes from and how it lies on disk."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from markupsafe import Markup

from cbtqa.dataset.report.material import Material, known_phrase, number, percent, say
from cbtqa.dataset_folder import data_files
from cbtqa.manifest import describe_file
from cbtqa.report.charts import flow_bar
from cbtqa.report.page import (
    Block,
    Cell,
    Code,
    Fact,
    Facts,
    Figure,
    Notice,
    Pairs,
    Phrase,
    Table,
    Text,
)
from cbtqa.safety.notices import help_text, load_notices

SHOWN_ELSEWHERE = ("out", "input", "endpoint", "model")
"""Settings that other lines tell; an endpoint's address may hold more than its host."""


def lede(material: Material) -> Phrase:
    """The first sentence: what this is, made by what and when."""
    kind = "template" if material.is_template else "endpoint"
    return say(
        f"lede.{kind}",
        n_out=number(material.statistics.n_entries),
        model=", ".join(material.statistics.models) or "?",
        date=material.manifest.finished_at[:10],
    )


def opening(material: Material) -> tuple[Block, ...]:
    """What to know before anything else."""
    notices = load_notices()
    paragraphs = (
        say("notice.made_by_program"),
        Phrase(zh=notices.content_warning.zh, en=notices.content_warning.en),
        Phrase(zh=help_text("zh"), en=help_text("en")),
    )
    return (Notice(say("notice.title"), paragraphs),)


def glance(material: Material) -> list[Block]:
    """In = out + left out, and four key figures."""
    counts, statistics = material.manifest.counts, material.statistics
    n_in, n_out = counts.get("n_in", 0), statistics.n_entries
    rejected: dict[str, int] = counts.get("rejected", {})
    n_rejected = sum(rejected.values())
    totals = {"n_in": number(n_in), "n_out": number(n_out), "n_rejected": number(n_rejected)}
    answer = statistics.lengths.get("answer")
    facts = [
        Fact(number(n_out), say("glance.entries")),
        Fact(percent(statistics.share_distorted), say("glance.distorted")),
        Fact(
            number(answer.median) if answer else "–",
            say("glance.answer_length"),
            material.text(say("glance.median")),
        ),
        _cost_fact(material),
    ]
    blocks: list[Block] = [Facts(tuple(facts))]
    if n_in != n_out + n_rejected:
        return [Text(say("glance.does_not_add_up", **totals)), *blocks]
    flow = [(material.text(say("glance.kept")), n_out)]
    flow += [(material.text(say(f"reasons.{reason}")), n) for reason, n in rejected.items()]
    sentence = say("glance.adds_up", **totals)
    title = say("glance.flow")
    chart = flow_bar(
        flow, title=material.text(title), description=material.text(sentence), n_total=n_in
    )
    return [*blocks, Text(sentence), Figure(chart, title)]


def _cost_fact(material: Material) -> Fact:
    """What the run cost; a run without a model cost nothing, an uncounted one is said to be so."""
    usage, cost = material.manifest.usage, material.manifest.cost
    tokens = usage.prompt_tokens + usage.completion_tokens if usage else 0
    if material.is_template:
        return Fact("0", say("glance.cost_and_tokens"), material.text(say("glance.no_cost")))
    if not tokens:
        return Fact("–", say("glance.cost_and_tokens"), material.text(say("made.unknown")))
    shown = f"{number(tokens)} {material.text(say('glance.tokens'))}"
    if cost:
        return Fact(_amount(cost), say("glance.cost"), shown)
    return Fact(number(tokens), say("glance.tokens"))


def _amount(cost: dict[str, Any]) -> str:
    return f"{number(cost['amount'], 2)} {cost.get('currency', '')}".strip()


def made(material: Material) -> list[Block]:
    """Teacher, model, prompt, dates, tokens, cost, inputs, and what left the machine."""
    manifest, statistics = material.manifest, material.statistics
    unknown = say("made.unknown")
    teacher = say("made.teacher_template" if material.is_template else "made.teacher_endpoint")
    rows: list[tuple[Phrase, Cell]] = [
        (say("made.teacher"), teacher),
        (say("made.model"), ", ".join(statistics.models) or unknown),
    ]
    for name, sha256 in manifest.prompts.items():
        rows.append((say("made.prompt"), _with_hash(name, sha256)))
    sampling = {name: material.setting(name) for name in ("temperature", "top_p", "max_tokens")}
    shown = ", ".join(f"{name} {value}" for name, value in sampling.items() if value is not None)
    if shown and not material.is_template:
        rows.append((say("made.sampling"), shown))
    for name in ("seed", "taxonomy"):
        if material.setting(name) is not None:
            rows.append((say(f"made.{name}"), str(material.setting(name))))
    rows += [
        (say("made.started"), _time(manifest.started_at)),
        (say("made.finished"), _time(manifest.finished_at)),
    ]
    if manifest.usage and not material.is_template:
        used = f"{number(manifest.usage.prompt_tokens)} + "
        rows.append((say("made.tokens"), used + number(manifest.usage.completion_tokens)))
    if manifest.cost:
        rows.append((say("made.cost"), _price(material, manifest.cost)))
    sample = f" · {material.text(say('made.sample'))}" if material.is_bundled_sample else ""
    for entry in manifest.inputs:
        rows.append((say("made.inputs"), _with_hash(entry.name + sample, entry.sha256)))
    changed = ", ".join(
        f"{name} = {entry.value}"
        for name, entry in manifest.settings.items()
        if entry.origin != "default" and name not in SHOWN_ELSEWHERE
    )
    if changed:
        rows.append((say("made.settings"), changed))
    rows.append((say("made.version"), manifest.cbtqa_version))
    rows.append((say("made.disclosure"), disclosure(material)))
    rows += [(say("made.acknowledged"), text) for text in manifest.acknowledgements.values()]
    return [Pairs(rows)]


def _price(material: Material, cost: dict[str, Any]) -> str:
    """The amount with what it was reckoned from."""
    basis = say(
        "made.price",
        input=cost.get("input", "?"),
        output=cost.get("output", "?"),
        as_of=cost.get("as_of") or material.text(say("made.price_given")),
    )
    return f"{_amount(cost)} ({material.text(basis)})"


def disclosure(material: Material) -> Phrase:
    """Whether the questions left the machine, and where they went.

    The gate of a build lets text go to a host that is not local only when a person acknowledged
    it, or when the questions are the invented sample.
    """
    hosts = ", ".join(material.statistics.hosts)
    if not hosts:
        return say("made.disclosure_none")
    if "disclosure" in material.manifest.acknowledgements:
        return say("made.disclosure_open", host=hosts)
    kind = "invented" if material.is_bundled_sample else "local"
    return say(f"made.disclosure_{kind}", host=hosts)


def _with_hash(name: str, sha256: str) -> Markup:
    return Markup('{} <span class="hash">{}</span>').format(name, sha256)


def _time(stamp: str) -> str:
    return datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M:%S")


def splits(material: Material) -> list[Block]:
    """Entries per split."""
    statistics = material.statistics
    rows: list[list[Cell]] = [
        [known_phrase("splits", name), number(n), percent(n / statistics.n_entries)]
        for name, n in statistics.splits.items()
    ]
    columns = [say(f"columns.{name}") for name in ("split", "entries", "share")]
    blocks: list[Block] = [Table(columns, rows), Text(say("splits.note"), is_note=True)]
    n_near = material.manifest.counts.get("n_near_duplicates")
    if n_near is not None:
        blocks.append(Text(say("splits.near_duplicates", n=number(n_near)), is_note=True))
    return blocks


def files(material: Material) -> list[Block]:
    """The dataset's files with their hashes."""
    entries = [
        describe_file(path, material.folder)
        for path in data_files(material.folder)
        if path.suffix in (".parquet", ".jsonl")
    ]
    rows: list[list[Cell]] = [
        [
            Markup('{}<br><span class="hash">{}</span>').format(entry.name, entry.sha256),
            number(entry.n_bytes),
        ]
        for entry in entries
    ]
    return [
        Table([say("columns.file"), say("columns.bytes")], rows),
        Text(say("files.note"), is_note=True),
    ]


def load(material: Material) -> list[Block]:
    """Lines to copy."""
    lines = [
        "from pathlib import Path",
        "",
        "from cbtqa.dataset_folder import DatasetFolder",
        "from datasets import load_dataset",
        "",
        'dataset = load_dataset("path/to/folder")["train"]',
        'risk = dataset.features["risk"].int2str(dataset[0]["risk"])',
        'frame = DatasetFolder.open(Path("path/to/folder")).to_pandas()',
    ]
    return [Text(say("load.note")), Code("\n".join(lines))]
