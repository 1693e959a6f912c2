"""A known key is masked in every spelling in which it is told, and nothing else is."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbtqa import secrets
from cbtqa.files import ParquetRows, json_line, write_json, write_text
from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Entry, Journal, State
from cbtqa.records import Reason, Rejection
from cbtqa.secrets import MASK, masked, masked_value, remember
from tests.support.hostile import KEY, told_under, traces_in

LETTERS = st.characters(min_codepoint=33, max_codepoint=126)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.text(LETTERS, min_size=8, max_size=80), user=st.sampled_from(["", "a", "ab", "user"]))
def test_a_key_is_found_in_every_spelling(key: str, user: str) -> None:
    secrets._known.clear()
    remember(key)
    assert masked(f"Bearer {key}, and") == f"Bearer {MASK}, and"
    assert masked(quote(key, safe="")) == MASK
    assert masked(json.dumps(key)) == f'"{MASK}"'
    assert masked(json.dumps(json.dumps(key))[3:-3]) == MASK
    assert masked("".join(f"\\u{ord(letter):04X}" for letter in key)) == MASK
    for encode in (b64encode, urlsafe_b64encode):
        basic = encode(f"{user}:{key}".encode()).decode()
        rest = masked(f"Basic {basic}").removeprefix("Basic ").partition(MASK)
        assert rest[1] and len(rest[0]) < len(user) + 8 and len(rest[2]) <= 4


def test_a_short_key_is_left_alone_for_it_is_a_word() -> None:
    for word in ("none", "EMPTY", "ollama"):
        remember(word)
    assert masked("none of the EMPTY words of ollama") == "none of the EMPTY words of ollama"


def test_a_key_that_begins_with_another_is_masked_whole() -> None:
    remember("sk-shorter")
    remember("sk-shorter-and-longer")
    assert masked("sk-shorter-and-longer sk-shorter") == f"{MASK} {MASK}"


def test_numbers_stay_numbers_whatever_digits_a_key_is_made_of(tmp_path: Path) -> None:
    remember("12345678")
    row = {"n": 12345678, "x": 0.12345678, "told 12345678": ["12345678", None], "is": True}
    wanted = {"n": 12345678, "x": 0.12345678, f"told {MASK}": [MASK, None], "is": True}
    assert masked_value(row) == wanted
    assert json.loads(json_line(row)) == wanted
    write_json(tmp_path / "a.json", row)
    assert json.loads((tmp_path / "a.json").read_text()) == wanted


def test_no_file_holds_a_key_wherever_its_text_came_from(tmp_path: Path) -> None:
    remember(KEY)
    rejection = Rejection(item_id="a", stage="generate", reason=Reason.ENDPOINT, detail=KEY)
    (tmp_path / "a.jsonl").write_text(json_line(rejection) + json_line({"raw": KEY}))
    write_text(tmp_path / "report.html", f"<p>{KEY}</p>")
    with ParquetRows(tmp_path / "a.parquet", pa.schema([("text", pa.string())])) as rows:
        rows.add({"text": f"told {KEY}"})
    reply = Reply(KEY, KEY, KEY, KEY, model=KEY)
    with Journal(tmp_path / "j.sqlite", {"model": KEY}) as journal:
        journal.record([Entry("a", 1, State.FAULTY, reply, Fault(Reason.REFUSAL, KEY))])
        journal.set_meta("told", KEY)
    with Journal(tmp_path / "j.sqlite", {"model": KEY}) as journal:
        outcome = journal.outcome("a")
    assert outcome is not None and outcome.reply is not None and outcome.reply.text == MASK
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [{"text": f"told {MASK}"}]
    assert not traces_in(told_under(tmp_path))


def test_another_process_that_is_handed_an_endpoint_knows_its_key() -> None:
    data = pickle.dumps(Endpoint("http://127.0.0.1:1/v1", "m", KEY))
    code = (
        f"import pickle; from cbtqa.secrets import masked; pickle.loads({data!r}); "
        f"print(masked({KEY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == MASK


@pytest.mark.parametrize("is_debug", [False, True])
def test_a_fault_of_the_program_itself_is_told_without_the_key(is_debug: bool) -> None:
    code = (
        "import logging, sys\n"
        "from cbtqa.cli import main as program\n"
        "from cbtqa.llm.endpoint import Endpoint\n"
        f"key = Endpoint('http://127.0.0.1:1/v1', 'm', {KEY!r}).key\n"
        "def broken(words, is_debug):\n"
        "    print('out', key)\n"
        "    logging.getLogger('aiohttp').error('log %s', key)\n"
        "    raise RuntimeError(f'headers: {key}')\n"
        "program._run = broken\n"
        f"program.main(['--debug'] if {is_debug} else [])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and f"out {MASK}" in done.stdout
    assert f"log {MASK}" in done.stderr and f"headers: {MASK}" in done.stderr
    assert ("Traceback" in done.stderr) == is_debug
    assert not traces_in(done.stdout + done.stderr)
