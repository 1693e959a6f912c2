"""Every metric loads into `evaluate` by path, offline, with the values of `cbtqa score`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import CbtqaError, DataError
from cbtqa.files import write_jsonl
from cbtqa.metrics.evaluation import EVALUATE_MODULE, score_lists
from cbtqa.metrics.registry import METRICS
from cbtqa.metrics.scoring import ScoreSettings, score
from tests.metrics.conftest import random_pairs

PREDICTIONS, REFERENCES = random_pairs(40, seed=2)


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = pytest.importorskip("evaluate")
    for name in ("HF_MODULES_CACHE", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE"):
        monkeypatch.setattr(f"evaluate.config.{name}", tmp_path / name.lower(), raising=False)
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    before = list(sys.path)
    yield module
    sys.path[:] = before
    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        del sys.modules[name]


def load(evaluate: Any, name: str, tmp_path: Path) -> Any:
    return evaluate.load(EVALUATE_MODULE, name, cache_dir=str(tmp_path / "cache"))


def test_every_lexical_metric_loads_and_gives_the_value_of_the_command(
    evaluate: Any, tmp_path: Path
) -> None:
    rows = [{"id": str(i), "text": text} for i, text in enumerate(PREDICTIONS)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    rows = [{"id": str(i), "answer": text} for i, text in enumerate(REFERENCES)]
    write_jsonl(tmp_path / "ref.jsonl", rows)
    report = score(
        ScoreSettings(
            predictions=(tmp_path / "a.jsonl",),
            ref=tmp_path / "ref.jsonl",
            metrics=",".join(METRICS),
            bootstrap=0,
            anchors=False,
        )
    ).report
    expected = {one.metric: one.value for one in report.scores}
    assert set(expected) == set(METRICS)
    for name, value in expected.items():
        got = load(evaluate, name, tmp_path).compute(predictions=PREDICTIONS, references=REFERENCES)
        assert got[name] == value, name
        assert got[f"{name}_signature"].startswith(f"metric:{name}|")


def test_several_metrics_combine(evaluate: Any, tmp_path: Path) -> None:
    names = ("bleu_zh", "chrf2", "meteor_jieba")
    combined = evaluate.combine([load(evaluate, name, tmp_path) for name in names])
    got = combined.compute(predictions=PREDICTIONS, references=REFERENCES)
    for name in names:
        assert got[name] == score_lists(name, PREDICTIONS, REFERENCES).value
    combined.add_batch(predictions=PREDICTIONS[:20], references=REFERENCES[:20])
    combined.add_batch(predictions=PREDICTIONS[20:], references=REFERENCES[20:])
    assert combined.compute() == got


def test_several_references_load_as_lists_of_lists(evaluate: Any, tmp_path: Path) -> None:
    references = [[text, text[3:], "我很好。"] for text in REFERENCES]
    names = ("bleu_zh", "chrf2", "rouge_l_char", "distinct_1")
    combined = evaluate.combine([load(evaluate, name, tmp_path) for name in names])
    got = combined.compute(predictions=PREDICTIONS, references=references)
    for name in names:
        assert got[name] == score_lists(name, PREDICTIONS, references).value
    assert got["bleu_zh"] > score_lists("bleu_zh", PREDICTIONS, REFERENCES).value
    combined.add_batch(predictions=PREDICTIONS[:20], references=references[:20])
    combined.add_batch(predictions=PREDICTIONS[20:], references=references[20:])
    assert combined.compute() == got


def test_nothing_is_written_to_the_home_folder(evaluate: Any, tmp_path: Path) -> None:
    home = Path.home() / ".cache" / "huggingface"
    before = sorted(str(path) for path in home.rglob("*bleu*")) if home.exists() else []
    load(evaluate, "bleu_zh", tmp_path).compute(predictions=["我很好"], references=["我很好"])
    after = sorted(str(path) for path in home.rglob("*bleu*")) if home.exists() else []
    assert after == before


def test_an_unknown_name_is_refused_with_the_known_ones(evaluate: Any, tmp_path: Path) -> None:
    with pytest.raises(CbtqaError, match="no metric 'bleu'") as caught:
        load(evaluate, "bleu", tmp_path)
    assert "bleu_zh" in (caught.value.hint or "")


def test_a_metric_with_weights_takes_them_as_arguments(evaluate: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.metrics.neural.tiny_models import save_bert

    model = save_bert(tmp_path / "bert")
    own = {"bertscore_model": str(model), "bertscore_layer": 2, "device": "cpu"}
    texts = ["我今天很好。", "晚上睡不着"], ["今天我很好", "压力很大"]
    got = load(evaluate, "bertscore", tmp_path).compute(
        predictions=texts[0], references=texts[1], **own
    )
    from cbtqa.metrics.neural.weights import NeuralSettings

    expected = score_lists("bertscore", *texts, NeuralSettings(**own)).value
    assert got["bertscore"] == pytest.approx(expected, abs=1e-5)
    assert "layer:2" in got["bertscore_signature"]


def test_lists_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="2 predictions and 1 references"):
        score_lists("bleu_zh", ["a", "b"], ["a"])
    with pytest.raises(DataError, match="prediction 1 is no text but NoneType"):
        score_lists("bleu_zh", ["a", None], ["a", "b"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="names 4 metrics"):
        score_lists("lexical", ["a"], ["a"])
    assert score_lists("bleu_zh", [], []).value is None


def test_the_core_never_imports_evaluate() -> None:
    code = (
        "import sys, cbtqa.metrics.scoring, cbtqa.metrics.comparison, cbtqa.metrics.evaluation;"
        "assert 'evaluate' not in sys.modules and 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
