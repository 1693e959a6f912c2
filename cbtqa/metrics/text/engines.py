"""The counting machinery behind the metrics, in two speeds with identical results.

`numpy_engine` needs no compiler. `compiled_engine` (extra `fast`) is several times faster but
pays for loading, and once per machine for compiling, so `engine_for` takes it for large jobs only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from cbtqa.errors import MissingExtraError
from cbtqa.metrics.text.counts import aligned_counts, common_lengths, ngram_counts
from cbtqa.metrics.text.segmentation import PythonSegmenter, Segmenter, jieba_tables, rust_segmenter
from cbtqa.metrics.text.sequences import Ints, Sequences, Vocabulary

EngineName = Literal["auto", "numpy", "compiled"]
COMPILED_FROM_TEXTS = 6_000
"""Below, loading the compiled engine costs more than it saves. Measured: docs/metrics.md."""


@dataclass(frozen=True)
class Engine:
    """Four exact counts; every engine gives the same."""

    name: str
    words: Callable[[Sequence[str], Vocabulary], Sequences]
    """jieba's words of each text, whitespace included."""
    ngram_counts: Callable[[Sequences, Sequences, int], Ints]
    aligned_counts: Callable[[Sequences, Sequences, Ints, Ints], tuple[Ints, Ints]]
    common_lengths: Callable[[Sequences, Sequences], Ints]


def numpy_engine() -> Engine:
    """numpy, with rjieba for the words when it is installed."""
    segmenter: list[Segmenter] = []

    def words(texts: Sequence[str], vocabulary: Vocabulary) -> Sequences:
        if not segmenter:  # a run without word metrics never loads a dictionary
            segmenter.append(_segmenter())
        return Sequences.of(map(segmenter[0].cut, texts), vocabulary)

    return Engine("numpy", words, ngram_counts, aligned_counts, common_lengths)


def _segmenter() -> Segmenter:
    try:
        return rust_segmenter()
    except MissingExtraError:
        return PythonSegmenter(jieba_tables())


def compiled_engine() -> Engine:
    """numba kernels for all four counts.

    Raises:
        MissingExtraError: numba is not installed.
    """
    try:
        import numba  # noqa: F401  # asked for here so that the message names the extra
    except ImportError:
        raise MissingExtraError("numba", "fast") from None
    from cbtqa.metrics import compiled_counts
    from cbtqa.metrics.compiled_segmenter import CompiledSegmenter

    segmenter: list[CompiledSegmenter] = []

    def words(texts: Sequence[str], vocabulary: Vocabulary) -> Sequences:
        if not segmenter:
            segmenter.append(CompiledSegmenter(jieba_tables()))
        return segmenter[0].sequences(texts, vocabulary)

    return Engine(
        "compiled",
        words,
        compiled_counts.ngram_counts,
        compiled_counts.aligned_counts,
        compiled_counts.common_lengths,
    )


def engine_for(n_texts: int, name: EngineName = "auto") -> Engine:
    """The engine asked for; `auto` compiles only when there is enough work and numba is there."""
    if name == "compiled":
        return compiled_engine()
    is_worth_it = n_texts >= COMPILED_FROM_TEXTS and importlib.util.find_spec("numba")
    if name == "auto" and is_worth_it:
        return compiled_engine()
    return numpy_engine()
