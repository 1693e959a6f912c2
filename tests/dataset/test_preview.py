"""A preview: which questions, through which prompts, on one page, and nothing paid twice."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbtqa.cli.main import main
from cbtqa.dataset.instruction import Grades, Item
from cbtqa.dataset.preview import choose
from cbtqa.records import Question
from tests.support.answers import good_answer, mark_of, steps
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok

Run = Callable[..., tuple[int, str, str]]
DANGER = "我不想活了，已经写好了遗书。"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`cbtqa build-dataset` in a folder that holds `q.jsonl`: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    rows = [
        {"id": f"q{i}", "question": f"第{i}次考砸了怎么办？", "description": f"这回差了{i}分。"}
        for i in range(30)
    ]
    rows[17]["description"] = DANGER
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "q.jsonl").write_text(text, "utf-8")

    def build(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["build-dataset", "q.jsonl", "--out", "out", *map(str, words)])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, " ".join(shown.err.split())

    return build


def items(texts: list[str]) -> list[Item]:
    grades = Grades()
    return [Item(Question(id=f"q{i}", question=text), i, grades) for i, text in enumerate(texts)]


def ids(found: tuple[list[Item], int]) -> list[str]:
    return [item.question.id for item in found[0]]


def test_questions_come_from_the_whole_input_and_more_take_in_the_fewer() -> None:
    many = items([f"第{i}个问题" for i in range(1000)])
    chosen, n_total = choose(many, 40, seed=1)
    assert n_total == 1000 and len(chosen) == 40
    places = [item.place for item in chosen]
    assert places == sorted(places)
    assert all(any(low <= place < low + 250 for place in places) for low in range(0, 1000, 250))
    assert set(ids(choose(many, 5, seed=1))) < set(ids(choose(many, 6, seed=1)))
    assert ids(choose(many, 5, seed=1)) != ids(choose(many, 5, seed=2))
    assert ids(choose(many[:3], 5)) == ["q0", "q1", "q2"]


@pytest.mark.parametrize("place", [0, 123, 399])
def test_one_question_speaks_of_danger_wherever_it_stands(place: int) -> None:
    texts = [f"第{i}次考砸了怎么办？" for i in range(400)]
    assert {item.grade.risk for item in choose(items(texts), 3)[0]} == {"none"}
    texts[place] = DANGER
    found = choose(items(texts), 3)
    assert f"q{place}" in ids(found) and len(found[0]) == 3


def test_two_prompts_stand_side_by_side_and_neither_is_paid_again(run: Run, tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda seen: ok(good_answer(seen))) as server:
        asked = ("--endpoint", server.url, "--model", "m")
        both = (*asked, "--prompt", "cbt_answer.v2", "--prompt", "cbt_answer.v1")
        code, out, _ = run(*both, "--preview", 4, "--json")
        assert code == 0 and server.n_paid == 8
        first, second = json.loads(out)["variants"]
        assert (first["name"], second["name"]) == ("cbt_answer.v2", "cbt_answer.v1")
        assert (first["wants_fork"], second["wants_fork"]) == (False, True)
        assert json.loads(out)["n_in_input"] == 30
        assert {one["risk"] for one in first["answers"]} == {"none", "explicit"}
        page = (tmp_path / "out" / "preview.html").read_text("utf-8")
        assert page.count("<h4>cbt_answer.v2</h4>") == page.count("<h4>cbt_answer.v1</h4>") == 4
        assert "要求 350–550" in page and DANGER in page and "<script" not in page
        # once more, and both whole runs: 26 new questions each
        assert run(*both, "--preview", 4)[0] == 0 and server.n_paid == 8
        assert run(*asked, "--prompt", "cbt_answer.v2", "--max-rejected", "1")[0] == 0
        assert server.n_paid == 34
        words = (*asked, "--prompt", "cbt_answer.v1", "--fork", "--update")
        assert run(*words, "--max-rejected", "1")[0] == 0
        assert server.n_paid == 60 and server.n_paid_again == 0


def test_a_fork_of_the_folders_own_settings_is_its_own_journal(run: Run, tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda seen: ok(good_answer(seen))) as server:
        asked = ("--endpoint", server.url, "--model", "m")
        assert run(*asked, "--preview", 3)[0] == 0
        assert run(*asked, "--fork")[0] == 0
        assert server.n_paid == 30 and server.n_paid_again == 0
    assert [path.name for path in (tmp_path / "out").glob("*.sqlite")] == ["journal.sqlite"]


def test_models_are_compared_too_and_the_dry_run_counts_them_all(run: Run) -> None:
    with ScriptedEndpoint(lambda seen: ok(good_answer(seen))) as server:
        asked = ("--endpoint", server.url, "--model", "one", "--model", "two", "--preview", 3)
        code, out, _ = run(*asked, "--dry-run", "--json")
        told = json.loads(out)
        assert code == 0 and told["n_requests"] == 6 and not server.requests
        assert [part["name"] for part in told["parts"]] == ["cbt_answer (one)", "cbt_answer (two)"]
        assert run(*asked)[0] == 0
        assert sorted(seen.body["model"] for seen in server.requests) == ["one"] * 3 + ["two"] * 3
        assert json.loads(run(*asked, "--dry-run", "--json")[1])["n_requests"] == 0


def test_the_dry_run_counts_the_labels_of_the_chosen_questions_too(run: Run) -> None:
    def script(seen: Seen) -> Answer:
        if "标注员" in seen.body["messages"][0]["content"]:
            return ok('{"labels": []}')
        parts = [v for k, v in steps(mark_of(seen), with_help=True).items() if k != "distortions"]
        return ok("\n\n".join(parts))

    with ScriptedEndpoint(script) as server:
        asked = ("--endpoint", server.url, "--model", "m")
        one = (*asked, "--prompt", "cbt_answer_fused", "--preview", 3)
        told = json.loads(run(*one, "--dry-run", "--json")[1])
        answers, labels = told["parts"]
        # one of the three speaks of danger and gets no labels
        assert (answers["n_requests"], labels["n_requests"], told["n_requests"]) == (3, 2, 5)
        assert told["n_items"] == 3 and labels["prompt_tokens"] > 0
        assert told["prompt_tokens"] == answers["prompt_tokens"] + labels["prompt_tokens"]
        both = json.loads(run(*one, "--prompt", "cbt_answer", "--dry-run", "--json")[1])
        assert [part["name"] for part in both["parts"]] == [
            "cbt_answer_fused, answers",
            "cbt_answer_fused, labels of the questions",
            "cbt_answer",
        ]
        assert both["n_requests"] == 8 and not server.requests
        assert run(*one)[0] == 0 and server.n_paid == 5
        assert json.loads(run(*one, "--dry-run", "--json")[1])["n_requests"] == 0


def test_what_was_faulty_is_told_with_its_reason_and_whether_asking_again_helped(
    run: Run, tmp_path: Path
) -> None:
    def script(seen: Seen) -> Answer:
        text = seen.user_text
        is_again = len(seen.body["messages"]) > 2
        if "第1" in text and not is_again:
            return ok(written(seen, key_thought=""))
        if "第2" in text:
            return ok(written(seen, strategy_or_insight="1. <b>先睡一觉</b>，再去散步，慢慢来。"))
        return ok(good_answer(seen))

    def written(seen: Seen, **changed: Any) -> str:
        return json.dumps(steps(mark_of(seen), with_help=True, **changed), ensure_ascii=False)

    with ScriptedEndpoint(script) as server:
        prices = ("--price-in", "2", "--price-out", "8")
        asked = ("--endpoint", server.url, "--model", "m", "--preview", 30, *prices)
        code, out, _ = run(*asked, "--json")
    (found,) = json.loads(out)["variants"]
    # ten plain ones, 1 and 10 to 19 mended, 2 and 20 to 29 rejected, the crisis question among them
    assert code == 0
    assert (found["n_first_try"], found["n_accepted"]) == (8, 19)
    assert (found["n_asked_again"], found["n_helped"]) == (11 + 22, 11)
    reasons = {one["reason"] for one in found["answers"]} - {None}
    assert len(reasons) == 1 and found["faults"] == {"missing_step": 11, reasons.pop(): 33}
    assert found["cost"] == pytest.approx(63 * (100 * 2 + 50 * 8) / 1e6)
    assert found["cost_of_all"] == pytest.approx(found["cost"])
    page = (tmp_path / "out" / "preview.html").read_text("utf-8")
    assert "第 2 次合格" in page and "&lt;b&gt;先睡一觉" in page and "<b>先睡一觉" not in page


def test_several_prompts_without_a_preview_are_refused_in_one_sentence(run: Run) -> None:
    words = ("--endpoint", "vllm", "--model", "m", "--prompt", "cbt_answer", "--prompt", "x.md")
    code, _, err = run(*words)
    assert code == 2 and "several --prompt or --model are compared with --preview N" in err
    code, _, err = run("--prompt", "cbt_answer", "--prompt", "cbt_answer.v1", "--preview", 2)
    assert code == 2 and "--endpoint" in err


def test_an_input_without_a_question_is_one_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "1", "question": ""}\n', "utf-8")
    code, _, err = run("--preview", 2)
    assert code == 4 and "holds no question to ask" in err
    assert not (tmp_path / "out").exists()


def test_a_preview_without_one_answer_keeps_its_page_and_does_not_end_with_0(
    run: Run, tmp_path: Path
) -> None:
    with ScriptedEndpoint(ok("不是 JSON")) as server:
        code, _, err = run("--endpoint", server.url, "--model", "m", "--preview", 2)
    assert code == 6 and "not one of 2 questions has an answer: not_json 2" in err
    page = (tmp_path / "out" / "preview.html").read_text("utf-8")
    assert page.count("不是 JSON") >= 6


def test_without_a_model_the_template_shows_what_a_page_looks_like(
    run: Run, tmp_path: Path
) -> None:
    code, out, _ = run("--preview", 2, "--json")
    (found,) = json.loads(out)["variants"]
    assert code == 0 and found["name"] == "template" and found["cost"] is None
    assert (tmp_path / "out" / "preview.html").exists()


def test_rows_that_are_no_question_are_counted_by_reason(run: Run, tmp_path: Path) -> None:
    bad = [{"id": "q99", "question": ""}, {"id": "q3", "question": "另一个问题，编号却一样？"}]
    with (tmp_path / "q.jsonl").open("a", encoding="utf-8") as file:
        file.writelines("\n" + json.dumps(row, ensure_ascii=False) for row in bad)
    code, out, _ = run("--preview", 2, "--json")
    told = json.loads(out)
    assert (code, told["n_in_input"]) == (0, 30)
    assert told["left_out"] == {"bad_row": 1, "duplicate_id": 1}
    _, out, err = run("--preview", 2)
    assert "left out: bad_row 1, duplicate_id 1" in f"{out} {err}"


def test_a_budget_holds_for_all_prompts_of_a_preview_together(run: Run, tmp_path: Path) -> None:
    def reply(seen: Seen) -> Answer:
        return ok(good_answer(seen), prompt_tokens=1500, completion_tokens=400)

    with ScriptedEndpoint(reply) as server:
        both = ("--prompt", "cbt_answer.v2", "--prompt", "cbt_answer.v1", "--in-flight", 1)
        asked = ("--endpoint", server.url, "--model", "m", "--preview", 4, *both)
        code, _, err = run(*asked, "--budget-tokens", 5 * 1900 + 100)
        assert code == 6 and "budget is used up" in err and 4 <= server.n_paid < 8
        assert run(*asked)[0] == 0 and server.n_paid == 8 and server.n_paid_again == 0


def test_a_folder_of_something_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    code, _, err = run("--preview", 2)
    assert code == 3 and "holds no dataset" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_journal_of_other_settings_without_a_reply_is_taken_over(
    run: Run, tmp_path: Path
) -> None:
    with ScriptedEndpoint(Answer(status=401, body={"error": {"message": "no"}})) as server:
        assert run("--endpoint", server.url, "--model", "m", "--preview", 2)[0] != 0
    with ScriptedEndpoint(lambda seen: ok(good_answer(seen))) as server:
        words = ("--endpoint", server.url, "--model", "m", "--prompt", "cbt_answer.v1")
        assert run(*words, "--preview", 2)[0] == 0
    with sqlite3.connect(tmp_path / "out" / "journal.sqlite") as db:
        (text,) = db.execute("SELECT value FROM meta WHERE name = 'fingerprint'").fetchone()
    assert json.loads(text)["prompt"] == "cbt_answer.v1"
