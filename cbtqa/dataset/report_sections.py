"""The sections of a dataset's report, each from the same material to blocks of a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from cbtqa.dataset.examples import choose_examples, mark_evidence
from cbtqa.dataset.lengths import LengthSummary
from cbtqa.dataset.stats import DatasetStatistics, paper_facts
from cbtqa.files import read_jsonl
from cbtqa.manifest import Manifest
from cbtqa.records import STEP_NAMES, Rejection
from cbtqa.report.charts import (
    Bar,
    HistogramBar,
    bar_chart,
    flow_bar,
    histogram,
)
from cbtqa.report.page import (
    Block,
    Cell,
    Code,
    Fact,
    Facts,
    Figure,
    Fragment,
    Notice,
    Pairs,
    Table,
    Text,
    render_fragment,
)
from cbtqa.report.plots import heat_map
from cbtqa.report.wording import Lang, Phrase, load_wording, same

RAW_CUT = 300
"""Characters shown of a rejected text."""
EXAMPLES_PER_REASON = 2
TYPES_IN_HEAT_MAP = 12


def say(key: str, **values: object) -> Phrase:
    """A phrase of `report.yaml`."""
    return load_wording("cbtqa.dataset", "report.yaml")[key].fill(**values)


@dataclass(frozen=True)
class Material:
    """What all sections draw on."""

    folder: Path
    manifest: Manifest
    statistics: DatasetStatistics
    label_names: Mapping[str, Phrase]
    lang: Lang

    def setting(self, name: str) -> object:
        """The value of a setting of the build, None when it is not recorded."""
        entry = self.manifest.settings.get(name)
        return entry.value if entry else None

    @property
    def is_template(self) -> bool:
        """True when no entry may serve as training source."""
        return self.statistics.n_entries > 0 and self.statistics.n_training_source == 0

    def text(self, phrase: Phrase) -> str:
        """A phrase in the page's language."""
        return phrase.first(self.lang)


def number(value: float, digits: int = 0) -> str:
    """A number with thousands apart."""
    return f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """A share as percent with one decimal; an empty whole is `n/a`."""
    return "n/a" if share is None else f"{share:.1%}".replace("%", " %")


def lede(material: Material) -> Phrase:
    """The first sentence: what this is, made by what and when."""
    kind = "template" if material.is_template else "endpoint"
    return say(
        f"lede.{kind}",
        n_out=number(material.statistics.n_entries),
        model="、".join(material.statistics.models) or "?",
        date=material.manifest.finished_at[:10],
    )


def opening(material: Material) -> tuple[Block, ...]:
    """What to know before anything else."""
    return (Notice(say("notice.title"), (say("notice.not_therapy"), say("notice.content"))),)


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
    usage, cost = material.manifest.usage, material.manifest.cost
    tokens = usage.prompt_tokens + usage.completion_tokens if usage else 0
    if not tokens:
        return Fact("0", say("glance.cost_and_tokens"), material.text(say("glance.no_cost")))
    shown = f"{number(tokens)} {material.text(say('glance.tokens'))}"
    if cost and cost.get("amount") is not None:
        amount = f"{number(cost['amount'], 2)} {cost.get('currency', '')}".strip()
        return Fact(amount, say("glance.cost"), shown)
    return Fact(number(tokens), say("glance.tokens"))


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
        priced = ", ".join(f"{key} {value}" for key, value in manifest.cost.items())
        rows.append((say("made.cost"), priced))
    for entry in manifest.inputs:
        rows.append((say("made.inputs"), _with_hash(entry.name, entry.sha256)))
    changed = ", ".join(
        f"{name} = {entry.value}"
        for name, entry in manifest.settings.items()
        if entry.origin != "default" and name not in ("out", "input")
    )
    if changed:
        rows.append((say("made.settings"), changed))
    rows.append((say("made.version"), manifest.cbtqa_version))
    rows += _disclosure(material)
    return [Pairs(rows)]


def _disclosure(material: Material) -> list[tuple[Phrase, Cell]]:
    hosts = ", ".join(material.statistics.hosts)
    acknowledged = material.manifest.acknowledgements
    if not hosts:
        answer = say("made.disclosure_none")
    elif "disclosure" in acknowledged:
        answer = say("made.disclosure_open", host=hosts)
    else:
        answer = say("made.disclosure_local", host=hosts)
    rows: list[tuple[Phrase, Cell]] = [(say("made.disclosure"), answer)]
    return rows + [(say("made.acknowledged"), text) for text in acknowledged.values()]


