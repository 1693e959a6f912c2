"""The dataset card: `datasets` reads it, every figure comes from the data, nothing is blank."""

from __future__ import annotations

import re
import shutil

import pytest
import yaml

from cbtqa.dataset.card import render_card
from cbtqa.dataset.stats import folder_statistics
from cbtqa.dataset_folder import DatasetFolder, arrow_schema, human_features
from cbtqa.files import ParquetRows, write_text
from cbtqa.manifest import Manifest, describe_file, read_manifest
from cbtqa.psyqa import bundled_sample_path
from cbtqa.records import ReferenceAnswer, StrategySpan
from tests.support.dataset_folder import make_rows, write_dataset_folder


def card_of(folder, manifest: Manifest | None = None) -> str:
    return render_card(
        folder, manifest or read_manifest(folder), folder_statistics(DatasetFolder.open(folder))
    )


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.fixture
def folder(tmp_path):
    return write_dataset_folder(tmp_path / "d", 50)


def test_the_card_tells_the_counts_of_this_dataset(folder) -> None:
    card = card_of(folder)
    assert "54 条输入 = 50 条收录 + 4 条剔除（回复没有写完就中断 2" in card
    assert "54 in = 50 kept + 4 left out" in card
    for split, n in folder_statistics(DatasetFolder.open(folder)).splits.items():
        assert card.count(f"| `{split}` | {n} |") == 2
    assert "54.4%" in card


def test_the_card_has_no_blanks_and_no_question_text(folder) -> None:
    card = card_of(folder)
    assert not re.search(r"\{\{ |\{%|None|\[More", card)
    for _, row in make_rows(50):
        assert row["question"] not in card
        assert row["description"][:16] not in card
        assert row["answer"][:16] not in card


def test_both_languages_carry_the_notices_the_limits_and_the_help_line(folder) -> None:
    card = card_of(folder)
    for expected in ("12356", "壹心理", "仅供参考", "mutual-help", "不得用于", "Not to be used for",
                     "人工真值", "no human ground truth", "2024.lrec-main.261", "2106.01702"):  # fmt: skip
        assert expected in card


def test_the_front_matter_follows_the_hubs_schema(folder) -> None:
    front = front_matter(card_of(folder))
    assert front["language"] == ["zh"]
    assert front["license"] == "other"
    assert front["license_name"]
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"][0]["default"] is True
    assert {"question-answering"} <= set(front["task_categories"])


def test_a_template_dataset_warns_in_both_languages_and_in_its_tags(tmp_path) -> None:
    card = card_of(write_dataset_folder(tmp_path / "d", 10, is_template=True))
    assert "不要用它训练模型" in card
    assert "Do not train models on this" in card
    assert "not-for-training" in front_matter(card)["tags"]


def test_a_dataset_of_a_model_carries_no_such_warning(folder) -> None:
    card = card_of(folder)
    assert "Do not train" not in card
    assert "`invented-chat-14b`" in card


def test_the_bundled_sample_is_said_to_be_invented_and_is_freely_licensed(folder) -> None:
    manifest = read_manifest(folder)
    inputs = (describe_file(bundled_sample_path()),)
    card = card_of(folder, manifest.model_copy(update={"inputs": inputs}))
    assert "虚构样例" in card
    assert "壹心理" not in card
    assert front_matter(card)["license"] == "apache-2.0"


def test_a_model_name_cannot_write_into_the_card(folder) -> None:
    statistics = folder_statistics(DatasetFolder.open(folder)).model_copy(
        update={"models": {"x`\n\n# injected\n---\nlicense: mit": 50}}
    )
    card = render_card(folder, read_manifest(folder), statistics)
    assert "\n# injected" not in card
    assert card.count("\nlicense:") == 1


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def run(folder, *config: str):
        return datasets.load_dataset(str(folder), *config, cache_dir=str(tmp_path / "cache"))

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_datasets_loads_the_folder_with_all_splits_and_features(folder, load) -> None:
    write_text(folder / "README.md", card_of(folder))
    write_text(folder / "report.html", "<p>")
    loaded = load(folder)
    assert {name: part.num_rows for name, part in loaded.items()} == DatasetFolder.open(
        folder
    ).manifest.counts["splits"]
    rows = {row["id"]: row for _, row in make_rows(50)}
    for part in loaded.values():
        for row in part:
            wanted = rows[row["id"]]
            assert row["distortions"] == wanted["distortions"]
            assert row["keywords"] == list(wanted["keywords"])
            assert row["answer"] == wanted["answer"]
            assert part.features["risk"].int2str(row["risk"]) == wanted["risk"]
            types = part.features["distortion_types"].feature
            assert types.int2str(row["distortion_types"]) == wanted["distortion_types"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_human_answers_are_a_configuration_of_their_own(folder, load) -> None:
    answer = ReferenceAnswer(
        question_id="9000", text="抱抱你。先睡一觉。",
        strategies=(StrategySpan(start=0, end=4, type="Approval and Reassurance"),),
    )  # fmt: skip
    path = folder / "human" / "human-00000-of-00001.parquet"
    with ParquetRows(path, arrow_schema(human_features())) as out:
        out.add(answer.model_dump())
    write_text(folder / "README.md", card_of(folder))
    loaded = load(folder, "human")
    assert loaded["human"][0]["strategies"][0]["type"] == "Approval and Reassurance"
    assert "train" in load(folder)
    shutil.rmtree(folder / "human")
