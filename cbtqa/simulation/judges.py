"""Which judges rate a study: those named on the command line, those it declares, or the rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cbtqa.errors import UsageError
from cbtqa.llm.chat import Sampling
from cbtqa.llm.cost import Price, find_price
from cbtqa.llm.endpoint import Endpoint
from cbtqa.simulation.judge_settings import SessionJudgeSettings
from cbtqa.simulation.rule_judge import RULES
from cbtqa.simulation.study import Player, StudySettings
from cbtqa.simulation.voices import endpoint_of


@dataclass(frozen=True)
class JudgeSpec:
    """One judge; without an endpoint it is the built-in rules."""

    name: str
    endpoint: Endpoint | None
    sampling: Sampling
    n_repeats: int
    price: Price | None = None


def judges_of(settings: SessionJudgeSettings, study: StudySettings | None) -> Iterator[JudgeSpec]:
    """The judges of a run: those named, else those the study declares, else the rules.

    Raises:
        UsageError: half a judge is named, or one that is no endpoint.
    """
    sampling = Sampling(
        temperature=settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed
    )
    if settings.endpoint or settings.model:
        if not (settings.endpoint and settings.model):
            raise UsageError(
                "--endpoint and --model go together", hint="--endpoint vllm --model Qwen3-32B"
            )
        for model in dict.fromkeys(settings.model):
            endpoint = Endpoint.parse(settings.endpoint, model)
            price = _price(settings.price_in, settings.price_out, model)
            yield JudgeSpec(model, endpoint, sampling, settings.repeats, price)
        return
    declared = study.judges if study and not settings.rules else ()
    if not declared:
        yield JudgeSpec(RULES, None, sampling, 1)
    for judge in declared:
        yield _declared(judge.player, judge.repeats, sampling)


def _declared(player: Player, n_repeats: int, default: Sampling) -> JudgeSpec:
    if player.scripted:
        return JudgeSpec(RULES, None, default, 1)
    if not player.endpoint or not player.model:
        raise UsageError(
            "a judge is an endpoint with a model, or scripted rules",
            hint="serve a local model (vllm, llama.cpp, ollama) and name its endpoint",
        )
    # a player's default limit fits one turn of a session, not twenty-five items with quotes
    n_tokens = max(player.max_tokens, default.max_tokens or 0)
    own = {
        "top_p": player.top_p,
        "stop": player.stop,
        "extra": player.extra,
        "max_tokens": n_tokens,
    }
    sampling = default.model_copy(update=own)
    if player.temperature is not None:
        sampling = sampling.model_copy(update={"temperature": player.temperature})
    endpoint = endpoint_of(player)
    price = _price(player.price_in, player.price_out, player.model)
    return JudgeSpec(player.model, endpoint, sampling, n_repeats, price)


def _price(price_in: float | None, price_out: float | None, model: str) -> Price | None:
    if price_in is not None and price_out is not None:
        return Price(input=price_in, output=price_out)
    return find_price(model)
