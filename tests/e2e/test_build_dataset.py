"""`cbtqa build-dataset` as a user runs it: as a process, to the end, or killed on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from cbtqa.files import read_rows
from tests.support.answers import good_answer, steps
from tests.support.endpoint import (
    ScriptedEndpoint,
    Seen,
    content_filter,
    cut_by_length,
    ok,
    refusal,
    slow,
)
from tests.support.program import environment, program, run_cbtqa


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("data/*.parquet")) for _, row in read_rows(path)]


def counts_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text("utf-8"))["counts"]


def write_questions(path: Path, n: int) -> Path:
    rows = [
        {
            "questionID": i,
            "question": f"第{i}次遇到这样的事该怎么办？",
            "keywords": "成长,自我成长",
            "description": f"这是第{i}件让人为难的小事，{'我想了很久还是没有头绪，' * (1 + i % 3)}想听听建议。",
            "answers": [],
        }
        for i in range(n)
    ]
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    return path


def test_without_arguments_the_sample_becomes_a_dataset(tmp_path: Path) -> None:
    done = run_cbtqa("build-dataset", cwd=tmp_path)
    folder = tmp_path / "cbtqa-dataset"
    counts = counts_of(folder)
    assert counts["n_in"] == counts["n_out"] + counts["n_rejected"] >= 60
    assert counts["n_rejected"] == 0
    rows = rows_of(folder)
    assert len(rows) == counts["n_out"]
    assert not any(row["is_training_source"] for row in rows)
    for name in ("README.md", "report.html", "rejects.jsonl", "manifest.json"):
        assert (folder / name).exists()
    assert "--endpoint" in done.stderr + done.stdout  # says what to change for real data


def test_the_same_command_again_changes_nothing(tmp_path: Path) -> None:
    run_cbtqa("build-dataset", "--out", "a", cwd=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.parquet")}
    again = run_cbtqa("build-dataset", "--out", "a", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["was_complete"] is True
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.parquet")}


def test_other_settings_on_a_finished_folder_are_refused_with_the_difference(
    tmp_path: Path,
) -> None:
    run_cbtqa("build-dataset", "--out", "a", cwd=tmp_path)
    done = run_cbtqa("build-dataset", "--out", "a", "--test", "0.3", cwd=tmp_path, code=3)
    assert "test: 0.05 there, 0.3 now" in done.stderr and "--update" in done.stderr
    run_cbtqa("build-dataset", "--out", "a", "--test", "0.3", "--update", cwd=tmp_path)
    assert counts_of(tmp_path / "a")["splits"]["test"] > 5


def test_an_endpoint_answers_every_question_once(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.json", 40)
    with ScriptedEndpoint(lambda seen: ok(good_answer(seen))) as server:
        run_cbtqa(
            "build-dataset",
            questions,
            "--endpoint",
            server.url,
            "--model",
            "m",
            "--out",
            "a",
            cwd=tmp_path,
        )
        assert server.n_paid == 40 and server.n_paid_again == 0
    rows = rows_of(tmp_path / "a")
    assert {row["model"] for row in rows} == {"m"}
    assert all(row["prompt_tokens"] == 100 and row["is_training_source"] for row in rows)


def test_faults_are_asked_again_and_end_as_records_or_counted_rejections(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.json", 10)
    bad = json.dumps(
        steps(distortions=[{"id": "labeling", "evidence": "我没有说过的话"}]), ensure_ascii=False
    )

    asked: Counter[str] = Counter()

    def script(seen: Seen):  # type: ignore[no-untyped-def]
        text = next(m["content"] for m in seen.body["messages"] if m["role"] == "user")
        if "第0次" in text:
            return content_filter()
        if "第1次" in text:
            return refusal()
        if "第2次" in text:
            return cut_by_length('{"validation_and_empathy": "写到一半')
        if "第3次" in text:
            return ok(bad)
        asked[text] += 1
        is_again = asked[text] > 1
        if "第4次" in text and not is_again:
            return ok("这不是 JSON")
        if "第5次" in text and not is_again:
            return ok(json.dumps(steps(key_thought=""), ensure_ascii=False))
        return ok(good_answer(seen))

    with ScriptedEndpoint(script) as server:
        run_cbtqa(
            "build-dataset",
            questions,
            "--endpoint",
            server.url,
            "--model",
            "m",
            "--out",
            "a",
            cwd=tmp_path,
        )
    counts = counts_of(tmp_path / "a")
    assert counts["n_in"] == 10 and counts["n_out"] == 6
    assert counts["rejected"] == {
        "content_filter": 1,
        "refusal": 1,
        "cut": 1,
        "evidence_not_found": 1,
    }
    rejects = [
        json.loads(line)
        for line in (tmp_path / "a" / "rejects.jsonl").read_text("utf-8").splitlines()
    ]
    raw = {reject["reason"]: reject["raw"] for reject in rejects}
    assert raw["evidence_not_found"] == bad


@pytest.mark.timeout(110)
def test_killed_at_any_moment_and_continued_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.json", 120)
    with ScriptedEndpoint(lambda seen: slow(ok(good_answer(seen)), 0.05)) as server:
        words = [
            "build-dataset",
            str(questions),
            "--endpoint",
            server.url,
            "--model",
            "m",
            "--in-flight",
            "4",
        ]
        run_cbtqa(*words, "--out", "whole", cwd=tmp_path)
        server.paid.clear()
        for n_more in (7, 44):
            process = subprocess.Popen(
                [*program(), *words, "--out", "killed"],
                cwd=tmp_path,
                env=environment(),
                stderr=subprocess.DEVNULL,
            )
            before = server.n_paid
            while server.n_paid < before + n_more:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (tmp_path / "killed" / "manifest.json").exists()
        run_cbtqa(*words, "--out", "killed", cwd=tmp_path)
        # lost by a kill: four in flight, and what came in during the 50 ms before a commit
        assert server.n_paid_again <= 2 * (4 + 4)
    whole, killed = rows_of(tmp_path / "whole"), rows_of(tmp_path / "killed")
    for row in (*whole, *killed):
        row.pop("created_at")
    assert whole == killed


def test_a_killed_template_run_leaves_no_process_behind_and_continues(tmp_path: Path) -> None:
    # the first 2,000 are answered before other processes are started
    questions = write_questions(tmp_path / "q.json", 2200)
    words = ["build-dataset", str(questions), "--out", "a"]
    process = subprocess.Popen(
        [*program(), *words],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):  # nobody of its group is left, within ten seconds
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    run_cbtqa(*words, cwd=tmp_path)
    assert counts_of(tmp_path / "a")["n_out"] == 2200


def test_a_second_process_on_the_same_output_is_refused(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.json", 30)
    with ScriptedEndpoint(lambda seen: slow(ok(good_answer(seen)), 0.5)) as server:
        words = [
            "build-dataset",
            str(questions),
            "--endpoint",
            server.url,
            "--model",
            "m",
            "--out",
            "a",
            "--in-flight",
            "2",
        ]
        first = subprocess.Popen(
            [*program(), *words], cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL
        )
        while not server.n_paid:
            time.sleep(0.05)
        second = run_cbtqa(*words, cwd=tmp_path, code=3)
        assert str(first.pid) in second.stderr
        first.kill()
        first.wait()


def test_a_changed_model_on_a_begun_journal_is_refused_or_forked(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.json", 5)
    with ScriptedEndpoint(lambda seen: ok(good_answer(seen))) as server:
        words = ["build-dataset", str(questions), "--endpoint", server.url, "--out", "a"]
        run_cbtqa(*words, "--model", "m", cwd=tmp_path)
        (tmp_path / "a" / "manifest.json").unlink()
        done = run_cbtqa(*words, "--model", "other", cwd=tmp_path, code=3)
        assert "model" in done.stderr and "--fork" in done.stderr
        run_cbtqa(*words, "--model", "other", "--fork", cwd=tmp_path)
    assert {row["model"] for row in rows_of(tmp_path / "a")} == {"other"}


def test_text_does_not_leave_the_machine_without_acknowledgement(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.json", 3)
    done = run_cbtqa(
        "build-dataset",
        questions,
        "--endpoint",
        "deepseek",
        "--model",
        "m",
        cwd=tmp_path,
        code=7,
        DEEPSEEK_API_KEY="sk-invented",
    )
    assert "--acknowledge-disclosure" in done.stderr
    assert not (tmp_path / "cbtqa-dataset").exists()
    words = ("--endpoint", "deepseek", "--model", "m", "--dry-run")
    run_cbtqa("build-dataset", questions, *words, cwd=tmp_path, DEEPSEEK_API_KEY="sk-invented")


def test_an_endpoint_that_is_gone_ends_with_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbtqa.llm.limits.NEVER_THERE_S", 0.5)  # 8 s where a wheel is tested
    questions = write_questions(tmp_path / "q.json", 3)
    done = run_cbtqa(
        "build-dataset",
        questions,
        "--endpoint",
        "http://127.0.0.1:9/v1",
        "--model",
        "m",
        cwd=tmp_path,
        code=5,
    )
    assert "127.0.0.1" in done.stderr


def test_a_crisis_question_gets_help_routes_and_its_own_split(tmp_path: Path) -> None:
    rows = [
        {
            "questionID": 1,
            "question": "我不想活了，今晚就想结束自己",
            "answers": [],
            "description": "我已经写好了遗书，觉得活着没有意义。",
            "keywords": "情绪",
        }
    ]
    (tmp_path / "q.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    run_cbtqa("build-dataset", "q.json", "--out", "a", cwd=tmp_path)
    (row,) = rows_of(tmp_path / "a")
    assert row["risk"] == "explicit" and "12356" in row["answer"]
    assert counts_of(tmp_path / "a")["splits"] == {"crisis": 1}
    run_cbtqa("build-dataset", "q.json", "--out", "b", "--crisis", "drop", cwd=tmp_path, code=6)
    assert counts_of(tmp_path / "b")["rejected"] == {"crisis_dropped": 1}


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("q.json", b"<html></html>", "HTML"),
        ("q.json", b"", "empty"),
        ("q.xlsx", b"PK\x03\x04", "q.xlsx"),
        ("q.json", b'[{"question": "a"', "q.json"),
    ],
)
def test_a_file_that_is_not_what_it_says_ends_with_one_clear_error(
    tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = run_cbtqa("build-dataset", name, cwd=tmp_path, code=4)
    assert part in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_cluster_asks_in_actors_and_gives_the_dataset_of_one_process(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions.json", 40)
    with ScriptedEndpoint(lambda seen: ok(good_answer(seen))) as server:
        words = ["build-dataset", questions, "--endpoint", server.url, "--model", "m"]
        run_cbtqa(*words, "--out", "one", cwd=tmp_path)
        run_cbtqa(*words, "--out", "many", "--cluster", "local", cwd=tmp_path)
        assert server.n_paid == 80
    one, many = (rows_of(tmp_path / name) for name in ("one", "many"))
    for row in (*one, *many):
        del row["created_at"]
    assert one == many
