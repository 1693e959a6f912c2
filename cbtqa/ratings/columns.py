"""The columns of a sheet, the same in xlsx and CSV, and the words of both.

A column's id is the field that it fills (`value:relevance`, `note`) or the text that it shows
(`code`, `answer`); ids stand in the first, hidden row, so that headings may be in any language.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from cbtqa.files import parse_yaml
from cbtqa.ratings.answers import CANNOT_JUDGE, CRISIS, EVIDENCE, NOTE, VALUE
from cbtqa.ratings.rubric import Criterion, Language, Rubric

CODE = "code"
SHOWN_PARTS = ("question", "description", "answer", "session")
META_TAB = "_cbtqa"
"""Very hidden tab that says which study, rubric and rater a sheet belongs to."""
META_KEYS = ("study", "rubric", "rater")


@dataclass(frozen=True)
class Column:
    """One column of a sheet."""

    id: str
    heading: str
    criterion: Criterion | None = None
    """Set for rating and evidence columns."""

    @property
    def is_shown(self) -> bool:
        """True for what the rater reads, False for what the rater fills in."""
        return self.id == CODE or self.id in SHOWN_PARTS


@cache
def sheet_words(language: Language) -> Mapping[str, str]:
    """The words of the sheets in this language."""
    text = (files("cbtqa.ratings") / "wording" / "sheet.yaml").read_text(encoding="utf-8")
    words: Mapping[str, str] = parse_yaml(text)[language]
    return words


def sheet_columns(rubric: Rubric, language: Language) -> list[Column]:
    """Every column in order."""
    words = sheet_words(language)
    columns = [Column(CODE, words[CODE])]
    shown = {
        "question": ("question", "description"),
        "answer": ("question", "description", "answer"),
        "transcript": ("question", "session"),
    }[rubric.shows]
    columns += [Column(name, words[name]) for name in shown]
    for criterion in rubric.criteria:
        name = criterion.name.to(language)
        columns.append(Column(f"{VALUE}:{criterion.id}", name, criterion))
        if criterion.evidence:
            heading = words["evidence"].format(name=name)
            columns.append(Column(f"{EVIDENCE}:{criterion.id}", heading, criterion))
    return columns + [Column(name, words[name]) for name in (CANNOT_JUDGE, CRISIS, NOTE)]
