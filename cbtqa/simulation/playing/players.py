"""Who answers in a study: the built-in rules, models behind endpoints, models on this machine.

    async with Line((), journal, limits, budget=StudyBudget(max_tokens=100_000)) as line:
        players = Players(line)
        outcome = await players.ask(Call(key, await players.open(arm.therapist), scene, ...))

All calls to one model at one address share a gate, so that limits hold for the server and not
for each arm; one budget covers them all. A session's next question depends on the last reply, so
each course of sessions is a coroutine of its own and asks for every turn: order within a session
is kept and many sessions are in flight.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from cbtqa.errors import ConfigError
from cbtqa.llm.asking import Model
from cbtqa.llm.batch import Check, Line, Question
from cbtqa.llm.chat import ChatRequest, Fault, Message, Reply, Sampling
from cbtqa.llm.cost import Budget, Price, find_price
from cbtqa.llm.endpoint import (
    OWN_KEY,
    Endpoint,
    check_key_variable,
    is_local,
    preset_file,
)
from cbtqa.llm.journal import Outcome
from cbtqa.records import Reason
from cbtqa.simulation.playing.messages import Scene, filled, retold, wording
from cbtqa.simulation.playing.scripted import scripted_part, scripted_reply
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


def price_of(player: Player) -> Price | None:
    """What a player's tokens cost; nothing for rules and this machine, None when unknown."""
    if player.price_in is not None and player.price_out is not None:
        return Price(input=player.price_in, output=player.price_out, currency="")
    preset = preset_file().presets.get(player.endpoint or "")
    if player.endpoint is None or is_local(preset.base_url if preset else player.endpoint):
        return Price(input=0, output=0)
    return find_price(player.model or "")


class StudyBudget(Budget):
    """The most that a study may cost over all its models; each brings its own price."""

    def __post_init__(self) -> None:
        """Allows a limit in money without a price: `Players.open` demands one of each model."""


class OpenPlayer(Protocol):
    """Whoever answers for a player of the study."""

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


class ScriptedPlayer:
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


class EndpointPlayer:
    """A model behind an endpoint."""

    is_free = False

    def __init__(self, model: Model) -> None:
        self.model = model

    async def answer(self, request: ChatRequest, attempt: int, scene: Scene) -> Reply:
        """Asks within the limits, repeating what may be repeated."""
        return await self.model.answer(request, attempt)


@dataclass(frozen=True)
class Call:
    """One question of a session to one player, under one key of the journal."""

    key: str
    player: OpenPlayer
    scene: Scene
    messages: Sequence[Message]
    sampling: Sampling
    check: Check
    json_schema: Mapping[str, Any] | None = None
    keeps_cut: bool = False
    """Whether a reply cut at the token limit is taken as it is instead of asked again."""

    def request(self, messages: Sequence[Message]) -> ChatRequest:
        """These messages as a question to the player."""
        return ChatRequest(messages, self.json_schema, sampling=self.sampling)

    def ask_again(self, reply: Reply, fault: Fault) -> ChatRequest | None:
        """The question with the faulty reply and the complaint; nothing for a cut that is kept."""
        if self.keeps_cut and fault.reason is Reason.CUT:
            return None
        texts = wording()["again"]
        sentence = texts.get(fault.reason.value, texts["other"])
        complaint = filled(sentence, detail=fault.detail[:200] or fault.reason.value)
        return self.request(retold(self.messages, reply.text.strip(), complaint))


class Players:
    """The players of one run, opened on one line."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._open: dict[str, OpenPlayer] = {}

    async def open(self, player: Player) -> OpenPlayer:
        """Who answers for a player; players with one model at one address share it.

        Raises:
            ConfigError, EndpointAuthError: the endpoint is none, or its key is missing.
            MissingExtraError: a model on this machine, without the libraries for it.
        """
        if player.scripted:
            return ScriptedPlayer(player.scripted)
        name = _model_name(player)
        if name not in self._open:
            if player.is_local:
                from cbtqa.simulation.playing.local_model import LocalPlayer

                self._open[name] = LocalPlayer(player)
            else:
                self._open[name] = await self._endpoint(endpoint_of(player), price_of(player))
        return self._open[name]

    async def _endpoint(self, endpoint: Endpoint, price: Price | None) -> EndpointPlayer:
        budget = self._line.budget
        if budget is not None and budget.max_cost is not None and price is None:
            raise ConfigError(
                f"--budget: no price is known for {endpoint.model}",
                hint="add price_in and price_out to the player, or use --budget-tokens",
            )
        return EndpointPlayer(await self._line.model([endpoint], price))

    async def ask(self, call: Call) -> Outcome:
        """The last word on a call; raises as `Line.ask`."""
        answer = partial(call.player.answer, scene=call.scene)
        judged = call.request(call.messages), call.check, call.ask_again
        return await self._line.ask(Question(call.key, *judged, answer, call.player.is_free))

    def book_earlier(self, player_of: Callable[[str], Player | None]) -> None:
        """Books what the journal holds on the budget and on the models that were opened.

        Args:
            player_of: who answered under a key of the journal; None for one of another study.
        """
        journal, budget = self._line.journal, self._line.budget
        for key, outcome in journal.outcomes(journal.done_keys()):
            player = player_of(key)
            found = self._open.get(_model_name(player)) if player else None
            if outcome is not None and isinstance(found, EndpointPlayer):
                model = found.model
                model.spent += outcome.usage
                if budget is not None:
                    budget.book(outcome.usage, model.price)

    @property
    def cost(self) -> float | None:
        """Money spent on all models; None when a price is unknown."""
        models = [one.model for one in self._open.values() if isinstance(one, EndpointPlayer)]
        costs = [model.price.of(model.spent) if model.price else None for model in models]
        return None if None in costs else sum(cost or 0 for cost in costs)


def _model_name(player: Player) -> str:
    """What players of one model at one place have in common."""
    if player.endpoint is None:
        return f"here\n{player.backbone}\n{player.adapter}"
    return f"{player.endpoint}\n{player.model}"
