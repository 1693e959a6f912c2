"""Qwen's `qwen.tiktoken` as the fast tokenizer of Qwen2, with the same ids.

The file lists byte strings by rank. A fast tokenizer wants the pair each of them is merged from,
which is what the ranks below it leave of it.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError
from cbtqa.tuning.libraries import require

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{number}|>" for number in range(205)),
)
"""In the order of their ids, from the number of ranks on. Source: Qwen-7B's tokenizer."""
NO_RANK = 1 << 60


def read_ranks(path: Path) -> dict[bytes, int]:
    """Byte string to id.

    Raises:
        DataError: not base64 and a number a line, a byte without a token, or gaps between ids.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise DataError("expected base64 and a number", where=f"{path}:{number}") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError("the ids are not 0, 1, 2, ... without gaps", where=str(path))
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise DataError("not every byte has a token of its own", where=str(path))
    return ranks


def merge_below(token: bytes, ranks: dict[bytes, int], below: int = NO_RANK) -> list[bytes]:
    """The parts left of a byte string when only tokens of a rank under `below` are merged."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 1:
        rank, place = min(
            (ranks.get(parts[i] + parts[i + 1], NO_RANK), i) for i in range(len(parts) - 1)
        )
        if rank >= below:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def build_tokenizer(ranks: dict[bytes, int]) -> Any:
    """transformers' Qwen2 tokenizer with these ranks and Qwen's special tokens behind them.

    Raises:
        DataError: a token that no single pair makes.
    """
    transformers = require("transformers")
    letters = byte_letters()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda pair: pair[1]):
        if len(token) > 1:
            parts = merge_below(token, ranks, rank)
            if len(parts) != 2:
                raise DataError(f"token {rank} is made of {len(parts)} parts, not of a pair")
            merges.append((written(parts[0]), written(parts[1])))
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={written(token): rank for token, rank in ranks.items()}, merges=merges
    )
    tokenizer.add_tokens(
        [transformers.AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        special_tokens=True,
    )
    return tokenizer


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte, as GPT-2 wrote them down."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    shifted = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return {byte: shifted.get(byte, chr(byte)) for byte in range(256)}


def reference_ids(ranks: dict[bytes, int]) -> Callable[[str], list[int]]:
    """Text to ids by tiktoken's own rule, written out: split by the pattern, merge by rank."""
    regex = require("regex")
    pattern = regex.compile(
        require("transformers.models.qwen2.tokenization_qwen2").PRETOKENIZE_REGEX
    )
    specials = {token: len(ranks) + place for place, token in enumerate(SPECIAL_TOKENS)}
    cut = regex.compile("(" + "|".join(map(regex.escape, SPECIAL_TOKENS)) + ")")

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for part in cut.split(unicodedata.normalize("NFC", text)):
            if part in specials:
                ids.append(specials[part])
                continue
            for word in pattern.findall(part):
                ids += [ranks[piece] for piece in merge_below(word.encode(), ranks)]
        return ids

    return encode
