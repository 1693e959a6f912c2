"""Texts for a paper, filled from the study: a methods paragraph and a prefilled HEDS datasheet."""

from __future__ import annotations

import re
from collections.abc import Iterable

import cbtqa
from cbtqa.ratings.results import StudyReport
from cbtqa.ratings.rubric import Language
from cbtqa.ratings.scores import scales_of
from cbtqa.ratings.study import StudyFolder
from cbtqa.report.page import Phrase, load_wording, template_environment
from cbtqa.report.words import digits, estimate
from cbtqa.statistics.agreement import Coefficient


def _words() -> dict[str, Phrase]:
    return load_wording("cbtqa.ratings", "wording/methods.yaml")


def methods_text(folder: StudyFolder, report: StudyReport, language: Language) -> str:
    words, study = _words(), folder.study
    levels = dict.fromkeys(scale.level for scale in scales_of(folder.rubric))
    calibration = words["calibration" if study.n_calibration else "no_calibration"]
    names = [criterion.name.to(language) for criterion in folder.rubric.criteria]
    criteria = ("、" if language == "zh" else ", ").join(names)
    filled = words["methods" if len(report.systems) > 1 else "methods_of_one"].fill(
        **{**dict(report), "criteria": criteria},
        n_systems=len(report.systems),
        sampling=_sampling(folder),
        seed=study.seed,
        n_repeats=study.n_repeats,
        kappa=words["kappa_quadratic" if folder.rubric.scales else "kappa_plain"],
        calibration=calibration.fill(n=study.n_calibration),
        model=words["one_rater" if report.n_raters == 1 else "crossed"].first(language),
        levels=", ".join(words[f"levels.{level}"].first(language) for level in levels),
        version=cbtqa.__version__,
    )
    # a folded line of Chinese gets a blank at each fold; none belongs after its punctuation
    return re.sub(r"(?<=[，。；：、）]) ", "", " ".join(filled.first(language).split()))


def _sampling(folder: StudyFolder) -> Phrase:
    by = folder.study.stratified_by
    return _words()["random" if by == "none" else "stratified"].fill(by=by)


def datasheet_text(folder: StudyFolder, report: StudyReport, sources: Iterable[str]) -> str:
    """The datasheet in Markdown; `sources` are the store's front ends."""
    study, questions = folder.study, {item.question_id: item for item in folder.items.values()}
    kinds = {"sheet": "xlsx sheets", "csv": "CSV sheets", "web": "web form of cbtqa"}
    agreement: dict[str, list[str]] = {
        one.criterion: [coefficient_text(found) for found in one.coefficients]
        for one in report.agreement
    }
    for one in report.repeats:
        found = [f"within raters {coefficient_text(c)}" for c in one.coefficients]
        agreement[one.criterion] += found
    return (
        template_environment("cbtqa.ratings")
        .get_template("heds.md.j2")
        .render(
            study=study,
            report=report,
            rubric=folder.rubric,
            shows=folder.rubric.shows,
            sampling=_sampling(folder).en,
            collection=", ".join(kinds.get(name, name) for name in sources),
            n_risk=sum(item.risk == "explicit" for item in questions.values()),
            agreement=agreement,
        )
    )


def coefficient_text(coefficient: Coefficient) -> str:
    """`alpha_ordinal 0.512 [0.431, 0.588]`, or the reason why there is no value."""
    if coefficient.value is None:
        return f"{coefficient.name} undefined ({coefficient.reason})"
    shown = estimate(coefficient.value, coefficient.low, coefficient.high, digits(3))
    return f"{coefficient.name} {shown}"
