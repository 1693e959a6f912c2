"""People's ratings as rows to tune a judge on: the judge's own request, a reply that it accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cbtqa.cli.rate import app
from cbtqa.errors import ConfigError, IncompleteRunError, UsageError
from cbtqa.files import read_rows, write_jsonl
from cbtqa.judging.answers import AnswerJudge, Ask, JudgeRating
from cbtqa.judging.asking import is_quote_of
from cbtqa.judging.training_rows import (
    JudgeRows,
    JudgeRowSettings,
    answer_form,
    export_judge_rows,
    longest_sentence,
)
from cbtqa.llm.chat import Reply, Sampling
from cbtqa.manifest import read_manifest
from cbtqa.ratings.answers import Change
from cbtqa.ratings.store import Event, Store
from cbtqa.ratings.study import StudyFolder
from cbtqa.settings import resolve
from cbtqa.simulation.judging.task import SessionJudge, session_form
from tests.ratings.conftest import MakeStudy


def fill(folder: StudyFolder, store: Store, **evidence: str) -> dict[str, dict[str, int]]:
    """Every presentation rated; what was given, by code and criterion."""
    given: dict[str, dict[str, int]] = {}
    for place, shown in enumerate(folder.plan):
        for k, criterion in enumerate(folder.rubric.scales):
            value = criterion.points[(place + k) % len(criterion.points)]
            given.setdefault(shown.code, {})[criterion.id] = value
            changes = [Change(shown.code, f"value:{criterion.id}", value)]
            if criterion.id in evidence:
                changes.append(
                    Change(shown.code, f"evidence:{criterion.id}", evidence[criterion.id])
                )
            events = [Event(f"{shown.code}:{change.field}", change) for change in changes]
            store.add(shown.rater, "test", events)
    return given


def exported(folder: StudyFolder, store: Store, out: Path, **flags: Any) -> JudgeRows:
    form = answer_form(folder.rubric, flags.pop("prompt", None))
    settings = resolve(JudgeRowSettings, flags=flags, environ={})
    return export_judge_rows(folder, store, form, out, settings)


def rows_of(out: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Split, row, and what is known of it."""
    for split in ("train", "validation", "test"):
        rows = (row for _, row in read_rows(out / f"{split}.jsonl"))
        meta = (row for _, row in read_rows(out / f"{split}.meta.jsonl"))
        yield from ((split, row, about) for row, about in zip(rows, meta, strict=True))


