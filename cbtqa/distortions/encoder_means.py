"""An encoder that is read and not changed: further columns of the light model.

The mean of a text's tokens after five layers, in deviations from the training texts, stands beside
the n-grams in the same regression. Seconds per thousand sentences on a CPU, where tuning takes an
hour. torch is imported when an encoder is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cbtqa.errors import ConfigError
from cbtqa.safety.encoder import Encoder

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
N_LAYERS = 5
"""Layers that are read: the last, and others down to a third of the depth."""
COLUMN_WEIGHT = 0.02
"""Of one column in deviations, beside n-grams of unit length in all; measured, see docs/log.md."""
_MOST_KNOWN = 10_000
"""Texts whose means are kept: cross-validation comes back to each."""


class MeansReader:
    """An encoder, and what it made of the texts it has read."""

    def __init__(self, given: str) -> None:
        self.given, self._encoder = given, Encoder(given, flag="--encoder")
        self.weights_sha256 = self._encoder.weights_sha256
        depth = int(self._encoder.model.config.num_hidden_layers)
        # from a third of the depth to the last: 4, 6, 8, 10 and 12 of 12
        spread = np.linspace(max(1, depth // 3), depth, N_LAYERS)
        self.layers = tuple(sorted({round(layer) for layer in spread.tolist()}))
        self._known: dict[str, Floats32] = {}

    def means(self, texts: Sequence[str], say: Callable[[str], None] | None = None) -> Floats:
        """`(texts, layers x hidden size)`; zero for a text without a word."""
        if len(self._known) + len(texts) > _MOST_KNOWN:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]

        def on_step(done: int, of: int) -> None:
            if say and len(new) > 100:
                say(f"encoder: {done:,} of {of:,} texts read")

        size = len(self.layers) * int(self._encoder.model.config.hidden_size)
        read = self._encoder.means(new, self.layers, on_step) if new else []
        for text, found in zip(new, read, strict=True):
            mean = found.means.mean(axis=0) if len(found.means) else np.zeros(size)
            self._known[text] = mean.astype(np.float32)
        rows = [self._known[text] for text in texts]
        return np.array(rows, np.float64).reshape(len(texts), size)


@cache
def open_reader(given: str) -> MeansReader:
    """The reader of an encoder's folder or Hub id, opened once.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ConfigError: no encoder of BERT's kind under that name.
    """
    # a path stays right where the model is loaded from another folder
    return MeansReader(str(Path(given).resolve()) if Path(given).is_dir() else given)


@dataclass(frozen=True)
class EncoderColumns:
    """What the columns of an encoder add to the scores of a light model."""

    given: str
    """Folder or Hub id."""
    weights_sha256: str
    mean: Floats32
    """`(columns,)`, over the training texts."""
    spread: Floats32
    """`(columns,)`, likewise; the weight of a column is in it."""
    coefficients: Floats32
    """`(columns, types)`."""

    def scores(self, texts: Sequence[str]) -> Floats:
        """`(texts, types)`: what is added.

        Raises:
            ConfigError: the encoder is missing, or has other weights.
        """
        reader = open_reader(self.given)
        if reader.weights_sha256 != self.weights_sha256:
            found = f"the weights of {self.given} are not those that the labeller was trained with"
            raise ConfigError(found, hint="put them back, or train the labeller again")
        deviations = scaled(reader.means(texts), self.mean, self.spread)
        return np.asarray(deviations @ self.coefficients, np.float64)


def spread_of(means: Floats) -> tuple[Floats32, Floats32]:
    """Mean and divisor of each column."""
    spread = np.maximum(means.std(axis=0), 1e-6) / COLUMN_WEIGHT
    return means.mean(axis=0).astype(np.float32), spread.astype(np.float32)


def scaled(means: Floats, mean: Floats32, spread: Floats32) -> Floats:
    return np.asarray((means - mean) / spread, np.float64)
