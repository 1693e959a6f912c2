"""The built dataset's folder: what `datasets` sees, old folders, and one refusal in every verb."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cbtqa.cli import main as program_of
from cbtqa.dataset.stats import folder_statistics
from cbtqa.dataset_folder import (
    ANSWER_COLUMNS,
    FORMAT_VERSION,
    LATER_COLUMNS,
    DatasetFolder,
    DatasetWriter,
    answer_features,
    answer_of,
    arrow_schema,
    human_features,
    question_of,
    source_rows,
)
from cbtqa.errors import CbtqaError, DataError, IncompleteRunError
from cbtqa.files import ParquetRows, read_rows
from cbtqa.hub.dataset import label_features, plan_dataset, qa_features
from cbtqa.hub.settings import DatasetSettings
from cbtqa.manifest import read_manifest, write_manifest
from tests.support.cli_docs import walk_commands
from tests.support.dataset_folder import finish, make_rows, write_dataset_folder
from tests.support.program import environment, program, run_cbtqa

TYPES = ("mind_reading", "should", "labeling")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset_folder(tmp_path / "d", 40)


def make_old(folder: Path) -> Path:
    """The same folder as format 1 wrote it: texts, no `distortion_types`, no features."""
    for path in folder.glob("data/*.parquet"):
        rows = [row for _, row in read_rows(path)]
        schema = arrow_schema({**answer_features(), "risk": answer_features()["id"]})
        for name in LATER_COLUMNS:
            schema = schema.remove(schema.get_field_index(name))
        old = pa.Table.from_pylist(rows, schema=schema.remove_metadata())
        pq.write_table(old, path)
    write_manifest(folder, read_manifest(folder).model_copy(update={"format_version": 1}))
    return folder


# --- columns -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "features",
    [
        answer_features(TYPES),
        answer_features(),
        human_features(),
        qa_features(TYPES, True),
        label_features(TYPES, False),
    ],
)
def test_the_schema_is_the_one_that_datasets_writes(features: dict[str, Any]) -> None:
    from datasets import Features

    ours, theirs = arrow_schema(features), Features.from_dict(features).arrow_schema
    assert ours.equals(theirs)
    assert [json.loads(s.metadata[b"huggingface"]) for s in (ours, theirs)] == [
        {"info": {"features": features}}
    ] * 2


def test_a_name_outside_the_taxonomy_is_never_written(tmp_path: Path) -> None:
    (_, row), *_ = make_rows(1)
    with (
        pytest.raises(KeyError, match="elsewhere"),
        ParquetRows(tmp_path / "a.parquet", arrow_schema(answer_features(TYPES))) as rows,
    ):
        rows.add({**row, "distortion_types": ["elsewhere"]})
    assert list(tmp_path.iterdir()) == []


def test_a_label_that_is_missing_has_no_name(tmp_path: Path) -> None:
    # -1 stands for "not labelled" in data sets of the Hub
    schema = arrow_schema({"id": answer_features()["id"], "risk": answer_features()["risk"]})
    table = pa.Table.from_pylist([{"id": "1", "risk": -1}, {"id": "2", "risk": 2}], schema=schema)
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["risk"] for _, row in read_rows(tmp_path / "a.parquet")] == [None, "explicit"]


# --- reading -------------------------------------------------------------------------------------


def test_rows_come_back_by_split_with_names(folder: Path) -> None:
    dataset = DatasetFolder.open(folder)
    assert list(dataset.splits) == ["train", "validation", "test", "crisis"]
    found = [(split, row) for split in dataset.splits for row in dataset.rows(split)]
    order = list(dataset.splits)
    wanted = sorted(make_rows(40), key=lambda entry: order.index(entry[0]))
    assert [(s, {**row, "keywords": tuple(row["keywords"])}) for s, row in found] == wanted
    assert "mind_reading" in dataset.types
    assert list(dataset.answers("test,crisis")) == [
        answer_of(row) for split, row in wanted if split in ("test", "crisis")
    ]
    assert list(dataset.questions()) == [question_of(row) for _, row in wanted]
    assert list(dataset.human_answers()) == []


def test_only_the_rows_and_columns_asked_for_are_read(folder: Path) -> None:
    ids = [row["id"] for _, row in make_rows(40)][5:9]
    rows = list(DatasetFolder.open(folder).rows(columns=("id", "risk"), ids=ids))
    assert sorted(row["id"] for row in rows) == sorted(ids)
    assert all(set(row) == {"id", "risk"} for row in rows)


def test_a_folder_of_format_1_reads_the_same(folder: Path) -> None:
    before = list(DatasetFolder.open(folder).rows())
    old = DatasetFolder.open(make_old(folder))
    assert pq.read_schema(old.files()[0]).field("risk").type == pa.string()
    unknown = dict.fromkeys(LATER_COLUMNS - {"distortion_types"})
    assert list(old.rows()) == [{**row, **unknown} for row in before]
    assert [answer.dangers for answer in old.answers()] == [()] * len(before)
    assert folder_statistics(old).dangers == {}
    assert old.types == ()
    frame = old.to_pandas("crisis")
    assert set(frame["risk"]) == {"concern", "explicit"}


def test_dangers_and_age_come_back_and_are_counted(tmp_path: Path) -> None:
    (_, row), *_ = make_rows(1)
    found = {"dangers": ["violence", "minor_at_risk"], "is_acute": True, "is_minor": True}
    with ParquetRows(
        tmp_path / "data/train-00000-of-00001.parquet", arrow_schema(answer_features(TYPES))
    ) as rows:
        rows.add({**row, "distortions": [], "distortion_types": [], **found})
    dataset = DatasetFolder.open(finish(tmp_path))
    (answer,) = dataset.answers()
    assert answer.dangers == ("violence", "minor_at_risk") and answer.is_acute and answer.is_minor
    statistics = folder_statistics(dataset)
    assert statistics.dangers == {"minor_at_risk": 1, "violence": 1}
    assert (statistics.n_acute, statistics.n_minors) == (1, 1)


def test_a_folder_of_format_1_is_published_with_texts(folder: Path) -> None:
    settings = DatasetSettings(run=make_old(folder), to="lab/cbt-qa", quotes="mask")
    plan, _ = plan_dataset(settings)
    rows = [row for f in plan.files if "distortions/" in f.path for _, row in read_rows(f.source)]
    assert "mind_reading" in {row["label"] for row in rows}


def test_a_folder_of_a_later_format_is_not_guessed_at(folder: Path) -> None:
    later = read_manifest(folder).model_copy(update={"format_version": FORMAT_VERSION + 1})
    write_manifest(folder, later)
    with pytest.raises(DataError, match="newer than this cbtqa") as caught:
        DatasetFolder.open(folder)
    assert "upgrade" in str(caught.value.hint)


def test_a_frame_holds_every_split_and_names(folder: Path) -> None:
    frame = DatasetFolder.open(folder).to_pandas()
    assert list(frame.columns) == ["split", *ANSWER_COLUMNS]
    assert len(frame) == 40
    assert set(frame["risk"]) == {"none", "concern", "explicit"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_datasets_gets_class_labels_with_their_names(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    loaded = DatasetFolder.open(folder).to_datasets()
    assert {name: part.num_rows for name, part in loaded.items()} == DatasetFolder.open(
        folder
    ).manifest.counts["splits"]
    features, row = loaded["crisis"].features, loaded["crisis"][0]
    assert features["risk"].names == ["none", "concern", "explicit"]
    assert features["risk"].int2str(row["risk"]) in ("concern", "explicit")
    assert "mind_reading" in features["distortion_types"].feature.names


def test_a_clone_from_the_hub_is_read_by_split_though_it_is_no_dataset_of_ours(
    folder: Path,
) -> None:
    for name in ("manifest.json", "journal.sqlite"):
        (folder / name).unlink()
    assert len(list(source_rows(folder, "crisis"))) == 5
    with pytest.raises(DataError, match="has no split 'dev'"):
        list(source_rows(folder, "dev"))


# --- killed builds -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_build_that_was_killed_again_and_again_leaves_nothing_behind(tmp_path: Path) -> None:
    questions, out = tmp_path / "q.jsonl", tmp_path / "out"
    rows = ({"questionID": i, "question": f"第{i}次睡不着怎么办？"} for i in range(1_000))
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    draw, command = random.Random(5), [*program(), "build-dataset", str(questions), "--out", out]
    for _ in range(2):
        (out / "manifest.json").unlink(missing_ok=True)
        child = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
        while child.poll() is None and not list(out.rglob("*.part")):
            time.sleep(0.001)
        time.sleep(draw.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        child.wait(60)
    run_cbtqa(*command[-4:], cwd=tmp_path)
    assert not list(out.rglob(".*"))
    assert {path.name for path in out.iterdir()} == {
        *("data", "journal.sqlite", "journal.sqlite.lock", "rejects.jsonl"),
        *("manifest.json", "README.md", "report.html"),
    }
    counts = DatasetFolder.open(out).manifest.counts
    assert counts["n_in"] == 1_000
    assert sum(1 for _ in DatasetFolder.open(out).rows(columns=("id",))) == counts["n_out"]


def test_leftovers_of_a_killed_write_are_removed_by_the_next(folder: Path) -> None:
    for name in (".README.md.a1.part", "data/.train-00000.parquet.b2.part", "human/.h.c3.part"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"half")
    with DatasetWriter(folder, TYPES):
        pass
    assert not list(folder.rglob(".*"))


# --- one refusal in every verb -------------------------------------------------------------------

READS = (
    "stats {d}",
    "doctor {d}",
    "data check {d}",
    "build-dataset {d} --out {out}",
    "distortions label {d} --out {out}.jsonl",
    "distortions train {d} --out {out}",
    "distortions evaluate {d}",
    "distortions agree {d} {whole}",
    "distortions annotate {d} --out {out}.jsonl",
    "safety screen {d}",
    "safety check {d}",
    "safety evaluate {d}",
    "safety scrub {d}",
    "finetune {d} --backbone qwen2.5 --out {out} --dry-run",
    "export {d} --for trl --out {out}",
    "generate {d} --endpoint http://127.0.0.1:9/v1 --model m --out {out}",
    "score {d} --ref {whole} --metrics chrf2",
    "score {whole} --ref {d} --metrics chrf2",
    "score {whole} --ref {whole2} --metrics cbt_steps --step-classifier {d}",
    "compare {d} {whole} --ref {whole2} --metrics chrf2",
    "compare {whole} {whole2} --ref {d} --metrics chrf2",
    "judge {d} --questions {whole} --endpoint http://127.0.0.1:9/v1 --model m --dry-run",
    "judge {whole} --questions {d} --endpoint http://127.0.0.1:9/v1 --model m --dry-run",
    "rate new --predictions a={d} --out {out}",
    "rate new --predictions a={whole} --questions {d} --out {out}",
    "publish dataset {d} --to lab/cbt-qa --dry-run",
    "hub-preview {d}",
)
"""Every command that reads a built dataset, in every place where it takes one."""
READS_NONE = {
    *("distortions taxonomies", "safety hotlines", "backbones", "convert", "merge", "chat"),
    *("simulate profiles", "simulate corpus", "simulate run", "simulate export", "simulate lint"),
    *("simulate judge", "simulate analyse", "simulate instruments"),
    *("rate collect", "rate serve", "rate status", "rate report", "rate unblind", "rate export"),
    *("rate import", "rate rubrics", "publish model", "publish release", "join", "env", "cache"),
    *("reproduce", "report"),
}
MISSING = "data/test-00000-of-00001.parquet"


def finish_no_build(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def damage(folder: Path) -> None:
    for path in folder.glob("data/*.parquet"):
        path.write_bytes(b"PAR1 and nothing more")


def lose_a_file(folder: Path) -> None:
    (folder / MISSING).unlink()


def empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


FAULTS: dict[str, tuple[Callable[[Path], None], type[CbtqaError], str]] = {
    "unfinished": (
        finish_no_build,
        IncompleteRunError,
        "error: {d} holds no manifest.json: the run did not finish\n"
        "hint: the command that made it continues it: cbtqa build-dataset ... --out {d}\n",
    ),
    "damaged": (damage, DataError, ".parquet: not Parquet: "),
    "a file is missing": (
        lose_a_file,
        DataError,
        f"error: {{d}}: lacks {MISSING}, which its manifest lists\n"
        "hint: write it again from its paid replies: cbtqa build-dataset with its --out and "
        "--update\n",
    ),
    "no dataset": (
        empty,
        DataError,
        "error: {d}: is no dataset of cbtqa\nhint: name a folder that cbtqa build-dataset wrote\n",
    ),
}


def test_every_command_is_known_to_read_datasets_or_not() -> None:
    for words, command in walk_commands():
        if not hasattr(command, "list_commands"):
            name = words.removeprefix("cbtqa ")
            is_reader = any(line.startswith(f"{name} ") for line in READS)
            assert is_reader != (name in READS_NONE), f"{name}: put it into READS or READS_NONE"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("line", READS)
def test_every_verb_refuses_it_in_the_same_words(
    line: str, fault: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"d": folder, "out": tmp_path / "out"}
    for name in ("whole", "whole2"):
        if f"{{{name}}}" in line:
            places[name] = write_dataset_folder(tmp_path / name, 40)
    spoil, error, told = FAULTS[fault]
    spoil(folder)
    code = program_of._run([word.format(**places) for word in line.split()], False)
    assert told.format(d=folder) in capsys.readouterr().err
    assert code == error.exit_code


def test_what_an_unfinished_build_has_written_can_be_counted(folder: Path) -> None:
    finish_no_build(folder)
    dataset = DatasetFolder.open(folder, partial=True)
    assert len(list(dataset.rows())) == 40
    with pytest.raises(IncompleteRunError):
        _ = dataset.manifest


def test_the_questions_of_a_dataset_can_be_answered_again(folder: Path, tmp_path: Path) -> None:
    line = ["build-dataset", str(folder), "--out", str(tmp_path / "again"), "--max-rejected", "1"]
    assert program_of._run(line, False) == 0
    again = DatasetFolder.open(tmp_path / "again")
    assert again.manifest.counts["n_in"] == 40
    assert again.manifest.inputs[0].name == "manifest.json"
