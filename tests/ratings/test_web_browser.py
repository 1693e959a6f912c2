"""The form in a real browser: keys, clicks, a dead server, another screen, hostile texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from tests.ratings.conftest import MakeStudy, RunningForm, write_rows
from tests.support.served import open_chromium

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with open_chromium() as browser:
        yield browser


class Rater:
    """A person at the form; notes every request and every script error."""

    def __init__(self, chromium: Any, form: RunningForm, rater: str = "R1", **screen: Any) -> None:
        self.form = form
        self.context = chromium.new_context(**screen)
        self.page = self.context.new_page()
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{form.address}/r/{form.links[rater]}")
        self.page.wait_for_selector("#start")

    def open(self, number: int = 1) -> Any:
        self.page.goto(f"{self.form.address}/item/{number}")
        return self.page

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def wait_for_state(self, state: str) -> None:
        self.page.wait_for_selector(f"#state.{state}", timeout=20_000)

    def close(self) -> None:
        assert self.errors == []
        assert self.hosts == {f"127.0.0.1:{self.form.port}"}
        self.context.close()


@pytest.fixture
def rater(chromium: Any, form: RunningForm) -> Iterator[Rater]:
    person = Rater(chromium, form)
    yield person
    person.close()


def test_the_keyboard_alone_rates_flags_notes_and_moves_on(rater: Rater, store: Store) -> None:
    assert "/r/" not in rater.page.url
    rater.page.click("#start")
    rater.page.wait_for_selector("#form")
    rater.press("2", "1", "0", "f", "c")
    rater.page.keyboard.type("说得很具体 x2")
    rater.press("Escape", "Enter")
    rater.page.wait_for_url("**/item/2")
    answer = store.answers()["R1-001"]
    assert answer.values == {"relevance": 2, "structure": 1, "helpfulness": 0}
    assert (answer.crisis, answer.note) == (True, "说得很具体 x2")
    rater.press("x")
    rater.wait_for_state("saved")
    assert store.answers()["R1-002"].cannot_judge
    rater.press("ArrowLeft")
    rater.page.wait_for_url("**/item/1")
    assert rater.page.locator(".criterion [aria-checked=true]").count() == 3
    assert rater.page.input_value("#note") == "说得很具体 x2"
    assert rater.page.inner_text("#progress").startswith("2 /")


def test_a_wrong_digit_does_nothing_and_arrows_choose_the_criterion(
    rater: Rater, store: Store
) -> None:
    rater.open()
    rater.press("7", "ArrowDown", "ArrowDown", "1", "ArrowUp", "2")
    rater.wait_for_state("saved")
    assert store.answers()["R1-001"].values == {"helpfulness": 1, "structure": 2}


def test_typing_a_note_does_not_rate(rater: Rater, store: Store) -> None:
    rater.open()
    rater.press("c")
    rater.page.keyboard.type("012xfgb")
    rater.page.wait_for_timeout(1000)
    rater.wait_for_state("saved")
    answer = store.answers()["R1-001"]
    assert (answer.values, answer.note, answer.crisis) == ({}, "012xfgb", False)


def test_guide_and_pause_are_one_key_away_and_rate_nothing_beneath(
    rater: Rater, store: Store
) -> None:
    rater.open()
    for key, name in (("g", "guide"), ("b", "pause")):
        rater.press(key)
        dialog = rater.page.locator(f"#{name}")
        assert dialog.is_visible()
        rater.press("2", "Escape")
        assert not dialog.is_visible()
    assert store.events() == []
    rater.press("g")
    assert "抓住了主要困扰和关键细节" in rater.page.inner_text("#guide")


def test_a_dead_server_shows_not_saved_and_the_queue_is_replayed_once_it_is_back(
    chromium: Any, folder: StudyFolder, store: Store
) -> None:
    form = RunningForm(folder, store)
    rater = Rater(chromium, form)
    rater.open()
    rater.press("2")
    rater.wait_for_state("saved")
    links, port = form.links, form.port
    form.stop()
    rater.press("1", "0")
    rater.wait_for_state("unsaved")
    assert "未保存，已留在本机" in rater.page.inner_text("#state")
    rater.page.wait_for_function(
        "document.getElementById('banner-text').textContent.includes('2 处改动')"
    )
    rater.press("Enter")
    rater.page.wait_for_timeout(400)
    assert rater.page.url.endswith("/item/1")
    with rater.page.expect_download() as download:
        rater.page.click("#download-unsaved")
    kept = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert [change["value"] for change in kept["changes"]] == [1, 0]
    assert store.answers()["R1-001"].values == {"relevance": 2}

    again = RunningForm(folder, store, port=port, links=links)
    rater.wait_for_state("saved")
    assert store.answers()["R1-001"].values == {"relevance": 2, "structure": 1, "helpfulness": 0}
    assert len(store.events()) == 3
    assert rater.page.locator("#banner").is_hidden()
    rater.errors.clear()
    rater.close()
    again.stop()


def test_what_was_not_saved_survives_closing_the_page(
    chromium: Any, folder: StudyFolder, store: Store
) -> None:
    form = RunningForm(folder, store)
    rater = Rater(chromium, form)
    rater.open()
    rater.context.route("**/save", lambda route: route.abort())
    rater.press("2", "2")
    rater.wait_for_state("unsaved")
    rater.context.unroute("**/save")
    rater.page.close(run_before_unload=False)
    rater.page = rater.context.new_page()
    rater.open()
    rater.wait_for_state("saved")
    assert store.answers()["R1-001"].values == {"relevance": 2, "structure": 2}
    rater.context.close()
    form.stop()


def test_a_withdrawn_link_keeps_the_changes_and_says_so(rater: Rater, store: Store) -> None:
    rater.open()
    store.issue_link("R1")
    rater.press("2")
    rater.wait_for_state("unsaved")
    assert "链接已失效" in rater.page.inner_text("#banner-text")
    rater.page.evaluate("localStorage.clear()")


def test_opening_the_link_again_elsewhere_does_not_lock_the_first_page_out(
    rater: Rater, store: Store
) -> None:
    rater.open()
    second = rater.context.new_page()
    second.goto(f"{rater.form.address}/r/{rater.form.links['R1']}")
    second.wait_for_selector("#start")
    rater.press("2")
    rater.page.wait_for_timeout(30)  # while the refusal of the old token is on its way
    rater.press("1")
    rater.wait_for_state("saved")
    assert rater.page.locator(".criterion [aria-checked=true]").count() == 2
    assert store.answers()["R1-001"].values == {"relevance": 2, "structure": 1}


def test_a_note_typed_just_before_closing_is_not_lost(rater: Rater, store: Store) -> None:
    rater.open()
    rater.press("c")
    rater.page.keyboard.type("最后一句")
    rater.page.goto("about:blank")
    rater.hosts.discard("")
    rater.open()
    rater.wait_for_state("saved")
    assert store.answers()["R1-001"].note == "最后一句"


def test_hostile_texts_are_inert(rater: Rater, folder: StudyFolder) -> None:
    seen = 0
    for shown in folder.shown_to("R1"):
        page = rater.open(shown.order)
        assert page.title() == "CBT 回答质量评分"
        assert page.locator(".text img, .text script, .text a").count() == 0
        seen += "<script>" in page.inner_text(".text")
    assert seen >= 2


def test_even_unescaped_markup_could_not_run(rater: Rater) -> None:
    page = rater.open()
    blocked: list[str] = []
    page.on("console", lambda message: blocked.append(message.text))
    page.evaluate(
        """() => { const script = document.createElement("script");
        script.textContent = "document.title = 'owned'"; document.body.append(script);
        document.querySelector(".text").innerHTML += "<img src=x onerror=\\"document.title='owned'\\">"; }"""
    )
    page.wait_for_timeout(300)
    assert page.title() == "CBT 回答质量评分"
    assert any("Content Security Policy" in text for text in blocked)


def test_the_form_fits_a_phone_and_works_by_touch(
    chromium: Any, form: RunningForm, store: Store
) -> None:
    screen = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    rater = Rater(chromium, form, **screen)
    page = rater.open()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for name in ("relevance", "structure", "helpfulness"):
        choice = page.locator(f"[data-criterion={name}] .choice").nth(1)
        assert choice.bounding_box()["height"] >= 44
        choice.tap()
    rater.wait_for_state("saved")
    assert store.answers()["R1-001"].values == dict.fromkeys(
        ("relevance", "structure", "helpfulness"), 1
    )
    page.locator("#next").tap()
    page.wait_for_url("**/item/2")
    rater.close()


def test_selected_words_become_the_evidence_of_a_label(
    chromium: Any, make_study: MakeStudy
) -> None:
    folder = make_study(predictions=(), rubric="distortions:socialcd-12", raters=1).folder
    with Store(folder.store_path, folder.study.id) as store:
        form = RunningForm(folder, store)
        rater = Rater(chromium, form)
        page = rater.open()
        page.evaluate(
            """() => { const text = document.querySelector(".ask .body").firstChild;
            const range = document.createRange(); range.setStart(text, 2); range.setEnd(text, 9);
            getSelection().addRange(range); }"""
        )
        rater.press("5")
        rater.wait_for_state("saved")
        expected = folder.item_of(folder.by_code["R1-001"]).description[2:9].strip()
        answer = store.answers()["R1-001"]
        assert answer.values == {"mind_reading": 1}
        assert answer.evidence == {"mind_reading": expected}
        rater.press("e")
        rater.wait_for_state("saved")
        answer = store.answers()["R1-001"]
        assert {name for name, value in answer.values.items() if value == 1} == {"none"}
        page.locator("[data-criterion=labeling] .toggle").click()
        field = page.locator("[data-evidence=labeling]")
        field.fill("原文没有的话")
        field.blur()
        page.wait_for_selector("#problem:not([hidden])")
        assert "does not occur" in page.inner_text("#problem")
        rater.close()
        form.stop()


def test_a_ten_point_ladder_with_a_long_session_scrolls_beside_it(
    chromium: Any, make_study: MakeStudy, tmp_path: Path
) -> None:
    turns = [{"role": "client", "text": f"Turn {n}. " * 20} for n in range(60)]
    path = write_rows(tmp_path / "a.jsonl", [{"id": "s", "turns": turns}])
    folder = make_study(predictions=(str(path),), questions=None, rubric="ctrs-ladder", n=1).folder
    with Store(folder.store_path, folder.study.id) as store:
        form = RunningForm(folder, store)
        rater = Rater(chromium, form, viewport={"width": 1300, "height": 800})
        page = rater.open()
        rater.press("0", "7")
        page.mouse.move(300, 500)
        page.mouse.wheel(0, 3000)
        page.wait_for_timeout(300)
        assert page.locator("#form").bounding_box()["y"] < 120
        assert page.locator("#text").bounding_box()["y"] < -500
        field = page.locator("[data-evidence=agenda]")
        field.fill("#12")
        field.blur()
        rater.wait_for_state("saved")
        answer = store.answers()["R1-001"]
        assert (answer.values, answer.evidence) == (
            {"agenda": 10, "feedback": 7},
            {"agenda": "#12"},
        )
        rater.close()
        form.stop()


def test_time_is_counted_while_someone_is_there(rater: Rater, store: Store) -> None:
    rater.open()
    rater.page.wait_for_timeout(2300)
    rater.press("2")
    rater.wait_for_state("saved")
    assert 1 <= (store.answers()["R1-001"].seconds or 0) <= 4
