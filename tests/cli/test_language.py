"""`--lang zh`: what commands say is Chinese, whole sentences of it, and lines up in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from cbtqa.cli import language
from cbtqa.dataset_folder import DatasetFolder
from tests.support.program import environment, program, run_cbtqa

ENGLISH = re.compile(r"(?:(?<![\w./'\"=-])[A-Za-z]?[a-z]+ ){2,}[a-z]+(?![\w./-])")
"""Three English words in a row, which no path, flag or name has."""
COMMAND = re.compile(r"cbtqa [\w-]+( [A-Z\w./-]+)*|pip install \S+|[\w, -]+ of [\w, ]+(?=[（;])")
"""What is to be typed, and `metrics of systems`, which are names."""


def english_of(text: str) -> list[str]:
    """The English sentences of a console."""
    return [line for line in text.splitlines() if ENGLISH.search(COMMAND.sub("", line))]


MISTAKES = {
    "missing file": (["build-dataset", "nope.json"], "nope.json：没有这个文件"),
    "no such option": (["finetune", "--bogus"], "没有这个选项：--bogus"),
    "no value": (["finetune", "--backbone"], "选项 '--backbone' 需要一个值"),
    "missing argument": (["convert"], "缺少：source"),
    "missing setting": (["distortions", "label"], "缺少：input"),
    "no such command": (["finetun"], "您是不是想用：cbtqa finetune"),
    "no such subcommand": (["safety", "lines"], "没有这个命令：'lines'"),
    "not a number": (["build-dataset", "--limit", "many"], "'--limit' 的值无效：应为整数"),
    "out of range": (["build-dataset", "--validation", "3"], "应小于 1，得到 3.0"),
    "not a choice": (["doctor", "--for", "nothing"], "不在"),
    "given twice": (["stats", "--json", "--json"], "--json 给了两次"),
    "missing key": (
        ["build-dataset", "--endpoint", "deepseek", "--model", "m", "--out", "new"],
        "没有 api.deepseek.com 的密钥",
    ),
    "unknown endpoint": (["build-dataset", "--endpoint", "foo", "--model", "m"], "既不是预设"),
    "no manifest": (["stats", "empty"], "不是 cbtqa 的数据集"),
    "nothing to take": (["score"], "没有写明回答，当前文件夹里也没有已完成的"),
    "unknown backbone": (["backbones", "foo"], "没有名为“foo”的基座模型"),
    "unknown setting": (
        ["build-dataset", "--config", "bad.yaml"],
        "未知的设置“limt”，您是不是指“limit”？",
    ),
    "bad yaml": (["build-dataset", "--config", "list.yaml"], "设置应写成一行一个 `key: value`"),
    "unknown preset": (
        ["finetune", "x", "--backbone", "baichuan", "--preset", "mine"],
        "没有预设“mine”",
    ),
    "unknown metric": (["score", "a.jsonl", "--ref", "r.jsonl", "--metrics", "foo"], "指标"),
    "empty questions": (["data", "check", "empty.json"], "文件是空的"),
    "not questions": (["data", "check", "page.json"], "看起来是 HTML 或 XML 页面"),
}


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_chinese(words: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.json").touch()
    (tmp_path / "page.json").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "bad.yaml").write_text("limt: 3\n")
    (tmp_path / "list.yaml").write_text("- 3\n")
    for name in ("a.jsonl", "r.jsonl"):
        (tmp_path / name).write_text('{"id": "1", "answer": "先照顾好自己。"}\n')
    done = run_cbtqa("--lang", "zh", *words, cwd=tmp_path, code=None)
    assert done.returncode != 0
    assert done.stderr.startswith("错误：") or "\n错误：" in done.stderr
    assert told in done.stderr
    assert not english_of(done.stderr)
    in_english = run_cbtqa(*words, cwd=tmp_path, code=done.returncode).stderr
    assert "error: " in in_english and not re.search("[错误提示]：", in_english)


def test_a_dataset_is_built_scored_and_rated_without_an_english_sentence(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = run_cbtqa("--lang", "zh", *words, cwd=tmp_path, COLUMNS="80")
        return done.stdout + done.stderr

    told = [run("build-dataset"), run("build-dataset")]
    frame = DatasetFolder.open(tmp_path / "cbtqa-dataset").to_pandas()
    rows = [{"id": row["id"], "answer": row["answer"]} for row in frame.to_dict("records")]
    for name, n in (("a", len(rows)), ("b", 60)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:n])
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    told.append(run("score", "a.jsonl", "--ref", "cbtqa-dataset", "--out", "scores"))
    files = ("--predictions", "a.jsonl", "--predictions", "b.jsonl", "--questions", "cbtqa-dataset")
    told.append(run("rate", "new", *files, "--out", "study", "--key", "key.json"))
    told.append(run("rate", "status", "study"))
    for text in told:
        assert re.search("[\u4e00-\u9fff]{4}", text)
        assert not english_of(text)
        for table in re.findall(r"(?m)^[┏┌](?:.*\n[┃┡│├].*)*\n└.*", text):
            widths = {cell_len(line) for line in table.splitlines()}
            assert len(widths) == 1 and max(widths) <= 80, table


def test_json_and_the_files_are_the_same_in_both_languages(tmp_path: Path) -> None:
    found = {}
    for lang in ("en", "zh"):
        words = ("--lang", lang, "build-dataset", "--limit", "12", "--out", lang, "--json")
        report = json.loads(run_cbtqa(*words, cwd=tmp_path).stdout)
        files = {path.name for path in (tmp_path / lang).rglob("*") if path.is_file()}
        card = (tmp_path / lang / "README.md").read_text().replace(f"/{lang}", "")
        found[lang] = sorted(report), files, card
    assert found["en"] == found["zh"]


@pytest.mark.parametrize(
    ("words", "environ", "expected"),
    [
        ([], {}, "en"),
        ([], {"LANG": "zh_CN.UTF-8"}, "zh"),
        ([], {"LC_MESSAGES": "zh_TW.UTF-8", "LANG": "en_US.UTF-8"}, "zh"),
        ([], {"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ([], {"CBTQA_LANG": "zh", "LC_ALL": "C.UTF-8"}, "zh"),
        ([], {"CBTQA_LANG": "en", "LANG": "zh_CN.UTF-8"}, "en"),
        (["--lang", "en", "score"], {"CBTQA_LANG": "zh", "LANG": "zh_CN.UTF-8"}, "en"),
        (["--lang=zh", "score"], {}, "zh"),
        (["score", "--lang", "zh"], {}, "en"),  # of the page that the verb writes
        (["--lang", "fr"], {"LANG": "zh_CN.UTF-8"}, "zh"),  # the parser refuses it, in Chinese
    ],
)
def test_the_flag_wins_over_the_variable_and_that_over_the_locale(
    words: list[str], environ: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "_chosen", "en")
    language.choose(words, environ)
    assert language.current() == expected


def test_a_console_that_cannot_write_chinese_gets_english(tmp_path: Path) -> None:
    done = run_cbtqa(
        *("--lang", "zh", "finetun"),
        cwd=tmp_path,
        code=2,
        as_process=True,
        PYTHONIOENCODING="ascii",
    )
    assert done.stderr.startswith("error: ")


def test_the_flag_behind_the_verb_is_told_where_it_belongs(tmp_path: Path) -> None:
    done = run_cbtqa("doctor", "--lang", "zh", cwd=tmp_path, code=2)
    assert "hint: before the verb: cbtqa --lang zh doctor" in done.stderr


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "_chosen", "zh")


@pytest.mark.usefixtures("chinese")
def test_values_stay_as_they_are_and_known_messages_inside_are_told() -> None:
    assert language.told("nope/train.json: no such file") == "nope/train.json：没有这个文件"
    both = language.told("x is not installed; torch is not installed")
    assert both == "没有安装 x；没有安装 torch"
    assert language.told("no system 'rejected'") == "没有系统“rejected”", "a name is no word"
    assert (
        language.told("warning: a thing that nobody translated")
        == "警告：a thing that nobody translated"
    )
    assert language.told("  of which nothing is known") == "  of which nothing is known"


@pytest.mark.usefixtures("chinese")
def test_names_of_settings_and_columns_are_not_translated_in_cells() -> None:
    assert language.told_head("precision") == "精确率"
    assert language.told_cell("precision") == "precision"
    assert language.told_cell("answer") == "answer"
    assert language.told_cell("2 min") == "2 分钟"
    assert language.told_cell("3 h 05 min") == "3 小时 05 分"


@pytest.mark.usefixtures("chinese")
@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_no_text_breaks_the_translation(text: str) -> None:
    assert isinstance(language.told(text), str)
    assert language.told_cell(text).count("\n") == text.count("\n")


def test_nothing_is_read_where_the_console_is_english(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['cbtqa', 'finetun']\n"
        "from cbtqa.cli import main\n"
        "try: main.main()\n"
        "finally: assert 'cbtqa.report.catalogue' not in sys.modules"
    )
    env = environment()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def test_chinese_lines_break_by_chinese_rules_on_a_terminal(tmp_path: Path) -> None:
    env = environment(COLUMNS="40")
    main_end, end = pty.openpty()
    words = ["--lang", "zh", "backbones", "foo"]
    with subprocess.Popen([*program(), *words], cwd=tmp_path, env=env, stderr=end, stdout=end):
        os.close(end)
        text = b""
        while True:
            try:
                piece = os.read(main_end, 4096)
            except OSError:  # Linux tells so that the other end is closed
                break
            if not piece:
                break
            text += piece
    os.close(main_end)
    lines = text.decode().replace("\r", "").splitlines()
    assert "也可以用文件夹或 Hub 编号" in "".join(lines)
    assert all(line[0] not in "，。、；：？！”）" for line in lines if line)
    assert all(cell_len(line) <= 40 for line in lines if " " in line.strip())
