"""Thinking switch: off, on or keep, the same from training to serving; empty think blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cbtqa.cli.main import _run as run
from cbtqa.errors import ConfigError, DataError
from cbtqa.settings import resolve
from cbtqa.tuning.answering.chat import ChatSettings
from cbtqa.tuning.answering.generate import sampling_of
from cbtqa.tuning.answering.model import open_model
from cbtqa.tuning.answering.settings import GenerateSettings, SpeakerSettings
from cbtqa.tuning.backbones import Backbone, load_backbones
from cbtqa.tuning.data.chat_format import ChatFormat, set_thinking
from cbtqa.tuning.data.encoding import encode
from cbtqa.tuning.data.examples import read_training_examples
from cbtqa.tuning.loading import find_template, load_chat
from cbtqa.tuning.settings import FinetuneSettings, Thinking
from cbtqa.tuning.training.finetune import finetune
from cbtqa.tuning.weights.merge import merge
from tests.support.tiny_models import tiny_tokenizer, write_rows, write_tiny_model

ASKED = [{"role": "user", "content": "最近总是睡不好。"}]
SWITCHED = """
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{{- m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}
{%- endif %}
{%- endif %}"""
"""As a model with a switch publishes it: thinking by default, a block before the last answer."""
OPEN = SWITCHED.replace(
    "{{- '<think>\n\n</think>\n\n' }}\n{%- endif %}\n{%- endif %}",
    "{{- '<think>\n\n</think>\n\n' }}\n{%- else %}{{- '<think>\n' }}{%- endif %}\n{%- endif %}",
)
"""The same, whose prompt opens the block itself."""
EMPTY = "<think>\n\n</think>\n\n"


def _chat(template: str, thinking: Thinking) -> ChatFormat:
    return ChatFormat(tiny_tokenizer(), set_thinking(template, thinking))


def _answer(chat: ChatFormat, text: str) -> str:
    return str(chat.tokenizer.decode(chat.answer_ids([text])[0]))


@pytest.mark.parametrize("template", [SWITCHED, OPEN])
def test_off_puts_the_empty_block_into_the_prompt_where_it_is_not_learnt(template: str) -> None:
    chat = _chat(template, "off")
    assert chat.prompt_text(ASKED).endswith("<|im_start|>assistant\n" + EMPTY)
    assert _answer(chat, "好的。") == "好的。<|im_end|>"
    assert not chat.takes_reasoning


def test_on_learns_the_empty_block_of_an_answer_without_reasoning_and_keeps_what_has_one() -> None:
    chat = _chat(SWITCHED, "on")
    assert chat.prompt_text(ASKED).endswith("<|im_start|>assistant\n")
    assert _answer(chat, "好的。") == EMPTY + "好的。<|im_end|>"
    thought = "<think>\n先共情\n</think>\n\n好的。"
    assert _answer(chat, thought) == thought + "<|im_end|>"


def test_on_with_a_prompt_that_opens_the_block_never_opens_it_twice() -> None:
    chat = _chat(OPEN, "on")
    assert chat.prompt_text(ASKED).endswith("<|im_start|>assistant\n<think>\n")
    assert _answer(chat, "好的。") == "\n</think>\n\n好的。<|im_end|>"
    assert _answer(chat, "<think>\n先共情\n</think>\n\n好的。").startswith("\n先共情\n</think>")


def test_a_template_that_only_thinks_learns_to_close_the_block_at_once() -> None:
    only = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    assert _answer(_chat(only, "off"), "好的。") == "\n</think>\n\n好的。<|im_end|>"


def test_keep_leaves_the_template_as_it_was_published_and_a_new_choice_replaces_the_old() -> None:
    assert set_thinking(SWITCHED, "keep") == SWITCHED
    off = set_thinking(SWITCHED, "off")
    assert set_thinking(set_thinking(SWITCHED, "on"), "off") == off
    assert set_thinking(find_template("chatml"), "off") == find_template("chatml")


def test_a_server_that_sets_the_switch_itself_still_gets_what_it_asks_for() -> None:
    tokenizer = tiny_tokenizer()
    words: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}
    words["chat_template"] = set_thinking(SWITCHED, "off")
    asked = tokenizer.apply_chat_template(ASKED, enable_thinking=True, **words)
    assert not asked.endswith(EMPTY)


def test_a_template_that_adds_more_than_an_empty_block_is_refused() -> None:
    more = SWITCHED.replace(
        "<think>\n\n</think>\n\n' }}{% endif %}", "<think>嗯</think>' }}{% endif %}"
    )
    with pytest.raises(ConfigError, match="otherwise than it asks"):
        ChatFormat(tiny_tokenizer(), more)


@pytest.mark.parametrize("backbone", list(load_backbones().values()), ids=lambda b: b.id)
@pytest.mark.parametrize("thinking", ["off", "on", "keep"])
def test_a_served_prompt_has_the_tokens_of_training_for_every_listed_family(
    backbone: Backbone, thinking: Thinking, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(_with_tokens_of(backbone, tmp_path))
    tokenizer.save_pretrained(tmp_path)
    here = backbone.model_copy(update={"path": tmp_path, "conversion": None})
    chat = load_chat(here, None, thinking)
    asked = [{"role": "system", "content": "你是咨询师。"}, *ASKED]
    trained = chat.prompt_ids([asked])[0]
    chat.tokenizer.save_pretrained(tmp_path / "run")  # as training leaves it beside the adapter
    served = AutoTokenizer.from_pretrained(tmp_path / "run")
    words = {"add_generation_prompt": True, "return_dict": False}
    assert served.apply_chat_template(asked, **words) == trained
    (answer,) = chat.answer_ids(["好的。"])
    end = backbone.end_of_turn or tokenizer.eos_token  # None: the tokenizer's own end
    assert chat.tokenizer.decode(answer).endswith("好的。" + end)


def _with_tokens_of(backbone: Backbone, folder: Path) -> Path:
    """A tokenizer that has the tokens which the backbone's format names."""
    tiny_tokenizer().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    named = {"<s>", "</s>", "<unk>", *backbone.stops, backbone.pad_token or "<unk>"}
    end = backbone.end_of_turn or "<|im_end|>"
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(named)})
    tokenizer.bos_token = "<s>"
    tokenizer.eos_token = end
    tokenizer.save_pretrained(folder)
    return folder


