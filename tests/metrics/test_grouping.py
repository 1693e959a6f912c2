"""Which rows are one question: found without being asked, or told as not used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbtqa.errors import DataError, UsageError
from cbtqa.metrics.comparison import CompareSettings, Comparison, compare
from cbtqa.metrics.score_folder import write_folder
from cbtqa.metrics.scoring import ScoreReport, ScoreSettings, score
from cbtqa.settings import resolve
from tests.metrics.test_scoring import write

N_QUESTIONS, N_EACH = 20, 3
Columns = Mapping[str, Callable[[int], Any]]
"""A column's value by the number of the question."""
LETTERS = list("我你睡眠压力朋友工作担心难过呼吸散步日记证据计划今天可以")


def files(folder: Path, ref: Columns, systems: Columns | None = None) -> tuple[Path, list[Path]]:
    """References and two systems: 20 questions of three rows, answered alike within a question."""
    rng = np.random.default_rng(3)
    rows: dict[str, list[dict[str, Any]]] = {"ref": [], "a": [], "b": []}
    for question in range(N_QUESTIONS):
        answer = rng.choice(LETTERS, 40)
        shares = rng.beta(2, 2, 2)
        for copy in range(N_EACH):
            own = {"id": f"{question}-{copy}"}
            told = {name: make(question) for name, make in ref.items()}
            rows["ref"].append({**own, "answer": "".join(answer) + "。" * copy, **told})
            for name, share in zip("ab", shares, strict=True):
                changed = np.where(rng.random(40) < share, rng.choice(LETTERS, 40), answer)
                told = {name: make(question) for name, make in (systems or {}).items()}
                rows[name].append({**own, "text": "".join(changed), **told})
    paths = [write(folder / f"{name}.jsonl", of) for name, of in rows.items()]
    return paths[0], paths[1:]


def run(ref: Path, systems: list[Path], **settings: Any) -> Comparison:
    told = {"metrics": "chrf2", "trials": 2_000, "examples": 0, **settings}
    return compare(CompareSettings(predictions=tuple(systems), ref=ref, **told))


def scored(ref: Path, systems: list[Path], **settings: Any) -> ScoreReport:
    told = {"metrics": "chrf2", "anchors": False, **settings}
    return score(ScoreSettings(predictions=tuple(systems), ref=ref, **told)).report


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("question", lambda number: f"第{number}件事让我 睡不着"),
        ("question_id", lambda number: f"q{number}"),
        ("qid", lambda number: number),
        ("prompt", lambda number: f"请回答：第{number}件事"),
        (
            "messages",
            lambda number: [
                {"role": "user", "content": f"第{number}件事"},
                {"role": "assistant", "content": "嗯"},
            ],
        ),
    ],
)
def test_rows_of_one_question_are_drawn_together_without_being_asked(
    tmp_path: Path, column: str, value: Callable[[int], Any]
) -> None:
    ref, systems = files(tmp_path, {column: value})
    found = run(ref, systems)
    assert (found.grouping.by, found.grouping.n_drawn, found.grouping.n_rows) == (column, 20, 60)
    assert "20 questions (60 rows" in found.grouping.line
    by_hand = run(ref, systems, cluster_column=column).pairs
    assert found.pairs == by_hand
    by_row = run(ref, systems, cluster_column="id")
    assert by_row.grouping.n_drawn == 60
    assert by_row.pairs[0].p < found.pairs[0].p
    width, narrow = (one.high - one.low for one in (found.pairs[0], by_row.pairs[0]))
    assert width > 1.3 * narrow


def test_predictions_tell_the_question_where_references_do_not(tmp_path: Path) -> None:
    ref, systems = files(tmp_path, {}, {"question": lambda number: f"第{number}件事让我难过"})
    report = scored(ref, systems)
    assert (report.grouping.by, report.grouping.n_drawn) == ("question", 20)
    assert "clusters:20" in report.scores[0].signature


