"""Tables and charts that measure a dataset: splits, lengths, steps, distortions, likeness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from cbtqa.dataset.report.material import Material, known_phrase, say
from cbtqa.dataset.stats import (
    DatasetStatistics,
    distortion_share,
    paper_distortion_share,
    paper_facts,
)
from cbtqa.manifest import Manifest
from cbtqa.records import STEP_NAMES
from cbtqa.report.charts import Bar, HistogramBar, bar_chart, heat_map, histogram
from cbtqa.report.page import Phrase
from cbtqa.report.table import Cell, Column, Table
from cbtqa.report.words import GAP, Show, count, count_of, digits, money, share

TYPES_IN_HEAT_MAP = 12
TOPICS = 12
Figure = tuple[Markup, Phrase]
"""A chart and its caption."""
Name = Callable[[str], Cell]
"""How a table names a column or label: by its phrase on a page, by its id in a terminal."""

_SHOWS: dict[str, Show] = {
    **dict.fromkeys(
        ("share", "of_entries", "of_distorted", "paper", "evidence", "repeated"), share
    ),
    **dict.fromkeys(("mean", "sd"), digits(1)),
    **dict.fromkeys(("median", "p95"), count),
}


def _columns(*names: str) -> list[Column]:
    return [Column(say(f"columns.{name}"), _SHOWS.get(name)) for name in names]


def reply_rows(manifest: Manifest) -> list[list[Cell]]:
    """First-try rate, tokens and cost of a run that asked a model; none where none was asked."""
    if not (first := first_try_rows(manifest)):
        return []
    usage, cost = manifest.usage, manifest.cost
    tokens = GAP
    if usage and usage.n_tokens:
        tokens = f"{count(usage.prompt_tokens)} + {count(usage.completion_tokens)}"
    return [
        *first,
        [say("made.tokens"), tokens],
        [say("made.cost"), money(cost["amount"], cost.get("currency")) if cost else GAP],
    ]


def first_try_rows(manifest: Manifest) -> list[list[Cell]]:
    """First-try rates of the answers and, where there was one, of the labelling pass."""
    labels = manifest.counts.get("question_labels", {})
    found = (
        ("first_try", manifest.counts.get("first_try")),
        ("labels_first_try", labels.get("first_try")),
    )
    return [
        [say(f"made.{name}"), f"{count(first['n_accepted'])} / {_of(first)}"]
        for name, first in found
        if first
    ]


def _of(counts: dict[str, int]) -> str:
    """`46 (95.7%)`."""
    n = counts["n_asked"]
    return f"{count(n)} ({share(counts['n_accepted'] / n)})"


def asked_again_table(counts: Mapping[str, Any], name: Name = str) -> Table:
    """Faults after which a question was asked again, and how often that gave an answer.

    Args:
        counts: of a manifest; its `question_labels` for the labelling pass.
    """
    again: dict[str, dict[str, int]] = counts.get("asked_again", {})
    rows: list[list[Cell]] = [
        [name(reason), n["n_asked"], n["n_accepted"]] for reason, n in again.items()
    ]
    return Table(_columns("fault", "asked_again", "then_accepted"), rows)


def labels_differ_table(counts: Mapping[str, Any], name: Name = str) -> Table:
    """By type, where labels of the question and names in the answer differ; and what was dropped.

    Args:
        counts: `question_labels` of a manifest.
    """
    kinds = ("only_named", "only_labelled", "dropped")
    by_kind: list[dict[str, int]] = [counts.get(kind, {}) for kind in kinds]
    types = dict.fromkeys(label for found in by_kind for label in found)
    rows = [(name(label), *(found.get(label, 0) for found in by_kind)) for label in types]
    return Table(_columns("type", *kinds), rows)


def opinions_table(counts: Mapping[str, Any]) -> Table:
    """What further models graded worse or found unsafe, and where they gave no verdict."""
    asked: dict[str, dict[str, Any]] = counts.get("second_opinion", {})
    rows: list[list[Cell]] = []
    for role, one in asked.items():
        unread = ", ".join(f"{reason} {n}" for reason, n in one["unread"].items()) or None
        rows.append(
            [say(f"opinions.{role}"), one["model"], one["n_read"], one["n_changed"], unread]
        )
    return Table(_columns("who", "model", "read", "objected", "no_verdict"), rows)


def reply_tables(counts: Mapping[str, Any]) -> list[Table]:
    """What a terminal shows of a manifest's counts: faulty replies, and labels that differ."""
    labels = counts.get("question_labels", {})
    tables = {
        "faulty": asked_again_table(counts),
        "labels_faulty": asked_again_table(labels),
        "labels_differ": labels_differ_table(labels),
    }
    return [replace(one, title=say(f"replies.{name}")) for name, one in tables.items() if one.rows]


