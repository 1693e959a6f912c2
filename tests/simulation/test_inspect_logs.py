"""Judged sessions as logs: every session and rating is in one, and Inspect opens them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import write_json, write_jsonl
from cbtqa.manifest import FolderResult, Manifest, write_manifest
from cbtqa.records import ItemRating, Session
from cbtqa.settings import resolve
from cbtqa.simulation.export import ExportSettings
from cbtqa.simulation.inspect_logs import export_logs
from cbtqa.simulation.instruments import load_instrument
from cbtqa.simulation.sessions import STUDY_NAME, StudyFolder
from cbtqa.simulation.study import StudySettings
from tests.support.judged_sessions import OPENING, ratings, session

ENDED = "2026-11-21T02:12:30+00:00"


def judged_study(folder: Path, judges: tuple[str, ...] = ("m",)) -> Path:
    """Two arms, two patients, a repeat; the second item of tuned/p1 is open."""
    arms = [{"name": name, "therapist": {"scripted": "plain"}} for name in ("base", "tuned")]
    write_json(
        folder / STUDY_NAME,
        StudySettings.model_validate({"id": "my_study", "approach": "cbt", "arms": arms}),
    )
    made = [
        session(arm, patient, replicate=replicate)
        for arm in ("base", "tuned")
        for patient in ("p0", "p1")
        for replicate in (1, 2)
    ]
    write_jsonl(StudyFolder(folder).sessions_path, made)
    for judge in judges:
        write_ratings(folder / "judged", made, judge)
    return folder


def write_ratings(folder: Path, made: list[Session], judge: str) -> None:
    ctrs = load_instrument("ctrs")
    agenda, second = (item.id for item in ctrs.items[:2])
    found: list[ItemRating] = []
    for one in made:
        is_open = (one.arm, one.profile_id) == ("tuned", "p1")
        for repeat, value in ((1, 2), (2, 4)):
            values = {item.id: value for item in ctrs.items} | {second: None if is_open else value}
            found += ratings(one, ctrs, values, judge=judge, repeat=repeat)
    found = [
        one.model_copy(update={"evidence": OPENING}) if one.item == agenda else one for one in found
    ]
    write_json(folder / "ctrs" / "instrument.json", ctrs.printable)
    write_jsonl(folder / "ctrs" / judge / "ratings.jsonl", found)
    counts = {"judge": judge}
    manifest = Manifest(kind="session-ratings", counts=counts, started_at=ENDED, finished_at=ENDED)
    write_manifest(folder / "ctrs" / judge, manifest)


def exported(study: Path, out: Path, **flags: Any) -> FolderResult:
    given = {"sessions": study, "out": out, "format": "inspect", **flags}
    return export_logs(resolve(ExportSettings, flags=given, environ={}))


def logs_in(result: FolderResult) -> dict[str, dict[str, Any]]:
    names = result.manifest.counts["logs"].items()
    return {arm: json.loads((result.folder / name).read_text("utf-8")) for arm, name in names}


def test_every_session_is_a_sample_and_every_rating_in_a_score(tmp_path: Path) -> None:
    result = exported(judged_study(tmp_path / "s"), tmp_path / "out")
    counts = result.manifest.counts
    assert (counts["n_sessions"], counts["n_judged"], counts["scorers"]) == (8, 8, ["ctrs/m"])
    assert counts["logs"]["base"] == "2026-11-21T02-12-30+00-00_my-study_base.json"
    logs = logs_in(result)
    samples = {(one["id"], one["epoch"]): one for one in logs["tuned"]["samples"]}
    assert list(samples) == [("p0/s1", 1), ("p0/s1", 2), ("p1/s1", 1), ("p1/s1", 2)]
    roles = [message["role"] for message in samples["p0/s1", 1]["messages"]]
    assert roles == ["assistant", "user", "assistant"]
    ctrs = load_instrument("ctrs")
    score = samples["p0/s1", 1]["scores"]["ctrs/m"]
    assert {score["value"][item.id] for item in ctrs.items} == {3}  # the mean of 2 and 4
    assert score["value"][ctrs.headline.id] == 3 * len(ctrs.items)
    assert score["explanation"].count(OPENING) == 2
    means = {one["name"]: one for one in logs["base"]["results"]["scores"]}
    total = means[f"ctrs/m/{ctrs.headline.id}"]
    assert total["metrics"]["mean"]["value"] == 3 * len(ctrs.items)


def test_an_open_item_is_none_with_its_reason_and_no_number(tmp_path: Path) -> None:
    logs = logs_in(exported(judged_study(tmp_path / "s"), tmp_path / "out"))
    ctrs = load_instrument("ctrs")
    second = ctrs.items[1].id
    score = logs["tuned"]["samples"][2]["scores"]["ctrs/m"]
    assert score["value"][second] is None is score["value"][ctrs.headline.id]
    assert score["metadata"]["unscored"] == {second: "open"}
    total = next(
        one
        for one in logs["tuned"]["results"]["scores"]
        if one["name"] == f"ctrs/m/{ctrs.headline.id}"
    )
    assert (total["scored_samples"], total["unscored_samples"]) == (2, 2)


def test_a_second_export_leaves_no_old_log_and_foreign_folders_alone(tmp_path: Path) -> None:
    study, out = judged_study(tmp_path / "s"), tmp_path / "out"
    exported(study, out)
    (out / "2025-01-01T00-00-00+00-00_my-study_gone.json").write_text("{}")
    write_ratings(study / "judged", list(StudyFolder(study).read_sessions()), "other")
    again = exported(study, out)
    assert {path.name for path in out.iterdir()} == {
        "manifest.json",
        *again.manifest.counts["logs"].values(),
    }
    assert again.manifest.counts["scorers"] == ["ctrs/m", "ctrs/other"]
    (out / "thesis.docx").write_text("x")
    with pytest.raises(ConfigError, match=r"holds thesis\.docx"):
        exported(study, out)


def test_unjudged_studies_and_ratings_of_others_are_told(tmp_path: Path) -> None:
    study = judged_study(tmp_path / "s", judges=())
    with pytest.raises(DataError, match="no judge has ended"):
        exported(study, tmp_path / "out")
    write_ratings(tmp_path / "elsewhere", [session("base", "stranger")], "m")
    with pytest.raises(DataError, match="ratings are of no session"):
        exported(study, tmp_path / "out", judged=tmp_path / "elsewhere")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="only makes sense with --format inspect"):
        exported(study, tmp_path / "out", judged=tmp_path / "elsewhere", format="rows")


@pytest.mark.filterwarnings("ignore")
def test_inspect_lists_and_reads_the_logs_whole_and_by_their_heads(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai", reason="needs inspect-ai: cbtqa[doors]")
    from inspect_ai.analysis import evals_df, samples_df
    from inspect_ai.log import list_eval_logs, read_eval_log

    study = judged_study(tmp_path / "s")
    out = exported(study, tmp_path / "out").folder
    listed = list_eval_logs(str(out))
    assert {one.task for one in listed} == {"my-study"}
    log = next(one for one in map(read_eval_log, listed) if one.eval.task_id == "tuned")
    assert log.status == "success" and log.eval.model == "model-of-tuned"
    assert log.samples is not None and len(log.samples) == 4
    first = log.samples[0]
    said = [turn.text for turn in session("tuned", "p0").turns]
    assert [message.text for message in first.messages] == said
    assert first.scores is not None and first.scores["ctrs/m"].value
    assert len(samples_df(str(out))) == 8
    assert len(evals_df(str(out))) == 2


def test_flags_of_rows_are_refused_with_logs(tmp_path: Path) -> None:
    study = judged_study(tmp_path / "s")
    with pytest.raises(UsageError, match="--keep-marked, --validation mean nothing with"):
        exported(study, tmp_path / "out", validation=0.2, keep_marked=True)
    assert not (tmp_path / "out").exists()


def test_an_item_named_like_the_total_keeps_its_value(tmp_path: Path) -> None:
    study = judged_study(tmp_path / "s")
    total = load_instrument("ctrs").headline.id
    folder = study / "judged" / "ctrs"
    for path in (folder / "instrument.json", folder / "m" / "ratings.jsonl"):
        path.write_text(path.read_text("utf-8").replace('"agenda"', f'"{total}"'), "utf-8")
    log = logs_in(exported(study, tmp_path / "out"))["base"]
    for sample in log["samples"]:
        values = sample["scores"]["ctrs/m"]["value"]
        assert values[total] == 3, "the item: a mean of 2 and 4"
        assert values[f"{total} (total)"] == 33, "the total: 11 items of 3"
        assert sample["scores"]["ctrs/m"]["metadata"]["totals"].keys() >= {f"{total} (total)"}
    means = {one["name"]: one["metrics"]["mean"]["value"] for one in log["results"]["scores"]}
    assert means[f"ctrs/m/{total} (total)"] == 33
