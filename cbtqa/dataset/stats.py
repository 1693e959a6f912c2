"""What a dataset holds, counted in one pass and in memory that does not grow with it.

Lengths are in characters (code points), their quantiles exact, from a histogram of lengths. Signs
of a template are measured on a sample.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from itertools import accumulate, combinations, pairwise
from typing import Any

from pydantic import Field

from cbtqa.dataset_folder import DatasetFolder
from cbtqa.distortions.evaluate import EvaluationReport
from cbtqa.distortions.prevalence import Prevalence, labelled_share, published_prevalence
from cbtqa.metrics.diversity import OPENING_CHARACTERS, distinct_share, repeated_share
from cbtqa.papers import paper_table, papers
from cbtqa.records import STEP_NAMES, Record

# --- lengths -------------------------------------------------------------------------------------

BIN_WIDTHS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)
MAX_BINS = 30
TAIL = 0.995
"""The bars reach to this quantile when the longest text lies far beyond it."""


class Bin(Record):
    low: int
    high: int | None
    """The first length that no longer counts; None for a last bar that takes all beyond."""
    n: int


class LengthSummary(Record):
    """Lengths of one column in characters, over the rows where it is not null."""

    n: int
    mean: float
    sd: float
    """Population standard deviation."""
    min: int
    median: float
    p95: float
    max: int
    bins: tuple[Bin, ...]


def summarise_lengths(histogram: Counter[int]) -> LengthSummary:
    """Summary of at least one length; `histogram` holds the number of texts by length."""
    n = histogram.total()
    mean = sum(value * count for value, count in histogram.items()) / n
    ordered = sorted(histogram.items())
    variance = math.fsum((value - mean) ** 2 * count for value, count in ordered) / n
    values = [value for value, _ in ordered]
    ranks = list(accumulate(count for _, count in ordered))

    def value_at(rank: int) -> int:
        return values[bisect_right(ranks, rank)]

    def quantile(share: float) -> float:
        """Linear between the two nearest values, as numpy's default."""
        low_rank, rest = divmod(share * (n - 1), 1)
        low, high = value_at(int(low_rank)), value_at(math.ceil(share * (n - 1)))
        return low + (high - low) * rest

    return LengthSummary(
        n=n,
        mean=mean,
        sd=math.sqrt(variance),
        min=values[0],
        median=quantile(0.5),
        p95=quantile(0.95),
        max=values[-1],
        bins=_bins(ordered, value_at(math.floor(TAIL * (n - 1)))),
    )


