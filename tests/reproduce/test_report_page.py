"""The examples of an experiment's page in a real browser: searched and filtered by the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cbtqa.files import write_text
from cbtqa.records import STEP_NAMES
from cbtqa.report.page import load_wording, same
from cbtqa.reproduce.report import Example, Part, _page
from tests.support.served import open_chromium

pytestmark = pytest.mark.browser


def _example(question: str, risk: str, types: tuple[str, ...], n_steps: int) -> Example:
    steps = tuple((name, f"{name}。") for name in STEP_NAMES[:n_steps])
    answers = (("qwen", "回答 <b>粗体</b>"),)
    return Example(question, "", steps, (), answers, risk, types)


EXAMPLES = (
    _example("睡不着怎么办", "none", (), 5),
    _example("他一定不爱我了", "none", ("mind_reading",), 5),
    _example("我不想活了", "explicit", ("mind_reading", "overgeneralization"), 4),
)


def _made() -> str:
    words = load_wording("cbtqa.reproduce", "wording.yaml")
    part = Part("examples", same("Examples"), examples=EXAMPLES)
    return _page([], [part], [], words | {"several": same("None")}, "zh")


def _shown(page: Any) -> list[str]:
    headings = page.locator(".example:visible h3").all_inner_texts()
    return [one.strip() for one in headings]


def test_examples_are_searched_and_filtered_without_a_request(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_text(path, _made())
    with open_chromium() as browser:
        page = browser.new_page()
        requests: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(path.as_uri())
        assert len(_shown(page)) == 3
        page.focus(".filter input")
        page.keyboard.type("不 了")
        assert _shown(page) == ["他一定不爱我了", "我不想活了"]
        page.keyboard.press("Tab")
        page.keyboard.type("exp")
        page.select_option("[data-of=risk]", "explicit")
        assert _shown(page) == ["我不想活了"]
        assert "12356" in page.locator(".example:visible .note").inner_text()
        page.click(".filter button")
        page.select_option("[data-of=types]", "mind_reading")
        page.select_option("[data-of=missing]", "-")
        assert _shown(page) == ["他一定不爱我了"]
        page.select_option("[data-of=missing]", STEP_NAMES[4])
        assert _shown(page) == ["我不想活了"]
        page.fill(".filter input", "nothing of the kind")
        assert _shown(page) == []
        assert page.locator(".nothing").is_visible()
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
        assert complaints == []


def test_without_scripts_every_example_shows_and_no_filter(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_text(path, _made())
    with open_chromium() as browser:
        page = browser.new_context(java_script_enabled=False).new_page()
        page.goto(path.as_uri())
        assert len(_shown(page)) == 3
        assert not page.locator(".filter").is_visible()
