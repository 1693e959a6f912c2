"""Patients: drawn the same everywhere, read with errors that name file and field, told by models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cbtqa.errors import ConfigError, DataError, IncompleteRunError
from cbtqa.llm.chat import Fault, Reply
from cbtqa.records import Reason
from cbtqa.simulation.draws import Draw, seed_of
from cbtqa.simulation.patients import (
    MOST_STORY_WORDS,
    PatientSettings,
    make_patients,
    read_story,
    story_parts,
)
from cbtqa.simulation.profiles import (
    archetypes,
    draw_profiles,
    load_table,
    read_profiles,
    ready_profiles,
)
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok


def test_draws_are_fixed_for_all_time() -> None:
    # the hash by coreutils' b2sum -l 64; other values here would change every published study
    assert seed_of("session", 7, "test-ines", 1, 1) == 0xA111AE79B7B8FDC0 >> 33
    assert [Draw("a", n).number(0, 99) for n in range(6)] == [68, 29, 55, 57, 35, 64]
    assert Draw("a", 1).pick("abcdef", 3) == ["a", "e", "b"]


def test_more_patients_move_none_of_the_earlier_ones() -> None:
    assert draw_profiles("cbt", 30, seed=1)[:10] == draw_profiles("cbt", 10, seed=1)
    assert draw_profiles("cbt", 10, seed=1) != draw_profiles("cbt", 10, seed=2)


@pytest.mark.parametrize("table", ["cbt", "act"])
def test_drawn_patients_keep_to_their_table_and_their_story_names_what_was_drawn(
    table: str,
) -> None:
    rules = load_table(table).attributes
    for profile in draw_profiles(table, 60, seed=3):
        assert set(profile.attributes) == set(rules)
        for key, values in profile.attributes.items():
            low, high = rules[key].draw
            assert low <= len(values) <= high and len(set(values)) == len(values)
            assert set(values) <= set(rules[key].options)
        told = [
            key for key in profile.attributes if profile.attributes[key][0] in profile.narrative
        ]
        assert len(told) >= len(rules) - 2
        assert "$" not in profile.narrative


def test_the_published_numbers_of_options_and_draws() -> None:
    # arXiv 2412.00251: bands and draws as its repository has them
    cbt = load_table("cbt").attributes
    sizes = {"age": 6, "gender": 5, "ethnicity": 6, "education": 5, "occupation": 6}
    sizes |= {"severity": 3, "engagement": 3}
    many = ("life_events", "family", "hobbies", "support", "personality", "coping")
    sizes |= dict.fromkeys(many, 20)
    assert {key: len(cbt[key].options) for key in sizes} == sizes
    draws = {key: cbt[key].draw for key in ("life_events", "hobbies", "personality", "coping")}
    assert draws == {
        "life_events": (1, 3),
        "hobbies": (2, 5),
        "personality": (2, 4),
        "coping": (2, 4),
    }
    assert len(load_table("cbt").contents) == 11
    # arXiv 2509.09712
    act = load_table("act").attributes
    expected = {"occupation": 13, "issue": 10, "life_event": 10, "personality": 8, "coping": 12}
    expected |= {"background": 8, "relationship": 5, "support": 6, "style": 9}
    assert {key: len(act[key].options) for key in expected} == expected
    assert len(load_table("act").contents["presenting"].tells) == 7


def test_every_archetype_is_drawn_equally_often_and_tells_how_to_behave() -> None:
    drawn = [profile.archetype for profile in draw_profiles("act", 40, seed=0)]
    assert {drawn.count(name) for name in archetypes()} == {10}
    assert all(profile.behaviour for profile in ready_profiles("archetypes"))
    assert [profile.archetype for profile in ready_profiles("archetypes")] == list(archetypes())


def test_ready_patients_are_five_with_whole_stories() -> None:
    found = ready_profiles("test")
    assert len({profile.id for profile in found}) == 5
    assert all(len(profile.narrative.split()) > 60 for profile in found)


def test_an_unknown_key_is_named_with_file_profile_and_field(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "profiles:\n- {id: a, name: A, narrative: One.}\n- {id: b, name: B, narative: Two.}\n"
    )
    with pytest.raises(DataError, match=r"mine\.yaml:profiles\[1\]\.narative") as caught:
        read_profiles(path)
    assert caught.value.hint == "did you mean 'narrative'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profiles:\n- {id: a, name: A}\n", r"profiles\[0\]:narrative"),
        ("profiles:\n- {id: a b, name: A, narrative: One.}\n", r"profiles\[0\]:id"),
        ("profiles:\n- {id: a, name: A, narrative: One., archetype: x}\n", "archetype: one of"),
        ("profiles: []\n", "expected a list"),
        ("people: []\n", "expected a list"),
        ("profiles: [\n", "not YAML"),
        (
            "profiles:\n- {id: a, name: A, narrative: One.}\n- {id: a, name: B, narrative: Two.}\n",
            "two profiles have the id 'a'",
        ),
    ],
)
def test_damaged_profiles_are_refused_with_their_place(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_profiles(path)


def test_own_profiles_need_no_quotes_and_no_lists(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("profiles:\n- {id: a, name: A, narrative: One., attributes: {age: 41}}\n")
    assert read_profiles(path)[0].attributes == {"age": ("41",)}


def test_drawn_patients_survive_the_way_through_yaml(tmp_path: Path) -> None:
    path = tmp_path / "drawn.yaml"
    drawn = make_patients(PatientSettings(source="act", n=4, out=path))
    assert read_profiles(path) == drawn
    assert make_patients(PatientSettings(source=str(path))) == drawn


def _story(seen: Seen) -> Answer:
    """A story for every content; the first reply about the second patient leaves one out."""
    shape = story_parts(load_table("cbt"))
    told = {key: f"About {key} there is this to say, in a few plain words." for key in shape}
    if "cbt-0-0002" in _ids[seen.user_text] and len(seen.body["messages"]) == 2:
        del told["strengths"]
    return ok(json.dumps(told))


class _Ids(dict[str, str]):
    """User text to the id of the patient whose name and attributes stand in it."""

    def __missing__(self, text: str) -> str:
        for profile in draw_profiles("cbt", 3, seed=0):
            if all(value in text for values in profile.attributes.values() for value in values):
                return profile.id
        return ""


_ids = _Ids()


def test_a_model_tells_stories_that_leave_no_content_out(tmp_path: Path) -> None:
    with ScriptedEndpoint(_story) as server:
        settings = PatientSettings(
            source="cbt", n=3, out=tmp_path / "told.jsonl", endpoint=server.url, model="m"
        )
        told = make_patients(settings)
        assert server.n_paid == 4, "one story was asked for again"
        complaint = server.requests[-1].last_text
        assert "strengths" in complaint and "0 words" in complaint
        again = settings.model_copy(update={"overwrite": True})
        assert make_patients(again) == told
        assert server.n_paid == 4, "what was told is not paid twice"
    assert all("strengths" in profile.narrative for profile in told)
    plain = draw_profiles("cbt", 3, seed=0)
    assert [one.attributes for one in told] == [one.attributes for one in plain]
    assert told[0].provenance is not None and told[0].provenance.endpoint_host == "127.0.0.1"


def test_a_story_tells_risk_and_what_is_held_back_and_is_capped_in_all() -> None:
    table = load_table("cbt")
    told = {key: f"About {key} there is little to say." for key in story_parts(table)}

    def read(**changes: str) -> str | Fault:
        return read_story(Reply(json.dumps(told | changes), finish_reason="stop"), table)

    assert "About held_back" in str(read()) and "About risk" in str(read())
    without = {key: text for key, text in told.items() if key != "risk"}
    assert isinstance(read_story(Reply(json.dumps(without)), table), Fault)
    long = read(**dict.fromkeys(list(told)[:5], "word " * 100))
    assert isinstance(long, Fault) and long.reason is Reason.STEP_TOO_LONG
    assert f"at most {MOST_STORY_WORDS}" in long.detail


def test_patients_without_a_story_are_named_and_the_others_kept(tmp_path: Path) -> None:
    def script(seen: Seen) -> Answer:
        return ok("no JSON") if _ids[seen.user_text] == "cbt-0-0001" else _story(seen)

    with ScriptedEndpoint(script) as server:
        settings = PatientSettings(
            source="cbt", n=3, out=tmp_path / "told.jsonl", endpoint=server.url, model="m"
        )
        with pytest.raises(IncompleteRunError, match=r"1 patients got no story.*cbt-0-0001"):
            make_patients(settings)
    assert [one.id for one in read_profiles(tmp_path / "told.jsonl")] == [
        "cbt-0-0002",
        "cbt-0-0003",
    ]


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no attribute table 'cbd'"):
        draw_profiles("cbd", 1, 0)
