"""The page: self-contained, escaped, both languages, and Chinese without any system font."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup

from cbtqa.report.page import Head, Lang, Phrase, load_wording, render_page, same
from cbtqa.report.table import Estimate, Table
from tests.support.served import open_chromium

HOSTILE = '<img src=x onerror=alert(1)>&"'
VOID = {"meta", "br", "img", "hr", "link", "input"}


@pytest.fixture(scope="module")
def page_maker(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """Renders a page of every part from a room of its own, as any other room would."""
    room = tmp_path_factory.mktemp("rooms") / "page_room"
    (room / "templates").mkdir(parents=True)
    (room / "__init__.py").touch()
    template = """
{% extends "body.html.j2" %}
{% block opening %}{{ ui.facts([(text, phrase, text)]) }}{% endblock %}
{% block main %}
{% call ui.section("one", phrase) %}
{{ ui.text(phrase) }}{{ ui.note(phrase) }}{{ ui.table(table) }}{{ ui.pairs([(phrase, text)]) }}
{{ ui.figure(svg, phrase) }}{{ ui.notice(phrase, [phrase]) }}{{ ui.items([phrase, text]) }}
{{ ui.code(text) }}
{% endcall %}
{% endblock %}
"""
    (room / "templates" / "all_parts.html.j2").write_text(template, encoding="utf-8")
    sys.path.insert(0, str(room.parent))

    def make(text: str = "文字", lang: Lang = "zh") -> str:
        phrase = Phrase(zh=text, en="words")
        cells = [[text, Estimate(None, reason=text)], [phrase, 2]]
        return render_page(
            "page_room",
            "all_parts.html.j2",
            Head(phrase, phrase, phrase, phrase, lang),
            text=text,
            phrase=phrase,
            table=Table([phrase, text], cells, phrase),
            svg=Markup("<svg></svg>"),
        )

    yield make
    sys.path.remove(str(room.parent))


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


def test_the_page_is_balanced_html_with_a_policy_against_scripts_and_requests(
    page_maker: Callable[..., str],
) -> None:
    html = page_maker()
    parser = _Balance()
    parser.feed(html)
    assert parser.faults == []
    assert parser.open == []
    assert "default-src 'none'" in html
    assert not re.search(r"<(script|link|iframe|object|embed)\b", html)
    assert not re.search(r"(src|href)=.https?:", html)
    assert set(re.findall(r"url\((\w+):", html)) == {"data"}


def test_text_from_outside_cannot_become_markup(page_maker: Callable[..., str]) -> None:
    html = page_maker(HOSTILE)
    parser = _Balance()
    parser.feed(html)
    assert "<img" not in html
    assert parser.faults == []
    assert html.count("&lt;img src=x") >= 9


def test_a_page_holds_both_languages_and_opens_in_its_own(page_maker: Callable[..., str]) -> None:
    zh, en = page_maker("中文"), page_maker("中文", lang="en")
    assert '<html lang="zh-Hans">' in zh
    assert '<html lang="en">' in en
    assert re.findall(r'id="show-(\w+)" checked', zh + en) == ["zh", "en"]
    for page in (zh, en):
        assert re.search(
            r'<h1><span[^>]*"zh-Hans">中文</span><span[^>]*"en">words</span></h1>', page
        )


@pytest.mark.browser
def test_the_switch_shows_one_language_at_a_time_without_a_script(
    tmp_path: Path, page_maker: Callable[..., str]
) -> None:
    page_path = tmp_path / "page.html"
    page_path.write_text(page_maker("中文"), encoding="utf-8")
    with open_chromium() as browser:
        page = browser.new_context(java_script_enabled=False).new_page()
        page.goto(page_path.as_uri())
        title, text = page.locator("h1"), page.locator("section p").first
        assert (title.inner_text(), text.inner_text()) == ("中文", "中文")
        page.focus("#show-zh")
        page.keyboard.press("ArrowRight")
        assert (title.inner_text(), text.inner_text()) == ("words", "words")
        page.emulate_media(media="print")
        assert title.inner_text() == "words"
        assert not page.locator(".langs").is_visible()


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_maker: Callable[..., str]
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
    page_path.write_text(page_maker("忐忑不安，我的心读到了"), encoding="utf-8")
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
