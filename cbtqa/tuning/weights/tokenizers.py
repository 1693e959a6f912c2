"""Writes the fast tokenizer of a converted checkpoint, once it has proved equal to the original's.

What is written loads without code from the Hub in transformers and vLLM (`tokenizer.json`) and in
llama.cpp (`tokenizer.model` beside it, for sentencepiece).
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError
from cbtqa.files import read_json, write_json, write_text
from cbtqa.records import Record
from cbtqa.tuning.backbones import Backbone, fetch, fetch_if_present, template_text
from cbtqa.tuning.libraries import read_table, require


class TokenizerFacts(Record):
    """What was found and checked about a converted tokenizer."""

    kind: str
    """`sentencepiece` or `tiktoken`."""
    n_tokens: int
    n_texts_compared: int
    """Texts on which its ids were equal to the original algorithm's, without exception."""
    adds_leading_space: bool
    """sentencepiece's `add_dummy_prefix`, as the file has it."""
    adds_bos: bool
    notes: tuple[str, ...] = ()


def probe_texts() -> tuple[str, ...]:
    """The texts every converted tokenizer has to agree on."""
    return tuple(read_table("tokenizer_probes.yaml")["probes"])


def write_tokenizer(source: Backbone, out: Path, family: Backbone) -> TokenizerFacts:
    """Converts a tokenizer, with the family's chat template; raises DataError for unequal ids."""
    make = _write_tiktoken if source.conversion == "qwen" else _write_sentencepiece
    facts = make(source, out, family)
    template = template_text(family)
    if template is not None:
        write_text(out / "chat_template.jinja", template)
    return facts


def _write_tiktoken(source: Backbone, out: Path, family: Backbone) -> TokenizerFacts:
    path = fetch(source.location, "qwen.tiktoken", revision=source.revision)
    ranks = read_ranks(path)
    tokenizer = build_bpe_tokenizer(ranks)
    turns = [f"<|im_start|>user\n{text}<|im_end|>\n" for text in probe_texts()]
    texts = [*probe_texts(), *turns]
    n = _compare(lambda text: tokenizer(text)["input_ids"], tiktoken_ids(ranks), texts, path)
    tokenizer.model_max_length = family.context
    tokenizer.save_pretrained(out)
    facts = {"n_tokens": len(tokenizer), "n_texts_compared": n}
    return TokenizerFacts(kind="tiktoken", adds_leading_space=False, adds_bos=False, **facts)


def _write_sentencepiece(source: Backbone, out: Path, family: Backbone) -> TokenizerFacts:
    path = fetch(source.location, "tokenizer.model", revision=source.revision)
    model = read_model(path)
    tokenizer = build_sentencepiece_tokenizer(model)
    processor = require("sentencepiece").SentencePieceProcessor(model_file=str(path))
    pieces = (piece.piece for piece in model.pieces if piece.type not in (_UNKNOWN, _CONTROL))
    texts = [*probe_texts(), *(piece.replace(SPACE, " ") for piece in pieces)]
    n = _compare(lambda text: tokenizer.encode(text).ids, processor.encode, texts, path)
    _add_extra_tokens(tokenizer, source)
    settings = _sentencepiece_settings(source, model, family)
    if settings["add_bos_token"]:
        bos = settings["bos_token"]
        tokenizer.post_processor = require("tokenizers.processors").TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    write_text(out / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(out / "tokenizer_config.json", settings)
    shutil.copyfile(path, out / "tokenizer.model")
    return TokenizerFacts(
        kind="sentencepiece",
        n_tokens=tokenizer.get_vocab_size(),
        n_texts_compared=n,
        adds_leading_space=bool(model.normalizer_spec.add_dummy_prefix),
        adds_bos=settings["add_bos_token"],
        notes=(
            "a control token spelled out in a text (such as </s>) becomes that token, where "
            "sentencepiece cuts it into letters",
        ),
    )


def _compare(
    made: Callable[[str], list[int]],
    original: Callable[[str], list[int]],
    texts: Sequence[str],
    path: Path,
) -> int:
    """How many texts were compared; raises DataError for the first whose ids differ."""
    for text in texts:
        expected, found = original(text), made(text)
        if found != expected:
            raise DataError(
                f"the fast tokenizer would cut {text!r} into {found[:8]}, the original into "
                f"{expected[:8]}: rejected",
                where=str(path),
            )
    return len(texts)


def _add_extra_tokens(tokenizer: Any, source: Backbone) -> None:
    """Tokens that were added after the sentencepiece vocabulary, in the order of their ids."""
    path = fetch_if_present(source.location, "added_tokens.json", revision=source.revision)
    extra = read_json(path) if path else {}
    for token, number in sorted(extra.items(), key=lambda pair: pair[1]):
        if tokenizer.token_to_id(token) == number:
            continue
        if number != tokenizer.get_vocab_size():
            raise DataError(f"token {token!r} has id {number}, behind a gap", where=str(path))
        tokenizer.add_special_tokens([token])


def _sentencepiece_settings(source: Backbone, model: Any, family: Backbone) -> dict[str, Any]:
    path = fetch_if_present(source.location, "tokenizer_config.json", revision=source.revision)
    given = read_json(path) if path else {}
    trainer = model.trainer_spec

    def token(name: str, default: str) -> str:
        value = given.get(name) or default
        return str(value["content"] if isinstance(value, dict) else value)

    unknown = token("unk_token", trainer.unk_piece)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
        "bos_token": token("bos_token", trainer.bos_piece),
        "eos_token": token("eos_token", trainer.eos_piece),
        "unk_token": unknown,
        "pad_token": token("pad_token", family.pad_token or unknown),
        "add_bos_token": bool(given.get("add_bos_token", True)),  # the published class's default
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": family.context,
        "padding_side": "right",
    }


SPACE = "\u2581"
"""What sentencepiece writes for a space (lower one eighth block)."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5


def read_model(path: Path) -> Any:
    """The parsed `.model` file; raises DataError when it is none of byte-pair encoding."""
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


def build_sentencepiece_tokenizer(model: Any) -> Any:
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
        tokenizer.add_tokens([tokenizers.AddedToken(one, normalized=False) for one in symbols])
    special = [piece for piece, _, kind in pieces if kind in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(one, special=True, normalized=False) for one in special]
    )
    return tokenizer


def _cut_out(tokenizers: Any, symbols: list[str]) -> Any:
    """Cuts user-defined symbols out of a text that has its leading space already.

    As added tokens they would be cut out before, and the text after them would get a leading space
    of its own, which sentencepiece does not write.
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


SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{number}|>" for number in range(205)),
)
"""In the order of their ids, from the number of ranks on. Source: Qwen-7B's tokenizer."""
NO_RANK = 1 << 60


def read_ranks(path: Path) -> dict[bytes, int]:
    """Byte string to id; raises DataError for bad lines, gaps, or a byte without a token."""
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


def build_bpe_tokenizer(ranks: dict[bytes, int]) -> Any:
    """transformers' Qwen2 tokenizer with these ranks; raises DataError for a token of no pair."""
    transformers = require("transformers")
    # the printable letter of each byte, as GPT-2 wrote them down
    letters = require("transformers.convert_slow_tokenizer").bytes_to_unicode()

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


def tiktoken_ids(ranks: dict[bytes, int]) -> Callable[[str], list[int]]:
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
