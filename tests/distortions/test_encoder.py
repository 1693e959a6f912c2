"""The encoder labeller on a tiny random model: it trains, saves safely, and labels with evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cbtqa.distortions.encoder import EncoderSettings, tune_encoder
from cbtqa.distortions.encoder_means import MeansReader, open_reader
from cbtqa.distortions.models import describe_model, load_labeller, save_linear
from cbtqa.distortions.training import TrainingSettings, cross_validate, train_linear
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


def test_an_encoder_that_is_read_adds_to_the_light_model_and_stays_as_it_is(tiny, tmp_path) -> None:
    settings = TrainingSettings(inner_folds=2)
    data = GOLD.texts, GOLD.matrix, GOLD.taxonomy, settings
    reader = open_reader(str(tiny))
    model = train_linear(*data, reader=reader)
    signature = describe_model("linear", "read", GOLD, settings.model_dump(), None)
    save_linear(tmp_path / "model", model, signature)
    loaded = load_labeller(tmp_path / "model", GOLD.taxonomy)
    assert loaded.model.encoder is not None
    added = loaded.model.encoder.scores(GOLD.texts[:8])
    assert np.abs(added).max() > 1e-3 and added.std(axis=0).max() > 1e-3
    labels = loaded.label_many(GOLD.texts)
    assert any(labels) and all(
        is_evident(label, text)
        for text, own in zip(GOLD.texts, labels, strict=True)
        for label in own
    )
    outcome = cross_validate(*data, n_folds=2, reader=reader) > 0
    assert (outcome & GOLD.matrix).sum() > 0.6 * GOLD.matrix.sum()


def test_a_reader_gives_a_text_the_same_means_alone_and_among_others(tiny) -> None:
    reader = MeansReader(str(tiny))
    together = reader.means(["", *GOLD.texts[:5]])
    alone = MeansReader(str(tiny)).means(GOLD.texts[2:3])
    np.testing.assert_allclose(together[3], alone[0], atol=1e-4)
    assert not together[0].any(), "nothing to read"


def test_another_encoder_than_the_trained_one_is_refused(tiny, tmp_path) -> None:
    model = train_linear(
        GOLD.texts,
        GOLD.matrix,
        GOLD.taxonomy,
        TrainingSettings(inner_folds=2),
        reader=MeansReader(str(tiny)),
    )
    other = replace(model.encoder, weights_sha256="0" * 64)
    with pytest.raises(ConfigError, match="not those that the labeller was trained with"):
        other.scores(["想问问怎么安排时间"])
