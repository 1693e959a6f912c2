"""The analysis as one self-contained page: alarms and audits first, scores after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from markupsafe import Markup

import cbtqa
from cbtqa.report.charts import Interval, heat_map, interval_chart
from cbtqa.report.page import (
    Block,
    Cell,
    Fact,
    Facts,
    Figure,
    Lang,
    Notice,
    Page,
    Pairs,
    Phrase,
    Section,
    Table,
    Text,
    load_wording,
    same,
)
from cbtqa.simulation.analysis.agreement import TOTAL
from cbtqa.simulation.analysis.alarms import POOLED, WITHIN
from cbtqa.simulation.analysis.results import (
    AgreementRow,
    AnalysisReport,
    ArmResult,
    InstrumentResult,
    ItemUse,
    OutcomeResult,
    Regression,
)
from cbtqa.simulation.analysis.settings import AnalysisSettings
from cbtqa.simulation.judging.task import RULES
from cbtqa.statistics.agreement import Coefficient
from cbtqa.statistics.contrasts import Wald

WORDS = load_wording("cbtqa.simulation", "analysis.yaml")


def make_page(report: AnalysisReport, methods: Phrase, lang: Lang) -> Page:
    """The page of one analysis."""
    values = {"n": report.n_sessions, "arms": len(report.arms), "patients": report.n_patients}
    sections = [
        _alarm_section(report),
        *_endings_section(report),
        overview_section(report, lang),
        *(instrument_section(report, one, lang) for one in report.instruments),
        *agreement_section(report),
        Section(WORDS["sections.methods"], (Text(methods),), "methods"),
    ]
    return Page(
        title=same(report.title),
        kicker=WORDS["page.kicker"],
        lede=WORDS["page.lede"].fill(**values),
        sections=tuple(sections),
        opening=tuple(_opening(report)),
        footer=WORDS["page.footer"].fill(version=cbtqa.__version__),
        lang=lang,
    )


def _opening(report: AnalysisReport) -> Iterator[Block]:
    facts = [
        Fact(f"{report.n_sessions:,}", WORDS["facts.sessions"]),
        Fact(str(len(report.arms)), WORDS["facts.arms"]),
        Fact(f"{report.n_patients:,}", WORDS["facts.patients"]),
        Fact(str(len(report.alarms)), WORDS["facts.alarms"]),
    ]
    yield Facts(tuple(facts))
    if report.is_rules:
        yield Notice(WORDS["rules.title"], (WORDS["rules.text"],))


def _alarm_section(report: AnalysisReport) -> Section:
    if not report.alarms:
        return Section(WORDS["sections.alarms"], (Text(WORDS["none"]),), "alarms")
    columns = [WORDS["columns.alarm"], WORDS["columns.what"]]
    rows: list[list[Cell]] = [
        [
            WORDS[f"alarm_kinds.{one.kind}"],
            f"{one.instrument}: {one.text}" if one.instrument else one.text,
        ]
        for one in report.alarms
    ]
    return Section(WORDS["sections.alarms"], (Table(columns, rows, n_text=2),), "alarms")


def _endings_section(report: AnalysisReport) -> Iterator[Section]:
    blocks: list[Block] = []
    if report.endings:
        reasons = list(dict.fromkeys(r for row in report.endings for r in row.counts))
        columns = [WORDS["columns.arm"], WORDS["columns.n"], *map(same, reasons)]
        columns.append(WORDS["columns.early"])
        rows: list[list[Cell]] = [
            [
                row.arm,
                str(row.n),
                *(str(row.counts.get(reason, 0)) for reason in reasons),
                f"{row.n_early / row.n:.0%}" if row.n else "-",
            ]
            for row in report.endings
        ]
        blocks.append(Table(columns, rows, caption=WORDS["captions.endings"]))
    if report.lengths:
        names = ("arm", "n", "turns", "words", "per_turn", "short")
        length_rows: list[list[Cell]] = [
            [
                row.arm,
                str(row.n),
                _number(row.turns, 1),
                _number(row.words, 0),
                _number(row.words_per_turn, 1),
                "-" if row.n_short is None else str(row.n_short),
            ]
            for row in report.lengths
        ]
        columns = [WORDS[f"columns.{name}"] for name in names]
        blocks.append(Table(columns, length_rows, caption=WORDS["captions.lengths"]))
    if report.correlations:
        columns = [WORDS[f"columns.{name}"] for name in ("total", "scope", "n", "r", "interval")]
        follows: list[list[Cell]] = [
            [
                f"{one.instrument} {one.total}",
                one.scope,
                str(one.n),
                f"{one.r:+.2f}",
                f"{one.low:+.2f} to {one.high:+.2f}",
            ]
            for one in report.correlations
            if one.scope in (POOLED, WITHIN)
        ]
        columns[-1] = same("95 %")
        blocks.append(Table(columns, follows, n_text=2, caption=WORDS["captions.follows"]))
    if blocks:
        yield Section(WORDS["sections.endings"], tuple(blocks), "endings")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


# --- analysis instrument page --------------------------------------------------------------------
# The page's sections on scores: all arms at a glance, then one section per instrument.

NO_BREAK = "\u00a0"


def overview_section(report: AnalysisReport, lang: Lang) -> Section:
    """Every total of every instrument, arms with their intervals, on the total's whole ladder."""
    blocks: list[Block] = []
    for result in report.instruments:
        for outcome in result.outcomes:
            caption = _caption(result, outcome)
            blocks.append(Figure(_arms_chart(outcome, caption, lang), caption))
    blocks.append(Text(WORDS["notes.interval"], is_note=True))
    return Section(WORDS["sections.overview"], tuple(blocks), "overview")


