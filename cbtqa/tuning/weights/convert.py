"""Rewrites a checkpoint of 2023 that needs code from the Hub as a native one, exactly.

    convert("Baichuan-7B", Path("baichuan-7b-llama"))

Tensor by tensor from mapped files into shards, in a folder beside the target: the target appears
whole, with its record, or not at all. A run that was stopped resumes after its last shard.
"""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cbtqa
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import write_json
from cbtqa.manifest import FileEntry, describe_file
from cbtqa.records import Record
from cbtqa.tuning.backbones import (
    Backbone,
    Conversion,
    commit_of,
    conversion_of,
    fetch,
    find_backbone,
    load_backbones,
    read_config,
)
from cbtqa.tuning.libraries import read_table, require
from cbtqa.tuning.weights.files import (
    SHARD_BYTES,
    ModelRecord,
    OnStep,
    Output,
    Step,
    building,
    carry_notices,
    check_space,
    describe_written,
    dtypes_of,
    find_weights,
    open_tensors,
    refuse_existing,
    write_configs,
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
    source: str | Path | Backbone,
    out: Path,
    *,
    layout: Conversion | None = None,
    revision: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_step: OnStep = lambda step: None,
) -> ConversionRecord:
    """Converts a checkpoint into the folder `out`.

    Args:
        source: name of a backbone, folder, or Hub id; or a backbone that is found already.
        layout: what the checkpoint is; None: by its config.json.
        revision: commit or branch on the Hub; None: the backbone's own, or the newest.
        shard_bytes: size of the files written, which is also what memory has to hold.

    Raises:
        UsageError: `out` exists, or there is nothing to convert.
        ConfigError: not convertible (ALiBi), not available, or no room on the disk.
        DataError: the files are damaged or contradict their configuration.
        IncompleteRunError: the disk is full; the same command resumes.
    """
    refuse_existing(out)
    backbone, config = _opened(source, layout, revision)
    assert backbone.conversion is not None
    rules = Layout(**read_table("layouts.yaml")["layouts"][backbone.conversion])
    made_config = native_config(backbone.conversion, config)
    paths = find_weights(backbone.location, backbone.revision)
    outputs, dropped = _planned(rules, paths)
    _check_against_class(made_config, outputs, backbone)
    check_space(out, sum(output.n_bytes for output in outputs))
    files = _hashed(paths, on_step)
    read = SourceRecord(name=backbone.display_name, revision=backbone.revision, files=files)
    family = load_backbones()[backbone.known_id or backbone.conversion]
    plan = {
        "source": [file.model_dump() for file in files],
        "settings": [backbone.conversion, shard_bytes, cbtqa.__version__],
    }
    with building(out, plan) as folder:
        tokenizer = write_tokenizer(backbone, folder, family)
        unknown = write_configs(folder, backbone, family, made_config, dtypes_of(outputs))
        carry_notices(backbone, folder)
        write_shards(outputs, shard_bytes, folder, on_step)
        record = ConversionRecord(
            backbone=backbone.known_id,
            conversion=backbone.conversion,
            source=read,
            dropped=dropped,
            dropped_settings=unknown,
            exactness=(*rules.notes, *tokenizer.notes),
            tokenizer=tokenizer,
            n_parameters=sum(output.n_values for output in outputs),
            **describe_written(folder, dtypes_of(outputs)),
        )
        write_json(folder / RECORD_NAME, record)
    return record


def _opened(
    source: str | Path | Backbone, layout: Conversion | None, revision: str | None
) -> tuple[Backbone, dict[str, Any]]:
    """The backbone with its layout settled, and its published configuration."""
    backbone = source if isinstance(source, Backbone) else find_backbone(source)
    config_path = fetch(backbone.location, "config.json", revision=revision or backbone.revision)
    config = read_config(config_path.parent)
    kind = layout or conversion_of(config, backbone.display_name)
    if kind is None:
        raise UsageError(
            f"{backbone.display_name} is a {config['model_type']} model: nothing to convert",
            hint=f"train on it as it is: cbtqa finetune --backbone {backbone.location}",
        )
    # the commit found now, so that a push in the meantime cannot mix two states of the model
    words = {"conversion": kind, "revision": commit_of(config_path)}
    return backbone.model_copy(update=words), config


