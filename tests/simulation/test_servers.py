"""Ways of sending of the simulation's verbs: several servers, of which one may die; batches."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cbtqa.cli.main import main
from cbtqa.files import read_jsonl
from cbtqa.llm.chat import Sampling
from cbtqa.records import ItemRating
from cbtqa.simulation.instruments import load_instrument
from cbtqa.simulation.judging.task import SessionJudge
from cbtqa.simulation.patients import PatientSettings, StoryTask, story_parts
from cbtqa.simulation.profiles import Profile, load_table, read_profiles
from cbtqa.simulation.sessions import StudyFolder
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, cut_connection, ok, slow
from tests.support.judged_sessions import instrument_in, reply


def _said(seen: Seen) -> Answer:
    """Words that depend on all that was sent, after a moment."""
    mark = hashlib.sha256(json.dumps(seen.body, sort_keys=True).encode()).hexdigest()[:10]
    return slow(ok(f"I hear you ({mark}). What happened then?"), 0.02)


def _dies_after(n: int) -> Callable[[Seen], Answer]:
    return lambda seen: _said(seen) if seen.number < n else slow(cut_connection(), 0.005)


def _study(folder: Path, endpoint: object = "vllm") -> Path:
    player = {"endpoint": endpoint, "model": "m"}
    study = {
        "id": "served",
        "approach": "cbt",
        "arms": [{"name": "arm", "therapist": player}],
        "patient": player | {"model": "p"},
        "patients": {"ready": "test", "n": 4},
        "turns": {"min": 2, "max": 6},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


N_TURNS = 4 * 2 * 6
"""Of all sessions of the study."""


def _run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *map(str, words)])
    return int(ended.value.code or 0)


def _at(*servers: ScriptedEndpoint) -> list[str]:
    return [word for server in servers for word in ("--endpoint", server.url)]


def _transcripts(out: Path) -> dict[str, Any]:
    """The turns of every session, and how it ended."""
    found = StudyFolder(out).read_sessions()
    return {one.id: (one.turns, one.stop_reason, one.seed) for one in found}


@pytest.mark.parametrize("n_in_flight", [1, 64])
def test_a_study_whose_server_dies_has_the_transcripts_of_one_server(
    tmp_path: Path, n_in_flight: int
) -> None:
    study = _study(tmp_path)
    with ScriptedEndpoint(_said) as alone:
        assert _run("run", study, "--out", tmp_path / "one", *_at(alone)) == 0
        assert alone.n_paid == N_TURNS
    with ScriptedEndpoint(_dies_after(9)) as dies, ScriptedEndpoint(_said) as lives:
        words = ("--out", tmp_path / "two", "--in-flight", n_in_flight, *_at(dies, lives))
        assert _run("run", study, *words) == 0
        assert dies.n_paid == 9 and lives.n_paid == N_TURNS - 9
    assert _transcripts(tmp_path / "two") == _transcripts(tmp_path / "one")


def test_each_server_brings_places_of_its_own(tmp_path: Path) -> None:
    study = _study(tmp_path)
    with ScriptedEndpoint(_said) as one, ScriptedEndpoint(_said) as other:
        words = ("run", study, "--out", tmp_path / "s", "--in-flight", 2, *_at(one, other))
        assert _run(*words) == 0
        assert min(one.n_paid, other.n_paid) > 10
        asked = sorted(one.requests + other.requests, key=lambda seen: seen.at_s)
    # all four sessions begin at once, each with its patient
    assert [seen.body["model"] for seen in asked[:4]] == ["p"] * 4


def test_a_dry_run_of_two_servers_takes_half_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [f"http://127.0.0.1:{port}/v1" for port in (1, 2)]
    took = []
    for named in (servers[:1], servers):
        words = ("run", _study(tmp_path), "--in-flight", 2, "--dry-run", "--json")
        assert _run(*words, *(word for url in named for word in ("--endpoint", url))) == 0
        took.append(json.loads(capsys.readouterr().out)["seconds"])
    assert took[0] == pytest.approx(2 * took[1]) and took[1] > 0


def test_a_study_file_may_name_several_servers_of_a_player(tmp_path: Path) -> None:
    with ScriptedEndpoint(_said) as one, ScriptedEndpoint(_said) as other:
        study = _study(tmp_path, [one.url, other.url])
        assert _run("run", study, "--out", tmp_path / "s") == 0
        assert min(one.n_paid, other.n_paid) > 5
        assert _run("run", study, "--out", tmp_path / "s") == 0
        assert one.n_paid + other.n_paid == N_TURNS


@pytest.mark.parametrize("verb", ["run", "corpus"])
@pytest.mark.parametrize(
    "way",
    [("--cluster", "local"), ("--transport", "batch-api"), ("--endpoint", "batch-files:FOLDER")],
)
def test_a_way_for_independent_requests_is_refused_with_the_reason(
    tmp_path: Path, verb: str, way: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(verb, _study(tmp_path), "--out", tmp_path / "s", *way) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{' '.join(way).removesuffix(' local')}: it takes requests that are independent" in said
    assert "a turn of a session needs the reply before it" in said
    assert not (tmp_path / "s").exists()


def test_files_of_requests_named_in_a_study_are_refused_for_players(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("run", _study(tmp_path, f"batch-files:{tmp_path}/b"), "--out", tmp_path / "s") == 3
    assert "players are asked one by one" in capsys.readouterr().err


@pytest.mark.parametrize("endpoint", [5, ["vllm", 5], {"url": "vllm"}])
def test_what_is_no_address_is_told_once_with_its_field(
    tmp_path: Path, endpoint: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("run", _study(tmp_path, endpoint), "--out", tmp_path / "s") == 3
    said = capsys.readouterr().err
    assert "arms.0.therapist.endpoint: expected an address or a preset" in said
    assert said.count("error: ") == 2, "one for the therapist, one for the patient"


def test_a_server_named_twice_is_one_server(tmp_path: Path) -> None:
    study = _study(tmp_path)
    with ScriptedEndpoint(_said) as server:
        assert _run("run", study, "--out", tmp_path / "s", *_at(server, server)) == 0
        assert _run("run", study, "--out", tmp_path / "s", *_at(server)) == 0
        assert server.n_paid == N_TURNS


# --- requests that are independent of one another: every way of sending ---------------------------


def _told(seen: Seen) -> Answer:
    """A patient's story that depends on all that was sent."""
    mark = hashlib.sha256(json.dumps(seen.body["messages"]).encode()).hexdigest()[:10]
    parts = story_parts(load_table("cbt"))
    return slow(
        ok(json.dumps({one: f"Of {one} there is this to say, {mark}." for one in parts})), 0.02
    )


