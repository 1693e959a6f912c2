"""A published dataset: what is in it, what is not, and putting the text back."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cbtqa.dataset_folder import DatasetFolder, arrow_schema, human_features
from cbtqa.errors import ConfigError, DataError, IncompleteRunError, UsageError
from cbtqa.files import ParquetRows, read_rows
from cbtqa.hub.card_schema import DatasetFront, check_front
from cbtqa.hub.cards import CONFIGS, split_card
from cbtqa.hub.dataset import check_dataset, plan_dataset
from cbtqa.hub.join import JoinSettings, join
from cbtqa.hub.plan import PublishPlan, PublishRefusedError
from cbtqa.hub.publish import prepare_dataset
from cbtqa.hub.scan import Finding
from cbtqa.hub.settings import DatasetSettings
from cbtqa.hub.source_text import MASK
from cbtqa.manifest import read_manifest
from cbtqa.records import ReferenceAnswer
from tests.hub.runs import (
    edit_rows,
    rows_of,
    write_dataset,
    write_psyqa,
    write_ratings,
    write_scores,
)
from tests.support.dataset_folder import write_dataset_folder
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok


def settings_of(run: Path, **more: Any) -> DatasetSettings:
    return DatasetSettings(run=run, to="lab/cbt-qa", **more)


def plan_of(run: Path, **more: Any) -> PublishPlan:
    return plan_dataset(settings_of(run, **more))[0]


def findings_of(run: Path, **more: Any) -> list[Finding]:
    settings = settings_of(run, **more)
    return check_dataset(*plan_dataset(settings), settings)


def table_of(plan: PublishPlan, config: str) -> list[dict[str, Any]]:
    return [
        row
        for file in plan.files
        if file.path.startswith(f"{config}/")
        for _, row in read_rows(file.source)
    ]


def bytes_of(plan: PublishPlan) -> dict[str, bytes]:
    return {file.path: file.source.read_bytes() for file in plan.files}


# --- what is in it -------------------------------------------------------------------------------


def test_by_default_no_word_of_a_question_is_in_any_file(run: Path) -> None:
    plan, rows = plan_of(run), rows_of(run)
    assert findings_of(run) == []
    for file in plan.files:
        text = (
            json.dumps([row for _, row in read_rows(file.source)], ensure_ascii=False)
            if file.path.endswith(".parquet")
            else file.source.read_text("utf-8")
        )
        for row in rows:
            assert row["question"] not in text
            assert row["description"][:14] not in text
            assert not any(f'"{keyword}"' in text for keyword in row["keywords"])
            assert not any(
                label["evidence"] in text for label in row["distortions"] if label["evidence"]
            )
    assert not {"question", "description", "keywords", "endpoint_host", "dangers"} & set(
        table_of(plan, "qa")[0]
    )


def test_every_answer_and_label_is_in_it(run: Path) -> None:
    plan, rows = plan_of(run), {row["id"]: row for row in rows_of(run)}
    published = table_of(plan, "qa")
    assert {row["id"]: row["answer"] for row in published} == {
        key: row["answer"] for key, row in rows.items()
    }
    labels = table_of(plan, "distortions")
    assert len(labels) == sum(len(row["distortions"]) for row in rows.values()) > 5
    for label in labels:
        row = rows[label["id"]]
        text = f"{row['question']}\n{row['description']}"
        quoted = {entry["evidence"] for entry in row["distortions"]}
        start, end = label["evidence_start"], label["evidence_end"]
        assert (None if start is None else text[start:end]) in quoted


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    ratings = write_ratings(run, tmp_path / "rated")
    first = bytes_of(plan_of(run, ratings=(ratings,)))
    assert bytes_of(plan_of(run, ratings=(ratings,))) == first


def test_splits_of_the_run_are_splits_of_every_config(run: Path, tmp_path: Path) -> None:
    plan = plan_of(run, ratings=(write_ratings(run, tmp_path / "rated"),))
    splits = read_manifest(run).counts["splits"]
    for name, n in splits.items():
        rows = [
            r for f in plan.files if f.path.startswith(f"qa/{name}-") for r in read_rows(f.source)
        ]
        assert len(rows) == n
    front, _ = split_card(plan.card)
    assert [config["config_name"] for config in front["configs"]] == list(CONFIGS)
    for config in front["configs"]:
        for entry in config["data_files"]:
            assert [f for f in plan.files if Path(f.path).match(entry["path"])], entry


def test_parquet_is_made_for_the_viewer(run: Path) -> None:
    file = next(file for file in plan_of(run).files if file.path.startswith("qa/train"))
    column = pq.ParquetFile(file.source).metadata.row_group(0).column(0)
    assert column.has_offset_index and column.has_column_index


def test_ratings_carry_numbers_and_neither_notes_nor_names(run: Path, tmp_path: Path) -> None:
    plan = plan_of(run, ratings=(write_ratings(run, tmp_path / "rated"),))
    ratings, summary = table_of(plan, "ratings"), table_of(plan, "ratings_summary")
    assert len([row for row in ratings if not row["repeat"]]) == 6 * 2 * 3 * 3
    assert {row["rater"] for row in ratings} == {"R1", "R2", "R3"}
    assert {row["system"] for row in summary} == {"ours", "base"}
    first = [row for row in ratings if not row["repeat"]]
    means = [r["value"] for r in first if (r["system"], r["criterion"]) == ("ours", "relevance")]
    shown = next(r for r in summary if (r["system"], r["criterion"]) == ("ours", "relevance"))
    assert shown["mean"] == pytest.approx(sum(means) / len(means))
    assert shown["agreement_name"] == "alpha_ordinal"
    assert b"\xe7\x8e\x8b\xe5\xb0\x8f\xe6\x98\x8e" not in b"".join(bytes_of(plan).values())


def test_what_stays_behind_is_named(run: Path) -> None:
    with ParquetRows(
        run / "human" / "human-00000-of-00001.parquet", arrow_schema(human_features())
    ) as rows:
        rows.add(ReferenceAnswer(question_id="9000", text="一篇人写的回答").model_dump())
    plan = plan_of(run)
    assert {"rejects.jsonl", "journal.sqlite", "human", "manifest.json"} <= {
        path for path, _ in plan.left_out
    }
    assert not any(file.path.startswith(("human", "rejects", "journal")) for file in plan.files)


def test_withheld_crisis_entries_are_counted(run: Path) -> None:
    n_risk = sum(row["risk"] != "none" for row in rows_of(run))
    plan = plan_of(run, withhold_crisis=True)
    assert {row["risk"] for row in table_of(plan, "qa")} == {"none"}
    assert f"Not published for a sign of risk: {n_risk}." in plan.card
    assert plan.remarks == (f"{n_risk} entries with a sign of risk are withheld",)


# --- the card ------------------------------------------------------------------------------------


def test_the_card_is_complete_in_both_languages(run: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("Ethics: approved by an invented board, 2026-17.", "utf-8")
    card = plan_of(run, ratings=(write_ratings(run, tmp_path / "rated"),), notes=notes).card
    for heading in (
        *("里面有什么", "统计", "怎样得来", "标签质量", "人工评分", "已知局限", "危机处理", "用途"),
        *("What is in it", "Statistics", "How it was made", "Label quality", "Known limits"),
        *("Crisis handling", "Use", "Access and contact", "引用 Citation"),
    ):
        assert f"\n## {heading}" in card
    for told in (
        *(
            "invented-chat-14b",
            "5d" * 32,
            "0.41 USD",
            "ab" * 32,
            "12356",
            "心理互助问答，非心理咨询",
        ),
        *(
            "cbtqa join lab/cbt-qa",
            "invented board",
            "2024.lrec-main.261",
            "回复没有写完就中断 2",
            "alpha",
        ),
    ):
        assert told in card, told


def test_the_front_matter_fits_the_hub_and_our_schema(run: Path) -> None:
    from huggingface_hub import DatasetCard

    card = plan_of(run).card
    front, _ = split_card(card)
    assert check_front(DatasetFront, front) == front
    parsed = DatasetCard(card).data.to_dict()
    assert parsed == front
    assert parsed["license"] == "other" and parsed["license_link"] == "LICENSE.md"
    kinds = [v if isinstance(v, str) else v["type"] for v in parsed["extra_gated_fields"].values()]
    assert sorted(kinds) == [*["checkbox"] * 3, "country", "date_picker", "select", "text"]


def test_a_front_matter_with_a_gap_is_refused(run: Path) -> None:
    front, _ = split_card(plan_of(run).card)
    for change in ({"license": "free"}, {"license_link": None}, {"configs": []}, {"colour": "red"}):
        with pytest.raises(DataError):
            check_front(DatasetFront, {**front, **change})


def test_a_card_of_template_answers_warns_against_training(tmp_path: Path) -> None:
    run = write_dataset(tmp_path / "run", is_template=True)
    card = plan_of(run).card
    assert "Do not train models on this" in card and "not-for-training" in card
    assert "no model was called" in card


def test_label_quality_shows_figures_and_never_the_texts(run: Path, tmp_path: Path) -> None:
    from cbtqa.distortions.evaluate import evaluate
    from cbtqa.distortions.importers import read_gold
    from cbtqa.distortions.patterns import PatternLabeller

    gold_path = tmp_path / "gold.jsonl"
    rows = [{"text": f"她肯定觉得我很烦，第{i}次了", "labels": ["mind_reading"]} for i in range(9)]
    rows += [{"text": f"今天下雨，我带了第{i}把伞", "labels": []} for i in range(9)]
    gold_path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), "utf-8")
    gold = read_gold(gold_path, taxonomy="socialcd-12")
    labels = PatternLabeller(gold.taxonomy).label_many([item.text for item in gold.items])
    report = evaluate(gold, {"patterns": labels})
    quality = tmp_path / "quality.json"
    quality.write_text(report.model_dump_json(), "utf-8")
    card = plan_of(run, label_quality=quality).card
    assert "| patterns |" in card and "（18 条" in card
    assert "她肯定" not in card


def test_an_answer_that_is_not_whole_stops_it_by_its_question(tmp_path: Path) -> None:
    cut = write_dataset(tmp_path / "cut", 8, ended="insufficient_system_resource")
    findings = findings_of(cut)
    n_calm = sum(row["risk"] == "none" for row in rows_of(cut))
    assert len(findings) == n_calm > 0
    assert findings[0].where.startswith("question 9")
    assert "insufficient_system_resource" in findings[0].what


@pytest.mark.parametrize("tail", ["<|im_end|>", "\n用户：谢谢你。", "</think>慢慢来。"])
def test_machine_text_in_an_answer_stops_it_by_its_question(tmp_path: Path, tail: str) -> None:
    run = write_dataset(tmp_path / "run", 8, tail=tail)
    found = findings_of(run)[0]
    assert found.where.startswith("question 9")
    assert "machine text" in found.what


def test_notes_with_a_blank_stop_it(run: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("Funding: TB" + "D\n", "utf-8")
    assert "a blank in the card" in findings_of(run, notes=notes)[0].what


# --- what stops it -------------------------------------------------------------------------------


def test_an_unfinished_run_is_refused(run: Path) -> None:
    (run / "manifest.json").unlink()
    with pytest.raises(IncompleteRunError, match="did not finish"):
        plan_of(run)


def test_a_run_of_another_kind_is_refused(run: Path, tmp_path: Path) -> None:
    scores = write_scores(run, tmp_path / "scores")
    with pytest.raises(DataError, match="not a dataset"):
        plan_of(scores)


def test_rows_changed_after_the_run_are_noticed(run: Path) -> None:
    edit_rows(run, lambda row: row.update(seed=7), also_in_manifest=False)
    assert {finding.what for finding in findings_of(run)} == {
        "is not the file that the run's manifest describes"
    }


def test_an_answer_that_repeats_its_question_is_refused_or_masked(tmp_path: Path) -> None:
    run = write_dataset_folder(tmp_path / "run", 30)
    found = findings_of(run)
    assert found and all("repeats protected text" in finding.what for finding in found)
    plan = plan_of(run, quotes="mask")
    assert findings_of(run, quotes="mask") == []
    masked = [row for row in table_of(plan, "qa") if MASK in row["answer"]]
    assert masked and all(row["quotes"] for row in masked)
    assert f"{len(masked)} answers have words" in plan.remarks[0]


def test_an_answer_that_copies_in_other_punctuation_is_left_out_when_masking(run: Path) -> None:
    first = rows_of(run)[0]

    def copy(row: dict[str, Any]) -> None:
        if row["id"] == first["id"]:
            row["answer"] = "你说：" + " ".join(first["description"])
            row.update(
                {
                    name: None
                    for name in row
                    if row[name]
                    and name.endswith(
                        ("_empathy", "_thought", "_reflection", "_insight", "_foresight")
                    )
                }
            )

    edit_rows(run, copy)
    plan = plan_of(run, quotes="mask")
    assert first["id"] not in {row["id"] for row in table_of(plan, "qa")}
    assert "1 answers are left out" in " ".join(plan.remarks)


def test_text_of_other_questions_and_human_answers_is_known_from_the_source(
    run: Path, tmp_path: Path
) -> None:
    other = write_dataset_folder(tmp_path / "other", 3)
    source = write_psyqa(other, tmp_path / "psyqa.json")
    stolen = json.loads(source.read_text("utf-8"))[0]["answers"][0]["answer_text"]
    edit_rows(run, lambda row: row.update(answer=row["answer"] + stolen, **_no_steps()))
    assert findings_of(run) == []
    assert len(findings_of(run, source=source)) == len(rows_of(run))


def _no_steps() -> dict[str, None]:
    from cbtqa.records import STEP_NAMES

    return dict.fromkeys(STEP_NAMES)


def test_a_phone_number_in_an_answer_stops_it(run: Path) -> None:
    edit_rows(run, lambda row: row.update(answer=row["answer"] + "可以打给我13812345678"))
    assert {finding.what for finding in findings_of(run)} == {"personal data: phone"}


def test_a_rater_by_name_is_refused(run: Path, tmp_path: Path) -> None:
    ratings = write_ratings(run, tmp_path / "rated")
    path = ratings / "ratings.jsonl"
    path.write_text(path.read_text("utf-8").replace('"R2"', '"李华"'), "utf-8")
    with pytest.raises(PublishRefusedError, match="names a rater") as caught:
        plan_of(run, ratings=(ratings,))
    assert "李华" not in str(caught.value)


def test_a_blind_study_is_refused(run: Path, tmp_path: Path) -> None:
    ratings = write_ratings(run, tmp_path / "rated", is_blind=True)
    with pytest.raises(PublishRefusedError, match="letters still"):
        plan_of(run, ratings=(ratings,))


def test_ratings_of_other_questions_are_refused(run: Path, tmp_path: Path) -> None:
    ratings = write_ratings(run, tmp_path / "rated")
    edit_rows(run, lambda row: row.update(id="1" + row["id"]))
    with pytest.raises(DataError, match="rates no question of this dataset"):
        plan_of(run, ratings=(ratings,))


# --- with the text -------------------------------------------------------------------------------


def test_question_text_needs_a_permission(run: Path, tmp_path: Path) -> None:
    permission = tmp_path / "grant.pdf"
    with pytest.raises(PublishRefusedError, match="--permission FILE"):
        plan_of(run, include_source_text=True)
    with pytest.raises(PublishRefusedError, match="is no permission"):
        plan_of(run, include_source_text=True, permission=permission)
    permission.write_bytes(b"%PDF-1.7 granted")
    with pytest.raises(PublishRefusedError, match="ended on 2026-05-18"):
        plan_of(run, include_source_text=True, permission=permission, permission_until="2026-05-18")


def test_with_permission_text_is_published_and_the_permission_recorded(
    run: Path, tmp_path: Path
) -> None:
    permission = tmp_path / "grant.pdf"
    permission.write_bytes(b"%PDF-1.7 granted")
    later = (datetime.date.today() + datetime.timedelta(days=30)).isoformat()
    more = {"include_source_text": True, "permission": permission, "permission_until": later}
    plan = plan_of(run, **more)
    assert findings_of(run, **more) == []
    rows = {row["id"]: row for row in rows_of(run)}
    for row in table_of(plan, "qa"):
        assert row["question"] == rows[row["id"]]["question"]
        assert row["keywords"] == rows[row["id"]]["keywords"]
    assert any(label["evidence"] for label in table_of(plan, "distortions"))
    recorded = json.loads(plan.file("provenance.json").source.read_text("utf-8"))
    assert recorded["has_source_text"] is True
    sentence = recorded["run"]["acknowledgements"]["source_text"]
    assert "grant.pdf" in sentence and later in sentence
    assert plan.acknowledgements == {"source_text": sentence}
    assert not any("grant" in file.path for file in plan.files)
    # a card stays readable for all, also where the tables hold the text
    assert rows_of(run)[0]["question"] not in plan.card


def test_question_text_in_the_notes_is_refused_even_with_permission(
    run: Path, tmp_path: Path
) -> None:
    permission, notes = tmp_path / "grant.pdf", tmp_path / "notes.md"
    permission.write_bytes(b"%PDF-1.7 granted")
    notes.write_text(f"An example: {rows_of(run)[0]['question']}", "utf-8")
    found = findings_of(run, include_source_text=True, permission=permission, notes=notes)
    assert {finding.where.split(":")[0] for finding in found} == {"README.md"}


# --- join ----------------------------------------------------------------------------------------


def published_folder(run: Path, **more: Any) -> Path:
    plan_of(run, **more)
    return run / "publish" / "files"


@pytest.mark.parametrize("masks", [False, True])
def test_join_gives_the_dataset_back(masks: bool, tmp_path: Path) -> None:
    run = write_dataset_folder(tmp_path / "run", 30) if masks else write_dataset(tmp_path / "run")
    source = write_psyqa(run, tmp_path / "psyqa.json")
    published = published_folder(run, quotes="mask" if masks else "refuse")
    joined = join(JoinSettings(published=str(published), questions=source, out=tmp_path / "joined"))
    kept_back = dict.fromkeys(("endpoint_host", "dangers", "is_acute", "is_minor"))
    before = [{**row, **kept_back} for row in rows_of(run)]
    assert rows_of(tmp_path / "joined") == before
    assert (joined.n_joined, joined.n_missing, joined.n_other) == (30, 0, 0)
    manifest = read_manifest(tmp_path / "joined")
    assert manifest.kind == "dataset" and manifest.counts["n_out"] == 30
    assert (tmp_path / "joined" / "README.md").exists()


def test_join_refuses_a_question_that_reads_differently(run: Path, tmp_path: Path) -> None:
    source = write_psyqa(run, tmp_path / "psyqa.json")
    rows = json.loads(source.read_text("utf-8"))
    rows[0]["description"] += "！"
    source.write_text(json.dumps(rows[:-2], ensure_ascii=False), "utf-8")
    settings = {"published": str(published_folder(run)), "questions": source}
    with pytest.raises(IncompleteRunError, match="2 entries have no question"):
        join(JoinSettings(**settings, out=tmp_path / "a"))
    joined = join(JoinSettings(**settings, out=tmp_path / "b", partial=True))
    assert (joined.n_joined, joined.n_missing, joined.n_other) == (27, 2, 1)
    rejected = (tmp_path / "b" / "rejects.jsonl").read_text("utf-8").splitlines()
    assert len(rejected) == 3


def test_join_refuses_what_was_changed_or_is_nothing_to_join(run: Path, tmp_path: Path) -> None:
    source, out = write_psyqa(run, tmp_path / "psyqa.json"), tmp_path / "joined"
    published = published_folder(run)
    foreign = write_psyqa(write_dataset_folder(tmp_path / "other", 2), tmp_path / "foreign.json")
    foreign.write_text(foreign.read_text("utf-8").replace('": 9', '": 77'), "utf-8")
    with pytest.raises(DataError, match="none of 30 entries"):
        join(JoinSettings(published=str(published), questions=foreign, out=tmp_path / "x"))
    out.mkdir()
    (out / "mine.txt").write_text("x", "utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        join(JoinSettings(published=str(published), questions=source, out=out))
    (published / "provenance.json").write_text(
        (published / "provenance.json")
        .read_text("utf-8")
        .replace('"has_source_text": false', '"has_source_text": true'),
        "utf-8",
    )
    with pytest.raises(UsageError, match="already"):
        join(JoinSettings(published=str(published), questions=source, out=tmp_path / "y"))
    published = published_folder(run)
    table = next(published.glob("qa/*.parquet"))
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="not what was published"):
        join(JoinSettings(published=str(published), questions=source, out=tmp_path / "z"))


def test_the_licence_file_carries_terms_and_notices(run: Path) -> None:
    terms = plan_of(run).file("LICENSE.md").source.read_text("utf-8")
    assert "心理互助问答，非心理咨询，仅为心理知识分享。" in terms
    assert "commercial use" in terms


# --- a guard -------------------------------------------------------------------------------------


def test_an_answer_that_the_guard_finds_unsafe_is_not_published_and_a_dry_run_asks_nobody(
    tmp_path: Path,
) -> None:
    run = write_dataset(tmp_path / "run")
    rows = list(DatasetFolder.open(run).rows())
    bad = rows[0]

    def script(seen: Seen) -> Answer:
        problems = [{"kind": "minimising", "quote": bad["answer"][:8]}]
        is_bad = bad["question"] in seen.user_text and bad["answer"] in seen.user_text
        if len(server.requests) == 2 and not is_bad:
            return ok("I will not judge that.")
        return ok(json.dumps({"problems": problems if is_bad else []}, ensure_ascii=False))

    with ScriptedEndpoint(script) as server:
        given = {"guard_endpoint": server.url, "guard_model": "g", "in_flight": 1}
        settings = settings_of(run, **given, max_attempts=1)
        assert not prepare_dataset(settings, asks=False).findings and not server.requests
        prepared = prepare_dataset(settings)
        again = prepare_dataset(settings)
        assert len(server.requests) == len(rows)
    (found,) = prepared.findings
    assert found.where == f"question {bad['id']}" and "minimising" in found.what
    assert again.findings == prepared.findings
    assert any("read" in one and "answers" in one for one in prepared.plan.remarks)
    assert "guard.journal.sqlite" in {path for path, _ in again.plan.left_out}
