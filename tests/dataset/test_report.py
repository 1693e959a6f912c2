"""The dataset report: adds up, escapes, marks evidence, chooses varied examples."""

from __future__ import annotations

import re

import pytest

from cbtqa.dataset.report import dataset_report, label_names
from cbtqa.dataset.report.items import choose_examples, mark_evidence
from cbtqa.dataset.report.material import wording
from cbtqa.dataset.stats import folder_statistics, paper_facts
from cbtqa.dataset_folder import DatasetFolder, answer_features, arrow_schema
from cbtqa.errors import IncompleteRunError
from cbtqa.files import ParquetRows, write_jsonl
from cbtqa.manifest import SettingValue, describe_file, read_manifest, write_manifest
from cbtqa.psyqa import bundled_sample_path
from cbtqa.records import STEP_NAMES, Reason, Rejection
from tests.support.dataset_folder import finish, make_rows, write_dataset_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset_folder(tmp_path_factory.mktemp("report") / "d", 60)


@pytest.fixture(scope="module")
def html(folder) -> str:
    return dataset_report(folder)


def visible(html: str) -> str:
    """The text of a page, tags and styles dropped."""
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_report_says_that_every_input_is_accounted_for(html: str) -> None:
    assert "64 = 60 + 4：每一条都有去处" in visible(html)


def test_a_manifest_that_does_not_add_up_is_a_warning_in_the_report(tmp_path) -> None:
    folder = write_dataset_folder(tmp_path / "d", 10)
    manifest = read_manifest(folder)
    counts = {**manifest.counts, "n_in": 15}
    html = dataset_report(folder, manifest.model_copy(update={"counts": counts}))
    assert "三者不相符" in visible(html)
    assert "每一条都有去处" not in visible(html)


def test_every_section_is_listed_and_there(html: str) -> None:
    linked = re.findall(r'<a href="#(\w+)">', html)
    assert linked == re.findall(r'<section id="(\w+)">', html)
    assert {"glance", "made", "distortions", "risk", "rejects", "examples", "load"} <= set(linked)


def test_the_papers_figures_stand_beside_ours_and_the_rest_is_said_to_be_unknown(html) -> None:
    text = visible(html)
    for expected in ("54.4%", "12,136 / 22,327", "64.0%", "59.0%", "未知"):
        assert expected in text


def test_a_type_that_the_paper_alone_has_stands_in_the_tables_by_its_name(folder) -> None:
    found = folder_statistics(DatasetFolder.open(folder)).model_copy(update={"labels": ()})
    names = label_names(read_manifest(folder), found)
    assert set(dict(paper_facts().labels)) == set(names)
    assert names["all_or_nothing"].en == "All-or-nothing thinking" and names["all_or_nothing"].zh


