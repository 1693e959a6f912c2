"""Converted tokenizers cut texts as sentencepiece and tiktoken themselves do, whatever the text."""

from __future__ import annotations

import base64
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import regex
import sentencepiece
import tiktoken
import transformers

from cbtqa.errors import DataError
from cbtqa.files import parse_record, read_json
from cbtqa.tuning.weights.convert import RECORD_NAME, ConversionRecord, convert
from cbtqa.tuning.weights.tokenizers import (
    build_sentencepiece_tokenizer,
    probe_texts,
    read_model,
    read_ranks,
    tiktoken_ids,
)
from tests.support.original_checkpoints import (
    QWEN_PATTERN,
    QWEN_SPECIALS,
    RESERVED,
    SENTENCES,
    save_original,
    save_sentencepiece,
    save_tiktoken,
)

N_TEXTS = 1500


def _random_texts(specials: tuple[str, ...], seed: int = 0) -> list[str]:
    """Invented sentences, cut anywhere and mixed with spaces, digits, emoji and special tokens."""
    chance = random.Random(seed)
    odd = (
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "　",
        "😀",
        "👩‍👩‍👧",
        "é",
        "e\u0301",
        "１",
        "7",
        "12",
        "▁",
        "龘",
    )
    texts = []
    for _ in range(N_TEXTS):
        parts = []
        for _ in range(chance.randint(1, 8)):
            sentence = chance.choice(SENTENCES)
            start = chance.randrange(len(sentence))
            letter = chr(chance.choice([chance.randint(33, 126), chance.randint(0x4E00, 0x9FA5)]))
            cut = sentence[start : start + chance.randint(1, 12)]
            parts.append(chance.choice([cut, cut, letter, chance.choice(odd), *specials[:2]]))
        texts.append("".join(parts))
    return [*texts, *probe_texts()]


def _loaded(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


# --- sentencepiece -------------------------------------------------------------------------------


@pytest.mark.parametrize("adds_leading_space", [False, True])
def test_pieces_equal_sentencepiece_on_any_text(tmp_path: Path, adds_leading_space: bool) -> None:
    save_original(tmp_path / "source", "baichuan", adds_leading_space=adds_leading_space)
    convert(tmp_path / "source", tmp_path / "out")
    original = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "source" / "tokenizer.model")
    )
    made = _loaded(tmp_path / "out")
    texts = _random_texts(RESERVED)
    assert made(texts, add_special_tokens=False)["input_ids"] == original.encode(texts)
    facts = parse_record(
        ConversionRecord, read_json(tmp_path / "out" / RECORD_NAME), "record"
    ).tokenizer
    assert facts.adds_leading_space is adds_leading_space
    assert facts.n_texts_compared > len(probe_texts()) + 500
    for text in texts[:300]:
        ids = made(text, add_special_tokens=False)["input_ids"]
        assert made.decode(ids, clean_up_tokenization_spaces=False) == original.decode(ids)


def test_the_flag_on_the_leading_space_is_read_and_not_guessed(tmp_path: Path) -> None:
    """With the other setting most texts would be cut otherwise, so the comparison can fail."""
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    save_sentencepiece(tmp_path / "with", adds_leading_space=True)
    save_sentencepiece(tmp_path / "without", adds_leading_space=False)
    model = read_model(tmp_path / "without" / "tokenizer.model")
    model.normalizer_spec.add_dummy_prefix = True
    wrong = build_sentencepiece_tokenizer(model)
    original = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "without" / "tokenizer.model")
    )
    differ = [text for text in probe_texts() if wrong.encode(text).ids != original.encode(text)]
    assert len(differ) > len(probe_texts()) / 2


@pytest.mark.parametrize(
    "more",
    [
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True, "adds_leading_space": True},
        {"byte_fallback": False},
        {"user_defined_symbols": []},
    ],
    ids=lambda more: next(iter(more)),
)
def test_models_trained_otherwise_are_equal_too(tmp_path: Path, more: dict[str, Any]) -> None:
    save_sentencepiece(tmp_path, **more)
    path = tmp_path / "tokenizer.model"
    made = build_sentencepiece_tokenizer(read_model(path))
    original = sentencepiece.SentencePieceProcessor(model_file=str(path))
    texts = _random_texts(())
    for text in texts:
        assert made.encode(text).ids == original.encode(text), text


