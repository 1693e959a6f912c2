"""The base models that can be tuned: `backbones.yaml`, local folders and other Hub ids.

What the file does not declare is read from a model's own `config.json`.

    find_backbone("baichuan").needs_conversion          # True: `weights.cache` makes the copy
    find_backbone("baichuan-7b-llama").source_id        # "baichuan", from its conversion record
"""

from __future__ import annotations

import difflib
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import read_json
from cbtqa.records import NonEmptyText, Record
from cbtqa.tuning.libraries import first_line, read_table, require, shipped_yaml

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
    """A model folder's config.json; raises DataError when it has none of a model."""
    file = path / "config.json"
    if (path / "adapter_config.json").is_file() and not file.is_file():
        hint = "merge it: cbtqa merge"
        raise DataError("an adapter, not a base model", where=str(path), hint=hint)
    if not file.is_file():
        raise DataError("no config.json: not a model's folder", where=str(path))
    config = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise DataError("names no model_type", where=str(file))
    return config


def conversion_of(config: dict[str, Any], where: str) -> Conversion | None:
    """The conversion that a model needs, or None; raises ConfigError for ALiBi (Baichuan 13B)."""
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
    """The error for a 13B model of Baichuan."""
    return ConfigError(
        f"{where}: a 13B Baichuan model: its ALiBi positions fit no native class",
        hint="use Baichuan-7B or Baichuan2-7B: cbtqa backbones",
    )


def facts_of_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Layout, class, context and sizes, as fields of a `Backbone`."""
    conversion = conversion_of(config, where)
    architecture = name = (config.get("architectures") or [None])[0]
    model_type = config["model_type"]
    if "hidden_size" not in config and isinstance(config.get("text_config"), dict):
        # a model of several senses: what is tuned is its language model
        tied = {k: config[k] for k in ("tie_word_embeddings",) if k in config}
        config = {**tied, **config["text_config"]}
    if conversion is not None:
        is_qwen = conversion == "qwen"
        architecture = "Qwen2ForCausalLM" if is_qwen else "LlamaForCausalLM"
        model_type = "qwen2" if is_qwen else "llama"
    return {
        "conversion": conversion,
        "source_architecture": name,
        "architecture": architecture,
        "model_type": model_type,
        "context": config.get("seq_length" if conversion == "qwen" else "max_position_embeddings"),
        "shape": _shape_of(config, conversion),
    }


def _shape_of(config: dict[str, Any], conversion: Conversion | None) -> Shape | None:
    """Sizes from a config.json; None when it names them otherwise than Llama does, or by layer."""
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
    except (KeyError, TypeError, ValidationError):
        return None


def count_parameters(shape: Shape) -> int:
    """Weights of the model, biases and norms left out (under 0.1 % of a 7B model)."""
    hidden, heads, more = shape.hidden, shape.heads, shape.more
    head_dim = shape.head_dim or hidden // heads
    attention = 2 * hidden * head_dim * (heads + shape.kv_heads)
    if "kv_lora_rank" in more:  # multi-head latent attention, as in MiniCPM3
        latent, plain, turned, out = more["kv_lora_rank"], *(more[key] for key in LATENT_KEYS[2:])
        queries = more["q_lora_rank"] * (hidden + heads * (plain + turned))
        keys_and_values = hidden * (latent + turned) + latent * heads * (plain + out)
        attention = queries + keys_and_values + heads * out * hidden
    layer = attention + 3 * hidden * shape.intermediate
    if "num_experts" in more:
        experts = 3 * hidden * more["num_experts"] * more["moe_intermediate_size"]
        layer = attention + experts + hidden * more["num_experts"]
    extra = 0
    if "linear_num_key_heads" in more:  # three layers of four, as in Qwen3.5; its queries are gated
        keys = more["linear_num_key_heads"] * more["linear_key_head_dim"]
        values = more["linear_num_value_heads"] * more["linear_value_head_dim"]
        linear = hidden * (2 * keys + 3 * values + 2 * more["linear_num_value_heads"])
        attention += hidden * head_dim * heads
        layer = 3 * hidden * shape.intermediate
        extra = shape.layers * (3 * linear + attention) // 4
    embeddings = shape.vocab * hidden * (1 if shape.tied else 2)
    return embeddings + extra + shape.layers * layer


MERGE_RECORD = "merge.json"
RECORD_NAMES = ("conversion.json", MERGE_RECORD)
"""Records that `cbtqa convert` and `cbtqa merge` leave in what they write; each has `backbone`."""
DEFAULT_TEMPLATE = "cbt-llm-card.jinja"
"""For models whose tokenizer has no chat template: plain text, so every vocabulary can write it."""


class Title(Record):
    """A model's name as people of either language write it."""

    en: NonEmptyText
    zh: NonEmptyText


