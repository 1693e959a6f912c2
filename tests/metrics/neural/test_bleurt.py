"""The BLEURT port computes what encoder and head compute, and names what is wrong with a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbtqa.errors import ConfigError, DataError
from cbtqa.metrics.neural.bleurt import (
    Bleurt,
    BleurtScorer,
    Pieces,
    PieceText,
    cut_pair,
    windowed_pairs,
)
from cbtqa.metrics.neural.weights import NeuralSettings
from cbtqa.metrics.text.texts import Item, Reading, Texts
from tests.metrics.neural.tiny_models import save_bleurt

torch = pytest.importorskip("torch")
Made = tuple[Path, Any, Any]
REFERENCES = ["我今天很好。", "晚上睡不着，压力很大！", "谢谢你说出这件事。"]
PREDICTIONS = ["我很好！", "今天压力很大。", "你愿意把担心的事情写下来吗？谢谢你。"]


def scorer(folder: Path, **changed: Any) -> BleurtScorer:
    given = {"bleurt_model": str(folder), "device": "cpu", "batch_size": 2, **changed}
    return BleurtScorer(NeuralSettings(**given))


def ids_of(folder: Path, reference: str, candidate: str) -> tuple[list[int], list[int]]:
    """Ids and segment ids by SentencePiece's own Python, as google-research/bleurt makes them."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    one, other = pieces.encode(reference), pieces.encode(candidate)
    cls, sep = pieces.piece_to_id("[CLS]"), pieces.piece_to_id("[SEP]")
    return [cls, *one, sep, *other, sep], [0] * (len(one) + 2) + [1] * (len(other) + 1)


def test_scores_are_those_of_transformers_rembert_and_a_linear_head(bleurt: Made) -> None:
    folder, encoder, head = bleurt
    expected = []
    for reference, candidate in zip(REFERENCES, PREDICTIONS, strict=True):
        ids, kinds = ids_of(folder, reference, candidate)
        with torch.inference_mode():
            pooled = encoder(
                torch.tensor([ids]), token_type_ids=torch.tensor([kinds])
            ).pooler_output
            expected.append(head(pooled).item())
    assert np.ptp(expected) > 1e-4
    scored = scorer(folder).score(PREDICTIONS, REFERENCES)
    np.testing.assert_allclose(scored[:, 0], expected, atol=1e-6)


def test_pooler_and_head_agree_with_plain_numpy(bleurt: Made) -> None:
    folder, encoder, _ = bleurt
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    ids, kinds = ids_of(folder, REFERENCES[0], PREDICTIONS[0])
    with torch.inference_mode():
        out = encoder(torch.tensor([ids]), token_type_ids=torch.tensor([kinds]))
    first = out.last_hidden_state[0, 0].numpy().astype(np.float64)
    pooled = np.tanh(
        weights["bleurt.pooler.dense.weight"] @ first + weights["bleurt.pooler.dense.bias"]
    )
    expected = weights["classifier.weight"] @ pooled + weights["classifier.bias"]
    scored = scorer(folder).score(PREDICTIONS[:1], REFERENCES[:1])
    assert scored[0, 0] == pytest.approx(expected.item(), abs=1e-6)


def test_reference_and_prediction_are_not_interchangeable(bleurt: Made) -> None:
    forward = scorer(bleurt[0]).score(PREDICTIONS, REFERENCES)[:, 0]
    backward = scorer(bleurt[0]).score(REFERENCES, PREDICTIONS)[:, 0]
    assert np.abs(forward - backward).max() > 1e-5


def popped_one_by_one(n_reference: int, n_candidate: int, limit: int) -> tuple[int, int]:
    """The loop of google-research/bleurt, encoding.py."""
    while n_reference + n_candidate > limit:
        if n_reference > n_candidate:
            n_reference -= 1
        else:
            n_candidate -= 1
    return n_reference, n_candidate


@given(st.integers(0, 90), st.integers(0, 90), st.integers(0, 120))
def test_pairs_are_cut_as_the_original_cuts_them(first: int, second: int, limit: int) -> None:
    assert cut_pair(first, second, limit) == popped_one_by_one(first, second, limit)


def test_long_pairs_are_cut_at_the_models_length_and_counted(tmp_path: Path) -> None:
    folder, encoder, head = save_bleurt(tmp_path / "model", positions=24)
    model = scorer(folder)
    long = "我今天很好。" * 8
    scored = model.score([long, "好", long], ["我很好。", long, long])
    assert scored[:, 1].tolist() == [1, 0, 1]
    assert scored[:, 2].tolist() == [0, 1, 1]
    ids, _ = ids_of(folder, long, long)
    n = (len(ids) - 3) // 2
    one, other = cut_pair(n, n, 21)
    inner = ids[1 : 1 + n]
    cut = [ids[0], *inner[:one], ids[-1], *inner[:other], ids[-1]]
    kinds = [0] * (one + 2) + [1] * (other + 1)
    with torch.inference_mode():
        pooled = encoder(torch.tensor([cut]), token_type_ids=torch.tensor([kinds])).pooler_output
        assert scored[2, 0] == pytest.approx(head(pooled).item(), abs=1e-6)


def test_windows_leave_short_pairs_as_they_are_and_read_long_ones_whole(tmp_path: Path) -> None:
    folder, _, _ = save_bleurt(tmp_path / "model", positions=40)
    model = scorer(folder)
    short = model.score(PREDICTIONS[:2], REFERENCES[:2])
    np.testing.assert_allclose(
        model.score(PREDICTIONS[:2], REFERENCES[:2], is_windowed=True)[:, 0], short[:, 0], atol=1e-6
    )
    start = "晚上睡不着，压力很大！" * 6
    one, other = start + "我今天很好。", start + "谢谢你说出这件事。"
    assert model.score([one], [start])[0, 0] == pytest.approx(model.score([other], [start])[0, 0])
    windowed = [model.score([t], [start], is_windowed=True)[0] for t in (one, other)]
    assert abs(windowed[0][0] - windowed[1][0]) > 1e-6
    assert windowed[0][1:3].tolist() == [0, 0]