def shares_table(head: str, group: str, counts: Mapping[str, int], n_entries: int) -> Table:
    """Counts by name, and each one's share of the entries."""
    rows = [(known_phrase(group, name), n, n / n_entries) for name, n in counts.items()]
    return Table(_columns(head, "entries", "share"), rows)


def risk_table(material: Material) -> Table:
    """Entries by risk, and crisis questions that were left out."""
    statistics = material.statistics
    table = shares_table("risk", "risk", statistics.risk, statistics.n_entries)
    dropped = material.manifest.counts.get("rejected", {}).get("crisis_dropped", 0)
    extra = [(say("reasons.crisis_dropped"), dropped, None)] if dropped else []
    return replace(table, rows=[*table.rows, *extra])


def danger_table(material: Material) -> Table | None:
    """Entries by other danger, and those whose asker is under 18; None where there are none."""
    statistics = material.statistics
    more = {"acute": statistics.n_acute, "minors": statistics.n_minors}
    counts = {**statistics.dangers, **{name: n for name, n in more.items() if n}}
    return shares_table("danger", "dangers", counts, statistics.n_entries) if counts else None


def length_table(statistics: DatasetStatistics, name: Name = str) -> Table:
    """Lengths of every text column in characters."""
    rows = [
        (name(column), s.n, s.mean, s.sd, s.min, s.median, s.p95, s.max)
        for column, s in statistics.lengths.items()
    ]
    return Table(_columns("column", "n", "mean", "sd", "min", "median", "p95", "max"), rows)


def label_table(statistics: DatasetStatistics, name: Name = str) -> Table:
    """Every type of distortion, with the paper's share where it is known."""
    known = dict(paper_facts().labels)
    rows: list[Sequence[Cell]] = [
        (
            *(name(label.id), label.n_entries, label.share_of_entries, label.share_of_distorted),
            *(known.pop(label.id, None), label.n_with_evidence / label.n_entries),
        )
        for label in statistics.labels
    ]
    rows += [(name(label), 0, 0.0, 0.0, of_paper, None) for label, of_paper in known.items()]
    columns = ("type", "entries", "of_entries", "of_distorted", "paper", "evidence")
    return Table(_columns(*columns), rows)


def likeness_table(statistics: DatasetStatistics, name: Name = str) -> Table:
    """Distinct openings and repeated frames of each step in the sample."""
    rows = [
        (
            *(name(entry.column), entry.repeated_share, entry.n),
            *(entry.n_distinct, entry.n_distinct / entry.n),
            " × ".join(map(str, entry.most_common[0]))
            if entry.most_common
            else say("likeness.none"),
        )
        for entry in statistics.likeness.openings
    ]
    return Table(_columns("step", "repeated", "sampled", "distinct", "share", "common"), rows)


def per_entry_table(statistics: DatasetStatistics) -> Table:
    """How many types of distortion an entry shows."""
    rows = [(str(k), n, n / statistics.n_entries) for k, n in statistics.labels_per_entry.items()]
    return Table(_columns("n_labels", "entries", "share"), rows, say("distortions.per_entry"))


def _bars(material: Material, bars: Sequence[Bar], caption: Phrase, reference: str = "") -> Figure:
    described = ", ".join(f"{bar.label} {bar.shown}" for bar in bars)
    title = material.text(caption)
    chart = bar_chart(bars, title=title, description=described, reference_name=reference)
    return chart, caption


