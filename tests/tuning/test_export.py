"""`cbtqa export`: what other programs are given, by their documented shapes and by their code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbtqa.dataset_folder import DatasetFolder
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.manifest import FolderResult
from cbtqa.settings import resolve
from cbtqa.tuning.data.examples import read_training_examples
from cbtqa.tuning.data.export import ExportSettings, export, usage
from cbtqa.tuning.settings import FinetuneSettings
from tests.support.dataset_folder import write_dataset_folder

PROGRAMS = ("llama-factory", "ms-swift", "trl", "evalscope")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset_folder(tmp_path_factory.mktemp("dataset") / "d", n_entries=60)


def _export(dataset: Path, program: str, out: Path, **flags: Any) -> FolderResult:
    given = {"data": dataset, "for_": program, "out": out, **flags}
    return export(resolve(ExportSettings, flags=given, environ={}))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("mode", ["answer", "steps"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_written_is_what_finetune_learns_from(
    tmp_path: Path, dataset: Path, program: str, mode: Any
) -> None:
    result = _export(dataset, program, tmp_path / "out", mode=mode)
    settings = FinetuneSettings(data=dataset, mode=mode)
    safe = {row["id"] for row in DatasetFolder.open(dataset).rows() if row["risk"] == "none"}
    expected = [
        ([turn["content"] for turn in one.prompt], one.answer)
        for one in read_training_examples(settings).examples
        if one.id in safe
    ]
    read = read_training_examples(FinetuneSettings(data=tmp_path / "out" / "train.jsonl"))
    assert [([t["content"] for t in one.prompt], one.answer) for one in read.examples] == expected
    assert result.manifest.counts["splits"]["train"] == len(expected) > 10


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_row_is_in_a_split_or_counted(tmp_path: Path, dataset: Path, program: str) -> None:
    out = tmp_path / "out"
    counts = _export(dataset, program, out).manifest.counts
    rows = list(DatasetFolder.open(dataset).rows())
    assert counts["n_in"] == len(rows) == counts["n_out"] + counts["n_rejected"]
    assert counts["rejected"]["risk"] == sum(row["risk"] != "none" for row in rows) > 0
    assert not (out / "crisis.jsonl").exists()
    assert {path.stem: len(_lines(path)) for path in out.glob("*.jsonl")} == counts["splits"]
    again = _export(dataset, program, tmp_path / "all", with_risk=True).manifest.counts
    assert again["n_out"] == len(rows) and again["splits"]["crisis"] > 0


def test_llama_factory_finds_every_file_and_column_by_its_description(
    tmp_path: Path, dataset: Path
) -> None:
    out = tmp_path / "out"
    _export(dataset, "llama-factory", out)
    info = json.loads((out / "dataset_info.json").read_text("utf-8"))
    assert set(info) == {"cbtqa_train", "cbtqa_validation", "cbtqa_test"}
    # the keys of the data README: these name columns; `formatting` is alpaca where it is not given
    documented = {"prompt", "query", "response", "history", "messages", "system", "tools"}
    for description in info.values():
        assert set(description["columns"]) <= documented
        for row in _lines(out / description["file_name"]):
            assert all(isinstance(row[name], str) for name in description["columns"].values())
            assert row["instruction"] and row["output"]


def test_ms_swift_gets_messages_of_known_roles(tmp_path: Path, dataset: Path) -> None:
    _export(dataset, "ms-swift", tmp_path / "out")
    for row in _lines(tmp_path / "out" / "train.jsonl"):
        roles = [turn["role"] for turn in row["messages"]]
        assert roles == ["system", "user", "assistant"]
        assert all(set(turn) == {"role", "content"} for turn in row["messages"])


def test_evalscope_gets_query_response_and_a_subset_by_name(tmp_path: Path, dataset: Path) -> None:
    _export(dataset, "evalscope", tmp_path / "out", system_prompt="")
    assert {tuple(row) for row in _lines(tmp_path / "out" / "test.jsonl")} == {
        ("id", "query", "response")
    }
    told = usage("evalscope", tmp_path / "out", ["train", "test"])
    arguments = json.loads(told.split("'")[1])
    assert arguments["general_qa"]["subset_list"] == ["test"]


def test_trl_takes_the_files_for_conversations(tmp_path: Path, dataset: Path) -> None:
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    out = tmp_path / "out"
    splits = list(_export(dataset, "trl", out).manifest.counts["splits"])
    files = {name: str(out / f"{name}.jsonl") for name in splits}
    loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == splits
    example = loaded["train"][0]
    assert {"prompt", "completion"} <= set(example)
    assert trl.data_utils.is_conversational(example)
    whole = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: part.num_rows for name, part in whole.items()} == {
        name: part.num_rows for name, part in loaded.items()
    }


def test_text_of_the_template_teacher_is_refused_before_a_file_is_written(tmp_path: Path) -> None:
    dataset = write_dataset_folder(tmp_path / "d", n_entries=30, is_template=True)
    with pytest.raises(ConfigError, match=r"of \d+ answers in train were written by the template"):
        _export(dataset, "trl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert _export(dataset, "trl", tmp_path / "out", allow_template=True).folder


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.jsonl").write_text("")  # what an export that failed leaves
    assert _export(dataset, "trl", out).manifest.counts["n_out"]
    with pytest.raises(ConfigError, match="not empty"):
        _export(dataset, "trl", out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        _export(dataset, "trl", tmp_path / "file")


def test_no_data_and_no_dataset_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data named"):
        export(resolve(ExportSettings, flags={"for_": "trl"}, environ={}))
    with pytest.raises(UsageError, match="missing: for"):
        resolve(ExportSettings, flags={"data": tmp_path}, environ={})
    with pytest.raises(DataError, match="is no dataset"):
        _export(tmp_path, "trl", tmp_path / "out")


# --- by the programs themselves -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["answer", "steps"])
def test_llama_factory_loads_every_split_with_its_own_loader(
    tmp_path: Path, dataset: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")  # of libraries that only training needs
    reason = "needs llamafactory: scripts/bench/doors.py"
    loader = pytest.importorskip("llamafactory.data.loader", reason=reason, exc_type=ImportError)
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import TrainingArguments

    out = tmp_path / "out"
    counts = _export(dataset, "llama-factory", out, mode=mode).manifest.counts["splits"]
    arguments = DataArguments(dataset_dir=str(out), template="qwen")
    model = ModelArguments("none", cache_dir=str(tmp_path / "cache"))
    training = TrainingArguments(str(tmp_path / "run"), use_cpu=True)
    for split, n in counts.items():
        (found,) = loader.get_dataset_list([f"cbtqa_{split}"], str(out))
        rows = loader._load_single_dataset(found, model, arguments, training)
        assert rows.num_rows == n
        for row, written in zip(rows, _lines(out / f"{split}.jsonl"), strict=True):
            assert row["_prompt"] == [{"role": "user", "content": written["instruction"]}]
            assert row["_response"] == [{"role": "assistant", "content": written["output"]}]
            assert row["_system"] == written["system"]


@pytest.mark.filterwarnings("ignore")
def test_ms_swift_loads_every_row_with_its_own_loader(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MODELSCOPE_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    reason = "needs ms-swift: scripts/bench/doors.py"
    swift = pytest.importorskip("swift.dataset", reason=reason, exc_type=ImportError)
    out = tmp_path / "out"
    counts = _export(dataset, "ms-swift", out).manifest.counts["splits"]
    for split, n in counts.items():
        rows, rest = swift.load_dataset(str(out / f"{split}.jsonl"), strict=True)
        assert rows.num_rows == n and rest is None
        expected = [row["messages"] for row in _lines(out / f"{split}.jsonl")]
        read = [
            [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
            for row in rows
        ]
        assert read == expected
