"""What a rule file may hold, and what its author is told."""

from __future__ import annotations

import pytest

from cbtqa.errors import DataError
from cbtqa.safety.matching import find
from cbtqa.safety.rules import compile_rules

RULES = """
words: {act: [甲乙, 丙丁]}
sounds: {乙: [yi]}
self: 我
third: 他
contexts:
  negated: {outcome: negated, left: '不$'}
families:
  - id: test
    anchors: [<act>了]
    misspelled: [甲乙]
    default: concern
    cases:
      - {use: negated}
      - {id: own, risk: explicit, left: '想$', subject: [self]}
"""


def rules_of(text: str) -> list[tuple[str, str, str]]:
    book = compile_rules(RULES, "zh", "test.yaml")
    return [(p.case.rule, p.case.risk, text[p.start : p.end]) for p in find(book, text)]


def test_the_first_fitting_case_decides_and_the_default_comes_last() -> None:
    assert rules_of("我想甲乙了") == [("test.own", "explicit", "想甲乙了")]
    assert rules_of("我不丙丁了") == [("test.negated", "none", "不丙丁了")]
    assert rules_of("丙丁了") == [("test.mentioned", "concern", "丙丁了")]
    assert rules_of("他想甲乙了") == [("test.mentioned", "concern", "甲乙了")]


def test_other_spellings_are_looked_for_beside_the_words_own() -> None:
    assert rules_of("我想甲yi") == [("test.own", "explicit", "想甲yi")]
    assert rules_of("我想甲乙") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("self: 我", "self: '('", "bad regex"),
        ("use: negated", "use: nothing", "unknown context 'nothing'"),
        ("<act>了", "<nobody>了", "unknown words <nobody>"),
        ("default: concern", "default: high", "rule file"),
        ("outcome: negated", "outcom: negated", "rule file"),
        ("'想$'", "'殺$'", "cannot match"),
        ("families:", "families: [", "not YAML"),
    ],
)
def test_a_broken_rule_file_names_the_file_and_the_fault(old: str, new: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        compile_rules(RULES.replace(old, new), "zh", "my-rules.yaml")
    assert str(caught.value.where).partition(":")[0] == "my-rules.yaml"
    assert caught.value.exit_code == 4
