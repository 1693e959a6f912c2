"""The layouts of 2023 that need code from the Hub, and the native classes they are equal to.

One table a layout: which tensor becomes which, what is dropped, what the configuration becomes.
Source of the names and sizes: the modeling files published with Baichuan-7B, Baichuan2-7B and
Qwen-7B; shown equal by forward passes of our own in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cbtqa.errors import ConfigError, DataError
from cbtqa.tuning.libraries import require
from cbtqa.tuning.model_config import Conversion

ROWS_AT_ONCE = 8192
"""Rows of a head normalised at once: 128 MiB of float32 at a hidden size of 4,096."""
_LAYER = r"model\.layers\.(\d+)\."
_BLOCK = r"transformer\.h\.(\d+)\."


@dataclass(frozen=True)
class Rule:
    """A pattern of source names and the target names; three targets share the rows equally."""

    pattern: str
    targets: tuple[str, ...]
    how: Literal["copy", "split", "normalise"] = "copy"


@dataclass(frozen=True)
class Layout:
    """How one family is rewritten."""

    rules: tuple[Rule, ...]
    dropped: tuple[str, ...]
    """Patterns of tensors that carry nothing the native class does not compute itself."""
    make_config: Callable[[dict[str, Any]], dict[str, Any]]
    notes: tuple[str, ...]
    """What is exact and up to where, for the record."""


@dataclass(frozen=True)
class Target:
    """One tensor to write, and how it is made from one tensor of the source."""

    name: str
    source: str
    how: Literal["copy", "split", "normalise"]
    part: int = 0
    """Which third of the rows, for `split`."""
    shape: tuple[int, ...] = ()
    dtype: str = ""

    def make(self, tensor: Any) -> Any:
        """The tensor to write, contiguous and in the source's type."""
        if self.how == "normalise":
            return normalise_rows(tensor)
        if self.how == "split":
            n_rows = self.shape[0]
            tensor = tensor[self.part * n_rows : (self.part + 1) * n_rows]
        return tensor.clone().contiguous()


def _qkv(prefix: str, kind: str) -> tuple[str, ...]:
    return tuple(rf"{prefix}self_attn.{part}_proj.{kind}" for part in "qkv")


