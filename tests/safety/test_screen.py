"""The crisis screen against the invented lists, and what it promises about spans and reasons."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtqa.psyqa import bundled_sample_path
from cbtqa.safety.screen import screen

HERE = Path(__file__).parent


@cache
def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    return found


def sentences(name: str, *parts: str) -> list[str]:
    return [text for entry in load(name).values() for part in parts for text in entry[part]]


EXPLICIT, NEGATIVES = "explicit.zh.yaml", "hard_negatives.zh.yaml"


def test_the_lists_hold_three_hundred_different_sentences_each() -> None:
    for name in (EXPLICIT, NEGATIVES):
        texts = sentences(name, "known", "held_out")
        assert len(texts) >= 300
        assert len(set(texts)) == len(texts)


def test_explicit_intent_is_found_and_hard_negatives_are_left_alone() -> None:
    explicit = sentences(EXPLICIT, "known", "held_out")
    negatives = sentences(NEGATIVES, "known", "held_out")
    missed = [text for text in explicit if screen(text).risk != "explicit"]
    false = [text for text in negatives if screen(text).risk == "explicit"]
    n_found = len(explicit) - len(missed)
    assert n_found / len(explicit) >= 0.98, missed
    assert n_found / (n_found + len(false)) >= 0.95, false


def test_held_out_sentences_are_graded_nearly_as_well() -> None:
    explicit, negatives = sentences(EXPLICIT, "held_out"), sentences(NEGATIVES, "held_out")
    n_found = sum(screen(text).risk == "explicit" for text in explicit)
    n_false = sum(screen(text).risk == "explicit" for text in negatives)
    assert n_found / len(explicit) >= 0.90
    assert n_found / (n_found + n_false) >= 0.95


@pytest.mark.parametrize(
    ("batch", "recall", "precision"),
    [
        ("blind-A", 0.98, 0.95),
        ("blind-B", 0.98, 0.95),
        ("blind-C", 0.93, 0.95),
        ("blind-D", 0.80, 0.90),
    ],
)
def test_batches_written_without_sight_of_the_rules_are_graded(
    batch: str, recall: float, precision: float
) -> None:
    entry = load("blind.zh.yaml")[batch]
    found, false = (
        sum(screen(text).risk == "explicit" for texts in entry[kind].values() for text in texts)
        for kind in ("explicit", "harmless")
    )
    assert found / sum(map(len, entry["explicit"].values())) >= recall
    assert found / (found + false) >= precision


def test_the_bundled_sample_gets_the_grades_of_its_key() -> None:
    golden = json.loads((HERE.parent / "golden" / "sample_key.json").read_text(encoding="utf-8"))
    rows = json.loads(bundled_sample_path().read_text(encoding="utf-8"))
    graded = {
        str(row["questionID"]): screen(f"{row['question']}\n{row['description']}").risk
        for row in rows
    }
    explicit = {item for item, risk in graded.items() if risk == "explicit"}
    assert {item for item, key in golden.items() if key["risk"] == "explicit"} <= explicit
    assert graded["900009"] == "none"


@pytest.mark.parametrize("phenomenon", load(EXPLICIT))
def test_every_phenomenon_of_explicit_intent_is_covered(phenomenon: str) -> None:
    texts = load(EXPLICIT)[phenomenon]["known"]
    missed = [text for text in texts if screen(text).risk != "explicit"]
    assert len(missed) <= 0.12 * len(texts), missed


@pytest.mark.parametrize("phenomenon", load(NEGATIVES))
def test_every_phenomenon_of_hard_negatives_gets_its_grade(phenomenon: str) -> None:
    entry = load(NEGATIVES)[phenomenon]
    wrong = [text for text in entry["known"] if screen(text).risk != entry["grade"]]
    assert len(wrong) <= max(1, 0.12 * len(entry["known"])), wrong


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("我不想死。", "negated"),
        ("我朋友想自杀。", "third_person"),
        ("笑死我了。", "idiom"),
        ("《遗书》好看吗？", "quotation"),
        ("小说里女主跳楼了。", "fiction"),
        ("我以前想过自杀。", "past"),
        ("如果我自杀了会怎样？", "hypothetical"),
        ("他们让我去死。", "told_by_others"),
        ("如何预防自杀？", "topic"),
        ("听说有人跳楼了。", "news"),
    ],
)
def test_a_hit_that_does_not_count_at_face_value_says_why(text: str, outcome: str) -> None:
    screening = screen(text)
    assert screening.risk != "explicit"
    assert outcome in {hit.outcome for hit in screening.hits}


def test_spans_point_into_the_text_as_given() -> None:
    text = "最近很累。我 想 自*殺，藥都買好了"
    (hit,) = [hit for hit in screen(text).hits if hit.risk == "explicit"][:1]
    assert hit.text == text[hit.start : hit.end] == "想 自*殺"
    assert hit.rule == "act.intent"


def test_spaces_split_words_but_also_end_clauses() -> None:
    assert screen("我 想 死").risk == "explicit"
    assert screen("他上个月自杀了 我也想自杀").risk == "explicit"
    assert screen("我朋友自杀了 我很难过").risk != "explicit"


def test_present_intent_beside_another_person_or_a_negation_still_counts() -> None:
    assert screen("我朋友劝我，可是我想自杀。").risk == "explicit"
    assert screen("我不怕死，我今晚就跳楼。").risk == "explicit"
    assert screen("看到电影里他跳楼，我也想跳楼。").risk == "explicit"


def test_the_grade_of_a_text_is_that_of_its_worst_hit() -> None:
    screening = screen("笑死我了。我朋友想自杀。我也想自杀。")
    assert screening.risk == "explicit"
    assert {hit.risk for hit in screening.hits} == {"none", "concern", "explicit"}


@pytest.mark.parametrize("text", ["", " ", "\n\n", "。。。", "今天天气很好，我们去公园吧。"])
def test_a_text_without_any_trace_has_no_hits(text: str) -> None:
    assert screen(text) == screen("")
    assert screen(text).hits == ()


@settings(max_examples=200, deadline=None)
@given(
    st.text(
        alphabet=st.sampled_from("我你他想要死活不杀自跳楼了，。 *“”《》\u200b🔪&4si割殺"),
        max_size=60,
    )
)
def test_any_text_is_graded_and_every_span_is_verbatim(text: str) -> None:
    for language in ("zh", "en"):
        for hit in screen(text, language).hits:  # type: ignore[arg-type]
            assert 0 <= hit.start < hit.end <= len(text)
            assert hit.text == text[hit.start : hit.end]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["我想自杀", "我准备跳楼", "我又割腕了", "我不想活了"]),
    st.lists(
        st.sampled_from([" ", "*", "\u200b", "🌸", "…", "/", "-", "　"]), min_size=5, max_size=5
    ),
)
def test_whatever_stands_between_the_characters_the_grade_stays(
    sentence: str, noise: list[str]
) -> None:
    split = "".join(char + gap for char, gap in zip(sentence, [*noise, ""], strict=False))
    assert screen(split).risk == "explicit"


@pytest.mark.parametrize(
    "text",
    [
        "I want to kill myself tonight.",
        "I've been planning to end my life.",
        "I wrote a suicide note yesterday.",
        "I keep cutting myself.",
        "i just want to die",
        "I don't want to live anymore.",
        "I am suicidal and I have a plan.",
        "I saved up my pills.",
        "I'm going to jump off the bridge.",
        "I want to k.i.l.l myself",
    ],
)
def test_english_explicit_intent_is_found(text: str) -> None:
    assert screen(text, "en").risk == "explicit"


@pytest.mark.parametrize(
    ("text", "risk"),
    [
        ("I don't want to die.", "none"),
        ("I cut myself shaving.", "none"),
        ("I would never kill myself.", "none"),
        ("We read about suicide prevention.", "none"),
        ("In the movie he says I want to die.", "none"),
        ("I don't want to live in London.", "none"),
        ("My friend wants to commit suicide.", "concern"),
        ("I tried to end my life years ago.", "concern"),
        ("Everything feels hopeless.", "concern"),
        ("I wish I was never born.", "concern"),
    ],
)
def test_english_negatives_are_graded_as_such(text: str, risk: str) -> None:
    assert screen(text, "en").risk == risk


def test_english_sentences_of_patients_are_told_from_harmless_ones() -> None:
    """For regression: the rules have seen all of these; docs/safety.md tells how they did unseen."""
    text = (HERE / "english.yaml").read_text(encoding="utf-8")
    batches = yaml.safe_load(text)["batches"].values()
    risky = [said for batch in batches for said in batch["risk"]]
    harmless = [said for batch in batches for said in batch["harmless"]]
    missed = [said for said in risky if screen(said, "en").risk == "none"]
    false = [said for said in harmless if screen(said, "en").risk != "none"]
    assert len(missed) <= 0.06 * len(risky), missed
    assert len(false) <= 0.05 * len(harmless), false


@pytest.mark.parametrize("deed", ["I cut myself", "I burn myself", "I keep hurting myself"])
@pytest.mark.parametrize(
    "when",
    [
        *("when I can't cope", "while everyone is asleep", "on the thighs", "on a bad day"),
        *("at work", "at night", "falling asleep", "playing with a razor", "with a knife"),
    ],
)
def test_a_circumstance_does_not_make_self_harm_an_accident(deed: str, when: str) -> None:
    assert screen(f"{deed} {when}.", "en").risk == "explicit"


@pytest.mark.parametrize(
    "text",
    [
        "I'm tired of living here.",
        "I don't want to wake up when I'm upset.",
        "I never wake up for good things, I hope I never wake up for good.",
        "I don't want to live in this body.",
        "I don't want to live with this pain.",
    ],
)
def test_a_place_or_a_time_does_not_silence_a_wish(text: str) -> None:
    assert screen(text, "en").risk != "none"


@pytest.mark.parametrize(
    ("text", "risk"),
    [
        ("I just swallowed the whole box, what now", "explicit"),
        ("ive taken all my tablets and i feel weird", "explicit"),
        ("I took the whole bottle an hour ago", "explicit"),
        ("My dog swallowed the whole box of chocolates", "none"),
        ("I took the whole box of biscuits to work", "none"),
    ],
)
def test_who_has_taken_everything_is_in_danger_now(text: str, risk: str) -> None:
    assert screen(text).risk == risk
