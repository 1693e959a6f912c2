"""Who answers: the built-in rules, models behind endpoints, models on this machine.

    async with Exchange(study, journal, limits, meter) as exchange:
        voice = exchange.voice(arm.therapist)

All calls to one model at one address share a gate, so that limits hold for the server and not
for each arm; one budget covers them all.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

from cbtqa.errors import ConfigError
from cbtqa.llm.asking import Asker, FormatLadder, ItemFailedError
from cbtqa.llm.batch import judge
from cbtqa.llm.chat import ChatRequest, Fault, Message, Reply, Sampling
from cbtqa.llm.cost import Budget, Price, find_price
from cbtqa.llm.endpoint import OWN_KEY, Endpoint, is_local, preset_file
from cbtqa.llm.journal import Entry, Journal, Outcome, State
from cbtqa.llm.limits import Gate, GateClosedError, Limits
from cbtqa.llm.progress import Meter
from cbtqa.llm.transport import open_transport
from cbtqa.records import Reason, Usage
from cbtqa.simulation.playing.messages import Scene, filled, retold, wording
from cbtqa.simulation.playing.scripted import scripted_part, scripted_reply
from cbtqa.simulation.study import Player

if TYPE_CHECKING:
    from cbtqa.simulation.playing.messages import Scene


def endpoint_of(player: Player) -> Endpoint:
    """Where an endpoint player is asked; see `Endpoint.parse` for what it raises."""
    environ = dict(os.environ)
    if player.key_env:
        environ[OWN_KEY] = environ.get(player.key_env, "")
    return Endpoint.parse(player.endpoint or "", player.model or "", environ=environ)


def price_of(player: Player) -> Price | None:
    """What a player's tokens cost; nothing for rules and this machine, None when unknown."""
    if player.price_in is not None and player.price_out is not None:
        return Price(input=player.price_in, output=player.price_out, currency="")
    preset = preset_file().presets.get(player.endpoint or "")
    if player.endpoint is None or is_local(preset.base_url if preset else player.endpoint):
        return Price(input=0, output=0)
    return find_price(player.model or "")


@dataclass
class Purse:
    """The most that a study may cost, over all its models."""

    max_cost: float | None = None
    max_tokens: int | None = None
    lines: list[LineBudget] = field(default_factory=list)


@dataclass
class LineBudget(Budget):
    """One model's part of the purse: what the others have spent counts too."""

    purse: Purse = field(default_factory=Purse)

    def is_used_up(self, more: Usage) -> bool:
        """True when `more` tokens of this model would pass the limit of the whole study."""
        purse = self.purse
        spent = [(line.price, line.spent) for line in purse.lines] + [(self.price, more)]
        n_tokens = sum(usage.prompt_tokens + usage.completion_tokens for _, usage in spent)
        cost = sum(price.of(usage) for price, usage in spent if price)
        too_many = purse.max_tokens is not None and n_tokens > purse.max_tokens
        return too_many or (purse.max_cost is not None and cost > purse.max_cost)


class ScriptedVoice:
    """The built-in rules."""

    is_free = True

    def __init__(self, variant: str) -> None:
        self._variant = variant

    async def answer(self, request: ChatRequest, attempt: int, scene: Scene) -> Reply:
        """Answers from the scene; the messages are for models."""
        await asyncio.sleep(0)  # others have their turn: rules never wait for anything
        if scene.part == "course_part":
            return scripted_part(self._variant, scene)
        return scripted_reply(self._variant, scene, attempt)


class EndpointVoice:
    """A model behind an endpoint."""

    is_free = False

    def __init__(self, asker: Asker, budget: Budget) -> None:
        self._asker, self.budget = asker, budget

    async def answer(self, request: ChatRequest, attempt: int, scene: Scene) -> Reply:
        """Asks within the limits, repeating what may be repeated."""
        return await self._asker.ask(request, attempt)


