"""The analysis as one self-contained page: alarms and audits first, scores after them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

from markupsafe import Markup

import cbtqa
from cbtqa.report.charts import Interval, heat_map, interval_chart
from cbtqa.report.page import Head, Lang, Phrase, load_wording, render_page, same
from cbtqa.report.table import AnyColumn, Cell, Column, Estimate, Row, Table
from cbtqa.report.words import (
    GAP,
    Show,
    count,
    count_of,
    digits,
    estimate,
    interval,
    number,
    p_value,
    share,
    signed,
)
from cbtqa.simulation.analysis.agreement import TOTAL
from cbtqa.simulation.analysis.alarms import POOLED, WITHIN
from cbtqa.simulation.analysis.group_tables import (
    attributes_table,
    group_means,
    prediction_table,
    wins_table,
)
from cbtqa.simulation.analysis.results import (
    AgreementRow,
    AnalysisReport,
    ArmResult,
    InstrumentResult,
    OutcomeResult,
    PublishedModel,
    Regression,
)
from cbtqa.simulation.analysis.settings import AnalysisSettings
from cbtqa.simulation.analysis.tests_in_words import clear_pairs, f_text, wald_text
from cbtqa.simulation.judging.task import RULES

WORDS = load_wording("cbtqa.simulation", "analysis.yaml")
NO_BREAK = "\u00a0"
_COEFFICIENTS = {"icc_A_1": "icc_a", "icc_C_1": "icc_c", "mean_kappa_quadratic": "kappa"}


def analysis_page(report: AnalysisReport, methods: Phrase, lang: Lang) -> str:
    """The page of one analysis as HTML."""
    values = {"n": report.n_sessions, "arms": len(report.arms), "patients": report.n_patients}
    head = Head(
        title=same(report.title),
        kicker=WORDS["page.kicker"],
        lede=WORDS["page.lede"].fill(**values),
        footer=WORDS["page.footer"].fill(version=cbtqa.__version__),
        lang=lang,
    )
    return render_page(
        "cbtqa.simulation",
        "analysis.html.j2",
        head,
        words=WORDS,
        report=report,
        methods=methods,
        tables=_Tables(report, lang),
    )


def outcome_table(result: InstrumentResult, outcome: OutcomeResult) -> Table:
    """The arms on one total."""
    has_cutoff = outcome.cutoff is not None
    # where totals are missing, the mean of the others is of sessions that were easy to rate
    has_gaps = any(one.n_missing and one.mean_least is not None for one in outcome.arms)
    names = ("arm", "n", "missing", "mean", *(("bounds",) if has_gaps else ()), "sd")
    names = (*names, *(("competent",) if has_cutoff else ()))
    rows: list[Row] = [
        (
            *(one.arm, one.n, one.n_missing, _mean(one)),
            *((_bounds(one),) if has_gaps else ()),
            one.sd,
            *((_competent(one),) if has_cutoff else ()),
        )
        for one in outcome.arms
    ]
    return Table(_columns(*names), rows, _caption(result, outcome))


def missing_table(result: InstrumentResult) -> Table:
    """The sessions without a total: between what it lies, and why it is missing."""
    rows = [
        (f"{one.session_id}, {one.total}", _ends(one.least, one.most), one.reason)
        for one in result.missing
    ]
    return Table(_columns("session", "between", "why"), rows, WORDS["captions.missing"])


def reasons_of_means(outcome: OutcomeResult) -> list[str]:
    """Why means have no interval, such as `tuned: 2 patients, fewer than 3`."""
    return [f"{one.arm}: {one.reason}" for one in outcome.arms if one.n and one.reason]


def _mean(one: ArmResult) -> Estimate:
    return Estimate(one.mean, one.low, one.high, one.reason)


def _bounds(one: ArmResult) -> str | None:
    """Such as `30.3 to 31.7`: the mean with every missing item at either end of its scale."""
    return _ends(one.mean_least, one.mean_most)


def _ends(least: float | None, most: float | None) -> str | None:
    if least is None or most is None:
        return None
    return f"{number(least, 1)} – {number(most, 1)}"


def _competent(one: ArmResult) -> str:
    """Such as `12 (60%) [41%, 77%]`."""
    shown = count_of(one.n_competent or 0, one.n, 0)
    if one.competent_low is None:
        return shown
    return f"{shown} {interval(one.competent_low, one.competent_high, lambda x: share(x, 0))}"


def regression_table(regression: Regression) -> Table:
    """The effects of a model of named terms, errors from patients, and the published p."""
    fit = regression.fit
    rows = [
        (
            *(one.name, Estimate(one.estimate, one.low, one.high, one.reason), one.df),
            *(one.p, None if one.p is None else old.p),
        )
        for one, old in zip(regression.effects, fit.effects, strict=True)
    ]
    columns = _columns("effect", "estimate", "df", "p", "published")
    aic = "" if fit.aic is None else f", AIC {number(fit.aic, 1)}"
    rest = f"{regression.formula}; n = {fit.n}{aic}; {fit.engine}"
    title = WORDS["captions.regression"]
    return Table(columns, rows, Phrase(zh=title.zh, en=f"{title.en}: {rest}"))


_SHOWS: dict[str, Show] = {
    **dict.fromkeys(("turns", "per_turn", "df"), digits(1)),
    **dict.fromkeys(("estimate", "icc_a", "icc_c", "alpha"), digits(3)),
    "words": count,
    **dict.fromkeys(("difference", "adjusted", "d", "r", "bias"), signed),
    **dict.fromkeys(("p", "p_adjusted", "published", "published_p"), p_value),
    "early": lambda value: share(value, 0),
}


def _columns(*names: str) -> list[Column]:
    return [Column(WORDS[f"columns.{name}"], _SHOWS.get(name, number)) for name in names]


def _caption(result: InstrumentResult, outcome: OutcomeResult) -> Phrase:
    ends = {"low": f"{outcome.low:g}", "high": f"{outcome.high:g}"}
    return WORDS["captions.outcome"].fill(**_names(result, outcome), **ends)


def _names(result: InstrumentResult, outcome: OutcomeResult) -> dict[str, str]:
    return {
        "instrument": result.title,
        "instrument_zh": result.title_zh,
        "total": outcome.name,
        "total_zh": outcome.name_zh,
    }


class _Tables:
    """The tables and charts that the page's template asks for."""

    def __init__(self, report: AnalysisReport, lang: Lang) -> None:
        self._report, self._lang = report, lang

    def alarms(self) -> Table:
        rows = [
            (
                WORDS[f"alarm_kinds.{one.kind}"],
                f"{one.instrument}: {one.text}" if one.instrument else one.text,
            )
            for one in self._report.alarms
        ]
        return Table(_columns("alarm", "what"), rows)

    def endings(self) -> Table:
        found = self._report.endings
        reasons = list(dict.fromkeys(reason for row in found for reason in row.counts))
        rows: list[Row] = [
            [
                row.arm,
                row.n,
                *(row.counts.get(reason, 0) for reason in reasons),
                row.n_early / row.n if row.n else None,
            ]
            for row in found
        ]
        columns = [*_columns("arm", "n"), *map(Column, reasons), *_columns("early")]
        return Table(columns, rows, WORDS["captions.endings"])

    def marks(self) -> Table:
        rows: list[Row] = [
            [
                row.arm,
                row.mark.replace("_", " "),
                row.n_turns,
                row.n_turns / row.of_turns if row.of_turns else None,
                row.n_sessions,
            ]
            for row in self._report.marks
        ]
        columns = _columns("arm", "mark", "marked_turns", "of_turns", "marked_sessions")
        return Table(columns, rows, WORDS["captions.marks"])

    def lengths(self) -> Table:
        rows = [
            (row.arm, row.n, row.turns, row.words, row.words_per_turn, row.n_short)
            for row in self._report.lengths
        ]
        columns = _columns("arm", "n", "turns", "words", "per_turn", "short")
        return Table(columns, rows, WORDS["captions.lengths"])

    def follows(self) -> Table:
        rows = [
            (
                *(f"{one.instrument} {one.total}", one.scope, one.n),
                Estimate(one.r, one.low, one.high, one.reason),
            )
            for one in self._report.correlations
            if one.scope in (POOLED, WITHIN)
        ]
        return Table(_columns("total", "scope", "n", "r"), rows, WORDS["captions.follows"])

    outcome = staticmethod(outcome_table)
    missing = staticmethod(missing_table)
    regression = staticmethod(regression_table)
    wins = staticmethod(wins_table)
    attributes = staticmethod(attributes_table)
    group_means = staticmethod(group_means)
    prediction = staticmethod(prediction_table)

    def reading(self) -> Phrase:
        """Which columns of a table were taken for what."""
        return WORDS["notes.reading"].fill(reading="; ".join(self._report.reading))

    def title(self, result: InstrumentResult) -> Phrase:
        return Phrase(zh=result.title_zh, en=result.title)

    def arms_chart(self, result: InstrumentResult, outcome: OutcomeResult) -> tuple[Markup, Phrase]:
        caption = _caption(result, outcome)
        rows = [Interval(one.arm, one.mean, one.low, one.high, missing=GAP) for one in outcome.arms]
        shown = ", ".join(f"{row.label} {number(row.value)}" for row in rows)
        chart = interval_chart(
            rows,
            title=caption.first(self._lang),
            description=shown,
            low=outcome.low,
            high=outcome.high,
        )
        return chart, caption

    def head(self, result: InstrumentResult) -> Iterator[tuple[Phrase, str]]:
        facts = {
            "source": result.source,
            "judges": ", ".join(result.judges),
            "alpha": "" if result.alpha is None else number(result.alpha, 3),
        }
        return _facts(facts)

    def model(self, outcome: OutcomeResult) -> Iterator[tuple[Phrase, str]]:
        found, adjusted = outcome.comparison, outcome.adjusted
        tests = {"omnibus": found.test, "adjusted": adjusted.omnibus if adjusted else None}
        tests |= {"whole_only": outcome.whole_only, "interaction": found.interaction}
        facts = {name: f_text(test) for name, test in tests.items() if test is not None}
        parts = found.components
        if parts is not None:
            shares = (parts.patient, parts.patient_by_arm, parts.residual)
            facts["variance"] = ", ".join(number(value, 3) for value in shares)
            icc = estimate(parts.icc, parts.icc_low, parts.icc_high, digits(3))
            facts["icc"] = f"{icc} ({parts.reason})" if parts.reason else icc
        if found.sizes is not None:
            facts["r2"] = f"{number(found.sizes.marginal, 3)}, {number(found.sizes.conditional, 3)}"
            facts["f"] = number(found.sizes.f, 3)
        if found.contrasts:
            facts["error"] = WORDS["errors.pairs"].first(self._lang)
        facts["no_interval"] = "; ".join(reasons_of_means(outcome))
        is_tested = found.reason is None
        facts["published"] = "; ".join(_published(outcome.published, is_tested=is_tested))
        return _facts(facts)

    def contrasts(self, outcome: OutcomeResult) -> Table:
        adjusted = outcome.adjusted.contrasts if outcome.adjusted else ()
        old = {(one.first, one.second): one for one in outcome.published.contrasts}
        names = ("pair", "difference", "p_adjusted", "d")
        held = ("adjusted", "p_adjusted") if adjusted else ()
        columns = _columns(*names, *held, *(("published_p",) if old else ()))
        rows: list[list[Cell]] = [
            [
                f"{one.second} − {one.first}".replace(" ", NO_BREAK),
                Estimate(one.difference, one.low, one.high),
                *(one.p_adjusted, one.d),
            ]
            for one in outcome.comparison.contrasts
        ]
        for row, equal in zip(rows, adjusted, strict=False):
            row += [equal.difference, equal.p_adjusted]
        for row, one in zip(rows, outcome.comparison.contrasts, strict=True) if old else ():
            row.append(old[one.first, one.second].p_adjusted)
        return Table(columns, rows, WORDS["captions.contrasts"])

    def profile(self, result: InstrumentResult) -> Markup:
        items, arms = [one for one in result.profile if not one.is_area], self._report.arms
        return heat_map(
            [one.name for one in items],
            list(arms),
            [[one.means.get(arm) for arm in arms] for one in items],
            title=WORDS["captions.profile"].first(self._lang),
            description=result.title,
            digits=1,
        )

    def areas(self, result: InstrumentResult) -> Table:
        arms = self._report.arms
        rows = [
            (
                Phrase(zh=one.name_zh, en=f"{one.name} ({one.low:g}–{one.high:g})"),
                *(one.means[arm] for arm in arms),
            )
            for one in result.profile
            if one.is_area
        ]
        columns: list[AnyColumn] = ["", *(Column(arm, number) for arm in arms)]
        return Table(columns, rows, WORDS["captions.areas"])

    def use(self, result: InstrumentResult) -> Table:
        points = sorted({point for one in result.use for point in one.counts})
        rows = [
            (one.name, *(one.counts.get(point, "") for point in points), sum(one.unscored.values()))
            for one in result.use
        ]
        columns = [*_columns("item"), *(Column(str(p)) for p in points), *_columns("unscored")]
        return Table(columns, rows, WORDS["captions.use"])

    def totals(self) -> Table:
        rows: list[Row] = []
        for row in self._report.agreement:
            if row.item.startswith(TOTAL):
                found = {_short(one.name): one for one in row.coefficients}
                what = f"{row.instrument} {row.item.removeprefix(TOTAL)}"
                within = {_short(one.name): one for one in row.within_arms}
                shown = (
                    Estimate.of(some[name]) if name in some else None
                    for some, name in (
                        *((found, name) for name in ("icc_a", "icc_c")),
                        (within, "icc_a"),
                        (found, "alpha"),
                    )
                )
                named = _named(what, row.kind, row.who)
                bias = None
                if row.bias is not None:
                    bias = Estimate(row.bias, row.bias_low, row.bias_high, row.bias_reason)
                rows.append((named, found["icc_a"].n_items, *shown, bias))
        columns = _columns("total", "n", "icc_a", "icc_c", "icc_within", "alpha", "bias")
        return Table(columns, rows, WORDS["captions.agreement"])

    def items(self) -> Table:
        groups: dict[tuple[str, str, str], list[AgreementRow]] = {}
        for row in self._report.agreement:
            if not row.item.startswith(TOTAL):
                groups.setdefault((row.instrument, row.kind, row.who), []).append(row)
        rows: list[Row] = [
            (
                *(_named(*group), len(members)),
                *(_median(members, name) for name in ("icc_a", "alpha", "kappa")),
            )
            for group, members in groups.items()
        ]
        columns = _columns("where", "items", "icc_a", "alpha", "kappa")
        return Table(columns, rows, WORDS["captions.items"])

    def halo(self) -> Table:
        rows = [
            (
                *(f"{one.first}, {one.second}", one.scope, one.n),
                Estimate(one.r, one.low, one.high, one.reason),
            )
            for one in self._report.halo
        ]
        return Table(_columns("where", "scope", "n", "r"), rows, WORDS["captions.halo"])

    def corrected(self) -> Table:
        rows = [
            (
                *(f"{one.instrument} {one.total}", one.judge, one.arm),
                *(one.judge_mean, one.human_mean),
                Estimate(held.value, held.low, held.high, held.interval_reason)
                if (held := one.corrected)
                else Estimate(None, reason=one.reason),
                f"{one.n_human} + {held.n_judge_only}" if held else one.n_human,
            )
            for one in self._report.corrected
        ]
        names = ("total", "judge", "arm", "judge_mean", "human_mean", "corrected", "n")
        return Table(_columns(*names), rows, WORDS["captions.corrected"])


