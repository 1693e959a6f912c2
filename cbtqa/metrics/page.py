"""The pages of `cbtqa score` and `cbtqa compare`: intervals drawn, answers side by side.

    score_page(scored, "zh"), compare_page(comparison, tables, lines, "zh")

The figures come from `scoring` and `comparison`, the drawing from `cbtqa.report`. The pages hold
words of help seekers and of answers: their foot says under which terms they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from cbtqa.metrics.base import Floats, Metric, maker
from cbtqa.metrics.evaluation import CEILING, LEFT_OUT
from cbtqa.metrics.pairs import References
from cbtqa.metrics.scoring import Scored
from cbtqa.metrics.tables import (
    beside_paper,
    beside_people,
    decimals,
    label_of,
    missing_scores,
    not_asked_for,
    score_table,
)
from cbtqa.papers import paper_table
from cbtqa.report.charts import Interval, interval_chart
from cbtqa.report.page import Head, Lang, Phrase, load_wording, render_page, same
from cbtqa.report.table import Table
from cbtqa.report.words import count, digits, estimate, number, signed
from cbtqa.safety.notices import content_warning, help_text, required_notices
from cbtqa.safety.screen import screen

if TYPE_CHECKING:
    from cbtqa.metrics.comparison import Comparison, PairComparison
    from cbtqa.metrics.comparison import Example as Compared

N_WORST, N_BEST, N_DIFFERENT, N_COMPARED = 5, 3, 5, 10
"""Questions shown of each system, of all systems, and of each side of a comparison."""
Words = dict[str, Phrase]


@dataclass(frozen=True)
class Side:
    """One text of several that stand side by side."""

    name: str | Phrase
    text: str
    shown: str = ""
    """Its figure, such as `41.20`."""


@dataclass(frozen=True)
class Example:
    """One question with what was answered."""

    id: str
    asked: str
    """The question, and below it the description; empty where it is not known."""
    sides: tuple[Side, ...]
    """The first reference, then the systems."""
    figure: str
    """What it was picked by."""
    others: tuple[str, ...] = ()
    """Further references."""

    @property
    def question(self) -> str:
        return self.asked.partition("\n")[0]

    @property
    def description(self) -> str:
        return self.asked.partition("\n")[2].strip()

    @property
    def is_in_danger(self) -> bool:
        """Whether the question speaks of suicide, self-harm or another danger."""
        found = screen(self.asked)
        return found.risk != "none" or bool(found.dangers)


Group = tuple[Phrase, list[Example]]
Chart = tuple[Markup, Phrase]


def score_page(scored: Scored, lang: Lang = "zh") -> str:
    """The report as one self-contained HTML document; all texts are escaped."""
    words, report = load_wording(__package__, "page.yaml"), scored.report
    anchors = [one.system for one in report.systems if one.is_anchor]
    systems = [one for one in report.systems if not one.is_anchor]
    lede = words["score.lede"].fill(
        n_systems=len(systems), n=count(report.n_references), references=report.references
    )
    facts = [
        (count(len(systems)), words["facts.systems"]),
        (count(report.n_references), words["facts.questions"]),
        (count(len(scored.metrics)), words["facts.metrics"]),
        (count(len(report.warnings)), words["facts.warnings"]),
    ]
    rows = [[one.system, *(getattr(one, name) for name in COUNTS)] for one in systems]
    counts = Table([words["counts.system"], *(words[f"counts.{name}"] for name in COUNTS)], rows)
    return _page(
        "score",
        lang,
        lede,
        facts=facts,
        warnings=report.warnings,
        charts=list(_score_charts(scored)),
        tables=[score_table(report.scores), *beside_people(report.beside_people)],
        paper=beside_paper(report.scores, anchors),
        paper_note=paper_table("cbt-llm", "scores").note,
        counts=counts,
        has_left_out=LEFT_OUT in anchors,
        lines=[*missing_scores(report.scores), *not_asked_for(report.scores), *report.notes],
        groups=list(_pairs_shown(scored, words)),
        signatures=list(dict.fromkeys(one.signature for one in report.scores)),
    )


COUNTS = (
    *("n_rows", "n_missing", "n_none", "n_empty", "n_identical", "n_repeated", "n_cut"),
    "n_machine",
)


def compare_page(
    found: Comparison, tables: Sequence[Table], lines: Sequence[str], lang: Lang = "zh"
) -> str:
    """The comparison as one self-contained HTML document; all texts are escaped.

    Args:
        tables: one a pair of systems.
        lines: which tests, what is random, why figures are missing.
    """
    words = load_wording(__package__, "page.yaml")
    systems = dict.fromkeys(name for one in found.pairs for name in (one.baseline, one.system))
    tested = [one.p_adjusted for one in found.pairs if one.p_adjusted is not None]
    facts = [
        (count(len(systems)), words["facts.systems"]),
        (count(max((one.n_total for one in found.pairs), default=0)), words["facts.questions"]),
        (f"{sum(p < 0.05 for p in tested)} / {len(tested)}", words["facts.differ"]),
        (count(len(found.warnings)), words["facts.warnings"]),
    ]
    sides = (("compare.gains", found.best), ("compare.losses", found.worst))
    groups = [
        (words[key].fill(system=names[1], baseline=names[0]), list(map(_compared, some)))
        for names in dict.fromkeys((one.baseline, one.system) for one in found.pairs)
        for key, all_of_them in sides
        if (some := [o for o in all_of_them if (o.baseline, o.system) == names][:N_COMPARED])
    ]
    return _page(
        "compare",
        lang,
        words["compare.lede"].fill(systems=", ".join(systems), references=found.references),
        facts=facts,
        warnings=found.warnings,
        charts=list(_difference_charts(found.pairs, words)),
        tables=tables,
        paper=None,
        paper_note="",
        counts=None,
        has_left_out=False,
        lines=lines,
        groups=groups,
        signatures=list(dict.fromkeys(one.signature for one in found.pairs)),
    )


def _page(kind: str, lang: Lang, lede: Phrase, **values: Any) -> str:
    words = load_wording(__package__, "page.yaml")
    made_by = words["footer"].fill(by=maker())
    footer = Phrase(
        zh=f"{made_by.zh} {help_text('zh', 'page')}", en=f"{made_by.en} {help_text('en', 'page')}"
    )
    head = Head(words[f"{kind}.title"], words[f"{kind}.kicker"], lede, footer, lang)
    return render_page(
        "cbtqa.metrics",
        "scores.html.j2",
        head,
        words=words,
        kind=kind,
        help=Phrase(zh=help_text("zh"), en=help_text("en")),
        content_warning=Phrase(zh=content_warning("zh"), en=content_warning("en")),
        notices=[
            Phrase(zh=zh, en=en)
            for zh, en in zip(required_notices("zh"), required_notices("en"), strict=True)
        ],
        **values,
    )


# --- charts --------------------------------------------------------------------------------------


def _score_charts(scored: Scored) -> Iterator[Chart]:
    """Each metric's values with their intervals, one row a system; not those without any."""
    for metric in scored.metrics:
        # the ceiling would leave the systems a corner of the axis
        mine = [
            one
            for one in scored.report.scores
            if one.metric == metric.name and one.system != CEILING
        ]
        if any(one.low is not None for one in mine):
            n = decimals(metric.unit)
            rows = [Interval(one.system, one.value, one.low, one.high, "-") for one in mine]
            yield _chart(rows, f"{metric.label} ({metric.unit})", n)