def _caption(result: InstrumentResult, outcome: OutcomeResult) -> Phrase:
    return WORDS["captions.outcome"].fill(
        instrument=result.title,
        instrument_zh=result.title_zh,
        total=outcome.name,
        total_zh=outcome.name_zh,
        low=f"{outcome.low:g}",
        high=f"{outcome.high:g}",
    )


def _arms_chart(outcome: OutcomeResult, caption: Phrase, lang: Lang) -> Markup:
    rows = [Interval(one.arm, one.mean, one.low, one.high, missing="-") for one in outcome.arms]
    shown = ", ".join(f"{row.label} {row.value:.2f}" for row in rows if row.value is not None)
    return interval_chart(
        rows, title=caption.first(lang), description=shown, low=outcome.low, high=outcome.high
    )


def instrument_section(report: AnalysisReport, result: InstrumentResult, lang: Lang) -> Section:
    """Everything about one instrument."""
    blocks: list[Block] = [Pairs(tuple(_head(result)))]
    for outcome in result.outcomes:
        blocks += _outcome_blocks(outcome, _caption(result, outcome))
    if any(outcome.adjusted for outcome in result.outcomes):
        blocks.append(Text(WORDS["notes.length"], is_note=True))
    if result.regression is not None:
        blocks.append(_regression_table(result.regression))
    blocks.append(Figure(_profile_chart(result, report.arms, lang), WORDS["captions.profile"]))
    blocks.append(Text(WORDS["notes.profile"], is_note=True))
    blocks += _areas_table(result, report.arms)
    blocks.append(_use_table(result.use))
    title = Phrase(zh=result.title_zh, en=result.title)
    return Section(title, tuple(blocks), f"instrument-{result.instrument}")


def _head(result: InstrumentResult) -> Iterator[tuple[Phrase, Cell]]:
    yield WORDS["facts_of_model.source"], result.source
    if result.judges:
        yield WORDS["facts_of_model.judges"], ", ".join(result.judges)
    if result.alpha is not None:
        yield WORDS["facts_of_model.alpha"], f"{result.alpha:.3f}"


def _outcome_blocks(outcome: OutcomeResult, caption: Phrase) -> Iterator[Block]:
    names = ["arm", "n", "missing", "mean", "sd", "interval"]
    names += ["competent"] if outcome.cutoff is not None else []
    columns = [WORDS[f"columns.{name}"] for name in names]
    yield Table(columns, [_arm_row(one) for one in outcome.arms], caption=caption)
    if outcome.fit is None:
        yield Text(WORDS["notes.no_fit"].fill(reason=outcome.no_fit_reason))
        return
    yield Pairs(tuple(_model_facts(outcome)))
    if outcome.contrasts:
        yield _contrast_table(outcome)


