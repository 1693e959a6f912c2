"""The same work through files of requests: a provider's Batch API, or `vllm run-batch`.

Each round writes the open questions to files and hands them in; the replies are checked as
everywhere, and what is faulty is asked again in the next round. The journal knows the batches
under way: a run that was killed or left goes on waiting for them and pays for no second batch.

Source: OpenAI API reference, "Batch" (50,000 requests and 200 MB a file, window 24 h); vLLM,
"Offline inference with the OpenAI batch file format" (the same rows).
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from cbtqa.errors import DataError, EndpointError, IncompleteRunError
from cbtqa.llm.asking import (
    MEND_AND_ASK,
    NOTHING,
    RUNGS,
    USED_UP,
    FormatLadder,
    ItemFailedError,
    probable_usage,
)
from cbtqa.llm.batch import Line, Question, Task, ask_all
from cbtqa.llm.chat import ChatRequest, Fault, Reply
from cbtqa.llm.cost import estimate_prompt
from cbtqa.llm.endpoint import Endpoint, ResponseFormat
from cbtqa.llm.journal import UNDER_WAY, Standing, State
from cbtqa.llm.limits import GateClosedError
from cbtqa.llm.protocol import (
    RequestRefusedError,
    error_of,
    reply_of,
    request_body,
    written,
)
from cbtqa.llm.server_words import shown
from cbtqa.llm.transport import mapped_errors, open_sdk
from cbtqa.paths import keep_private, replacing
from cbtqa.records import Reason, Usage

ItemT = TypeVar("ItemT")
MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000
POLL_S = 60.0
AT_A_TIME = 1_000
"""Items that are looked at together."""
ENDED = ("completed", "expired", "cancelled", "failed")
RUNG_NUMBERS = [str(number) for number, _ in enumerate(RUNGS)]
URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"


_Result = tuple[dict[str, Any], ResponseFormat]
"""One row of results, and the response format that was asked for."""


class BatchRun(Generic[ItemT]):
    """One call of `run_batch` for an endpoint that is handed files."""

    def __init__(
        self,
        line: Line,
        items: Iterable[ItemT],
        task: Task[ItemT],
        endpoint: Endpoint,
        *,
        wait: bool,
    ) -> None:
        self._line, self._open, self._task, self._endpoint = line, list(items), task, endpoint
        self._journal, self._limits, self._budget = line.journal, line.limits, line.budget
        self._wait, self._ladder = wait, FormatLadder(endpoint, line.journal)
        self._results: dict[str, _Result] = {}
        self._failures: Counter[str] = Counter()
        self._booked: dict[str, Usage] = {}
        self._is_used_up = False

    async def run(self) -> None:
        """Rounds until no question is open; `line.conclude` gives what ended them early."""
        place = _Folder(self._endpoint) if self._endpoint.folder else _Provider(self._endpoint)
        with tempfile.TemporaryDirectory() as folder:
            async with self._line, place:
                while self._open:
                    await self._collect(place)
                    self._stop_when_all_are_refused()
                    await self._ask(_Writer(Path(folder)), place)
                if self._is_used_up:
                    self._line.stop(USED_UP)

    async def _ask(self, writer: _Writer, place: _Place) -> None:
        """Checks every result there is, and hands in what is still to be asked."""
        self._writer, items, self._open = writer, self._open, []

        async def ask(item: ItemT, key: str, standing: Standing | None) -> None:
            answer = partial(self._answer, item, key)
            await self._line.work(Question.about(item, self._task, key, answer), standing)

        await ask_all(self._line, items, self._task, AT_A_TIME, ask)
        await self._line.drain()
        if self._line.is_stopping:
            raise GateClosedError
        self._line.meter.n_unfinished = len(self._open)
        # every result is in the journal now
        self._results.clear()
        self._note([])
        for path in writer.close():
            await self._line.call(self._submit(path, place))
        if not writer.names:
            self._open = []  # the budget is used up: nothing more will be sent

    async def _answer(self, item: ItemT, key: str, request: ChatRequest, attempt: int) -> Reply:
        """The reply among the results; else the question goes into a file.

        Raises:
            GateClosedError: it was written, or the budget is used up.
            ItemFailedError: the request was refused, or failed too often.
        """
        # short, and the same in every run: keys may be longer than an id may be
        name = blake2b(f"{attempt}:{key}".encode(), digest_size=16).hexdigest()
        result = self._results.pop(name, None)
        if result is not None:
            reply = self._reply(key, request, result, self._booked.pop(name, NOTHING))
            if reply is not None:
                return reply
        if name in self._writer.names:
            self._line.meter.n_duplicates += 1
            raise GateClosedError
        if (missing := self._booked.pop(name, None)) is not None:
            if self._budget:
                self._budget.book(missing, sign=-1)
            self._count_failure(key, "the batch ended without a result for it")
        self._open.append(item)
        booked = probable_usage(request, estimate_prompt(request), self._line.meter)
        if self._budget:
            if self._budget.is_used_up(booked):
                self._is_used_up = True
                raise GateClosedError
            self._budget.book(booked)
        self._booked[name] = booked
        rung = self._ladder.rung
        body = request_body(request, self._endpoint, rung, attempt)
        row = {"custom_id": f"{name}-{RUNG_NUMBERS[RUNGS.index(rung)]}", "method": "POST"}
        self._writer.write(name, row | {"url": URL, "body": body})
        self._line.meter.n_requests += 1
        self._line.meter.n_repeats += key in self._failures
        raise GateClosedError

    def _reply(
        self, key: str, request: ChatRequest, result: _Result, booked: Usage
    ) -> Reply | None:
        """The reply in a result; None when the request is to be sent again."""
        if self._budget:
            self._budget.book(booked, sign=-1)
        row, rung = result
        try:
            reply = _reply_in(row, self._endpoint)
        except RequestRefusedError as error:
            lower = self._ladder.below(rung, error) if request.json_schema else None
            self._failures[key] += 1
            if lower is None or not error.names_format or self._failures[key] > len(RUNGS):
                raise ItemFailedError(State.FINAL, error.fault) from None
            return None  # once more, a rung lower
        except EndpointError as error:
            self._count_failure(key, error)
            return None
        if request.json_schema is not None:
            self._ladder.answered(rung)
        self._line.meter.paid(reply.usage, estimate_prompt(request))
        if self._budget:
            self._budget.book(reply.usage)
        return replace(reply, host=self._endpoint.host)

    def _stop_when_all_are_refused(self) -> None:
        """Stops the run when the model has not answered anything yet and every result is a refusal:
        then no question is to blame, and the next run hands all of them in anew.

        Raises:
            GateClosedError: it is so.
        """
        if not self._results or self._journal.totals().n_replies:
            return
        errors = [_error_in(row, self._endpoint) for row, _ in self._results.values()]
        refused = [one for one in errors if isinstance(one, RequestRefusedError)]
        if len(refused) < len(errors) or {one.reason for one in refused} != {Reason.BAD_REQUEST}:
            return
        if any(one.names_format for one in refused) and self._ladder.rung != RUNGS[-1]:
            return  # a lower rung comes first
        self._results.clear()
        self._note([])
        said = f"{self._endpoint.host} {refused[0]}"
        self._line.stop(f"all {len(errors):,} requests were refused. {said}", MEND_AND_ASK)
        raise GateClosedError

    def _count_failure(self, key: str, error: object) -> None:
        """Notes that a question got no reply; raises ItemFailedError once that was too often."""
        self._failures[key] += 1
        if self._failures[key] > self._limits.max_retries:
            fault = Fault(Reason.ENDPOINT, f"given up after {self._failures[key]}: {error}")
            raise ItemFailedError(State.ENDPOINT, fault)

    def _under_way(self) -> list[dict[str, Any]]:
        """`{"token", "id"}` of every batch; an id is None until it is known."""
        found: list[dict[str, Any]] = json.loads(self._journal.meta(UNDER_WAY) or "[]")
        return found

    def _note(self, batches: list[dict[str, Any]]) -> None:
        self._journal.set_meta(UNDER_WAY, json.dumps(batches))

    async def _submit(self, path: Path, place: _Place) -> None:
        under_way, token = self._under_way(), secrets.token_hex(8)
        entry: dict[str, Any] = {"token": token, "id": None}
        # noted before it exists: a kill between here and the answer must not cost a second batch
        self._note([*under_way, entry])
        self._note([*under_way, entry | {"id": await place.submit(path, token)}])

    async def _collect(self, place: _Place) -> None:
        """Waits for every batch under way and reads its results; what is still out stops the run.

        Results stay noted as under way until the journal holds them all.
        """
        out = []
        for entry in self._under_way():
            name = entry["id"] or await self._line.call(place.find(entry["token"]))
            if name is None:
                continue  # the upload never became a batch: nothing was paid
            if not await self._wait_for(name, place):
                out.append(name)
                continue
            rows = await self._line.call(place.rows(name))
            if rows is None:
                self._note([one for one in self._under_way() if one != entry])
                raise IncompleteRunError(
                    f"batch {name} ended without results: {self._line.meter.note}",
                    hint="give the same command again to send its requests anew",
                )
            for row in rows:
                question, _, number = row["custom_id"].partition("-")
                if number in RUNG_NUMBERS:  # else a result of somebody else's question
                    self._results[question] = row, RUNGS[RUNG_NUMBERS.index(number)]
        if out:
            self._line.stop(place.what_to_do(out))
            raise GateClosedError

    async def _wait_for(self, name: str, place: _Place) -> bool:
        """Whether a batch has ended, after waiting for it where that is wanted."""
        n_failed = 0
        while True:
            try:
                has_ended, note = await self._line.call(place.look(name))
            except EndpointError as error:
                n_failed, has_ended, note = n_failed + 1, False, str(error)
                if not error.is_retryable or n_failed > self._limits.max_retries:
                    raise
            self._line.meter.note = note
            if has_ended or not (self._wait and place.can_wait):
                return has_ended
            await self._line.sleep(POLL_S)


def _error_in(row: dict[str, Any], endpoint: Endpoint) -> EndpointError | None:
    """What a result that is no reply means; None for a reply."""
    try:
        _reply_in(row, endpoint)
    except EndpointError as error:
        return error
    return None


class _Writer:
    """Files of requests, each within the provider's limits."""

    def __init__(self, folder: Path) -> None:
        self.names: set[str] = set()
        self._folder, self._paths = folder, list[Path]()
        self._stream: Any = None
        self._n_rows = self._n_bytes = 0

    def write(self, name: str, row: dict[str, Any]) -> None:
        """Appends one request, the question's name beside it."""
        data = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        is_full = self._n_rows >= MOST_REQUESTS or self._n_bytes + len(data) > MOST_BYTES
        if self._stream is None or is_full:
            self.close()
            self._paths.append(self._folder / f"{len(self._paths)}.jsonl")
            self._stream, self._n_rows, self._n_bytes = self._paths[-1].open("wb"), 0, 0
            keep_private(self._paths[-1])
        self._stream.write(data)
        self.names.add(name)
        self._n_rows, self._n_bytes = self._n_rows + 1, self._n_bytes + len(data)

    def close(self) -> list[Path]:
        """The files, all on disk."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        return self._paths


class _Provider(AbstractAsyncContextManager["_Provider"]):
    """A provider's Batch API: takes files of requests, gives results; `_Folder` does the same."""

    can_wait = True

    def __init__(self, endpoint: Endpoint) -> None:
        self._client, self._endpoint = open_sdk(endpoint, max_retries=2), endpoint

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def submit(self, path: Path, token: str) -> str:
        """Hands a file in; gives the batch's name."""
        with mapped_errors("answered what is no Batch API", self._endpoint):
            uploaded = await self._client.files.create(file=path, purpose="batch")
            started = await self._client.batches.create(
                input_file_id=uploaded.id,
                endpoint=URL,
                completion_window="24h",
                metadata={"cbtqa": token},
            )
        return started.id

    async def find(self, token: str) -> str | None:
        """The name of the batch that was handed in with this token, or None."""
        with mapped_errors("answered what is no Batch API", self._endpoint):
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get("cbtqa") == token:
                    return batch.id
        return None

    async def look(self, name: str) -> tuple[bool, str]:
        """Whether it has ended, and how it is doing."""
        with mapped_errors("answered what is no Batch API", self._endpoint):
            batch = await self._client.batches.retrieve(name)
            counts = batch.request_counts
            done = f" {counts.completed} of {counts.total} requests" if counts else ""
            trouble = [str(one.message) for one in (batch.errors and batch.errors.data) or []]
        said = "; ".join(filter(None, [f"{name}: {batch.status}{done}", *trouble]))
        return batch.status in ENDED, shown(said)

    async def rows(self, name: str) -> list[dict[str, Any]] | None:
        """All results of an ended batch; None when it has none at all."""
        rows: list[dict[str, Any]] | None = None
        with mapped_errors("answered what is no Batch API", self._endpoint):
            batch = await self._client.batches.retrieve(name)
            for file in filter(None, (batch.output_file_id, batch.error_file_id)):
                content = await self._client.files.content(file)
                rows = (rows or []) + list(filter(None, map(_row_in, content.iter_lines())))
        return rows

    def what_to_do(self, names: list[str]) -> str:
        """What these batches wait for."""
        return f"under way at {self._endpoint.host}: {', '.join(names)}"


