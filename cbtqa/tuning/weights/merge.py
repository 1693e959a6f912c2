"""Merges an adapter into its base: a plain model that needs neither peft nor us.

    merge(Path("run"), Path("merged"), base="baichuan-7b-llama")

Each weight is read, changed in float32 and cast once; memory holds one shard and the adapter,
never the model. Merging in 16 bits, as is often done, is off by a thousand times as much.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cbtqa
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import read_json, write_json
from cbtqa.manifest import FileEntry, describe_file
from cbtqa.tuning.backbones import MERGE_RECORD, Backbone, commit_of, fetch, fetch_if_present
from cbtqa.tuning.libraries import require
from cbtqa.tuning.settings import OnStage
from cbtqa.tuning.weights.adapter import CONFIG_NAME, Adapter, check_base, find_base, read_adapter
from cbtqa.tuning.weights.files import (
    SHARD_BYTES,
    BaseRecord,
    ModelRecord,
    OnStep,
    Output,
    building,
    carry_notices,
    check_space,
    describe_written,
    find_weights,
    open_tensors,
    read_base_record,
    refuse_existing,
    write_configs,
    write_shards,
)

DType = Literal["float32", "float16", "bfloat16"]
TOKENIZER_NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"),
)


class MergeRecord(ModelRecord):
    """How a merged folder was made: `merge.json`, written last."""

    kind: Literal["merge"] = "merge"
    base: BaseRecord
    adapter: str
    """The adapter folder's own name."""
    adapter_files: tuple[FileEntry, ...]
    method: str
    """`LoRA`, `rsLoRA` or `DoRA`."""
    n_merged: int
    """Weights that the adapter changed."""
    n_replaced: int
    """Weights that were trained whole and put in the place of the base's."""
    notes: tuple[str, ...]


def merge(
    adapter: Path,
    out: Path,
    *,
    base: str | None = None,
    dtype: DType | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_step: OnStep = lambda step: None,
    on_stage: OnStage = lambda words: None,
) -> MergeRecord:
    """Merges an adapter into the folder `out`; a base that has to be converted is, once.

    Args:
        base: name, folder or Hub id; None: what the adapter names.
        dtype: type of the merged weights; None: each as in the base.
        shard_bytes: size of the files written, which is also what memory has to hold.

    Raises:
        UsageError: `out` exists, or the base is not found by the name that the adapter records.
        ConfigError: a base in 4 bits, or one that cannot be had; an adapter of another kind.
        DataError: another base than the one the adapter was trained on; damaged files.
        IncompleteRunError: the disk is full; the same command resumes.
    """
    refuse_existing(out)
    opened, recorded = read_adapter(adapter), read_base_record(adapter)
    backbone = find_base(opened.config, base, recorded, on_stage)
    config_path = fetch(backbone.location, "config.json", revision=backbone.revision)
    config: dict[str, Any] = read_json(config_path)
    if config.get("quantization_config"):
        raise ConfigError(
            f"{backbone.display_name} holds quantised weights: merging into them would lose what "
            "was learned",
            hint="give the 16-bit model that it was made from: --base FOLDER",
        )
    backbone = backbone.model_copy(update={"revision": commit_of(config_path)})
    found, notes = check_base(backbone, recorded)
    outputs = _planned(opened, find_weights(backbone.location, backbone.revision), dtype)
    check_space(out, sum(output.n_bytes for output in outputs))
    files = tuple(map(describe_file, opened.weight_paths))
    plan = {
        "base": found.weights_sha256,
        "adapter": [each.sha256 for each in files],
        "settings": [dtype, shard_bytes, opened.config, cbtqa.__version__],
    }
    with building(out, plan) as folder:
        _carry_tokenizer(opened, backbone, folder)
        carry_notices(backbone, folder)
        write_configs(folder, backbone, backbone, config, outputs, adapter=adapter)
        write_shards(outputs, shard_bytes, folder, on_step)
        record = MergeRecord(
            backbone=found.backbone,
            base=found,
            adapter=adapter.resolve().name,
            adapter_files=(describe_file(adapter / CONFIG_NAME), *files),
            method=opened.method,
            n_merged=len(opened.deltas),
            n_replaced=len(opened.replaced),
            notes=notes,
            **describe_written(folder, outputs),
        )
        write_json(folder / MERGE_RECORD, record)
    return record