def _with_hash(name: str, sha256: str) -> Markup:
    return Markup('{} <span class="hash">{}</span>').format(name, sha256)


def _time(stamp: str) -> str:
    return datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M:%S")


def splits(material: Material) -> list[Block]:
    """Entries per split."""
    statistics = material.statistics
    rows: list[list[Cell]] = [
        [_known("splits", name), number(n), percent(n / statistics.n_entries)]
        for name, n in statistics.splits.items()
    ]
    columns = [say(f"columns.{name}") for name in ("split", "entries", "share")]
    blocks: list[Block] = [Table(columns, rows), Text(say("splits.note"), is_note=True)]
    n_near = material.manifest.counts.get("n_near_duplicates")
    if n_near is not None:
        blocks.append(Text(say("splits.near_duplicates", n=number(n_near)), is_note=True))
    return blocks


def _known(group: str, name: str) -> Phrase:
    """The phrase `group.name`, or the name itself when the wording has none."""
    return load_wording("cbtqa.dataset", "report.yaml").get(f"{group}.{name}", same(name))


def lengths(material: Material) -> list[Block]:
    """Histograms of description and answer, and a table of all columns."""
    found = material.statistics.lengths
    blocks: list[Block] = [
        _length_figure(material, name, found[name])
        for name in ("answer", "description")
        if name in found and found[name].max > 0
    ]
    columns = ("column", "n", "mean", "sd", "min", "median", "p95", "max")
    rows: list[list[Cell]] = [
        [
            say(f"texts.{name}"), number(s.n), number(s.mean, 1), number(s.sd, 1),
            number(s.min), number(s.median), number(s.p95), number(s.max),
        ]
        for name, s in found.items()
    ]  # fmt: skip
    table = Table([say(f"columns.{name}") for name in columns], rows)
    return [*blocks, table, Text(say("lengths.unit"), is_note=True)]


def _length_figure(material: Material, name: str, summary: LengthSummary) -> Figure:
    texts = say(f"texts.{name}")
    caption = load_wording("cbtqa.dataset", "report.yaml")["lengths.histogram"]
    caption = Phrase(zh=caption.fill(name=texts.zh).zh, en=caption.fill(name=texts.en).en)
    median = material.text(say("lengths.median", value=number(summary.median)))
    chart = histogram(
        [HistogramBar(entry.low, entry.high, entry.n) for entry in summary.bins],
        marks=[(summary.median, median)],
        title=material.text(caption),
        description=f"{median}; {summary.min}–{summary.max}, n = {summary.n}",
    )
    return Figure(chart, caption)


def steps(material: Material) -> list[Block]:
    """How much of an answer each step takes."""
    found = material.statistics.lengths
    total = sum(found[name].mean for name in STEP_NAMES if name in found)
    if not material.statistics.n_with_steps or not total:
        return [Text(say("steps.fused"))]
    bars = []
    for place, name in enumerate(STEP_NAMES, 1):
        texts, share = say(f"texts.{name}"), found[name].mean / total
        bars.append(
            Bar(
                f"{place}  {material.text(texts)}",
                share,
                percent(share),
                texts.second(material.lang),
            )
        )
    caption = say("steps.shares")
    described = ", ".join(f"{bar.label} {bar.shown}" for bar in bars)
    chart = bar_chart(bars, title=material.text(caption), description=described)
    return [Figure(chart, caption), Text(say("steps.note"), is_note=True)]


