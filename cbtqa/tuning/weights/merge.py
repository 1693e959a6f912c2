"""Merges an adapter into its base: a plain model that needs neither peft nor us.

    merge(Path("run"), Path("merged"), base="baichuan-7b-llama")

Each weight is read, changed in float32 and cast once; memory holds one shard and the adapter,
never the model. Merging in 16 bits, as is often done, is off by a thousand times as much. Where
transformers renames weights as it loads them, or experts are adapted, peft merges the whole model
in memory, in float32 as well.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import cbtqa
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import read_json, read_text, write_json, write_text
from cbtqa.manifest import FileEntry, describe_file
from cbtqa.tuning.backbones import MERGE_RECORD, Backbone, commit_of, fetch, fetch_if_present
from cbtqa.tuning.data.chat_format import set_thinking
from cbtqa.tuning.libraries import require
from cbtqa.tuning.loading import load_base
from cbtqa.tuning.settings import OnStage, Thinking
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
    dtypes_of,
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
    thinking: Thinking | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_step: OnStep = lambda step: None,
    on_stage: OnStage = lambda words: None,
) -> MergeRecord:
    """Merges an adapter into the folder `out`; a base that has to be converted is, once.

    Args:
        base: name, folder or Hub id; None: what the adapter names.
        dtype: type of the merged weights; None: each as in the base.
        thinking: how the chat format's switch is left; None: as trained.
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
    backbone, config = _whole_base(backbone)
    found, notes = check_base(backbone, recorded)
    paths = find_weights(backbone.location, backbone.revision)
    outputs, why_whole = _planned(opened, paths, dtype, is_known=recorded is not None)
    check_space(out, sum(output.n_bytes for output in outputs))
    files = tuple(map(describe_file, opened.weight_paths))
    plan: dict[str, Any] = {"base": found.weights_sha256, "adapter": [f.sha256 for f in files]}
    plan["settings"] = [dtype, shard_bytes, opened.config, cbtqa.__version__, thinking]
    dtypes = dtypes_of(outputs)
    with building(out, plan) as folder:
        if why_whole:
            notes = (*notes, f"merged by peft with the whole base in memory: {why_whole}")
            dtypes = {made := dtype or _main_dtype(outputs)}
            config = _merge_whole(adapter, backbone, folder, made, shard_bytes)
        _carry_tokenizer(opened, backbone, folder, thinking)
        carry_notices(backbone, folder)
        write_configs(folder, backbone, backbone, config, dtypes, adapter=adapter)
        if not why_whole:
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
            **describe_written(folder, dtypes),
        )
        write_json(folder / MERGE_RECORD, record)
    return record


def _whole_base(backbone: Backbone) -> tuple[Backbone, dict[str, Any]]:
    """The base by its commit, and its configuration; raises ConfigError for one in 4 bits."""
    path = fetch(backbone.location, "config.json", revision=backbone.revision)
    config: dict[str, Any] = read_json(path)
    if config.get("quantization_config"):
        raise ConfigError(
            f"{backbone.display_name} holds quantised weights: merging into them would lose what "
            "was learned",
            hint="give the 16-bit model that it was made from: --base FOLDER",
        )
    return backbone.model_copy(update={"revision": commit_of(path)}), config


def _planned(
    adapter: Adapter, paths: tuple[Path, ...], dtype: DType | None, *, is_known: bool
) -> tuple[list[Output], str | None]:
    """The weights to write, and why they cannot be made one by one, or None.

    Args:
        is_known: True when the base is by its hash that of the training; without, weights that it
            has not mean another base.
    """
    outputs: list[Output] = []
    changed = {_bare(name): name for name in (*adapter.deltas, *adapter.replaced)}
    for path in paths:
        with open_tensors(path) as tensors:
            for name, shape in tensors.shapes.items():
                kind = tensors.dtypes[name]
                written = dtype if dtype and "float" in kind else kind
                make = _maker(adapter, changed.get(_bare(name), name), written)
                outputs.append(Output(name, path, name, shape, written, make))
    names = {_bare(output.name) for output in outputs}
    lost = [name for bare, name in changed.items() if bare not in names]
    if lost and (not is_known or any(name in adapter.replaced for name in lost)):
        raise DataError(
            f"the base has no weight {lost[0]} (and {len(lost) - 1} more): another base, or a head "
            "tied to the embedding",
            where=adapter.folder.name,
        )
    whole = adapter.why_whole
    if lost and not whole:
        whole = f"its files have no {lost[0]}"
        whole += f" and {len(lost) - 1} more, which transformers makes from others as it loads them"
    if whole and not is_known:
        raise DataError(
            f"the base has other weights than the adapter: {whole}",
            where=adapter.folder.name,
            hint="give the base that it was trained on: --base FOLDER",
        )
    return outputs, whole


