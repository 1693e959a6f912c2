"""The dated help lines and the required notices."""

from __future__ import annotations

import datetime
import re
from typing import get_args

import pytest

from cbtqa.records import Danger
from cbtqa.safety.answers import check_answer
from cbtqa.safety.notices import (
    help_text,
    load_hotlines,
    load_notices,
    not_a_therapist,
    required_notices,
    stale_warning,
    usage_terms,
)


def test_the_national_line_is_not_marked_as_round_the_clock() -> None:
    lines = {line.number: line for line in load_hotlines().locales["zh"].lines}
    assert not lines["12356"].is_round_the_clock
    assert lines["010-82951332"].is_round_the_clock


def test_every_number_in_a_help_text_is_in_the_file() -> None:
    for lines in load_hotlines().locales.values():
        for text in (*lines.text.values(), *lines.by_danger.values()):
            for number in re.findall(r"\d[\d -]+\d", text):
                assert re.sub("[ -]", "", number) in lines.numbers


@pytest.mark.parametrize("locale", ["zh", "en"])
@pytest.mark.parametrize("danger", get_args(Danger))
def test_a_danger_has_a_text_that_begins_with_what_to_do_now_and_passes_our_own_check(
    locale, danger
) -> None:
    text = help_text(locale, danger=danger)
    emergency = [one.number for one in load_hotlines().locales[locale].emergencies]
    # the emergency number stands in the first half: the reader may not come further
    assert any(number in text[: len(text) // 2 + 20] for number in emergency)
    assert len(text) <= (200 if locale == "zh" else 560)
    assert check_answer(text, "explicit", locale) == ()
    assert any(danger in line.dangers for line in load_hotlines().locales[locale].lines)


def test_in_explicit_danger_the_emergency_number_comes_first_without_an_if() -> None:
    for locale, number in (("zh", "120"), ("en", "911")):
        first = re.split("[，。,.(（]", help_text(locale, "answer"))[0]  # type: ignore[arg-type]
        assert number in first and not re.search("如果|[Ii]f", first)


@pytest.mark.parametrize(
    ("answer", "locale"),
    [
        ("可以拨打12345或妇联的12338问问。", "zh"),
        ("In the UK call Samaritans on 116 123 or Childline on 0800 1111.", "en"),
        ("Call 800-799-7233, or (800) 799-7233.", "en"),
        ("Call 1-833-852-6262.", "en"),
    ],
)
def test_a_number_of_the_file_is_known_however_it_is_spaced(answer: str, locale) -> None:
    assert check_answer(answer, "none", locale) == ()


def test_a_closed_line_is_an_unknown_number() -> None:
    (problem,) = check_answer("Call 1-800-931-2237.", "none", "en")
    assert problem.rule == "unknown_number"


@pytest.mark.parametrize("answer", ["可以拨打12345。", "可以拨打12338，妇联会帮你。"])
def test_a_line_that_is_no_crisis_route_is_no_answer_to_explicit_danger(answer: str) -> None:
    assert [one.rule for one in check_answer(answer, "explicit")] == ["no_help_route"]


def test_numbers_checked_too_long_ago_are_warned_about() -> None:
    hotlines = load_hotlines()
    last = hotlines.checked_on + datetime.timedelta(days=hotlines.stale_after_days)
    assert stale_warning(last) is None
    warning = stale_warning(last + datetime.timedelta(days=1))
    assert warning is not None and str(hotlines.checked_on) in warning


def test_psyqa_s_four_notices_stand_in_both_languages() -> None:
    assert [notice.id for notice in load_notices().required] == [
        "mutual_help",
        "source",
        "reference_only",
        "authorisation",
    ]
    for locale in ("zh", "en"):
        assert len(set(required_notices(locale))) == 4  # type: ignore[arg-type]
    assert "壹心理" in required_notices("zh")[1]


def test_terms_name_what_is_forbidden() -> None:
    terms = usage_terms("en")
    assert any("screening" in entry for entry in terms.forbidden)
    assert len(terms.forbidden) == len(usage_terms("zh").forbidden)
    assert "not a therapist" in not_a_therapist("en")
