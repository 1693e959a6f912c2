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
from cbtqa.settings import resolve
from tests.metrics.neural.test_bertscore import invented

NEURAL = "bertscore,bertscore_p,bertscore_r,bertscore_windowed,bleurt,bleurt_windowed"


@pytest.fixture
def flags(bert: Path, bleurt: tuple[Path, Any, Any], tmp_path: Path) -> dict[str, Any]:
    references, ours = invented(8), invented(8, seed=4)
    write_jsonl(
        tmp_path / "ref.jsonl", [{"id": str(i), "answer": t} for i, t in enumerate(references)]
    )
    for name, texts in (("a", ours), ("b", [*references[:4], *ours[4:7], " "])):
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
    ours, references = invented(8, seed=4), invented(8)
    rows = BertScorer(neural).score(ours, references)
    for column, name in enumerate(("bertscore_p", "bertscore_r", "bertscore")):
        assert found[name, "a"].value == pytest.approx(rows[:, column].mean(), abs=1e-6)
    mean = BleurtScorer(neural).score(ours, references)[:, 0].mean()
    assert found["bleurt", "a"].value == pytest.approx(mean, abs=1e-6)
    one = found["bertscore", "b"]
    assert (one.n_scored, one.n_total) == (8, 8)
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


def test_no_preset_asks_for_weights() -> None:
    neural = set(known_metrics()) - set(PRESETS["all"])
    assert neural == {*NEURAL.split(","), "bertscore_rescaled"}
    assert not any(neural & set(names) for names in PRESETS.values())


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
