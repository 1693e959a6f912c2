"""From a labelled share to the share that has a distortion."""

from __future__ import annotations

import pytest

from cbtqa.dataset.stats import distortion_share, folder_statistics
from cbtqa.dataset_folder import DatasetFolder
from cbtqa.distortions.evaluate import Share, evaluate, read_evaluation
from cbtqa.distortions.importers import GoldItem, GoldSet
from cbtqa.distortions.labelling import read_texts
from cbtqa.distortions.prevalence import (
    correct_share,
    labelled_share,
    prevalence,
    published_prevalence,
)
from cbtqa.distortions.studies import EvaluateSettings, evaluate_labellers
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.errors import DataError
from cbtqa.files import write_jsonl
from cbtqa.records import DistortionLabel
from cbtqa.statistics.intervals import share_interval
from tests.support.dataset_folder import write_dataset_folder


def share(hits: int, n: int) -> Share:
    low, high, reason, _ = share_interval(hits, n)
    return Share(value=hits / n, low=low, high=high, reason=reason, n=n, n_effective=n)


def test_the_correction_is_rogan_and_gladens_with_lang_and_reiczigels_interval() -> None:
    found = correct_share(120, 400, share(45, 50), share(160, 200))
    assert found.value == pytest.approx((0.3 + 0.8 - 1) / (0.9 + 0.8 - 1))
    # by hand: p' .30190, Se' .88462, Sp' .79703; estimate' .14514, shift -.00307, half .09744
    assert found.low == pytest.approx(0.0446, abs=1e-4)
    assert found.high == pytest.approx(0.2395, abs=1e-4)


def test_the_papers_share_is_about_a_quarter_by_its_own_table() -> None:
    found = published_prevalence(22_327, 12_136)
    assert found.share == pytest.approx(0.544, abs=5e-4)
    assert found.corrected is not None
    assert found.corrected.value == pytest.approx(0.25, abs=0.01)
    assert found.corrected.low < 0.17 and found.corrected.high > 0.31
    assert "not prevalence" in found.sentence().en and "Table 3" in found.sentence().en


def test_an_estimate_outside_the_scale_is_cut_and_says_so() -> None:
    found = prevalence(
        1_000,
        80,
        labeller="x",
        evaluated_on="gold.csv",
        n_evaluated=200,
        sensitivity=share(80, 100),
        specificity=share(90, 100),
    )
    assert found.corrected is not None and found.corrected.is_truncated
    assert found.corrected.value == 0 == found.corrected.low < found.corrected.high
    assert "was cut there" in found.sentence().en
    # 2 % labelled where false alarms alone give 10 %
    fewer = prevalence(
        1_000, 20, labeller="x", sensitivity=share(80, 100), specificity=share(90, 100)
    )
    assert fewer.corrected is None and "errs differently here" in fewer.sentence().en


@pytest.mark.parametrize(
    ("right", "none", "reason"),
    [
        (share(26, 50), share(26, 50), "better than chance"),
        (share(3, 3), share(90, 100), "too few"),
        (None, share(90, 100), "no sensitivity"),
    ],
)
def test_errors_that_correct_nothing_are_named(right, none, reason) -> None:
    found = prevalence(1_000, 400, labeller="x", sensitivity=right, specificity=none)
    assert found.corrected is None and reason in found.reason.en
    assert reason in found.sentence().en and "40.0% (95% interval" in found.sentence().en


def test_only_the_evaluation_of_the_labels_own_labeller_corrects() -> None:
    taxonomy = load_taxonomy("binary")
    (kind,) = taxonomy.ids
    items = tuple(
        GoldItem(id=str(n), text=f"第{n}句", types=frozenset([kind] if n < 40 else []))
        for n in range(100)
    )
    gold = GoldSet("invented", taxonomy, items, "ours", 100)
    label = DistortionLabel(id=kind, labeller="x")
    given = [(label,) if n < 36 or n > 93 else () for n in range(100)]
    evaluation = evaluate(gold, {"x": given})
    found = labelled_share(500, 200, {"x": 300}, evaluation)
    assert found.corrected is not None
    assert found.corrected.value == pytest.approx((0.4 + 0.9 - 1) / (0.9 + 0.9 - 1))
    assert "the errors of x (invented, 100 texts" in found.sentence().en
    other = labelled_share(500, 200, {"answer:glm": 300}, evaluation)
    assert other.corrected is None and "the labels are by answer:glm" in other.reason.en
    mixed = labelled_share(500, 200, {"x": 200, "y": 100}, evaluation)
    assert mixed.corrected is None and "x, y" in mixed.reason.en
    assert labelled_share(0, 0, {}, None).sentence().en == "There are no entries."


def test_the_labels_of_a_dataset_are_measured_themselves(tmp_path) -> None:
    folder = write_dataset_folder(tmp_path / "d", 40)
    rows = list(read_texts(folder))
    marked = [
        {"text": row.text, "labels": ["labeling"] if n % 2 else []} for n, row in enumerate(rows)
    ]
    write_jsonl(tmp_path / "people.jsonl", marked)
    out = tmp_path / "evaluation.json"
    settings = EvaluateSettings(
        data=tmp_path / "people.jsonl", format="plain", labeller=(str(folder),), out=out
    )
    evaluate_labellers(settings, say=lambda text: None)
    report = read_evaluation(out)
    (name,) = report.systems
    assert report.systems[name].binary.n_given == sum(bool(row.answer_labels) for row in rows)
    assert report.file == "people.jsonl"
    statistics = folder_statistics(DatasetFolder.open(folder))
    assert list(statistics.labellers) == [name]
    found = distortion_share(statistics, report)
    assert found.evaluated_on == "people.jsonl" and found.n_labelled == statistics.n_distorted
    write_jsonl(tmp_path / "people.jsonl", [*marked, {"text": "别的", "labels": []}])
    settings = settings.model_copy(update={"overwrite": True})
    with pytest.raises(DataError, match="has no question '别的'"):
        evaluate_labellers(settings, say=lambda text: None)
