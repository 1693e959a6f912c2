"""The heavy trained labeller: a transformers encoder, tuned for many labels at once.

    tune_encoder(gold, EncoderSettings(encoder="hfl/chinese-roberta-wwm-ext"), Path("model"))

Thresholds come from a held-out tenth of the training texts. The evidence of a label is the clause
without which its probability falls most. Nothing of torch is imported until a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cbtqa.distortions.clauses import split_clauses
from cbtqa.distortions.gold import GoldSet
from cbtqa.distortions.labellers import Labels
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.distortions.training import choose_thresholds, split_folds
from cbtqa.errors import ConfigError, DataError, MissingExtraError
from cbtqa.files import read_json, write_json
from cbtqa.records import DistortionLabel
from cbtqa.settings import Settings

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]
_THRESHOLDS_NAME = "thresholds.json"
_EVAL_BATCH = 64


class EncoderSettings(Settings):
    """How an encoder is tuned."""

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
    """Labels by a tuned encoder."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        thresholds: Floats,
        taxonomy: Taxonomy,
        name: str,
        max_length: int,
    ) -> None:
        self.taxonomy, self.name = taxonomy, f"trained:{name}"
        self._model, self._tokenizer = model, tokenizer
        self._thresholds, self._max_length = thresholds, max_length

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
        thresholds = np.array(stored["thresholds"], np.float64)
        return cls(model, tokenizer, thresholds, taxonomy, name, int(stored["max_length"]))

    def label(self, text: str) -> Labels:
        """The types above their thresholds, most certain first."""
        return self.label_many([text])[0]

    def label_many(self, texts: Iterable[str]) -> list[Labels]:
        """The same for many texts."""
        texts = list(texts)
        probabilities = self.probabilities(texts)
        return [self._labels_of(text, row) for text, row in zip(texts, probabilities, strict=True)]

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """`(texts, types)`."""
        return _predict(self._model, self._tokenizer, texts, self._max_length)

    def _labels_of(self, text: str, probabilities: Floats) -> Labels:
        columns = np.flatnonzero(probabilities >= self._thresholds)
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

    Args:
        on_step: called with step, steps in all and loss.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ConfigError: no encoder under that name.
    """
    import random

    transformers = _transformers()
    import torch

    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    tokenizer, model = _load_base(transformers, settings.encoder, gold.taxonomy)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    held_out = split_folds(len(gold.items), 10, settings.seed)[0]
    part = np.setdiff1d(np.arange(len(gold.items)), held_out)
    texts, matrix = gold.texts, gold.matrix
    _run_epochs(transformers, model, tokenizer, gold, part, settings, on_step)
    model.eval()
    seen = _predict(model, tokenizer, [texts[row] for row in held_out], settings.max_length)
    thresholds = choose_thresholds(seen, matrix[held_out], 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    stored = {"thresholds": thresholds.tolist(), "max_length": settings.max_length}
    write_json(folder / _THRESHOLDS_NAME, stored)
    return EncoderLabeller(model, tokenizer, thresholds, gold.taxonomy, name, settings.max_length)


def _run_epochs(
    transformers: Any,
    model: Any,
    tokenizer: Any,
    gold: GoldSet,
    part: npt.NDArray[np.int64],
    settings: EncoderSettings,
    on_step: Callable[[int, int, float], None] | None,
) -> None:
    """AdamW with a tenth of the steps to warm up, then linear to 0; gradients cut at norm 1."""
    import torch

    device = str(next(model.parameters()).device)
    texts, matrix = gold.texts, gold.matrix
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    n_steps = settings.epochs * -(-len(part) // settings.batch_size)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, n_steps // 10, n_steps)
    generator = np.random.default_rng(settings.seed)
    model.train()
    step = 0
    for _ in range(settings.epochs):
        order = generator.permutation(part)
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            batch = _encode(tokenizer, [texts[row] for row in rows], settings.max_length, device)
            targets = torch.tensor(matrix[rows], dtype=torch.float32, device=device)
            logits = model(**batch).logits
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
    try:
        import torch  # noqa: F401 - asked for first: transformers alone cannot tune
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "neural") from None
    return transformers


def _load_base(transformers: Any, encoder: str, taxonomy: Taxonomy) -> tuple[Any, Any]:
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
    return tokenizer, model


def _encode(
    tokenizer: Any, texts: Sequence[str], max_length: int, device: str
) -> dict[str, torch.Tensor]:
    longest = max_length
    with suppress(AttributeError, TypeError):
        longest = min(max_length, int(tokenizer.model_max_length))
    batch = tokenizer(
        list(texts), truncation=True, max_length=longest, padding=True, return_tensors="pt"
    )
    return {key: value.to(device) for key, value in batch.items()}


def _predict(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> Floats:
    import torch

    parts = [np.zeros((0, model.config.num_labels))]
    device = str(next(model.parameters()).device)
    with torch.inference_mode():
        for start in range(0, len(texts), _EVAL_BATCH):
            batch = _encode(tokenizer, texts[start : start + _EVAL_BATCH], max_length, device)
            parts.append(torch.sigmoid(model(**batch).logits).float().cpu().numpy())
    return np.vstack(parts).astype(np.float64)
