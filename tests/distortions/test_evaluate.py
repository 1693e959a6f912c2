"""Measures against values worked out by hand or by the closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cbtqa.distortions.annotators import masi_alpha, masi_distance, measure_agreement
from cbtqa.distortions.evaluate import evaluate, swap_p
from cbtqa.distortions.importers import GoldItem, GoldSet
from cbtqa.distortions.tables import binary_table, evaluation_tables
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.records import DistortionLabel
from cbtqa.statistics.intervals import share_interval

TAXONOMY = load_taxonomy("c2d2-7")
A, B, C = "labeling", "mind_reading", "personalization"


def gold_of(*types: set[str]) -> GoldSet:
    items = tuple(
        GoldItem(id=str(n), text=f"第{n}句", types=frozenset(kinds), where=f"g:{n}")
        for n, kinds in enumerate(types, 1)
    )
    return GoldSet("invented", TAXONOMY, items, "ours", len(items))


def labels(*kinds: str, confidence: float | None = None) -> tuple[DistortionLabel, ...]:
    return tuple(DistortionLabel(id=kind, labeller="x", confidence=confidence) for kind in kinds)


GOLD = gold_of({A}, {A, B}, set(), {B}, {C}, set())
GIVEN = [labels(A), labels(A), labels(A), labels(C), labels(C), ()]


def test_counts_and_means_are_those_worked_out_by_hand() -> None:
    system = evaluate(GOLD, {"x": GIVEN}).systems["x"]
    # hits: A 2, C 1; given 5; gold 5
    assert system.micro.f1 == pytest.approx(2 * 3 / (5 + 5))
    assert system.types[A].precision == pytest.approx(2 / 3)
    assert system.types[A].recall == 1
    assert system.types[B].f1 == 0
    assert system.types[B].precision is None, "never given"
    assert system.types["overgeneralization"].f1 is None, "neither gold nor given"
    assert system.n_types_in_macro == 3
    assert system.macro_f1 == pytest.approx((0.8 + 0 + 2 / 3) / 3)
    assert system.binary.recall == 1
    assert system.accuracy == pytest.approx(5 / 6)
    assert system.subset_accuracy == pytest.approx(3 / 6)
    assert system.samples_f1 == pytest.approx((1 + 2 / 3 + 0 + 0 + 1 + 1) / 6)
    assert [(pair.gold, pair.given, pair.n) for pair in system.confusions] == [(B, C, 1)]
    assert system.calibration_error is None


def test_precision_and_recall_have_wilsons_interval_and_documents_make_it_wider() -> None:
    truth = [{A}] * 30 + [set()] * 20
    given = [*[labels(A)] * 24, *[()] * 6, *[labels(A)] * 8, *[()] * 12]
    alone = evaluate(gold_of(*truth), {"x": given}).systems["x"].types[A]
    of_given, of_true = share_interval(24, 32), share_interval(24, 30)
    assert (alone.precision_low, alone.precision_high) == pytest.approx(of_given[:2])
    assert (alone.recall_low, alone.recall_high) == pytest.approx(of_true[:2])
    gold = gold_of(*truth)
    items = tuple(
        one.model_copy(update={"document": str(place // 5)}) for place, one in enumerate(gold.items)
    )
    within = replace(gold, items=items, cluster_column="document")
    tied = evaluate(within, {"x": given}).systems["x"].types[A]
    assert tied.precision_low is not None and alone.precision_low is not None
    assert tied.precision_low < alone.precision_low - 0.05
    assert evaluate(GOLD, {"x": GIVEN}).systems["x"].types[B].precision_low is None


def test_the_interval_holds_the_value_and_shrinks_with_more_texts() -> None:
    few = evaluate(GOLD, {"x": GIVEN}).systems["x"].micro
    many_gold = gold_of(*([{A}, {A, B}, set(), {B}, {C}, set()] * 40))
    many = evaluate(many_gold, {"x": GIVEN * 40}).systems["x"].micro
    assert few.low <= few.f1 <= few.high
    assert many.low < many.f1 < many.high
    assert many.high - many.low < (few.high - few.low) / 3


def test_calibration_error_is_the_weighted_gap() -> None:
    gold = gold_of({A}, {A}, {A}, set())
    given = [labels(A, confidence=0.9)] * 3 + [labels(A, confidence=0.35)]
    system = evaluate(gold, {"x": given}).systems["x"]
    assert [(entry.n, entry.share_right) for entry in system.calibration] == [(1, 0.0), (3, 1.0)]
    assert system.calibration_error == pytest.approx((3 * 0.1 + 1 * 0.35) / 4)


def test_the_surest_errors_come_first_and_misses_after() -> None:
    gold = gold_of(set(), set(), {B})
    given = [labels(A, confidence=0.6), labels(C, confidence=0.9), ()]
    errors = evaluate(gold, {"x": given}, n_errors=3).systems["x"].errors
    assert [(error.kind, error.type, error.text) for error in errors] == [
        ("given", C, "第2句"),
        ("given", A, "第1句"),
        ("missed", B, "第3句"),
    ]


@pytest.mark.parametrize(
    ("first", "second", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 6, 2 / 64), (1, 9, 22 / 1024)]
)
def test_mcnemar_is_the_exact_binomial(first: int, second: int, p: float) -> None:
    assert swap_p(np.array([1] * first + [-1] * second + [0] * 3)) == pytest.approx(p)


def test_two_labellers_are_compared_on_any_and_each_type_with_holm() -> None:
    gold = gold_of(*[{A}] * 12)
    report = evaluate(gold, {"good": [labels(A)] * 12, "mute": [()] * 12})
    by_decision = {entry.decision: entry for entry in report.comparisons}
    assert len(by_decision) == 8
    assert (by_decision[A].only_first_right, by_decision[A].only_second_right) == (12, 0)
    assert by_decision[A].p_holm == pytest.approx(8 * 2 / 2**12)
    assert by_decision[B].p_holm == 1


def test_a_p_value_is_never_shown_as_zero() -> None:
    gold = gold_of(*[{A}] * 60)
    report = evaluate(gold, {"good": [labels(A)] * 60, "mute": [()] * 60})
    *_, tests = evaluation_tables(report)
    heads, rows = tests.cells()
    shown = {row[0]: row[heads.index("p (Holm)")] for row in rows}
    assert shown[A] == "< 0.0001" and shown[B] == "1.0000"


def test_a_labeller_must_answer_for_every_text() -> None:
    with pytest.raises(ValueError, match="5 entries for 6 texts"):
        evaluate(GOLD, {"x": GIVEN[:5]})


def test_masi_distance_follows_its_definition() -> None:
    assert masi_distance({A}, {A}) == 0
    assert masi_distance(set(), set()) == 0
    assert masi_distance({A}, {B}) == 1
    assert masi_distance({A}, {A, B}) == pytest.approx(1 - 1 / 2 * 2 / 3)
    assert masi_distance({A, B}, {B, C}) == pytest.approx(1 - 1 / 3 * 1 / 3)


def test_masi_alpha_is_that_of_the_reference_formula() -> None:
    # worked by hand: pairs (A, A), (A, AB), (B, B); 3 texts, 6 sets
    annotations = {
        "r1": {"1": {A}, "2": {A}, "3": {B}},
        "r2": {"1": {A}, "2": {A, B}, "3": {B}},
    }
    near = 2 / 3
    observed = 2 * near / 6
    expected = (3 * 2 * 1 + 3 * 1 * near + 2 * 1 * near) * 2 / (6 * 5)
    assert masi_alpha(annotations).value == pytest.approx(1 - observed / expected)


def test_agreement_per_type_leaves_out_what_one_rater_did_not_see() -> None:
    annotations = {
        "r1": {"1": {A}, "2": set(), "3": {B}, "4": {A}},
        "r2": {"1": {A}, "2": set(), "3": {B}},
    }
    agreement = measure_agreement(TAXONOMY, annotations)
    assert agreement.n_items == 3
    assert agreement.types[A].value == 1
    assert agreement.types[C].value is None
    assert "no variation" in str(agreement.types[C].reason)
    assert agreement.masi.value == 1


def test_agreement_that_nothing_can_tell_says_why() -> None:
    nothing = masi_alpha({"r1": {"1": {A}}, "r2": {"2": {A}}})
    assert nothing.value is None and "no item" in str(nothing.reason)
    same = masi_alpha({"r1": {"1": {A}}, "r2": {"1": {A}}})
    assert same.value is None and "no variation" in str(same.reason)


def test_whole_sets_get_an_interval_and_documents_are_drawn_whole() -> None:
    rng = np.random.default_rng(2)
    truth = np.repeat(rng.integers(0, 3, 20), 4)
    sets = (set(), {A}, {A, B})
    annotations = {
        name: {
            f"t{n}": sets[kind if rng.random() < 0.8 else rng.integers(0, 3)]
            for n, kind in enumerate(truth)
        }
        for name in ("r1", "r2")
    }
    alone = measure_agreement(TAXONOMY, annotations)
    documents = {f"t{n}": f"d{n // 4}" for n in range(80)}
    together = measure_agreement(TAXONOMY, annotations, documents)
    assert alone.masi.low < alone.masi.value < alone.masi.high
    assert together.masi.value == alone.masi.value
    assert together.masi.random == ("clusters",) and alone.masi.random == ("items",)
    assert together.any.low != alone.any.low


def test_a_p_value_that_rounds_to_zero_is_shown_as_below_the_least_one() -> None:
    gold = gold_of(*[{A}, set()] * 100)
    right, wrong = [labels(A), ()] * 100, [(), labels(A)] * 100
    shown = [table.cells() for table in evaluation_tables(evaluate(gold, {"a": right, "b": wrong}))]
    (rows,) = [rows for heads, rows in shown if "p (Holm)" in heads]
    assert {row[-1] for row in rows} == {"1.0000", "< 0.0001"}


def test_where_every_text_has_a_distortion_only_recall_of_any_is_shown() -> None:
    gold = gold_of({A}, {B}, {A})
    all_given = [labels(A, confidence=0.9), labels(A, confidence=0.4), ()]
    report = evaluate(gold, {"x": all_given, "y": [labels(A)] * 3})
    heads, rows = binary_table(report).cells()
    assert rows[0][heads.index("recall")].startswith("0.667 [")
    for name in ("accuracy", "precision", "F1 [95% interval]"):
        assert [row[heads.index(name)] for row in rows[:2]] == ["-", "-"]
    assert "only recall is measured" in binary_table(report).title_in()
    cells = [
        cell for table in evaluation_tables(report) for row in table.cells()[1] for cell in row
    ]
    assert "any" not in cells


def test_errors_say_what_went_wrong_in_one_column_and_where_without_folders() -> None:
    item = GoldItem(id="1", text="随便一句话", types=frozenset(), where="/some/long/folder/g.tsv:3")
    gold = GoldSet("x", TAXONOMY, (item,), "ours", 1)
    report = evaluate(gold, {"x": [labels(A, confidence=0.9)]})
    tables = [table for table in evaluation_tables(report) if "errors" in table.title_in()]
    assert tables[0].cells()[1] == [[f"given {A} (0.90)", "g.tsv:3", "随便一句话"]]


def test_a_threshold_is_chosen_from_what_each_would_give() -> None:
    gold = gold_of({A}, {A}, set(), set())
    given = [
        labels(A, confidence=0.9),
        labels(A, confidence=0.6),
        labels(A, confidence=0.35),
        (),
    ]
    found = evaluate(gold, {"x": given}).systems["x"].by_confidence
    assert [(one.confidence, one.any.n_given) for one in found] == [(0.0, 3), (0.4, 2), (0.7, 1)]
    assert found[1].any.f1 == 1.0
    assert evaluate(gold, {"x": [labels(A)] * 4}).systems["x"].by_confidence == ()


def test_figures_of_a_taxonomy_of_one_type_are_shown_once() -> None:
    binary = load_taxonomy("binary")
    items = tuple(
        GoldItem(id=str(n), text=f"第{n}句", types=frozenset(binary.ids if n % 2 else ()))
        for n in range(6)
    )
    gold = GoldSet("invented", binary, items, "ours", 6)
    given = [labels("distorted") if n in (1, 2) else () for n in range(6)]
    first, *rest = evaluation_tables(evaluate(gold, {"x": given}))
    assert "micro" not in str(first.cells()[0])
    assert all("micro" not in str(row) for table in rest for row in table.cells()[1])
