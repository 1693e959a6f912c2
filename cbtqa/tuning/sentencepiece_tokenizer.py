"""A sentencepiece BPE model as a fast tokenizer that cuts every text into the same pieces.

transformers' Llama tokenizer ignores what the model file says of its leading space, and drops
the one before a text that begins with a space. Here the normaliser is rebuilt from the file:
flags, character map and user-defined symbols; `cbtqa convert` then compares both on texts made
to tell them apart, and refuses to write a tokenizer that differs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError
from cbtqa.tuning.libraries import require

SPACE = "\u2581"
"""What sentencepiece writes for a space (lower one eighth block)."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5


def read_model(path: Path) -> Any:
    """The parsed `.model` file (sentencepiece's own message).

    Raises:
        DataError: not one, or of another kind than byte-pair encoding.
    """
    message = require("sentencepiece.sentencepiece_model_pb2").ModelProto()
    errors = require("google.protobuf.message")
    try:
        message.ParseFromString(path.read_bytes())
    except errors.DecodeError:
        raise DataError("not a sentencepiece model", where=str(path)) from None
    if message.trainer_spec.model_type != 2:
        raise DataError("a sentencepiece model, but not byte-pair encoding", where=str(path))
    normalizer = message.normalizer_spec
    if message.trainer_spec.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        raise DataError("spaces are coded in a way that no fast tokenizer has", where=str(path))
    return message


def build_tokenizer(model: Any) -> Any:
    """A `tokenizers.Tokenizer` with the ids of the sentencepiece model; adds no start token."""
    tokenizers = require("tokenizers")
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    symbols = [piece for piece, _, kind in pieces if kind == _USER_DEFINED]
    unknown = next((piece for piece, _, kind in pieces if kind == _UNKNOWN), None)
    has_prefix = bool(model.normalizer_spec.add_dummy_prefix)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={piece: number for number, (piece, _, _) in enumerate(pieces)},
            merges=_merges(pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=bool(model.trainer_spec.byte_fallback),
            # a symbol cut out by `_cut_out` is one token although nothing merges into it
            ignore_merges=bool(symbols) and has_prefix,
        )
    )
    tokenizer.normalizer = _normalizer(tokenizers, model.normalizer_spec)
    tokenizer.decoder = _decoder(tokenizers, has_prefix)
    if symbols and has_prefix:
        tokenizer.pre_tokenizer = _cut_out(tokenizers, symbols)
    elif symbols:
        tokenizer.add_tokens([_added(tokenizers, symbol, special=False) for symbol in symbols])
    tokenizer.add_special_tokens(
        [
            _added(tokenizers, piece, special=True)
            for piece, _, kind in pieces
            if kind in (_UNKNOWN, _CONTROL)
        ]
    )
    return tokenizer


def _added(tokenizers: Any, token: str, *, special: bool) -> Any:
    return tokenizers.AddedToken(token, special=special, normalized=False)


def _cut_out(tokenizers: Any, symbols: list[str]) -> Any:
    """Cuts user-defined symbols out of a text that has its leading space already.

    As added tokens they would be cut out before, and what stands behind them would get a leading
    space of its own, which sentencepiece does not write.
    """
    longest_first = sorted((s.replace(" ", SPACE) for s in symbols), key=len, reverse=True)
    pattern = tokenizers.Regex("|".join(map(re.escape, longest_first)))
    return tokenizers.pre_tokenizers.Split(pattern, "isolated")


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first, as sentencepiece merges them."""
    scores = {piece: score for piece, score, kind in pieces if kind in (_NORMAL, _UNUSED)}
    ranked = sorted(scores, key=lambda piece: -scores[piece])
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _normalizer(tokenizers: Any, spec: Any) -> Any:
    made = tokenizers.normalizers
    steps = []
    if spec.precompiled_charsmap:
        # the map sees "\r\n" as one character, sentencepiece as two of one kind
        steps += [made.Replace("\r\n", "\n\n"), made.Precompiled(spec.precompiled_charsmap)]
    if spec.remove_extra_whitespaces:
        for pattern, left in ((r"\A +| +\z", ""), (" {2,}", " ")):
            steps.append(made.Replace(tokenizers.Regex(pattern), left))
    if spec.add_dummy_prefix:
        steps.append(made.Prepend(SPACE))
    steps.append(made.Replace(" ", SPACE))
    if spec.remove_extra_whitespaces:
        # the sign itself, spelled out at the end of a text, is dropped like a space
        steps.append(made.Replace(tokenizers.Regex(rf"{SPACE}+\z"), ""))
    return made.Sequence(steps)


def _decoder(tokenizers: Any, has_prefix: bool) -> Any:
    made = tokenizers.decoders
    steps = [made.Replace(SPACE, " "), made.ByteFallback(), made.Fuse()]
    return made.Sequence([*steps, made.Strip(" ", 1, 0)] if has_prefix else steps)


def reference_ids(path: Path) -> Any:
    """Text to ids by sentencepiece itself, which the fast tokenizer has to equal."""
    processor = require("sentencepiece").SentencePieceProcessor(model_file=str(path))
    return lambda text: processor.encode(text)
