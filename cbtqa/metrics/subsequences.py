"""Length of the longest common subsequence of each pair, for ROUGE-L.

Bit-parallel: one big integer holds a whole row of the classic table. Source: Hyyrö, Bit-parallel
LCS-length computation revisited, AWOCA 2004.
"""

from __future__ import annotations

import numpy as np

from cbtqa.metrics.sequences import Ints, Sequences


def common_lengths(predictions: Sequences, references: Sequences) -> Ints:
    """Shape (pairs,): tokens of the longest common subsequence."""
    return np.array(
        [
            _common_length(prediction, reference)
            for prediction, reference in zip(predictions.rows(), references.rows(), strict=True)
        ],
        np.int64,
    )


def _common_length(prediction: list[int], reference: list[int]) -> int:
    places: dict[int, int] = {}
    for position, symbol in enumerate(reference):
        places[symbol] = places.get(symbol, 0) | (1 << position)
    full = (1 << len(reference)) - 1
    row = full
    for symbol in prediction:
        if symbol in places:
            met = row & places[symbol]
            row = ((row + met) | (row - met)) & full
    return len(reference) - row.bit_count()
