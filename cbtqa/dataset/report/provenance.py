"""Where a dataset comes from and how it lies on disk, as facts for its report."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from markupsafe import Markup

from cbtqa.dataset.report.material import Material, say
from cbtqa.dataset_folder import data_files
from cbtqa.manifest import describe_file
from cbtqa.report.charts import flow_bar
from cbtqa.report.page import Phrase
from cbtqa.report.table import Table
from cbtqa.report.words import GAP, count, money

SHOWN_ELSEWHERE = ("out", "input", "endpoint", "model")
"""Settings that other lines show; an endpoint's address may hold more than its host."""
Row = tuple[Phrase, str | Markup | Phrase]


def lede(material: Material) -> Phrase:
    """The first sentence: what this is, made by what and when."""
    kind = "template" if material.is_template else "endpoint"
    return say(
        f"lede.{kind}",
        n_out=count(material.statistics.n_entries),
        model=", ".join(material.statistics.models) or "?",
        date=material.manifest.finished_at[:10],
    )


def totals(material: Material) -> dict[str, int]:
    counts = material.manifest.counts
    n_rejected = sum(counts.get("rejected", {}).values())
    n_out = material.statistics.n_entries
    return {"n_in": counts.get("n_in", 0), "n_out": n_out, "n_rejected": n_rejected}


def flow_chart(material: Material, sentence: Phrase) -> Markup:
    """What became of every input."""
    rejected: dict[str, int] = material.manifest.counts.get("rejected", {})
    flow = [(material.text(say("glance.kept")), material.statistics.n_entries)]
    flow += [(material.text(say(f"reasons.{reason}")), n) for reason, n in rejected.items()]
    return flow_bar(
        flow,
        title=material.text(say("glance.flow")),
        description=material.text(sentence),
        n_total=totals(material)["n_in"],
    )


def cost_fact(material: Material) -> tuple[str, Phrase, str]:
    """What the run cost: nothing without a model, unknown where tokens were not counted."""
    usage, cost = material.manifest.usage, material.manifest.cost
    tokens = usage.n_tokens if usage else 0
    if material.is_template:
        return ("0", say("glance.cost_and_tokens"), material.text(say("glance.no_cost")))
    if not tokens:
        return (GAP, say("glance.cost_and_tokens"), material.text(say("made.unknown")))
    shown = f"{count(tokens)} {material.text(say('glance.tokens'))}"
    if cost:
        return (money(cost["amount"], cost.get("currency")), say("glance.cost"), shown)
    return (count(tokens), say("glance.tokens"), "")


def made(material: Material) -> list[Row]:
    """Teacher, model, prompt, dates, tokens, cost, inputs, and what left the machine."""
    manifest, statistics = material.manifest, material.statistics
    unknown = say("made.unknown")
    teacher = say("made.teacher_template" if material.is_template else "made.teacher_endpoint")
    rows: list[Row] = [
        (say("made.teacher"), teacher),
        (say("made.model"), ", ".join(statistics.models) or unknown),
    ]
    for name, sha256 in manifest.prompts.items():
        rows.append((say("made.prompt"), _with_hash(name, sha256)))
    if sampling := sampling_of(material):
        rows.append((say("made.sampling"), sampling))
    for name in ("seed", "taxonomy"):
        if material.setting(name) is not None:
            rows.append((say(f"made.{name}"), str(material.setting(name))))
    for name, stamp in (("started", manifest.started_at), ("finished", manifest.finished_at)):
        time = datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M:%S")
        rows.append((say(f"made.{name}"), time))
    if manifest.usage and manifest.usage.n_tokens and not material.is_template:
        used = f"{count(manifest.usage.prompt_tokens)} + "
        rows.append((say("made.tokens"), used + count(manifest.usage.completion_tokens)))
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
    return rows


def sampling_of(material: Material) -> str | None:
    """The sampling settings in one line; None when the build recorded none or used a template."""
    given = {name: material.setting(name) for name in ("temperature", "top_p", "max_tokens")}
    shown = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
    return shown if shown and not material.is_template else None


def _price(material: Material, cost: dict[str, Any]) -> str:
    """The amount and the prices behind it."""
    basis = say(
        "made.price",
        input=cost.get("input", "?"),
        output=cost.get("output", "?"),
        as_of=cost.get("as_of") or material.text(say("made.price_given")),
    )
    return f"{money(cost['amount'], cost.get('currency'))} ({material.text(basis)})"


def disclosure(material: Material) -> Phrase:
    """Whether the questions left the machine, and where they went."""
    hosts = ", ".join(material.statistics.hosts)
    if not hosts:
        return say("made.disclosure_none")
    if "disclosure" in material.manifest.acknowledgements:
        return say("made.disclosure_open", host=hosts)
    # a host that is not local wants an acknowledgement, except for the invented sample
    kind = "invented" if material.is_bundled_sample else "local"
    return say(f"made.disclosure_{kind}", host=hosts)


def _with_hash(name: str, sha256: str) -> Markup:
    return Markup('{} <span class="hash">{}</span>').format(name, sha256)


def file_table(material: Material) -> Table:
    """The dataset's files with their hashes."""
    named = Markup('{}<br><span class="hash">{}</span>')
    paths = [path for path in data_files(material.folder) if path.suffix in (".parquet", ".jsonl")]
    entries = [describe_file(path, material.folder) for path in paths]
    rows = [(named.format(entry.name, entry.sha256), entry.n_bytes) for entry in entries]
    return Table([say("columns.file"), say("columns.bytes")], rows)
