"""The dated help lines and the required notices."""

from __future__ import annotations

import datetime

from cbtqa.safety.notices import (
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
    import re

    for lines in load_hotlines().locales.values():
        for text in lines.text.values():
            for number in re.findall(r"\d[\d-]{2,}", text):
                assert number.replace("-", "") in lines.numbers


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
