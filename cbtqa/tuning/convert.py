"""Rewrites a checkpoint of 2023 that needs code from the Hub as a native one, exactly.

    convert("Baichuan-7B", Path("baichuan-7b-llama"))

Tensor by tensor from mapped files into shards of two gigabytes, beside the target and under
another name: the target appears whole, with its record, or not at all. A run that was stopped
goes on behind the last shard it finished.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Literal

import cbtqa
from cbtqa.errors import DataError, UsageError
from cbtqa.files import read_json, write_json
from cbtqa.manifest import FileEntry, describe_file
from cbtqa.records import Record
from cbtqa.tuning.backbones import Backbone, find_backbone, load_backbones
from cbtqa.tuning.downloads import commit_of, fetch, fetch_if_present
from cbtqa.tuning.layouts import LAYOUTS, Layout, Target, plan_targets
from cbtqa.tuning.libraries import require
from cbtqa.tuning.model_config import Conversion, conversion_of, read_config
from cbtqa.tuning.model_folder import (
    ModelRecord,
    building,
    carry_notices,
    check_space,
    describe_written,
    make_generation_config,
    refuse_existing,
)
from cbtqa.tuning.shards import SHARD_BYTES, OnStep, Output, Step, cut_into_shards, write_shards
from cbtqa.tuning.tokenizer_conversion import TokenizerFacts, write_tokenizer
from cbtqa.tuning.weights import find_weights, open_tensors

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


def read_conversion(folder: Path) -> ConversionRecord:
    """The record of a converted folder.

    Raises:
        DataError: none there: not converted by `cbtqa convert`.
    """
    if not (folder / RECORD_NAME).is_file():
        raise DataError(f"no {RECORD_NAME}: not made by cbtqa convert", where=str(folder))
    return ConversionRecord.model_validate(read_json(folder / RECORD_NAME))


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
