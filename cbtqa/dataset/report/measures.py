"""Sections that measure a dataset: lengths, steps, distortions, template-likeness."""

from __future__ import annotations

from cbtqa.dataset.report.material import Material, known_phrase, number, percent, say, wording
from cbtqa.dataset.stats import LengthSummary, paper_facts
from cbtqa.records import STEP_NAMES
from cbtqa.report.charts import Bar, HistogramBar, bar_chart, heat_map, histogram
from cbtqa.report.page import Block, Cell, Figure, Phrase, Table, Text

TYPES_IN_HEAT_MAP = 12
TOPICS = 12


def topics(material: Material) -> list[Block]:
    """The most frequent keywords."""
    statistics = material.statistics
    bars = [
        Bar(word, n, f"{number(n)}  ({percent(n / statistics.n_entries)})")
        for word, n in statistics.keywords[:TOPICS]
    ]
    if not bars:
        return [Text(say("topics.none"))]
    caption = say("topics.caption", n=len(bars))
    described = ", ".join(f"{bar.label} {bar.shown}" for bar in bars)
    chart = bar_chart(bars, title=material.text(caption), description=described)
    return [Figure(chart, caption)]


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
    caption = wording()["lengths.histogram"]
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
                f"{place} {material.text(texts)}",
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


def likeness(material: Material) -> list[Block]:
    """Distinct openings per step."""
    found = material.statistics.likeness
    rows: list[list[Cell]] = []
    for entry in found.openings:
        common = entry.most_common[0] if entry.most_common else None
        shown = f"{common[0]}…  × {common[1]}" if common else say("likeness.none")
        rows.append(
            [
                known_phrase("texts", entry.column),
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