def _published(model: PublishedModel, *, is_tested: bool) -> Iterator[str]:
    """The published model in short: test, pairs, ICC, R2, f, how it was computed.

    Its test is shown beside one that holds its level, and not alone.
    """
    fit, explained = model.fit, model.explained
    if fit is None:
        yield model.no_fit_reason or GAP
        return
    if model.omnibus is not None and is_tested:
        yield f"{wald_text(model.omnibus)}; {clear_pairs(model.contrasts)}"
    yield f"ICC {estimate(model.icc, model.icc_low, model.icc_high, digits(3))}"
    if explained is not None:
        yield f"R² {number(explained.marginal, 3)}, {number(explained.conditional, 3)}"
    if model.cohen_f is not None:
        yield f"f {number(model.cohen_f, 3)}"
    yield f"{fit.engine}, {fit.method.upper()}"


def _facts(facts: dict[str, str]) -> Iterator[tuple[Phrase, str]]:
    return ((WORDS[f"facts_of_model.{key}"], text) for key, text in facts.items() if text)


def _named(what: str, kind: str, who: str) -> Phrase:
    """Such as `ctrs total: gemma with people`."""
    return WORDS[f"kinds.{kind}"].fill(what=what, who=who)


def _short(name: str) -> str:
    return _COEFFICIENTS.get(name, "alpha")


