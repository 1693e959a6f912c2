"""The key of an endpoint stands nowhere, whatever a server answers and whichever verb asks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cbtqa.cli.main import main
from cbtqa.dataset.run import build_dataset
from cbtqa.dataset.settings import BuildSettings
from cbtqa.files import write_jsonl
from cbtqa.llm import asking, limits
from cbtqa.secrets import MASK
from cbtqa.settings import resolve
from cbtqa.simulation.playing.run import run_study
from cbtqa.simulation.study import parse_study
from tests.support.answers import good_answer
from tests.support.cli_docs import walk_commands
from tests.support.endpoint import ScriptedEndpoint, Seen
from tests.support.hostile import ITEM_LEVEL, KEY, RUN_LEVEL, hostile_in_turn, told_under, traces_in
from tests.support.sessions import QUICK

ASKING_FLAGS = {"--endpoint", "--acknowledge-disclosure"}
QUESTIONS = [
    {"id": f"q{i}", "question": f"第{i}次睡不着该怎么办？", "description": f"这是第{i}个晚上。"}
    for i in range(12)
]


@dataclass(frozen=True)
class Call:
    """How a verb is made to ask a server."""

    words: Callable[[Path, str], list[Any]]
    """From a folder for its inputs and the server's address; results go to `out` beside them."""
    good: Callable[[Seen], str] = lambda seen: "It sounds as if the evenings are hard for you."


def _at(url: str) -> list[str]:
    return ["--endpoint", url, "--model", "m"]


def _questions(folder: Path) -> Path:
    write_jsonl(folder / "q.jsonl", QUESTIONS)
    return folder / "q.jsonl"


def _study(url: str, **more: Any) -> dict[str, Any]:
    player = {"endpoint": url, "model": "m"}
    plain = {
        "id": "small",
        "approach": "act",
        "arms": [{"name": "asked", "therapist": player}],
        "patients": {"ready": "archetypes"},
        "replicates": 3,
        "turns": {"min": 2, "max": 3},
    }
    return plain | more


def _ruled_file(folder: Path, url: str) -> Path:
    """A study between built-in players, which only the further models are asked about."""
    arms = [{"name": "ruled", "therapist": {"scripted": "present"}}]
    study = _study(url, arms=arms, replicates=1)
    (folder / "ruled.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return folder / "ruled.yaml"


def _study_file(folder: Path, url: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(_study(url)), encoding="utf-8")
    return path


def _played(folder: Path, url: str) -> Path:
    """A study played by rules, whose pairs are written at the server."""
    pairs = {"rejected": {"endpoint": url, "model": "m"}}
    arms = [{"name": "ruled", "therapist": {"scripted": "present"}}]
    study = parse_study(_study(url, arms=arms, pairs=pairs, replicates=1), "test")
    run_study(study, folder / "played", limits=QUICK)
    return folder / "played"


def _judge(folder: Path, url: str) -> list[Any]:
    rows = [
        {"question_id": row["id"], "system": "a", "text": "你已经累了很久。"} for row in QUESTIONS
    ]
    write_jsonl(folder / "a.jsonl", rows)
    words = ["--questions", _questions(folder), "--repeats", "1", *_at(url)]
    return [folder / "a.jsonl", *words, "--out", folder / "out"]


def _check(folder: Path, url: str) -> list[Any]:
    rows = [{"question": row["question"], "answer_text": "你已经累了很久。"} for row in QUESTIONS]
    write_jsonl(folder / "a.jsonl", rows)
    guard = ["--guard-endpoint", url, "--guard-model", "m"]
    return [folder / "a.jsonl", *guard, "--out", folder / "out/checked.jsonl"]


def _gold(folder: Path) -> Path:
    """Sentences of documents of their own, labelled distorted or not."""
    rows = [f"{n}\t{row['question']}\t{n % 2}" for n, row in enumerate(QUESTIONS)]
    path = folder / "gold.tsv"
    path.write_text("\n".join(["document_id\ttext\tdistorted", *rows]) + "\n", encoding="utf-8")
    return path


def _story(seen: Seen) -> str:
    """Every field that the request wants, filled."""
    wanted = seen.body["response_format"]["json_schema"]["schema"]["properties"]
    return json.dumps(dict.fromkeys(wanted, "She has not slept well for some weeks now."))


def _opinion(seen: Seen) -> str:
    """A verdict that both further models may give: nothing is wrong."""
    return json.dumps({"risk": "none", "quote": "", "dangers": [], "problems": []})


def _further(url: str, *roles: str) -> list[str]:
    models = {"screen": "--screen-endpoint-model", "guard": "--guard-model"}
    return [word for one in roles for word in (f"--{one}-endpoint", url, models[one], "m")]


def _built(folder: Path) -> Path:
    settings = {"input": _questions(folder), "out": folder / "built"}
    build_dataset(resolve(BuildSettings, flags=settings, environ={}))
    return folder / "built"


OPINIONS = {
    "cbtqa build-dataset, screen": Call(
        lambda folder, url: [
            *(_questions(folder), *_further(url, "screen"), "--out", folder / "out"),
        ],
        _opinion,
    ),
    "cbtqa build-dataset, guard": Call(
        lambda folder, url: [
            *(_questions(folder), *_further(url, "guard"), "--out", folder / "out"),
        ],
        _opinion,
    ),
    "cbtqa simulate run, both": Call(
        lambda folder, url: [
            *(_ruled_file(folder, url), *_further(url, "screen", "guard")),
            *("--out", folder / "out"),
        ],
        _opinion,
    ),
    "cbtqa safety check, both": Call(
        lambda folder, url: [*_check(folder, url), *_further(url, "screen")], _opinion
    ),
}
"""The same for the further models of verbs that have others in `CALLS`."""
CALLS = {
    "cbtqa build-dataset": Call(
        lambda folder, url: [_questions(folder), *_at(url), "--out", folder / "out"], good_answer
    ),
    "cbtqa distortions label": Call(
        lambda folder, url: [
            *(_questions(folder), "--labeller", "llm", *_at(url)),
            *("--out", folder / "out/labels.jsonl"),
        ],
        lambda seen: json.dumps({"labels": []}),
    ),
    "cbtqa distortions evaluate": Call(
        lambda folder, url: [
            *(_gold(folder), "--taxonomy", "binary", "--labeller", "llm", *_at(url)),
            *("--out", folder / "out/report.json"),
        ],
        lambda seen: json.dumps({"labels": []}),
    ),
    "cbtqa generate": Call(
        lambda folder, url: [_questions(folder), *_at(url), "--out", folder / "out"]
    ),
    "cbtqa chat": Call(lambda folder, url: [*_at(url), "--ask", "最近总是睡不好怎么办", "--json"]),
    "cbtqa doctor": Call(lambda folder, url: _at(url)),
    "cbtqa judge": Call(_judge),
    "cbtqa safety check": Call(_check, lambda seen: json.dumps({"problems": []})),
    "cbtqa safety screen": Call(
        lambda folder, url: [
            *(_questions(folder), *_further(url, "screen"), "--out", folder / "out/screened.jsonl"),
        ],
        _opinion,
    ),
    "cbtqa publish dataset": Call(
        lambda folder, url: [_built(folder), "--to", "lab/cbt-qa", *_further(url, "guard")],
        _opinion,
    ),
    "cbtqa reproduce": Call(
        lambda folder, url: [
            *("cbt-llm", "--data", _questions(folder), "--only", "build"),
            *("--set", f"build.endpoint={url}", "--set", "build.model=m", "--out", folder / "out"),
        ],
        good_answer,
    ),
    "cbtqa simulate profiles": Call(
        lambda folder, url: ["cbt", "--n", 12, *_at(url), "--out", folder / "out/patients.yaml"],
        _story,
    ),
    "cbtqa simulate corpus": Call(
        lambda folder, url: [_study_file(folder, url), "--out", folder / "out"]
    ),
    "cbtqa simulate run": Call(
        lambda folder, url: [_study_file(folder, url), "--out", folder / "out"]
    ),
    "cbtqa simulate export": Call(
        lambda folder, url: [_played(folder, url), "--out", folder / "out"]
    ),
    "cbtqa simulate lint": Call(
        lambda folder, url: [
            *(_played(folder, url), *_further(url, "guard"), "--out", folder / "out/marked.jsonl"),
        ],
        lambda seen: json.dumps({"faults": []}),
    ),
    "cbtqa simulate judge": Call(
        lambda folder, url: [
            *(_played(folder, url), "--instrument", "tes", "--repeats", 1, *_at(url)),
            *("--out", folder / "out"),
        ]
    ),
}


def _flags_of(command: Any) -> set[str]:
    return {flag for parameter in command.params for flag in getattr(parameter, "opts", [])}


COMMANDS = {words: _flags_of(command) for words, command in walk_commands()}
ROADS = [*CALLS, *OPINIONS]
STOPPED = [(words, kind) for words in ROADS for kind in RUN_LEVEL]


def _transport(words: str, number: int) -> str:
    """By turns, where the verb has both: each answer meets each verb once, each verb either way."""
    has_both = words in CALLS and "--transport" in COMMANDS[words]
    return ("http", "sdk")[(ROADS.index(words) + number) % 2] if has_both else "http"


def test_every_verb_that_asks_an_endpoint_is_tried_below() -> None:
    asking_verbs = {words for words, flags in COMMANDS.items() if flags & ASKING_FLAGS}
    assert set(CALLS) == asking_verbs, "give a new verb its words in CALLS"


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBTQA_API_KEY", KEY)
    monkeypatch.setattr(asking, "backoff_s", lambda n_failures: 0.0)
    monkeypatch.setattr(asking, "MOST_RATE_LIMITED", 3)
    monkeypatch.setattr(limits, "BACKOFF_FIRST_S", 0.0)  # a server out of order is looked at again
    for name in ("NEVER_THERE_S", "LIMITED_FOR_S", "BUSY_FOR_S"):
        monkeypatch.setattr(limits, name, 0.0)


def _run(
    capsys: pytest.CaptureFixture[str], words: str, transport: str, given: list[Any], *more: str
) -> tuple[int, str]:
    """Exit code, and all that was printed."""
    chosen = ["--transport", transport] if "--transport" in COMMANDS[words] else []
    with pytest.raises(SystemExit) as ended:
        main([*words.split()[1:], *map(str, given), *chosen, *more])
    shown = capsys.readouterr()
    return int(str(ended.value.code or 0)), shown.out + shown.err


@pytest.mark.parametrize("words", ROADS)
def test_a_server_that_repeats_the_key_in_its_answers_brings_it_nowhere(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call, told, transport = (CALLS | OPINIONS)[words], "", _transport(words, 0)
    words = words.partition(",")[0]
    with ScriptedEndpoint(hostile_in_turn(call.good)) as server:
        for n in range(len(ITEM_LEVEL) + 1):
            if len(server.requests) > len(ITEM_LEVEL):
                break
            folder = tmp_path / str(n)
            folder.mkdir()
            code, shown = _run(capsys, words, transport, call.words(folder, server.url))
            # 7: publishing found text of the questions in the answers, too
            assert code in (0, 4, 5, 6, 7), shown
            told += shown
    assert len(server.requests) > len(ITEM_LEVEL), "too few requests for every kind of answer"
    assert all(KEY in seen.headers["Authorization"] for seen in server.requests)
    told += told_under(tmp_path)
    assert not traces_in(told)
    assert MASK in told, "something was to be masked"


@pytest.mark.parametrize(("words", "kind"), STOPPED)
def test_a_server_that_stops_the_run_with_the_key_brings_it_nowhere(
    words: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call, transport = (CALLS | OPINIONS)[words], _transport(words, [*RUN_LEVEL].index(kind))
    words = words.partition(",")[0]
    with ScriptedEndpoint(lambda seen: RUN_LEVEL[kind](seen, "")) as server:
        given = call.words(tmp_path, server.url)
        code, shown = _run(capsys, words, transport, given, "--debug")
        assert server.requests
    assert code in (5, 6), shown
    assert not traces_in(shown + told_under(tmp_path))
