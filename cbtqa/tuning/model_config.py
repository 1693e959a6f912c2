"""What a model's config.json settles: its layout, its class, its sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cbtqa.errors import ConfigError, DataError
from cbtqa.files import read_json
from cbtqa.records import Record

Conversion = Literal["baichuan", "baichuan2", "qwen"]
"""Which layout a checkpoint has that transformers cannot read without remote code."""


LATENT_KEYS = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
"""Sizes of multi-head latent attention, as in MiniCPM3."""


class Shape(Record):
    """The sizes that decide memory and arithmetic: enough to build the model without a download."""

    hidden: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    vocab: int = Field(gt=0)
    """Rows of the embedding, padding rows included."""
    head_dim: int | None = None
    """None: `hidden / heads`."""
    tied: bool = False
    """True when the output head is the embedding."""
    norm_eps: float = 1e-6
    rope: dict[str, Any] = Field(default_factory=dict)
    """transformers' `rope_parameters`; empty: the architecture's default."""
    more: dict[str, Any] = Field(default_factory=dict)
    """Further keys of the architecture's configuration."""


def read_config(path: Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
        DataError: none there, or not a model's.
    """
    file = path / "config.json"
    if not file.is_file():
        if (path / "adapter_config.json").is_file():
            raise DataError(
                "an adapter, not a base model", where=str(path), hint="merge it: cbtqa merge"
            )
        raise DataError("no config.json: not a model's folder", where=str(path))
    config = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise DataError("names no model_type", where=str(file))
    return config


def conversion_of(config: dict[str, Any], where: str) -> Conversion | None:
    """The conversion a configuration asks for; None when transformers reads it as it is.

    Raises:
        ConfigError: ALiBi position encoding (Baichuan 13B), which no native class has.
    """
    kind, classes = config.get("model_type"), " ".join(config.get("architectures") or ())
    if kind == "qwen" or "QWenLMHeadModel" in classes:
        return "qwen"
    if kind != "baichuan" and "aichuan" not in classes.replace("BaiChuan", "Baichuan"):
        return None
    if "max_position_embeddings" not in config or config.get("hidden_size") == 5120:
        raise no_native_class(where)
    if config.get("vocab_size") in (64000, 125696):
        return "baichuan2" if config["vocab_size"] == 125696 else "baichuan"
    return "baichuan" if "BaiChuan" in classes else "baichuan2"


def no_native_class(where: str) -> ConfigError:
    """What is said of the 13B models of Baichuan, which no native class is equal to."""
    return ConfigError(
        f"{where}: a 13B Baichuan model: its ALiBi positions fit no native class",
        hint="use Baichuan-7B or Baichuan2-7B: cbtqa backbones",
    )


def facts_of_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Layout, class, context and sizes, as fields of a `Backbone`."""
    conversion = conversion_of(config, where)
    classes = config.get("architectures") or [None]
    found: dict[str, Any] = {"conversion": conversion, "source_architecture": classes[0]}
    if conversion is None:
        found |= {"architecture": classes[0], "model_type": config["model_type"]}
    else:
        is_qwen = conversion == "qwen"
        found["architecture"] = "Qwen2ForCausalLM" if is_qwen else "LlamaForCausalLM"
        found["model_type"] = "qwen2" if is_qwen else "llama"
    context = config.get("seq_length" if conversion == "qwen" else "max_position_embeddings")
    return {**found, "context": context, "shape": _shape_of(config, conversion)}


def _shape_of(config: dict[str, Any], conversion: Conversion | None) -> Shape | None:
    """Sizes from a config.json; None when it names them otherwise than Llama does."""
    base = config.get("rotary_emb_base" if conversion == "qwen" else "rope_theta")
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {"rope_type": "default", **({"rope_theta": float(base)} if base else {}), **scaling}
    if "type" in rope and "rope_type" not in scaling:
        rope["rope_type"] = rope.pop("type")
    try:
        return Shape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            intermediate=config["intermediate_size"] // (2 if conversion == "qwen" else 1),
            vocab=config["vocab_size"],
            head_dim=config.get("head_dim"),
            tied=bool(config.get("tie_word_embeddings", False)),
            norm_eps=config.get("rms_norm_eps") or config.get("layer_norm_epsilon") or 1e-6,
            rope=rope,
            more={key: config[key] for key in LATENT_KEYS if key in config},
        )
    except KeyError:
        return None


def count_parameters(shape: Shape) -> int:
    """Weights of the model, biases and norms left out (under 0.1 % of a 7B model)."""
    return shape.vocab * shape.hidden * (1 if shape.tied else 2) + shape.layers * (
        _attention_size(shape) + 3 * shape.hidden * shape.intermediate
    )


def _attention_size(shape: Shape) -> int:
    more = shape.more
    if "kv_lora_rank" in more:  # multi-head latent attention, as in MiniCPM3
        per_head = more["qk_nope_head_dim"] + more["qk_rope_head_dim"]
        queries = more["q_lora_rank"] * (shape.hidden + shape.heads * per_head)
        keys = shape.hidden * (more["kv_lora_rank"] + more["qk_rope_head_dim"])
        values = (
            more["kv_lora_rank"] * shape.heads * (more["qk_nope_head_dim"] + more["v_head_dim"])
        )
        return int(queries + keys + values + shape.heads * more["v_head_dim"] * shape.hidden)
    head_dim = shape.head_dim or shape.hidden // shape.heads
    return 2 * shape.hidden * head_dim * (shape.heads + shape.kv_heads)
