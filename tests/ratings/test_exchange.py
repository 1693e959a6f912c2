"""Label Studio and Potato: what goes out is blind, what comes back is judged like a sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
import yaml

from cbtqa.ratings.exchange import (
    export_label_studio,
    export_potato,
    export_ratings,
    import_label_studio,
)
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from tests.ratings.conftest import HOSTILE, MakeStudy


def annotated(
    tasks: list[dict[str, Any]], *fields: tuple[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Tasks as Label Studio exports them, each with one annotation of these fields."""
    results = [{"from_name": name, "to_name": "question", "value": value} for name, value in fields]
    made = [
        {**task, "id": n, "annotations": [{"id": n, "was_cancelled": False, "result": results}]}
        for n, task in enumerate(tasks)
    ]
    copied: list[dict[str, Any]] = json.loads(json.dumps(made))  # nothing shared between tasks
    return copied


def save(path: Path, tasks: Any) -> Path:
    path.write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")
    return path


def exported(folder: StudyFolder, out: Path, rater: str = "R1") -> list[dict[str, Any]]:
    export_label_studio(folder, out)
    tasks: list[dict[str, Any]] = json.loads((out / f"{rater}.tasks.json").read_text("utf-8"))
    return tasks


def test_the_config_offers_every_point_and_no_text_of_the_study_is_in_it(
    folder: StudyFolder, tmp_path: Path
) -> None:
    tasks = exported(folder, tmp_path)
    view = Xml.fromstring((tmp_path / "config.xml").read_text("utf-8"))
    names = {group.get("name"): [c.get("alias") for c in group] for group in view.iter("Choices")}
    assert names["relevance"] == ["0", "1", "2"]
    assert names["flags"] == ["cannot_judge", "crisis"]
    shown = {text.get("value", "")[1:] for text in view.iter("Text")}
    assert shown <= set(tasks[0]["data"])
    assert all(
        group.get("toName") in {t.get("name") for t in view.iter("Text")}
        for group in view.iter("Choices")
    )
    assert [task["data"]["code"] for task in tasks] == [p.code for p in folder.shown_to("R1")]
    assert any(task["data"]["answer"] == HOSTILE for task in tasks)
    assert "alpha" not in json.dumps(tasks) and '"arm"' not in json.dumps(tasks)


