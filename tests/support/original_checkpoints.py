"""Tiny random checkpoints in the layouts Baichuan and Qwen were published in, and their maths.

The forward passes are written from the published models' arithmetic in plain torch; they share
nothing with the package or with transformers. A tokenizer file of the right kind goes with each.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

Kind = Literal["baichuan", "baichuan2", "qwen"]
SENTENCES = (
    "最近一到晚上就睡不着，脑子里全是白天没做好的事。",
    "我总觉得同事在背后议论我，其实没有人当面说过什么。",
    "考研失败以后，我认定自己什么都做不成。",
    "谢谢你愿意把这些告诉我，听起来这段时间很不容易。",
    "我们可以把担心写下来，再看看支持它和反对它的证据。",
    "如果好朋友遇到同样的事，你会怎么对她说？",
    "先从每天散步十分钟开始，做到了就给自己记一笔。",
    "改变需要时间，今天说出来已经是第一步。",
    "和父母吵架之后，我又后悔又委屈，不知道怎么开口。",
    "I keep thinking that one mistake ruins everything, and then I stop trying.",
    "房租 2,350 元，押一付三，第 7 天还没有退。",
)
RESERVED = tuple(f"<reserved_{number}>" for number in range(104, 110))
LAYERS, HIDDEN, HEADS, INTERMEDIATE = 2, 48, 4, 80
QWEN_ROTARY_BASE = 700


# --- tokenizers ----------------------------------------------------------------------------------


def save_sentencepiece(
    folder: Path, *, adds_leading_space: bool = False, vocab_size: int = 560, **more: Any
) -> int:
    """Trains `tokenizer.model` as Baichuan's: BPE, split digits, byte fallback; gives its size."""
    import sentencepiece

    sentencepiece.set_min_log_level(2)
    words: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": vocab_size,
        "character_coverage": 1.0,
        "split_digits": True,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": adds_leading_space,
        "user_defined_symbols": list(RESERVED),
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "hard_vocab_limit": False,
        "num_threads": 1,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_prefix=str(folder / "tokenizer"),
        **{**words, **more},
    )
    (folder / "tokenizer.vocab").unlink()
    settings = {
        "tokenizer_class": "BaiChuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaiChuanTokenizer", None]},
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "unk_token": {"__type": "AddedToken", "content": "<unk>"},
    }
    _write_json(folder / "tokenizer_config.json", settings)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return int(processor.vocab_size())


QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{number}|>" for number in range(205)),
)


def save_tiktoken(folder: Path, n_merges: int = 180) -> int:
    """Trains `qwen.tiktoken` by byte-pair encoding; gives the size with special tokens."""
    import regex

    words = [
        [bytes([byte]) for byte in word.encode()]
        for sentence in SENTENCES
        for word in regex.findall(QWEN_PATTERN, sentence)
    ]
    ranks = {bytes([byte]): byte for byte in range(256)}
    for _ in range(n_merges):
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[left + right] = len(ranks)
        words = [_merged(word, left, right) for word in words]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n", encoding="ascii")
    return len(ranks) + len(QWEN_SPECIALS)


def _merged(word: list[bytes], left: bytes, right: bytes) -> list[bytes]:
    made: list[bytes] = []
    for part in word:
        if made and made[-1] == left and part == right:
            made[-1] = left + right
        else:
            made.append(part)
    return made


# --- weights -------------------------------------------------------------------------------------


