"""`cbtqa score` and `cbtqa compare` as a user meets them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.program import run_cbtqa


def cbtqa(
    *words: str | Path, cwd: Path | None = None, as_process: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs the program, in this process if not told otherwise."""
    return run_cbtqa(*words, cwd=cwd or Path.cwd(), code=None, as_process=as_process)


def write(path: Path, column: str, n_rows: int, tail: str) -> Path:
    """Answers that differ by their tail."""
    rows = (
        {"id": str(n), column: f"你说第{n}件事让你很累，得分59.5，" * (20 + n % 7) + tail}
        for n in range(n_rows)
    )
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        "ref": write(tmp_path / "ref.jsonl", "answer", 100, "慢慢来，相信自己。"),
        "a": write(tmp_path / "a.jsonl", "text", 100, "慢慢来吧。"),
        "b": write(tmp_path / "b.jsonl", "text", 100, "别想太多。"),
    }


def test_one_object_on_stdout_with_every_score(files: dict[str, Path]) -> None:
    done = cbtqa("score", files["a"], files["b"], "--ref", files["ref"], "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    systems = {one["system"] for one in report["scores"]}
    assert systems == {"a", "b", "references", "shuffled references"}
    bleu = next(one for one in report["scores"] if one["metric"] == "bleu_zh")
    assert bleu["low"] <= bleu["value"] <= bleu["high"]
    assert "tok:zh" in bleu["signature"] and bleu["unit"] == "0-100"


def test_the_folder_holds_tables_pairs_and_a_manifest(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    out = tmp_path / "out"
    words = ("score", files["a"], "--ref", files["ref"], "--metrics", "paper", "--out", out)
    done = cbtqa(*words)
    assert done.returncode == 0, done.stderr
    assert "0.2648" in done.stdout and "BLEU jieba (0-1)" in " ".join(done.stdout.split())
    names = {path.name for path in out.iterdir()}
    tables = {f"scores.{kind}" for kind in ("json", "html", "md", "tex", "csv")}
    assert names == {*tables, "pairs.parquet", "manifest.json"}
    told = "checked against sacrebleu"
    assert told in done.stdout + done.stderr and told in (out / "scores.md").read_text("utf-8")
    (check,) = json.loads((out / "scores.json").read_text("utf-8"))["checks"]
    assert check["n_pairs"] == 100 and check["difference"] < 1e-12
    pairs = pq.read_table(out / "pairs.parquet")
    assert pairs.num_rows == 3 * 100
    assert {"id", "prediction", "reference", "bleu_jieba"} <= set(pairs.column_names)
    assert "0.2648" in (out / "scores.md").read_text(encoding="utf-8")
    assert r"\toprule" in (out / "scores.tex").read_text(encoding="utf-8")
    again = cbtqa(*words)
    assert again.returncode == 2 and "already holds" in again.stderr


def test_two_systems_are_compared_and_the_examples_written(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    out = tmp_path / "out"
    done = cbtqa(
        *("compare", files["a"], files["b"], "--ref", files["ref"]),
        *("--metrics", "chrf2", "--trials", "500", "--examples", "20", "--out", out, "--json"),
    )
    assert done.returncode == 0, done.stderr
    (pair,) = json.loads(done.stdout)["pairs"]
    assert pair["difference"] < 0 and pair["p"] < 0.05
    assert len(json.loads((out / "compare.json").read_text("utf-8"))["worst"]) == 20
    assert (out / "compare.md").exists() and (out / "compare.tex").exists()


STEPS = [
    "听起来你最近压力很大，一定很辛苦。",
    "你提到自己考砸一次就觉得前途全毁了，这背后可能是一种以偏概全的想法。",
    "不妨想一想，有没有证据说明一次考试就能决定一切？",
    "建议你每天花十分钟写下当天做成的一件小事。",
    "改变需要时间，相信你会慢慢好起来。",
]


def test_one_differing_answer_of_54_makes_no_metric_significant(tmp_path: Path) -> None:
    """Swapping the one pair that differs changes no distance: every trial is a tie."""
    whole = {str(number): f"{number}，" + "".join(STEPS) for number in range(54)}
    without = {**whole, "7": whole["7"].replace(STEPS[3], "")}
    paths = [tmp_path / f"{name}.jsonl" for name in ("ref", "whole", "without")]
    for path, answers in zip(paths, (whole, whole, without), strict=True):
        rows = [{"id": key, "answer": text} for key, text in answers.items()]
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    ref, *systems = paths
    done = cbtqa(
        *("compare", *systems, "--ref", ref, "--prediction-column", "answer", "--json"),
        *("--metrics", "cbt_complete,cbt_steps,bleu_zh,chrf2,meteor_jieba"),
    )
    assert done.returncode == 0, done.stderr
    pairs = {one["metric"]: one for one in json.loads(done.stdout)["pairs"]}
    assert len(pairs) == 5
    complete = pairs["cbt_complete"]
    assert (complete["n_losses"], complete["n_ties"]) == (1, 53)
    assert {one["difference"] < 0 for one in pairs.values()} == {True}
    assert {(one["p"], one["p_adjusted"]) for one in pairs.values()} == {(1.0, 1.0)}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["score", "{a}"], 2, "no dataset named"),
        (["score", "--ref", "{ref}"], 2, "no answers named"),
        (["score", "{a}", "--ref", "{ref}", "--metrics", "bleu_13a"], 2, "is refused"),
        (["score", "none.jsonl", "--ref", "{ref}"], 4, "no such file"),
        (["score", "{a}", "--ref", "{ref}", "--prediction-column", "x"], 4, "no column 'x'"),
        (["compare", "{a}", "--ref", "{ref}"], 2, "nothing to compare"),
        (["score", "{a}", "--ref", "{ref}", "--seed", "-1"], 3, "--seed"),
    ],
)
def test_errors_say_what_and_exit_with_their_code(
    files: dict[str, Path], words: list[str], code: int, message: str
) -> None:
    # a dataset in the current folder would be taken by default
    done = cbtqa(*(word.format(**files) for word in words), cwd=files["a"].parent)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_brings_its_references_needs_no_dataset(tmp_path: Path) -> None:
    rows = [
        {"prompt": "问", "predict": f"慢慢来，{n}。", "label": f"别着急，{n}。"} for n in range(4)
    ]
    path = tmp_path / "generated_predictions.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    done = cbtqa("score", path, "--metrics", "chrf2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["references"] == "label of generated_predictions.jsonl"


