"""The page of a preview: figures, faults, and every question with its answers side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import cbtqa
from cbtqa.dataset.report.items import graded_phrase, mark_evidence
from cbtqa.dataset.report.material import known_phrase, say
from cbtqa.dataset.report.measures import Name
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.llm.journal import Entry
from cbtqa.records import STEP_NAMES, CbtAnswer, Usage
from cbtqa.report.page import Head, Phrase, render_page
from cbtqa.report.table import Cell, Column, Table
from cbtqa.report.words import GAP, count, count_of, money, number
from cbtqa.safety.notices import help_text

if TYPE_CHECKING:
    from cbtqa.dataset.preview import Shown, VariantFigures

RAW_CUT = 3_000
"""Characters shown of a faulty reply."""
LEAST_WIDTH, WIDTH_OF_ONE = 48, 30
"""Of the page in rem, and of a variant's column."""
Figure = tuple[Phrase, bool]
"""What was counted, and whether it lies outside of what the prompt tells."""


@dataclass(frozen=True)
class Text:
    """One cell of the side-by-side view: a step, or a whole text beside the five steps."""

    name: Phrase
    text: str
    n_rows: int = 1


def preview_tables(
    variants: Sequence[VariantFigures], n_in_input: int, name: Name = str
) -> list[Table]:
    """Figures, and faults by reason where there were any; a column for each variant."""
    heads = [Column(""), *(Column(one.name) for one in variants)]
    rows: dict[str, list[Cell]] = {
        key: []
        for key in (
            *("questions", "first_try", "accepted", "asked_again", "helped", "characters"),
            *("within_budget", "asked", "labelled", "tokens", "cost", "cost_of_all"),
        )
    }
    for one in variants:
        n, answers = len(one.answers), [found for found in one.answers if found.is_accepted]
        budgeted = sum(found.is_within_budget is not None for found in answers)
        tokens = f"{count(one.usage.prompt_tokens / n)} + {count(one.usage.completion_tokens / n)}"
        values: dict[str, Cell] = {
            "questions": n,
            "first_try": count_of(one.n_first_try, n),
            "accepted": count_of(one.n_accepted, n),
            "asked_again": one.n_asked_again,
            "helped": one.n_helped,
            "characters": count(_mean([found.n_characters for found in answers])),
            "within_budget": GAP
            if one.n_within_budget is None
            else count_of(one.n_within_budget, budgeted),
            "asked": number(_mean([found.n_questions for found in answers]), 1),
            "labelled": count_of(sum(bool(found.labels) for found in answers), len(answers)),
            "tokens": tokens if one.usage.n_tokens else GAP,
            "cost": money(one.cost, one.currency),
            "cost_of_all": money(one.cost_of_all, one.currency),
        }
        for key, value in values.items():
            rows[key].append(value)
    shown = [[say(f"preview.rows.{key}", n=count(n_in_input)), *row] for key, row in rows.items()]
    reasons = Counter[str]()
    for one in variants:
        reasons.update(one.faults)
    faults = [
        [name(reason), *(one.faults.get(reason, 0) for one in variants)]
        for reason, _ in reasons.most_common()
    ]
    tables = [Table(heads, shown, say("preview.figures"))]
    return tables + ([Table(heads, faults, say("preview.faults"))] if faults else [])


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def preview_page(
    n_in_input: int,
    variants: Sequence[VariantFigures],
    columns: Sequence[Sequence[Shown]],
    taxonomy: str,
) -> str:
    """The page as HTML.

    Args:
        columns: for each variant what each question got, in the same order.
        taxonomy: gives labels their names.
    """
    kinds = load_taxonomy(taxonomy).types
    names = {kind.id: Phrase(zh=kind.zh, en=kind.en) for kind in kinds}
    rows = list(zip(*columns, strict=True))
    head = Head(
        title=say("preview.title"),
        kicker=say("preview.kicker"),
        lede=say("preview.lede", n=len(rows), m=len(variants)),
        footer=say("footer", version=cbtqa.__version__),
    )
    return render_page(
        "cbtqa.dataset.report",
        "preview.html.j2",
        head,
        say=say,
        help=Phrase(zh=help_text("zh"), en=help_text("en")),
        width=max(LEAST_WIDTH, WIDTH_OF_ONE * len(variants)),
        variants=variants,
        tables=preview_tables(variants, n_in_input, partial(known_phrase, "reasons")),
        questions=[_question(row, variants, names) for row in rows],
    )


