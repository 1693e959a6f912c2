"""A study killed with -9 in the middle of its sessions goes on, and no turn is paid twice."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cbtqa.simulation.playing.run import run_study
from cbtqa.simulation.sessions import StudyFolder
from cbtqa.simulation.study import load_study
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok, slow
from tests.support.program import environment, program

ROOT = Path(__file__).parents[2]


def _reply(seen: Seen) -> Answer:
    """Words that depend on all that was sent, after a moment."""
    mark = hashlib.sha256(json.dumps(seen.body, sort_keys=True).encode()).hexdigest()[:10]
    return slow(ok(f"I hear you ({mark}). What happened then?"), 0.15)


def _study(path: Path, url: str) -> Path:
    arms = [{"name": f"arm{n}", "therapist": {"endpoint": url, "model": f"m{n}"}} for n in range(2)]
    study = {
        "id": "killed",
        "approach": "cbt",
        "arms": arms,
        "patients": {"ready": "test"},
        "turns": {"min": 2, "max": 6},
        "events": {"first": 1, "last": 5, "probability": 0.4},
    }
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


def _start(study: Path, out: Path) -> subprocess.Popen[bytes]:
    words = [*program(), "simulate", "run", str(study), "--out", str(out)]
    null = subprocess.DEVNULL
    return subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=null, stderr=null)


def _sessions(out: Path) -> list[dict[str, Any]]:
    """Sessions without the one field that tells when they were made."""
    found = [one.model_dump(mode="json") for one in StudyFolder(out).read_sessions()]
    for one in found:
        one["provenance"].pop("created_at")
    return found


def test_a_study_killed_at_any_turn_equals_the_whole_one_and_pays_nothing_twice(
    tmp_path: Path,
) -> None:
    with ScriptedEndpoint(_reply) as server:
        run_study(load_study(_study(tmp_path / "a.yaml", server.url)), tmp_path / "a")
        n_whole = server.n_paid
    with ScriptedEndpoint(_reply) as server:
        study, out = _study(tmp_path / "b.yaml", server.url), tmp_path / "b"
        for n_wanted in (9, 38):
            child = _start(study, out)
            while server.n_paid < n_wanted and child.poll() is None:
                time.sleep(0.002)
            child.send_signal(signal.SIGKILL)
            assert child.wait(60) == -signal.SIGKILL, "the run was over before it was killed"
        assert _start(study, out).wait(60) == 0
        # what was in flight when the process died was never acknowledged: at most that again
        assert server.n_paid_again <= 2 * 10
        assert len(server.paid) == n_whole == 60
    assert _sessions(tmp_path / "b") == _sessions(tmp_path / "a")


@pytest.mark.slow
def test_a_larger_study_killed_twice_equals_the_whole_one_byte_for_byte() -> None:
    # the script by itself plays 120 sessions and kills ten times
    script = ROOT / "scripts/bench/simulation.py"
    size = ("--arms", "3", "--patients", "2", "--replicates", "2", "--kills", "2")
    done = subprocess.run(
        [sys.executable, script, *size], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["sessions"] == 12 and len(told["rows_at_kill"]) == 2
    assert told["same_bytes"] and told["answers_made_twice"] == 0


def test_ctrl_c_keeps_what_is_finished_and_ends_with_130(tmp_path: Path) -> None:
    with ScriptedEndpoint(_reply) as server:
        study, out = _study(tmp_path / "c.yaml", server.url), tmp_path / "c"
        words = [*program(), "simulate", "run", str(study), "--out", str(out), "--in-flight", "2"]
        child = subprocess.Popen(
            words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while server.n_paid < 20 and child.poll() is None:
            time.sleep(0.002)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
        assert child.returncode == 130, said
        assert b"Traceback" not in said
        kept = _sessions(out)
        assert 2 <= len(kept) < 10 and not (out / "manifest.json").exists()
        assert all(one["stop_reason"] == "max_turns" for one in kept)
        result = run_study(load_study(study), out)
        assert result.counts["n_sessions"] == 10 and server.n_paid_again == 0
        whole = {one["id"]: one for one in _sessions(out)}
        assert all(whole[one["id"]] == one for one in kept)
