"""The light model: features, the solver, thresholds, evidence, and files that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from cbtqa.distortions.features import NO_BUCKET, WordClasses, encode_texts, hash_ngrams
from cbtqa.distortions.importers import GoldItem, GoldSet
from cbtqa.distortions.linear import (
    Linear,
    LinearLabeller,
    decide,
    fit_logistic,
    fit_platt,
)
from cbtqa.distortions.models import describe_model, load_labeller, save_linear
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.distortions.training import (
    TrainingSettings,
    choose_thresholds,
    contrast_columns,
    cross_validate,
    fit_type,
    invented_texts,
    mean_model,
    n_fits,
    train_linear,
)
from cbtqa.errors import DataError
from cbtqa.llm.progress import Progress, StepCounter
from tests.distortions.texts import invented_gold
from tests.support.labels import is_evident

GOLD = invented_gold()
SETTINGS = TrainingSettings(inner_folds=3)


@pytest.fixture(scope="module")
def model():
    return train_linear(GOLD.texts, GOLD.matrix, GOLD.taxonomy, SETTINGS)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "light"
    signature = describe_model("linear", "light", GOLD, SETTINGS.model_dump(), None)
    save_linear(folder, model, signature)
    return folder


def buckets_of(text: str, n: int) -> list[int]:
    return [b for b in hash_ngrams(encode_texts([text]), n)[n - 1].tolist() if b != NO_BUCKET]


def test_ngrams_do_not_reach_into_the_next_text() -> None:
    together = hash_ngrams(encode_texts(["甲乙", "丙"]), 3)
    for n, buckets in enumerate(together, 1):
        kept = [bucket for bucket in buckets.tolist() if bucket != NO_BUCKET]
        assert kept == buckets_of("甲乙", n) + buckets_of("丙", n)


def test_width_and_case_of_letters_do_not_matter_and_positions_stay() -> None:
    assert buckets_of("ＡBc９　", 2) == buckets_of("abc9 ", 2)
    assert buckets_of("好，", 1) != buckets_of("好,", 1)
    assert buckets_of("甲乙", 1) != buckets_of("乙甲", 1)
    assert len(buckets_of("𠮷好", 1)) == 4, "two characters and two marks"


def test_the_solver_finds_the_minimum() -> None:
    generator = np.random.default_rng(5)
    dense = generator.normal(size=(60, 7)) * (generator.random((60, 7)) < 0.6)
    dense[:, 0] = 1e-9
    targets = dense @ generator.normal(size=7) + generator.normal(size=60) > 0
    fitted = fit_logistic(csr_array(dense), targets, 2.0)
    signs = np.where(targets, 1.0, -1.0)

    def loss(weights, bias) -> float:
        margins = signs * (dense @ weights + bias)
        return 0.5 * weights @ weights + 2.0 * np.logaddexp(0, -margins).sum()

    best = loss(fitted.weights, fitted.bias)
    for _ in range(200):
        step = generator.normal(size=8) * 0.02
        assert loss(fitted.weights + step[:7], fitted.bias + step[7]) > best - 1e-4


def test_platt_turns_scores_into_frequencies() -> None:
    generator = np.random.default_rng(1)
    scores = generator.normal(size=4000)
    truth = generator.random(4000) < 1 / (1 + np.exp(-(2 * scores - 1)))
    slope, offset = fit_platt(scores, truth)
    assert slope == pytest.approx(2, abs=0.2)
    assert offset == pytest.approx(-1, abs=0.2)


def test_thresholds_part_what_can_be_parted_and_never_give_a_type_without_examples() -> None:
    probabilities = np.array([[0.9, 0.3], [0.8, 0.4], [0.3, 0.2], [0.2, 0.1]] * 10)
    gold = np.array([[True, False], [True, False], [False, False], [False, False]] * 10)
    thresholds = choose_thresholds(probabilities, gold, 0.1)
    assert 0.3 < thresholds[0] <= 0.8
    assert thresholds[1] == 1.0


def test_cross_validation_learns_what_is_learnable_and_is_the_same_every_time() -> None:
    told: list[Progress] = []
    n_all = n_fits(GOLD.taxonomy, SETTINGS, 3)
    counter = StepCounter(told.append, n_all, "fits")
    data = (GOLD.texts, GOLD.matrix, GOLD.taxonomy, SETTINGS)
    outcome = cross_validate(*data, n_folds=3, counter=counter)
    n_types = len(GOLD.taxonomy.ids)
    assert told[-1].n_done == n_all - 4 * n_types  # the final model is still to come
    assert told[-1].note.startswith("fold 3 of 3, weights of ")
    given = outcome > 0
    right = 2 * (given & GOLD.matrix).sum() / (given.sum() + GOLD.matrix.sum())
    assert right > 0.95
    again = cross_validate(GOLD.texts, GOLD.matrix, GOLD.taxonomy, SETTINGS, n_folds=3)
    np.testing.assert_array_equal(outcome, again)


def test_cross_validation_learns_nothing_from_shuffled_labels() -> None:
    gold = np.random.default_rng(3).permutation(GOLD.matrix[:, [9]])
    outcome = cross_validate(GOLD.texts, gold, load_taxonomy("binary"), SETTINGS, n_folds=3)
    given, share = outcome > 0, gold.mean()
    f1 = 2 * (given & gold).sum() / (given.sum() + gold.sum())
    assert f1 < 2 * share / (1 + share) + 0.08, "no better than giving it always"


def test_evidence_is_the_clause_that_carries_the_label(model) -> None:
    text = "打算周末去爬山，我就是个废物，想问问怎么安排时间。"
    labels = LinearLabeller(model).label(text)
    assert [(label.id, label.evidence) for label in labels] == [("labeling", "我就是个废物")]
    assert labels[0].labeller == "trained:linear"
    assert labels[0].confidence is not None and labels[0].confidence > 0.5


def test_a_text_is_labelled_alike_alone_and_in_a_batch(model) -> None:
    labeller = LinearLabeller(model)
    texts = ["", "？", "𠮷", *GOLD.texts[:20], "a" * 5000]
    together = labeller.label_many(texts)
    for text, labels in zip(texts, together, strict=True):
        alone = labeller.label(text)
        assert [(a.id, a.evidence) for a in alone] == [(b.id, b.evidence) for b in labels]
        assert all(is_evident(label, text) for label in labels)
    assert labeller.label_many([]) == []
    assert labeller.probabilities([]).shape == (0, 12)


def test_a_saved_model_labels_as_before_and_holds_no_pickle(model, saved: Path) -> None:
    loaded = load_labeller(saved, GOLD.taxonomy)
    texts = GOLD.texts[:30]
    before = LinearLabeller(model).probabilities(texts)
    np.testing.assert_allclose(loaded.probabilities(texts), before, rtol=1e-6)
    assert loaded.name == "trained:light"
    with np.load(saved / "model.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays)
    card = (saved / "README.md").read_text()
    assert "socialcd-12" in card and "| labeling | " in card and "not measured" in card


def test_a_model_for_another_taxonomy_is_refused(saved: Path) -> None:
    with pytest.raises(DataError, match="trained for the taxonomy socialcd-12, wanted burns-10"):
        load_labeller(saved, load_taxonomy("burns-10"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"types": ["labeling"]}, "does not have in this order"),
        ({"rules": ["made_up_rule"]}, "rules that this version does not have: made_up_rule"),
        ({"format_version": 9}, "Input should be 3"),
        ({"arrays_sha256": "0"}, "not the arrays"),
        ({"surprise": 1}, "Extra inputs"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(saved, tmp_path, change, message) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as error:
        load_labeller(folder)
    assert str(folder) in str(error.value)


def test_damaged_arrays_and_foreign_folders_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / "model.npz").write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match="not the arrays"):
        load_labeller(folder)
    with pytest.raises(DataError, match="not a trained labeller"):
        load_labeller(tmp_path)


def test_a_model_carries_a_taxonomy_of_ones_own_and_knows_when_its_file_changed(tmp_path) -> None:
    text = """
