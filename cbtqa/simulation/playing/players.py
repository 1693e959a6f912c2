"""Who answers in a study: the built-in rules, models behind endpoints, models on this machine.

    players = Players(journal, RunLimits(budget_tokens=100_000), attempts=3, on_progress=None)
    async with players.line:
        found, outcome = await players.ask(Call(key, await players.open(arm.therapist), ...))

All calls to one model at the same servers share their gates, so that limits hold for a server and
not for each arm; one budget covers them all.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from cbtqa.errors import ConfigError
from cbtqa.llm.asking import Model
from cbtqa.llm.batch import Line, OnProgress, Question
from cbtqa.llm.chat import ChatRequest, Fault, Message, Reply
from cbtqa.llm.cost import Budget, Price, find_price
from cbtqa.llm.endpoint import (
    OWN_KEY,
    Endpoint,
    TransportName,
    check_key_variable,
    is_local,
    preset_file,
)
from cbtqa.llm.journal import Journal, Outcome
from cbtqa.llm.limits import Limits
from cbtqa.records import Reason
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.playing.messages import TurnContext, filled, with_complaint, wording
from cbtqa.simulation.playing.scripted import scripted_reply
from cbtqa.simulation.study import Player

ValueT = TypeVar("ValueT")


def endpoints_of(
    player: Player, transport: TransportName = "http", *, allows_plain_http: bool = False
) -> tuple[Endpoint, ...]:
    """Where a player is asked; raises as `Endpoint.parse` and `check_key_variable`."""
    environ = dict(os.environ)
    if player.key_env:
        check_key_variable(player.key_env)
        environ[OWN_KEY] = environ.get(player.key_env, "")
    how: dict[str, Any] = {"transport": transport, "allows_plain_http": allows_plain_http}
    how |= {"model": player.model or "", "environ": environ}
    return tuple(Endpoint.parse(where, **how) for where in player.endpoints)


def price_of(player: Player) -> Price | None:
    """What a player's tokens cost; nothing for rules and this machine, None when unknown."""
    if player.price_in is not None and player.price_out is not None:
        return Price(input=player.price_in, output=player.price_out, currency="")
    presets = preset_file().presets
    urls = [presets[one].base_url if one in presets else one for one in player.endpoints]
    if all(map(is_local, urls)):
        return Price(input=0, output=0)
    return find_price(player.model or "")


class StudyBudget(Budget):
    """The most that a study may cost over all its models; each brings its own price."""

    def __post_init__(self) -> None:
        """Allows a limit in money without a price: `Players.open` demands one of each model."""


@dataclass(frozen=True)
class RunLimits:
    """How fast and how much; nothing here changes a word."""

    engine: Limits = field(default_factory=Limits)
    """`in_flight` is also the number of sessions played at a time."""
    budget: float | None = None
    budget_tokens: int | None = None
    transport: TransportName = "http"
    allows_plain_http: bool = False
    """True when hosts that are not local may be asked without encryption."""

    def study_budget(self) -> StudyBudget | None:
        """The budget of all models together, or None without a limit."""
        has_one = self.budget is not None or self.budget_tokens is not None
        return StudyBudget(self.budget, self.budget_tokens) if has_one else None


class PlayerModel(Protocol):
    """What answers for players: the rules, or one model at one place."""

    @property
    def is_free(self) -> bool:
        """True when an answer costs nothing and comes out the same again: it need not be durable
        before it is used."""

    async def answer(self, request: ChatRequest, attempt: int, context: TurnContext) -> Reply:
        """One reply.

        Raises:
            ItemFailedError: this question got no reply.
            GateClosedError: the run is stopping.
            EndpointError: every question would fail.
        """


class ScriptedModel:
    is_free = True

    def __init__(self, variant: str) -> None:
        self._variant = variant

    async def answer(self, request: ChatRequest, attempt: int, context: TurnContext) -> Reply:
        """Answers from the context; the messages are for models."""
        await asyncio.sleep(0)  # rules never wait: without this, no other session would go on
        return scripted_reply(self._variant, context)


class EndpointModel:
    is_free = False

    def __init__(self, model: Model) -> None:
        self.model = model

    async def answer(self, request: ChatRequest, attempt: int, context: TurnContext) -> Reply:
        """Asks within the limits, repeating what may be repeated."""
        return await self.model.answer(request, attempt)


@dataclass(frozen=True)
class OpenPlayer:
    """A player of the study, and what answers for it."""

    settings: Player
    model: PlayerModel


