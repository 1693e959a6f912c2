"""Any causal class of the installed transformers at a size that a test can train.

    config = tiny_config("qwen3_5_text")        # its own configuration class, its own ratios
    model = transformers.AutoModelForCausalLM.from_config(config)

Sizes are lowered by their names; what a class needs beyond that is in `exceptions.yaml`.
"""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError

VOCABULARY = 512
"""Rows of `tests.support.tiny_models.tiny_tokenizer`."""
MOST_LAYERS = 8
TABLE = Path(__file__).parent / "exceptions.yaml"


@cache
def read_table() -> dict[str, Any]:
    """Sizes by name, and what single types need beyond them."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def registered_types() -> dict[str, str]:
    """Every model type that transformers registers for causal language modelling, and its class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    """The type's configuration, shrunk."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own = read_table()["types"].get(model_type) or {}
    return _shrunk(CONFIG_MAPPING[model_type], own)


def _shrunk(config_class: Any, own: dict[str, Any]) -> Any:
    try:
        plain = config_class()
    except StrictDataclassError:  # a part that the whole refuses as it is by default
        plain = config_class(**own)
    known = {**vars(plain), **plain.to_dict()}
    words: dict[str, Any] = {}
    for name in _names(config_class, known):
        value = known.get(name)
        size = read_table()["sizes"].get(name)
        if size is not None and isinstance(value, int | float | None) and _fits(size, value):
            words[name] = size
    n_layers = _layers(known)
    for name in read_table()["layers"]:
        if isinstance(known.get(name), int) and not isinstance(known.get(name), bool):
            words[name] = n_layers
    whole = next((known[n] for n in read_table()["layers"] if isinstance(known.get(n), int)), None)
    for name, value in known.items():
        if isinstance(value, list | tuple) and whole and len(value) == whole and name[0] != "_":
            words[name] = list(value)[:n_layers]
    if "qk_rope_head_dim" in known:  # latent attention: one rotary key for all heads
        words |= read_table()["latent"]
    words |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    for name in known:
        part = vars(plain).get(name)
        if hasattr(part, "to_dict"):
            needs = read_table()["types"].get(part.model_type) or {}
            words[name] = _shrunk(type(part), {**needs, **(own.get(name) or {})}).to_dict()
            own = {key: value for key, value in own.items() if key != name}
    made = config_class(**{**words, **own})
    if hasattr(made, "is_decoder"):
        made.is_decoder = True  # encoders become causal by it
    return made


def _fits(size: Any, value: Any) -> bool:
    """False where None means something that a number would switch on."""
    return value is not None or size is None


def _names(config_class: Any, known: dict[str, Any]) -> set[str]:
    taken = {name for base in config_class.__mro__ for name in inspect.signature(base).parameters}
    return taken | {name for name in known if name[0] != "_"}


def _layers(known: dict[str, Any]) -> int:
    """Layers so that each kind is there, at least two."""
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        kinds = known.get(name)
        if isinstance(kinds, list | tuple) and len(kinds) > 1:
            n = max(list(kinds).index(kind) for kind in kinds) + 1
            return min(MOST_LAYERS, max(2, n))
    return 2
