"""bert-score recomputes some pairs of every run with BERTScore."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cbtqa.files import write_jsonl
from cbtqa.metrics.peers import check_by_peers
from cbtqa.metrics.scoring import Scored, ScoreSettings, score
from tests.metrics.neural.tiny_models import forget_length, save_bert

pytest.importorskip("torch")
pytest.importorskip("bert_score")
TEXTS = [
    "我今天很好。",
    "",
    "晚上睡不着，压力很大！",
    "你愿意把担心的事情写下来吗？",
    "谢谢你说出这件事。",
]


def run(folder: Path, model: Path, metrics: str, **settings: Any) -> Scored:
    """Scores 25 answers, a fifth of them empty, each against the next text."""
    for name, column, shift in (("ref.jsonl", "answer", 1), ("a.jsonl", "text", 0)):
        rows = [
            {"id": str(i), column: TEXTS[(i + shift) % 5] and f"{TEXTS[(i + shift) % 5]}{i}我"}
            for i in range(25)
        ]
        write_jsonl(folder / name, rows)
    return score(
        ScoreSettings(
            predictions=(folder / "a.jsonl",),
            ref=folder / "ref.jsonl",
            metrics=metrics,
            anchors=False,
            bootstrap=0,
            bertscore_model=str(model),
            **{"bertscore_layer": 2, "device": "cpu", **settings},
        )
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("LAYER,P,R,F\n0,0,0,0\n1,0.9,0.9,0.9\n2,0.31,0.32,0.33\n")
    return path


def test_bert_score_checks_sixteen_pairs_pair_by_pair(
    bert: Path, tmp_path: Path, table: Path
) -> None:
    names = "bertscore_p,bertscore,bertscore_rescaled,bertscore_windowed"
    scored = run(tmp_path, bert, names, bertscore_baseline=table)
    (check,) = scored.report.checks
    assert check.program.startswith("bert-score 0.")
    assert check.metrics == ("bertscore_p", "bertscore", "bertscore_rescaled")
    # 15 of the 25 pairs have text on both sides
    assert check.n_pairs == 15
    assert check.difference is not None and check.difference < 1e-5
    assert check.line in scored.report.notes and not check.off


def test_the_same_idf_file_is_given_to_bert_score(bert: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents.txt"
    documents.write_text("\n".join(text for text in TEXTS if text), encoding="utf-8")
    (check,) = run(tmp_path, bert, "bertscore", bertscore_idf=documents).report.checks
    assert check.difference is not None and check.difference < 1e-5


def test_a_bertscore_that_is_off_is_warned_about(bert: Path, tmp_path: Path) -> None:
    scored = run(tmp_path, bert, "bertscore,bertscore_r")
    matrices = dict(scored.evaluated[0].matrices)
    matrices["bertscore_r"] = matrices["bertscore_r"] + [2e-4, 0, 0, 0, 0, 0]
    evaluated = [replace(scored.evaluated[0], matrices=matrices)]
    (check,) = check_by_peers(scored.references, scored.predictions, evaluated, scored.metrics)
    assert check.off == ("bertscore_r",)


@pytest.mark.parametrize("case", ["no length", "half precision", "not installed"])
def test_where_bert_score_cannot_run_one_line_says_why(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    model, settings = bert, {}
    if case == "no length":
        model = forget_length(save_bert(tmp_path / "model"))
    elif case == "half precision":
        settings = {"dtype": "bfloat16"}
    else:
        monkeypatch.setitem(sys.modules, "bert_score", None)
    report = run(tmp_path, model, "bertscore", **settings).report
    (check,) = report.checks
    assert check.difference is None
    told = {
        "no length": "OverflowError: int too big to convert",
        "half precision": "it computes in float32, the scores are in bfloat16",
        "not installed": "this needs the Python module 'bert_score', which is not installed",
    }[case]
    assert check.line.startswith(f"not checked against bert-score: {told}")
    assert check.line in report.notes
