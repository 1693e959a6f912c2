"""The trained models: what they read, what they were fitted on, and how they do on what is held out."""

from __future__ import annotations

import hashlib
import io
import re
import runpy
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cbtqa.safety
from cbtqa.safety.normalise import fold
from cbtqa.safety.screen import DANGERS, screen
from cbtqa.safety.sentence_model import MOST_TOKENS, read_clauses, read_windows, shipped_model

ROOT = Path(__file__).parents[2]
ORDINARY = "今天去公园散步，看了很多花。明天还要上班，中午约了同事吃面。"


@cache
def trainer() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts/train_safety"))


@pytest.mark.parametrize(
    ("model", "files"), [("screen", "SCREEN_FILES"), ("answers", "ANSWER_FILES")]
)
def test_a_model_was_fitted_on_the_corpus_beside_it(model: str, files: str) -> None:
    path = Path(cbtqa.safety.__file__).parent / f"{model}_model.npz"
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
        fitted_on = str(arrays["corpus_sha256"])
    content = b"".join((ROOT / "data/safety" / name).read_bytes() for name in trainer()[files])
    assert fitted_on == hashlib.sha256(content).hexdigest(), "run scripts/train_safety"


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "data/safety").glob("*.tsv")))
def test_a_corpus_is_whole_and_half_of_it_harmless(name: str) -> None:
    lines = list(trainer()["read_lines"](name))
    grades = Counter(line.grade for line in lines)
    harmless = grades["none"] + grades["safe"]
    assert 0.45 < harmless / len(lines) < 0.62
    assert set(grades) in ({"none", "concern", "explicit"}, {"safe", "unsafe"})
    assert len({(line.question, line.text) for line in lines}) == len(lines)
    for line in lines:
        marks = re.sub("[^⟦⟧]", "", line.marked)
        assert marks == "⟦⟧" * (len(marks) // 2), line
        assert not (marks and line.grade in ("none", "safe")), line
    assert 0.05 < sum(line.is_held_out for line in lines) / len(lines) < 0.16


def test_the_corpora_are_as_large_as_told() -> None:
    n = {name: sum(1 for _ in trainer()["read_lines"](name)) for name in trainer()["SCREEN_FILES"]}
    assert n["crisis.zh.tsv"] >= 6000
    assert n["crisis.en.tsv"] >= 3000


def test_a_sentence_is_graded_by_itself_and_its_place_is_told() -> None:
    said = "遗书写完了，今晚就走。"
    text = ORDINARY * 4 + said + ORDINARY * 4
    screening = screen(text)
    assert screening.risk == "explicit"
    assert any(hit.risk == "explicit" and hit.text in said + "\n" for hit in screening.hits)
    assert screen(ORDINARY * 8).risk == "none"


def test_windows_cover_the_text_and_none_is_longer_than_the_model_has_seen() -> None:
    text = fold("我今天" + "去了很远的地方，" * 60 + "然后回来了。好累。真的。")
    windows = read_windows(text, ())
    seen = {place for window in windows for place in range(window.start, window.end)}
    assert {place for place, char in enumerate(text) if char.isalnum()} <= seen
    assert max(len(window.codes) for window in windows) <= MOST_TOKENS + 12
    together = [one for one in windows if text[one.start : one.end].endswith("好累。真的。")]
    assert together


def test_probabilities_of_a_group_add_up_to_one() -> None:
    scores = shipped_model("screen").scores(read_windows(fold(ORDINARY), ()))
    assert len(scores) == 1 + len(DANGERS)
    for group in scores:
        assert group.shape[1] == 3
        np.testing.assert_allclose(group.sum(axis=1), 1)


@pytest.mark.parametrize(
    "text",
    [
        "最近都挺好的，放假回家了，but honestly i'm going to kill myself tonight，不说了。",
        "wo xiang si，真的撑不下去了，我想死",
    ],
)
def test_the_half_that_decides_may_be_in_the_other_language(text: str) -> None:
    assert screen(text).risk == "explicit"


def test_held_out_texts_are_graded_as_well_as_the_documentation_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Floors a little below the figures of docs/safety.md: a worse model must not slip in."""
    trainer()["held_out"]()
    printed = capsys.readouterr().out
    recalls = [
        float(one) for one in re.findall(r"model and rules *explicit: recall ([0-9.]+)", printed)
    ]
    precisions = [float(one) for one in re.findall(r"recall [0-9.]+, precision ([0-9.]+)", printed)]
    assert len(recalls) == 2
    assert recalls[0] >= 0.62
    assert recalls[1] >= 0.25
    assert precisions[0] >= 0.68 and precisions[2] >= 0.64


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("他昨晚又掐我脖子，说我敢走就打断我的腿", "violence"),
        ("继父趁我睡着的时候摸我，我不敢跟妈妈说", "sexual_abuse"),
        ("脑子里有个声音一直叫我去开煤气", "psychosis"),
        ("我把碳酸锂停了，四天没合眼，点子多得停不下来", "mania"),
        ("每顿饭后都去催吐，上周在地铁上晕倒了", "eating"),
    ],
)
def test_another_danger_is_found_with_its_class(text: str, kind: str) -> None:
    assert kind in {danger.kind for danger in screen(text).dangers}


def test_a_hand_that_is_raised_is_violence_and_no_suicide() -> None:
    """动手 was read as a plan of somebody else's, and a shove against a wall as intent."""
    text = "丈夫动手打人怎么办？\n他喝了酒就动手，昨晚又把我推到墙上，我不敢跟娘家说。"
    screening = screen(text)
    assert screening.risk == "none"
    assert "violence" in {danger.kind for danger in screening.dangers}


@pytest.mark.parametrize(
    "text",
    [
        "高三压力大，怎么安排复习？",
        "婆婆说话难听，我跟她吵了一架。",
        "健身教练让我少吃碳水，可以吗？",
    ],
)
def test_an_ordinary_question_beside_a_danger_is_none(text: str) -> None:
    assert screen(text).dangers == ()


@pytest.mark.parametrize(
    ("text", "is_minor"),
    [
        ("我今年十五岁，爸妈总吵架。", True),
        ("本人高二，成绩下滑。", True),
        ("i'm 14 and my parents fight a lot", True),
        ("我女儿今年十五岁，不肯上学。", False),
        ("我十五岁那年父亲去世了，如今我四十了。", False),
        ("我是高三班主任，学生压力大。", False),
        ("when i was 14 my dad left", False),
    ],
)
def test_a_minor_is_who_says_so_of_himself_now(text: str, is_minor: bool) -> None:
    assert screen(text).is_minor is is_minor


def test_clauses_are_read_alone_and_with_their_neighbour() -> None:
    folded = fold("今晚早点躺下休息，药先停两天再看看，明天记得量体温。只有一句话的句子。")
    spans = [folded[one.start : one.end] for one in read_clauses(folded)]
    assert spans == [
        fold("今晚早点躺下休息，"),
        fold("药先停两天再看看，"),
        fold("明天记得量体温。"),
        fold("今晚早点躺下休息，药先停两天再看看，"),
        fold("药先停两天再看看，明天记得量体温。"),
    ]
