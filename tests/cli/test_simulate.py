"""`cbtqa simulate` as a user types it: the offline road from patients to rows, and exit codes."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from cbtqa.cli.main import main
from cbtqa.llm import endpoint
from cbtqa.manifest import read_manifest
from tests.support.endpoint import ScriptedEndpoint, ok


def _run(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *map(str, words)])
    shown = capsys.readouterr()
    assert ended.value.code == code, shown.err
    assert "Traceback" not in shown.err
    return json.loads(shown.out) if "--json" in words and code in (0, 4) and shown.out else shown


def test_the_offline_road_from_patients_to_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = _run(capsys, "profiles", "act", "--n", "3", "--out", "p.yaml", "--json")
    assert len(made["profiles"]) == 3 and (tmp_path / "p.yaml").exists()
    study = tmp_path / "study.yaml"
    study.write_text(
        "id: own\napproach: act\nturns: {min: 2, max: 4}\npatients: {file: p.yaml}\n"
        "arms: [{name: a, therapist: {scripted: present}}]\npairs: {rejected: {scripted: plain}}\n"
    )
    plan = _run(capsys, "run", study, "--out", "s", "--dry-run", "--json")
    assert plan["n_items"] == 3 and plan["n_done"] == 0 and not (tmp_path / "s").exists()
    played = _run(capsys, "run", study, "--out", "s", "--json")
    assert played["counts"]["n_sessions"] == 3 and not played["was_complete"]
    rows = _run(capsys, "export", "s", "--out", "e", "--json")
    assert set(rows["counts"]) >= {"sft", "orpo", "trl", "dropped"}
    assert _run(capsys, "lint", "e", "--json")["is_clean"]
    shown = _run(capsys, "run", study, "--out", "s")
    assert "nothing was asked" in shown.err and "no patient is real" in shown.err


def test_corpora_are_made_without_arguments_by_both_approaches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = _run(capsys, "corpus", "--patients", "1", "--json")
    assert written["counts"]["stops"] == {"corpus": {"written": 20}}
    acted = _run(capsys, "corpus", "--approach", "act", "--out", "act", "--json")
    assert acted["counts"]["stops"] == {"corpus": {"max_turns": 6}}


def _study_away(folder: Path, **player: str) -> Path:
    """A study whose therapist, and whose pairs, are written by a hosted model."""
    away = {"endpoint": "https://llm.example/v1", "model": "m", **player}
    study = {
        "id": "away",
        "approach": "act",
        "patients": {"ready": "archetypes", "n": 1},
        "arms": [{"name": "a", "therapist": away}],
        "pairs": {"rejected": away},
    }
    (folder / "away.yaml").write_text(yaml.safe_dump(study))
    return folder / "away.yaml"


def _study_here(folder: Path) -> Path:
    """One short session, played by built-in rules."""
    path = folder / "here.yaml"
    path.write_text(
        "id: here\napproach: act\nturns: {min: 2, max: 2}\npatients: {ready: archetypes, n: 1}\n"
        "arms: [{name: a, therapist: {scripted: present}}]\n"
    )
    return path


@pytest.mark.parametrize("verb", ["run", "corpus", "export", "profiles", "judge"])
def test_text_leaves_the_machine_only_with_acknowledgement(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CBTQA_API_KEY", "invented-key")
    if verb in ("export", "judge"):
        _run(capsys, "run", _study_here(tmp_path), "--out", "s")
    away = _study_away(tmp_path)
    at = ("--endpoint", "https://llm.example/v1", "--model", "m")
    words: dict[str, tuple[str | Path, ...]] = {
        "run": (away, "--out", "o"),
        "corpus": (away, "--out", "o"),
        "export": ("s", "--serve", away, "--arm", "a", "--out", "o"),
        "profiles": ("act", "--n", "1", "--out", "o/p.yaml", *at),
        "judge": ("s", "--instrument", "ctrs", "--out", "o", *at),
    }
    shown = _run(capsys, verb, *words[verb], code=7)
    said = " ".join(shown.err.split())
    assert "would be sent to llm.example. PsyQA's user agreement forbids" in said
    assert "add --acknowledge-disclosure to this command (recorded in the manifest" in said
    assert not (tmp_path / "o").exists()
    if verb in ("run", "corpus", "judge"):
        _run(capsys, verb, *words[verb], "--dry-run")


def test_an_acknowledgement_is_recorded_with_what_was_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(endpoint, "is_local", lambda url: False)
    monkeypatch.setenv("CBTQA_API_KEY", "invented-key")
    numbers = count()
    with ScriptedEndpoint(lambda seen: ok(f"Go on, {next(numbers)}.")) as server:
        study = _study_away(tmp_path, endpoint=server.url)
        _run(capsys, "run", study, "--out", "s", code=7)
        assert not server.requests
        # the server of this test has no certificate
        allowed = ("--acknowledge-disclosure", "--allow-plain-http")
        _run(capsys, "run", study, "--out", "s", *allowed)
        _run(capsys, "export", "s", "--out", "e", *allowed)
    for folder in ("s", "e"):
        told = read_manifest(tmp_path / folder).acknowledgements
        assert set(told) == {"notice", "disclosure"} and "127.0.0.1" in told["disclosure"]


def test_a_study_names_a_variable_for_keys_or_one_that_the_user_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_TOKEN", "invented-token")
    with ScriptedEndpoint(ok("Go on."), key="invented-token") as server:
        study = _study_away(tmp_path, endpoint=server.url, key_env="LAB_TOKEN")
        shown = _run(capsys, "run", study, "--out", "s", code=3)
        assert "'LAB_TOKEN' is no variable for a key" in " ".join(shown.err.split())
        assert not server.requests and not (tmp_path / "s").exists()
        monkeypatch.setenv("CBTQA_KEY_VARIABLES", "LAB_TOKEN")
        _run(capsys, "run", study, "--out", "s")


def test_confounds_are_printed_and_end_with_code_4(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("tahir-act-as-published")
    shown = _run(capsys, "lint", path, code=4)
    assert "training.teacher differs" in shown.out and "early" in shown.out
    report = _run(capsys, "lint", path, "--json", code=4)
    assert not report["is_clean"] and len(report["findings"]) == 10


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("run", "missing.yaml"), 4, "no such file"),
        (("run", "--arm", "wise"), 3, "no arm 'wise'"),
        (("lint", "missing"), 4, "no such file"),
        (("export", "missing"), 4, "holds no study.json"),
        (("profiles", "mine.yaml"), 4, "mine.yaml:profiles[0].nmae: unknown key"),
        (("profiles", "cbd"), 3, "no attribute table"),
    ],
)
def test_wrong_words_end_with_a_line_and_a_code(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("profiles:\n- {id: a, nmae: A, narrative: One.}\n")
    shown = _run(capsys, *words, code=code)
    assert message in shown.err.replace("\n", " ")