class Backbone(Record):
    """One base model."""

    id: NonEmptyText
    """Name on the command line; for a folder or foreign Hub id that name itself."""
    title: Title
    aliases: tuple[str, ...] = ()
    hub_id: str | None = None
    """None for a local folder that names no origin."""
    modelscope_id: str | None = None
    """The same weights on ModelScope; None where no mirror is known."""
    revision: str | None = None
    """Commit to download; None: the Hub's newest."""
    path: Path | None = None
    """Folder that holds the weights; None: they come from the Hub."""
    source_id: str | None = None
    """The known backbone that a folder was made from, by its record or its name."""
    source_architecture: str | None = None
    """Class named by the published config.json; None: the same as `architecture`."""
    conversion: Conversion | None = None
    """Layout that must be rewritten first; None: transformers reads it as it is."""
    architecture: str | None = None
    """transformers class once converted; None: not read yet (a Hub id that is not listed)."""
    model_type: str | None = None
    """transformers' `model_type` once converted; None as above."""
    template: str | None = None
    """File in `templates/`; None: the tokenizer's own chat template."""
    end_of_turn: str | None = None
    """Token that closes an answer and is learned with it; None: the tokenizer's end token."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens any of which ends generation; empty: `end_of_turn` alone."""
    pad_token: str | None = None
    """Token of padding, never in a label; None: the tokenizer's own."""
    target_modules: tuple[str, ...] = ()
    """Linear layers that get an adapter, after conversion; empty: all that the model has but its
    head, the experts and what chooses them."""
    licence: str = "unknown: see the model's card"
    gated: bool = False
    """True when the Hub asks for the licence to be accepted before the download."""
    context: int | None = None
    """Tokens the model was made for."""
    shape: Shape | None = None
    sources: tuple[str, ...] = ()
    """Where facts were looked up, and which."""
    assumed: tuple[str, ...] = ()
    """Facts that were neither read from the checkpoint nor looked up."""

    @property
    def needs_conversion(self) -> bool:
        """True when only a converted copy can be loaded."""
        return self.conversion is not None

    @property
    def stops(self) -> tuple[str, ...]:
        """Tokens any of which ends generation."""
        return self.stop_tokens or ((self.end_of_turn,) if self.end_of_turn else ())

    @property
    def known_id(self) -> str | None:
        """The listed backbone that this is or was made from; None when it is none of them."""
        is_listed = self.path is None and self.id in load_backbones()
        return self.id if is_listed else self.source_id

    @property
    def location(self) -> str:
        """What transformers loads: the folder, or the Hub id."""
        return str(self.path) if self.path else self.hub_id or self.id

    @property
    def display_name(self) -> str:
        """Name for records: the folder's last part or the Hub id, never a path."""
        return folder_name(self.path) if self.path else self.hub_id or self.id


def folder_name(path: Path) -> str:
    """A model folder's own name; in a cache (`owner--NAME/snapshots/COMMIT`) that of the model."""
    folder = path.resolve()
    is_cached = folder.parent.name == "snapshots"
    return folder.parent.parent.name.rpartition("--")[2] if is_cached else folder.name


@cache
def load_backbones() -> dict[str, Backbone]:
    """All known backbones by id, in the file's order."""
    table = read_table("backbones.yaml")
    found = {}
    for name, row in table["backbones"].items():
        told = tuple(table["sources"][one] for one in row.get("sources", ()))
        found[name] = Backbone(**{**row, "id": name, "sources": told})
    return found


