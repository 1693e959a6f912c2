"""The notices that every card, form, report and chat page shows, from one file.

required_notices("zh")       # PsyQA's four, in order
usage_terms("en")            # intended and forbidden use
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

from cbtqa.files import parse_yaml
from cbtqa.records import NonEmptyText, Record

Locale = Literal["zh", "en"]


class Wording(Record):
    """One notice in both languages."""

    zh: NonEmptyText
    en: NonEmptyText

    def in_locale(self, locale: Locale) -> str:
        """The text in one language."""
        return self.zh if locale == "zh" else self.en


class RequiredNotice(Wording):
    """A notice that the PsyQA agreement demands."""

    id: NonEmptyText


class Notices(Record):
    """The whole file."""

    required: tuple[RequiredNotice, ...]
    not_a_therapist: Wording
    intended_use: Wording
    forbidden_use: tuple[Wording, ...]
    content_warning: Wording


class UsageTerms(Record):
    """What the data and models may and may not be used for."""

    intended: str
    forbidden: tuple[str, ...]


@cache
def load_notices() -> Notices:
    """The shipped file."""
    text = files(__package__).joinpath("notices.yaml").read_text(encoding="utf-8")
    return Notices.model_validate(parse_yaml(text))


def required_notices(locale: Locale = "zh") -> tuple[str, ...]:
    """PsyQA's four notices, in the order of its agreement."""
    return tuple(notice.in_locale(locale) for notice in load_notices().required)


def not_a_therapist(locale: Locale = "zh") -> str:
    """Says that a program speaks, not a therapist."""
    return load_notices().not_a_therapist.in_locale(locale)


def content_warning(locale: Locale = "zh") -> str:
    """Warns raters and readers before distressing items."""
    return load_notices().content_warning.in_locale(locale)


def usage_terms(locale: Locale = "zh") -> UsageTerms:
    """Intended and forbidden use."""
    notices = load_notices()
    return UsageTerms(
        intended=notices.intended_use.in_locale(locale),
        forbidden=tuple(entry.in_locale(locale) for entry in notices.forbidden_use),
    )
