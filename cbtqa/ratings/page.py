"""The report page of a rating study: `ratings` computes, `report` draws, this joins them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from markupsafe import Markup

from cbtqa.files import write_text
from cbtqa.ratings.analysis import analyse, write_outputs
from cbtqa.ratings.documents import methods_text
from cbtqa.ratings.results import Difference, Omnibus, Score, StudyReport
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from cbtqa.report.charts import Interval, Levels, interval_chart, stacked_bars
from cbtqa.report.page import Head, Lang, Phrase, load_wording, render_page, same
from cbtqa.report.svg import SERIES
from cbtqa.report.table import AnyColumn, Cell, Column, Estimate, Table
from cbtqa.report.words import (
    GAP,
    Show,
    count,
    digits,
    estimate,
    number,
    p_relation,
    p_value,
    share,
    signed,
)
from cbtqa.safety.notices import help_text
from cbtqa.statistics.agreement import Coefficient

MAX_ROWS = 60
"""Longest table of single items on the page; the files beside it hold all."""


def write_report(folder: StudyFolder, store: Store, out: Path) -> StudyReport:
    """Analyses the study as it is now and writes the page and the files beside it."""
    answers = store.answers()
    report = analyse(folder, answers)
    write_outputs(out, folder, answers, report, store.sources())
    write_text(out / "report.html", rating_page(folder, report))
    return report


def rating_page(folder: StudyFolder, report: StudyReport) -> str:
    words, title = _words(), folder.rubric.title
    footer = words["footer"]
    head = Head(
        title=same(report.title) if report.title else title,
        kicker=words["kicker"],
        lede=words["lede"].fill(**dict(report), n_systems=len(report.systems)),
        footer=_both(lambda lang: f"{footer.first(lang)} {help_text(lang, 'page')}"),
        lang=folder.study.language,
    )
    return render_page(
        "cbtqa.ratings",
        "report.html.j2",
        head,
        words=words,
        report=report,
        tables=_Tables(folder, report),
        max_rows=MAX_ROWS,
        methods=_both(lambda lang: methods_text(folder, report, lang)),
    )


def score_tables(folder: StudyFolder, report: StudyReport) -> list[Table]:
    return _Tables(folder, report).scores()


def _both(text: Callable[[Lang], str]) -> Phrase:
    return Phrase(zh=text("zh"), en=text("en"))


def _words() -> dict[str, Phrase]:
    return load_wording("cbtqa.ratings", "wording/report.yaml")


def _with_interval(value: float | None, one: Score | Difference) -> Estimate:
    """With the reason in words where there is a value and no interval."""
    reason = one.reason if isinstance(one, Score) else one.test.reason
    note = f"[{GAP}: {reason}]" if value is not None and one.low is None and reason else ""
    return Estimate(value, one.low, one.high, note=note)


def _omnibus_text(one: Omnibus) -> str:
    fixed = one.these_raters_only
    tests = (
        [f"Friedman (these raters only) χ² = {number(fixed.statistic)}, p {p_relation(fixed.p)}"]
        if fixed.p is not None
        else []
    )
    if one.test.p is None:
        return "; ".join([f"F {GAP} ({one.test.reason})", *tests])
    df = f"{number(one.df_numerator, 1)}, {number(one.df_denominator, 1)}"
    found = f"F({df}) = {number(one.test.statistic)}, p {p_relation(one.test.p)}"
    return "; ".join([found, *tests])


_SHOWN: dict[str, Show] = {
    "same_point": share,
    "same_run": digits(1),
    "unrelated": digits(2),
    "repeats": digits(2),
    "practice": digits(2),
    "too_fast": lambda seconds: f"{number(seconds, 1)} s",
}


def _colon(sign: Phrase, name: Phrase) -> Phrase:
    return Phrase(zh=f"{sign.zh}：{name.first('zh')}", en=f"{sign.en}: {name.first('en')}")


class _Tables:
    def __init__(self, folder: StudyFolder, report: StudyReport) -> None:
        self._report, self._lang, self._words = report, folder.study.language, _words()
        self._raters = folder.study.raters
        self._names = {one.id: one.name for one in folder.rubric.criteria}
        self._names |= {f"total:{total.id}": total.name for total in folder.rubric.totals}

    def _heads(self, *keys: str) -> list[Phrase]:
        return [self._words[key] for key in keys]

    def scores(self) -> list[Table]:
        keys = ("system", *(f"scores.{name}" for name in ("mean", "sd", "n", "cannot", "open")))
        return [
            Table(
                self._heads(*keys),
                [
                    (
                        *(one.system, _with_interval(one.mean, one), one.sd),
                        *(one.n_ratings, one.n_cannot_judge, one.n_open),
                    )
                    for one in self._of(criterion)
                ],
                self._names[criterion],
            )
            for criterion in self._report.criteria
        ]

    def _of(self, criterion: str) -> list[Score]:
        return [score for score in self._report.scores if score.criterion == criterion]

    def charts(self) -> list[tuple[Markup, Phrase] | None]:
        """A chart with its caption for each criterion; None where nothing is rated."""
        shown = self._words["scores.chart"]
        found: list[tuple[Markup, Phrase] | None] = []
        for criterion in self._report.criteria:
            name, scores = self._names[criterion], self._of(criterion)
            is_rated = any(score.n_ratings for score in scores)
            caption = shown.fill(name=_both(name.to))
            found.append((self._chart(name.to("en"), scores), caption) if is_rated else None)
        return found

    def _chart(self, title: str, scores: Sequence[Score]) -> Markup:
        points = list(scores[0].counts)
        described = "; ".join(f"{one.system} {number(one.mean, 3)}" for one in scores)
        if points and len(points) <= len(SERIES):
            rows = [
                Levels(
                    one.system, tuple(one.counts.values()), estimate(one.mean, one.low, one.high)
                )
                for one in scores
            ]
            return stacked_bars(rows, [str(p) for p in points], title=title, description=described)
        missing = self._words["undefined"].first(self._lang)
        dots = [Interval(one.system, one.mean, one.low, one.high, missing) for one in scores]
        return interval_chart(dots, title=title, description=described)

    def published(self) -> Table:
        """Our means, and the printed ones marked by an asterisk."""
        report = self._report
        ours = {(one.system, one.criterion): one.mean for one in report.scores}
        theirs = {(f"{one.system} *", one.criterion): one.value for one in report.published}
        rows = [
            (system, *(table.get((system, criterion)) for criterion in report.criteria))
            for table in (ours, theirs)
            for system in dict.fromkeys(system for system, _ in table)
        ]
        title = self._words["scores.paper"].fill(source=report.published[0].source)
        heads = [self._words["system"], *(self._names[one] for one in report.criteria)]
        return Table(heads, rows, title)

    def differences(self) -> Table:
        words = self._words
        columns: list[AnyColumn] = [
            *(words["criterion"], words["differences.pair"]),
            Column(words["differences.difference"], lambda value: signed(value, 3)),
            *(words[f"differences.{name}"] for name in ("n", "raters")),
            *(Column(words[f"differences.{name}"], p_value) for name in ("p", "p_holm", "fixed")),
        ]
        rows = [
            (
                *(self._names[one.criterion], f"{one.second} − {one.first}"),
                _with_interval(one.difference, one),
                *(one.n_questions, one.n_raters),
                *(one.test.p, one.p_holm, one.these_raters_only.p),
            )
            for one in self._report.differences
        ]
        return Table(columns, rows)

    def omnibus(self) -> list[Phrase]:
        """The test over all systems, as a sentence for each criterion."""
        return [
            same(f"{self._names[one.criterion].first(self._lang)}: {_omnibus_text(one)}")
            for one in self._report.omnibus
        ]

    def few_raters(self) -> Phrase | None:
        """What one or two raters cannot tell."""
        n = max((one.n_raters for one in self._report.scores), default=0)
        return self._words[f"scores.raters.{n}"] if n in (1, 2) else None

    def agreement(self) -> Table:
        return self._coefficients(
            (one.criterion, found) for one in self._report.agreement for found in one.coefficients
        )

    def repeats(self) -> Table:
        return self._coefficients(
            ((one.criterion, found) for one in self._report.repeats for found in one.coefficients),
            "raters.repeats",
        )

    def order(self) -> Table:
        found = ((one.criterion, one.rho) for one in self._report.order)
        return self._coefficients(found, "raters.order")

    def _coefficients(self, found: Iterable[tuple[str, Coefficient]], title: str = "") -> Table:
        keys = ("criterion", *(f"agreement.{name}" for name in ("coefficient", "value", "items")))
        rows: list[tuple[Cell, ...]] = [
            (
                self._names[criterion],
                self._words.get(f"coefficients.{one.name}", same(one.name)),
                *(Estimate.of(one), one.n_items),
            )
            for criterion, one in found
        ]
        return Table(self._heads(*keys), rows, self._words[title] if title else "")

    def pairs(self) -> list[Table]:
        """Kappa of every pair of raters, a table for each criterion."""
        tables = []
        for entry in self._report.agreement:
            if not entry.pairs or self._report.n_raters < 3:
                continue
            values = {(pair.first, pair.second): pair.kappa.value for pair in entry.pairs}
            heads: list[AnyColumn] = [
                self._words["agreement.first"],
                *(Column(rater, digits(2)) for rater in self._raters[1:]),
            ]
            rows = [
                (first, *(values.get((first, second), "") for second in self._raters[1:]))
                for first in self._raters[:-1]
            ]
            kappa = self._words[f"coefficients.{entry.pairs[0].kappa.name}"]
            names = (self._names[entry.criterion], kappa)
            name = ", ".join(one.first(self._lang) for one in names)
            tables.append(Table(heads, rows, self._words["agreement.pairs"].fill(name=name)))
        return tables

    def raters(self) -> Table:
        words = self._words
        columns: list[AnyColumn] = [
            *(words["criterion"], words["agreement.first"], words["scores.n"]),
            Column(words["raters.mean"], number),
            Column(words["raters.severity"], signed),
            Column(words["raters.seconds"], count),
        ]
        rows = [
            (
                *(self._names[r.criterion], r.rater, r.n, r.mean),
                Estimate(r.severity, r.severity_low, r.severity_high),
                r.seconds_median,
            )
            for r in self._report.raters
        ]
        return Table(columns, rows)

    def checks(self) -> Table | None:
        """What stands out in a rater; None where nothing does."""
        words = self._words
        heads: list[AnyColumn] = [
            *(words["agreement.first"], words["checks.sign"], words["agreement.items"]),
            *(words["checks.found"], words["checks.expected"]),
            Column(words["differences.p_holm"], p_value),
        ]
        rows: list[tuple[Cell, ...]] = []
        for one in (one for one in self._report.checks if one.is_flagged):
            sign, show = words[f"checks.{one.check}"], _SHOWN[one.check]
            if one.criterion:
                sign = _colon(sign, self._names[one.criterion])
            rows.append((one.rater, sign, one.n, show(one.found), show(one.expected), one.p_holm))
        return Table(heads, rows) if rows else None

    def labels(self) -> Table:
        names = ("item", "label", "is_yes", "is_no", "evidence")
        rows = [
            (
                *(one.item_id, self._names[one.criterion], " ".join(one.yes), " ".join(one.no)),
                "; ".join(f"{rater}: {text}" for rater, text in one.evidence.items()),
            )
            for one in self._report.disagreements[:MAX_ROWS]
        ]
        return Table(self._heads(*(f"labels.{name}" for name in names)), rows)

    def flags(self) -> Table:
        keys = ("labels.item", "system", "flags.rater", "flags.flag", "flags.note")
        rows = [
            (one.item_id, one.system, one.rater, "✓" if one.is_crisis else "", one.note)
            for one in self._report.flags[:MAX_ROWS]
        ]
        return Table(self._heads(*keys), rows)
