"""The encoder labeller on a tiny random model: it trains, saves safely, and labels with evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cbtqa.distortions.encoder import EncoderSettings, tune_encoder
from cbtqa.distortions.models import describe_model, load_labeller
from cbtqa.errors import ConfigError
from cbtqa.files import write_json
from tests.distortions.texts import invented_gold
from tests.support.labels import is_evident

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # third-party deprecations, not ours
]
GOLD = invented_gold(60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A BERT of random weights with a character vocabulary of the invented texts."""
    folder = tmp_path_factory.mktemp("tiny")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*marks, *sorted(set("".join(GOLD.texts)))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    tokenizer = transformers.BertTokenizer(
        vocab={token: place for place, token in enumerate(vocabulary)}, model_max_length=64
    )
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_encoder_is_tuned_saved_without_pickle_and_loaded_again(tiny, tmp_path) -> None:
    losses: list[float] = []
    settings = EncoderSettings(encoder=str(tiny), epochs=12, batch_size=16, learning_rate=5e-3)
    folder = tmp_path / "model"
    tuned = tune_encoder(GOLD, settings, folder, on_step=lambda _, __, loss: losses.append(loss))
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) / 2, "it learns"
    signature = describe_model("encoder", "encoder", GOLD, settings.model_dump(), None)
    write_json(folder / "model.json", signature)
    assert (folder / "model.safetensors").is_file()
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    loaded = load_labeller(folder, GOLD.taxonomy)
    texts = GOLD.texts[:10]
    np.testing.assert_allclose(loaded.probabilities(texts), tuned.probabilities(texts), atol=1e-5)
    given = [label for text in texts for label in loaded.label(text)]
    assert given and all(label.evidence and label.confidence for label in given)
    assert all(is_evident(label, text) for text in texts for label in loaded.label(text))


def test_no_encoder_under_that_name_is_a_configuration_error(tmp_path) -> None:
    with pytest.raises(ConfigError, match="--encoder"):
        tune_encoder(GOLD, EncoderSettings(encoder=str(tmp_path / "none")), tmp_path / "out")
