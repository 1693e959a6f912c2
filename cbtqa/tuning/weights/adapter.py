"""A LoRA adapter on disk, its base, and what it makes of one weight of that base.

    W' = W + s B A                    LoRA; s = alpha / r, with rsLoRA alpha / sqrt(r)
    W' = m (W + s B A) / |W + s B A|  DoRA; the length of each row, m learned

Source: Hu et al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732; Liu et al., arXiv 2402.09353.
What is not of this form (adapters on embeddings, with biases, changed bases) is rejected by name
rather than merged wrongly; adapters on experts are merged by peft itself (`Adapter.why_whole`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import read_json
from cbtqa.tuning.backbones import Backbone, find_backbone
from cbtqa.tuning.libraries import read_table, require
from cbtqa.tuning.settings import OnStage, Place
from cbtqa.tuning.weights.cache import cached_copies, converted, from_modelscope
from cbtqa.tuning.weights.files import BaseRecord, describe_base, open_tensors

CONFIG_NAME = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_BY_PEFT = "merge it with peft itself: PeftModel.merge_and_unload()"
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract something from the base's weights before training."""


@dataclass(frozen=True)
class Delta:
    """The adapter of one linear layer."""

    down: Any
    """A `(rank, in)`."""
    up: Any
    """B `(out, rank)`."""
    scale: float
    magnitude: Any | None = None
    """DoRA's length of each row `(out,)`; None without DoRA."""

    def merged_into(self, weight: Any) -> Any:
        """The new weight `(out, in)` in float32."""
        torch = require("torch")
        if (self.up.shape[0], self.down.shape[1]) != tuple(weight.shape):
            raise DataError(
                f"the adapter fits a weight of {[self.up.shape[0], self.down.shape[1]]}, the base "
                f"has {list(weight.shape)}: another base"
            )
        merged = weight.float()
        merged = torch.addmm(merged, self.up.float(), self.down.float(), alpha=self.scale)
        if self.magnitude is not None:
            length = torch.linalg.vector_norm(merged, dim=1)
            merged *= (self.magnitude.float() / length)[:, None]
        return merged


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder."""

    folder: Path
    weight_paths: tuple[Path, ...]
    config: dict[str, Any]
    deltas: dict[str, Delta]
    """By the base's weight name, such as `model.layers.0.self_attn.q_proj.weight`."""
    replaced: dict[str, Any]
    """Weights that were trained whole (`modules_to_save`), by the base's name."""

    @property
    def why_whole(self) -> str | None:
        """Why only peft can merge it, with the whole base in memory; None otherwise."""
        if self.config.get("target_parameters"):
            return "it adapts experts"
        return (
            "its base has weights stored the other way round"
            * bool(self.config.get("fan_in_fan_out"))
            or None
        )

    @property
    def method(self) -> str:
        if self.config.get("use_dora"):
            return "DoRA"
        return "rsLoRA" if self.config.get("use_rslora") else "LoRA"


def read_adapter(folder: Path) -> Adapter:
    """An adapter of peft; raises DataError when damaged, ConfigError for another arithmetic."""
    config, paths = find_adapter(folder)
    _refuse_unknown(config, folder)
    with open_tensors(paths[0]) as file:
        tensors = {name: file.read(name).clone() for name in file.shapes}
    return Adapter(folder, paths, config, *_sorted_out(config, tensors, paths[0]))


