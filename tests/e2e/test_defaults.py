"""The commands as they are written in the README, in an empty folder, one taking up the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.program import run_cbtqa
from tests.support.tiny_models import write_tiny_model

LEARN = ("--allow-template", "--max-steps", "1", "--batch-size", "1", "--n-samples", "0")


def _setting(folder: Path, name: str) -> dict[str, str]:
    told = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["settings"][name]
    return {key: told[key] for key in ("value", "origin")}


@pytest.mark.slow
def test_the_commands_follow_each_other_without_a_path(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = write_tiny_model(tmp_path / "tiny")
    # one token in twelve ends an answer, so that random weights write short ones
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [*range(2, 512, 12)]}))

    def run(*words: str) -> str:
        return run_cbtqa(*words, cwd=tmp_path).stderr

    run("build-dataset")
    assert "dataset: cbtqa-dataset, the newest here" in run("stats")
    assert "dataset: cbtqa-dataset" in run("finetune", "--backbone", "tiny", *LEARN)
    tuned = tmp_path / "cbtqa-tuned/tiny"
    assert _setting(tuned, "data") == {"value": "cbtqa-dataset", "origin": "default: newest"}
    told = run("generate", "--temperature", "2", "--max-new-tokens", "200")
    assert "dataset: cbtqa-dataset" in told and "adapter: cbtqa-tuned/tiny" in told
    answers = tmp_path / "cbtqa-answers"
    assert _setting(answers, "adapter") == {"value": "tiny", "origin": "default: newest"}
    told = run("score", "--bootstrap", "0", "--out", "scores")
    assert "answers: cbtqa-answers/answers.jsonl" in told and "dataset: cbtqa-dataset" in told
    assert _setting(tmp_path / "scores", "ref")["origin"] == "default: newest"
    told = run("rate", "new", "--raters", "2")
    assert "answers: cbtqa-answers/answers.jsonl" in told and "dataset: cbtqa-dataset" in told
    assert len(list((tmp_path / "cbtqa-rating/sheets").glob("*.xlsx"))) == 2
    assert "dataset: cbtqa-dataset" in run("publish", "dataset", "--dry-run")


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (("stats",), "cbtqa build-dataset"),
        (("finetune", "--backbone", "tiny"), "cbtqa build-dataset"),
        (("score", "--ref", "x.jsonl"), "cbtqa generate"),
        (("rate", "new"), "cbtqa generate"),
        (("publish", "dataset"), "cbtqa build-dataset"),
        (("publish", "model"), "cbtqa finetune --backbone NAME"),
        (("simulate", "judge"), "cbtqa simulate run"),
        (("simulate", "lint"), "cbtqa simulate run"),
    ],
)
def test_where_there_is_nothing_to_take_the_command_that_makes_it_is_named(
    words: tuple[str, ...], first: str, tmp_path: Path
) -> None:
    unfinished = tmp_path / "cbtqa-dataset/data"
    unfinished.mkdir(parents=True)
    assert f"hint: {first}" in run_cbtqa(*words, cwd=tmp_path, code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cbtqa-dataset"], "nothing was written"


def test_a_dataset_is_published_only_to_a_repository_that_was_named(tmp_path: Path) -> None:
    run_cbtqa("build-dataset", "--limit", "20", cwd=tmp_path)
    told = run_cbtqa("publish", "dataset", "cbtqa-dataset", cwd=tmp_path, code=2).stderr
    assert "--to OWNER/NAME" in told


def test_sessions_are_judged_and_exported_where_they_were_played_last(tmp_path: Path) -> None:
    (tmp_path / "cbtqa-study").mkdir()  # such as a study of raters, which had this name
    (tmp_path / "cbtqa-study/study.json").write_text("{}")
    run_cbtqa("simulate", "run", "--patients", "1", "--out", "played", cwd=tmp_path)
    judged = run_cbtqa("simulate", "judge", "--instrument", "ctrs", cwd=tmp_path)
    assert "study: played, the newest here" in judged.stderr
    assert (tmp_path / "played/judged/ctrs").is_dir()
    assert "study: played" in run_cbtqa("simulate", "export", cwd=tmp_path).stderr
