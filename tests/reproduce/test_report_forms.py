"""The forms of the report: the page in a browser, LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cbtqa.report.page import load_wording, same
from cbtqa.report.table import Estimate, Table
from cbtqa.reproduce.report_forms import (
    Content,
    Example,
    Part,
    Trait,
    as_json,
    as_latex,
    as_markdown,
    as_page,
)
from tests.support.served import open_chromium

WORDS = load_wording("cbtqa.reproduce", "wording.yaml")


def _example(question: str, label: str, risk: str, *missing: str) -> Example:
    traits = [Trait("label", label, same(label)), Trait("risk", risk, same(risk))]
    traits += [Trait("missing", step, WORDS[f"steps.{step}"]) for step in missing]
    return Example(question, "", (("", "答"),), (), (("qwen", "ＯＫ的回答"),), tuple(traits))


@pytest.fixture
def content() -> Content:
    odd = Table(
        ["100 % & _x_", "n"], [("a\\b {c} $d #e ~f ^g\nh", 3), ("中文", Estimate(0.5, 0.4, 0.6))]
    )
    examples = (
        _example("考试失败怎么办", "labeling", "none"),
        _example("室友总是迟到", "none", "none", "key_thought"),
        _example("我不想活了", "labeling", "explicit"),
    )
    parts = [
        Part("table-1", WORDS["table1.title"], tables=(odd, odd)),
        Part("examples", WORDS["examples.title"], examples=examples),
    ]
    facts = [("91", WORDS["facts.entries"], WORDS["facts.paper"].fill(name="", value="22,327"))]
    runs = [{"name": "r", "recipe": "cbt-llm", "smoke": False, "data_sha256": "0"}]
    return Content(same("Title"), parts, facts, runs)


@pytest.mark.browser
def test_examples_are_found_by_words_and_traits_and_the_page_changes_its_language(
    content: Content, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(as_page(content, WORDS, "en"), encoding="utf-8")
    with open_chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(path.as_uri())
        shown = page.locator(".example:visible")
        found = page.locator(".finder output")
        assert (shown.count(), found.inner_text()) == (3, "3 / 3")
        page.get_by_label("Search").fill("ok 迟到")  # full-width letters are letters
        assert (shown.count(), found.inner_text()) == (1, "1 / 3")
        page.get_by_label("Search").fill("")
        page.get_by_label("Distortion").select_option("label:labeling")
        page.get_by_label("Risk").select_option("risk:explicit")
        assert shown.locator("h3").all_inner_texts() == ["我不想活了"]
        page.get_by_label("Risk").select_option("")
        page.get_by_label("Distortion").select_option("")
        page.get_by_label("Step missing").select_option("missing:key_thought")
        assert shown.locator("h3").all_inner_texts() == ["室友总是迟到"]
        heading = page.locator("#table-1 h2")
        assert "The dataset" in heading.inner_text() and "数据集" not in heading.inner_text()
        page.locator("#in-en").press("ArrowLeft")  # by keyboard
        assert "数据集" in heading.inner_text() and "dataset" not in heading.inner_text()
        assert "论文：22,327" in page.locator(".facts").inner_text()
        assert complaints == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_latex_escapes_every_character_of_its_own(content: Content) -> None:
    text = as_latex(content, WORDS, "en")
    assert (
        r"a\textbackslash{}b \{c\} \$d \#e \textasciitilde{}f \textasciicircum{}g h & 3 \\" in text
    )
    assert r"100 \% \& \_x\_ & n \\" in text
    assert text.count(r"\begin{") == text.count(r"\end{")
    labels = re.findall(r"\\label\{tab:([\w-]+)\}", text)
    assert labels == ["table-1", "table-1-2"]


def test_the_forms_show_the_same_figures(content: Content) -> None:
    shown = "0.500 [0.400, 0.600]"
    assert as_latex(content, WORDS, "zh").count(shown) == 2
    assert as_markdown(content, WORDS, "zh").count(shown) == 2
    assert as_page(content, WORDS, "zh").count(shown) == 2
    assert as_json(content)["parts"]["table-1"]["tables"][0]["rows"][1]["n"] == 0.5


def test_a_warning_in_english_is_shown_in_chinese_and_unknown_words_stay(content: Content) -> None:
    notes = ("nothing was tested", "an unknown remark")
    part = Part("notes", same("Notes"), notes=notes)
    content = Content(content.title, [part], content.facts, content.runs)
    assert "- 没有作检验" in as_markdown(content, WORDS, "zh")
    assert "- nothing was tested" in as_markdown(content, WORDS, "en")
    page = as_page(content, WORDS, "zh")
    assert '<li><span class="t" lang="zh-Hans">没有作检验</span>' in page
    assert "<li>an unknown remark</li>" in page


@pytest.mark.skipif(shutil.which("xelatex") is None, reason="no xelatex on this machine")
@pytest.mark.parametrize("lang", ["zh", "en"])
def test_latex_compiles(content: Content, tmp_path: Path, lang: str) -> None:
    (tmp_path / "report.tex").write_text(as_latex(content, WORDS, lang), encoding="utf-8")
    words = ["xelatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 5_000