def test_text_of_questions_and_models_is_never_markup(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script&gt;alert" in html


def test_rejected_text_is_cut_and_says_how_long_it_was(html: str) -> None:
    assert "（共 760 字，此处截至 300 字）" in visible(html)
    assert "questions.json:item 17:question" in visible(html)


def test_at_most_two_examples_of_each_reason_are_shown(tmp_path) -> None:
    folder = write_dataset_folder(tmp_path / "d", 4)
    many = [
        Rejection(item_id=f"n{k}", stage="check", reason=Reason.REFUSAL, raw=f"第{k}次说不")
        for k in range(5)
    ]
    write_jsonl(folder / "rejects.jsonl", many)
    manifest = read_manifest(folder)
    counts = {**manifest.counts, "n_in": 9, "rejected": {"refusal": 5}}
    text = visible(dataset_report(folder, manifest.model_copy(update={"counts": counts})))
    assert "第0次说不" in text
    assert "第1次说不" in text
    assert "第2次说不" not in text


def test_ten_examples_show_all_five_steps_by_name_in_both_languages(html: str) -> None:
    assert html.count('<article class="example"') == 10
    for name in STEP_NAMES:
        phrase = wording()[f"texts.{name}"]
        assert html.count(f'<dt><span class="t" lang="zh-Hans">{phrase.zh}</span>') >= 10
        assert phrase.en in html


def test_evidence_is_marked_in_the_question(folder, html: str) -> None:
    chosen = choose_examples(DatasetFolder.open(folder))
    quotes = [label["evidence"] for _, row in chosen for label in row["distortions"]]
    quotes = [quote for quote in quotes if quote]
    assert quotes
    for quote in quotes:
        assert f"<mark>{quote}<sup>" in html


def test_examples_are_varied_and_the_same_on_every_run(folder) -> None:
    chosen = choose_examples(DatasetFolder.open(folder))
    assert [row["id"] for _, row in chosen] == [
        row["id"] for _, row in choose_examples(DatasetFolder.open(folder))
    ]
    assert [row["id"] for _, row in chosen] != [
        row["id"] for _, row in choose_examples(DatasetFolder.open(folder), seed=1)
    ]
    labels = {label["id"] for _, row in chosen for label in row["distortions"]}
    assert len(labels) >= 5
    assert {row["risk"] for _, row in chosen} == {"none", "concern", "explicit"}
    assert any(not row["distortions"] for _, row in chosen)
    assert len({row["id"] for _, row in chosen}) == 10


def test_fewer_entries_than_examples_are_all_shown(tmp_path) -> None:
    folder = write_dataset_folder(tmp_path / "d", 3)
    assert len(choose_examples(DatasetFolder.open(folder))) == 3


@pytest.mark.parametrize(
    ("quotes", "expected"),
    [
        ([("乙丙", 1)], "甲<mark>乙丙<sup>1</sup></mark>丁&lt;戊"),
        ([("丁<", 2)], "甲乙丙<mark>丁&lt;<sup>2</sup></mark>戊"),
        ([("甲乙", 1), ("乙丙", 2)], "<mark>甲乙丙<sup>1,2</sup></mark>丁&lt;戊"),
        ([("甲乙丙", 1), ("乙", 2)], "<mark>甲乙丙<sup>1,2</sup></mark>丁&lt;戊"),
        (
            [("丙", 1), ("甲", 2)],
            "<mark>甲<sup>2</sup></mark>乙<mark>丙<sup>1</sup></mark>丁&lt;戊",
        ),
        (
            [("甲", 1), ("乙", 2)],
            "<mark>甲<sup>1</sup></mark><mark>乙<sup>2</sup></mark>丙丁&lt;戊",
        ),
        ([("没有", 1), ("", 2)], "甲乙丙丁&lt;戊"),
    ],
)
def test_quoted_spans_are_marked_and_overlaps_joined(quotes, expected: str) -> None:
    assert mark_evidence("甲乙丙丁<戊", quotes) == expected


def test_a_report_of_fused_answers_shows_them_whole(tmp_path) -> None:
    html = dataset_report(write_dataset_folder(tmp_path / "d", 12, is_fused=True))
    assert "没有步骤分界，这里无从统计" in visible(html)
    assert wording()["examples.whole"].zh in html


def test_a_template_dataset_is_said_to_be_no_training_source(tmp_path) -> None:
    html = dataset_report(write_dataset_folder(tmp_path / "d", 12, is_template=True))
    assert "不应当作训练数据" in visible(html)
    assert "问题文本未离开本机" in visible(html)
    assert "未调用模型" in visible(html)


def test_a_disclosure_that_was_acknowledged_is_reported(tmp_path) -> None:
    folder = write_dataset_folder(tmp_path / "d", 4)
    rows = [(s, {**row, "endpoint_host": "api.example.org"}) for s, row in make_rows(4)]
    for path in (folder / "data").glob("*"):
        path.unlink()
    manifest = read_manifest(folder)
    finish(folder)
    with ParquetRows(
        folder / "data" / "train-00000-of-00001.parquet", arrow_schema(answer_features())
    ) as out:
        for _, row in rows:
            out.add(row)
    manifest = manifest.model_copy(
        update={"acknowledgements": {"disclosure": "text sent to api.example.org"}}
    )
    assert "问题文本发给了 api.example.org；由操作者确认" in visible(
        dataset_report(folder, manifest)
    )


@pytest.mark.parametrize(
    ("is_ours", "expected"),
    [
        (False, "只发给本机或内网的模型服务 127.0.0.1"),
        (True, "只有随软件附带的虚构问题"),
    ],
)
def test_without_acknowledgement_text_stayed_local_or_was_invented(
    folder, is_ours: bool, expected: str
) -> None:
    manifest = read_manifest(folder)
    if is_ours:
        inputs = (describe_file(bundled_sample_path()),)
        manifest = manifest.model_copy(update={"inputs": inputs})
    assert expected in visible(dataset_report(folder, manifest))


def test_an_endpoint_address_with_a_secret_in_it_is_not_shown(folder) -> None:
    manifest = read_manifest(folder)
    entry = SettingValue(value="https://user:hunter2@host/v1", origin="--endpoint")
    settings = {**manifest.settings, "endpoint": entry}
    assert "hunter2" not in dataset_report(
        folder, manifest.model_copy(update={"settings": settings})
    )


def test_tokens_that_were_not_counted_are_not_called_free(folder) -> None:
    manifest = read_manifest(folder).model_copy(update={"usage": None, "cost": None})
    text = visible(dataset_report(folder, manifest))
    assert "未记录" in text
    assert "未调用模型" not in text


def test_the_english_report_reads_in_english(folder) -> None:
    html = dataset_report(folder, lang="en")
    assert "every item is accounted for" in visible(html)
    assert "A Chinese CBT question-answering dataset</span></h1>" in html
    assert 'id="show-en" checked' in html


def test_a_dataset_of_which_everything_was_rejected_still_has_a_report(tmp_path) -> None:
    folder = write_dataset_folder(tmp_path / "d", 0)
    assert "4 = 0 + 4" in visible(dataset_report(folder))


def test_labels_outside_every_taxonomy_stand_for_themselves(tmp_path) -> None:
    folder = write_dataset_folder(tmp_path / "d", 6)
    label = {"id": "my_own_type", "evidence": None, "labeller": "me", "confidence": None}
    path = folder / "data" / "train-00000-of-00001.parquet"
    with ParquetRows(path, arrow_schema(answer_features())) as out:
        for _, row in make_rows(4):
            out.add({**row, "distortions": [label]})
    manifest = read_manifest(folder)
    settings = dict(manifest.settings)
    settings["taxonomy"] = settings["taxonomy"].model_copy(update={"value": "gone.yaml"})
    counts = {**manifest.counts}
    write_manifest(folder, manifest.model_copy(update={"settings": settings, "counts": counts}))
    assert "my_own_type" in visible(dataset_report(folder))


def test_an_unfinished_folder_has_no_report(tmp_path) -> None:
    folder = write_dataset_folder(tmp_path / "d", 4, with_manifest=False)
    with pytest.raises(IncompleteRunError):
        dataset_report(folder)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_can_be_told_in_both_languages(reason: Reason) -> None:
    phrase = wording()[f"reasons.{reason.value}"]
    assert phrase.zh != phrase.en
