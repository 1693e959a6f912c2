"""Reading gold sets: quirks of the public files, and what is refused with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cbtqa.distortions.importers import data_formats, read_gold
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.errors import DataError, UsageError

SOCIALCD_HEAD = "\t".join([*(entry.zh for entry in load_taxonomy("socialcd-12").types), "内容"])


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_a_binary_set_is_told_by_its_columns_and_repeats_are_counted(tmp_path: Path) -> None:
    text = "text\tdistorted\n我很没用\t1\n天气不错\t0\n我很没用\t1\n天气不错\t1\n"
    gold = read_gold(write(tmp_path / "a.tsv", text))
    assert gold.name == "cogdis"
    assert [sorted(item.types) for item in gold.items] == [["distorted"], []]
    assert (gold.n_rows, gold.n_duplicates, gold.n_contradictions) == (4, 1, 1)
    assert "PsyQA" in gold.licence
    assert gold.items[0].where.endswith("a.tsv:2")


def test_a_column_for_each_type_may_stand_in_a_gbk_file(tmp_path: Path) -> None:
    row = "\t".join(["0"] * 4 + ["1"] + ["0"] * 4 + ["1"] + ["0"] * 2 + ["他们都笑我笨"])
    path = write(tmp_path / "b.tsv", f"{SOCIALCD_HEAD}\n{row}\n", "gbk")
    with pytest.raises(DataError, match="not utf-8") as error:
        read_gold(path)
    assert "--encoding gb18030" in str(error.value.hint)
    gold = read_gold(path, encoding="gb18030")
    assert gold.name == "socialcd"
    assert gold.items[0].types == {"mind_reading", "labeling"}
    assert gold.matrix.shape == (1, 12)


def test_a_column_name_with_blanks_and_a_second_type_are_read(tmp_path: Path) -> None:
    text = (
        "Id_Number, Patient Question,Distorted part,Dominant Distortion,"
        "Secondary Distortion (Optional)\n"
        "1,I always fail,always,Overgeneralization,Fortune-telling\n"
        "2,Hello,,No Distortion,\n"
        "3,It was tiny,,Magnification/Minimization,\n"
    )
    gold = read_gold(write(tmp_path / "c.csv", text))
    assert gold.name == "therapist"
    assert [sorted(item.types) for item in gold.items] == [
        ["fortune_telling", "overgeneralization"],
        [],
        ["magnification"],
    ]


def test_a_situation_goes_before_the_thought(tmp_path: Path) -> None:
    rows = [{"id": 7, "situation": "S.", "thoughts": "T.", "distortions": ["mind reading"]}]
    gold = read_gold(write(tmp_path / "d.json", json.dumps(rows)))
    assert gold.name == "cbt-bench"
    assert (gold.items[0].id, gold.items[0].text) == ("7", "S.\nT.")


def test_labels_of_our_own_output_are_read_back(tmp_path: Path) -> None:
    row = {"id": "1", "text": "甲", "labels": [{"id": "should", "evidence": "甲"}]}
    gold = read_gold(write(tmp_path / "e.jsonl", json.dumps(row)), form="plain")
    assert gold.items[0].types == {"should"}


def test_one_of_seven_types_by_name(tmp_path: Path) -> None:
    text = "thought,label\n她在笑我,读心术\n吃饭了,非扭曲\n都怪我,个人化\n"
    gold = read_gold(write(tmp_path / "f.csv", text), form="c2d2")
    assert [sorted(item.types) for item in gold.items] == [
        ["mind_reading"],
        [],
        ["personalization"],
    ]


@pytest.mark.parametrize(
    ("text", "form", "message", "where"),
    [
        ("text,labels\n甲,懒惰\n", "plain", "'懒惰' is not a type of burns-10", "x.csv:2:labels"),
        ("text,labels\n甲,should\n ,should\n", "plain", "the text is empty", "x.csv:3:text"),
        ("text,distorted\n甲,2\n", "cogdis", "'2' is not a type of binary", "x.csv:2:distorted"),
        ("text,other\n甲,2\n", "plain", "no column for the labels", "x.csv:1"),
        ("nothing,here\n甲,2\n", "auto", "cannot tell the data set", "x.csv:1"),
        ("内容,读心术\n甲,1\n", "socialcd", "no column for: .*非此即彼", "x.csv:1"),
        ("text,labels\n", "auto", "holds no rows", "x.csv"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path, text, form, message, where) -> None:
    path = write(tmp_path / "x.csv", text)
    with pytest.raises(DataError, match=message) as error:
        read_gold(path, form=form)
    assert where in str(error.value)


def test_a_cell_that_is_neither_yes_nor_no_is_refused(tmp_path: Path) -> None:
    row = "\t".join(["0"] * 11 + ["x", "正文"])
    with pytest.raises(DataError, match="expected 0 or 1, found 'x'") as error:
        read_gold(write(tmp_path / "g.tsv", f"{SOCIALCD_HEAD}\n{row}\n"))
    assert "g.tsv:2:罪责归他" in str(error.value)


def test_an_unknown_format_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no format 'xml'") as error:
        read_gold(write(tmp_path / "h.csv", "text,labels\n甲,should\n"), form="xml")
    assert all(name in str(error.value.hint) for name in data_formats())


def test_the_hash_follows_texts_and_types(tmp_path: Path) -> None:
    first = read_gold(write(tmp_path / "1.csv", "text,labels\n甲,should\n"))
    same = read_gold(write(tmp_path / "2.csv", "id,text,labels\n9,甲,应该式陈述\n"))
    other = read_gold(write(tmp_path / "3.csv", "text,labels\n甲,无\n"))
    assert first.sha256 == same.sha256 != other.sha256