def plan_targets(layout: Layout, name: str, shape: tuple[int, ...], dtype: str) -> list[Target]:
    """What becomes of one tensor of the source; empty when it is dropped.

    Raises:
        DataError: a name that the layout does not have, or rows that cannot be shared in three.
    """
    for rule in layout.rules:
        match = re.fullmatch(rule.pattern, name)
        if match is None:
            continue
        names = [match.expand(target) for target in rule.targets]
        if shape and shape[0] % len(names):
            raise DataError(f"{name}: {shape[0]} rows do not divide into query, key and value")
        rest = (shape[0] // len(names), *shape[1:]) if shape else shape
        return [
            Target(target, name, rule.how, part, rest, dtype) for part, target in enumerate(names)
        ]
    if any(re.fullmatch(pattern, name) for pattern in layout.dropped):
        return []
    raise DataError(f"unexpected tensor {name}: these are not the weights this layout has")


def normalise_rows(weight: Any) -> Any:
    """Rows of unit length, computed in float32, given back in the type they came in.

    Baichuan 2 divides each row of its head by its length while running; a head that does not
    change can be divided once.
    """
    torch = require("torch")
    made = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for start in range(0, weight.shape[0], ROWS_AT_ONCE):
        rows = weight[start : start + ROWS_AT_ONCE].float()
        made[start : start + ROWS_AT_ONCE] = torch.nn.functional.normalize(rows, dim=-1)
    return made


# --- configurations ------------------------------------------------------------------------------


def _need(config: dict[str, Any], *names: str) -> list[Any]:
    missing = [name for name in names if name not in config]
    if missing:
        raise DataError(f"config.json lacks {', '.join(missing)}")
    return [config[name] for name in names]


def _llama_config(config: dict[str, Any]) -> dict[str, Any]:
    hidden, layers, heads, intermediate, vocab, context = _need(
        config,
        *("hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("intermediate_size", "vocab_size", "max_position_embeddings"),
    )
    if config.get("tie_word_embeddings"):
        raise ConfigError("config.json ties head and embedding, which Baichuan-7B does not")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "hidden_act": config.get("hidden_act", "silu"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "initializer_range": config.get("initializer_range", 0.02),
        "rope_theta": 10000.0,  # a constant in the published code, not a key of its config.json
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def _qwen2_config(config: dict[str, Any]) -> dict[str, Any]:
    hidden, layers, heads, intermediate, vocab, context = _need(
        config,
        *("hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("intermediate_size", "vocab_size", "seq_length"),
    )
    if config.get("kv_channels", hidden // heads) * heads != hidden:
        raise ConfigError("config.json: kv_channels x heads is not the hidden size")
    for key, only in (("rotary_pct", 1.0), ("no_bias", True), ("tie_word_embeddings", False)):
        if config.get(key, only) != only:
            raise ConfigError(f"config.json: {key} is {config[key]}; Qwen2 can only be {only}")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate // 2,  # Qwen counts both halves of the gated layer
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "rms_norm_eps": config.get("layer_norm_epsilon", 1e-6),
        "initializer_range": config.get("initializer_range", 0.02),
        "rope_theta": float(config.get("rotary_emb_base", 10000)),
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


# --- the table -----------------------------------------------------------------------------------

_BAICHUAN_RULES = (
    Rule(r"(model\.embed_tokens\.weight|model\.norm\.weight)", (r"\1",)),
    Rule(_LAYER + r"self_attn\.W_pack\.weight", _qkv(r"model.layers.\1.", "weight"), "split"),
    Rule(
        r"(model\.layers\.\d+\.(?:self_attn\.o_proj|mlp\.(?:gate|up|down)_proj|"
        r"input_layernorm|post_attention_layernorm)\.weight)",
        (r"\1",),
    ),
)
_EXACT = "fp32 logits equal the published layout's up to rounding of another attention kernel"
_POSITIONS = "position tables are dropped: the native class computes them"

LAYOUTS: dict[Conversion, Layout] = {
    "baichuan": Layout(
        (*_BAICHUAN_RULES, Rule(r"lm_head\.weight", ("lm_head.weight",))),
        (r".*\.rotary_emb\.inv_freq", r".*\.rotary_emb\.(?:cos|sin)_cached"),
        _llama_config,
        (_EXACT, _POSITIONS, "W_pack is three projections: an adapter on each, where it was one"),
    ),
    "baichuan2": Layout(
        (*_BAICHUAN_RULES, Rule(r"lm_head\.weight", ("lm_head.weight",), "normalise")),
        (r".*\.rotary_emb\.inv_freq", r".*\.rotary_emb\.(?:cos|sin)_cached"),
        _llama_config,
        (
            _EXACT,
            _POSITIONS,
            "W_pack is three projections: an adapter on each, where it was one",
            "the head's rows are divided by their lengths once, in float32 (NormHead); exact for a "
            "frozen head, and in 16 bits within one rounding of dividing at run time",
        ),
    ),
    "qwen": Layout(
        (
            Rule(r"transformer\.wte\.weight", ("model.embed_tokens.weight",)),
            Rule(r"transformer\.ln_f\.weight", ("model.norm.weight",)),
            Rule(r"lm_head\.weight", ("lm_head.weight",)),
            Rule(_BLOCK + r"ln_1\.weight", (r"model.layers.\1.input_layernorm.weight",)),
            Rule(_BLOCK + r"ln_2\.weight", (r"model.layers.\1.post_attention_layernorm.weight",)),
            Rule(_BLOCK + r"attn\.c_attn\.weight", _qkv(r"model.layers.\1.", "weight"), "split"),
            Rule(_BLOCK + r"attn\.c_attn\.bias", _qkv(r"model.layers.\1.", "bias"), "split"),
            Rule(_BLOCK + r"attn\.c_proj\.weight", (r"model.layers.\1.self_attn.o_proj.weight",)),
            # the gate, which goes through SiLU, is w2 and not w1
            Rule(_BLOCK + r"mlp\.w1\.weight", (r"model.layers.\1.mlp.up_proj.weight",)),
            Rule(_BLOCK + r"mlp\.w2\.weight", (r"model.layers.\1.mlp.gate_proj.weight",)),
            Rule(_BLOCK + r"mlp\.c_proj\.weight", (r"model.layers.\1.mlp.down_proj.weight",)),
        ),
        (r".*rotary_emb\.inv_freq", _BLOCK + r"attn\.(?:bias|masked_bias)", r".*\.logn_tensor"),
        _qwen2_config,
        (
            _EXACT,
            _POSITIONS,
            "log-n attention and dynamic NTK are dropped: they act beyond seq_length only, which "
            "is therefore the context written",
            "c_attn is three projections: an adapter on each, where it was one",
        ),
    ),
}
