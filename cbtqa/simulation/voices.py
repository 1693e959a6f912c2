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
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from cbtqa.errors import ConfigError
from cbtqa.llm.asking import Asker
from cbtqa.llm.chat import ChatRequest, Reply
from cbtqa.llm.cost import Budget, Price, find_price
from cbtqa.llm.disclosure import pass_disclosure_gates
from cbtqa.llm.endpoint import OWN_KEY, Endpoint, check_key_variable, is_local, preset_file
from cbtqa.llm.journal import Journal
from cbtqa.llm.ladder import FormatLadder
from cbtqa.llm.limits import Gate, Limits
from cbtqa.llm.progress import Meter
from cbtqa.llm.transport import open_transport
from cbtqa.records import Usage
from cbtqa.simulation.desk import Voice
from cbtqa.simulation.scenes import Scene
from cbtqa.simulation.scripted import scripted_reply
from cbtqa.simulation.scripted_writer import scripted_part
from cbtqa.simulation.study import Player


def endpoint_of(player: Player) -> Endpoint:
    """Where an endpoint player is asked; see `Endpoint.parse` for what it raises.

    Raises:
        ConfigError: also when `key_env` names a variable that is none for keys.
    """
    environ = dict(os.environ)
    if player.key_env:
        check_key_variable(player.key_env)
        environ[OWN_KEY] = environ.get(player.key_env, "")
    return Endpoint.parse(player.endpoint or "", player.model or "", environ=environ)


def pass_gate(
    players: Iterable[Player | None], what: str, *, is_acknowledged: bool
) -> dict[str, str]:
    """What to write down about sending text to these players; raises as `pass_disclosure_gates`."""
    asked = [endpoint_of(player) for player in players if player and player.endpoint]
    return pass_disclosure_gates(asked, what, is_acknowledged=is_acknowledged)


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
                from cbtqa.simulation.local import LocalVoice

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