def _bins(ordered: list[tuple[int, int]], shown: int) -> tuple[Bin, ...]:
    """At most 31 bars of a round width; empty ones between the first and the last are kept.

    A few very long texts must not squeeze all others into one bar: then the last bar is open.

    Args:
        shown: the length that the closed bars reach to, at least.
    """
    low, high = ordered[0][0], ordered[-1][0]
    if high <= low + 1.5 * (shown - low):
        shown = high
    width = next((w for w in BIN_WIDTHS if shown // w - low // w < MAX_BINS), None)
    width = width or math.ceil((shown - low + 1) / (MAX_BINS - 1))
    start = low // width * width
    last = (shown - start) // width
    counts: Counter[int] = Counter()
    for value, count in ordered:
        counts[min((value - start) // width, last + 1)] += count
    edges = [start + k * width for k in range(last + 2)]
    bars = [Bin(low=low, high=high, n=counts[k]) for k, (low, high) in enumerate(pairwise(edges))]
    if counts[last + 1]:
        bars.append(Bin(low=edges[-1], high=None, n=counts[last + 1]))
    return tuple(bars)


# --- likeness to a template ----------------------------------------------------------------------
# Measured on a sample of fixed size, chosen by a hash of the question id: distinct counts fall
# as texts grow in number, so only samples of one size compare.

SAMPLE_SIZE = 2_000
SHORT_OPENING = 6
TOP_OPENINGS = 5


class Openings(Record):
    column: str
    n: int
    n_distinct_short: int
    """Distinct first 6 characters."""
    n_distinct: int
    """Distinct first 8 characters."""
    most_common: tuple[tuple[str, int], ...]
    """Openings of 8 characters that occur more than once, most frequent first."""
    repeated_share: float | None
    """Share of the column's characters in a run of 12 that another sampled answer's same column
    has too; None for a single answer."""


class TemplateLikeness(Record):
    """Signs that the answers come from a template, on a sample of at most 2,000."""

    n_sampled: int
    distinct_2: float | None
    """The metric `distinct_2` on the sampled answers; None without any pair of characters."""
    n_repeated_answers: int
    """Sampled answers whose whole text another sampled answer has too."""
    openings: tuple[Openings, ...]


def sample_key(item_id: str, salt: str = "") -> int:
    """A number that depends on the id alone: the smallest N make a repeatable random sample."""
    return int.from_bytes(blake2b(f"{salt}\0{item_id}".encode(), digest_size=8).digest())


class AnswerSample:
    """The `size` rows with the smallest hash of their id: the same whatever the order."""

    def __init__(self, size: int = SAMPLE_SIZE) -> None:
        self._size = size
        self._heap: list[tuple[int, str, tuple[str, ...]]] = []

    def offer(self, row: Mapping[str, Any]) -> None:
        steps = tuple(row[name] or "" for name in STEP_NAMES)
        entry = -sample_key(row["id"], "likeness"), row["answer"], steps
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def likeness(self) -> TemplateLikeness:
        answers = [answer for _, answer, _ in self._heap]
        columns = {"answer": answers}
        for place, name in enumerate(STEP_NAMES):
            columns[name] = [steps[place] for _, _, steps in self._heap if steps[place]]
        return TemplateLikeness(
            n_sampled=len(answers),
            distinct_2=distinct_share(answers),
            n_repeated_answers=sum(n for n in Counter(answers).values() if n > 1),
            openings=tuple(_openings(name, found) for name, found in columns.items() if found),
        )


def _openings(column: str, found: list[str]) -> Openings:
    counts = Counter(text[:OPENING_CHARACTERS] for text in found)
    return Openings(
        column=column,
        n=len(found),
        n_distinct_short=len({text[:SHORT_OPENING] for text in found}),
        n_distinct=len(counts),
        most_common=tuple(item for item in _ranked(counts)[:TOP_OPENINGS] if item[1] > 1),
        repeated_share=repeated_share(found),
    )


# --- statistics ----------------------------------------------------------------------------------

TEXT_COLUMNS = ("question", "description", "answer", *STEP_NAMES)
COLUMNS = (
    *("id", *TEXT_COLUMNS, "keywords", "distortions", "risk", "system", "model", "endpoint_host"),
    *(
        "dangers",
        "is_acute",
        "is_minor",
        "is_training_source",
        "prompt_tokens",
        "completion_tokens",
    ),
)
"""The columns that are read; the others do not enter the statistics."""
TOP_KEYWORDS = 20
KEYWORDS_HELD = 100_000
"""Distinct keywords counted exactly; beyond this the once-seen are forgotten now and then."""


class LabelCount(Record):
    id: str
    n_entries: int
    """Entries with at least one label of this type."""
    share_of_entries: float
    share_of_distorted: float
    n_with_evidence: int
    """Entries where at least one of these labels quotes its evidence."""


class LabelPair(Record):
    first: str
    second: str
    n: int


class DatasetStatistics(Record):
    n_entries: int
    splits: dict[str, int]
    n_distorted: int
    share_distorted: float | None
    """None for an empty dataset."""
    labels: tuple[LabelCount, ...]
    """Most frequent first."""
    labellers: dict[str, int]
    """Labels by who gave them."""
    labels_per_entry: dict[int, int]
    """Number of distinct types in an entry to the number of such entries."""
    label_pairs: tuple[LabelPair, ...]
    lengths: dict[str, LengthSummary]
    """By column; a column that is null in every row is absent."""
    risk: dict[str, int]
    dangers: dict[str, int]
    """Entries by danger beside suicide and self-harm; an entry may have several."""
    n_acute: int
    """Entries with an acute one."""
    n_minors: int
    """Entries whose asker says to be under 18."""
    keywords: tuple[tuple[str, int], ...]
    systems: dict[str, int]
    models: dict[str, int]
    hosts: dict[str, int]
    """Host names of the endpoints that answered; empty when none was asked."""
    n_training_source: int
    n_with_steps: int
    prompt_tokens: int | None
    """None when no row holds a count."""
    completion_tokens: int | None
    likeness: TemplateLikeness


class PaperFacts(Record):
    """Figures that the paper reports of its dataset; None where it is silent."""

    citation: str
    n_entries: int
    n_distorted: int
    share_distorted: float
    labels: dict[str, float]
    """Share among the entries with a distortion, by type."""
    lengths: dict[str, float | None] = Field(default_factory=dict)
    note: str


@cache
def paper_facts() -> PaperFacts:
    """Table 1 of arXiv 2403.16008, as far as it is known."""
    table = paper_table("cbt-llm", "dataset")

    def under(word: str) -> dict[str, float | None]:
        starts = {row: row.removeprefix(word) for row in table.rows if row.startswith(word)}
        return {name: table.value(row) for row, name in starts.items()}

    return PaperFacts(
        citation=papers()["cbt-llm"].citation,
        labels=under("share_of "),
        lengths=under("length_of "),
        note=table.note,
        **{name: table.value(name) for name in ("n_entries", "n_distorted", "share_distorted")},
    )


def distortion_share(
    statistics: DatasetStatistics, evaluation: EvaluationReport | None = None
) -> Prevalence:
    """Share of the entries with a distortion label; corrected where its labeller was evaluated."""
    n, n_labelled = statistics.n_entries, statistics.n_distorted
    return labelled_share(n, n_labelled, statistics.labellers, evaluation)


def paper_distortion_share() -> Prevalence:
    """The same of the paper's dataset, by its own evaluation."""
    paper = paper_facts()
    return published_prevalence(paper.n_entries, paper.n_distorted)


def folder_statistics(folder: DatasetFolder) -> DatasetStatistics:
    tally = StatisticsTally()
    for split in folder.splits:
        for row in folder.rows(split, COLUMNS):
            tally.add(split, row)
    return tally.result()


class StatisticsTally:
    """Counts rows as they pass; `result` may be asked at any time."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, Counter[Any]] = defaultdict(Counter)
        self._lengths: dict[str, Counter[int]] = {name: Counter() for name in TEXT_COLUMNS}
        self._keywords: Counter[str] = Counter()
        self._tokens: dict[str, int | None] = {"prompt_tokens": None, "completion_tokens": None}
        self._n_training_source = self._n_with_steps = self._n_acute = self._n_minors = 0
        self._sample = AnswerSample()

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        for name, value in (("split", split), *((n, row[n]) for n in ("risk", "system", "model"))):
            self._counts[name][value] += 1
        self._counts["danger"].update(row["dangers"] or ())
        self._n_acute += bool(row["is_acute"])
        self._n_minors += bool(row["is_minor"])
        if row["endpoint_host"] is not None:
            self._counts["host"][row["endpoint_host"]] += 1
        for name in TEXT_COLUMNS:
            if row[name] is not None:
                self._lengths[name][len(row[name])] += 1
        self._n_with_steps += row[STEP_NAMES[0]] is not None
        self._n_training_source += bool(row["is_training_source"])
        for name in self._tokens:
            if row[name] is not None:
                self._tokens[name] = (self._tokens[name] or 0) + row[name]
        self._add_labels(row["distortions"] or ())
        self._keywords.update(row["keywords"] or ())
        if len(self._keywords) > KEYWORDS_HELD:
            self._keywords = Counter({key: n for key, n in self._keywords.items() if n > 1})
        self._sample.offer(row)

    def _add_labels(self, labels: Sequence[Mapping[str, Any]]) -> None:
        found = sorted({label["id"] for label in labels})
        self._counts["label"].update(found)
        self._counts["labeller"].update(label["labeller"] for label in labels)
        self._counts["evidence"].update({label["id"] for label in labels if label["evidence"]})
        self._counts["n_labels"][len(found)] += 1
        self._counts["pair"].update(combinations(found, 2))

    def result(self) -> DatasetStatistics:
        counts = self._counts
        n_entries = counts["split"].total()
        n_distorted = n_entries - counts["n_labels"][0]
        return DatasetStatistics(
            n_entries=n_entries,
            splits=dict(counts["split"]),
            n_distorted=n_distorted,
            share_distorted=n_distorted / n_entries if n_entries else None,
            labels=tuple(
                LabelCount(
                    id=label,
                    n_entries=n,
                    share_of_entries=n / n_entries,
                    share_of_distorted=n / n_distorted,
                    n_with_evidence=counts["evidence"][label],
                )
                for label, n in _ranked(counts["label"])
            ),
            labellers=dict(_ranked(counts["labeller"])),
            labels_per_entry={k: n for k, n in sorted(counts["n_labels"].items()) if n},
            label_pairs=tuple(
                LabelPair(first=first, second=second, n=n)
                for (first, second), n in _ranked(counts["pair"])
            ),
            lengths={
                name: summarise_lengths(found) for name, found in self._lengths.items() if found
            },
            risk=dict(_ranked(counts["risk"])),
            dangers=dict(_ranked(counts["danger"])),
            n_acute=self._n_acute,
            n_minors=self._n_minors,
            keywords=tuple(_ranked(self._keywords)[:TOP_KEYWORDS]),
            systems=dict(_ranked(counts["system"])),
            models=dict(_ranked(counts["model"])),
            hosts=dict(_ranked(counts["host"])),
            n_training_source=self._n_training_source,
            n_with_steps=self._n_with_steps,
            **self._tokens,
            likeness=self._sample.likeness(),
        )


def _ranked(counts: Counter[Any]) -> list[tuple[Any, int]]:
    """Entries by falling count, ties by key, so that the order of rows does not matter."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
