"""Taxonomies: names, merges, maps, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbtqa.distortions.taxonomy import (
    is_no_distortion,
    load_taxonomy,
    map_labels,
    shipped_taxonomies,
)
from cbtqa.errors import DataError
from cbtqa.records import DistortionLabel


def label(type_id: str) -> DistortionLabel:
    return DistortionLabel(id=type_id, evidence="原话", labeller="test", confidence=0.5)


@pytest.mark.parametrize(
    ("name", "n_types"),
    [
        ("burns-10", 10),
        ("shreevastava-foltz-10", 10),
        ("c2d2-7", 7),
        ("socialcd-12", 12),
        ("cbt-llm-5", 5),
        ("binary", 1),
    ],
)
def test_each_shipped_taxonomy_has_as_many_types_as_its_name_says(name: str, n_types: int) -> None:
    taxonomy = load_taxonomy(name)
    assert len(taxonomy.types) == n_types
    assert name in shipped_taxonomies()
    for entry in taxonomy.types:
        assert all(taxonomy.find(alias) is entry for alias in entry.names), entry.id
        assert entry.example not in entry.definition


@pytest.mark.parametrize(
    ("name", "taxonomy", "expected"),
    [
        ("读心术", "burns-10", "jumping_to_conclusions"),
        ("先知错误", "burns-10", "jumping_to_conclusions"),
        ("灾难化", "burns-10", "magnification"),
        ("灾难化", "cbt-llm-5", "catastrophizing"),
        (" Black-and-White ", "c2d2-7", "all_or_nothing"),
        ("“应该”句式", "socialcd-12", "should"),
        ("Fortune-telling", "shreevastava-foltz-10", "fortune_telling"),
        ("罪责归他", "burns-10", None),
        ("读心术", "cbt-llm-5", "mind_reading"),
        ("随便什么", "burns-10", None),
    ],
)
def test_a_name_finds_its_type_whatever_its_case_and_marks(name, taxonomy, expected) -> None:
    found = load_taxonomy(taxonomy).find(name)
    assert (found.id if found else None) == expected


def test_the_finer_id_stays_reachable_where_burns_merges() -> None:
    burns = load_taxonomy("burns-10")
    assert burns.finer_ids("jumping_to_conclusions") == ("mind_reading", "fortune_telling")
    assert burns.zh_name("mind_reading") == "读心术"
    assert burns.zh_name("personalization") == "个人化"


def test_a_map_lifts_finer_labels_and_says_which_it_drops() -> None:
    given = [label("labeling"), label("mind_reading"), label("blaming_others")]
    labels, dropped = map_labels(given, load_taxonomy("burns-10"))
    assert [entry.id for entry in labels] == ["labeling", "jumping_to_conclusions"]
    assert all(entry.evidence == "原话" for entry in labels)
    assert dropped == ("blaming_others",)


def test_a_broad_label_is_dropped_rather_than_guessed_narrower() -> None:
    given = [label("jumping_to_conclusions")]
    assert map_labels(given, load_taxonomy("c2d2-7")) == ((), ("jumping_to_conclusions",))


def test_everything_maps_to_binary_and_a_foreign_label_is_refused() -> None:
    binary = load_taxonomy("binary")
    for name in shipped_taxonomies():
        taxonomy = load_taxonomy(name)
        labels, dropped = map_labels([label(type_id) for type_id in taxonomy.ids], binary)
        assert len(labels) == len(taxonomy.ids) and not dropped
    with pytest.raises(DataError, match="'laziness' is not a type of binary"):
        map_labels([label("laziness")], binary)


def test_the_names_for_no_distortion_are_known() -> None:
    assert all(map(is_no_distortion, ("无", "No Distortion", "非扭曲", " none ", "0")))
    assert not is_no_distortion("读心术")


def test_a_file_of_your_own_inherits_known_concepts(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "id: two\ntitle: t\ncitation: c\ntypes: [{id: labeling}, {id: should, zh: 必须}]"
    )
    taxonomy = load_taxonomy(str(path))
    assert taxonomy.ids == ("labeling", "should")
    assert taxonomy.types[1].zh == "必须"
    assert taxonomy.types[0].definition


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id: x\ntypes: [", "not YAML"),
        ("id: x", "a list `types`"),
        ("id: x\ntitle: t\ncitation: c\ntypes: [{id: made_up}]", "Field required"),
        ("id: x\ntitle: t\ncitation: c\ntypes: [labeling]", "needs an `id`"),
        (
            "id: x\ntitle: t\ncitation: c\ntypes: [{id: labeling}, {id: should, zh: 贴标签}]",
            "belongs to both",
        ),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        load_taxonomy(str(path))
    assert str(path) in str(error.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="no taxonomy 'beck'") as error:
        load_taxonomy("beck")
    assert "burns-10" in str(error.value.hint)
