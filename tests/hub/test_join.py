"""`cbtqa join` refuses every damaged publication in words, and no failed join is in the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cbtqa.dataset_folder import DatasetFolder
from cbtqa.errors import CbtqaError, ConfigError, DataError, IncompleteRunError
from cbtqa.files import sha256_of
from cbtqa.hub.join import JoinSettings, join
from cbtqa.hub.publish import prepare_dataset
from cbtqa.hub.settings import DatasetSettings
from tests.hub.runs import copy_of, rows_of, write_psyqa
from tests.support.dataset_folder import write_dataset_folder

Poison = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A publication with masked quotes and labels, and `psyqa.json` beside it."""
    base = tmp_path_factory.mktemp("published")
    run = write_dataset_folder(base / "run", 30)
    write_psyqa(run, base / "psyqa.json")
    prepare_dataset(DatasetSettings(run=run, to="lab/cbt-qa", quotes="mask"))
    return copy_of(run / "publish" / "files", base / "files")


def _provenance(change: Callable[[dict[str, Any]], object]) -> Poison:
    def poison(folder: Path) -> None:
        path = folder / "provenance.json"
        value = json.loads(path.read_text("utf-8"))
        made = change(value)
        path.write_text(json.dumps(made if isinstance(made, list) else value), "utf-8")

    return poison


def _table(config: str, change: Callable[[list[dict[str, Any]]], object]) -> Poison:
    """Changes the rows of a config's first table, and makes hash and number fit again."""

    def poison(folder: Path) -> None:
        path = sorted(folder.glob(f"{config}/train-*.parquet"))[0]
        table = pq.read_table(path)
        rows = table.to_pylist()
        change(rows)
        try:
            made = pa.Table.from_pylist(rows, schema=table.schema)
        except (pa.ArrowException, TypeError):
            made = pa.Table.from_pylist(rows)
        _rewrite(folder, path, made, config)

    return poison


def _columns(config: str, change: Callable[[pa.Table], pa.Table]) -> Poison:
    def poison(folder: Path) -> None:
        path = sorted(folder.glob(f"{config}/train-*.parquet"))[0]
        _rewrite(folder, path, change(pq.read_table(path)), config)

    return poison


def _rewrite(folder: Path, path: Path, table: pa.Table, config: str) -> None:
    pq.write_table(table, path)
    name = path.relative_to(folder).as_posix()

    def fit(value: dict[str, Any]) -> None:
        value["published"][config]["train"] = len(table)
        for entry in value["files"]:
            if entry["path"] == name:
                entry["sha256"] = sha256_of(path)

    _provenance(fit)(folder)