def _difference_charts(pairs: Sequence[PairComparison], words: Words) -> Iterator[Chart]:
    """Differences with their intervals, metrics of one unit on one axis, then the win rates."""
    for unit in dict.fromkeys(one.unit for one in pairs):
        mine = [one for one in pairs if one.unit == unit and one.difference is not None]
        rows = [Interval(_named(one), one.difference, one.low, one.high) for one in mine]
        if rows:
            yield _chart(
                rows, words["compare.chart"].fill(unit=unit), decimals(unit), has_zero=True
            )
    rows = [
        Interval(_named(one), one.win_rate, one.win_low, one.win_high)
        for one in pairs
        if one.win_rate is not None
    ]
    if rows:
        yield _chart(rows, words["compare.wins"], 2, ends=(0.0, 1.0))


def _named(one: PairComparison) -> str:
    return f"{one.system} − {one.baseline} · {label_of(one.metric)}"


def _chart(
    rows: Sequence[Interval],
    title: str | Phrase,
    n_digits: int,
    *,
    has_zero: bool = False,
    ends: tuple[float, float] | None = None,
) -> Chart:
    named = same(title) if isinstance(title, str) else title
    show = digits(n_digits)
    described = "; ".join(f"{o.label} {estimate(o.value, o.low, o.high, show)}" for o in rows)
    known = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    low, high = ends or (min(known), max(known))
    if has_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    drawn = interval_chart(
        rows, title=named.en, description=described, digits=n_digits, low=low, high=high
    )
    return drawn, named