def _planned(adapter: Adapter, paths: tuple[Path, ...], dtype: DType | None) -> list[Output]:
    outputs: list[Output] = []
    for path in paths:
        with open_tensors(path) as tensors:
            for name, shape in tensors.shapes.items():
                kind = tensors.dtypes[name]
                written = dtype if dtype and "float" in kind else kind
                make = _maker(adapter, name, written)
                outputs.append(Output(name, path, name, shape, written, make))
    names = {output.name for output in outputs}
    lost = [name for name in (*adapter.deltas, *adapter.replaced) if name not in names]
    if lost:
        raise DataError(
            f"the base has no weight {lost[0]} (and {len(lost) - 1} more): another base, or a head "
            "tied to the embedding",
            where=adapter.folder.name,
        )
    return outputs


def _maker(adapter: Adapter, name: str, dtype: str) -> Callable[[Any], Any]:
    """What makes the merged weight of the base's."""
    new, delta = adapter.replaced.get(name), adapter.deltas.get(name)

    def make(weight: Any) -> Any:
        if new is not None and new.shape != weight.shape:
            raise DataError(f"trained {list(new.shape)}, the base has {list(weight.shape)}")
        made = new if new is not None else delta.merged_into(weight) if delta else weight
        return made.to(getattr(require("torch"), dtype), copy=True).contiguous()

    return make


def _carry_tokenizer(adapter: Adapter, backbone: Backbone, folder: Path) -> None:
    """Tokenizer and chat template: the adapter's own where it has them, else the base's."""
    has_own = (adapter.folder / "tokenizer_config.json").is_file()
    for name in TOKENIZER_NAMES:
        found = fetch_if_present(backbone.location, name, revision=backbone.revision)
        own = adapter.folder / name
        if own.is_file():
            found = own
        elif has_own and name != "tokenizer.model":
            continue  # the adapter's files are a whole; a second one beside them might contradict
        if found is not None:
            shutil.copyfile(found, folder / name)
    settings = folder / "tokenizer_config.json"
    words = read_json(settings) if settings.is_file() else {}
    if words.get("tokenizer_class") == "TokenizersBackend":
        # transformers 5's name for the class that all versions know by this one
        write_json(settings, {**words, "tokenizer_class": "PreTrainedTokenizerFast"})


CONVERTER = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
"""Environment variable with the folder of llama.cpp's sources."""


def serving_lines(folder: Path) -> dict[str, str]:
    """What to type to serve a merged folder, by program."""
    quoted, gguf = shlex.quote(str(folder)), shlex.quote(f"{folder}.gguf")
    return {
        "vllm": f"vllm serve {quoted} --served-model-name {shlex.quote(folder.name)}",
        "llama.cpp": f"python {CONVERTER} {quoted} --outfile {gguf} --outtype f16 && "
        f"llama-server -m {gguf}",
    }


def find_converter(llama_cpp: Path | None) -> Path:
    """llama.cpp's converter in a source folder, or in LLAMA_CPP's; raises ConfigError without."""
    given = llama_cpp or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if given is None or not (given / CONVERTER).is_file():
        raise ConfigError(
            f"--gguf needs llama.cpp's {CONVERTER}"
            + (f", which is not in {given}" if given else ""),
            hint="git clone https://github.com/ggml-org/llama.cpp, then --llama-cpp llama.cpp (or "
            f"{VARIABLE}=llama.cpp)",
        )
    return given / CONVERTER


def write_gguf(folder: Path, out: Path, converter: Path, outtype: str = "f16") -> None:
    """Runs the converter on a merged folder; raises DataError when it fails."""
    if out.exists():
        raise UsageError(f"{out} exists already", hint="give another --gguf")
    partial = out.with_name(f".{out.name}.part")
    command = [sys.executable, converter, folder, "--outfile", partial, "--outtype", outtype]
    try:
        done = subprocess.run(list(map(str, command)), stdout=sys.stderr, check=False)
        if done.returncode != 0 or not partial.is_file():
            words = f"{CONVERTER} ended with {done.returncode}; the merged model itself is whole"
            raise DataError(words, where=str(folder))
        with partial.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise DataError("not GGUF", where=str(out))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
