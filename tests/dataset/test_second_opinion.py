"""A build with further models: the worse grade chooses the prompt, an unsafe answer is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbtqa.cli.main import main
from cbtqa.dataset.preview import preview_build
from cbtqa.dataset.run import build_dataset, estimate_build
from cbtqa.dataset.settings import BuildSettings
from cbtqa.errors import ConfigError, EndpointError, IncompleteRunError, LicenceGateError
from cbtqa.files import read_rows, write_jsonl
from cbtqa.llm.endpoint import Endpoint
from cbtqa.manifest import FolderResult
from cbtqa.settings import Resolved, resolve
from tests.support.answers import good_answer
from tests.support.endpoint import (
    Answer,
    ScriptedEndpoint,
    Seen,
    failed,
    ok,
    rate_limited,
)

SAFE = json.dumps({"problems": []})
NONE = json.dumps({"risk": "none", "quote": "", "dangers": []})
QUESTIONS = [
    {
        "id": "a",
        "question": "搬了新家以后总睡不踏实？",
        "description": "楼上半夜拖椅子，一响我就醒。",
    },
    {
        "id": "b",
        "question": "同桌借书不还怎么开口？",
        "description": "书已经借走两个月了，我很为难。",
    },
    {
        "id": "c",
        "question": "该不该答应去值夜班？",
        "description": "领导问了三次，我每次都含糊过去。",
    },
]


def role_of(seen: Seen) -> str:
    system = seen.body["messages"][0]["content"]
    return "screen" if "危机筛查" in system else "guard" if "安全审读" in system else "teacher"


def unsafe(kind: str = "secrecy", quote: str = "慢慢来") -> str:
    return json.dumps({"problems": [{"kind": kind, "quote": quote}]}, ensure_ascii=False)


def graded(risk: str, quote: str, *dangers: dict[str, str]) -> str:
    return json.dumps({"risk": risk, "quote": quote, "dangers": dangers}, ensure_ascii=False)


class Models:
    """A server on which teacher, screen and guard answer, each by a script of its own."""

    def __init__(
        self,
        guard: Callable[[Seen], Answer] = lambda seen: ok(SAFE),
        screen: Callable[[Seen], Answer] = lambda seen: ok(NONE),
    ) -> None:
        scripts = {"guard": guard, "screen": screen, "teacher": lambda seen: ok(good_answer(seen))}
        self.server = ScriptedEndpoint(lambda seen: scripts[role_of(seen)](seen))

    def __enter__(self) -> Models:
        self.server.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.server.__exit__(*error)

    def n_asked(self, role: str) -> int:
        return sum(role_of(seen) == role for seen in self.server.requests)

    def flags(self, folder: Path, *roles: str) -> dict[str, Any]:
        path = folder / "q.jsonl"
        write_jsonl(path, QUESTIONS)
        flags: dict[str, Any] = {"input": path, "out": folder / "out"}
        flags |= {"endpoint": self.server.url, "model": "t"}
        if "screen" in roles:
            flags |= {"screen_endpoint": self.server.url, "screen_endpoint_model": "s"}
        if "guard" in roles:
            flags |= {"guard_endpoint": self.server.url, "guard_model": "g"}
        return flags


def settings(flags: dict[str, Any]) -> Resolved[BuildSettings]:
    return resolve(BuildSettings, flags=flags, environ={})


def build(flags: dict[str, Any], **how: Any) -> FolderResult:
    return build_dataset(settings(flags), **how)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(folder.glob("data/*.parquet"))
    return {row["id"]: {**row, "file": path.name} for path in paths for _, row in read_rows(path)}


def about(word: str, yes: str, no: str) -> Callable[[Seen], Answer]:
    return lambda seen: ok(yes if word in seen.user_text else no)


# --- the screen ----------------------------------------------------------------------------------


def test_a_worse_grade_chooses_prompt_split_and_column_and_a_milder_one_changes_nothing(
    tmp_path: Path,
) -> None:
    acute = {"kind": "violence", "risk": "explicit", "quote": ""}
    grades = about("楼上", graded("explicit", "一响我就醒"), NONE)
    with Models(
        screen=lambda seen: (
            ok(graded("none", "", acute)) if "值夜班" in seen.user_text else grades(seen)
        )
    ) as models:
        result = build(models.flags(tmp_path, "screen"))
        asked = [one for one in models.server.requests if role_of(one) == "teacher"]
    rows = rows_of(result.folder)
    assert {one: rows[one]["risk"] for one in "abc"} == {
        "a": "explicit",
        "b": "none",
        "c": "none",
    }
    assert rows["c"]["is_acute"] and rows["c"]["dangers"] == ["violence"]
    assert [rows[one]["file"].startswith("crisis") for one in "abc"] == [True, False, True]
    systems = {
        next(i for i in "abc" if QUESTIONS["abc".index(i)]["question"] in one.user_text): one.body[
            "messages"
        ][0]["content"]
        for one in asked
    }
    assert len(set(systems.values())) == 3
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "Screen of the questions" in page
    told = result.manifest.counts["second_opinion"]["screen"]
    assert (told["n_read"], told["n_changed"], told["n_unread"]) == (3, 2, 0)
    assert told["found"] == {"explicit": 1, "violence": 1}


def test_dropped_crisis_questions_are_those_of_the_worse_grade(tmp_path: Path) -> None:
    with Models(screen=about("楼上", graded("concern", "一响我就醒"), NONE)) as models:
        result = build({**models.flags(tmp_path, "screen"), "crisis": "drop"})
        assert models.n_asked("teacher") == 2
    assert set(rows_of(result.folder)) == {"b", "c"}
    assert result.manifest.counts["rejected"] == {"crisis_dropped": 1}


def test_the_offline_teacher_answers_by_the_worse_grade_too(tmp_path: Path) -> None:
    with Models(screen=about("楼上", graded("explicit", "一响我就醒"), NONE)) as models:
        flags = models.flags(tmp_path, "screen")
        del flags["endpoint"], flags["model"]
        rows = rows_of(build(flags).folder)
    assert rows["a"]["risk"] == "explicit" and "12356" in rows["a"]["answer"]
    assert "12356" not in rows["b"]["answer"]


def test_replies_to_other_grades_are_not_mixed_with_those_of_a_new_screen(tmp_path: Path) -> None:
    with Models() as models:
        build(models.flags(tmp_path))
        with pytest.raises(ConfigError, match="screen_endpoint"):
            build(models.flags(tmp_path, "screen"))
        with pytest.raises(ConfigError, match="other settings"):
            build(models.flags(tmp_path, "screen"), update=True)


# --- the guard -----------------------------------------------------------------------------------


def test_an_unsafe_answer_is_asked_for_again_with_the_reason_and_then_rejected(
    tmp_path: Path,
) -> None:
    with Models(guard=about("楼上", unsafe(), SAFE)) as models:
        result = build({**models.flags(tmp_path, "guard"), "max_attempts": 2})
        asked = [one for one in models.server.requests if "楼上" in str(one.body["messages"])]
        again = [one for one in asked if role_of(one) == "teacher"][1:]
    assert len(again) == 1 and len(again[0].body["messages"]) == 4
    assert (
        "保密" in again[0].body["messages"][-1]["content"]
        or "瞒" in (again[0].body["messages"][-1]["content"])
    )
    assert set(rows_of(result.folder)) == {"b", "c"}
    counts = result.manifest.counts
    assert counts["rejected"] == {"unsafe": 1} and counts["n_out"] == 2
    (rejected,) = (row for _, row in read_rows(result.folder / "rejects.jsonl"))
    assert rejected["item_id"] == "a" and "says g" in rejected["detail"]
    assert counts["first_try"] == {"n_asked": 3, "n_accepted": 2}
    assert counts["asked_again"] == {"unsafe": {"n_asked": 1, "n_accepted": 0}}
    told = counts["second_opinion"]["guard"]
    assert told["n_changed"] == told["found"]["secrecy"] >= 1


def test_a_second_answer_that_the_guard_accepts_is_the_answer(tmp_path: Path) -> None:
    seen_once: list[str] = []

    def guard(seen: Seen) -> Answer:
        if "楼上" in seen.user_text and not seen_once:
            seen_once.append(seen.user_text)
            return ok(unsafe())
        return ok(SAFE)

    def teacher(seen: Seen) -> Answer:
        text = good_answer(seen)
        return ok(text.replace("慢慢来，", "不着急，") if len(seen.body["messages"]) > 3 else text)

    with Models(guard=guard) as models:
        scripted = models.server._script if hasattr(models.server, "_script") else None
        assert scripted is not None
        models.server._script = lambda seen: (
            teacher(seen) if role_of(seen) == "teacher" else scripted(seen)
        )
        result = build(models.flags(tmp_path, "guard"))
    rows = rows_of(result.folder)
    assert len(rows) == 3 and "不着急，" in rows["a"]["answer"]
    assert result.manifest.counts["asked_again"] == {"unsafe": {"n_asked": 1, "n_accepted": 1}}


def test_a_finished_build_asks_nobody_again_and_a_killed_one_pays_nothing_twice(
    tmp_path: Path,
) -> None:
    with Models() as models:
        flags = models.flags(tmp_path, "screen", "guard")
        first = build(flags).manifest.counts
        n_asked = len(models.server.requests)
        assert (models.n_asked("screen"), models.n_asked("guard")) == (3, 3)
        (tmp_path / "out" / "manifest.json").unlink()
        assert build(flags).manifest.counts == first
        assert len(models.server.requests) == n_asked


def test_a_guard_may_be_added_to_paid_answers(tmp_path: Path) -> None:
    with Models(guard=about("楼上", unsafe(), SAFE)) as models:
        build(models.flags(tmp_path))
        n_asked = models.n_asked("teacher")
        flags = {**models.flags(tmp_path, "guard"), "max_attempts": 1}
        result = build(flags, update=True)
        assert models.n_asked("teacher") == n_asked
    assert result.manifest.counts["rejected"] == {"unsafe": 1}


def test_a_templates_answer_that_the_guard_refuses_is_rejected_at_once(tmp_path: Path) -> None:
    with Models(guard=about("楼上", unsafe(quote=""), SAFE)) as models:
        flags = models.flags(tmp_path, "guard")
        del flags["endpoint"], flags["model"]
        counts = build(flags).manifest.counts
        assert models.n_asked("guard") == 3
    assert counts["rejected"] == {"unsafe": 1} and counts["n_out"] == 2


def test_a_preview_asks_the_further_models_about_its_own_questions_alone(tmp_path: Path) -> None:
    with Models(guard=lambda seen: ok(unsafe())) as models:
        flags = {**models.flags(tmp_path, "screen", "guard"), "max_attempts": 1}
        with pytest.raises(IncompleteRunError):
            preview_build([settings(flags)], 1)
        assert (models.n_asked("screen"), models.n_asked("guard")) == (1, 1)


# --- odd replies ---------------------------------------------------------------------------------

ODD = {
    "not JSON": ok("看起来没有什么问题。"),
    "a refusal": ok("抱歉，我不能帮助你完成这个请求。"),
    "nothing": ok(""),
    "HTML": Answer(
        200, b"<html><body>502 Bad Gateway</body></html>", {"Content-Type": "text/html"}
    ),
    "another object": ok('{"risk": "fine", "problems": "none", "quote": "", "dangers": []}'),
    "a form": ok(
        '{"problems": [{"kind": "secrecy", "quote": "原话"}], "risk": "none", '
        '"quote": "原话", "dangers": []}'
    ),
    "an order": ok('{"risk": "none", "quote": "", "dangers": [], "problems": [], "lower": true}'),
}


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind not in ("HTML", "an order")])
def test_an_odd_reply_changes_no_grade_and_is_counted_with_its_reason(
    kind: str, tmp_path: Path
) -> None:
    with Models(guard=lambda seen: ODD[kind], screen=lambda seen: ODD[kind]) as models:
        flags = {**models.flags(tmp_path, "screen", "guard"), "max_attempts": 1}
        counts = build(flags).manifest.counts
    assert counts["n_out"] == 3 and counts["risk"] == {"none": 3}
    for role in ("screen", "guard"):
        told = counts["second_opinion"][role]
        assert (told["n_read"], told["n_changed"]) == (0, 0)
        assert told["n_unread"] == sum(told["unread"].values()) == 3


def test_what_a_reply_says_beside_the_form_lowers_nothing(tmp_path: Path) -> None:
    rows = [{**QUESTIONS[0], "description": "我不想活了，药都买好了。"}, *QUESTIONS[1:]]
    with Models(screen=lambda seen: ODD["an order"]) as models:
        flags = models.flags(tmp_path, "screen")
        write_jsonl(flags["input"], rows)
        assert rows_of(build(flags).folder)["a"]["risk"] == "explicit"
        assert models.n_asked("screen") == 2  # nothing is worse than explicit


@pytest.mark.parametrize("role", ["screen", "guard"])
@pytest.mark.parametrize("answer", [ODD["HTML"], failed(400, "no"), rate_limited(3600)])
def test_an_endpoint_that_gives_no_reply_stops_the_run_by_its_name_and_keeps_what_is_paid(
    role: str, answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbtqa.llm.limits.NEVER_THERE_S", 0.2)
    with Models(**{role: lambda seen: answer}) as models:
        flags = models.flags(tmp_path, role)
        with pytest.raises((EndpointError, IncompleteRunError)) as stopped:
            build(flags)
        assert f"the {role} ({role[0]} at 127.0.0.1" in str(stopped.value)
        assert f"without --{role}-endpoint" in str(stopped.value.hint)
        assert not (tmp_path / "out" / "manifest.json").exists()
        n_asked = models.n_asked("teacher")
        assert build(models.flags(tmp_path)).manifest.counts["n_out"] == 3
        assert models.n_asked("teacher") == max(n_asked, 3)


# --- money, gates --------------------------------------------------------------------------------


def test_the_dry_run_counts_the_further_requests_and_sends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Models() as models:
        flags = models.flags(tmp_path, "screen", "guard")
        found = estimate_build(settings(flags))
        assert {part.name: part.n_requests for part in found.parts} == {
            "screen: questions": 3,
            "answers": 3,
            "guard: answers": 3,
        }
        assert found.n_requests == 9 and found.n_items == 3 and not models.server.requests
        assert not (tmp_path / "out").exists()
        build(flags)
        after = estimate_build(settings(flags))
        assert (after.n_requests, after.n_done) == (0, 9)


def test_the_budget_counts_every_model_of_a_run(tmp_path: Path) -> None:
    with Models(screen=lambda seen: ok(NONE, prompt_tokens=400, completion_tokens=100)) as models:
        flags = {**models.flags(tmp_path, "screen", "guard"), "in_flight": 1}
        with pytest.raises(IncompleteRunError, match="budget is used up"):
            build({**flags, "budget_tokens": 1600})
        assert models.n_asked("screen") == 3 and models.n_asked("teacher") <= 1
        result = build(flags)
    assert result.manifest.usage is not None
    assert result.manifest.usage.prompt_tokens > 3 * 400


def test_no_text_goes_to_a_remote_guard_without_acknowledgement_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert not Endpoint.parse("openai", "g").is_local
    with Models() as models:
        flags = models.flags(tmp_path) | {"guard_endpoint": "openai", "guard_model": "g"}
        with pytest.raises(LicenceGateError, match=r"api\.openai\.com"):
            build(flags)
        assert not models.server.requests and not (tmp_path / "out").exists()


def test_the_command_says_what_the_further_models_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Models(
        guard=lambda seen: ok("不好说"), screen=about("楼上", graded("concern", ""), NONE)
    ) as (models):
        flags = models.flags(tmp_path, "screen", "guard")
        words = [
            f"--{name.replace('_', '-')}={value}"
            for name, value in flags.items()
            if name != "input"
        ]
        with pytest.raises(SystemExit) as ended:
            main(["build-dataset", str(flags["input"]), *words])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code in (0, None), said
    assert "screen, s at 127.0.0.1: graded worse 1 of 3 (concern 1)" in said
    assert "no verdict of the guard on 3 (not_json 3)" in said