# --- answers side by side ------------------------------------------------------------------------


def _pairs_shown(scored: Scored, words: Words) -> Iterator[Group]:
    """The questions on which systems differ most, then the worst and the best of each system."""
    metric = next((one for one in scored.metrics if isinstance(one, Metric)), None)
    anchors = {one.system for one in scored.report.systems if one.is_anchor}
    names = [one.system for one in scored.predictions if one.system not in anchors]
    if metric is None:
        return
    values = np.full((len(names), len(scored.references.ids)), np.nan)
    for row, found in zip(values, scored.evaluated, strict=False):
        row[found.rows] = metric.per_pair(found.matrices[metric.name])
    example = partial(_example, scored, names, values, metric)
    if len(names) > 1:
        spread = values.max(0) - values.min(0)  # NaN where one of them has no score
        order = [place for place in _ascending(-spread) if spread[place] > 0][:N_DIFFERENT]
        if order:
            title = words["pairs.different"].fill(metric=metric.label)
            yield title, [example(place, spread[place]) for place in order]
    for name, row in zip(names, values, strict=True):
        order = _ascending(row)
        worst = order[:N_WORST]
        best = order[len(worst) :][-N_BEST:][::-1]
        for key, places in (("pairs.worst", worst), ("pairs.best", best)):
            if places:
                title = words[key].fill(system=name, metric=metric.label)
                yield title, [example(place, row[place]) for place in places]


def _ascending(values: Floats) -> list[int]:
    """Places of the numbers, the smallest first; those that are none are left out."""
    order: Iterable[int] = np.argsort(values, kind="stable").tolist()
    return [place for place in order if not np.isnan(values[place])]


def _example(
    scored: Scored, names: Sequence[str], values: Floats, metric: Metric, place: int, figure: float
) -> Example:
    references: References = scored.references
    first, *others = references.groups[place]
    n = decimals(metric.unit)
    sides = [Side(Phrase(zh="参考", en="reference"), first.text)]
    for name, system, value in zip(names, scored.predictions, values[:, place], strict=False):
        item = system.items[place]
        shown = "-" if np.isnan(value) else number(float(value), n)
        sides.append(Side(name, item.text if item else "", shown))
    return Example(
        references.ids[place],
        references.asked[place] if references.asked else "",
        tuple(sides),
        number(float(figure), n),
        tuple(item.text for item in others),
    )


def _compared(one: Compared) -> Example:
    return Example(
        one.id,
        one.asked,
        (
            Side(Phrase(zh="参考", en="reference"), one.reference_text),
            Side(one.baseline, one.baseline_text),
            Side(one.system, one.system_text),
        ),
        f"{label_of(one.metric)} {signed(one.difference, 4)}",
    )
