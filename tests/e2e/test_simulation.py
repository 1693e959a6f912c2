"""The whole loop with a tiny model: corpus, rows, SFT and ORPO with and without COT, sessions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cbtqa.records import Session
from cbtqa.simulation.sessions import StudyFolder
from tests.support.program import run_cbtqa
from tests.support.tiny_models import write_tiny_model

PROMPT = """---
id: short_therapist
version: 1
language: en
variables: [intake, course, format, ending, opening]
output: text
source: invented for this test; short, for a model that reads bytes
---

# system
$intake
$course
$format
$ending

# user
$opening
"""
FORMS = ("plain", "cot")
OBJECTIVES = ("sft", "orpo")


def _write_corpus_file(folder: Path) -> Path:
    (folder / "short.md").write_text(PROMPT, encoding="utf-8")
    corpus = {
        "id": "corpus",
        "seed": 3,
        "approach": "act",
        "prompt": str(folder / "short.md"),
        "arms": [{"name": "corpus", "therapist": {"scripted": "present"}, "reasoning": "cot"}],
        "patients": {"draw": "act", "n": 3},
        "turns": {"min": 2, "max": 2},
        "end_token": False,
        "pairs": {"rejected": {"scripted": "lecturing"}},
    }
    path = folder / "corpus.yaml"
    path.write_text(yaml.safe_dump(corpus), encoding="utf-8")
    return path


def _finetune(folder: Path, form: str, objective: str) -> None:
    # in this process: one start of torch instead of four
    from cbtqa.settings import resolve
    from cbtqa.tuning.settings import FinetuneSettings
    from cbtqa.tuning.training.finetune import finetune

    flags = {
        "data": folder / form / objective / "train.jsonl",
        "backbone": str(folder / "base"),
        "objective": objective,
        "out": folder / f"{objective}-{form}",
        "max_steps": 1,
        "batch_size": 1,
        "max_length": 4000,
        "n_samples": 0,
        "rank": 4,
    }
    made = finetune(resolve(FinetuneSettings, flags=flags, environ={}))
    assert made.manifest.counts["train"]["n_items"] > 0


def _write_study_file(folder: Path) -> Path:
    arms = [
        {
            "name": f"{objective}-{form}",
            "therapist": {
                "adapter": str(folder / f"{objective}-{form}"),
                "temperature": 1.0,
                "max_tokens": 12,
            },
            "reasoning": form,
        }
        for objective in OBJECTIVES
        for form in FORMS
    ]
    study = yaml.safe_load((folder / "corpus.yaml").read_text(encoding="utf-8"))
    study |= {"id": "tuned", "arms": arms, "cut_replies": "keep", "attempts": 1}
    study["patients"]["n"] = 1
    del study["pairs"]
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_corpus_becomes_four_adapters_that_play_sessions_again(tmp_path: Path) -> None:
    run_cbtqa("simulate", "corpus", _write_corpus_file(tmp_path), "--out", "corpus", cwd=tmp_path)
    write_tiny_model(tmp_path / "base", max_position_embeddings=8192)
    for form in FORMS:
        words = ("--reasoning", form, "--out", form, "--json")
        made = run_cbtqa("simulate", "export", "corpus", *words, cwd=tmp_path)
        counts = json.loads(made.stdout)["counts"]
        assert counts["sft"]["train"] == 2 and counts["orpo"]["train"] == 2
        for objective in OBJECTIVES:
            _finetune(tmp_path, form, objective)
    study = _write_study_file(tmp_path)
    run_cbtqa("simulate", "run", study, "--out", "played", cwd=tmp_path)
    sessions = {one.arm: one for one in StudyFolder(tmp_path / "played").read_sessions()}
    assert set(sessions) == {"sft-plain", "sft-cot", "orpo-plain", "orpo-cot"}
    for arm in ("sft-plain", "orpo-plain"):
        _was_played(sessions[arm], arm)
    for arm in ("sft-cot", "orpo-cot"):
        # one step teaches no tags: the session stops for that reason, and says so
        assert sessions[arm].stop_reason == "no_answer"
        assert sessions[arm].stop_detail.startswith("therapist:")
    assert len({one.turns[0].text for one in sessions.values()}) == 1


def _was_played(session: Session, arm: str) -> None:
    assert session.stop_reason == "max_turns"
    assert session.n_therapist_turns == 2
    assert session.provenance.model == arm
    assert session.provenance.usage is not None and session.provenance.usage.prompt_tokens > 100
    assert session.provenance.is_training_source