class Exchange:
    """The open lines of one run; used as an async context manager."""

    def __init__(self, journal: Journal, limits: Limits, meter: Meter, purse: Purse) -> None:
        self._journal, self._limits, self._meter, self._purse = journal, limits, meter, purse
        self._voices: dict[str, Voice] = {}
        self._gates: list[Gate] = []
        self._stack = AsyncExitStack()
        self.stop_reason: str | None = None
        """Why the run ends early, or None."""
        self.is_interrupted = False
        self.on_stop: Callable[[], None] = lambda: None
        self.on_second_stop: Callable[[], object] = lambda: None
        """Called when a second Ctrl-C comes: what is in flight is dropped."""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # not on Windows, and not outside the main thread: there Ctrl-C cancels at once
            with suppress(NotImplementedError, RuntimeError, ValueError):
                before = signal.getsignal(number)
                loop.add_signal_handler(number, self._interrupt, number)
                self._stack.callback(signal.signal, number, before)
                self._stack.callback(loop.remove_signal_handler, number)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def voice(self, player: Player) -> Voice:
        """The voice of a player; players with one model at one address share it.

        Raises:
            ConfigError, EndpointAuthError: the endpoint is none, or its key is missing.
            MissingExtraError: a model on this machine, without the libraries for it.
        """
        if player.scripted:
            return ScriptedVoice(player.scripted)
        name = _line_name(player)
        if name not in self._voices:
            if player.is_local:
                from cbtqa.simulation.playing.local_model import LocalVoice

                self._voices[name] = LocalVoice(player)
            else:
                self._voices[name] = await self._open(endpoint_of(player), price_of(player))
        return self._voices[name]

    async def _open(self, endpoint: Endpoint, price: Price | None) -> Voice:
        if self._purse.max_cost is not None and price is None:
            raise ConfigError(
                f"--budget: no price is known for {endpoint.model}",
                hint="add price_in and price_out to the player, or use --budget-tokens",
            )
        transport = await self._stack.enter_async_context(
            open_transport(endpoint, self._limits.in_flight)
        )
        gate = Gate(self._limits)
        self._gates.append(gate)
        name = f"format:{endpoint.host}:{endpoint.model}"
        journal = self._journal
        ladder = FormatLadder(
            endpoint.format, proved=journal.meta(name), remember=partial(journal.set_meta, name)
        )
        budget = LineBudget(price=price, purse=self._purse)
        self._purse.lines.append(budget)
        parts = (endpoint, transport, gate, self._limits, self._meter, budget)
        return EndpointVoice(Asker(*parts, ladder, self.stop), budget)

    def book_earlier(self, player_of: Callable[[str], Player | None]) -> None:
        """Books what the journal holds on the budgets of the voices that were opened.

        Args:
            player_of: who answered under a key of the journal; None for one of another study.
        """
        for key, outcome in self._journal.outcomes(self._journal.done_keys()):
            player = player_of(key)
            voice = self._voices.get(_line_name(player)) if player else None
            if outcome is not None and isinstance(voice, EndpointVoice):
                spent = voice.budget.spent
                voice.budget.spent = Usage(
                    prompt_tokens=spent.prompt_tokens + outcome.usage.prompt_tokens,
                    completion_tokens=spent.completion_tokens + outcome.usage.completion_tokens,
                )

    def stop(self, reason: str) -> None:
        """Ends the run: no further question is sent anywhere."""
        if self.stop_reason is None:
            self.stop_reason = reason
        self.on_stop()
        for gate in self._gates:
            gate.close()

    def _interrupt(self, number: int) -> None:
        if self.stop_reason is not None:
            self.on_second_stop()
        self.is_interrupted |= number == signal.SIGINT
        self.stop(f"stopped by {signal.Signals(number).name}")

    @property
    def cost(self) -> float | None:
        """Money spent on all lines; None when a price is unknown."""
        costs = [line.price.of(line.spent) if line.price else None for line in self._purse.lines]
        return None if None in costs else sum(cost or 0 for cost in costs)


def _line_name(player: Player) -> str:
    """What players of one model at one place have in common."""
    if player.endpoint is None:
        return f"here\n{player.backbone}\n{player.adapter}"
    return f"{player.endpoint}\n{player.model}"


# --- desk ----------------------------------------------------------------------------------------
# One question of a session to one player: from the journal when it was paid, else asked anew.
#
#     outcome = await desk.ask(Call(key, voice, messages, sampling, check))
#
# Unlike `llm.batch`, which knows all its questions beforehand, a session's next question depends
# on the last reply. So each course of sessions is a coroutine of its own and comes here for
# every turn; order within a session is kept and many sessions are in flight. What a reply has to
# pass, how it is journalled and when it is asked again is the batch engine's own `judge`.

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
