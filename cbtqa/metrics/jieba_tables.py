"""jieba's dictionary and hidden Markov tables, read as data from the installed package.

jieba itself is not asked to segment anything: its tokenizer object is global and mutable (a
`load_userdict` elsewhere changes scores), and its start-up loads a file from the shared
temporary folder with `marshal`, which any user of the machine may have put there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import warnings
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path

from cbtqa.errors import DataError, MissingExtraError

STATES = "BMES"
"""Begin, middle, end of a word; single-character word."""
MIN_FLOAT = -3.14e100
"""jieba's stand-in for the logarithm of zero. Source: `jieba/finalseg/__init__.py`."""


@dataclass(frozen=True)
class JiebaTables:
    """Everything that decides a segmentation."""

    log_weights: dict[str, float]
    """Word to log(frequency) - log(total), as jieba computes it at every step."""
    unknown: float
    """The same for a word of frequency one: a character outside the dictionary."""
    longest: dict[str, int]
    """First character to the length of the longest word that starts with it."""
    start: dict[str, float]
    trans: dict[str, dict[str, float]]
    emit: dict[str, dict[str, float]]


@cache
def words_signature() -> tuple[tuple[str, str], ...]:
    """Signature fields that name a segmentation: jieba's version and its dictionary's hash.

    Raises:
        MissingExtraError: jieba is not installed.
    """
    digest = hashlib.sha256(_dictionary()).hexdigest()
    return (("tok", f"jieba-{importlib.metadata.version('jieba')}+hmm"), ("dict", digest[:12]))


def _dictionary() -> bytes:
    # found through the metadata: importing jieba for its folder costs more than reading the file
    try:
        place = importlib.metadata.distribution("jieba").locate_file("jieba/dict.txt")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError("jieba", "metrics") from None
    return Path(str(place)).read_bytes()


@cache
def jieba_tables() -> JiebaTables:
    """The tables of the installed jieba.

    Raises:
        MissingExtraError: jieba is not installed.
        DataError: its dictionary is not `word frequency tag` per line.
    """
    try:
        with warnings.catch_warnings():
            # jieba's own source warns on import: escapes (Python 3.12) and pkg_resources
            warnings.simplefilter("ignore")
            from jieba.finalseg import prob_emit, prob_start, prob_trans
    except ImportError:
        raise MissingExtraError("jieba", "metrics") from None
    fields = _dictionary().decode("utf-8").split()
    words, frequencies = fields[0::3], fields[1::3]
    try:
        counts = [int(frequency) for frequency in frequencies]
    except ValueError:
        raise DataError("expected `word frequency tag` per line", where="jieba/dict.txt") from None
    log_total = log(sum(counts))
    by_word = dict(zip(words, counts, strict=True))
    longest: dict[str, int] = {}
    for word in by_word:
        if len(word) > longest.get(word[0], 0):
            longest[word[0]] = len(word)
    return JiebaTables(
        log_weights={word: log(count) - log_total for word, count in by_word.items() if count},
        unknown=log(1) - log_total,
        longest=longest,
        start=prob_start.P,
        trans=prob_trans.P,
        emit=prob_emit.P,
    )
