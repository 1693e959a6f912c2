"""The page's sections on scores: all arms at a glance, then one section per instrument."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from cbtqa.report.charts import Interval, interval_chart
from cbtqa.report.page import Block, Cell, Figure, Pairs, Section, Table, Text
from cbtqa.report.plots import heat_map
from cbtqa.report.wording import Lang, Phrase, load_wording, same
from cbtqa.simulation.methods import show_p
from cbtqa.simulation.results import (
    AnalysisReport,
    ArmResult,
    InstrumentResult,
    ItemUse,
    OutcomeResult,
    Regression,
)
from cbtqa.statistics.contrasts import Wald

WORDS = load_wording("cbtqa.simulation", "analysis.yaml")
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