class _Folder(nullcontext[None]):
    """`requests-N.jsonl` in a folder; whoever answers them puts `requests-N-output.jsonl` beside.

    Nobody knows when that happens: the run ends after writing. A deleted file is written anew.
    """

    can_wait = False

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        assert endpoint.folder is not None
        self._folder, self._model = endpoint.folder, endpoint.model

    async def submit(self, path: Path, token: str) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        taken = [int(one.stem.split("-")[1]) for one in self._folder.glob("requests-[0-9]*.jsonl")]
        target = self._folder / f"requests-{max(taken, default=0) + 1}.jsonl"
        with replacing(target) as temporary:
            temporary.write_bytes(path.read_bytes())
        return target.name

    async def find(self, token: str) -> str | None:
        return None  # killed before it was written, or written and unknown: written anew

    async def look(self, name: str) -> tuple[bool, str]:
        path = self._folder / name
        if not path.is_file():
            return True, f"{path} is gone"
        asked = {row["custom_id"] for row in _rows_of(path)}
        missing = asked - {row["custom_id"] for row in await self.rows(name)}
        return not missing, f"{len(asked) - len(missing):,} of {len(asked):,} results for {name}"

    async def rows(self, name: str) -> list[dict[str, Any]]:
        paths = sorted(self._folder.glob(f"{Path(name).stem}-*.jsonl"))
        return [row for path in paths for row in _rows_of(path)]

    def what_to_do(self, names: list[str]) -> str:
        stem = Path(names[0]).stem
        return (
            f"results are missing for {', '.join(names)} in {self._folder}; such as: vllm "
            f"run-batch --model {self._model} -i {names[0]} -o {stem}-output.jsonl"
        )


def _row_in(line: str) -> dict[str, Any] | None:
    """A line of results; None for one that is none, whose question is then asked again."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("custom_id"), str) else None


def _reply_in(row: dict[str, Any], endpoint: Endpoint) -> Reply:
    """The reply in a line of results; raises as `reply_of`, and what an error in it means."""
    response = row.get("response")
    response = response if isinstance(response, dict) else {}
    status = response.get("status_code")
    if status == 200:
        return reply_of(response.get("body"), 0.0, endpoint)
    said = response.get("body") or row.get("error")
    status = status if isinstance(status, int) and 100 <= status < 600 else 500
    raise error_of(status, {}, written(said) or "", endpoint)


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file; a last line that is still being written is left out."""
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            row = _row_in(line)
            if row is not None:
                yield row
            elif line.endswith("\n"):
                problem = "is no row of a batch's results (custom_id, response, error)"
                raise DataError(problem, where=f"{path}:{number}") from None


_Place = _Provider | _Folder