@dataclass(frozen=True)
class Call(Generic[ValueT]):
    """One question of a session to one player, under one key of the journal."""

    key: str
    player: OpenPlayer
    context: TurnContext
    messages: Sequence[Message]
    seed: int
    """Of the sampling."""
    read: Callable[[Reply], ValueT | Fault]
    """What a reply holds; a fault is asked for again."""
    json_schema: Mapping[str, Any] | None = None
    keeps_cut: bool = False
    """True when a reply cut at the token limit is not asked for again."""
    is_spoken: bool = False
    """True for a turn of the conversation. To the model a note about its reply would be one, too,
    and it would answer the note: so the same question is asked with another seed."""

    def check(self, reply: Reply) -> Fault | None:
        found = self.read(reply)
        return found if isinstance(found, Fault) else None

    def request(self, messages: Sequence[Message], seed: int | None = None) -> ChatRequest:
        sampling = self.player.settings.sampling(self.seed if seed is None else seed)
        return ChatRequest(messages, self.json_schema, sampling=sampling)

    def ask_again(self, reply: Reply, fault: Fault) -> ChatRequest | None:
        """The question with the faulty reply and the complaint; None for a cut that is kept."""
        if self.keeps_cut and fault.reason is Reason.CUT:
            return None
        if self.is_spoken:
            return self.request(self.messages, seed_of(self.seed, "again", reply.text))
        texts = wording()["again"]
        sentence = texts.get(fault.reason.value, texts["other"])
        complaint = filled(sentence, detail=fault.detail[:200] or fault.reason.value)
        return self.request(with_complaint(self.messages, reply.text.strip(), complaint))


class Players:
    def __init__(
        self, journal: Journal, limits: RunLimits, attempts: int, on_progress: OnProgress | None
    ) -> None:
        engine = limits.engine.model_copy(update={"max_attempts": attempts})
        budget = limits.study_budget()
        self.line = Line((), journal, engine, budget=budget, on_progress=on_progress)
        self._transport, self._allows_plain_http = limits.transport, limits.allows_plain_http
        self._models: dict[str, PlayerModel] = {}

    async def open(self, player: Player) -> OpenPlayer:
        """The player with its model; players with one model at the same servers share it.

        Raises:
            ConfigError, EndpointAuthError: the endpoint is none, or its key is missing.
            MissingExtraError: a model on this machine, without the libraries for it.
        """
        if player.scripted:
            return OpenPlayer(player, ScriptedModel(player.scripted))
        name = _model_name(player)
        if name not in self._models:
            self._models[name] = await self._open_model(player)
        return OpenPlayer(player, self._models[name])

    async def _open_model(self, player: Player) -> PlayerModel:
        if player.is_local:
            from cbtqa.simulation.playing.local_model import LocalModel

            return LocalModel(player)
        how = {"allows_plain_http": self._allows_plain_http}
        endpoints = endpoints_of(player, self._transport, **how)
        price, budget = price_of(player), self.line.budget
        if budget is not None and budget.max_cost is not None and price is None:
            raise ConfigError(
                f"--budget: no price is known for {player.model}",
                hint="add price_in and price_out to the player, or use --budget-tokens",
            )
        return EndpointModel(await self.line.model(endpoints, price))

    async def ask(self, call: Call[ValueT]) -> tuple[ValueT | Fault, Outcome]:
        """What the last reply to a call holds, or its fault; raises as `Line.ask`."""
        judged = call.request(call.messages), call.check, call.ask_again
        answer = partial(call.player.model.answer, context=call.context)
        question = Question(call.key, *judged, answer, call.player.model.is_free)
        outcome = await self.line.ask(question)
        if outcome.is_accepted and outcome.reply is not None:
            return call.read(outcome.reply), outcome
        return outcome.fault or Fault(Reason.EMPTY, "no reply"), outcome

    def book_earlier(self, player_of: Callable[[str], Player | None]) -> None:
        """Books what the journal holds on the budget and on the models that were opened.

        Args:
            player_of: who answered under a key of the journal; None for one of another study.
        """
        journal, budget = self.line.journal, self.line.budget
        for key, outcome in journal.outcomes(journal.done_keys()):
            player = player_of(key)
            found = self._models.get(_model_name(player)) if player else None
            if outcome is not None and isinstance(found, EndpointModel):
                model = found.model
                model.spent += outcome.usage
                if budget is not None:
                    budget.book(outcome.usage, model.price)

    @property
    def cost(self) -> float | None:
        """Money spent on all models, earlier runs included; None when a price is unknown."""
        models = [one.model for one in self._models.values() if isinstance(one, EndpointModel)]
        costs = [model.price.of(model.spent) if model.price else None for model in models]
        return None if None in costs else sum(cost or 0 for cost in costs)


def _model_name(player: Player) -> str:
    """What players of one model at the same servers have in common."""
    if not player.endpoints:
        return f"here\n{player.backbone}\n{player.adapter}"
    return "\n".join((*player.endpoints, player.model or ""))
