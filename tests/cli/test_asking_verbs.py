"""Every verb that asks a model: the same flags, the same gate, the same dry run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cbtqa.cli.main import main
from cbtqa.files import write_jsonl
from cbtqa.llm.endpoint import preset_file
from tests.support.cli_docs import walk_commands
from tests.support.endpoint import ScriptedEndpoint, failed, ok

BLOCK = {
    *("--endpoint", "--model", "--in-flight", "--rpm", "--tpm", "--timeout-s", "--max-attempts"),
    *("--budget", "--budget-tokens", "--price-in", "--price-out", "--extra", "--transport"),
    *("--cluster", "--cluster-actors", "--acknowledge-disclosure", "--dry-run", "--wait"),
    "--retry",
}
LEAVES = {words: one for words, one in walk_commands() if not hasattr(one, "list_commands")}
FLAGS = {words: {flag for p in one.params for flag in p.opts} for words, one in LEAVES.items()}
ASKING = [words for words, flags in FLAGS.items() if "--endpoint" in flags]
RUNS = [words for words in ASKING if words not in ("cbtqa chat", "cbtqa doctor")]
"""These ask one question at a time, whoever is asked: pace, price and dry run have no sense."""
SIMULATE = "cbtqa simulate "


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Ended:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    return Ended(int(ended.value.code or 0), shown.out, " ".join(shown.err.split()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs of every verb, and an environment without any key."""
    monkeypatch.chdir(tmp_path)
    for preset in preset_file().presets.values():
        monkeypatch.delenv(preset.key_env, raising=False)
    monkeypatch.delenv("CBTQA_API_KEY", raising=False)
    questions = [
        {"id": str(i), "question": f"第{i}次被误解该怎么办？", "description": f"写了{i}遍。"}
        for i in range(3)
    ]
    write_jsonl(tmp_path / "questions.jsonl", questions)
    answers = [
        {"question_id": str(i), "text": f"听起来你等了{i}天，我们慢慢来。"} for i in range(3)
    ]
    write_jsonl(tmp_path / "answers.jsonl", answers)
    (tmp_path / "gold.csv").write_text("text,labels\n我就是个废物,乱贴标签\n今天下雨了,无\n")
    asked = "{endpoint: vllm, model: m}"
    (tmp_path / "study.yaml").write_text(
        "id: s\napproach: act\nturns: {min: 1, max: 2}\npatients: {ready: test, n: 1}\n"
        f"arms: [{{name: a, therapist: {asked}}}]\n"
    )
    (tmp_path / "played.yaml").write_text(
        "id: p\napproach: act\nturns: {min: 1, max: 2}\npatients: {ready: test, n: 1}\n"
        f"arms: [{{name: a, therapist: {{scripted: present}}}}]\npairs: {{rejected: {asked}}}\n"
    )
    return tmp_path