def test_a_hundred_pairs_take_about_two_seconds_with_start(files: dict[str, Path]) -> None:
    """Processor seconds, for the clock of a busy machine says little."""

    def used() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before = used()
    words = ("score", files["a"], "--ref", files["ref"], "--metrics", "lexical", "--json")
    assert cbtqa(*words, as_process=True).returncode == 0
    # four seconds here is the alarm for a slow import; the measured figure is in docs/metrics.md
    assert used() - before < 4


def test_no_large_library_is_loaded_for_a_small_job(files: dict[str, Path]) -> None:
    program = (
        "import sys\nfrom cbtqa.cli.main import main\ntry:\n    main()\nfinally:\n"
        "    print(sorted({'torch', 'pandas', 'scipy.stats', 'nltk', 'evaluate'}"
        " & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "score", files["a"], "--ref", files["ref"], "--json"],
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_long_scoring_tells_in_a_pipe_once_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cbtqa.cli import console

    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    progress = console.LiveProgress(None)
    for second in range(0, 200, 2):
        clock[0] = float(second)
        progress.count(second * 10, 2_000)
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert len(lines) == 4  # after 10 s, then at 70, 130 and 190
    assert lines[0] == "100 of 2,000 done | 10.0/s | 3 min left"


def test_on_a_terminal_a_bar_shows_how_far_scoring_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console
    from rich.live import Live

    from cbtqa.cli import console

    monkeypatch.setattr(console, "terminal_width", lambda stream: 80)
    screen = Console(force_terminal=True, width=80, record=True, file=StringIO())
    with Live("", console=screen, auto_refresh=False) as live:
        progress = console.LiveProgress(live)
        progress.count(500, 2_000)
        screen.print(live.get_renderable())
    shown = screen.export_text()
    assert "500 of 2,000 done" in shown and "━━━━━" in shown


def test_the_pages_hold_both_systems_texts_escaped_and_ask_nobody(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    rows = [json.loads(line) for line in files["b"].read_text("utf-8").splitlines()]
    rows[3]["text"] = "<script>alert(1)</script><img src='https://a.example/x.png'>"
    files["b"].write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    ref = [json.loads(line) for line in files["ref"].read_text("utf-8").splitlines()]
    asked = [{**row, "question": f"第{n}个问题：我不想活了"} for n, row in enumerate(ref)]
    files["ref"].write_text("\n".join(json.dumps(row) for row in asked), encoding="utf-8")
    given = ("--ref", files["ref"], "--metrics", "chrf", "--bootstrap", "0")
    out, compared = tmp_path / "out", tmp_path / "compared"
    assert cbtqa("score", files["a"], files["b"], *given, "--out", out).returncode == 0
    done = cbtqa("compare", out, "--trials", "200", "--lang", "en", "--out", compared)
    assert done.returncode == 0, done.stderr
    for page, line in ((out / "scores.html", "12356"), (compared / "compare.html", "988")):
        text = page.read_text(encoding="utf-8")
        assert "&lt;script&gt;alert(1)" in text and "<script" not in text and "<img" not in text
        assert "default-src 'none'" in text
        assert "第3个问题：我不想活了" in text  # of a folder of scores, too
        assert line in text.split('class="sides"')[0]  # a way to help before the first answers
        for answer in ("慢慢来吧。", "慢慢来，相信自己。"):
            assert answer in text
        assert page.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["score", "{a}"], "data/psyqa/sample.json"),
        (["compare", "{a}", "{b}"], "data/psyqa/sample.json"),
        (["compare"], "data/psyqa/sample.json"),
        (["judge", "{a}"], "data/psyqa/sample.json"),
    ],
)
def test_the_first_error_names_the_sample_that_comes_along(
    files: dict[str, Path], words: list[str], wanted: str
) -> None:
    from cbtqa.psyqa import bundled_sample_path

    given = [word.format(**files) for word in words]
    told = run_cbtqa(*given, cwd=files["a"].parent, code=2).stderr
    assert wanted in told and bundled_sample_path().is_file()
