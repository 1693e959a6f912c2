"""Templates and what they are given. Every text goes through autoescape, none is Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import groupby
from typing import Any

from cbtqa.files import shipped_yaml
from cbtqa.ratings.answers import Answer, is_done
from cbtqa.ratings.rubric import Criterion, Language
from cbtqa.ratings.study import Presentation, StudyFolder
from cbtqa.web.pages import asset, render

PACKAGE = "cbtqa.ratings.web"
MARK_KEYS = "1234567890qwertyuiopasdhjklzvm"
"""Keys of marks in order; those of the form's own actions (b c f g n x) are left out."""
FEW_POINTS = 4
"""Up to so many points each gets a button with its words; above, a row of numbers."""

_ANSWER_DATA = ("values", "evidence", "note", "cannot_judge", "crisis")
_CRITERION_DATA = {"id", "kind", "low", "high", "required", "evidence"}
_SAVING_WORDS = ("saving", "saved", "unsaved", "unsaved_note", "link_dead", "refused")
_WORDS_OF_SCRIPT = (*_SAVING_WORDS, "stay", "progress")


@cache
def form_words(language: Language) -> Mapping[str, Any]:
    words: Mapping[str, Any] = shipped_yaml("cbtqa.ratings", "wording/form.yaml")[language]
    return words


def render_form(template: str, language: Language, title: str, **values: Any) -> str:
    """A page of the form."""
    words = form_words(language)
    return render(PACKAGE, template, language, words, title, style="form.css", **values)


def render_welcome(
    folder: StudyFolder, rater: str, answers: Mapping[str, Answer], language: Language
) -> str:
    """Where a rater lands: what to do, the guide, and all items at a glance."""
    shown = folder.shown_to(rater)
    cells = [(p.order, is_done(folder, answers.get(p.code))) for p in shown]
    n_done = sum(done for _, done in cells)
    first_open = next((number for number, done in cells if not done), 1)
    return render_form(
        "welcome.html.j2",
        language,
        title_of(folder, language),
        rater=rater,
        cells=cells,
        n_done=n_done,
        n_total=len(cells),
        first_open=first_open,
        rubric=folder.rubric,
    )


def render_item(
    folder: StudyFolder,
    shown: Presentation,
    answers: Mapping[str, Answer],
    csrf: str,
    language: Language,
) -> str:
    plan = folder.shown_to(shown.rater)
    n_done = sum(is_done(folder, answers.get(p.code)) for p in plan)
    data = {
        **_item_data(folder, shown, answers.get(shown.code, Answer())),
        "csrf": csrf,
        "next": f"/item/{shown.order + 1}" if shown.order < len(plan) else "/",
        "words": {name: form_words(language)[name] for name in _WORDS_OF_SCRIPT},
    }
    return render_form(
        "item.html.j2",
        language,
        title_of(folder, language),
        shown=shown,
        item=folder.item_of(shown),
        rubric=folder.rubric,
        groups=_groups(folder),
        mark_keys=data["mark_keys"],
        few_points=FEW_POINTS,
        data=data,
        script=asset(PACKAGE, "form.js"),
        is_last=shown.order == len(plan),
        n_done=n_done,
        n_total=len(plan),
    )


def _item_data(folder: StudyFolder, shown: Presentation, answer: Answer) -> dict[str, Any]:
    marks = (mark.id for mark in folder.rubric.marks)
    return {
        "study": folder.study.id,
        "rater": shown.rater,
        "code": shown.code,
        "previous": f"/item/{shown.order - 1}" if shown.order > 1 else "/",
        "criteria": [one.model_dump(include=_CRITERION_DATA) for one in folder.rubric.criteria],
        "mark_keys": dict(zip(marks, MARK_KEYS, strict=False)),
        "answer": {name: getattr(answer, name) for name in _ANSWER_DATA},
    }


def title_of(folder: StudyFolder, language: Language) -> str:
    return folder.study.title or folder.rubric.title.to(language)


def _groups(folder: StudyFolder) -> list[tuple[str | None, list[Criterion]]]:
    """Runs of criteria under the id of their section, in the rubric's order."""
    runs = groupby(folder.rubric.criteria, lambda criterion: criterion.section)
    return [(section, list(own)) for section, own in runs]