def distortions(material: Material) -> list[Block]:
    """Share with a distortion and per type, the paper's figures beside ours."""
    statistics, paper = material.statistics, paper_facts()
    caveat = Text(say("distortions.caveat"))
    if not statistics.labels:
        return [caveat, Text(say("distortions.none"))]
    caption = say("distortions.share")
    name = material.text(say("distortions.paper_short"))
    share = statistics.share_distorted or 0.0
    shown = [
        Bar(
            material.text(say("distortions.ours")),
            share,
            f"{percent(share)}  ({number(statistics.n_distorted)} / "
            f"{number(statistics.n_entries)})",
        ),
        Bar(
            material.text(say("distortions.paper")),
            paper.share_distorted,
            f"{percent(paper.share_distorted)}  ({number(paper.n_distorted)} / "
            f"{number(paper.n_entries)})",
        ),
    ]
    both = bar_chart(shown, title=material.text(caption), description=shown[0].shown)
    return [
        caveat,
        Figure(both, caption),
        _type_figure(material, name),
        _type_table(material),
        _per_entry_table(material),
        *_pair_figure(material),
        Text(say("distortions.paper_note", citation=paper.citation), is_note=True),
    ]


def _type_figure(material: Material, reference_name: str) -> Figure:
    known = paper_facts().labels
    bars = [
        Bar(
            material.text(material.label_names[label.id]),
            label.share_of_distorted,
            f"{number(label.n_entries)}  ({percent(label.share_of_distorted)})",
            material.label_names[label.id].second(material.lang),
            known.get(label.id),
        )
        for label in material.statistics.labels
    ]
    caption = say("distortions.types")
    described = ", ".join(f"{bar.label} {bar.shown}" for bar in bars)
    chart = bar_chart(
        bars, title=material.text(caption), description=described, reference_name=reference_name
    )
    return Figure(chart, caption)


def _type_table(material: Material) -> Table:
    unknown, known = say("distortions.unknown"), paper_facts().labels
    columns = ("type", "entries", "of_entries", "of_distorted", "paper", "evidence")
    rows: list[list[Cell]] = [
        [
            material.label_names[label.id],
            number(label.n_entries),
            percent(label.share_of_entries),
            percent(label.share_of_distorted),
            percent(known[label.id]) if label.id in known else material.text(unknown),
            percent(label.n_with_evidence / label.n_entries),
        ]
        for label in material.statistics.labels
    ]
    return Table([say(f"columns.{name}") for name in columns], rows)


def _per_entry_table(material: Material) -> Table:
    statistics = material.statistics
    rows: list[list[Cell]] = [
        [str(k), number(n), percent(n / statistics.n_entries)]
        for k, n in statistics.labels_per_entry.items()
    ]
    columns = [say(f"columns.{name}") for name in ("n_labels", "entries", "share")]
    return Table(columns, rows, caption=say("distortions.per_entry"))


def _pair_figure(material: Material) -> list[Figure]:
    statistics = material.statistics
    if not statistics.label_pairs:
        return []
    ids = [label.id for label in statistics.labels[:TYPES_IN_HEAT_MAP]]
    counts = {(pair.first, pair.second): pair.n for pair in statistics.label_pairs}
    values = [
        [
            None if row <= column else counts.get((min(a, b), max(a, b)), 0)
            for column, b in enumerate(ids)
        ]
        for row, a in enumerate(ids)
    ]
    names = [material.text(material.label_names[key]) for key in ids]
    caption = say("distortions.pairs")
    first = statistics.label_pairs[0]
    described = f"{first.first} × {first.second}: {first.n}"
    chart = heat_map(
        names[1:],
        names[:-1],
        [line[:-1] for line in values[1:]],
        title=material.text(caption),
        description=described,
    )
    return [Figure(chart, caption)]


def risk(material: Material) -> list[Block]:
    """Entries by risk, and how crisis questions were handled."""
    statistics = material.statistics
    handling = material.setting("crisis")
    key = handling if handling in ("split", "keep", "drop") else "unknown"
    rows: list[list[Cell]] = [
        [_known("risk", name), number(n), percent(n / statistics.n_entries)]
        for name, n in statistics.risk.items()
    ]
    dropped = material.manifest.counts.get("rejected", {}).get("crisis_dropped", 0)
    if dropped:
        rows.append([say("reasons.crisis_dropped"), number(dropped), "–"])
    columns = [say(f"columns.{name}") for name in ("risk", "entries", "share")]
    return [
        Text(say(f"risk.handling.{key}")),
        Table(columns, rows),
        Text(say("risk.note"), is_note=True),
    ]


