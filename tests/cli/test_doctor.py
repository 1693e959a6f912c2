"""`cbtqa doctor` names every fault with its fix, and fails for what was asked for alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cbtqa.cli import doctor
from cbtqa.cli.main import main
from cbtqa.hub.plan import AGREEMENT_ENDED
from cbtqa.psyqa import bundled_sample_path
from tests.support.endpoint import ScriptedEndpoint, failed, ok

KEY = "sk-a1b2c3d4-never-show-this"


class Ended(NamedTuple):
    code: int
    checks: dict[str, dict[str, Any]]
    found: dict[str, Any]


@pytest.fixture
def look(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command and gives its checks by name."""
    monkeypatch.setenv("CBTQA_API_KEY", KEY)

    def run(*words: object) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *map(str, words), "--json"])
        found = json.loads(capsys.readouterr().out)
        checks = {one["name"]: one for one in found["checks"]}
        return Ended(int(ended.value.code or 0), checks, found)

    return run


Look = Callable[..., Ended]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "1", "question": "最近总是睡不好怎么办？"}\n', encoding="utf-8")
    return path


def test_a_machine_that_runs_the_tests_is_ready_and_every_note_has_a_fix(look: Look) -> None:
    ended = look()
    assert (ended.code, ended.found["is_ready"], ended.found["n_failed"]) == (0, True, 0)
    assert {"Python", "packages", "card", "fonts", "browser", "extra train"} <= ended.checks.keys()
    for name, one in ended.checks.items():
        assert (one["status"] == "ok") == (one["fix"] is None), name


def test_what_is_not_installed_fails_only_when_it_is_asked_for(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cbtqa.cli import env

    def absent_or_old(name: str) -> str | None:
        return {"bitsandbytes": None, "starlette": "0.1"}.get(name, "999")

    monkeypatch.setattr(env, "_version", absent_or_old)
    ended = look()
    assert ended.code == 0
    assert ended.checks["extra qlora"]["status"] == "note"
    assert "accelerate 999, wanted <2" in ended.checks["extra train"]["found"]
    asked = look("--for", "rate", "--for", "qlora")
    assert asked.checks["extra rate"]["status"] == "failed"
    assert "starlette 0.1, wanted >=1" in asked.checks["extra rate"]["found"]
    assert asked.checks["extra qlora"]["fix"] == "pip install 'cbtqa[qlora]'"


def test_a_full_disk_is_a_fault_and_small_room_for_weights_only_with_training(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 << 30))
    assert look().checks["disk, Hugging Face cache"]["status"] == "note"
    assert look().checks["disk, current folder"]["status"] == "ok"
    assert look("--for", "train").checks["disk, Hugging Face cache"]["status"] == "failed"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    ended = look()
    assert (ended.code, ended.checks["disk, current folder"]["status"]) == (3, "failed")


def test_a_server_is_ready_when_it_answers_and_its_key_is_never_shown(look: Look) -> None:
    with ScriptedEndpoint(lambda seen: ok("ready")) as server:
        ended = look("--endpoint", server.url, "--model", "m")
        assert ended.code == 0 and ended.checks["endpoint"]["status"] == "ok"
        assert "m at 127.0.0.1 answered" in ended.checks["endpoint"]["found"]
        (seen,) = server.requests
        assert seen.body["max_tokens"] == 16
    gone = look("--endpoint", server.url, "--model", "m")
    assert gone.code == 5 and "cannot connect" in gone.checks["endpoint"]["found"]
    with ScriptedEndpoint(lambda seen: failed(404, f"no model m for {KEY}")) as server:
        ended = look("--endpoint", server.url, "--model", "m")
    assert ended.code == 5 and "no model m" in ended.checks["endpoint"]["found"]
    assert KEY not in json.dumps(ended.found)
    unnamed = look("--endpoint", "vllm")
    assert unnamed.code == 3 and unnamed.checks["endpoint"]["fix"] == "add --model NAME"


def test_a_file_is_read_and_its_agreement_has_a_day(look: Look, questions: Path) -> None:
    ended = look(questions)
    assert ended.code == 0 and "1 usable of 1 rows" in ended.checks["questions"]["found"]
    assert ended.checks["agreement"]["status"] == "note"
    assert AGREEMENT_ENDED in ended.checks["agreement"]["found"]
    assert look(questions, "--agreement-until", "2999-01-31").checks["agreement"]["status"] == "ok"
    over = look(questions, "--agreement-until", AGREEMENT_ENDED)
    assert (over.code, over.checks["agreement"]["status"]) == (7, "failed")
    assert "agreement" not in look(bundled_sample_path()).checks  # invented: nobody's permission
    missing = look(questions.with_name("none.json"))
    assert missing.code == 4 and "none.json" in missing.checks["questions"]["found"]


def test_settings_are_read_as_the_verb_reads_them(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\nlerning_rate: 0.1\n", encoding="utf-8")
    ended = look("--settings", f"finetune={path}")
    assert ended.code == 3
    told = ended.checks["settings of finetune"]["found"]
    assert f"{path}:2: unknown setting 'lerning_rate', did you mean 'learning_rate'?" in told
    path.write_text("level: both\n", encoding="utf-8")
    assert look("--settings", f"distortions label={path}").code == 0
    assert look("--settings", f"no-verb={path}").code == 2
    monkeypatch.setenv("CBTQA_MODLE", "qwen")
    monkeypatch.setenv("CBTQA_LIMIT", "3")
    told = [one["found"] for one in look().found["checks"] if one["name"] == "environment"]
    assert told == ["CBTQA_LIMIT: a setting", "CBTQA_MODLE: no command has such a setting"]


def test_a_machine_without_a_browser_is_told_of_the_tunnel(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here() -> Any:
        raise doctor.webbrowser.Error

    monkeypatch.setattr(doctor.webbrowser, "get", none_here)
    browser = look().checks["browser"]
    assert browser["status"] == "note" and "ssh -L" in browser["fix"]
