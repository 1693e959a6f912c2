"""`cbtqa reproduce --smoke`: killed at any stage, the report is that of a run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cbtqa.cli.main import _run
from tests.support.program import run_cbtqa

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RECIPE = """
id: two
title: {en: Two backbones, zh: 两个基座}
paper: cbt-llm
backbones: {baichuan: null, llama-chinese: null}
finetune: {preset: paper, limit: 8}
generate: {decoding: card, max_new_tokens: 96}
"""
REPORTS = ("report.html", "report.md", "report.tex", "report.json")
KILLED_AT = ("training", "generate:llama-chinese: to do")
"""What the program says when it is killed: within a stage, and between two of them."""


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> None:
    for name in ("torch", "peft", "sentencepiece", "huggingface_hub", "xlsxwriter", "sacrebleu"):
        pytest.importorskip(name)


def _killed(folder: Path, at: str) -> None:
    """Runs until the program says these words on stderr, then SIGKILL."""
    words = ("reproduce", "../two.yaml", "--smoke", "--out", "run")
    said = []
    with subprocess.Popen(
        [sys.executable, "-m", "cbtqa", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stderr is not None
        for line in program.stderr:
            said.append(line)
            if at in line:
                program.send_signal(signal.SIGKILL)
                break
        program.stderr.read()
    assert program.returncode == -signal.SIGKILL, "".join(said)


def test_a_run_killed_in_two_stages_reports_byte_for_byte_what_an_unkilled_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two.yaml").write_text(RECIPE, encoding="utf-8")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    for at in KILLED_AT:
        _killed(killed, at)
    for folder in (whole, killed):
        monkeypatch.chdir(folder)
        assert _run(["reproduce", "../two.yaml", "--smoke", "--out", "run"], is_debug=True) == 0
    for name in REPORTS:
        assert (whole / "run" / name).read_bytes() == (killed / "run" / name).read_bytes(), name
    _is_a_whole_report(whole / "run")
    told = run_cbtqa("reproduce", "../two.yaml", "--smoke", "--out", "run", "--json", cwd=whole)
    stages = json.loads(told.stdout)["stages"]
    assert {one["state"] for one in stages} == {"done"}, "built-in rules judge in a smoke run"


def _is_a_whole_report(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["runs"][0]["smoke"] is True
    parts = report["parts"]
    wanted = {"table-1", "table-3", "table-4", "compared", "table-5", "losses", "rejects"}
    assert wanted | {"judged", "examples", "made"} == set(parts)
    beside = {row["system"]: row for row in parts["table-4"]["tables"][0]["rows"]}
    assert {"CBT-LLM (Baichuan-7B), reported", "baichuan", "llama-chinese"} <= set(beside)
    assert beside["baichuan"]["METEOR (0-1)"] is not None
    losses = {
        row[""] if "" in row else row["column 1"]: row
        for row in parts["losses"]["tables"][0]["rows"]
    }
    assert losses["baichuan"]["logged"] == 4
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'class="step step-5"' in page
    assert page.count("<script") == 1 and "script-src 'sha256-" in page
    assert "0 / 0" not in page, "no figure of tests where none was made"
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page