def find_adapter(folder: Path) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Configuration and weight files, safetensors first; raises DataError when there are none."""
    if not (folder / CONFIG_NAME).is_file():
        raise DataError(
            f"no adapter here: no {CONFIG_NAME}",
            where=str(folder),
            hint="an adapter is what `cbtqa finetune` writes; a whole model: --model FOLDER",
        )
    paths = tuple(path for name in WEIGHT_NAMES if (path := folder / name).is_file())
    if not paths:
        words = f"no {' or '.join(WEIGHT_NAMES)}: the training has not finished"
        raise DataError(words, where=str(folder))
    return read_json(folder / CONFIG_NAME), paths


def _refuse_unknown(config: dict[str, Any], folder: Path) -> None:
    """Raises ConfigError for an adapter of another arithmetic."""
    reasons = [words for key, words in read_table("peft_keys.yaml").items() if config.get(key)]
    if config.get("peft_type") != "LORA":
        reasons.append(f"type {config.get('peft_type')}")
    initial = str(config.get("init_lora_weights")).casefold()
    reasons += [f"initialised by {name}" for name in _CHANGES_BASE if initial.startswith(name)]
    if reasons:
        words = f"{folder}: an adapter that is not merged here: {', '.join(reasons)}"
        raise ConfigError(words, hint=_BY_PEFT)


def _sorted_out(
    config: dict[str, Any], tensors: dict[str, Any], path: Path
) -> tuple[dict[str, Delta], dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {}
    replaced: dict[str, Any] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix(_PREFIX)
        match = re.fullmatch(r"(.+)\.lora_(A|B|magnitude_vector)(?:\.weight)?", bare)
        if match:
            parts.setdefault(match[1], {})[match[2]] = tensor
        elif "lora_" in bare:
            raise ConfigError(f"{path}: {bare} is not merged here", hint=_BY_PEFT)
        else:
            replaced[bare] = tensor
    incomplete = [module for module, found in parts.items() if not {"A", "B"} <= set(found)]
    if incomplete or not parts:
        raise DataError(f"incomplete: {incomplete[:1] or 'no adapter tensors'}", where=str(path))
    deltas = {}
    for module, found in parts.items():
        scale, magnitude = _scale(config, module, found["A"]), found.get("magnitude_vector")
        deltas[f"{module}.weight"] = Delta(found["A"], found["B"], scale, magnitude)
    return deltas, replaced


def _scale(config: dict[str, Any], module: str, down: Any) -> float:
    """alpha / r of one layer, with the patterns by which peft gives layers their own."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    own = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
    alpha, rank = own[0] if own else config["lora_alpha"], down.shape[0]
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def find_base(
    config: dict[str, Any],
    given: str | None,
    recorded: BaseRecord | None,
    on_stage: OnStage,
    place: Place = "hub",
) -> Backbone:
    """The base of an adapter, in its native layout; downloaded and converted where it has to be.

    Args:
        config: the adapter's own configuration.
        given: name, folder or Hub id; None: what the adapter names.

    Raises:
        UsageError: the base is not found by the name that the adapter records.
        ConfigError: a base that cannot be had, or not be converted.
    """
    if given is None and place == "modelscope" and recorded:
        given = recorded.backbone  # the record names a folder of ModelScope's cache
    backbone = find_backbone(given) if given else _named_base(config, recorded)
    if place == "modelscope":
        backbone = from_modelscope(backbone, on_stage)
    if backbone.path is None and recorded is not None and backbone.revision is None:
        backbone = backbone.model_copy(update={"revision": recorded.revision})
    return converted(backbone, on_stage)


def _named_base(config: dict[str, Any], recorded: BaseRecord | None) -> Backbone:
    """The base that an adapter records: by name from here, in the cache, or on the Hub."""
    named = str(recorded.name if recorded else config.get("base_model_name_or_path") or "")
    if not named:
        raise UsageError("the adapter names no base", hint="name it: --base FOLDER")
    try:
        return find_backbone(next((c.path for c in cached_copies() if c.name == named), named))
    except UsageError as error:
        if recorded and recorded.hub_id and recorded.is_converted:
            return find_backbone(recorded.hub_id)
        raise UsageError(
            f"the adapter's base is called '{named}', which is not found from here",
            hint="give its folder: --base FOLDER",
        ) from error


def check_base(
    backbone: Backbone, recorded: BaseRecord | None
) -> tuple[BaseRecord, tuple[str, ...]]:
    """The base as it is, and notes; raises DataError for weights not those of the training."""
    found = describe_base(backbone)
    if recorded is None:
        return found, ("the adapter records no base: that it is this one rests on shapes alone",)
    if found.weights_sha256 != recorded.weights_sha256:
        raise DataError(
            f"the adapter was trained on {recorded.name} (weights {recorded.weights_sha256[:12]}), "
            f"this base is {found.name} ({found.weights_sha256[:12]})",
            where=backbone.display_name,
            hint=f"give that base: --base FOLDER-OF-{recorded.name}",
        )
    if recorded.is_quantized:
        return found, (
            "trained on the base in 4 bits, merged into its full weights: answers differ slightly "
            "from those seen in training",
        )
    return found, ()