@given(st.text("我。", max_size=150), st.text("好。", max_size=150), st.integers(4, 60))
def test_windowed_pairs_fit_and_hold_the_whole_candidate(
    reference: str, candidate: str, limit: int
) -> None:
    sides = [
        PieceText(list(map(ord, text)), list(text), n_unknown=0) for text in (reference, candidate)
    ]
    pairs = windowed_pairs(sides[0], sides[1], limit)
    assert all(len(one) + len(other) <= limit for one, other in pairs)
    assert [piece for _, other in pairs for piece in other] == sides[1].ids


def test_an_empty_text_scores_zero_and_is_scored(bleurt: Made) -> None:
    reading = Reading()
    metric = Bleurt(scorer(bleurt[0]))
    ours = Texts([Item(""), Item("我很好"), Item("我很好")], reading)
    rows = metric.statistics(ours, Texts([Item("我"), Item(" "), Item("我很好")], reading))
    values = metric.per_pair(rows)
    assert values[:2].tolist() == [0, 0]
    assert values[2] != 0
    assert metric.n_scored(rows) == 3


def test_the_signature_names_checkpoint_weights_and_pieces(bleurt: Made, tmp_path: Path) -> None:
    fields = dict(Bleurt(scorer(bleurt[0])).signature().fields)
    assert fields["checkpoint"] == "tiny-bleurt"
    assert (fields["max_length"], fields["long"]) == ("512", "cut")
    assert len(fields["weights"]) == len(fields["pieces"]) == 12
    windowed = dict(Bleurt(scorer(bleurt[0]), is_windowed=True).signature().fields)
    assert (windowed["metric"], windowed["long"]) == ("bleurt_windowed", "windowed")


def test_a_distilled_layout_in_safetensors_loads_too(bleurt: Made, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder, _, _ = save_bleurt(tmp_path / "model")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    renamed = {name.replace("bleurt.", "rembert."): t.contiguous() for name, t in state.items()}
    save_file(renamed, folder / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()
    # weights mapped from another file lie elsewhere in memory, and sums are taken in another order
    np.testing.assert_allclose(
        scorer(folder).score(PREDICTIONS, REFERENCES),
        scorer(bleurt[0]).score(PREDICTIONS, REFERENCES),
        atol=1e-5,
    )


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    folder, _, _ = save_bleurt(tmp_path / "model")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(DataError, match=r"encoder\.layer\.2\.\S+ is missing; .* and 13 more"):
        _ = scorer(folder).model
    path.write_text(json.dumps({**config, "embedding_size": 12}))
    with pytest.raises(DataError, match="has shape"):
        _ = scorer(folder).model
    del config["embedding_size"]
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="embedding_size is missing"):
        _ = scorer(folder).model


def test_older_and_foreign_checkpoints_are_named_for_what_they_are(tmp_path: Path) -> None:
    folder, _, _ = save_bleurt(tmp_path / "model")
    (folder / "spm.model").unlink()
    (folder / "vocab.txt").write_text("[CLS]\n")
    with pytest.raises(ConfigError, match="older BLEURT for English only"):
        _ = scorer(folder).model
    tensorflow = tmp_path / "BLEURT-20"
    tensorflow.mkdir()
    (tensorflow / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ConfigError, match="a TensorFlow checkpoint"):
        _ = scorer(tensorflow).model
    with pytest.raises(ConfigError, match="cannot load nobody/nothing"):
        _ = BleurtScorer(NeuralSettings(bleurt_model="nobody/nothing")).model


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder, _, _ = save_bleurt(tmp_path / "model")
    pieces, weights = folder / "spm.model", folder / "pytorch_model.bin"
    whole = pieces.read_bytes()
    pieces.write_bytes(b"no model")
    with pytest.raises(DataError, match="no SentencePiece model"):
        _ = scorer(folder).model
    pieces.write_bytes(whole)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="weights are damaged"):
        _ = scorer(folder).model


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "ran"), "w"))

    folder, _, _ = save_bleurt(tmp_path / "model")
    torch.save({"bleurt.x": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="weights are damaged"):
        _ = scorer(folder).model
    assert not (tmp_path / "ran").exists()
    assert pickle.HIGHEST_PROTOCOL


@pytest.mark.weights
def test_published_values_of_blurt_20_are_reproduced() -> None:
    """Values printed on the model card of lucadiliello/BLEURT-20."""
    folder = os.environ.get("BLEURT_20")
    if not folder:
        pytest.skip("BLEURT_20 names no folder with the weights of lucadiliello/BLEURT-20")
    references = ["a bird chirps by the window", "this is a random sentence"]
    candidates = ["a bird chirps by the window", "this looks like a random sentence"]
    scored = scorer(Path(folder)).score(candidates, references)
    np.testing.assert_allclose(scored[:, 0], [0.9990496635, 0.7930182219], atol=1e-4)


def test_pieces_are_counted_with_the_unknown_ones(bleurt: Made) -> None:
    from cbtqa.metrics.neural.weights import find_checkpoint

    read = Pieces(find_checkpoint(str(bleurt[0]), "--bleurt-model")).read("我鸢好")
    assert read.n_unknown == 1
    assert len(read.ids) == len(read.pieces)
