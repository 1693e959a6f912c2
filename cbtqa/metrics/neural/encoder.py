"""From texts to the normalised embeddings of their tokens, by the first layers of a BERT."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from cbtqa.errors import ConfigError
from cbtqa.metrics.neural.weights import (
    NeuralSettings,
    cannot_load,
    enough_memory,
    find_checkpoint,
    on_device,
    quiet_transformers,
    require,
    windows_within,
)
from cbtqa.plain_values import parse_yaml

FLAG = "--bertscore-model"
UNSET_LENGTH = 1_000_000
"""Tokenizers without a limit say 1e30, which their Rust half cannot hold. bert-score issue 205."""


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """Layer and baseline of the models that bert-score tuned; see `baselines/models.yaml`."""
    text = files("cbtqa.metrics") / "baselines" / "models.yaml"
    known: dict[str, dict[str, Any]] = parse_yaml(text.read_text(encoding="utf-8"))
    return known


@dataclass(frozen=True, slots=True)
class ReadText:
    """A text as the model reads it."""

    ids: list[int]
    """Token ids with the special ones at both ends."""
    n_tokens: int
    """Tokens of the whole text, special ones not counted."""
    n_unknown: int
    is_cut: bool


class Encoder:
    """A tokenizer and the layers of a model up to the one that is compared."""

    def __init__(self, settings: NeuralSettings) -> None:
        """Loads the model; a ConfigError when it is none, not a BERT, or its layer is not known."""
        self.settings = settings
        self.checkpoint = find_checkpoint(settings.bertscore_model, FLAG)
        self.tokenizer = self._load_tokenizer()
        model = self._load_model()
        self.layer = self._chosen_layer(model.config.num_hidden_layers)
        model.encoder.layer = model.encoder.layer[: self.layer]
        self.model = on_device(model, settings)
        self.device = next(self.model.parameters()).device
        self.max_length = self._max_length()
        self.special = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        self.sha256 = self.checkpoint.sha256()

    def _load_tokenizer(self) -> Any:
        given = self.checkpoint.given
        transformers = require("transformers")
        try:
            with quiet_transformers():
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    given, trust_remote_code=False
                )
        except (OSError, ValueError, ImportError) as error:
            raise cannot_load(given, FLAG, error) from None
        if type(tokenizer).__name__.startswith(("Roberta", "GPT2")):
            raise ConfigError(
                f"{FLAG}: {given} reads bytes, as English models do, not Chinese characters",
                hint=f"{FLAG} bert-base-chinese",
            )
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise ConfigError(f"{FLAG}: the tokenizer of {given} has no [CLS] and [SEP]")
        return tokenizer

    def _load_model(self) -> Any:
        given, transformers = self.checkpoint.given, require("transformers")
        damaged: type[Exception] = require("safetensors").SafetensorError
        try:
            with quiet_transformers():
                model, report = transformers.AutoModel.from_pretrained(
                    given, trust_remote_code=False, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, ImportError, damaged) as error:
            raise cannot_load(given, FLAG, error) from None
        if not hasattr(getattr(model, "encoder", None), "layer"):
            raise ConfigError(f"{FLAG}: {given} is no model of BERT's kind", hint="see docs")
        missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
        if missing:
            raise ConfigError(
                f"{FLAG}: {given} lacks {len(missing)} tensors, such as {missing[0]}; "
                "scoring would run on random numbers"
            )
        return model

    def _chosen_layer(self, n_layers: int) -> int:
        name = self.checkpoint.name.rpartition("/")[2]
        layer = self.settings.bertscore_layer
        if layer is None and name in known_models():
            layer = int(known_models()[name]["layer"])
        if layer is None:
            raise ConfigError(
                f"--bertscore-layer: which of the {n_layers} layers of {name} is compared?",
                hint="bert-base-chinese is scored at layer 8 of 12: --bertscore-layer 8",
            )
        if not 0 <= layer <= n_layers:
            raise ConfigError(f"--bertscore-layer: {name} has layers 0 to {n_layers}, not {layer}")
        return layer

    def _max_length(self) -> int:
        config = self.model.config
        positions = int(config.max_position_embeddings)
        if "roberta" in config.model_type:  # counts positions from the padding id on
            positions -= int(config.pad_token_id) + 1
        given = self.tokenizer.model_max_length
        return min(int(given), positions) if given < UNSET_LENGTH else positions

    def vocabulary_sha256(self) -> str:
        """Of the tokenizer's vocabulary."""
        vocabulary = json.dumps(self.tokenizer.get_vocab(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(vocabulary.encode("utf-8", "surrogatepass")).hexdigest()

    def read(self, texts: Sequence[str]) -> list[ReadText]:
        """Token ids of each text, cut at the model's length."""
        if not texts:
            return []
        stripped = [text.strip() for text in texts]
        whole = self.tokenizer(stripped, verbose=False)["input_ids"]
        cut = whole
        if any(len(ids) > self.max_length for ids in whole):
            cut = self.tokenizer(
                stripped, truncation=True, max_length=self.max_length, verbose=False
            )["input_ids"]
        unknown = self.tokenizer.unk_token_id
        n_special = int(self.tokenizer.num_special_tokens_to_add(pair=False))
        return [
            ReadText(kept, len(ids) - n_special, ids.count(unknown), is_cut=len(kept) < len(ids))
            for ids, kept in zip(whole, cut, strict=True)
        ]

    def read_windows(self, text: str) -> tuple[list[list[int]], ReadText]:
        """Ids of the windows that hold the whole text, each with its own special tokens."""
        ids = self.tokenizer(text.strip(), verbose=False)["input_ids"]
        inner = ids[1:-1]
        tokens = self.tokenizer.convert_ids_to_tokens(inner)
        windows = windows_within(tokens, self.max_length - 2)
        n_unknown = ids.count(self.tokenizer.unk_token_id)
        read = ReadText(ids, len(inner), n_unknown, is_cut=False)
        return [[ids[0], *inner[window], ids[-1]] for window in windows], read

    def embed(self, texts: Sequence[Sequence[int]]) -> list[Any]:
        """Embeddings of length 1, shape (tokens, dimension) a text, in the order given.

        Texts of like length share a batch, so that little is spent on padding.
        """
        torch = require("torch")
        found: list[Any] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]), reverse=True)
        size = self.settings.batch_size
        for first in range(0, len(order), size):
            places = order[first : first + size]
            tensors = [torch.tensor(texts[place]) for place in places]
            pad = torch.nn.utils.rnn.pad_sequence
            ids = pad(tensors, batch_first=True, padding_value=self.tokenizer.pad_token_id)
            mask = pad([torch.ones_like(ids) for ids in tensors], batch_first=True)
            with enough_memory(self.settings), torch.inference_mode():
                hidden = self.model(
                    ids.to(self.device), attention_mask=mask.to(self.device)
                ).last_hidden_state
                hidden = hidden / hidden.norm(dim=-1, keepdim=True)
            for row, place in enumerate(places):
                # a copy, so that the padded batch is freed
                found[place] = hidden[row, : len(texts[place])].clone()
        return found