def _median(rows: Iterable[AgreementRow], name: str) -> str:
    """Median and range of a coefficient over items."""
    found = (one for row in rows for one in row.coefficients if _short(one.name) == name)
    values = [one.value for one in found if one.value is not None]
    if not values:
        return GAP
    return f"{number(median(values))} {interval(min(values), max(values))}"


def methods_text(report: AnalysisReport, settings: AnalysisSettings) -> Phrase:
    """The paragraph for a paper, in Chinese and English, from what was done."""
    parts = list(_sentences(report, settings))
    return Phrase(zh="".join(part.zh for part in parts), en=" ".join(part.en for part in parts))


def _sentences(report: AnalysisReport, settings: AnalysisSettings) -> Iterator[Phrase]:
    yield WORDS["methods.sample"].fill(
        n=report.n_sessions,
        arms=len(report.arms),
        arm_names=", ".join(report.arms),
        patients=report.n_patients,
    )
    for result in report.instruments:
        yield _rated(result)
    yield WORDS["methods.missing"]
    outcomes = [outcome for result in report.instruments for outcome in result.outcomes]
    tested = [one for one in outcomes if one.comparison.reason is None]
    if tested:
        yield WORDS["methods.model"]
    fits = [one.published.fit for one in outcomes]
    engines = list(dict.fromkeys(fit.engine for fit in fits if fit is not None))
    if tested and engines:
        method = settings.method.upper()
        yield WORDS["methods.published"].fill(method=method, engine=", ".join(engines))
        if settings.bootstrap:
            yield WORDS["methods.bootstrap"].fill(n=settings.bootstrap)
    if any(one.adjusted and one.adjusted.contrasts for one in outcomes):
        yield WORDS["methods.length"]
    for result in report.instruments:
        yield from _figures(result)
    if tested:
        yield from _explored(report)
    has_people = any(row.kind == "judge-people" for row in report.agreement)
    yield WORDS["methods.people" if has_people else "methods.no_people"]