def test_ratings_come_back_with_marks_flags_and_notes(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    fields = (
        ("relevance", {"choices": ["2"]}),
        ("structure", {"choices": ["1 · 有其中几步"]}),
        ("helpfulness", {"choices": ["0"]}),
        ("flags", {"choices": ["crisis"]}),
        ("note", {"text": ["一", "二"]}),
    )
    path = save(tmp_path / "back.json", annotated(exported(folder, tmp_path), *fields))
    collected = import_label_studio(folder, store, [path])
    assert (collected.rejections, collected.sheets[0].n_done) == ([], len(folder.shown_to("R1")))
    answer = store.answers()["R1-001"]
    assert answer.values == {"relevance": 2, "structure": 1, "helpfulness": 0}
    assert (answer.crisis, answer.note) == (True, "一\n二")
    assert import_label_studio(folder, store, [path]).n_kept == 0


def test_bad_tasks_are_named_and_good_ones_kept(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    tasks = annotated(exported(folder, tmp_path), ("relevance", {"choices": ["1"]}))
    tasks[0]["data"]["answer"] += "改"
    tasks[1]["annotations"] *= 2
    tasks[2]["data"]["study"] = "another"
    tasks[3]["data"]["code"] = "R2-001"
    tasks[4]["annotations"][0]["result"][0]["value"]["choices"] = ["9"]
    tasks[5]["annotations"][0]["was_cancelled"] = True
    tasks[6] = {"id": 7}
    path = save(tmp_path / "back.json", tasks)
    collected = import_label_studio(folder, store, [path, save(tmp_path / "x.json", {"a": 1})])
    details = [r.detail for r in collected.rejections]
    expected = [
        "its answer is not the text of the study",
        "2 finished annotations",
        "its study is another",
        "R2-001 is not in the plan of R1",
        "found 9, expected a whole number from 0 to 2",
        "a task without data",
        "expected Label Studio's JSON export",
    ]
    assert len(details) == len(expected)
    assert all(words in detail for words, detail in zip(expected, details, strict=True))
    assert collected.n_kept == len(tasks) - 7
    assert collected.rejections[4].where == "back.json:task 5"


def test_marks_come_back(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study(predictions=(), rubric="distortions", raters=1).folder
    tasks = exported(folder, tmp_path)
    by_alias = ("marks", {"choices": ["labeling", "mental_filter"]})
    path = save(tmp_path / "back.json", annotated(tasks[:3], by_alias))
    mark = folder.rubric.criterion("labeling")
    by_words = ("marks", {"choices": [f"{mark.name.zh}: {mark.question.zh}"]})
    flags = ("flags", {"choices": ["危机标记", "想不出来的旗"]})
    other = save(tmp_path / "words.json", annotated(tasks[3:4], by_words, flags))
    with Store(folder.store_path, folder.study.id) as store:
        assert import_label_studio(folder, store, [path]).rejections == []
        assert store.answers()["R1-001"].values == {"labeling": 1, "mental_filter": 1}
        (refused,) = import_label_studio(folder, store, [other]).rejections
        assert "unknown field '想不出来的旗'" in refused.detail
        answer = store.answers()["R1-004"]
        assert (answer.values, answer.crisis) == ({"labeling": 1}, True)


def test_a_session_goes_out_as_a_dialogue(make_study: MakeStudy, tmp_path: Path) -> None:
    turns = [{"role": "client", "text": "Hello"}, {"role": "therapist", "text": "Hi"}]
    path = save(tmp_path / "a.json", [{"id": "s", "turns": turns}])
    folder = make_study(predictions=(str(path),), questions=None, rubric="ctrs", n=1).folder
    task = exported(folder, tmp_path / "ls")[0]
    assert task["data"]["turns"] == turns
    view = Xml.fromstring((tmp_path / "ls" / "config.xml").read_text("utf-8"))
    assert [p.get("value") for p in view.iter("Paragraphs")] == ["$turns"]


def test_potato_gets_a_config_that_names_each_scale_and_binds_loopback(
    folder: StudyFolder, tmp_path: Path
) -> None:
    export_potato(folder, tmp_path)
    config = yaml.safe_load((tmp_path / "R2" / "config.yaml").read_text("utf-8"))
    schemes = {scheme["name"]: scheme for scheme in config["annotation_schemes"]}
    assert schemes["relevance"]["labels"] == ["0", "1", "2"]
    assert config["host"] == "127.0.0.1" and config["ui_language"] == "zh"
    rows = [
        json.loads(line)
        for line in (tmp_path / "R2" / "items.jsonl").read_text("utf-8").splitlines()
    ]
    assert [row["id"] for row in rows] == [p.code for p in folder.shown_to("R2")]
    assert set(config["item_properties"].values()) == set(rows[0])


def test_ratings_are_exported_from_a_copy_while_the_store_is_in_use(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    ratings, snapshot = export_ratings(folder, store, tmp_path / "out")
    assert len(ratings.read_text("utf-8").splitlines()) == 3 * len(folder.plan)
    with Store(snapshot, folder.study.id) as other:
        assert other.answers() == store.answers()


# --- by the programs themselves -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_label_studio_accepts_the_config_and_every_task(
    folder: StudyFolder, tmp_path: Path
) -> None:
    sdk = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="needs label-studio-sdk: cbtqa[doors]"
    )
    tasks = exported(folder, tmp_path)
    interface = sdk.LabelInterface((tmp_path / "config.xml").read_text("utf-8"))
    interface.validate()
    assert {"relevance", "structure", "helpfulness", "flags", "note"} <= set(interface._controls)
    assert all(interface.validate_task(task) for task in tasks)
    fields = (("relevance", {"choices": ["2"]}), ("note", {"text": ["一"]}))
    kinds = {"relevance": "choices", "note": "textarea"}
    for task in annotated(tasks, *fields):
        (annotation,) = task["annotations"]
        for result in annotation["result"]:
            result |= {"id": result["from_name"], "type": kinds[result["from_name"]]}
        assert interface.validate_annotation(annotation)
        annotation["result"][0]["from_name"] = "no_such_control"
        assert not interface.validate_annotation(annotation)


@pytest.mark.filterwarnings("ignore")
def test_potato_accepts_the_config_and_knows_every_key(
    folder: StudyFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checks = pytest.importorskip(
        "potato.server_utils.config_module", reason="needs potato-annotation: cbtqa[doors]"
    )
    export_potato(folder, tmp_path)
    for rater in folder.study.raters:
        path = tmp_path / rater / "config.yaml"
        config = yaml.safe_load(path.read_text("utf-8"))
        checks.validate_yaml_structure(config, str(path.parent), str(path.parent))
        checks.validate_unknown_keys(config)
    assert "Unrecognized" not in caplog.text
    checks.validate_unknown_keys({"no_such_key": 1})
    assert "Unrecognized" in caplog.text
