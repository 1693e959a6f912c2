"""A manifest says how a folder was made, and names no place of the machine it was made on."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from cbtqa.errors import DataError, IncompleteRunError
from cbtqa.manifest import (
    Manifest,
    describe_file,
    describe_settings,
    newest_folder,
    now,
    read_manifest,
    write_manifest,
)
from cbtqa.settings import Settings, resolve


class Demo(Settings):
    input: Path | None = Field(None, description="In.")
    endpoint: str | None = Field(None, description="Where.")
    columns: tuple[str, ...] = Field((), description="Names.")


def test_settings_are_told_without_folders_and_urls(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("columns: [a=b]\n")
    flags = {"input": tmp_path / "in.json", "endpoint": "http://user:secret@host:8000/v1?key=1"}
    told = describe_settings(resolve(Demo, file=file, flags=flags, environ={}))
    assert told["input"].value == "in.json" and told["input"].origin == "--input"
    assert told["endpoint"].value == "host"
    assert told["columns"].value == ["a=b"] and told["columns"].origin == "run.yaml:1"


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("好")
    entry = describe_file(tmp_path / "data" / "a.txt", tmp_path)
    assert entry.name == "data/a.txt" and entry.n_bytes == 3
    manifest = Manifest(kind="dataset", files=(entry,), started_at=now(), finished_at=now())
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_a_folder_without_manifest_is_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(IncompleteRunError, match="did not finish"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_manifest(tmp_path / "missing")
    (tmp_path / "manifest.json").write_text('{"kind": 3}')
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_the_newest_finished_folder_is_found_by_its_manifest_alone(tmp_path: Path) -> None:
    def finish(name: str, kind: str, at: str) -> None:
        (tmp_path / name).mkdir(parents=True)
        write_manifest(tmp_path / name, Manifest(kind=kind, started_at=at, finished_at=at))

    assert newest_folder("dataset", tmp_path) is None
    finish("zz", "dataset", "2026-01-01T00:00:00+00:00")
    finish("runs/late", "dataset", "2026-03-01T00:00:00+00:00")
    finish("answers", "answers", "2026-04-01T00:00:00+00:00")
    finish("a/too/deep", "dataset", "2026-05-01T00:00:00+00:00")
    (tmp_path / "unfinished" / "data").mkdir(parents=True)
    for name, text in (("web", '{"kind": "dataset"}'), ("list", "[]"), ("cut", '{"kind": ')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    assert newest_folder("dataset", tmp_path) == tmp_path / "runs/late"