def test_a_tokenizer_that_would_differ_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_original(tmp_path / "source", "baichuan")
    path = tmp_path / "source" / "tokenizer.model"
    other = sentencepiece.SentencePieceProcessor(model_file=str(path))
    encode = sentencepiece.SentencePieceProcessor.encode

    def one_id_off(self: Any, text: str) -> list[int]:
        ids = encode(other, text)
        return [*ids[:-1], ids[-1] + 1] if "睡不着" in text else ids

    monkeypatch.setattr(sentencepiece.SentencePieceProcessor, "encode", one_id_off)
    with pytest.raises(DataError, match=r"睡不着.*rejected"):
        convert(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model_type": "unigram"}, "not byte-pair encoding"),
        ({"treat_whitespace_as_suffix": True}, "spaces are coded in a way"),
    ],
)
def test_other_sentencepiece_models_are_refused_by_name(
    tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    save_original(tmp_path / "source", "baichuan")
    save_sentencepiece(tmp_path / "source", **more)
    with pytest.raises(DataError, match=words):
        convert(tmp_path / "source", tmp_path / "out")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan", vocab_size=450)
    save_sentencepiece(tmp_path / "source", vocab_size=560)
    with pytest.raises(DataError, match="not files of one model"):
        convert(tmp_path / "source", tmp_path / "out")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan")
    (tmp_path / "source" / "tokenizer.model").write_text("version https://git-lfs")
    with pytest.raises(DataError, match="not a sentencepiece model"):
        convert(tmp_path / "source", tmp_path / "out")


def test_added_tokens_and_the_start_token_are_carried(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan")
    size = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "source" / "tokenizer.model")
    ).vocab_size()
    source = tmp_path / "source"
    settings = '{"pad_token": "<pad>", "tokenizer_class": "BaiChuanTokenizer"}'
    (source / "tokenizer_config.json").write_text(settings)
    (source / "added_tokens.json").write_text(f'{{"<pad>": {size}}}')
    with pytest.raises(DataError, match="embedding"):
        convert(source, tmp_path / "out")  # one row short
    save_original(tmp_path / "wide", "baichuan", vocab_size=561)
    (tmp_path / "wide" / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    for name in ("tokenizer_config.json", "added_tokens.json"):
        (tmp_path / "wide" / name).write_bytes((source / name).read_bytes())
    convert(tmp_path / "wide", tmp_path / "out")
    made = _loaded(tmp_path / "out")
    assert made("你好")["input_ids"][0] == 1  # the published class adds it unless told not to
    assert (made.pad_token, made.pad_token_id) == ("<pad>", size)


# --- tiktoken ------------------------------------------------------------------------------------


def _tiktoken(folder: Path) -> Any:
    lines = (folder / "qwen.tiktoken").read_text(encoding="ascii").splitlines()
    ranks = {base64.b64decode(t): int(n) for t, n in (line.split() for line in lines)}
    specials = {token: len(ranks) + place for place, token in enumerate(QWEN_SPECIALS)}
    return tiktoken.Encoding(
        "tiny", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )


def test_pieces_equal_tiktoken_on_any_text(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "qwen")
    convert(tmp_path / "source", tmp_path / "out")
    original, made = _tiktoken(tmp_path / "source"), _loaded(tmp_path / "out")
    texts = _random_texts(QWEN_SPECIALS)
    expected = [
        original.encode(unicodedata.normalize("NFC", text), allowed_special="all") for text in texts
    ]
    assert made(texts)["input_ids"] == expected
    for text, ids in zip(texts[:300], expected, strict=False):
        assert made.decode(ids) == unicodedata.normalize("NFC", text)
    assert len(made) == original.n_vocab


def test_the_reference_that_conversion_compares_with_is_tiktoken(tmp_path: Path) -> None:
    save_tiktoken(tmp_path)
    encode, original = tiktoken_ids(read_ranks(tmp_path / "qwen.tiktoken")), _tiktoken(tmp_path)
    for text in _random_texts(QWEN_SPECIALS, seed=1)[:400]:
        plain = unicodedata.normalize("NFC", text)
        assert encode(text) == original.encode(plain, allowed_special="all")


def test_the_pattern_is_the_one_that_qwen_published() -> None:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    for text in _random_texts(()):
        assert regex.findall(PRETOKENIZE_REGEX, text) == regex.findall(QWEN_PATTERN, text)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: [*lines[:-1], "?? 435"], "expected base64 and a number"),
        (lambda lines: lines[:-2] + lines[-1:], "without gaps"),
        (lambda lines: ["YWJjZA== 0", *lines[1:]], "not every byte has a token"),
        (
            lambda lines: [*lines, f"{base64.b64encode(b'qzxj').decode()} {len(lines)}"],
            "parts, not of a pair",
        ),
    ],
)
def test_damaged_ranks_are_told_with_their_line(tmp_path: Path, damage: Any, words: str) -> None:
    save_original(tmp_path / "source", "qwen")
    path = tmp_path / "source" / "qwen.tiktoken"
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    with pytest.raises(DataError, match=words):
        convert(tmp_path / "source", tmp_path / "out")


def test_qwens_end_of_text_closes_an_answer_in_the_papers_format_though_it_is_the_unknown_token(
    tmp_path: Path,
) -> None:
    from cbtqa.tuning.backbones import find_backbone
    from cbtqa.tuning.loading import load_chat
    from cbtqa.tuning.weights.convert import convert
    from cbtqa.tuning.weights.tiny import write_tiny

    backbone, published = find_backbone("qwen"), tmp_path / "published"
    write_tiny(backbone, published, ["最近总是睡不好。"])
    convert(backbone.model_copy(update={"path": published, "source_id": "qwen"}), tmp_path / "qwen")
    chat = load_chat(find_backbone(tmp_path / "qwen"), "cbt-llm-card")
    assert chat.tokenizer.unk_token == chat.end_text == "<|endoftext|>"
    assert len(chat.end_ids) == 1