def _arm_row(one: ArmResult) -> list[Cell]:
    row: list[Cell] = [
        one.arm,
        str(one.n),
        str(one.n_missing),
        "-" if one.mean is None else f"{one.mean:.2f}",
        "-" if one.sd is None else f"{one.sd:.2f}",
        "-" if one.low is None else f"{one.low:.2f} to {one.high:.2f}",
    ]
    if one.n_competent is not None:
        row.append(f"{one.n_competent} ({one.n_competent / one.n:.0%})" if one.n else "-")
    return row


def _model_facts(outcome: OutcomeResult) -> Iterator[tuple[Phrase, Cell]]:
    fit = outcome.fit
    assert fit is not None
    if outcome.omnibus is not None:
        yield WORDS["facts_of_model.omnibus"], _wald(outcome.omnibus)
    if outcome.adjusted is not None and outcome.adjusted.omnibus is not None:
        yield WORDS["facts_of_model.adjusted"], _wald(outcome.adjusted.omnibus)
    if outcome.whole_only is not None:
        yield WORDS["facts_of_model.whole_only"], _wald(outcome.whole_only)
    yield WORDS["facts_of_model.variance"], f"{fit.var_group:.3f}, {fit.var_residual:.3f}"
    if outcome.icc is not None:
        shown = f"{outcome.icc:.3f}"
        if outcome.icc_low is not None:
            shown += f" [{outcome.icc_low:.3f}, {outcome.icc_high:.3f}]"
        yield WORDS["facts_of_model.icc"], shown
    if outcome.explained is not None:
        shown = f"{outcome.explained.marginal:.3f}, {outcome.explained.conditional:.3f}"
        yield WORDS["facts_of_model.r2"], shown
    if outcome.cohen_f is not None:
        yield WORDS["facts_of_model.f"], f"{outcome.cohen_f:.3f}"
    yield WORDS["facts_of_model.engine"], f"{fit.engine}, {fit.method.upper()}"


def _wald(test: Wald) -> str:
    return f"χ²({test.df}) = {test.chi2:.2f}, p {show_p(test.p)}"


def _contrast_table(outcome: OutcomeResult) -> Table:
    adjusted = outcome.adjusted.contrasts if outcome.adjusted else ()
    names = ["pair", "difference", "p_adjusted", "d"]
    names += ["adjusted", "p_adjusted"] if adjusted else []
    rows: list[list[Cell]] = []
    for place, one in enumerate(outcome.contrasts):
        row: list[Cell] = [
            f"{one.second} − {one.first}".replace(" ", NO_BREAK),
            f"{signed(one.difference)} [{signed(one.low)}, {signed(one.high)}]",
            show_p(one.p_adjusted).removeprefix("= "),
            signed(one.d),
        ]
        if adjusted:
            held = adjusted[place]
            row += [signed(held.difference), show_p(held.p_adjusted).removeprefix("= ")]
        rows.append(row)
    columns = [WORDS[f"columns.{name}"] for name in names]
    return Table(columns, rows, caption=WORDS["captions.contrasts"])


