"""Puts a study's results together: `analyse` is the one way from ratings to a `StudyReport`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from cbtqa.files import write_json, write_jsonl, write_text
from cbtqa.ratings.answers import Answer, is_done, make_ratings
from cbtqa.ratings.attention import check_raters
from cbtqa.ratings.behaviour import (
    agree,
    disagreements,
    order_effect,
    rater_effects,
    repeat_agreement,
    study_alpha,
)
from cbtqa.ratings.documents import datasheet_text, methods_text
from cbtqa.ratings.results import Disagreement, StudyReport
from cbtqa.ratings.scores import (
    compare_systems,
    fit_systems,
    flags_of,
    make_marks,
    published_scores,
    scales_of,
    score_systems,
)
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from cbtqa.records import Record
from cbtqa.report.table import Estimate, Table
from cbtqa.statistics.agreement import Coefficient


def analyse(folder: StudyFolder, answers: Mapping[str, Answer]) -> StudyReport:
    """Everything the report shows, from the present state of all presentations."""
    study, rubric = folder.study, folder.rubric
    systems = tuple(sorted(folder.names_of_arms().values()))
    ratings = make_ratings(folder, answers)
    marks = make_marks(rubric, ratings)
    scores, differences, omnibus = [], [], []
    agreement, effects, repeats, order = [], [], [], []
    for scale in scales_of(rubric):
        own = [mark for mark in marks if mark.criterion == scale.id]
        first = [mark for mark in own if mark.rating.repeat == 0]
        fitted = fit_systems(scale, first)
        scores += score_systems(scale, first, systems, fitted)
        pairs, overall = compare_systems(scale, first, systems, fitted)
        differences += pairs
        omnibus += overall
        agreement.append(agree(scale, first, study.raters))
        effects += rater_effects(scale, own, study.raters)
        order.append(order_effect(scale, first, study.raters))
        if study.n_repeats:
            repeats.append(repeat_agreement(scale, own, study.raters))
    counted = [shown for shown in folder.plan if shown.phase == "main" and not shown.repeat]
    return StudyReport(
        study_id=study.id,
        is_blind=folder.systems() is None and len(study.arms) > 1,
        systems=systems,
        criteria=tuple(scale.id for scale in scales_of(rubric)),
        n_raters=len(study.raters),
        **study.model_dump(include={"title", "rubric", "n_questions", "n_items", "per_item"}),
        n_shown=len(counted),
        n_done=sum(is_done(folder, answers.get(shown.code)) for shown in counted),
        n_ratings=sum(one.n_ratings for one in scores if not one.criterion.startswith("total:")),
        scores=tuple(scores),
        differences=tuple(differences),
        omnibus=tuple(omnibus),
        agreement=tuple(agreement),
        raters=tuple(effects),
        repeats=tuple(repeats),
        order=tuple(order),
        checks=tuple(check_raters(folder, ratings)),
        disagreements=tuple(disagreements(rubric, ratings)),
        flags=tuple(flags_of(folder, ratings)),
        published=published_scores(study.rubric),
    )


def write_outputs(
    out: Path,
    folder: StudyFolder,
    answers: Mapping[str, Answer],
    report: StudyReport,
    sources: list[str],
) -> None:
    """Writes all files but the page; systems are named as in the study.

    `report.json` (every figure of the page), `ratings.jsonl` (open ones too), `heds.md`,
    `methods.md`, and `adjudication.csv` (labels on which raters differ, for rubrics with marks).
    """
    write_json(out / "report.json", report)
    write_jsonl(out / "ratings.jsonl", make_ratings(folder, answers))
    write_text(out / "heds.md", datasheet_text(folder, report, sources))
    paragraphs = [methods_text(folder, report, language) for language in ("zh", "en")]
    write_text(out / "methods.md", "\n\n".join(paragraphs) + "\n")
    if folder.rubric.marks:
        table = _adjudication(folder, report.disagreements)
        # the byte-order mark tells Excel that it is UTF-8
        write_text(out / "adjudication.csv", "\ufeff" + table.csv())


def _adjudication(folder: StudyFolder, found: tuple[Disagreement, ...]) -> Table:
    heads = ["item", "question", "text", "label", "yes", "no", "evidence", "decision"]
    rows = [
        (
            *(one.item_id, one.question_id, "\n".join(folder.items[one.item_id].parts.values())),
            *(one.criterion, " ".join(one.yes), " ".join(one.no)),
            *("; ".join(f"{rater}: {text}" for rater, text in one.evidence.items()), ""),
        )
        for one in found
    ]
    return Table(heads, rows)


class RaterProgress(Record):
    rater: str
    n_done: int = Field(ge=0)
    n_shown: int = Field(ge=0)
    n_cannot_judge: int = Field(ge=0)
    n_crisis: int = Field(ge=0)
    last_saved: str | None = None
    """UTC; None when nothing was saved yet."""


class StudyStatus(Record):
    study: str
    raters: tuple[RaterProgress, ...]
    agreement: dict[str, Coefficient]
    """Krippendorff's alpha by criterion."""

    def tables(self) -> list[Table]:
        heads = ["rater", "done", "of", "cannot judge", "crisis flags", "last saved (UTC)"]
        rows = [
            (*(r.rater, r.n_done, r.n_shown, r.n_cannot_judge, r.n_crisis), r.last_saved)
            for r in self.raters
        ]
        agreement = [(name, Estimate.of(c), c.n_items) for name, c in self.agreement.items()]
        title = "Agreement so far: to watch, not to adjust ratings by"
        return [
            Table(heads, rows, self.study),
            Table(["criterion", "alpha [95% interval]", "items"], agreement, title),
        ]


def study_status(folder: StudyFolder, store: Store) -> StudyStatus:
    """The present state of a study, while it may be running."""
    answers, last = store.answers(), store.last_activity()
    raters = []
    for rater in folder.study.raters:
        shown = folder.shown_to(rater)
        own = [answers.get(presentation.code, Answer()) for presentation in shown]
        raters.append(
            RaterProgress(
                rater=rater,
                n_done=sum(is_done(folder, answer) for answer in own),
                n_shown=len(shown),
                n_cannot_judge=sum(answer.cannot_judge for answer in own),
                n_crisis=sum(answer.crisis for answer in own),
                last_saved=last.get(rater),
            )
        )
    marks = make_marks(folder.rubric, make_ratings(folder, answers))
    agreement = {
        scale.id: study_alpha(
            scale, [mark for mark in marks if mark.criterion == scale.id], folder.study.raters
        )
        for scale in scales_of(folder.rubric)
    }
    return StudyStatus(study=folder.study.id, raters=tuple(raters), agreement=agreement)
