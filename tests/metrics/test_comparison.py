"""Comparing systems, and refusing to compare what is not comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from cbtqa.errors import DataError, IncompleteRunError, UsageError
from cbtqa.manifest import MANIFEST_NAME
from cbtqa.metrics.comparison import CompareSettings, Comparison, compare, write_comparison
from cbtqa.metrics.score_folder import write_folder
from cbtqa.metrics.scoring import ScoreSettings, score
from cbtqa.settings import resolve
from tests.metrics.test_scoring import predictions, write

N = 60
ANSWERS = {
    str(number): f"你说第{number}件事让你睡不着，这很正常。可以每天写{number + 3}分钟日记，慢慢来。"
    for number in range(N)
}


def damaged(share: float, seed: int) -> dict[str, str]:
    """The answers with some characters changed."""
    rng = np.random.default_rng(seed)
    return {
        key: "".join(c if rng.random() > share else "吗" for c in text)
        for key, text in ANSWERS.items()
    }


@pytest.fixture
def ref(tmp_path: Path) -> Path:
    rows = [{"id": key, "answer": text} for key, text in ANSWERS.items()]
    return write(tmp_path / "ref.jsonl", rows)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three systems: good, nearly as good, bad."""
    shares = {"good": 0.2, "near": 0.21, "bad": 0.5}
    return [
        predictions(tmp_path, damaged(share, seed), f"{name}.jsonl")
        for seed, (name, share) in enumerate(shares.items())
    ]


def run(*paths: Path, **settings: Any) -> Comparison:
    """Compares on two metrics."""
    defaults = {"metrics": "bleu_zh,meteor_jieba", "trials": 2_000}
    return compare(CompareSettings(predictions=paths, **{**defaults, **settings}))


def stored(folder: Path, *files: Path, ref: Path, **settings: Any) -> Path:
    """What `cbtqa score --out` leaves."""
    flags = {"predictions": files, "ref": ref, "metrics": "bleu_zh,meteor_jieba", **settings}
    resolved = resolve(ScoreSettings, flags=flags, environ={})
    write_folder(folder, score(resolved.values), resolved, "2026-01-01T00:00:00+00:00")
    return folder


def test_a_clear_difference_is_found_and_a_small_one_is_not(files: list[Path], ref: Path) -> None:
    found = {
        (one.baseline, one.system): one
        for one in run(*files, ref=ref).pairs
        if one.metric == "bleu_zh"
    }
    clear, close = found["good", "bad"], found["good", "near"]
    assert clear.difference < -20 and clear.high < 0
    assert clear.p_adjusted < 0.01
    assert clear.win_rate < 0.1
    assert close.p > 0.05
    assert close.low < 0 < close.high
    assert clear.win_low < clear.win_rate < clear.win_high < 0.2
    assert clear.n_wins + clear.n_losses + clear.n_ties == clear.n == N


def test_holm_runs_over_the_whole_table(files: list[Path], ref: Path) -> None:
    pairs = run(*files, ref=ref).pairs
    assert len(pairs) == 3 * 2
    smallest = min(pairs, key=lambda one: one.p or 0)
    assert smallest.p is not None
    assert smallest.p_adjusted == pytest.approx(min(1.0, 6 * smallest.p))
    assert all((one.p_adjusted or 0) >= (one.p or 0) for one in pairs)


@pytest.mark.parametrize(("test", "trials"), [("ar", 10_000), ("bs", 1_000)])
def test_p_values_of_its_convention_are_those_of_sacrebleu(
    files: list[Path], ref: Path, test: str, trials: int
) -> None:
    sides = [list(damaged(share, seed).values()) for seed, share in enumerate((0.2, 0.21))]
    _, found = PairedTest(
        [("a", sides[0]), ("b", sides[1])],
        {"BLEU": BLEU(tokenize="zh")},
        [list(ANSWERS.values())],
        test_type=test,
    )()
    ours = run(*files[:2], ref=ref, test=test, trials=10_000, p_convention="sacrebleu").pairs[0]
    assert ours.p == found["BLEU"][1].p_value
    assert ours.test == f"{test}:{trials}|seed:12345|p:sacrebleu"


def test_the_test_is_told_with_its_convention(files: list[Path], ref: Path) -> None:
    assert run(*files[:2], ref=ref).pairs[0].test == "ar:2000|seed:12345|p:ties"


def test_the_bootstrap_test_is_refused_on_few_questions(files: list[Path], ref: Path) -> None:
    with pytest.raises(UsageError, match=f"--test bs .* {N} questions") as caught:
        run(*files[:2], ref=ref, test="bs")
    assert "--test ar" in (caught.value.hint or "")


