"""BLEURT on BLEURT-20 checkpoints: a number that a model learned from people's ratings.

Reference and candidate share 512 pieces: `bleurt` cuts longer pairs as the original does,
`bleurt_windowed` reads everything. Scores of two checkpoints are not comparable.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cbtqa.errors import ConfigError, DataError
from cbtqa.files import sha256_of
from cbtqa.metrics.base import Floats
from cbtqa.metrics.neural.metric import NeuralMetric
from cbtqa.metrics.neural.weights import (
    Checkpoint,
    NeuralSettings,
    enough_memory,
    find_checkpoint,
    on_device,
    require,
    split_evenly,
    versions,
    why_absent,
)
from cbtqa.metrics.text.texts import Texts

N_SPECIAL = 3
"""[CLS] before the reference, [SEP] after it and after the candidate."""
IdPair = tuple[list[int], list[int]]


class BleurtScorer:
    """Scores pairs; loads the checkpoint when first needed."""

    def __init__(self, settings: NeuralSettings | None = None) -> None:
        self.settings = settings or NeuralSettings()

    @cached_property
    def model(self) -> BleurtModel:
        return BleurtModel(self.settings)

    def score(
        self, predictions: Sequence[str], references: Sequence[str], *, is_windowed: bool = False
    ) -> Floats:
        """Score of each pair and what was read, shape (pairs, 5).

        Columns: score, prediction cut, reference cut, unknown pieces and pieces of the prediction.
        A pair with a text of whitespace only scores 0.
        """
        rows = np.zeros((len(predictions), 5), np.float64)
        parts: list[tuple[int, float, IdPair]] = []
        limit = self.model.max_length - N_SPECIAL
        for row, (ours, theirs) in enumerate(zip(predictions, references, strict=True)):
            mine, other = self.model.pieces.read(ours), self.model.pieces.read(theirs)
            rows[row, 3:] = mine.n_unknown, len(mine.ids)
            if not ours.strip() or not theirs.strip():
                continue
            if is_windowed:
                windows = windowed_pairs(other, mine, limit)
                total = sum(len(candidate) for _, candidate in windows)
                parts += [(row, len(pair[1]) / total, pair) for pair in windows]
            else:
                kept = cut_pair(len(other.ids), len(mine.ids), limit)
                rows[row, 1:3] = kept[1] < len(mine.ids), kept[0] < len(other.ids)
                parts.append((row, 1.0, (other.ids[: kept[0]], mine.ids[: kept[1]])))
        for (row, weight, _), score in zip(
            parts, self._scores([pair for _, _, pair in parts]), strict=True
        ):
            rows[row, 0] += weight * score
        return rows

    def _scores(self, pairs: Sequence[IdPair]) -> list[float]:
        """The model's number for each pair; pairs of like length share a batch."""
        scores, size = [0.0] * len(pairs), self.settings.batch_size
        order = sorted(range(len(pairs)), key=lambda place: -sum(map(len, pairs[place])))
        for first in range(0, len(order), size):
            places = order[first : first + size]
            found = self.model.score([pairs[place] for place in places])
            for place, score in zip(places, found, strict=True):
                scores[place] = score
        return scores


