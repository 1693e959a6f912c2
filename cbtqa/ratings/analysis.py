"""Puts a study's results together: `analyse` is the one way from ratings to a `StudyReport`."""

from __future__ import annotations

from collections.abc import Mapping

from cbtqa.ratings.answers import Answer, is_done, make_ratings
from cbtqa.ratings.behaviour import (
    agree,
    disagreements,
    order_effect,
    rater_effects,
    repeat_agreement,
)
from cbtqa.ratings.results import StudyReport
from cbtqa.ratings.scores import (
    compare_systems,
    flags_of,
    make_marks,
    published_scores,
    scales_of,
    score_systems,
)
from cbtqa.ratings.study import StudyFolder


def analyse(folder: StudyFolder, answers: Mapping[str, Answer]) -> StudyReport:
    """Everything the report shows, from the present state of all presentations.

    Raises:
        MissingExtraError: scipy is not installed (intervals of the intraclass correlation).
    """
    study, rubric = folder.study, folder.rubric
    systems = tuple(sorted(folder.names_of_arms().values()))
    ratings = make_ratings(folder, answers)
    marks = make_marks(rubric, ratings)
    scores, differences, omnibus = [], [], []
    agreement, effects, repeats, order = [], [], [], []
    for scale in scales_of(rubric):
        own = [mark for mark in marks if mark.criterion == scale.id]
        first = [mark for mark in own if mark.repeat == 0]
        scores += score_systems(scale, first, systems)
        pairs, overall = compare_systems(scale, first, systems)
        differences += pairs
        omnibus += overall
        agreement.append(agree(scale, first, study.raters))
        effects += rater_effects(scale, own, study.raters)
        order.append(order_effect(scale, first, study.raters))
        if study.n_repeats:
            repeats.append(repeat_agreement(scale, own))
    counted = [shown for shown in folder.plan if shown.phase == "main" and not shown.repeat]
    return StudyReport(
        study_id=study.id,
        title=study.title,
        rubric=study.rubric,
        is_blind=folder.systems() is None and len(study.arms) > 1,
        systems=systems,
        criteria=tuple(scale.id for scale in scales_of(rubric)),
        n_questions=study.n_questions,
        n_items=study.n_items,
        n_raters=len(study.raters),
        per_item=study.per_item,
        n_shown=len(counted),
        n_done=sum(is_done(folder, answers.get(shown.code)) for shown in counted),
        n_ratings=sum(
            score.n_ratings for score in scores if not score.criterion.startswith("total:")
        ),
        scores=tuple(scores),
        differences=tuple(differences),
        omnibus=tuple(omnibus),
        agreement=tuple(agreement),
        raters=tuple(effects),
        repeats=tuple(repeats),
        order=tuple(order),
        disagreements=tuple(disagreements(rubric, ratings)),
        flags=tuple(flags_of(folder, ratings)),
        published=published_scores(study.rubric),
    )
