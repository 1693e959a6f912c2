"""The heavy trained labeller: a transformers encoder, tuned for many labels at once.

Thresholds come from a held-out tenth of the training texts. The evidence of a label is the clause
without which its probability falls most. torch is imported only when a function is called.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cbtqa.distortions.importers import GoldSet
from cbtqa.distortions.labellers import Labels
from cbtqa.distortions.patterns import split_clauses
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.distortions.training import choose_thresholds, split_folds
from cbtqa.errors import ConfigError, DataError, require
from cbtqa.files import read_json, write_json
from cbtqa.paths import make_folder
from cbtqa.records import DistortionLabel
from cbtqa.settings import Settings

Floats = npt.NDArray[np.float64]
_THRESHOLDS_NAME = "thresholds.json"
_EVAL_BATCH = 64


class EncoderSettings(Settings):
    encoder: str
    """Folder or Hub id of an encoder with its tokenizer."""
    epochs: int = Field(4, ge=1)
    """Passes over the training texts."""
    batch_size: int = Field(16, ge=1)
    """Texts in a step."""
    learning_rate: float = Field(3e-5, gt=0)
    """Highest learning rate."""
    max_length: int = Field(192, ge=8)
    """Tokens of a text that are read."""
    seed: int = 0
    """Seed of weights, order and held-out part."""


class EncoderLabeller:
    """Labels by a tuned encoder; without thresholds, one that is being tuned."""

    def __init__(
        self, model: Any, tokenizer: Any, taxonomy: Taxonomy, name: str, max_length: int
    ) -> None:
        self.taxonomy, self.model, self.tokenizer = taxonomy, model, tokenizer
        self.name, self.max_length = f"trained:{name}", max_length
        self.thresholds: Floats = np.ones(len(taxonomy.ids))

    @classmethod
    def load(cls, folder: Path, name: str, taxonomy: Taxonomy) -> EncoderLabeller:
        """The labeller of a saved folder; weights are read from safetensors only.

        Raises:
            MissingExtraError: torch or transformers is not installed.
            DataError: the folder is not whole.
        """
        transformers = _transformers()
        stored = read_json(folder / _THRESHOLDS_NAME)
        try:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise DataError(f"no whole encoder: {error}", where=str(folder)) from None
        model.eval()
        labeller = cls(model, tokenizer, taxonomy, name, int(stored["max_length"]))
        labeller.thresholds = np.array(stored["thresholds"], np.float64)
        return labeller

    def save(self, folder: Path) -> None:
        make_folder(folder)
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        stored = {"thresholds": self.thresholds.tolist(), "max_length": self.max_length}
        write_json(folder / _THRESHOLDS_NAME, stored)

    def label(self, text: str) -> Labels:
        return self.label_many([text])[0]

    def label_many(self, texts: Iterable[str]) -> list[Labels]:
        texts = list(texts)
        return list(map(self._labels_of, texts, self.probabilities(texts)))

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """`(texts, types)`."""
        import torch

        parts = [np.zeros((0, self.model.config.num_labels))]
        with torch.inference_mode():
            for start in range(0, len(texts), _EVAL_BATCH):
                logits = self.logits(texts[start : start + _EVAL_BATCH])
                parts.append(torch.sigmoid(logits).float().cpu().numpy())
        return np.vstack(parts).astype(np.float64)

    def logits(self, texts: Sequence[str]) -> Any:
        """`(texts, types)`, a tensor on the model's device."""
        longest = self.max_length
        with suppress(AttributeError, TypeError):
            longest = min(longest, int(self.tokenizer.model_max_length))
        batch = self.tokenizer(
            list(texts), truncation=True, max_length=longest, padding=True, return_tensors="pt"
        )
        return self.model(**batch.to(next(self.model.parameters()).device)).logits

    def _labels_of(self, text: str, probabilities: Floats) -> Labels:
        columns = np.flatnonzero(probabilities >= self.thresholds)
        if not len(columns):
            return ()
        spans = split_clauses(text)
        without = [text[: span.start] + text[span.end :] for span in spans]
        left = self.probabilities(without) if len(spans) > 1 else np.zeros((1, len(probabilities)))
        return tuple(
            DistortionLabel(
                id=self.taxonomy.ids[column],
                evidence=spans[int(left[:, column].argmin())].of(text) if spans else None,
                labeller=self.name,
                confidence=float(probabilities[column]),
            )
            for column in columns[np.argsort(-probabilities[columns])]
        )


def tune_encoder(
    gold: GoldSet,
    settings: EncoderSettings,
    folder: Path,
    *,
    name: str = "encoder",
    on_step: Callable[[int, int, float], None] | None = None,
) -> EncoderLabeller:
    """Tunes an encoder on a gold set and writes its weights, tokenizer and thresholds to `folder`.

    `on_step` is called with step, steps in all and loss.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ConfigError: no encoder under that name.
    """
    _transformers()
    import torch

    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    labeller = _load_base(settings, gold.taxonomy, name)
    labeller.model.to("cuda" if torch.cuda.is_available() else "cpu")
    held_out = split_folds(len(gold.items), 10, settings.seed)[0]
    _run_epochs(labeller, gold, np.delete(np.arange(len(gold.items)), held_out), settings, on_step)
    labeller.model.eval()
    seen = labeller.probabilities([gold.items[row].text for row in held_out])
    labeller.thresholds = choose_thresholds(seen, gold.matrix[held_out], 0.1)
    labeller.save(folder)
    return labeller


def _run_epochs(
    labeller: EncoderLabeller,
    gold: GoldSet,
    part: npt.NDArray[np.int64],
    settings: EncoderSettings,
    on_step: Callable[[int, int, float], None] | None,
) -> None:
    """AdamW with a tenth of the steps to warm up, then linear to 0; gradients cut at norm 1."""
    import torch

    model, texts, matrix = labeller.model, gold.texts, gold.matrix
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    n_steps = settings.epochs * -(-len(part) // settings.batch_size)
    warm_up = _transformers().get_linear_schedule_with_warmup
    schedule = warm_up(optimizer, n_steps // 10, n_steps)
    generator = np.random.default_rng(settings.seed)
    model.train()
    step = 0
    for _ in range(settings.epochs):
        order = generator.permutation(part)
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            logits = labeller.logits([texts[row] for row in rows])
            targets = torch.tensor(matrix[rows], dtype=torch.float32, device=logits.device)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if on_step:
                on_step(step, n_steps, float(loss.detach()))


def _transformers() -> Any:
    require("torch", "neural")  # asked for first: transformers alone cannot tune
    return require("transformers", "neural")


def _load_base(settings: EncoderSettings, taxonomy: Taxonomy, name: str) -> EncoderLabeller:
    transformers, encoder = _transformers(), settings.encoder
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            encoder,
            num_labels=len(taxonomy.ids),
            problem_type="multi_label_classification",
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"--encoder {encoder}: {first_line}") from None
    model.config.id2label = dict(enumerate(taxonomy.ids))
    model.config.label2id = {type_id: place for place, type_id in enumerate(taxonomy.ids)}
    return EncoderLabeller(model, tokenizer, taxonomy, name, settings.max_length)
