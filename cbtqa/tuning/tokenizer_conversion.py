"""Writes the fast tokenizer of a converted checkpoint, once it has shown equal to the original's.

What is written loads without code from the Hub in transformers and vLLM (`tokenizer.json`) and in
llama.cpp (`tokenizer.model` beside it, for sentencepiece).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError
from cbtqa.files import parse_yaml, read_json, write_json, write_text
from cbtqa.records import Record
from cbtqa.tuning import sentencepiece_tokenizer, tiktoken_tokenizer
from cbtqa.tuning.backbones import Backbone, template_text
from cbtqa.tuning.downloads import fetch, fetch_if_present


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


@cache
def probe_texts() -> tuple[str, ...]:
    """The texts every converted tokenizer has to agree on."""
    text = (files("cbtqa.tuning") / "tokenizer_probes.yaml").read_text(encoding="utf-8")
    return tuple(parse_yaml(text)["probes"])


def write_tokenizer(source: Backbone, out: Path, family: Backbone, n_rows: int) -> TokenizerFacts:
    """Converts the tokenizer of `source` into `out`.

    Args:
        family: the known backbone whose chat template and end tokens apply.
        n_rows: rows of the embedding, which no id may exceed.

    Raises:
        DataError: no tokenizer file, an unknown kind, or ids other than the original's.
    """
    make = _write_tiktoken if source.conversion == "qwen" else _write_sentencepiece
    facts = make(source, out, family)
    if facts.n_tokens > n_rows:
        raise DataError(
            f"the tokenizer has {facts.n_tokens:,} tokens, the embedding {n_rows:,} rows: these "
            "are not files of one model",
            where=source.location,
        )
    template = template_text(family)
    if template is not None:
        write_text(out / "chat_template.jinja", template)
    return facts


def _write_tiktoken(source: Backbone, out: Path, family: Backbone) -> TokenizerFacts:
    path = fetch(source.location, "qwen.tiktoken", revision=source.revision)
    ranks = tiktoken_tokenizer.read_ranks(path)
    tokenizer = tiktoken_tokenizer.build_tokenizer(ranks)
    n = _compare(
        lambda text: tokenizer(text)["input_ids"],
        tiktoken_tokenizer.reference_ids(ranks),
        [*probe_texts(), *(f"<|im_start|>user\n{text}<|im_end|>\n" for text in probe_texts())],
        path,
    )
    tokenizer.model_max_length = family.context
    tokenizer.save_pretrained(out)
    return TokenizerFacts(
        kind="tiktoken",
        n_tokens=len(tokenizer),
        n_texts_compared=n,
        adds_leading_space=False,
        adds_bos=False,
    )


def _write_sentencepiece(source: Backbone, out: Path, family: Backbone) -> TokenizerFacts:
    path = fetch(source.location, "tokenizer.model", revision=source.revision)
    model = sentencepiece_tokenizer.read_model(path)
    tokenizer = sentencepiece_tokenizer.build_tokenizer(model)
    pieces = [piece.piece for piece in model.pieces if piece.type not in (2, 3)]
    spelled = [piece.replace(sentencepiece_tokenizer.SPACE, " ") for piece in pieces]
    n = _compare(
        lambda text: tokenizer.encode(text).ids,
        sentencepiece_tokenizer.reference_ids(path),
        [*probe_texts(), *spelled],
        path,
    )
    _add_extra_tokens(tokenizer, source)
    settings = _sentencepiece_settings(source, model, family)
    if settings["add_bos_token"]:
        _put_bos_first(tokenizer, settings["bos_token"])
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
    texts: Iterable[str],
    path: Path,
) -> int:
    """How many texts were compared.

    Raises:
        DataError: names the first text whose ids differ.
    """
    n = 0
    for text in texts:
        expected, found = original(text), made(text)
        if found != expected:
            raise DataError(
                f"the fast tokenizer would cut {text!r} into {found[:8]}, the original into "
                f"{expected[:8]}: refused",
                where=str(path),
            )
        n += 1
    return n


def _add_extra_tokens(tokenizer: Any, source: Backbone) -> None:
    """Tokens that were added behind the sentencepiece vocabulary, in the order of their ids."""
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


def _put_bos_first(tokenizer: Any, bos: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
