"""The neural metrics beside the others: by name, in folders, in comparisons, and not by accident."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbtqa.files import write_jsonl
from cbtqa.metrics.comparison import CompareSettings, compare
from cbtqa.metrics.neural.bertscore import BertScorer
from cbtqa.metrics.neural.bleurt import BleurtScorer
from cbtqa.metrics.neural.weights import NeuralSettings
from cbtqa.metrics.registry import PRESETS, additive_metric, known_metrics
from cbtqa.metrics.score_folder import write_folder
from cbtqa.metrics.scoring import ScoreSettings, score
from cbtqa.metrics.tables import beside_paper, missing_scores
from cbtqa.papers import paper_table
from cbtqa.settings import resolve
from tests.metrics.neural.test_bertscore import invented

NEURAL = "bertscore,bertscore_p,bertscore_r,bertscore_windowed,bleurt,bleurt_windowed"


@pytest.fixture
def flags(bert: Path, bleurt: tuple[Path, Any, Any], tmp_path: Path) -> dict[str, Any]:
    references, ours = invented(12), invented(12, seed=4)
    write_jsonl(
        tmp_path / "ref.jsonl", [{"id": str(i), "answer": t} for i, t in enumerate(references)]
    )
    for name, texts in (("a", ours), ("b", [*references[:6], *ours[6:11], " "])):
        rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    return {
        "predictions": (tmp_path / "a.jsonl", tmp_path / "b.jsonl"),
        "ref": tmp_path / "ref.jsonl",
        "metrics": NEURAL,
        "anchors": False,
        "bertscore_model": str(bert),
        "bertscore_layer": 2,
        "bleurt_model": str(bleurt[0]),
        "device": "cpu",
        "batch_size": 4,
    }


def test_scores_are_means_over_pairs_with_intervals_counts_and_notes(flags: dict[str, Any]) -> None:
    settings = ScoreSettings(**flags)
    report = score(settings).report
    found = {(one.metric, one.system): one for one in report.scores}
    assert [metric for metric, system in found if system == "a"] == NEURAL.split(",")
    neural = NeuralSettings.part_of(settings)
    ours, references = invented(12, seed=4), invented(12)
    rows = BertScorer(neural).score(ours, references)
    for column, name in enumerate(("bertscore_p", "bertscore_r", "bertscore")):
        assert found[name, "a"].value == pytest.approx(rows[:, column].mean(), abs=1e-6)
    mean = BleurtScorer(neural).score(ours, references)[:, 0].mean()
    assert found["bleurt", "a"].value == pytest.approx(mean, abs=1e-6)
    one = found["bertscore", "b"]
    assert (one.n_scored, one.n_total) == (12, 12)
    assert one.low is not None
    assert one.high is not None
    assert one.low < (one.value or 0) < one.high
    share = f"{rows[:, 3].mean():.1%} of the answers and {rows[:, 4].mean():.1%} of the references"
    assert any(w.startswith("a: bertscore: ") and share in w for w in report.warnings)
    assert not any("windowed: the model did not read" in w for w in report.warnings)


def test_a_stored_run_is_compared_without_loading_a_model(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = resolve(ScoreSettings, flags={**flags, "metrics": "bertscore,bleurt"}, environ={})
    write_folder(tmp_path / "scores", score(resolved.values), resolved, "now")
    monkeypatch.setitem(sys.modules, "torch", None)
    found = compare(CompareSettings(predictions=(tmp_path / "scores",), trials=200))
    assert [pair.metric for pair in found.pairs] == ["bertscore", "bleurt"]
    bertscore = found.pairs[0]
    assert bertscore.difference > 0.05
    assert bertscore.n_wins >= 4


def test_the_papers_preset_has_the_columns_of_its_table_and_all_means_all() -> None:
    assert set(PRESETS["paper"]) == set(paper_table("cbt-llm", "scores").columns)
    assert set(PRESETS["all"]) == set(known_metrics())
    neural = {*NEURAL.split(","), "bertscore_rescaled"}
    assert not any(neural & set(PRESETS[name]) for name in ("default", "lexical"))


def test_the_papers_preset_fills_its_five_cells_where_the_weights_are(
    flags: dict[str, Any], tmp_path: Path
) -> None:
    flags |= {"metrics": "paper", "anchors": True, "predictions": flags["predictions"][:1]}
    scored = score(ScoreSettings(**flags))
    found = {one.metric: one for one in scored.report.scores if one.system == "a"}
    assert list(found) == list(PRESETS["paper"])
    assert all(one.value is not None for one in found.values())
    (row,) = beside_paper(scored.report.scores, ("references", "shuffled references")).rows[2:]
    assert row[0] == "a" and None not in row
    assert tuple(row[1:4]) == tuple(found[name].value for name in PRESETS["paper"][:3])


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ({"transformers": None}, "pip install 'cbtqa[neural]'"),
        ({}, "lab/none is not on this machine; --metrics bertscore downloads it"),
    ],
)
def test_what_a_preset_cannot_compute_here_is_a_dash_with_the_next_command(
    flags: dict[str, Any],
    lacking: dict[str, Any],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, module in lacking.items():
        monkeypatch.setitem(sys.modules, name, module)
    flags |= {"metrics": "paper", "bertscore_model": "lab/none", "bleurt_model": "lab/none"}
    resolved = resolve(ScoreSettings, flags=flags, environ={})
    scored = score(resolved.values)
    found = {one.metric: one for one in scored.report.scores if one.system == "a"}
    assert found["bleu_jieba"].value is not None
    assert (found["bertscore"].value, found["bertscore"].n_scored) == (None, 0)
    assert found["bertscore"].unscored_reason == told
    assert any(told in line for line in missing_scores(scored.report.scores))
    write_folder(tmp_path / "scores", scored, resolved, "now")
    compared = compare(CompareSettings(predictions=(tmp_path / "scores",), trials=200))
    assert [pair.metric for pair in compared.pairs] == ["bleu_jieba", "meteor_jieba", "chrf2"]


def test_stored_neural_scores_are_known_on_their_scale() -> None:
    metric = additive_metric("bertscore_rescaled", "rescaled")
    assert metric is not None
    sums = np.array([1.5, 2, 0, 0, 0, 0])
    assert metric.from_sums(sums) == 0.75


def test_looking_metrics_up_loads_no_torch() -> None:
    code = (
        "import sys; from cbtqa.metrics.registry import known_metrics;"
        "[make() for make in known_metrics().values()];"
        "assert not {'torch', 'transformers', 'sentencepiece'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_library_names_the_extra(
    flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cbtqa.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError) as caught:
        score(ScoreSettings(**{**flags, "metrics": "bertscore"}))
    assert caught.value.hint == "pip install 'cbtqa[neural]'"
