"""The Slurm job files as a node runs them, with stand-ins for Slurm, vLLM and curl on the PATH.

The stand-in for cbtqa writes its words down and ends with a code of the test's choice; the words
must be a command that the program takes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import typer

from cbtqa.cli.main import app
from tests.support.sources import ROOT

SLURM = ROOT / "recipes/slurm"
COMMANDS = {
    "srun": 'exec "$@"',
    "scontrol": 'echo "$*" >> scontrol.said',
    "curl": "until [ -e vllm.key ]; do sleep 0.02; done",
    "cbtqa": 'printf "%s\\n" "$@" > cbtqa.said; echo "$CBTQA_API_KEY" > key; exit "${ENDS_WITH:-0}"',
    "vllm": 'echo "$VLLM_API_KEY" > vllm.key; exec sleep 60',
}


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A folder with the programs that a job file calls, in `bin`."""
    (tmp_path / "bin").mkdir()
    for name, text in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    return tmp_path


def run(node: Path, name: str, **more: str) -> int:
    """The job file's exit code."""
    env = {**os.environ, "PATH": f"{node / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    words = ["bash", str(SLURM / name)]
    return subprocess.run(words, cwd=node, env={**env, **more}, timeout=60).returncode


def words_said(node: Path) -> list[str]:
    """What cbtqa was called with, once the program's own parser has taken it."""
    words = (node / "cbtqa.said").read_text().splitlines()
    verb = typer.main.get_command(app).get_command(None, words[0])  # type: ignore[attr-defined]
    verb.make_context(words[0], words[1:])
    return words


def test_each_array_task_tunes_the_backbone_of_its_number(node: Path) -> None:
    assert run(node, "finetune.sbatch", DATASET="runs/psyqa", SLURM_ARRAY_TASK_ID="3") == 0
    words = words_said(node)
    assert words[:4] == ["finetune", "runs/psyqa", "--backbone", "weights/qwen"]
    assert words[-2:] == ["--out", "runs/tuned-qwen"]
    assert not (node / "scontrol.said").exists()


@pytest.mark.parametrize(
    ("ends_with", "restarts", "is_requeued"),
    [("6", "0", True), ("6", "20", False), ("5", "0", False), ("0", "0", False)],
)
@pytest.mark.parametrize("name", ["finetune.sbatch", "build.sbatch"])
def test_only_what_can_be_resumed_is_requeued_and_not_for_ever(
    name: str, ends_with: str, restarts: str, is_requeued: bool, node: Path
) -> None:
    given = {"DATASET": "d", "QUESTIONS": "q.json", "MODEL": "m", "SLURM_ARRAY_TASK_ID": "0"}
    given |= {"ENDS_WITH": ends_with, "SLURM_RESTART_COUNT": restarts, "VLLM": str(node)}
    assert run(node, name, **given) == int(ends_with)
    said = node / "scontrol.said"
    assert (said.read_text() if said.exists() else "") == "requeue 4711\n" * is_requeued


def test_the_build_asks_the_server_that_it_started_with_its_key(node: Path) -> None:
    assert run(node, "build.sbatch", QUESTIONS="q.json", MODEL="m", VLLM=str(node)) == 0
    words = words_said(node)
    assert words[words.index("--endpoint") + 1] == "http://127.0.0.1:24711/v1"
    key = (node / "key").read_text()
    assert len(key) > 30 and key == (node / "vllm.key").read_text()


def test_a_server_that_does_not_start_ends_the_job(node: Path) -> None:
    (node / "bin/vllm").write_text("#!/usr/bin/env bash\nexit 1\n")
    (node / "bin/curl").write_text("#!/usr/bin/env bash\nsleep 0.2; exit 1\n")
    assert run(node, "build.sbatch", QUESTIONS="q.json", MODEL="m", VLLM=str(node)) == 5