def rejects(material: Material) -> list[Block]:
    """Every reason with its number and up to two examples."""
    examples: dict[str, list[Rejection]] = {}
    path = material.folder / "rejects.jsonl"
    for rejection in read_jsonl(path, Rejection) if path.exists() else ():
        found = examples.setdefault(rejection.reason.value, [])
        if len(found) < EXAMPLES_PER_REASON:
            found.append(rejection)
    rejected: dict[str, int] = material.manifest.counts.get("rejected", {})
    if not rejected:
        return [Text(say("rejects.none"))]
    groups = [
        {
            "name": say(f"reasons.{reason}"),
            "n": n,
            "examples": [_reject_example(item) for item in examples.get(reason, ())],
        }
        for reason, n in sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    ]
    fragment = render_fragment("cbtqa.dataset", "rejects.html.j2", material.lang, groups=groups)
    return [Text(say("rejects.note", cut=RAW_CUT)), fragment]


def _reject_example(rejection: Rejection) -> dict[str, object]:
    raw = rejection.raw or ""
    return {
        "item_id": rejection.item_id,
        "detail": rejection.detail,
        "where": rejection.where,
        "raw": raw[:RAW_CUT],
        "cut": say("rejects.cut_at", n=number(len(raw)), cut=RAW_CUT)
        if len(raw) > RAW_CUT
        else None
        if raw
        else say("rejects.no_raw"),
    }


def likeness(material: Material) -> list[Block]:
    """Distinct openings per step."""
    found = material.statistics.likeness
    rows: list[list[Cell]] = []
    for entry in found.openings:
        common = entry.most_common[0] if entry.most_common else None
        shown = f"{common[0]}…  × {common[1]}" if common else say("likeness.none")
        rows.append(
            [
                _known("texts", entry.column),
                shown,
                number(entry.n),
                number(entry.n_distinct),
                percent(entry.n_distinct / entry.n),
            ]
        )
    columns = [
        say(f"columns.{name}") for name in ("step", "common", "sampled", "distinct", "share")
    ]
    note = say(
        "likeness.note",
        n=number(found.n_sampled),
        distinct="n/a" if found.distinct_2 is None else f"{found.distinct_2:.3f}",
        repeated=number(found.n_repeated_answers),
    )
    return [Text(note), Table(columns, rows, n_text=2)]


def examples(material: Material) -> list[Block]:
    """Ten varied entries in full."""
    chosen = choose_examples(material.folder)
    return [
        Text(say("examples.note", n=len(chosen))),
        *(_example(material, split, row) for split, row in chosen),
    ]


def _example(material: Material, split: str, row: dict[str, object]) -> Fragment:
    labels, quotes = [], []
    for label in row["distortions"]:  # type: ignore[attr-defined]
        if label["evidence"]:
            quotes.append((label["evidence"], len(quotes) + 1))
        name = material.label_names.get(label["id"], same(label["id"]))
        labels.append({"name": name, "number": len(quotes) if label["evidence"] else None})
    description = str(row["description"] or "")
    in_title = [quote for quote in quotes if quote[0] not in description]
    steps = [(say(f"texts.{name}"), row[name]) for name in STEP_NAMES if row[name]]
    return render_fragment(
        "cbtqa.dataset",
        "example.html.j2",
        material.lang,
        row=row,
        title=mark_evidence(str(row["question"]), in_title),
        description=mark_evidence(description, quotes),
        labels=labels,
        steps=steps or [(say("examples.whole"), row["answer"])],
        split=_known("splits", split),
        risk=_known("risk", str(row["risk"])),
        keywords="、".join(row["keywords"] or ()),  # type: ignore[arg-type]
        no_label=say("examples.no_label"),
        no_evidence=say("examples.no_evidence"),
    )


def files(material: Material) -> list[Block]:
    """The dataset's files with their hashes, as far as the manifest lists them."""
    from cbtqa.manifest import describe_file

    entries = [
        describe_file(path, material.folder)
        for path in (
            *sorted(material.folder.glob("data/*.parquet")),
            *sorted(material.folder.glob("human/*.parquet")),
            *material.folder.glob("rejects.jsonl"),
        )
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
        "import datasets, pandas",
        "",
        'dataset = datasets.load_dataset("path/to/folder")',
        'frame = pandas.read_parquet("path/to/folder/data")',
    ]
    return [Text(say("load.note")), Code("\n".join(lines))]
