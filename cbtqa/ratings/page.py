"""The report page of a rating study: `ratings` computes, `report` draws, this joins them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from cbtqa.files import write_text
from cbtqa.ratings.analysis import analyse, write_outputs
from cbtqa.ratings.documents import methods_text
from cbtqa.ratings.results import Score, StudyReport
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from cbtqa.report.charts import Interval, Levels, interval_chart, stacked_bars
from cbtqa.report.page import (
    Block,
    Cell,
    Fact,
    Facts,
    Figure,
    Notice,
    Page,
    Phrase,
    Section,
    Table,
    Text,
    load_wording,
    render_page,
    same,
)
from cbtqa.report.svg import SERIES
from cbtqa.safety.notices import help_text
from cbtqa.statistics.agreement import Coefficient
from cbtqa.statistics.resampling import FEW_ITEMS

MAX_ROWS = 60
"""Longest table of single items on the page; the files beside it hold all."""
GAP = "—"


def write_report(folder: StudyFolder, store: Store, out: Path) -> StudyReport:
    """Analyses the study as it is now and writes the page and the files beside it."""
    answers = store.answers()
    report = analyse(folder, answers)
    write_outputs(out, folder, answers, report, store.sources())
    write_text(out / "report.html", render_page(rating_page(folder, report)))
    return report


def rating_page(folder: StudyFolder, report: StudyReport) -> Page:
    """The whole page."""
    return _Builder(folder, report).page()


class _Builder:
    """One page in the making."""

    def __init__(self, folder: StudyFolder, report: StudyReport) -> None:
        self._folder, self._report = folder, report
        self._words = load_wording("cbtqa.ratings", "wording/report.yaml")
        self._names = {
            criterion.id: Phrase(zh=criterion.name.to("zh"), en=criterion.name.to("en"))
            for criterion in folder.rubric.criteria
        }
        for total in folder.rubric.totals:
            self._names[f"total:{total.id}"] = Phrase(
                zh=total.name.to("zh"), en=total.name.to("en")
            )

    def page(self) -> Page:
        """All sections in order; empty ones are left out."""
        report, title = self._report, self._folder.rubric.title
        found = (
            self._section("scores", self._score_blocks()),
            self._section("differences", self._difference_blocks()),
            self._section("agreement", self._agreement_blocks()),
            self._section("raters", self._rater_blocks()),
            self._section("labels", self._label_blocks()),
            self._section("flags", self._flag_blocks()),
            Section(self._words["methods"], (Text(self._methods()),), "methods"),
        )
        return Page(
            title=same(report.title)
            if report.title
            else Phrase(zh=title.to("zh"), en=title.to("en")),
            kicker=self._words["kicker"],
            lede=self._words["lede"].fill(
                n_systems=len(report.systems),
                n_questions=report.n_questions,
                n_raters=report.n_raters,
                rubric=report.rubric,
            ),
            opening=tuple(self._opening()),
            sections=tuple(section for section in found if section is not None),
            footer=Phrase(
                zh=f"{self._words['footer'].zh} {help_text('zh', 'page')}",
                en=f"{self._words['footer'].en} {help_text('en', 'page')}",
            ),
            lang=self._folder.study.language,
        )

    def _section(self, name: str, blocks: Sequence[Block]) -> Section | None:
        if not blocks:
            return None
        lead = f"{name}.text"
        opening = (Text(self._words[lead]),) if lead in self._words and name != "labels" else ()
        return Section(self._words[f"{name}.title"], (*opening, *blocks), name)

    def _methods(self) -> Phrase:
        return Phrase(
            zh=methods_text(self._folder, self._report, "zh"),
            en=methods_text(self._folder, self._report, "en"),
        )

    def _opening(self) -> Iterator[Block]:
        report, words = self._report, self._words
        n_flags = sum(flag.is_crisis for flag in report.flags)
        yield Facts(
            (
                Fact(f"{report.n_done}/{report.n_shown}", words["facts.done"]),
                Fact(str(report.n_ratings), words["facts.ratings"]),
                Fact(str(report.n_raters), words["facts.raters"]),
                Fact(str(n_flags), words["facts.flags"]),
            )
        )
        if report.is_blind:
            yield Notice(words["blind.title"], (words["blind.text"],))
        if report.n_done < report.n_shown:
            n_open = report.n_shown - report.n_done
            yield Notice(words["open.title"], (words["open.text"].fill(n=n_open),))

    # --- scores ----------------------------------------------------------------------------------

    def _score_blocks(self) -> list[Block]:
        blocks: list[Block] = []
        for criterion in self._report.criteria:
            scores = [score for score in self._report.scores if score.criterion == criterion]
            blocks.append(self._score_table(criterion, scores))
            chart = self._score_chart(criterion, scores)
            if chart is not None:
                name = self._names[criterion]
                shown = self._words["scores.chart"]
                caption = Phrase(zh=shown.fill(name=name.zh).zh, en=shown.fill(name=name.en).en)
                blocks.append(Figure(chart, caption))
        printed = self._report.published
        if printed:
            rows = self._published_rows()
            columns = (self._words["system"], *(self._names[c] for c in self._report.criteria))
            caption = self._words["scores.paper"].fill(source=printed[0].source)
            blocks.append(Table(columns, rows, caption=caption))
        return blocks

    def _name(self, criterion: str) -> str:
        return self._names[criterion].first(self._folder.study.language)

    def _score_table(self, criterion: str, scores: Sequence[Score]) -> Table:
        heads = ("mean", "interval", "sd", "n", "cannot", "open")
        rows = [
            (
                score.system,
                _number(score.mean),
                _span(score.low, score.high),
                _number(score.sd),
                str(score.n_ratings),
                str(score.n_cannot_judge),
                str(score.n_open),
            )
            for score in scores
        ]
        columns = (self._words["system"], *(self._words[f"scores.{head}"] for head in heads))
        return Table(columns, rows, caption=self._names[criterion])

    def _score_chart(self, criterion: str, scores: Sequence[Score]) -> Markup | None:
        points = list(scores[0].counts)
        title = self._names[criterion].en
        described = "; ".join(f"{score.system} {_number(score.mean)}" for score in scores)
        if points and len(points) <= len(SERIES) and any(score.n_ratings for score in scores):
            rows = [
                Levels(
                    score.system,
                    tuple(score.counts[point] for point in points),
                    f"{_number(score.mean, 2)} {_span(score.low, score.high, 2)}",
                )
                for score in scores
            ]
            levels = [str(point) for point in points]
            return stacked_bars(rows, levels, title=title, description=described)
        if not any(score.n_ratings for score in scores):
            return None
        dots = [
            Interval(score.system, score.mean, score.low, score.high, self._undefined())
            for score in scores
        ]
        return interval_chart(dots, title=title, description=described)

    def _undefined(self) -> str:
        return self._words["undefined"].first(self._folder.study.language)

    def _published_rows(self) -> list[tuple[str, ...]]:
        ours = {(s.system, s.criterion): _number(s.mean) for s in self._report.scores}
        theirs = {(p.system, p.criterion): _number(p.value) for p in self._report.published}
        rows = []
        for table, mark in ((ours, ""), (theirs, " *")):
            for system in dict.fromkeys(system for system, _ in table):
                cells = [table.get((system, c), GAP) for c in self._report.criteria]
                rows.append((f"{system}{mark}", *cells))
        return rows

    # --- differences and agreement ---------------------------------------------------------------

    def _difference_blocks(self) -> list[Block]:
        if not self._report.differences:
            return []
        heads = ("pair", "difference", "interval", "effect", "n", "p", "p_holm")
        words = {**self._words, "differences.interval": self._words["scores.interval"]}
        rows: list[Sequence[Cell]] = [
            (
                self._names[one.criterion],
                f"{one.second} − {one.first}",
                f"{one.difference:+.3f}",
                _span(one.low, one.high),
                _number(one.test.effect, 2),
                str(one.test.n),
                _p(one.test.p),
                _p(one.p_holm),
            )
            for one in self._report.differences
        ]
        columns = (words["criterion"], *(words[f"differences.{head}"] for head in heads))
        blocks: list[Block] = [Table(columns, rows, n_text=2)]
        for omnibus in self._report.omnibus:
            told = f"Friedman χ² = {_number(omnibus.test.statistic, 2)}, p = {_p(omnibus.test.p)}"
            blocks.append(Text(same(f"{self._name(omnibus.criterion)}: {told}"), is_note=True))
        n_questions = max(one.n_questions for one in self._report.differences)
        if n_questions < FEW_ITEMS:
            blocks.append(Text(self._words["differences.few"].fill(n=n_questions), is_note=True))
        return blocks

    def _agreement_blocks(self) -> list[Block]:
        if self._report.n_raters < 2:
            return []
        rows = [
            self._coefficient_row(entry.criterion, coefficient)
            for entry in self._report.agreement
            for coefficient in entry.coefficients
        ]
        blocks: list[Block] = [self._coefficient_table(rows)]
        for entry in self._report.agreement:
            if entry.pairs and self._report.n_raters > 2:
                blocks.append(self._pair_table(entry.criterion))
        return blocks

    def _coefficient_table(
        self, rows: Sequence[Sequence[Cell]], caption: Phrase | None = None
    ) -> Table:
        words = self._words
        columns = (
            words["criterion"],
            words["agreement.coefficient"],
            words["agreement.value"],
            words["scores.interval"],
            words["agreement.items"],
        )
        return Table(columns, rows, n_text=2, caption=caption)

    def _coefficient_row(self, criterion: str, coefficient: Coefficient) -> Sequence[Cell]:
        if coefficient.value is None:
            value, interval = self._undefined(), coefficient.reason or ""
        else:
            value, interval = (
                f"{coefficient.value:.3f}",
                _span(coefficient.low, coefficient.high),
            )
        name = self._words.get(f"coefficients.{coefficient.name}", same(coefficient.name))
        return (self._names[criterion], name, value, interval, str(coefficient.n_items))

    def _pair_table(self, criterion: str) -> Table:
        entry = next(one for one in self._report.agreement if one.criterion == criterion)
        values = {(pair.first, pair.second): pair.kappa for pair in entry.pairs}
        raters = self._folder.study.raters
        rows = []
        for first in raters[:-1]:
            cells = [
                _number(values[first, second].value, 2) if (first, second) in values else ""
                for second in raters[1:]
            ]
            rows.append((first, *cells))
        columns = (self._words["agreement.first"], *(same(rater) for rater in raters[1:]))
        kappa = self._words[f"coefficients.{entry.pairs[0].kappa.name}"]
        name = f"{self._name(criterion)}, {kappa.first(self._folder.study.language)}"
        return Table(columns, rows, caption=self._words["agreement.pairs"].fill(name=name))

    # --- raters, labels, flags -------------------------------------------------------------------

    def _rater_blocks(self) -> list[Block]:
        words = self._words
        rows: list[Sequence[Cell]] = [
            (
                self._names[effect.criterion],
                effect.rater,
                str(effect.n),
                _number(effect.mean, 2),
                _number(effect.severity, 2, signed=True),
                _number(effect.seconds_median, 0),
            )
            for effect in self._report.raters
        ]
        columns = (
            words["criterion"],
            words["agreement.first"],
            words["scores.n"],
            words["raters.mean"],
            words["raters.severity"],
            words["raters.seconds"],
        )
        drift = [self._coefficient_row(one.criterion, one.rho) for one in self._report.order]
        blocks: list[Block] = [
            Table(columns, rows, n_text=2),
            self._coefficient_table(drift, words["raters.order"]),
        ]
        again = [
            self._coefficient_row(one.criterion, coefficient)
            for one in self._report.repeats
            for coefficient in one.coefficients
        ]
        if again:
            blocks.append(self._coefficient_table(again, words["raters.repeats"]))
        return blocks

    def _label_blocks(self) -> list[Block]:
        found = self._report.disagreements
        if not found:
            return []
        columns = tuple(
            self._words[f"labels.{name}"]
            for name in ("item", "label", "is_yes", "is_no", "evidence")
        )
        rows: list[Sequence[Cell]] = [
            (
                one.item_id,
                self._names[one.criterion],
                " ".join(one.yes),
                " ".join(one.no),
                "; ".join(f"{rater}: {text}" for rater, text in one.evidence.items()),
            )
            for one in found[:MAX_ROWS]
        ]
        lead = self._words["labels.text"].fill(n=len(found), shown=MAX_ROWS)
        return [Text(lead), Table(columns, rows, n_text=5)]

    def _flag_blocks(self) -> list[Block]:
        if not self._report.flags:
            return []
        words = self._words
        columns = (
            words["labels.item"],
            words["system"],
            words["flags.rater"],
            words["flags.flag"],
            words["flags.note"],
        )
        rows = [
            (flag.item_id, flag.system, flag.rater, "✓" if flag.is_crisis else "", flag.note)
            for flag in self._report.flags[:MAX_ROWS]
        ]
        return [Table(columns, rows, n_text=5)]


def _number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    if value is None:
        return GAP
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _span(low: float | None, high: float | None, digits: int = 3) -> str:
    if low is None or high is None:
        return GAP
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def _p(value: float | None) -> str:
    if value is None:
        return GAP
    return "< .001" if value < 0.001 else f"{value:.3f}"
