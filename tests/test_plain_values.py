"""JSON and YAML give plain values or a sentence with the line."""

from __future__ import annotations

import re

import pytest

from cbtqa.errors import DataError
from cbtqa.plain_values import parse_yaml

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, now in zip("abcdefg", "bcdefgh", strict=True)
)


def test_names_and_dates_are_text_as_they_stand() -> None:
    text = "1: a\nno: b\n2026-02-30: 2026-13-99\n~: 0x10\nlist: [1_000, 1.5, yes, '2', null]\n"
    assert parse_yaml(text) == {
        "1": "a",
        "no": "b",
        "2026-02-30": "2026-13-99",
        "~": 16,
        "list": [1000, 1.5, True, "2", None],
    }


def test_aliases_and_merged_objects_are_read_and_own_values_go_first() -> None:
    text = "base: &b {x: 1, y: 2}\nmade:\n  y: 3\n  <<: *b\nagain: [*b]\n"
    assert parse_yaml(text)["made"] == {"x": 1, "y": 3}
    assert parse_yaml(text)["again"] == [{"x": 1, "y": 2}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "f.yaml:2: the name 'seed' is given twice"),
        ("a: {b: 1,\n  b: 2}\n", "f.yaml:2: the name 'b' is given twice"),
        ("[1, 2]: x\n", "f.yaml:1: expected text as a name"),
        (BOMB, "f.yaml:5: the aliases repeat more than 100,000 values"),
        ("&a [*a]\n", "f.yaml:1: nothing before it is named &a"),
        ("- " * 400 + "x\n", "f.yaml:1: nested more than 100 levels"),
        ("[" * 50_000, "f.yaml:1: "),
        ("a: .inf\n", "f.yaml:1: expected a finite number, found .inf"),
        (f"a: {'9' * 5_000}\n", "f.yaml:1: cannot be read as int"),
        ("a: !!python/object/apply:os.getcwd []\n", "f.yaml:1: the type"),
        ("a: !!binary aGk=\n", "f.yaml:1: the type"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: a second document begins here"),
        ("a: [\n", "f.yaml:1: not YAML"),
        ("a: \x00\n", "f.yaml: not YAML"),
    ],
    ids=lambda text: text[:24],
)
def test_what_is_not_plain_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        parse_yaml(text, "f.yaml")