def test_files_that_name_no_question_group_by_equal_references(tmp_path: Path) -> None:
    """Plain text, one answer a line, has nothing else."""
    rng = np.random.default_rng(1)
    lines = ["".join(rng.choice(LETTERS, 30)) for _ in range(12) for _ in range(1)]
    paths = []
    for name, tail in (("ref", ""), ("hyp", "吗")):
        path = tmp_path / f"{name}.txt"
        texts = [line + tail * copy for line in lines for copy in range(3)]
        path.write_text("\n".join(texts), "utf-8")
        paths.append(path)
    report = scored(paths[0], paths[1:])
    assert (report.grouping.by, report.grouping.n_drawn) == ("one reference", 12)
    assert "12 questions (36 rows, those with the same reference together)" in report.grouping.line


@pytest.mark.parametrize("side", ["references", "predictions"])
@pytest.mark.parametrize("column", ["patient", "rater", "session_id", "dialogue", "来访者"])
def test_other_columns_that_group_rows_are_told(tmp_path: Path, column: str, side: str) -> None:
    grouped = {column: lambda number: f"P{number % 6}"}
    question = {"question": lambda number: f"第{number}件事让我睡不着"}
    ref, systems = files(
        tmp_path,
        {**question, **(grouped if side == "references" else {})},
        grouped if side == "predictions" else {},
    )
    (warning,) = [one for one in run(ref, systems).warnings if "is not used" in one]
    assert f"column `{column}` (6 groups)" in warning
    assert f"--cluster-column {column} draws" in warning


def test_columns_that_group_nothing_further_are_not_told(tmp_path: Path) -> None:
    """A template that is the same for all, a finer column, one with a value to each row."""
    ref, systems = files(
        tmp_path,
        {
            "question": lambda number: f"第{number}件事让我睡不着",
            "question_group": lambda number: f"g{number}",
            "session": lambda number: "s1",
            "topic": lambda number: number % 4,
        },
    )
    assert not [one for one in scored(ref, systems).warnings if "is not used" in one]


def test_a_template_that_all_rows_share_is_no_question(tmp_path: Path) -> None:
    ref, systems = files(
        tmp_path,
        {
            "prompt": lambda number: ("v1", "v2")[number % 2],
            "question": lambda number: f"问{number}",
        },
    )
    assert scored(ref, systems).grouping.by == "question"


def stored(folder: Path, ref: Path, *systems: Path, **settings: Any) -> Path:
    flags = {"predictions": systems, "ref": ref, "metrics": "chrf2", "anchors": False, **settings}
    resolved = resolve(ScoreSettings, flags=flags, environ={})
    write_folder(folder, score(resolved.values), resolved, "2026-01-01T00:00:00+00:00")
    return folder


def test_stored_scores_keep_their_questions(tmp_path: Path) -> None:
    question = {"question": lambda number: f"第{number}件事让我睡不着", "patient": lambda n: n % 5}
    ref, systems = files(tmp_path, question)
    kept = stored(tmp_path / "both", ref, *systems)
    found = compare(CompareSettings(predictions=(kept,), trials=2_000, examples=0))
    fresh = run(ref, systems)
    assert found.pairs == fresh.pairs and found.grouping == fresh.grouping
    assert any("`patient`" in one for one in found.warnings)
    with pytest.raises(UsageError, match="--cluster-column needs files"):
        compare(CompareSettings(predictions=(kept,), cluster_column="question"))


def test_questions_known_of_one_system_hold_for_all_and_two_groupings_are_refused(
    tmp_path: Path,
) -> None:
    question = {"question": lambda number: f"第{number}件事让我睡不着", "patient": lambda n: n % 5}
    ref, systems = files(tmp_path, question)
    by_row, by_question, by_patient = (
        stored(tmp_path / column, ref, system, cluster_column=column)
        for column, system in zip(
            ("id", "question", "patient"), (*systems, systems[0]), strict=True
        )
    )
    found = compare(CompareSettings(predictions=(by_row, by_question), trials=2_000, examples=0))
    assert found.grouping.n_drawn == 20
    with pytest.raises(DataError, match="other questions: by question and by patient"):
        compare(CompareSettings(predictions=(by_question, by_patient)))


def test_percentile_intervals_on_few_questions_are_told_as_too_narrow(tmp_path: Path) -> None:
    ref, systems = files(tmp_path, {"question": lambda number: f"第{number}件事让我睡不着"})
    told = scored(ref, systems, interval="percentile").warnings
    assert any("too narrow on 20 questions" in one for one in told)
    assert not any("too narrow" in one for one in scored(ref, systems).warnings)