def windowed_pairs(reference: PieceText, candidate: PieceText, limit: int) -> list[IdPair]:
    """Both texts in equally many windows, the fewest of which every pair fits the model.

    A candidate of fewer pieces than windows leaves some empty; these say nothing and are dropped.
    """
    n = max(1, -(-(len(reference.ids) + len(candidate.ids)) // limit))
    while True:
        cuts = (split_evenly(reference.pieces, n), split_evenly(candidate.pieces, n))
        pairs = [(reference.ids[a], candidate.ids[b]) for a, b in zip(*cuts, strict=True)]
        if all(len(one) + len(other) <= limit for one, other in pairs):
            return [pair for pair in pairs if pair[1]]
        n += 1


class Bleurt(NeuralMetric):
    """Mean BLEURT of all pairs."""

    unit = "about 0-1"

    def __init__(self, scorer: BleurtScorer, *, is_windowed: bool = False) -> None:
        self.scorer, self.is_windowed = scorer, is_windowed
        self.name = "bleurt_windowed" if is_windowed else "bleurt"
        self.label = "BLEURT windowed" if is_windowed else "BLEURT"

    def why_absent(self) -> str | None:
        model = self.scorer.settings.bleurt_model
        return why_absent(model, self.name, ("torch", "sentencepiece"))

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        scored = self.scorer.score(
            predictions.texts, references.texts, is_windowed=self.is_windowed
        )
        return np.insert(scored, 1, 1.0, axis=1)

    def own_fields(self) -> str:
        model = self.scorer.model
        return (
            f"checkpoint:{model.checkpoint.name}|weights:{model.sha256[:12]}"
            f"|pieces:{sha256_of(model.pieces.path)[:12]}|max_length:{model.max_length}"
            f"|long:{'windowed' if self.is_windowed else 'cut'}|empty:0"
            f"|act:{model.config.get('hidden_act', 'gelu')}|dtype:{self.scorer.settings.dtype}"
            f"|{versions('torch', 'transformers', 'sentencepiece')}"
        )


# The only kept port of BLEURT to PyTorch does not run under transformers 5. So this reads its
# published layout (`lucadiliello/BLEURT-20`: config.json, pytorch_model.bin, spm.model) onto
# transformers' RemBERT encoder, with a tanh pooler and one linear number.
# Source: Sellam et al., ACL 2020; Pu et al., EMNLP 2021; google-research/bleurt.

FLAG = "--bleurt-model"
MAX_LENGTH = 512  # Source: bleurt_config.json of BLEURT-20, max_seq_length
PIECE_NAMES = ("spm.model", "sent_piece.model", "sentencepiece.model")
PREFIXES = ("bleurt.", "rembert.", "bert.")
CONFIG_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "max_position_embeddings", "type_vocab_size"),
    *("layer_norm_eps", "pad_token_id"),
)
N_REQUIRED = 4
"""The first of them, which every config must hold."""


class BleurtModel:
    """Checkpoint, pieces and network; gives one number a pair."""

    def __init__(self, settings: NeuralSettings) -> None:
        """Loads the checkpoint; a ConfigError or DataError when it is not BLEURT-20's kind."""
        self.settings = settings
        self.checkpoint = find_checkpoint(settings.bleurt_model, FLAG)
        self.pieces = Pieces(self.checkpoint)
        self.config = _read_config(self.checkpoint)
        self.sha256 = self.checkpoint.sha256()
        network = _network(self.checkpoint, self.config)
        self.encoder, self.head = (on_device(part, settings) for part in network)
        self.device = next(self.encoder.parameters()).device
        self.max_length = min(MAX_LENGTH, self.config["max_position_embeddings"])

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """One number for each pair of reference ids and candidate ids, already cut to length."""
        torch = require("torch")
        pad = torch.nn.utils.rnn.pad_sequence
        cls, sep = self.pieces.cls, self.pieces.sep
        ids = [torch.tensor([cls, *ref, sep, *candidate, sep]) for ref, candidate in pairs]
        kinds = [
            torch.tensor([0] * (len(ref) + 2) + [1] * (len(candidate) + 1))
            for ref, candidate in pairs
        ]
        mask = [torch.ones_like(one) for one in ids]
        padded = [pad(part, batch_first=True).to(self.device) for part in (ids, mask, kinds)]
        with enough_memory(self.settings), torch.inference_mode():
            pooled = self.encoder(
                input_ids=padded[0], attention_mask=padded[1], token_type_ids=padded[2]
            ).pooler_output
            scores: list[float] = self.head(pooled).squeeze(-1).float().tolist()
        return scores


@dataclass(frozen=True, slots=True)
class PieceText:
    """A text in pieces, without special ones."""

    ids: list[int]
    pieces: list[str]
    n_unknown: int


