"""The same work through the provider's Batch API: cheaper, slower, into the same journal.

    summary = run_openai_batch(questions, task, endpoint, journal, Limits(max_attempts=3))

Each round uploads the items that still want an answer as one or more files, waits until the
provider has worked them off, and judges the replies as `run_batch` does; faulty ones are asked
again in the next round. The journal keeps the ids of batches under way, so a run that was killed
while waiting goes on waiting for the same batches instead of paying for new ones.

Source: OpenAI API reference, "Batch" (50,000 requests and 200 MB a file, window 24h).
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from cbtqa.errors import EndpointError, IncompleteRunError
from cbtqa.llm.asking import FormatLadder
from cbtqa.llm.batch import Task, judge
from cbtqa.llm.chat import ChatRequest, Fault
from cbtqa.llm.endpoint import Endpoint, ResponseFormat
from cbtqa.llm.journal import Entry, Journal, State, blocks_of
from cbtqa.llm.limits import Limits
from cbtqa.llm.protocol import RequestRefusedError, error_of, reply_of, request_body
from cbtqa.records import Reason

ItemT = TypeVar("ItemT")
MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000
UNDER_WAY = "openai_batches"
"""Name in the journal of a list of `{"token", "rung", "id"}`; an id is None until it is told."""
ENDED = ("completed", "expired", "cancelled", "failed")


@dataclass(frozen=True)
class _Open:
    """One item's open question."""

    key: str
    attempt: int
    request: ChatRequest

    @property
    def custom_id(self) -> str:
        """Short, and the same in every run: keys may be longer than an id may be."""
        return blake2b(f"{self.attempt}:{self.key}".encode(), digest_size=16).hexdigest()


class _Result(NamedTuple):
    """One line of a batch's output, and the response format it was asked in."""

    row: dict[str, Any]
    rung: ResponseFormat


def run_openai_batch(
    items: Sequence[ItemT],
    task: Task[ItemT],
    endpoint: Endpoint,
    journal: Journal,
    limits: Limits,
    *,
    poll_s: float = 60.0,
    on_wait: Callable[[str, int, int], None] | None = None,
) -> None:
    """Asks about every item that the journal does not hold yet; read `journal.outcomes` after.

    Args:
        items: a sequence, because every round goes over it again.
        poll_s: seconds between looks at a batch.
        on_wait: told `(status, n_completed, n_total)` at every look.

    Raises:
        IncompleteRunError: a batch was begun whose id never arrived and cannot be found, or a
            batch ended without results.
        EndpointError: the endpoint has no Batch API, or refuses.
    """
    name = f"format:{endpoint.host}:{endpoint.model}"
    ladder = FormatLadder(
        endpoint.format, proved=journal.meta(name), remember=partial(journal.set_meta, name)
    )
    run = _BatchRun(endpoint, journal, limits, ladder, poll_s, on_wait)
    with tempfile.TemporaryDirectory() as folder:
        # a round more than the attempts for every repeat of what the endpoint failed on
        for _ in range(1 + limits.max_attempts + limits.max_retries):
            results = run.collect(Path(folder) / "results.jsonl")
            if results:
                _record_results(items, task, journal, limits, ladder, results)
                run.forget()
            questions = (open_ for _, open_ in _questions(items, task, journal, limits))
            if not run.submit(questions, Path(folder)):
                return
        raise IncompleteRunError("the endpoint keeps failing on some requests of the batch")


def _questions(
    items: Sequence[ItemT], task: Task[ItemT], journal: Journal, limits: Limits
) -> Iterator[tuple[ItemT, _Open]]:
    """Each item that wants an answer, with its next question; a key counts once."""
    seen: set[str] = set()
    for block in blocks_of(items, 512):
        keys = [task.key(item) for item in block]
        standings = journal.standings(keys)
        for item, key in zip(block, keys, strict=True):
            standing = standings.get(key)
            is_done = standing is not None and standing.is_done(limits.max_attempts)
            if key in seen or is_done:
                continue
            seen.add(key)
            last = journal.last_paid(key) if standing else None
            if last is None or last.reply is None or last.fault is None:
                yield item, _Open(key, 1, task.request(item))
                continue
            again = task.ask_again(item, last.reply, last.fault)
            if again is not None:
                yield item, _Open(key, last.attempt + 1, again)


def _record_results(
    items: Sequence[ItemT],
    task: Task[ItemT],
    journal: Journal,
    limits: Limits,
    ladder: FormatLadder,
    results: dict[str, _Result],
) -> None:
    """Judges every result and writes its row; a result nobody asked for is passed over."""

    def rows() -> Iterator[Entry]:
        for item, question in _questions(items, task, journal, limits):
            result = results.get(question.custom_id)
            if result is not None:
                yield _row_of(item, task, question, result, limits, ladder)

    # whole before any is written: a row changes what the next question of an item is
    journal.record(list(rows()))