def _entry(config: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda value: next(e for e in value["files"] if e["path"].startswith(f"{config}/"))


QA, LABELS = _entry("qa"), _entry("distortions")


def _quote(**fields: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if row["quotes"])
        row["quotes"][0] |= fields

    return change


def _label(**fields: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[0].update(fields)


def _first_doubled(rows: list[dict[str, Any]]) -> None:
    rows[1] = dict(rows[0])


POISONS: dict[str, Poison] = {
    "no provenance": lambda folder: (folder / "provenance.json").unlink(),
    "provenance is a list": _provenance(lambda value: [value]),
    "provenance is no JSON": lambda folder: (folder / "provenance.json").write_text("{"),
    "a kind that is an object": _provenance(lambda value: value.update(kind={})),
    "a model": _provenance(lambda value: value.update(kind="model")),
    "a newer format": _provenance(lambda value: value.update(format_version=99)),
    "no files": _provenance(lambda value: value.pop("files")),
    "an empty list of files": _provenance(lambda value: value.update(files=[])),
    "a file without a hash": _provenance(lambda value: QA(value).pop("sha256")),
    "a hash that is a number": _provenance(lambda value: QA(value).update(sha256=7)),
    "a path out of the folder": _provenance(lambda v: QA(v).update(path="qa/../../psyqa.json")),
    "an absolute path": _provenance(lambda v: QA(v).update(path="qa//etc/passwd")),
    "a split of another name": _provenance(
        lambda v: QA(v).update(path="qa/dev-00000-of-00001.parquet")
    ),
    "a table of many that are not there": _provenance(
        lambda v: QA(v).update(path=QA(v)["path"].replace("of-00001", "of-00007"))
    ),
    "a table listed twice": _provenance(lambda value: value["files"].append(dict(QA(value)))),
    "no run": _provenance(lambda value: value.pop("run")),
    "a run that is text": _provenance(lambda value: value.update(run="x")),
    "settings that are a list": _provenance(lambda value: value["run"].update(settings=[1])),
    "tokens below zero": _provenance(
        lambda v: v["run"].update(usage={"prompt_tokens": -1, "completion_tokens": 1})
    ),
    "another number of rows": _provenance(lambda value: value["published"]["qa"].update(train=3)),
    "a table that is damaged": lambda folder: next(folder.glob("qa/*.parquet")).write_bytes(
        b"PAR1"
    ),
    "an id twice, the number right": _table("qa", _first_doubled),
    "an id that is empty": _table("qa", lambda rows: rows[0].update(id="")),
    "an answer that is empty": _table("qa", lambda rows: rows[0].update(answer="")),
    "an answer that is missing": _table("qa", lambda rows: rows[0].update(answer=None)),
    "a hash that is none": _table("qa", lambda rows: rows[0].update(question_sha256="x")),
    "settings of a reply that are no JSON": _table("qa", lambda rows: rows[0].update(sampling="{")),
    "a place outside the question": _table("qa", _quote(start=5_000, end=5_010)),
    "a place before the question": _table("qa", _quote(start=-9, end=9)),
    "a place that ends before it begins": _table("qa", _quote(start=9, end=3)),
    "a place of no column": _table("qa", _quote(column="risk")),
    "a mask without a place": _table(
        "qa", lambda rows: next(row for row in rows if row["quotes"])["quotes"].pop()
    ),
    "no column of hashes": _columns("qa", lambda table: table.drop_columns(["question_sha256"])),
    "no column of answers": _columns("qa", lambda table: table.drop_columns(["answer"])),
    "answers that are numbers": _columns(
        "qa",
        lambda table: table.set_column(
            table.schema.get_field_index("answer"), "answer", pa.array([1.5] * len(table))
        ),
    ),
    "evidence outside the question": _table(
        "distortions", _label(evidence_start=2, evidence_end=9_000)
    ),
    "evidence before the question": _table(
        "distortions", _label(evidence_start=-3, evidence_end=4)
    ),
    "evidence with one end": _table("distortions", _label(evidence_start=3, evidence_end=None)),
    "a label of no entry": _table("distortions", _label(id="no-such-entry")),
    "a confidence above one": _table("distortions", _label(confidence=7.0)),
    "labels without a type": _columns("distortions", lambda table: table.drop_columns(["label"])),
}


@pytest.mark.parametrize("name", POISONS)
def test_a_damaged_publication_is_refused_by_name_and_the_next_join_goes_through(
    name: str, good: Path, tmp_path: Path
) -> None:
    bad, questions = copy_of(good, tmp_path / "bad"), good.parent / "psyqa.json"
    POISONS[name](bad)
    with pytest.raises(CbtqaError) as caught:
        join(JoinSettings(published=str(bad), questions=questions, out=tmp_path / "out"))
    assert isinstance(caught.value, DataError), caught.value
    assert str(caught.value).startswith(str(bad)), caught.value
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = join(JoinSettings(published=str(good), questions=questions, out=tmp_path / "out"))
    assert done.n_joined == 30
    assert len(rows_of(tmp_path / "out")) == 30
    assert not list((tmp_path / "out").glob(".*"))


def test_an_incomplete_join_is_replaced_by_the_same_command(good: Path, tmp_path: Path) -> None:
    rows = json.loads((good.parent / "psyqa.json").read_text("utf-8"))
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(rows[:20], ensure_ascii=False), "utf-8")
    settings = JoinSettings(published=str(good), questions=mine, out=tmp_path / "out")
    with pytest.raises(IncompleteRunError):
        join(settings)
    assert DatasetFolder.open(tmp_path / "out").manifest.counts["n_out"] == 20
    mine.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    assert join(settings).n_joined == 30


def test_the_same_command_is_told_of_a_whole_dataset_and_of_a_folder_of_others(
    good: Path, tmp_path: Path
) -> None:
    settings = JoinSettings(
        published=str(good), questions=good.parent / "psyqa.json", out=tmp_path / "out"
    )
    settings.out.mkdir()
    (settings.out / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match="is not empty"):
        join(settings)
    (settings.out / "mine.txt").unlink()
    join(settings)
    with pytest.raises(ConfigError, match="already holds a dataset"):
        join(settings)
