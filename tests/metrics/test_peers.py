"""Every run is checked by sacrebleu, and by jieba where the run is long."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cbtqa.files import write_jsonl
from cbtqa.metrics.lexical import sacrebleu_version
from cbtqa.metrics.peers import check_by_peers
from cbtqa.metrics.scoring import Scored, ScoreSettings, score
from tests.metrics.conftest import random_pairs


def run(folder: Path, n_pairs: int, metrics: str, n_systems: int = 1) -> Scored:
    """Scores random texts, the systems' answers in other orders."""
    predictions, references = random_pairs(n_pairs, seed=31)
    rows = [{"id": str(i), "answer": text} for i, text in enumerate(references)]
    write_jsonl(folder / "ref.jsonl", rows)
    files = []
    for number in range(n_systems):
        texts = predictions[number:] + predictions[:number]
        rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
        write_jsonl(folder / f"s{number}.jsonl", rows)
        files.append(folder / f"s{number}.jsonl")
    settings = ScoreSettings(
        predictions=tuple(files), ref=folder / "ref.jsonl", metrics=metrics, bootstrap=0
    )
    return score(settings)


@pytest.mark.parametrize(("n_pairs", "n_checked"), [(7, 7), (180, 100)])
def test_sacrebleu_recomputes_bleu_and_chrf_on_a_sample_of_every_run(
    tmp_path: Path, n_pairs: int, n_checked: int
) -> None:
    report = run(tmp_path, n_pairs, "bleu_zh,bleu_char,bleu_jieba,chrf2,meteor_char").report
    (check,) = report.checks
    assert check.metrics == ("bleu_zh", "bleu_char", "bleu_jieba", "chrf2")
    assert check.n_pairs == n_checked
    assert check.difference is not None and check.difference < 1e-12
    assert check.line in report.notes
    assert check.line.startswith(f"checked against {check.program} on {n_checked} pairs: diff")
    assert f"version:{check.program.removeprefix('sacrebleu ')}|" in report.scores[0].signature
    assert not any("computes other values" in warning for warning in report.warnings)


def test_the_papers_scale_is_checked_too(tmp_path: Path) -> None:
    (check,) = run(tmp_path, 20, "paper").report.checks
    assert check.metrics == ("bleu_jieba", "chrf2")
    assert check.difference is not None and check.difference < 1e-12


def test_without_sacrebleu_scores_are_signed_so_and_one_line_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sacrebleu"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr("importlib.metadata.version", _no_sacrebleu(importlib.metadata.version))
    sacrebleu_version.cache_clear()
    report = run(tmp_path, 5, "chrf2").report
    sacrebleu_version.cache_clear()
    assert "|version:none|" in report.scores[0].signature
    assert report.notes == (
        "not checked against sacrebleu: this needs the Python module 'sacrebleu', "
        "which is not installed",
    )


def _no_sacrebleu(version: Callable[[str], str]) -> Callable[[str], str]:
    def found(name: str) -> str:
        if name == "sacrebleu":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    return found


def test_a_run_without_these_metrics_has_nothing_to_check(tmp_path: Path) -> None:
    assert run(tmp_path, 20, "meteor_char,length").report.checks == ()


@pytest.mark.parametrize("name", ["bleu_zh", "chrf2"])
def test_a_metric_that_is_off_is_warned_about_by_name(tmp_path: Path, name: str) -> None:
    """One gram too many in one pair of one of the systems."""
    scored = run(tmp_path, 30, "bleu_zh,chrf2", n_systems=2)
    evaluated = list(scored.evaluated[:2])
    wrong = evaluated[1].matrices[name].copy()
    wrong[11, 2] += 1
    evaluated[1] = replace(evaluated[1], matrices={**evaluated[1].matrices, name: wrong})
    (check,) = check_by_peers(scored.references, scored.predictions[:2], evaluated, scored.metrics)
    assert check.n_pairs == 60
    assert check.off == (name,)
    assert check.warning is not None
    assert check.warning.startswith(f"{name}: sacrebleu ")


def test_jieba_itself_cuts_the_sample_of_a_long_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbtqa.metrics.peers.JIEBA_FROM_TEXTS", 40)
    metrics = "bleu_jieba,meteor_jieba,rouge_l_jieba,chrf2"
    assert len(run(tmp_path, 19, metrics).report.checks) == 1
    check = run(tmp_path, 20, metrics).report.checks[1]
    assert check.program == "jieba 0.42.1"
    assert check.metrics == ("bleu_jieba", "meteor_jieba", "rouge_l_jieba")
    assert check.difference == 0
    assert check.line == "checked against jieba 0.42.1 on 20 pairs: difference 0"


def test_other_words_than_jiebas_are_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rjieba alone cuts some of these texts otherwise."""
    from rjieba import Jieba

    monkeypatch.setattr("cbtqa.metrics.peers.JIEBA_FROM_TEXTS", 1)
    monkeypatch.setattr("cbtqa.metrics.peers.rust_segmenter", Jieba)
    check = run(tmp_path, 50, "meteor_jieba").report.checks[0]
    assert check.off == ("meteor_jieba",)
    assert check.difference is not None and 0 < check.difference < 1


def test_the_check_by_jieba_leaves_the_global_jieba_and_the_temporary_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("jieba.dt", jieba.Tokenizer())
    monkeypatch.setattr("cbtqa.metrics.peers.JIEBA_FROM_TEXTS", 1)
    assert run(tmp_path, 5, "rouge_l_jieba").report.checks[0].difference == 0
    assert not jieba.dt.initialized
    assert list((tmp_path / "temporary").iterdir()) == []