def _question(
    row: Sequence[Shown], variants: Sequence[VariantFigures], names: dict[str, Phrase]
) -> dict[str, object]:
    """One question with what every variant made of it."""
    item = row[0].item
    asked = item.question
    numbers: dict[str, int] = {}
    for one in row:
        for label in one.answer.distortions if isinstance(one.answer, CbtAnswer) else ():
            if label.evidence:
                numbers.setdefault(label.evidence, len(numbers) + 1)
    quotes = list(numbers.items())
    description = asked.description or ""
    return {
        "id": asked.id,
        "risk": graded_phrase(item.grade.risk, item.grade.dangers),
        "title": mark_evidence(asked.question, [q for q in quotes if q[0] not in description]),
        "description": mark_evidence(description, quotes),
        "answers": [
            {
                "name": variant.name,
                "verdict": _verdict(one),
                "is_accepted": one.figures.is_accepted,
                "detail": "" if isinstance(one.answer, CbtAnswer) else one.answer.detail,
                "figures": _figures(one, variant),
                "labels": _labels(one, names, numbers),
                "faulty": [_faulty(entry) for entry in one.replies if entry.fault],
            }
            for one, variant in zip(row, variants, strict=True)
        ],
        "texts": _texts(row),
    }


def _verdict(one: Shown) -> Phrase:
    if not isinstance(one.answer, CbtAnswer):
        reason = known_phrase("reasons", one.answer.reason.value)
        return say("preview.rejected", reason=reason)
    attempt = one.figures.n_attempts
    return say("preview.first") if attempt < 2 else say("preview.later", n=attempt)


def _figures(one: Shown, variant: VariantFigures) -> list[Figure]:
    found, shown = one.figures, list[Figure]()
    for name, value in (("characters", found.n_characters), ("asked", found.n_questions)):
        if value is None:
            continue
        if one.budget is None:
            shown.append((say(f"preview.{name}", n=value), False))
            continue
        low, high = one.budget.told if name == "characters" else one.budget.questions
        phrase = say(f"preview.{name}_told", n=value, low=low, high=high)
        # fewer questions than told is no burden to the reader
        shown.append((phrase, value > high or (name == "characters" and value < low)))
    if found.usage.n_tokens:
        shown.append((say("preview.tokens", tokens=_tokens(found.usage)), False))
    if found.cost is not None:
        cost = money(found.cost, variant.currency)
        shown.append((Phrase(zh=cost, en=cost), False))
    return shown


def _tokens(usage: Usage) -> str:
    return f"{count(usage.prompt_tokens)} + {count(usage.completion_tokens)}"


def _labels(
    one: Shown, names: dict[str, Phrase], numbers: dict[str, int]
) -> list[tuple[Phrase, str, int | None]]:
    """Name, quoted evidence and its number in the question."""
    if not isinstance(one.answer, CbtAnswer):
        return []
    return [
        (names[label.id], label.evidence or "", numbers.get(label.evidence or ""))
        for label in one.answer.distortions
    ]


def _faulty(entry: Entry) -> dict[str, object]:
    assert entry.fault is not None
    raw = entry.reply.text if entry.reply else ""
    return {
        "attempt": say("preview.attempt", n=entry.attempt),
        "reason": known_phrase("reasons", entry.fault.reason.value),
        "detail": entry.fault.detail,
        "raw": raw[:RAW_CUT] + ("……" if len(raw) > RAW_CUT else ""),
    }


def _texts(row: Sequence[Shown]) -> list[list[Text | None]]:
    """Row by row what stands side by side; what is no five steps takes the room of all."""
    answers = [one.answer if isinstance(one.answer, CbtAnswer) else None for one in row]
    n_rows = len(STEP_NAMES) if any(one and one.steps for one in answers) else 1
    grid: list[list[Text | None]] = [[] for _ in range(n_rows)]
    for answer in answers:
        if answer and answer.steps:
            steps = answer.steps.model_dump()
            for place, name in enumerate(STEP_NAMES):
                grid[place].append(Text(say(f"texts.{name}"), steps[name]))
            continue
        head = say("examples.whole") if answer else say("preview.no_answer")
        grid[0].append(Text(head, answer.text if answer else "", n_rows))
        for place in range(1, n_rows):
            grid[place].append(None)
    return grid
