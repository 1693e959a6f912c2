"""multilingual-e5-small: BERTScore equals bert_score's, and the encoder labeller learns with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cbtqa.distortions.encoder import EncoderSettings, tune_encoder
from cbtqa.distortions.models import describe_model, load_labeller
from cbtqa.files import write_json
from cbtqa.metrics.neural.bertscore import BertScorer
from cbtqa.metrics.neural.weights import NeuralSettings
from tests.distortions.texts import invented_gold
from tests.support.labels import is_evident
from tests.support.original_checkpoints import SENTENCES
from tests.weights.conftest import Figure

pytestmark = [
    pytest.mark.weights,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("training"),
    pytest.mark.filterwarnings("ignore"),  # third-party deprecations, not ours
]
LAYER = 9


@pytest.mark.slow
def test_bertscore_with_real_weights_equals_bert_score(e5: Path, figure: Figure) -> None:
    bert_score = pytest.importorskip("bert_score")
    predictions, references = list(SENTENCES), [*SENTENCES[1:], SENTENCES[0]]
    words = {"bertscore_model": str(e5), "bertscore_layer": LAYER, "device": "cpu"}
    ours = BertScorer(NeuralSettings(**words)).score(predictions, references)
    scorer = bert_score.BERTScorer(model_type=str(e5), num_layers=LAYER, device="cpu", nthreads=0)
    theirs = np.stack([part.numpy() for part in scorer.score(predictions, references)], axis=1)
    figure(
        f"BERTScore: largest difference from bert_score {np.abs(ours[:, :3] - theirs).max():.1e}"
    )
    np.testing.assert_allclose(ours[:, :3], theirs, atol=1e-6)
    assert 0.3 < theirs.mean() < 0.999  # other sentences, of one language and kind


@pytest.mark.slow
def test_the_encoder_labeller_learns_with_real_weights_and_names_evidence(
    e5: Path, tmp_path: Path, figure: Figure
) -> None:
    gold = invented_gold(48)
    losses: list[float] = []
    settings = EncoderSettings(encoder=str(e5), epochs=4, learning_rate=3e-4, max_length=48)
    folder = tmp_path / "model"
    tuned = tune_encoder(gold, settings, folder, on_step=lambda _, __, loss: losses.append(loss))
    figure(f"encoder labeller: loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps")
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    write_json(
        folder / "model.json",
        describe_model("encoder", "encoder", gold, settings.model_dump(), None),
    )
    loaded = load_labeller(folder, gold.taxonomy)
    texts = gold.texts[:6]
    np.testing.assert_allclose(loaded.probabilities(texts), tuned.probabilities(texts), atol=1e-5)
    labels = [(label, text) for text in texts for label in loaded.label(text)]
    assert all(is_evident(label, text) for label, text in labels)