_PREFIX = re.compile(r"^(?:model\.|language_model\.)+")


def _bare(name: str) -> str:
    """A weight's name without what models of several senses put before it."""
    return _PREFIX.sub("", name)


def _main_dtype(outputs: Sequence[Output]) -> str:
    """The type of most numbers."""
    sizes: Counter[str] = Counter()
    for output in outputs:
        sizes[output.dtype] += output.n_values
    return sizes.most_common(1)[0][0]


def _merge_whole(
    adapter: Path, backbone: Backbone, folder: Path, dtype: str, shard_bytes: int
) -> dict[str, Any]:
    """Merges in memory and writes the weights; gives the configuration that they are for."""
    base = load_base(backbone, "fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, on names that it had transformers rename
        model = require("peft").PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    model.to(getattr(require("torch"), dtype)).save_pretrained(folder, max_shard_size=shard_bytes)
    written = read_json(folder / "config.json")
    assert isinstance(written, dict)
    return written


def _maker(adapter: Adapter, name: str, dtype: str) -> Callable[[Any], Any]:
    """What makes the merged weight of the base's."""
    new, delta = adapter.replaced.get(name), adapter.deltas.get(name)

    def make(weight: Any) -> Any:
        if new is not None and new.shape != weight.shape:
            raise DataError(f"trained {list(new.shape)}, the base has {list(weight.shape)}")
        made = new if new is not None else delta.merged_into(weight) if delta else weight
        return made.to(getattr(require("torch"), dtype), copy=True).contiguous()

    return make


def _carry_tokenizer(
    adapter: Adapter, backbone: Backbone, folder: Path, thinking: Thinking | None
) -> None:
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
        words = {**words, "tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(settings, words)
    template = folder / "chat_template.jinja"
    if thinking and template.is_file():
        write_text(template, set_thinking(read_text(template), thinking))
    elif thinking and isinstance(words.get("chat_template"), str):
        told = set_thinking(words["chat_template"], thinking)
        write_json(settings, {**words, "chat_template": told})


CONVERTER = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
"""Environment variable with the folder of llama.cpp's sources."""


def serving_lines(
    folder: Path, gguf: Path | None = None, modelfile: Path | None = None
) -> dict[str, str]:
    """What to type to serve a merged folder, or the GGUF made of it, by program."""
    if gguf is not None and modelfile is not None:
        file, how = shlex.quote(str(gguf)), shlex.quote(str(modelfile))
        return {
            **serving_lines(folder),
            "llama.cpp": f"llama-server -m {file}",
            "ollama": f"ollama create {shlex.quote(gguf.stem)} -f {how}",
        }
    quoted, named = shlex.quote(str(folder)), shlex.quote(f"{folder}.gguf")
    return {
        "vllm": f"vllm serve {quoted} --served-model-name {shlex.quote(folder.name)}",
        "llama.cpp": f"python {CONVERTER} {quoted} --outfile {named} --outtype f16 && "
        f"llama-server -m {named}",
    }


def find_converter(llama_cpp: Path | None, gguf: Path) -> Path:
    """llama.cpp's converter in a source folder, or in LLAMA_CPP's, for a file that is to be.

    Raises:
        ConfigError: no converter, or none that could run, with what is missing.
        UsageError: the file, or the Modelfile beside it, is there already.
    """
    for path in (gguf, gguf.with_suffix(".Modelfile")):
        if path.exists():
            raise UsageError(f"{path} exists already", hint="give another --gguf")
    given = llama_cpp or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if given is None or not (given / CONVERTER).is_file():
        raise ConfigError(
            f"--gguf needs llama.cpp's {CONVERTER}"
            + (f", which is not in {given}" if given else ""),
            hint="git clone https://github.com/ggml-org/llama.cpp, then --llama-cpp llama.cpp (or "
            f"{VARIABLE}=llama.cpp)",
        )
    if not (given / "gguf-py").is_dir() and importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"{given / CONVERTER} needs the Python package gguf, and {given} has no gguf-py",
            hint="pip install gguf, or take the whole checkout of llama.cpp",
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