id: own
title: Two kinds
citation: ours
types:
  - {id: labeling}
  - {id: gloom, zh: 悲观, en: Gloom, definition: 只想到坏的将来。, example: 以后不会好了。}
"""
    here, moved, changed = (tmp_path / f"{name}.yaml" for name in ("here", "moved", "changed"))
    here.write_text(text)
    moved.write_text(text)
    changed.write_text(text.replace("只想到坏的将来", "凡事往坏处想"))
    own = load_taxonomy(str(here))
    items = tuple(
        GoldItem(id=item.id, text=item.text, types=frozenset(types))
        for item in GOLD.items
        for types in [
            {"labeling"} & item.types | ({"gloom"} if "fortune_telling" in item.types else set())
        ]
    )
    gold = GoldSet("own", own, items, "ours", len(items))
    model = train_linear(gold.texts, gold.matrix, own, SETTINGS)
    folder = tmp_path / "model"
    save_linear(folder, model, describe_model("linear", "own", gold, SETTINGS.model_dump(), None))
    here.unlink()
    for taxonomy in (None, load_taxonomy(str(moved))):
        labeller = load_labeller(folder, taxonomy)
        found = labeller.label("考完试回家，我看不到未来。")
        assert [label.id for label in found] == ["gloom"]
    with pytest.raises(DataError, match="another state of the taxonomy own"):
        load_labeller(folder, load_taxonomy(str(changed)))


def test_a_text_gets_its_likeliest_type_where_every_training_text_has_one() -> None:
    kept = [n for n, row in enumerate(GOLD.matrix) if row.any()]
    texts = [GOLD.texts[n] for n in kept]
    labelled = train_linear(texts, GOLD.matrix[kept], GOLD.taxonomy, SETTINGS)
    assert labelled.at_least_one
    unlike = ["窗外有一只鸟。", "", " "]
    assert [len(labels) for labels in LinearLabeller(labelled).label_many(unlike)] == [1, 0, 0]
    never = SETTINGS.model_copy(update={"at_least_one": "no"})
    assert not train_linear(texts, GOLD.matrix[kept], GOLD.taxonomy, never).at_least_one
    assert not train_linear(GOLD.texts, GOLD.matrix, GOLD.taxonomy, SETTINGS).at_least_one


def test_the_one_type_given_is_the_nearest_to_its_threshold() -> None:
    probabilities = np.array([[0.2, 0.4, 0.9], [0.05, 0.1, 0.9], [0.6, 0.7, 0.1]])
    thresholds = [0.25, 0.6, 1.0]
    given = decide(probabilities, thresholds, at_least_one=True)
    assert given.tolist() == [[True, False, False], [True, False, False], [True, True, False]]
    assert decide(probabilities, thresholds, at_least_one=False).sum() == 2


def test_contrast_favours_what_tells_a_type_from_the_rest_and_silences_nothing() -> None:
    rows = csr_array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]])
    scale = contrast_columns(rows, np.array([True, True, False, False]), 0.6)
    assert scale[0] > scale[1] > scale[2]
    assert np.all(scale != 0)


def test_words_of_one_class_read_alike_and_keep_their_places() -> None:
    classes = WordClasses({"reject": ["嫌弃", "看不起", "看"], "all": ["大家", ""]})
    texts = ["大家嫌弃我", "大家看不起我", "看我"]
    *characters, ones, twos = classes.read_blocks(encode_texts(texts))
    assert len(characters) == 3
    first, second = (twos.buckets[twos.text_of == n] for n in (0, 1))
    assert first.tolist() == second.tolist()
    assert len(ones.buckets) == 14
    assert ones.starts.tolist() == [0, 5, 10]
    assert ones.places is not None
    assert ones.places.tolist() == [0, 1, 3, 5, 6, 7, 8, 10, 13, 14, 15, 16, 17, 18]
    characters_of = set(np.concatenate([block.buckets for block in characters]).tolist())
    assert not (set(twos.buckets.tolist()) & characters_of) - {NO_BUCKET}


def test_a_trusted_column_weighs_more_on_the_same_evidence() -> None:
    rows = csr_array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]])
    targets = np.array([True, True, False, False])
    plain = fit_type(rows, targets, 1.0, 0.0, np.ones(3))
    trusting = fit_type(rows, targets, 1.0, 0.0, np.array([3.0, 1.0, 1.0]))
    assert plain.weights[0] == pytest.approx(plain.weights[1], abs=1e-2)
    assert trusting.weights[0] > 2 * trusting.weights[1]


def test_the_mean_model_scores_the_mean() -> None:
    rows = np.eye(2)
    first, second = Linear(np.array([1.0, 0.0]), 1.0), Linear(np.array([3.0, -2.0]), 0.0)
    mean = mean_model([first, second])
    np.testing.assert_allclose(rows @ mean.weights + mean.bias, [2.5, -0.5])


RARE = GoldItem(id="r", text="她半天没回，肯定在心里笑话我", types=frozenset(["mind_reading"]))


def test_invented_texts_teach_a_type_that_the_data_hold_one_example_of() -> None:
    gold = GoldSet("invented", GOLD.taxonomy, (*GOLD.items, RARE), "ours", len(GOLD.items) + 1)
    unseen = ["邻居一见我就关门，他心里一定讨厌我", "邻居关门的声音很大"]
    gaps = []
    for invented in (True, False):
        settings = SETTINGS.model_copy(update={"invented": invented})
        labeller = LinearLabeller(train_linear(gold.texts, gold.matrix, gold.taxonomy, settings))
        column = labeller.probabilities(unseen)[:, gold.taxonomy.ids.index("mind_reading")]
        gaps.append(column[0] / column[1])
    assert gaps[0] > 2 * gaps[1]


def test_invented_texts_follow_the_merges_of_a_taxonomy_and_leave_out_what_it_lacks() -> None:
    burns = invented_texts(load_taxonomy("burns-10"))
    assert {kind for _, own in burns for kind in own} == {
        "all_or_nothing",
        "overgeneralization",
        "jumping_to_conclusions",
        "emotional_reasoning",
    }
    assert len({text for text, _ in burns}) == len(burns) >= 150
    few = invented_texts(load_taxonomy("c2d2-7"))
    assert {kind for _, own in few for kind in own} <= set(load_taxonomy("c2d2-7").ids)


def test_invented_chinese_texts_are_no_part_of_a_model_of_english_texts() -> None:
    words = ("I always fail", "they must hate me", "what a nice walk", "lunch was late")
    texts = [f"{words[n % 4]} on day {n}" for n in range(40)]
    marks = np.zeros((40, len(GOLD.taxonomy.ids)), bool)
    marks[::4, 0] = True
    model = train_linear(texts, marks, GOLD.taxonomy, SETTINGS)
    assert not set(buckets_of("肯定", 2)) & set(model.buckets.tolist())


def test_calibration_is_on_the_data_alone(model) -> None:
    plain = train_linear(
        GOLD.texts, GOLD.matrix, GOLD.taxonomy, SETTINGS.model_copy(update={"invented": False})
    )
    unsupported = GOLD.matrix.sum(axis=0) == 0
    assert (model.thresholds[unsupported] == 1).all() and (plain.thresholds[unsupported] == 1).all()
