"""BERTScore equals bert-score where bert-score works, and does what it should where it does not."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbtqa.errors import ConfigError, DataError
from cbtqa.metrics.base import Floats
from cbtqa.metrics.evaluation import score_lists
from cbtqa.metrics.neural.bertscore import BertScore, BertScorer
from cbtqa.metrics.neural.weights import NeuralSettings, cannot_load
from cbtqa.metrics.text.texts import Item, Reading, Texts
from tests.metrics.neural.tiny_models import CHARACTERS, forget_length, save_bert

torch = pytest.importorskip("torch")


def invented(n: int, longest: int = 90, seed: int = 3) -> list[str]:
    draw = random.Random(seed)
    letters = [c for c in CHARACTERS if c not in "，。！？“”、；"]
    texts = []
    for _ in range(n):
        words = draw.choices(letters, k=draw.randint(1, longest))
        texts.append("".join(c + ("。" if draw.random() < 0.1 else "") for c in words))
    return texts


def settings(model: Path, **changed: Any) -> NeuralSettings:
    return NeuralSettings(
        **{
            "bertscore_model": str(model),
            "bertscore_layer": 2,
            "device": "cpu",
            "batch_size": 4,
            **changed,
        }
    )


def texts(given: Sequence[str], reading: Reading) -> Texts:
    return Texts([Item(text) for text in given], reading)


def upstream(model: Path, predictions: list[str], references: list[str], **options: Any) -> Floats:
    bert_score = pytest.importorskip("bert_score")
    scorer = bert_score.BERTScorer(
        model_type=str(model), num_layers=2, device="cpu", nthreads=0, **options
    )
    scored = scorer.score(predictions, references, batch_size=4)
    return np.stack([part.numpy() for part in scored], axis=1).astype(np.float64)


def test_values_equal_bert_score_for_short_and_for_cut_texts(bert: Path) -> None:
    predictions, references = invented(23), invented(23, seed=4)
    ours = BertScorer(settings(bert)).score(predictions, references)
    assert ours[:, 3].any()
    assert not ours[:, 3].all()
    np.testing.assert_allclose(ours[:, :3], upstream(bert, predictions, references), atol=1e-6)


def test_several_references_count_their_best_as_in_bert_score(bert: Path) -> None:
    predictions = invented(6, 30)
    several = [
        list(group) for group in zip(*(invented(6, 30, seed=n) for n in (4, 5, 6)), strict=True)
    ]
    expected = upstream(bert, predictions, several)  # type: ignore[arg-type]
    for column, name in enumerate(("bertscore_p", "bertscore_r", "bertscore")):
        found = score_lists(name, predictions, several, settings(bert))
        assert found.value == pytest.approx(expected[:, column].mean(), abs=1e-6)
        assert "|nrefs:3|" in found.signature


def test_idf_weights_equal_bert_score(bert: Path, tmp_path: Path) -> None:
    predictions, references = invented(9), invented(9, seed=4)
    documents = tmp_path / "documents.txt"
    documents.write_text("\n".join(references), encoding="utf-8")
    ours = BertScorer(settings(bert, bertscore_idf=documents)).score(predictions, references)
    theirs = upstream(bert, predictions, references, idf=True, idf_sents=references)
    np.testing.assert_allclose(ours[:, :3], theirs, atol=1e-6)
    plain = BertScorer(settings(bert)).score(predictions, references)
    assert np.abs(plain[:, 2] - ours[:, 2]).max() > 1e-4


def test_rescaled_values_equal_bert_score_with_the_same_table(bert: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("LAYER,P,R,F\n1,0.9,0.9,0.9\n2,0.31,0.32,0.33\n")
    predictions, references = invented(5, 40), invented(5, 40, seed=4)
    reading = Reading()
    sides = texts(predictions, reading), texts(references, reading)
    scorer = BertScorer(settings(bert, bertscore_baseline=table))
    metric = BertScore(scorer, is_rescaled=True)
    raw = upstream(bert, predictions, references)
    expected = (raw[:, 2] - 0.33) / (1 - 0.33)
    np.testing.assert_allclose(metric.per_pair(metric.statistics(*sides)), expected, atol=2e-6)
    assert metric.unit == "rescaled"
    assert "baseline:" in str(metric.signature())


def test_the_shipped_baseline_is_row_eight_of_bert_score(tmp_path: Path) -> None:
    model = save_bert(tmp_path / "bert-base-chinese", n_layers=12)
    scorer = BertScorer(settings(model, bertscore_layer=None))
    assert scorer.encoder.layer == 8
    assert scorer.baseline[0].tolist() == [0.54804957, 0.5480091, 0.54755783]


def test_rescaling_a_model_without_a_baseline_is_refused(bert: Path) -> None:
    with pytest.raises(ConfigError, match="no baseline to rescale tiny-bert"):
        _ = BertScorer(settings(bert)).baseline


def test_an_empty_text_scores_zero_on_either_side_and_moves_no_other_pair(bert: Path) -> None:
    predictions, references = ["我很好。", "", " \n", "今天很好"], ["我很好！", "我很好", "我", " "]
    ours = BertScorer(settings(bert)).score(predictions, references)
    alone = BertScorer(settings(bert)).score(predictions[:1], references[:1])
    assert ours[1:, :3].tolist() == [[0.0] * 3] * 3
    np.testing.assert_allclose(ours[0, :3], alone[0, :3], atol=1e-6)


def test_identical_texts_score_one(bert: Path) -> None:
    given = invented(5, 40)
    np.testing.assert_allclose(BertScorer(settings(bert)).score(given, given)[:, :3], 1, atol=1e-6)


def test_a_tokenizer_without_a_length_takes_the_models(tmp_path: Path) -> None:
    model = forget_length(save_bert(tmp_path / "model", positions=20))
    scorer = BertScorer(settings(model))
    assert scorer.encoder.max_length == 20
    scored = scorer.score(["我" * 18, "我" * 19], ["好"] * 2)
    assert scored[:, 3].tolist() == [0, 1]
    assert scored[:, 6].tolist() == [18, 19]


def test_batches_and_blocks_do_not_change_values(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions, references = invented(11), invented(11, seed=4)
    whole = BertScorer(settings(bert, batch_size=16)).score(predictions, references)
    monkeypatch.setattr("cbtqa.metrics.neural.bertscore.PAIRS_PER_BLOCK", 4)
    parts = BertScorer(settings(bert, batch_size=1)).score(predictions, references)
    np.testing.assert_allclose(whole, parts, atol=1e-6)


def test_references_are_embedded_once_for_several_systems_and_metrics(bert: Path) -> None:
    reading, scorer = Reading(), BertScorer(settings(bert))
    read: list[int] = []
    embed = scorer.encoder.embed
    scorer.encoder.embed = lambda ids: read.append(len(ids)) or embed(ids)  # type: ignore[method-assign,func-returns-value]
    references = texts(invented(3, seed=4), reading)
    for seed in (1, 2):
        ours = texts(invented(3, seed=seed), reading)
        for part in ("p", "r", "f1"):
            BertScore(scorer, part).statistics(ours, references)  # type: ignore[arg-type]
    BertScore(scorer).statistics(references, references)  # type: ignore[arg-type]
    assert sum(read) == 3 + 3 + 3


def test_windows_leave_short_texts_as_they_are_and_read_the_end_of_long_ones(bert: Path) -> None:
    scorer = BertScorer(settings(bert))
    short, other = invented(6, 30), invented(6, 30, seed=4)
    np.testing.assert_allclose(
        scorer.score(short, other, is_windowed=True)[:, :3],
        scorer.score(short, other)[:, :3],
        atol=1e-6,
    )
    start = "谢谢你愿意说出来。" * 10
    long, changed = [start + "今天很好。"], [start + "晚上睡不着，压力大！"]
    assert scorer.score(long, changed)[0, 2] == pytest.approx(1)
    windowed = scorer.score(long, changed, is_windowed=True)
    assert windowed[0, 2] < 0.999
    assert windowed[0, 3:5].tolist() == [0, 0]
    np.testing.assert_allclose(scorer.score(long, long, is_windowed=True)[0, :3], 1, atol=1e-6)


def test_a_model_that_does_not_know_the_characters_is_refused(bert: Path) -> None:
    with pytest.raises(ConfigError, match="does not know 100%") as caught:
        BertScorer(settings(bert)).score(["鸢尾蔷薇"], ["我很好"])
    assert "bert-base-chinese" in (caught.value.hint or "")


def test_cut_texts_and_unknown_tokens_are_told(bert: Path) -> None:
    reading = Reading()
    metric = BertScore(BertScorer(settings(bert)))
    ours = texts(["我" * 100, "鸢" * 10], reading)
    rows = metric.statistics(ours, texts(["我很好。", "我很好"], reading))
    first, second = metric.notes(rows)
    assert "50.0% of the answers and 0.0% of the references" in first
    assert second == "bertscore: 9.1% of the tokens are unknown to the model"


def test_the_signature_names_weights_layer_length_and_libraries(bert: Path, tmp_path: Path) -> None:
    fields = dict(BertScore(BertScorer(settings(bert))).signature().fields)
    assert fields["model"] == "tiny-bert"
    assert (fields["layer"], fields["idf"], fields["max_length"]) == ("2", "no", "64")
    assert fields["torch"] == torch.__version__.partition("+")[0]
    other = save_bert(tmp_path / "tiny-bert", n_layers=2)
    changed = dict(BertScore(BertScorer(settings(other))).signature().fields)
    assert changed["weights"] != fields["weights"]
    assert changed["vocab"] == fields["vocab"]


def test_half_precision_is_close_and_signed(bert: Path) -> None:
    predictions, references = invented(4, 40), invented(4, 40, seed=4)
    plain = BertScorer(settings(bert)).score(predictions, references)
    half = BertScorer(settings(bert, dtype="bfloat16"))
    np.testing.assert_allclose(half.score(predictions, references)[:, :3], plain[:, :3], atol=0.03)
    assert "dtype:bfloat16" in str(BertScore(half).signature())


def test_positions_that_begin_behind_the_padding_are_not_overrun(tmp_path: Path) -> None:
    from transformers import BertTokenizer, XLMRobertaConfig, XLMRobertaModel

    tokens = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    config = XLMRobertaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    XLMRobertaModel(config).save_pretrained(tmp_path / "model")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(tmp_path / "model")
    scorer = BertScorer(settings(tmp_path / "model"))
    assert scorer.encoder.max_length == 32
    assert scorer.score(["我" * 50], ["好" * 20])[0, 3:5].tolist() == [1, 0]


def test_a_byte_level_english_model_is_refused(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6}
    config = RobertaConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    RobertaModel(config).save_pretrained(tmp_path / "roberta-large")
    RobertaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path / "roberta-large")
    with pytest.raises(ConfigError, match="reads bytes, as English models do") as caught:
        _ = BertScorer(settings(tmp_path / "roberta-large")).encoder
    assert "bert-base-chinese" in (caught.value.hint or "")


def test_an_unknown_layer_is_asked_for(bert: Path) -> None:
    with pytest.raises(ConfigError, match="which of the 3 layers of tiny-bert"):
        _ = BertScorer(settings(bert, bertscore_layer=None)).encoder
    with pytest.raises(ConfigError, match="has layers 0 to 3, not 4"):
        _ = BertScorer(settings(bert, bertscore_layer=4)).encoder


@pytest.mark.parametrize(
    ("name", "words"),
    [("./nowhere", "is not a folder"), ("nobody/nothing", "cannot load nobody/nothing")],
)
def test_a_missing_model_is_named_with_the_next_command(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        _ = BertScorer(NeuralSettings(bertscore_model=name)).encoder
    hint = caught.value.hint or ""
    assert name.startswith(".") or "hf download nobody/nothing --local-dir nothing" in hint


def test_a_gated_model_is_told_how_to_get_in() -> None:
    words = "You are trying to access a gated repo.\nMake sure to have access to it."
    error = cannot_load("owner/name", "--bleurt-model", OSError(words))
    assert str(error) == (
        "--bleurt-model: cannot load owner/name: You are trying to access a gated repo."
    )
    assert error.hint is not None
    assert "hf auth login; hf download owner/name" in error.hint


def test_damaged_and_missing_weights_are_told_apart(bert: Path, tmp_path: Path) -> None:
    model = save_bert(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ConfigError, match="cannot load"):
        _ = BertScorer(settings(model)).encoder
    weights.unlink()
    with pytest.raises(ConfigError, match="has no weights"):
        _ = BertScorer(settings(model)).encoder


def test_weights_that_lack_tensors_are_not_filled_with_random_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = save_bert(tmp_path / "model")
    state = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if ".layer.1.attention" not in name}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 10 tensors"):
        _ = BertScorer(settings(model)).encoder


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "model")
    config = folder / "config.json"
    text = config.read_text().replace(
        '"model_type": "bert"',
        '"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}',
    )
    config.write_text(text)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="cannot load"):
        _ = BertScorer(settings(folder)).encoder
    assert not (tmp_path / "ran").exists()


def test_a_device_that_is_not_there_is_named(bert: Path) -> None:
    with pytest.raises(ConfigError, match="--device cuda:77"):
        _ = BertScorer(settings(bert, device="cuda:77")).encoder


def test_a_device_without_enough_memory_gets_advice(bert: Path) -> None:
    scorer = BertScorer(settings(bert, batch_size=8))

    def run_out(*ids: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    scorer.encoder.model.register_forward_pre_hook(run_out, with_kwargs=True)
    with pytest.raises(ConfigError, match="out of memory") as caught:
        scorer.score(["我很好"], ["好"])
    assert "--batch-size 4" in (caught.value.hint or "")


def test_weights_in_several_parts_are_found_and_hashed(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    model = save_bert(tmp_path / "model")
    (model / "model.safetensors").unlink()
    AutoModel.from_pretrained(bert).save_pretrained(model, max_shard_size="40KB")
    assert len(list(model.glob("*.safetensors"))) > 1
    scorer = BertScorer(settings(model))
    whole = BertScorer(settings(bert))
    texts_given = invented(3), invented(3, seed=4)
    np.testing.assert_allclose(scorer.score(*texts_given), whole.score(*texts_given), atol=1e-5)
    assert scorer.encoder.sha256 != whole.encoder.sha256
    sorted(model.glob("*.safetensors"))[0].unlink()
    with pytest.raises(ConfigError, match="has no weights"):
        _ = BertScorer(settings(model)).encoder


def test_tokens_that_all_weigh_nothing_are_not_scored(bert: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents.txt"
    documents.write_text("我好\n我好", encoding="utf-8")
    metric = BertScore(BertScorer(settings(bert, bertscore_idf=documents)))
    reading = Reading()
    rows = metric.statistics(texts(["我好", "我很好"], reading), texts(["我很好"] * 2, reading))
    assert metric.n_scored(rows) == 1
    assert math.isnan(metric.per_pair(rows)[0])


def test_an_idf_file_without_documents_is_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match="holds no document"):
        BertScorer(settings(bert, bertscore_idf=tmp_path / "empty.txt")).score(["我"], ["我"])
