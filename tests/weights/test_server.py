"""A real model behind a real server: llama.cpp with SmolLM2-135M-Instruct, on loopback.

The model is far too small for what it is asked: most of what it writes is rejected. What is tested
is that every item ends, with an answer or with a reason that is true of the text that was rejected,
that sessions end for a stated reason, and that a killed run pays for nothing twice.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cbtqa.files import read_rows
from cbtqa.llm.journal import Journal
from cbtqa.records import STEP_NAMES, Session
from cbtqa.simulation.marks import takes_leave
from tests.support.program import environment, program, run_cbtqa
from tests.weights.conftest import Figure
from tests.weights.models import NotHereError, smollm2_gguf

pytestmark = [
    pytest.mark.weights,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("server"),
    pytest.mark.filterwarnings("ignore"),  # third-party deprecations, not ours
]
NAME = "smollm2"
QUESTIONS = (
    "I failed an exam and feel like a failure. What can I do?",
    "My friend has not replied for two days. Does she hate me?",
    "I can't sleep because of work.",
    "Everybody at the party seemed happier than me.",
    "I keep putting off the letter to my landlord.",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The flags that name the server and its model."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: scripts/test --real")
    try:
        model = smollm2_gguf()
    except NotHereError as error:
        pytest.skip(str(error))
    script = Path(__file__).with_name("llama_server.py")
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as errors:
        command = [sys.executable, str(script), str(model), NAME]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        with process.stdout:
            url = next((line for line in process.stdout if line.startswith("http")), "").strip()
            assert url, log.read_text()[-500:]
            yield "--endpoint", f"{url}/v1", "--model", NAME, "--timeout-s", "900"
    finally:
        process.kill()
        process.wait()


def _parsed(text: str) -> Any:
    start, end = text.find("{"), text.rfind("}")
    try:
        return json.loads(text[start : end + 1])
    except json.JSONDecodeError:
        return None


def _steps(text: str) -> list[str]:
    found = _parsed(text)
    values = (found.get(name) for name in STEP_NAMES) if isinstance(found, dict) else ()
    return [value.strip() if isinstance(value, str) else "" for value in values]


def _han(text: str) -> float:
    letters = [letter for letter in text if letter.isalpha()]
    return sum("\u3400" <= letter <= "\u9fff" for letter in letters) / max(1, len(letters))


def _has_loop(text: str) -> bool:
    words = text.split() or list(text)
    runs = [tuple(words[k : k + 4]) for k in range(len(words))]
    return len(set(runs)) < len(runs) or any(
        text.count(text[k : k + 12]) > 2 for k in range(len(text))
    )


IS_TRUE: dict[str, Callable[[str], bool]] = {
    "empty": lambda text: not text.strip(),
    "not_json": lambda text: set(_parsed(text) or ()) - {"distortions"} != set(STEP_NAMES),
    "missing_step": lambda text: not all(_steps(text)),
    "step_too_short": lambda text: any(len(step) < 10 for step in _steps(text)),
    "step_too_long": lambda text: any(len(step) > 800 for step in _steps(text)),
    "wrong_language": lambda text: min(map(_han, [text, *_steps(text)])) < 0.6,
    "repetition": _has_loop,
    "markup": lambda text: any(mark in text for mark in ("#", "*", "`", "<", "{", "|")),
}
"""Reason to whether it is so, told from the rejected text alone; `cut` is told by the server."""


def _untrue(folder: Path) -> list[dict[str, Any]]:
    """Rejects whose reason is not so; those without a text must be the server's to explain."""
    found = []
    for _, row in read_rows(folder / "rejects.jsonl"):
        reason, text = row["reason"], row.get("raw") or ""
        check = IS_TRUE.get(reason)
        if reason in ("endpoint", "bad_request", "out_of_budget") or not row["detail"]:
            found.append(row)  # nothing failed here but the model
        elif check is not None and not check(text):
            found.append(row)
    return found


def _counts(folder: Path) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["counts"]
    return counts