def _row_of(
    item: ItemT,
    task: Task[ItemT],
    question: _Open,
    result: _Result,
    limits: Limits,
    ladder: FormatLadder,
) -> Entry:
    key, attempt = question.key, question.attempt
    response = result.row.get("response") or {}
    status = response.get("status_code") or 0
    try:
        if status != 200:
            said = json.dumps(response.get("body") or result.row.get("error"), ensure_ascii=False)
            raise error_of(status or 500, {}, said)
        reply = reply_of(response["body"], 0.0)
    except RequestRefusedError as error:
        is_format = error.names_format and ladder.below(result.rung, error) is not None
        state = State.ENDPOINT if is_format else State.FINAL  # the next round asks a rung lower
        return Entry(key, attempt, state, None, error.fault)
    except EndpointError as error:
        return Entry(key, attempt, State.ENDPOINT, None, Fault(Reason.ENDPOINT, str(error)))
    if question.request.json_schema is not None:
        ladder.answered(result.rung)
    return judge(task, item, Entry(key, attempt, State.UNCHECKED, reply), limits)[0]


class _BatchRun:
    """Uploads, waits and downloads, and keeps in the journal what is under way."""

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        limits: Limits,
        ladder: FormatLadder,
        poll_s: float,
        on_wait: Callable[[str, int, int], None] | None,
    ) -> None:
        import openai

        self._endpoint, self._journal, self._limits = endpoint, journal, limits
        self._ladder, self._poll_s, self._on_wait = ladder, poll_s, on_wait
        self._errors = openai.APIStatusError
        self._client = openai.OpenAI(
            base_url=endpoint.base_url, api_key=endpoint.key or "none", timeout=limits.timeout_s
        )

    # --- what is under way -----------------------------------------------------------------------

    def _under_way(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._journal.meta(UNDER_WAY) or "[]")
        return found

    def _note(self, batches: list[dict[str, Any]]) -> None:
        self._journal.set_meta(UNDER_WAY, json.dumps(batches))

    def forget(self) -> None:
        """Notes that the results of all batches stand in the journal."""
        self._note([])

    # --- sending ---------------------------------------------------------------------------------

    def submit(self, questions: Iterator[_Open], folder: Path) -> int:
        """Uploads the questions in as many files as needed and starts their batches."""
        count = 0
        while (n_written := self._write_file(questions, folder / "batch.jsonl")) > 0:
            self._start(folder / "batch.jsonl")
            count += n_written
        return count

    def _write_file(self, questions: Iterator[_Open], path: Path) -> int:
        n_bytes = count = 0
        with path.open("w", encoding="utf-8") as stream:
            while count < MOST_REQUESTS and n_bytes < MOST_BYTES:
                question = next(questions, None)
                if question is None:
                    break
                n_bytes += self._write_line(question, stream)
                count += 1
        return count

    def _write_line(self, question: _Open, stream: IO[str]) -> int:
        body = request_body(question.request, self._endpoint, self._ladder.rung, question.attempt)
        line = {
            "custom_id": question.custom_id,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }
        text = json.dumps(line, ensure_ascii=False) + "\n"
        stream.write(text)
        return len(text.encode())

    def _start(self, path: Path) -> None:
        token = secrets.token_hex(8)
        under_way = self._under_way()
        # noted before it exists: a kill between here and the answer must not cost a second batch
        self._note([*under_way, {"token": token, "rung": self._ladder.rung, "id": None}])
        with self._mapped_errors():
            with path.open("rb") as stream:
                uploaded = self._client.files.create(file=stream, purpose="batch")
            started = self._client.batches.create(
                input_file_id=uploaded.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"cbtqa": token},
            )
        self._note([*under_way, {"token": token, "rung": self._ladder.rung, "id": started.id}])

    # --- receiving -------------------------------------------------------------------------------

    def collect(self, path: Path) -> dict[str, _Result]:
        """Waits for every batch under way; gives results by custom id."""
        results: dict[str, _Result] = {}
        for entry in self._under_way():
            batch_id = entry["id"] or self._find(entry["token"])
            if batch_id is None:
                continue  # the upload never became a batch: nothing was paid
            batch = self._wait(batch_id)
            names = [batch.output_file_id, batch.error_file_id]
            for name in filter(None, names):
                with self._mapped_errors():
                    self._client.files.content(name).write_to_file(path)
                with path.open(encoding="utf-8") as stream:
                    for line in filter(str.strip, stream):
                        row = json.loads(line)
                        results[row["custom_id"]] = _Result(row, entry["rung"])
            if not any(names):
                self.forget()
                raise IncompleteRunError(
                    f"batch {batch_id} ended as '{batch.status}' without results: {batch.errors}",
                    hint="give the same command again to send its requests anew",
                )
        return results

    def _find(self, token: str) -> str | None:
        with self._mapped_errors():
            for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get("cbtqa") == token:
                    return str(batch.id)
        return None

    def _wait(self, batch_id: str) -> Any:
        while True:
            with self._mapped_errors():
                batch = self._client.batches.retrieve(batch_id)
            counts = batch.request_counts
            if self._on_wait and counts is not None:
                self._on_wait(batch.status, counts.completed, counts.total)
            if batch.status in ENDED:
                return batch
            time.sleep(self._poll_s if self._limits.waits else 0)

    def _mapped_errors(self) -> Any:
        return _MappedErrors(self._errors)


class _MappedErrors:
    """Turns the SDK's status errors into ours."""

    def __init__(self, kind: type[Exception]) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, self._kind):
            answer = error.response  # type: ignore[attr-defined]
            raise error_of(answer.status_code, answer.headers, answer.content) from None
