"""A metric that does not apply is not a failure: no value, no loss, no test, never a NaN."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbtqa.metrics.comparison import (
    COMPARISON_NAME,
    CompareSettings,
    Comparison,
    PairComparison,
    compare,
    write_comparison,
)
from cbtqa.metrics.registry import METRICS
from cbtqa.metrics.score_folder import SCORES_NAME, write_folder
from cbtqa.metrics.scoring import ScoreSettings, score
from cbtqa.records import STEP_NAMES, MetricScore
from cbtqa.settings import resolve
from tests.cli.test_score import cbtqa
from tests.metrics.test_scoring import write
from tests.support.program import run_cbtqa

N = 40
Row = dict[str, Any]
TESTS = (("ar", "ties"), ("bs", "sacrebleu"))
"""The bootstrap test on so few questions is run in sacrebleu's convention alone."""


def rows(tail: str, n: int = N, **columns: Callable[[int], Any]) -> list[Row]:
    """Answers to questions 0 to n, with more columns made from the number."""
    return [
        {
            "id": str(number),
            "answer": f"你为第{number}件事难受，这很正常，{tail}",
            **{name: make(number) for name, make in columns.items()},
        }
        for number in range(n)
    ]


def steps_of(number: int) -> Row:
    """Five steps, none empty."""
    return dict.fromkeys(STEP_NAMES, f"第{number}步。")


def labelled(labeller: str, *ids: str) -> list[Row]:
    """Labels as a built dataset holds them."""
    return [{"id": one, "labeller": labeller, "evidence": None} for one in ids]


