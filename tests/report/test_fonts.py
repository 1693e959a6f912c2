"""The embedded font: every character of GB2312 shows, and a page carries no more than it needs."""

from __future__ import annotations

import base64
import io
import re
from importlib.resources import files

import pytest

from cbtqa.report.page import font_css, font_slices, needed_slices


def _gb2312_characters() -> set[str]:
    codes = (bytes((high, low)) for high in range(0xB0, 0xF8) for low in range(0xA1, 0xFF))
    return {code.decode("gb2312", errors="ignore") for code in codes} - {""}


def test_the_slices_hold_every_chinese_character_of_gb2312_once() -> None:
    chinese = [c for name, cs in font_slices().items() if name != "signs" for c in cs]
    assert len(chinese) == len(set(chinese)) == 6763
    assert set(chinese) == _gb2312_characters()


def test_every_slice_really_holds_the_characters_its_index_names() -> None:
    ttlib = pytest.importorskip("fontTools.ttLib")
    for name, characters in font_slices().items():
        data = (files("cbtqa.report") / "fonts" / f"{name}.woff2").read_bytes()
        font = ttlib.TTFont(io.BytesIO(data))
        assert {chr(code) for code in font.getBestCmap()} == characters, name
        assert "Noto" not in font["name"].getDebugName(1), "a trademark is no name for a subset"
        assert "Open Font License" in font["name"].getDebugName(13)


def test_a_page_of_plain_english_embeds_one_small_slice() -> None:
    assert needed_slices("Scores of 3 systems (0-100)") == ["signs"]
    assert len(font_css("abc")) < 40_000


def test_one_rare_character_brings_its_slice_and_no_other_rare_one() -> None:
    common = set(needed_slices("我的心"))
    with_rare = set(needed_slices("我的心忐忑"))
    assert common < with_rare
    assert len(with_rare - common) <= 2


def test_the_css_carries_the_fonts_as_data_and_names_no_address() -> None:
    css = font_css("读心术 abc")
    sources = re.findall(r"url\((.*?)\)", css)
    assert sources
    assert all(source.startswith("data:font/woff2;base64,") for source in sources)
    assert base64.b64decode(sources[0].split(",")[1])[:4] == b"wOF2"
    assert "http" not in css