def _stories(path: Path) -> list[tuple[str, str]]:
    return [(one.id, one.narrative) for one in read_profiles(path)]


def test_stories_come_out_alike_from_one_server_from_two_and_from_a_batch(tmp_path: Path) -> None:
    words = ("profiles", "cbt", "--n", 12, "--model", "m", "--out")
    with ScriptedEndpoint(_told) as one, ScriptedEndpoint(_dies_after(0)) as dead:
        assert _run(*words, tmp_path / "one.jsonl", *_at(one)) == 0
        n_paid = one.n_paid
        two = (tmp_path / "two.jsonl", *_at(dead, one), "--in-flight", 2)
        assert _run(*words, *two) == 0 and one.n_paid == 2 * n_paid
        batch = (tmp_path / "batch.jsonl", *_at(one), "--transport", "batch-api")
        assert _run(*words, *batch, "--no-wait") == 6 and len(one.batches) == 1
        codes = [_run(*words, *batch, "--overwrite") for _ in range(2)]
        assert codes[-1] == 0 and len(one.batches) == 1
    stories = _stories(tmp_path / "one.jsonl")
    assert len(stories) == 12
    assert stories == _stories(tmp_path / "two.jsonl") == _stories(tmp_path / "batch.jsonl")


def test_a_judge_that_the_study_names_is_asked_over_the_transport_of_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbtqa.llm.openai_batch.POLL_S", 0.01)

    def rated(seen: Seen) -> Answer:
        return ok(reply(instrument_in(seen), evidence="I hear you"))

    with ScriptedEndpoint(_said) as server:
        assert _run("run", _study(tmp_path, server.url), "--out", tmp_path / "s") == 0
    found = []
    with ScriptedEndpoint(rated) as one, ScriptedEndpoint(rated) as other:
        declared = json.loads((tmp_path / "s/study.json").read_text())
        judge = {"endpoint": [one.url, other.url], "model": "j"}
        for way, endpoint in {"http": judge["endpoint"], "batch-api": one.url}.items():
            judges = [{"player": judge | {"endpoint": endpoint}, "repeats": 2}]
            (tmp_path / "s/study.json").write_text(json.dumps(declared | {"judges": judges}))
            out = ("--instrument", "ctrs", "--no-safety", "--out", tmp_path / way)
            assert _run("judge", tmp_path / "s", *out, "--in-flight", 1, "--transport", way) == 0
            rows = read_jsonl(tmp_path / way / "ctrs/j/ratings.jsonl", ItemRating)
            found.append([(row.session_id, row.item, row.repeat, row.value) for row in rows])
            if way == "http":
                assert one.n_paid and other.n_paid and one.n_paid + other.n_paid == 8
        assert len(one.batches) == 1 and not other.batches
    assert found[0] == found[1] and all(value == 3 for *_, value in found[0])


def test_what_an_actor_of_a_cluster_is_handed_can_be_sent_there() -> None:
    rubric = load_instrument("ctrs").rubric
    judge = SessionJudge(rubric, rubric.id, Sampling(), "m", "h", "judge_session")
    assert pickle.loads(pickle.dumps(judge)).fingerprint() == judge.fingerprint()
    patient = Profile(id="p", name="Kim", narrative="Kim, 31.", table="cbt")
    teller = StoryTask(PatientSettings(endpoint=("vllm",), model="m", out=Path("p.yaml")))
    assert pickle.loads(pickle.dumps(teller)).request(patient) == teller.request(patient)
