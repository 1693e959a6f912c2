"""Rewrites a checkpoint of 2023 that needs code from the Hub as a native one, exactly.

    convert("Baichuan-7B", Path("baichuan-7b-llama"))

Tensor by tensor from mapped files into shards of two gigabytes, beside the target and under
another name: the target appears whole, with its record, or not at all. A run that was stopped
goes on behind the last shard it finished.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cbtqa
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import read_json, write_json
from cbtqa.manifest import FileEntry, describe_file
from cbtqa.records import Record
from cbtqa.tuning.backbones import (
    Backbone,
    Conversion,
    commit_of,
    conversion_of,
    fetch,
    fetch_if_present,
    find_backbone,
    load_backbones,
    read_config,
)
from cbtqa.tuning.libraries import require
from cbtqa.tuning.weights.files import (
    SHARD_BYTES,
    ModelRecord,
    OnStep,
    Output,
    Step,
    building,
    carry_notices,
    check_space,
    cut_into_shards,
    describe_written,
    find_weights,
    make_generation_config,
    open_tensors,
    refuse_existing,
    write_shards,
)
from cbtqa.tuning.weights.tokenizers import TokenizerFacts, write_tokenizer

RECORD_NAME = "conversion.json"


class SourceRecord(Record):
    """The checkpoint that was converted."""

    name: str
    """Hub id, or the folder's own name."""
    revision: str | None
    """Commit on the Hub; None for a folder of one's own."""
    files: tuple[FileEntry, ...]


class ConversionRecord(ModelRecord):
    """How a folder was made from a published checkpoint: `conversion.json`, written last."""

    kind: Literal["conversion"] = "conversion"
    conversion: Conversion
    source: SourceRecord
    dropped: tuple[str, ...]
    """Tensors that were not written; `*` stands for the number of a layer."""
    dropped_settings: tuple[str, ...]
    """Keys of the generation configuration that no native class knows."""
    exactness: tuple[str, ...]
    tokenizer: TokenizerFacts
    n_parameters: int


def convert(
    source: str | Path,
    out: Path,
    *,
    layout: Conversion | None = None,
    revision: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_step: OnStep = lambda step: None,
) -> ConversionRecord:
    """Converts a checkpoint into the folder `out`.

    Args:
        source: name of a backbone, folder, or Hub id.
        layout: what the checkpoint is; None: told from its config.json.
        revision: commit or branch on the Hub; None: the backbone's own, or the newest.
        shard_bytes: size of the files written, which is also what memory has to hold.

    Raises:
        UsageError: `out` exists, or there is nothing to convert.
        ConfigError: not convertible (ALiBi), not to be had, or no room on the disk.
        DataError: the files are damaged or not what their configuration says.
        IncompleteRunError: the disk filled up; the same command goes on.
    """
    refuse_existing(out)
    backbone, config = _opened(source, layout, revision)
    assert backbone.conversion is not None
    rules = LAYOUTS[backbone.conversion]
    made_config = rules.make_config(config)
    paths = find_weights(backbone.location, backbone.revision)
    outputs, dropped = _planned(rules, paths)
    _check_against_class(made_config, outputs, backbone)
    check_space(out, sum(output.n_bytes for output in outputs))
    files = _hashed(paths, on_step)
    family = load_backbones()[backbone.known_id or backbone.conversion]
    plan = {
        "source": [file.model_dump() for file in files],
        "settings": [backbone.conversion, shard_bytes, cbtqa.__version__],
    }
    with building(out, plan) as folder:
        tokenizer = write_tokenizer(backbone, folder, family, made_config["vocab_size"])
        unknown = _write_configs(backbone, folder, family, made_config, outputs)
        carry_notices(backbone, folder)
        write_shards(cut_into_shards(outputs, shard_bytes), folder, on_step)
        record = ConversionRecord(
            backbone=backbone.known_id,
            conversion=backbone.conversion,
            source=SourceRecord(name=backbone.told_name, revision=backbone.revision, files=files),
            dropped=dropped,
            dropped_settings=unknown,
            exactness=(*rules.notes, *tokenizer.notes),
            tokenizer=tokenizer,
            n_parameters=sum(output.n_values for output in outputs),
            **describe_written(folder, outputs),
        )
        write_json(folder / RECORD_NAME, record)
    return record