def test_rows_with_reasoning_are_counted_out_when_thinking_is_off_and_the_hint_names_the_flag(
    tmp_path: Path,
) -> None:
    row = {"prompt": "睡不好。", "completion": "<think>先共情</think>慢慢来。"}
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    settings = FinetuneSettings(data=data)
    examples = read_training_examples(settings)
    with pytest.raises(DataError, match="reasoning 1") as caught:
        encode(examples, _chat(SWITCHED, "off"), settings)
    assert "--thinking on" in (caught.value.hint or "")
    assert len(encode(examples, _chat(SWITCHED, "on"), settings).items) == 1


def test_training_merging_generating_and_chatting_carry_the_switch(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    (base / "chat_template.jinja").write_text(SWITCHED, encoding="utf-8")
    data = write_rows(tmp_path / "rows.jsonl", 4)
    flags = {"data": data, "backbone": str(base), "out": tmp_path / "run", "max_steps": 1}
    flags |= {"batch_size": 2, "rank": 2, "n_samples": 0, "precision": "fp32"}
    finetune(resolve(FinetuneSettings, flags=flags))
    words: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}

    def served(folder: Path) -> str:
        return str(AutoTokenizer.from_pretrained(folder).apply_chat_template(ASKED, **words))

    assert served(tmp_path / "run").endswith(EMPTY)
    merge(tmp_path / "run", tmp_path / "merged", base=str(base))
    assert served(tmp_path / "merged").endswith(EMPTY)
    merge(tmp_path / "run", tmp_path / "thinks", base=str(base), thinking="on")
    assert served(tmp_path / "thinks").endswith("assistant\n")

    def asked(settings: SpeakerSettings) -> str:
        return open_model(settings).chat.prompt_text(ASKED)

    spoken: dict[str, Any] = {"adapter": tmp_path / "run", "base": str(base)}
    for kind in (GenerateSettings, ChatSettings):
        assert asked(kind(**spoken)).endswith(EMPTY), "as trained"
        assert asked(kind(**spoken, thinking="on")).endswith("assistant\n")
        assert asked(kind(model=str(tmp_path / "thinks"))).endswith("assistant\n"), "as merged"
        assert asked(kind(model=str(tmp_path / "thinks"), thinking="off")).endswith(EMPTY)


def test_at_an_endpoint_the_switch_is_sent_only_when_it_is_set() -> None:
    silent = GenerateSettings(endpoint=("http://127.0.0.1:9/v1",), model="m")
    assert "chat_template_kwargs" not in sampling_of(silent).extra
    told = silent.model_copy(update={"thinking": "off"})
    assert sampling_of(told).extra["chat_template_kwargs"] == {"enable_thinking": False}


def test_an_unknown_value_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["finetune", "rows.jsonl", "--thinking", "maybe"], is_debug=False) != 0
    assert "maybe" in capsys.readouterr().err
