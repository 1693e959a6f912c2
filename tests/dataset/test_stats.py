"""Dataset statistics: exact against numpy, whatever the order, flat in memory."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cbtqa.dataset.stats import (
    KEYWORDS_HELD,
    MAX_BINS,
    AnswerSample,
    DatasetStatistics,
    StatisticsTally,
    folder_statistics,
    paper_facts,
    sample_key,
    summarise_lengths,
)
from cbtqa.dataset_folder import DatasetFolder
from cbtqa.metrics.diversity import Distinct
from cbtqa.metrics.text.texts import Item, Reading, Texts
from cbtqa.records import STEP_NAMES
from tests.support.dataset_folder import make_rows, write_dataset_folder


def dataset_statistics(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> DatasetStatistics:
    """Statistics of `(split, row)` pairs."""
    tally = StatisticsTally()
    for split, row in rows:
        tally.add(split, row)
    return tally.result()


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=300))
def test_length_summaries_agree_with_numpy(lengths: list[int]) -> None:
    found = summarise_lengths(Counter(lengths))
    assert found.n == len(lengths)
    assert found.mean == pytest.approx(np.mean(lengths))
    assert found.sd == pytest.approx(np.std(lengths))
    assert (found.min, found.max) == (min(lengths), max(lengths))
    assert found.median == pytest.approx(np.quantile(lengths, 0.5))
    assert found.p95 == pytest.approx(np.quantile(lengths, 0.95))


@example([401, 3400, 4900])
@example([1, 30_990, 46_485])
@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=300))
def test_histogram_bars_hold_every_length_once_and_stay_few(lengths: list[int]) -> None:
    bins = summarise_lengths(Counter(lengths)).bins
    assert len(bins) <= MAX_BINS + 1
    assert sum(entry.n for entry in bins) == len(lengths)
    for entry in bins:
        inside = [k for k in lengths if entry.low <= k and (entry.high is None or k < entry.high)]
        assert len(inside) == entry.n
    assert all(first.high == second.low for first, second in pairwise(bins))


def test_a_few_huge_texts_do_not_squeeze_all_others_into_one_bar() -> None:
    bins = summarise_lengths(Counter([*range(100, 1100), 90_000])).bins
    assert bins[-1].high is None
    assert bins[-1].n == 1
    assert len(bins) > 15


def test_counts_agree_with_counting_by_hand() -> None:
    rows = make_rows(120)
    found = dataset_statistics(rows)
    plain = [row for _, row in rows]
    assert found.n_entries == 120
    assert found.splits == Counter(split for split, _ in rows)
    assert found.risk == Counter(row["risk"] for row in plain)
    assert found.n_distorted == sum(row["has_distortion"] for row in plain)
    assert found.share_distorted == found.n_distorted / 120
    assert found.n_training_source == found.n_with_steps == 120
    assert found.prompt_tokens == 610 * 120
    assert found.hosts == {"127.0.0.1": 120}
    labels = {entry.id: entry for entry in found.labels}
    for name, entry in labels.items():
        having = [r for r in plain if any(label["id"] == name for label in r["distortions"])]
        assert entry.n_entries == len(having)
        assert entry.share_of_entries == len(having) / 120
        assert entry.share_of_distorted == len(having) / found.n_distorted
    assert labels["emotional_reasoning"].n_with_evidence == 0
    assert sum(k * n for k, n in found.labels_per_entry.items()) == sum(
        entry.n_entries for entry in found.labels
    )
    assert sum(found.labels_per_entry.values()) == 120


def test_two_labels_of_one_type_count_once() -> None:
    (split, row), *_ = make_rows(1)
    label = {"id": "should", "evidence": "我应该", "labeller": "answer", "confidence": None}
    found = dataset_statistics([(split, {**row, "distortions": [label, {**label}]})])
    assert found.labels[0].n_entries == 1
    assert found.labels_per_entry == {1: 1}
    assert found.label_pairs == ()


def test_pairs_of_types_are_counted_in_one_order() -> None:
    rows = make_rows(1)
    labels = [
        {"id": name, "evidence": None, "labeller": "answer"} for name in ("should", "labeling")
    ]
    both = [
        ("train", {**rows[0][1], "id": "1", "distortions": labels}),
        ("train", {**rows[0][1], "id": "2", "distortions": labels[::-1]}),
    ]
    (pair,) = dataset_statistics(both).label_pairs
    assert (pair.first, pair.second, pair.n) == ("labeling", "should", 2)


def test_the_order_of_rows_does_not_matter() -> None:
    rows = make_rows(80)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert rows != shuffled
    assert dataset_statistics(rows) == dataset_statistics(shuffled)


def test_an_empty_dataset_has_no_shares_instead_of_zeros() -> None:
    found = dataset_statistics([])
    assert found.n_entries == 0
    assert found.share_distorted is None
    assert found.lengths == {}
    assert found.likeness.distinct_2 is None
    assert found.prompt_tokens is None


def test_fused_answers_have_no_step_lengths() -> None:
    found = dataset_statistics(make_rows(5, is_fused=True))
    assert found.n_with_steps == 0
    assert set(found.lengths) == {"question", "description", "answer"}
    assert [entry.column for entry in found.likeness.openings] == ["answer"]


def test_likeness_tells_a_template_from_varied_answers() -> None:
    same = dataset_statistics(make_rows(60)).likeness
    openings = {entry.column: entry for entry in same.openings}
    assert openings["strategy_or_insight"].n_distinct == 1
    assert openings["strategy_or_insight"].most_common[0][1] == 60
    rows = make_rows(60)
    varied = dataset_statistics(
        (split, {**row, "strategy_or_insight": f"{index:08d}各不相同"})
        for index, (split, row) in enumerate(rows)
    ).likeness
    entry = next(e for e in varied.openings if e.column == "strategy_or_insight")
    assert entry.n_distinct == entry.n == 60
    assert entry.n_distinct_short == 1
    assert entry.most_common == ()


def test_whole_answers_that_repeat_are_counted() -> None:
    rows = [(split, {**row, "answer": "同一篇"}) for split, row in make_rows(3)]
    assert dataset_statistics(rows).likeness.n_repeated_answers == 3


def test_a_template_is_seen_by_its_frame_where_its_openings_vary() -> None:
    frame = "，你可以试着把它写下来，看看有哪些证据支持它"
    rows = make_rows(40)
    slots = ["".join(chr(0x4E00 + 100 * k + j) for j in range(18)) for k in range(40)]
    filled = dataset_statistics(
        (split, {**row, "strategy_or_insight": slot[:9] + frame + slot[9:]})
        for slot, (split, row) in zip(slots, rows, strict=True)
    ).likeness
    entry = next(one for one in filled.openings if one.column == "strategy_or_insight")
    assert entry.n_distinct == entry.n
    assert entry.repeated_share == pytest.approx(len(frame) / (len(frame) + 18))


def test_distinct_2_is_the_figure_of_score() -> None:
    answers = [f"{row['answer']}\n第 {n} 次" for n, (_, row) in enumerate(make_rows(30))]
    rows = make_rows(30)
    found = dataset_statistics(
        (split, {**row, "answer": answer})
        for (split, row), answer in zip(rows, answers, strict=True)
    )
    collector = Distinct(2).collector()
    for block in (answers[:11], answers[11:]):
        texts = Texts([Item(text) for text in block], Reading())
        collector.add(texts, np.ones(len(block), np.bool_))
    assert found.likeness.distinct_2 == collector.score()


def test_the_sample_keeps_the_smallest_hashes_whatever_comes_first() -> None:
    rows = [
        {"id": str(k), "answer": f"{k}", **dict.fromkeys(STEP_NAMES, f"{k}")} for k in range(200)
    ]
    wanted = sorted(range(200), key=lambda k: sample_key(str(k), "likeness"))[:20]
    for order in (rows, rows[::-1]):
        sample = AnswerSample(size=20)
        for row in order:
            sample.offer(row)
        assert sorted(answer for _, answer, _ in sample._heap) == sorted(map(str, wanted))


def test_millions_of_free_keywords_are_forgotten_before_they_fill_memory() -> None:
    (split, row), *_ = make_rows(1)
    tally = StatisticsTally()
    for k in range(30):
        words = [f"{k}-{j}" for j in range(KEYWORDS_HELD // 20)]
        tally.add(split, {**row, "keywords": [*words, "恋爱"]})
    assert len(tally._keywords) <= KEYWORDS_HELD
    assert tally.result().keywords[0] == ("恋爱", 30)


def test_a_folder_gives_the_same_as_its_rows(tmp_path) -> None:
    folder = write_dataset_folder(tmp_path / "d", 30)
    statistics = folder_statistics(DatasetFolder.open(folder))
    assert statistics == dataset_statistics(make_rows(30))
    assert list(statistics.splits) == ["train", "validation", "test", "crisis"]


def test_a_dataset_of_which_everything_was_rejected_is_empty_and_no_error(tmp_path) -> None:
    folder = write_dataset_folder(tmp_path / "d", 0)
    assert folder_statistics(DatasetFolder.open(folder)).n_entries == 0


def test_the_papers_share_is_the_quotient_of_its_counts() -> None:
    paper = paper_facts()
    assert paper.n_distorted / paper.n_entries == pytest.approx(paper.share_distorted, abs=5e-4)
    assert paper.lengths == {"question": None, "description": None, "answer": None}
