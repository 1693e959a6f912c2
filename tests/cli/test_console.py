"""What reaches a terminal: lines by Chinese rules, tables with nothing cut, text never as markup."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from cbtqa.cli import console
from cbtqa.cli.console import (
    LiveProgress,
    clean,
    fit_parts,
    print_facts,
    print_table,
    progress_parts,
    show,
    wrap,
)
from cbtqa.llm.progress import Progress
from cbtqa.records import Reason, Usage

NEVER_FIRST = "，。？！；：、）」』】》”’…"
NEVER_LAST = "（「『【《“‘"
CHINESE = "你好朋友今天心情很难过想找人说话"
PIECES = st.sampled_from(
    [*CHINESE, *NEVER_FIRST, *NEVER_LAST, " ", "  ", "\u3000", "12356", "59.5", "CBT", "e\u0301t"]  # noqa: RUF005
    + ["--ref-column", "12%", "８００", "👩‍👩‍👧", "👍🏽", "(a)", ",", ".", "——", "a-b"]
)
TEXTS = st.lists(PIECES, max_size=60).map("".join)
WORDS = re.compile(r"[0-9A-Za-z_.%-]*[0-9A-Za-z][0-9A-Za-z_.%-]*")


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(-3, 60))
def test_lines_break_by_chinese_rules_and_never_inside_a_word(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split()), "text was lost or made up"
    assert all(cell_len(line) <= max(width, 2) for line in lines)
    # a word, or marks with nothing between them, may be wider than a line: only then is it folded
    can_be_kept = all(cell_len(run) <= width for run in wrap(text, 1, fold=False))
    if can_be_kept:
        assert not any(line[0] in NEVER_FIRST for line in lines[1:] if line)
        assert not any(line[-1] in NEVER_LAST for line in lines[:-1] if line)
        for word in WORDS.findall(text):
            assert any(word in line for line in lines), f"{word} was broken: {lines}"


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 60))
def test_unfolded_words_stay_whole_however_long(text: str, width: int) -> None:
    link = "http://127.0.0.1:8000/" + "a" * 80
    lines = wrap(f"{text} {link} {text}", width, fold=False)
    assert any(link in line for line in lines)


@given(st.text())
def test_control_characters_never_reach_the_terminal_and_positions_hold(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned) == len(text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", cleaned)


@pytest.mark.parametrize("width", [10, 12, 14, 16, 18])
def test_a_help_line_number_is_never_broken(width: int) -> None:
    lines = wrap("如果你想伤害自己，请立即拨打12356（全国统一心理援助热线，24小时）。", width)
    assert any("12356" in line for line in lines) and any("24" in line for line in lines)
    assert not any(line[0] in NEVER_FIRST for line in lines)


def test_foreign_text_is_never_markup_and_never_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    text = "row 1:question: expected text, [bold]not[/bold] [a|b] :smile:"
    show(text)
    show(text, style="bold", indent=2)
    print_table(text, ["x", text], [["1", text]])
    print_facts(text, [(":key:", text)])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").replace("┃", " ").split())
    assert shown.count(":question:") == 7 and shown.count("[bold]not[/bold]") == 7
    assert shown.count(":smile:") == 7 and ":key:" in shown


def _figures(n: int) -> list[str]:
    return [f"{41 + index}.{index:02d} [{40 + index}.10, {43 + index}.20]" for index in range(n)]


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("n_systems", range(1, 13))
def test_no_figure_of_a_table_is_ever_cut(
    n_systems: int,
    columns: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    figures = _figures(n_systems)
    names = [f"system-{index}-with-a-name" for index in range(n_systems)]
    print_table("A table", ["metric", *names], [["bleu_zh", *figures], ["质量（人评）", *figures]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= columns
    assert "…" not in "".join(lines)
    for figure in figures:
        assert sum(figure in line for line in lines) == 2
    assert all(sum(name in line for line in lines) == 1 for name in names)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_long_ids_stay_whole_and_prose_wraps(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ids = ["Baichuan2-7B-Chat-lora-r64-seed12345-epoch3", "x" * 55]
    prose = "把一件事的结果当成对自己全部价值的判断（“以偏概全”），忽略其余的证据。" * 3
    rows = [[one, prose, "0.98", "--bertscore-baseline"] for one in ids]
    print_table("T", ["id", "说明", "F1", "flag"], rows)
    print_facts("F", [("id", ids[0]), ("说明", prose), ("sha256", "ab" * 26), ("empty", "")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= columns and "…" not in "".join(lines)
    text = "\n".join(lines)
    assert all(one in text for one in [*ids, "ab" * 26, "--bertscore-baseline", "0.98"])
    assert "empty" not in text
    cells = [cell.strip() for line in lines for cell in re.split("[│┃]| {2,}", line)]
    assert not any(cell and cell[0] in NEVER_FIRST for cell in cells)


def test_only_what_is_wider_than_the_terminal_is_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    print_table("", ["id"], [["y" * 150]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60 and "".join(lines).count("y") == 150


def test_live_progress_fits_on_one_line_and_loses_the_least_important() -> None:
    progress = Progress(
        n_total=22_346,
        n_skipped=12_000,
        n_accepted=333,
        n_requests=400,
        elapsed_s=60.0,
        rate_per_s=12.3,
        eta_s=4000,
        in_flight=64,
        limit=64,
        usage=Usage(prompt_tokens=12_345_678, completion_tokens=2_345_678),
        cost=123.45,
        currency="CNY",
        n_repeats=17,
        n_rejected=12,
        rejected={Reason.REFUSAL: 9, Reason.CUT: 3},
        oldest_s=45.0,
    )
    parts = progress_parts(progress)
    line = fit_parts(parts, 79)
    assert cell_len(" | ".join(parts)) > 80 >= cell_len(line)
    assert line.startswith(
        "12,345 of 22,346 done | 12.3/s | 67 min left | 12 rejected | 123.45 CNY"
    )
    assert set(line.split(" | ")) <= set(parts)


def test_a_long_note_is_cut_to_the_line_and_not_left_out() -> None:
    note = "waiting for gpu-box: answered 503:\nLoading the model, which is large " * 2
    parts = progress_parts(Progress(n_total=9, note=note, in_flight=3, limit=64))
    line = fit_parts(parts, 79, note)
    assert "waiting for gpu-box: answered 503: Loading" in line and line.endswith("…")
    assert cell_len(line) <= 79 and "\n" not in line
    assert fit_parts(["answering with 很长的模型名" * 9], 79).startswith("answering with 很长")


def test_slow_steps_are_told_in_seconds_each() -> None:
    slow = Progress(n_total=300, n_skipped=60, n_accepted=15, rate_per_s=0.04, unit="steps")
    assert progress_parts(slow)[:2] == ["75 of 300 steps", "25.0 s each"]


def test_in_a_pipe_there_is_one_line_in_so_many_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    shown = LiveProgress(None)
    for number in range(1, 301):
        now[0] += 1.0
        shown.update(Progress(n_total=300, n_accepted=number, rate_per_s=1.0, unit="steps"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" of ")[0] for line in lines] == ["10", "70", "130", "190", "250"]
