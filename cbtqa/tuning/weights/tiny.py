"""Tiny random checkpoints in the real architectures, to try a whole experiment on a CPU.

    write_tiny(find_backbone("baichuan"), Path("tiny/baichuan"), texts)    # as it was published

A backbone of 2023 is written in its own layout, tensors and tokenizer, so that the conversion has
something to do; any other as `save_pretrained` leaves it. What such a model writes is noise.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cbtqa.files import write_json
from cbtqa.tuning.backbones import Backbone, Shape, to_config
from cbtqa.tuning.libraries import require, require_training

VOCAB = 576
CONTEXT = 16384
N_CHARACTERS = 400
"""Characters with a token of their own, the most frequent; the others are bytes."""
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
END_LOGIT = 0.5
"""How much likelier than another token the end of the turn is, in logits: sampled from 50 tokens,
an answer is some 30 tokens long."""
QWEN_SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{number}|>" for number in range(205)),
)


def shrunk(backbone: Backbone, *, vocab: int = VOCAB, context: int = 512) -> Backbone:
    """The backbone with two narrow layers, its ratios of heads and its special keys kept."""
    shape = backbone.shape
    assert shape is not None, "every listed backbone has one"
    more = dict(shape.more)
    if "kv_lora_rank" in more:
        more |= {**LATENT, "v_head_dim": 16, "dim_model_base": 32}
    if "num_experts" in more:
        more |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    if "linear_num_key_heads" in more:
        more |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        more |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    small = Shape(
        hidden=64,
        layers=4 if "linear_num_key_heads" in more else 2,  # one kind of layer in four is another
        heads=4,
        kv_heads=4 if shape.kv_heads == shape.heads else 2,
        intermediate=96,
        vocab=vocab,
        head_dim=16 if shape.head_dim else None,
        tied=shape.tied,
        norm_eps=shape.norm_eps,
        rope=shape.rope,
        more=more,
    )
    return backbone.model_copy(update={"shape": small, "context": context})


def write_tiny(backbone: Backbone, folder: Path, texts: Sequence[str]) -> None:
    """Writes a random checkpoint of a few hundred kilobytes.

    Args:
        texts: what the tokenizer knows characters from.
    """
    require_training()
    folder.mkdir(parents=True, exist_ok=True)
    characters = _frequent_characters(texts)
    save = {None: _save_fast, "qwen": _save_tiktoken}.get(backbone.conversion, _save_sentencepiece)
    vocab, end = save(folder, characters, backbone)
    small = shrunk(backbone, vocab=vocab, context=CONTEXT)
    assert small.shape is not None
    small = small.model_copy(update={"shape": small.shape.model_copy(update={"tied": False})})
    model = _random_model(small, end)
    if backbone.conversion is None:
        model.save_pretrained(folder)
        return
    write_json(folder / "config.json", _published_config(small))
    tensors = _published_tensors(backbone.conversion, model.state_dict())
    require("safetensors.torch").save_file(
        tensors, folder / "model.safetensors", metadata={"format": "pt"}
    )


def _random_model(small: Backbone, end: int) -> Any:
    """Nearly equal logits for every token, and a higher one for the end of the turn."""
    torch, transformers = require("torch"), require("transformers")
    torch.manual_seed(int.from_bytes(small.id.encode()[:7]))  # backbones of one class differ
    model = transformers.AutoModelForCausalLM.from_config(to_config(small)).eval()
    with torch.no_grad():
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        table.normal_(0, 0.1)
        table[:, 0] = 1.0  # one direction that every state keeps, for the end's logit
        head.normal_(0, 0.02)
        state = table.mean(0) / table.square().mean().sqrt()
        head[end] = 0.0
        head[end, 0] = END_LOGIT / state[0]
    return model


def _frequent_characters(texts: Sequence[str]) -> list[str]:
    counts = Counter(one for text in texts for one in text if ord(one) > 127)
    return sorted(counts, key=lambda one: (-counts[one], one))[:N_CHARACTERS]


# --- tokenizers: each writes its files and gives the number of tokens and the end's id -----------


def _save_sentencepiece(
    folder: Path, characters: Sequence[str], backbone: Backbone
) -> tuple[int, int]:
    library = require("sentencepiece")
    library.set_min_log_level(2)
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(characters)] * 2),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=len(characters) + 300,
        character_coverage=1.0,
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        num_threads=1,
    )
    (folder / "tokenizer.vocab").unlink()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "BaiChuanTokenizer", "add_bos_token": False, **names}
    write_json(folder / "tokenizer_config.json", settings)
    made = library.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return int(made.vocab_size()), 2


def _save_tiktoken(folder: Path, characters: Sequence[str], backbone: Backbone) -> tuple[int, int]:
    encoded = [one.encode() for one in characters]
    stems = dict.fromkeys(one[:end] for one in encoded for end in range(2, len(one)))
    tokens = dict.fromkeys([*(bytes([byte]) for byte in range(256)), *stems, *encoded])
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_text("".join(lines), encoding="ascii")
    end = QWEN_SPECIALS.index(backbone.end_of_turn or "<|im_end|>")
    return len(tokens) + len(QWEN_SPECIALS), len(tokens) + end


def _save_fast(folder: Path, characters: Sequence[str], backbone: Backbone) -> tuple[int, int]:
    library, transformers = require("tokenizers"), require("transformers")
    end, pad = backbone.end_of_turn or "</s>", backbone.pad_token or "<unk>"
    specials = dict.fromkeys(["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", end, pad])
    raw = library.Tokenizer(library.models.BPE())
    raw.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=len(specials) + 256 + 2 * len(characters),
        special_tokens=list(specials),
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(characters, trainer)
    more = [name for name in (*backbone.stops, "<|im_start|>") if name not in (end, pad)]
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token=end,
        pad_token=pad,
        unk_token="<unk>",
        extra_special_tokens=more,
    )
    made.save_pretrained(folder)
    return len(made), made.convert_tokens_to_ids(end)


# --- the layouts of 2023 -------------------------------------------------------------------------


def _published_config(small: Backbone) -> dict[str, Any]:
    shape = small.shape
    assert shape is not None
    config = {
        "architectures": [small.source_architecture],
        "model_type": "qwen" if small.conversion == "qwen" else "baichuan",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": small.context,
        "tie_word_embeddings": False,
    }
    if small.conversion == "qwen":
        base = shape.rope.get("rope_theta", 10000.0)
        words = {"seq_length": small.context, "rotary_emb_base": base, "no_bias": True}
        return config | words | {"intermediate_size": 2 * shape.intermediate, "rotary_pct": 1.0}
    return config | {"rms_norm_eps": shape.norm_eps, "hidden_act": "silu"}


QWEN_NAMES = {
    "self_attn.o_proj": "attn.c_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "mlp.up_proj": "mlp.w1",
    "mlp.gate_proj": "mlp.w2",
    "mlp.down_proj": "mlp.c_proj",
    "self_attn.c_attn": "attn.c_attn",
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    "model.layers": "transformer.h",
}


def _published_tensors(conversion: str, native: dict[str, Any]) -> dict[str, Any]:
    """The native model's tensors under the published names: query, key and value in one."""
    torch = require("torch")
    fused = "c_attn" if conversion == "qwen" else "W_pack"
    made = {}
    for name, tensor in native.items():
        if "q_proj" in name:
            parts = [native[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            made[name.replace("q_proj", fused)] = torch.cat(parts).contiguous()
        elif "k_proj" not in name and "v_proj" not in name:
            made[name] = tensor.contiguous()
    if conversion != "qwen":
        return made
    renamed = {}
    for name, tensor in made.items():
        for ours, theirs in QWEN_NAMES.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed
