"""`--help` of every command, how commands end without arguments, and broken pipes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from cbtqa.cli.main import VERBS, app, main
from cbtqa.safety.notices import help_text
from tests.support.cli_docs import walk_commands
from tests.support.program import environment, program

COMMANDS = [("cbtqa", typer.main.get_command(app)), *walk_commands()]
GROUPS = [words for words, command in COMMANDS if hasattr(command, "list_commands")]


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    shown = capsys.readouterr()
    return ended.value.code, shown.out, shown.err


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[words for words, _ in COMMANDS])
def test_help_cuts_no_flag_choice_or_default_and_is_never_wider_than_the_terminal(
    words: str,
    command: Any,
    columns: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, text, _ = _run(capsys, *words.split()[1:], "--help")
    lines = text.splitlines()
    assert code == 0 and len(lines) > 3
    assert "…" not in text and "\033" not in text and "│" not in text
    assert max(map(len, lines)) <= columns
    for parameter in command.params:
        flags = [*parameter.opts, *parameter.secondary_opts]
        if flags[0].startswith("-"):
            written = [
                [flag for flag in flags if re.search(rf"(^  | ){flag}(,| |$)", line)]
                for line in lines
                if line.startswith("  -")
            ]
            assert [one for one in written if one] == [flags], "not once, on one line"
        for word in (getattr(parameter, "help", None) or "").split():
            assert any(word in line for line in lines), f"{flags}: {word} is broken"
    if words in GROUPS:
        for name in command.list_commands(typer.Context(command)):
            assert any(line.startswith(f"  {name}  ") for line in lines)


@pytest.mark.parametrize("words", ["cbtqa", "cbtqa rate", "cbtqa rate new", "cbtqa score"])
def test_h_is_help(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, long, _ = _run(capsys, *words.split()[1:], "--help")
    code, short, _ = _run(capsys, *words.split()[1:], "-h")
    assert code == 0 and short == long and "-h, --help" in short


@pytest.mark.parametrize("words", GROUPS)
def test_a_bare_group_prints_its_help_and_is_no_error(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, errors = _run(capsys, *words.split()[1:])
    assert code == 0 and not errors
    assert text == _run(capsys, *words.split()[1:], "--help")[1]


@pytest.mark.parametrize(
    "words",
    [
        "convert",
        "generate",
        "score",
        "compare",
        "judge",
        "join",
        "hub-preview",
        "stats",
        "merge",
        "publish dataset",
        "publish model",
        "publish release",
        "rate new",
        "rate serve",
        "distortions label",
        "distortions train",
        "distortions annotate",
        "distortions evaluate",
        "distortions agree",
        "safety screen",
        "safety evaluate",
        "simulate export",
        "simulate lint",
        "simulate judge",
        "simulate analyse",
    ],
)
def test_a_missing_argument_is_a_usage_error(
    words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = _run(capsys, *words.split())
    assert code == 2, errors
    assert errors.startswith("error: ") and "hint: " in errors


@pytest.mark.parametrize("words", ["merge", "convert", "rate collect", "join", "hub-preview"])
def test_a_missing_argument_is_told_in_the_same_words_by_every_verb(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = _run(capsys, *words.split())
    first = errors.splitlines()[0]
    assert code == 2 and first.startswith("error: missing: ") and first.islower()


def test_a_missing_argument_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, errors = _run(capsys, "rate", "collect")
    assert "hint: STUDY: Folder that cbtqa rate new made. cbtqa rate collect --help" in errors


def test_a_flag_without_its_value_points_to_the_help_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, errors = _run(capsys, "score", "--out")
    assert code == 2 and "hint: cbtqa score --help" in errors


def test_examples_over_several_lines_can_be_pasted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = _run(capsys, "build-dataset", "--help")[1]
    example = (
        "cbtqa build-dataset PsyQA_full.json --endpoint vllm --model Qwen3-32B --out runs/psyqa"
    )
    assert "\\\n" in text
    assert example in " ".join(text.replace("\\\n", "").split())


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(tmp_path: Path, unbuffered: str) -> None:
    reader = subprocess.Popen([sys.executable, "-c", "pass"], stdin=subprocess.PIPE)
    assert reader.stdin is not None
    reader.wait()
    done = subprocess.run(
        [*program(), "data", "check"],
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(PYTHONUNBUFFERED=unbuffered),
        timeout=60,
    )
    reader.stdin.close()
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_wrapped_lines_and_a_pipe_whole_ones(tmp_path: Path) -> None:
    import pty
    import termios

    words = [*program(), "safety", "hotlines"]
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, 40))
    clean = {k: v for k, v in environment().items() if k != "COLUMNS"}
    child = subprocess.Popen(
        words, stdout=slave, stderr=slave, stdin=slave, env=clean, cwd=tmp_path
    )
    os.close(slave)
    seen, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux: the last writer closed
            break
        if not chunk:
            break
        seen += chunk
    assert child.wait(timeout=60) == 0
    shown = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", seen.decode())
    lines = [line.strip() for line in shown.split("\n") if line.strip()]
    assert any("12356" in line for line in lines)
    lines = [line for line in lines if line[0] not in "┏┃┡│└"]
    assert not any(line[0] in "，。？！；：、）」』】》”" for line in lines)
    assert max(sum(2 if ord(c) > 0x2E80 else 1 for c in line) for line in lines) <= 40
    piped = subprocess.run(words, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert help_text("zh", "page").splitlines()[0] in piped.stdout.splitlines()


def test_every_verb_of_the_list_is_a_command() -> None:
    assert {words.split()[1] for words, _ in COMMANDS[1:]} == set(VERBS)
