"""The methods paragraph of an analysis, in Chinese and English, from what was really done."""

from __future__ import annotations

from collections.abc import Iterator

from cbtqa.report.wording import Phrase, load_wording
from cbtqa.simulation.analysis_settings import AnalysisSettings
from cbtqa.simulation.results import AnalysisReport, InstrumentResult
from cbtqa.simulation.rule_judge import RULES


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