def test_a_baseline_is_compared_with_each_of_the_rest(files: list[Path], ref: Path) -> None:
    pairs = run(*files, ref=ref, baseline="near").pairs
    assert {(one.baseline, one.system) for one in pairs} == {("near", "good"), ("near", "bad")}
    with pytest.raises(UsageError, match="no system 'far'"):
        run(*files, ref=ref, baseline="far")


def test_stored_scores_compare_as_the_files_do(
    tmp_path: Path, files: list[Path], ref: Path
) -> None:
    both = stored(tmp_path / "both", *files[:2], ref=ref)
    assert run(both).pairs == run(*files[:2], ref=ref).pairs
    apart = [stored(tmp_path / f.stem, f, ref=ref) for f in files[:2]]
    assert run(*apart).pairs == run(*files[:2], ref=ref).pairs


def test_other_references_are_refused_with_both_shown(
    tmp_path: Path, files: list[Path], ref: Path
) -> None:
    changed = write(
        tmp_path / "changed.jsonl", [{"id": k, "answer": t + "！"} for k, t in ANSWERS.items()]
    )
    folders = [
        stored(tmp_path / "x", files[0], ref=ref),
        stored(tmp_path / "y", files[1], ref=changed),
    ]
    with pytest.raises(DataError, match="other references") as caught:
        run(*folders)
    assert "ref.jsonl" in str(caught.value) and "changed.jsonl" in str(caught.value)


def test_other_settings_are_refused_with_both_signatures(
    tmp_path: Path, files: list[Path], ref: Path
) -> None:
    folders = [
        stored(tmp_path / "x", files[0], ref=ref, metrics="bleu_jieba"),
        stored(tmp_path / "y", files[1], ref=ref, metrics="paper"),
    ]
    with pytest.raises(DataError, match="other settings") as caught:
        run(*folders)
    assert "scale:0-100" in str(caught.value) and "scale:0-1|" in str(caught.value)


def test_other_questions_are_refused_unless_only_the_common_ones_are_wanted(
    tmp_path: Path, files: list[Path], ref: Path
) -> None:
    fewer = {key: text for key, text in damaged(0.5, 2).items() if int(key) >= 10}
    part = predictions(tmp_path, fewer, "part.jsonl")
    with pytest.raises(DataError, match="not the same ones") as caught:
        run(files[0], part, ref=ref)
    assert caught.value.hint is not None and "--common" in caught.value.hint
    assert {one.n for one in run(files[0], part, ref=ref, common=True).pairs} == {N - 10}


def test_examples_hold_the_largest_gains_and_losses_with_text(
    tmp_path: Path, files: list[Path], ref: Path
) -> None:
    texts = damaged(0.3, 5)
    texts["7"], texts["9"] = ANSWERS["7"], "嗯。"
    changed = predictions(tmp_path, texts, "changed.jsonl")
    found = run(files[0], changed, ref=ref, examples=5)
    assert found.best[0].id == "7" and found.worst[0].id == "9"
    assert len(found.best) == len(found.worst) == 5
    assert found.best[0].reference_text == found.best[0].system_text == ANSWERS["7"]
    gains = [one.difference for one in found.best]
    assert gains == sorted(gains, reverse=True)
    write_comparison(tmp_path / "out", found)
    page = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "> 嗯。" in page and "Holm" in page


def test_a_system_against_itself_is_never_different(
    tmp_path: Path, files: list[Path], ref: Path
) -> None:
    twin = predictions(tmp_path, damaged(0.2, 0), "twin.jsonl")
    for one in run(files[0], twin, ref=ref).pairs:
        assert (one.difference, one.p, one.win_rate) == (0, 1, 0.5)


def test_one_system_cannot_be_compared(files: list[Path], ref: Path) -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        run(files[0], ref=ref)


def test_few_questions_are_warned_about(tmp_path: Path, ref: Path) -> None:
    short = write(tmp_path / "short.jsonl", [{"id": "1", "answer": ANSWERS["1"]}])
    files = [predictions(tmp_path, {"1": t}, f"{t}.jsonl") for t in ("你说", "可以")]
    warnings = run(*files, ref=short, test="bs", p_convention="sacrebleu").warnings
    assert any("only 1 questions" in one for one in warnings)
    assert any("prefer --test ar" in one for one in warnings)
    assert any("sacrebleu's convention is one-sided" in one for one in warnings)


def test_an_unfinished_folder_is_not_trusted(tmp_path: Path, files: list[Path], ref: Path) -> None:
    folder = stored(tmp_path / "x", *files[:2], ref=ref)
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(IncompleteRunError):
        run(folder)
