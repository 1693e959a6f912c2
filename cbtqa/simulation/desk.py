"""One question of a session to one player: from the journal when it was paid, else asked anew.

    outcome = await desk.ask(Call(key, voice, messages, sampling, check))

Unlike `llm.batch`, which knows all its questions beforehand, a session's next question depends on
the last reply. So each course of sessions is a coroutine of its own and comes here for every turn;
order within a session is kept and many sessions are in flight. What a reply has to pass, how it is
journalled and when it is asked again is the batch engine's own `judge`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cbtqa.llm.asking import ItemFailedError
from cbtqa.llm.batch import judge
from cbtqa.llm.chat import ChatRequest, Fault, Message, Reply, Sampling
from cbtqa.llm.journal import Entry, Journal, Outcome, State
from cbtqa.llm.limits import GateClosedError, Limits
from cbtqa.llm.progress import Meter
from cbtqa.records import Reason, Usage
from cbtqa.simulation.messages import filled, retold, wording

if TYPE_CHECKING:
    from cbtqa.simulation.scenes import Scene

MOST_UNWRITTEN = 2_000
"""Free answers that may wait for the disk at a time."""
Check = Callable[[Reply], Fault | None]


class Voice(Protocol):
    """Whoever answers for a player."""

    @property
    def is_free(self) -> bool:
        """True when an answer costs nothing and comes out the same again: it need not be durable
        before it is used."""
        ...

    async def answer(self, request: ChatRequest, attempt: int, scene: Scene) -> Reply:
        """One reply.

        Raises:
            ItemFailedError: this question got no reply.
            GateClosedError: the run is stopping.
            EndpointError: every question would fail.
        """
        ...


@dataclass(frozen=True)
class Call:
    """One question, under one key of the journal; also the batch engine's task about itself."""

    key_text: str
    voice: Voice
    scene: Scene
    messages: Sequence[Message]
    sampling: Sampling
    reads: Check
    json_schema: Mapping[str, Any] | None = None
    keeps_cut: bool = False
    """Whether a reply cut at the token limit is taken as it is instead of asked again."""

    def key(self, item: Call) -> str:
        """The item's key."""
        return item.key_text

    def request(self, item: Call) -> ChatRequest:
        """The first question."""
        return ChatRequest(item.messages, item.json_schema, sampling=item.sampling)

    def check(self, item: Call, reply: Reply) -> Fault | None:
        """What is wrong with a reply that holds text."""
        return item.reads(reply)

    def ask_again(self, item: Call, reply: Reply, fault: Fault) -> ChatRequest | None:
        """The question with the faulty reply and the complaint; nothing for a cut that is kept."""
        if item.keeps_cut and fault.reason is Reason.CUT:
            return None
        texts = wording()["again"]
        sentence = texts.get(fault.reason.value, texts["other"])
        complaint = filled(sentence, detail=fault.detail[:200] or fault.reason.value)
        messages = retold(item.messages, reply.text.strip(), complaint)
        return ChatRequest(messages, item.json_schema, sampling=item.sampling)


class Desk:
    """Answers the calls of all sessions of a run."""

    def __init__(self, journal: Journal, meter: Meter, attempts: int) -> None:
        """Args:
        attempts: replies paid for one call at most.
        """
        self._journal, self._meter = journal, meter
        self._limits = Limits(max_attempts=attempts)
        self._is_stopping = False
        self._unwritten: set[asyncio.Future[None]] = set()
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Ends the run: no further call is begun."""
        self._is_stopping = True

    async def settle(self) -> None:
        """Waits until everything answered is durable.

        Raises:
            IncompleteRunError: the journal cannot be written.
        """
        if self._unwritten:
            await asyncio.wait(self._unwritten)
        if self._failure is not None:
            raise self._failure

    def _noted(self, written: asyncio.Future[None]) -> None:
        self._unwritten.discard(written)
        if not written.cancelled() and (error := written.exception()) is not None:
            self._failure = error
            self.stop()

    async def ask(self, call: Call) -> Outcome:
        """The last word on a call, durable.

        Raises:
            GateClosedError: the run is stopping and the journal holds no outcome.
            IncompleteRunError: the journal cannot be written.
        """
        key = call.key_text
        standing = self._journal.standings([key]).get(key)
        if standing is None:
            attempt, request, reply = 1, call.request(call), None
        elif standing.is_done(self._limits.max_attempts):
            return self._known(call)
        else:
            attempt, request, reply = self._taken_up(call)
        while True:
            if reply is None:
                if self._is_stopping:
                    raise GateClosedError
                try:
                    reply = await call.voice.answer(request, attempt, call.scene)
                except ItemFailedError as failed:
                    return await self._end(
                        call, Entry(key, attempt, failed.state, None, failed.fault)
                    )
            received = Entry(key, attempt, State.UNCHECKED, reply)
            try:
                entry, again = judge(call, call, received, self._limits)
            except BaseException:
                # paid for and not judged: a mistake in a check must not cost the reply
                await self._journal.put(received)
                raise
            if again is None:
                return await self._end(call, entry)
            self._meter.turned_away(entry)
            await self._journal.put(entry)
            attempt, request, reply = attempt + 1, again, None

    def _known(self, call: Call) -> Outcome:
        outcome = self._journal.outcome(call.key_text)
        assert outcome is not None, "a call that is done has an outcome"
        self._meter.n_skipped += 1
        return outcome

    def _taken_up(self, call: Call) -> tuple[int, ChatRequest, Reply | None]:
        """Where a call of an earlier run goes on: next attempt, its question, or a paid reply."""
        last = self._journal.last_paid(call.key_text)
        if last is None or last.reply is None:
            return 1, call.request(call), None
        if last.state is State.UNCHECKED or last.fault is None:
            return last.attempt, call.request(call), last.reply
        again = call.ask_again(call, last.reply, last.fault)
        return last.attempt + 1, again or call.request(call), None

    async def _end(self, call: Call, entry: Entry) -> Outcome:
        written = self._journal.put(entry)
        self._meter.ended(entry)
        if call.voice.is_free and len(self._unwritten) < MOST_UNWRITTEN:
            self._unwritten.add(written)
            written.add_done_callback(self._noted)
            state, reply, fault = entry.state, entry.reply, entry.fault
            return Outcome(entry.key, state, reply, fault, entry.attempt, Usage())
        await written
        outcome = self._journal.outcome(entry.key)
        assert outcome is not None, "what was put is there"
        return outcome
