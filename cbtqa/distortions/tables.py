"""Results as tables, for the command line and for cards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cbtqa.distortions.annotators import LabelAgreement
from cbtqa.distortions.evaluate import (
    F1,
    AskedModel,
    EvaluationReport,
    F1Difference,
    InstructiveError,
    Share,
    SystemReport,
)
from cbtqa.distortions.studies import TrainedReport
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy, shipped_taxonomies
from cbtqa.papers import source_of
from cbtqa.report.page import Phrase
from cbtqa.report.table import Cell, Column, Estimate, Table
from cbtqa.report.words import count, money, number, p_value, signed

FIGURES = ("type", "texts", "precision", "recall", "F1 [95% interval]")


def types_table(summary: Mapping[str, Any]) -> Table:
    rows = [*summary["types"].items(), ("(none)", summary["n_rows"] - summary["n_labelled"])]
    return Table(["type", "rows"], rows)


def training_table(report: TrainedReport) -> Table:
    rows = [_f1_row(type_id, entry) for type_id, entry in report.types.items()]
    if report.binary and report.micro and len(report.types) > 1:
        if report.binary.support < report.n_texts:
            rows.append(_f1_row("any distortion", report.binary))
        rows.append(_f1_row("micro", report.micro))
        rows.append(("macro", "", "", "", report.macro_f1))
    return Table(FIGURES, rows)


def evaluation_tables(report: EvaluationReport) -> Iterator[Table]:
    """Tables of a report: any distortion beside the paper, then each labeller, then tests."""
    yield binary_table(report)
    if report.asked:
        yield _asked_table(report.asked)
    for name, system in report.systems.items():
        yield from _tables_of_system(name, system)
    # where every text has one, whoever gives more labels would win on any
    left_out = "any" if report.all_distorted else None
    differences = [one for one in report.differences if one.figure != left_out]
    if differences:
        yield _differences_table(differences)
    comparisons = [one for one in report.comparisons if one.decision != left_out]
    if comparisons:
        rows = []
        for one in comparisons:
            counts = f"{one.only_first_right} / {one.only_second_right}"
            rows.append((one.decision, one.first, one.second, counts, one.p_holm))
        heads = ("decision", "first", "second", "only one right")
        swapped = "" if report.n_clusters is None else ", document by document"
        title = f"McNemar's exact test{swapped}"
        yield Table([*heads, Column("p (Holm)", p_value)], rows, title)


def _asked_table(asked: AskedModel) -> Table:
    """The language model, and what it cost."""
    cost = asked.cost and money(asked.cost["amount"], asked.cost["currency"])
    rows: list[tuple[str, Cell]] = [
        (f"convention {asked.convention}, prompt", asked.prompt),
        ("least confidence", number(asked.min_confidence, 2)),
        ("requests", asked.n_requests),
        ("texts without valid labels", asked.n_rejected),
        ("prompt tokens", asked.usage.prompt_tokens),
        ("reply tokens", asked.usage.completion_tokens),
        ("cost", cost or "no price known (--price-in, --price-out)"),
    ]
    return Table(["", ""], rows, f"llm:{asked.model} at {asked.endpoint_host}")


def _differences_table(differences: Iterable[F1Difference]) -> Table:
    rows = [
        (
            one.figure if one.figure != "macro" else f"macro of {one.n_types}",
            *(one.first, one.second),
            Estimate(one.value, one.low, one.high, one.reason),
        )
        for one in differences
    ]
    last = Column("first - second [95% interval]", signed_3)
    return Table(
        ["F1 of", "first", "second", last], rows, "Difference of F1 on the same texts and types"
    )


def binary_table(report: EvaluationReport) -> Table:
    """Any distortion or none, labellers beside the paper."""
    heads = {
        "labeller": "标注者",
        "accuracy": "准确率",
        "precision": "精确率",
        "recall": "召回率",
        "F1 [95% interval]": "F1 [95% 区间]",
        "micro F1 of types": "类型微平均 F1",
    }
    columns = [Phrase(zh=zh, en=en) for en, zh in heads.items()]
    rows: list[tuple[Cell, ...]] = [
        (name, _accuracy(system), *_f1_row("", system.binary)[2:], _f1(system.micro))
        for name, system in report.systems.items()
    ]
    if report.all_distorted:
        # a labeller that marks everything would get 1.000 in all of them
        rows = [(name, None, None, recall, None, micro) for name, _, _, recall, _, micro in rows]
    paper = report.paper
    source = f"{source_of('cbt-llm', 'distortions')}: {count(paper['n'])} other texts"
    rows.append((source, paper["accuracy"], None, paper["recall"], paper["f1"], None))
    title = f"Any distortion, {_what_is_drawn(report)}"
    if report.all_distorted:
        title += "; the gold of every text has one, so only recall is measured"
    if all(len(system.types) == 1 for system in report.systems.values()):
        # the F1 of the only type is that of any distortion
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns, rows, title)


def _what_is_drawn(report: EvaluationReport) -> str:
    """The texts, and what the intervals take as drawn at random."""
    texts = f"{count(report.n_texts)} texts"
    if report.n_clusters is None:
        return f"{texts}, each drawn for itself"
    return f"{texts} of {count(report.n_clusters)} documents, which are drawn"


def _tables_of_system(name: str, system: SystemReport) -> Iterator[Table]:
    ends = system.macro_low, system.macro_high
    macro = Estimate(system.macro_f1, *ends, system.macro_reason)
    samples = Estimate(system.samples_f1, system.samples_low, system.samples_high)
    exact = _share(system.subset_accuracy_interval, system.subset_accuracy)
    rows = [
        *(_f1_row(type_id, entry) for type_id, entry in system.types.items()),
        _f1_row("micro", system.micro),
        (f"macro of {system.n_types_in_macro}", "", "", "", macro),
        ("samples", "", "", "", samples),
        ("exactly right", "", "", "", exact),
    ]
    if len(system.types) > 1:  # else all of them are in the table of any distortion
        yield Table(FIGURES, rows, name)
    if system.confusions:
        pairs = [(pair.gold, pair.given, pair.n) for pair in system.confusions[:8]]
        yield Table(["gold", "given", "n"], pairs, f"{name}: missed and given instead")
    if system.calibration:
        curve = system.calibration
        bins = [(f"{b.low:.1f}-{b.high:.1f}", b.n, b.mean_confidence, b.share_right) for b in curve]
        error, by_chance = system.calibration_error, system.calibration_error_if_perfect
        figures = number(error, 3)
        if by_chance is not None:
            figures += f"; {number(by_chance, 3)} by chance alone if perfect"
        title = f"{name}: reliability (calibration error {figures})"
        yield Table(["confidence", "labels", "mean", "right"], bins, title)
    if system.by_confidence and system.specificity:
        least = [
            (f"{one.confidence:.1f}", one.any.n_given, *_f1_row("", one.any)[2:4], one.any.f1)
            for one in system.by_confidence
        ]
        heads = ("least confidence", "texts given", "precision", "recall", "F1")
        title = f"{name}: any distortion by least confidence (the best flatters on these texts)"
        yield Table(heads, least, title)
    if system.errors:
        # of three columns, so that no terminal gives a text a column of nine characters
        errors = [(_what_went_wrong(one), Path(one.where).name, one.text) for one in system.errors]
        yield Table(["what", "where", "text"], errors, f"{name}: instructive errors")


def _what_went_wrong(error: InstructiveError) -> str:
    sure = "" if error.confidence is None else f" ({number(error.confidence, 2)})"
    return f"{error.kind} {error.type}{sure}"


def agreement_table(agreement: LabelAgreement) -> Table:
    overall = {"any distortion": agreement.any, "sets (MASI)": agreement.masi}
    entries = {**agreement.types, **overall}
    rows = [(name, Estimate.of(entry), entry.n_items) for name, entry in entries.items()]
    drawn = sorted({unit for entry in entries.values() for unit in entry.random})
    title = f"{len(agreement.raters)} annotators"
    if drawn:
        words = {"items": "texts", "clusters": "documents"}
        title += f"; intervals draw {' and '.join(words.get(unit, unit) for unit in drawn)}"
    return Table(["type", "alpha [95% interval]", "texts"], rows, title)


def taxonomies_table() -> Table:
    loaded = [load_taxonomy(name) for name in shipped_taxonomies()]
    rows = [(entry.id, len(entry.types), entry.title, entry.citation) for entry in loaded]
    return Table(["id", "types", "title", "source"], rows, "Taxonomies")


def taxonomy_table(taxonomy: Taxonomy) -> Table:
    rows = [
        (one.id, f"{one.zh} / {one.en}", one.definition_en or one.definition, one.example)
        for one in taxonomy.types
    ]
    title = f"{taxonomy.id}: {taxonomy.citation}"
    return Table(["id", "names", "meaning", "example"], rows, title)


signed_3 = partial(signed, digits=3)


def _accuracy(system: SystemReport) -> Estimate:
    return _share(system.accuracy_interval, system.accuracy)


def _share(found: Share | None, value: float) -> Estimate:
    """A share with its interval; the bare value in reports of earlier versions."""
    return Estimate(value, found.low, found.high, found.reason) if found else Estimate(value)


def _f1(entry: F1) -> Estimate:
    return Estimate(entry.f1, entry.low, entry.high, entry.reason)


def _f1_row(name: str, entry: F1) -> tuple[Cell, ...]:
    precision = Estimate(entry.precision, entry.precision_low, entry.precision_high)
    recall = Estimate(entry.recall, entry.recall_low, entry.recall_high)
    return (name, entry.support, precision, recall, _f1(entry))