def find_backbone(given: str | Path) -> Backbone:
    """The backbone of a name, alias, local folder or Hub id; reads no network.

    For a Hub id that is not listed, `shape` and `architecture` are None until `completed` reads
    its configuration.

    Raises:
        UsageError: no such name; the hint lists the close ones.
        DataError: a folder without a usable config.json.
        ConfigError: a model that can be neither read nor converted (13B Baichuan).
    """
    name = str(given)
    known = _named(name)
    path = Path(given).expanduser()
    # a folder wins over a name: `hf download Qwen/Qwen-7B --local-dir Qwen-7B` makes one
    if path.is_dir() and (known is None or (path / "config.json").is_file()):
        return _folder_backbone(path)
    if known is not None:
        return known
    if re.search(r"baichuan2?-?13b", name.casefold()):
        raise no_native_class(name)
    if re.fullmatch(r"[^/.~][^/]*/[^/]+", name) and not path.exists():
        return Backbone(id=name, title=Title(en=name, zh=name), hub_id=name, assumed=_FOREIGN)
    names = {each: b.id for b in load_backbones().values() for each in (b.id, *b.aliases)}
    close = difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.5)
    listed = ", ".join(dict.fromkeys(names[each] for each in close))
    also = "a folder or a Hub id (owner/name) works too; all names: cbtqa backbones"
    hint = f"did you mean {listed}? {also}" if listed else also
    raise UsageError(f"no backbone '{name}'", hint=hint)


def _named(name: str) -> Backbone | None:
    folded = name.strip().casefold()
    for backbone in load_backbones().values():
        names = {backbone.id, *backbone.aliases, backbone.title.en, backbone.title.zh}
        names |= {backbone.hub_id or backbone.id}
        if folded in {each.casefold() for each in names}:
            return backbone
    return None


def _folder_backbone(path: Path) -> Backbone:
    config, record, name = read_config(path), record_of(path), folder_name(path)
    # a source that is none of the known ones still has the formats of its layout
    formats = load_backbones().get(str(record.get("backbone") or record.get("conversion")))
    source = formats or _same_kind(name, config)
    title = Title(en=name, zh=name)
    named = source or Backbone(id=name, title=title)
    known: dict[str, Any] = {"path": path, "id": name, "title": title}
    if source is None:
        known["assumed"] = _FOREIGN
        known["template"] = None if _has_chat_template(path) else DEFAULT_TEMPLATE
    else:
        known["source_id"] = record.get("backbone") if record else source.id
        known["aliases"] = ()
        if (path / MERGE_RECORD).is_file() and _has_chat_template(path):
            # an adapter may have been trained in another format than its base's
            known |= {"template": None, "end_of_turn": None, "stop_tokens": ()}
    facts = facts_of_config(config, str(path))
    layers = _layers_of_type(facts["model_type"]) if source is None else {}
    return named.model_copy(update={**layers, **known, **facts})


def _layers_of_type(model_type: str) -> dict[str, Any]:
    """The linear layers of a model that is not listed: those of the listed ones of its type."""
    of_type = (b for b in load_backbones().values() if b.model_type == model_type)
    same = next(of_type, None)
    return {"target_modules": same.target_modules} if same else {}


_FOREIGN = ("not a listed backbone: adapters on all linear layers, licence not looked up",)


def record_of(path: Path) -> dict[str, Any]:
    """The record that `cbtqa convert` or `cbtqa merge` left in a folder; empty when none did."""
    for name in RECORD_NAMES:
        if (path / name).is_file():
            record = read_json(path / name)
            return record if isinstance(record, dict) else {}
    return {}


def _same_kind(name: str, config: dict[str, Any]) -> Backbone | None:
    """The known backbone of which a folder is the download, by name, type and vocabulary."""
    for backbone in load_backbones().values():
        last = (backbone.hub_id or "").rpartition("/")[2]
        if name.casefold() not in (last.casefold(), backbone.id):
            continue
        is_original = conversion_of(config, name) == backbone.conversion
        if is_original and backbone.shape and config.get("vocab_size") == backbone.shape.vocab:
            return backbone
    return None


def _has_chat_template(path: Path) -> bool:
    settings = path / "tokenizer_config.json"
    in_settings = settings.is_file() and "chat_template" in read_json(settings)
    return in_settings or (path / "chat_template.jinja").is_file()