def strict(path: Path) -> Any:
    """One JSON document; Python's own NaN and Infinity are errors."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path.name} holds {word}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def found(path: Path, *files: Path, **settings: Any) -> dict[str, PairComparison]:
    """Each metric of two systems."""
    told = {"trials": 200, "bootstrap": 200, **settings}
    done = compare(CompareSettings(predictions=files, ref=path, **told))
    return {one.metric: one for one in done.pairs}


def scores(path: Path, file: Path, **settings: Any) -> dict[str, MetricScore]:
    """Each metric of one system."""
    told = {"bootstrap": 200, "anchors": False, **settings}
    done = score(ScoreSettings(predictions=(file,), ref=path, **told))
    return {one.metric: one for one in done.report.scores}


def test_the_command_compares_where_three_of_forty_questions_carry_risk(tmp_path: Path) -> None:
    ref = write(
        tmp_path / "ref.jsonl",
        rows("慢慢来。", risk=lambda number: "explicit" if number < 3 else "none"),
    )
    first = write(tmp_path / "a.jsonl", rows("请拨打12356。"))
    second = write(tmp_path / "b.jsonl", rows("加油。"))
    out = tmp_path / "out"
    for test, convention in TESTS:
        done = cbtqa(
            *("compare", first, second, "--ref", ref, "--out", out / test, "--test", test),
            *("--p-convention", convention, "--trials", "200", "--json"),
        )
        assert done.returncode == 0, done.stderr
        assert "nan" not in (out / test / "compare.md").read_text(encoding="utf-8").lower()
        pairs = {one["metric"]: one for one in strict(out / test / COMPARISON_NAME)["pairs"]}
        route = pairs["help_route"]
        assert (route["difference"], route["n"], route["n_losses"]) == (-1, 3, 3)
        assert (route["win_rate"], route["p"]) == (0, None)
        # three of three: the scale's end and far from it, not -1 to -1
        assert route["low"] == -1 and -0.4 < route["high"] < 0.2
        assert route["win_low"] == 0 and 0.2 < route["win_high"] < 0.8
        fewest = {"ar": 6, "bs": 10}[test]
        assert f"3 scored questions, fewer than {fewest}" in route["p_reason"]
        assert pairs["bleu_zh"]["p"] < 0.05 and pairs["bleu_zh"]["p_reason"] is None


def test_on_eighty_columns_no_word_is_broken_and_a_dash_is_explained(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref.jsonl", rows("慢慢来。"))
    files = [write(tmp_path / f"{name}.jsonl", rows(f"{name}。")) for name in ("first", "second")]
    words = ("compare", *files, "--ref", ref, "--trials", "200")
    done = run_cbtqa(*words, cwd=tmp_path, COLUMNS="80")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("second minus first", "(characters)", "difference", "adjusted", "distortion"):
        assert word in done.stdout
    assert "…" not in done.stdout
    assert "over the whole table, metrics times pairs of systems (10)" in done.stderr
    assert "CBT record of second and first (the predictions hold no CBT steps)" in done.stderr


def test_flowing_text_does_not_lose_where_steps_and_labels_are_asked_for(tmp_path: Path) -> None:
    label = labelled("answer:m", "labeling")
    structured = {"steps": steps_of, "distortions": lambda number: label}
    ref = write(tmp_path / "ref.jsonl", rows("慢慢来。", **structured))
    first = write(tmp_path / "steps.jsonl", rows("会好的。", **structured))
    flowing = rows("加油。", steps=lambda number: None, distortions=lambda number: [])
    columns = {name: (lambda number: "") for name in STEP_NAMES}
    for second in (
        write(tmp_path / "flowing.jsonl", flowing),
        write(tmp_path / "columns.jsonl", rows("加油。", **columns)),
    ):
        alone = scores(ref, second, metrics="cbt_record,distortion_micro_f1")
        pairs = found(ref, first, second, metrics="cbt_record,distortion_micro_f1,bleu_zh")
        for name in ("cbt_record", "distortion_micro_f1"):
            assert (alone[name].value, alone[name].n_scored) == (None, 0)
            one = pairs[name]
            assert (one.n, one.n_wins, one.n_losses, one.n_ties) == (0, 0, 0, 0)
            assert (one.difference, one.p, one.p_adjusted, one.win_rate) == (None,) * 4
            assert one.unscored_reason is not None and second.stem in one.unscored_reason
        # and a metric that was not tested does not cost the others anything
        assert pairs["bleu_zh"].p_adjusted == pairs["bleu_zh"].p


def test_a_step_that_one_answer_of_a_structured_system_lacks_still_counts(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref.jsonl", rows("慢慢来。"))
    file = write(
        tmp_path / "a.jsonl",
        rows("会好的。", steps=lambda number: None if number == 0 else steps_of(number)),
    )
    one = scores(ref, file, metrics="cbt_record")["cbt_record"]
    assert (one.value, one.n_scored) == (pytest.approx((N - 1) / N), N)


@pytest.mark.parametrize(
    ("theirs", "ours", "is_measured"),
    [
        ("patterns", "patterns", False),
        ("patterns", "trained:light", False),
        ("llm:m", "patterns", False),
        ("answer:m", "patterns", True),
        ("patterns", "answer:m", True),
        ("answer:m", "answer:n", True),
    ],
)
def test_labels_read_from_the_question_on_both_sides_measure_no_answer(
    tmp_path: Path, theirs: str, ours: str, is_measured: bool
) -> None:
    def labels(labeller: str) -> Callable[[int], list[Row]]:
        return lambda number: labelled(labeller, "labeling") if number % 2 else []

    ref = write(tmp_path / "ref.jsonl", rows("慢慢来。", distortions=labels(theirs)))
    file = write(tmp_path / "a.jsonl", rows("会好的。", distortions=labels(ours)))
    one = scores(ref, file, metrics="distortion_micro_f1")["distortion_micro_f1"]
    assert (one.value, one.n_scored) == ((1.0, N) if is_measured else (None, 0))
    if not is_measured:
        assert one.unscored_reason is not None and "from the question" in one.unscored_reason


def test_wins_are_counted_where_the_metric_applies_to_both_systems(tmp_path: Path) -> None:
    ref = write(
        tmp_path / "ref.jsonl",
        rows("慢慢来。", distortions=lambda number: labelled("answer:m", "labeling")),
    )

    def some(first: int, last: int, kind: str) -> Callable[[int], list[Row] | None]:
        return lambda number: labelled("answer:n", kind) if first <= number < last else None

    a = write(tmp_path / "a.jsonl", rows("会好的。", distortions=some(0, 30, "labeling")))
    b = write(tmp_path / "b.jsonl", rows("加油。", distortions=some(10, 40, "filter")))
    one = found(ref, a, b, metrics="distortion_micro_f1")["distortion_micro_f1"]
    assert (one.n, one.n_losses, one.win_rate) == (20, 20, 0)
    assert (one.baseline_value, one.system_value, one.difference) == (1, 0, -1)
    assert one.p is not None and one.p < 0.05
    never = write(tmp_path / "c.jsonl", rows("加油。", distortions=some(30, 40, "filter")))
    apart = found(ref, a, never, metrics="distortion_micro_f1")["distortion_micro_f1"]
    assert apart.n == 0 and apart.unscored_reason is not None
    assert "no question" in apart.unscored_reason


def test_a_score_on_few_questions_says_why_it_has_no_interval(tmp_path: Path) -> None:
    ref = write(
        tmp_path / "ref.jsonl",
        rows("慢慢来。", risk=lambda number: "explicit" if number < 3 else "none"),
    )
    done = scores(ref, write(tmp_path / "a.jsonl", rows("请拨打12356。")))
    route, distinct = done["help_route"], done["distinct_1"]
    assert (route.value, route.n_scored, route.high) == (1, 3, 1)
    assert route.low is not None and 0.2 < route.low < 0.8  # Jeffreys' interval of 3 in 3
    assert distinct.low is None and "cannot be drawn apart" in (distinct.interval_reason or "")
    drawn = scores(ref, tmp_path / "a.jsonl", interval="percentile")
    route, bleu = drawn["help_route"], drawn["bleu_zh"]
    assert (route.value, route.n_scored, route.low, route.high) == (1, 3, None, None)
    assert route.interval_reason == "3 scored questions, fewer than 10"
    assert route.n_left_out > 0
    assert bleu.low is not None and bleu.interval_reason is None and bleu.n_left_out == 0


def test_answers_to_one_question_are_one_scored_question(tmp_path: Path) -> None:
    many = rows("慢慢来。", topic=lambda number: str(number % 2))
    ref = write(tmp_path / "ref.jsonl", many)
    file = write(tmp_path / "a.jsonl", rows("会好的。"))
    told = {"metrics": "bleu_zh", "cluster_column": "topic"}
    one = scores(ref, file, **told)["bleu_zh"]
    assert one.n_scored == N and one.low is None
    assert one.interval_reason == "rests on 2 questions, fewer than 3"
    drawn = scores(ref, file, interval="percentile", **told)["bleu_zh"]
    assert drawn.interval_reason == "2 scored questions, fewer than 10"


def columns_where(applies: Mapping[int, bool], *, is_reference: bool) -> dict[str, Any]:
    """Everything that any metric asks for on some questions, nothing on the others."""

    def on(value: Callable[[int], Any], otherwise: Any) -> Callable[[int], Any]:
        return lambda number: value(number) if applies[number] else otherwise

    made: dict[str, Any] = {
        "steps": on(steps_of, None),
        "distortions": on(lambda number: labelled("answer:m", "labeling"), None),
        "risk": on(lambda number: "explicit", "none"),
    }
    if is_reference:  # an empty reference leaves a ratio of lengths undefined
        made["answer"] = on(lambda number: f"第{number}件事，慢慢来。", "")
    return made


def sizes() -> Iterator[tuple[int, int]]:
    """Questions, and those of them where metrics apply: on both sides of each least number.

    An interval of wins wants 2, `ar` 6 and `bs` 10.
    """
    for n_applies in (1, 2, 5, 6, 9, 10):
        yield N, n_applies
    for n in (1, 2, 10):
        for n_applies in sorted({0, 1, n - 1, n}):
            yield n, n_applies


@pytest.mark.parametrize(("n", "n_applies"), list(sizes()))
@pytest.mark.parametrize("is_everywhere", [True, False])
def test_no_subset_of_questions_makes_any_metric_crash_or_write_nan(
    tmp_path: Path, n: int, n_applies: int, is_everywhere: bool
) -> None:
    """`is_everywhere`: the two systems lack the same questions, or each its own."""
    rng = np.random.default_rng(1000 * n + n_applies)

    def subset() -> dict[int, bool]:
        chosen = set(rng.choice(n, n_applies, replace=False).tolist())
        return {number: number in chosen for number in range(n)}

    shared = subset()
    ref = write(tmp_path / "ref.jsonl", rows("", n, **columns_where(shared, is_reference=True)))
    files = tuple(
        write(
            tmp_path / f"{name}.jsonl",
            rows(
                tail,
                n,
                **columns_where(shared if is_everywhere else subset(), is_reference=False),
            ),
        )
        for name, tail in (("a", "请拨打12356。"), ("b", "加油。"))
    )
    flags = {"predictions": files, "ref": ref, "metrics": ",".join(METRICS), "bootstrap": 100}
    resolved = resolve(ScoreSettings, flags=flags, environ={})
    write_folder(tmp_path / "out", score(resolved.values), resolved, "2026-01-01T00:00:00+00:00")
    told = strict(tmp_path / "out" / SCORES_NAME)
    assert {one["metric"] for one in told["scores"]} == set(METRICS)
    for one in told["scores"]:
        assert (one["value"] is None) == (one["unscored_reason"] is not None)
        assert (one["value"] is None) <= (one["n_scored"] == 0)
        assert (one["low"] is None) == (one["high"] is None)
    for test, convention in TESTS:
        settings = CompareSettings(
            **{**flags, "test": test, "p_convention": convention, "trials": 100}
        )
        done = compare(settings)
        write_comparison(tmp_path / test, done)
        check(done)
        strict(tmp_path / test / COMPARISON_NAME)
        assert "nan" not in (tmp_path / test / "compare.md").read_text(encoding="utf-8").lower()


def check(done: Comparison) -> None:
    """Counts add up, and whatever is not there says why."""
    for one in done.pairs:
        assert one.n == one.n_wins + one.n_losses + one.n_ties
        assert (one.n == 0) == (one.unscored_reason is not None) == (one.difference is None)
        assert (one.low is None) == (one.high is None) == (one.interval_reason is not None)
        assert (one.p is None) == (one.p_adjusted is None) == (one.p_reason is not None)
        assert (one.win_rate is None) == (one.n == 0)
        assert one.n >= (6 if one.test.startswith("ar") else 10) or one.p is None
        assert (one.win_low is None) == (one.n < 2)
