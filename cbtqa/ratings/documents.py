"""Texts for a paper, filled from the study: a methods paragraph and a prefilled HEDS datasheet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

import cbtqa
from cbtqa.files import parse_yaml
from cbtqa.ratings.results import StudyReport
from cbtqa.ratings.rubric import Criterion, Language
from cbtqa.ratings.scores import N_RESAMPLES, scales_of
from cbtqa.ratings.study import StudyFolder
from cbtqa.report.words import digits, estimate
from cbtqa.statistics.agreement import Coefficient


@cache
def _wording() -> Mapping[str, Any]:
    text = (files("cbtqa.ratings") / "wording" / "methods.yaml").read_text(encoding="utf-8")
    wording: Mapping[str, Any] = parse_yaml(text)
    return wording


def methods_text(folder: StudyFolder, report: StudyReport, language: Language) -> str:
    """The methods paragraph, ready for a paper."""
    wording, study = _wording(), folder.study
    levels = dict.fromkeys(scale.level for scale in scales_of(folder.rubric))
    calibration = wording["calibration" if study.n_calibration else "no_calibration"][language]
    names = [criterion.name.to(language) for criterion in folder.rubric.criteria]
    design = "methods" if len(report.systems) > 1 else "methods_of_one"
    filled = Template(wording[design][language]).substitute(
        n_systems=len(report.systems),
        n_questions=report.n_questions,
        n_items=report.n_items,
        sampling=_sampling(folder, language),
        seed=study.seed,
        n_raters=report.n_raters,
        rubric=report.rubric,
        criteria=("、" if language == "zh" else ", ").join(names),
        per_item=report.per_item,
        n_repeats=study.n_repeats,
        kappa=_kappa_name(folder, language),
        calibration=Template(calibration).substitute(n=study.n_calibration),
        n_ratings=report.n_ratings,
        n_done=report.n_done,
        n_shown=report.n_shown,
        n_resamples=N_RESAMPLES,
        levels=", ".join(wording["levels"][level][language] for level in levels),
        version=cbtqa.__version__,
    )
    # a folded line of Chinese gets a blank at each fold; none belongs after its punctuation
    return re.sub(r"(?<=[，。；：、）]) ", "", " ".join(filled.split()))


def _kappa_name(folder: StudyFolder, language: Language) -> str:
    has_scales = any(criterion.kind == "scale" for criterion in folder.rubric.criteria)
    return str(_wording()["kappa_quadratic" if has_scales else "kappa_plain"][language])


def _sampling(folder: StudyFolder, language: Language) -> str:
    wording, by = _wording(), folder.study.stratified_by
    if by == "none":
        return str(wording["random"][language])
    return Template(wording["stratified"][language]).substitute(by=by)


def datasheet_text(folder: StudyFolder, report: StudyReport, sources: Iterable[str]) -> str:
    """The datasheet in Markdown; what the study cannot know is marked as open.

    Args:
        sources: the front ends that ratings came through, as the store names them.
    """
    heds = _wording()["heds"]
    study, shows = folder.study, folder.rubric.shows
    questions = {item.question_id: item for item in folder.items.values()}
    kinds = {"sheet": "xlsx sheets", "csv": "CSV sheets", "web": "web form of cbtqa"}
    values = {
        "input": {"transcript": "text: dialogue"}.get(shows, "text: multiple sentences"),
        "output": {"transcript": "text: dialogue", "question": "none; inputs are labelled"}.get(
            shows, "text: multiple sentences"
        ),
        "task": {"transcript": "dialogue turn generation", "question": "N/A"}.get(
            shows, "question answering"
        ),
        "item_language": {"transcript": "English"}.get(shows, "Chinese"),
        "n_questions": str(report.n_questions),
        "sampling_en": _sampling(folder, "en"),
        "seed": str(study.seed),
        "n_raters": str(report.n_raters),
        "n_calibration": str(study.n_calibration),
        "n_repeats": str(study.n_repeats),
        "collection": ", ".join(kinds.get(name, name) for name in sources) or heds["todo"],
        "n_risk": str(sum(item.risk == "explicit" for item in questions.values())),
    }
    lines = [f"# {heds['title']}", "", f"Study {study.id}. {heds['lede']}", ""]
    for section in heds["sections"]:
        lines += _section(section["title"], section["questions"], values)
    for criterion in folder.rubric.criteria:
        own = {**values, **_criterion_values(criterion, report, study.language)}
        title = Template(heds["criterion"]["title"]).substitute(own)
        lines += _section(title, heds["criterion"]["questions"], own)
    lines += _section(heds["ethics"]["title"], heds["ethics"]["questions"], values)
    return "\n".join(lines)


def _section(title: str, questions: list[list[str]], values: Mapping[str, str]) -> list[str]:
    lines = [f"## {title}", ""]
    for number, question, answer in questions:
        filled = Template(answer).substitute(values) or _wording()["heds"]["todo"]
        lines += [f"**{number} {question}**", "", filled, ""]
    return lines


def _criterion_values(
    criterion: Criterion, report: StudyReport, language: Language
) -> dict[str, str]:
    anchors = "; ".join(f"{p}: {w.to(language)}" for p, w in sorted(criterion.anchors.items()))
    is_mark = criterion.kind == "mark"
    return {
        "name": criterion.name.to(language),
        "question": criterion.question.to(language),
        "anchors": anchors or criterion.question.to(language),
        "quality": "feature" if is_mark else "goodness",
        "frame": "in its own right" if is_mark else "relative to the input",
        "size": str(len(criterion.points)),
        "values": f"{criterion.low}-{criterion.high}",
        "presented": "check-boxes" if is_mark else "multiple-choice options",
        "elicitation": "labelling" if is_mark else "direct quality estimation",
        "agreement": _agreement_text(criterion.id, report),
    }


def _agreement_text(criterion: str, report: StudyReport) -> str:
    between = next(entry for entry in report.agreement if entry.criterion == criterion)
    told = [coefficient_text(coefficient) for coefficient in between.coefficients]
    within = [entry for entry in report.repeats if entry.criterion == criterion]
    for entry in within:
        told += [f"within raters {coefficient_text(c)}" for c in entry.coefficients]
    return "; ".join(told)


def coefficient_text(coefficient: Coefficient) -> str:
    """`alpha_ordinal 0.512 [0.431, 0.588]`, or the reason why there is no value."""
    if coefficient.value is None:
        return f"{coefficient.name} undefined ({coefficient.reason})"
    shown = estimate(coefficient.value, coefficient.low, coefficient.high, digits(3))
    return f"{coefficient.name} {shown}"
