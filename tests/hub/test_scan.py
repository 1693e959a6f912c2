"""What the scan lets through and what it stops."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtqa.hub.dataset import check_dataset, plan_dataset
from cbtqa.hub.plan import PlannedFile, PublishPlan, PublishRefusedError
from cbtqa.hub.scan import Finding, Watch, find_blanks, refuse_findings, scan_plan
from cbtqa.hub.settings import DatasetSettings
from cbtqa.hub.source_text import ANSWER_RUN, MASK, SourceIndex, mask_quotes, restore_quotes

SECRETS = {
    "Hugging Face": "hf_" + "Ab3dE6gH9j" * 3,
    "sk-": "sk-proj-" + "Zx9" * 9,
    "GitHub": "ghp_" + "k3Y" * 12,
    "AWS": "AKIA" + "2" * 16,
    "private key": "-----BEGIN RSA PRIVATE KEY-----",
    "JSON web": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "bearer": "Authorization: Bearer 9f8e7d6c5b4a39281706f5e4d3c2b1a0",
    "password": 'api_key = "q1w2e3r4t5y6u7i8"',
    "address with a password": "postgres://lab:geheim@db.invalid/ratings",
    "Zhipu": "0123456789abcdef" * 2 + ".AbCdEfGhIjKlMnOp",
    "rater": "http://10.0.0.5:8765/r/" + "aZ" * 12,
}
PATHS = [
    "loaded from /scratch/li/models/qwen",
    '{"path": "/data1/psyqa/full.json"}',
    "see ~/psyqa/full.json",
    r"D:\models\qwen\config.json",
    "file:///srv/psyqa.json",
    "(/mnt/nas/runs)",
]
INNOCENT = [
    "https://huggingface.co/datasets/lab/cbt-qa/discussions",
    "and/or, 1/2, km/h, 24/7",
    "`data/train-*.parquet` and `qa/test-00000-of-00001.parquet`",
    "拨打 12356，或 110/120；sk-学（一种写法）",
    "<s>问题</s> 和 </think>",
    "SHA-256 " + "5d" * 32,
    "password: see your mail",
    "## 引用 title = {{CBT-LLM}: A {C}hinese Model}",
]


def planned(folder: Path, name: str, content: str | bytes) -> PublishPlan:
    """A plan of a single file."""
    path = folder / "files" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return PublishPlan("model", "lab/x", (PlannedFile(name, path),), "manual")


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_and_not_repeated_in_the_message(kind: str, tmp_path: Path) -> None:
    plan = planned(tmp_path, "notes.md", f"first line\nwe used {SECRETS[kind]} here\n")
    findings = scan_plan(plan, Watch())
    assert findings and findings[0].where == "notes.md:2"
    assert kind in findings[0].what
    with pytest.raises(PublishRefusedError) as caught:
        refuse_findings(findings)
    assert SECRETS[kind][8:] not in str(caught.value)


@pytest.mark.parametrize("text", PATHS)
def test_an_absolute_path_is_found(text: str, tmp_path: Path) -> None:
    findings = scan_plan(planned(tmp_path, "notes.md", text), Watch())
    assert [finding.what.split(":")[0] for finding in findings] == ["an absolute path"]


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_passes(text: str, tmp_path: Path) -> None:
    assert scan_plan(planned(tmp_path, "README.md", text), Watch()) == []


def test_text_hidden_by_json_escapes_is_found(tmp_path: Path) -> None:
    index = SourceIndex()
    index.add("室友把我讲的秘密告诉了别人，我再也不敢信任谁")
    text = json.dumps({"note": "室友把我讲的秘密告诉了别人，我再也不敢信任谁"}, ensure_ascii=True)
    findings = scan_plan(planned(tmp_path, "config.json", text), Watch(index=index))
    assert [finding.where for finding in findings] == ["config.json:note"]


def test_a_header_of_safetensors_is_read(tmp_path: Path) -> None:
    from safetensors.numpy import save

    data = save({"w": np.zeros(2, np.float32)}, metadata={"source": "/scratch/li/qwen/x"})
    findings = scan_plan(planned(tmp_path, "model.safetensors", data), Watch())
    assert "absolute path" in findings[0].what


@pytest.mark.parametrize(
    "name",
    [
        "ratings.xlsx",
        "store.sqlite",
        "optimizer.pt",
        "model.bin",
        "rng_state_0.pth",
        "run.py",
        ".env",
    ],
)
def test_forbidden_kinds_are_refused_by_name(name: str, tmp_path: Path) -> None:
    assert len(scan_plan(planned(tmp_path, name, b"x"), Watch())) == 1


def test_a_vocabulary_is_read_piece_by_piece(tmp_path: Path) -> None:
    pieces = {"://": 1129, "@": 31, "password": 3965, "/usr/local": 7, "我": 9, "王小明": 12}
    watch = Watch(names=("王小明",))
    plain = json.dumps({"model": {"vocab": pieces}}, separators=(",", ":"), ensure_ascii=False)
    assert scan_plan(planned(tmp_path, "tokenizer.json", plain), watch) == []
    pieces[SECRETS["GitHub"]] = 13
    hidden = json.dumps({"model": {"vocab": pieces}}, separators=(",", ":"))
    assert "GitHub" in scan_plan(planned(tmp_path, "tokenizer.json", hidden), watch)[0].what


def test_forbidden_kinds_are_refused_under_innocent_names(tmp_path: Path) -> None:
    store = tmp_path / "ratings.db"
    with sqlite3.connect(store) as connection:
        connection.execute("create table t (x)")
    contents = {
        "a.json": store.read_bytes(),
        "b.txt": b"PK\x03\x04 a spreadsheet",
        "c.md": b"\x80\x04\x95 a pickle",
    }
    for name, content in contents.items():
        findings = scan_plan(planned(tmp_path, name, content), Watch())
        assert "whatever its name says" in findings[0].what


def test_a_kind_nobody_can_read_is_refused(tmp_path: Path) -> None:
    findings = scan_plan(planned(tmp_path, "weights.dat", b"\x00\x01"), Watch())
    assert findings == [Finding("weights.dat", "a kind of file that is not published")]


def test_keys_and_names_of_this_machine_are_found_anywhere(tmp_path: Path) -> None:
    watch = Watch(names=("王小明",), secrets=("plain-looking-key-1",), places=("/x9/li/run",))
    text = "王小明 rated; key plain-looking-key-1; from /x9/li/run"
    found = {
        finding.what.split(":")[0] for finding in scan_plan(planned(tmp_path, "a.md", text), watch)
    }
    assert {"a name that must not appear", "a key that is in use on this machine"} <= found


def test_an_environment_key_in_an_answer_stops_a_dataset(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PROVIDER_API_KEY", "invented-chat-14b")
    settings_ = DatasetSettings(run=run, to="lab/x")
    findings = check_dataset(*plan_dataset(settings_), settings_)
    assert {finding.what for finding in findings} == {"a key that is in use on this machine"}


@pytest.mark.parametrize(
    "line",
    [
        "Contact: [your name]",
        "Funding: TO" + "DO",
        "IRB: ____",
        "批准号：待填",
        "{{ name }}",
        "| n | nan |",
    ],
)
def test_a_blank_in_the_card_is_found(line: str) -> None:
    assert len(list(find_blanks(f"# Card\n\n{line}\n"))) == 1


# --- protected text ------------------------------------------------------------------------------

QUESTION = "和室友冷战两个月了，每天回寝室都觉得喘不过气，我是不是太敏感了？"


@pytest.mark.parametrize(
    "copy",
    [
        "他说：每天回寝室都觉得喘不过气，我是不是",
        "每天 回 寝室，都觉得喘不过气——我是不是",
        "每天回寢室都覺得喘不過氣我是不是",
    ],
)
def test_a_copied_run_is_found_whatever_its_punctuation_and_script(copy: str) -> None:
    index = SourceIndex()
    index.add(QUESTION)
    ((_, _, end),) = index.hits(["前面是别的话。" + copy])
    assert "寝" in copy[:end] or "寢" in copy[:end]


def test_short_runs_in_common_pass() -> None:
    index = SourceIndex()
    index.add(QUESTION)
    assert not index.hits(["你说每天回寝室都难受，这很不容易，换作别人也会累"])


def test_a_short_title_counts_when_it_is_repeated_whole() -> None:
    index = SourceIndex()
    index.add("室友总是翻我的抽屉")
    assert index.hits(["关于“室友总是翻我的抽屉”这件事"])
    assert not index.hits(["室友总是翻我东西"])


def test_runs_do_not_cross_from_one_text_into_the_next() -> None:
    index = SourceIndex()
    index.add("甲乙丙丁戊己庚辛壬癸子丑")
    assert index.hits(["甲乙丙丁戊己", "庚辛壬癸子丑"]) == []
    assert index.hits(["无关", "甲乙丙丁戊己庚辛壬癸子丑"]) == [(1, 0, 12)]


def test_set_phrases_of_human_answers_need_a_longer_run() -> None:
    index = SourceIndex()
    index.add("楼主你好，希望我的回答能够对你有一点点帮助，世界和我爱着你", ANSWER_RUN)
    assert not index.hits(["希望我的回答能够对你有一点"])
    assert index.hits(["楼主你好，希望我的回答能够对你有一点点帮助"])


texts = st.text(alphabet="甲乙丙丁，。", max_size=60)


@settings(max_examples=200, deadline=None)
@given(texts, texts, texts)
def test_masks_are_taken_back_exactly(question: str, before: str, after: str) -> None:
    answer = before + question[3:20] + after
    masked, quotes = mask_quotes(answer, question)
    assert masked.count(MASK) == len(quotes)
    assert restore_quotes(masked, quotes, question) == answer
    for place in range(len(question) - 8 + 1):
        assert question[place : place + 8] not in masked


def test_an_answer_with_a_mask_of_its_own_cannot_be_masked() -> None:
    with pytest.raises(ValueError, match="holds"):
        mask_quotes(f"你写的{MASK}", QUESTION)
    with pytest.raises(ValueError, match="masks"):
        restore_quotes(MASK, [], QUESTION)
