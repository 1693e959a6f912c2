"""The base models that can be tuned: what they are, where they are, how they are addressed.

`backbones.yaml` declares the known ones. A local folder and any other Hub id work too: what the
file does not say is then read from their own `config.json`.

    find_backbone("baichuan").needs_conversion          # True: cbtqa convert comes first
    find_backbone("baichuan-7b-llama").source_id        # "baichuan", from its conversion record
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from cbtqa.errors import ConfigError, UsageError
from cbtqa.files import open_text, parse_yaml, read_json
from cbtqa.records import NonEmptyText, Record
from cbtqa.tuning.downloads import fetch
from cbtqa.tuning.libraries import require
from cbtqa.tuning.model_config import (
    Conversion,
    Shape,
    conversion_of,
    facts_of_config,
    no_native_class,
    read_config,
)

MERGE_RECORD = "merge.json"
RECORD_NAMES = ("conversion.json", MERGE_RECORD)
"""Records that `cbtqa convert` and `cbtqa merge` leave in what they write; each has `backbone`."""
DEFAULT_TEMPLATE = "cbt-llm-card.jinja"
"""For models whose tokenizer has no chat template: plain text, so every vocabulary can write it."""
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
    revision: str | None = None
    """Commit to download; None: the Hub's newest."""
    path: Path | None = None
    """Folder that holds the weights; None: they come from the Hub."""
    source_id: str | None = None
    """The known backbone that a folder was made from, by its record or its name."""
    source_architecture: str | None = None
    """Class named by the published config.json; None: the same as `architecture`."""
    conversion: Conversion | None = None
    """Layout that `cbtqa convert` must rewrite first; None: transformers reads it as it is."""
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
    target_modules: tuple[str, ...] = ALL_LINEAR
    """Linear layers that get an adapter, after conversion."""
    licence: str = "unknown: see the model's card"
    gated: bool = False
    """True when the Hub asks for the licence to be accepted before the download."""
    context: int | None = None
    """Tokens the model was made for."""
    shape: Shape | None = None
    assumed: tuple[str, ...] = ()
    """What is taken for granted here without having been read from the checkpoint."""

    @property
    def needs_conversion(self) -> bool:
        """True when `cbtqa convert` has to run before training."""
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
    def told_name(self) -> str:
        """Name for records: the folder's last part or the Hub id, never a path."""
        return self.path.resolve().name if self.path else self.hub_id or self.id


@cache
def load_backbones() -> dict[str, Backbone]:
    """All known backbones by id, in the file's order."""
    text = (files("cbtqa.tuning") / "backbones.yaml").read_text(encoding="utf-8")
    rows = parse_yaml(text)["backbones"]
    return {name: Backbone(id=name, **row) for name, row in rows.items()}


def find_backbone(given: str | Path) -> Backbone:
    """The backbone of a name, alias, local folder or Hub id; reads no network.

    A folder that `cbtqa convert` or `cbtqa merge` wrote is known by its record, another one by its
    config.json. For a Hub id that is not listed, `shape` and `architecture` stay None until
    `completed` reads its configuration.

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
    if _is_hub_id(name) and not path.exists():
        return Backbone(id=name, title=Title(en=name, zh=name), hub_id=name, assumed=_FOREIGN)
    raise UsageError(f"no backbone '{name}'", hint=_hint_for(name))


_FOREIGN = ("not a listed backbone: adapters on the usual linear layers, licence not looked up",)


def _named(name: str) -> Backbone | None:
    folded = name.strip().casefold()
    for backbone in load_backbones().values():
        names = {backbone.id, *backbone.aliases, backbone.title.en, backbone.title.zh}
        names |= {backbone.hub_id or backbone.id}
        if folded in {each.casefold() for each in names}:
            return backbone
    return None


def _is_hub_id(name: str) -> bool:
    owner, slash, model = name.partition("/")
    return bool(slash and owner and model) and "/" not in model and not name.startswith((".", "~"))


def _hint_for(name: str) -> str:
    names = {each: b.id for b in load_backbones().values() for each in (b.id, *b.aliases)}
    close = difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.5)
    listed = ", ".join(dict.fromkeys(names[each] for each in close))
    also = "a folder or a Hub id (owner/name) works too; all names: cbtqa backbones"
    return f"did you mean {listed}? {also}" if listed else also


# --- folders -------------------------------------------------------------------------------------


def _folder_backbone(path: Path) -> Backbone:
    config = read_config(path)
    record = _record_of(path)
    # a source that is none of the known ones still has the formats of its layout
    formats = load_backbones().get(str(record.get("backbone") or record.get("conversion")))
    source = formats or _same_kind(path.resolve().name, config)
    named = source or Backbone(id=path.resolve().name, title=_plain_title(path))
    known: dict[str, Any] = {"path": path, "id": path.resolve().name, "title": _plain_title(path)}
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


def _plain_title(path: Path) -> Title:
    name = path.resolve().name
    return Title(en=name, zh=name)


def _record_of(path: Path) -> dict[str, Any]:
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
    if (path / "chat_template.jinja").is_file():
        return True
    settings = path / "tokenizer_config.json"
    if not settings.is_file():
        return False
    with open_text(settings) as stream:
        return '"chat_template"' in stream.read()


# --- configurations ------------------------------------------------------------------------------


def completed(backbone: Backbone) -> Backbone:
    """The backbone with class and sizes known: reads a Hub id's config.json where they are not.

    Raises:
        ConfigError: not to be had: no network, no such model, gated.
    """
    if backbone.model_type is not None:
        return backbone
    path = fetch(backbone.location, "config.json", revision=backbone.revision)
    facts = facts_of_config(read_config(path.parent), backbone.location)
    return backbone.model_copy(update={**_layers_of_type(facts["model_type"]), **facts})


def to_config(backbone: Backbone) -> Any:
    """transformers' configuration of the real size, after conversion; loads no weights.

    Raises:
        MissingExtraError: transformers is not installed.
        ConfigError: a type that the installed transformers does not know.
    """
    backbone = completed(backbone)
    auto = require("transformers").AutoConfig
    try:
        if backbone.shape is None or (backbone.path and not backbone.needs_conversion):
            return auto.from_pretrained(backbone.location, revision=backbone.revision or "main")
        return auto.for_model(backbone.model_type, **_config_words(backbone, backbone.shape))
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{backbone.told_name}: {str(error).strip().partition(chr(10))[0]}",
            hint="models that need remote code are not supported: cbtqa backbones lists those that "
            "work without",
        ) from None


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
    if backbone.template is None:
        return None
    return (files("cbtqa.tuning") / "templates" / backbone.template).read_text(encoding="utf-8")
