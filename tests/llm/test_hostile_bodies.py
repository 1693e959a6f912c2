"""Whatever a server sends ends as an item's reply or reason, or as one sentence for the run.

Bodies are made by the hundred and the whole engine runs on them; beside them stand the shapes that
have ended runs of other programs.
"""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbtqa.errors import BadResponseError, EndpointError
from cbtqa.llm.batch import run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Reply
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.llm.protocol import parse_completion, reply_of
from cbtqa.llm.transport import MOST_BYTES, open_transport, unpacked
from cbtqa.records import Reason
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, completion, ok

LIMITS = Limits(in_flight=2, waits=False, timeout_s=5, max_retries=1, max_attempts=2)


class AnyText:
    """Asks for anything; what comes with `坏` is faulty."""

    def key(self, item: str) -> str:
        return item

    def request(self, item: str) -> ChatRequest:
        return ChatRequest([{"role": "user", "content": item}])

    def check(self, item: str, reply: Reply) -> Fault | None:
        return Fault(Reason.NOT_JSON, reply.text) if "坏" in reply.text else None

    def ask_again(self, item: str, reply: Reply, fault: Fault) -> ChatRequest | None:
        return self.request(item)


# --- bodies --------------------------------------------------------------------------------------

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\ud800", "stop", "坏", "12", "-1", 10**400, 2.25, -35, "nan", "\x00", ""])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "type", "code", "message", "x"]), inner)
    ),
    max_leaves=6,
)
PLACES: list[tuple[str | int, ...]] = [
    *(("usage",), ("usage", "prompt_tokens"), ("usage", "completion_tokens"), ("model",)),
    *(("choices",), ("choices", 0), ("choices", 0, "message"), ("choices", 0, "finish_reason")),
    *(("choices", 0, "error"), ("error",), ("base_resp",), ("output_sensitive",)),
    *(("choices", 0, "message", name) for name in ("content", "refusal", "reasoning_content")),
]


def _with(place: tuple[str | int, ...], value: Any) -> Any:
    """A completion in which one place holds something else."""
    body: Any = copy.deepcopy(completion("好"))
    inner: Any = body
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return body


def _nested(opening: str, depth: int) -> bytes:
    closing = {"[": "]", '{"a":': "}"}[opening]
    return (opening * depth + "1" + closing * depth).encode()


ODD_BODIES = st.one_of(
    st.builds(_with, st.sampled_from(PLACES), VALUES).map(lambda body: json.dumps(body).encode()),
    VALUES.map(lambda body: json.dumps(body).encode()),
    st.binary(max_size=40),
    st.sampled_from([50, 995, 5_000, 100_000]).map(lambda depth: _nested("[", depth)),
    st.sampled_from([50, 995, 5_000, 100_000]).map(lambda depth: _nested('{"a":', depth)),
)
ANSWERS = st.builds(
    Answer,
    status=st.sampled_from([200, 200, 200, 200, 201, 204, 400, 409, 413, 422, 500, 599]),
    body=ODD_BODIES,
    headers=st.dictionaries(
        st.sampled_from(["Retry-After", "Content-Encoding", "x-ratelimit-remaining-tokens"]),
        st.sampled_from(["0", "1e309", "gzip", "br", "Mon, 99 Foo 99999 99:99:99 +9999"]),
    ),
)


@pytest.mark.parametrize(("transport", "n_runs"), [("http", 12), ("sdk", 4)])
def test_bodies_by_the_hundred_end_nothing_but_their_own_item(
    tmp_path: Path, transport: Any, n_runs: int
) -> None:
    numbers, answers = count(), dict[str, Answer]()

    def script(seen: Seen) -> Answer:
        return answers.get(seen.user_text, ok("好"))

    @settings(max_examples=n_runs, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(ANSWERS, min_size=10, max_size=16))
    def run(found: list[Answer]) -> None:
        answers.clear()
        answers.update({f"odd {number}": answer for number, answer in enumerate(found)})
        # a good one between two odd ones, so that the server never seems to be gone
        items = ["good", *(f"{kind} {n}" for n in range(len(found)) for kind in ("odd", "good"))]
        with Journal(tmp_path / f"{next(numbers)}.sqlite") as journal:
            try:
                run_batch(items, AnyText(), where, journal, LIMITS)
            except EndpointError as error:
                # an error of the whole run, such as {"error": {"code": 401}}: one sentence
                assert str(error)
                return
            outcomes = dict(journal.outcomes(items))
        assert all(outcomes.values())
        assert all(one.is_accepted for item, one in outcomes.items() if one and "good" in item)

    with ScriptedEndpoint(script) as server:
        where = Endpoint.parse(server.url, "m", environ={}, transport=transport)
        run()