def signed(value: float) -> str:
    """Two digits with a sign, and no minus before zero."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("-0.00", "+0.00") else text


def _regression_table(regression: Regression) -> Table:
    columns = [WORDS[f"columns.{name}"] for name in ("effect", "estimate", "se")]
    columns += [same("95 %"), WORDS["columns.p"]]
    rows: list[list[Cell]] = [
        [
            one.name,
            f"{one.estimate:.3f}",
            f"{one.se:.3f}",
            f"{one.low:.2f} to {one.high:.2f}",
            show_p(one.p).removeprefix("= "),
        ]
        for one in regression.fit.effects
    ]
    fit = regression.fit
    aic = "" if fit.aic is None else f", AIC {fit.aic:.1f}"
    title = WORDS["captions.regression"]
    rest = f"{regression.formula}; n = {fit.n}{aic}; {fit.engine}"
    caption = Phrase(zh=title.zh, en=f"{title.en}: {rest}")
    return Table(columns, rows, caption=caption)


def _profile_chart(result: InstrumentResult, arms: tuple[str, ...], lang: Lang) -> Markup:
    items = [one for one in result.profile if not one.is_area]
    return heat_map(
        [one.name for one in items],
        list(arms),
        [[one.means.get(arm) for arm in arms] for one in items],
        title=WORDS["captions.profile"].first(lang),
        description=result.title,
        digits=1,
    )


def _areas_table(result: InstrumentResult, arms: tuple[str, ...]) -> Iterator[Table]:
    areas = [one for one in result.profile if one.is_area]
    rows: list[list[Cell]] = [
        [
            Phrase(zh=one.name_zh, en=f"{one.name} ({one.low:g}–{one.high:g})"),
            *("-" if one.means[arm] is None else f"{one.means[arm]:.2f}" for arm in arms),
        ]
        for one in areas
    ]
    if rows:
        columns = [same(""), *map(same, arms)]
        yield Table(columns, rows, caption=WORDS["captions.areas"])


def _use_table(use: tuple[ItemUse, ...]) -> Table:
    points = sorted({point for one in use for point in one.counts})
    columns = [WORDS["columns.effect"], *(same(str(point)) for point in points)]
    columns[0] = WORDS["columns.item"]
    columns.append(WORDS["columns.unscored"])
    rows: list[list[Cell]] = [
        [
            one.name,
            *(str(one.counts[point]) if point in one.counts else "" for point in points),
            str(sum(one.unscored.values())),
        ]
        for one in use
    ]
    return Table(columns, rows, caption=WORDS["captions.use"])


# --- analysis agreement page ---------------------------------------------------------------------
# The page's section on agreement: judges with themselves, each other and people.

NAMES = {"icc_A_1": "icc_a", "icc_C_1": "icc_c", "mean_kappa_quadratic": "kappa"}


def agreement_section(report: AnalysisReport) -> Iterator[Section]:
    """The section, where there are ratings to compare or it must be said that there are not."""
    if not any(one.judges for one in report.instruments):
        return
    blocks: list[Block] = []
    if report.agreement:
        blocks.append(_totals_table(report.agreement))
        blocks.append(_items_table(report.agreement))
        blocks.append(Text(WORDS["notes.agreement"], is_note=True))
    else:
        blocks.append(Text(WORDS["notes.no_agreement"]))
    if report.halo:
        blocks.append(_halo_table(report))
    if report.corrected:
        blocks.append(_corrected_table(report))
    yield Section(WORDS["sections.agreement"], tuple(blocks), "agreement")


def _totals_table(rows: Sequence[AgreementRow]) -> Table:
    names = ("total", "n", "icc_a", "icc_c", "alpha", "bias")
    body: list[list[Cell]] = []
    for row in rows:
        if not row.item.startswith(TOTAL):
            continue
        found = {_short(one.name): one for one in row.coefficients}
        body.append(
            [
                _named(f"{row.instrument} {row.item.removeprefix(TOTAL)}", row.kind, row.who),
                str(found["icc_a"].n_items),
                *(_shown(found[name]) for name in ("icc_a", "icc_c", "alpha")),
                "-" if row.bias is None else f"{row.bias:+.2f}",
            ]
        )
    columns = [WORDS[f"columns.{name}"] for name in names]
    return Table(columns, body, caption=WORDS["captions.agreement"])


def _items_table(rows: Sequence[AgreementRow]) -> Table:
    groups: dict[tuple[str, str, str], list[AgreementRow]] = {}
    for row in rows:
        if not row.item.startswith(TOTAL):
            groups.setdefault((row.instrument, row.kind, row.who), []).append(row)
    body: list[list[Cell]] = []
    for (instrument, kind, who), members in groups.items():
        cells: list[Cell] = [_named(instrument, kind, who), str(len(members))]
        for name in ("icc_a", "alpha", "kappa"):
            values = [
                one.value
                for row in members
                for one in row.coefficients
                if _short(one.name) == name and one.value is not None
            ]
            cells.append(
                f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else "-"
            )
        body.append(cells)
    names = ("where", "items", "icc_a", "alpha", "kappa")
    columns = [WORDS[f"columns.{name}"] for name in names]
    return Table(columns, body, caption=WORDS["captions.items"])


def _named(what: str, kind: str, who: str) -> Phrase:
    """Such as `ctrs total: gemma with people`."""
    return WORDS[f"kinds.{kind}"].fill(what=what, who=who)


def _short(name: str) -> str:
    return NAMES.get(name, "alpha")


def _shown(one: Coefficient) -> str:
    if one.value is None:
        return "-"
    text = f"{one.value:.3f}"
    return text if one.low is None else f"{text} [{one.low:.2f}, {one.high:.2f}]"


def _halo_table(report: AnalysisReport) -> Table:
    body: list[list[Cell]] = [
        [
            f"{one.first}, {one.second}",
            str(one.n),
            f"{one.r:+.2f}",
            f"{one.low:+.2f} to {one.high:+.2f}",
        ]
        for one in report.halo
    ]
    columns = [WORDS["columns.where"], WORDS["columns.n"], WORDS["columns.r"], same("95 %")]
    return Table(columns, body, caption=WORDS["captions.halo"])


def _corrected_table(report: AnalysisReport) -> Table:
    names = ("total", "judge", "arm", "judge_mean", "human_mean", "corrected", "n")
    body: list[list[Cell]] = [
        [
            f"{one.instrument} {one.total}",
            one.judge,
            one.arm,
            f"{one.judge_mean:.2f}",
            f"{one.human_mean:.2f}",
            f"{one.corrected.value:.2f} [{one.corrected.low:.2f}, {one.corrected.high:.2f}]",
            f"{one.corrected.n_human} + {one.corrected.n_judge_only}",
        ]
        for one in report.corrected
    ]
    columns = [WORDS[f"columns.{name}"] for name in names]
    return Table(columns, body, n_text=3, caption=WORDS["captions.corrected"])


# --- methods -------------------------------------------------------------------------------------
# The methods paragraph of an analysis, in Chinese and English, from what was really done.


def show_p(p: float) -> str:
    """A p-value with its sign: `= .034`, `< .001`."""
    return "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".", 1)


def methods_text(report: AnalysisReport, settings: AnalysisSettings) -> Phrase:
    """The paragraph, figures included."""
    parts = list(_sentences(report, settings))
    return Phrase(zh="".join(part.zh for part in parts), en=" ".join(part.en for part in parts))


def _sentences(report: AnalysisReport, settings: AnalysisSettings) -> Iterator[Phrase]:
    words = load_wording("cbtqa.simulation", "analysis.yaml")
    yield words["methods.sample"].fill(
        n=report.n_sessions,
        arms=len(report.arms),
        arm_names=", ".join(report.arms),
        patients=report.n_patients,
    )
    for result in report.instruments:
        yield _rated(words, result)
    yield words["methods.missing"]
    fits = [outcome.fit for result in report.instruments for outcome in result.outcomes]
    engines = list(dict.fromkeys(fit.engine for fit in fits if fit is not None))
    if engines:
        yield words["methods.model"].fill(method=settings.method.upper(), engine=", ".join(engines))
        if settings.bootstrap:
            yield words["methods.bootstrap"].fill(n=settings.bootstrap)
    if any(outcome.adjusted for result in report.instruments for outcome in result.outcomes):
        yield words["methods.length"]
    for result in report.instruments:
        yield from _figures(words, result)
    has_people = any(row.kind == "judge-people" for row in report.agreement)
    yield words["methods.people" if has_people else "methods.no_people"]


def _rated(words: dict[str, Phrase], result: InstrumentResult) -> Phrase:
    values = {
        "instrument": result.title,
        "instrument_zh": result.title_zh,
        "scale": result.scale,
    }
    if not result.judges:
        return words["methods.table"].fill(**values)
    if result.judges == (RULES,):
        return words["methods.rules"].fill(**values)
    return words["methods.judged"].fill(**values, judges=", ".join(result.judges))


def _figures(words: dict[str, Phrase], result: InstrumentResult) -> Iterator[Phrase]:
    for outcome in result.outcomes:
        if outcome.omnibus is not None and outcome.explained is not None:
            yield words["methods.omnibus"].fill(
                instrument=result.title,
                instrument_zh=result.title_zh,
                total=outcome.name,
                total_zh=outcome.name_zh,
                df=outcome.omnibus.df,
                chi2=f"{outcome.omnibus.chi2:.2f}",
                p=show_p(outcome.omnibus.p),
                marginal=f"{outcome.explained.marginal:.3f}",
                conditional=f"{outcome.explained.conditional:.3f}",
            )
    if result.regression is not None:
        fit = result.regression.fit
        yield words["methods.terms"].fill(
            formula=result.regression.formula,
            n=fit.n,
            aic="-" if fit.aic is None else f"{fit.aic:.1f}",
        )
