"""Tiny models and a tokenizer of their own, with random weights: no download.

folder = write_tiny_model(tmp_path / "base")            # as save_pretrained leaves it
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

SENTENCES = (
    "最近总是睡不好，心里很乱，不知道该怎么办。",
    "谢谢你愿意把这些说出来，这段时间真的不容易。",
    "这个想法听上去像事实，其实更像难过时的一种判断。",
    "有没有哪一次的经历和这个判断不一样？",
    "这周可以挑一个晚上，写下当时发生了什么、想到了什么。",
    "改变从来不是一次完成的，慢慢来也没有关系。",
    "同事说我的方案太天真，我觉得大家都在笑话我。",
    "【理解与共情】【关键想法】【质疑与反思】【策略与领悟】【鼓励与展望】分析回答求助者写道“”这是",
    "你是一名有多年经验、擅长认知行为疗法的心理咨询师。请以咨询师的身份，回答求助者的问题。",
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of 512 tokens in ChatML; about two tokens per character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    letters = sorted(set("".join(SENTENCES)))
    raw.train_from_iterator((" ".join(letters) for _ in range(4)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


def tiny_config(kind: str = "qwen2", **sizes: Any) -> Any:
    """A configuration of 2 layers x 64."""
    import transformers

    config = {"qwen2": transformers.Qwen2Config, "llama": transformers.LlamaConfig}[kind]
    plain = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return config(**(plain | sizes))


def tiny_model(kind: str = "qwen2", *, seed: int = 0, **sizes: Any) -> Any:
    """A causal language model with random weights, in float32."""
    import torch
    import transformers

    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(tiny_config(kind, **sizes))


def write_tiny_model(folder: Path, kind: str = "qwen2", **sizes: Any) -> Path:
    """Writes model and tokenizer into a folder, and gives the folder."""
    tiny_model(kind, **sizes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, n_rows: int, *, is_pair: bool = False, n_sentences: int = 3) -> Path:
    """Writes SFT or ORPO rows of invented text; row k is the same whatever `n_rows`."""
    rows = []
    for k in range(n_rows):
        chance = random.Random(k)
        lines = [chance.choice(SENTENCES[:7]) for _ in range(2 + n_sentences)]
        row: dict[str, Any] = {"id": f"r{k}", "prompt": f"第{k}问：" + "".join(lines[:2])}
        answer = "".join(lines[2 : 2 + chance.randint(1, n_sentences)])
        if is_pair:
            row |= {"chosen": answer, "rejected": "".join(lines[-1:])}
        else:
            row["completion"] = answer
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(rows), encoding="utf-8")
    return path