def _line(status: Any, body: Any) -> str:
    told = {"response": {"status_code": status, "body": body}, "error": body}
    return json.dumps({"custom_id": "{id}"} | told)


STATUSES = st.sampled_from([200, 200, 200, 400, 500, 0, -1, "200", None, [200], 2.5, 10**30])
LINES = st.one_of(
    st.builds(_line, STATUSES, VALUES | st.builds(_with, st.sampled_from(PLACES), VALUES)),
    VALUES.map(lambda value: json.dumps({"custom_id": "{id}", "response": value})),
    VALUES.map(json.dumps),
    st.sampled_from(["no JSON", _nested("[", 5_000).decode(), '{"custom_id": 7}', "1" * 5_000]),
)


def test_result_lines_by_the_hundred_end_nothing_but_their_own_item(tmp_path: Path) -> None:
    numbers, lines = count(), dict[str, str]()

    def script(seen: Seen) -> Answer:
        line = lines.get(seen.user_text)
        return ok("好") if line is None else Answer(raw=line.encode())

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(LINES, min_size=10, max_size=16))
    def run(found: list[str]) -> None:
        lines.clear()
        lines.update({f"odd {number}": line for number, line in enumerate(found)})
        items = ["good", *lines]
        with Journal(tmp_path / f"{next(numbers)}.sqlite") as journal:
            run_batch(items, AnyText(), where, journal, LIMITS)
            outcomes = dict(journal.outcomes(items))
        assert all(outcomes.values())
        good = outcomes["good"]
        assert good is not None and good.is_accepted

    with ScriptedEndpoint(script) as server:
        where = Endpoint.parse(server.url, "m", environ={}, transport="batch-api")
        run()


# --- shapes that have been seen ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7}, (5, 7)),
        ({"prompt_tokens": -35, "completion_tokens": 7}, (0, 7)),
        ({"prompt_tokens": 37.25, "completion_tokens": "9"}, (37, 9)),
        ({"prompt_tokens": True, "completion_tokens": [3]}, (0, 0)),
        ({"prompt_tokens": float("nan"), "completion_tokens": 10**30}, (0, 0)),
        (None, (0, 0)),
        ("many", (0, 0)),
        ([{"prompt_tokens": 5}], (0, 0)),
    ],
)
def test_of_a_usage_what_is_a_count_counts(usage: Any, expected: tuple[int, int]) -> None:
    reply = reply_of(completion("好") | {"usage": usage}, 0)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == expected


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        (["好", "的"], "好的", None),
        ([{"type": "text", "text": {"value": "好"}}, {"type": "text", "text": "的"}], "好的", None),
        ([{"type": "output_text", "text": "好"}], "好", None),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "想"}]}, "好"], "好", "想"),
        ({"answer": "好"}, '{"answer": "好"}', None),
        ({"type": "text", "text": "好"}, "好", None),
        ([], "", None),
    ],
)
def test_content_is_read_in_all_its_shapes(content: Any, text: str, reasoning: str | None) -> None:
    body = _with(("choices", 0, "message", "content"), content)
    reply = reply_of(body, 0)
    assert (reply.text, reply.reasoning) == (text, reasoning)


def test_a_refusal_among_the_parts_is_no_answer() -> None:
    parts = [{"type": "refusal", "refusal": "I cannot."}]
    reply = reply_of(_with(("choices", 0, "message", "content"), parts), 0)
    assert (reply.text, reply.refusal) == ("", "I cannot.")


def test_a_filtered_answer_of_minimax_does_not_end_well() -> None:
    reply = reply_of(completion("说到") | {"output_sensitive": True}, 0)
    assert reply.finish_reason == "content_filter"


@pytest.mark.parametrize("place", [("choices", 0, "error"), ("error",)])
def test_an_error_in_or_beside_a_choice_is_no_answer(place: tuple[str | int, ...]) -> None:
    with pytest.raises(BadResponseError, match="the provider broke off"):
        reply_of(_with(place, {"code": 502, "message": "the provider broke off"}), 0)


