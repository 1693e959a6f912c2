"""A therapist or patient on this machine: a backbone, with or without an adapter of `finetune`.

Questions that wait at the same time are answered as one batch on a thread of its own. Every answer
draws from its own seed, so it depends neither on its batch nor on where a run was interrupted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from cbtqa.errors import ConfigError, MissingExtraError
from cbtqa.llm.asking import ItemFailedError
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.journal import State
from cbtqa.records import Reason
from cbtqa.simulation.playing.messages import TurnContext
from cbtqa.simulation.study import Player

GATHER_S = 0.02
"""For so long others may join a batch; a turn takes far longer."""
KNOWN_EXTRA = ("top_k", "repetition_penalty")


@dataclass
class _Waiting:
    request: ChatRequest
    sampling: Sampling
    answer: asyncio.Future[Reply]


class LocalModel:
    is_free = False
    """It costs time: a reply is durable before it is used."""

    def __init__(self, player: Player) -> None:
        """Finds and checks the model; its weights are loaded with the first question.

        Raises:
            ConfigError: settings that only servers know, or a model that is missing.
            DataError: no adapter there, or on another base.
            MissingExtraError: torch, transformers or peft are not installed.
        """
        if player.stop or (unknown := set(player.extra) - set(KNOWN_EXTRA)):
            what = "stop" if player.stop else ", ".join(sorted(unknown))
            raise ConfigError(
                f"player {player.name}: {what} is not known to models on this machine",
                hint=f"known: temperature, top_p, max_tokens, {', '.join(KNOWN_EXTRA)}",
            )
        try:
            from cbtqa.tuning.answering.model import open_model
            from cbtqa.tuning.loading import choose_precision
        except ImportError as error:
            raise MissingExtraError(error.name or "torch", "train") from None

        self._opened = open_model(_settings(player, player.sampling(None)))
        self._precision = choose_precision("auto")
        self._player = player
        self._model: Any = None
        self._queue: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None

    async def answer(self, request: ChatRequest, attempt: int, context: TurnContext) -> Reply:
        """One reply, made in a batch with what waits beside it.

        Raises:
            ItemFailedError: the prompt leaves no room for an answer, or spells out a control token,
                which would end a turn or open one.
        """
        said = [message["content"] for message in request.messages]
        if any(map(self._opened.chat.holds_special_token, said)):
            detail = "a message spells out a control token of the model"
            raise ItemFailedError(State.FINAL, Fault(Reason.BAD_REQUEST, detail))
        loop = asyncio.get_running_loop()
        sampling = request.sampling.for_attempt(attempt)
        waiting = _Waiting(request, sampling, loop.create_future())
        self._queue.append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await waiting.answer

    async def _work(self) -> None:
        while self._queue:
            await asyncio.sleep(GATHER_S)
            batch = self._take()
            try:
                replies = await asyncio.to_thread(self._answer, batch)
            except BaseException as error:
                for waiting in (*batch, *self._queue):
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                self._queue.clear()
                if isinstance(error, asyncio.CancelledError):
                    raise
                return
            for waiting, reply in zip(batch, replies, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(reply, Fault):
                    waiting.answer.set_exception(ItemFailedError(State.FINAL, reply))
                else:
                    waiting.answer.set_result(reply)

    def _take(self) -> list[_Waiting]:
        """What can be drawn together: one way of sampling, and no seed twice."""
        first = self._queue[0].sampling.model_copy(update={"seed": None})
        taken: list[_Waiting] = []
        seeds: set[int | None] = set()
        for waiting in list(self._queue):
            is_alike = waiting.sampling.model_copy(update={"seed": None}) == first
            if is_alike and waiting.sampling.seed not in seeds:
                seeds.add(waiting.sampling.seed)
                taken.append(waiting)
                self._queue.remove(waiting)
        return taken

    def _answer(self, batch: list[_Waiting]) -> list[Reply | Fault]:
        """The replies of a batch, in its order; runs on a thread."""
        from cbtqa.tuning.answering.decoding import Decoder
        from cbtqa.tuning.answering.questions import Prompt

        if self._model is None:
            device = "cpu" if self._precision == "fp32" else "cuda"
            self._model = self._opened.load(device, self._precision)
        sampling = batch[0].sampling
        settings = _settings(self._player, sampling)
        chat, stops = self._opened.chat, self._opened.stops
        decoder = Decoder(self._model, chat, stops, settings, self._player.name)
        ids = chat.prompt_ids([list(map(dict, waiting.request.messages)) for waiting in batch])
        prompts = [
            Prompt(str(waiting.sampling.seed), tuple(row))
            for waiting, row in zip(batch, ids, strict=True)
        ]
        context, faults = self._opened.backbone.context, dict[str, Reply | Fault]()
        for prompt in prompts:
            n_tokens = len(prompt.ids) + settings.max_new_tokens
            if context is not None and n_tokens > context:
                detail = f"{n_tokens} tokens with the reply, the model's context holds {context}"
                faults[prompt.key] = Fault(Reason.BAD_REQUEST, detail)
        fitting = [prompt for prompt in prompts if prompt.key not in faults]
        replies = {key: reply for done in decoder.answer(fitting) for key, reply in done}
        return [(faults | replies)[prompt.key] for prompt in prompts]


def _settings(player: Player, sampling: Sampling) -> Any:
    """The same as `cbtqa generate` takes it."""
    from cbtqa.tuning.answering.settings import GenerateSettings

    temperature = sampling.temperature
    return GenerateSettings(
        adapter=player.adapter,
        base=player.backbone if player.adapter else None,
        model=None if player.adapter else player.backbone,
        max_new_tokens=player.max_tokens,
        temperature=1.0 if temperature is None else temperature,  # as servers do; assumed
        top_p=sampling.top_p or 1.0,
        top_k=sampling.extra.get("top_k"),
        repetition_penalty=sampling.extra.get("repetition_penalty", 1.0),
    )