def _opened(
    source: str | Path, layout: Conversion | None, revision: str | None
) -> tuple[Backbone, dict[str, Any]]:
    """The backbone with its layout settled, and its published configuration."""
    backbone = find_backbone(source)
    config_path = fetch(backbone.location, "config.json", revision=revision or backbone.revision)
    config = read_config(config_path.parent)
    kind = layout or conversion_of(config, backbone.told_name)
    if kind is None:
        raise UsageError(
            f"{backbone.told_name} is a {config['model_type']} model: nothing to convert",
            hint=f"train on it as it is: cbtqa finetune --backbone {source}",
        )
    # the commit found now, so that a push in the meantime cannot mix two states of the model
    words = {"conversion": kind, "revision": commit_of(config_path)}
    return backbone.model_copy(update=words), config


def _planned(rules: Layout, paths: tuple[Path, ...]) -> tuple[list[Output], tuple[str, ...]]:
    """All tensors to write, in the order of the source, and the names of those dropped."""
    outputs: list[Output] = []
    dropped: set[str] = set()
    for path in paths:
        with open_tensors(path) as tensors:
            for name, shape in tensors.shapes.items():
                targets = plan_targets(rules, name, shape, tensors.dtypes[name])
                outputs += [_output(target, path) for target in targets]
                if not targets:
                    dropped.add(re.sub(r"\.\d+\.", ".*.", name))
    return outputs, tuple(sorted(dropped))


def _output(target: Target, path: Path) -> Output:
    return Output(target.name, path, target.source, target.shape, target.dtype, target.make)


def _check_against_class(config: dict[str, Any], outputs: list[Output], backbone: Backbone) -> None:
    """Compares names and shapes with those of the native class, built without memory.

    Raises:
        DataError: a tensor is missing, double, or of another shape than the configuration says.
    """
    torch, transformers = require("torch"), require("transformers")
    words = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(config["model_type"], **words)
        )
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {output.name: output.shape for output in outputs}
    missing = sorted(set(expected) - set(found))
    wrong = [name for name, shape in found.items() if expected.get(name) != shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if wrong:
        name = wrong[0]
        problems.append(
            f"{len(wrong)} tensors do not fit config.json, the first is {name}: "
            f"{list(found[name])}, expected {list(expected.get(name, ()))}"
        )
    if len(found) != len(outputs):
        problems.append("a tensor occurs in two files")
    if problems:
        raise DataError("; ".join(problems), where=backbone.location)


def _hashed(paths: tuple[Path, ...], on_step: OnStep) -> tuple[FileEntry, ...]:
    files = []
    for number, path in enumerate(paths, 1):
        started = time.monotonic()
        files.append(describe_file(path))
        seconds = time.monotonic() - started
        on_step(Step("read", number, len(paths), path.name, files[-1].n_bytes, seconds, False))
    return tuple(files)


def _write_configs(
    backbone: Backbone,
    folder: Path,
    family: Backbone,
    config: dict[str, Any],
    outputs: list[Output],
) -> tuple[str, ...]:
    tokenizer = require("transformers").AutoTokenizer.from_pretrained(folder)
    path = fetch_if_present(backbone.location, "generation_config.json", revision=backbone.revision)
    given = read_json(path) if path else {}
    generation, unknown = make_generation_config(given, tokenizer, family)
    write_json(folder / "generation_config.json", generation)
    dtypes = {output.dtype for output in outputs}
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "pad")}
    config = {**config, **ids, "eos_token_id": tokenizer.eos_token_id}
    if len(dtypes) == 1:
        config["torch_dtype"] = dtypes.pop()
    write_json(folder / "config.json", config)
    return unknown


# --- layouts -------------------------------------------------------------------------------------
# The layouts of 2023 that need code from the Hub, and the native classes they are equal to.
#
# One table a layout: which tensor becomes which, what is dropped, what the configuration
# becomes. Source of the names and sizes: the modeling files published with Baichuan-7B,
# Baichuan2-7B and Qwen-7B; shown equal by forward passes of our own in the tests.

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