def topics_chart(material: Material) -> Figure | None:
    """The most frequent keywords; None without any."""
    statistics = material.statistics
    shown, n_entries = statistics.keywords[:TOPICS], statistics.n_entries
    bars = [Bar(word, n, count_of(n, n_entries)) for word, n in shown]
    return _bars(material, bars, say("topics.caption", n=len(bars))) if bars else None


def length_charts(material: Material) -> list[Figure]:
    """Histograms of answer and description."""
    found = material.statistics.lengths
    names = [name for name in ("answer", "description") if name in found and found[name].max > 0]
    return [_length_chart(material, name) for name in names]


def _length_chart(material: Material, name: str) -> Figure:
    summary, texts = material.statistics.lengths[name], say(f"texts.{name}")
    caption = Phrase(
        zh=say("lengths.histogram", name=texts.zh).zh, en=say("lengths.histogram", name=texts.en).en
    )
    median = material.text(say("lengths.median", value=count(summary.median)))
    chart = histogram(
        [HistogramBar(entry.low, entry.high, entry.n) for entry in summary.bins],
        marks=[(summary.median, median)],
        title=material.text(caption),
        description=f"{median}; {summary.min}–{summary.max}, n = {summary.n}",
    )
    return chart, caption


def steps_chart(material: Material) -> Figure | None:
    """How much of an answer each step takes; None where answers have no steps."""
    found = material.statistics.lengths
    total = sum(found[name].mean for name in STEP_NAMES if name in found)
    if not material.statistics.n_with_steps or not total:
        return None
    bars = []
    for place, name in enumerate(STEP_NAMES, 1):
        texts, of_answer = say(f"texts.{name}"), found[name].mean / total
        label = f"{place} {material.text(texts)}"
        bars.append(Bar(label, of_answer, share(of_answer), texts.second(material.lang)))
    return _bars(material, bars, say("steps.shares"))


def distorted_chart(material: Material) -> Figure:
    """Entries with a distortion, here and in the paper."""
    statistics, paper = material.statistics, paper_facts()
    bars = [
        Bar(
            material.text(say(f"distortions.{name}")),
            of.share_distorted or 0.0,
            f"{share(of.share_distorted)}  ({count(of.n_distorted)} / {count(of.n_entries)})",
        )
        for name, of in (("ours", statistics), ("paper", paper))
    ]
    return _bars(material, bars, say("distortions.share"))


def distorted_sentences(material: Material) -> list[Phrase]:
    """What the labelled shares say of true ones, here and in the paper."""
    found = (("ours", distortion_share(material.statistics)), ("paper", paper_distortion_share()))
    return [
        say("distortions.of", whose=say(f"distortions.{w}"), is_=p.sentence()) for w, p in found
    ]


def types_chart(material: Material) -> Figure:
    """Entries by type, the paper's share as a mark."""
    known = paper_facts().labels
    bars = [
        Bar(
            material.text(material.label_names[label.id]),
            label.share_of_distorted,
            f"{count(label.n_entries)} ({share(label.share_of_distorted)})",
            material.label_names[label.id].second(material.lang),
            known.get(label.id),
        )
        for label in material.statistics.labels
    ]
    reference = material.text(say("distortions.paper_short"))
    return _bars(material, bars, say("distortions.types"), reference)


def pairs_chart(material: Material) -> Figure | None:
    """Types that occur in the same entry; None when none do."""
    statistics = material.statistics
    if not statistics.label_pairs:
        return None
    ids = [label.id for label in statistics.labels[:TYPES_IN_HEAT_MAP]]
    counts = {(pair.first, pair.second): pair.n for pair in statistics.label_pairs}
    values = [
        [counts.get((min(a, b), max(a, b)), 0) if k < row else None for k, b in enumerate(ids[:-1])]
        for row, a in enumerate(ids[1:], 1)
    ]
    names = [material.text(material.label_names[key]) for key in ids]
    caption, first = say("distortions.pairs"), statistics.label_pairs[0]
    chart = heat_map(
        names[1:],
        names[:-1],
        values,
        title=material.text(caption),
        description=f"{first.first} × {first.second}: {first.n}",
    )
    return chart, caption