def _explored(report: AnalysisReport) -> Iterator[Phrase]:
    found = [one.exploration for one in report.instruments if one.exploration is not None]
    names = dict.fromkeys(one.attribute for each in found for one in each.groups)
    if found:
        groups = same("")
        if names:
            groups = WORDS["methods.groups"].fill(attributes=", ".join(names))
        yield WORDS["methods.exploration"].fill(groups=groups)


def _rated(result: InstrumentResult) -> Phrase:
    values = {"instrument": result.title, "instrument_zh": result.title_zh, "scale": result.scale}
    if not result.judges:
        return WORDS["methods.table"].fill(**values)
    if result.judges == (RULES,):
        return WORDS["methods.rules"].fill(**values)
    return WORDS["methods.judged"].fill(**values, judges=", ".join(result.judges))


def _figures(result: InstrumentResult) -> Iterator[Phrase]:
    for outcome in result.outcomes:
        test, sizes = outcome.comparison.test, outcome.comparison.sizes
        if test.p is not None and sizes is not None:
            yield WORDS["methods.omnibus"].fill(
                **_names(result, outcome),
                test=f_text(test),
                marginal=number(sizes.marginal, 3),
                conditional=number(sizes.conditional, 3),
            )
        elif test.reason is not None:
            yield WORDS["methods.no_test"].fill(**_names(result, outcome), reason=test.reason)
    if result.regression is not None:
        fit = result.regression.fit
        yield WORDS["methods.terms"].fill(
            formula=result.regression.formula, n=fit.n, aic=number(fit.aic, 1)
        )
