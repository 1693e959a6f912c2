"""How far a running study is: done per rater, and agreement so far."""

from __future__ import annotations

from pydantic import Field

from cbtqa.ratings.answers import Answer, is_done, make_ratings
from cbtqa.ratings.behaviour import table_of
from cbtqa.ratings.scores import make_marks, scales_of
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from cbtqa.records import Record
from cbtqa.statistics.agreement import Coefficient, krippendorff_alpha

N_RESAMPLES = 500


class RaterProgress(Record):
    """One rater so far."""

    rater: str
    n_done: int = Field(ge=0)
    n_shown: int = Field(ge=0)
    n_cannot_judge: int = Field(ge=0)
    n_crisis: int = Field(ge=0)
    last_saved: str | None = None
    """UTC; None when nothing was saved yet."""


class StudyStatus(Record):
    """A study so far."""

    study: str
    raters: tuple[RaterProgress, ...]
    agreement: dict[str, Coefficient]
    """Krippendorff's alpha by criterion."""

    def rows(self) -> list[list[str]]:
        """Progress as table rows."""
        return [
            [
                one.rater,
                str(one.n_done),
                str(one.n_shown),
                str(one.n_cannot_judge),
                str(one.n_crisis),
                one.last_saved or "-",
            ]
            for one in self.raters
        ]

    def alphas(self) -> list[list[str]]:
        """Agreement as table rows; an undefined coefficient tells its reason."""
        rows = []
        for criterion, alpha in self.agreement.items():
            if alpha.value is None:
                rows.append([criterion, "-", alpha.reason or "", str(alpha.n_items)])
                continue
            has_interval = alpha.low is not None and alpha.high is not None
            interval = f"{alpha.low:.2f} to {alpha.high:.2f}" if has_interval else "-"
            rows.append([criterion, f"{alpha.value:.3f}", interval, str(alpha.n_items)])
        return rows


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
        scale.id: krippendorff_alpha(
            table_of([mark for mark in marks if mark.criterion == scale.id], folder.study.raters),
            scale.level,
            n_resamples=N_RESAMPLES,
        )
        for scale in scales_of(folder.rubric)
    }
    return StudyStatus(study=folder.study.id, raters=tuple(raters), agreement=agreement)
