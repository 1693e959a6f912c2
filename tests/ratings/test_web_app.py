"""The form over plain HTTP: who gets in, what is refused, and what an answer carries."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cbtqa.ratings.design import NewStudySettings, create_study
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from cbtqa.web.guards import FailureLimit
from tests.ratings.conftest import FORMULA, HOSTILE, RunningForm, write_inputs


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Browser:
    """A client that keeps cookies and sends what it is told."""

    form: RunningForm
    cookies: dict[str, str] = field(default_factory=dict)
    csrf: str = ""

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.form.port, timeout=10)
        jar = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = {"Cookie": jar, **{name.replace("_", "-"): v for name, v in headers.items()}}
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        connection.request(method, path, data, sent)
        reply = connection.getresponse()
        for name, value in reply.getheaders():
            if name.lower() == "set-cookie":
                key, _, rest = value.partition("=")
                self.cookies[key] = rest.partition(";")[0]
        text = reply.read().decode()
        connection.close()
        return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, text)

    def enter(self, rater: str = "R1") -> Browser:
        assert self.send("GET", f"/r/{self.form.links[rater]}").status == 200
        page = self.send("GET", "/item/1").text
        self.csrf = re.search(r'"csrf": ?"([^"]+)"', page)[1]  # type: ignore[index]
        return self

    def save(
        self, field_: str, value: Any, code: str = "R1-001", key: str = "", **headers: str
    ) -> Reply:
        change = {"key": key or f"{field_}={value}", "code": code, "field": field_, "value": value}
        return self.send(
            "POST", "/save", {"changes": [change]}, **{"X_CSRF_Token": self.csrf, **headers}
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """One study for all tests of this file; ratings and links are new for each."""
    place = tmp_path_factory.mktemp("form")
    settings = NewStudySettings(**write_inputs(place), out=place / "study")
    return create_study(settings).folder


@pytest.fixture(scope="module")
def running(folder: StudyFolder) -> Iterator[tuple[Store, RunningForm]]:
    with Store(folder.store_path, folder.study.id) as store:
        form = RunningForm(folder, store)
        yield store, form
        form.stop()


@pytest.fixture
def store(running: tuple[Store, RunningForm]) -> Store:
    """The store, emptied."""
    with running[0]._transaction() as connection:
        for table in ("events", "visits", "links"):
            connection.execute(f"DELETE FROM {table}")
    return running[0]


@pytest.fixture
def form(running: tuple[Store, RunningForm], store: Store, folder: StudyFolder) -> RunningForm:
    """The running form with new links."""
    running[1].links = {rater: store.issue_link(rater) for rater in folder.study.raters}
    return running[1]


@pytest.fixture
def browser(form: RunningForm) -> Browser:
    return Browser(form).enter()


def test_a_link_becomes_a_strict_hidden_cookie_and_leaves_the_address(form: RunningForm) -> None:
    reply = Browser(form).send("GET", f"/r/{form.links['R1']}")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert form.links["R1"] not in reply.text + cookie
    assert 'http-equiv="refresh" content="0; url=/"' in reply.text
    assert reply.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/item/1", "/mine.json"])
def test_without_a_link_nothing_is_shown(form: RunningForm, path: str) -> None:
    stranger = Browser(form)
    assert stranger.send("GET", path).status == 403
    stranger.cookies = dict.fromkeys(Browser(form).enter().cookies, "guess")
    assert stranger.send("GET", path).status == 403


def test_many_wrong_links_are_refused_and_lock_out_no_right_one_behind_the_same_address(
    folder: StudyFolder, store: Store
) -> None:
    own = RunningForm(folder, store)
    stranger = Browser(own)
    statuses = [stranger.send("GET", f"/r/guess{n}").status for n in range(25)]
    assert Browser(own).enter("R2").save("value:relevance", 2).status == 200
    assert Browser(own).send("GET", f"/r/{own.links['R1']}").status == 200
    own.stop()
    assert statuses[:20] == [403] * 20 and set(statuses[20:]) == {429}


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"POST /save HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 900\r\n\r\n{",
    ],
)
def test_a_connection_that_sends_nothing_or_half_a_request_is_closed_in_time(
    folder: StudyFolder, store: Store, half: bytes
) -> None:
    own = RunningForm(folder, store, read_timeout_s=0.2)
    with socket.create_connection(("127.0.0.1", own.port), timeout=20) as peer:
        peer.sendall(half.replace(b"{port}", str(own.port).encode()))
        while peer.recv(4096):  # an answer may come first; then the end, not a timeout
            pass
    assert Browser(own).enter().csrf
    own.stop()


def test_a_request_that_comes_slowly_but_whole_is_answered(
    folder: StudyFolder, store: Store
) -> None:
    own = RunningForm(folder, store, read_timeout_s=5)
    with socket.create_connection(("127.0.0.1", own.port), timeout=20) as peer:
        for part in (b"GET /nowhere HTTP/1.1\r\nHost: 127.0.", f"0.1:{own.port}\r\n\r\n".encode()):
            peer.sendall(part)
            time.sleep(0.1)
        assert b"404" in peer.recv(4096)
    own.stop()


def test_failures_are_forgotten_after_the_window() -> None:
    limit = FailureLimit(limit=2, window_s=0.0)
    for _ in range(5):
        limit.count("x")
    assert not limit.is_exceeded("x")


def test_a_replaced_link_stops_working_at_once(browser: Browser, store: Store) -> None:
    assert browser.save("value:relevance", 2).status == 200
    store.issue_link("R1")
    assert browser.save("value:relevance", 1).status == 401
    assert browser.send("GET", "/item/1").status == 403


def test_a_save_without_or_with_anothers_csrf_token_is_refused(
    browser: Browser, store: Store
) -> None:
    other = Browser(browser.form).enter("R2")
    for token in ("", "guess", other.csrf):
        assert browser.save("value:relevance", 2, X_CSRF_Token=token).status == 403
    assert store.events() == []
    assert browser.save("value:relevance", 2).status == 200


def test_a_rater_cannot_touch_anothers_items(browser: Browser, store: Store) -> None:
    reply = browser.save("value:relevance", 2, code="R2-001").json
    assert "R2-001 is not in the plan of R1" in reply["refused"][0]["detail"]
    assert store.events() == []


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", ""])
def test_a_foreign_host_is_refused(browser: Browser, host: str) -> None:
    assert browser.send("GET", "/", Host=host).status == 400


def test_a_post_from_another_site_is_refused(browser: Browser, store: Store) -> None:
    for origin in ("http://evil.example", "null", f"https://evil.example:{browser.form.port}"):
        assert browser.save("value:relevance", 2, Origin=origin).status == 403
    assert store.events() == []
    assert browser.save("value:relevance", 2, Origin=browser.form.address).status == 200


def test_every_answer_carries_a_policy_that_runs_our_nonce_alone(browser: Browser) -> None:
    nonces = set()
    for path in ("/", "/item/1", "/r/none", "/nowhere"):
        reply = browser.send("GET", path)
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        nonce = re.search(r"script-src 'nonce-([^']+)'", policy)[1]  # type: ignore[index]
        nonces.add(nonce)
        scripts = re.findall(r"<script(?! type=\"application/json\")([^>]*)>", reply.text)
        assert all(f'nonce="{nonce}"' in attributes for attributes in scripts)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
    assert len(nonces) == 4


def test_texts_of_models_are_shown_as_text(browser: Browser, folder: StudyFolder) -> None:
    pages = [browser.send("GET", f"/item/{p.order}").text for p in folder.shown_to("R1")]
    hostile = [page for page in pages if "owned" in page]
    assert hostile
    for page in hostile:
        assert HOSTILE not in page and "<img" not in page
        assert "&lt;script&gt;document.title=" in page and "{{ 7*7 }}" in page
    assert any(FORMULA.replace('"', "&#34;") in page for page in pages)


def test_a_title_from_the_command_line_cannot_break_out_of_the_data_block(
    browser: Browser, store: Store
) -> None:
    browser.save("note", "</script><script>alert(1)</script>")
    page = browser.send("GET", "/item/1").text
    assert "</script><script>alert(1)" not in page
    assert store.answers()["R1-001"].note == "</script><script>alert(1)</script>"


def test_no_page_tells_the_system_the_arm_or_others_ratings(
    browser: Browser, folder: StudyFolder
) -> None:
    Browser(browser.form).enter("R2").save("note", "来自二号", code="R2-001")
    for shown in folder.shown_to("R1"):
        page = browser.send("GET", f"/item/{shown.order}").text
        assert "alpha" not in page and "beta" not in page and '"arm"' not in page
        assert shown.item_id not in page and "来自二号" not in page


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"changes": []}',
        b'{"changes": [{"key": "k", "code": "R1-001", "field": "note", "value": {}}]}',
        b'{"changes": [{"key": "k", "code": "R1-001", "field": "note", "value": 1, "x": 1}]}',
        b'{"changes": [{"key": "k", "code": "R1-001", "field": "note", "value": "a", "seconds": -1}]}',
        b'{"changes": [{"key": "k", "code": "R1-001", "field": "note", "value": "a", "seconds": 1e999}]}',
    ],
)
def test_a_malformed_save_is_a_400(browser: Browser, store: Store, body: bytes) -> None:
    assert browser.send("POST", "/save", body, X_CSRF_Token=browser.csrf).status == 400
    assert store.events() == []


def test_a_giant_save_is_cut_off(browser: Browser) -> None:
    body = b"x" * ((1 << 20) + 1)
    assert browser.send("POST", "/save", body, X_CSRF_Token=browser.csrf).status == 413


def test_good_changes_of_a_batch_are_kept_and_bad_ones_named(
    browser: Browser, store: Store
) -> None:
    changes = [
        {"key": "1", "code": "R1-001", "field": "value:relevance", "value": 2, "seconds": 3.5},
        {"key": "2", "code": "R1-001", "field": "value:structure", "value": 7},
        {"key": "3", "code": "R1-001", "field": "crisis", "value": True},
    ]
    reply = browser.send("POST", "/save", {"changes": changes}, X_CSRF_Token=browser.csrf).json
    assert reply["settled"] == ["1", "2", "3"]
    assert [(r["key"], "0 to 2" in r["detail"]) for r in reply["refused"]] == [("2", True)]
    answer = store.answers()["R1-001"]
    assert (answer.values, answer.crisis, answer.seconds) == ({"relevance": 2}, True, 3.5)


def test_a_replayed_save_counts_once_and_does_not_undo_a_later_one(
    browser: Browser, store: Store
) -> None:
    browser.save("value:relevance", 2, key="first")
    browser.save("value:relevance", 0, key="second")
    browser.save("value:relevance", 2, key="first")
    assert store.answers()["R1-001"].values == {"relevance": 0}
    assert len(store.events()) == 2


def test_a_rater_comes_back_to_what_was_saved_and_can_take_it_home(browser: Browser) -> None:
    browser.save("value:relevance", 1)
    browser.save("note", "想想再说")
    page = browser.send("GET", "/item/1").text
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert data["answer"]["values"] == {"relevance": 1}
    mine = browser.send("GET", "/mine.json")
    assert "attachment" in mine.headers["content-disposition"]
    assert [e["value"] for e in mine.json["events"]] == [1, "想想再说"]


def test_progress_counts_finished_items(browser: Browser, folder: StudyFolder) -> None:
    for name in ("relevance", "structure"):
        assert browser.save(f"value:{name}", 1).json["done"] == 0
    reply = browser.save("value:helpfulness", 1).json
    assert (reply["done"], reply["total"]) == (1, len(folder.shown_to("R1")))
    assert browser.save("cannot_judge", True, code="R1-002").json["done"] == 2


def test_a_page_in_chinese_holds_no_english_sentence(browser: Browser) -> None:
    for path in ("/", "/item/3"):
        page = re.sub(
            r"<(style|script)[^>]*>.*?</\1>", "", browser.send("GET", path).text, flags=re.S
        )
        texts = re.findall(r">([^<]+)<", page)
        assert [one for one in texts if re.search(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", one)] == []


def test_pages_speak_both_languages_and_remember_the_choice(browser: Browser) -> None:
    assert "开始评分" in browser.send("GET", "/").text
    assert "Start rating" in browser.send("GET", "/?lang=en").text
    assert "Cannot judge" in browser.send("GET", "/item/1").text
    assert "12356" in browser.send("GET", "/?lang=zh").text


def test_an_item_on_suicide_carries_a_note_of_care(browser: Browser, folder: StudyFolder) -> None:
    for shown in folder.shown_to("R1"):
        page = browser.send("GET", f"/item/{shown.order}").text
        assert ("这一条谈到自杀或自伤" in page) == (folder.item_of(shown).risk == "explicit")


@pytest.mark.parametrize(
    "path", ["/item/0", "/item/99", "/item/x", "/docs", "/save/", "/../study.json"]
)
def test_unknown_places_are_a_plain_404(browser: Browser, path: str) -> None:
    assert browser.send("GET", path).status == 404


def test_reading_changes_nothing(browser: Browser, store: Store) -> None:
    for path in ("/", "/item/1", "/mine.json", "/?lang=en"):
        browser.send("GET", path)
    assert store.events() == []
    assert browser.send("GET", "/save").status == 405
