"""The page: self-contained, escaped, both languages, and Chinese without any system font."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup

from cbtqa.report.page import (
    Code,
    Fact,
    Facts,
    Figure,
    Items,
    Lang,
    Notice,
    Page,
    Pairs,
    Phrase,
    Section,
    Table,
    Text,
    load_wording,
    render_page,
    same,
)

HOSTILE = '<img src=x onerror=alert(1)>&"'
VOID = {"meta", "br", "img", "hr", "link", "input"}


def make_page(text: str = "文字", lang: Lang = "zh") -> str:
    phrase = Phrase(zh=text, en="words")
    blocks = (
        Text(phrase),
        Text(phrase, is_note=True),
        Facts((Fact(text, phrase, text),)),
        Table([phrase, phrase], [[text, "1"], [phrase, "2"]], caption=phrase),
        Pairs([(phrase, text), (phrase, phrase)]),
        Figure(Markup("<svg></svg>"), phrase),
        Notice(phrase, (phrase,)),
        Items((phrase,)),
        Code(text),
    )
    section = Section(phrase, blocks, "one")
    page = Page(
        title=phrase, kicker=phrase, lede=phrase, sections=(section,), footer=phrase, lang=lang
    )
    return render_page(page)


class _Balance(HTMLParser):
    """Notes tags that were not closed in order, and every attribute that runs code."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.faults += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")


def test_the_page_is_balanced_html_with_a_policy_against_scripts_and_requests() -> None:
    html = make_page()
    parser = _Balance()
    parser.feed(html)
    assert parser.faults == []
    assert parser.open == []
    assert "default-src 'none'" in html
    assert not re.search(r"<(script|link|iframe|object|embed)\b", html)
    assert not re.search(r"(src|href)=.https?:", html)
    assert set(re.findall(r"url\((\w+):", html)) == {"data"}


def test_text_from_outside_cannot_become_markup() -> None:
    html = make_page(HOSTILE)
    parser = _Balance()
    parser.feed(html)
    assert "<img" not in html
    assert parser.faults == []
    assert html.count("&lt;img src=x") >= 9


def test_the_main_language_leads_and_the_other_one_accompanies() -> None:
    zh, en = make_page("中文"), make_page("中文", lang="en")
    assert '<html lang="zh-Hans">' in zh
    assert '<html lang="en">' in en
    assert re.search(r"<h1>中文<span[^>]*>words</span>", zh)
    assert re.search(r"<h1>words<span[^>]*>中文</span>", en)


def test_a_phrase_that_is_the_same_in_both_languages_is_shown_once() -> None:
    assert same("BLEU").second("zh") == ""
    assert Phrase(zh="甲", en="a").second("zh") == "a"


def test_holes_of_a_phrase_are_filled_once_and_must_be_filled() -> None:
    phrase = Phrase(zh="共 $n 条", en="$n entries")
    assert phrase.fill(n="$x").zh == "共 $x 条"
    with pytest.raises(KeyError):
        phrase.fill()


def test_wording_files_give_phrases_by_dotted_key() -> None:
    wording = load_wording("cbtqa.dataset.report", "wording.yaml")
    assert wording["sections.splits"].en == "Splits"


@pytest.mark.browser
@pytest.mark.slow
def test_chinese_shows_on_a_machine_without_chinese_fonts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    fonts = tmp_path / "fonts.conf"
    fonts.write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>'
        "<dir>/usr/share/fonts/truetype/dejavu</dir>"
        f"<cachedir>{tmp_path}/cache</cachedir></fontconfig>"
    )
    monkeypatch.setenv("FONTCONFIG_FILE", str(fonts))
    page_path = tmp_path / "page.html"
    page_path.write_text(make_page("忐忑不安，我的心读到了"), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        requests: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(page_path.as_uri())
        page.evaluate("document.fonts.ready")
        title = page.locator("h1")
        shown = title.screenshot()
        title.evaluate("node => node.style.fontFamily = 'DejaVu Sans'")
        boxes = title.screenshot()
        width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        browser.close()
    assert [url for url in requests if not url.startswith("data:")] == [page_path.as_uri()]
    assert complaints == []
    assert shown != boxes, "the title looks as it does without the embedded font"
    assert width <= 0, "the page scrolls sideways"