def test_a_row_is_the_judges_request_and_a_raters_ratings(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    given = fill(folder, store)
    found = exported(folder, store, tmp_path / "rows")
    judge = AnswerJudge(folder.rubric, Sampling(seed=0), "any")
    codes = {(p.item_id, p.rater): p.code for p in folder.plan if not p.repeat}
    n = 0
    for _, row, about in rows_of(tmp_path / "rows"):
        item = folder.items[about["item_id"]]
        place = folder.study.raters.index(about["rater"])
        ask = Ask("", "", item.question, item.description, item.answer, place)
        assert row["prompt"] == list(judge.request(ask).messages)
        (message,) = row["completion"]
        read = judge.read(ask, Reply(message["content"]))
        assert isinstance(read, dict)
        values = {name: verdict.value for name, verdict in read.items()}
        assert values == given[codes[about["item_id"], about["rater"]]]
        assert all(is_quote_of(str(one.evidence), item.answer) for one in read.values())
        n += 1
    assert n == sum(found.n_rows.values()) == 48  # 8 questions x 2 systems x 3 raters
    assert found.left_out == {"second_showing": len(folder.plan) - 48}
    assert found.evidence == {"longest sentence": 48 * len(folder.rubric.scales)}
    manifest = read_manifest(tmp_path / "rows")
    assert manifest.counts["n_rows"] == found.n_rows


def test_a_question_is_in_one_split_and_no_row_names_system_or_question(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    fill(folder, store)
    exported(folder, store, tmp_path / "rows", validation=0.25, test=0.25)
    splits: dict[str, set[str]] = {}
    for split, row, about in rows_of(tmp_path / "rows"):
        splits.setdefault(about["question_id"], set()).add(split)
        assert row["id"] == f"{about['item_id']}:{about['rater']}"
        text = json.dumps({**row, "prompt": None}, ensure_ascii=False)
        assert "alpha" not in text and "beta" not in text and about["question_id"] not in row["id"]
    assert all(len(own) == 1 for own in splits.values())
    counts = [sum(own == {split} for own in splits.values()) for split in ("validation", "test")]
    assert counts == [2, 2]


def test_open_and_unjudged_presentations_are_left_out_and_counted(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    fill(folder, store)
    first, second = [p for p in folder.plan if p.rater == "R1" and not p.repeat][:2]
    name = folder.rubric.scales[0].id
    store.add("R1", "test", [Event("a", Change(first.code, f"value:{name}", None))])
    store.add("R1", "test", [Event("b", Change(second.code, "cannot_judge", True))])
    found = exported(folder, store, tmp_path / "rows")
    assert (found.left_out["open"], found.left_out["cannot_judge"]) == (1, 1)
    assert sum(found.n_rows.values()) == 46


def test_a_judges_quote_stands_where_it_gave_the_same_rating(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    given = fill(folder, store)
    name = folder.rubric.scales[0].id
    shown = next(p for p in folder.plan if p.rater == "R2" and not p.repeat)
    item = folder.item_of(shown)
    quote = item.answer[:12]
    rating = JudgeRating(
        question_id=item.question_id,
        system="whatever",
        criterion=name,
        repeat=0,
        value=given[shown.code][name],
        evidence=quote,
        note="因为如此",
        judge="m",
    )
    other = rating.model_copy(update={"evidence": "不在任何回答里的话"})
    (tmp_path / "judged").mkdir()
    write_jsonl(tmp_path / "judged" / "judge_ratings.jsonl", [other, rating])
    found = exported(folder, store, tmp_path / "rows", judged=tmp_path / "judged")
    assert found.evidence["judge"] >= 1
    (row,) = (
        row
        for _, row, about in rows_of(tmp_path / "rows")
        if (about["item_id"], about["rater"]) == (item.id, "R2")
    )
    entry = json.loads(row["completion"][0]["content"])[name]
    assert entry == {"evidence": quote, "reason": "因为如此", "rating": given[shown.code][name]}


def test_a_quote_of_the_question_is_no_evidence_for_the_judge(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    made = make_study()
    scales = made.folder.rubric.scales
    criteria = [one.model_copy(update={"evidence": True}) for one in scales]
    rubric = made.folder.rubric.model_copy(update={"criteria": tuple(criteria)})
    folder = replace(made.folder, rubric=rubric)
    with Store(folder.store_path, folder.study.id) as store:
        fill(folder, store)
        first, second = [p for p in folder.plan if p.rater == "R1" and not p.repeat][:2]
        name = scales[0].id
        asked, said = folder.item_of(first).question, folder.item_of(second).answer[:9]
        for shown, words in ((first, asked), (second, said)):
            change = Change(shown.code, f"evidence:{name}", words)
            store.add("R1", "test", [Event(f"{shown.code}:quote", change)])
        found = exported(folder, store, tmp_path / "rows")
    assert found.evidence == {"rater": 1, "longest sentence": 48 * len(scales) - 1}


def test_nothing_quoted_is_nothing_written_where_quotes_are_asked_for(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(IncompleteRunError, match="open 48"):
        exported(folder, store, tmp_path / "rows")
    fill(folder, store)
    with pytest.raises(IncompleteRunError, match="no_quote 48"):
        exported(folder, store, tmp_path / "rows", quoted_only=True)
    with pytest.raises(ConfigError, match="nothing for train"):
        exported(folder, store, tmp_path / "rows", validation=0.5, test=0.5)


def test_a_study_of_sessions_takes_the_judge_of_sessions(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    turns = [
        {"role": "patient", "text": "I keep thinking I will fail."},
        {"role": "therapist", "text": "What shall we put on the agenda for today, then?"},
        {"role": "patient", "text": "The exam."},
        {"role": "therapist", "text": "Good."},
    ]
    paths = []
    for system in ("a", "b"):
        rows = [{"id": f"p{k}", "turns": turns} for k in range(6)]
        write_jsonl(tmp_path / f"{system}.jsonl", rows)
        paths.append(f"{system}={tmp_path / f'{system}.jsonl'}")
    made = make_study(
        predictions=tuple(paths), questions=None, rubric="ctrs", language="en", n=6, raters=2
    )
    folder = made.folder
    with Store(folder.store_path, folder.study.id) as store:
        given = fill(folder, store, agenda="#2")
        form = session_form(folder.rubric, None)
        settings = resolve(JudgeRowSettings, flags={}, environ={})
        found = export_judge_rows(folder, store, form, tmp_path / "rows", settings)
        judged = resolve(JudgeRowSettings, flags={"judged": tmp_path}, environ={})
        with pytest.raises(UsageError, match="--judged takes ratings of answers"):
            export_judge_rows(folder, store, form, tmp_path / "rows", judged)
    assert sum(found.n_rows.values()) == 24
    assert found.evidence == {"rater": 24, "longest sentence": 240}
    judge = SessionJudge(folder.rubric, "ctrs", Sampling(seed=0), "", "", "judge_session")
    codes = {(p.item_id, p.rater): p.code for p in folder.plan if not p.repeat}
    for _, row, about in rows_of(tmp_path / "rows"):
        place = folder.study.raters.index(about["rater"])
        ask = form.ask(folder.items[about["item_id"]], place)
        read = judge.read(ask, Reply(row["completion"][0]["content"]))
        assert isinstance(read, dict)
        values = {name: verdict.value for name, verdict in read.items()}
        assert values == given[codes[about["item_id"], about["rater"]]]
        assert read["agenda"].evidence == "2" == read["homework"].evidence


def test_the_longest_sentence_keeps_its_words() -> None:
    assert longest_sentence("好。先照顾好自己，再慢慢来！嗯") == "先照顾好自己，再慢慢来！"
    assert longest_sentence("  只有一句  ") == "只有一句"


def test_the_rows_are_taken_by_finetune(folder: StudyFolder, store: Store, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from cbtqa.tuning.settings import FinetuneSettings
    from cbtqa.tuning.training.dry_run import dry_run
    from tests.support.tiny_models import write_tiny_model

    fill(folder, store)
    words = ["export", folder.path, "--for", "judge-sft", "--out", tmp_path / "rows", "--json"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert f"next: cbtqa finetune {tmp_path / 'rows'}" in done.stderr
    assert f"--max-length {found['max_length']}" in done.stderr
    write_tiny_model(tmp_path / "base", max_position_embeddings=8192)
    flags = {"data": tmp_path / "rows", "backbone": str(tmp_path / "base"), "max_length": 8192}
    plan = dry_run(resolve(FinetuneSettings, flags=flags, environ={}))
    assert plan.data["train"]["n_in"] == found["n_rows"]["train"]
    assert not plan.data["train"]["dropped"]
    assert plan.data["validation"]["n_in"] == found["n_rows"]["validation"]