def test_a_run_killed_with_sigkill_goes_on_and_pays_for_no_reply_twice(
    server: tuple[str, ...], tmp_path: Path, figure: Figure
) -> None:
    rows = tmp_path / "asked.jsonl"
    lines = (json.dumps({"id": f"q{n}", "prompt": text}) for n, text in enumerate(QUESTIONS))
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "answers"
    words = ("generate", rows, *server, "--out", out, "--split", "all", "--in-flight", "1")
    words += ("--max-new-tokens", "80")
    command = [*program(), *map(str, words)]
    env = environment()
    child = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    try:
        while _n_attempts(out) < 2:
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    before = _replies(out)
    assert 2 <= len(before) < len(QUESTIONS)
    run_cbtqa(*words, cwd=tmp_path)
    after = _replies(out)
    assert before.items() <= after.items(), "what was received stays as it is"
    counts = _counts(out)
    assert counts["n_in"] == len(QUESTIONS) == counts["n_out"] + counts["n_rejected"]
    assert not _untrue(out)
    with Journal(_journal(out), read_only=True) as journal:
        ends = {
            one.reply.text: one.reply.finish_reason
            for _, one in journal.outcomes(after)
            if one and one.reply
        }
    cut = [row["raw"] for _, row in read_rows(out / "rejects.jsonl") if row["reason"] == "cut"]
    assert all(ends[text] == "length" for text in cut)
    figure(f"generate, killed and resumed: {counts['n_out']} answers, {counts['rejected']}")


def _journal(out: Path) -> Path:
    return next(iter(out.glob("*.sqlite")), out / "none.sqlite")


def _n_attempts(out: Path) -> int:
    """Replies in the journal of a run that goes on."""
    try:
        with closing(sqlite3.connect(f"{_journal(out).as_uri()}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM attempts").fetchone()[0])
    except sqlite3.OperationalError:  # there is none yet
        return 0


def _replies(out: Path) -> dict[str, str]:
    """Text by key of what the journal holds."""
    with Journal(_journal(out), read_only=True) as journal:
        keys = list(journal.done_keys())
        return {key: one.reply.text for key, one in journal.outcomes(keys) if one and one.reply}


@pytest.fixture(scope="module")
def question_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.json"
    row = {
        "questionID": 1,
        "question": "考试没考好，觉得自己什么都做不好",
        "description": "上周月考掉了二十名，回家一句话都不想说。我总觉得大家都在看我笑话。",
        "keywords": "学业,焦虑",
        "answers": [],
    }
    path.write_text(json.dumps([row], ensure_ascii=False), encoding="utf-8")
    return path


def test_every_question_of_a_build_ends_and_its_reason_is_true(
    server: tuple[str, ...], question_file: Path, tmp_path: Path, figure: Figure
) -> None:
    out = tmp_path / "dataset"
    words = ("build-dataset", question_file, *server, "--out", out, "--max-attempts", "2")
    done = run_cbtqa(*words, "--max-tokens", "200", "--max-rejected", "1", cwd=tmp_path, code=None)
    assert done.returncode in (0, 6), done.stderr
    rejected = [row for _, row in read_rows(out / "rejects.jsonl")]
    counts = _counts(out) if (out / "manifest.json").is_file() else {"n_out": 0}
    assert counts["n_out"] + len(rejected) == 1
    assert not _untrue(out)
    figure(f"build-dataset: {counts['n_out']} of 1, {[row['reason'] for row in rejected]}")


def test_chat_answers_or_says_why_not(
    server: tuple[str, ...], tmp_path: Path, figure: Figure
) -> None:
    words = ("chat", *server, "--ask", QUESTIONS[1], "--max-new-tokens", "120", "--json")
    done = run_cbtqa(*words, cwd=tmp_path, code=None)
    told = json.loads(done.stdout)
    figure(f"chat: exit {done.returncode}, {told['text'] or done.stderr.strip()!r}")
    assert (done.returncode == 0) == bool(told["text"]), done.stdout + done.stderr
    assert done.returncode == 0 or "error: " in done.stderr


@pytest.mark.slow
def test_the_labels_of_a_real_model_hold_evidence_that_stands_in_the_text(
    server: tuple[str, ...], tmp_path: Path, figure: Figure
) -> None:
    text = "她昨天没回我消息，肯定是讨厌我了。我什么都做不好。"
    path, out = tmp_path / "texts.jsonl", tmp_path / "labels.jsonl"
    path.write_text(json.dumps({"id": "t1", "text": text}, ensure_ascii=False) + "\n", "utf-8")
    words = ("distortions", "label", path, "--labeller", "llm", *server, "--out", out)
    words += ("--extra", '{"max_tokens": 160}')  # it would list labels up to the built-in limit
    done = run_cbtqa(*words, "--max-attempts", "2", cwd=tmp_path, code=None)
    assert done.returncode in (0, 6), done.stderr
    labelled = [row for _, row in read_rows(out)] if out.is_file() else []
    kept = out.with_name("labels.jsonl.rejects.jsonl")
    rejected = [row for _, row in read_rows(kept)] if kept.is_file() else []
    assert len(labelled) + len(rejected) == 1 and all(row["detail"] for row in rejected)
    labels = [label for row in labelled for label in row["labels"]]
    assert all(label["evidence"] in text for label in labels)
    told = [(label["id"], label["evidence"]) for label in labels]
    figure(f"distortions label: {told}, rejected {[row['reason'] for row in rejected]}")


