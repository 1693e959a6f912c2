"""The notices and help lines that cards, forms, reports and the chat show, from YAML files."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from functools import cache
from typing import Literal, get_args

from pydantic import model_validator

from cbtqa.errors import ConfigError
from cbtqa.files import shipped_yaml
from cbtqa.records import Danger, NonEmptyText, Record

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
    """The whole of `notices.yaml`."""

    required: tuple[RequiredNotice, ...]
    not_a_therapist: Wording
    answer_withheld: Wording
    no_answer: Wording
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
    return Notices.model_validate(shipped_yaml(__package__, "notices.yaml"))


def required_notices(locale: Locale = "zh") -> tuple[str, ...]:
    """PsyQA's four notices, in the order of its agreement."""
    return tuple(notice.in_locale(locale) for notice in load_notices().required)


def not_a_therapist(locale: Locale = "zh") -> str:
    """Statement that a program speaks, not a therapist."""
    return load_notices().not_a_therapist.in_locale(locale)


def answer_withheld(locale: Locale = "zh") -> str:
    """What the asker reads where an answer is not shown because it is unsafe."""
    return load_notices().answer_withheld.in_locale(locale)


def no_answer(locale: Locale = "zh") -> str:
    """What the asker reads where the model gave no whole answer."""
    return load_notices().no_answer.in_locale(locale)


def content_warning(locale: Locale = "zh") -> str:
    """Warning for raters and readers before distressing items."""
    return load_notices().content_warning.in_locale(locale)


def usage_terms(locale: Locale = "zh") -> UsageTerms:
    """Intended and forbidden use."""
    notices = load_notices()
    return UsageTerms(
        intended=notices.intended_use.in_locale(locale),
        forbidden=tuple(entry.in_locale(locale) for entry in notices.forbidden_use),
    )


Style = Literal["short", "answer", "page"]
"""`short` is one sentence, `answer` a paragraph inside a reply, `page` a footer for readers."""


class Line(Record):
    """One help line."""

    id: NonEmptyText
    name: NonEmptyText
    number: NonEmptyText
    extension: str | None = None
    hours: NonEmptyText
    is_round_the_clock: bool
    """True only where the source says so; answers must not promise it otherwise."""
    coverage: NonEmptyText
    source: NonEmptyText
    checked_on: datetime.date | None = None
    """None: on the day of the whole file."""
    dangers: tuple[Danger, ...] = ()
    """Classes of danger that it serves."""
    is_for_crisis: bool = True
    """False where it is no route for somebody who may take their life."""


class Emergency(Record):
    """A general emergency number."""

    name: NonEmptyText
    number: NonEmptyText


class LocaleLines(Record):
    """Lines, emergency numbers and ready texts of one locale."""

    region: NonEmptyText
    lines: tuple[Line, ...]
    emergencies: tuple[Emergency, ...]
    text: dict[Style, NonEmptyText]
    by_danger: dict[Danger, NonEmptyText]
    """What a reader in this danger gets: what to do now first, then who helps."""

    @property
    def numbers(self) -> frozenset[str]:
        """Every number of this locale as digits only, also without the 1 of North America."""
        return _digits_of([*self.lines, *self.emergencies])

    @property
    def crisis_numbers(self) -> frozenset[str]:
        """Those that are a route for somebody who may take their life."""
        return _digits_of([*(one for one in self.lines if one.is_for_crisis), *self.emergencies])

    @model_validator(mode="after")
    def _texts_exist(self) -> LocaleLines:
        missing = {*get_args(Style), *get_args(Danger)} - {*self.text, *self.by_danger}
        if missing:
            raise ValueError(f"no text for {sorted(missing)}")
        return self


def _digits_of(numbered: Iterable[Line | Emergency]) -> frozenset[str]:
    digits = {"".join(char for char in one.number if char.isdigit()) for one in numbered}
    return frozenset(digits | {one[1:] for one in digits if len(one) == 11 and one[0] == "1"})


class Hotlines(Record):
    """The whole of `hotlines.yaml`."""

    checked_on: datetime.date
    stale_after_days: int
    locales: dict[Locale, LocaleLines]


@cache
def load_hotlines() -> Hotlines:
    """The shipped file."""
    return Hotlines.model_validate(shipped_yaml(__package__, "hotlines.yaml"))


def help_text(
    locale: Locale = "zh", style: Style = "short", *, danger: Danger | None = None
) -> str:
    """A text that names help routes, for answers and pages.

    Args:
        danger: the text is that of this class, whatever the style.

    Raises:
        ConfigError: no such locale, style or danger.
    """
    try:
        lines = load_hotlines().locales[locale]
        return lines.text[style] if danger is None else lines.by_danger[danger]
    except KeyError as error:
        raise ConfigError(f"no help text for {error} ({locale}, {danger or style})") from None


def stale_warning(today: datetime.date | None = None) -> str | None:
    """A sentence when the numbers were last checked too long before `today`, else None."""
    hotlines = load_hotlines()
    age = ((today or datetime.date.today()) - hotlines.checked_on).days
    if age <= hotlines.stale_after_days:
        return None
    return (
        f"help lines were last checked on {hotlines.checked_on} ({age} days ago): "
        "verify every number before relying on it"
    )