def words_of(verb: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The verb with inputs that make it ask."""
    if verb in (SIMULATE + "export", SIMULATE + "judge"):
        assert run(capsys, "simulate", "run", "played.yaml", "--out", "played").code == 0
    more = {
        "cbtqa build-dataset": ["questions.jsonl"],
        "cbtqa generate": ["questions.jsonl"],
        "cbtqa judge": ["answers.jsonl", "--questions", "questions.jsonl"],
        "cbtqa distortions label": ["questions.jsonl", "--labeller", "llm"],
        "cbtqa distortions evaluate": ["gold.csv", "--labeller", "llm"],
        SIMULATE + "profiles": ["act", "--n", "2"],
        SIMULATE + "corpus": ["study.yaml"],
        SIMULATE + "run": ["study.yaml"],
        SIMULATE + "export": ["played"],
        SIMULATE + "judge": ["played", "--instrument", "ctrs"],
    }
    named = {"label": "out.jsonl", "evaluate": "out.json", "profiles": "out.yaml"}
    out = named.get(verb.split()[-1], "out")
    return [*verb.split()[1:], *more[verb], "--out", out]


def test_the_verbs_that_ask_are_those_we_know() -> None:
    assert {words.removeprefix("cbtqa ") for words in RUNS} == {
        *("build-dataset", "generate", "judge", "distortions label", "distortions evaluate"),
        *("simulate profiles",),
        *("simulate corpus", "simulate run", "simulate export", "simulate judge"),
    }


@pytest.mark.parametrize("verb", RUNS)
def test_a_verb_that_names_an_endpoint_has_the_whole_block(verb: str) -> None:
    assert not BLOCK - FLAGS[verb]


@pytest.mark.parametrize("verb", RUNS)
def test_a_dry_run_needs_no_key_and_no_acknowledgement(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(verb, capsys)
    before = sorted(folder.rglob("*"))
    asked = ("--endpoint", "deepseek", "--model", "deepseek-chat", "--dry-run")
    ended = run(capsys, *words, *asked, "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["n_requests"] > 0 and told["prompt_tokens"] > 0 and told["completion_tokens"] > 0
    assert told["cost"] > 0 and told["seconds"] > 0
    assert sorted(folder.rglob("*")) == before
    shown = run(capsys, *words, *asked)
    for line in ("dry run: nothing was sent", "requests", "prompt tokens", "price", "time, bound"):
        assert line in shown.out, shown.out


@pytest.mark.parametrize("verb", RUNS)
def test_a_dry_run_sends_nothing_and_keeps_no_journal(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(verb, capsys)
    with ScriptedEndpoint(ok("好")) as server:
        ended = run(capsys, *words, "--endpoint", server.url, "--model", "m", "--dry-run", "--json")
        assert ended.code == 0 and server.requests == []
    assert json.loads(ended.out)["cost"] == 0
    assert not list(folder.glob("out*"))


@pytest.mark.parametrize("verb", RUNS)
def test_text_goes_to_a_third_party_only_when_that_is_acknowledged(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words_of(verb, capsys), "--endpoint", "deepseek", "--model", "deepseek-chat"]
    ended = run(capsys, *words)
    assert ended.code == 7, ended.err
    assert "would be sent to api.deepseek.com. PsyQA's user agreement forbids" in ended.err
    assert "add --acknowledge-disclosure" in ended.err
    acknowledged = run(capsys, *words, "--acknowledge-disclosure")
    assert acknowledged.code == 5 and "export DEEPSEEK_API_KEY=" in acknowledged.err


@pytest.mark.parametrize("verb", RUNS)
def test_a_server_that_refuses_everything_ends_a_run_with_its_words_and_binds_nothing(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(verb, capsys)
    with ScriptedEndpoint(failed(400, "enable_thinking must be false")) as server:
        ended = run(capsys, *words, "--endpoint", server.url, "--model", "m")
        assert ended.code == 6, ended.err
        assert "enable_thinking must be false" in ended.err and "refused" in ended.err
        assert len(server.requests) <= 30
        others = ("--model", "n", "--max-attempts", "1", "--extra", '{"enable_thinking": true}')
        again = run(capsys, *words, "--endpoint", server.url, *others)
        assert again.code == 6 and "enable_thinking must be false" in again.err
        assert server.requests[-1].body["model"] == "n"


@pytest.mark.parametrize("verb", RUNS)
def test_a_run_that_brings_nothing_out_never_ends_with_0(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words_of(verb, capsys), "--max-attempts", "1"]
    with ScriptedEndpoint(ok("")) as server:
        asked = ("--endpoint", server.url, "--model", "m")
        first = run(capsys, *words, *asked)
        assert first.code == 6, first.err
        n_asked = len(server.requests)
        again = run(capsys, *words, *asked)
        assert again.code == 6 and "complete already" not in again.err, again.err
        assert len(server.requests) == n_asked
        retried = run(capsys, *words, *asked, "--retry", "rejected=empty")
        assert retried.code == 6 and len(server.requests) > n_asked, retried.err


@pytest.mark.parametrize("verb", RUNS)
def test_further_fields_are_sent_along_and_null_takes_one_out(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(verb, capsys)
    extra = json.dumps({"enable_thinking": False, "seed": None})
    with ScriptedEndpoint(ok("好")) as server:
        asked = ("--endpoint", server.url, "--model", "m", "--max-attempts", "1")
        run(capsys, *words, *asked, "--extra", extra)
    assert server.requests
    for seen in server.requests:
        assert seen.body["enable_thinking"] is False and "seed" not in seen.body


def test_chat_sends_further_fields_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedEndpoint(ok("我在听，你愿意多说一点吗？")) as server:
        words = ("chat", "--endpoint", server.url, "--model", "m", "--ask", "同事没有回我消息")
        ended = run(capsys, *words, "--extra", '{"enable_thinking": false, "seed": null}', "--json")
    assert ended.code == 0
    (seen,) = server.requests
    assert seen.body["enable_thinking"] is False and "seed" not in seen.body


@pytest.mark.parametrize("text", ["{", "[1]", "thinking=false"])
@pytest.mark.parametrize("verb", [*RUNS, "cbtqa chat"])
def test_what_is_no_json_object_is_a_usage_error_that_names_the_flag(
    verb: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = run(capsys, *verb.split()[1:], "--extra", text)
    assert ended.code == 2 and "--extra" in ended.err and "JSON object" in ended.err


@pytest.mark.parametrize("verb", RUNS)
def test_a_budget_stops_the_run_and_the_same_command_goes_on(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(verb, capsys)
    with ScriptedEndpoint(ok("好", prompt_tokens=500, completion_tokens=500)) as server:
        asked = ("--endpoint", server.url, "--model", "m", "--max-attempts", "1")
        prices = ("--price-in", "9", "--price-out", "9", "--in-flight", "1")
        ended = run(capsys, *words, *asked, *prices, "--budget", "0.0000001")
        assert ended.code == 6 and "budget is used up" in ended.err, ended.err
        assert server.n_paid == 1
        run(capsys, *words, *asked)
        n_paid = server.n_paid
        assert n_paid > 1 and server.n_paid_again == 0
        run(capsys, *words, *asked)
        assert server.n_paid == n_paid


# --- flags given twice ---------------------------------------------------------------------------


def single_flags(command: Any) -> list[str]:
    """Flags of a command that take one value."""
    return [
        one.opts[0]
        for one in command.params
        if one.opts[0].startswith("--") and not one.multiple and not getattr(one, "is_flag", False)
    ]


@pytest.mark.parametrize("words", [words for words in LEAVES if single_flags(LEAVES[words])])
def test_a_flag_for_one_value_is_refused_when_it_is_given_twice(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = single_flags(LEAVES[words])[-1]
    ended = run(capsys, *words.split()[1:], flag, "1", flag, "2")
    assert ended.code == 2 and f"{flag} given twice" in ended.err


def test_a_flag_that_may_be_repeated_still_may(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedEndpoint(ok("好")) as server:
        servers = (
            "--endpoint",
            server.url,
            "--endpoint",
            server.url.replace("127.0.0.1", "localhost"),
        )
        words = (
            "build-dataset",
            "questions.jsonl",
            *servers,
            "--model",
            "m",
            "--dry-run",
            "--json",
        )
        assert run(capsys, *words).code == 0


# --- ways of sending -----------------------------------------------------------------------------


def test_several_servers_share_the_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": str(i), "text": f"第{i}次，大家都讨厌我。"} for i in range(40)]
    write_jsonl(folder / "texts.jsonl", rows)
    labels = ok(json.dumps({"labels": []}))
    with ScriptedEndpoint(labels) as one, ScriptedEndpoint(labels) as other:
        servers = ("--endpoint", one.url, "--endpoint", other.url, "--model", "m")
        words = ("texts.jsonl", "--labeller", "llm", "--in-flight", "4", "--out", "out.jsonl")
        ended = run(capsys, "distortions", "label", *words, *servers, "--json")
        assert ended.code == 0 and json.loads(ended.out)["n_rows"] == 40
        assert one.n_paid + other.n_paid == 40 and one.n_paid and other.n_paid


def test_a_batch_is_submitted_left_and_collected_by_the_same_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedEndpoint(ok(json.dumps({"labels": []}))) as server:
        words = ("questions.jsonl", "--labeller", "llm", "--out", "out.jsonl", "--json")
        asked = ("--endpoint", server.url, "--model", "m", "--transport", "batch-api", "--no-wait")
        asked += ("--overwrite",)  # the second time, the labels of the first are there
        dry = run(capsys, "distortions", "label", *words, *asked, "--dry-run")
        assert json.loads(dry.out)["bound_by"] == "batch-api" and not server.batches
        assert run(capsys, "distortions", "label", *words, *asked).code == 6
        assert len(server.batches) == 1
        codes = [run(capsys, "distortions", "label", *words, *asked).code for _ in range(2)]
        assert codes[-1] == 0 and len(server.batches) == 1 and server.n_paid == 3