def save_original(
    folder: Path,
    kind: Kind,
    *,
    form: Literal["bin", "safetensors"] = "bin",
    parts: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    layers: int = LAYERS,
    **tokenizer: Any,
) -> dict[str, Any]:
    """A whole checkpoint folder as it would be downloaded; gives its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    size = (save_tiktoken if kind == "qwen" else save_sentencepiece)(folder, **tokenizer)
    config = _config(kind, size, layers, dtype)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _generation_config(kind))
    (folder / "LICENSE").write_text("Terms of the tiny model.\n", encoding="utf-8")
    tensors = random_tensors(kind, config, dtype, seed)
    save_tensors(folder, tensors, form, parts)
    return tensors


def _config(kind: Kind, vocab: int, layers: int, dtype: str) -> dict[str, Any]:
    shared = {
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if kind == "qwen":
        return {
            **shared,
            "architectures": ["QWenLMHeadModel"],
            "model_type": "qwen",
            "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
            "intermediate_size": 2 * INTERMEDIATE,
            "kv_channels": HIDDEN // HEADS,
            "layer_norm_epsilon": 1e-6,
            "no_bias": True,
            "rotary_emb_base": QWEN_ROTARY_BASE,
            "rotary_pct": 1.0,
            "seq_length": 512,
            "max_position_embeddings": 2048,
            "use_dynamic_ntk": True,
            "use_logn_attn": True,
        }
    name = "BaiChuanForCausalLM" if kind == "baichuan" else "BaichuanForCausalLM"
    return {
        **shared,
        "architectures": [name],
        "model_type": "baichuan",
        "auto_map": {"AutoModelForCausalLM": f"modeling_baichuan.{name}"},
        "intermediate_size": INTERMEDIATE,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **({"z_loss_weight": 0} if kind == "baichuan2" else {}),
    }


def _generation_config(kind: Kind) -> dict[str, Any]:
    if kind == "qwen":
        return {"chat_format": "raw", "max_window_size": 512, "do_sample": True, "top_p": 0.8}
    given = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {**given, "user_token_id": 195} if kind == "baichuan2" else given


def random_tensors(kind: Kind, config: dict[str, Any], dtype: str, seed: int) -> dict[str, Any]:
    """Random weights under the published names, with the buffers that old files also hold."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    hidden, vocab, inner = config["hidden_size"], config["vocab_size"], INTERMEDIATE

    def made(*shape: int) -> Any:
        return (torch.randn(*shape, generator=generator) * 0.2).to(getattr(torch, dtype))

    def norm() -> Any:
        return (1 + torch.randn(hidden, generator=generator) * 0.1).to(getattr(torch, dtype))

    frequencies = torch.zeros(hidden // HEADS // 2)
    if kind == "qwen":
        tensors = {"transformer.wte.weight": made(vocab, hidden)}
        for n in range(config["num_hidden_layers"]):
            block = f"transformer.h.{n}."
            tensors |= {
                block + "ln_1.weight": norm(),
                block + "attn.c_attn.weight": made(3 * hidden, hidden),
                block + "attn.c_attn.bias": made(3 * hidden),
                block + "attn.c_proj.weight": made(hidden, hidden),
                block + "ln_2.weight": norm(),
                block + "mlp.w1.weight": made(inner, hidden),
                block + "mlp.w2.weight": made(inner, hidden),
                block + "mlp.c_proj.weight": made(hidden, inner),
            }
        tensors["transformer.rotary_emb.inv_freq"] = frequencies
        return {
            **tensors,
            "transformer.ln_f.weight": norm(),
            "lm_head.weight": made(vocab, hidden),
        }
    tensors = {"model.embed_tokens.weight": made(vocab, hidden)}
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        tensors |= {
            layer + "input_layernorm.weight": norm(),
            layer + "self_attn.W_pack.weight": made(3 * hidden, hidden),
            layer + "self_attn.o_proj.weight": made(hidden, hidden),
            layer + "self_attn.rotary_emb.inv_freq": frequencies.clone(),
            layer + "post_attention_layernorm.weight": norm(),
            layer + "mlp.gate_proj.weight": made(inner, hidden),
            layer + "mlp.up_proj.weight": made(inner, hidden),
            layer + "mlp.down_proj.weight": made(hidden, inner),
        }
    return {**tensors, "model.norm.weight": norm(), "lm_head.weight": made(vocab, hidden)}


def save_tensors(folder: Path, tensors: dict[str, Any], form: str, parts: int) -> None:
    """Writes weights as one file, or in parts with an index."""
    whole = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
    if parts == 1:
        _save(folder / whole, tensors)
        return
    stem, suffix = whole.rsplit(".", 1)
    names, width = list(tensors), math.ceil(len(tensors) / parts)
    weight_map = {}
    for part in range(parts):
        mine = names[part * width : (part + 1) * width]
        name = f"{stem}-{part + 1:05}-of-{parts:05}.{suffix}"
        _save(folder / name, {each: tensors[each] for each in mine})
        weight_map |= dict.fromkeys(mine, name)
    _write_json(folder / f"{whole}.index.json", {"metadata": {}, "weight_map": weight_map})


def _save(path: Path, tensors: dict[str, Any]) -> None:
    if path.suffix == ".bin":
        import torch

        torch.save(tensors, path)
    else:
        from safetensors.torch import save_file

        save_file(tensors, path, metadata={"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


# --- the published models' arithmetic ------------------------------------------------------------


def original_logits(kind: Kind, tensors: dict[str, Any], ids: Any) -> Any:
    """Logits `(batch, tokens, vocab)` in float32, within the length the model was made for."""
    tensors = {name: value.float() for name, value in tensors.items()}
    return _qwen_logits(tensors, ids) if kind == "qwen" else _baichuan_logits(kind, tensors, ids)


def _baichuan_logits(kind: Kind, tensors: dict[str, Any], ids: Any) -> Any:
    state = tensors["model.embed_tokens.weight"][ids]
    n_layers = len({n for n in tensors if re.search(r"W_pack", n)})
    for n in range(n_layers):
        layer = {name.removeprefix(f"model.layers.{n}."): value for name, value in tensors.items()}
        normed = _rms_norm(state, layer["input_layernorm.weight"])
        packed = normed @ layer["self_attn.W_pack.weight"].T
        mixed = _attend(packed, base=10000)
        state = state + mixed @ layer["self_attn.o_proj.weight"].T
        normed = _rms_norm(state, layer["post_attention_layernorm.weight"])
        gate = normed @ layer["mlp.gate_proj.weight"].T
        inner = gate * gate.sigmoid() * (normed @ layer["mlp.up_proj.weight"].T)
        state = state + inner @ layer["mlp.down_proj.weight"].T
    head = tensors["lm_head.weight"]
    if kind == "baichuan2":
        head = head / head.square().sum(-1, keepdim=True).sqrt()
    return _rms_norm(state, tensors["model.norm.weight"]) @ head.T


def _qwen_logits(tensors: dict[str, Any], ids: Any) -> Any:
    state = tensors["transformer.wte.weight"][ids]
    n_layers = len({n for n in tensors if n.endswith("c_attn.weight")})
    for n in range(n_layers):
        block = {name.removeprefix(f"transformer.h.{n}."): v for name, v in tensors.items()}
        normed = _rms_norm(state, block["ln_1.weight"])
        packed = normed @ block["attn.c_attn.weight"].T + block["attn.c_attn.bias"]
        mixed = _attend(packed, base=QWEN_ROTARY_BASE)
        state = state + mixed @ block["attn.c_proj.weight"].T
        normed = _rms_norm(state, block["ln_2.weight"])
        first, second = normed @ block["mlp.w1.weight"].T, normed @ block["mlp.w2.weight"].T
        state = state + (first * second * second.sigmoid()) @ block["mlp.c_proj.weight"].T
    state = _rms_norm(state, tensors["transformer.ln_f.weight"])
    return state @ tensors["lm_head.weight"].T


def _rms_norm(state: Any, weight: Any) -> Any:
    return weight * state / (state.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _attend(packed: Any, base: float) -> Any:
    """Causal attention head by head over `(batch, tokens, query | key | value)`."""
    import torch

    n_tokens, width = packed.shape[1], packed.shape[2] // 3
    size = width // HEADS
    positions = torch.arange(n_tokens, dtype=torch.float32)
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    angles = positions[:, None] * (1.0 / base**exponents)[None, :]
    cos, sin = angles.cos(), angles.sin()

    def turn(part: Any) -> Any:
        low, high = part[..., : size // 2], part[..., size // 2 :]
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    future = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    heads = []
    for head in range(HEADS):
        query, key, value = (
            packed[..., which * width + head * size : which * width + (head + 1) * size]
            for which in range(3)
        )
        scores = turn(query) @ turn(key).transpose(1, 2) / math.sqrt(size)
        heads.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ value)
    return torch.cat(heads, -1)