def completed(backbone: Backbone) -> Backbone:
    """The backbone with class and sizes known; raises ConfigError without its config.json."""
    if backbone.model_type is not None:
        return backbone
    path = fetch(backbone.location, "config.json", revision=backbone.revision)
    facts = facts_of_config(read_config(path.parent), backbone.location)
    return backbone.model_copy(update={**_layers_of_type(facts["model_type"]), **facts})


def to_config(backbone: Backbone) -> Any:
    """transformers' configuration after conversion; raises ConfigError for a type unknown to it."""
    backbone = completed(backbone)
    auto = require("transformers").AutoConfig
    try:
        if backbone.shape is None or (backbone.path and not backbone.needs_conversion):
            found = auto.from_pretrained(backbone.location, revision=backbone.revision or "main")
            return _of_one_language_model(found, backbone.display_name)
        return auto.for_model(backbone.model_type, **_config_words(backbone, backbone.shape))
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{backbone.display_name}: {first_line(error)}",
            hint="models that need remote code are not supported: cbtqa backbones lists those that "
            "work without",
        ) from None


def _of_one_language_model(config: Any, name: str) -> Any:
    """The configuration itself; raises ConfigError for a checkpoint that holds several."""
    try:
        config.get_text_config()
    except ValueError:
        words = f"{name} holds several language models: none is the one to tune"
        raise ConfigError(words, hint="cbtqa backbones lists models that can be tuned") from None
    return config


def _config_words(backbone: Backbone, shape: Shape) -> dict[str, Any]:
    words: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "architectures": [backbone.architecture],
    }
    if backbone.context:
        words["max_position_embeddings"] = backbone.context
    if shape.head_dim:
        words["head_dim"] = shape.head_dim
    if shape.rope:
        words["rope_parameters"] = dict(shape.rope)
    return {**words, **shape.more}


def template_text(backbone: Backbone) -> str | None:
    """The chat template (Jinja), or None when the tokenizer's own is to be used."""
    return shipped_yaml(f"templates/{backbone.template}") if backbone.template else None


# --- files of a model: from its folder, the Hub's cache, or the Hub ------------------------------


def fetch(location: str, name: str, *, revision: str | None = None) -> Path:
    """One file of a folder or Hub id; raises ConfigError, whose hint names the next command."""
    found = fetch_if_present(location, name, revision=revision, is_needed=True)
    if found is None:
        raise ConfigError(f"{location} has no file {name}", hint=download_hint(location))
    return found


def fetch_if_present(
    location: str, name: str, *, revision: str | None = None, is_needed: bool = False
) -> Path | None:
    """One file of a model; when there is none of this name None, or ConfigError if `is_needed`.

    Without a network the Hub's cache decides: fetch a file that every model has first.
    """
    folder = Path(location)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    hub = require("transformers.utils.hub")
    try:
        found = hub.cached_file(
            location, name, revision=revision, _raise_exceptions_for_missing_entries=is_needed
        )
    except OSError as error:
        raise cannot_get(location, error) from None
    return None if found is None else Path(found)


def commit_of(path: Path) -> str | None:
    """The commit of a file in the Hub's cache (`.../snapshots/COMMIT/FILE`), or None."""
    parts = path.parts
    found = parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""
    return found if re.fullmatch(r"[0-9a-f]{7,64}", found) else None  # a branch is no commit


def cannot_get(location: str, error: Exception) -> ConfigError:
    """The error for a model that could not be fetched or opened."""
    hint = download_hint(location)
    if "gated" in str(error).lower():
        hint = "accept the licence on the model's page, then: "
        hint += f"hf auth login; hf download {location}"
    return ConfigError(f"cannot get {location}: {first_line(error)}", hint=hint)


def download_hint(location: str) -> str:
    """What to do where the Hub is not reached; names the mirror that the environment sets."""
    mirror = os.environ.get("HF_ENDPOINT")
    tried = f"HF_ENDPOINT names {mirror}: is it reachable? " if mirror else ""
    other = "" if mirror else " (or through a mirror: HF_ENDPOINT=URL)"
    folder = location.split("/")[-1]
    return f"{tried}where there is a network{other}: hf download {location} --local-dir {folder}"