STUDY = """
id: small
approach: cbt
seed: 3
arms: [{name: small, therapist: {endpoint: llama.cpp, model: smollm2, temperature: 0.7, max_tokens: 70}}]
patients: {ready: test, n: 1}
patient: {endpoint: llama.cpp, model: smollm2, temperature: 0.9, max_tokens: 60}
turns: {min: 1, max: 3}
context_tokens: 4000
cut_replies: keep
repairs: 1
instruments: [tes]
"""


@pytest.fixture(scope="module")
def study(server: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session that was played."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    done = run_cbtqa(
        *("simulate", "run", folder / "study.yaml", *server, "--out", folder / "played"),
        cwd=folder, code=None,
    )  # fmt: skip
    assert done.returncode in (0, 6), done.stderr
    return folder / "played"


@pytest.mark.slow
def test_a_session_of_a_real_model_ends_for_a_stated_reason_and_alternates(
    study: Path, figure: Figure
) -> None:
    sessions = [Session.model_validate(row) for _, row in read_rows(study / "sessions.jsonl")]
    assert len(sessions) == 1
    for session in sessions:
        roles = [turn.role for turn in session.turns]
        assert session.stop_reason in ("ended", "max_turns", "context", "no_answer", "refused")
        assert all(one != other for one, other in itertools.pairwise(roles))
        assert roles[:1] == ["patient"]
        if session.stop_reason == "max_turns":
            assert roles.count("therapist") == 3
        if session.stop_reason == "ended":
            assert session.turns[-1].role == "therapist" or takes_leave(session.turns[-1].text)
        marks = [sorted(turn.marks) for turn in session.turns]
        figure(f"simulate run: {session.stop_reason} after {len(roles)} turns, marks {marks}")


@pytest.mark.slow
def test_what_a_real_judge_says_of_a_session_is_a_rating_or_a_reason(
    study: Path, server: tuple[str, ...], tmp_path: Path, figure: Figure
) -> None:
    words = ("simulate", "judge", study, *server, "--keep-marked", "--repeats", "1")
    words += ("--instrument", "tes", "--max-tokens", "300", "--max-attempts", "1")
    done = run_cbtqa(*words, "--out", tmp_path / "judged", cwd=tmp_path, code=None)
    assert done.returncode in (0, 4, 6), done.stderr
    ratings = [
        row for path in (tmp_path / "judged").rglob("*ratings.jsonl") for _, row in read_rows(path)
    ]
    assert ratings
    values = [row["value"] for row in ratings if row["value"] is not None]
    reasons = {row["unscored_reason"] for row in ratings if row["value"] is None}
    assert all(reasons)
    figure(f"simulate judge: {len(values)} of {len(ratings)} items rated; else {sorted(reasons)}")


@pytest.mark.slow
def test_what_a_real_judge_says_of_an_answer_is_a_rating_or_a_reason(
    server: tuple[str, ...], question_file: Path, tmp_path: Path, figure: Figure
) -> None:
    answers = tmp_path / "answers.jsonl"
    row = {
        "id": "1",
        "prediction": "听上去这次考试让你很受打击。一次名次能说明你什么都做不好吗？先休息一晚，再看一道错题。",
    }
    answers.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    words = ("judge", answers, "--questions", question_file, *server, "--repeats", "1")
    words += ("--max-attempts", "1", "--max-tokens", "200", "--out", tmp_path / "judged")
    done = run_cbtqa(*words, cwd=tmp_path, code=None)
    assert done.returncode in (0, 6), done.stderr
    ratings = [row for _, row in read_rows(tmp_path / "judged" / "judge_ratings.jsonl")]
    values = [row["value"] for row in ratings if row["value"] is not None]
    reasons = {row["unscored_reason"] for row in ratings if row["value"] is None}
    assert ratings and all(reasons) and (done.returncode == 0) == bool(values)
    figure(f"judge: {len(values)} of {len(ratings)} criteria rated; else {sorted(reasons)}")