class Pieces:
    """The SentencePiece model of a checkpoint, used as google-research/bleurt uses it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        found = [path for name in PIECE_NAMES if (path := checkpoint.beside(name)) is not None]
        if not found:
            is_old = checkpoint.beside("vocab.txt") is not None
            raise ConfigError(
                f"{FLAG}: {checkpoint.name} has no SentencePiece model "
                f"({', '.join(PIECE_NAMES)})"
                + ("; with its vocab.txt it is an older BLEURT for English only" if is_old else ""),
                hint=f"{FLAG} lucadiliello/BLEURT-20 (tested on Chinese), or its -D12, -D6, -D3",
            )
        self.path = found[0]
        self._processor = require("sentencepiece").SentencePieceProcessor()
        try:
            self._processor.Load(str(self.path))
        except (OSError, RuntimeError) as error:
            raise DataError(f"is no SentencePiece model: {error}", where=str(self.path)) from None
        self.size = int(self._processor.GetPieceSize())
        self.unknown = int(self._processor.unk_id())
        self.cls, self.sep = (int(self._processor.PieceToId(name)) for name in ("[CLS]", "[SEP]"))
        if self.unknown in (self.cls, self.sep):
            raise DataError("lacks the pieces [CLS] and [SEP]", where=str(self.path))

    def read(self, text: str) -> PieceText:
        ids: list[int] = self._processor.EncodeAsIds(text)
        pieces = [self._processor.IdToPiece(piece) for piece in ids]
        return PieceText(ids, pieces, ids.count(self.unknown))


def cut_pair(n_reference: int, n_candidate: int, limit: int) -> tuple[int, int]:
    """How many pieces of each side are kept: the longer loses its end first, as in the original.

    At equal lengths the candidate loses one, then the reference, in turns.
    """
    over = max(0, n_reference + n_candidate - limit)
    from_longer = min(abs(n_reference - n_candidate), over)
    if n_reference > n_candidate:
        n_reference -= from_longer
    else:
        n_candidate -= from_longer
    rest = over - from_longer
    return n_reference - rest // 2, n_candidate - (rest + 1) // 2


def _read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    given = json.loads(checkpoint.config.read_text(encoding="utf-8"))
    config = {name: given[name] for name in CONFIG_FIELDS if name in given}
    size = given.get("embedding_size", given.get("input_embedding_size"))
    missing = [name for name in CONFIG_FIELDS[:N_REQUIRED] if name not in config]
    if missing or size is None:
        raise ConfigError(
            f"{FLAG}: config.json of {checkpoint.name} does not describe a BLEURT-20 "
            f"({', '.join(missing) or 'embedding_size'} is missing)",
            hint=f"{FLAG} lucadiliello/BLEURT-20, or a distilled one: its -D12, -D6, -D3",
        )
    return {
        "max_position_embeddings": MAX_LENGTH,
        **config,
        "input_embedding_size": size,
        "bos_token_id": None,  # RemBERT's own are ids of its vocabulary
        "eos_token_id": None,
    }


def _network(checkpoint: Checkpoint, config: dict[str, Any]) -> tuple[Any, Any]:
    """The encoder with its pooler, and the linear head, filled with the checkpoint's tensors."""
    torch, transformers = require("torch"), require("transformers")
    # built without memory: the tensors of the checkpoint are put in their places, not copied
    with torch.device("meta"):
        encoder = transformers.RemBertModel(transformers.RemBertConfig(**config))
        head = torch.nn.Linear(config["hidden_size"], 1)
    parts: dict[str, dict[str, Any]] = {"encoder": {}, "head": {}}
    for name, tensor in checkpoint.state().items():
        part, ours = _our_name(name)
        if part:
            parts[part][ours] = tensor
    _fill(encoder, parts["encoder"], checkpoint)
    _fill(head, parts["head"], checkpoint)
    positions = torch.arange(config["max_position_embeddings"]).expand((1, -1))
    encoder.embeddings.position_ids = positions  # a buffer that no checkpoint holds
    return encoder, head


def _our_name(name: str) -> tuple[str, str]:
    """Which part a tensor belongs to and its name there; an empty part for what is not needed."""
    if name.startswith("classifier."):
        return "head", name.removeprefix("classifier.")
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    if name.endswith(("position_ids", "token_type_ids")):
        return "", name
    return "encoder", name.replace(
        "encoder.embedding_projection.", "encoder.embedding_hidden_mapping_in."
    )


def _fill(module: Any, tensors: dict[str, Any], checkpoint: Checkpoint) -> None:
    wanted = module.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not known" for name in tensors if name not in wanted]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DataError(
            f"weights and config do not belong together: {'; '.join(problems[:3])}{more}",
            where=checkpoint.name,
            hint="take all files of the checkpoint from one place",
        )
    module.load_state_dict(tensors, assign=True)
