"""`croissant.json`: what it says of the tables is true, and mlcroissant reads them by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbtqa.files import class_names, parquet_schema, read_rows, sha256_of
from cbtqa.hub.croissant import CONFORMS_TO
from cbtqa.hub.dataset import plan_dataset
from cbtqa.hub.plan import CROISSANT_PATH, PublishPlan
from cbtqa.hub.scan import scan_plan
from cbtqa.hub.settings import DatasetSettings
from cbtqa.manifest import describe_file, read_manifest, write_manifest
from tests.hub.runs import rows_of, write_ratings
from tests.support.dataset_folder import write_dataset_folder


def plan_of(run: Path, **more: Any) -> PublishPlan:
    return plan_dataset(DatasetSettings(run=run, to="lab/cbt-qa", **more))[0]


def described_in(plan: PublishPlan) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan.file(CROISSANT_PATH).source.read_text("utf-8"))
    return found


def test_every_table_is_described_with_its_hash_and_columns(run: Path, tmp_path: Path) -> None:
    plan = plan_of(run, ratings=(write_ratings(run, tmp_path / "rated"),))
    made = described_in(plan)
    assert made["conformsTo"] == list(CONFORMS_TO)
    files = {one["@id"]: one for one in made["distribution"] if one["@type"] == "cr:FileObject"}
    tables = [file for file in plan.files if file.path.endswith(".parquet")]
    assert set(files) == {file.path for file in tables}
    for file in tables:
        assert files[file.path]["sha256"] == sha256_of(file.source)
    sets = {one["name"]: [field["name"] for field in one["field"]] for one in made["recordSet"]}
    assert set(sets) == {"qa", "distortions", "ratings", "ratings_summary"}
    for file in tables:
        assert sets[file.path.split("/")[0]] == ["split", *parquet_schema(file.source).names]
    risk = next(field for field in made["recordSet"][0]["field"] if field["name"] == "risk")
    assert risk["description"] == "class labels: 0 none, 1 concern, 2 explicit"


def test_the_rai_fields_are_the_words_of_the_card(run: Path, tmp_path: Path) -> None:
    plan = plan_of(run, ratings=(write_ratings(run, tmp_path / "rated"),))
    made, card = described_in(plan), plan.card
    rai = {name: value for name, value in made.items() if name.startswith("rai:")}
    assert len(rai) >= 12 and all(rai.values())
    assert len(rai["rai:dataLimitations"]) == 5
    for limit in rai["rai:dataLimitations"]:
        assert f"- {limit}\n" in card
    assert rai["rai:dataUseCases"] in card and "diagnosis" in rai["rai:dataUseCases"]
    assert rai["rai:dataCollection"] in card
    assert rai["rai:dataCollectionType"] == ["Secondary Data analysis", "Software Collection"]
    assert rai["rai:dataBiases"].startswith("Labelled share")
    assert "rai:dataAnnotationProtocol" not in described_in(plan_of(run))


def test_notes_with_the_card_s_own_headings_change_no_field(run: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("## Use\n\nanything\n\n## Known limits\n\n- none\n", encoding="utf-8")
    made = described_in(plan_of(run, notes=notes))
    assert made["rai:dataUseCases"].startswith("Research, teaching")
    assert len(made["rai:dataLimitations"]) == 5


def test_published_question_text_is_not_allowed_in_it(run: Path, tmp_path: Path) -> None:
    permission = tmp_path / "permission.txt"
    permission.write_text("granted", encoding="utf-8")
    settings = DatasetSettings(
        run=run, to="lab/cbt-qa", include_source_text=True, permission=permission
    )
    plan, watch = plan_dataset(settings)
    assert scan_plan(plan, watch) == []
    path, question = plan.file(CROISSANT_PATH).source, rows_of(run)[0]["description"]
    path.write_text(json.dumps({**described_in(plan), "name": question}), encoding="utf-8")
    assert {finding.where.split(":")[0] for finding in scan_plan(plan, watch)} == {CROISSANT_PATH}


@pytest.mark.filterwarnings("ignore")
def test_mlcroissant_finds_no_fault_and_reads_every_row(tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="needs mlcroissant: cbtqa[doors]")
    run = write_dataset_folder(tmp_path / "run", 30)
    plan = plan_of(run, quotes="mask", ratings=(write_ratings(run, tmp_path / "rated"),))
    opened = mlcroissant.Dataset(jsonld=str(plan.file(CROISSANT_PATH).source))
    issues = opened.metadata.ctx.issues
    assert issues.errors == set()
    assert [one for one in issues.warnings if "/version" not in one] == []
    assert len(opened.metadata.data_limitations) == 5
    for one in opened.metadata.record_sets:
        table = next(file for file in plan.files if file.path.startswith(f"{one.uuid}/"))
        labels = class_names(parquet_schema(table.source))
        rows = [
            (file.path.split("/")[1].split("-")[0], row)
            for file in plan.files
            if file.path.startswith(f"{one.uuid}/")
            for _, row in read_rows(file.source)
        ]
        read = [_plain(row) for row in opened.records(one.uuid)]
        assert len(read) == len(rows) > 0
        first = read[0]
        assert first.pop(f"{one.uuid}/split") == rows[0][0]
        texts = {
            name: value
            for name, value in rows[0][1].items()
            if isinstance(value, str) and name not in labels  # there a number
        }
        assert texts.items() <= {k.split("/", 1)[1]: v for k, v in first.items()}.items()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.decode() if isinstance(value, bytes) else str(value)
        for name, value in row.items()
    }


def test_invented_questions_are_not_called_found(run: Path) -> None:
    inputs = (describe_file(Path("data/psyqa/sample.json")),)
    write_manifest(run, read_manifest(run).model_copy(update={"inputs": inputs}))
    assert described_in(plan_of(run))["rai:dataCollectionType"] == ["Software Collection"]