@pytest.mark.parametrize(
    "body", [b'data: {"choices": []}\n\n', b"event: error\ndata: {}\n", b": keep-alive\n\n"]
)
def test_a_stream_nobody_asked_for_is_named_at_the_first_reply(tmp_path: Path, body: bytes) -> None:
    with ScriptedEndpoint(Answer(200, body)) as server, Journal(tmp_path / "j.sqlite") as journal:
        where = Endpoint.parse(server.url, "m", environ={})
        with pytest.raises(EndpointError, match="the server streams") as stopped:
            run_batch(["一"], AnyText(), where, journal, LIMITS)
        assert "--extra" in str(stopped.value.hint) and len(server.requests) == 1


# --- bombs ---------------------------------------------------------------------------------------


def _bomb(pack: Callable[[], Any], n_mib: int = 96) -> bytes:
    packer, piece = pack(), bytes(2**20)
    return b"".join(packer.compress(piece) for _ in range(n_mib)) + bytes(packer.flush())


BOMBS = {
    "gzip": _bomb(lambda: zlib.compressobj(1, wbits=31)),
    "deflate": _bomb(lambda: zlib.compressobj(1, wbits=-15)),
    "": bytes(MOST_BYTES + 1),
}


def _send_once(server: ScriptedEndpoint, transport: Any) -> Reply:
    async def send() -> Reply:
        where = Endpoint.parse(server.url, "m", environ={}, transport=transport)
        async with open_transport(where, 1) as opened:
            return (await opened.send({"model": "m", "messages": []}, 10)).reply

    return asyncio.run(send())


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("packing", BOMBS)
@pytest.mark.parametrize("transport", ["http", "sdk"])
def test_a_bomb_is_left_after_eight_mebibytes(packing: str, transport: Any, status: int) -> None:
    headers = {"Content-Encoding": packing} if packing else {}
    with ScriptedEndpoint(Answer(status, BOMBS[packing], headers)) as server:
        tracemalloc.start()
        try:
            with pytest.raises(BadResponseError, match="larger than 8 MiB"):
                _send_once(server, transport)
            peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()
    assert peak_mib < 48, "the unpacked bomb has 96"


@pytest.mark.parametrize("transport", ["http", "sdk"])
def test_a_packed_answer_is_read_and_a_broken_one_may_be_asked_for_again(transport: Any) -> None:
    data = json.dumps(completion("好")).encode()
    bare = zlib.compressobj(wbits=-15)
    packed = {"gzip": gzip.compress(data), "deflate": bare.compress(data) + bare.flush()}
    for packing, body in packed.items():
        with ScriptedEndpoint(Answer(200, body, {"Content-Encoding": packing})) as server:
            assert _send_once(server, transport).text == "好"
    for packing, body in {"gzip": packed["gzip"][:-9], "br": data, "gzip, gzip": data}.items():
        broken = Answer(200, body, {"Content-Encoding": packing})
        with (
            ScriptedEndpoint(broken) as server,
            pytest.raises(BadResponseError, match="packed"),
        ):
            _send_once(server, transport)


@pytest.mark.parametrize("transport", ["http", "sdk"])
def test_what_failed_is_not_held_while_its_request_waits(tmp_path: Path, transport: Any) -> None:
    body = b'{"a": "' + bytes(4 * 2**20).replace(b"\0", b"x") + b'"}'
    items = [f"词{number}" for number in range(24)]
    limits = Limits(in_flight=24, waits=False, timeout_s=20, max_retries=2, grace_s=1)
    with ScriptedEndpoint(Answer(500, body)) as server, Journal(tmp_path / "j.sqlite") as journal:
        where = Endpoint.parse(server.url, "m", environ={}, transport=transport)
        tracemalloc.start()
        try:
            with pytest.raises(EndpointError, match="answered 500"):
                run_batch(items, AnyText(), where, journal, limits)
            peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()
    assert peak_mib < 64, "24 answers have 96, and are held twice"


@pytest.mark.parametrize("opening", [b"[", b'{"a":['])
def test_millions_of_empty_lists_are_not_built(opening: bytes) -> None:
    with pytest.raises(BadResponseError, match="no JSON"):
        parse_completion(opening + b"[]," * 200_000 + b"1]", 0)


def test_an_answer_without_an_end_is_left_too() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(2**16)

    async def read() -> int:
        return sum([len(chunk) async for chunk in unpacked(endless(), "")])

    with pytest.raises(BadResponseError, match="larger"):
        asyncio.run(read())
