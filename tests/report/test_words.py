"""Numbers as people read them: the same everywhere, and `-` where there is none."""

from __future__ import annotations

import pytest

from cbtqa.report import words


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0, "< 0.0001"),
        (0.00009999, "< 0.0001"),
        (0.0001, "0.0001"),
        (0.03404, "0.0340"),
        (1.0, "1.0000"),
    ],
)
def test_a_p_value_has_four_decimals_and_is_never_zero(p: float, text: str) -> None:
    assert words.p_value(p) == text
    assert words.p_relation(p) == (text if text.startswith("<") else f"= {text}")


def test_what_has_no_value_is_a_dash_whatever_it_would_have_been() -> None:
    shows = (
        *(words.number, words.count, words.share, words.signed, words.p_value, words.money),
        *(words.seconds, words.size, words.general, words.digits(3)),
    )
    assert {show(None) for show in shows} == {"-"}
    assert words.interval(None, 1.0) == "-"
    assert words.estimate(None, None, None) == "-"


def test_zero_has_no_sign_however_it_came_about() -> None:
    assert words.number(-0.0001) == words.signed(-0.0001) == words.signed(0.0) == "0.00"
    assert [words.signed(value) for value in (0.214, -0.214)] == ["+0.21", "-0.21"]
    assert words.number(-1234.5, 1) == "-1,234.5"


def test_intervals_are_in_brackets_and_written_as_their_value() -> None:
    assert words.estimate(26.5, 25.12, 27.9) == "26.50 [25.12, 27.90]"
    assert words.estimate(-0.2, -0.5, 0.1, words.signed) == "-0.20 [-0.50, +0.10]"
    assert words.estimate(26.5, None, None) == "26.50"


def test_counts_shares_money_time_and_sizes_read_naturally() -> None:
    assert words.count(22327) == "22,327"
    assert words.share(0.5436) == "54.4%"
    assert words.count_of(6, 11) == "6 (54.5%)"
    assert words.count_of(0, 0) == "0"
    assert words.money(1234.5, "CNY") == "1,234.50 CNY"
    shown = [words.money(value) for value in (0.0034, 0.05, 0.1, 0.0, None)]
    assert shown == ["0.0034", "0.050", "0.10", "0.00", "-"]
    assert [words.seconds(value) for value in (45, 720, 11100)] == ["45 s", "12 min", "3 h 05 min"]
    assert [words.size(n) for n in (512, 2**20 * 12.5, 2**30 * 13.9)] == [
        "512 bytes",
        "12.5 MiB",
        "13.9 GiB",
    ]