def _planned(layout: Layout, paths: tuple[Path, ...]) -> tuple[list[Output], tuple[str, ...]]:
    """All tensors to write, in the order of the source, and the names of those dropped."""
    outputs: list[Output] = []
    dropped: set[str] = set()
    for path in paths:
        with open_tensors(path) as tensors:
            for name, shape in tensors.shapes.items():
                targets = layout.targets_of(name)
                if not targets:
                    dropped.add(re.sub(r"\.\d+\.", ".*.", name))
                    continue
                if shape and shape[0] % len(targets):
                    words = "rows do not divide into query, key and value"
                    raise DataError(f"{name}: {shape[0]} {words}")
                written = (shape[0] // len(targets), *shape[1:]) if shape else shape
                for part, target in enumerate(targets):
                    normalised = target in layout.normalised
                    make = normalise_rows if normalised else partial(_rows_of, part, written)
                    outputs.append(Output(target, path, name, written, tensors.dtypes[name], make))
    return outputs, tuple(sorted(dropped))


def _rows_of(part: int, shape: tuple[int, ...], tensor: Any) -> Any:
    """The `part`-th block of rows, contiguous and in the source's type."""
    return tensor[part * shape[0] : (part + 1) * shape[0]].clone().contiguous()


def _check_against_class(config: dict[str, Any], outputs: list[Output], backbone: Backbone) -> None:
    """Raises DataError where a tensor is missing, double, or not of the native class's shape."""
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


ROWS_AT_ONCE = 8192
"""Rows of a head normalised at once: 128 MiB of float32 at a hidden size of 4,096."""


class Layout(Record):
    """How one family is rewritten; see `layouts.yaml`."""

    renamed: dict[str, str]
    split: dict[str, str]
    normalised: tuple[str, ...] = ()
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def targets_of(self, name: str) -> list[str]:
        """The tensors that share the rows of one of the source; none: dropped. Raises DataError."""
        for pattern, target in (self.renamed | self.split).items():
            if match := re.fullmatch(pattern, name):
                parts = "qkv" if pattern in self.split else "*"
                return [match.expand(target.replace("*", part)) for part in parts]
        if any(re.fullmatch(pattern, name) for pattern in self.dropped):
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


def native_config(conversion: Conversion, config: dict[str, Any]) -> dict[str, Any]:
    """The native class's config.json; raises DataError or ConfigError for one it cannot have."""
    is_qwen = conversion == "qwen"
    names = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
    names += ["vocab_size", "seq_length" if is_qwen else "max_position_embeddings"]
    if missing := [name for name in names if name not in config]:
        raise DataError(f"config.json lacks {', '.join(missing)}")
    hidden, layers, heads, intermediate, vocab, context = (config[name] for name in names)
    made = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "initializer_range": config.get("initializer_range", 0.02),
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    if not is_qwen:
        if config.get("tie_word_embeddings"):
            raise ConfigError("config.json ties head and embedding, which Baichuan-7B does not")
        return made | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "intermediate_size": intermediate,
            "hidden_act": config.get("hidden_act", "silu"),
            "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
            "rope_theta": 10000.0,  # a constant in the published code, not a key of its config.json
            "attention_bias": False,
            "mlp_bias": False,
        }
    if config.get("kv_channels", hidden // heads) * heads != hidden:
        raise ConfigError("config.json: kv_channels x heads is not the hidden size")
    for key, only in (("rotary_pct", 1.0), ("no_bias", True), ("tie_word_embeddings", False)):
        if config.get(key, only) != only:
            raise ConfigError(f"config.json: {key} is {config[key]}; Qwen2 can only be {only}")
    return made | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "intermediate_size": intermediate // 2,  # Qwen counts both halves of the gated layer
        "hidden_act": "silu",
        "rms_norm_eps": config.get("layer_norm_epsilon", 1e-6),
        "rope_theta": float(config.get("rotary_emb_base", 10000)),
        "use_sliding_window": False,
    }
